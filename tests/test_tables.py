"""Corpora that are tables: Parquet and the Hub."""

import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
import yaml
from helpers import grey, write
from huggingface_hub import HfApi
from test_corpora import (
    PREPARE,
    images,  # noqa: F401 - fixtures
    label_names,
    picture,
    prepare,
    write_parquet,
)

import embed
from corpora.load import load_corpus
from corpora.record import CorpusError
from images.arguments import PrepareArguments
from images.items import read_items
from judging.summary import draw_comparison, draw_curves, predictions_table
from training import explaining


def columns(start: int, count: int) -> dict[str, list]:
    return {
        "finding": [("benign", "malignant")[index // 3 % 2] for index in range(start, start + count)],
        "patient_id": [index // 3 for index in range(start, start + count)],
    }


FINDINGS = {"finding": datasets.Value("string"), "patient_id": datasets.Value("int32")}


@pytest.mark.parametrize("by_name", [False, True])
def test_a_parquet_folder_is_prepared(tmp_path, by_name):
    raw = write_parquet(
        tmp_path / "raw", FINDINGS, train=columns(0, 36), validation=columns(36, 6), test=columns(42, 12)
    )
    given = ("--corpus", "folder", "--data_dir", raw) if by_name else ("--corpus", raw)
    output = tmp_path / "out"
    options = ("--label_column", "finding", "--num_folds", 2, "--keep_file_names", True)
    assert prepare(*given, "--output_dir", output, *options) is None
    loaded = datasets.load_dataset(str(output))
    assert {split: len(part) for split, part in loaded.items()} == {"train": 36, "validation": 6, "test": 12}
    assert loaded["train"].features["label"].names == ["benign", "malignant"]
    assert label_names(loaded["test"]) == columns(42, 12)["finding"]
    assert len(set(loaded["train"]["group"])) == 12
    undecoded = loaded["test"].cast_column("image", datasets.Image(decode=False))
    assert [row["bytes"] for row in undecoded["image"]] == [picture(index) for index in range(42, 54)]
    assert str(tmp_path) not in (output / "config.yaml").read_text() + (output / "README.md").read_text()


def test_images_of_one_name_are_told_apart(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = [{"bytes": picture(index), "path": f"{index // 2}.png"} for index in range(24)]
    (tmp_path / "raw").mkdir()
    made = datasets.Dataset.from_dict({"image": rows, "label": 12 * [0, 1]}, features=features)
    made.to_parquet(tmp_path / "raw" / "train.parquet")
    assert prepare("--corpus", tmp_path / "raw", "--output_dir", tmp_path / "out", "--num_folds", 2) is None
    assert len(json.loads((tmp_path / "out" / "splits.json").read_text())["images"]) == 24


def test_labels_that_the_hub_hides_are_not_guessed(tmp_path):
    classes = datasets.ClassLabel(names=["a", "b"])
    raw = write_parquet(tmp_path / "raw", {"label": classes}, train={"label": 6 * [0, 1]}, test={"label": [-1, -1]})
    message = prepare("--corpus", raw, "--output_dir", tmp_path / "out")
    assert "2 of 14 images have no label: test-0, test-1" in message
    write_parquet(tmp_path / "raw", {"label": classes}, more={"label": [0]})
    (tmp_path / "raw" / "test.parquet").unlink()
    assert (
        prepare("--corpus", raw, "--output_dir", tmp_path / "out", "--label_column", "none", "--num_folds", 2) is None
    )


def test_a_data_set_of_the_hub_goes_to_load_dataset(tmp_path, monkeypatch):
    raw = write_parquet(tmp_path / "raw", FINDINGS, train=columns(0, 24))
    load_dataset, asked = datasets.load_dataset, []

    def from_hub(path, *args, **options):
        asked.append(path)
        return load_dataset("parquet", data_files=str(raw / "train.parquet"), **options)

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    common = ("--corpus", "owner/name", "--output_dir", tmp_path / "out", "--num_folds", 2)
    assert "data_dir, the folder of the download" in prepare(*common, "--data_dir", raw)
    assert prepare(*common, "--label_column", "finding") is None
    assert asked == ["owner/name"]
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["corpus"] == "owner/name"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["patients_known"] and set(report["class_counts"]) == {"benign", "malignant"}


@pytest.mark.parametrize("split", ["val", "valid", "Validation"])
def test_a_split_of_the_hub_goes_by_its_usual_names(tmp_path, monkeypatch, split):
    raw = write_parquet(tmp_path / "raw", FINDINGS, a=columns(0, 12), b=columns(12, 12), c=columns(24, 12))
    splits = {name: datasets.Dataset.from_parquet(str(raw / f"{name}.parquet")) for name in "abc"}

    def from_hub(*names):
        found = datasets.DatasetDict(dict(zip(names, splits.values(), strict=False)))
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: found)
        return PrepareArguments(corpus="me/mine", label_column="finding", output_dir=str(tmp_path / "out"))

    items, *_ = read_items(from_hub("train", split))
    assert [item.record.split for item in items] == ["train"] * 12 + ["validation"] * 12
    with pytest.raises(CorpusError, match="two splits of one kind, among train, valid, val"):
        read_items(from_hub("train", "valid", "val"))
    with pytest.raises(CorpusError, match="has the split 'dev'; allowed are train, test, val"):
        read_items(from_hub("train", "dev"))


def test_unknown_patients_stay_unknown_when_a_data_set_is_prepared_again(tmp_path):
    for index in range(12):
        write(tmp_path / "raw" / "ab"[index % 2] / f"{index}.png", picture(index))
    first, again = tmp_path / "first", tmp_path / "again"
    assert prepare("--corpus", tmp_path / "raw", "--output_dir", first, "--num_folds", 2) is None
    assert prepare("--corpus", first, "--output_dir", again, "--num_folds", 2) is None
    for folder in (first, again):
        assert not json.loads((folder / "report.json").read_text())["patients_known"]


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_prepared(hub, tmp_path):
    raw = write_parquet(tmp_path / "raw", FINDINGS, train=columns(0, 24), test=columns(24, 12))
    api = HfApi(hub.endpoint, token="hf_writer")
    api.create_repo("org/scans", repo_type="dataset")
    for file in raw.iterdir():
        api.upload_file(path_or_fileobj=file, path_in_repo=file.name, repo_id="org/scans", repo_type="dataset")
    options = ["--corpus", "org/scans", "--label_column", "finding", "--num_folds", "2", "--keep_file_names", "true"]
    given = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, str(PREPARE), *options, "--output_dir", str(tmp_path / "out")],
        env=given | hub.environment(tmp_path / "home", "hf_reader"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded = datasets.load_dataset(str(tmp_path / "out"))
    assert {split: len(part) for split, part in loaded.items()} == {"train": 24, "test": 12}
    assert label_names(loaded["test"]) == columns(24, 12)["finding"]


def test_a_dollar_in_a_name_is_a_dollar(tmp_path):
    raw = tmp_path / "raw"
    for index in range(12):
        write(raw / ("US$5_to_$10", r"US$\frac")[index % 2] / f"{index}$x$$.png", picture(index))
    write(raw / "US$5_to_$10" / "copy$^$$.png", picture(0))
    embed.main([f"--corpus={raw}", f"--output_dir={tmp_path / 'e'}", "--plot=pca"])
    assert (tmp_path / "e" / "features.png").stat().st_size
    assert prepare("--corpus", raw, "--output_dir", tmp_path / "out", "--num_folds", 2) is None
    assert (tmp_path / "out" / "report" / "identical_pairs.png").stat().st_size
    images = load_corpus(str(raw))
    names, random = images.features["label"].names, np.random.default_rng(0)
    images = images.add_column("sha256", images["file_name"]).add_column("group", images["file_name"])
    table = predictions_table(random.dirichlet([1, 1], len(images)), images, names, "0")
    draw_curves(table, tmp_path / "curves.png")
    draw_curves(table, tmp_path / "collapsed.png", names[:1])
    draw_comparison({r"runs/$\x$": table, "b": table}, tmp_path / "comparison.png")
    heat, title = grey() / 255, "a$\\b$.png"
    explaining._draw(
        *(tmp_path / "map.png", title, heat, "occlusion", (-1.0, 1.0), names, heat, 0, np.array([0.5, 0.5]))
    )
    assert all(
        (tmp_path / name).stat().st_size for name in ("curves.png", "collapsed.png", "comparison.png", "map.png")
    )
