"""Differentiable grey-level co-occurrence matrices (GLCM), and losses on them.

Axis letters in trailing shape comments: M patches, H W the pixels of a patch, K grey levels, D offsets.
"""

import functools
import importlib
import math
import re
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from torch import nn


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
    if not isinstance(levels, Integral) or levels < 2:
        raise ValueError(f"levels must be an integer of at least 2, got {levels!r}")
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
        whole = len(offset) == 2 and all(isinstance(step, Integral) for step in offset)
        if not whole or abs(offset[0]) >= height or abs(offset[1]) >= width or not any(offset):
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
        mask: bool, shape of `image`; pairs with a pixel outside it do not count. What the image holds outside has no
            effect on the matrix or on the gradient, nor has NaN or infinity there.

    Returns:
        `(..., D, K, K)` joint counts (probabilities if normalised); float64 for a float64 image, else float32,
        whatever autocast says.

    Raises:
        ValueError: on a wrong argument; names it, its value and what is allowed.
    """
    if image.dim() < 2 or not image.is_floating_point():
        raise ValueError(f"image must be floating point (..., H, W), got {image.dtype} of shape {tuple(image.shape)}")
    height, width = image.shape[-2:]
    _check_levels(levels, value_range, kernel, sharpness)
    _check_offsets(offsets, height, width)
    if mask is not None and (mask.shape != image.shape or mask.dtype != torch.bool):
        raise ValueError(
            f"mask must be bool of the image's shape {tuple(image.shape)}, got {mask.dtype} of {tuple(mask.shape)}"
        )
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
    place = _place_of_counting(image.device, torch.float64)
    images = image.to(place).reshape(-1, height, width)  # m H W
    dtype = torch.promote_types(image.dtype, torch.float32)
    index, weight, _ = (x.flatten(0, 1) for x in _support(images.to(dtype), levels, value_range, "hard", math.inf))
    if mask is not None:
        weight = weight * mask.to(place).view_as(images)
    matrices = []
    for dy, dx in offsets:
        (rows, shifted_rows), (columns, shifted_columns) = _pair_slices(dy, height), _pair_slices(dx, width)
        first, second = (slice(None), rows, columns), (slice(None), shifted_rows, shifted_columns)
        cell = (index[first] * levels + index[second]).flatten(1)
        # float32 stops counting at 2^24 pairs in a cell: a large black background has more.
        counts = torch.zeros(len(images), levels**2, dtype=torch.float64, device=place)
        matrices.append(counts.scatter_add_(1, cell, (weight[first] * weight[second]).flatten(1).double()).to(dtype))
    return torch.stack(matrices, dim=1).view(*leading, len(offsets), levels, levels).to(image.device)


def _place_of_counting(device: torch.device, dtype: torch.dtype) -> torch.device:
    """Where counts of `dtype` are added up: on `device`, or on the CPU if `device` has no float64 (Apple's GPUs)."""
    return torch.device("cpu") if device.type == "mps" and dtype == torch.float64 else device


def _dense_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    reweight: bool,
    cumulative: bool,
    **matrix_arguments,
) -> torch.Tensor:
    """The definition, written plainly: both matrices in full. `(M, H, W)` twice -> `(M,)`."""
    glcm_pred = cooccurrence_matrix(pred, **matrix_arguments)  # M D K K
    with torch.no_grad():
        glcm_target = cooccurrence_matrix(target, **matrix_arguments)  # M D K K
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


# Weight of a pixel that the sparse backend may move to a nearer level: what lies beyond the support of the kernel.
SUPPORT_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}
# What a thread of the sparse backend works on at once: cells of its scratch (of 256 levels: those of 16 patches, 4 MiB
# in float32, twice that if down-weighted), and pairs of levels. Fewer patches would fit a cache better, but PyTorch
# shares a gather or scatter among threads only from about 2^15 elements each, which are 16 patches of 16 x 16.
CELLS_AT_ONCE = 2**20
ENTRIES_AT_ONCE = 3 * 2**14
# Windows of more pixels are counted in float64.
MAX_FLOAT32_PIXELS = 32 * 32
# A GPU is served as if it were so many threads.
GPU_THREADS = 16
# The Triton backend holds a patch in the registers of a multiprocessor.
MAX_TRITON_PIXELS = 64 * 64
MAX_TRITON_CUMULATIVE_LEVELS = 64  # and a cumulative matrix too


def _table_dtype(support: int, pixels: int, cumulative: bool, dtype: torch.dtype) -> torch.dtype:
    """In which the entries of a matrix are added up.

    A wide kernel adds thousands of small weights to each cell, and so does a large window: too many for a float32 sum,
    as are the cells of a cumulative matrix.
    """
    return torch.float64 if support > 2 or pixels > MAX_FLOAT32_PIXELS or cumulative else dtype


def _support_window(kernel: str, sharpness: float, dtype: torch.dtype) -> tuple[int, int]:
    """How many levels below the nearest edge between levels the support of a pixel begins, and its number S of levels.

    The first number means something for the sigmoid only.
    """
    if kernel != "sigmoid":
        return 0, {"hard": 1, "linear": 2}[kernel]
    # The window ends at least half_width - 1/2 bins from the pixel; beyond, each tail holds
    # exp(-sharpness * distance) of the weight.
    # Less the wider the kernel is: the smoother two matrices are, the less they differ.
    tolerance = SUPPORT_TOLERANCE[dtype] * min(1, sharpness / 30) ** 2
    half_width = math.ceil(0.5 - math.log(tolerance / 2) / sharpness)
    return half_width, 2 * half_width


def _support(
    x: torch.Tensor, levels: int, value_range: Sequence[float], kernel: str, sharpness: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The few levels that share a pixel, with their weights and the derivatives of these by the pixel's value.

    A window of levels around the pixel, folded back at both ends of the range: level -1 is level 0, level K is
    level K - 1. That is what the mirrored terms of the sigmoid do, and the clamping of the linear kernel.
    `(m, H, W)` -> `index` (int64), `weight` and `slope`, each `(m, S, H, W)`.
    """
    u = _in_bins(x, levels, value_range).unsqueeze(1)  # m 1 H W
    lo, hi = map(float, value_range)
    clamped = u.clamp(0, levels)
    per_unit = (u == clamped).to(x.dtype) * (levels / (hi - lo))  # bins, 0 where the pixel was clamped
    u = clamped
    if kernel == "hard":
        return u.floor().long().clamp(0, levels - 1), 0 * u + 1, torch.zeros_like(u)  # the weight of NaN is NaN
    if kernel == "linear":
        first = (u - 0.5).floor()
        edges, slopes = u - 0.5 - first, per_unit
    else:
        # Level j weighs s(sharpness * (u - j)) - s(sharpness * (u - j - 1)): differences along the edges of the window.
        half_width, count = _support_window(kernel, sharpness, x.dtype)
        first = u.round() - half_width
        edges = torch.sigmoid((u - first - torch.arange(1, count, device=x.device).view(1, -1, 1, 1)) * sharpness)
        slopes = edges * (1 - edges) * (sharpness * per_unit)
    # At the ends of the window s is taken to be 1 and 0, so that the weights sum to 1 exactly.
    weight = torch.cat([1 - edges[:, :1], edges[:, :-1] - edges[:, 1:], edges[:, -1:]], 1)
    slope = torch.cat([-slopes[:, :1], slopes[:, :-1] - slopes[:, 1:], slopes[:, -1:]], 1)
    index = first.long() + torch.arange(weight.shape[1], device=x.device).view(1, -1, 1, 1)
    if weight.shape[1] > 2:
        index = torch.where(index < 0, -1 - index, index)
        index = torch.where(index >= levels, 2 * levels - 1 - index, index)
        inside = (index >= 0) & (index < levels)  # a window wider than the whole range is folded once only
        # A product, not masked_fill: the index of a NaN means nothing, and its weights must stay NaN to show.
        weight, slope = weight * inside, slope * inside
    return index.clamp_(0, levels - 1), weight, slope


def _pixels(x: torch.Tensor, window: tuple[slice, slice]) -> torch.Tensor:
    """`(m, S, H, W)` -> `(m, S, P)`: the pixels in a window."""
    return x[:, :, *window].flatten(2)


def _compare_entries(
    scratch: torch.Tensor,
    cell: torch.Tensor,
    value: torch.Tensor,
    total: float,
    *,
    whole_matrices: bool,
    cumulative: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared difference of the matrices that entries add up to, and half its derivative by those of the predictions.

    Args:
        scratch: matrices of a few patches `(held, K*K)`, of any content. Complex to down-weight crowded cells: G_pred
            and G_target are the real and the imaginary part of a number, so that one read finds both. If real, only
            G_pred - G_target is held.
        cell: of the entries of predictions and targets `(m, 2, E)`.
        value: of these entries; may be changed.
        total: sum of a matrix.
        whole_matrices: go through all cells, not those of the entries. All patches must fit the scratch.
        cumulative: compare cumulative matrices. Whole and real ones only.

    Returns:
        `(m,)` and `(m, E)`.
    """
    m, reweight = len(cell), scratch.is_complex()
    if not reweight:
        value[:, 1].neg_()

    def add_entries(matrices: torch.Tensor, part: slice) -> None:
        if reweight:
            torch.view_as_real(matrices).transpose(1, 2).scatter_add_(2, cell[part], value[part])
        else:
            matrices.scatter_add_(1, cell[part].flatten(1), value[part].flatten(1))

    if whole_matrices:
        found = scratch[:m].zero_()
        add_entries(found, slice(None))
    else:
        found = scratch.new_empty(m, cell[0].numel())  # m 2E
        zero = scratch.new_zeros(())
        for begin in range(0, m, len(scratch)):
            part = slice(begin, begin + len(scratch))
            touched = cell[part].flatten(1)
            matrices = scratch[: len(touched)].scatter_(1, touched, zero.expand_as(touched))
            add_entries(matrices, part)
            torch.gather(matrices, 1, touched, out=found[part])
    if reweight:
        g_pred, g_target = torch.view_as_real(found).unbind(-1)
        difference = g_pred - g_target
        # No digits are lost where both are large and alike.
        difference.addcmul_(difference, g_pred + g_target, value=-1 / total)
    else:
        difference = found
    if whole_matrices:
        if cumulative:
            side = math.isqrt(difference.shape[1])
            difference = difference.view(m, side, side).cumsum(1).cumsum(2)
            # A cell is part of all sums that end at or after it.
            by_cell = difference.flip(1, 2).cumsum(1).cumsum(2).flip(1, 2).flatten(1)
            difference = difference.flatten(1)
        else:
            by_cell = difference.addcmul(difference, g_pred, value=-2 / total) if reweight else difference
        return difference.square().sum(1), by_cell.gather(1, cell[:, 0])
    of_pred, of_target = difference.view(m, 2, -1).unbind(1)  # m E
    by_value = of_pred
    if reweight:
        g_pred, g_target = g_pred.view(m, 2, -1)[:, 0], g_target.view(m, 2, -1)[:, 1]
        by_value = of_pred.addcmul(of_pred, g_pred, value=-2 / total)
        of_pred.lerp_(by_value, 0.5)
        of_target.addcmul_(of_target, g_target, value=-1 / total).neg_()
    return (value.flatten(1) * difference).sum(1), by_value


def _sparse_loss_and_gradient(
    pred: torch.Tensor,
    target: torch.Tensor,
    with_gradient: bool,
    *,
    levels: int,
    value_range: Sequence[float],
    offsets: Sequence[Sequence[int]],
    kernel: str,
    sharpness: float,
    reweight: bool,
    symmetric: bool,
    normalize: bool,
    cumulative: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each patch `(M,)` and its gradient by `pred` `(M, H, W)`, in one pass over the cells that pairs touch.

    With D = g(G_pred) - g(G_target), and each matrix a sum of entries (weight v in cell c):
    `sum over cells of D^2 = sum over the entries of both of +-v * (g(G) / G)[c] * D[c]`, with + and G_pred for an entry
    of the prediction, - and G_target for one of the target, and `d loss / d v = 2 * D[c] * g'(G_pred[c])` for the
    former. Both only read cells that were touched, and only these are set to zero first, so the number of operations
    does not grow with that of levels. The sum S of a matrix is the number of its pairs, since the weights of a pixel
    sum to 1.
    """
    settings = (levels, value_range, kernel, sharpness)
    dtype = torch.promote_types(pred.dtype, torch.float32)
    pred, target = pred.to(dtype), target.to(dtype)
    losses = pred.new_zeros(len(pred))
    # Not zeros_like: torch.compile was told that it is contiguous, whatever the strides of pred.
    gradient = pred.new_zeros(pred.shape if with_gradient else 0)
    cells, (height, width) = levels * levels, pred.shape[1:]
    _, support = _support_window(kernel, sharpness, dtype)
    entries = height * width * support**2 * (2 if symmetric else 1)
    # With fewer cells than entries, it is cheaper to go through the matrices themselves; and cumulative ones are full.
    whole_matrices = cumulative or cells <= entries
    threads = torch.get_num_threads() if pred.device.type == "cpu" else GPU_THREADS
    size = max(1, min(len(pred), threads * ENTRIES_AT_ONCE // entries))
    held = max(1, min(size, threads * CELLS_AT_ONCE // cells))
    size = held if whole_matrices else size
    precision = _table_dtype(support, height * width, cumulative, dtype)
    scratch = pred.new_empty(held, cells, dtype=precision.to_complex() if reweight else precision)
    for start in range(0, len(pred), size):
        part = slice(start, start + size)
        both = torch.stack([pred[part], target[part]], 1).flatten(0, 1)  # 2m H W
        m = len(both) // 2
        index, weight, slope = _support(both, *settings)  # 2m S H W
        slope = slope[::2]
        for dy, dx in offsets:
            rows, columns = _pair_slices(dy, height), _pair_slices(dx, width)
            first, second = zip(rows, columns, strict=True)
            window = (height - abs(dy), width - abs(dx))
            pairs = math.prod(window)
            total = pairs * (2 if symmetric else 1)
            # With P = G / S, both P and P (1 - P) are those of the counts over S.
            scale = 1 / total**2 if normalize else 1
            index_first, index_second = _pixels(index, first)[:, :, None], _pixels(index, second)[:, None]
            weight_first, weight_second = _pixels(weight, first)[:, :, None], _pixels(weight, second)[:, None]
            cell = (index_first * levels + index_second).view(m, 2, -1)  # m 2 S*S*P
            value = (weight_first * weight_second).view(m, 2, -1).to(precision)  # m 2 S*S*P
            if symmetric:
                mirrored = (index_second * levels + index_first).view(m, 2, -1)
                cell, value = torch.cat([cell, mirrored], 2), torch.cat([value, value], 2)
            by_patch, by_value = _compare_entries(
                scratch, cell, value, total, whole_matrices=whole_matrices, cumulative=cumulative
            )
            del cell, value  # before those of the next offset are made
            losses[part].add_(by_patch, alpha=scale)
            if not with_gradient:
                continue
            by_value = by_value.to(dtype)
            if symmetric:
                by_value = by_value.view(m, 2, -1).sum(1)
            by_value = by_value.reshape(m, support, support, pairs)
            by_first = (by_value * weight_second[::2]).sum(2) * _pixels(slope, first)  # m S P
            by_second = (by_value * weight_first[::2]).sum(1) * _pixels(slope, second)  # m S P
            gradient[part][:, *first].add_(by_first.sum(1).view(m, *window), alpha=scale)
            gradient[part][:, *second].add_(by_second.sum(1).view(m, *window), alpha=scale)
    count = len(offsets) * cells
    # The entries' shares have both signs: what is left of two equal matrices is rounding, of either sign.
    return losses.clamp_(min=0) / count, gradient.mul_(2 / count)


# One operator for all that is not the definition, so that torch.compile takes it as it is and does not follow its
# loops. Its name holds that of the module: code loaded from the Hub must not replace the operator of the package.
@torch.library.custom_op(re.sub(r"\W", "_", __name__) + "::loss_and_gradient", mutates_args=())
def _loss_and_gradient(
    pred: torch.Tensor,
    target: torch.Tensor,
    with_gradient: bool,
    backend: str,
    levels: int,
    value_range: list[float],
    flat_offsets: list[int],
    kernel: str,
    sharpness: float,
    reweight: bool,
    symmetric: bool,
    normalize: bool,
    cumulative: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    home, pixels = pred.device, pred.shape[1] * pred.shape[2]
    dtype = torch.promote_types(pred.dtype, torch.float32)
    _, support = _support_window(kernel, sharpness, dtype)
    place = _place_of_counting(home, _table_dtype(support, pixels, cumulative, dtype))
    pred, target = pred.to(place), target.to(place)
    if backend == "auto":
        backend = _fastest_backend(place.type, pixels, levels, cumulative)
    if backend == "triton":
        from .glcm_triton import triton_loss_and_gradient as compute
    elif backend == "numba":
        from .glcm_numba import numba_loss_and_gradient as compute
    else:
        compute = _sparse_loss_and_gradient
    losses, gradient = compute(
        pred,
        target,
        with_gradient,
        levels=levels,
        value_range=value_range,
        offsets=list(zip(flat_offsets[::2], flat_offsets[1::2], strict=True)),
        kernel=kernel,
        sharpness=sharpness,
        reweight=reweight,
        symmetric=symmetric,
        normalize=normalize,
        cumulative=cumulative,
    )
    return losses.to(home), gradient.to(home)


@_loss_and_gradient.register_fake
def _(pred, target, with_gradient, *settings):
    dtype = torch.promote_types(pred.dtype, torch.float32)
    shape = pred.shape if with_gradient else (0,)
    return pred.new_empty(pred.shape[0], dtype=dtype), pred.new_empty(shape, dtype=dtype)


class _OnePassLoss(torch.autograd.Function):
    """Loss whose gradient was computed with it."""

    @staticmethod
    def forward(ctx, pred, target, *settings):
        losses, gradient = _loss_and_gradient(pred, target, ctx.needs_input_grad[0], *settings)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx, grad_losses):
        # (torch.compile refuses a second derivative by itself.)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "glcm_loss was asked for a gradient that can be differentiated again (create_graph=True), which only "
                'backend="dense" gives'
            )
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_losses[:, None, None], *[None] * 12)


def _one_pass_loss(
    backend: str,
    pred: torch.Tensor,
    target: torch.Tensor,
    reweight: bool,
    cumulative: bool,
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
    flat_offsets = [int(step) for offset in offsets for step in offset]
    lo, hi = map(float, value_range)
    with torch.autocast(pred.device.type, enabled=False):
        return _OnePassLoss.apply(
            pred,
            target,
            backend,
            int(levels),
            [lo, hi],
            flat_offsets,
            kernel,
            float(sharpness),
            reweight,
            symmetric,
            normalize,
            cumulative,
        )


def _fastest_backend(device: str, pixels: int, levels: int, cumulative: bool) -> str:
    if device == "cpu" and _can_import("numba"):
        return "numba"
    fits = pixels <= MAX_TRITON_PIXELS and not (cumulative and levels > MAX_TRITON_CUMULATIVE_LEVELS)
    return "triton" if device == "cuda" and fits and _can_import("triton") else "sparse"


@functools.cache
def _can_import(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception as error:  # a library that does not load is no ImportError
        if not isinstance(error, ModuleNotFoundError) or error.name != name:
            warnings.warn(f"the co-occurrence loss will be slower: {name} cannot be imported: {error!r}", stacklevel=1)
        return False
    return True


# A backend takes (pred, target, reweight, cumulative, **arguments of cooccurrence_matrix): the loss of each patch.
BACKENDS: dict[str, Callable[..., torch.Tensor]] = {
    "auto": functools.partial(_one_pass_loss, "auto"),
    "dense": _dense_loss,
    "sparse": functools.partial(_one_pass_loss, "sparse"),
    "numba": functools.partial(_one_pass_loss, "numba"),
    "triton": functools.partial(_one_pass_loss, "triton"),
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
    if pred.shape != target.shape or pred.dim() != 3:
        raise ValueError(
            f"pred and target must have the same shape (M, H, W), got {tuple(pred.shape)} and {tuple(target.shape)}"
        )
    if not (pred.is_floating_point() and target.is_floating_point()):
        raise ValueError(f"pred and target must be floating point, got {pred.dtype} and {target.dtype}")
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be mean or none, got {reduction!r}")
    if cumulative and reweight:
        raise ValueError("cumulative=True must not be combined with reweight=True: it would sum what is not a count")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    per_patch = BACKENDS[backend](
        pred,
        target,
        reweight,
        cumulative,
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

    Raises:
        ValueError: on wrong shapes or another reduction.

    Returns:
        A scalar, or `(M,)` with `reduction="none"`: the mean over channels and window positions. With no patch the
        mean is 0, with a gradient of zeros.
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be mean or none, got {reduction!r}")
    if pred.shape != target.shape or pred.dim() != 4:
        raise ValueError(
            f"pred and target must have the same shape (M, C, H, W), got {tuple(pred.shape)} and {tuple(target.shape)}"
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
