"""Differentiable grey-level co-occurrence matrices (GLCM), and losses on them.

Axis letters in trailing shape comments: M patches, H W the pixels of a patch, K grey levels, D offsets.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.autograd.function import once_differentiable


def offsets_from_angles(distances: Sequence[int], angles: Sequence[float]) -> list[list[int]]:
    """Turn distances and angles into integer offsets, with the rounding of `skimage.feature.graycomatrix`.

    Args:
        distances: in pixels.
        angles: in radians, counted from the column axis towards increasing rows.

    Returns:
        `[[dy, dx], ...]`, distance by distance: `dy = round(sin(angle) * distance)`,
        `dx = round(cos(angle) * distance)`.

    Raises:
        ValueError: if an offset is (0, 0).
    """
    offsets = [
        [round(math.sin(angle) * distance), round(math.cos(angle) * distance)]
        for distance in distances
        for angle in angles
    ]
    if [0, 0] in offsets:
        raise ValueError(f"every distance must be at least 1 pixel, got {list(distances)}")
    return offsets


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
    _check_levels(levels, value_range, kernel, sharpness)
    x = image if image.dtype == torch.float64 else image.float()
    u = _in_bins(x, levels, value_range).clamp(0, levels).unsqueeze(-1)  # ... 1
    k = torch.arange(levels, device=x.device, dtype=x.dtype)  # K
    if kernel == "hard":
        return (u.floor().clamp(max=levels - 1) == k).to(x.dtype)
    if kernel == "linear":
        return (1 - (u.clamp(0.5, levels - 0.5) - k - 0.5).abs()).clamp(min=0)

    def bump(v: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid((v - k) * sharpness) - torch.sigmoid((v - k - 1) * sharpness)

    return bump(u) + bump(-u) + bump(2 * levels - u)


def _in_bins(x: torch.Tensor, levels: int, value_range: Sequence[float]) -> torch.Tensor:
    """Values counted in bins from lo: level k spans k..k+1 and has its centre at k + 0.5."""
    lo, hi = map(float, value_range)
    return (x - lo) / ((hi - lo) / levels)


def _check_levels(levels: int, value_range: Sequence[float], kernel: str, sharpness: float) -> None:
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    if len(value_range) != 2 or not all(map(math.isfinite, value_range)) or not value_range[0] < value_range[1]:
        raise ValueError(f"value_range must be two finite numbers (lo, hi) with lo < hi, got {tuple(value_range)}")
    if kernel not in ("sigmoid", "linear", "hard"):
        raise ValueError(f"kernel must be one of sigmoid, linear, hard, got {kernel!r}")
    if kernel == "sigmoid" and not 0 < sharpness < math.inf:
        raise ValueError(f'sharpness must be finite and greater than 0 (kernel "hard" is infinity), got {sharpness}')


def _check_offsets(offsets: Sequence[Sequence[int]], height: int, width: int) -> None:
    if len(offsets) == 0:
        raise ValueError("offsets must hold at least one [dy, dx], got none")
    for offset in offsets:
        if len(offset) != 2 or abs(offset[0]) >= height or abs(offset[1]) >= width or not any(offset):
            raise ValueError(
                f"every offset must be [dy, dx] in whole pixels, not [0, 0] and shorter than the image "
                f"({height} x {width} pixels), got {list(offset)}"
            )


def _pair_slices(offset: int, size: int) -> tuple[slice, slice]:
    """Index ranges of the first and of the second pixel of all pairs `offset` apart along an axis of `size`."""
    return slice(max(0, -offset), size - max(0, offset)), slice(max(0, offset), size + min(0, offset))


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
        value_range: (lo, hi) spanned by the levels, in the units of `image`.
        offsets: `[[dy, dx], ...]`, D offsets (row, column) in pixels, shorter than the image.
        kernel: "sigmoid", "linear" or "hard".
        sharpness: of the sigmoid kernel.
        symmetric: count each pair in both orders (G + G^T).
        normalize: divide each matrix by its sum. A matrix without a pair stays 0.
        mask: bool, shape of `image`; pairs with a pixel outside it do not count.

    Returns:
        `(..., D, K, K)` joint counts (probabilities if normalised); float64 for a float64 image, else float32,
        whatever autocast says.

    Raises:
        ValueError: on a wrong argument; names it, its value and what is allowed.
    """
    if image.dim() < 2 or not image.is_floating_point():
        raise ValueError(f"image must be floating point (..., H, W), got {image.dtype} of shape {tuple(image.shape)}")
    height, width = image.shape[-2:]
    _check_offsets(offsets, height, width)
    if mask is not None and (mask.shape != image.shape or mask.dtype != torch.bool):
        raise ValueError(
            f"mask must be bool of the image's shape {tuple(image.shape)}, got {mask.dtype} of {tuple(mask.shape)}"
        )
    with torch.autocast(image.device.type, enabled=False):
        weights = soft_assignment(  # ... H W K
            image, levels=levels, value_range=value_range, kernel=kernel, sharpness=sharpness
        )
        if mask is not None:
            # A pair counts with the product of its two weights, so a pixel outside needs only weight 0.
            weights = weights * mask.unsqueeze(-1)
        matrices = []
        for dy, dx in offsets:
            rows, shifted_rows = _pair_slices(dy, height)
            columns, shifted_columns = _pair_slices(dx, width)
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


def _dense_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    reweight: bool,
    **matrix_arguments,
) -> torch.Tensor:
    """The definition, written plainly: both matrices in full. `(M, H, W)` twice -> `(M,)`."""
    glcm_pred = cooccurrence_matrix(pred, **matrix_arguments)  # M D K K
    with torch.no_grad():
        glcm_target = cooccurrence_matrix(target, **matrix_arguments)  # M D K K
    if reweight:
        glcm_pred, glcm_target = down_weight_crowded_cells(glcm_pred), down_weight_crowded_cells(glcm_target)
    return (glcm_pred - glcm_target).square().mean(dim=(-3, -2, -1))


def down_weight_crowded_cells(glcm: torch.Tensor) -> torch.Tensor:
    """`G (S - G) / S` with S the sum of G: the published weighting, which keeps crowded cells from dominating.

    Args:
        glcm: `(..., K, K)` joint counts or probabilities.

    Returns:
        The same shape. A matrix of zeros stays zero.
    """
    total = glcm.sum(dim=(-2, -1), keepdim=True)
    return glcm * (total - glcm) / torch.where(total > 0, total, 1)


# Weights that the sparse backend leaves out sum to less than this, per pixel.
SUPPORT_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}
# Numbers that the scratch of the sparse backend holds at once: 2 MB of float32, which stays in the cache of a core.
SCRATCH_SIZE = 2**19


def _support(
    x: torch.Tensor, levels: int, value_range: Sequence[float], kernel: str, sharpness: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The few levels that share a pixel, with their weights and the derivatives of these by the pixel's value.

    A window of levels around the pixel, folded back at both ends of the range: level -1 is level 0, level K is
    level K - 1. That is what the mirrored terms of the sigmoid do, and the clamping of the linear kernel.
    `(...)` -> `index` (int64), `weight` and `slope` (None for the hard kernel), each `(S, ...)`.
    """
    u = _in_bins(x, levels, value_range)
    inside = (u >= 0) & (u <= levels)
    u = u.clamp(0, levels)
    if kernel == "hard":
        return u.floor().long().clamp(0, levels - 1).unsqueeze(0), (0 * u + 1).unsqueeze(0), None
    if kernel == "linear":
        first = (u - 0.5).floor()
        share = u - 0.5 - first
        weight = torch.stack([1 - share, share])
        slope = torch.stack([-torch.ones_like(u), torch.ones_like(u)])
    else:
        # The window ends at least half_width - 1/2 bins from the pixel; beyond, each tail holds
        # exp(-sharpness * distance) of the weight.
        half_width = math.ceil(0.5 - math.log(SUPPORT_TOLERANCE[x.dtype] / 2) / sharpness)
        first = u.round() - half_width
        # Level j weighs s(sharpness * (u - j)) - s(sharpness * (u - j - 1)): differences along the edges of the window.
        steps = torch.arange(2 * half_width + 1, device=x.device).view(-1, *[1] * x.dim())
        edges = torch.sigmoid((u - first - steps) * sharpness)
        weight = edges[:-1] - edges[1:]
        slopes = edges * (1 - edges) * sharpness
        slope = slopes[:-1] - slopes[1:]
    index = first.long() + torch.arange(len(weight), device=x.device).view(-1, *[1] * x.dim())
    index = torch.where(index < 0, -1 - index, index)
    index = torch.where(index >= levels, 2 * levels - 1 - index, index)
    outside = (index < 0) | (index >= levels)  # a window wider than the whole range is folded once only
    # A product, not masked_fill: the index of a NaN means nothing, and its weights must stay NaN to show in the loss.
    weight = weight * ~outside
    lo, hi = map(float, value_range)
    slope = slope * (~outside & inside) * (levels / (hi - lo))
    return index.clamp(0, levels - 1), weight, slope


def _plane(x: torch.Tensor, window: tuple[slice, slice]) -> torch.Tensor:
    """`(S, m, H, W)` -> `(S, m * pairs)`: the pixels in a window."""
    return x[:, :, *window].flatten(1)


def _weighted(g: torch.Tensor, total: float, reweight: bool) -> tuple[torch.Tensor, torch.Tensor | float]:
    """`g(G)` and its derivative by G."""
    return (g * (1 - g / total), 1 - 2 * g / total) if reweight else (g, 1.0)


class _SparseLoss(torch.autograd.Function):
    """Loss and gradient in one pass over the cells that the pairs of pixels touch.

    With D = g(G_pred) - g(G_target), and each matrix a sum of entries (weight v in cell c):
    `sum over cells of D^2 = sum over entries of +-v * g(G)[c] / G[c] * D[c]`, and
    `d loss / d v = 2 * D[c] * g'(G[c])` for an entry of the prediction. Both only read cells that were written, so the
    cost does not grow with the number of levels, and the scratch is cleared by writing zeros to the same cells.
    The sum S of a matrix is the number of its pairs, since the weights of a pixel sum to 1.
    """

    @staticmethod
    def forward(ctx, pred, target, reweight, levels, value_range, offsets, kernel, sharpness, symmetric, normalize):
        settings = (levels, value_range, kernel, sharpness)
        dtype = torch.promote_types(pred.dtype, torch.float32)
        pred, target = pred.detach().to(dtype), target.detach().to(dtype)
        losses = pred.new_zeros(len(pred))
        gradient = torch.zeros_like(pred) if ctx.needs_input_grad[0] and kernel != "hard" else None
        cells, (height, width) = levels * levels, pred.shape[1:]
        support = len(_support(pred[:0], *settings)[0])
        chunk = max(1, min(SCRATCH_SIZE // cells, SCRATCH_SIZE // (height * width * support**2)))
        for start in range(0, len(pred), chunk):
            part = slice(start, start + chunk)
            sides = [_support(x[part], *settings) for x in (pred, target)]
            m = sides[0][0].shape[1]
            scratch = pred.new_zeros(2, m * cells)
            first_cell = (torch.arange(m, device=pred.device) * cells)[:, None, None]
            for dy, dx in offsets:
                rows, columns = _pair_slices(dy, height), _pair_slices(dx, width)
                first, second = zip(rows, columns, strict=True)
                window = (height - abs(dy), width - abs(dx))
                total = math.prod(window) * (2 if symmetric else 1)
                entries = []
                for index, weight, _ in sides:
                    # Contiguous planes (S, m * pairs), so that the products below run over long rows.
                    i = (index[:, :, *first] * levels + first_cell).flatten(1)
                    j = index[:, :, *second].flatten(1)
                    cell, value = i[:, None] + j, _plane(weight, first)[:, None] * _plane(weight, second)  # S S m*P
                    if normalize:
                        value = value / total
                    if symmetric:
                        i = (index[:, :, *second] * levels + first_cell).flatten(1)
                        cell = torch.stack([cell, i + index[:, :, *first].flatten(1)[:, None]])
                        value = torch.stack([value, value])
                    entries.append((cell, value))
                for matrix, (cell, value) in zip(scratch, entries, strict=True):
                    matrix.index_add_(0, cell.flatten(), value.flatten())
                whole = 1.0 if normalize else total
                cell, _ = entries[0]
                if cells * m <= cell.numel():
                    # Fewer cells than entries: cheaper to go through the matrices themselves.
                    (g_pred, rate), (g_target, _) = (_weighted(matrix, whole, reweight) for matrix in scratch)
                    difference = g_pred - g_target
                    losses[part] += difference.square().view(m, cells).sum(1)
                    by_value = (2 * difference * rate)[cell.flatten()]
                    scratch.zero_()
                else:
                    for side, (cell, value) in enumerate(entries):
                        own, other = scratch[side][cell.flatten()], scratch[1 - side][cell.flatten()]
                        (g_own, rate), (g_other, _) = (_weighted(x, whole, reweight) for x in (own, other))
                        # g(G) / G is 1 - G / S or 1; own cells are never empty where an entry has weight.
                        share = value.flatten() * (1 - own / whole if reweight else 1)
                        terms = (share * (g_own - g_other)).view(-1, m, math.prod(window))
                        losses[part] += terms.sum(dim=(0, 2))
                        if side == 0:
                            by_value = 2 * (g_own - g_other) * rate
                    for matrix, (cell, _) in zip(scratch, entries, strict=True):
                        matrix[cell.flatten()] = 0
                if gradient is None:
                    continue
                by_value = by_value.view(-1, support, support, m * math.prod(window)).sum(0)  # S S m*P
                if normalize:
                    by_value = by_value / total
                _, weight, slope = sides[0]
                by_first = ((by_value * _plane(weight, second)).sum(1) * _plane(slope, first)).sum(0)
                by_second = ((by_value * _plane(weight, first)[:, None]).sum(0) * _plane(slope, second)).sum(0)
                gradient[part][:, *first] += by_first.view(m, *window)
                gradient[part][:, *second] += by_second.view(m, *window)
        count = len(offsets) * cells
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.zeros_like(pred) if gradient is None else gradient.div_(count))
        return losses / count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_losses):
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_losses[:, None, None], *[None] * 9)


def _sparse_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    reweight: bool,
    *,
    levels: int,
    value_range: Sequence[float],
    offsets: Sequence[Sequence[int]],
    kernel: str,
    sharpness: float,
    symmetric: bool,
    normalize: bool,
) -> torch.Tensor:
    _check_levels(levels, value_range, kernel, sharpness)
    _check_offsets(offsets, *pred.shape[1:])
    with torch.autocast(pred.device.type, enabled=False):
        return _SparseLoss.apply(
            pred, target, reweight, levels, value_range, offsets, kernel, sharpness, symmetric, normalize
        )


# A backend takes (pred, target, reweight, **arguments of cooccurrence_matrix) and returns the loss of each patch.
BACKENDS: dict[str, Callable[..., torch.Tensor]] = {"dense": _dense_loss, "sparse": _sparse_loss}


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
    reduction: str = "mean",
    backend: str = "auto",
) -> torch.Tensor:
    r"""Mean squared difference of the co-occurrence matrices of two stacks of patches (arXiv 2507.10869).

    Per patch, the mean over offsets and cells of `(g(G_pred) - g(G_target))^2`, with g the identity, or
    `g(G) = G (S - G) / S` with S the sum of G if `reweight`.

    Args:
        pred: `(M, H, W)`, floating point. The gradient flows here.
        target: `(M, H, W)`. No gradient flows here.
        levels: number K of grey levels.
        value_range: (lo, hi) spanned by the levels, in the units of both stacks; values outside are clamped.
        offsets: `[[dy, dx], ...]` in pixels.
        kernel: "sigmoid", "linear" or "hard" (no gradient).
        sharpness: of the sigmoid kernel.
        reweight: down-weight crowded cells.
        symmetric: count each pair in both orders.
        normalize: divide each matrix by its sum.
        reduction: "mean" over the patches, or "none".
        backend: "dense" (the definition: both matrices in full), "sparse" (only the cells that pairs touch; equal but
            for weights below 1e-6, far cheaper, once differentiable) or "auto", the fastest.

    Returns:
        A scalar, or `(M,)` with `reduction="none"`. With no patch (M = 0) the mean is 0, with a gradient of zeros.
        float64 for float64 input, else float32, whatever autocast says.

    Raises:
        ValueError: on a wrong argument; names it, its value and what is allowed.

    Example:

    ```python
    >>> import torch
    >>> from modeling_glcm_mae import glcm_loss

    >>> pred = torch.rand(4, 16, 16, requires_grad=True)
    >>> target = torch.rand(4, 16, 16)
    >>> glcm_loss(pred, target, levels=32, value_range=(0, 1), offsets=[[0, 1], [1, 0]], kernel="linear").backward()
    ```
    """
    if pred.shape != target.shape or pred.dim() != 3:
        raise ValueError(
            f"pred and target must have the same shape (M, H, W), got {tuple(pred.shape)} and {tuple(target.shape)}"
        )
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be mean or none, got {reduction!r}")
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend must be one of auto, {', '.join(BACKENDS)}, got {backend!r}")
    per_patch = BACKENDS["sparse" if backend == "auto" else backend](
        pred,
        target,
        reweight,
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


def ssim_loss(pred: torch.Tensor, target: torch.Tensor, *, reduction: str = "mean") -> torch.Tensor:
    r"""1 - SSIM of patches whose values span [0, 1] (Wang et al., IEEE TIP 2004, equation 13).

    Gaussian window of 11 taps and standard deviation 1.5 pixels, valid region only, K1 = 0.01, K2 = 0.03. In a patch
    of fewer than 11 pixels the window has the largest odd number of taps that fits.

    Args:
        pred: `(M, C, H, W)`.
        target: `(M, C, H, W)`.
        reduction: "mean" over the patches, or "none".

    Returns:
        A scalar, or `(M,)` with `reduction="none"`: the mean over channels and window positions. With no patch the
        mean is 0, with a gradient of zeros.
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be mean or none, got {reduction!r}")
    with torch.autocast(pred.device.type, enabled=False):
        if pred.dtype != torch.float64:
            pred, target = pred.float(), target.float()
        rows, columns = (_gaussian_filter_matrix(size, pred) for size in pred.shape[-2:])

        def smooth(x: torch.Tensor) -> torch.Tensor:
            # The window is separable and patches are small: two matrix products cost less than a convolution.
            return rows @ x @ columns.T

        mean_pred, mean_target = smooth(pred), smooth(target)
        variance_pred = smooth(pred * pred) - mean_pred * mean_pred
        variance_target = smooth(target * target) - mean_target * mean_target
        covariance = smooth(pred * target) - mean_pred * mean_target
        c1, c2 = 0.01**2, 0.03**2
        ssim = ((2 * mean_pred * mean_target + c1) * (2 * covariance + c2)) / (
            (mean_pred.square() + mean_target.square() + c1) * (variance_pred + variance_target + c2)
        )
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


class GLCMLoss(nn.Module):
    """`glcm_loss` with its settings kept, to be used as the texture loss of any network.

    Args:
        **settings: the keyword arguments of `glcm_loss`.
    """

    def __init__(self, **settings):
        super().__init__()
        self.settings = settings

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """`(M, H, W)` twice -> the loss."""
        return glcm_loss(pred, target, **self.settings)

    def extra_repr(self) -> str:
        """Show the settings."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())


__all__ = ["GLCMLoss", "cooccurrence_matrix", "glcm_loss", "offsets_from_angles", "soft_assignment", "ssim_loss"]
