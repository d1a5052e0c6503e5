"""Large corpora: pairs by a fast rule, bytes that are on disk, and what a check of all images leaves known."""

import hashlib
import importlib
import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from helpers import encode, picture, write
from sklearn.model_selection import StratifiedGroupKFold

from commandline import UsageError
from images.arguments import PrepareArguments
from images.fingerprint import (
    COPY_CORRELATION,
    MAX_BITS,
    MIN_CORRELATION,
    Fingerprint,
    fingerprint,
    similar_pairs,
)
from images.folds import grouped_parts
from images.known import recall
from images.overlap import SplitError
from images.splits import load_known, load_prepared
from prepare_corpus import prepare

BENCHMARKS = Path(__file__).parents[1] / "recipes" / "benchmarks"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test writes to the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path):
    for index in range(24):
        write(tmp_path / "raw" / "ab"[index % 2] / f"{index:02d}.png", encode(picture(index)))
    return prepare(
        PrepareArguments("folder", str(tmp_path / "raw"), str(tmp_path / "out"), keep_file_names=True, num_folds=2)
    )


def by_definition(first: list[Fingerprint], second: list[Fingerprint] | None) -> list[tuple[int, int]]:
    """Each with each."""
    found = []
    for i, one in enumerate(first):
        for j, other in enumerate(first if second is None else second):
            bits = int(np.unpackbits(one.bits ^ other.bits).sum())
            correlation = float(one.thumbnail @ other.thumbnail)
            near = (bits <= MAX_BITS and correlation >= MIN_CORRELATION) or correlation >= COPY_CORRELATION
            if (near or one.sha256 == other.sha256) and (second is not None or i < j):
                found.append((i, j))
    return found


def prints(count: int, seed: int, noise: float) -> list[Fingerprint]:
    """Of families of pictures that are alike by degrees, some of them noise, a few flat; some of the same bytes."""
    random, made = np.random.default_rng(seed), []
    for index in range(count):
        base = picture(index % 9, size=64).astype(np.float64)
        grey = base + noise * random.random() * random.normal(size=base.shape) * base.std()
        grey = (grey.clip(0, 255) / 255) if index % 11 else np.full(base.shape, 0.5)
        made.append(fingerprint(b"%d" % (index % (count - 5)), grey.astype(np.float32)))
    return made


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_pairs_are_those_of_comparing_each_with_each(noise, monkeypatch):
    first, second = prints(90, 0, noise), prints(50, 1, noise)
    monkeypatch.setattr("images.fingerprint._TILE", 32)  # several tiles, also some that are not full
    for others in (None, second):
        expected = by_definition(first, others)
        found = similar_pairs(first, others)
        assert [(pair.first, pair.second) for pair in found] == expected
        assert 5 <= len(expected) < 0.5 * len(first) * len(others or first)
        for pair in found:
            one, other = first[pair.first], (others or first)[pair.second]
            assert pair.bits == np.unpackbits(one.bits ^ other.bits).sum()
            assert pair.correlation == pytest.approx(one.thumbnail @ other.thumbnail, abs=1e-5)
            assert pair.identical == (one.sha256 == other.sha256)
    assert any(pair.identical for pair in similar_pairs(first))


@pytest.mark.slow
def test_processes_and_threads_prepare_the_same_corpus(corpus, tmp_path):
    write(tmp_path / "raw" / "a" / "bad.png", b"nothing")
    given = {"keep_file_names": True, "num_folds": 2, "bad_images": "skip", "num_workers": 2}
    other = prepare(PrepareArguments("folder", str(tmp_path / "raw"), str(tmp_path / "out2"), **given))
    assert len(json.loads((other / "report.json").read_text())["findings"]["unreadable"]) == 1
    assert json.loads((corpus / "splits.json").read_text()) == json.loads((other / "splits.json").read_text())
    first, second = (
        datasets.Dataset.from_parquet(str(next((folder / "data").glob("*.parquet")))) for folder in (corpus, other)
    )
    raw = datasets.Image(decode=False)
    assert first.cast_column("image", raw).to_list() == second.cast_column("image", raw).to_list()
    assert {path.name for path in tmp_path.iterdir()} <= {"raw", "out", "out2", "cache"}, "nothing is left behind"
    with pytest.raises(UsageError, match="num_workers must be at least 0, got -1"):
        PrepareArguments("folder", str(tmp_path / "raw"), str(tmp_path / "out3"), num_workers=-1)


def test_a_corpus_of_several_files_is_written_in_order(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("images.items.IMAGES_PER_FILE", 7)
    again = prepare(
        PrepareArguments("folder", str(tmp_path / "raw"), str(tmp_path / "out2"), keep_file_names=True, num_folds=2)
    )
    files = sorted((again / "data").glob("*.parquet"))
    names = [datasets.Dataset.from_parquet(str(file))["file_name"] for file in files]
    assert [len(part) for part in names] == [6, 6, 6, 6]
    assert sum(map(list, names), []) == sorted(json.loads((corpus / "splits.json").read_text())["images"])


def test_a_corpus_that_did_not_change_is_not_decoded_again(corpus, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("an image was read")

    monkeypatch.setattr("images.overlap.decode_image", refuse)
    for fold in "01":
        assert load_prepared(str(corpus), None, fold)[1] == ["a", "b"]
    with pytest.raises(AssertionError, match="an image was read"):
        load_prepared(str(corpus), None, "0", verify_data=True)


def test_what_is_known_is_of_these_files_as_they_are(corpus):
    (file,) = (corpus / "data").glob("*.parquet")
    times = file.stat()
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1  # within an image: size and footer stay
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load_known(str(corpus)) is None


def test_a_fold_is_loaded_without_gathering_its_rows(corpus, monkeypatch):
    load_prepared(str(corpus), None, "0")
    read, get = [], datasets.Dataset._getitem
    monkeypatch.setattr(datasets.Dataset, "_getitem", lambda self, *args: (read.append(args), get(self, *args))[1])
    parts, _ = load_prepared(str(corpus), None, "0")
    assert not read
    assert parts["train"][0] and read, "reading is noticed"
    assert sum(map(len, parts.values())) == 24


@pytest.mark.parametrize("seed", range(6))
def test_folds_are_those_of_scikit_learn(seed):
    random = np.random.default_rng(seed)
    count, parts = int(random.integers(80, 160)), int(random.integers(2, 9))
    labels = np.tile(np.arange(1 + seed % 4), count)[:count]
    groups = random.permutation(count) // random.choice([1, 1, 3])  # few or many alike
    expected = StratifiedGroupKFold(parts, shuffle=True, random_state=seed).split(labels, labels, groups)
    for found, (_, test) in zip(grouped_parts(labels, groups, parts, seed), expected, strict=True):
        assert found.tolist() == test.tolist()


def replace_image(corpus, change, *, keep_times: bool) -> None:
    """Another table in the place of the only Parquet file."""
    (file,) = (corpus / "data").glob("*.parquet")
    times = file.stat()
    table = datasets.Dataset.from_parquet(str(file)).cast_column("image", datasets.Image(decode=False))
    table.map(change, with_indices=True).cast_column("image", datasets.Image()).to_parquet(file)
    if keep_times:
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_changed_image_is_noticed(corpus, keep_times, tmp_path, monkeypatch):
    load_prepared(str(corpus), None, "0")
    other = {"bytes": encode(picture(99)), "path": "x.png"}
    replace_image(corpus, lambda row, index: {"image": other} if index == 3 else {}, keep_times=keep_times)
    assert load_known(str(corpus)) is None
    shutil.rmtree(tmp_path / "cache" / "parquet")  # what `datasets` made of the file as it was
    with pytest.raises(SplitError, match=r"1 image\(s\) changed \(a/06.png\)"):
        load_prepared(str(corpus), None, "0")
    assert load_known(str(corpus)) is None, "what was refused is not known"


def test_copies_across_groups_are_refused_however_often_a_fold_is_loaded(corpus):
    splits = json.loads((corpus / "splits.json").read_text())["folds"][0]
    names = splits["train"][0], splits["test"][0]
    (file,) = (corpus / "data").glob("*.parquet")
    # The test image is another encoding of the training image, of a group of its own.
    data = encode(picture(int(names[0][2:4])), "JPEG", quality=95)
    copy = {"image": {"bytes": data, "path": "x.jpg"}, "sha256": hashlib.sha256(data).hexdigest()}
    replace_image(corpus, lambda row, index: copy if row["file_name"] == names[1] else {}, keep_times=False)
    content = json.loads((corpus / "splits.json").read_text())
    content["images"][names[1]] = copy["sha256"]
    (corpus / "splits.json").write_text(json.dumps(content))
    for _ in range(2):
        with pytest.raises(SplitError, match=f"'{names[0]}' and '{names[1]}'"):
            load_prepared(str(corpus), None, "0")
        assert recall([file]).alike == [tuple(sorted(names))]


@pytest.fixture
def scale(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("scale")


def test_the_powers_by_which_seconds_grow(scale):
    step = {"seconds": 2.0, "peak_mib": 512.0}
    results = {100: dict.fromkeys(scale.STEPS, step), 1000: dict.fromkeys(scale.STEPS, step | {"seconds": 200.0})}
    header, _, row, *_ = scale.table(results).splitlines()
    assert header == "| step | 100 | 1,000 | power, 100 to 1,000 |"
    assert row == "| prepare | 2 s, 0.50 GiB | 200 s, 0.50 GiB | 2.00 |"
    with pytest.raises(SystemExit, match="error: sizes must be different numbers from 50"):
        scale.main(["--sizes", "100", "20"])


def test_the_table_of_the_readme_is_of_the_stored_run(scale):
    stored = json.loads((BENCHMARKS / "results" / "scale.json").read_text())
    readme = (BENCHMARKS / "README.md").read_text()
    assert scale.table({int(size): steps for size, steps in stored["sizes"].items()}) in readme
    assert f"load of {stored['machine']['load_before']:g}" in readme


@pytest.mark.slow
def test_a_tiny_corpus_is_measured_and_its_planted_copies_are_found(scale, tmp_path, capsys):
    scale.main(["--sizes", "100", "--json", str(tmp_path / "scale.json")])
    found = json.loads((tmp_path / "scale.json").read_text())["sizes"]["100"]
    assert list(found) == list(scale.STEPS)
    assert all(step["seconds"] > 0 and step["peak_mib"] > 50 for step in found.values())
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]) == 7
