"""Tests of modeling_glcm_mae.modeling_glcm_mae."""

import functools
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from modeling_glcm_mae import (
    GLCMMAEForPreTraining,
    GLCMMAEForPreTrainingOutput,
    GLCMMAEModel,
    glcm_loss,
    ssim_loss,
    texture_surprise,
)

PRESETS = ["texture", "paper", "mse"]


def images(batch: int = 2, channels: int = 3, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Noise in the range of normalised pixels."""
    noise = torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))
    return noise * 4 - 1.9


def fixed_noise(batch: int = 2, patches: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, patches, generator=torch.Generator().manual_seed(seed))


def scrambled(model: nn.Module) -> nn.Module:
    """Give every tensor, positions included, values that no initialisation gives."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def cut(image: torch.Tensor, p: int) -> torch.Tensor:
    """Patches `(B, N, p, p, C)` of images `(B, C, H, W)`, row by row, by slicing."""
    rows, columns = range(0, image.shape[2], p), range(0, image.shape[3], p)
    return torch.stack([image[:, :, y : y + p, x : x + p].permute(0, 2, 3, 1) for y in rows for x in columns], dim=1)


def assert_same_tensors(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


# Initialisation


def sin_cos(rows: int, columns: int, dim: int) -> torch.Tensor:
    """MAE's positions, entry by entry: half of the vector for the column, half for the row; sines, then cosines."""
    table = torch.zeros(1 + rows * columns, dim, dtype=torch.float64)  # CLS is zero
    quarter = dim // 4
    for y in range(rows):
        for x in range(columns):
            for half, place in enumerate((x, y)):
                for i in range(quarter):
                    angle = place / 10000 ** (i / quarter)
                    table[1 + y * columns + x, half * 2 * quarter + i] = math.sin(angle)
                    table[1 + y * columns + x, half * 2 * quarter + quarter + i] = math.cos(angle)
    return table.float()[None]


@pytest.mark.parametrize(("image_size", "grid"), [(32, (4, 4)), ([32, 56], (4, 7)), ([40, 16], (5, 2))])
def test_new_model_knows_where_patches_are(tiny_model, image_size, grid):
    model = tiny_model(image_size=image_size)
    for found, dim in ((model.vit.embeddings.position_embeddings, 32), (model.decoder.decoder_pos_embed, 24)):
        torch.testing.assert_close(found, sin_cos(*grid, dim), rtol=0, atol=1e-6)
        assert not found.requires_grad
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    assert model(images(height=height, width=width)).loss.isfinite()


def test_new_tokens_and_layers_follow_mae(tiny_model):
    model = tiny_model(hidden_size=256, intermediate_size=512, decoder_hidden_size=192, decoder_intermediate_size=384)
    for token in (model.vit.embeddings.cls_token, model.decoder.mask_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.2)
        assert abs(token.mean().item()) < 0.006
    projections = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            weight = module.weight.flatten(1)
            bound = math.sqrt(6 / sum(weight.shape))
            assert weight.abs().max() <= bound, name
            assert weight.abs().max() > 0.99 * bound, name
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03), name
            assert module.bias.abs().max() == 0, name
            projections += isinstance(module, nn.Conv2d)
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name
    assert projections == 1


def test_two_new_models_differ_and_a_seed_repeats(tiny_model):
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(tiny_model().vit.embeddings.patch_embeddings.projection.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_moving_a_patch_changes_the_output(tiny_model):
    model = tiny_model(mask_ratio=0.5)
    pixel_values = images(1)
    swapped = pixel_values.clone()
    swapped[..., :8, :8], swapped[..., :8, 8:16] = pixel_values[..., :8, 8:16], pixel_values[..., :8, :8]
    noise = torch.arange(16.0)[None]  # the first eight patches are visible
    first, second = model(pixel_values, noise=noise), model(swapped, noise=noise)
    # Without positions the set of visible tokens, and so every masked patch, would be the same.
    assert (first.logits[:, 8:] - second.logits[:, 8:]).abs().max() > 1e-3


def test_masked_patches_at_different_places_are_predicted_differently(tiny_model):
    logits = tiny_model()(images(1), noise=torch.arange(16.0)[None]).logits
    assert (logits[0, 4] - logits[0, 15]).abs().max() > 1e-3  # equal where the decoder has no positions


# Checkpoints


@pytest.mark.parametrize("mask_ratio", [0.75, 0.5])
def test_stock_checkpoint_loads_every_tensor(tiny_fields, tmp_path, mask_ratio):
    stock = scrambled(ViTMAEForPreTraining(ViTMAEConfig(mask_ratio=mask_ratio, **tiny_fields))).eval()
    stock.save_pretrained(tmp_path)
    model, info = GLCMMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_tensors(model, stock.state_dict())
    assert model.config.mask_ratio == mask_ratio
    assert not model.training


def test_encoder_alone_loads_from_a_stock_checkpoint(tiny_fields, tmp_path):
    stock = scrambled(ViTMAEForPreTraining(ViTMAEConfig(**tiny_fields)))
    stock.save_pretrained(tmp_path)
    assert_same_tensors(GLCMMAEModel.from_pretrained(tmp_path), stock.vit.state_dict())


def test_plain_transformers_reads_our_checkpoint(tiny_model, tmp_path):
    model = scrambled(tiny_model())
    model.save_pretrained(tmp_path)
    weights = {name: weight for name, weight in model.state_dict().items() if "decoder.glcm_" not in name}
    assert_same_tensors(ViTMAEForPreTraining.from_pretrained(tmp_path), weights)
    encoder = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert_same_tensors(encoder, model.vit.state_dict())


@pytest.mark.parametrize("preset", PRESETS)
def test_save_and_load_give_the_same_output(tiny_model, tmp_path, preset):
    model = scrambled(tiny_model(preset, glcm_levels=16, glcm_offsets=[[0, 2], [1, -1]]))
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    loaded = GLCMMAEForPreTraining.from_pretrained(tmp_path)
    assert_same_tensors(loaded, model.state_dict())
    method = [name for name in model.config.to_dict() if name.startswith("glcm_") or name.endswith("_weight")]
    assert len(method) == (19 if preset == "texture" else 13)
    assert all(getattr(loaded.config, name) == getattr(model.config, name) for name in method)
    before, after = (m(images(), noise=fixed_noise()) for m in (model, loaded))
    assert torch.equal(before.logits, after.logits) and torch.equal(before.loss, after.loss)


def test_tensors_go_by_their_own_names_before_those_of_files(tiny_config):
    class WithBranch(GLCMMAEForPreTraining):
        def __init__(self, config):
            super().__init__(config)
            self.output = nn.ModuleDict({"dense": nn.Linear(2, 2)})  # a name that files have of another layer

    model, other = WithBranch(tiny_config()), WithBranch(tiny_config())
    other.load_state_dict(model.state_dict())
    assert_same_tensors(other, model.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({"output.dense.bias": torch.zeros(2)})


def test_overrides_at_load(tiny_fields, tmp_path):
    ViTMAEForPreTraining(ViTMAEConfig(norm_pix_loss=True, **tiny_fields)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="norm_pix_loss") as caught:
        try:
            GLCMMAEForPreTraining.from_pretrained(tmp_path)
        except Exception as error:  # the strict dataclass wraps the ValueError in an error of its own
            raise error.__cause__ from None
    assert "each patch" in str(caught.value)
    model = GLCMMAEForPreTraining.from_pretrained(tmp_path, norm_pix_loss=False, glcm_levels=8)
    assert (model.config.norm_pix_loss, model.config.glcm_levels) == (False, 8)
    with pytest.raises(Exception, match="glcm_offsets"):
        GLCMMAEForPreTraining.from_pretrained(tmp_path, norm_pix_loss=False, glcm_offsets=[[0, 8]])


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (
            lambda: BertModel(
                BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
            ),
            "bert",
        ),
        (lambda: ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)), "vit"),
    ],
)
def test_another_architecture_is_named(model, name, tmp_path):
    model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"'{name}'.*vit_mae"):
        GLCMMAEForPreTraining.from_pretrained(tmp_path)


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises((OSError, ValueError), match=tmp_path.name):
        GLCMMAEForPreTraining.from_pretrained(tmp_path)


# One channel


@pytest.fixture
def three_channels(tiny_model, tmp_path):
    model = scrambled(tiny_model(glcm_channel="mean"))
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_one_channel_from_three_equals_replicated_grey(three_channels):
    colour, folder = three_channels
    grey = GLCMMAEForPreTraining.from_pretrained(folder, num_channels=1)
    image, noise = images(channels=1), fixed_noise()
    replicated = image.expand(-1, 3, -1, -1)
    torch.testing.assert_close(
        grey.vit.embeddings.patch_embeddings(image), colour.vit.embeddings.patch_embeddings(replicated)
    )
    ours, theirs = grey(image, noise=noise), colour(replicated, noise=noise)
    assert ours.logits.shape == (2, 16, 64)
    torch.testing.assert_close(ours.logits, theirs.logits.unflatten(-1, (64, 3)).mean(-1))
    # The co-occurrence term judges the mean of the channels in either case.
    torch.testing.assert_close(ours.glcm_loss, theirs.glcm_loss, rtol=1e-3, atol=0)


def test_one_channel_model_saves_loads_and_trains(three_channels, tmp_path):
    grey = GLCMMAEForPreTraining.from_pretrained(three_channels[1], num_channels=1, glcm_levels=8)
    assert (grey.config.num_channels, grey.config.glcm_levels) == (1, 8)
    grey.save_pretrained(tmp_path / "grey")
    again = GLCMMAEForPreTraining.from_pretrained(tmp_path / "grey")
    assert_same_tensors(again, grey.state_dict())
    again(images(channels=1)).loss.backward()
    assert again.vit.embeddings.patch_embeddings.projection.weight.grad.abs().sum() > 0


def test_one_channel_by_config_and_with_loading_options(three_channels, tiny_config):
    _, folder = three_channels
    by_keyword = GLCMMAEForPreTraining.from_pretrained(folder, num_channels=1)
    by_config = GLCMMAEForPreTraining.from_pretrained(folder, config=tiny_config(num_channels=1))
    assert_same_tensors(by_config, by_keyword.state_dict())
    half, info = GLCMMAEForPreTraining.from_pretrained(
        folder, num_channels=1, dtype=torch.bfloat16, attn_implementation="eager", output_loading_info=True
    )
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half.config._attn_implementation == "eager" and not info["missing_keys"]
    assert GLCMMAEForPreTraining.from_pretrained(folder, num_channels=1, dtype="auto").dtype == torch.float32


def test_one_channel_of_a_checkpoint_that_counted_another_is_refused(tiny_model, tmp_path):
    tiny_model(glcm_channel=2).save_pretrained(tmp_path)
    with pytest.raises(Exception, match="glcm_channel"):
        GLCMMAEForPreTraining.from_pretrained(tmp_path, num_channels=1)
    assert GLCMMAEForPreTraining.from_pretrained(tmp_path, num_channels=1, glcm_channel=0).config.glcm_channel == 0


def test_two_channels_from_three_is_refused(three_channels):
    with pytest.raises((RuntimeError, ValueError), match="mismatch"):
        GLCMMAEForPreTraining.from_pretrained(three_channels[1], num_channels=2)


# Forward


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_mse_preset_is_stock_vitmae(tiny_model, tiny_fields, norm_pix_loss):
    ours = scrambled(tiny_model("mse", norm_pix_loss=norm_pix_loss))
    stock = ViTMAEForPreTraining(ViTMAEConfig(norm_pix_loss=norm_pix_loss, **tiny_fields)).eval()
    stock.load_state_dict(ours.state_dict())
    found, expected = (model(images(), noise=fixed_noise()) for model in (ours, stock))
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.loss, expected.loss)
    assert torch.equal(found.mask, expected.mask) and torch.equal(found.ids_restore, expected.ids_restore)
    found.loss.backward()
    expected.loss.backward()
    gradients = dict(stock.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, msg=name)


@pytest.mark.parametrize("preset", PRESETS)
def test_loss_on_a_non_square_image_by_hand(tiny_model, preset):
    model = tiny_model(preset, glcm_levels=16)
    config = model.config
    pixel_values, noise = images(2, height=24, width=40), fixed_noise(2, 15)
    outputs = model(pixel_values, noise=noise, interpolate_pos_encoding=True)
    target, pred = cut(pixel_values, 8), outputs.logits.unflatten(-1, (8, 8, 3))
    masked = outputs.mask.bool()
    assert target.shape == pred.shape == (2, 15, 8, 8, 3) and masked.sum() == 2 * 12

    mse = ((pred - target) ** 2)[masked].mean()
    expected = config.mse_weight * mse
    torch.testing.assert_close(outputs.mse_loss, mse)
    if preset == "mse":
        assert outputs.glcm_loss is None
    else:
        channel = (lambda x: x.mean(-1)) if config.glcm_channel == "mean" else (lambda x: x[..., config.glcm_channel])
        names = ["levels", "value_range", "offsets", "kernel", "sharpness"]
        names += ["reweight", "symmetric", "normalize", "cumulative"]
        glcm = glcm_loss(
            channel(pred)[masked], channel(target)[masked], **{name: getattr(config, f"glcm_{name}") for name in names}
        )
        torch.testing.assert_close(outputs.glcm_loss, glcm)
        expected = expected + config.glcm_weight * glcm
    if preset == "texture":  # test_glcm_head and test_cls_head have them by hand
        expected = expected + config.glcm_head_weight * outputs.glcm_head_loss
        expected = expected + config.glcm_cls_weight * outputs.glcm_cls_loss
    if preset == "paper":
        scaled = []
        for whole in (pred.clamp(*config.glcm_value_range), target):
            low, high = whole.flatten(1).amin(1), whole.flatten(1).amax(1)
            low, high = low.view(2, 1, 1, 1, 1), high.view(2, 1, 1, 1, 1)
            scaled.append(((whole - low) / (high - low))[masked].permute(0, 3, 1, 2))
        ssim = ssim_loss(*scaled)
        torch.testing.assert_close(outputs.ssim_loss, ssim)
        expected = expected + config.ssim_weight * ssim
    else:
        assert outputs.ssim_loss is None
    torch.testing.assert_close(outputs.loss, expected)


def test_flags_of_the_configuration_reach_the_loss(tiny_model):
    values = {}
    for overrides in (
        {},
        {"glcm_levels": 32},
        {"glcm_value_range": [-1.0, 1.0]},
        {"glcm_offsets": [[1, 1]]},
        {"glcm_kernel": "sigmoid"},
        {"glcm_kernel": "sigmoid", "glcm_sharpness": 3.0},
        {"glcm_channel": 1},
        {"glcm_channel": 2},
        {"glcm_reweight": True},
        {"glcm_symmetric": True},
        {"glcm_normalize": False},
        {"glcm_cumulative": True},
    ):
        torch.manual_seed(0)
        outputs = tiny_model(**overrides)(images(), noise=fixed_noise())
        values[outputs.glcm_loss.item()] = overrides
    assert len(values) == 12


def test_visible_patches_do_not_count(tiny_model):
    model = tiny_model("paper", glcm_levels=16)
    pixel_values, logits = images(), torch.randn(2, 16, 192)
    mask = (fixed_noise() > 0.5).float()
    # The range of the whole reconstruction scales SSIM, so the other values stay within it.
    changed = torch.where(mask.bool()[..., None], logits, logits.roll(1, -1).clamp(-1, 1))
    assert (changed - logits).abs().max() > 1
    first, second = (model.reconstruction_loss(pixel_values, x, mask) for x in (logits, changed))
    assert first["glcm"] == second["glcm"] and first["mse"] == second["mse"]
    torch.testing.assert_close(first["ssim"], second["ssim"], rtol=0, atol=5e-3)
    boolean = model.reconstruction_loss(pixel_values, logits, mask.bool())
    assert torch.equal(boolean["loss"], first["loss"])


def test_reconstruction_loss_refuses_what_does_not_fit(tiny_model):
    model = tiny_model()
    with pytest.raises(ValueError, match=r"\(2, 16, 192\).*\(2, 15, 192\)"):
        model.reconstruction_loss(images(), torch.zeros(2, 15, 192), torch.ones(2, 16))
    with pytest.raises(ValueError, match=r"\(2, 16\).*\(2, 15\)"):
        model.reconstruction_loss(images(), torch.zeros(2, 16, 192), torch.ones(2, 15))
    with pytest.raises(ValueError, match=r"divisible by patch_size \(8\), got 32 x 30"):
        model.reconstruction_loss(images(width=30), torch.zeros(2, 12, 192), torch.ones(2, 12))


def test_images_that_do_not_fit_are_refused(tiny_model):
    model = tiny_model()
    with pytest.raises(ValueError, match="doesn't match model"):
        model(images(height=40))
    with pytest.raises(ValueError, match="divisible by patch_size"):
        model(images(height=36), interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match="channel"):
        model(images(channels=1))
    for call in (model, model.reconstruct, model.predict_cooccurrence, functools.partial(texture_surprise, model)):
        with pytest.raises(ValueError, match=r"got the shape \(3, 32, 32\): pixel_values\[None\] makes a batch"):
            call(images()[0])
        with pytest.raises(ValueError, match=r"normalised, got torch.uint8: an image processor makes"):
            call(images().byte())
        with pytest.raises(TypeError, match="pixel_values must be a floating-point tensor .*, got ndarray"):
            call(images().numpy())


def test_noise_fixes_the_mask(tiny_model):
    model, noise = tiny_model(), fixed_noise()
    first, second, other = model(images(), noise=noise), model(images(), noise=noise), model(images())
    assert torch.equal(first.mask, second.mask) and torch.equal(first.loss, second.loss)
    assert not torch.equal(first.mask, other.mask)
    assert (first.mask.sum(1) == 12).all()
    # Masked are the patches of the highest noise.
    assert torch.equal(first.mask.bool(), noise > noise.sort(1).values[:, 3:4])


@pytest.mark.parametrize(
    ("preset", "terms"),
    [
        ("texture", {"glcm_loss", "mse_loss", "glcm_head_loss", "glcm_cls_loss"}),
        ("paper", {"glcm_loss", "ssim_loss", "mse_loss"}),
        ("mse", {"mse_loss"}),
    ],
)
def test_output_class(tiny_model, preset, terms):
    model = tiny_model(preset, glcm_levels=16)
    outputs = model(images(), noise=fixed_noise())
    assert isinstance(outputs, GLCMMAEForPreTrainingOutput)
    always = {"loss", "logits", "mask", "ids_restore"}
    always |= {f"{head}_logits" for head in ("glcm_head", "glcm_cls") if f"{head}_loss" in terms}
    assert set(outputs.keys()) == always | terms
    assert all(outputs[name].shape == () and outputs[name].isfinite() for name in terms | {"loss"})
    plain = model(images(), noise=fixed_noise(), return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == len(outputs)
    assert torch.equal(plain[0], outputs.loss) and torch.equal(plain[1], outputs.logits)


def test_hidden_states_and_attentions(tiny_model):
    model = tiny_model(num_hidden_layers=2)
    model.set_attn_implementation("eager")
    outputs = model(images(), output_hidden_states=True, output_attentions=True)
    assert [h.shape for h in outputs.hidden_states] == [(2, 5, 32)] * 3
    assert [a.shape for a in outputs.attentions] == [(2, 2, 5, 5)] * 2


def test_sdpa_equals_eager(tiny_model):
    model = scrambled(tiny_model())
    results = {}
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        assert model.config._attn_implementation == name
        results[name] = model(images(), noise=fixed_noise())
    torch.testing.assert_close(results["sdpa"].logits, results["eager"].logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results["sdpa"].loss, results["eager"].loss, rtol=1e-4, atol=0)


def test_gradient_checkpointing_gives_equal_gradients(tiny_model):
    model = tiny_model(num_hidden_layers=2, decoder_num_hidden_layers=2).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model.zero_grad()
        model(images(), noise=fixed_noise()).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    assert all(gradient.abs().sum() > 0 for name, gradient in gradients[0].items() if "k_proj.bias" not in name)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_blocks_that_must_not_be_split_are_found_in_the_model(tiny_model):
    # device_map="auto" and FSDP look them up by class name, and FSDP stops at one that is missing.
    model = tiny_model()
    present = {type(module).__name__ for module in model.modules()}
    assert model._no_split_modules and set(model._no_split_modules) <= present


# Positions on other grids


# reconstruct


# Numerics


def finite(model: GLCMMAEForPreTraining, terms: dict | GLCMMAEForPreTrainingOutput, logits: torch.Tensor) -> bool:
    (gradient,) = torch.autograd.grad(terms["loss"], logits)
    values = [value for name, value in terms.items() if value is not None and value.dim() == 0]
    return all(value.isfinite() and value.dtype == torch.float32 for value in values) and gradient.isfinite().all()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("case", ["flat", "flat prediction", "black", "above the range", "far below the range"])
@pytest.mark.parametrize("masked", ["none", "one", "all"])
def test_degenerate_images_and_masks(tiny_model, preset, case, masked):
    model = tiny_model(preset, glcm_levels=16)
    pixel_values, logits = images(), torch.randn(2, 16, 192)
    if case == "flat":
        pixel_values, logits = torch.full_like(pixel_values, 0.5), torch.full_like(logits, 0.5)
    elif case == "flat prediction":
        logits = torch.zeros_like(logits)
    elif case == "black":
        pixel_values = torch.full_like(pixel_values, model.config.glcm_value_range[0])
    elif case == "above the range":
        pixel_values, logits = pixel_values + 50, logits + 50
    else:
        logits = logits - 1e4
    logits.requires_grad_()
    mask = {"none": torch.zeros(2, 16), "one": torch.eye(2, 16), "all": torch.ones(2, 16)}[masked]
    terms = model.reconstruction_loss(pixel_values, logits, mask)
    assert finite(model, terms, logits)
    if masked == "none":
        assert all(value is None or value.item() == 0 for value in terms.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_an_infinite_prediction_of_a_visible_patch_is_harmless(tiny_model, preset):
    model = tiny_model(preset, glcm_levels=16)
    mask = torch.ones(2, 16)
    mask[0, 3] = 0
    logits = torch.randn(2, 16, 192)
    logits[0, 3, 5] = math.inf
    logits.requires_grad_()
    assert finite(model, model.reconstruction_loss(images(), logits, mask), logits)


def test_mask_ratio_zero_sees_everything(tiny_model):
    model = tiny_model(mask_ratio=0.0, glcm_head_patches="masked", glcm_cls_weight=0.0).train()
    outputs = model(images())
    outputs.loss.backward()
    assert outputs.mask.sum() == 0 and outputs.loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_loss_in_float32(tiny_model, preset, dtype):
    model = tiny_model(preset, glcm_levels=16).train()
    with torch.autocast("cpu", dtype=dtype):
        outputs = model(images(), noise=fixed_noise())
    assert outputs.logits.dtype == dtype
    outputs.loss.backward()
    terms = [outputs.loss, outputs.glcm_loss, outputs.ssim_loss, outputs.mse_loss]
    assert all(term is None or (term.dtype == torch.float32 and term.isfinite()) for term in terms)
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(gradient.abs().sum() for gradient in gradients) > 0

    logits, mask = outputs.logits.detach(), outputs.mask
    plain = model.reconstruction_loss(images(), logits, mask)
    with torch.autocast("cpu", dtype=dtype):
        cast = model.reconstruction_loss(images(), logits, mask)
    assert all(cast[name] is None if plain[name] is None else torch.equal(cast[name], plain[name]) for name in plain)


def test_a_bfloat16_model_computes_its_loss_in_float32(tiny_model):
    model = tiny_model().to(torch.bfloat16)
    outputs = model(images().bfloat16(), noise=fixed_noise())
    assert outputs.logits.dtype == torch.bfloat16 and outputs.loss.dtype == torch.float32
    outputs = model(images(height=48).bfloat16(), interpolate_pos_encoding=True)
    assert outputs.loss.isfinite()


# Stages of training


def test_a_call_chooses_texture_and_sharpness(tiny_model):
    model = tiny_model("paper", glcm_levels=16)
    before = model.config.to_dict()

    def forward(**objective) -> GLCMMAEForPreTrainingOutput:
        return model(images(), noise=fixed_noise(), **objective)

    configured = forward()
    plain = forward(texture=False)
    assert plain.glcm_loss is None and plain.ssim_loss is None
    assert torch.equal(plain.loss, configured.mse_loss)  # weight 1, not mse_weight
    softer = forward(glcm_sharpness=2.0)
    assert softer.glcm_loss < 0.9 * configured.glcm_loss
    same = tiny_model("paper", glcm_levels=16, glcm_sharpness=2.0)
    same.load_state_dict(model.state_dict())
    assert torch.equal(softer.loss, same(images(), noise=fixed_noise()).loss)
    assert torch.equal(forward().loss, configured.loss), "nothing is left of the calls before"
    assert model.config.to_dict() == before


@pytest.mark.parametrize(
    ("preset", "sharpness", "message"),
    [
        ("paper", 0.0, "glcm_sharpness must be finite and greater than 0, got 0.0"),
        ("paper", -1.0, "glcm_sharpness must be finite and greater than 0, got -1.0"),
        ("paper", math.inf, "glcm_sharpness must be finite and greater than 0, got inf"),
        ("paper", math.nan, "glcm_sharpness must be finite and greater than 0, got nan"),
        ("texture", 5.0, "glcm_sharpness needs glcm_kernel sigmoid, got linear"),
    ],
)
@pytest.mark.parametrize("texture", [True, False])
def test_sharpness_of_a_call_is_checked(tiny_model, preset, sharpness, message, texture):
    with pytest.raises(ValueError, match=message):
        tiny_model(preset)(images(), texture=texture, glcm_sharpness=sharpness)


def test_a_few_steps_lower_the_loss(tiny_model):
    model = tiny_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        outputs = model(images(4), noise=fixed_noise(4))
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
        losses.append(outputs.loss.item())
    assert losses[-1] < 0.8 * losses[0]


# Compilation


def assert_compiled_whole_and_once(model: GLCMMAEForPreTraining) -> None:
    """One graph for all steps, with the loss and the gradients of the model that is not compiled."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = [(torch.randn(2, 3, 32, 32), torch.rand(2, 16)) for _ in range(3)]
    expected = []
    for pixel_values, noise in steps:
        loss = model(pixel_values, noise=noise).loss
        expected.append((loss, *torch.autograd.grad(loss, parameters)))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    for index, ((pixel_values, noise), (loss, *gradients)) in enumerate(zip(steps, expected, strict=True)):
        with torch.compiler.set_stance("fail_on_recompile" if index else "default"):
            found = compiled(pixel_values, noise=noise).loss
            torch.testing.assert_close(found, loss)
            for one, other in zip(torch.autograd.grad(found, parameters), gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["texture", "paper", "mse"])
def test_compiled_whole_and_once(tiny_model, preset):
    assert_compiled_whole_and_once(tiny_model(preset).train())


def test_each_stage_is_compiled_once(tiny_model):
    model = tiny_model("paper", glcm_levels=16)
    torch._dynamo.reset()
    compiled, known = torch.compile(model, fullgraph=True, backend="eager"), set()
    for texture in (False, False, True, True, False):
        with torch.compiler.set_stance("fail_on_recompile" if texture in known else "default"):
            outputs = compiled(images(), noise=fixed_noise(), texture=texture)
        torch.testing.assert_close(outputs.loss, model(images(), noise=fixed_noise(), texture=texture).loss)
        known.add(texture)


# Sharding

SHARDED = """
import sys
import torch
from torch.distributed.fsdp import fully_shard
from modeling_glcm_mae import GLCMMAEConfig, GLCMMAEForPreTraining

torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
torch.manual_seed(0)
model = GLCMMAEForPreTraining(GLCMMAEConfig.from_preset("texture", {fields})).eval()
pixel_values, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
expected = model.reconstruct(pixel_values, noise=noise).reconstruction
for layer in (*model.vit.layers, *model.decoder.decoder_layers):
    fully_shard(layer)
fully_shard(model)
torch.testing.assert_close(model.reconstruct(pixel_values, noise=noise).reconstruction, expected)
"""


@pytest.mark.slow
def test_a_sharded_model_reconstructs(tiny_fields, tmp_path):
    fields = ", ".join(f"{name}={value}" for name, value in tiny_fields.items())
    command = [sys.executable, "-c", SHARDED.format(fields=fields), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Memory


def test_ssim_of_a_large_batch_in_parts_is_that_of_the_whole(tiny_model, monkeypatch):
    model = tiny_model("paper")
    pixel_values, mask = torch.randn(3, 3, 32, 32), (torch.arange(16) < 12).expand(3, -1)
    found = []
    for patches in (2**14, 7):
        monkeypatch.setattr("modeling_glcm_mae.modeling_glcm_mae._SSIM_PATCHES", patches)
        logits = torch.linspace(-1, 1, 3 * 16 * 192, dtype=torch.float64).sin().view(3, 16, 192).requires_grad_()
        terms = model.reconstruction_loss(pixel_values, logits, mask)
        terms["ssim"].backward()
        found.append((terms["ssim"].item(), logits.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    torch.testing.assert_close(found[0][1], found[1][1])
    assert found[0][1].abs().max() > 0
