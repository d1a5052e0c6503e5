"""One decoder: training, judging, explaining and the demo see the same pixels, and refuse the same files."""

import importlib
import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import datasets
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
import yaml
from helpers import encode, grey, picture, png16, write
from PIL import Image
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification
from transformers.image_utils import load_image

import explain
import finetune
import prepare_corpus
import pretrain
from corpora.load import load_corpus
from corpora.record import BadImageError
from images.check import verify_images, white_and_depth
from images.decode import decode_image
from images.transform import ImageTransform
from judging import summary
from training.feeding import ImagesAsEvaluated, PretrainDataset

PLAIN = ImageTransform(image_size=32)


def decode(data: bytes, num_channels: int) -> np.ndarray:
    return decode_image(data, name="scan.png", num_channels=num_channels)


def rgba_of(kind: str) -> tuple[Image.Image, np.ndarray]:
    """An image whose upper half is transparent over black, and what it is on white: `(40, 56)` in 0 to 255."""
    values, alpha = np.maximum(grey(), 1), np.full((40, 56), 255, np.uint8)
    alpha[:20], values[:20] = 0, 0
    on_white = np.where(alpha > 0, values, 255)
    if kind == "P":
        image = Image.fromarray(values, "P")
        image.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
        image.info["transparency"] = 0
        return image, on_white
    return Image.fromarray(np.dstack([values] * (1 if kind == "LA" else 3) + [alpha])), on_white


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white_for_training_and_processor_but_not_for_pipeline(kind):
    image, on_white = rgba_of(kind)
    data = encode(image)
    transform = ImageTransform(image_size=(40, 56), resize="none", image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    expected = torch.from_numpy(on_white / 255).float().expand(3, -1, -1)
    torch.testing.assert_close(transform(decode(data, 3)), expected, atol=1e-6, rtol=0)
    opened = Image.open(io.BytesIO(data))
    assert opened.mode == kind
    processed = transform.processor()(opened, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(processed, expected, atol=1e-6, rtol=0)
    # what `pipeline` opens a file with: documented in `decode_image` and in the cards
    assert (np.asarray(load_image(opened))[:20] == 0).all()
    if kind != "P":
        for refusing in (transform.processor(65535), replace(transform, image_mean=(0,), image_std=(1,)).processor()):
            with pytest.raises(ValueError):
                refusing(opened, return_tensors="pt")


def sources_that_are_refused() -> dict[str, bytes]:
    pages, white_is_zero = io.BytesIO(), io.BytesIO()
    tifffile.imwrite(pages, np.zeros((2, 8, 8), np.uint8), photometric="minisblack")
    tifffile.imwrite(white_is_zero, grey(bits=16), photometric="miniswhite")
    return {
        "2 pages": pages.getvalue(),
        "MINISWHITE": white_is_zero.getvalue(),
        "16 bits per channel in colour": png16(np.zeros((8, 8, 3), np.uint16)),
        r"Image size \(256000000 pixels\) exceeds limit": encode(Image.new("1", (16000, 16000))),
    }


@pytest.fixture
def demo(monkeypatch):
    """How hub_cards/space reads images; the page itself needs packages that are not installed here."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "hub_cards" / "space")
    return importlib.import_module("opened_models")


def test_what_training_refuses_the_evaluation_and_the_demo_refuse_with_the_same_words(demo):
    for reason, data in sources_that_are_refused().items():
        with pytest.raises(BadImageError, match=rf"'scan\.png'.*{reason}") as said:
            decode(data, 3)
        readers = [lambda data=data: ImagesAsEvaluated(rows(data), PLAIN)[0]]
        if "exceeds limit" not in reason:
            readers.append(lambda data=data: demo.read(data, "scan.png", 255))
        for read in readers:
            with pytest.raises(BadImageError) as again:
                read()
            assert str(again.value) == str(said.value)
    # A limit of its own, since anybody may send it anything.
    with pytest.raises(ValueError, match="scan.png has more than 64,000,000 pixels: make it smaller first"):
        demo.read(encode(Image.new("1", (16000, 16000))), "scan.png", 255)


def rows(*files: bytes, **more) -> datasets.Dataset:
    columns = {
        "image": [{"bytes": data, "path": None} for data in files],
        "file_name": ["scan.png"] * len(files),
        **more,
    }
    dataset = datasets.Dataset.from_dict(columns)
    return dataset.cast_column("image", datasets.Image(decode=False))


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_the_evaluation_and_the_demo_see_the_pixels_of_the_training(demo, kind):
    image, on_white = rgba_of(kind)
    transform = ImageTransform(image_size=32, resize="letterbox")
    trained = PretrainDataset(rows(encode(image)), transform, patch_size=8, num_channels=3, train=False)[0]
    judged = ImagesAsEvaluated(rows(encode(image)), transform)[0]
    torch.testing.assert_close(judged["pixel_values"], trained["pixel_values"], atol=2 / 255 * 1.01, rtol=0)
    shown, _ = demo.read(encode(image), "a.png", 255)
    np.testing.assert_array_equal(np.asarray(shown), np.repeat(on_white[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("values", "white", "shown"),
    [
        (np.full((8, 8), 51, np.uint8), 255, 51),
        (np.full((8, 8), 100, np.uint8), 200, 128),  # 8-bit files of which 200 was said to be white
        (np.full((8, 8), 51, np.uint8), 4095, 51),  # a file of 8 bits for a model of deeper ones
        (np.full((8, 8), 819, np.uint16), 4095, 51),
        (np.full((8, 8), 51 * 257, np.uint16), 255, 51),
        (np.full((8, 8), 0.2, np.float32), 1, 51),
    ],
)
def test_the_demo_reads_by_the_white_of_the_training(demo, values, white, shown):
    image, _ = demo.read(encode(values, "TIFF"), "a.tif", white)
    assert (np.asarray(image) == shown).all()


def test_a_strip_of_100_to_1_is_letterboxed_in_the_evaluation_and_named_by_the_demo(demo):
    transform = ImageTransform(image_size=32, resize="letterbox")
    data = encode(np.full((4, 400), 255, np.uint8))
    judged = ImagesAsEvaluated(rows(data), transform)[0]["pixel_values"]
    torch.testing.assert_close(judged, transform(decode(data, 3)))
    assert (judged[0] == 1).sum() == 32 and (judged == 1).any(2).sum() == 3  # a line of one pixel, on black
    network = demo.Network(MagicMock(config=MagicMock(num_channels=3)), transform.processor(), 255)
    with pytest.raises(ValueError, match="an image of 400 x 4 pixels cannot be resized for the model"):
        network.pixels(demo.read(data, "strip.png", 255)[0])


@pytest.mark.parametrize("values", [grey(bits=16).astype(np.float32) / 65535, grey(bits=16).astype(np.int32) // 256])
def test_saved_processor_refuses_float_and_32_bit_files_rather_than_cutting_them(values):
    white = float(values.max())
    transform = ImageTransform(image_size=(40, 56), resize="none")
    dataset = rows(encode(values, "TIFF"))
    assert white_and_depth(dataset, white) == (white, True)
    processor = transform.processor(white, deep=True)
    with pytest.raises(ValueError):
        processor(Image.open(io.BytesIO(encode(values, "TIFF"))), return_tensors="pt")
    judged = ImagesAsEvaluated(dataset, transform, white_level=white)[0]["pixel_values"][0].numpy()
    np.testing.assert_allclose(judged, values / white * 2 - 1, atol=1e-6)


def test_the_white_level_of_the_corpus_is_read_and_not_contradicted():
    dataset = rows(encode(np.full((8, 8), 0.5, np.float32), "TIFF"), white_level=[2.0])
    transform = ImageTransform(8, resize="none", image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    kept, _ = verify_images(dataset, num_channels=3)
    assert len(kept) == 1 and white_and_depth(dataset, None) == (2, True)
    assert (ImagesAsEvaluated(dataset, transform, white_level=None)[0]["pixel_values"] == 0.25).all()
    item = PretrainDataset(dataset, transform, patch_size=8, num_channels=3, train=False)[0]
    assert (item["pixel_values"] == 0.25).all()
    for read in (verify_images, PretrainDataset):
        options = {"transform": transform, "patch_size": 8} if read is PretrainDataset else {}
        with pytest.raises(ValueError, match=r"white_level=1 contradicts.*'scan\.png' was prepared with white_level=2"):
            read(dataset, num_channels=3, white_level=1.0, **options)[0]


TINY_MODEL = "--image_size 32 --patch_size 8 --hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2".split()
SHORT = "--intermediate_size 32 --per_device_train_batch_size 4 --use_cpu true --disable_tqdm true".split()


def test_a_corpus_of_float_files_keeps_its_white_level_through_folds_and_exports(tmp_path, monkeypatch):
    monkeypatch.setattr("judging.summary.bootstrap", partial(summary.bootstrap, num_resamples=10))
    for index in range(24):
        values = io.BytesIO()
        tifffile.imwrite(values, grey(40, 40, seed=index).astype(np.float32) / 510)
        write(tmp_path / "raw" / "ab"[index % 2] / f"{index}.tif", values.getvalue())
    corpus = tmp_path / "corpus"
    given = ["--data_dir", str(tmp_path / "raw"), "--output_dir", str(corpus), "--num_folds", "2"]
    prepare_corpus.main([*given, "--white_level", "0.5"])
    assert set(pd.concat(map(pd.read_parquet, corpus.glob("data/*.parquet"))).white_level) == {0.5}
    assert "white_level" in (corpus / "README.md").read_text()
    again = ["--corpus", "folder", "--data_dir", str(corpus), "--output_dir", str(tmp_path / "again")]
    with pytest.raises(SystemExit, match="white_level=1 contradicts the corpus"):
        prepare_corpus.main([*again, "--num_folds", "2", "--white_level", "1"])
    prepare_corpus.main([*again, "--num_folds", "2"])
    assert set(pd.concat(map(pd.read_parquet, (tmp_path / "again").glob("data/*.parquet"))).white_level) == {0.5}
    common = ["--corpus", str(corpus), "--fold", "0", *TINY_MODEL, *SHORT]
    decoder = "--decoder_hidden_size 16 --decoder_num_hidden_layers 1 --decoder_num_attention_heads 2".split()
    decoder += "--preset mse --held_out 0".split()
    with pytest.raises(SystemExit, match="white_level=1 contradicts the corpus"):
        pretrain.main(
            [*common, *decoder, "--output_dir", str(tmp_path / "no"), "--max_steps", "1", "--white_level", "1"]
        )
    pretrain.main([*common, *decoder, "--output_dir", str(tmp_path / "pretrain"), "--max_steps", "1"])
    finetune.main([*common, "--output_dir", str(tmp_path / "finetune"), "--num_train_epochs", "1"])
    image = Image.open(tmp_path / "raw" / "a" / "0.tif")
    for run in ("pretrain", "finetune"):
        export = tmp_path / run / "export"
        assert yaml.safe_load((tmp_path / run / "config.yaml").read_text())["derived"]["white_level"] == 0.5
        processor = AutoImageProcessor.from_pretrained(export)
        assert processor.white_level == 0.5 and processor.rescale_factor == pytest.approx(1 / 255)
        with pytest.raises(ValueError):
            processor(image, return_tensors="pt")
        assert "more than 8 bits" in (export / "README.md").read_text()


def test_explaining_leaves_bad_images_out_by_name(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(tmp_path / "model")
    PLAIN.processor().save_pretrained(tmp_path / "model")
    write(tmp_path / "images" / "a.png", encode(grey()))
    write(tmp_path / "images" / "b.png", encode(grey())[:200])
    write(tmp_path / "images" / "notes.txt", b"hello")
    given = ["--model_name_or_path", str(tmp_path / "model"), "--corpus", str(tmp_path / "images")]
    given += ["--output_dir", str(tmp_path / "out"), "--method", "rollout"]
    with pytest.raises(SystemExit, match=r"notes\.txt.*--bad_images skip"):
        explain.main(given)
    explain.main([*given, "--bad_images", "skip"])
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["0000_a.png"]
    (tmp_path / "images" / "notes.txt").unlink()
    with pytest.raises(SystemExit, match=r"'b\.png' cannot be decoded.*--bad_images skip"):
        explain.main(given)


def write_depths(root: Path, **files: np.ndarray) -> Path:
    """A folder of two classes, with 8 pictures of 8 bits each and `files` (TIFF) in class a."""
    for index in range(16):
        write(root / "ab"[index % 2] / f"{index:02d}.png", encode(picture(index, 64)))
    for name, values in files.items():
        write(root / "a" / f"{name}.tif", encode(values, "TIFF"))
    return root


def test_a_float_file_among_8_bit_ones_is_not_talked_about_in_a_circle(tmp_path, caplog):
    raw = write_depths(tmp_path / "raw", Mustermann=grey().astype(np.float32) / 255)
    given = ["--data_dir", str(raw), "--output_dir", str(tmp_path / "out"), "--num_folds", "2"]
    with pytest.raises(SystemExit, match=r"Mustermann\.tif.*give white_level.*of 8 or 16 bits, convert this one"):
        prepare_corpus.main(given)
    for level in ("1", "4095"):  # too low and too high for a file of 8 bits
        with pytest.raises(SystemExit, match=r"\.png.*white_level=.*only float or 32-bit files needed it"):
            prepare_corpus.main([*given, "--white_level", level, "--bad_images", "skip"])
    prepare_corpus.main([*given, "--bad_images", "skip"])
    assert "1 file(s) cannot be used and are left out: a/Mustermann.tif. The first: Image 'a/Muster" in caplog.text
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| files that cannot be read (left out) | 1 |" in report and "whose white is unknown`" in report
    assert "Mustermann" not in report
    kept, left_out = verify_images(load_corpus(str(raw)), num_channels=1, bad_images="skip")
    assert len(kept) == 16 and [name for name, _ in left_out] == ["a/Mustermann.tif"]


def test_a_folder_of_float_files_alone_asks_for_their_white_level(tmp_path):
    for name in "ab":
        write(tmp_path / "raw" / f"{name}.tif", encode(grey().astype(np.float32), "TIFF"))
    given = ["--data_dir", str(tmp_path / "raw"), "--output_dir", str(tmp_path / "out"), "--bad_images", "skip"]
    with pytest.raises(SystemExit, match=r"no image can be read. The first: .*a\.tif.*give white_level"):
        prepare_corpus.main(given)
    with pytest.raises(BadImageError, match="None of the 2 images can be read.*give white_level"):
        verify_images(load_corpus(str(tmp_path / "raw")), num_channels=1, bad_images="skip")


def test_a_corpus_of_two_depths_is_told_before_a_classifier_is_wanted(tmp_path, caplog):
    raw = write_depths(tmp_path / "raw", Mustermann=grey(bits=16), Musterfrau=grey(bits=16, seed=1))
    out = tmp_path / "out"
    prepare_corpus.main(["--data_dir", str(raw), "--output_dir", str(out), "--num_folds", "2"])
    (said,) = [record.message for record in caplog.records if "are mixed" in record.message]
    assert "(16 with white 255, such as '" in said and "; 2 with white 65535, such as 'a/Muster" in said
    assert "finetune.py refuses" in said and "make the 8-bit files 16-bit ones" in said
    report = json.loads((out / "report.json").read_text())
    assert report["white_levels"] == {"255": 16, "65535": 2} and len(report["findings"]["other_white"]) == 2
    text = (out / "report.md").read_text()
    assert "a mixture that finetune.py refuses (kept) | 2 |" in text
    assert "Muster" not in text + (out / "report.json").read_text() + (out / "README.md").read_text()
    caplog.clear()
    given = ["--data_dir", str(write_depths(tmp_path / "one depth")), "--output_dir", str(tmp_path / "same")]
    prepare_corpus.main([*given, "--num_folds", "2"])
    assert "mixed" not in caplog.text and "mixture" not in (tmp_path / "same" / "report.md").read_text()
