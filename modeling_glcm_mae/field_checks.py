"""What a single field of the configuration may hold; each check raises a ValueError that says what is allowed."""

import math
from collections.abc import Sequence
from typing import Any

KERNELS = ("sigmoid", "linear", "hard")
HEAD_PATCHES = ("all", "masked")


def _require(condition: bool, allowed: str, value: Any) -> None:
    if not condition:
        raise ValueError(f"must be {allowed}, got {value!r}")


def check_levels(value: int) -> None:
    """At least two grey levels."""
    _require(value >= 2, "an integer of at least 2", value)


def check_value_range(value: Sequence[float]) -> None:
    """Two finite grey values, the lower one first."""
    _require(
        len(value) == 2 and all(math.isfinite(v) for v in value) and value[0] < value[1],
        "two finite numbers [lo, hi] with lo < hi, in the units of pixel_values",
        value,
    )


def check_offsets(value: Sequence[Sequence[int]]) -> None:
    """Pairs of whole pixels, none of them [0, 0]."""
    _require(
        len(value) > 0 and all(len(offset) == 2 and any(offset) for offset in value),
        "a non-empty list of [dy, dx] pairs of whole pixels, none of them [0, 0]",
        value,
    )


def check_tiles(value: int) -> None:
    """At least one tile."""
    _require(value >= 1, "an integer of at least 1", value)


def check_head_patches(value: str) -> None:
    """One of HEAD_PATCHES."""
    _require(value in HEAD_PATCHES, f"one of {', '.join(HEAD_PATCHES)}", value)


def check_kernel(value: str) -> None:
    """One of KERNELS."""
    _require(value in KERNELS, f"one of {', '.join(KERNELS)}", value)


def check_positive(value: float) -> None:
    """A finite number above 0."""
    _require(math.isfinite(value) and value > 0, "a finite number greater than 0", value)


def check_weight(value: float) -> None:
    """A finite number of at least 0."""
    _require(math.isfinite(value) and value >= 0, "a finite number of at least 0", value)


def check_channel(value: int | str) -> None:
    """An index or "mean"."""
    _require(value == "mean" or (isinstance(value, int) and value >= 0), 'a channel index or "mean"', value)


def check_mask_ratio(value: float) -> None:
    """A share below 1."""
    _require(0 <= value < 1, "at least 0.0 and less than 1.0", value)


def check_patch_size(value: Any) -> None:
    """One whole number of pixels."""
    _require(isinstance(value, int) and value > 0, "one positive integer (the decoder predicts square patches)", value)


__all__ = [
    "HEAD_PATCHES",
    "KERNELS",
    "check_channel",
    "check_head_patches",
    "check_kernel",
    "check_levels",
    "check_mask_ratio",
    "check_offsets",
    "check_patch_size",
    "check_positive",
    "check_tiles",
    "check_value_range",
    "check_weight",
]
