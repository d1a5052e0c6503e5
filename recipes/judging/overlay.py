"""Where a classifier's answer comes from, as heat maps over the image. Sensitivity of the model, not a lesion map."""

import textwrap

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from transformers import PreTrainedModel


@torch.no_grad()
def occlusion_map(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    target: int,
    *,
    window: int,
    stride: int,
    batch_size: int = 32,
) -> torch.Tensor:
    """How much the probability of a class falls where a window hides the image (Zeiler and Fergus 2014).

    Args:
        model: in evaluation mode.
        pixel_values: `(3, H, W)`, normalised; hidden pixels become 0, the mean of the normalisation.
        target: the class.
        window, stride: in pixels. Windows are placed from the top left corner, and once more flush with each far edge.
        batch_size: windows at once.

    Returns:
        `(H, W)`: mean over the windows that cover a pixel of p(whole image) - p(image without the window). Positive
        where hiding lowers the probability.

    Raises:
        ValueError: a window or stride that does not fit.
    """
    height, width = pixel_values.shape[1:]
    if not (0 < window <= min(height, width) and 0 < stride <= window):
        raise ValueError(f"window must be 1 to {min(height, width)} and stride 1 to window, got {window} and {stride}")
    tops, lefts = (sorted({*range(0, size - window + 1, stride), size - window}) for size in (height, width))
    corners = [(top, left) for top in tops for left in lefts]
    whole = model(pixel_values=pixel_values[None]).logits.float().softmax(dim=1)[0, target]
    total, count = torch.zeros(height, width), torch.zeros(height, width)
    for start in range(0, len(corners), batch_size):
        part = corners[start : start + batch_size]
        hidden = pixel_values.expand(len(part), -1, -1, -1).clone()
        for image, (top, left) in zip(hidden, part, strict=True):
            image[:, top : top + window, left : left + window] = 0
        falls = whole - model(pixel_values=hidden).logits.float().softmax(dim=1)[:, target]
        for (top, left), fall in zip(part, falls.tolist(), strict=True):
            total[top : top + window, left : left + window] += fall
            count[top : top + window, left : left + window] += 1
    return total / count


@torch.no_grad()
def attention_rollout(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """How much of each patch reaches what the head reads, whatever the class.

    By attention roll-out (Abnar and Zuidema 2020) to the CLS token, or to the mean of the patch tokens of a BEiT with
    `use_mean_pooling`.

    Args:
        model: loaded with attn_implementation="eager"; other implementations return no attention.
        pixel_values: `(3, H, W)`, normalised.

    Returns:
        `(H / patch, W / patch)`, sums to 1.

    Raises:
        ValueError: the model returns no attention.
    """
    attentions = model(pixel_values=pixel_values[None], output_attentions=True).attentions
    if not attentions or attentions[0] is None:
        raise ValueError('the model returns no attention: load it with attn_implementation="eager"')
    rolled = torch.eye(attentions[0].shape[-1], device=pixel_values.device)
    for attention in attentions:
        mean = attention[0].float().mean(dim=0)  # over heads
        mixed = 0.5 * mean + 0.5 * torch.eye(len(mean), device=mean.device)  # half is the residual connection
        rolled = mixed @ rolled
    patch = model.config.patch_size
    read = rolled[1:].mean(dim=0) if getattr(model.config, "use_mean_pooling", False) else rolled[0]
    grid = read[1:].view(pixel_values.shape[1] // patch, pixel_values.shape[2] // patch)
    return grid / grid.sum()


def in_lines(text: str, width: int) -> str:
    """A title in lines of at most `width` characters: matplotlib breaks no file name, and cuts what is too long."""
    return "\n".join(part for line in text.splitlines() for part in textwrap.wrap(line, width) or [line])


def draw_overlay(
    axis: Axes, image: np.ndarray, heat: np.ndarray | None = None, limit: float | None = None
) -> AxesImage | None:
    """An image, with a map over it if there is one.

    Args:
        axis: to draw on; it loses its ticks and frame.
        image: `(height, width)` or `(height, width, 3)`.
        heat: `(height, width)`.
        limit: of a map with a sign: red at `limit`, blue at `-limit`. Without it, the map runs from its least to its
            greatest value.

    Returns:
        What a colour bar is made of; `None` without a map.
    """
    axis.imshow(image, interpolation="nearest")
    axis.axis("off")
    if heat is None:
        return None
    signed = {} if limit is None else {"vmin": -limit, "vmax": limit}
    return axis.imshow(heat, cmap="viridis" if limit is None else "coolwarm", alpha=0.5, **signed)
