"""Names of files and patients stay with who prepared the data: nothing that is published holds them."""

import csv
import functools
import hashlib
import json
import re
import shutil
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from helpers import encode, picture, truncated_png, write
from matplotlib.axes import Axes
from pydicom.data import get_testdata_file

import embed
import explain
import finetune
import prepare_corpus
import pretrain
import publish
from commandline import UsageError
from corpora.load import load_corpus
from hub import contents
from hub.export import without_paths
from images.arguments import PrepareArguments
from images.items import read_items
from images.pseudonyms import publishable, with_written_names
from images.splits import load_split
from judging import summary
from prepare_corpus import prepare

SALT = "0123456789abcdef"
SECRETS = (b"Mustermann", b"MRN-", b"ward7")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hospital")


@pytest.fixture(scope="module")
def download(root) -> list[str]:
    """Options for a table of 60 files, each of which is named after its patient; with every fault that is reported."""
    raw, rows = root / "download of Mustermann", ["file,label,patient,split"]
    for index in range(60):
        name = f"ward7/Mustermann_{index:02d}.png"
        write(raw / name, encode(picture(index, 64)))
        patient = 0 if index == 59 else index  # on both sides of the official split
        rows.append(f"{name},{'ab'[index % 2]},MRN-{patient},{'test' if index >= 48 else 'train'}")
    write(raw / "ward7/Mustermann_copy.png", encode(picture(3, 64)))  # under another label: a conflict
    write(raw / "ward7/Mustermann_smaller.png", encode(picture(4, 40)))
    write(raw / "ward7/Mustermann_cut.png", truncated_png())
    write(raw / "ward7/Mustermann_unlisted.png", encode(picture(99, 64)))
    rows += [f"ward7/Mustermann_{name}.png,a,MRN-{name},train" for name in ("copy", "smaller", "cut")]
    table = write(root / "table of Mustermann.csv", "\n".join(rows).encode())
    return ["--data_dir", str(raw), "--table", str(table), "--bad_images", "skip", "--num_folds", "2"]


@pytest.fixture(scope="module")
def out(download, root) -> Path:
    """It, prepared; with the titles of its pictures in titles.json beside it."""
    titles, set_title = [], Axes.set_title
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Axes, "set_title", lambda axis, text, **how: titles.append(text) or set_title(axis, text, **how))
        folder = prepared(download, root / "out")
    (root / "titles.json").write_text(json.dumps(titles))
    return folder


def prepared(download: list[str], output: Path, *options: str) -> Path:
    prepare_corpus.main([*download, "--output_dir", str(output), *options])
    return output


def names_of(folder: Path) -> dict[str, dict[str, str]]:
    """The private table: its lines by original file name."""
    with (folder / "private" / "names.csv").open(newline="", encoding="utf-8") as lines:
        return {row["file_name"]: row for row in csv.DictReader(lines)}


def content(folder: Path, *left_out: str) -> bytes:
    """Everything that the files of a folder say, their names included."""
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder)
        if name.parts[0] in left_out:
            continue
        found += [str(name).encode(), file.read_bytes()]
        if file.suffix == ".parquet":  # compressed
            table = pq.read_table(file)
            found += [str(table.schema.metadata).encode(), str(table.to_pylist()).encode()]
    return b"\n".join(found)


def test_nothing_that_is_published_names_files_patients_or_this_machine(out, root, download, tmp_path, capsys):
    found = json.loads((out / "report.json").read_text())["findings"]
    for finding in ("near_identical_pairs", "label_conflicts", "patients_across_official_split", "excluded"):
        assert found[finding], "the download has this fault"
    assert found["official_left_out"] and found["unreadable"]
    text = content(out, "private")
    assert not [secret for secret in (*SECRETS, str(root).encode()) if secret in text]
    titles = json.loads((root / "titles.json").read_text())
    assert titles and not any("Mustermann" in title for title in titles)
    assert re.fullmatch(r"Image '[0-9a-f]{16}' cannot be decoded", found["unreadable"][0])
    assert re.fullmatch(r"Image '[0-9a-f]{16}' is not in the table", *found["unlisted"])

    publish.main(["--export_dir", str(out), "--repo_id", "org/x", "--repo_type", "dataset", "--dry_run", "true"])
    shown = capsys.readouterr().out
    assert "left out      private/names.csv: the original names" in shown and "Mustermann" not in shown
    asked = contents.PublishArguments(str(out), "org/x", "dataset")
    assert not [name for name in contents.publication_of(asked)[0].files if "private" in name or "names" in name]
    # What the user sees at the terminal does name the file.
    with pytest.raises(SystemExit, match="Mustermann_cut.png"):
        prepared([*download, "--bad_images", "error"], tmp_path / "other")


def test_the_private_table_leads_back_to_each_file_and_only_its_owner_can_read_it(out, root):
    assert (out / "private").stat().st_mode & 0o777 == 0o700
    assert (out / "private" / "names.csv").stat().st_mode & 0o777 == 0o600
    assert (out / ".gitignore").read_text() == "/private/\n/stopped/\n"
    names = names_of(out)
    assert len(names) == 64
    written = {row["file_name"]: row for part in datasets.load_dataset(str(out)).values() for row in part}
    assert len(written) == 60 == len({row["group"] for row in written.values()}) + 2
    for name, row in names.items():
        data = (root / "download of Mustermann" / name).read_bytes()
        if not row["left_out"]:
            stored = written.pop(row["written_name"])
            assert stored["sha256"] == hashlib.sha256(data).hexdigest() and stored["group"] == row["group"]
    assert not written
    left_out = {Path(name).name: row["left_out"] for name, row in names.items() if row["left_out"]}
    others = {f"Mustermann_{name}.png" for name in ("copy", "cut", "unlisted")}
    assert set(left_out) == {"Mustermann_03.png", *others}
    assert "cannot be decoded" in left_out["Mustermann_cut.png"]
    assert names["ward7/Mustermann_07.png"]["patient"] == "MRN-7"
    # One patient, one group.
    assert names["ward7/Mustermann_00.png"]["group"] == names["ward7/Mustermann_59.png"]["group"]
    assert len(load_corpus(str(out))) == 48


def test_the_salt_decides_the_names_and_nothing_else(out, download, tmp_path, caplog):
    folders = [prepared(download, tmp_path / str(i), "--salt", SALT) for i in range(2)] + [out]
    assert "salt" not in caplog.text
    first, again, drawn = map(names_of, folders)
    assert first == again
    assert first["ward7/Mustermann_00.png"]["group"] == hashlib.sha256(f"{SALT}\0MRN-0".encode()).hexdigest()[:16]
    for column in ("written_name", "group"):
        assert not {row[column] for row in drawn.values() if row[column]} & {row[column] for row in first.values()}
    splits = []
    for folder in folders:
        made = json.loads((folder / "splits.json").read_text())
        digest, parts = made["images"], [*made["folds"], made["official"]]
        splits.append([{part: [digest[name] for name in names] for part, names in fold.items()} for fold in parts])
        rows = datasets.load_dataset(str(folder))
        splits[-1].append({part: rows[part]["sha256"] for part in rows})
        load_split(folder / "splits.json", rows, "official")
    assert splits[0] == splits[1] == splits[2]


def test_the_order_of_the_images_tells_nothing_of_the_names(out):
    original = {row["written_name"]: name for name, row in names_of(out).items()}
    order = [original[name] for part in datasets.load_dataset(str(out)).values() for name in part["file_name"]]
    assert order != sorted(order)
    digests = datasets.load_dataset(str(out))["train"]["sha256"]
    assert digests == sorted(digests)


def test_names_are_kept_where_they_are_asked_for_and_of_public_corpora(download, tmp_path):
    out = prepared(download, tmp_path / "out", "--keep_file_names", "true")
    assert not (out / "private").exists() and not (out / ".gitignore").exists()
    rows = datasets.load_dataset(str(out))["train"]
    assert "ward7/Mustermann_01.png" in rows["file_name"] and "MRN-1" in rows["group"]
    kept = {
        name: PrepareArguments(corpus=name, data_dir="x", output_dir="y").keep_file_names for name in ("busi", "gbcu")
    }
    kept["folder"] = PrepareArguments(data_dir="x", output_dir="y").keep_file_names
    kept["speckle"] = PrepareArguments(corpus="speckle", output_dir="y").keep_file_names
    assert kept == {"busi": True, "gbcu": True, "speckle": True, "folder": False}


def test_masks_and_boxes_go_by_the_written_names(tmp_path):
    for first, label in enumerate(("normal", "benign", "malignant")):
        for index in range(4):
            write(tmp_path / "busi" / label / f"Mustermann ({index}).png", encode(picture(100 * first + index)))
    mask = encode(picture(7))
    for name in ("Mustermann (1)_mask.png", "Mustermann (1)_mask_1.png"):
        write(tmp_path / "busi" / "benign" / name, mask)
    given = {"num_folds": 2, "keep_file_names": False}
    busi = {"corpus": "busi", "data_dir": str(tmp_path / "busi"), "output_dir": str(tmp_path / "o1")}
    out = prepare(PrepareArguments(**busi, **given))
    rows = datasets.load_dataset("parquet", data_dir=str(out / "data"))["train"]
    undecoded = rows.cast_column("masks", datasets.List(datasets.Image(decode=False)))
    (found,) = [row for row in undecoded if row["masks"]]
    stem = Path(found["file_name"]).stem
    assert [mask["path"] for mask in found["masks"]] == [f"{stem}_mask_0.png", f"{stem}_mask_1.png"]
    assert b"Mustermann" not in content(out, "private")

    lines = {"train": [], "test": []}
    for index in range(36):
        name = f"Mustermann{index:02d}.jpg"
        write(tmp_path / "gbcu" / "imgs" / name, encode(picture(index), "JPEG", quality=95))
        lines["test" if index >= 24 else "train"].append(f"{name},{index % 3}")
    for split, listed in lines.items():
        write(tmp_path / "gbcu" / f"{split}.txt", "\n".join(listed).encode())
    boxes = {"Mustermann02.jpg": {"filename": "Mustermann02.jpg", "bbs": [[1, 2, 3, 4]]}}
    write(tmp_path / "gbcu" / "bbox_annot.json", json.dumps(boxes).encode())
    gbcu = {"corpus": "gbcu", "data_dir": str(tmp_path / "gbcu"), "output_dir": str(tmp_path / "o2")}
    out = prepare(PrepareArguments(**gbcu, **given))
    (row,) = [row for row in datasets.load_dataset(str(out))["train"] if row["annotation"]]
    assert json.loads(row["annotation"]) == {"bbox_annot": {"filename": row["file_name"], "bbs": [[1, 2, 3, 4]]}}
    assert b"Mustermann" not in content(out, "private")


def test_a_patient_of_the_table_and_of_dicom_is_one(tmp_path):
    files = {"1.2.840.10008.77": "MR_small.dcm", "b.dcm": "MR_small.dcm", "c.dcm": "SC_rgb_rle_2frame.dcm"}
    for name, source in files.items():
        write(tmp_path / "raw" / name)
        shutil.copy(get_testdata_file(source, download=False), tmp_path / "raw" / name)
    table = write(tmp_path / "table.csv", b"file,patient\n1.2.840.10008.77,4MR1\nb.dcm,\nc.dcm,\n")
    args = PrepareArguments(data_dir=str(tmp_path / "raw"), table=str(table), output_dir=str(tmp_path / "o"), salt=SALT)
    items, *_ = read_items(args)
    group = {item.original.file_name: item.group for item in with_written_names(items, SALT)}
    assert group["1.2.840.10008.77"] == group["b.dcm"] != group["c.dcm#0"] == group["c.dcm#1"]
    written = [item.record.file_name for item in with_written_names(items, SALT)]
    assert len(set(written)) == 4 and all(re.fullmatch(r"[0-9a-f]{16}\.png", name) for name in written)


def test_the_detail_of_an_error_is_not_published():
    reason = "DICOM file 'a: Mustermann.dcm' (transfer syntax X) cannot be decoded: could not convert 'Mustermann'"
    published = publishable(("a: Mustermann.dcm", reason), SALT)
    assert re.fullmatch(r"DICOM file '[0-9a-f]{16}' \(transfer syntax X\) cannot be decoded", published)
    assert "Mustermann" not in publishable(("other.dcm", reason), SALT)


def test_a_salt_that_can_be_guessed(download, tmp_path, caplog):
    with pytest.raises(UsageError, match="salt must not be empty"):
        PrepareArguments(data_dir="x", output_dir="y", salt="")
    with pytest.raises(SystemExit, match="nowhere"):
        prepared([*download, "--data_dir", str(tmp_path / "nowhere")], tmp_path / "a", "--salt", "short")
    assert "salt has 5 characters" in caplog.text


def test_paths_of_this_machine_stay_out_of_published_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "Mustermann" / "data" / "x")
    settings = {
        "data": {"corpus": "Mustermann/data", "files": [str(tmp_path / "Mustermann" / "gone")], "fold": "0", "seed": 3},
        "model": {"name": "facebook/vit-mae-base", "old": "../Mustermann/run", "home": "~/Mustermann/run"},
    }
    assert without_paths(settings) == {
        "data": {"corpus": "data", "files": ["gone"], "fold": "0", "seed": 3},
        "model": {"name": "facebook/vit-mae-base", "old": "run", "home": "run"},
    }


def test_what_is_trained_on_the_written_names_holds_no_others(out, tmp_path, monkeypatch):
    monkeypatch.setattr("judging.summary.bootstrap", functools.partial(summary.bootstrap, num_resamples=10))
    small = {"max_steps": 1, "per_device_train_batch_size": 8, "dataloader_num_workers": 0, "use_cpu": "true"}
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1}
    sizes |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 32, "export_picture": "true"}
    sizes |= {"preset": "mse", "held_out": 4}

    def options(**given) -> list[str]:
        return [text for name, value in given.items() for text in (f"--{name}", str(value))]

    corpus = {"corpus": out, "fold": 0}
    pretrain.main(options(**corpus, **small, **sizes, output_dir=tmp_path / "pretrained"))
    encoder = tmp_path / "pretrained" / "export"
    finetune.main(options(**corpus, **small, model_name_or_path=encoder, output_dir=tmp_path / "finetuned"))
    classifier = tmp_path / "finetuned" / "export"
    embed.main(options(corpus=out, output_dir=tmp_path / "features"))
    explain.main(options(corpus=out, model_name_or_path=classifier, max_images=1, output_dir=tmp_path / "overlays"))
    for folder in ("pretrained", "finetuned", "features", "overlays"):
        text = content(tmp_path / folder)
        assert not [secret for secret in SECRETS if secret in text]
    for export in (encoder, classifier):
        assert str(tmp_path).encode() not in content(export)
    tested = {row["file_name"] for row in pq.read_table(tmp_path / "finetuned" / "predictions.parquet").to_pylist()}
    assert tested and tested <= {row["written_name"] for row in names_of(out).values()}
