"""DICOM files against the formulas of the standard and against pydicom's own reading of its test files."""

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pydicom
import pydicom.uid
import pytest
from helpers import encode, grey, write
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_color_lut, get_decoder

import prepare_corpus
import pretrain
from corpora.load import load_corpus
from corpora.record import BadImageError, CorpusError
from images.dicom import NotAPictureError, read_dicom

RAMP = np.tile(np.arange(0, 4096, 64, dtype=np.uint16), (64, 1))


def save(path: Path, pixels: np.ndarray = RAMP, sop_class: str = pydicom.uid.CTImageStorage, **fields) -> Path:
    """A DICOM file of stored values of 12 bits."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = sop_class
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = pydicom.uid.generate_uid()
    made.PatientID, made.SamplesPerPixel, made.PhotometricInterpretation = path.stem, 1, "MONOCHROME2"
    made.Rows, made.Columns = pixels.shape
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes()
    for name, value in fields.items():
        setattr(made, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def read(path: Path | str, **options):
    """The first frame: `(pixels, window)`."""
    frame = next(read_dicom(Path(path), name=Path(path).name, salt="s", **options))
    return np.asarray(Image.open(io.BytesIO(frame.png))), frame.window


PET = {"RescaleSlope": "0.000244140625", "RescaleIntercept": "0", "WindowCenter": "0.5"}  # values from 0 to 1


@pytest.mark.parametrize("width", [1, 0.5])
def test_linear_exact_and_sigmoid_windows_are_those_of_the_standard(tmp_path, width):
    values = RAMP / 4096
    exact = np.clip((values - 0.5) / width + 0.5, 0, 1)
    grey, window = read(save(tmp_path / "a.dcm", **PET, WindowWidth=str(width), VOILUTFunction="LINEAR_EXACT"))
    np.testing.assert_allclose(grey, exact * 65535, atol=0.51)
    assert window == (0.5, width, "file")
    grey, _ = read(save(tmp_path / "b.dcm", **PET, WindowWidth=str(width), VOILUTFunction="SIGMOID"))
    np.testing.assert_allclose(grey, 65535 / (1 + np.exp(-4 * (values - 0.5) / width)), atol=0.51)


@pytest.mark.parametrize(
    ("function", "width", "message"),
    [("LINEAR", "0.9", "at least 1, got 0.9"), ("LINEAR_EXACT", "0", "above 0, got 0"), ("CURVED", "5", "CURVED")],
)
def test_a_window_that_cannot_be_is_named(tmp_path, function, width, message):
    with pytest.raises(BadImageError, match=rf"a\.dcm.*{message}"):
        read(save(tmp_path / "a.dcm", **PET, WindowWidth=width, VOILUTFunction=function))


def lookup_table(first: int, entries: list[int], bits: int) -> Dataset:
    table = Dataset()
    table.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    table.add_new("LUTData", "US", entries)
    return table


def test_a_voi_lut_is_applied_after_the_rescale_and_before_a_window(tmp_path):
    entries = [0, 1000, 500, 1023]  # 10 bits; not monotonic, so that no window can give it
    pixels = np.array([[0, 9, 10, 11], [12, 13, 14, 4095]], dtype=np.uint16)
    fields = {"RescaleSlope": "1", "RescaleIntercept": "-20", "WindowCenter": "40", "WindowWidth": "400"}
    file = save(tmp_path / "a.dcm", pixels, **fields, VOILUTSequence=[lookup_table(-10, entries, 10)])
    grey, window = read(file)
    expected = np.array([[0, 0, 0, 1000], [500, 1023, 1023, 1023]]) / 1023 * 65535
    np.testing.assert_allclose(grey, expected, atol=0.51)
    assert window == (-8, 4, "VOI LUT of the file")
    assert read(file, window=(40.0, 400.0))[1] == (40, 400, "option")


def test_a_voi_lut_whose_entries_need_more_bits_than_it_says_is_refused(tmp_path):
    file = save(tmp_path / "a.dcm", VOILUTSequence=[lookup_table(0, [0, 500, 1024], 10)])
    with pytest.raises(BadImageError, match=r"a\.dcm.*VOI LUT must be at most 1023.*10 bits; got 1024"):
        read(file)


def test_a_voi_lut_of_many_entries_of_8_bits_as_words(tmp_path):
    """Stored as files of implicit VR store it; a frame's own table, of an enhanced file."""
    entries = np.arange(512) // 2
    table = lookup_table(0, [], 8)
    table.LUTDescriptor = [512, 0, 8]
    table.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    group = Dataset()
    group.FrameVOILUTSequence = [Dataset()]
    group.FrameVOILUTSequence[0].VOILUTSequence = [table]
    pixels = np.array([[0, 100, 300, 511]], dtype=np.uint16)
    grey, _ = read(save(tmp_path / "a.dcm", pixels, SharedFunctionalGroupsSequence=[group]))
    np.testing.assert_allclose(grey, np.array([[0, 50, 150, 255]]) * 257, atol=0.51)


def test_a_palette_is_applied():
    file = get_testdata_file("examples_palette.dcm", download=False)
    header = pydicom.dcmread(file)
    expected = apply_color_lut(header.pixel_array, header)
    assert expected.dtype == np.uint16
    rgb, window = read(file)
    np.testing.assert_array_equal(rgb, expected >> 8)
    assert window is None and rgb.shape[2] == 3


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("written", [-2000, 63536])  # the same 16 bits, as some devices write them
def test_padding_is_black(tmp_path, kind, written):
    pixels = np.tile(np.array([-2000, -1000, 0, 1000], dtype=np.int16), (4, 1))
    fields = {"PhotometricInterpretation": kind, "WindowCenter": "0.5", "WindowWidth": "2001"}
    file = save(tmp_path / "a.dcm", pixels, **fields)
    header = pydicom.dcmread(file)
    header.add_new("PixelPaddingValue", "US" if written > 0 else "SS", written)
    header.save_as(file)
    inner = [0, 32768, 65535] if kind == "MONOCHROME2" else [65535, 32768, 0]
    np.testing.assert_allclose(read(file)[0], np.tile([0, *inner], (4, 1)), atol=1)
    header.add_new("PixelPaddingRangeLimit", "SS", -1000)
    header.save_as(file)
    np.testing.assert_allclose(read(file)[0], np.tile([0, 0, *inner[1:]], (4, 1)), atol=1)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm"),  # JPEG lossless
        ("J2K_pixelrep_mismatch.dcm", None),
    ],
)
def test_compressed_files_are_decoded_by_what_the_recipes_install(name, plain):
    found, _ = read(get_testdata_file(name, download=False))
    if plain is not None:
        np.testing.assert_array_equal(found, read(get_testdata_file(plain, download=False))[0])


def test_where_a_decoder_is_missing_the_package_is_named(monkeypatch):
    decoder = get_decoder(pydicom.uid.JPEGLosslessSV1)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"gdcm": ("python-gdcm>=3.0.10",)})
    with pytest.raises(BadImageError, match="SC_rgb_jpeg_gdcm.dcm.*JPEG Lossless.*requires python-gdcm>=3.0.10"):
        read(get_testdata_file("SC_rgb_jpeg_gdcm.dcm", download=False))


@pytest.mark.parametrize(
    "kind",
    [
        *("SegmentationStorage", "RTDoseStorage", "ParametricMapStorage", "GrayscaleSoftcopyPresentationStateStorage"),
        *("BasicTextSRStorage", "EncapsulatedPDFStorage", "RTStructureSetStorage", "RawDataStorage"),
    ],
)
def test_what_is_not_a_picture_is_refused_by_its_class(tmp_path, kind):
    uid = getattr(pydicom.uid, kind)
    with pytest.raises(NotAPictureError, match=rf"'a\.dcm' is not a picture \({uid.name}\)"):
        read(save(tmp_path / "a.dcm", sop_class=uid))


@pytest.mark.parametrize(
    "uid",
    [
        *(pydicom.uid.EnhancedUSVolumeStorage, pydicom.uid.DigitalXRayImageStorageForPresentation),
        *(pydicom.uid.RTImageStorage, "1.2.826.0.1.3680043.2.1", "1.2.840.10008.5.1.4.1.1.9999"),
    ],
)
def test_pictures_of_unusual_or_private_classes_are_read(tmp_path, uid):
    assert read(save(tmp_path / "a.dcm", sop_class=uid))[0].shape == (64, 64)


def test_objects_that_are_not_pictures_are_left_out_named_and_counted(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for index in range(8):
        pixels = rng.integers(0, 4096, (64, 64), dtype=np.uint16)
        save(tmp_path / "raw" / "ab"[index % 2] / f"ct{index}.dcm", pixels)
    save(tmp_path / "raw" / "a" / "seg.dcm", sop_class=pydicom.uid.SegmentationStorage)
    save(tmp_path / "raw" / "b" / "dose.dcm", sop_class=pydicom.uid.RTDoseStorage)
    out = tmp_path / "out"
    given = ["--data_dir", str(tmp_path / "raw"), "--output_dir", str(out), "--num_folds", "2"]
    prepare_corpus.main(given)
    hidden = (out / "report.json").read_text()  # under names of our own, as all that can be published
    assert "RT Dose Storage" in hidden and "dose.dcm" not in hidden
    assert "dose.dcm" in (out / "private" / "names.csv").read_text()
    prepare_corpus.main([*given, "--keep_file_names", "true", "--overwrite_output_dir"])
    report = json.loads((out / "report.json").read_text())
    assert report["images_written"] == 8
    (seg, dose) = report["findings"]["no_pictures"]
    assert "seg.dcm" in seg and "Segmentation Storage" in seg and "dose.dcm" in dose and "RT Dose Storage" in dose
    title = "DICOM files that are not pictures, by their SOP class (left out)"
    assert report["counts"][title] == 2 and f"| {title} | 2 |" in (out / "report.md").read_text()
    assert any("2 DICOM file(s) are left out" in message for message in caplog.messages)


def test_pretraining_on_dicom_files_names_the_command_to_run_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for index in range(6):
        pixels = rng.integers(0, 4096, (64, 64), dtype=np.uint16)
        file = tmp_path / "my scans" / f"1.2.840.{index}"  # as many are named
        save(file, pixels, PatientID=str(index), WindowCenter="2048", WindowWidth="1000")
    given = [
        "--image_size=32",
        "--patch_size=8",
        "--per_device_train_batch_size=2",
        "--dry_run=true",
        "--output_dir=run",
    ]
    for asked in (["--corpus=my scans"], ["--corpus=folder", "--data_dir=my scans", "--bad_images=skip"]):
        with pytest.raises(SystemExit, match=r"error: 'my scans' holds 6 DICOM file\(s\)") as told:
            pretrain.main([*given, *asked])
    command, corpus = re.search(
        r"run `python recipes/prepare_corpus.py (.*)`, then take (.*)\.$", str(told.value)
    ).groups()
    prepare_corpus.main(shlex.split(command))
    pretrain.main([*given, "--held_out=0", *shlex.split(corpus)])
    assert "nothing wrong found" in capsys.readouterr().out


def test_dicom_files_among_images_are_left_out_only_if_asked_for(tmp_path):
    for index in range(4):
        write(tmp_path / "scans" / f"{index}.png", encode(grey(seed=index)))
    save(tmp_path / "scans" / "a.dcm")
    with pytest.raises(CorpusError, match=r"1 DICOM file.*a\.dcm.*--bad_images skip for the other 4 image\(s\)"):
        load_corpus(str(tmp_path / "scans"))
    assert len(load_corpus(str(tmp_path / "scans"), bad_images="skip")) == 4
