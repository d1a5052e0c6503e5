"""Differentiable grey-level co-occurrence matrices (GLCM), and losses on them.

Axis letters in trailing shape comments: M patches, H W the pixels of a patch, K grey levels, D offsets.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch

from .glcm_backends import one_pass_loss
from .glcm_support import (
    check_levels,
    check_mask,
    check_offsets,
    check_stack,
    in_bins,
    pair_slices,
    place_of_counting,
    support_of,
    warn_once_of_range,
)


def soft_assignment(
    image: torch.Tensor,
    *,
    levels: int,
    value_range: Sequence[float],
    kernel: str = "sigmoid",
    sharpness: float = 30.0,
) -> torch.Tensor:
    r"""Share every pixel among the grey levels, with weights that sum to 1.

    Level k has centre c_k and width w = (hi - lo) / levels; values outside [lo, hi] are clamped first.

    - "sigmoid" (Madan et al., arXiv 2507.10869): `s((x - c_k + w/2) / t) - s((x - c_k - w/2) / t)` with s the logistic
      function and t = w / sharpness, plus the same terms mirrored at lo and at hi, so that the sum telescopes to 1
      (up to exp(-levels * sharpness)).
    - "linear": triangular B-spline between level centres, `max(0, 1 - |x - c_k| / w)`; beyond the first and last
      centre all weight is theirs.
    - "hard": 1 for the level that holds x, else 0; hi belongs to the last level. It has no gradient.

    Args:
        image: `(...)`, any shape.
        levels: number K of grey levels, at least 2.
        value_range: (lo, hi), in the units of `image`.
        kernel: "sigmoid", "linear" or "hard".
        sharpness: of the sigmoid: bin width over logistic scale.

    Returns:
        `(..., K)` weights in [0, 1]; float64 for a float64 image, else float32.

    Raises:
        ValueError: on a wrong argument; names it, its value and what is allowed.
    """
    if not isinstance(image, torch.Tensor) or not image.is_floating_point():
        found = image.dtype if isinstance(image, torch.Tensor) else type(image).__name__
        raise ValueError(f"image must be a floating-point tensor in the units of value_range, got {found}")
    check_levels(levels, value_range, kernel, sharpness)
    x = image if image.dtype == torch.float64 else image.float()
    u = in_bins(x, levels, value_range).clamp(0, levels).unsqueeze(-1)  # ... 1
    k = torch.arange(levels, device=x.device, dtype=x.dtype)  # K
    if kernel == "hard":
        return (u.floor().clamp(max=levels - 1) == k).to(x.dtype)
    if kernel == "linear":
        return (1 - (u.clamp(0.5, levels - 0.5) - k - 0.5).abs()).clamp(min=0)

    def bump(v: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid((v - k) * sharpness) - torch.sigmoid((v - k - 1) * sharpness)

    return bump(u) + bump(-u) + bump(2 * levels - u)


def cooccurrence_matrix(
    image: torch.Tensor,
    *,
    levels: int,
    value_range: Sequence[float],
    offsets: Sequence[Sequence[int]],
    kernel: str = "sigmoid",
    sharpness: float = 30.0,
    symmetric: bool = False,
    normalize: bool = False,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Count how often grey levels i and j lie an offset apart (Haralick et al. 1973), differentiably.

    `G_ij(o) = sum over pixel pairs (n, n + o) of a_i(x_n) a_j(x_{n+o})`, with the weights a of `soft_assignment`.
    With `kernel="hard"` it equals `skimage.feature.graycomatrix`.

    Args:
        image: `(..., H, W)`, floating point.
        levels: number K of grey levels.
        value_range: (lo, hi) spanned by the levels, in the units of `image`; values outside are clamped. (The first
            images of a range are warned of if a quarter is, or all lie within one level.) The centre of level k is
            lo + (k + 1/2) (hi - lo) / K: of whole numbers 0..K-1 the range is (-0.5, K - 0.5), and with another one the
            soft kernels share each of them between two levels.
        offsets: `[[dy, dx], ...]`, D offsets (row, column) in pixels, shorter than the image.
        kernel: "sigmoid", "linear" or "hard".
        sharpness: of the sigmoid kernel.
        symmetric: count each pair in both orders (G + G^T).
        normalize: divide each matrix by its sum. A matrix without a pair stays 0.
        mask: bool, shape of `image`, with a pixel in every image; pairs with a pixel outside it do not count. What the
            image holds outside has no effect on the matrix or on the gradient, nor has NaN or infinity there.

    Returns:
        `(..., D, K, K)` joint counts (probabilities if normalised); float64 for a float64 image, else float32,
        whatever autocast says.

    Raises:
        TypeError: image or mask is no tensor.
        ValueError: on a wrong argument; names it, its value and what is allowed.
    """
    check_stack("image", image, "(..., H, W)", None)
    height, width = image.shape[-2:]
    check_levels(levels, value_range, kernel, sharpness)
    check_offsets(offsets, height, width)
    if mask is not None:
        check_mask(mask, image)
    warn_once_of_range("image", image, levels, value_range, lambda image: image if mask is None else image[mask])
    if mask is not None:
        # Before anything is computed: weight 0 would not silence a NaN.
        image = image.masked_fill(~mask, 0)
    with torch.autocast(image.device.type, enabled=False):
        if kernel == "hard":
            glcm = _hard_counts(image, levels, value_range, offsets, mask)  # ... D K K
        else:
            weights = soft_assignment(  # ... H W K
                image, levels=levels, value_range=value_range, kernel=kernel, sharpness=sharpness
            )
            if mask is not None:
                # A pair counts with the product of its two weights, so a pixel outside needs only weight 0.
                weights = weights * mask.unsqueeze(-1)
            matrices = []
            for dy, dx in offsets:
                rows, shifted_rows = pair_slices(dy, height)
                columns, shifted_columns = pair_slices(dx, width)
                first = weights[..., rows, columns, :].flatten(-3, -2)  # ... P K
                second = weights[..., shifted_rows, shifted_columns, :].flatten(-3, -2)  # ... P K
                matrices.append(first.transpose(-1, -2) @ second)  # ... K K
            glcm = torch.stack(matrices, dim=-3)  # ... D K K
        if symmetric:
            glcm = glcm + glcm.transpose(-1, -2)
        if normalize:
            total = glcm.sum(dim=(-2, -1), keepdim=True)
            # Not a clamp to a tiny number: its reciprocal would overflow in the gradient of a matrix without a pair.
            glcm = glcm / torch.where(total > 0, total, 1)
        return glcm


@torch.no_grad()
def _hard_counts(
    image: torch.Tensor,
    levels: int,
    value_range: Sequence[float],
    offsets: Sequence[Sequence[int]],
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Matrices `(..., D, K, K)` of the hard kernel: whole pairs are counted, without a weight for each level."""
    *leading, height, width = image.shape
    place = place_of_counting(image.device, torch.float64)
    images = image.to(place).reshape(-1, height, width)  # m H W
    dtype = torch.promote_types(image.dtype, torch.float32)
    index, weight, _ = (x.flatten(0, 1) for x in support_of(images.to(dtype), levels, value_range, "hard", math.inf))
    if mask is not None:
        weight = weight * mask.to(place).view_as(images)
    matrices = []
    for dy, dx in offsets:
        (rows, shifted_rows), (columns, shifted_columns) = pair_slices(dy, height), pair_slices(dx, width)
        first, second = (slice(None), rows, columns), (slice(None), shifted_rows, shifted_columns)
        cell = (index[first] * levels + index[second]).flatten(1)
        # float32 stops counting at 2^24 pairs in a cell: a large black background has more.
        counts = torch.zeros(len(images), levels**2, dtype=torch.float64, device=place)
        matrices.append(counts.scatter_add_(1, cell, (weight[first] * weight[second]).flatten(1).double()).to(dtype))
    return torch.stack(matrices, dim=1).view(*leading, len(offsets), levels, levels).to(image.device)


def _dense_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    reweight: bool,
    cumulative: bool,
    **matrix_arguments,
) -> torch.Tensor:
    """The definition, written plainly: both matrices in full. `(M, H, W)` twice -> `(M,)`."""
    with torch.no_grad():  # first: the range is that of the target, which a prediction may still be far from
        glcm_target = cooccurrence_matrix(target, **matrix_arguments)  # M D K K
    glcm_pred = cooccurrence_matrix(pred, **matrix_arguments)  # M D K K
    if reweight:
        glcm_pred, glcm_target = down_weight_crowded_cells(glcm_pred), down_weight_crowded_cells(glcm_target)
    difference = glcm_pred - glcm_target  # M D K K
    if cumulative:
        difference = difference.cumsum(-2).cumsum(-1)
    return difference.square().mean(dim=(-3, -2, -1))


def down_weight_crowded_cells(glcm: torch.Tensor) -> torch.Tensor:
    """`G (S - G) / S` with S the sum of G: the published weighting, which keeps crowded cells from dominating.

    Args:
        glcm: `(..., K, K)` joint counts or probabilities.

    Returns:
        The same shape. A matrix of zeros stays zero.
    """
    total = glcm.sum(dim=(-2, -1), keepdim=True)
    return glcm * (total - glcm) / torch.where(total > 0, total, 1)


# A backend takes (pred, target, reweight, cumulative, **arguments of cooccurrence_matrix): the loss of each patch.
BACKENDS: dict[str, Callable[..., torch.Tensor]] = {
    "auto": functools.partial(one_pass_loss, "auto"),
    "dense": _dense_loss,
    "sparse": functools.partial(one_pass_loss, "sparse"),
    "numba": functools.partial(one_pass_loss, "numba"),
    "triton": functools.partial(one_pass_loss, "triton"),
}


def glcm_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    levels: int,
    value_range: Sequence[float],
    offsets: Sequence[Sequence[int]],
    kernel: str = "sigmoid",
    sharpness: float = 30.0,
    reweight: bool = True,
    symmetric: bool = False,
    normalize: bool = False,
    cumulative: bool = False,
    mask: torch.Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> torch.Tensor:
    r"""Mean squared difference of the co-occurrence matrices of two stacks of patches (arXiv 2507.10869).

    Per patch, the mean over offsets and cells of `(g(G_pred) - g(G_target))^2`, with g the identity,
    `g(G) = G (S - G) / S` with S the sum of G if `reweight`, or the cumulative matrix if `cumulative`.

    Args:
        pred: `(M, H, W)`, floating point. The gradient flows here.
        target: `(M, H, W)`, floating point. No gradient flows here.
        levels: number K of grey levels.
        value_range: (lo, hi) spanned by the levels, in the units of both stacks; values outside are clamped.
        offsets: `[[dy, dx], ...]` in pixels.
        kernel: "sigmoid", "linear" or "hard" (no gradient).
        sharpness: of the sigmoid kernel.
        reweight: down-weight crowded cells.
        symmetric: count each pair in both orders.
        normalize: divide each matrix by its sum.
        cumulative: compare the cumulative matrices, `C_ij` = sum of `G_kl` over k <= i and l <= j: the squared distance
            of two joint distribution functions, as in the criterion of Cramér and von Mises. A pair of grey values
            that is off by few levels then costs less than one that is off by many. Not together with `reweight`. Takes
            time by the number of cells; meant for up to 64 levels.
        mask: bool, `(M, H, W)`, with a pixel in every patch: pairs with a pixel outside it count in neither matrix, and
            no gradient flows there. For the backends "dense" and "auto", which is "dense" then: memory grows with
            `levels` values a pixel. A compiled graph does not look whether the mask leaves a pixel.
        reduction: "mean" over the patches, or "none".
        backend: "dense" (the definition: both matrices in full), "sparse" (only the cells that pairs touch; equal but
            for weights below 1e-6 and the exp(-levels * sharpness) that the sigmoid's weights lack of 1; far cheaper,
            once differentiable), "numba" (the same, compiled for the CPU), "triton" (the same, fused for CUDA) or
            "auto", the fastest of these: "numba" on the CPU where Numba is installed, "triton" for windows of up to
            64 x 64 pixels on CUDA where Triton is installed, else "sparse".

    Returns:
        A scalar, or `(M,)` with `reduction="none"`. With no patch (M = 0) the mean is 0, with a gradient of zeros.
        float64 for float64 input, else float32, whatever autocast says.

    Raises:
        ValueError: on a wrong argument; names it, its value and what is allowed.
        ImportError: if the package that `backend` names is not installed.

    Example:

    ```python
    >>> import torch
    >>> from modeling_glcm_mae import glcm_loss

    >>> pred = torch.rand(4, 16, 16, requires_grad=True)
    >>> target = torch.rand(4, 16, 16)
    >>> glcm_loss(pred, target, levels=32, value_range=(0, 1), offsets=[[0, 1], [1, 0]], kernel="linear").backward()
    ```
    """
    check_stack("pred", pred, "(M, H, W)", 3)
    check_stack("target", target, "(M, H, W)", 3)
    if pred.shape != target.shape:
        raise ValueError(
            f"pred and target must have the same shape (M, H, W), got {tuple(pred.shape)} and {tuple(target.shape)}"
        )
    check_choices(reduction, backend, reweight, cumulative)
    if target.requires_grad and not pred.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "pred must be what is trained, but only target requires a gradient, and gets none: exchange them"
        )
    masking = {} if mask is None else {"mask": mask}
    if masking and backend not in ("auto", "dense"):
        raise ValueError(f'backend must be "auto" or "dense" with a mask, got {backend!r}')
    per_patch = BACKENDS["dense" if masking else backend](
        pred,
        target,
        reweight,
        cumulative,
        **masking,
        levels=levels,
        value_range=value_range,
        offsets=offsets,
        kernel=kernel,
        sharpness=sharpness,
        symmetric=symmetric,
        normalize=normalize,
    )
    if reduction == "none":
        return per_patch
    # A plain mean of nothing would be NaN.
    return per_patch.sum() / max(len(per_patch), 1)


def check_choices(reduction: str, backend: str, reweight: bool, cumulative: bool) -> None:
    """Raise `ValueError` on settings of `glcm_loss` that cannot be; names argument, value and what is allowed."""
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be mean or none, got {reduction!r}")
    if cumulative and reweight:
        raise ValueError("cumulative=True must not be combined with reweight=True: it would sum what is not a count")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


__all__ = ["cooccurrence_matrix", "glcm_loss", "soft_assignment"]
