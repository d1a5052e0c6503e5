"""Patients whose images look alike: what a preparation says that they stop, and the option that lets them be apart."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from helpers import encode, grey, picture, write
from PIL import Image
from test_dicom import save
from test_prepare_corpus import arguments, findings

from commandline import UsageError
from hub.never_published import files_of
from images.arguments import PrepareArguments
from images.fingerprint import SimilarPair, merged_groups
from images.grouping import pairs_that_join, told_of_few_groups
from images.known import recall
from images.splits import SplitError, load_prepared
from prepare_corpus import prepare


@pytest.fixture
def phantoms(tmp_path) -> PrepareArguments:
    """Class a: ten patients with nearly the same picture; class b: ten with pictures of their own."""
    rows = ["file,label,patient"]
    for index in range(10):
        noise = np.random.default_rng(index).normal(0, 2, picture(0).shape)
        alike = (picture(0) + noise).clip(0, 255).astype(np.uint8)
        for label, image in (("a", alike), ("b", picture(index + 1))):
            write(tmp_path / "raw" / f"{label}{index}.png", encode(image))
            rows.append(f"{label}{index}.png,{label},patient {label}{index}")
    table = write(tmp_path / "table.csv", "\n".join(rows).encode())
    return arguments(tmp_path / "raw", table=str(table), keep_file_names=False)


def test_patients_that_were_joined_are_told_with_a_pair_and_a_report(phantoms):
    with pytest.raises(SplitError) as stopped:
        prepare(phantoms)
    said, out = str(stopped.value), Path(phantoms.output_dir)
    assert "Class a: of 10 patients 1 group(s) are left" in said and "--near_identical patients" in said
    assert "'a" in said.partition("such as ")[2]  # as the user knows it
    assert f"{out / 'stopped' / 'report.md'}" in said
    report = (out / "stopped" / "report.md").read_text()
    assert "pairs of near-identical images | 45" in report and "patient a" not in report
    for name in ("samples", "near_identical_pairs"):
        Image.open(out / "stopped" / "report" / f"{name}.png").verify()
    assert [entry.name for entry in out.iterdir()] == ["stopped"]


def test_patients_as_given_are_apart_from_preparation_to_training(phantoms, caplog):
    with pytest.raises(SplitError):
        prepare(phantoms)
    phantoms.near_identical = "patients"
    out = prepare(phantoms)  # what the attempt before left is no data set that it would replace
    assert not (out / "stopped").exists()
    assert "45 pair(s) of images look alike and are in different groups" in caplog.text
    report = json.loads((out / "report.json").read_text())
    assert report["num_groups"] == 20 and report["rule"]["joined"].startswith("0 of the 45 pairs")
    (file,) = (out / "data").glob("*.parquet")
    assert len(recall([file]).alike) == 45
    for verify in (False, True):
        parts, _ = load_prepared(str(out), None, "0", verify_data=verify)
        assert sorted(label for part in parts.values() for label in part["label"]) == [0] * 10 + [1] * 10
        assert not set(parts["train"]["group"]) & set(parts["test"]["group"])


def test_a_stopped_preparation_leaves_a_data_set_as_it_was(phantoms):
    phantoms.near_identical = "patients"
    out = prepare(phantoms)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    phantoms.near_identical, phantoms.overwrite_output_dir = "join", True
    with pytest.raises(SplitError):
        prepare(phantoms)
    assert {path: path.read_bytes() for path in before} == before
    datasets.load_dataset(str(out))
    load_prepared(str(out), None, "0")


def test_what_stopped_is_never_published_and_what_others_put_there_stays(phantoms, tmp_path):
    phantoms.near_identical = "patients"
    out = prepare(phantoms)
    phantoms.near_identical, phantoms.overwrite_output_dir, phantoms.keep_file_names = "join", True, True
    with pytest.raises(SplitError):
        prepare(phantoms)
    assert "a0.png" in (out / "stopped" / "report.json").read_text()
    files, left_out = files_of(out)
    assert not [name for name in files if name.startswith("stopped")]
    assert left_out["stopped/report.md"] == "of a preparation that was stopped"
    assert "/stopped/" in (out / ".gitignore").read_text()

    mine = write(tmp_path / "other" / "stopped" / "mine.txt", b"mine")
    phantoms.output_dir, phantoms.overwrite_output_dir = str(tmp_path / "other"), False
    with pytest.raises(UsageError, match="is not empty"):
        prepare(phantoms)
    assert mine.read_bytes() == b"mine"


def test_images_that_may_be_apart_are_in_report_and_card(phantoms):
    phantoms.near_identical = "patients"
    out = prepare(phantoms)
    assert "| pairs of near-identical images in different groups" in (out / "report.md").read_text()
    card = (out / "README.md").read_text()
    assert "45 pairs of images that look alike are in different groups" in card and "joined with every" not in card
    phantoms.near_identical, phantoms.num_folds, phantoms.overwrite_output_dir = "join", 2, True
    table = Path(phantoms.table)
    table.write_text("\n".join(row for row in table.read_text().splitlines() if not row.startswith("a")))
    card = (prepare(phantoms) / "README.md").read_text()
    assert "joined with every image that shows (nearly) the same;" in card


def test_advice_is_for_the_pair_and_not_what_was_followed():
    copy = SimilarPair(0, 1, 2, 0.999, identical=False)
    frame = SimilarPair(0, 1, 20, 0.96, identical=False)
    over = [SimilarPair(0, 2, 20, 0.96, identical=False), SimilarPair(1, 2, 20, 0.96, identical=False)]

    def told(rule, patients, pairs, classes=("a", "a", "b")):
        groups = merged_groups(patients, pairs)
        return told_of_few_groups(2, rule, classes, patients, groups, pairs, ["x", "y", "z"])

    known, unknown = ["p", "q", "r"], [None] * 3
    assert told("join", known, [frame]).endswith("pass --near_identical patients")
    assert told("join", unknown, [frame]).endswith("pass --near_identical copies")
    assert told("copies", known, [copy]).endswith("pass --near_identical patients")
    assert "'x' and 'y'" in told("copies", unknown, [copy]) and "pass" not in told("copies", unknown, [copy])
    assert "pass" not in told("patients", [None, "q", "r"], [copy])
    assert "of 2 images 1 group(s) are left" in told("join", unknown, over)  # over an image of another class
    assert told("join", known, []) == ""


def test_which_pairs_join():
    patients = ["p", "q", None, "r", "s"]
    same = SimilarPair(0, 1, 0, 1.0, identical=True)
    copy = SimilarPair(0, 3, 4, 0.999, identical=False)
    frame = SimilarPair(1, 3, 20, 0.96, identical=False)
    unknown = SimilarPair(2, 4, 20, 0.96, identical=False)
    pairs = [same, copy, frame, unknown]
    assert pairs_that_join(pairs, patients, "join") == pairs
    assert pairs_that_join(pairs, patients, "copies") == [same, copy]
    assert pairs_that_join(pairs, patients, "patients") == [same, unknown]
    with pytest.raises(UsageError, match="near_identical must be one of join, copies, patients, got 'no'"):
        PrepareArguments(data_dir="x", output_dir="y", near_identical="no")


def test_the_report_shows_each_class_and_what_is_black_and_white(tmp_path):
    half = np.zeros((40, 40), np.uint8)
    for index in range(12):
        image = half.copy()
        image[:, 20:] = picture(index)[:40, :20].clip(1, 254)
        write(tmp_path / "raw" / "dark" / f"{index}.png", encode(image))
        write(
            tmp_path / "raw" / "light" / f"{index}.png", encode(np.maximum(image, 255 * (image == 0)).astype(np.uint8))
        )
    out = prepare(arguments(tmp_path / "raw"))
    shares = json.loads((out / "report.json").read_text())["share_of_pixels"]
    assert shares == {"dark": {"black": 0.5, "white": 0}, "light": {"black": 0, "white": 0.5}}
    assert "| dark | 12 | 50% | 0% |" in (out / "report.md").read_text()
    assert "](report/samples.png)" in (out / "report.md").read_text()
    shown = np.asarray(Image.open(io.BytesIO((out / "report" / "samples.png").read_bytes())).convert("L"))
    assert (shown < 10).mean() > 0.1 and shown.shape[1] > 600


def test_a_corpus_of_which_nothing_is_left_says_so(tmp_path):
    for label in "ab":
        write(tmp_path / "raw" / label / "same.png", encode(picture(0)))
    with pytest.raises(SplitError, match="no image is left .* copy with another label.*stopped/report.md"):
        prepare(arguments(tmp_path / "raw"))
    assert "same.png" in (tmp_path / "out" / "stopped" / "report.md").read_text()


def test_what_a_grey_window_clips_is_told(tmp_path, caplog):
    caplog.set_level("INFO")
    values = np.tile(
        np.arange(64, dtype=np.uint16) * 64, (64, 1)
    )  # columns of 0, 64, ... 4032: 40 of 64 are below 2497, 9 above 3518
    for index in range(8):
        turned = np.rot90(np.roll(values, 7 * index, axis=1), index).copy()
        save(tmp_path / "raw" / "ab"[index % 2] / f"{index}.dcm", turned)
    prepare(arguments(tmp_path / "raw", num_folds=2, window=[3008.0, 1024.0], near_identical="patients"))
    assert "8 DICOM image(s), the first of centre 3008 and width 1024: 62 % of the pixels become black" in caplog.text
    assert "and 14 % white" in caplog.text


def test_what_was_left_out_is_in_no_list_of_what_is_odd(tmp_path):
    for index in range(12):
        write(tmp_path / "raw" / "ab"[index % 2] / f"{index}.png", encode(picture(index)))
    small = grey()[:20, :20]
    for label in "ab":  # copies of two labels, and tiny
        write(tmp_path / "raw" / label / "tiny.png", encode(small))
    write(tmp_path / "raw" / "a" / "kept.png", encode(picture(20)[:20, :20]))
    out = prepare(arguments(tmp_path / "raw", num_folds=2))
    assert findings(out)["excluded"] == ["a/tiny.png", "b/tiny.png"]
    assert findings(out)["tiny"] == ["a/kept.png"]
