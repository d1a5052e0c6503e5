"""The head of the CLS token, in the model. Its fields: test_config.py; its training: test_pretrain_head.py."""

import json
import subprocess
import sys

import pytest
import torch
from test_glcm_head import MATRIX, SHARDED
from test_model import assert_same_tensors, fixed_noise, images, scrambled
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from modeling_glcm_mae import GLCMMAEForPreTraining, cooccurrence_matrix
from modeling_glcm_mae.glcm_head import matrices_of_pairs


@pytest.fixture
def cls_model(tiny_model):
    """`cls_model(preset="texture", **overrides)`, with the head and weights as no initialisation gives them."""

    def make(preset: str = "texture", **overrides) -> GLCMMAEForPreTraining:
        fields = {"glcm_cls_weight": 3.0, "glcm_cls_tiles": 2, "glcm_head_levels": 5}
        return scrambled(tiny_model(preset, **fields | overrides))

    return make


@pytest.mark.parametrize("preset", ["texture", "paper", "mse"])
def test_without_a_weight_nothing_is_new(cls_model, tiny_model, tiny_fields, preset):
    off, on = tiny_model(preset, glcm_head_levels=5, glcm_cls_weight=0.0), cls_model(preset)
    off.load_state_dict({name: value for name, value in on.state_dict().items() if "glcm_cls_head" not in name})
    found, expected = (model(images(), noise=fixed_noise()) for model in (on, off))
    assert "glcm_cls_loss" not in expected and "glcm_cls_logits" not in expected
    for name in ("logits", "glcm_loss", "ssim_loss", "mse_loss", "glcm_head_loss", "glcm_head_logits"):
        assert name not in expected or torch.equal(found[name], expected[name])
    assert torch.equal(found.loss, expected.loss + 3 * found.glcm_cls_loss)
    if preset == "mse":
        assert off.state_dict().keys() == ViTMAEForPreTraining(ViTMAEConfig(**tiny_fields)).state_dict().keys()


@pytest.mark.parametrize("channel", ["mean", 1])
@pytest.mark.parametrize("size", [(24, 40), (40, 24)])  # in 3 x 3 tiles of 8 x 13: a column is left out
def test_loss_by_hand(cls_model, size, channel):
    offsets, value_range = [[0, 2], [1, -1]], [-1.0, 1.5]
    model = cls_model(
        "mse",
        glcm_cls_tiles=3,
        glcm_head_offsets=offsets,
        glcm_channel=channel,
        glcm_value_range=value_range,
    )
    pixel_values = images(2, height=size[0], width=size[1])
    outputs = model(pixel_values, noise=fixed_noise(2, 15), interpolate_pos_encoding=True)
    assert outputs.glcm_cls_logits.shape == (2, 9, 2, 15)
    grey = pixel_values.mean(1) if channel == "mean" else pixel_values[:, channel]
    height, width = size[0] // 3, size[1] // 3
    foretold = matrices_of_pairs(outputs.glcm_cls_logits.softmax(-1), 5)
    total = 0.0
    for row in range(3):
        for column in range(3):
            tile = grey[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
            true = cooccurrence_matrix(tile, levels=5, value_range=value_range, offsets=offsets, **MATRIX)  # B D K K
            cross = true * foretold[:, 3 * row + column].log()
            total = total + (torch.xlogy(true, true) - cross).sum((-2, -1)).mean()
    torch.testing.assert_close(outputs.glcm_cls_loss, total / 9)
    torch.testing.assert_close(outputs.loss, outputs.mse_loss + 3 * total / 9)


def test_it_reads_the_token_that_a_classifier_reads(cls_model):
    model = cls_model()
    outputs = model(images(), noise=fixed_noise())
    token = model.vit(images(), noise=fixed_noise()).last_hidden_state[:, 0]
    assert torch.equal(outputs.glcm_cls_logits, model.decoder.glcm_cls_head(token).view(2, 4, 4, 15))


def test_it_alone_teaches_the_encoder(cls_model):
    model = cls_model("mse", mse_weight=0.0)
    outputs = model(images(), noise=fixed_noise())
    assert torch.equal(outputs.loss, 3 * outputs.glcm_cls_loss)
    outputs.loss.backward()
    assert model.vit.embeddings.cls_token.grad.any()
    assert model.vit.embeddings.patch_embeddings.projection.weight.grad.any()
    assert not model.decoder.decoder_pred.weight.grad.any()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_the_whole_image_counts_whatever_is_masked(cls_model):
    model = cls_model("mse", mask_ratio=0.0)
    outputs = model(images())
    assert outputs.mse_loss.item() == 0 and outputs.glcm_cls_loss.item() > 0


def test_the_stage_of_plain_mse_reaches_every_parameter_with_0(cls_model):
    model = cls_model(glcm_head_weight=0.0)
    outputs = model(images(), noise=fixed_noise(), texture=False)
    assert torch.equal(outputs.loss, outputs.mse_loss) and "glcm_cls_loss" not in outputs
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert not model.decoder.glcm_cls_head.weight.grad.any() and model.decoder.decoder_pred.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_loss_in_float32(cls_model, dtype):
    model = cls_model("mse")
    with torch.autocast("cpu", dtype):
        outputs = model(images(), noise=fixed_noise())
    assert outputs.glcm_cls_logits.dtype == dtype and outputs.glcm_cls_loss.dtype == torch.float32
    judged = model.reconstruction_loss(
        images(), outputs.logits, outputs.mask, glcm_cls_logits=outputs.glcm_cls_logits.float()
    )
    assert torch.equal(outputs.glcm_cls_loss, judged["glcm_cls"])


def test_targets_are_float32_whatever_the_pixels_are(cls_model):
    model, pixel_values = cls_model("mse"), images().bfloat16()
    outputs = model(images(), noise=fixed_noise())
    found, expected = (
        model.reconstruction_loss(x, outputs.logits, outputs.mask, glcm_cls_logits=outputs.glcm_cls_logits)["glcm_cls"]
        for x in (pixel_values, pixel_values.float())
    )
    assert torch.equal(found, expected)


def test_an_image_in_too_small_tiles_is_refused(cls_model):
    model = cls_model("mse", glcm_head_offsets=[[0, 7]])
    with pytest.raises(
        ValueError, match=r"glcm_cls_tiles \(2\) cuts images of 16 x 8 into tiles of 8 x 4 .*\[\[0, 7\]\]"
    ):
        model(images(height=16, width=8), interpolate_pos_encoding=True)


def test_a_few_steps_teach_it(tiny_model):
    torch.manual_seed(0)
    model = tiny_model("mse", mse_weight=0.0, glcm_cls_weight=1.0, glcm_cls_tiles=2).train()
    pixel_values = images() * torch.tensor([0.2, 2.0]).view(2, 1, 1, 1)  # one image of little contrast, one of much
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        losses.append(model(pixel_values, noise=fixed_noise()).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    # Less than what one answer for both images costs.
    true = model.tile_distribution(pixel_values)
    constant = (torch.xlogy(true, true) - torch.xlogy(true, true.mean(0, keepdim=True))).sum(-1).mean()
    assert losses[-1] < 0.5 * constant < losses[0]


def test_save_and_load_give_the_same_output(cls_model, tmp_path):
    model = cls_model()
    model.save_pretrained(tmp_path)
    loaded, report = GLCMMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()) and loaded.config.glcm_cls_tiles == 2
    assert_same_tensors(loaded, model.state_dict())
    found, expected = (m(images(), noise=fixed_noise()) for m in (loaded, model))
    assert torch.equal(found.glcm_cls_logits, expected.glcm_cls_logits) and torch.equal(found.loss, expected.loss)


def test_every_stage_is_one_graph(cls_model):
    model = cls_model()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for texture in (False, True):
        outputs = compiled(images(), noise=fixed_noise(), texture=texture)
        torch.testing.assert_close(outputs.loss, model(images(), noise=fixed_noise(), texture=texture).loss)


@pytest.mark.slow
def test_a_sharded_model_learns(tiny_fields, tmp_path):
    fields = json.dumps(tiny_fields | {"glcm_cls_weight": 1.0, "glcm_cls_tiles": 2})
    script = SHARDED + "assert model.decoder.glcm_cls_head.weight.grad.full_tensor().any()\n"
    command = [sys.executable, "-c", script, str(tmp_path / "store"), fields]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
