"""From raw downloads to checked data sets: counts, faults found, splits that do not leak, DICOM."""

import io
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pydicom
import pytest
from helpers import colour, encode, grey, picture, truncated_png, write
from PIL import Image
from pydicom.data import get_testdata_file

import prepare_corpus
from commandline import UsageError
from corpora.load import load_corpus
from corpora.record import BadImageError, CorpusError
from images.arguments import PrepareArguments
from images.dicom import read_dicom
from images.fingerprint import SimilarPair, merged_groups
from images.items import read_items
from images.splits import SplitError, check_overlap, load_split, make_splits
from prepare_corpus import prepare


def recoded(values: np.ndarray, scale: float = 0.6, quality: int = 60) -> bytes:
    """The same picture in other bytes: resized, JPEG."""
    image = Image.fromarray(values)
    return encode(image.resize((int(image.width * scale), int(image.height * scale))), "JPEG", quality=quality)


@pytest.fixture
def raw(tmp_path) -> Path:
    """A folder with two classes of 24 pictures."""
    for index in range(48):
        write(tmp_path / "raw" / ("a", "b")[index % 2] / f"{index:02d}.png", encode(picture(index)))
    return tmp_path / "raw"


def arguments(raw: Path, **options) -> PrepareArguments:
    given = {
        "data_dir": str(raw),
        "output_dir": str(raw.parent / "out"),
        "num_folds": 3,
        "keep_file_names": True,
    } | options
    return PrepareArguments(**given)


def findings(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())["findings"]


def test_folder_to_parquet_and_back(raw):
    folder = prepare(arguments(raw))
    loaded = datasets.load_dataset(str(folder))["train"]
    assert len(loaded) == 48
    assert loaded.features["label"].names == ["a", "b"]
    assert sorted(loaded["file_name"]) == sorted(p.relative_to(raw).as_posix() for p in raw.rglob("*.png"))
    stored = loaded.cast_column("image", datasets.Image(decode=False))[0]
    assert stored["image"]["bytes"] == (raw / stored["file_name"]).read_bytes()
    assert len(load_corpus(str(folder))) == 48
    card = (folder / "README.md").read_text()
    assert "data/train-*.parquet" in card and "| 24 | 24 | 48 |" in card


@pytest.mark.parametrize("fold", ["0", "1", "2"])
def test_parts_cover_everything_once_and_share_no_group(raw, fold):
    (raw / "a" / "copy.png").write_bytes(recoded(picture(0)))
    folder = prepare(arguments(raw))
    parts = load_split(folder / "splits.json", datasets.load_dataset(str(folder)), fold)
    names = [name for part in parts.values() for name in part["file_name"]]
    assert len(names) == len(set(names)) == 49
    groups = [set(part["group"]) for part in parts.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert set(parts["test"]["label"]) == {0, 1}


def test_a_corpus_prepared_anew_is_not_loaded_from_the_cache(raw):
    assert len(datasets.load_dataset(str(prepare(arguments(raw))))["train"]) == 48
    write(raw / "a" / "new.png", encode(picture(77)))
    again = prepare(arguments(raw, overwrite_output_dir=True))
    assert len(datasets.load_dataset(str(again))["train"]) == 49


def test_every_image_is_tested_in_one_fold(raw):
    splits = json.loads((prepare(arguments(raw)) / "splits.json").read_text())
    tested = [name for fold in splits["folds"] for name in fold["test"]]
    assert sorted(tested) == sorted(splits["images"])


def test_all_bad_files_are_named(raw, caplog):
    for name in ("cut.png", "cut_too.png"):
        write(raw / "a" / name, truncated_png())
    with pytest.raises(BadImageError, match=r"'a/cut.png' .* 2 image\(s\) are bad \(the others: a/cut_too.png\); pass"):
        prepare(arguments(raw))
    prepare(arguments(raw, bad_images="skip"))
    assert (
        "2 file(s) cannot be used and are left out: a/cut.png, a/cut_too.png. The first: Image 'a/cut.png'"
        in caplog.text
    )


def test_splits_depend_on_the_seed_only(raw):
    first, again, other = (
        (prepare(arguments(raw, seed=seed, overwrite_output_dir=True)) / "splits.json").read_text()
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_copies_share_a_group_and_are_reported(raw):
    (raw / "a" / "same.png").write_bytes((raw / "a" / "00.png").read_bytes())
    (raw / "a" / "like.jpg").write_bytes(recoded(picture(2)))
    folder = prepare(arguments(raw))
    found = findings(folder)
    assert [set(pair["files"]) for pair in found["identical_pairs"]] == [{"a/00.png", "a/same.png"}]
    assert [set(pair["files"]) for pair in found["near_identical_pairs"]] == [{"a/02.png", "a/like.jpg"}]
    rows = {row["file_name"]: row["group"] for row in datasets.load_dataset(str(folder))["train"]}
    assert rows["a/00.png"] == rows["a/same.png"] and rows["a/02.png"] == rows["a/like.jpg"] != rows["a/00.png"]
    assert (folder / "report" / "near_identical_pairs.png").stat().st_size > 0


def test_groups_join_patients_and_copies():
    known = ["p", None, None, "q", None, "p", "r", None, None]
    # 1 and 2 lead from patient q to the later images of p, whose first image comes before all of these.
    alike = [(3, 2), (2, 1), (1, 5), (8, 4)]
    found = merged_groups(known, [SimilarPair(*both, bits=0, correlation=1.0, identical=True) for both in alike])
    assert found == ["p", "p", "p", "p", "content-4", "p", "r", "content-7", "content-4"]
    assert merged_groups(["a", None], []) == ["a", "content-1"]
    assert merged_groups([], []) == []


def test_copies_with_different_labels_are_left_out(raw):
    (raw / "b" / "wrong.png").write_bytes((raw / "a" / "00.png").read_bytes())
    folder = prepare(arguments(raw))
    assert findings(folder)["excluded"] == ["a/00.png", "b/wrong.png"]
    assert len(datasets.load_dataset(str(folder))["train"]) == 47


def test_colour_tiny_and_flat_images_are_found(raw):
    write(raw / "a" / "colour.png", encode(colour()))
    write(raw / "a" / "tiny.png", encode(grey(16, 16)))
    write(raw / "b" / "flat.png", encode(np.full((64, 64), 90, np.uint8)))
    found = findings(prepare(arguments(raw)))
    assert (found["coloured"], found["tiny"], found["flat"]) == (["a/colour.png"], ["a/tiny.png"], ["b/flat.png"])


def test_a_copy_planted_in_the_training_part_is_caught(raw):
    folder = prepare(arguments(raw))
    parts = load_split(folder / "splits.json", datasets.load_dataset(str(folder)), "0")
    test = parts["test"].cast_column("image", datasets.Image(decode=False))
    leaked = np.asarray(Image.open(io.BytesIO(test[0]["image"]["bytes"])))
    row = test[0] | {
        "image": {"bytes": recoded(leaked), "path": None},
        "file_name": "another/name.jpg",
        "group": "nobody",
    }
    planted = datasets.Dataset.from_list([row], features=test.features)
    train = datasets.concatenate_datasets([parts["train"].cast(test.features), planted])
    with pytest.raises(SplitError, match="another/name.jpg.*" + test[0]["file_name"]):
        check_overlap(train, test)


def test_colour_images_are_compared_alike_when_preparing_and_when_loading(tmp_path):
    # Pairs that differ in blue alone are alike in luma, and not in the mean of the channels.
    for index in range(24):
        base, blue = picture(index // 2), picture(1000 + index)
        write(
            tmp_path / "raw" / ("a", "b")[(index // 2) % 2] / f"{index:02d}.png",
            encode(np.stack([base, base, blue], -1)),
        )
    folder = prepare(arguments(tmp_path / "raw"))
    for fold in "012":
        load_split(folder / "splits.json", datasets.load_dataset(str(folder)), fold)


def test_a_patient_planted_on_both_sides_is_caught(raw):
    folder = prepare(arguments(raw))
    parts = load_split(folder / "splits.json", datasets.load_dataset(str(folder)), "0")
    group = parts["test"]["group"][0]
    train = parts["train"].map(lambda row, i: {"group": group if i == 3 else row["group"]}, with_indices=True)
    with pytest.raises(SplitError, match=train["file_name"][3]):
        check_overlap(train, parts["test"])


@pytest.mark.parametrize("sides", [("train", "test"), ("validation", "test"), ("train", "validation")])
@pytest.mark.parametrize("shared", ["group", "picture"])
def test_an_overlap_of_any_two_parts_is_caught_when_a_fold_is_loaded(raw, sides, shared):
    if shared == "picture":
        (raw / "a" / "copy.jpg").write_bytes(recoded(picture(0)))
    folder = prepare(arguments(raw))
    data = datasets.load_dataset(str(folder))["train"]
    if shared == "group":  # the pictures have nothing to do with each other
        names = ("a/00.png", "a/02.png")
        data = data.map(lambda row: {"group": "one"} if row["file_name"] in names else {})
    else:
        names = ("a/00.png", "a/copy.jpg")
        data = data.map(lambda row: {"group": row["file_name"]})
    splits = json.loads((folder / "splits.json").read_text())
    parts = {part: [name for name in listed if name not in names] for part, listed in splits["folds"][0].items()}
    for name, side in zip(names, sides, strict=True):
        parts[side].append(name)
    splits["folds"][0] = parts
    (folder / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(SplitError, match=f"'{names[0]}' and '{names[1]}'"):
        load_split(folder / "splits.json", data, "0")


def listed(classes: dict[str, list[int]]) -> datasets.Dataset:
    """Rows without images: for each class, how many images each of its patients has."""
    rows = []
    for label, (name, sizes) in enumerate(classes.items()):
        for patient, size in enumerate(sizes):
            for i in range(size):
                file_name = f"{name}/{patient}_{i}.png"
                rows.append({"file_name": file_name, "sha256": file_name, "group": f"{name}{patient}", "label": label})
    features = {name: datasets.Value("string") for name in ("file_name", "sha256", "group")}
    features["label"] = datasets.ClassLabel(names=list(classes))
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


def counts_of(names: list[str]) -> dict[str, int]:
    return {name: sum(file.startswith(f"{name}/") for file in names) for name in ("many", "few")}


def test_parts_have_their_share_of_each_class_and_whole_patients():
    data = listed({"many": [1, 3] * 80, "few": [1, 3] * 20})
    for fold in make_splits(data, num_folds=4, seed=0)["folds"]:
        assert counts_of(fold["test"]) == pytest.approx({"many": 80, "few": 20}, abs=2)
        assert counts_of(fold["validation"]) == pytest.approx({"many": 240 / 8, "few": 60 / 8}, abs=2)
        assert sum(len(fold[part]) for part in fold) == 400
        patients = [{name.split("_")[0] for name in fold[part]} for part in ("train", "validation", "test")]
        assert sum(map(len, patients)) == len(set.union(*patients)) == 200


def test_seeds_shuffle_patients_and_orders_do_not_matter():
    data = listed({"many": [2] * 40, "few": [2] * 20})
    given = ((data, 0), (data.shuffle(seed=1), 0), (data, 1))
    first, again, other = (make_splits(rows, num_folds=3, seed=seed)["folds"] for rows, seed in given)
    assert first == again
    for part in ("train", "validation", "test"):
        assert first[0][part] != other[0][part]


def test_a_patient_with_most_of_the_images_does_not_fill_the_validation_part(caplog):
    data = listed({"many": [60] + [1] * 40, "few": [1] * 100})
    for seed in range(5):
        for number, fold in enumerate(make_splits(data, num_folds=3, seed=seed)["folds"]):
            there = counts_of(fold["train"] + fold["validation"])
            for name, count in counts_of(fold["validation"]).items():
                assert 0.05 <= count / there[name] <= 0.27, (seed, number, name)
    assert {record.message for record in caplog.records} == {
        "group 'many0' has 60 of the 100 images of class many: folds cannot be of one size"
    }


def test_where_validation_cannot_have_its_share_the_patient_is_named(caplog):
    data = listed({"many": [30] + [1] * 8, "few": [30] + [1] * 8})
    folds = make_splits(data, num_folds=3, seed=0)["folds"]
    named = 0
    for number, fold in enumerate(folds):
        there, inside = counts_of(fold["train"] + fold["validation"]), counts_of(fold["validation"])
        assert all(0 < inside[name] <= 5 for name in inside)
        for name in ("many", "few"):
            said = f"fold {number}: the validation part has {inside[name]} of the {there[name]} images of class {name} "
            found = [record.message for record in caplog.records if record.message.startswith(said)]
            assert all(message.endswith(f"since group '{name}0' has 30 of them") for message in found)
            named += len(found)
    assert named


def test_too_few_patients_are_named_by_their_class():
    with pytest.raises(SplitError, match=r"class few has 2 group\(s\) .* 3 folds need one each: lower num_folds"):
        make_splits(listed({"many": [1] * 9, "few": [4, 4]}), num_folds=3, seed=0)
    message = r"fold [01]: outside its test part, all 30 images of class few are of one group .* 'few0', while training"
    with pytest.raises(SplitError, match=message):
        make_splits(listed({"many": [1] * 40, "few": [30] + [1] * 8}), num_folds=2, seed=0)


def mixed(groups: dict[str, dict[str, int]]) -> datasets.Dataset:
    """Rows without images: for each patient, how many images of each class there are."""
    names = sorted({name for counts in groups.values() for name in counts})
    rows = [
        {"file_name": f"{name}/{group}_{i}.png", "sha256": f"{name}{group}{i}", "group": group, "label": name}
        for group, counts in groups.items()
        for name, count in counts.items()
        for i in range(count)
    ]
    return datasets.Dataset.from_list(rows).cast_column("label", datasets.ClassLabel(names=names))


def split_of_mixed(rest: dict[str, dict[str, int]]) -> dict[str, list[str]]:
    """The official split of patients, where others of one image each are its test part."""
    tested = {
        f"test{i}": {name: 1} for i in range(20) for name in ["ABC"[i % 3]] if any(name in c for c in rest.values())
    }
    data = mixed(rest | tested)
    official = ["test" if group in tested else "train" for group in data["group"]]
    return make_splits(data, num_folds=2, seed=0, official=official)["official"]


def test_validation_takes_no_class_its_last_patient_in_training():
    made = split_of_mixed({"g0": {"A": 1}, "g1": {"A": 3, "B": 2}, "g2": {"B": 5}})
    patients = {part: {Path(name).stem.split("_")[0] for name in made[part]} for part in ("train", "validation")}
    assert patients == {"train": {"g1"}, "validation": {"g0", "g2"}}
    with pytest.raises(SplitError, match=r"official split: every group .* of class B that validation could have"):
        split_of_mixed({"g0": {"A": 1}, "g1": {"C": 1}, "g2": {"A": 3, "B": 5}, "g3": {"B": 5, "C": 3}})


def test_messages_name_the_patient_of_the_table_where_names_are_replaced(tmp_path):
    rows = ["file,label,patient"]
    for index in range(48):
        write(tmp_path / "raw" / f"{index}.png", encode(picture(index)))
        rows.append(f"{index}.png,{'ab'[index % 2]},{'SMITH' if index % 2 and index < 40 else f'p{index}'}")
    table = write(tmp_path / "table.csv", "\n".join(rows).encode())
    given = arguments(tmp_path / "raw", table=str(table), num_folds=2, keep_file_names=False)
    with pytest.raises(SplitError, match="images of class b are of one group .*, 'SMITH', while training"):
        prepare(given)
    assert not (tmp_path / "out" / "splits.json").exists()


def test_splits_refuse_changed_data(raw):
    folder = prepare(arguments(raw))
    data = datasets.load_dataset(str(folder))["train"]
    other = data.cast_column("image", datasets.Image(decode=False)).map(
        lambda row: {"image": {"bytes": encode(grey(seed=99)), "path": None}} if row["file_name"] == "a/00.png" else {}
    )
    with pytest.raises(SplitError, match="a/00.png"):
        load_split(folder / "splits.json", other, "0")
    with pytest.raises(SplitError, match=r"fold must be 0 to 2, got '7'"):
        load_split(folder / "splits.json", data, "7")


def test_official_split_loses_training_images_of_test_patients(tmp_path):
    rows = ["file,label,patient,split"]
    for index in range(60):
        write(tmp_path / "raw" / f"{index}.png", encode(picture(index)))
        patient = "shared" if index in (0, 59) else f"p{index}"
        rows.append(f"{index}.png,{'ab'[index % 2]},{patient},{'test' if index >= 50 else 'train'}")
    table = write(tmp_path / "table.csv", "\n".join(rows).encode())
    folder = prepare(arguments(tmp_path / "raw", table=str(table)))
    splits = json.loads((folder / "splits.json").read_text())
    assert splits["official"]["left_out"] == ["0.png"]
    assert findings(folder)["patients_across_official_split"] == ["shared"]
    for file in ("report.md", "README.md"):
        text = (folder / file).read_text()
        assert "| patients on both sides of the official split | 1 |" in text
        assert "whose group is in its test part | 1 |" in text
    assert "`group` is the patient if the corpus names patients" in text
    assert len(splits["official"]["test"]) == 10
    assert set(datasets.load_dataset(str(folder))) == {"train", "test"}


def test_busi_masks_are_joined_and_gbcu_boxes_kept(tmp_path):
    for first, label in enumerate(("normal", "benign", "malignant")):
        for index in range(8):
            write(tmp_path / "busi" / label / f"{label} ({index}).png", encode(picture(100 * first + index)))
    mask = encode(np.eye(64, dtype=np.uint8) * 255)
    for name in ("benign (1)_mask.png", "benign (1)_mask_1.png"):
        write(tmp_path / "busi" / "benign" / name, mask)
    folder = prepare(arguments(tmp_path / "busi", corpus="busi", num_folds=2, output_dir=str(tmp_path / "o1")))
    rows = {row["file_name"]: row for row in datasets.load_dataset(str(folder))["train"]}
    assert len(rows) == 24
    assert [len(rows[f"benign/benign ({i}).png"]["masks"]) for i in (0, 1)] == [0, 2]
    for file in ("report.md", "README.md"):
        text = (folder / file).read_text()
        assert "official split" not in text and "copies with different labels (left out) | 0 |" in text
    assert "Which patient an image shows is unknown" in text and "the patient if the corpus names patients" not in text
    assert 'load_dataset("path/to/this/folder")' in text

    lines = {"train": [], "test": []}
    for index in range(1, 61):
        name = f"im{index:05d}.jpg"
        write(tmp_path / "gbcu" / "imgs" / name, encode(picture(index), "JPEG", quality=95))
        lines["test" if index > 45 else "train"].append(f"{name},{index % 3}")
    for split, listed in lines.items():
        write(tmp_path / "gbcu" / f"{split}.txt", "\n".join(listed).encode())
    write(tmp_path / "gbcu" / "bbox_annot.json", json.dumps({"im00002.jpg": {"bbs": [[1, 2, 3, 4]]}}).encode())
    folder = prepare(arguments(tmp_path / "gbcu", corpus="gbcu", output_dir=str(tmp_path / "o2")))
    loaded = datasets.load_dataset(str(folder))
    assert {name: len(part) for name, part in loaded.items()} == {"train": 45, "test": 15}
    annotations = {row["file_name"]: row["annotation"] for row in loaded["train"]}
    assert json.loads(annotations["imgs/im00002.jpg"]) == {"bbox_annot": {"bbs": [[1, 2, 3, 4]]}}
    assert annotations["imgs/im00003.jpg"] is None
    assert "extra_gated_prompt" in (folder / "README.md").read_text()


def test_covid_ct_with_its_split_lists(tmp_path):
    for folder, name, offset in (("CT_COVID", "COVID", 0), ("CT_NonCOVID", "NonCOVID", 100)):
        names = [f"{name} {index}.png" for index in range(30)]
        for index, file in enumerate(names):
            write(tmp_path / "ct" / "Images-processed" / folder / file, encode(picture(offset + index)))
        for part, chosen in (("train", names[:20]), ("val", names[20:24]), ("test", names[24:])):
            write(tmp_path / "ct" / "Data-split" / name / f"{part}CT_{name}.txt", "\n".join(chosen).encode())
    folder = prepare(arguments(tmp_path / "ct", corpus="covid_ct"))
    loaded = datasets.load_dataset(str(folder))
    assert {name: len(part) for name, part in loaded.items()} == {"train": 40, "validation": 8, "test": 12}


def test_raw_images_are_never_deleted(raw, tmp_path):
    write(tmp_path / "notes" / "thesis.txt", b"years of work")
    for output in (raw, raw.parent, tmp_path / "notes"):
        with pytest.raises(UsageError, match="give another folder"):
            prepare(arguments(raw, output_dir=str(output), overwrite_output_dir=True))
    assert len(list(raw.rglob("*.png"))) == 48 and (tmp_path / "notes" / "thesis.txt").exists()


def test_a_data_set_inside_the_download_is_refused(raw):
    with pytest.raises(UsageError, match=f"output_dir {raw}/own/prepared must not be inside data_dir {raw}:"):
        prepare(arguments(raw, output_dir=str(raw / "own" / "prepared")))
    assert not (raw / "own").exists()


def test_a_split_of_some_images_only_is_refused(raw):
    rows = [f"{path.relative_to(raw)},{path.parent.name},train" for path in sorted(raw.rglob("*.png"))]
    rows[3] = rows[3].removesuffix("train")
    table = write(raw.parent / "table.csv", "\n".join(["file,label,split", *rows]).encode())
    with pytest.raises(CorpusError, match="1 of 48 images are in no official split"):
        prepare(arguments(raw, table=str(table)))


def test_mistakes_are_one_clear_line(raw, capsys):
    write(raw / "a" / "cut.png", truncated_png())
    for options, message in (
        (["--data_dir", str(raw)], "cut.png"),
        (["--data_dir", str(raw / "nowhere")], "nowhere"),
        (["--data_dir", str(raw), "--bad_images", "skip", "--num_folds", "30"], "num_folds"),
        (["--data_dir", str(raw), "--corpus", "gbcu", "--push_to_hub", "me/gbcu"], "on request only"),
        (["--data_dir", str(raw), "--corpus", "mars"], "corpus must be one of"),
    ):
        with pytest.raises(SystemExit) as stopped:
            prepare_corpus.main(["--output_dir", str(raw.parent / "out"), *options])
        assert str(stopped.value).startswith("error: ") and message in str(stopped.value), stopped.value
        assert not (raw.parent / "out" / "splits.json").exists()
    prepare_corpus.main(["--output_dir", str(raw.parent / "out"), "--data_dir", str(raw), "--bad_images", "skip"])
    assert len(findings(raw.parent / "out")["unreadable"]) == 1
    with pytest.raises(SystemExit, match="overwrite_output_dir"):
        prepare_corpus.main(["--output_dir", str(raw.parent / "out"), "--data_dir", str(raw)])


# ------------------------------------------------------------------------------------------------------------- DICOM


def frames(name: str, **options) -> list:
    return list(read_dicom(Path(get_testdata_file(name, download=False)), name=name, salt="s", **options))


def pixels(frame) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(frame.png)))


def test_window_of_the_file_or_of_the_option():
    header = pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False))
    assert (header.WindowCenter, header.WindowWidth) == (600, 1600)
    stored = header.pixel_array.astype(float)
    expected = np.clip((stored - 599.5) / 1599 + 0.5, 0, 1) * 65535
    (frame,) = frames("MR_small.dcm")
    assert frame.window == (600, 1600, "file")
    assert pixels(frame).dtype == np.uint16
    np.testing.assert_allclose(pixels(frame), expected, atol=0.51)
    (frame,) = frames("MR_small.dcm", window=(300.0, 100.0))
    assert frame.window == (300, 100, "option")
    np.testing.assert_allclose(pixels(frame), np.clip((stored - 299.5) / 99 + 0.5, 0, 1) * 65535, atol=0.51)


def test_a_ct_without_a_window_keeps_every_stored_value_apart():
    header = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    (frame,) = frames("CT_small.dcm")
    assert frame.window[2] == "stored range"
    assert len(np.unique(pixels(frame))) == len(np.unique(header.pixel_array))
    assert frame.patient is not None and "1CT1" not in frame.patient


def test_rescale_and_window_of_each_frame_of_an_enhanced_file(tmp_path):
    header = pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False))
    stored = header.pixel_array.astype(float)
    del header.WindowCenter, header.WindowWidth
    header.NumberOfFrames = 2
    header.PixelData = 2 * header.PixelData

    def group(**values) -> pydicom.Dataset:
        made = pydicom.Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    header.SharedFunctionalGroupsSequence = [
        group(FrameVOILUTSequence=[group(WindowCenter=600, WindowWidth=1600)]),
    ]
    header.PerFrameFunctionalGroupsSequence = [
        group(PixelValueTransformationSequence=[group(RescaleSlope=slope, RescaleIntercept=-100)]) for slope in (1, 2)
    ]
    header.save_as(tmp_path / "enhanced.dcm")
    for slope, frame in zip((1, 2), read_dicom(tmp_path / "enhanced.dcm", name="e", salt="s"), strict=True):
        assert frame.window == (600, 1600, "file")
        expected = np.clip((slope * stored - 100 - 599.5) / 1599 + 0.5, 0, 1) * 65535
        np.testing.assert_allclose(pixels(frame), expected, atol=0.51)


def test_monochrome1_is_inverted(tmp_path):
    header = pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False))
    header.PhotometricInterpretation = "MONOCHROME1"
    header.save_as(tmp_path / "inverted.dcm")
    (inverted,) = read_dicom(tmp_path / "inverted.dcm", name="inverted.dcm", salt="s")
    (plain,) = frames("MR_small.dcm")
    np.testing.assert_allclose(pixels(inverted).astype(int), 65535 - pixels(plain).astype(int), atol=1)


def test_colour_and_frames():
    two = frames("SC_rgb_rle_2frame.dcm")
    assert [frame.frame for frame in two] == [0, 1]
    header = pydicom.dcmread(get_testdata_file("SC_rgb_rle_2frame.dcm", download=False))
    np.testing.assert_array_equal(pixels(two[1]), header.pixel_array[1])
    assert two[0].window is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("UN_sequence.dcm", "holds no pixels"),
        ("MR_truncated.dcm", "cannot be decoded"),
        ("JPGExtended.dcm", "JPEG Extended"),
        ("ExplVR_BigEndNoMeta.dcm", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(name, message):
    with pytest.raises(BadImageError, match=f"{name}.*{message}"):
        frames(name)


def test_patient_hash_needs_the_salt():
    path = Path(get_testdata_file("MR_small.dcm", download=False))
    hashes = [next(read_dicom(path, name="x", salt=salt)).patient for salt in ("s", "s", "t")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_without_a_patient_id_an_examination_stays_together(tmp_path):
    header = pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False))
    header.PatientID = ""
    hashes = []
    for study in ("1.2.3", "1.2.3", "1.2.4"):
        header.StudyInstanceUID = study
        header.save_as(tmp_path / "anonymous.dcm")
        hashes.append(next(read_dicom(tmp_path / "anonymous.dcm", name="x", salt="s")).patient)
    assert hashes[0] == hashes[1] != hashes[2]
    assert "1.2" not in hashes[0]


def test_files_named_after_their_uid_are_found(tmp_path):
    write(tmp_path / "raw" / "DICOMDIR", b"an index, without pixels")
    shutil.copy(get_testdata_file("MR_small.dcm", download=False), tmp_path / "raw" / "1.2.840.10008.77")
    items, *_ = read_items(arguments(tmp_path / "raw"))
    assert [item.record.file_name for item in items] == ["1.2.840.10008.77"]


def test_a_folder_of_dicom_files(tmp_path):
    for label, names in {"a": ("CT_small.dcm", "693_J2KI.dcm"), "b": ("MR_small.dcm", "SC_rgb_rle_2frame.dcm")}.items():
        for name in names:
            (tmp_path / "raw" / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(get_testdata_file(name, download=False), tmp_path / "raw" / label / name)
    shutil.move(tmp_path / "raw" / "a" / "CT_small.dcm", tmp_path / "raw" / "a" / "no_extension")
    items, class_names, left_out = read_items(arguments(tmp_path / "raw", salt="s"))
    assert class_names == ["a", "b"] and left_out == {"unreadable": [], "no_pictures": [], "unlabelled": []}
    windows = {item.record.file_name: item.window for item in items}
    assert set(windows) == {
        *("a/no_extension", "a/693_J2KI.dcm", "b/MR_small.dcm"),
        *("b/SC_rgb_rle_2frame.dcm#0", "b/SC_rgb_rle_2frame.dcm#1"),
    }
    assert windows["b/MR_small.dcm"] == (600, 1600, "file")
    assert all(item.group for item in items)


# ------------------------------------------------------------------------------------------------------- real corpora


@pytest.mark.slow
@pytest.mark.parametrize(
    ("corpus", "folder", "read", "written"),
    [("busi", "busi", 780, None), ("pneumonia", "pneumonia", 5840, 5840), ("covid_ct", "sars_cov_2_ct", 2481, 2481)],
)
def test_real_corpora_and_their_known_faults(shared, tmp_path, corpus, folder, read, written):
    root = shared / "corpora" / folder
    if not root.is_dir():
        pytest.skip(f"needs the images of {root}")
    out = prepare(PrepareArguments(corpus=corpus, data_dir=str(root), output_dir=str(tmp_path / "out")))
    report = json.loads((out / "report.json").read_text())
    loaded = datasets.load_dataset(str(out))
    assert report["images_read"] == read
    assert sum(map(len, loaded.values())) == (written or read - len(report["findings"]["excluded"]))
    load_split(out / "splits.json", loaded, "0")
    found = report["findings"]
    if corpus == "busi":
        conflict = {"malignant/malignant (145).png", "benign/benign (433).png"}
        assert any(set(pair["files"]) == conflict for pair in found["identical_pairs"])
        assert conflict <= set(found["excluded"])
        assert len(found["coloured"]) == 6
    if corpus == "pneumonia":
        assert len(found["identical_pairs"]) >= 30
        assert len(found["patients_across_official_split"]) > 0
        load_split(out / "splits.json", loaded, "official")
