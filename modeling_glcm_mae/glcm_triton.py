"""The sparse co-occurrence loss fused into one Triton kernel, for CUDA.

Same arithmetic as the "sparse" backend (see `sparse_loss_and_gradient` in glcm_sparse.py for the derivation). A program
takes one patch after the other and, of each, one offset after the other: it adds the pairs of pixels to two tables of
its own, reads the touched cells for the loss and the gradient, and clears them again. The tables of all programs are
the only K x K memory, and they are bounded by `SCRATCH_BYTES`, whatever the number of patches.

Every pixel of the gradient is computed by the thread that owns it, from both pairs that it takes part in, so nothing
but the tables is written by more than one thread. They are summed in floating point, in any order, unless
`torch.use_deterministic_algorithms(True)` (`--full_determinism` of the recipes) asks for equal bits from run to run:
then in 64-bit fixed point, where the order does not matter.

With the environment variable TRITON_INTERPRET=1 the kernel runs on the CPU, without being compiled: slow, for tests.
"""

import functools
from collections.abc import Sequence

import torch

from .glcm_support import MAX_TRITON_CUMULATIVE_LEVELS, dtype_of_table, support_window

try:  # transformers asks for every package that a file imports outside a `try`
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError('backend "triton" needs the package triton, which is not installed') from error

# Memory of all tables together. 256 levels need 0.5 MiB a program, so 512 of them run at once.
SCRATCH_BYTES = 2**28
# Measured on an H100 (batch of 256): with 16 levels, 16 instead of 4 save 7 %. With 256 levels, where tables are large,
# 4 take twice as long as 1: see `_programs`.
PROGRAMS_PER_MULTIPROCESSOR = 16
# Threads of a program: a pixel each, as far as there are. With fewer, the kernel spills from 64 x 64 pixels on, or
# leaves a multiprocessor half empty.
MAX_WARPS = 16
# Fractional bits of the fixed-point tables; 2^23 pairs a patch are left before they overflow.
FRACTION_BITS = 40


@triton.jit
def _logistic(z):
    e = tl.exp(-tl.abs(z))  # at most 1: no overflow
    return tl.where(z >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def in_bins(x, lo, width):
    """Values counted in levels from `lo`."""
    # Rounded as PyTorch rounds, which Triton's division of float32 is not: with 256 levels and a steep kernel, the last
    # digit here is the fourth of the gradient.
    if x.dtype == tl.float64:
        u = (x - lo) / width
    else:
        u = tl.div_rn(x - lo, width)
    return u


@triton.jit
def _level_and_weight(
    x, lo, width, sharpness, member, LEVELS: tl.constexpr, KERNEL: tl.constexpr, HALF_WIDTH: tl.constexpr
):
    """Level, weight and derivative of the weight for one `member` of the few levels that share each pixel."""
    u = in_bins(x, lo, width)
    inside = (u >= 0) & (u <= LEVELS)
    # where, not minimum and maximum: these drop a NaN.
    u = tl.where(u < 0, 0.0, u)
    u = tl.where(u > LEVELS, LEVELS * 1.0, u)
    if KERNEL == "hard":
        first = tl.floor(u)
        weight = u * 0.0 + 1.0
        slope = u * 0.0
    elif KERNEL == "linear":
        first = tl.floor(u - 0.5)
        upper = u - 0.5 - first
        weight = tl.where(member == 0, 1.0 - upper, upper)
        slope = tl.where(member == 0, -1.0, 1.0) / width
    else:
        first = tl.floor(u + 0.5) - HALF_WIDTH
        # Taken to be 1 and 0 at the ends of the support, so that the weights sum to 1 exactly.
        below = tl.where(member == 0, 1.0, _logistic((u - first - member) * sharpness))
        above = tl.where(member == 2 * HALF_WIDTH - 1, 0.0, _logistic((u - first - member - 1) * sharpness))
        weight = below - above
        slope = (below * (1.0 - below) - above * (1.0 - above)) * sharpness / width
    level = first.to(tl.int32) + member
    if KERNEL == "hard":
        level = tl.minimum(level, LEVELS - 1)
    # Folded back at both ends of the range, once.
    level = tl.where(level < 0, -1 - level, level)
    level = tl.where(level >= LEVELS, 2 * LEVELS - 1 - level, level)
    within = (level >= 0) & (level < LEVELS)
    weight = weight * within.to(weight.dtype)
    slope = tl.where(within & inside, slope, 0.0)
    return tl.minimum(tl.maximum(level, 0), LEVELS - 1), weight, slope


@triton.jit
def _add_to_cells(table, cell, value, mask, FIXED_POINT: tl.constexpr, FRACTION: tl.constexpr):
    # Relaxed: the tables belong to one program, whose barriers order what its threads do. The default would put a
    # barrier of the whole GPU around each of these.
    if FIXED_POINT:
        tl.atomic_add(table + cell, (value * FRACTION).to(tl.int64), mask=mask, sem="relaxed")
    else:
        tl.atomic_add(table + cell, value.to(table.dtype.element_ty), mask=mask, sem="relaxed")


@triton.jit
def _read_cells(table, cell, mask, dtype: tl.constexpr, FIXED_POINT: tl.constexpr, FRACTION: tl.constexpr):
    # .cg: from the L2 cache, where the atomic additions took place.
    count = tl.load(table + cell, mask=mask, other=0, cache_modifier=".cg").to(dtype)
    if FIXED_POINT:
        count = count / FRACTION
    return count


@triton.jit
def _difference(
    pred_table,
    target_table,
    cell,
    mask,
    total,
    dtype: tl.constexpr,
    REWEIGHT: tl.constexpr,
    FIXED_POINT: tl.constexpr,
    FRACTION: tl.constexpr,
):
    """Of touched cells: `D = g(G_pred) - g(G_target)`, the derivative of `g` at G_pred, `D^2 / (G_pred + G_target)`."""
    of_pred = _read_cells(pred_table, cell, mask, dtype, FIXED_POINT, FRACTION)
    of_target = _read_cells(target_table, cell, mask, dtype, FIXED_POINT, FRACTION)
    filled = of_pred + of_target
    rate = filled * 0.0 + 1.0
    difference = of_pred - of_target
    if REWEIGHT:
        # No digits are lost where both are large and alike.
        difference = difference * (1.0 - filled / total)
        rate = 1.0 - 2.0 * of_pred / total
    share = difference * difference / tl.where(filled > 0, filled, 1.0)
    return difference, rate, share


@triton.jit
def _accumulate(
    pred_table,
    target_table,
    dtype: tl.constexpr,
    LEVELS: tl.constexpr,
    SIDE: tl.constexpr,
    FIXED_POINT: tl.constexpr,
    FRACTION: tl.constexpr,
):
    """Squared norm of the cumulative difference; half its derivative by each cell is left in `pred_table`."""
    line = tl.arange(0, SIDE)
    inside = (line < LEVELS)[:, None] & (line < LEVELS)[None, :]
    cell = line[:, None] * LEVELS + line[None, :]
    difference = _read_cells(pred_table, cell, inside, dtype, FIXED_POINT, FRACTION)
    difference -= _read_cells(target_table, cell, inside, dtype, FIXED_POINT, FRACTION)
    summed = tl.where(inside, tl.cumsum(tl.cumsum(difference, 0), 1), 0.0)
    # A cell is part of all sums that end at or after it.
    rate = tl.cumsum(tl.cumsum(summed, 0, reverse=True), 1, reverse=True)
    tl.debug_barrier()  # all have read
    if FIXED_POINT:
        rate = rate * FRACTION
    tl.store(pred_table + cell, rate.to(pred_table.dtype.element_ty), mask=inside)
    tl.store(target_table + cell, tl.zeros([SIDE, SIDE], target_table.dtype.element_ty), mask=inside)
    tl.debug_barrier()  # all have written
    return tl.sum(tl.sum(summed * summed, 1), 0)


@triton.jit
def _loss_kernel(
    pred,
    target,
    settings,
    offsets,
    tables,
    losses,
    gradient,
    patches,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    LEVELS: tl.constexpr,
    KERNEL: tl.constexpr,
    HALF_WIDTH: tl.constexpr,
    SUPPORT: tl.constexpr,
    OFFSETS: tl.constexpr,
    REWEIGHT: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    NORMALIZE: tl.constexpr,
    CUMULATIVE: tl.constexpr,
    SIDE: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    FIXED_POINT: tl.constexpr,
    FRACTION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    lo, width, sharpness = tl.load(settings), tl.load(settings + 1), tl.load(settings + 2)
    dtype: tl.constexpr = settings.dtype.element_ty
    CELLS: tl.constexpr = LEVELS * LEVELS
    pred_table = tables + program.to(tl.int64) * 2 * CELLS
    target_table = pred_table + CELLS
    n = tl.arange(0, BLOCK)
    row, column = n // WIDTH, n % WIDTH
    exists = n < HEIGHT * WIDTH
    for patch in range(program, patches, tl.num_programs(0)):
        start = tl.cast(patch, tl.int64) * (HEIGHT * WIDTH)
        own_pred = tl.load(pred + start + n, mask=exists, other=0).to(dtype)
        own_target = tl.load(target + start + n, mask=exists, other=0).to(dtype)
        loss = tl.zeros([BLOCK], dtype)
        pixel_gradient = tl.zeros([BLOCK], dtype)
        for o in range(OFFSETS):
            dy, dx = tl.load(offsets + 2 * o), tl.load(offsets + 2 * o + 1)
            step = dy * WIDTH + dx
            # A pixel is the first of a pair with the one after it, and the second of one with the one before it.
            first = exists & (row + dy >= 0) & (row + dy < HEIGHT) & (column + dx >= 0) & (column + dx < WIDTH)
            second = exists & (row - dy >= 0) & (row - dy < HEIGHT) & (column - dx >= 0) & (column - dx < WIDTH)
            after_pred = tl.load(pred + start + n + step, mask=first, other=0).to(dtype)
            after_target = tl.load(target + start + n + step, mask=first, other=0).to(dtype)
            total = ((HEIGHT - tl.abs(dy)) * (WIDTH - tl.abs(dx))).to(dtype)
            if SYMMETRIC:
                total = total * 2
            # With P = G / S, both P and P (1 - P) are those of the counts over S. A symmetric matrix holds each entry
            # twice, in cells of equal content.
            scale = total * 0 + (2 if SYMMETRIC else 1)
            if NORMALIZE:
                scale = scale / (total * total)

            for a in range(SUPPORT):
                i_pred, v_pred, _ = _level_and_weight(own_pred, lo, width, sharpness, a, LEVELS, KERNEL, HALF_WIDTH)
                i_target, v_target, _ = _level_and_weight(
                    own_target, lo, width, sharpness, a, LEVELS, KERNEL, HALF_WIDTH
                )
                for b in range(SUPPORT):
                    j, v, _ = _level_and_weight(after_pred, lo, width, sharpness, b, LEVELS, KERNEL, HALF_WIDTH)
                    _add_to_cells(pred_table, i_pred * LEVELS + j, v_pred * v, first, FIXED_POINT, FRACTION)
                    if SYMMETRIC:
                        _add_to_cells(pred_table, j * LEVELS + i_pred, v_pred * v, first, FIXED_POINT, FRACTION)
                    j, v, _ = _level_and_weight(after_target, lo, width, sharpness, b, LEVELS, KERNEL, HALF_WIDTH)
                    _add_to_cells(target_table, i_target * LEVELS + j, v_target * v, first, FIXED_POINT, FRACTION)
                    if SYMMETRIC:
                        _add_to_cells(target_table, j * LEVELS + i_target, v_target * v, first, FIXED_POINT, FRACTION)
            tl.debug_barrier()  # all threads of the program have counted

            if CUMULATIVE:
                found = _accumulate(pred_table, target_table, dtype, LEVELS, SIDE, FIXED_POINT, FRACTION)
                if NORMALIZE:
                    found = found / (total * total)
                loss += tl.where(n == 0, found, 0.0)

            before_pred = own_pred
            if WITH_GRADIENT:
                before_pred = tl.load(pred + start + n - step, mask=second, other=0).to(dtype)
            for a in range(SUPPORT):
                i_pred, v_pred, slope_pred = _level_and_weight(
                    own_pred, lo, width, sharpness, a, LEVELS, KERNEL, HALF_WIDTH
                )
                i_target, v_target, _ = _level_and_weight(
                    own_target, lo, width, sharpness, a, LEVELS, KERNEL, HALF_WIDTH
                )
                for b in range(SUPPORT):
                    j, v, _ = _level_and_weight(after_pred, lo, width, sharpness, b, LEVELS, KERNEL, HALF_WIDTH)
                    difference, rate, share = _difference(
                        pred_table,
                        target_table,
                        i_pred * LEVELS + j,
                        first,
                        total,
                        dtype,
                        REWEIGHT,
                        FIXED_POINT,
                        FRACTION,
                    )
                    if not CUMULATIVE:
                        loss += tl.where(first, scale * v_pred * v * share, 0.0)
                    if WITH_GRADIENT:
                        pixel_gradient += tl.where(first, 2 * scale * difference * rate * v * slope_pred, 0.0)

                    if not CUMULATIVE:
                        j, v, _ = _level_and_weight(after_target, lo, width, sharpness, b, LEVELS, KERNEL, HALF_WIDTH)
                        _, _, share = _difference(
                            pred_table,
                            target_table,
                            i_target * LEVELS + j,
                            first,
                            total,
                            dtype,
                            REWEIGHT,
                            FIXED_POINT,
                            FRACTION,
                        )
                        loss += tl.where(first, scale * v_target * v * share, 0.0)

                    if WITH_GRADIENT:
                        h, v, _ = _level_and_weight(before_pred, lo, width, sharpness, b, LEVELS, KERNEL, HALF_WIDTH)
                        difference, rate, _ = _difference(
                            pred_table,
                            target_table,
                            h * LEVELS + i_pred,
                            second,
                            total,
                            dtype,
                            REWEIGHT,
                            FIXED_POINT,
                            FRACTION,
                        )
                        pixel_gradient += tl.where(second, 2 * scale * difference * rate * v * slope_pred, 0.0)
            tl.debug_barrier()  # all have read

            if CUMULATIVE:
                line = tl.arange(0, SIDE)
                inside = (line < LEVELS)[:, None] & (line < LEVELS)[None, :]
                whole = tl.zeros([SIDE, SIDE], tables.dtype.element_ty)
                tl.store(pred_table + line[:, None] * LEVELS + line[None, :], whole, mask=inside)
            zero = tl.zeros([BLOCK], tables.dtype.element_ty)
            for a in range(0 if CUMULATIVE else SUPPORT):
                i_pred, _, _ = _level_and_weight(own_pred, lo, width, sharpness, a, LEVELS, KERNEL, HALF_WIDTH)
                i_target, _, _ = _level_and_weight(own_target, lo, width, sharpness, a, LEVELS, KERNEL, HALF_WIDTH)
                for b in range(SUPPORT):
                    j, _, _ = _level_and_weight(after_pred, lo, width, sharpness, b, LEVELS, KERNEL, HALF_WIDTH)
                    tl.store(pred_table + i_pred * LEVELS + j, zero, mask=first)
                    if SYMMETRIC:
                        tl.store(pred_table + j * LEVELS + i_pred, zero, mask=first)
                    j, _, _ = _level_and_weight(after_target, lo, width, sharpness, b, LEVELS, KERNEL, HALF_WIDTH)
                    tl.store(target_table + i_target * LEVELS + j, zero, mask=first)
                    if SYMMETRIC:
                        tl.store(target_table + j * LEVELS + i_target, zero, mask=first)
            tl.debug_barrier()  # all have cleared

        mean: tl.constexpr = 1.0 / (OFFSETS * CELLS)
        tl.store(losses + patch, tl.sum(loss, axis=0) * mean)
        if WITH_GRADIENT:
            tl.store(gradient + start + n, pixel_gradient * mean, mask=exists)


def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """On the device, and kept there, since Triton would round a Python number to float32."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return _filled(values, dtype, device)  # what a graph fills when it is replayed is nobody else's
    return _kept(values, dtype, device)


def _filled(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Filled by the device: to copy from the host would wait, at every step of a schedule of the sharpness."""
    made = torch.empty(len(values), dtype=dtype, device=device)
    for place, value in zip(made, values, strict=True):
        place.fill_(value)
    return made


_kept = functools.lru_cache(maxsize=64)(_filled)


def _programs(count: int, table_bytes: int, device: torch.device) -> int:
    """How many programs share the patches: what the multiprocessors hold, and the L2 cache of their tables.

    One for each multiprocessor at least, though tables beyond the cache are slower.
    """
    programs = min(count, SCRATCH_BYTES // table_bytes)
    if device.type == "cuda":
        chip = torch.cuda.get_device_properties(device)
        in_cache = max(chip.multi_processor_count, chip.L2_cache_size // table_bytes)
        programs = min(programs, in_cache, PROGRAMS_PER_MULTIPROCESSOR * chip.multi_processor_count)
    return max(1, programs)


def triton_loss_and_gradient(
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
        ValueError: if `pred` is not where Triton can run, or there are too many levels for a cumulative matrix.
    """
    if pred.device.type != "cuda" and isinstance(_loss_kernel, triton.JITFunction):
        raise ValueError(f'backend "triton" needs tensors on a CUDA device, got {pred.device}')
    if cumulative and levels > MAX_TRITON_CUMULATIVE_LEVELS:
        raise ValueError(
            f"levels must be at most {MAX_TRITON_CUMULATIVE_LEVELS} for cumulative=True and "
            f'backend="triton", got {levels}: backend="sparse" takes more'
        )
    dtype = torch.promote_types(pred.dtype, torch.float32)
    pred, target = pred.contiguous(), target.contiguous()
    count, height, width = pred.shape
    losses = pred.new_empty(count, dtype=dtype)
    gradient = torch.empty_like(pred, dtype=dtype) if with_gradient else pred.new_empty(0, dtype=dtype)
    if count == 0:
        return losses, gradient
    half_width, support = support_window(kernel, sharpness, dtype)
    fixed_point = torch.are_deterministic_algorithms_enabled()
    table_dtype = torch.int64 if fixed_point else dtype_of_table(support, height * width, cumulative, dtype)
    programs = _programs(count, 2 * levels**2 * table_dtype.itemsize, pred.device)
    lo, hi = value_range
    block = triton.next_power_of_2(height * width)
    flat_offsets = tuple(step for offset in offsets for step in offset)
    with torch.cuda.device(pred.device if pred.device.type == "cuda" else -1):
        _loss_kernel[(programs,)](
            pred,
            target,
            constants((lo, (hi - lo) / levels, sharpness), dtype, pred.device),
            constants(flat_offsets, torch.int32, pred.device),
            torch.zeros(programs, 2, levels, levels, dtype=table_dtype, device=pred.device),
            losses,
            gradient,
            count,
            HEIGHT=height,
            WIDTH=width,
            LEVELS=levels,
            KERNEL=kernel,
            HALF_WIDTH=half_width,
            SUPPORT=support,
            OFFSETS=len(offsets),
            REWEIGHT=reweight,
            SYMMETRIC=symmetric,
            NORMALIZE=normalize,
            CUMULATIVE=cumulative,
            SIDE=triton.next_power_of_2(levels) if cumulative else 1,
            WITH_GRADIENT=with_gradient,
            FIXED_POINT=fixed_point,
            FRACTION=2.0**FRACTION_BITS,
            BLOCK=block,
            num_warps=max(1, min(MAX_WARPS, block // 32)),
        )
    return losses, gradient
