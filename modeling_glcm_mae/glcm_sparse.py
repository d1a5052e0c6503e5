"""The co-occurrence loss in plain PyTorch, from the few cells of a matrix that pairs of pixels touch."""

import math
from collections.abc import Sequence

import torch

from .glcm_support import dtype_of_table, pair_slices, support_of, support_window

# What a thread of the sparse backend works on at once: cells of its scratch (of 256 levels: those of 16 patches, 4 MiB
# in float32, twice that if down-weighted), and pairs of levels. Fewer patches would fit a cache better, but PyTorch
# shares a gather or scatter among threads only from about 2^15 elements each, which are 16 patches of 16 x 16.
CELLS_AT_ONCE = 2**20
ENTRIES_AT_ONCE = 3 * 2**14
# A GPU is served as if it were so many threads.
GPU_THREADS = 16


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


def sparse_loss_and_gradient(
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
    _, support = support_window(kernel, sharpness, dtype)
    entries = height * width * support**2 * (2 if symmetric else 1)
    # With fewer cells than entries, it is cheaper to go through the matrices themselves; and cumulative ones are full.
    whole_matrices = cumulative or cells <= entries
    threads = torch.get_num_threads() if pred.device.type == "cpu" else GPU_THREADS
    size = max(1, min(len(pred), threads * ENTRIES_AT_ONCE // entries))
    held = max(1, min(size, threads * CELLS_AT_ONCE // cells))
    size = held if whole_matrices else size
    precision = dtype_of_table(support, height * width, cumulative, dtype)
    scratch = pred.new_empty(held, cells, dtype=precision.to_complex() if reweight else precision)
    for start in range(0, len(pred), size):
        part = slice(start, start + size)
        both = torch.stack([pred[part], target[part]], 1).flatten(0, 1)  # 2m H W
        m = len(both) // 2
        index, weight, slope = support_of(both, *settings)  # 2m S H W
        slope = slope[::2]
        for dy, dx in offsets:
            rows, columns = pair_slices(dy, height), pair_slices(dx, width)
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
