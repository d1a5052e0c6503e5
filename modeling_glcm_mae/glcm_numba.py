"""The sparse co-occurrence loss compiled for the CPU by Numba.

Same arithmetic as the "sparse" backend (see `sparse_loss_and_gradient` in glcm_sparse.py for the derivation). Where
PyTorch takes one operation after the other for many patches, a thread here takes one patch after the other and, of
each, one offset after the other: it adds the pairs of pixels to a table of its own, reads the touched cells for the
gradient, and visits them again for the loss, clearing each. The table stays in the cache, so 256 levels cost hardly
more than 16.

Nothing is written by two threads, so results do not depend on their number.
"""

import functools
import os
import warnings
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import WeakFileLock

from .glcm_support import dtype_of_table, support_window

try:  # transformers asks for every package that a file imports outside a `try`
    import numba
    import numpy as np  # comes with Numba
except ImportError as error:
    raise ImportError(f'backend "numba" needs the package numba: {error}') from error


# The threads of Python run what is compiled side by side; a division by zero is not an exception.
OPTIONS = {"nogil": True, "error_model": "numpy"}
_compiled = numba.njit(**OPTIONS)


@_compiled
def _levels_of_pixels(pixels, members, half_width, levels, lo, width, kernel, sharpness, index, weight, slope):
    """The few levels that share a pixel, with their weights and the derivatives of these by the pixel's value.

    `support_of` of glcm_support.py says how. `pixels` `(H*W,)`; the last three, which are filled, `(S, H*W)`.
    """
    number = pixels.dtype.type  # or Numba would go on in float64
    zero, one = number(0), number(1)
    linear = kernel == "linear"
    half = number(0.5)
    # What the window of levels starts below: the pixel, the centre of a level, the nearest edge between levels.
    shift = zero if kernel == "hard" else -half if linear else half
    support = np.uintp(len(members))
    for n in range(np.uintp(len(pixels))):
        u = (pixels[n] - lo) / width
        per_unit = one / width if u >= 0 and u <= levels else zero  # bins, 0 where the pixel is clamped
        # Comparisons, not min and max: these drop a NaN.
        if u < 0:
            u = zero
        if u > levels:
            u = number(levels)
        first = int(np.floor(u + shift)) - half_width if u == u else 0
        below, rise = one + zero * u, zero
        for s in range(support):
            # Taken to be 1 and 0 at the ends of the window, so that the weights sum to 1 exactly.
            above, fall = zero, zero
            if s + 1 < support:
                distance = u - number(first + s + 1)
                if linear:
                    above, fall = distance + half, per_unit
                else:
                    e = np.exp(-abs(distance) * sharpness)
                    above = (one if distance >= 0 else e) / (one + e)
                    fall = above * (one - above) * sharpness * per_unit
            level = first + int(s)
            if level < 0:
                level = -1 - level
            if level >= levels:
                level = 2 * levels - 1 - level
            # A window wider than the whole range is folded once only. A product: weights of a NaN must stay NaN.
            within = one if level >= 0 and level < levels else zero
            index[s, n] = min(max(level, 0), levels - 1)
            weight[s, n] = (below - above) * within
            slope[s, n] = (rise - fall) * within
            below, rise = above, fall


@_compiled
def _difference(table, cell, per_total, reweight):
    """Of a cell: `D = g(G_pred) - g(G_target)`, and the derivative of `g` at G_pred."""
    one = table.dtype.type(1)
    of_pred, of_target = table[cell, 0], table[cell, 1]
    difference, rate = of_pred - of_target, one
    if reweight:
        # No digits are lost where both are large and alike.
        difference *= one - (of_pred + of_target) * per_total
        rate -= (of_pred + of_pred) * per_total
    return difference, rate


@_compiled
def _compare_and_clear(table, cell, per_total, reweight):
    """`D^2` of a cell. The next entry that fell into it finds nothing."""
    difference, _ = _difference(table, cell, per_total, reweight)
    table[cell, 0] = 0
    table[cell, 1] = 0
    return difference * difference


@_compiled
def _accumulate(table, levels):
    """Squared norm of the cumulative difference; half its derivative by each cell is left in place of G_pred."""
    cells = table.reshape(levels, levels, 2)
    loss = 0.0
    for i in range(levels):
        in_row = table.dtype.type(0)
        for j in range(levels):
            in_row += cells[i, j, 0] - cells[i, j, 1]
            cells[i, j, 0] = in_row + (cells[i - 1, j, 0] if i > 0 else 0)
            cells[i, j, 1] = 0
            loss += cells[i, j, 0] ** 2
    # A cell is part of all sums that end at or after it.
    for i in range(levels - 1, -1, -1):
        in_row = table.dtype.type(0)
        for j in range(levels - 1, -1, -1):
            in_row += cells[i, j, 0]
            cells[i, j, 0] = in_row + (cells[i + 1, j, 0] if i < levels - 1 else 0)
    return loss


def _compare_patches(
    pred,
    target,
    members,
    half_width,
    levels,
    value_range,
    offsets,
    kernel,
    sharpness,
    reweight,
    symmetric,
    normalize,
    cumulative,
    table,
    losses,
    gradient,
):
    """Fill in the loss of each patch, `losses` `(m,)`, and its gradient, `gradient` `(m, H, W)`, unless that is empty.

    `pred` and `target` `(m, H, W)`; `members` has the length S of a pixel's support. `table` holds G_pred and G_target
    of one patch, `(K*K, 2)`, and is 0 before and after.
    """
    patches, height, width = pred.shape
    number = pred.dtype.type  # or Numba would go on in float64
    mean = 1 / (len(offsets) * levels**2)
    # Unsigned, or Numba would ask of every index whether it counts from the end.
    side, support = np.uintp(levels), np.uintp(len(members))
    lo, bin_width = number(value_range[0]), number((value_range[1] - value_range[0]) / levels)
    index = np.empty((2, len(members), height * width), np.uintp)
    weight = np.empty((2, len(members), height * width), pred.dtype)
    slope = np.empty((2, len(members), height * width), pred.dtype)
    pixel_gradient = np.empty(height * width, pred.dtype)
    for m in range(patches):
        patch_loss = 0.0
        for t in range(2):
            _levels_of_pixels(
                (target[m] if t else pred[m]).ravel(),
                members,
                half_width,
                levels,
                lo,
                bin_width,
                kernel,
                number(sharpness),
                index[t],
                weight[t],
                slope[t],
            )
        pixel_gradient[:] = 0
        for dy, dx in offsets:
            rows = range(max(0, -dy), height - max(0, dy))
            columns = range(max(0, -dx), width - max(0, dx))
            step = dy * width + dx
            total = len(rows) * len(columns) * (2 if symmetric else 1)
            per_total = table.dtype.type(1 / total)
            # With P = G / S, both P and P (1 - P) are those of the counts over S.
            scale = number(1 / total**2 if normalize else 1)

            for y in rows:
                for x in columns:
                    first, second = np.uintp(y * width + x), np.uintp(y * width + x + step)
                    for t in range(np.uintp(2)):
                        for a in range(support):
                            i = index[t, a, first]
                            for b in range(support):
                                j = index[t, b, second]
                                value = weight[t, a, first] * weight[t, b, second]
                                table[i * side + j, t] += value
                                if symmetric:
                                    table[j * side + i, t] += value

            loss = _accumulate(table, levels) if cumulative else 0.0

            if len(gradient) > 0:
                # A symmetric matrix holds each entry twice, in cells of equal content.
                by_entry = scale + scale if symmetric else scale
                for y in rows:
                    for x in columns:
                        first, second = np.uintp(y * width + x), np.uintp(y * width + x + step)
                        for a in range(support):
                            i = index[0, a, first]
                            by_weight, by_slope = number(0), number(0)
                            for b in range(support):
                                j = index[0, b, second]
                                difference, rate = _difference(table, i * side + j, per_total, reweight)
                                by_value = difference * rate
                                by_weight += by_value * weight[0, b, second]
                                by_slope += by_value * slope[0, b, second]
                            pixel_gradient[first] += by_weight * slope[0, a, first] * by_entry
                            pixel_gradient[second] += by_slope * weight[0, a, first] * by_entry

            if cumulative:
                table[:] = 0
            else:
                for y in rows:
                    for x in columns:
                        first, second = np.uintp(y * width + x), np.uintp(y * width + x + step)
                        for t in range(np.uintp(2)):
                            for a in range(support):
                                i = index[t, a, first]
                                for b in range(support):
                                    j = index[t, b, second]
                                    loss += _compare_and_clear(table, i * side + j, per_total, reweight)
                                    if symmetric:
                                        loss += _compare_and_clear(table, j * side + i, per_total, reweight)
            patch_loss += loss * scale
        losses[m] = patch_loss * mean
        if len(gradient) > 0:
            gradient[m] = pixel_gradient.reshape(height, width) * number(2 * mean)


_not_kept = _compiled(_compare_patches)
try:
    # With all that it calls, on disk for the next process.
    _kept = numba.njit(cache=True, **OPTIONS)(_compare_patches)
except RuntimeError:  # Numba found no folder that it may write to
    _kept = _not_kept
LOCK_SECONDS = 300  # many times what another process needs to compile
_ready: dict[Hashable, Callable[..., None]] = {}  # what runs arguments of these types, in this process


def _compile(arguments: Sequence[Any]) -> Callable[..., None]:
    """`_compare_patches`, compiled for arguments of these types or read from where an earlier process kept it.

    Numba numbers the files that it keeps by an index which it reads and writes without a lock: two processes that
    compile at the same time could give two versions the same file, and one would be taken for the other ever after.
    So one process at a time reads or compiles. What cannot be read, or is the code of other types, is made anew.
    """
    if _kept.stats.cache_path is None:
        return _kept
    folder = Path(_kept.stats.cache_path)
    signature = tuple(numba.typeof(argument) for argument in arguments)
    try:
        with WeakFileLock(folder / "glcm_numba.lock", timeout=LOCK_SECONDS):
            try:
                _kept.compile(signature)
                if signature not in _kept.overloads:
                    raise TypeError("it is the code of other types")
            except Exception as error:  # reading a damaged file raises nearly anything
                _warn_of(folder, error)
                for index in folder.glob(f"*{_compare_patches.__name__}*.nbi"):
                    index.unlink()
                _kept.compile(signature)
    except OSError as error:  # there is no lock to be had, or nothing can be written
        _warn_of(folder, error)
        return _not_kept
    return _kept


def _warn_of(folder: Path, error: Exception) -> None:
    warnings.warn(
        f"Numba cannot keep what it compiled in {folder}, or read what it kept, and compiles again: {error!r}",
        stacklevel=2,
    )


@functools.cache
def _workers(count: int, process: int) -> ThreadPoolExecutor:
    """Threads, kept from call to call. Those of a parent process do not exist in its children."""
    return ThreadPoolExecutor(count, thread_name_prefix="glcm")


def numba_loss_and_gradient(
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
    """Loss of each patch `(M,)` and its gradient by `pred` `(M, H, W)`, or an empty one.

    Called by `glcm_loss`, whose arguments it takes. Float64 for float64 input, else float32.

    Raises:
        ValueError: if `pred` is not on the CPU.
    """
    if pred.device.type != "cpu":
        raise ValueError(f'backend "numba" needs tensors on the CPU, got {pred.device}')
    dtype = torch.promote_types(pred.dtype, torch.float32)
    count, height, width = pred.shape
    half_width, support = support_window(kernel, sharpness, dtype)
    # The length of a tuple is known to the compiler, which then unrolls the loops; one version does for all others.
    members = tuple(range(support)) if support <= 2 else np.arange(support)
    double = dtype_of_table(support, height * width, cumulative, dtype) == torch.float64
    # Arrays of NumPy: an operator of PyTorch in a thread that is not its own would start more threads.
    pred, target = (np.ascontiguousarray(patches.to(dtype).numpy()) for patches in (pred, target))
    losses = np.empty(count, pred.dtype)
    gradient = np.empty(pred.shape if with_gradient else (0, height, width), pred.dtype)
    threads = max(1, min(torch.get_num_threads(), count))

    def arguments_of(own: slice) -> tuple[Any, ...]:
        return (
            pred[own],
            target[own],
            members,
            half_width,
            levels,
            tuple(value_range),
            np.array(offsets),
            kernel,
            sharpness,
            reweight,
            symmetric,
            normalize,
            cumulative,
            np.zeros((levels**2, 2), np.float64 if double else np.float32),
            losses[own],
            gradient[own],
        )

    types = (dtype, min(support, 3), double)
    if types not in _ready:
        _ready[types] = _compile(arguments_of(slice(0)))
    compare_patches = _ready[types]

    def compare(thread: int) -> None:
        compare_patches(*arguments_of(slice(count * thread // threads, count * (thread + 1) // threads)))

    workers = _workers(torch.get_num_threads(), os.getpid())
    others = []
    for thread in range(1, threads):
        try:
            others.append(workers.submit(compare, thread))
        except RuntimeError:  # the interpreter is about to end, and takes no more work for threads
            compare(thread)
    compare(0)
    for other in others:
        other.result()
    return torch.from_numpy(losses), torch.from_numpy(gradient if with_gradient else gradient.reshape(0))
