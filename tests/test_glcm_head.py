"""Tests of the texture head: modeling_glcm_mae.glcm_head, and the model that has one."""

import json
import math
import subprocess
import sys

import pytest
import torch
from test_hub_code import run_without_package
from test_model import assert_compiled_whole_and_once, assert_same_tensors, cut, fixed_noise, images, scrambled
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from modeling_glcm_mae import GLCMMAEConfig, GLCMMAEForPreTraining, cooccurrence_matrix, glcm_head
from modeling_glcm_mae.glcm_head import matrices_of_pairs, num_pairs, pair_distribution, pair_divergence, pair_index

RANGE = (-1.0, 1.0)
OFFSETS = [[0, 1], [1, 0], [1, 1], [1, -1], [0, -3], [-2, 1], [5, -4], [0, 6]]
MATRIX = {"kernel": "linear", "symmetric": True, "normalize": True}


def patches(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Noise that goes beyond RANGE at both ends."""
    return (torch.rand(*shape, dtype=dtype) - 0.5) * 3


# Targets


@pytest.mark.parametrize("levels", [2, 3, 8, 12])
@pytest.mark.parametrize("size", [(8, 8), (6, 9), (9, 7)])
@pytest.mark.parametrize("at_once", [1, 3000, 2**18])
def test_targets_are_the_cells_of_the_symmetric_matrix(levels, size, at_once, monkeypatch):
    monkeypatch.setattr(glcm_head, "CPU_WEIGHTS_AT_ONCE", at_once)
    image = patches(5, *size)
    kept = image.clone()
    offsets = [offset for offset in OFFSETS if abs(offset[0]) < size[0] and abs(offset[1]) < size[1]]
    found = pair_distribution(image, levels=levels, value_range=RANGE, offsets=offsets)
    expected = cooccurrence_matrix(image, levels=levels, value_range=RANGE, offsets=offsets, **MATRIX)
    assert found.shape == (5, len(offsets), num_pairs(levels)) and torch.equal(image, kept)
    torch.testing.assert_close(matrices_of_pairs(found, levels), expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(found.sum(-1), torch.ones(5, len(offsets), dtype=torch.float64))
    i, j = torch.triu_indices(levels, levels)  # row by row: the order of the pairs
    both = expected[..., i, j] * torch.where(i == j, 1, 2)
    torch.testing.assert_close(found, both, rtol=0, atol=1e-15)


def test_targets_by_hand():
    # Centres of three levels over (0, 3): 0.5, 1.5, 2.5. The pairs are (0.5, 1.5) and (1.5, 2.0).
    image = torch.tensor([[[0.5, 1.5, 2.0]]])
    found = pair_distribution(image, levels=3, value_range=(0, 3), offsets=[[0, 1]])
    assert found.tolist() == [[[0, 0.5, 0, 0.25, 0.25, 0]]]  # (0,0) (0,1) (0,2) (1,1) (1,2) (2,2)


def test_order_of_the_pairs():
    assert pair_index(3).tolist() == [[0, 1, 2], [1, 3, 4], [2, 4, 5]]
    assert [num_pairs(levels) for levels in (2, 3, 8)] == [3, 6, 36]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_targets_are_float32_whatever_autocast_says(dtype):
    image = patches(3, 8, 8, dtype=torch.float32).to(dtype).requires_grad_()
    arguments = {"levels": 8, "value_range": RANGE, "offsets": [[0, 1]]}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pair_distribution(image, **arguments)
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, pair_distribution(image.double(), **arguments).float(), rtol=0, atol=1e-6)


def test_no_patch_and_a_pixel_that_is_not_a_number():
    arguments = {"levels": 4, "value_range": RANGE, "offsets": [[0, 1], [1, 0]]}
    assert pair_distribution(torch.zeros(0, 8, 8), **arguments).shape == (0, 2, 10)
    image = torch.zeros(2, 8, 8)
    image[0, 3, 3] = math.nan
    found = pair_distribution(image, **arguments)
    assert found[0].isnan().any() and found[1].isfinite().all()


@pytest.mark.parametrize(
    ("image", "changed", "said"),
    [
        (torch.zeros(8, 8), {}, r"\(M, H, W\), got torch.float32 of shape \(8, 8\)"),
        (torch.zeros(1, 8, 8, dtype=torch.int64), {}, "floating point.*got torch.int64"),
        (torch.zeros(1, 8, 8), {"levels": 1}, "levels must be an integer of at least 2, got 1"),
        (torch.zeros(1, 8, 8), {"value_range": (1, 0)}, "value_range must be"),
        (torch.zeros(1, 8, 8), {"offsets": [[0, 8]]}, r"8 x 8 pixels\), got \[0, 8\]"),
    ],
)
def test_targets_refuse(image, changed, said):
    with pytest.raises(ValueError, match=said):
        pair_distribution(image, **{"levels": 8, "value_range": RANGE, "offsets": [[0, 1]]} | changed)


def test_operator_is_what_compiled_code_takes_it_for():
    for dtype in (torch.float64, torch.bfloat16):
        arguments = (patches(3, 8, 6).to(dtype), 4, list(RANGE), [0, 1, 2, -1])
        torch.library.opcheck(glcm_head._pair_distribution, arguments)


# The loss


def distributions(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).softmax(-1)


def test_gradcheck_of_the_loss():
    target = distributions(3, 2, 6)
    target[0, 0] = torch.tensor([0.5, 0, 0, 0.5, 0, 0])  # no pair of most levels
    logits = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pair_divergence, (logits, target))
    assert torch.autograd.gradgradcheck(pair_divergence, (logits, target))


def test_divergence_is_0_at_the_target_and_above_elsewhere():
    target = distributions(7, 2, 6)
    torch.testing.assert_close(pair_divergence(target.log() + 3, target), torch.zeros(7, dtype=torch.float64))
    assert (pair_divergence(distributions(7, 2, 6).log(), target) > 1e-3).all()
    # In nats, by hand: all of the mass where a quarter and a half were foretold, mean of two offsets.
    certain = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    foretold = torch.tensor([0.25, 0.5, 0.25]).log().expand(1, 2, 3)
    assert pair_divergence(foretold, certain).item() == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_who_cannot_tell_patches_apart_does_best_to_foretell_their_mean():
    target = distributions(9, 1, 6)
    best = target.mean(0, keepdim=True)
    logits = best.log().requires_grad_()
    loss = pair_divergence(logits.expand_as(target), target).mean()
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    for _ in range(5):
        other = best.log() + 0.1 * torch.randn_like(best)
        assert pair_divergence(other.expand_as(target), target).mean() > loss


def test_divergence_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 2, 6\), got \(1, 2, 6\)"):
        pair_divergence(torch.zeros(1, 2, 6), torch.zeros(3, 2, 6))


# The model


@pytest.fixture
def head_model(tiny_model):
    """`head_model(preset="texture", **overrides)`: a texture head alone, weights as no initialisation gives them."""

    def make(preset: str = "texture", **overrides) -> GLCMMAEForPreTraining:
        head = {"glcm_head_weight": 2.0, "glcm_head_levels": 5, "glcm_cls_weight": 0.0}
        return scrambled(tiny_model(preset, **head | overrides))

    return make


def without_head(model: GLCMMAEForPreTraining) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if "glcm_head" not in name}


@pytest.mark.parametrize("preset", ["texture", "paper", "mse"])
def test_without_a_weight_nothing_is_new(head_model, tiny_model, tiny_fields, preset):
    off, on = tiny_model(preset, glcm_head_weight=0.0, glcm_cls_weight=0.0), head_model(preset)
    assert off.state_dict().keys() == ViTMAEForPreTraining(ViTMAEConfig(**tiny_fields)).state_dict().keys()
    off.load_state_dict(without_head(on))
    found, expected = (model(images(), noise=fixed_noise()) for model in (on, off))
    assert "glcm_head_loss" not in expected and "glcm_head_logits" not in expected
    for name in ("logits", "glcm_loss", "ssim_loss", "mse_loss"):
        assert name not in expected or torch.equal(found[name], expected[name])
    assert torch.equal(found.loss, expected.loss + 2 * found.glcm_head_loss)
    torch.manual_seed(3)
    none = {"glcm_head_weight": 0.0, "glcm_cls_weight": 0.0}
    one = tiny_model(preset, **none)
    torch.manual_seed(3)
    other = tiny_model(preset, **none, glcm_head_levels=5, glcm_head_patches="masked")
    assert_same_tensors(other, one.state_dict())


@pytest.mark.parametrize("which", ["all", "masked"])
@pytest.mark.parametrize("channel", ["mean", 1])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_head_loss_by_hand(head_model, which, channel, norm_pix_loss):
    offsets = [[0, 2], [1, -1]]
    model = head_model(
        "mse",
        glcm_head_patches=which,
        glcm_head_offsets=offsets,
        glcm_channel=channel,
        norm_pix_loss=norm_pix_loss,
        glcm_value_range=[-1.0, 1.5],
    )
    pixel_values = images(2, height=24, width=40)
    outputs = model(pixel_values, noise=fixed_noise(2, 15), interpolate_pos_encoding=True)
    assert outputs.glcm_head_logits.shape == (2, 15, 2, 15)
    target = cut(pixel_values, 8)
    grey = target.mean(-1) if channel == "mean" else target[..., channel]
    true = cooccurrence_matrix(grey, levels=5, value_range=[-1.0, 1.5], offsets=offsets, **MATRIX)  # B N D K K
    log_foretold = matrices_of_pairs(outputs.glcm_head_logits.softmax(-1), 5).log()
    per_patch = (torch.xlogy(true, true) - true * log_foretold).sum((-2, -1)).mean(-1)  # B N
    expected = per_patch.mean() if which == "all" else per_patch[outputs.mask.bool()].mean()
    torch.testing.assert_close(outputs.glcm_head_loss, expected)
    torch.testing.assert_close(outputs.loss, outputs.mse_loss + 2 * expected)


def test_head_reads_the_last_hidden_state_of_each_patch(head_model):
    model, seen = head_model(), []
    model.decoder.decoder_norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    outputs = model(images(), noise=fixed_noise())
    expected = model.decoder.glcm_head(seen[0][:, 1:]).view(2, 16, 4, 15)
    assert torch.equal(outputs.glcm_head_logits, expected)


@pytest.mark.parametrize(("which", "value"), [("all", 1), ("masked", 0)])
def test_nothing_masked(head_model, which, value):
    model = head_model(glcm_head_patches=which, mask_ratio=0.0)
    outputs = model(images())
    assert outputs.glcm_loss.item() == 0 and (outputs.glcm_head_loss.item() > 0) == value
    outputs.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.decoder.parameters() if parameter.requires_grad)


def test_the_stage_of_plain_mse_reaches_every_parameter_with_0(head_model):
    model = head_model()
    outputs = model(images(), noise=fixed_noise(), texture=False)
    assert torch.equal(outputs.loss, outputs.mse_loss) and "glcm_head_loss" not in outputs
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert not model.decoder.glcm_head.weight.grad.any() and model.decoder.decoder_pred.weight.grad.any()


def test_a_head_alone_teaches_the_encoder(head_model):
    model = head_model("mse", mse_weight=0.0)
    outputs = model(images(), noise=fixed_noise())
    assert torch.equal(outputs.loss, 2 * outputs.glcm_head_loss)
    outputs.loss.backward()
    assert model.vit.embeddings.patch_embeddings.projection.weight.grad.any()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_loss_in_float32(head_model, dtype):
    model = head_model().train()
    with torch.autocast("cpu", dtype=dtype):
        outputs = model(images(), noise=fixed_noise())
        logits = outputs.glcm_head_logits
        again = model.reconstruction_loss(images(), outputs.logits, outputs.mask, glcm_head_logits=logits)
    assert logits.dtype == dtype and outputs.glcm_head_loss.dtype == outputs.loss.dtype == torch.float32
    wide = model.reconstruction_loss(images(), outputs.logits, outputs.mask, glcm_head_logits=logits.float())
    assert torch.equal(outputs.glcm_head_loss, wide["glcm_head"])
    assert torch.equal(again["glcm_head"], wide["glcm_head"])
    outputs.loss.backward()
    assert model.decoder.glcm_head.weight.grad.any() and model.decoder.glcm_head.weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_foretold_matrices_are_symmetric_and_sum_to_1(head_model, dtype):
    model = head_model().to(dtype)
    pixel_values, noise = images(height=40).to(dtype), fixed_noise(2, 20)
    found = model.predict_cooccurrence(pixel_values, noise)
    assert found.shape == (2, 20, 4, 5, 5) and not found.requires_grad and (found > 0).all()
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found, found.transpose(-1, -2), rtol=0, atol=0)
    torch.testing.assert_close(found.sum((-2, -1)), torch.ones(2, 20, 4, dtype=found.dtype))
    logits = model(pixel_values, noise, interpolate_pos_encoding=True).glcm_head_logits.to(found.dtype)
    torch.testing.assert_close(found[..., 1, 1], logits.softmax(-1)[..., 5])
    torch.testing.assert_close(found[..., 2, 0], logits.softmax(-1)[..., 2] / 2)


def test_a_model_without_a_head_foretells_nothing(tiny_model):
    with pytest.raises(ValueError, match="no texture head: its glcm_head_weight is 0"):
        tiny_model("mse").predict_cooccurrence(images())


def test_a_few_steps_teach_the_head(tiny_model):
    model = tiny_model("mse", glcm_head_weight=1.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        outputs = model(images(4), noise=fixed_noise(4))
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
        losses.append(outputs.glcm_head_loss.item())
    assert losses[-1] < 0.5 * losses[0]


# Checkpoints


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_save_and_load_give_the_same_output(head_model, tmp_path, shard):
    model = head_model(glcm_head_offsets=[[0, 2], [1, -1]], glcm_head_patches="masked")
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    loaded, report = GLCMMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_same_tensors(loaded, model.state_dict())
    names = [name for name in GLCMMAEConfig.__dataclass_fields__ if name.startswith("glcm_head_")]
    assert all(getattr(loaded.config, name) == getattr(model.config, name) for name in names)
    before, after = (m(images(), noise=fixed_noise()) for m in (model, loaded))
    assert torch.equal(before.loss, after.loss) and torch.equal(before.glcm_head_logits, after.glcm_head_logits)


def test_a_head_starts_new_beside_any_checkpoint(tiny_fields, tmp_path):
    stock = scrambled(ViTMAEForPreTraining(ViTMAEConfig(**tiny_fields)))
    stock.save_pretrained(tmp_path)
    model, report = GLCMMAEForPreTraining.from_pretrained(tmp_path, glcm_head_weight=2.0, output_loading_info=True)
    assert set(report["missing_keys"]) == {"decoder.glcm_head.weight", "decoder.glcm_head.bias"}
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    found = without_head(model)
    assert all(torch.equal(found[name], value) for name, value in stock.state_dict().items())
    bound = math.sqrt(6 / (24 + 4 * 36))
    weight, bias = model.decoder.glcm_head.weight, model.decoder.glcm_head.bias
    assert 0.99 * bound < weight.abs().max() <= bound and not bias.any()


def test_one_channel_keeps_the_head(head_model, tmp_path):
    model = head_model()
    model.save_pretrained(tmp_path)
    grey = GLCMMAEForPreTraining.from_pretrained(tmp_path, num_channels=1)
    image, noise = images(channels=1), fixed_noise()
    ours, theirs = grey(image, noise=noise), model(image.expand(-1, 3, -1, -1), noise=noise)
    torch.testing.assert_close(ours.glcm_head_loss, theirs.glcm_head_loss)


@pytest.mark.slow
@pytest.mark.plain
def test_custom_code_loads_without_the_package(head_model, tmp_path):
    folder = tmp_path / "glcm-mae-tiny"
    model = head_model()
    model.save_pretrained(folder)
    assert "glcm_head.py" in {path.name for path in folder.iterdir()}
    torch.save((images(), fixed_noise(), model.predict_cooccurrence(images(), fixed_noise())), tmp_path / "expected.pt")
    found = run_without_package(
        """
import torch
from transformers import AutoModelForPreTraining

pixel_values, noise, expected = torch.load(folder + "/../expected.pt")
ours = AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True)
ours.save_pretrained("again")
again = AutoModelForPreTraining.from_pretrained("again", trust_remote_code=True)
errors = [(m.predict_cooccurrence(pixel_values, noise) - expected).abs().max().item() for m in (ours, again)]
ours(pixel_values).loss.backward()
trained = ours.decoder.glcm_head.weight.grad.any().item()
print(json.dumps({"module": type(ours).__module__, "errors": errors, "trained": trained}))
""",
        folder,
        tmp_path,
    )
    assert found["module"].startswith("transformers_modules.") and found["trained"]
    assert max(found["errors"]) < 1e-6


# Compilation and sharding


@pytest.mark.slow
def test_compiled_whole_and_once(head_model):
    assert_compiled_whole_and_once(head_model(glcm_head_patches="masked").train())


@pytest.mark.parametrize("which", ["all", "masked"])
def test_every_stage_is_one_graph(head_model, which):
    model = head_model(glcm_head_patches=which)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for texture in (False, True):
        outputs = compiled(images(), noise=fixed_noise(), texture=texture)
        torch.testing.assert_close(outputs.loss, model(images(), noise=fixed_noise(), texture=texture).loss)


SHARDED = """
import json, sys
import torch
from torch.distributed.fsdp import fully_shard
from modeling_glcm_mae import GLCMMAEConfig, GLCMMAEForPreTraining

torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
torch.manual_seed(0)
model = GLCMMAEForPreTraining(GLCMMAEConfig.from_preset("texture", **json.loads(sys.argv[2]))).eval()
pixel_values, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
expected = model.predict_cooccurrence(pixel_values, noise=noise)
for layer in (*model.vit.layers, *model.decoder.decoder_layers):
    fully_shard(layer)
fully_shard(model)
torch.testing.assert_close(model.predict_cooccurrence(pixel_values, noise=noise), expected)
model(pixel_values).loss.backward()
assert model.decoder.glcm_head.weight.grad.full_tensor().any()
"""


@pytest.mark.slow
def test_a_sharded_model_foretells_and_learns(tiny_fields, tmp_path):
    fields = json.dumps(tiny_fields | {"glcm_head_weight": 1.0})
    command = [sys.executable, "-c", SHARDED, str(tmp_path / "store"), fields]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_configuration_checks_the_head_that_is_assigned_later(tiny_config):
    config = tiny_config(glcm_head_weight=1.0)
    config.glcm_head_offsets.append([0, 99])
    with pytest.raises(Exception, match=r"glcm_head_offsets must be shorter than patch_size .*99"):
        GLCMMAEForPreTraining(config)
    assert [0, 99] not in GLCMMAEConfig().glcm_head_offsets
