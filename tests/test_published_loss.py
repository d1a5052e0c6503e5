"""The loss against values of the published code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_model import cut, fixed_noise
from torch.nn.functional import conv2d

from modeling_glcm_mae import GLCMMAEForPreTraining, cooccurrence_matrix, glcm_loss

GOLDEN = sorted((Path(__file__).parent / "data" / "official_loss").glob("*.npz"))


@pytest.fixture
def golden(request, tiny_config):
    """One file of golden values, and models made to its measure."""
    with np.load(request.param) as file:
        values = {name: torch.from_numpy(file[name]) for name in file.files}

    def model(**overrides) -> GLCMMAEForPreTraining:
        fields = {
            "image_size": list(values["pixel_values"].shape[-2:]),
            "patch_size": 16,
            "glcm_value_range": values["value_range"].tolist(),
        }
        config = tiny_config("paper", **(fields | overrides))
        assert (config.glcm_levels, config.glcm_sharpness) == (values["levels"].item(), values["sharpness"].item())
        return GLCMMAEForPreTraining(config)

    return values, model


def close_in_norm(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    assert expected.norm() > 0
    return ((found - expected).norm() / expected.norm()).item() < tolerance


@pytest.mark.parametrize("golden", GOLDEN, indirect=True, ids=lambda path: path.stem)
def test_terms_and_gradients_of_the_published_loss(golden):
    values, model = golden
    pred = values["pred"].clone().requires_grad_()
    terms = model().reconstruction_loss(values["pixel_values"], pred, values["mask"])
    for name, reference in (("glcm", "glcm_scaled"), ("ssim", "ssim"), ("mse", "mse"), ("loss", "total")):
        assert terms[name].item() == pytest.approx(values[reference].item(), rel=1e-5), name
    for name, reference in (("glcm", "grad_glcm_scaled"), ("loss", "grad_total")):
        (gradient,) = torch.autograd.grad(terms[name], pred, retain_graph=True)
        assert close_in_norm(gradient, values[reference], 1e-3), name


@pytest.mark.parametrize("golden", GOLDEN, indirect=True, ids=lambda path: path.stem)
def test_published_loss_without_down_weighting(golden):
    values, model = golden
    pred = values["pred"].clone().requires_grad_()
    terms = model(glcm_reweight=False).reconstruction_loss(values["pixel_values"], pred, values["mask"])
    assert terms["glcm"].item() == pytest.approx(values["glcm_unscaled"].item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(terms["glcm"], pred)
    assert close_in_norm(gradient, values["grad_glcm_unscaled"], 1e-3)


@pytest.mark.parametrize("golden", GOLDEN, indirect=True, ids=lambda path: path.stem)
def test_published_term_of_each_patch_and_matrix_of_the_first(golden):
    values, _ = golden
    arguments = {
        "levels": int(values["levels"]),
        "sharpness": float(values["sharpness"]),
        "value_range": values["value_range"].tolist(),
        "offsets": [[0, 1], [1, 0]],
    }
    target = cut(values["pixel_values"], 16)[..., 0]  # B N p p, channel 0
    pred = values["pred"].unflatten(-1, (16, 16, 3))[..., 0]
    found = glcm_loss(pred.flatten(0, 1), target.flatten(0, 1), reduction="none", **arguments)
    torch.testing.assert_close(found.view(target.shape[:2]), values["per_patch_glcm_scaled"], rtol=1e-4, atol=0)

    matrix = cooccurrence_matrix(target[0, 0], **arguments)
    offset, i, j = values["target_glcm_patch0_index"].long().unbind(1)
    # At 256 levels and sharpness 30, float32 rounds the argument of the logistic function to some 1e-4.
    torch.testing.assert_close(matrix[offset, i, j], values["target_glcm_patch0_value"], rtol=1e-3, atol=2e-4)
    rest = matrix.clone()
    rest[offset, i, j] = 0
    assert rest.abs().max() < 1e-3


def published_terms(
    pixel_values: torch.Tensor, pred: torch.Tensor, mask: torch.Tensor, value_range: list[float], reweight: bool = True
) -> dict[str, torch.Tensor]:
    """The objective of the paper, written out in float64 for patches of 16 x 16 without the package."""
    levels, sharpness = 256, 30.0
    low, high = value_range
    width = (high - low) / levels
    centres = low + width * (torch.arange(levels, dtype=torch.float64) + 0.5)
    target, pred = cut(pixel_values.double(), 16), pred.double().unflatten(-1, (16, 16, 3))  # B N p p C
    clamped, masked = pred.clamp(low, high), mask.bool()

    def bump(x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid((x - centres + width / 2) * sharpness / width) - torch.sigmoid(
            (x - centres - width / 2) * sharpness / width
        )

    def matrices(patches: torch.Tensor) -> torch.Tensor:
        x = patches[..., 0].clamp(low, high)[..., None]  # M p p 1
        a = bump(x) + bump(2 * low - x) + bump(2 * high - x)  # M p p K
        right = torch.einsum("myxi,myxj->mij", a[:, :, :-1], a[:, :, 1:])
        down = torch.einsum("myxi,myxj->mij", a[:, :-1], a[:, 1:])
        counts = torch.stack([right, down], 1)  # M 2 K K
        total = counts.sum((-2, -1), keepdim=True)
        return counts * (total - counts) / total if reweight else counts

    glcm = (matrices(pred[masked]) - matrices(target[masked])).square().mean()

    def scaled(patches: torch.Tensor) -> torch.Tensor:
        of_image = patches.flatten(1)
        least, most = (x.view(-1, 1, 1, 1, 1) for x in (of_image.amin(1), of_image.amax(1)))
        return ((patches - least) / (most - least))[masked].permute(0, 3, 1, 2).flatten(0, 1)[:, None]  # M*C 1 p p

    taps = torch.exp(-(torch.arange(-5, 6, dtype=torch.float64) ** 2) / (2 * 1.5**2))
    window = (taps[:, None] * taps / taps.sum() ** 2)[None, None]
    p, t = scaled(clamped), scaled(target)
    mean_p, mean_t = conv2d(p, window), conv2d(t, window)
    var_p, var_t = conv2d(p * p, window) - mean_p**2, conv2d(t * t, window) - mean_t**2
    cov, c1, c2 = conv2d(p * t, window) - mean_p * mean_t, 0.01**2, 0.03**2
    similarity = (2 * mean_p * mean_t + c1) * (2 * cov + c2) / ((mean_p**2 + mean_t**2 + c1) * (var_p + var_t + c2))
    terms = {"glcm": glcm, "ssim": 1 - similarity.mean(), "mse": (pred - target)[masked].square().mean()}
    return terms | {"loss": terms["glcm"] + terms["ssim"] + 0.1 * terms["mse"]}


@pytest.mark.parametrize("golden", GOLDEN, indirect=True, ids=lambda path: path.stem)
def test_the_paper_written_out_gives_the_published_values(golden):
    values, _ = golden
    pred = values["pred"].clone().requires_grad_()
    given = values["pixel_values"], pred, values["mask"], values["value_range"].tolist()
    terms = published_terms(*given)
    for name, reference in (("glcm", "glcm_scaled"), ("ssim", "ssim"), ("mse", "mse"), ("loss", "total")):
        assert terms[name].item() == pytest.approx(values[reference].item(), rel=1e-4), name
    assert close_in_norm(torch.autograd.grad(terms["loss"], pred)[0], values["grad_total"], 1e-3)
    plain = published_terms(*given, reweight=False)["glcm"]
    assert plain.item() == pytest.approx(values["glcm_unscaled"].item(), rel=1e-4)


@pytest.mark.parametrize("reweight", [True, False])
def test_terms_and_gradients_of_the_paper_written_out(tiny_config, reweight):
    low_to_high = [-2.1, 2.4]
    rng = np.random.default_rng(0)
    smooth = np.linspace(-2, 2.3, 48)[:, None] * np.cos(np.arange(64) / 9)
    pixel_values = torch.from_numpy((smooth + rng.normal(size=(2, 3, 48, 64)) * 0.3).clip(*low_to_high)).float()
    noisy = cut(0.8 * pixel_values, 16).flatten(2) + torch.from_numpy(rng.normal(size=(2, 12, 768))).float() * 0.2
    pred = (1.1 * noisy).requires_grad_()  # beyond the range here and there
    mask = (fixed_noise(2, 12) > 0.4).float()
    config = tiny_config(
        "paper", image_size=[48, 64], patch_size=16, glcm_value_range=low_to_high, glcm_reweight=reweight
    )
    found = GLCMMAEForPreTraining(config).reconstruction_loss(pixel_values, pred, mask)
    expected = published_terms(pixel_values, pred, mask, low_to_high, reweight)
    for name in ("glcm", "ssim", "mse", "loss"):
        assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-4), name
        gradients = [torch.autograd.grad(terms[name], pred, retain_graph=True)[0] for terms in (found, expected)]
        assert close_in_norm(*gradients, 1e-3), name
