"""What the model answers: dataclasses of tensors.

Axis letters in shapes: B images, N patches, C channels, H W pixels, T tiles, D offsets, Q pairs of grey levels.
"""

from dataclasses import dataclass

import torch
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoderOutput, ViTMAEForPreTrainingOutput
from transformers.utils import ModelOutput


@dataclass
class GLCMMAEForPreTrainingOutput(ViTMAEForPreTrainingOutput):
    r"""Output of `GLCMMAEForPreTraining`; the fields of ViTMAE's, and the terms of the loss.

    Args:
        loss (`torch.Tensor` of shape `()`):
            The objective: weighted sum of the terms over masked patches, the texture head's as configured (plain mean
            squared error with `texture=False`).
        logits (`torch.Tensor` of shape `(batch_size, num_patches, patch_size ** 2 * num_channels)`):
            Reconstructed pixels of all patches, in the units of `pixel_values`.
        mask (`torch.Tensor` of shape `(batch_size, num_patches)`):
            1 for masked patches, 0 for visible ones.
        ids_restore (`torch.LongTensor` of shape `(batch_size, num_patches)`):
            Original index of the shuffled patches.
        hidden_states, attentions: as in ViTMAE.
        glcm_loss (`torch.Tensor` of shape `()`, or `None` where its weight is 0 or texture does not count):
            Unweighted co-occurrence term.
        ssim_loss (`torch.Tensor` of shape `()`, or `None` where its weight is 0 or texture does not count):
            Unweighted mean of 1 - SSIM.
        mse_loss (`torch.Tensor` of shape `()`):
            Unweighted mean squared error.
        glcm_head_loss (`torch.Tensor` of shape `()`, or `None` without a texture head or where texture does not count):
            Unweighted divergence of the predicted co-occurrence distributions from the true ones, in nats.
        glcm_head_logits (`torch.Tensor` of shape `(batch_size, num_patches, D, Q)`, or `None` without a texture head):
            Of all patches, for each of the D offsets: logits of the Q unordered pairs of grey levels.
        glcm_cls_loss (`torch.Tensor` of shape `()`, or `None` without a head of the CLS token or where texture does not
            count):
            Unweighted divergence of the tiles' co-occurrence distributions, as predicted from the CLS token, from the
            true ones, in nats.
        glcm_cls_logits (`torch.Tensor` of shape `(batch_size, T, D, Q)`, or `None` without a head of the CLS token):
            Of the T tiles, row by row.
    """

    glcm_loss: torch.Tensor | None = None
    ssim_loss: torch.Tensor | None = None
    mse_loss: torch.Tensor | None = None
    glcm_head_loss: torch.Tensor | None = None
    glcm_head_logits: torch.Tensor | None = None
    glcm_cls_loss: torch.Tensor | None = None
    glcm_cls_logits: torch.Tensor | None = None


@dataclass
class GLCMMAEDecoderOutput(ViTMAEDecoderOutput):
    """ViTMAE's, and what the heads answer.

    Of patches `(batch_size, num_patches, D, Q)`, from the CLS token `(batch_size, T, D, Q)`; `None` without the head.
    """

    glcm_head_logits: torch.Tensor | None = None
    glcm_cls_logits: torch.Tensor | None = None


@dataclass
class GLCMMAEReconstructionOutput(ModelOutput):
    r"""What `GLCMMAEForPreTraining.reconstruct` makes of images; all without a gradient.

    Args:
        reconstruction: `(B, C, H, W)`, all patches as predicted, in the units of the images.
        pasted: `(B, C, H, W)`, `reconstruction` in masked patches, the given image elsewhere.
        mask: `(B, N)`, 1 for masked patches, 0 for visible ones.
        pixel_mask: `(B, 1, H, W)`, True for the pixels of masked patches.
        glcm_head_logits: `(B, N, D, Q)`, what the texture head answers of every patch; `None` without a head.
    """

    reconstruction: torch.Tensor | None = None
    pasted: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    pixel_mask: torch.Tensor | None = None
    glcm_head_logits: torch.Tensor | None = None


__all__ = ["GLCMMAEDecoderOutput", "GLCMMAEForPreTrainingOutput", "GLCMMAEReconstructionOutput"]
