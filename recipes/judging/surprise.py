"""Where the texture of an image is not what its surroundings foretell, by the texture head of an autoencoder."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from judging.overlay import draw_overlay
from modeling_glcm_mae import GLCMMAEForPreTraining
from modeling_glcm_mae.glcm_head import matrices_of_pairs, pair_divergence

CAVEAT = (
    "Surprising is not diseased: borders, labels, calipers and noise surprise too, and a lesion that looks like its "
    "surroundings does not. Research only."
)


@dataclass
class Surprise:
    """Of images of N patches, D offsets and K grey levels, on the CPU.

    Args:
        divergence: `(B, rows, columns)`, in nats: mean, over the masks that hid a patch, of the divergence of what was
            predicted from what is there.
        true: `(B, N, D, K, K)`, the co-occurrence matrices of the patches.
        predicted: `(B, N, D, K, K)`, mean of the predictions over the masks that hid a patch.
        patch_size: in pixels.
    """

    divergence: torch.Tensor
    true: torch.Tensor
    predicted: torch.Tensor
    patch_size: int

    def map_of(self, index: int) -> np.ndarray:
        """The divergence of an image at each of its pixels, `(H, W)`."""
        return self.divergence[index].numpy().repeat(self.patch_size, 0).repeat(self.patch_size, 1)

    def frame_of(self, patch: int) -> Rectangle:
        """A frame around a patch, to be drawn into the image."""
        row, column = divmod(patch, self.divergence.shape[2])
        side = self.patch_size
        return Rectangle((column * side - 0.5, row * side - 0.5), side, side, fill=False, color="#ffb000", lw=2)


def hiding_noise(num_patches: int, mask_ratio: float, num_masks: int, seed: int) -> torch.Tensor:
    """Noise of masks under which each patch is hidden at least once, and all about equally often.

    The patches are put in a random order, and each mask hides a stretch of it that begins where as many stretches of
    equal length would, around the circle.

    Args:
        num_patches: N.
        mask_ratio: share of the patches that a mask hides, above 0 and below 1.
        num_masks: at least so many; more if it takes more to hide every patch.
        seed: of the order.

    Returns:
        `(masks, N)`, 1 for hidden patches, else 0, as ViTMAE takes its noise.

    Raises:
        ValueError: if the ratio hides no patch, or num_masks is below 1.
    """
    hidden = num_patches - int(num_patches * (1 - mask_ratio))  # as ViTMAE rounds
    if not 0 < hidden < num_patches:
        raise ValueError(f"mask_ratio {mask_ratio} hides {hidden} of {num_patches} patches: none can be foretold")
    if num_masks < 1:
        raise ValueError(f"num_masks must be at least 1, got {num_masks}")
    count = max(num_masks, math.ceil(num_patches / hidden))
    order = torch.randperm(num_patches, generator=torch.Generator().manual_seed(seed))
    noise = torch.zeros(count, num_patches)
    for index in range(count):
        stretch = torch.arange(hidden) + index * num_patches // count
        noise[index, order[stretch % num_patches]] = 1
    return noise


@torch.no_grad()
def surprise(
    model: GLCMMAEForPreTraining, pixel_values: torch.Tensor, *, num_masks: int = 8, seed: int = 0
) -> Surprise:
    """Hide patches under several masks and hold the predicted against the true co-occurrence matrices.

    Args:
        model: with a texture head, in evaluation mode.
        pixel_values: `(B, C, H, W)`, normalised, in whole patches.
        num_masks, seed: see `hiding_noise`; the mask ratio is that of the model.

    Raises:
        ValueError: if the model has no texture head, or the images are not in whole patches.
    """
    config = model.config
    if not config.glcm_head_weight:
        raise ValueError("the model has no texture head (glcm_head_weight is 0), so it foretells no texture")
    patches = model.image_patches(pixel_values)  # B N p p C
    true = model.pair_distribution(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])  # B N D Q
    noise = hiding_noise(patches.shape[1], config.mask_ratio, num_masks, seed).to(pixel_values)
    divergence, predicted, times = torch.zeros_like(true[:, :, 0, 0]), torch.zeros_like(true), 0
    for row in noise:
        logits = model.reconstruct(pixel_values, noise=row.expand(len(pixel_values), -1)).glcm_head_logits.to(true)
        divergence += row * pair_divergence(logits, true)
        predicted += row[:, None, None] * logits.softmax(-1)
        times = times + row
    grid = (pixel_values.shape[-2] // config.patch_size, pixel_values.shape[-1] // config.patch_size)
    levels = config.glcm_head_levels
    return Surprise(
        (divergence / times).unflatten(1, grid).cpu(),
        matrices_of_pairs(true, levels).cpu(),
        matrices_of_pairs(predicted / times[:, None, None], levels).cpu(),
        config.patch_size,
    )


def draw_surprise(
    found: Surprise, image: np.ndarray, title: str, limit: tuple[float, float | None] = (0, None)
) -> Figure:
    """An image with its most surprising patch framed, its map, and the two matrices of that patch.

    Args:
        found: of one image.
        image: `(H, W, C)` of 1 or 3 channels, in [0, 1].
        title: of the image.
        limit: of the colours, in nats; the greatest is that of the map if left out.
    """
    image, heat = np.broadcast_to(image, (*image.shape[:2], 3)), found.map_of(0)
    most = int(found.divergence[0].argmax())
    figure = Figure(figsize=(8, 7.6), layout="constrained")
    (plain, overlay), below = figure.subplots(2, 2)
    draw_overlay(plain, image)
    plain.set_title(title)
    plain.add_patch(found.frame_of(most))
    shades = draw_overlay(overlay, image, heat)
    shades.set_clim(*limit)
    overlay.set_title("surprise")
    figure.colorbar(shades, ax=overlay, shrink=0.8, label="nats")
    matrices = [of_patches[0, most].mean(0).numpy() for of_patches in (found.true, found.predicted)]
    for axis, matrix, what in zip(below, matrices, ("is there", "was foretold"), strict=True):
        levels = len(matrix)
        shades = axis.imshow(
            matrix,
            cmap="magma",
            vmin=0,
            vmax=max(m.max() for m in matrices),
            extent=(0.5, levels + 0.5, levels + 0.5, 0.5),
        )
        axis.set_title(f"framed patch: GLCM that {what}")
        axis.set_xlabel("grey level")
    figure.colorbar(shades, ax=below, shrink=0.8, label="probability")
    figure.supxlabel(CAVEAT, fontsize=8, wrap=True)
    return figure
