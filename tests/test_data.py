"""From files to batches, at the surface that the recipes use."""

import io
import logging
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from helpers import colour, encode, grey, png16, tiff16, truncated_png, write, write_folder, write_mixed_folder
from PIL import Image
from transformers import AutoImageProcessor

from corpora import CORPORA, busi, covid_ct, gbcu, pneumonia
from corpora.load import load_corpus
from corpora.record import BadImageError, CorpusError
from images.check import verify_images
from images.decode import decode_image
from images.splits import split_held_out
from images.transform import ImageTransform
from training.feeding import PretrainDataset

REAL_CORPORA = Path(__file__).parents[1] / ".." / "shared" / "corpora"
needs_corpora = pytest.mark.skipif(not REAL_CORPORA.is_dir(), reason="needs the real corpora in ../shared/corpora")

PLAIN = ImageTransform(image_size=32)
ONE_CHANNEL = ImageTransform(image_size=32, image_mean=(0.5,), image_std=(0.5,))


def decode(data: bytes, num_channels: int = 1, **options) -> np.ndarray:
    return decode_image(data, name="scan.png", num_channels=num_channels, **options)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test writes to the user's cache of datasets."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


# ---------------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "BMP"])
def test_8_bit_grey_is_value_over_255(image_format):
    values = grey()
    image = decode(encode(values, image_format))
    assert image.shape == (40, 56, 1) and image.dtype == np.float32
    np.testing.assert_array_equal(image[..., 0], (values / 255).astype(np.float32))


@pytest.mark.parametrize(
    "data",
    [
        encode(grey(bits=16)),
        png16(grey(bits=16)),
        encode(grey(bits=16), "TIFF"),
        encode(grey(bits=16), "TIFF", compression="tiff_lzw"),
    ],
    ids=["png", "png by hand", "tiff", "tiff lzw"],
)
def test_16_bit_grey_is_value_over_65535(data):
    np.testing.assert_allclose(decode(data)[..., 0], grey(bits=16) / 65535, rtol=1e-6)


def test_16_bit_values_that_differ_by_one_stay_different():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    image = decode(encode(values), 3)
    assert len(np.unique(image[..., 0])) == 65536
    transformed = ImageTransform(image_size=256)(image)
    assert len(torch.unique(transformed[0])) == 65536


def test_white_level_sets_what_is_white():
    values = (grey(bits=16) >> 4).astype(np.uint16)  # 12 bits in a 16-bit file
    np.testing.assert_allclose(decode(encode(values), white_level=4095).max(), 1, rtol=1e-6)
    assert decode(encode(values)).max() < 0.07


def test_value_above_white_level_names_file_and_value():
    values = np.array([[1, 5000]], dtype=np.uint16)
    with pytest.raises(ValueError, match=r"scan\.png.* 5000.*white_level=4095"):
        decode(encode(values), white_level=4095)
    with pytest.raises(ValueError, match=r"8 bits.*white_level=4095"):
        decode(encode(grey()), white_level=4095)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_images_need_a_white_level(dtype):
    values = grey(bits=16).astype(dtype)
    data = encode(values, "TIFF")
    with pytest.raises(ValueError, match=r"scan\.png.*give white_level"):
        decode(data)
    np.testing.assert_allclose(decode(data, white_level=65535)[..., 0], values / 65535.0, rtol=1e-6)
    with pytest.raises(ValueError, match=r"grey value -3"):
        decode(encode(values - values.dtype.type(3), "TIFF"), white_level=65535)


def test_nan_is_an_error():
    with pytest.raises(ValueError, match="grey value nan"):
        decode(encode(np.array([[0.5, np.nan]], dtype=np.float32), "TIFF"), white_level=1)


@pytest.mark.parametrize(
    "data", [png16(np.stack([grey(bits=16)] * n, -1)) for n in (2, 3, 4)], ids=["LA", "RGB", "RGBA"]
)
def test_16_bit_colour_png_is_refused_not_cut_to_8_bits(data):
    with pytest.raises(BadImageError, match=r"scan\.png.*16 bits"):
        decode(data)


@pytest.mark.parametrize("planar", [False, True])
def test_16_bit_colour_tiff_is_refused_not_cut_to_8_bits(planar):
    with pytest.raises(BadImageError, match=r"scan\.png.*16 bits"):
        decode(tiff16(np.stack([grey(bits=16)] * 3, -1), planar))


def test_tiff_that_pillow_would_read_in_part_or_inverted_is_refused():
    pages = [Image.fromarray(grey(seed=seed)) for seed in range(3)]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(BadImageError, match="3 pages"):
        decode(data)
    with pytest.raises(BadImageError, match="MINISWHITE"):
        decode(encode(grey(bits=16), "TIFF", tiffinfo={262: 0}))


def test_grey_is_replicated_to_three_channels():
    image = decode(encode(grey()), 3)
    assert image.shape == (40, 56, 3)
    assert (image == image[..., :1]).all()


def test_colour_becomes_luma():
    values = colour()
    expected = values / 255 @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(decode(encode(values))[..., 0], expected, atol=1e-6)
    np.testing.assert_allclose(decode(encode(values), 3), values / 255, atol=1e-6)


def test_grey_saved_as_colour_equals_grey_exactly():
    values = grey()
    np.testing.assert_array_equal(decode(encode(np.stack([values] * 3, -1))), decode(encode(values)))


def test_palette_is_resolved():
    values = np.array([[0, 1], [2, 1]], dtype=np.uint8)
    image = Image.fromarray(values).convert("L")
    image = Image.frombytes("P", (2, 2), image.tobytes())
    image.putpalette([10, 10, 10, 200, 200, 200, 90, 90, 90])
    np.testing.assert_allclose(decode(encode(image))[..., 0] * 255, [[10, 200], [90, 200]], rtol=1e-6)


def test_binary_is_black_and_white():
    binary = Image.fromarray(grey()).convert("1")
    np.testing.assert_array_equal(decode(encode(binary))[..., 0], np.asarray(binary).astype(np.float32))


@pytest.mark.parametrize("grey_alpha", [False, True])
def test_transparency_is_composited_on_white_as_the_exported_processor_does(grey_alpha):
    values = colour(channels=2 if grey_alpha else 4)
    data = encode(values)
    expected = values[..., :-1] / 255 * (values[..., -1:] / 255) + 1 - values[..., -1:] / 255
    np.testing.assert_allclose(decode(data, 3), np.broadcast_to(expected, (40, 56, 3)), atol=1e-6)
    transform = ImageTransform(image_size=(40, 56), resize="none")
    processed = transform.processor()(Image.open(io.BytesIO(data)), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(transform(decode(data, 3)), processed, atol=2 / 255 * 1.01, rtol=0)
    opaque = values.copy()
    opaque[..., -1] = 255
    np.testing.assert_allclose(
        decode(encode(opaque), 3), np.broadcast_to(opaque[..., :-1] / 255, (40, 56, 3)), atol=1e-6
    )


def test_transparent_palette_and_cmyk():
    image = Image.frombytes("P", (2, 1), b"\0\1")
    image.putpalette([0, 0, 0, 60, 60, 60])
    np.testing.assert_allclose(decode(encode(image, transparency=0))[0, :, 0], [1, 60 / 255], atol=1e-6)
    cmyk = decode(encode(Image.fromarray(colour()).convert("CMYK"), "JPEG", quality=100), 3)
    assert np.abs(cmyk - colour() / 255).mean() < 0.02


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(image_format):
    exif = Image.Exif()
    exif[274] = 6  # stored lying on its left side
    upright = np.rot90(grey(), -1)
    image = decode(encode(grey(), image_format, exif=exif))[..., 0]
    np.testing.assert_allclose(image, upright / 255, atol=0.15 if image_format == "JPEG" else 1e-6)


@pytest.mark.parametrize("source", ["path", "bytes", "dict of path", "dict of bytes"])
def test_sources(tmp_path, source):
    path = write(tmp_path / "a.png")
    sources = {
        "path": path,
        "bytes": path.read_bytes(),
        "dict of path": {"bytes": None, "path": str(path)},
        "dict of bytes": {"bytes": path.read_bytes(), "path": "elsewhere.png"},
    }
    assert decode_image(sources[source], name="a", num_channels=1).shape == (40, 56, 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not an image at all", "cannot be read as any of PNG, JPEG, TIFF, BMP"),
        (truncated_png(), "cannot be decoded"),
        (encode(colour(200, 200), "JPEG")[:4000], "truncated"),
        (encode(grey(), "TIFF")[:1500], "cannot be"),
        (encode(grey(), "GIF"), "cannot be read as any of"),
    ],
    ids=["empty", "text", "truncated png", "truncated jpeg", "truncated tiff", "other format"],
)
def test_bad_files_are_named_with_the_reason(data, reason):
    with pytest.raises(BadImageError, match=rf"'scan\.png'.*{reason}"):
        decode(data)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(BadImageError, match=r"'gone\.png' cannot be read: No such file"):
        decode_image(tmp_path / "gone.png", name="gone.png", num_channels=1)


# -------------------------------------------------------------------------------------------------------- transforms

TRANSFORMS = {
    "paper": ImageTransform(image_size=224, resize_to=256),
    "shortest": ImageTransform(image_size=32),
    "shortest, not square": ImageTransform(image_size=(48, 32)),
    "squash": ImageTransform(image_size=(32, 48), resize="squash"),
    "squash and crop": ImageTransform(image_size=(32, 48), resize="squash", resize_to=61),
    "letterbox": ImageTransform(image_size=(64, 48), resize="letterbox"),
    "letterbox, odd": ImageTransform(image_size=33, resize="letterbox"),
}


@pytest.mark.parametrize("size", [(300, 411), (97, 60), (64, 64)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_equals_the_saved_image_processor(tmp_path, name, channels, size):
    std = (0.229, 0.224, 0.225)[:channels]
    transform = replace(TRANSFORMS[name], image_mean=(0.485, 0.456, 0.406)[:channels], image_std=std)
    values = colour(*size) if channels == 3 else grey(*size)
    transform.processor().save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    expected = processor(Image.fromarray(values), return_tensors="pt").pixel_values[0]
    got = transform(decode(encode(values), channels))
    assert got.shape == expected.shape == (channels, *transform.image_size)
    grey_levels_apart = ((got - expected) * torch.tensor(std)[:, None, None] * 255).abs().max()
    assert grey_levels_apart <= 1.001


def test_saved_processor_takes_grey_files_for_three_channels():
    pixel_values = PLAIN.processor()(Image.fromarray(grey()), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(pixel_values, PLAIN(decode(encode(grey()), 3)), atol=2 / 255 * 1.01, rtol=0)


def test_saved_processor_refuses_16_bit_files_rather_than_cutting_them():
    with pytest.raises(ValueError):
        PLAIN.processor(white_level=65535)(Image.open(io.BytesIO(encode(grey(bits=16)))), return_tensors="pt")


def test_processor_without_resize_equals_on_16_bit():
    transform = ImageTransform(image_size=(40, 56), resize="none", image_mean=(0.5,), image_std=(0.25,))
    data = encode(grey(bits=16))
    processor, image = transform.processor(65535), Image.open(io.BytesIO(data))
    pixel_values = processor(image, return_tensors="pt", rescale_factor=1 / processor.white_level).pixel_values[0]
    torch.testing.assert_close(pixel_values, transform(decode(data)), atol=1e-5, rtol=0)


def test_letterbox_keeps_the_aspect_ratio_and_pads_with_black():
    image = np.ones((50, 100, 1), dtype=np.float32)
    tensor = ImageTransform(image_size=(64, 80), resize="letterbox", image_mean=(0.5,), image_std=(0.5,))(image)[0]
    rows, columns = (tensor > 0.99).any(1), (tensor > 0.99).any(0)
    assert rows.sum() == 40 and columns.sum() == 80
    assert rows[12:52].all(), "not centred"
    assert (tensor[~rows] == -1).all()


def test_no_resize_demands_the_exact_size():
    transform = ImageTransform(image_size=(40, 56), resize="none", image_mean=(0.0,), image_std=(1.0,))
    image = decode(encode(grey()))
    np.testing.assert_array_equal(transform(image)[0].numpy(), image[..., 0])
    with pytest.raises(ValueError, match=r"'b\.png' is 56 x 40 .*40 x 56 is allowed.*letterbox"):
        transform(image.transpose(1, 0, 2), name="b.png")


def test_values_stay_in_range_through_a_resize():
    tensor = ONE_CHANNEL(decode(encode((grey(200, 200) > 127).astype(np.uint8) * 255)))
    assert tensor.min() >= -1 and tensor.max() <= 1


def test_random_crop_is_a_part_of_the_image_and_repeatable():
    y, x = np.mgrid[:100, :100].astype(np.float32) / 100
    image = np.stack([y, x, np.zeros_like(x)], -1)
    transform = ImageTransform(
        image_size=(32, 32), random_resized_crop=True, image_mean=(0.0,) * 3, image_std=(1.0,) * 3
    )
    areas, ratios = [], []
    for seed in range(200):
        tensor = transform(image, torch.Generator().manual_seed(seed))
        height, width = (float(tensor[c].max() - tensor[c].min()) for c in (0, 1))
        areas.append(height * width)
        ratios.append(width / height)
    assert 0.15 < min(areas) < 0.4 and 0.8 < max(areas) <= 1
    assert 0.65 < min(ratios) < 0.85 and 1.2 < max(ratios) < 1.5
    one, two = (transform(image, torch.Generator().manual_seed(5)) for _ in range(2))
    torch.testing.assert_close(one, two, atol=0, rtol=0)


@pytest.mark.parametrize("size", [(400, 30), (30, 400), (1, 50)])
@pytest.mark.parametrize("resize", ["shortest", "squash", "letterbox"])
def test_random_crop_and_plain_transform_of_extreme_shapes(size, resize):
    transform = ImageTransform(image_size=(32, 48), resize=resize, random_resized_crop=True, crop_scale=(0.9, 1.0))
    image = decode(encode(grey(*size)), 3)
    assert transform(image, torch.Generator().manual_seed(0)).shape == (3, 32, 48)
    assert transform(image).shape == (3, 32, 48)


def test_letterbox_crop_is_not_distorted():
    y, x = np.mgrid[:120, :120].astype(np.float32) / 120
    transform = ImageTransform(
        (30, 60), "letterbox", random_resized_crop=True, image_mean=(0.0,) * 3, image_std=(1.0,) * 3
    )
    for seed in range(20):
        tensor = transform(np.stack([y, x, y], -1), torch.Generator().manual_seed(seed))
        height, width = (float(tensor[c].max() - tensor[c].min()) for c in (0, 1))
        assert width / height == pytest.approx(2, rel=0.1)


def test_flips_mirror_about_half_of_the_images():
    image = decode(encode(grey(32, 32)))
    plain = ONE_CHANNEL(image)
    for field, axis in (("horizontal_flip", 2), ("vertical_flip", 1)):
        transform = replace(ONE_CHANNEL, **{field: True})
        results = [transform(image, torch.Generator().manual_seed(seed)) for seed in range(60)]
        flipped = [torch.equal(result, plain.flip(axis)) for result in results]
        assert 15 < sum(flipped) < 45
        assert all(torch.equal(result, plain) for result, f in zip(results, flipped, strict=True) if not f)
        torch.testing.assert_close(transform(image), plain)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 0}, "image_size"),
        ({"image_size": (1, 2, 3)}, "image_size"),
        ({"resize": "stretch"}, "resize must be one of shortest, squash, letterbox, none, got 'stretch'"),
        ({"resize_to": 16}, "resize_to=16"),
        ({"resize": "letterbox", "resize_to": 64}, "resize_to=64"),
        ({"resize": "none", "random_resized_crop": True}, "random_resized_crop"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"image_std": (0.5, 0.0, 0.5)}, "image_std"),
        ({"image_mean": (0.5,)}, "image_mean"),
    ],
)
def test_transform_settings_are_validated(fields, message):
    with pytest.raises(ValueError, match=message):
        ImageTransform(**{"image_size": 32, **fields})


# ---------------------------------------------------------------------------------------------------- folder layouts


def test_folder_is_sorted_recursive_and_ignores_system_files(tmp_path):
    write_folder(tmp_path, ["b.png", "sub/deeper/a.JPG", "a.tiff"])
    for name in (".hidden.png", ".git/x.png", "Thumbs.db", "sub/desktop.ini", "sub/.DS_Store", "__MACOSX/b.png"):
        write(tmp_path / name)
    dataset = load_corpus(str(tmp_path))
    assert dataset["file_name"] == ["a.tiff", "b.png", "sub/deeper/a.JPG"]
    assert dataset.column_names == ["image", "file_name"]
    assert dataset.features["image"] == datasets.Image(decode=False)


def test_class_folders_are_labels(tmp_path):
    write_folder(tmp_path, ["sick/1.png", "healthy/2.png", "sick/more/3.png"])
    dataset = load_corpus(str(tmp_path))
    assert dataset.features["label"].names == ["healthy", "sick"]
    assert dict(zip(dataset["file_name"], dataset["label"], strict=True)) == {
        "healthy/2.png": 0,
        "sick/1.png": 1,
        "sick/more/3.png": 1,
    }


def test_split_folders_are_splits_and_train_is_the_default(tmp_path, caplog):
    write_folder(tmp_path, ["Train/sick/1.png", "Train/healthy/2.png", "test/sick/3.png", "val/healthy/4.png"])
    with caplog.at_level(logging.INFO):
        dataset = load_corpus(str(tmp_path))
    assert dataset["file_name"] == ["Train/healthy/2.png", "Train/sick/1.png"]
    assert "using train" in caplog.text
    assert dataset.features["label"].names == ["healthy", "sick"]
    assert load_corpus(str(tmp_path), split="validation")["file_name"] == ["val/healthy/4.png"]
    with pytest.raises(CorpusError, match="no split 'dev'; it has test, train, validation"):
        load_corpus(str(tmp_path), split="dev")


def test_a_test_split_is_not_pretrained_on_by_default(tmp_path):
    write_folder(tmp_path, ["test/1.png"])
    with pytest.raises(CorpusError, match="no split 'train'; it has test"):
        load_corpus(str(tmp_path))


def test_other_files_among_the_images(tmp_path, caplog):
    write_folder(tmp_path, ["1.png", "2.png"])
    write(tmp_path / "notes.txt", b"hello")
    with pytest.raises(CorpusError, match=r"notes\.txt.*--bad_images skip"):
        load_corpus(str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert len(load_corpus(str(tmp_path), bad_images="skip")) == 2
    assert "notes.txt" in caplog.text


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(CorpusError, match=r"holds no image \(\.png"):
        load_corpus(str(tmp_path))
    with pytest.raises(CorpusError, match=r"There is no corpus .*speckle; busi.*existing folder.*OWNER/NAME"):
        load_corpus(str(tmp_path / "nowhere"))
    with pytest.raises(CorpusError, match="There is no corpus 'buzi'"):
        load_corpus("buzi")
    with pytest.raises(CorpusError, match="needs data_dir"):
        load_corpus("busi")
    with pytest.raises(CorpusError, match="does not exist"):
        load_corpus("busi", data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(CorpusError, match="data_dir is for the corpora"):
        load_corpus(str(tmp_path), data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="bad_images must be one of error, skip"):
        load_corpus(str(tmp_path), bad_images="ignore")


def test_unknown_hub_id_says_what_is_allowed(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(CorpusError, match="There is no corpus 'nobody/nothing'.*Couldn't reach"):
        load_corpus("nobody/nothing")


def test_busi_layout(tmp_path, caplog):
    root = tmp_path / "Dataset_BUSI_with_GT"
    names = ["benign/benign (1).png", "malignant/malignant (1).png", "normal/normal (1).png"]
    write_folder(root, [*names, "benign/benign (1)_mask.png", "benign/benign (1)_mask_1.png"])
    for data_dir in (root, tmp_path):
        records = busi.find_images(data_dir)
        assert [record.file_name for record in records] == names
        assert [record.label for record in records] == ["benign", "malignant", "normal"]
    with caplog.at_level(logging.INFO):
        assert len(load_corpus(str(tmp_path))) == 3, "found by its layout"
    assert "corpus busi" in caplog.text
    assert load_corpus("busi", data_dir=str(root)).features["label"].names == ["normal", "benign", "malignant"]
    (tmp_path / "other").mkdir()
    with pytest.raises(CorpusError, match="not a BUSI download"):
        load_corpus("busi", data_dir=str(tmp_path / "other"))


def test_pneumonia_layout(tmp_path):
    names = [
        "train/NORMAL/IM-0115-0001.jpeg",
        "train/NORMAL/NORMAL2-IM-0383-0001.jpeg",
        "train/PNEUMONIA/person1000_bacteria_2931.jpeg",
        "train/PNEUMONIA/person1000_virus_1.jpeg",
        "test/NORMAL/IM-0001-0001.jpeg",
        "val/PNEUMONIA/person1946_bacteria_4874.jpeg",
    ]
    write_folder(tmp_path / "chest_xray", names)
    records = pneumonia.find_images(tmp_path)
    groups = {record.file_name: record.group for record in records}
    assert list(groups.values())[:4] == ["IM-0115", "NORMAL2-IM-0383", "person1000", "person1000"]
    assert {record.split for record in records} == {"train", "test", "validation"}
    dataset = load_corpus("pneumonia", data_dir=str(tmp_path))
    assert dataset["file_name"] == names[:4] and dataset["group"] == list(groups.values())[:4]


def test_covid_ct_layout(tmp_path):
    write_folder(tmp_path, ["COVID/Covid (1).png", "non-COVID/Non-Covid (1).png"])
    dataset = load_corpus("covid_ct", data_dir=str(tmp_path))
    assert [dataset.features["label"].int2str(label) for label in dataset["label"]] == ["non-COVID", "COVID"]
    assert covid_ct.find_root(tmp_path) == tmp_path


def test_gbcu_layout(tmp_path, caplog):
    write_folder(tmp_path, [f"imgs/im0000{i}.jpg" for i in range(1, 5)])
    write(tmp_path / "train.txt", b"im00002.jpg,2\nim00001.jpg,0\n")
    write(tmp_path / "test.txt", b"im00003.jpg,1\n\n")
    write(tmp_path / "bbox_annot.json", b"{}")
    with caplog.at_level(logging.WARNING):
        records = gbcu.find_images(tmp_path)
    assert [(record.file_name, record.label, record.split) for record in records] == [
        ("imgs/im00002.jpg", "malignant", "train"),
        ("imgs/im00001.jpg", "normal", "train"),
        ("imgs/im00003.jpg", "benign", "test"),
    ]
    assert "1 image(s) in imgs/ are in neither" in caplog.text
    assert load_corpus(str(tmp_path))["label"] == [2, 0]
    write(tmp_path / "test.txt", b"im00009.jpg,1\n")
    with pytest.raises(CorpusError, match=r"missing: imgs/im00009\.jpg"):
        gbcu.find_images(tmp_path)
    assert len(gbcu.find_images(tmp_path, bad_images="skip")) == 2
    write(tmp_path / "test.txt", b"im00003.jpg,7\n")
    with pytest.raises(CorpusError, match="'test.txt', line 1"):
        gbcu.find_images(tmp_path)


@needs_corpora
@pytest.mark.parametrize(
    ("name", "path", "counts", "splits"),
    [
        ("busi", "busi", {"benign": 437, "malignant": 210, "normal": 133}, {None}),
        ("pneumonia", "pneumonia", None, {"train", "test"}),
        ("covid_ct", "sars_cov_2_ct", {"COVID": 1252, "non-COVID": 1229}, {None}),
    ],
)
def test_real_corpora(name, path, counts, splits):
    records = CORPORA[name].find_images(REAL_CORPORA / path)
    assert {record.split for record in records} == splits
    if counts is not None:
        labels = [record.label for record in records]
        assert {label: labels.count(label) for label in set(labels)} == counts
    else:
        assert len(records) == 5840 and all(record.group for record in records)
    dataset = load_corpus(str(REAL_CORPORA / path))
    few = dataset.select(range(0, len(dataset), len(dataset) // 20))
    assert verify_images(few, num_channels=3) == (few, [])
    item = PretrainDataset(few, PLAIN, patch_size=16, num_channels=3)[3]
    assert item["pixel_values"].shape == (3, 32, 32)


# -------------------------------------------------------------------------------------------- Parquet, Hub, speckle


@pytest.fixture
def parquet_folder(tmp_path):
    """Parquet as `Dataset.to_parquet` writes it, beside other files of a prepared corpus."""
    out = tmp_path / "prepared"
    out.mkdir()
    for split, count in (("train", 5), ("test", 2)):
        images = [{"bytes": encode(grey(seed=seed)), "path": f"{split}/{seed}.png"} for seed in range(count)]
        columns = {"image": images, "label": [seed % 2 for seed in range(count)], "age": list(range(count))}
        features = datasets.Features(
            image=datasets.Image(), label=datasets.ClassLabel(names=["no", "yes"]), age=datasets.Value("int32")
        )
        datasets.Dataset.from_dict(columns, features=features).to_parquet(out / f"{split}-00000-of-00001.parquet")
    (out / "splits.json").write_text("{}")
    (out / "README.md").write_text("card")
    return out


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_folder(parquet_folder, streaming):
    dataset = load_corpus(str(parquet_folder), streaming=streaming)
    rows = list(dataset)
    assert isinstance(dataset, datasets.IterableDataset if streaming else datasets.Dataset)
    assert [row["file_name"] for row in rows] == [f"train/{seed}.png" for seed in range(5)]
    assert set(rows[0]) == {"image", "label", "file_name"} and isinstance(rows[0]["image"]["bytes"], bytes)
    assert dataset.features["label"].names == ["no", "yes"]
    assert len(list(load_corpus(str(parquet_folder), split="test", streaming=streaming))) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_without_paths_gets_numbered_names(tmp_path, streaming):
    features = datasets.Features(scan=datasets.Image(), other=datasets.Image())
    rows = {"scan": [{"bytes": encode(grey()), "path": None}] * 2, "other": [{"bytes": b"x", "path": None}] * 2}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(CorpusError, match=r"several image columns \(scan, other\).*image_column"):
        load_corpus(str(tmp_path), streaming=streaming)
    with pytest.raises(CorpusError, match="columns are scan, other"):
        load_corpus(str(tmp_path), image_column="scam", streaming=streaming)
    dataset = load_corpus(str(tmp_path), image_column="scan", streaming=streaming)
    assert [row["file_name"] for row in dataset] == ["train-0", "train-1"]
    assert next(iter(dataset))["image"]["bytes"] == encode(grey())


def test_hub_id_goes_to_load_dataset(parquet_folder, monkeypatch):
    load_dataset, asked = datasets.load_dataset, []

    def from_hub(path, **options):
        asked.append(path)
        return load_dataset("parquet", data_dir=str(parquet_folder), **options)

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    assert len(load_corpus("owner/name")) == 5
    assert asked == ["owner/name"]


@pytest.mark.parametrize("streaming", [False, True])
def test_speckle(tmp_path, streaming):
    dataset = load_corpus("speckle", streaming=streaming, speckle_images=10, image_size=32, cache_dir=str(tmp_path))
    rows = list(dataset)
    assert len(rows) == 10 and {"image", "label", "group", "file_name"} == set(rows[0])
    image = decode_image(rows[0]["image"], name=rows[0]["file_name"], num_channels=1)
    assert image.shape == (32, 32, 1)


# ------------------------------------------------------------------------------------------ checking and holding out


def test_every_readable_kind_passes(tmp_path):
    dataset = load_corpus(str(write_mixed_folder(tmp_path)))
    checked, bad = verify_images(dataset, num_channels=3)
    assert checked["file_name"] == dataset["file_name"] and bad == []
    items = PretrainDataset(checked, PLAIN, patch_size=8, num_channels=3)
    assert {tuple(items[i]["pixel_values"].shape) for i in range(len(items))} == {(3, 32, 32)}


def test_bad_images_are_named_or_skipped_and_counted(tmp_path, caplog):
    write_folder(tmp_path, [f"{i}.png" for i in range(4)])
    write(tmp_path / "1.png", truncated_png())
    write(tmp_path / "3.png", b"")
    dataset = load_corpus(str(tmp_path))
    with pytest.raises(
        BadImageError, match=r"'1\.png'.* 2 of 4 image\(s\) are bad \(the others: 3\.png\).*--bad_images skip"
    ):
        verify_images(dataset, num_channels=3)
    with caplog.at_level(logging.WARNING):
        kept, bad = verify_images(dataset, num_channels=3, bad_images="skip")
    assert kept["file_name"] == ["0.png", "2.png"]
    assert [name for name, _ in bad] == ["1.png", "3.png"] and "empty" in bad[1][1]
    assert "Left out 2 of 4" in caplog.text and "1.png, 3.png" in caplog.text
    with pytest.raises(BadImageError, match=r"'1\.png'"):
        PretrainDataset(dataset, PLAIN, patch_size=8, num_channels=3)[1]


def test_nothing_left_is_an_error(tmp_path):
    write(tmp_path / "1.png", b"")
    with pytest.raises(BadImageError, match="None of the 1 images"):
        verify_images(load_corpus(str(tmp_path)), num_channels=1, bad_images="skip")


def test_a_wrong_setting_is_never_skipped(tmp_path):
    write(tmp_path / "fine.png")
    dataset = load_corpus(str(tmp_path))
    with pytest.raises(ValueError, match=r"fine\.png.*cannot reach white_level=4095"):
        verify_images(dataset, num_channels=1, bad_images="skip", white_level=4095)
    exact = replace(ONE_CHANNEL, resize="none")
    with pytest.raises(ValueError, match="'fine.png' is 40 x 56"):
        verify_images(dataset, num_channels=1, bad_images="skip", transform=exact)


def table(count: int, groups: list | None = None) -> datasets.Dataset:
    columns = {"file_name": [f"{i}.png" for i in range(count)]}
    if groups is not None:
        columns["group"] = groups
    return datasets.Dataset.from_dict(columns)


@pytest.mark.parametrize(("held_out", "count"), [(0.1, 10), (0.5, 50), (7, 7), (1, 1)])
def test_held_out_images_are_disjoint_and_seeded(held_out, count):
    train, held = split_held_out(table(100), held_out, seed=3)
    assert len(held) == count and len(train) == 100 - count
    assert set(train["file_name"]).isdisjoint(held["file_name"])
    assert split_held_out(table(100), held_out, seed=3)[1]["file_name"] == held["file_name"]
    assert split_held_out(table(100), held_out, seed=4)[1]["file_name"] != held["file_name"]


def test_held_out_keeps_groups_together():
    groups = [f"p{i // 4}" if i < 80 else None for i in range(100)]
    train, held = split_held_out(table(100, groups), 0.3, seed=0)
    assert set(train["group"]) & set(held["group"]) <= {None}
    assert 26 <= len(held) <= 30 and len(train) + len(held) == 100
    train, held = split_held_out(table(8, ["a"] * 5 + ["b"] * 3), 1, seed=0)
    assert set(held["group"]) == {"b"}, "no group fits: the smallest"


def test_held_out_none_and_too_few():
    dataset = table(5)
    assert split_held_out(dataset, 0, seed=0) == (dataset, None)
    for held_out in (0.01, 5, 9, -1, 1.5, 0.99):
        with pytest.raises(ValueError, match=f"held_out.*{held_out}"):
            split_held_out(dataset, held_out, seed=0)
    with pytest.raises(ValueError, match="one group"):
        split_held_out(table(4, ["same"] * 4), 0.25, seed=0)


# ---------------------------------------------------------------------------------------------- feeding the training


@pytest.fixture
def images(tmp_path):
    return load_corpus(str(write_folder(tmp_path / "images", [f"{i:02d}.png" for i in range(10)])))
