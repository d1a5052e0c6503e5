"""Structural similarity of patches."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from test_glcm import patches

from modeling_glcm_mae import ssim_loss


def ssim_by_scipy(a: np.ndarray, b: np.ndarray, taps: int) -> float:
    """Mean SSIM of two images of one channel over the valid region."""
    window = np.exp(-((np.arange(taps) - taps // 2) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def smooth(x: np.ndarray) -> np.ndarray:
        edge = taps // 2
        smoothed = correlate1d(correlate1d(x, window, axis=0), window, axis=1)
        return smoothed[edge : x.shape[0] - edge, edge : x.shape[1] - edge]

    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b, cov = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2, smooth(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    return np.mean((2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))


@pytest.mark.parametrize(("height", "width", "taps"), [(16, 16, 11), (11, 11, 11), (32, 20, 11), (8, 8, 7), (9, 9, 9)])
def test_ssim_against_scipy(height, width, taps):
    target = (patches(3, 2, height, width, dtype=torch.float64) + 1) / 2
    pred = (0.6 * target + 0.3 * (patches(3, 2, height, width, seed=1) + 1) / 2).clamp(0, 1)
    expected = [
        1 - np.mean([ssim_by_scipy(p.numpy(), t.numpy(), taps) for p, t in zip(pred[i], target[i], strict=True)])
        for i in range(3)
    ]
    assert 0.05 < np.mean(expected) < 0.95
    np.testing.assert_allclose(ssim_loss(pred, target, reduction="none").numpy(), expected, rtol=1e-9)
    assert ssim_loss(pred, target).item() == pytest.approx(np.mean(expected))
    assert ssim_loss(pred.float(), target.float()).item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_ssim_of_equal_flat_and_no_patches():
    image = patches(2, 1, 16, 16)
    assert ssim_loss(image, image).item() == pytest.approx(0, abs=1e-6)
    for pred in (torch.zeros(2, 1, 16, 16), torch.full((2, 1, 16, 16), 0.7), image[:0]):
        pred = pred.clone().requires_grad_()
        loss = ssim_loss(pred, image[: len(pred)])
        loss.backward()
        assert loss.isfinite() and pred.grad.isfinite().all()
    assert loss.item() == 0
    with pytest.raises(ValueError, match="reduction"):
        ssim_loss(image, image, reduction="sum")


def test_gradcheck_of_ssim():
    target = (patches(1, 1, 12, 13, dtype=torch.float64) + 1) / 2
    pred = ((patches(1, 1, 12, 13, seed=1).double() + 1) / 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ssim_loss(x, target), (pred,))
