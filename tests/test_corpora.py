"""What people really have: tables with names of their own, foreign folders, odd encodings, labels of every type."""

import csv
import json
import os
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY
from helpers import encode, grey, truncated_png, write, write_folder
from PIL import Image
from pydicom.data import get_testdata_file
from transformers import ViTConfig, ViTForImageClassification

import embed
import explain
import prepare_corpus
import pretrain
from commandline import UsageError
from corpora import gbcu
from corpora.facts import FACTS, facts_of
from corpora.load import load_corpus
from corpora.record import IGNORED, BadImageError, CorpusError, read_text
from corpora.table import read_table
from hub.contents import PublishArguments
from images.arguments import PrepareArguments
from images.check import verify_images
from images.decode import decode_image
from images.items import read_items
from images.transform import ImageTransform
from training.arguments import DataArguments
from training.pretraining_data import load_data

PREPARE = Path(prepare_corpus.__file__)
# of pretrain.py
ONE_STEP = [f"--{name}={value}" for name, value in TINY.items()]
ONE_STEP += ["--max_steps=1", "--per_device_train_batch_size=4", "--use_cpu=true", "--dataloader_num_workers=0"]


def picture(seed: int) -> bytes:
    """A PNG that is like no other one."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    return encode(Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC))


@pytest.fixture
def images(tmp_path) -> Path:
    """24 pictures without folders, of 8 patients with three each."""
    for index in range(24):
        write(tmp_path / "images" / f"im{index}.png", picture(index))
    return tmp_path / "images"


PATIENTS = {f"im{index}.png": f"{index // 6 * 2 + index % 2:03d}" for index in range(24)}
LABELS = {name: ("malignant", "benign")[int(patient) % 2] for name, patient in PATIENTS.items()}


def write_table(folder: Path, header: str, line: str = "{file},{label},{patient}", encoding: str = "utf-8") -> Path:
    rows = [line.format(file=name, label=LABELS[name], patient=PATIENTS[name]) for name in PATIENTS]
    return write(folder / "table.csv", "\n".join([header, *rows, ""]).encode(encoding))


def prepare(*options: object) -> str | None:
    """The message of the error that ends prepare_corpus.py, `None` if none does."""
    try:
        prepare_corpus.main([str(option) for option in options])
    except SystemExit as stopped:
        return str(stopped.code)


# ------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("file,label,patient", "{file},{label},{patient}"),
        ("file, label, patient", "{file}, {label}, {patient}"),
        ("file,label,patient", "{file},{label} ,{patient}  "),
        ("File,Label,Patient", "{file},{label},{patient}"),
        ("Patient ID,Diagnosis,File Name", '{patient},"{label}","{file}"'),
        ("subject_id;class;image_path", "{patient};{label};{file}"),
        ("filename,dx,group", "./{file},{label},{patient}"),
        ("\nfile,label,patient,\n", "\n{file},{label},{patient},"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_is_read_whatever_its_columns_are_called(images, tmp_path, header, line, encoding, caplog):
    records = read_table(write_table(tmp_path, header, line, encoding), images)
    assert {record.file_name: record.group for record in records} == PATIENTS
    assert {record.file_name: record.label for record in records} == LABELS
    assert not caplog.messages


def test_blanks_in_a_table_put_no_patient_on_both_sides(images, tmp_path):
    rows = ["file, Label, Patient_ID"]
    rows += [f"{name}, {LABELS[name]}, {PATIENTS[name]}{' ' * (index % 3)}" for index, name in enumerate(PATIENTS)]
    table = write(tmp_path / "table.csv", "\r\n".join(rows).encode("utf-8-sig"))
    output = tmp_path / "out"
    options = ("--num_folds", 2, "--keep_file_names", True)
    assert prepare("--data_dir", images, "--table", table, "--output_dir", output, *options) is None
    for fold in json.loads((output / "splits.json").read_text())["folds"]:
        sides = [{PATIENTS[name] for name in fold[part]} for part in ("train", "validation", "test")]
        assert all(sides) and not sides[0] & sides[1] and not sides[2] & (sides[0] | sides[1])
    report = json.loads((output / "report.json").read_text())
    assert report["patients_known"] and set(report["class_counts"]) == {"benign", "malignant"}


def test_a_tsv_is_divided_by_tabs_only(images, tmp_path):
    table = write(tmp_path / "table.tsv", b"file\tlabel\nim0.png\tbenign, cystic; left\n")
    assert read_table(table, images)[0].label == "benign, cystic; left"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("file,label,mrn", "mrn, which may tell the patient: pass --group_column 'mrn'"),
        ("file,label,StudyUID", "StudyUID, which may tell the patient"),
        ("file,label,case", "--group_column none to do without"),
        ("file,label,Pat-Nr", "Pat-Nr, which may tell the patient"),
        ("file,label,pat_id", "pat_id, which may tell the patient"),
        ("file,label,patid", "patid, which may tell the patient"),
        ("file,label,pt_id", "pt_id, which may tell the patient"),
        ("file,patient,patient_id", r"2 columns for the group \(patient, patient_id\): choose one with group_column"),
        ("file,label,class", "2 columns for the label .*choose one with label_column"),
        ("file,path,patient", "2 columns for the file .*keep one"),
        ("picture,label,patient", "header with the column file.*found .*picture"),
    ],
)
def test_columns_that_are_not_clear_are_an_error(images, tmp_path, header, message):
    with pytest.raises(CorpusError, match=message):
        read_table(write_table(tmp_path, header), images)


@pytest.mark.parametrize("column", ["lowercase_note", "pattern", "path_length"])
def test_columns_that_only_look_a_little_like_a_patient_are_none(images, tmp_path, column):
    assert len(read_table(write_table(tmp_path, f"file,label,{column}"), images)) == 24


def test_a_column_is_used_or_declined_by_an_option(images, tmp_path, caplog):
    table = write_table(tmp_path, "file,finding,study")
    common = ("--data_dir", images, "--table", table, "--output_dir", tmp_path / "out", "--num_folds", 2)
    assert "study, which may tell the patient" in prepare(*common)
    assert "no label_column 'lable'; its columns are file, finding, study" in prepare(
        *common, "--label_column", "lable"
    )
    message = prepare(*common, "--label_column", "study", "--group_column", "study")
    assert "the column study cannot be two things at once" in message
    assert not (tmp_path / "out").exists()
    records = read_table(table, images, group_column="Study", label_column="finding")
    assert {record.file_name: (record.label, record.group) for record in records} == {
        name: (LABELS[name], PATIENTS[name]) for name in PATIENTS
    }
    assert not caplog.messages
    records = read_table(table, images, group_column="none")
    assert {(record.label, record.group) for record in records} == {(None, None)}
    assert "column(s) not used: finding, study" in caplog.text


def test_a_label_is_declined_too(images, tmp_path, caplog):
    records = read_table(write_table(tmp_path, "file,label,patient"), images, label_column="none")
    assert {record.label for record in records} == {None} and len({record.group for record in records}) == 8
    assert "column(s) not used: label" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,label\n\n\n\nim0.png,a\nim99.png,b\n", "line 6: there is no file 'im99.png'"),
        (b'file,label\n"im0.png","a\nb"\nim99.png,b\n', "line 4: there is no file 'im99.png'"),
        ("file,label\nim0.png,gut\nim1.png,böse\n".encode("cp1252"), "line 3: the byte 0xf6 is not UTF-8"),
        ("file,label\nim0.png,gut\n".encode("utf-16-le"), "line 1: holds a zero byte"),
        ("file,label\nim0.png,gut\n".encode("utf-16")[:-1], "is not UTF-16"),
        (b"file,label\nim0.png,a,b\n", "line 2: 3 values for 2 columns"),
        (b"file,label\nim0.png,a\nim1.png,b\n./im0.png,a\n", "line 4: './im0.png' is listed in line 2 already"),
        (b"file,label\n../table.csv,a\n", "line 2: '../table.csv' is not below"),
        (b"file,label\nim0.png, \n", "every label is empty. Fill the column, or pass --label_column none"),
        (b"file,split\nim0.png,dev\n", "line 2: split must be one of train, test, validation, got 'dev'"),
        (b"file,label\n", "a header with the column file, and one line per image"),
        (b"", "a header with the column file, and one line per image"),
        (b"file,label\n" + b'"' + b"x" * (csv.field_size_limit() + 1), "line .: field larger"),
    ],
)
def test_a_table_that_is_wrong_is_told_by_file_and_line(images, tmp_path, content, message):
    table = write(tmp_path / "table.csv", content)
    with pytest.raises(CorpusError, match=f"table.csv.*{message}"):
        read_table(table, images)


def test_a_table_of_absolute_paths_leaves_none_in_the_data_set(images, tmp_path):
    table = write(tmp_path / "table.csv", f"file,split\n{images / 'im0.png'},Val\n".encode())
    (record,) = read_table(table, images)
    assert (record.file_name, record.split) == ("im0.png", "validation")


def test_a_relative_folder_takes_absolute_paths_and_nothing_outside(images, tmp_path, monkeypatch):
    write(tmp_path / "outside.png", picture(99))
    absolute = write(tmp_path / "absolute.csv", f"file\n{images / 'im0.png'}\n".encode())
    outside = write(tmp_path / "outside.csv", b"file\n../outside.png\n")
    monkeypatch.chdir(images)
    for folder in (".", "../images"):
        assert [record.file_name for record in read_table(absolute, folder)] == ["im0.png"]
        with pytest.raises(CorpusError, match="line 2: '../outside.png' is not below"):
            read_table(outside, folder)


def test_missing_files_of_a_table_are_left_out_by_name_if_asked_to(images, tmp_path, caplog):
    table = write_table(tmp_path, "file,label,patient")
    (images / "im3.png").unlink()
    with pytest.raises(CorpusError, match="there is no file 'im3.png'"):
        read_table(table, images)
    assert len(read_table(table, images, bad_images="skip")) == 23
    assert "1 file(s) are missing and left out: im3.png" in caplog.text


@pytest.mark.parametrize("name", ["im0.png", "im0", "elsewhere/im0.png"])
def test_where_a_file_lies_that_a_table_calls_by_its_bare_name(tmp_path, name):
    raw = tmp_path / "raw"
    for index in range(2):
        write(raw / ("benign", "malignant")[index] / f"im{index}.png", picture(index))
    table = write(tmp_path / "table.csv", f"Image Name,label\n{name},a\n".encode())
    given = ("--data_dir", raw, "--table", table, "--output_dir", tmp_path / "out")
    hint = "'benign/im0.png' has that name: the column Image Name must hold such paths below the folder"
    said = prepare(*given)
    assert said == f"error: table '{table}', line 2: there is no file {name!r} in '{raw}'; {hint}."
    skipping = prepare(*given, "--bad_images", "skip")
    assert skipping == f"error: table '{table}': none of its 1 file(s) is in '{raw}', such as {name!r}; {hint}."
    write(raw / "malignant" / "im0.png", picture(2))
    assert "'benign/im0.png' has that name (and 1 more): the column" in prepare(*given)


def test_images_that_a_table_does_not_list_are_counted_and_one_is_named(images, tmp_path, caplog):
    table = write_table(tmp_path, "file,label,patient")
    given = ("--data_dir", images, "--table", table, "--num_folds", 2)
    assert prepare(*given, "--output_dir", tmp_path / "all") is None
    assert "are not in it" not in caplog.text and "does not list" not in (tmp_path / "all" / "report.md").read_text()
    for name in ("later/im77.png", "later/im78.png"):
        write(images / name, picture(77))
    write(images / "notes.txt", b"no image")
    write(images / "im0.png", truncated_png())  # listed, and left out for another reason
    more = ("--bad_images", "skip", "--keep_file_names", True)
    assert prepare(*given, *more, "--output_dir", tmp_path / "out") is None
    assert f"2 image(s) below '{images}' are not in it and are left out, such as 'later/im77.png'" in caplog.text
    assert "| images that the table does not list (left out) | 2 |" in (tmp_path / "out" / "report.md").read_text()
    found = json.loads((tmp_path / "out" / "report.json").read_text())["findings"]
    assert found["unlisted"] == [f"Image 'later/im{number}.png' is not in the table" for number in (77, 78)]
    assert len(found["unreadable"]) == 1


# ------------------------------------------------------------------------------------------- foreign files and folders

FOREIGN = (".ipynb_checkpoints", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "#recycle", "System Volume Information")


def known_layouts(root: Path) -> dict[str, Path]:
    write_folder(root / "busi", [f"{label}/{label} (1).png" for label in ("normal", "benign", "malignant")])
    write(root / "busi" / "benign" / "benign (1)_mask.png")
    write_folder(root / "pneumonia", ["train/NORMAL/IM-0115-0001.jpeg", "train/PNEUMONIA/person1_virus_1.jpeg"])
    write_folder(root / "covid_ct", ["COVID/Covid (1).png", "non-COVID/Non-Covid (1).png"])
    write_folder(root / "folder", ["a/1.png", "b/2.png"])
    return {name: root / name for name in ("busi", "pneumonia", "covid_ct", "folder")}


@pytest.mark.parametrize("foreign", [*FOREIGN, *IGNORED])
def test_what_systems_leave_behind_changes_nothing(tmp_path, foreign):
    folders = known_layouts(tmp_path)
    before = {name: load_corpus(str(folder)) for name, folder in folders.items()}
    assert len(before["busi"]) == 3, "without the mask"
    assert "group" in before["pneumonia"].column_names
    for folder in folders.values():
        for parent in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            write(parent / foreign / "left.png")
            write(parent / foreign / "left.parquet", b"")
            write(parent / "._left.png", b"\0\5\x16\7")
            write(parent / ".DS_Store", b"\0")
            write(parent / "Thumbs.db", b"\0")
    for name, folder in folders.items():
        after = load_corpus(str(folder))
        assert after["file_name"] == before[name]["file_name"]
        assert after.features == before[name].features


def test_links_back_to_a_folder_give_no_image_twice(tmp_path):
    write_folder(tmp_path / "images", ["a/1.png", "b/2.png"])
    (tmp_path / "images" / "a" / "up").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "b" / "self").symlink_to(".")
    write_folder(tmp_path / "elsewhere", ["3.png"])
    (tmp_path / "images" / "b" / "more").symlink_to(tmp_path / "elsewhere")
    assert load_corpus(str(tmp_path / "images"))["file_name"] == ["a/1.png", "b/2.png", "b/more/3.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8_and_broken_links(tmp_path, caplog):
    write_folder(tmp_path / "images", ["a/1.png", "b/2.png"])
    os.rename(tmp_path / "images" / "b" / "2.png", os.fsencode(tmp_path / "images" / "b") + b"/M\xfcller.png")
    write(tmp_path / "images" / "b" / "3.png")
    with pytest.raises(CorpusError, match=r"b/M\\xfcller.png'. Rename them"):
        load_corpus(str(tmp_path / "images"))
    assert load_corpus(str(tmp_path / "images"), bad_images="skip")["file_name"] == ["a/1.png", "b/3.png"]
    assert r"1 image(s) below" in caplog.text and r"M\xfcller.png" in caplog.text
    for name in ("gone", "gone.png"):
        (tmp_path / "images" / "a" / name).symlink_to("/nowhere/at/all")
    with pytest.raises(CorpusError, match=r"a/gone' \(a broken link\)"):
        load_corpus(str(tmp_path / "images"))
    read, skipped = verify_images(
        load_corpus(str(tmp_path / "images"), bad_images="skip"), num_channels=1, bad_images="skip"
    )
    assert read["file_name"] == ["a/1.png", "b/3.png"] and [name for name, _ in skipped] == ["a/gone.png"]
    os.rename(tmp_path / "images", os.fsencode(tmp_path) + b"/\xff")
    for corpus in ({"corpus": str(tmp_path / "\udcff")}, {"corpus": "busi", "data_dir": str(tmp_path / "\udcff")}):
        with pytest.raises(CorpusError, match=r"The name of the folder '.*\\xff' is not UTF-8"):
            load_corpus(**corpus)


def test_bad_images_are_skipped_by_every_script(tmp_path, caplog):
    write_folder(tmp_path / "images", [f"{'ab'[i % 2]}/{i}.png" for i in range(16)])
    write(tmp_path / "images" / "a" / "0.png", truncated_png())
    write(tmp_path / "images" / "a" / "notes", b"no image")
    model = ViTForImageClassification(
        ViTConfig(**{name: TINY[name] for name in TINY if not name.startswith("decoder")}, id2label={0: "a", 1: "b"})
    )
    model.save_pretrained(tmp_path / "model")
    ImageTransform(32, resize="squash").processor().save_pretrained(tmp_path / "model")
    runs = {
        embed: [],
        explain: [f"--model_name_or_path={tmp_path / 'model'}", "--method=rollout"],
        pretrain: ONE_STEP,
        prepare_corpus: ["--num_folds=2"],
    }
    for script, options in runs.items():
        output = tmp_path / script.__name__
        source = "--data_dir" if script is prepare_corpus else "--corpus"
        common = [source, str(tmp_path / "images"), "--output_dir", str(output), *options]
        with pytest.raises(SystemExit, match=r"error: .*(notes|0\.png)"):
            script.main(common)
        script.main([*common, "--bad_images", "skip"])
    assert len(pd.read_parquet(tmp_path / "embed" / "features.parquet")) == 15
    assert len(list((tmp_path / "explain").glob("*.png"))) == 15
    derived = yaml.safe_load((tmp_path / "pretrain" / "config.yaml").read_text())["derived"]
    assert derived["skipped_images"] == ["a/0.png"]
    assert len(json.loads((tmp_path / "prepare_corpus" / "splits.json").read_text())["images"]) == 15


@pytest.mark.parametrize("held_out", [0, 3])
def test_a_stream_that_begins_with_a_bad_image(tmp_path, tiny_config, held_out):
    features = datasets.Features({"image": datasets.Image()})
    files = [truncated_png(), *(encode(grey(bits=16, seed=seed)) for seed in range(7))]
    rows = {"image": [{"bytes": data, "path": None} for data in files]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    given = {"corpus": str(tmp_path), "streaming": True, "held_out": held_out}
    with pytest.raises(BadImageError, match="'train-0'"):
        load_data(DataArguments(**given), tiny_config(), 0)
    data = load_data(DataArguments(**given, bad_images="skip"), tiny_config(), 0)
    assert data.white_level == 65535
    assert len(list(data.train)) == 7 - max(0, held_out - 1) and len(data.held_out or []) == max(0, held_out - 1)


def test_split_lists_of_covid_ct_may_name_missing_files_if_asked_to(tmp_path, caplog):
    for folder, name in (("CT_COVID", "COVID"), ("CT_NonCOVID", "NonCOVID")):
        write_folder(tmp_path / folder, ["1.png", "2.png"])
        for part, listed in (("train", "1.png\r\n3.png"), ("test", "2.png")):
            write(tmp_path / "Data-split" / name / f"{part}CT_{name}.txt", listed.encode("utf-16"))
    with pytest.raises(CorpusError, match=r"trainCT_NonCOVID.txt' names 1 file\(s\) .* in CT_NonCOVID: '3.png'"):
        load_corpus("covid_ct", data_dir=str(tmp_path))
    found = load_corpus("covid_ct", data_dir=str(tmp_path), bad_images="skip")
    assert found["file_name"] == ["CT_NonCOVID/1.png", "CT_COVID/1.png"] and "'3.png'. Left out" in caplog.text


# --------------------------------------------------------------------------------------------------------------- GBCU


def write_gbcu(root: Path, encoding: str = "utf-8", newline: str = "\n") -> Path:
    for index in range(24):
        write(root / "imgs" / f"im{index:05d}.jpg", picture(index))
    for split, chosen in (("train", range(18)), ("test", range(18, 24))):
        lines = newline.join(f"im{index:05d}.jpg,{index % 3}" for index in chosen)
        write(root / f"{split}.txt", lines.encode(encoding))
    return root


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_gbcu_lists_as_windows_saves_them(tmp_path, encoding):
    root = write_gbcu(tmp_path, encoding, "\r\n")
    write(root / "bbox_annot.json", json.dumps({"im00000.jpg": {"bbs": []}}).encode(encoding))
    records = gbcu.find_images(root)
    assert [record.label for record in records] == 8 * ["normal", "benign", "malignant"]
    assert records[0].annotation is not None
    write(root / "test.txt", b"im00018.jpg,0\nM\xfcller.jpg,1\n")
    with pytest.raises(CorpusError, match="test.txt', line 2: the byte 0xfc is not UTF-8: save the file as UTF-8"):
        gbcu.find_images(root)


def test_text_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(CorpusError, match="nowhere.txt' cannot be read: No such file"):
        read_text(tmp_path / "nowhere.txt")


def test_a_folder_of_gbcu_is_as_little_given_out_as_gbcu(tmp_path):
    root, output, again = write_gbcu(tmp_path / "mine"), tmp_path / "out", tmp_path / "again"
    for corpus, data_dir in (("gbcu", None), (root, None), (root / "imgs", None), ("folder", root)):
        assert facts_of(str(corpus), data_dir and str(data_dir)) is FACTS["gbcu"]
        common = [f"--corpus={corpus}", f"--data_dir={data_dir or root}"][: 1 if corpus in (root, root / "imgs") else 2]
        assert "GBCU is given out by its authors on request only" in prepare(
            *common, "--output_dir", output, "--push_to_hub", "me/mine"
        )
        with pytest.raises(SystemExit, match="export_picture must not be true: GBCU is given out"):
            pretrain.main([*common, *ONE_STEP, f"--output_dir={tmp_path / 'run'}", "--export_picture=true"])
    assert not output.exists()
    assert prepare("--corpus", "folder", "--data_dir", root, "--output_dir", output, "--num_folds", 2) is None
    assert prepare("--corpus", output, "--output_dir", again, "--num_folds", 2) is None
    for folder in (output, again):
        card = (folder / "README.md").read_text()
        assert "extra_gated_prompt: 'GBCU" in card and "license_name: on-request" in card
        assert facts_of(str(folder)) is facts_of(str(folder / "data")) is FACTS["gbcu"]
        assert datasets.load_dataset(str(folder))["train"].features["label"].names == ["normal", "benign", "malignant"]
        with pytest.raises(UsageError, match="GBCU is given out"):
            PublishArguments(str(folder), "me/mine", "dataset")
    with pytest.raises(UsageError, match="GBCU is given out"):
        PublishArguments(str(root), "me/mine", "dataset")


def test_a_layout_alone_makes_nothing_open(tmp_path):
    busi = known_layouts(tmp_path)["busi"]
    assert facts_of(str(busi)) is None and facts_of("folder", str(busi)) is None
    write(tmp_path / "config.yaml", b"corpus: [busi")  # of somebody else
    assert facts_of(str(tmp_path)) is None
    write(busi / "config.yaml", b"corpus: busi\n")
    assert facts_of(str(busi)) is FACTS["busi"] and facts_of(str(busi / "benign")) is None


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorpusError, match="The folder 'raw/images' does not exist"):
        load_corpus("folder", data_dir="raw/images")
    assert "The folder 'raw/images' does not exist" in prepare("--data_dir", "raw/images", "--output_dir", "out")


def test_folder_by_name_is_recognised_as_by_path(tmp_path):
    busi = known_layouts(tmp_path)["busi"]
    assert len(load_corpus("folder", data_dir=str(busi))) == 3
    items, class_names, *_ = read_items(
        PrepareArguments(corpus="folder", data_dir=str(busi), output_dir=str(tmp_path / "out"))
    )
    assert len(items) == 3 and class_names == ["normal", "benign", "malignant"]
    assert len(next(item for item in items if item.record.label == "benign").record.masks) == 1


def test_a_folder_is_not_read_as_a_known_corpus_that_would_leave_something_out(tmp_path, caplog):
    """Images beside BUSI's folder, DICOM among its images; GBCU's ban holds all the same."""
    folders = known_layouts(tmp_path)

    def files_of(folder):
        items, *_ = read_items(PrepareArguments("folder", str(folder), str(tmp_path / "out"), bad_images="skip"))
        return {item.record.file_name for item in items}

    busi = tmp_path / "download"
    (busi / "Dataset_BUSI_with_GT").parent.mkdir()
    folders["busi"].rename(busi / "Dataset_BUSI_with_GT")
    assert files_of(busi) == {f"{label}/{label} (1).png" for label in ("normal", "benign", "malignant")}
    assert "after all" not in caplog.text
    write(busi / "more" / "1.png", picture(1))
    assert "more/1.png" in files_of(busi)
    assert "corpus busi has no place for 1 of its 4 files, the first: " in caplog.text
    scan = folders["covid_ct"] / "COVID" / "scan.dcm"
    shutil.copy(get_testdata_file("CT_small.dcm", download=False), scan)
    assert files_of(folders["covid_ct"]) == {"COVID/Covid (1).png", "COVID/scan.dcm", "non-COVID/Non-Covid (1).png"}
    gbcu_folder = write_gbcu(tmp_path / "gbcu")
    write(gbcu_folder / "more" / "1.png", picture(98))
    assert "more/1.png" in files_of(gbcu_folder)
    with pytest.raises(UsageError, match="GBCU is given out"):
        PrepareArguments("folder", str(gbcu_folder), str(tmp_path / "out"), push_to_hub="me/mine")


def test_the_validation_part_of_chest_x_rays_goes_by_both_names(tmp_path):
    folders = [f"{split}/{label}" for split in ("train", "validation", "test") for label in ("NORMAL", "PNEUMONIA")]
    write_folder(tmp_path / "raw", [f"{folder}/person{index}_1.jpeg" for index, folder in enumerate(folders)])
    items, *_ = read_items(PrepareArguments("folder", str(tmp_path / "raw"), str(tmp_path / "out")))
    found = {(item.record.split, item.group) for item in items}
    assert found == {(folder.split("/")[0], f"person{index}") for index, folder in enumerate(folders)}


# ----------------------------------------------------------------------------------------------- labels of Parquet, Hub


def write_parquet(folder: Path, features: dict, **splits: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for split, columns in splits.items():
        length = len(next(iter(columns.values())))
        images = [{"bytes": picture(count + index), "path": None} for index in range(length)]
        count += length
        made = datasets.Features({"image": datasets.Image(), **features})
        datasets.Dataset.from_dict({"image": images, **columns}, features=made).to_parquet(folder / f"{split}.parquet")
    return folder


def label_names(dataset: datasets.Dataset) -> list[str]:
    return [dataset.features["label"].int2str(label) for label in dataset["label"]]


@pytest.mark.parametrize(
    ("kind", "train", "test", "names"),
    [
        ("string", ["b", "a", " b"], ["c "], ["a", "b", "c"]),
        ("large_string", ["b", "a", "b"], ["c"], ["a", "b", "c"]),
        ("int64", [10, 2, 2], [3], ["2", "3", "10"]),
        ("uint8", [0, 1, 1], [0], ["0", "1"]),
        ("bool", [True, False, True], [True], ["False", "True"]),
    ],
)
def test_labels_of_every_type_become_classes_over_all_splits(tmp_path, kind, train, test, names):
    folder = write_parquet(
        tmp_path / "p", {"label": datasets.Value(kind)}, train={"label": train}, test={"label": test}
    )
    for split, values in (("train", train), ("test", test)):
        found = load_corpus(str(folder), split=split)
        assert found.features["label"] == datasets.ClassLabel(names=names)
        assert label_names(found) == [str(value).strip() for value in values]
        assert found["file_name"] == [f"{split}-{index}" for index in range(len(values))]


def test_classes_that_have_names_keep_them_and_their_order(tmp_path):
    classes = datasets.ClassLabel(names=["z", "a"])
    folder = write_parquet(tmp_path, {"dx": classes}, train={"dx": [0, 1]})
    for streaming in (False, True):
        assert load_corpus(str(folder), streaming=streaming).features["label"] == classes


@pytest.mark.parametrize(("streaming"), [False, True])
def test_patients_of_parquet_are_text_without_blanks(tmp_path, streaming):
    features = {"PatientID": datasets.Value("string"), "age": datasets.Value("int8")}
    folder = write_parquet(tmp_path, features, train={"PatientID": ["7", "7 ", " ", None], "age": [1, 2, 3, 4]})
    rows = list(load_corpus(str(folder), streaming=streaming))
    assert [row["group"] for row in rows] == ["7", "7", None, None]
    assert set(rows[0]) == {"image", "file_name", "group"}


def test_numbers_as_pandas_leaves_them_are_patients_where_they_are_numbers(tmp_path):
    features = {"who": datasets.Value("float64"), "file_name": datasets.Value("string")}
    folder = write_parquet(tmp_path, features, train={"who": [1.0, float("nan"), 1.0], "file_name": ["x", "y", "z"]})
    found = load_corpus(str(folder), group_column="who")
    assert found["group"] == ["1.0", None, "1.0"] and found["file_name"] == ["x", "y", "z"]


def test_columns_of_parquet_that_are_not_clear(tmp_path, caplog):
    features = {"finding": datasets.Value("string"), "case_no": datasets.Value("int32")}
    folder = write_parquet(tmp_path, features, train={"finding": ["x", "y"], "case_no": [1, 2]})
    for corpus in ({"corpus": str(folder)}, {"corpus": str(folder), "streaming": True}):
        with pytest.raises(CorpusError, match="case_no, which may tell the patient: pass --group_column 'case_no'"):
            load_corpus(**corpus)
    assert load_corpus(str(folder), group_column="none").column_names == ["image", "file_name"]
    assert "column(s) not used: finding, case_no" in caplog.text
    found = load_corpus(str(folder), group_column="case_no", label_column="finding")
    assert found["group"] == ["1", "2"] and label_names(found) == ["x", "y"]
    with pytest.raises(CorpusError, match="has no label_column 'diagnosis'; its columns are finding, case_no"):
        load_corpus(str(folder), group_column="none", label_column="diagnosis")
    with pytest.raises(CorpusError, match="labels of a stream must be ClassLabel, finding is string: read it whole"):
        load_corpus(str(folder), group_column="none", label_column="finding", streaming=True)


@pytest.mark.parametrize(
    ("feature", "values", "message"),
    [
        (datasets.Value("float32"), [0.5, 1.5], "must hold strings, whole numbers or a ClassLabel, got float32"),
        (datasets.List(datasets.Value("int8")), [[0], [1, 0]], "must hold strings, whole numbers or a ClassLabel"),
        (datasets.Value("string"), ["a", " "], r"split train, row 1: the label is empty \(1 of 2 are\)"),
        (datasets.Value("int64"), [None, 1], "split train, row 0: the label is empty"),
    ],
)
def test_labels_that_are_none(tmp_path, feature, values, message):
    folder = write_parquet(tmp_path, {"label": feature}, train={"label": values})
    with pytest.raises(CorpusError, match=message):
        load_corpus(str(folder))
    assert load_corpus(str(folder), label_column="none").column_names == ["image", "file_name"]


def test_labels_of_a_stream_that_are_not_classes_are_named(tmp_path, caplog):
    folder = write_parquet(tmp_path, {"label": datasets.Value("string")}, train={"label": ["a", "b"]})
    assert set(next(iter(load_corpus(str(folder), streaming=True)))) == {"image", "file_name"}
    assert "labels of a stream must be ClassLabel, label is string. Not used" in caplog.text


def test_a_row_without_an_image_is_a_bad_image(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": picture(0), "path": None}, None], "label": [0, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    images = load_corpus(str(tmp_path))
    with pytest.raises(BadImageError, match="'train-1' is empty"):
        verify_images(images, num_channels=1)
    assert len(verify_images(images, num_channels=1, bad_images="skip")[0]) == 1
    assert "'train-1' is empty" in prepare("--corpus", tmp_path, "--output_dir", f"{tmp_path}_out")
    with pytest.raises(BadImageError, match="'x' is empty"):
        decode_image({"bytes": None, "path": None}, name="x", num_channels=1)


def test_columns_are_named_for_tables_only(tmp_path):
    write_folder(tmp_path / "raw", ["a/1.png", "b/2.png"])
    with pytest.raises(CorpusError, match="has no columns: label_column must be left out or none, got 'dx'"):
        load_corpus(str(tmp_path / "raw"), label_column="dx")
    assert load_corpus(str(tmp_path / "raw"), label_column="none").column_names == ["image", "file_name"]
    message = prepare("--data_dir", tmp_path / "raw", "--output_dir", tmp_path / "out", "--group_column", "mrn")
    assert "group_column is for tables, got corpus folder without a table" in message


# -------------------------------------------------------------------------------------- Parquet and the Hub, prepared


# ------------------------------------------------------------------------------------------------------- $ in names
