"""More images, of corpora beside the one that is judged."""

import hashlib
import json

import datasets
import pytest
import yaml
from helpers import encode, picture, write
from test_pretrain import TINY, options

import finetune
import pretrain
from commandline import UsageError
from hub.export import TRAINING_IMAGES
from images.arguments import PrepareArguments
from images.splits import image_sha256, load_prepared
from prepare_corpus import prepare
from training.arguments import DataArguments
from training.pretraining_data import load_data


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A prepared one of 24 images in two classes."""
    root = tmp_path_factory.mktemp("corpus")
    for index in range(24):
        write(root / "raw" / "ab"[index % 2] / f"{index:02d}.png", encode(picture(index)))
    return prepare(PrepareArguments(data_dir=str(root / "raw"), output_dir=str(root / "data"), num_folds=3))


def test_they_are_trained_on_but_for_copies_of_those_that_are_kept(corpus, tmp_path, caplog):
    parts, _ = load_prepared(str(corpus), None, "0")
    pool = [write(tmp_path / "pool" / f"{index}.png", encode(picture(100 + index))) for index in range(10)]
    write(tmp_path / "pool" / "copy.png", parts["validation"][0]["image"]["bytes"])
    # The same picture in another file.
    again = next(i for i in range(24) if hashlib.sha256(encode(picture(i))).hexdigest() == parts["test"][0]["sha256"])
    write(tmp_path / "pool" / "again.jpg", encode(picture(again), "JPEG", quality=95))
    given = TINY | {"corpus": corpus, "fold": "0", "held_out": 2, "per_device_train_batch_size": 8}
    pretrain.main([*options(**given, output_dir=tmp_path / "run"), "--unlabelled_corpus", str(tmp_path / "pool")])
    derived = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["derived"]
    assert derived["num_train_images"] == len(parts["train"]) - derived["num_held_out_images"] + len(pool)
    assert "2 image(s) left out, copies of images kept for validation or test" in caplog.text
    seen = (tmp_path / "run" / "export" / TRAINING_IMAGES).read_text()
    assert all(hashlib.sha256(file.read_bytes()).hexdigest() in seen for file in pool)
    assert not any(digest in seen for part in ("test", "validation") for digest in parts[part]["sha256"])
    card = (tmp_path / "run" / "export" / "README.md").read_text()
    assert "| Among them, unlabelled | pool |" in card and str(tmp_path) not in card
    assert "pool: nothing is known here of the licence of these images." in card
    assert json.loads((tmp_path / "run" / "all_results.json").read_text())["epoch"] == 2


def test_labels_and_patients_of_theirs_are_not_read(corpus, tmp_path):
    rows = {"image": [{"bytes": encode(picture(200 + index)), "path": None} for index in range(6)]}
    rows |= {"label": ["a", "", "b", "b", "a", "a"], "case_id": [1, 1, 2, 2, 3, 3]}
    (tmp_path / "pool").mkdir()
    made = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    made.to_parquet(tmp_path / "pool" / "train.parquet")
    given = TINY | {"corpus": corpus, "fold": "0", "held_out": 0, "per_device_train_batch_size": 8, "max_steps": 1}
    pretrain.main([*options(**given, output_dir=tmp_path / "run"), "--unlabelled_corpus", str(tmp_path / "pool")])
    derived = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["derived"]
    assert derived["num_train_images"] == len(load_prepared(str(corpus), None, "0")[0]["train"]) + 6


def test_a_stream_takes_none(corpus, tmp_path):
    given = TINY | {"corpus": corpus, "streaming": True, "max_steps": 2, "output_dir": tmp_path / "run"}
    with pytest.raises(SystemExit, match="unlabelled_corpus needs the whole data set: streaming must be false"):
        pretrain.main([*options(**given), "--unlabelled_corpus", str(corpus)])


@pytest.fixture(scope="module")
def other(tmp_path_factory, corpus):
    """A prepared one of 18 more images in two classes, and one that is in `corpus` too, where fold 0 trains on it."""
    root = tmp_path_factory.mktemp("other")
    for index in range(18):
        write(root / "raw" / "ab"[index % 2] / f"{index:02d}.png", encode(picture(300 + index)))
    both = load_prepared(str(corpus), None, "0")[0]["train"][0]["image"]["bytes"]
    write(root / "raw" / "a" / "both.png", both)
    made = prepare(PrepareArguments(data_dir=str(root / "raw"), output_dir=str(root / "data"), num_folds=3))
    return made, hashlib.sha256(both).hexdigest()


def test_of_a_prepared_corpus_only_the_training_part_of_a_fold(corpus, other, tmp_path, caplog):
    made, both = other
    folds = [load_prepared(str(made), None, str(fold))[0] for fold in range(3)]
    tested = next(fold for fold in range(3) if both in folds[fold]["test"]["sha256"])
    parts, own = folds[tested], load_prepared(str(corpus), None, "0")[0]
    given = TINY | {"corpus": corpus, "fold": "0", "held_out": 2, "per_device_train_batch_size": 8, "max_steps": 1}
    given |= {"unlabelled_corpus": made, "unlabelled_folds": str(tested), "output_dir": tmp_path / "run"}
    pretrain.main(options(**given))
    seen = (tmp_path / "run" / "export" / TRAINING_IMAGES).read_text().split()
    wanted = {*own["train"]["sha256"], *parts["train"]["sha256"]} - {both}
    assert set(seen) == wanted and both in own["train"]["sha256"]
    assert "1 image(s) left out, copies of images kept for validation or test" in caplog.text
    card = (tmp_path / "run" / "export" / "README.md").read_text()
    assert f"# GLCM-MAE, pretrained on {corpus.name} and data (preset" in card
    assert f"| Among them, unlabelled | data (training part of fold {tested}) |" in card
    for judged, fold in ((corpus, "0"), (made, str(tested))):
        to = {"corpus": judged, "fold": fold, "model_name_or_path": tmp_path / "run" / "export", "dry_run": "true"}
        to |= {"per_device_train_batch_size": 4, "use_cpu": True}
        finetune.main(options(**to, output_dir=tmp_path / "finetune"))
    with pytest.raises(SystemExit, match="has seen .* images of the .* part of fold"):
        finetune.main(options(**to | {"fold": str((tested + 1) % 3)}, output_dir=tmp_path / "finetune"))


def test_the_same_fold_or_the_whole_of_others(corpus, other, tmp_path, tiny_config, monkeypatch, caplog):
    made, _ = other
    for index in range(3):
        write(tmp_path / "pool" / f"{index}.png", encode(picture(400 + index)))
    given = {"corpus": str(corpus), "fold": "1", "held_out": 0}
    given["unlabelled_corpus"] = [str(made), str(tmp_path / "pool")]
    with caplog.at_level("INFO", logger="training.pretraining_data"):
        data = load_data(DataArguments(**given, unlabelled_folds=["same", "all"]), tiny_config(), 0)
    parts, own = (load_prepared(str(folder), None, "1")[0] for folder in (made, corpus))
    read = len(parts["train"]["sha256"])
    assert f"unlabelled_corpus {made}: training part of fold 1, {read} image(s)" in caplog.text
    assert f"unlabelled_corpus {tmp_path / 'pool'}: all of it, 3 image(s)" in caplog.text
    trained_on = [*parts["train"]["sha256"], *own["train"]["sha256"]]
    kept = {digest for found in (parts, own) for part in ("validation", "test") for digest in found[part]["sha256"]}
    assert len(data.train) == len([digest for digest in trained_on if digest not in kept]) + 3
    for folds, said in (
        (["same"], r"needs one entry for each unlabelled_corpus \(2\), got 1: same; all stands for a whole corpus"),
        (["3", "all"], f"unlabelled_folds, of {made}: fold must be 0 to 2, got '3'"),
        (["0", "0"], f"unlabelled_folds, of {tmp_path / 'pool'}: .* must be the output folder of prepare_corpus.py"),
    ):
        with pytest.raises(ValueError, match=said):
            load_data(DataArguments(**given, unlabelled_folds=folds), tiny_config(), 0)
    monkeypatch.setenv("HOME", str(corpus.parent))
    for twice in ([str(corpus)], [f"~/{corpus.name}"], [str(made), f"{made}/../{made.name}"]):
        with pytest.raises(UsageError, match="unlabelled_corpus: .* is given twice, or is corpus itself"):
            load_data(DataArguments(**given | {"unlabelled_corpus": twice}), tiny_config(), 0)
    with pytest.raises(UsageError, match="unlabelled_folds: same stands for the fold that is given as fold"):
        load_data(DataArguments(**given | {"fold": None}, unlabelled_folds=["same", "all"]), tiny_config(), 0)
    with pytest.raises(UsageError, match="unlabelled_folds needs unlabelled_corpus"):
        load_data(DataArguments(corpus=str(corpus), unlabelled_folds=["0"]), tiny_config(), 0)


def test_what_is_held_out_is_no_copy_of_what_another_corpus_keeps(corpus, tmp_path, tiny_config):
    """finetune.py would refuse the encoder there, whatever the image was for."""
    parts, _ = load_prepared(str(corpus), None, "0")
    given = {"corpus": str(corpus), "fold": "0", "held_out": 4}
    alone = load_data(DataArguments(**given), tiny_config(), 0)
    both = alone.held_out.dataset[0]["image"]
    for index in range(18):
        write(tmp_path / "raw" / "ab"[index % 2] / f"{index:02d}.png", encode(picture(600 + index)))
    write(tmp_path / "raw" / "a" / "both.png", both["bytes"])
    made = prepare(PrepareArguments(data_dir=str(tmp_path / "raw"), output_dir=str(tmp_path / "data"), num_folds=3))
    digest = image_sha256(both)
    tested = next(fold for fold in "012" if digest in load_prepared(str(made), None, fold)[0]["test"]["sha256"])
    more = {"unlabelled_corpus": [str(made)], "unlabelled_folds": [tested]}
    data = load_data(DataArguments(**given, **more), tiny_config(), 0)
    read = [image_sha256(image) for part in (data.train, data.held_out) for image in part.dataset["image"]]
    assert digest not in read and len(data.held_out) == 4 and set(parts["train"]["sha256"]) - {digest} <= set(read)
