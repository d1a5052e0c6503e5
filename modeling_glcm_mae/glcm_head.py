"""Co-occurrence matrices as distributions to predict: targets, loss and read-out of the texture head.

A symmetric, normalised matrix is a distribution over unordered pairs of grey levels: `Q = K (K + 1) / 2` of them, in
the order (0, 0), (0, 1), ..., (0, K - 1), (1, 1), ... A pair of two levels holds both of its cells.

Axis letters in trailing shape comments: M patches, H W the pixels of a patch, K grey levels, D offsets, Q pairs.
"""

import re
from collections.abc import Sequence

import torch
from torch import nn

from .glcm_backends import can_import, few_patches, only_pytorch, triton_agrees
from .glcm_support import MAX_TRITON_HEAD_LEVELS, check_levels, check_offsets, in_bins

# Weights of pixels that are held at once: for each thread what fits its cache, on a GPU 128 MiB in float32.
CPU_WEIGHTS_AT_ONCE = 2**18
GPU_WEIGHTS_AT_ONCE = 2**25
TRITON_DEVICES = ("cuda",)


def num_pairs(levels: int) -> int:
    """Number Q of unordered pairs of `levels` grey levels, a level with itself included."""
    return levels * (levels + 1) // 2


def pair_index(levels: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Place of the pair of levels i and j, in either order, among the unordered pairs: `(K, K)`, int64."""
    level = torch.arange(levels, device=device)
    low, high = torch.minimum(level[:, None], level), torch.maximum(level[:, None], level)
    return low * levels - low * (low - 1) // 2 + high - low


def pair_distribution(
    image: torch.Tensor, *, levels: int, value_range: Sequence[float], offsets: Sequence[Sequence[int]]
) -> torch.Tensor:
    """How the pairs of pixels an offset apart are distributed over the unordered pairs of grey levels.

    That is `cooccurrence_matrix(..., kernel="linear", symmetric=True, normalize=True)` with the two cells of each pair
    added up; faster for few levels, and without a gradient.

    Args:
        image: `(M, H, W)`, floating point.
        levels: number K of grey levels.
        value_range: (lo, hi) spanned by the levels, in the units of `image`; values outside are clamped.
        offsets: `[[dy, dx], ...]`, D offsets in pixels, shorter than the image.

    Returns:
        `(M, D, Q)`, which sums to 1 over Q; float64 for a float64 image, else float32, whatever autocast says.

    Raises:
        ValueError: on a wrong argument; names it, its value and what is allowed.
    """
    if image.dim() != 3 or not image.is_floating_point():
        raise ValueError(f"image must be floating point (M, H, W), got {image.dtype} of shape {tuple(image.shape)}")
    check_levels(levels, value_range, "linear", 1.0)
    check_offsets(offsets, *image.shape[1:])
    flat_offsets = [int(step) for offset in offsets for step in offset]
    with torch.autocast(image.device.type, enabled=False):
        return _pair_distribution(image.detach(), int(levels), [float(value) for value in value_range], flat_offsets)


# An operator, so that torch.compile does not follow its loops. Its name holds that of the module: code loaded from the
# Hub must not replace the operator of the package.
@torch.library.custom_op(re.sub(r"\W", "_", __name__) + "::pair_distribution", mutates_args=())
def _pair_distribution(
    image: torch.Tensor, levels: int, value_range: list[float], flat_offsets: list[int]
) -> torch.Tensor:
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    offsets = list(zip(flat_offsets[::2], flat_offsets[1::2], strict=True))
    compute = _pair_distribution_in_torch
    if _is_for_triton(image, levels, value_range, offsets):
        from .glcm_head_triton import triton_pair_distribution as compute
    return compute(image, levels=levels, value_range=value_range, offsets=offsets)


def _is_for_triton(
    image: torch.Tensor, levels: int, value_range: list[float], offsets: Sequence[tuple[int, int]]
) -> bool:
    height, width = image.shape[1:]
    fits = image.dtype == torch.float32 and levels <= MAX_TRITON_HEAD_LEVELS
    if image.device.type not in TRITON_DEVICES or not fits or only_pytorch() or not can_import("triton"):
        return False

    def answers(backend: str) -> tuple[torch.Tensor]:
        compute = _pair_distribution_in_torch
        if backend == "triton":
            from .glcm_head_triton import triton_pair_distribution as compute
        few, _ = few_patches(height, width, value_range, image)
        return (compute(few, levels=levels, value_range=value_range, offsets=offsets),)

    return triton_agrees(f"texture head, {(height, width, levels, len(offsets))}", image.device, answers)


def _pair_distribution_in_torch(
    image: torch.Tensor, *, levels: int, value_range: Sequence[float], offsets: Sequence[Sequence[int]]
) -> torch.Tensor:
    count, height, width = image.shape
    # Columns of weight 0 to the right: rows can then follow each other in one line, in which the two pixels of a pair
    # lie a fixed step apart, and a step out of the patch, to the left too, ends in such a column.
    padding = max(abs(dx) for _, dx in offsets)
    line = width + padding
    at_once = CPU_WEIGHTS_AT_ONCE * torch.get_num_threads() if image.device.type == "cpu" else GPU_WEIGHTS_AT_ONCE
    level = torch.arange(levels, dtype=image.dtype, device=image.device).view(1, -1, 1, 1)
    # Adds up the cells of a pair: a step against the order of the line finds the cells of (i, j) in those of (j, i).
    pair_of_cell = nn.functional.one_hot(pair_index(levels, image.device).flatten(), num_pairs(levels)).to(image.dtype)
    found = image.new_empty(count, len(offsets), num_pairs(levels))
    size = max(1, at_once // (levels * height * line))
    for start in range(0, count, size):
        part = slice(start, start + size)
        centred = (in_bins(image[part], levels, value_range) - 0.5).clamp(0, levels - 1).unsqueeze(1)  # m 1 H W
        weights = (centred - level).abs_().neg_().add_(1).clamp_(min=0)  # m K H W
        weights = nn.functional.pad(weights, (0, padding)).flatten(2)  # m K H*line
        for place, (dy, dx) in enumerate(offsets):
            step = abs(dy * line + dx)
            cells = weights[:, :, : height * line - step] @ weights[:, :, step:].transpose(1, 2)  # m K K
            pairs = (height - abs(dy)) * (width - abs(dx))
            found[part, place] = cells.flatten(1) @ pair_of_cell / pairs
    return found


@_pair_distribution.register_fake
def _(image, levels, value_range, flat_offsets):
    dtype = torch.promote_types(image.dtype, torch.float32)
    return image.new_empty(len(image), len(flat_offsets) // 2, num_pairs(levels), dtype=dtype)


def pair_divergence(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of predicted from true pair distributions, mean over the offsets.

    `KL = sum over q of t_q (log t_q - log softmax(logits)_q)`, in nats. A proper scoring rule (Gneiting and Raftery
    2007): whoever cannot know the target does best to answer its expectation.

    Args:
        logits: `(..., D, Q)`.
        target: `(..., D, Q)`, each summing to 1.

    Returns:
        `(...)`, at least 0 but for rounding.

    Raises:
        ValueError: if the shapes differ.
    """
    if logits.shape != target.shape:
        raise ValueError(f"logits must have the shape of the target {tuple(target.shape)}, got {tuple(logits.shape)}")
    log_target = torch.where(target > 0, target, 1).log()
    return (target * (log_target - logits.log_softmax(-1))).sum(-1).mean(-1)


def matrices_of_pairs(pairs: torch.Tensor, levels: int) -> torch.Tensor:
    """Distributions over unordered pairs `(..., Q)` as symmetric matrices `(..., K, K)` of the same sum."""
    share = torch.full((levels, levels), 0.5, dtype=pairs.dtype, device=pairs.device).fill_diagonal_(1)
    return pairs[..., pair_index(levels, pairs.device)] * share


__all__ = ["matrices_of_pairs", "num_pairs", "pair_distribution", "pair_divergence", "pair_index"]
