"""Position embeddings on other grids of patches, and what the decoder begins with."""

import math

import pytest
import torch
from test_model import assert_same_tensors, cut, fixed_noise, images, scrambled
from torch import nn
from torch.nn.functional import interpolate

from modeling_glcm_mae import GLCMMAEForPreTraining


def resampled(positions: torch.Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> torch.Tensor:
    table = positions[0, 1:].reshape(*grid, -1).permute(2, 0, 1)[None]
    table = interpolate(table, size=new_grid, mode="bicubic", align_corners=False)[0]
    return torch.cat([positions[:, :1], table.flatten(1).T[None]], dim=1)


@pytest.mark.parametrize(
    ("image_size", "new_size"),
    [
        (32, (48, 48)),
        (32, (40, 24)),
        (32, (24, 40)),
        (32, (16, 64)),  # as many patches as before, in another shape
        (112, (128, 128)),  # the grids of 224, 256 and 320 x 224 pixels in patches of 16
        (112, (160, 112)),
        ([24, 40], (24, 40)),
        ([24, 40], (40, 24)),
        ([24, 40], (48, 80)),
    ],
)
def test_interpolated_positions_equal_positions_put_in_by_hand(tiny_model, tiny_config, image_size, new_size):
    model = scrambled(tiny_model(image_size=image_size))
    with torch.no_grad():  # large enough that a misplaced patch cannot hide
        model.decoder.decoder_pos_embed.mul_(10)
        model.vit.embeddings.position_embeddings.mul_(10)
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    grid, new_grid = [tuple(side // 8 for side in sizes) for sizes in (sides, new_size)]

    by_hand = tiny_model(image_size=list(new_size))
    state = model.state_dict()
    for name in ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"):
        state[name] = resampled(state[name], grid, new_grid)
    by_hand.load_state_dict(state)

    pixel_values, noise = images(height=new_size[0], width=new_size[1]), fixed_noise(2, math.prod(new_grid))
    found = model(pixel_values, noise=noise, interpolate_pos_encoding=True)
    expected = by_hand(pixel_values, noise=noise)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=0)


@pytest.mark.parametrize("size", [(224, 224), (256, 256), (320, 224), (224, 320)])
def test_decoder_places_patches_rightly_at_real_sizes(tiny_model, size):
    # A decoder that passes its positions straight to the output: the prediction shows where it believes a patch to be.
    model = tiny_model("mse", image_size=224, patch_size=16, decoder_num_hidden_layers=0, decoder_hidden_size=64)
    decoder = model.decoder
    with torch.no_grad():
        decoder.decoder_embed.weight.zero_()
        decoder.mask_token.zero_()
        decoder.decoder_norm = nn.Identity()
        decoder.decoder_pred.weight.zero_()
        decoder.decoder_pred.weight[:64, :64] = torch.eye(64)
        positions = decoder.decoder_pos_embed
        positions.zero_()
        row, column = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
        positions[0, 1:, 0], positions[0, 1:, 1] = row.flatten(), column.flatten()
    outputs = model(images(1, height=size[0], width=size[1]), interpolate_pos_encoding=True)
    rows, columns = size[0] // 16, size[1] // 16
    shown = outputs.logits[0, :, :2].reshape(rows, columns, 2)
    # Torch's bicubic kernel keeps a ramp straight to 0.05 patches; at the border it repeats the outermost patch.
    row = ((torch.arange(rows) + 0.5) * 14 / rows - 0.5)[:, None].expand(rows, columns)
    column = ((torch.arange(columns) + 0.5) * 14 / columns - 0.5)[None].expand(rows, columns)
    expected = torch.stack([row, column], dim=-1)
    torch.testing.assert_close(shown[2:-2, 2:-2], expected[2:-2, 2:-2], rtol=0, atol=0.06)
    assert (shown - expected).abs().max() < 0.5
    assert outputs.loss.isfinite() and outputs.mask.shape == (1, rows * columns)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_reconstruct_shows_the_prediction_in_the_units_of_the_pixels(tiny_model, norm_pix_loss, height, width):
    model = scrambled(tiny_model("mse", norm_pix_loss=norm_pix_loss))
    pixel_values, noise = images(height=height, width=width), fixed_noise(2, height * width // 64)
    rebuilt = model.reconstruct(pixel_values, noise=noise)
    found = rebuilt.reconstruction
    assert found.shape == pixel_values.shape and found.dtype == pixel_values.dtype and not found.requires_grad
    outputs = model(pixel_values, noise=noise, interpolate_pos_encoding=True)
    target, expected = cut(pixel_values, 8).flatten(2), outputs.logits
    if norm_pix_loss:
        expected = expected * (target.var(-1, keepdim=True) + 1e-6).sqrt() + target.mean(-1, keepdim=True)
    torch.testing.assert_close(cut(found, 8).flatten(2), expected)

    pasted = cut(rebuilt.pasted, 8).flatten(2)
    masked = outputs.mask.bool()
    assert torch.equal(rebuilt.mask, outputs.mask)
    assert rebuilt.pixel_mask.shape == (2, 1, height, width)
    assert torch.equal(cut(rebuilt.pixel_mask, 8).flatten(2), masked[..., None].expand(-1, -1, 64))
    assert torch.equal(pasted[~masked], target[~masked])
    torch.testing.assert_close(pasted[masked], expected[masked])


def test_a_perfect_answer_reconstructs_the_image(tiny_model):
    model = tiny_model("mse", norm_pix_loss=True)
    target = model.image_patches(images())
    answer = model.logits_of_pixels(target, target).flatten(2)
    torch.testing.assert_close(model.pixels_of_logits(answer, target), target, rtol=0, atol=1e-4)
    assert model.reconstruction_loss(images(), answer, torch.ones(2, 16))["mse"] == 0


def test_reconstruct_masks_as_many_as_are_asked_for(tiny_model):
    model, noise = scrambled(tiny_model(mask_ratio=0.75)), fixed_noise()
    for mask_ratio, hidden in ((None, 12), (0.75, 12), (0.5, 8), (0.9, 15), (0, 0)):
        found = model.reconstruct(images(), noise=noise, mask_ratio=mask_ratio)
        assert torch.equal(found.mask, (noise.argsort(dim=1).argsort(dim=1) >= 16 - hidden).float())
        configured = tiny_model(mask_ratio=0.75 if mask_ratio is None else float(mask_ratio))
        configured.load_state_dict(model.state_dict())
        expected = configured(images(), noise=noise)
        assert torch.equal(model(images(), noise=noise, mask_ratio=mask_ratio).loss, expected.loss)
        torch.testing.assert_close(cut(found.reconstruction, 8).flatten(2), expected.logits)
    assert model.config.mask_ratio == 0.75


@pytest.mark.parametrize("mask_ratio", [-0.1, 1.0, math.nan])
def test_mask_ratio_of_a_call_is_checked(tiny_model, mask_ratio):
    with pytest.raises(ValueError, match=f"mask_ratio must be at least 0.0 and less than 1.0, got {mask_ratio}"):
        tiny_model().reconstruct(images(), mask_ratio=mask_ratio)


def test_reconstruct_refuses_part_patches(tiny_model):
    with pytest.raises(ValueError, match="divisible by patch_size"):
        tiny_model().reconstruct(images(height=36))


@pytest.mark.parametrize("preset", ["texture", "paper", "mse"])
def test_channels_begin_equal_and_those_of_a_checkpoint_stay(tiny_model, tmp_path, preset):
    model = tiny_model(preset, num_channels=3)
    predicted = model(images(), noise=fixed_noise()).logits.unflatten(-1, (-1, 3))
    assert torch.equal(predicted[..., 0], predicted[..., 1]) and torch.equal(predicted[..., 0], predicted[..., 2])
    assert predicted.std() > 0
    scrambled(model).save_pretrained(tmp_path)
    assert_same_tensors(GLCMMAEForPreTraining.from_pretrained(tmp_path), model.state_dict())
    # A head that starts new makes transformers initialise the decoder, though it is loaded.
    with_head = GLCMMAEForPreTraining.from_pretrained(tmp_path, glcm_head_weight=1.0)
    assert torch.equal(with_head.decoder.decoder_pred.weight, model.decoder.decoder_pred.weight)
