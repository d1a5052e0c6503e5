"""Which few grey levels share a pixel, in what a matrix is added up, and limits: what every fast backend needs.

Axis letters in trailing shape comments: M patches, H W the pixels of a patch, K grey levels, S the levels of a pixel.
"""

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral

import torch

# Weight of a pixel that the sparse backend may move to a nearer level: what lies beyond the support of the kernel.
SUPPORT_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}
# Share of the pixels outside the range from which it is said: of images of -1 to 1 in a range of 0 to 1 it is half.
MANY_OUTSIDE = 0.25
# Windows of more pixels are counted in float64.
MAX_FLOAT32_PIXELS = 32 * 32
# The Triton backend holds a patch in the registers of a multiprocessor.
MAX_TRITON_PIXELS = 64 * 64
MAX_TRITON_CUMULATIVE_LEVELS = 64  # and a cumulative matrix too
# For the targets of the heads, sums of all pairs of levels.
MAX_TRITON_HEAD_LEVELS = 32


def in_bins(x: torch.Tensor, levels: int, value_range: Sequence[float]) -> torch.Tensor:
    """Values counted in bins from lo: level k spans k..k+1 and has its centre at k + 0.5."""
    lo, hi = map(float, value_range)
    return (x - lo) / ((hi - lo) / levels)


def check_levels(levels: int, value_range: Sequence[float], kernel: str, sharpness: float) -> None:
    """Raise `ValueError` on grey levels that cannot be; names the argument, its value and what is allowed."""
    if not isinstance(levels, Integral) or levels < 2:
        raise ValueError(f"levels must be an integer of at least 2, got {levels!r}")
    try:
        low, high = (math.nan if isinstance(value, str) else float(value) for value in value_range)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last of a tensor of several numbers
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"value_range must be two finite numbers (lo, hi) with lo < hi, got {value_range!r}")
    if kernel not in ("sigmoid", "linear", "hard"):
        raise ValueError(f"kernel must be one of sigmoid, linear, hard, got {kernel!r}")
    if kernel == "sigmoid" and not 0 < sharpness < math.inf:
        raise ValueError(f'sharpness must be finite and greater than 0 (kernel "hard" is infinity), got {sharpness}')


def check_stack(name: str, image: torch.Tensor, shape: str, dims: int | None) -> None:
    """Raise on what is no floating-point tensor of `dims` axes (`None`: at least two); says what was given.

    Raises:
        TypeError: no tensor.
        ValueError: whole numbers, or another number of axes.
    """
    if not isinstance(image, torch.Tensor):
        raise TypeError(
            f"{name} must be a torch tensor {shape}, got {type(image).__name__}: torch.from_numpy makes one of an array"
        )
    if not image.is_floating_point():
        raise ValueError(
            f"{name} must be floating point {shape}, got {image.dtype} of shape {tuple(image.shape)}: {name}.float() "
            "is, with value_range in the same units"
        )
    if image.dim() < 2 if dims is None else image.dim() != dims:
        hint = ""
        if dims == 3 and image.dim() in (2, 4):
            makes = {2: "[None] makes a stack of one image", 4: ".flatten(0, 1) makes a stack of every channel"}
            hint = f": {name}{makes[image.dim()]}"
        raise ValueError(f"{name} must have the shape {shape}, got {tuple(image.shape)}{hint}")


def check_mask(mask: torch.Tensor, image: torch.Tensor) -> None:
    """Raise `TypeError` or `ValueError` on what is no mask of `image`, or leaves nothing of it."""
    if not isinstance(mask, torch.Tensor):
        raise TypeError(
            f"mask must be a torch tensor, got {type(mask).__name__}: torch.from_numpy makes one of an array"
        )
    if mask.shape != image.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be bool of the image's shape {tuple(image.shape)}, got {mask.dtype} of {tuple(mask.shape)}"
        )
    # Zeros would look like a measurement. A graph cannot be left to look.
    if not torch.compiler.is_compiling() and not mask.flatten(-2).any(-1).all():
        raise ValueError("mask must leave a pixel of every image, got one that leaves none")


def check_offsets(offsets: Sequence[Sequence[int]], height: int, width: int) -> None:
    """Raise `ValueError` on offsets that hold no pair in an image of `height` x `width` pixels."""
    if isinstance(offsets, torch.Tensor):
        raise ValueError(
            f"offsets must be a list [[dy, dx], ...] of whole numbers, got a tensor of shape {tuple(offsets.shape)}: "
            "offsets.tolist() is one"
        )
    if len(offsets) == 0:
        raise ValueError("offsets must hold at least one [dy, dx], got none")
    for offset in offsets:
        pair = hasattr(offset, "__len__") and len(offset) == 2
        whole = pair and all(isinstance(step, Integral) for step in offset)
        if not whole or abs(offset[0]) >= height or abs(offset[1]) >= width or not any(offset):
            size = f" ({height} x {width} pixels)" if height < sys.maxsize else ""
            raise ValueError(
                f"every offset must be [dy, dx] in whole pixels, not [0, 0] and shorter than the image{size}, got "
                f"{list(offset) if pair else offset}"
            )


def offsets_from_angles(distances: Sequence[int], angles: Sequence[float]) -> list[list[int]]:
    """Turn distances and angles into integer offsets, with the rounding of `skimage.feature.graycomatrix`.

    Args:
        distances: in pixels.
        angles: in radians, counted from the column axis towards increasing rows.

    Returns:
        `[[dy, dx], ...]`, distance by distance: `dy = round(sin(angle) * distance)`,
        `dx = round(cos(angle) * distance)`.

    Raises:
        ValueError: if an offset is (0, 0), or an angle is beyond a full turn, as degrees are.
    """
    for angle in angles:
        if not abs(angle) <= 2 * math.pi:
            raise ValueError(f"angles must be in radians, -2 pi to 2 pi, got {angle}: math.radians takes degrees")
    offsets = [
        [round(math.sin(angle) * distance), round(math.cos(angle) * distance)]
        for distance in distances
        for angle in angles
    ]
    if [0, 0] in offsets:
        raise ValueError(f"every distance must be at least 1 pixel, got {list(distances)}")
    return offsets


def warn_of_range(name: str, image: torch.Tensor, levels: int, value_range: Sequence[float]) -> None:
    """Warn if many pixels lie outside the range, or all of them within one grey level: it is in other units then."""
    low, high = map(float, value_range)
    slack = 1e-4 * (high - low)  # black and white of normalised images lie beyond the range by a rounding
    outside = ((image < low - slack) | (image > high + slack)).float().mean().item()
    least, most = image.min().item(), image.max().item()
    if outside > MANY_OUTSIDE:
        found = f"{outside:.0%} of the pixels of {name} lie outside value_range ({low:g}, {high:g}) and are clamped"
    elif 0 < most - least < (high - low) / levels:
        found = f"all pixels of {name} lie within one of the {levels} grey levels of value_range ({low:g}, {high:g})"
    else:
        return
    warnings.warn(
        f"{found}: give value_range in the units of the images, which span {least:g} to {most:g} (a window of CT that "
        "is meant may leave as many outside)",
        stacklevel=3,
    )


_ranges_seen: set[tuple[str, float, float]] = set()


def warn_once_of_range(
    name: str,
    image: torch.Tensor,
    levels: int,
    value_range: Sequence[float],
    grey: Callable[[torch.Tensor], torch.Tensor] = lambda image: image,
) -> None:
    """Look at `grey(image)` once a range in a process: to look at all would make the host wait for a GPU."""
    key = (name, float(value_range[0]), float(value_range[1]))
    # A tensor of another type, as FakeTensor, may have no values.
    without_values = type(image) not in (torch.Tensor, torch.nn.Parameter) or image.is_meta or not image.numel()
    if key in _ranges_seen or torch.compiler.is_compiling() or without_values:
        return
    if image.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    _ranges_seen.add(key)
    warn_of_range(name, grey(image), levels, value_range)


def pair_slices(offset: int, size: int) -> tuple[slice, slice]:
    """Index ranges of the first and of the second pixel of all pairs `offset` apart along an axis of `size`."""
    return slice(max(0, -offset), size - max(0, offset)), slice(max(0, offset), size + min(0, offset))


def place_of_counting(device: torch.device, dtype: torch.dtype) -> torch.device:
    """Where counts of `dtype` are added up: on `device`, or on the CPU if `device` has no float64 (Apple's GPUs)."""
    return torch.device("cpu") if device.type == "mps" and dtype == torch.float64 else device


def dtype_of_table(support: int, pixels: int, cumulative: bool, dtype: torch.dtype) -> torch.dtype:
    """In which the entries of a matrix are added up.

    A wide kernel adds thousands of small weights to each cell, and so does a large window: too many for a float32 sum,
    as are the cells of a cumulative matrix.
    """
    return torch.float64 if support > 2 or pixels > MAX_FLOAT32_PIXELS or cumulative else dtype


def support_window(kernel: str, sharpness: float, dtype: torch.dtype) -> tuple[int, int]:
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


def support_of(
    x: torch.Tensor, levels: int, value_range: Sequence[float], kernel: str, sharpness: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The few levels that share a pixel, with their weights and the derivatives of these by the pixel's value.

    A window of levels around the pixel, folded back at both ends of the range: level -1 is level 0, level K is
    level K - 1. That is what the mirrored terms of the sigmoid do, and the clamping of the linear kernel.
    `(m, H, W)` -> `index` (int64), `weight` and `slope`, each `(m, S, H, W)`.
    """
    u = in_bins(x, levels, value_range).unsqueeze(1)  # m 1 H W
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
        half_width, count = support_window(kernel, sharpness, x.dtype)
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
