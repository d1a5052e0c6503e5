"""Surprise: where the texture of an image is not what its surroundings foretell."""

import math
from dataclasses import dataclass

import torch

from .glcm_head import matrices_of_pairs, pair_divergence
from .modeling_glcm_mae import GLCMMAEForPreTraining


@dataclass
class TextureSurprise:
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

    def map_of(self, index: int) -> torch.Tensor:
        """The divergence of an image at each of its pixels, `(H, W)`."""
        return self.divergence[index].repeat_interleave(self.patch_size, 0).repeat_interleave(self.patch_size, 1)


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
def texture_surprise(
    model: GLCMMAEForPreTraining, pixel_values: torch.Tensor, *, num_masks: int = 8, seed: int = 0
) -> TextureSurprise:
    """Where the texture of images is not what their surroundings foretell, by the texture head of a model.

    Patches are hidden under several masks, and the predicted co-occurrence matrices held against the true ones.
    Surprising is not diseased: borders, labels and noise surprise too.

    Args:
        model: with a texture head, in evaluation mode.
        pixel_values: `(B, C, H, W)`, normalised, in whole patches.
        num_masks: at least so many; each hides the share of the patches that the model was trained with.
        seed: of the masks.

    Raises:
        TypeError: if the model is none with a decoder, as its published encoder is.
        ValueError: if it has no texture head, or the images are not in whole patches.

    Example:

    ```python
    >>> model = GLCMMAEForPreTraining.from_pretrained("runs/quickstart/export", subfolder="pretraining")
    >>> texture_surprise(model, processor(images=image, return_tensors="pt")["pixel_values"]).divergence  # 1 rows cols
    ```
    """
    if not hasattr(model, "predict_cooccurrence"):
        raise TypeError(
            f"model must be a GLCMMAEForPreTraining, got {type(model).__name__}: an export has it in "
            "subfolder='pretraining'"
        )
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
    return TextureSurprise(
        (divergence / times).unflatten(1, grid).cpu(),
        matrices_of_pairs(true, levels).cpu(),
        matrices_of_pairs(predicted / times[:, None, None], levels).cpu(),
        config.patch_size,
    )


__all__ = ["TextureSurprise", "hiding_noise", "texture_surprise"]
