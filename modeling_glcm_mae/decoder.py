"""The decoder: ViTMAE's, for any grid of patches, and the heads that predict co-occurrence distributions."""

import torch
from torch import nn
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder

from .configuration_glcm_mae import GLCMMAEConfig
from .glcm_head import num_pairs
from .outputs import GLCMMAEDecoderOutput
from .positions import grid_of, resample_positions


class GLCMMAEDecoder(ViTMAEDecoder):
    """ViTMAE's decoder, with positions interpolated over the two-dimensional grid of patches.

    (transformers 5.23 interpolates them as one strip, which misplaces every patch of another grid.) With a
    `glcm_head_weight`, a linear layer beside the pixels' predicts the co-occurrence distributions; with a
    `glcm_cls_weight`, another those of a grid of tiles, from the encoder's CLS token alone.
    """

    def __init__(self, config: GLCMMAEConfig, num_patches: int):
        super().__init__(config, num_patches)
        self.glcm_head = self.glcm_cls_head = None
        answers = len(config.glcm_head_offsets) * num_pairs(config.glcm_head_levels)
        if config.glcm_head_weight:
            self.glcm_head = nn.Linear(config.decoder_hidden_size, answers)
        if config.glcm_cls_weight:
            self.glcm_cls_head = nn.Linear(config.hidden_size, config.glcm_cls_tiles**2 * answers)

    def initialize_weights(self, num_patches: int) -> None:
        """Nothing: the stock values fit square images only; `_init_weights` of the model sets them for any grid."""

    def forward(
        self, hidden_states: torch.Tensor, ids_restore: torch.Tensor, grid: tuple[int, int]
    ) -> GLCMMAEDecoderOutput:
        """Predict the pixels of all patches and, with the heads that there are, co-occurrence distributions.

        Args:
            hidden_states: `(batch_size, 1 + visible, hidden_size)` from the encoder, CLS first.
            ids_restore: `(batch_size, num_patches)`, original index of the shuffled patches.
            grid: number of patches (down, across).

        Returns:
            `logits` of shape `(batch_size, num_patches, patch_size ** 2 * num_channels)`, and those of the heads.
        """
        embedded = self.decoder_embed(hidden_states)
        cls_token, visible = embedded[:, :1], embedded[:, 1:]
        masked = self.mask_token.expand(len(visible), ids_restore.shape[1] - visible.shape[1], -1)
        shuffled = torch.cat([visible, masked.to(visible.dtype)], dim=1)
        patches = shuffled.gather(1, ids_restore.unsqueeze(-1).expand(-1, -1, shuffled.shape[-1]))
        positions = resample_positions(
            self.decoder_pos_embed, grid_of(self.config.image_size, self.config.patch_size), grid
        )
        hidden = torch.cat([cls_token, patches], dim=1) + positions
        for layer in self.decoder_layers:
            hidden = layer(hidden)
        hidden = self.decoder_norm(hidden)
        head_logits = cls_logits = None
        offsets = len(self.config.glcm_head_offsets)
        if self.glcm_head is not None:
            head_logits = self.glcm_head(hidden[:, 1:]).unflatten(-1, (offsets, -1))
        if self.glcm_cls_head is not None:
            tiles = self.config.glcm_cls_tiles**2
            cls_logits = self.glcm_cls_head(hidden_states[:, 0]).unflatten(-1, (tiles, offsets, -1))
        return GLCMMAEDecoderOutput(
            logits=self.decoder_pred(hidden)[:, 1:], glcm_head_logits=head_logits, glcm_cls_logits=cls_logits
        )


__all__ = ["GLCMMAEDecoder"]
