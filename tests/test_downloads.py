"""Three downloads as they come: COVID-CT-MD (DICOM and slice labels), MedMNIST (NumPy files), BUS-UCLM (a table)."""

import json
import logging
import shutil
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pydicom
import pytest
import yaml
from helpers import encode, picture, write
from huggingface_hub import DatasetCard
from pydicom.data import get_testdata_file

import prepare_corpus
from commandline import UsageError
from corpora import bus_uclm, covid_ct_md, medmnist, recognised
from corpora.facts import FACTS, facts_of
from corpora.load import load_corpus
from corpora.record import CorpusError
from images.arguments import PrepareArguments
from images.decode import decode_image
from images.items import read_items
from images.pseudonyms import PRIVATE
from images.splits import load_prepared

LUNG = "centre -600, width 1200 (corpus)"


def prepare(output: Path, *options: object) -> str | None:
    """The message of the error that ends prepare_corpus.py, `None` if none does."""
    given = ["--output_dir", output, *options]
    try:
        prepare_corpus.main([str(option) for option in given])
    except SystemExit as stopped:
        return str(stopped.code)


def rows_of(folder: Path) -> list[dict]:
    """All rows of a prepared data set, the images undecoded."""
    loaded = datasets.concatenate_datasets(list(datasets.load_dataset(str(folder)).values()))
    return list(loaded.cast_column("image", datasets.Image(decode=False)))


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def groups_of_parts(folder: Path, fold: str) -> list[set[str]]:
    parts, _ = load_prepared(str(folder), None, fold)
    return [set(parts[part]["group"]) for part in ("train", "validation", "test")]


def card_of(folder: Path) -> DatasetCard:
    return DatasetCard.load(folder / "README.md")


# -------------------------------------------------------------------------------------------------------- COVID-CT-MD

CLASS_FOLDERS = {"COVID-19 Cases": "P", "Cap Cases": "cap", "Normal Cases": "normal"}
LABELLED = ("P001", "P002", "P003", "P004", "cap001", "cap002", "cap003", "cap004")
# Row for row of LABELLED, from the head: of the three slices, which are marked.
MARKS = np.array([[0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0]] * 2)


def write_slice(path: Path, seed: int, location: float | None) -> Path:
    """A CT slice of -1024 to -4 HU, whose first window is that of soft tissue."""
    header = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    header.PixelData = (picture(seed).astype(np.int16) * 4).tobytes()
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    header.WindowCenter, header.WindowWidth = [50, -600], [350, 1200]
    header.PatientID = "98C14734"
    if location is None:
        del header.SliceLocation
    else:
        header.SliceLocation = location
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path)
    return path


def write_covid_ct_md(root: Path, *, patients: int = 5, labels: bool = True) -> Path:
    """Three slices a patient; the file with the lowest number lies in the middle, the next at the feet."""
    seed = 0
    for folder, prefix in CLASS_FOLDERS.items():
        for patient in range(1, patients + 1):
            for number, location in enumerate((-120.0, -180.5, -60.0), start=1):
                seed += 1
                write_slice(root / folder / f"{prefix}{patient:03d}" / f"IM{number:04d}.dcm", seed, location)
    if labels:
        write_labels(root)
    return root


def write_labels(root: Path, marks: np.ndarray = MARKS, name: str = "Slice-level-labels.npy") -> None:
    lines = ["Label Index,Diagnosis,Relative Path,Folder/ID"]
    lines += [f"{40 + 2 * index},COVID-19,./COVID-19/,{patient}" for index, patient in enumerate(LABELLED)]
    write(root / "Index.csv", "\n".join(lines).encode())
    np.save(root / name, marks)


FROM_HEAD = ("IM0003.dcm", "IM0001.dcm", "IM0002.dcm")


def test_covid_ct_md_from_the_download_to_a_fold(tmp_path):
    raw, output = write_covid_ct_md(tmp_path / "raw" / "COVID-CT-MD"), tmp_path / "data"
    assert prepare(output, "--corpus", "covid_ct", "--data_dir", raw.parent, "--num_folds", 3) is None
    rows = rows_of(output)
    names = load_corpus(str(output)).features["label"].names
    assert names == ["normal", "CAP", "COVID"]
    assert Counter(names[row["label"]] for row in rows) == dict.fromkeys(names, 15)
    assert {row["file_name"]: row["group"] for row in rows} == {
        path.relative_to(raw).as_posix(): path.parent.name for path in raw.rglob("*.dcm")
    }, "public names are kept, and no PatientID is written"
    assert {row["dicom_window"] for row in rows} == {LUNG}
    report = report_of(output)
    assert report["patients_known"] and report["num_groups"] == 15 and not report["official_split"]
    for fold in "012":
        train, validation, test = groups_of_parts(output, fold)
        assert train and validation and test and not (train & test or train & validation or validation & test)
    assert yaml.safe_load((output / "config.yaml").read_text())["corpus"] == "covid_ct_md"
    assert "COVID-CT-MD" in card_of(output).text and card_of(output).data.license is None
    assert facts_of(str(output)) == FACTS["covid_ct_md"] != FACTS["covid_ct"]
    assert load_prepared(str(output), None, "0")[1] == names
    assert "98C14734" not in "".join(path.read_text() for path in output.glob("*.*"))


def test_grey_levels_are_those_of_the_window_of_lungs_unless_another_is_asked_for(tmp_path):
    raw = write_covid_ct_md(tmp_path / "raw", patients=1, labels=False)
    hounsfield = picture(1) * 4.0 - 1024

    def first(**options):
        items, *_ = read_items(PrepareArguments("covid_ct", str(raw), str(tmp_path / "out"), **options))
        item = next(item for item in items if item.record.file_name == "COVID-19 Cases/P001/IM0001.dcm")
        return item.window, decode_image(item.data.read(), name="x", num_channels=1)[..., 0]

    for options, (centre, width, source) in (
        ({}, (-600, 1200, "corpus")),
        ({"window": [50.0, 350.0]}, (50, 350, "option")),
    ):
        window, grey = first(**options)
        assert window == (centre, width, source)
        # PS3.3, C.11.2.1.2.1
        expected = ((hounsfield - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1)
        np.testing.assert_allclose(grey, expected, atol=1e-4)


def test_slice_labels_go_from_the_head_and_are_the_annotation(tmp_path):
    raw = write_covid_ct_md(tmp_path / "raw")
    records = {record.file_name: record.annotation for record in covid_ct_md.find_images(raw)}
    folders = dict.fromkeys(LABELLED[:4], "COVID-19 Cases") | dict.fromkeys(LABELLED[4:], "Cap Cases")
    expected = dict.fromkeys(records)
    for patient, marks in zip(LABELLED, MARKS.tolist(), strict=True):
        for name, mark in zip(FROM_HEAD, marks, strict=False):
            expected[f"{folders[patient]}/{patient}/{name}"] = json.dumps({"infection": bool(mark)})
    assert records == expected
    assert sum(annotation is None for annotation in records.values()) == 3 * (1 + 1 + 5)


def test_corrected_slice_labels_are_preferred(tmp_path):
    raw = write_covid_ct_md(tmp_path / "raw")
    write_labels(raw, np.ones_like(MARKS[:, :3]), "Slice-level-labels-updated-1.npy")
    marks = {record.annotation for record in covid_ct_md.find_images(raw)}
    assert marks == {None, '{"infection": true}'}


@pytest.mark.parametrize("keep", [True, False])
def test_only_infected_slices_if_asked_to_and_the_others_are_counted(tmp_path, keep, caplog):
    raw, output = write_covid_ct_md(tmp_path / "raw"), tmp_path / "data"
    options = ("--corpus", "covid_ct_md", "--data_dir", raw, "--slices", "infected", "--keep_file_names", keep)
    assert prepare(output, *options, "--num_folds", 2, "--salt", "a salt that is long enough") is None
    rows, found = rows_of(output), report_of(output)["findings"]["not_infected"]
    names = load_corpus(str(output)).features["label"].names
    counts = Counter(names[row["label"]] for row in rows)
    assert counts == {"normal": 15, "CAP": 6, "COVID": 6}
    assert len(rows) + len(found) == 45 and "18 image(s) below" in caplog.text
    assert "| slices that are not marked as infected (left out) | 18 |" in (output / "report.md").read_text()
    assert {row["annotation"] for row in rows} == {None, '{"infection": true}'}
    if keep:
        assert "Image 'COVID-19 Cases/P001/IM0003.dcm' is not marked as infected" in found
        assert "Image 'COVID-19 Cases/P005/IM0001.dcm' is not marked as infected" in found, "P005 has no labels"
    else:
        written = "".join((output / name).read_text() for name in ("report.json", "report.md", "splits.json"))
        assert "P001" not in written and not {row["group"] for row in rows} & set(LABELLED)
        table = (output / PRIVATE / "names.csv").read_text()
        assert "P001/IM0003.dcm" in table and "not marked as infected" in table


def break_tree(root: Path, how: str) -> None:
    if how == "empty":
        (root / "Cap Cases" / "cap009").mkdir()
    elif how == "stray":
        write_slice(root / "Cap Cases" / "IM0001.dcm", 99, 0.0)
    elif how == "text":
        write(root / "Cap Cases" / "cap001" / "notes.txt", b"x")
    elif how == "index":
        (root / "Index.csv").unlink()
    elif how == "labels":
        (root / "Slice-level-labels.npy").unlink()
    elif how == "lines":
        write(root / "Index.csv", b"Label Index,Folder/ID\n0,P001\n")
    elif how == "column":
        write(root / "Index.csv", b"Label Index,Patient\n" + b"0,P001\n" * len(LABELLED))
    elif how == "others":
        write(root / "Index.csv", b"Label Index,Folder/ID\n" + b"0,Q001\n" * len(LABELLED))
    elif how == "pickle":
        np.save(root / "Slice-level-labels.npy", np.array([{"a": 1}], dtype=object))
    elif how == "cut":
        data = (root / "Slice-level-labels.npy").read_bytes()
        write(root / "Slice-level-labels.npy", data[:-40])
    elif how == "missing":
        write_labels(root, np.ones_like(MARKS))
    elif how == "location":
        write_slice(root / "Cap Cases" / "cap001" / "IM0001.dcm", 3, None)
    elif how == "same":
        write_slice(root / "Cap Cases" / "cap001" / "IM0001.dcm", 3, -60.0)
    elif how == "broken":
        write(root / "Cap Cases" / "cap001" / "IM0001.dcm", b"not DICOM")


@pytest.mark.parametrize(
    ("how", "message", "kept"),
    [
        ("empty", r"1 patient\(s\) in '.*Cap Cases' have no slices: cap009", 45),
        ("stray", r"Cap Cases/IM0001.dcm' is not in the folder of a patient", None),
        ("text", r"1 file\(s\) below .* are not images .*notes.txt", 45),
        ("index", "there is no Index.csv", None),
        ("others", "names no patient that has a folder in .*'Q001', for instance", None),
        ("labels", "there is no Slice-level-labels.npy", None),
        ("lines", r"got 1 lines and an array of the shape \(8, 4\)", None),
        ("column", r"must name a patient \(Folder/ID\) for each row", None),
        ("pickle", "labels.npy' cannot be read: .*allow_pickle=False", None),
        ("cut", "labels.npy' cannot be read", None),
        ("missing", "slice labels of patient cap001 cannot be used: there are 3 slices, and labels of others", 45),
        ("location", "patient cap001 cannot be used: .*IM0001.dcm' does not tell its SliceLocation", 45),
        ("same", "patient cap001 cannot be used: two slices have the same SliceLocation", 45),
        ("broken", "patient cap001 cannot be used: .*IM0001.dcm' does not tell its SliceLocation", 45),
    ],
)
def test_a_covid_ct_md_that_is_not_whole_is_named(tmp_path, how, message, kept, caplog):
    root = write_covid_ct_md(tmp_path / "raw")
    break_tree(root, how)
    with pytest.raises(CorpusError, match=message):
        covid_ct_md.find_images(root)
    if kept is None:
        with pytest.raises(CorpusError, match=message):
            covid_ct_md.find_images(root, bad_images="skip")
        return
    records = covid_ct_md.find_images(root, bad_images="skip")
    assert len(records) == kept and caplog.messages
    if how in ("missing", "location", "same", "broken"):
        assert {record.annotation for record in records if record.group == "cap001"} == {None}


def test_covid_ct_md_is_recognised_and_sent_to_prepare_corpus(tmp_path, caplog):
    raw = write_covid_ct_md(tmp_path / "raw", patients=1, labels=False)
    for corpus, data_dir in (("covid_ct", str(raw)), ("covid_ct_md", str(raw)), (str(raw), None)):
        with pytest.raises(CorpusError, match="prepare_corpus.py --corpus covid_ct_md --data_dir"):
            load_corpus(corpus, data_dir=data_dir)
    items, classes, *_ = read_items(PrepareArguments("folder", str(raw), str(tmp_path / "out")))
    assert (len(items), classes) == (9, ["normal", "CAP", "COVID"]) and "after all" not in caplog.text
    message = prepare(tmp_path / "out", "--corpus", "covid_ct", "--data_dir", raw, "--slices", "infected")
    assert "slices infected needs Index.csv and Slice-level-labels.npy" in message
    (tmp_path / "other").mkdir()
    message = prepare(tmp_path / "out", "--corpus", "covid_ct", "--data_dir", tmp_path / "other")
    assert "CT_COVID and CT_NonCOVID; or COVID-19 Cases, Cap Cases and Normal Cases" in message
    for slices, corpus in (("ill", "covid_ct_md"), ("infected", "busi"), ("infected", "folder")):
        with pytest.raises(UsageError, match=f"slices must be one of all, infected.*got '{slices}' for {corpus}"):
            PrepareArguments(corpus, str(raw), "out", slices=slices)
    (raw / "COVID-19 Cases").rename(raw / "COVID-19 subjects")
    assert covid_ct_md.find_root(raw) == raw, "as in the sample on GitHub"
    shutil.copytree(raw / "Cap Cases", raw / "Cap subjects")
    assert covid_ct_md.find_root(raw) is None, "which of both?"


# ----------------------------------------------------------------------------------------------------------- MedMNIST


def arrays(counts=(30, 8, 12), classes: int = 2, size: int = 32, colours: int = 0, seed: int = 0) -> dict:
    """As they are in a file of MedMNIST; the labels go round."""
    found, first = {}, seed
    for part, count in zip(("train", "val", "test"), counts, strict=True):
        images = [picture(first + index, size) for index in range(count)]
        first += count
        stacked = np.stack(images)
        found[f"{part}_images"] = np.stack([stacked] * colours, axis=-1) if colours else stacked
        found[f"{part}_labels"] = (np.arange(count, dtype=np.uint8) % classes)[:, None]
    return found


def write_npz(file: Path, **changed: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **arrays() | changed)
    return file


def test_breastmnist_from_the_download_to_the_official_split(tmp_path):
    file, output = write_npz(tmp_path / "raw" / "breastmnist_224.npz"), tmp_path / "data"
    assert prepare(output, "--corpus", "medmnist", "--data_dir", file, "--num_folds", 2) is None
    loaded = datasets.load_dataset(str(output))
    assert {name: len(part) for name, part in loaded.items()} == {"train": 30, "validation": 8, "test": 12}
    assert loaded["test"].features["label"].names == ["malignant", "normal, benign"]
    assert loaded["test"]["label"] == [0, 1] * 6
    assert loaded["validation"]["file_name"][0] == "val/000000.png"
    np.testing.assert_array_equal(np.asarray(loaded["test"][3]["image"]), arrays()["test_images"][3])
    parts, names = load_prepared(str(output), None, "official")
    folders = {part: {name.split("/")[0] for name in rows["file_name"]} for part, rows in parts.items()}
    assert folders["test"] == {"test"} and folders["train"] | folders["validation"] == {"train", "val"}
    assert len(parts["train"]) + len(parts["validation"]) == 38 and len(parts["test"]) == 12
    assert names == ["malignant", "normal, benign"]
    report = report_of(output)
    assert report["official_split"] and report["class_counts"]["malignant"] == {"train": 15, "validation": 4, "test": 6}
    assert card_of(output).data.license == "cc-by-4.0" and "`busi`" in card_of(output).text
    assert yaml.safe_load((output / "config.yaml").read_text())["corpus"] == "breastmnist"
    assert facts_of(str(output)).positive == ("malignant",)
    assert not (output / PRIVATE).exists(), "a public corpus keeps its names"


def test_a_copy_of_a_test_image_is_left_out_of_its_training(tmp_path):
    given, output = arrays(), tmp_path / "data"
    given["train_images"][4] = given["test_images"][2]
    file = write_npz(tmp_path / "pneumoniamnist.npz", **given)
    assert prepare(output, "--corpus", "medmnist", "--data_dir", file, "--num_folds", 2) is None
    report = report_of(output)
    assert report["findings"]["official_left_out"] == ["train/000004.png"]
    assert "`pneumonia`" in facts_of(str(output)).source


@pytest.mark.parametrize("given", ["file", "folder"])
def test_images_of_a_file_can_be_pretrained_on_as_they_are(tmp_path, given):
    file = tmp_path / "bloodmnist_64.npz"
    np.savez(file, **arrays(classes=8, colours=3))
    data_dir = str(file if given == "file" else tmp_path)
    dataset = load_corpus("medmnist", data_dir=data_dir)
    assert len(dataset) == 30 and dataset.features["label"].names == list(medmnist.CLASSES["BloodMNIST"])
    assert dataset["label"][:9] == [0, 1, 2, 3, 4, 5, 6, 7, 0], "the published numbers"
    row = dataset[5]
    pixels = decode_image(row["image"], name=row["file_name"], num_channels=3) * 255
    np.testing.assert_allclose(pixels, arrays(colours=3)["train_images"][5], atol=1e-4)
    assert len(load_corpus("medmnist", data_dir=data_dir, split="test")) == 12
    assert facts_of("medmnist", data_dir).title == "MedMNIST: BloodMNIST"


def test_a_folder_with_a_file_of_medmnist_is_recognised_unless_pictures_lie_beside_it(tmp_path):
    write_npz(tmp_path / "octmnist.npz")
    assert recognised(tmp_path) == "medmnist" and len(load_corpus(str(tmp_path))) == 30
    write(tmp_path / "more" / "own.png")
    assert recognised(tmp_path) == "folder"
    (tmp_path / "octmnist.npz").rename(tmp_path / "features.npz")
    shutil.rmtree(tmp_path / "more")
    assert recognised(tmp_path) == "folder"


def test_licences_of_medmnist():
    licences = {title: FACTS[title.lower()].licence_id for title in medmnist.CLASSES}
    assert licences == dict.fromkeys(medmnist.CLASSES, "cc-by-4.0") | {"DermaMNIST": "cc-by-nc-4.0"}
    assert FACTS["medmnist"].licence_id is None, "which of them is not known"
    assert {len(names) == len(set(names)) for names in medmnist.CLASSES.values()} == {True}


def volumes() -> dict[str, np.ndarray]:
    return {f"{part}_images": np.zeros((4, 28, 28, 28), np.uint8) for part in ("train", "val", "test")}


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("chestmnist_224.npz", {}, "'chestmnist_224.npz' is not read, since an image of it has several labels"),
        ("nodulemnist3d.npz", {}, "'nodulemnist3d.npz' is not read, since it holds volumes"),
        ("catmnist.npz", {}, "'catmnist.npz' is not read, since it is not known. Read are .*BreastMNIST"),
        ("breast.npz", {}, "must be or hold one file of MedMNIST, such as breastmnist_224.npz; found none"),
        ("breastmnist.npz", volumes(), r"train: images must be 8-bit .* got uint8 of the shape \(4, 28, 28, 28\)"),
        ("breastmnist.npz", {"val_images": np.zeros((8, 28, 28))}, "val: images must be 8-bit .* got float64"),
        ("breastmnist.npz", {"test_labels": np.zeros((12, 14), int)}, r"one whole number each .*\(12, 14\)"),
        ("breastmnist.npz", {"test_labels": np.zeros((11, 1), int)}, r"12 images need one .*\(11, 1\)"),
        ("breastmnist.npz", {"test_labels": np.full((12, 1), 0.5)}, "got float64"),
        ("breastmnist.npz", {"train_labels": np.full((30, 1), 2)}, "labels must be 0 to 1, got 2 to 2"),
        ("breastmnist.npz", {"train_labels": np.array([None] * 30)}, "is damaged: .*allow_pickle=False"),
    ],
)
def test_files_that_are_not_read_are_named_with_the_reason(tmp_path, name, changed, message):
    file = write_npz(tmp_path / name, **changed)
    with pytest.raises(CorpusError, match=message):
        medmnist.find_images(file)
    assert prepare(tmp_path / "out", "--corpus", "medmnist", "--data_dir", file), "one line"


@pytest.mark.parametrize("cut", [0, 20, 5000, -30])
def test_a_truncated_download_is_named(tmp_path, cut):
    file = write_npz(tmp_path / "breastmnist.npz")
    write(file, file.read_bytes()[:cut])
    with pytest.raises(CorpusError, match="breastmnist.npz' is damaged: download it again"):
        load_corpus("medmnist", data_dir=str(tmp_path))


def test_a_file_whose_content_is_damaged_is_named(tmp_path):
    file = write_npz(tmp_path / "breastmnist.npz")
    data = bytearray(file.read_bytes())
    data[400:440] = bytes(40)
    write(file, bytes(data))
    with pytest.raises(CorpusError, match="is damaged: download it again"):
        medmnist.find_images(file)


def test_several_files_missing_arrays_and_missing_folders(tmp_path):
    write_npz(tmp_path / "breastmnist.npz")
    write_npz(tmp_path / "breastmnist_224.npz")
    with pytest.raises(CorpusError, match="several: breastmnist.npz, breastmnist_224.npz. Name one of them"):
        load_corpus("medmnist", data_dir=str(tmp_path))
    assert len(load_corpus("medmnist", data_dir=str(tmp_path / "breastmnist.npz"))) == 30
    np.savez(tmp_path / "octmnist.npz", train_images=np.zeros((2, 28, 28), np.uint8))
    with pytest.raises(CorpusError, match=r"lacks the array\(s\) train_labels, val_images"):
        medmnist.find_images(tmp_path / "octmnist.npz")
    with pytest.raises(CorpusError, match="does not exist"):
        medmnist.find_images(tmp_path / "nothing")


# ----------------------------------------------------------------------------------------------------------- BUS-UCLM

LABELS = ("Normal", "Benign", "Malignant")


def write_bus_uclm(root: Path) -> Path:
    """12 women of three images each; the third is of another class than the first two."""
    lines = ["Image;Label;Doppler;Marks;Combined"]
    for patient in range(12):
        for number in range(3):
            seed, name = 3 * patient + number, f"{chr(65 + patient)}LWI_{number:03d}.png"
            write(root / "images" / name, encode(picture(seed)))
            write(root / "masks" / name, encode(np.zeros((128, 128, 3), np.uint8)))
            lines.append(f"{name};{LABELS[(patient + (number == 2)) % 3]};No;{'Yes' if number else 'No'};No")
    write(root / "INFO.csv", "\r\n".join(lines).encode())
    return root


@pytest.mark.parametrize("below", ["", "BUS-UCLM Breast ultrasound lesion segmentation dataset/BUS-UCLM"])
def test_bus_uclm_from_the_download_to_a_fold(tmp_path, below):
    write_bus_uclm(tmp_path / "raw" / below)
    output = tmp_path / "data"
    assert prepare(output, "--corpus", "bus_uclm", "--data_dir", tmp_path / "raw", "--num_folds", 3) is None
    rows = rows_of(output)
    names = load_corpus(str(output)).features["label"].names
    assert names == ["normal", "benign", "malignant"]
    assert Counter(names[row["label"]] for row in rows) == dict.fromkeys(names, 12)
    assert all(row["group"] == row["file_name"].removeprefix("images/")[:4] for row in rows)
    assert json.loads(rows[0]["annotation"]) == {"Doppler": "No", "Marks": "No", "Combined": "No"}
    assert all(len(row["masks"]) == 1 for row in rows)
    assert report_of(output)["num_groups"] == 12
    for fold in "012":
        train, validation, test = groups_of_parts(output, fold)
        assert train and validation and test and not (train & test or train & validation or validation & test)
    assert card_of(output).data.license == "cc-by-4.0"
    assert facts_of(str(output)) == FACTS["bus_uclm"]


def test_bus_uclm_is_recognised_and_its_masks_are_no_images(tmp_path, caplog):
    raw = write_bus_uclm(tmp_path / "raw")
    assert recognised(raw) == "bus_uclm" and len(load_corpus(str(raw))) == 36
    items, classes, *_ = read_items(PrepareArguments("folder", str(raw), str(tmp_path / "out")))
    assert (len(items), classes) == (36, list(bus_uclm.CLASS_NAMES)) and "after all" not in caplog.text
    (raw / "INFO.csv").unlink()
    with pytest.raises(CorpusError, match="not a BUS-UCLM download: expected images/, masks/ and INFO.csv"):
        bus_uclm.find_images(raw)


def test_a_table_of_bus_uclm_may_be_saved_anew(tmp_path):
    raw = write_bus_uclm(tmp_path / "raw")
    before = bus_uclm.find_images(raw)
    text = (raw / "INFO.csv").read_text().replace(";", ",").replace(",No", ", No")
    write(raw / "INFO.csv", text.encode("utf-8-sig"))
    assert bus_uclm.find_images(raw) == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ALWI_001.png;Normal", "ALWI_001.png;Cyst", "'INFO.csv', line 3: .* got 'cyst' for 'ALWI_001.png'"),
        ("ALWI_001.png;Normal", "ALWI_001.png;", "'INFO.csv', line 3: .* got '' for 'ALWI_001.png'"),
        ("ALWI_001.png", "ALWI_000.png", "line 3: .* got 'ALWI_000.png' a second time"),
        ("Image;Label", "Picture;Label", "must have the columns Image and Label, found Picture, Label, Doppler"),
    ],
)
def test_a_table_of_bus_uclm_that_is_wrong_is_named(tmp_path, old, new, message):
    raw = write_bus_uclm(tmp_path / "raw")
    write(raw / "INFO.csv", (raw / "INFO.csv").read_bytes().replace(old.encode(), new.encode()))
    for bad_images in ("error", "skip"):
        with pytest.raises(CorpusError, match=message):
            bus_uclm.find_images(raw, bad_images=bad_images)


def test_bus_uclm_with_missing_and_with_unlisted_images(tmp_path, caplog):
    raw = write_bus_uclm(tmp_path / "raw")
    (raw / "images" / "ALWI_001.png").rename(raw / "images" / "ZZZZ_001.png")
    with pytest.raises(CorpusError, match=r"1 image\(s\) listed in INFO.csv are missing: ALWI_001.png"):
        bus_uclm.find_images(raw)
    with caplog.at_level(logging.WARNING):
        assert len(bus_uclm.find_images(raw, bad_images="skip")) == 35
    assert "1 image(s) in images/ are not in INFO.csv and are left out, such as 'ZZZZ_001.png'" in caplog.text
    write(raw / "INFO.csv", b"Image;Label\n")
    with pytest.raises(CorpusError, match="names no image"):
        bus_uclm.find_images(raw)
