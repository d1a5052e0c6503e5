"""Loss and gradient in one pass: the operator behind `glcm_loss`, and which backend computes it."""

import functools
import importlib
import re
import warnings
from collections.abc import Sequence

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
    if backend == "auto":
        backend = _fastest_backend(place.type, pixels, levels, cumulative)
    if backend == "triton":
        from .glcm_triton import triton_loss_and_gradient as compute
    elif backend == "numba":
        from .glcm_numba import numba_loss_and_gradient as compute
    else:
        compute = sparse_loss_and_gradient
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
