"""The matrices that the texture head is to predict, by one Triton kernel, for CUDA.

Without it they cost more than everything else of the preset `texture` on an H100, since PyTorch writes the weights of
all levels of all pixels to memory. With TRITON_INTERPRET=1 the kernel runs on the CPU, without being compiled.
"""

from collections.abc import Sequence

import torch

from .glcm_triton import constants, in_bins

try:  # transformers asks for every package that a file imports outside a `try`
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("the Triton kernels need the package triton, which is not installed") from error


# What the registers of a warp hold, by the compiler's report for sm_90; with a whole patch at once the kernel spills.
PIXELS_AT_ONCE = 32


@triton.jit
def _centred(x, lo, width, LEVELS: tl.constexpr):
    """Places between the centres of the levels, from 0 to LEVELS - 1; NaN stays."""
    u = in_bins(x.to(tl.float32), lo, width) - 0.5
    u = tl.where(u < 0, 0.0, u)
    return tl.where(u > LEVELS - 1, LEVELS - 1.0, u)


@triton.jit
def _weights(place, level, LEVELS: tl.constexpr):
    weight = 1.0 - tl.abs(place - level.to(tl.float32))
    return tl.where((weight < 0) | (level >= LEVELS), 0.0, weight)


@triton.jit
def _pairs_kernel(
    image,
    settings,
    offsets,
    found,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    LEVELS: tl.constexpr,
    OFFSETS: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    patch = tl.cast(tl.program_id(0), tl.int64)
    lo, width = tl.load(settings), tl.load(settings + 1)
    level = tl.arange(0, SIDE)
    start = image + patch * (HEIGHT * WIDTH)
    i, j = level[:, None], level[None, :]
    place = i * LEVELS - i * (i - 1) // 2 + j - i
    PAIRS: tl.constexpr = LEVELS * (LEVELS + 1) // 2
    for o in range(OFFSETS):
        dy, dx = tl.load(offsets + 2 * o), tl.load(offsets + 2 * o + 1)
        cells = tl.zeros([SIDE, SIDE], tl.float32)
        for block in range(0, HEIGHT * WIDTH, BLOCK):  # few pixels at a time: their weights stay in registers
            n = block + tl.arange(0, BLOCK)
            row, column = n // WIDTH + dy, n % WIDTH + dx
            first = (n < HEIGHT * WIDTH) & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
            own = _centred(tl.load(start + n, mask=first, other=0), lo, width, LEVELS)
            after = _centred(tl.load(start + n + dy * WIDTH + dx, mask=first, other=0), lo, width, LEVELS)
            weights = _weights(own[None, :], level[:, None], LEVELS)  # SIDE BLOCK
            weights_after = tl.where(first[:, None], _weights(after[:, None], level[None, :], LEVELS), 0.0)
            # Three products of the tensor cores, which together are as good as one of float32.
            cells = tl.dot(weights, weights_after, cells, input_precision="tf32x3")
        cells = tl.where(i == j, cells, cells + tl.trans(cells))
        pairs = ((HEIGHT - tl.abs(dy)) * (WIDTH - tl.abs(dx))).to(tl.float32)
        stored = (i <= j) & (j < LEVELS)
        tl.store(found + (patch * OFFSETS + o) * PAIRS + place, tl.div_rn(cells, pairs + cells * 0), mask=stored)


def triton_pair_distribution(
    image: torch.Tensor, *, levels: int, value_range: Sequence[float], offsets: Sequence[Sequence[int]]
) -> torch.Tensor:
    """`pair_distribution` of float32 images, of at most `MAX_TRITON_HEAD_LEVELS` levels. A program takes a patch."""
    count, height, width = image.shape
    found = image.new_empty(count, len(offsets), levels * (levels + 1) // 2, dtype=torch.float32)
    if count == 0:
        return found
    lo, hi = value_range
    with torch.cuda.device(image.device if image.device.type == "cuda" else -1):
        _pairs_kernel[(count,)](
            image.contiguous(),
            constants((lo, (hi - lo) / levels), torch.float32, image.device),
            constants(tuple(step for offset in offsets for step in offset), torch.int32, image.device),
            found,
            HEIGHT=height,
            WIDTH=width,
            LEVELS=levels,
            OFFSETS=len(offsets),
            SIDE=max(16, triton.next_power_of_2(levels)),  # the least that a product of matrices takes
            BLOCK=PIXELS_AT_ONCE,
            num_warps=1,
        )
    return found
