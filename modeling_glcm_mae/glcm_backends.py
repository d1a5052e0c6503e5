"""Loss and gradient in one pass: the operator behind `glcm_loss`, and which backend computes it."""

import functools
import importlib
import os
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .glcm_sparse import sparse_loss_and_gradient
from .glcm_support import (
    MAX_TRITON_CUMULATIVE_LEVELS,
    MAX_TRITON_PIXELS,
    check_levels,
    check_offsets,
    dtype_of_table,
    place_of_counting,
    support_window,
)

# Of Triton from PyTorch. A wrong kernel is wrong by more; rounding, of steep kernels with many levels, by less.
TRUSTED_DIFFERENCE = 0.01
_agreeing: set[tuple[str, torch.device]] = set()
_disagreeing: list[str] = []


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
    _, support = support_window(kernel, sharpness, dtype)
    place = place_of_counting(home, dtype_of_table(support, pixels, cumulative, dtype))
    pred, target = pred.to(place), target.to(place)
    settings = {
        "levels": levels,
        "value_range": value_range,
        "offsets": list(zip(flat_offsets[::2], flat_offsets[1::2], strict=True)),
        "kernel": kernel,
        "sharpness": sharpness,
        "reweight": reweight,
        "symmetric": symmetric,
        "normalize": normalize,
        "cumulative": cumulative,
    }
    if backend == "auto":
        backend = _backend_of_auto(pred, with_gradient, support, settings)
    losses, gradient = _function_of(backend)(pred, target, with_gradient, **settings)
    return losses.to(home), gradient.to(home)


def _function_of(backend: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    if backend == "triton":
        from .glcm_triton import triton_loss_and_gradient

        return triton_loss_and_gradient
    if backend == "numba":
        from .glcm_numba import numba_loss_and_gradient

        return numba_loss_and_gradient
    return sparse_loss_and_gradient


def _backend_of_auto(pred: torch.Tensor, with_gradient: bool, support: int, settings: dict[str, Any]) -> str:
    if only_pytorch():
        return "sparse"
    height, width = pred.shape[1:]
    backend = _fastest_backend(pred.device.type, height * width, settings["levels"], settings["cumulative"])
    if backend != "triton":
        return backend
    # All that the kernel is compiled for, not where its grey levels lie.
    compiled_for = {name: value for name, value in settings.items() if name not in ("value_range", "sharpness")}
    key = (*compiled_for.values(), support, with_gradient, pred.dtype, torch.are_deterministic_algorithms_enabled())

    def answers(compute: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, ...]:
        few, noisy = few_patches(height, width, settings["value_range"], pred)
        return compute(noisy, few, with_gradient, **settings)

    agrees = triton_agrees(str((height, width, *key)), pred.device, lambda name: answers(_function_of(name)))
    return "triton" if agrees else "sparse"


def only_pytorch() -> bool:
    """Whether the environment variable GLCM_BACKEND asks for "sparse" wherever the fastest backend would be taken."""
    asked = os.environ.get("GLCM_BACKEND")
    if asked not in (None, "", "sparse"):
        raise ValueError(f"the environment variable GLCM_BACKEND must be sparse or not set, got {asked!r}")
    return asked == "sparse"


def few_patches(
    height: int, width: int, value_range: Sequence[float], like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Four patches of noise that reach beyond both ends of the range, and others a little off: `(4, H, W)` each."""
    lo, hi = value_range
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 4, height, width, generator=generator, dtype=torch.float64)
    first = lo + (hi - lo) * (1.2 * first - 0.1)
    return first.to(like), (first + 0.2 * (hi - lo) * (second - 0.5)).to(like)


def triton_agrees(setting: str, device: torch.device, answers: Callable[[str], tuple[torch.Tensor, ...]]) -> bool:
    """Whether a Triton kernel answers on a few patches what PyTorch does; asked once in a process for each setting.

    A compiler's fault would train on a wrong loss without a word: where they differ, it is said once, and Triton is
    left alone from then on.

    Args:
        setting: what the kernel is compiled for.
        device: where it runs.
        answers: gives the tensors of the backend "triton" or "sparse".
    """
    if _disagreeing:
        return False
    if (setting, device) in _agreeing:
        return True
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return True  # nothing can be read while a graph is captured
    differences = [
        (
            (found - expected).double().norm() / expected.double().norm().clamp(min=torch.finfo(torch.float32).tiny)
        ).item()
        for found, expected in zip(answers("triton"), answers("sparse"), strict=True)
    ]
    if all(difference <= TRUSTED_DIFFERENCE for difference in differences):  # NaN is not
        _agreeing.add((setting, device))
        return True
    _disagreeing.append(setting)
    warnings.warn(
        f"the Triton kernel differs from PyTorch on {device} by {', '.join(f'{value:.2g}' for value in differences)} "
        f"(relative; at most {TRUSTED_DIFFERENCE} is allowed) for {setting}: the backend sparse is used from now on, "
        f"which is slower. Please report this with the versions of torch and triton; with GLCM_BACKEND=sparse in the "
        "environment Triton is not tried.",
        stacklevel=2,
    )
    return False


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


def one_pass_loss(
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
    """`glcm_loss` of each patch, `(M,)`, by any backend but the definition."""
    check_levels(levels, value_range, kernel, sharpness)
    check_offsets(offsets, *pred.shape[1:])
    flat_offsets = [int(step) for offset in offsets for step in offset]
    lo, hi = map(float, value_range)
    with torch.autocast(pred.device.type, enabled=False):
        return _OnePassLoss.apply(
            # Else what has no gradient would seem to have one, of zeros or none at all.
            pred.detach() if kernel == "hard" else pred,
            target.detach(),
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
    if device == "cpu" and can_import("numba"):
        return "numba"
    fits = pixels <= MAX_TRITON_PIXELS and not (cumulative and levels > MAX_TRITON_CUMULATIVE_LEVELS)
    return "triton" if device == "cuda" and fits and can_import("triton") else "sparse"


@functools.cache
def can_import(name: str) -> bool:
    """Whether a package loads; says so once if it is there and does not."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a library that does not load is no ImportError
        if not isinstance(error, ModuleNotFoundError) or error.name != name:
            warnings.warn(f"the co-occurrence loss will be slower: {name} cannot be imported: {error!r}", stacklevel=1)
        return False
    return True
