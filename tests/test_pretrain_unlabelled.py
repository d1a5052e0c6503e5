"""More images, of corpora beside the one that is judged."""

import hashlib
import json

import datasets
import pytest
import yaml
from helpers import encode, picture, write
from test_pretrain import TINY, options

import pretrain
from hub.export import TRAINING_IMAGES
from images.arguments import PrepareArguments
from images.splits import load_prepared
from prepare_corpus import prepare


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
