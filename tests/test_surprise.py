"""The surprise map: masks, divergence against a plain calculation, and what is drawn of it."""

import numpy as np
import pytest
import torch
from helpers import encode, grey, write
from PIL import Image
from test_model import images, scrambled

import explain
from images.transform import ImageTransform
from judging.pictures import COLUMNS, OF_HEAD, draw_reconstructions
from judging.surprise import frame_of
from modeling_glcm_mae import cooccurrence_matrix, texture_surprise
from modeling_glcm_mae.surprise import hiding_noise
from training import explaining


@pytest.mark.parametrize("num_patches", [15, 36])
@pytest.mark.parametrize("mask_ratio", [0.05, 0.3, 0.6, 0.75, 0.9])
@pytest.mark.parametrize("num_masks", [1, 8])
def test_every_patch_is_hidden_about_equally_often(num_patches, mask_ratio, num_masks):
    hidden = num_patches - int(num_patches * (1 - mask_ratio))
    noise = hiding_noise(num_patches, mask_ratio, num_masks, seed=0)
    assert len(noise) >= num_masks and (noise.sum(1) == hidden).all()
    times = noise.sum(0)
    assert times.min() >= 1 and times.max() - times.min() <= 1
    assert torch.equal(noise, hiding_noise(num_patches, mask_ratio, num_masks, seed=0))
    assert not torch.equal(noise, hiding_noise(num_patches, mask_ratio, num_masks, seed=1))


def test_masks_that_hide_nothing_or_everything_are_refused():
    for mask_ratio in (0.0, 0.95):
        with pytest.raises(ValueError, match=f"mask_ratio {mask_ratio} hides (0|15) of 15 patches"):
            hiding_noise(15, mask_ratio, 8, seed=0)
    with pytest.raises(ValueError, match="num_masks must be at least 1, got 0"):
        hiding_noise(15, 0.5, 0, seed=0)


def test_surprise_against_a_plain_calculation(tiny_model):
    model = scrambled(tiny_model(glcm_head_levels=5, glcm_head_offsets=[[0, 2], [1, -1]], mask_ratio=0.6))
    pixel_values = images(2, height=24, width=40)  # 3 x 5 patches
    found = texture_surprise(model, pixel_values, num_masks=3, seed=4)
    patches = model.image_patches(pixel_values).mean(-1)
    true = cooccurrence_matrix(
        patches,
        levels=5,
        value_range=model.config.glcm_value_range,
        offsets=[[0, 2], [1, -1]],
        kernel="linear",
        symmetric=True,
        normalize=True,
    )
    divergences, predictions = [[] for _ in range(15)], [[] for _ in range(15)]
    for row in hiding_noise(15, 0.6, 3, seed=4):
        foretold = model.predict_cooccurrence(pixel_values, row.expand(2, -1))
        divergence = (torch.xlogy(true, true) - true * foretold.log()).sum((-2, -1)).mean(-1)
        for patch in row.nonzero().flatten().tolist():
            divergences[patch].append(divergence[:, patch])
            predictions[patch].append(foretold[:, patch])
    expected = torch.stack([torch.stack(values).mean(0) for values in divergences], dim=1).view(2, 3, 5)
    torch.testing.assert_close(found.divergence, expected)
    torch.testing.assert_close(found.true, true)
    torch.testing.assert_close(
        found.predicted, torch.stack([torch.stack(values).mean(0) for values in predictions], dim=1)
    )
    assert found.map_of(1).shape == (24, 40) and found.map_of(1)[9, 39] == found.divergence[1, 1, 4]
    frame = frame_of(found, 9)  # second row, last column
    assert frame.get_xy() == (31.5, 7.5) and (frame.get_width(), frame.get_height()) == (8, 8)


def test_a_model_without_a_head_is_refused(tiny_model):
    with pytest.raises(TypeError, match="got GLCMMAEModel: an export has it in subfolder='pretraining'"):
        texture_surprise(tiny_model().vit, images())
    with pytest.raises(ValueError, match="no texture head"):
        texture_surprise(tiny_model("mse"), images())


def test_pictures_get_three_columns_of_the_head(tiny_model, tmp_path):
    model, pixel_values = scrambled(tiny_model()), images(2)
    rebuilt = model.reconstruct(pixel_values)
    sizes = {}
    for name, found in (("without", None), ("with", texture_surprise(model, pixel_values))):
        file = tmp_path / f"{name}.png"
        draw_reconstructions(file, model.config, pixel_values, rebuilt, [0.5] * 3, [0.2] * 3, found)
        sizes[name] = Image.open(file).size
    per_column = sizes["without"][0] / len(COLUMNS)
    assert sizes["with"][0] == pytest.approx(per_column * (len(COLUMNS) + len(OF_HEAD)), abs=5)


@pytest.fixture
def encoder(tiny_model, tmp_path):
    """As an export of pretrain.py lies there, as far as it is read, of one channel; and images."""
    model = scrambled(tiny_model(num_channels=1))
    model.save_pretrained(tmp_path / "encoder" / "pretraining")
    ImageTransform(32, resize="squash", image_mean=(0.5,), image_std=(0.2,)).processor().save_pretrained(
        tmp_path / "encoder"
    )
    for index in range(2):
        write(tmp_path / "images" / f"{index}$x$.png", encode(grey(40, 40, seed=index)))
    return tmp_path / "encoder"


def test_the_script_draws_surprise_of_an_encoder(encoder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        explaining, "texture_surprise", lambda model, pixels: seen.append(pixels) or texture_surprise(model, pixels)
    )
    given = [
        "--method=surprise",
        f"--model_name_or_path={encoder}",
        f"--corpus={tmp_path / 'images'}",
        f"--output_dir={tmp_path / 'out'}",
    ]
    explain.main(given)
    drawn = sorted((tmp_path / "out").glob("*.png"))
    assert [path.name for path in drawn] == ["0000_0$x$.png", "0001_1$x$.png"]
    assert np.asarray(Image.open(drawn[0])).std() > 0
    expected = np.asarray(Image.open(tmp_path / "images" / "0$x$.png").convert("L").resize((32, 32), 3)) / 255
    assert seen[0].shape == (1, 1, 32, 32)
    assert np.abs(seen[0][0, 0].numpy() * 0.2 + 0.5 - expected).mean() < 0.02
    with pytest.raises(SystemExit, match="target is for method occlusion, got method 'surprise'"):
        explain.main([*given, "--target", "a"])


def test_an_encoder_without_a_head_is_one_message(encoder, tiny_model, tmp_path):
    given = ["--method=surprise", f"--corpus={tmp_path / 'images'}", f"--output_dir={tmp_path / 'out'}"]
    tiny_model("mse").save_pretrained(tmp_path / "plain" / "pretraining")
    with pytest.raises(SystemExit, match="plain' has no texture head, so it foretells no texture"):
        explain.main([*given, f"--model_name_or_path={tmp_path / 'plain'}"])
    with pytest.raises(SystemExit, match="cannot be opened"):
        explain.main([*given, f"--model_name_or_path={tmp_path / 'images'}"])
    assert not (tmp_path / "out").exists()
