"""The loss on co-occurrence matrices as a module, for networks of any kind."""

import sys
from collections.abc import Sequence

import torch
from torch import nn

from .glcm import check_choices, glcm_loss
from .glcm_support import check_levels, check_offsets, warn_of_range


class GLCMLoss(nn.Module):
    """`glcm_loss` with its settings kept, to be used as the texture loss of any network.

    Finding the weight: train with the pixel loss alone until the images are roughly right (or let the network learn a
    residual), and only then add this term, with a weight that makes both gradients at the network's output about one
    size there. From random weights a large weight may end in noise. Train until the schedule has ended before judging:
    on its way the term turns blur into noise, and noise into texture. `texture_fidelity` tells the three apart (a
    gradient energy below, above and at 1).

    The defaults are those of the paper, whose loss grows with the size of the image; for new work `kernel="linear"`,
    `normalize=True`, `reweight=False`.

    Args:
        levels: number K of grey levels, at least 2.
        value_range: (lo, hi) spanned by the levels, in the units of the images: floats of 0 to 1, 0 to 255, or HU.
        offsets: `[[dy, dx], ...]` in whole pixels, as `offsets_from_angles` makes them.
        kernel, sharpness, reweight, symmetric, normalize, cumulative, reduction, backend: as in `glcm_loss`.

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

    def forward(self, pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """`(M, H, W)` twice, and a mask as in `glcm_loss` -> the loss.

        Warns once if the first targets do not lie where the range does.
        """
        loss = glcm_loss(pred, target, mask=mask, **self.settings)
        unchecked = not self._range_is_checked and not torch.compiler.is_compiling() and target.numel()
        if unchecked and mask is None:  # `cooccurrence_matrix`, by which a mask is heeded, looks itself
            self._range_is_checked = True
            warn_of_range("target", target, self.settings["levels"], self.settings["value_range"])
        return loss

    def extra_repr(self) -> str:
        """Show the settings."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())


__all__ = ["GLCMLoss"]
