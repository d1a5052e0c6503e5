"""The loss on co-occurrence matrices as a module, for networks of any kind."""

import sys
import warnings
from collections.abc import Sequence

import torch
from torch import nn

from .glcm import check_choices, glcm_loss
from .glcm_support import check_levels, check_offsets


class GLCMLoss(nn.Module):
    """`glcm_loss` with its settings kept, to be used as the texture loss of any network.

    Finding the weight: beside a pixel loss, begin where both terms have gradients of about one size at the network's
    output, and train until the schedule has ended before judging it: on its way the term turns blur into noise, and
    noise into texture. `texture_fidelity` tells the three apart (a gradient energy below, above and at 1).

    Args:
        levels, value_range, offsets, kernel, sharpness, reweight, symmetric, normalize, cumulative, reduction, backend:
            as in `glcm_loss`.

    Raises:
        ValueError: on a wrong argument, at construction; names it, its value and what is allowed.
    """

    def __init__(
        self,
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
    ):
        super().__init__()
        check_levels(levels, value_range, kernel, sharpness)
        check_offsets(offsets, sys.maxsize, sys.maxsize)  # their lengths depend on the images
        check_choices(reduction, backend, reweight, cumulative)
        self.settings = {
            "levels": levels,
            "value_range": value_range,
            "offsets": offsets,
            "kernel": kernel,
            "sharpness": sharpness,
            "reweight": reweight,
            "symmetric": symmetric,
            "normalize": normalize,
            "cumulative": cumulative,
            "reduction": reduction,
            "backend": backend,
        }
        self._range_is_checked = False

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """`(M, H, W)` twice -> the loss. Warns once if more than half of the first targets lie outside the range."""
        loss = glcm_loss(pred, target, **self.settings)
        if not self._range_is_checked and not torch.compiler.is_compiling() and target.numel():
            self._range_is_checked = True
            low, high = self.settings["value_range"]
            outside = ((target < low) | (target > high)).float().mean().item()
            if outside > 0.5:
                warnings.warn(
                    f"{outside:.0%} of the target's pixels lie outside value_range ({low}, {high}) and are clamped: "
                    f"give value_range in the units of the images, which span {target.min().item():g} to "
                    f"{target.max().item():g}",
                    stacklevel=2,
                )
        return loss

    def extra_repr(self) -> str:
        """Show the settings."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())


__all__ = ["GLCMLoss"]
