"""Structural similarity of patches."""

import torch


def ssim_loss(pred: torch.Tensor, target: torch.Tensor, *, reduction: str = "mean") -> torch.Tensor:
    r"""1 - SSIM of patches whose values span [0, 1] (Wang et al., IEEE TIP 2004, equation 13).

    Gaussian window of 11 taps and standard deviation 1.5 pixels, valid region only, K1 = 0.01, K2 = 0.03. In a patch
    of fewer than 11 pixels the window has the largest odd number of taps that fits.

    Args:
        pred: `(M, C, H, W)`.
        target: `(M, C, H, W)`.
        reduction: "mean" over the patches, or "none".

    Raises:
        ValueError: on wrong shapes or another reduction.

    Returns:
        A scalar, or `(M,)` with `reduction="none"`: the mean over channels and window positions. With no patch the
        mean is 0, with a gradient of zeros.
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be mean or none, got {reduction!r}")
    if pred.shape != target.shape or pred.dim() != 4:
        hint = ": .unsqueeze(1) makes grey images of one channel" if pred.dim() == target.dim() == 3 else ""
        raise ValueError(
            "pred and target must have the same shape of four axes (M, C, H, W), got "
            f"{tuple(pred.shape)} and {tuple(target.shape)}{hint}"
        )
    with torch.autocast(pred.device.type, enabled=False):
        if pred.dtype != torch.float64:
            pred, target = pred.float(), target.float()
        rows, columns = (_gaussian_filter_matrix(size, pred) for size in pred.shape[-2:])

        def smooth(x: torch.Tensor) -> torch.Tensor:
            # The window is separable and patches are small: two matrix products cost less than a convolution.
            return rows @ x @ columns.T

        mean_pred, mean_target = smooth(pred), smooth(target)
        product, squares = mean_pred * mean_target, mean_pred * mean_pred + mean_target * mean_target
        covariance = smooth(pred * target) - product
        variances = smooth(pred * pred + target * target) - squares  # only their sum is asked for
        c1, c2 = 0.01**2, 0.03**2
        ssim = ((2 * product + c1) * (2 * covariance + c2)) / ((squares + c1) * (variances + c2))
        per_patch = 1 - ssim.mean(dim=(-3, -2, -1))
    return per_patch if reduction == "none" else per_patch.sum() / max(len(per_patch), 1)


def _gaussian_filter_matrix(size: int, like: torch.Tensor) -> torch.Tensor:
    """Matrix (size - taps + 1, size) whose product with a signal is its valid Gaussian filtering."""
    taps = min(11, size - (size + 1) % 2)
    positions = torch.arange(taps, device=like.device, dtype=like.dtype) - (taps - 1) / 2
    window = torch.exp(-positions.square() / (2 * 1.5**2))
    window = window / window.sum()
    matrix = like.new_zeros(size - taps + 1, size)
    for row in range(len(matrix)):
        matrix[row, row : row + taps] = window
    return matrix


def extremes(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest value of each image: `(B, N, p, p, C)` -> `(B,)` twice."""
    return patches.amin(dim=(1, 2, 3, 4)), patches.amax(dim=(1, 2, 3, 4))


def min_max_scaled(patches: torch.Tensor, low: torch.Tensor, high: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Scale patches `(M, p, p, C)` to [0, 1] by the extremes `(B,)` of their `image` `(M,)`: `(M, C, p, p)`.

    Patches of a flat image become 0.
    """
    spread = (high - low).clamp(min=1e-6)
    return ((patches - low[image, None, None, None]) / spread[image, None, None, None]).permute(0, 3, 1, 2)


__all__ = ["extremes", "min_max_scaled", "ssim_loss"]
