"""What people pass first, and what is said of it."""

import re
import warnings
from decimal import Decimal

import numpy as np
import pytest
import torch
from conftest import TINY
from torch._subclasses import FakeTensorMode

from modeling_glcm_mae import (
    GLCMLoss,
    GLCMMAEConfig,
    GLCMMAEForPreTraining,
    cooccurrence_matrix,
    glcm_loss,
    offsets_from_angles,
    soft_assignment,
    ssim_loss,
    texture_fidelity,
    value_range_from_normalization,
)

LOSS = {"levels": 8, "value_range": (0, 1), "offsets": [[0, 1]], "kernel": "linear"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: glcm_loss(x.numpy(), x.numpy(), **LOSS), TypeError, "pred must be a torch tensor (M, H, W), got nd"),
        (lambda x: glcm_loss(x[0], x[0], **LOSS), ValueError, "got (6, 6): pred[None] makes a stack of one image"),
        (lambda x: glcm_loss(x, (x * 255).byte(), **LOSS), ValueError, "target must be floating point (M, H, W), got"),
        (lambda x: texture_fidelity((x * 255).int(), x, value_range=(0, 1)), ValueError, "pred must be floating point"),
        (lambda x: soft_assignment((x * 255).byte(), levels=8, value_range=(0, 255)), ValueError, "got torch.uint8"),
        (lambda x: cooccurrence_matrix(x.numpy(), **LOSS), TypeError, "image must be a torch tensor (..., H, W)"),
        (lambda x: cooccurrence_matrix(x, mask=np.ones((2, 6, 6)), **LOSS), TypeError, "mask must be a torch tensor"),
        (lambda x: cooccurrence_matrix(x, mask=(x > 0) & (x[:1] > 2), **LOSS), ValueError, "got one that leaves none"),
        (
            lambda x: offsets_from_angles([1], [0, 45, 90]),
            ValueError,
            "angles must be in radians, -2 pi to 2 pi, got 45",
        ),
        (lambda x: GLCMLoss(**LOSS, level=3), TypeError, "level"),
        (
            lambda x: GLCMLoss(**LOSS | {"offsets": [[0, 0]]}),
            ValueError,
            "every offset must be [dy, dx] in whole pixels",
        ),
        (lambda x: GLCMLoss(**LOSS | {"value_range": (1, 0)}), ValueError, "value_range must be two finite numbers"),
        (lambda x: GLCMLoss(**LOSS | {"value_range": 0.5}), ValueError, "with lo < hi, got 0.5"),
        (lambda x: GLCMLoss(**LOSS | {"value_range": "01"}), ValueError, "with lo < hi, got '01'"),
        (lambda x: cooccurrence_matrix(x, **LOSS | {"value_range": ("0", "1")}), ValueError, "got ('0', '1')"),
        (lambda x: GLCMLoss(**LOSS | {"value_range": (x, x)}), ValueError, "value_range must be two finite numbers"),
        (lambda x: GLCMLoss(**LOSS | {"value_range": (0, 10**400)}), ValueError, "must be two finite numbers"),
        (
            lambda x: glcm_loss(x, x, **LOSS | {"offsets": torch.tensor([[0, 1]])}),
            ValueError,
            "got a tensor of shape (1, 2): offsets.tolist() is one",
        ),
        (lambda x: ssim_loss(x, x), ValueError, "got (2, 6, 6) and (2, 6, 6): .unsqueeze(1) makes grey images of one"),
        (lambda x: GLCMLoss(**LOSS | {"offsets": [0, 1]}), ValueError, "shorter than the image, got 0"),
        (lambda x: GLCMLoss(**LOSS)(x[None], x[None]), ValueError, "pred.flatten(0, 1) makes a stack of every channel"),
        (lambda x: GLCMLoss(**LOSS | {"kernel": "soft"}), ValueError, "kernel must be one of"),
        (lambda x: GLCMLoss(**LOSS, reduction="sum"), ValueError, "reduction must be mean or none"),
        (lambda x: GLCMLoss(**LOSS, backend="gpu"), ValueError, "backend must be one of"),
        (
            lambda x: GLCMLoss(**LOSS, reweight=False, backend="sparse")(x, x, x > 0),
            ValueError,
            'backend must be "auto" or "dense" with a mask, got \'sparse\'',
        ),
        (lambda x: GLCMLoss(**LOSS)(x, x, x[0] > 0), ValueError, "mask must be bool of the image's shape (2, 6, 6)"),
    ],
)
def test_what_is_given_and_what_is_wanted_are_said(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call(torch.rand(2, 6, 6))


def test_the_loss_warns_once_of_a_range_in_other_units():
    images = torch.rand(3, 6, 6) * 255
    loss = GLCMLoss(**LOSS)
    with pytest.warns(UserWarning, match=r"pixels of target lie outside value_range \(0, 1\) .* which span") as said:
        for _ in range(3):
            loss(images, images)
    assert len(said) == 1
    with pytest.warns(UserWarning, match="% of the pixels of target lie outside"):  # half of them
        GLCMLoss(**LOSS)(images, images / 127.5 - 1)
    for low, high in ((0, 255), (-1000, 1000)):
        with pytest.warns(UserWarning, match=r"all pixels of target lie within one of the \d+ grey levels"):
            GLCMLoss(**LOSS | {"value_range": (low, high)})(images / 255, images / 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GLCMLoss(**LOSS | {"value_range": (0, 255)})(images, images)
        # What a network answers on its way may lie anywhere.
        GLCMLoss(**LOSS)(images, images / 255)
        GLCMLoss(**LOSS)(images, torch.full_like(images, 0.5))


def test_a_masked_loss_warns_once_of_the_range_and_of_the_target_alone(monkeypatch):
    images, mask = torch.rand(3, 6, 6), torch.ones(3, 6, 6, dtype=torch.bool)
    mask[:, 0] = False
    monkeypatch.setattr("modeling_glcm_mae.glcm_support._ranges_seen", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GLCMLoss(**LOSS)(255 * images, images.where(mask, 1000), mask)
    monkeypatch.setattr("modeling_glcm_mae.glcm_support._ranges_seen", set())
    with pytest.warns(UserWarning, match="lie outside value_range") as said:
        GLCMLoss(**LOSS)(255 * images, 255 * images, mask)
    assert len(said) == 1


def test_a_matrix_of_images_in_other_units_is_warned_of_once_a_range(monkeypatch):
    monkeypatch.setattr("modeling_glcm_mae.glcm_support._ranges_seen", set())
    given = {"levels": 8, "value_range": (0.0, 1.0), "offsets": [[0, 1]]}
    with pytest.warns(UserWarning, match="pixels of image lie outside") as said:
        for kernel in ("hard", "linear"):
            cooccurrence_matrix(255 * torch.rand(6, 6), kernel=kernel, **given)
    assert len(said) == 1
    padded, mask = torch.rand(6, 6), torch.ones(6, 6, dtype=torch.bool)
    padded[:4], mask[:4] = -2000, False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cooccurrence_matrix(padded, mask=mask, **given | {"value_range": (0.0, 1.5)})


@pytest.mark.parametrize(("preset", "warned"), [("texture", 1), ("paper", 1), ("mse", 0)])
def test_the_model_warns_once_of_images_in_other_units(preset, warned, monkeypatch):
    monkeypatch.setattr("modeling_glcm_mae.glcm_support._ranges_seen", set())
    model = GLCMMAEForPreTraining(GLCMMAEConfig.from_preset(preset, **TINY))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            model(255 * torch.rand(2, 3, 32, 32))
    assert len(said) == warned
    assert all(re.match(r"\d+% of the pixels of pixel_values lie outside", str(warning.message)) for warning in said)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_are_within_the_range_of_their_normalisation(value, monkeypatch):
    # Somewhere each of them is beyond it by a rounding.
    for hundredths in range(10, 60, 3):
        mean, std = 0.456, hundredths / 100
        value_range = value_range_from_normalization([mean], [std])
        pixels = torch.full((2, 6, 6), value).sub(mean).div(std)
        pixels[0] = 0  # else all lie within one grey level
        monkeypatch.setattr("modeling_glcm_mae.glcm_support._ranges_seen", set())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cooccurrence_matrix(pixels, levels=8, value_range=value_range, offsets=[[0, 1]])


def test_the_range_is_not_looked_at_where_there_are_no_values(monkeypatch):
    monkeypatch.setattr("modeling_glcm_mae.glcm_support._ranges_seen", set())
    with FakeTensorMode():
        images = torch.rand(2, 6, 6)
        assert cooccurrence_matrix(images, levels=8, value_range=(5, 6), offsets=[[0, 1]]).shape == (2, 1, 8, 8)
    empty = torch.rand(0, 6, 6)
    assert cooccurrence_matrix(empty, levels=8, value_range=(5, 6), offsets=[[0, 1]]).shape == (0, 1, 8, 8)
    with pytest.warns(UserWarning, match="lie outside"):  # it was not taken for looked at
        cooccurrence_matrix(torch.rand(2, 6, 6), levels=8, value_range=(5, 6), offsets=[[0, 1]])


@pytest.mark.parametrize("number", [Decimal, np.array, np.float32, torch.tensor])
def test_a_range_may_be_of_any_numbers(number):
    images = torch.rand(2, 6, 6)
    wanted = GLCMLoss(**LOSS)(images, images.flip(1))
    assert GLCMLoss(**LOSS | {"value_range": (number(0.0), number(1.0))})(images, images.flip(1)) == wanted


@pytest.mark.parametrize("backend", ["dense", "sparse", "auto"])
def test_what_has_no_gradient_does_not_seem_to_have_one(backend):
    pred, target = torch.rand(2, 6, 6), torch.rand(2, 6, 6)
    assert not GLCMLoss(**LOSS | {"kernel": "hard"}, backend=backend)(pred.requires_grad_(), target).requires_grad
    exchanged = pred.detach(), target.requires_grad_()  # added to other terms, nobody would notice
    with pytest.raises(ValueError, match="only target requires a gradient, and gets none: exchange them"):
        GLCMLoss(**LOSS, backend=backend)(*exchanged)
    with torch.no_grad():
        assert not GLCMLoss(**LOSS, backend=backend)(*exchanged).requires_grad
