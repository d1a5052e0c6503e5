"""Images without a label among others that have one, from a folder or a table to a pretraining."""

import hashlib
import json
import shutil

import datasets
import numpy as np
import pytest
import yaml
from helpers import encode, picture, write
from test_finetune import few_resamples, run  # noqa: F401 - fixtures
from test_pretrain import TINY, options

import prepare_corpus
import pretrain
from hub.export import TRAINING_IMAGES
from images.splits import image_sha256, load_prepared
from training.arguments import DataArguments
from training.pretraining_data import load_data


@pytest.fixture
def raw(tmp_path):
    """24 labelled images, 9 of a folder `unlabelled`, one beside the folders; two of these are copies."""
    for index in range(24):
        write(tmp_path / "raw" / ("benign", "malignant")[index % 2] / f"{index:02d}.png", encode(picture(index)))
    for index in range(9):
        write(tmp_path / "raw" / "Unlabelled" / f"{index}.png", encode(picture(100 + index)))
    write(tmp_path / "raw" / "beside.png", encode(picture(0)))
    write(tmp_path / "raw" / "Unlabelled" / "again.png", encode(picture(1), compress_level=1))
    return tmp_path / "raw"


def prepared(raw, output, *more: str):
    prepare_corpus.main(["--data_dir", str(raw), "--output_dir", str(output), "--num_folds", "3", *more])
    return output


def test_a_label_that_is_missing_is_named_and_nothing_is_lost_without_a_word(raw, tmp_path):
    with pytest.raises(SystemExit) as error:
        prepared(raw, tmp_path / "data")
    message = str(error.value)
    assert (
        "11 of 35 images have no label: Unlabelled/0.png" in message and "The others are benign, malignant." in message
    )
    assert "--unlabelled keep" in message and "--unlabelled leave_out" in message and "--label_column none" in message
    assert not (tmp_path / "data").exists()
    with pytest.raises(SystemExit, match="unlabelled must be one of error, keep, leave_out, got 'drop'"):
        prepared(raw, tmp_path / "data", "--unlabelled", "drop")


def test_they_are_left_out_named_and_counted(raw, tmp_path, caplog):
    output = prepared(raw, tmp_path / "data", "--unlabelled", "leave_out", "--keep_file_names", "true")
    assert "11 image(s) have no label and are left out, such as 'Unlabelled/0.png'" in caplog.text
    report = json.loads((output / "report.json").read_text())
    assert report["images_written"] == 24 and "Image 'beside.png' has no label" in report["findings"]["unlabelled"]
    assert report["counts"]["images without a label (left out)"] == 11


def test_without_any_label_the_folders_are_no_classes(raw, tmp_path):
    output = prepared(raw, tmp_path / "data", "--label_column", "none")
    report = json.loads((output / "report.json").read_text())
    assert list(report["class_counts"]) == ["unlabelled"] and report["images_written"] == 35
    assert "stratified by class" not in (output / "README.md").read_text()


def test_kept_ones_are_pretrained_on_and_never_judged(raw, tmp_path):
    output = prepared(raw, tmp_path / "data", "--unlabelled", "keep")
    report = json.loads((output / "report.json").read_text())
    assert sum(report["class_counts"]["unlabelled"].values()) == 11
    # A copy without a label says nothing against the label of the other.
    assert report["findings"]["excluded"] == [] and report["images_written"] == 35
    card = (output / "README.md").read_text()
    assert "images without a label are in no part that is judged" in card and "stratified by class" in card
    judged_copies = 0
    for fold in "012":
        parts, classes = load_prepared(str(output), None, fold, unlabelled=True)
        assert classes == ["benign", "malignant"] and None not in parts["train"]["label"]
        assert set(parts["unlabelled"]["label"]) == {None}
        kept = set(parts["validation"]["group"]) | set(parts["test"]["group"])
        assert not kept & set(parts["unlabelled"]["group"])
        copies = [group for group in parts["train"]["group"] if group in set(parts["unlabelled"]["group"])]
        assert len(parts["unlabelled"]) == 9 + len(copies)
        judged_copies += 2 - len(copies)
        assert "unlabelled" not in load_prepared(str(output), None, fold)[0]
    assert judged_copies > 0, "some fold judges an image of which there is a copy without a label"
    given = TINY | {"corpus": output, "fold": "0", "held_out": 2, "per_device_train_batch_size": 8}
    pretrain.main(options(**given, output_dir=tmp_path / "run"))
    parts, _ = load_prepared(str(output), None, "0", unlabelled=True)
    derived = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["derived"]
    held_out = derived["num_held_out_images"]
    whole = len(parts["train"]) + len(parts["unlabelled"])
    assert whole - held_out - 2 <= derived["num_train_images"] <= whole - held_out  # copies of held-out ones are not
    seen = (tmp_path / "run" / "export" / TRAINING_IMAGES).read_text()
    assert hashlib.sha256((raw / "Unlabelled" / "3.png").read_bytes()).hexdigest() in seen
    encoder = {"model_name_or_path": str(tmp_path / "run" / "export"), "per_device_train_batch_size": "8"}
    classified = run(output, tmp_path / "classifier", **encoder)
    assert json.loads((classified / "all_results.json").read_text())["epoch"] == 2


def test_an_empty_cell_of_a_parquet_file_is_one_too(tmp_path):
    rows = {"image": [{"bytes": encode(picture(index)), "path": f"{index}.png"} for index in range(24)]}
    rows |= {"label": ["a" if index % 2 else "b" for index in range(21)] + ["", None, ""]}
    (tmp_path / "raw").mkdir()
    made = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    made.to_parquet(tmp_path / "raw" / "train.parquet")
    with pytest.raises(SystemExit, match="3 of 24 images have no label: 21.png, 22.png, 23.png"):
        prepared(tmp_path / "raw", tmp_path / "data")
    output = prepared(tmp_path / "raw", tmp_path / "data", "--unlabelled", "keep")
    assert len(load_prepared(str(output), None, "0", unlabelled=True)[0]["unlabelled"]) == 3


def test_an_empty_cell_of_a_table_is_a_label_that_is_missing(raw, tmp_path):
    names = [f"{index:02d}.png" for index in range(24)]
    rows = [f"{name},{'ab'[index % 2] if index < 20 else ''}" for index, name in enumerate(names)]
    for index, name in enumerate(names):
        (tmp_path / "flat").mkdir(exist_ok=True)
        shutil.copy(raw / ("benign", "malignant")[index % 2] / name, tmp_path / "flat" / name)
    (tmp_path / "table.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    table = ("--table", str(tmp_path / "table.csv"))
    with pytest.raises(SystemExit, match="4 of 24 images have no label: 20.png, 21.png, 22.png"):
        prepared(tmp_path / "flat", tmp_path / "data", *table)
    output = prepared(tmp_path / "flat", tmp_path / "data", *table, "--unlabelled", "keep")
    parts, _ = load_prepared(str(output), None, "1", unlabelled=True)
    assert len(parts["unlabelled"]) == 4 and np.sum([len(part) for part in parts.values()]) == 24


def test_of_these_none_is_a_copy_of_what_another_corpus_keeps(raw, tmp_path, tiny_config):
    corpus = prepared(raw, tmp_path / "data", "--unlabelled", "keep")
    both = (raw / "Unlabelled" / "3.png").read_bytes()
    for index in range(12):
        write(tmp_path / "others" / "ab"[index % 2] / f"{index}.png", encode(picture(500 + index)))
    write(tmp_path / "others" / "a" / "both.png", both)
    other, digest = prepared(tmp_path / "others", tmp_path / "other"), hashlib.sha256(both).hexdigest()
    tested = next(fold for fold in "012" if digest in load_prepared(str(other), None, fold)[0]["test"]["sha256"])
    parts, _ = load_prepared(str(corpus), None, "0", unlabelled=True)
    assert digest in parts["unlabelled"]["sha256"][:]
    given = {"corpus": str(corpus), "fold": "0", "held_out": 0, "unlabelled_corpus": [str(other)]}
    data = load_data(DataArguments(**given, unlabelled_folds=[tested]), tiny_config(), 0)
    trained_on = [image_sha256(image) for image in data.train.dataset["image"]]
    assert digest not in trained_on and set(parts["unlabelled"]["sha256"]) - {digest} <= set(trained_on)
    # And the other way round.
    given = {"corpus": str(other), "fold": tested, "held_out": 0, "unlabelled_corpus": [str(corpus)]}
    data = load_data(DataArguments(**given, unlabelled_folds=["0"]), tiny_config(), 0)
    trained_on = {image_sha256(image) for image in data.train.dataset["image"]}
    assert set(parts["unlabelled"]["sha256"]) - {digest} <= trained_on and digest not in trained_on
