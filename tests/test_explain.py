"""Heat maps where the right answer is known, and the script."""

import hashlib
import json

import datasets
import numpy as np
import pytest
import torch
import yaml
from helpers import encode, grey, picture, write
from matplotlib.figure import Figure
from PIL import Image
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification

import explain
from hub.export import write_export
from images.arguments import PrepareArguments
from images.chosen import spread
from images.splits import load_prepared
from images.transform import ImageTransform
from judging.overlay import attention_rollout, occlusion_map
from output_folder import WRITTEN_LIST
from prepare_corpus import prepare
from training import explaining
from training.models import with_mean_pooling

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def model() -> ViTForImageClassification:
    config = ViTConfig(image_size=32, patch_size=8, id2label={0: "a", 1: "b"}, attn_implementation="eager", **SIZES)
    return ViTForImageClassification(config).eval()


class OnePatch(torch.nn.Module):
    """Answers class 1 by the mean of the pixels 8..16 x 16..24 alone."""

    def forward(self, pixel_values):
        score = pixel_values[:, :, 8:16, 16:24].mean(dim=(1, 2, 3))
        return type("Output", (), {"logits": torch.stack([torch.zeros_like(score), score], dim=1)})


def test_occlusion_finds_the_patch_that_decides():
    image = torch.full((3, 32, 32), 2.0)
    heat = occlusion_map(OnePatch(), image, 1, window=8, stride=8, batch_size=5)
    fall = torch.tensor(2.0).sigmoid() - 0.5
    expected = torch.zeros(32, 32)
    expected[8:16, 16:24] = fall
    torch.testing.assert_close(heat, expected)
    torch.testing.assert_close(occlusion_map(OnePatch(), image, 0, window=8, stride=8), -expected)


def test_occlusion_with_overlap_covers_every_pixel():
    heat = occlusion_map(OnePatch(), torch.ones(3, 32, 32), 1, window=12, stride=5)
    assert heat.shape == (32, 32) and torch.isfinite(heat).all()
    assert heat[8:16, 16:24].mean() > 2 * heat.mean()
    with pytest.raises(ValueError, match="window must be 1 to 32"):
        occlusion_map(OnePatch(), torch.ones(3, 32, 32), 1, window=40, stride=5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_rollout_against_a_plain_calculation(model, pooling):
    if pooling == "mean":
        model = with_mean_pooling(model)
        model.set_attn_implementation("eager")
        model.eval()
    image = torch.randn(3, 32, 32)
    with torch.no_grad():
        attentions = model(pixel_values=image[None], output_attentions=True).attentions
    rolled = np.eye(17)
    for attention in attentions:
        mixed = 0.5 * attention[0].mean(0).double().numpy() + 0.5 * np.eye(17)
        rolled = mixed / mixed.sum(1, keepdims=True) @ rolled
    expected = (rolled[0] if pooling == "cls" else rolled[1:].mean(0))[1:].reshape(4, 4)
    heat = attention_rollout(model, image)
    np.testing.assert_allclose(heat, expected / expected.sum(), rtol=1e-5)


def test_a_classifier_of_the_mean_token_is_opened_as_such(model, tmp_path, monkeypatch):
    mean = with_mean_pooling(model).eval()
    mean.save_pretrained(tmp_path / "model")
    ImageTransform(32, resize="squash").processor().save_pretrained(tmp_path / "model")
    write(tmp_path / "images" / "0.png", encode(grey()))
    seen = []
    monkeypatch.setattr(explaining, "_draw", lambda *given: seen.append(given[-1]))
    explain.main(
        [
            f"--{name}={tmp_path / value}"
            for name, value in (("model_name_or_path", "model"), ("corpus", "images"), ("output_dir", "o"))
        ]
    )
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    image = Image.open(tmp_path / "images" / "0.png").convert("RGB")
    with torch.no_grad():
        expected = mean(**processor(images=image, return_tensors="pt")).logits.softmax(1)[0]
    np.testing.assert_allclose(seen[0], expected, atol=1e-5)


def test_the_script_draws_an_overlay_an_image(model, tiny_model, tmp_path, caplog):
    caplog.set_level("INFO")
    model.save_pretrained(tmp_path / "model")
    ImageTransform(32, resize="squash").processor().save_pretrained(tmp_path / "model")
    for index in range(4):
        write(tmp_path / "images" / f"{index}.png", encode(grey(seed=index)))
    for method in ("occlusion", "rollout"):
        options = {"model_name_or_path": "model", "corpus": "images", "output_dir": method}
        given = [text for name, value in options.items() for text in (f"--{name}", str(tmp_path / value))]
        explain.main([*given, "--method", method, "--max_images", "2"])
        pictures = sorted((tmp_path / method).glob("*.png"))
        assert [path.name for path in pictures] == ["0000_0.png", "0001_2.png"]
        assert np.asarray(Image.open(pictures[0])).std() > 0
    assert caplog.messages.count("2 of 4 images, evenly spread (--max_images)") == 2
    write(tmp_path / "rollout" / "mine.txt", b"")
    explain.main([*given, "--method", "rollout", "--max_images", "1"])
    assert {path.name for path in (tmp_path / "rollout").iterdir()} == {"0000_0.png", "mine.txt", WRITTEN_LIST}
    with pytest.raises(SystemExit, match="images holds files that this recipe did not draw: give a new folder"):
        explain.main([*given, "--output_dir", str(tmp_path / "images")])
    write_export(
        tmp_path / "export",
        tiny_model("texture"),
        AutoImageProcessor.from_pretrained(tmp_path / "model"),
        {},
        [],
        {"title": "t", "repo_id": "r"},
    )
    before = {path: path.read_bytes() for path in (tmp_path / "export").rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match="export holds files that this recipe did not draw"):
        explain.main([*given, "--output_dir", str(tmp_path / "export")])
    assert {path: path.read_bytes() for path in (tmp_path / "export").rglob("*") if path.is_file()} == before
    with pytest.raises(SystemExit, match="target must be one of a, b"):
        explain.main([*given, "--target", "c"])
    with pytest.raises(SystemExit, match="is a classifier .*: method surprise takes the encoder that pretrain.py exp"):
        explain.main([*given, "--method", "surprise"])
    model.base_model.save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match="is a ViTModel; method occlusion takes a classifier .* there is method surp"):
        explain.main([*given, "--method", "occlusion"])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A corpus of 12 images of class a and 36 of class b, three folds."""
    root = tmp_path_factory.mktemp("corpus")
    for index in range(48):
        write(root / "raw" / "abbb"[index % 4] / f"{index:02d}.png", encode(picture(index)))
    given = PrepareArguments(data_dir=str(root / "raw"), output_dir=str(root / "data"), num_folds=3)
    return prepare(given)


def saved(model, folder, fold: str | None, corpus: str = "data", **of_data: str):
    model.save_pretrained(folder)
    ImageTransform(32, resize="squash").processor().save_pretrained(folder)
    if fold is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"fold": fold, "corpus": corpus, **of_data}}))
    return folder


@pytest.mark.parametrize(
    ("of_model", "asked", "shown"), [("1", None, 1), ("1", "2", 2), (None, "0", 0), (None, None, None)]
)
def test_of_a_prepared_corpus_the_test_part_of_the_models_fold_is_drawn(
    model, prepared, tmp_path, caplog, of_model, asked, shown
):
    folder = saved(model, tmp_path / "model", of_model)
    given = ["--model_name_or_path", str(folder), "--corpus", str(prepared), "--output_dir", str(tmp_path / "out")]
    explain.main([*given, "--method", "rollout", "--max_images", "8", *(["--fold", asked] if asked else [])])
    drawn = {path.stem[5:] for path in (tmp_path / "out").glob("*.png")}
    splits = json.loads((prepared / "splits.json").read_text())
    allowed = splits["images"] if shown is None else splits["folds"][shown]["test"]
    assert len(drawn) == 8 and drawn <= {name.removesuffix(".png") for name in allowed}
    assert ("does not tell its fold: its training images are drawn too" in caplog.text) == (shown is None)
    parts, classes = load_prepared(str(prepared), None, str(shown or 0))
    every = datasets.concatenate_datasets(list(parts.values()))
    labels = dict(zip(every["file_name"], every["label"], strict=True))
    assert sorted(classes[labels[f"{name}.png"]] for name in drawn) == 4 * ["a"] + 4 * ["b"]  # both classes alike


def test_an_image_that_the_model_has_seen_is_said_to_be_one(model, tmp_path, monkeypatch, caplog):
    folder, titles = saved(model, tmp_path / "model", None), []
    files = [write(tmp_path / "images" / f"{index}.png", encode(grey(seed=index))) for index in range(3)]
    monkeypatch.setattr(explaining, "_draw", lambda *given: titles.append(given[1]))
    given = ["--model_name_or_path", str(folder), "--corpus", str(tmp_path / "images"), "--method", "rollout"]
    for listed, expected in (([1], ["0.png", "1.png\nseen in training or validation", "2.png"]), ([], None)):
        titles.clear()
        caplog.clear()
        digests = [hashlib.sha256(files[index].read_bytes()).hexdigest() for index in listed]
        (folder / "training_images.txt").write_text("".join(f"{digest}\n" for digest in digests))
        explain.main([*given, "--output_dir", str(tmp_path / "out")])
        assert titles == (expected or ["0.png", "1.png", "2.png"])
        assert ("has seen 1 of these 3 images" in caplog.text) == bool(listed)
    caplog.set_level("INFO")
    (folder / "training_images.txt").unlink()
    explain.main([*given, "--output_dir", str(tmp_path / "out")])
    assert f"{folder} does not tell which images it has seen" in caplog.text


@pytest.mark.parametrize("other", [{"corpus": "another"}, {"splits_file": "other.json"}])
def test_a_fold_of_other_splits_is_another_fold(model, prepared, tmp_path, caplog, other):
    folder = saved(model, tmp_path / "model", "1", **other)
    given = ["--model_name_or_path", str(folder), "--corpus", str(prepared), "--output_dir", str(tmp_path / "out")]
    explain.main([*given, "--method", "rollout", "--max_images", "1"])
    assert "does not tell its fold" in caplog.text


def test_pictures_share_one_scale_and_tell_label_and_probability(model, prepared, tmp_path, monkeypatch):
    folder = saved(model, tmp_path / "model", "0")
    seen = []
    monkeypatch.setattr(explaining, "_draw", lambda *given: seen.append(given))
    given = ["--model_name_or_path", str(folder), "--corpus", str(prepared), "--output_dir", str(tmp_path / "out")]
    for method in ("occlusion", "rollout"):
        seen.clear()
        explain.main([*given, "--method", method, "--max_images", "3"])
        titles, limits, heats = ([one[place] for one in seen] for place in (1, 4, 6))
        assert len(set(limits)) == 1 and {title.split("\n")[1] for title in titles} == {"label: a", "label: b"}
        low, high = limits[0]
        assert all(low <= heat.min() and heat.max() <= high for heat in heats)
        if method == "occlusion":  # an untrained model: what changes nothing is not painted in full colour
            assert max(np.abs(heat).max() for heat in heats) < 0.1 and (low, high) == (-0.1, 0.1)


@pytest.mark.parametrize("depth_of_model", [8, 16])
def test_images_of_another_depth_than_the_models_need_a_white_level(model, tmp_path, monkeypatch, depth_of_model):
    model.save_pretrained(tmp_path / "model")
    white = {8: 255, 16: 65535}
    ImageTransform(32, resize="squash").processor(white[depth_of_model]).save_pretrained(tmp_path / "model")
    values = grey()
    write(tmp_path / "8" / "a.png", encode(values))
    write(tmp_path / "16" / "a.png", encode(values.astype(np.uint16) * 257))  # the same picture
    shown = []
    monkeypatch.setattr(explaining, "_draw", lambda *given: shown.append(given[2]))

    def run(depth, *more):
        given = [("model_name_or_path", "model"), ("corpus", depth), ("output_dir", f"out_{depth}")]
        explain.main([*(f"--{name}={tmp_path / value}" for name, value in given), "--method=rollout", *more])

    other = "8" if depth_of_model == 16 else "16"
    with pytest.raises(SystemExit, match=r"'a\.png'.*image processor.*to its depth, or give theirs as white_level$"):
        run(other)
    with pytest.raises(SystemExit, match=r"'a\.png' has the grey value .* allowed are 0 to white_level=17"):
        run(other, "--white_level=17")
    run(other, f"--white_level={white[int(other)]}")
    run(str(depth_of_model))
    np.testing.assert_allclose(*shown, atol=1e-6)


@pytest.mark.filterwarnings("error:constrained_layout")
@pytest.mark.parametrize("method", ["occlusion", "surprise"])
def test_no_text_of_a_picture_is_cut_off_or_written_over_another(model, tiny_model, tmp_path, monkeypatch, method):
    if method == "surprise":
        model = tiny_model()
        model.save_pretrained(tmp_path / "model" / "pretraining")
    model.config.id2label = {0: "benign " + 6 * "fibroadenoma_", 1: "malignant"}
    saved(model, tmp_path / "model", None)
    for name in ("short", 5 * "name_of_a_study_", 15 * "name_of_a_study_"):
        write(tmp_path / "images" / "a_class" / f"{name}.png", encode(grey()))
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *given, **how: figures.append(figure) or save(figure, *given))
    given = [("model_name_or_path", "model"), ("corpus", "images"), ("output_dir", "out")]
    explain.main([*(f"--{name}={tmp_path / value}" for name, value in given), f"--method={method}"])
    assert len(figures) == 3
    for figure in figures:
        titles = [text for axis in figure.axes for text in [axis.title] if text.get_text()] + [figure._suptitle]
        boxes = [text.get_window_extent() for text in titles]
        assert "a_class/" in titles[-1].get_text() and len(boxes) > 2
        assert all(0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
        assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index])


def test_images_are_spread_over_the_classes():
    assert spread([0, 0, 0, 0], 2) == [0, 2]
    assert spread([0, 1, 1, 1, 1, 1], 4) == [0, 1, 2, 4]
    assert spread([None, 1, None, 1], 3) == [0, 1, 2]
