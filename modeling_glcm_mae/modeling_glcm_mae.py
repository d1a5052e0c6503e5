"""GLCM-MAE: ViTMAE whose reconstruction is judged by grey-level co-occurrence matrices.

Axis letters in trailing shape comments: B images, N patches, M masked patches, C channels, p the patch size in pixels.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, ViTMAEForPreTraining, ViTMAEModel, ViTMAEPreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    get_model_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import apply_renamings
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder, ViTMAEEmbeddings, ViTMAEModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_glcm_mae import GLCMMAEConfig
from .decoder import GLCMMAEDecoder
from .glcm import glcm_loss
from .glcm_head import matrices_of_pairs, pair_distribution, pair_divergence
from .glcm_support import warn_once_of_range
from .outputs import GLCMMAEForPreTrainingOutput, GLCMMAEReconstructionOutput
from .positions import GLCMMAEEmbeddings, check_pixel_values, grid_of, sin_cos_positions
from .ssim import extremes, min_max_scaled, ssim_loss

_SSIM_PATCHES = 2**14  # at once; 48 MiB in float32 for patches of 16 x 16 x 3


class GLCMMAEPreTrainedModel(ViTMAEPreTrainedModel):
    """Initialisation of MAE (He et al. 2022): sin-cos positions, tokens from N(0, 0.02), Xavier-uniform layers.

    The pixels are predicted alike in all channels at first.
    """

    config: GLCMMAEConfig
    config_class = GLCMMAEConfig
    # device_map and FSDP look the classes up by name.
    _no_split_modules = ["GLCMMAEEmbeddings", "ViTMAELayer", "GLCMMAEDecoder"]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any module, and also by the names that `save_pretrained` writes.

        (Trainer (5.23) gives a checkpoint's as they are in the file, and would go on from random layers.)
        """
        known, renamings = self.state_dict().keys(), get_model_conversion_mapping(self)
        renamed = type(state_dict)(
            (name if name in known else apply_renamings(name, renamings), tensor) for name, tensor in state_dict.items()
        )
        if hasattr(state_dict, "_metadata"):
            renamed._metadata = state_dict._metadata  # as torch keeps the versions of modules
        return super().load_state_dict(renamed, strict, assign)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers 5.23 leaves the positions and tokens of a new ViTMAE at zero. The functions of `init` skip
        # what a checkpoint has filled.
        patch_size = self.config.patch_size
        grid = grid_of(self.config.image_size, patch_size)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            # The patch projection is a linear layer on flattened patches. A view would lose the mark that the weight
            # comes from a checkpoint, so the fan is given by hand.
            bound = (6 / (module.weight[0].numel() + len(module.weight))) ** 0.5
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)
        elif isinstance(module, ViTMAEEmbeddings):
            init.copy_(module.position_embeddings, sin_cos_positions(grid, self.config.hidden_size))
            init.normal_(module.cls_token, std=self.config.initializer_range)
        elif isinstance(module, ViTMAEDecoder):
            init.copy_(module.decoder_pos_embed, sin_cos_positions(grid, self.config.decoder_hidden_size))
            init.normal_(module.mask_token, std=self.config.initializer_range)
            # Channels begin equal: those of grey images then stay together. Where their mean alone is judged by its
            # texture, nothing but the squared error would bring them together, and it takes long over colour noise.
            weight = module.decoder_pred.weight
            first = weight.unflatten(0, (-1, self.config.num_channels))[:, :1]  # the channel is the fastest axis
            init.copy_(weight, first.expand(-1, self.config.num_channels, -1).flatten(0, 1))
        else:
            super()._init_weights(module)


class GLCMMAEModel(GLCMMAEPreTrainedModel, ViTMAEModel):
    """The encoder with its masking: ViTMAEModel with MAE's initialisation. For features, use the exported ViTModel."""

    def __init__(self, config: GLCMMAEConfig):
        super().__init__(config)
        self.embeddings = GLCMMAEEmbeddings(config)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: torch.Tensor | None = None,
        mask_ratio: float | None = None,
        **kwargs: Any,
    ) -> ViTMAEModelOutput:
        """As ViTMAE's, for the mask ratio of the configuration or another (at least 0 and less than 1)."""
        hidden, mask, ids_restore = self.embeddings(pixel_values, noise, bool(interpolate_pos_encoding), mask_ratio)
        attention_mask = create_bidirectional_mask(self.config, hidden, attention_mask)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask, **kwargs)
        return ViTMAEModelOutput(last_hidden_state=self.layernorm(hidden), mask=mask, ids_restore=ids_restore)


class GLCMMAEForPreTraining(GLCMMAEPreTrainedModel, ViTMAEForPreTraining):
    r"""Masked autoencoder that is judged by texture: ViTMAE with the objective of GLCM-MAE.

    `loss = glcm_weight * L_glcm + ssim_weight * L_ssim + mse_weight * L_mse`, on masked patches only, in float32
    (Madan, Satia et al., "Focus on Texture", MICCAI 2025, arXiv 2507.10869; the weights and the details are fields of
    `GLCMMAEConfig`). With a `glcm_head_weight`, the decoder also predicts the co-occurrence matrices themselves, and
    `glcm_head_weight * L_head` is added, `L_head` the mean of `KL(true || predicted)`; with a `glcm_cls_weight`, the
    same of matrices of the whole image, tile by tile, as foretold from the encoder's CLS token.

    Example:

    ```python
    >>> import torch
    >>> from modeling_glcm_mae import GLCMMAEConfig, GLCMMAEForPreTraining

    >>> model = GLCMMAEForPreTraining(GLCMMAEConfig.from_preset("texture"))
    >>> outputs = model(torch.randn(1, 3, 224, 224))
    >>> outputs.loss.backward()
    ```
    """

    def __init__(self, config: GLCMMAEConfig):
        if not hasattr(config, "glcm_levels"):  # not isinstance: code loaded from the Hub has classes of its own
            raise TypeError(f"config must be a GLCMMAEConfig, got a {type(config).__name__}")
        # Fields assigned after the configuration was made were not checked against each other.
        config.validate()
        # Not ViTMAEForPreTraining's own: it would build stock parts first, whose positions fit square images only.
        ViTMAEPreTrainedModel.__init__(self, config)
        self.vit = GLCMMAEModel(config)
        self.decoder = GLCMMAEDecoder(config, num_patches=self.vit.embeddings.patch_embeddings.num_patches)
        self.post_init()

    @staticmethod
    def checkpoint_config(pretrained_model_name_or_path: str, **hub_arguments: Any) -> dict[str, Any]:
        """The stored configuration of a checkpoint that this class can load.

        Args:
            pretrained_model_name_or_path: Hub id or folder, as in transformers.
            **hub_arguments: `subfolder`, `revision`, `token`, ..., as for `from_pretrained`.

        Raises:
            ValueError: if the checkpoint is of another architecture.
        """
        stored, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_arguments)
        if stored.get("model_type") != "vit_mae":
            hint = " Its pretraining/ subfolder may: pass subfolder='pretraining'." * (
                stored.get("model_type") == "vit"
            )
            raise ValueError(
                f"{pretrained_model_name_or_path} holds no ViTMAE with a decoder: its model_type is "
                f"{stored.get('model_type')!r}, allowed is 'vit_mae'.{hint}"
            )
        return stored

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """Load any ViTMAE checkpoint, decoder included, or one of ours.

        With `num_channels=1`, a checkpoint of several channels becomes one for grey images: the patch embedding is
        summed over channels (equal to feeding the grey image to each of them), the predicted channels are averaged.

        A head starts new where the checkpoint has none; that of a checkpoint is left out only if the configuration says
        so (`glcm_head_weight=0`, `glcm_cls_weight=0`). The load report of transformers names it in either case.

        Args:
            pretrained_model_name_or_path: Hub id or folder, as in transformers.
            *model_args: passed on.
            config: a `GLCMMAEConfig`, as in transformers.
            **kwargs: passed on; fields of the configuration among them override it.

        Raises:
            ValueError: if the checkpoint is of another architecture.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *model_args, config=config, **kwargs)
        stored = cls.checkpoint_config(
            pretrained_model_name_or_path, **{name: kwargs[name] for name in _HUB_ARGUMENTS & kwargs.keys()}
        )
        stored_channels = stored.get("num_channels", GLCMMAEConfig.num_channels)
        channels = config.num_channels if config is not None else kwargs.get("num_channels", stored_channels)
        if channels != 1 or stored_channels == 1:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        if config is None:
            # What all models share (dtype, ...) is left to transformers.
            own = GLCMMAEConfig.__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys()
            overrides = [name for name in kwargs if name in own]
            config = GLCMMAEConfig.from_dict(stored, **{name: kwargs.pop(name) for name in overrides})
        config = GLCMMAEConfig.from_dict(config.to_dict() | {"num_channels": stored_channels})
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._merge_channels()
        return loaded

    @torch.no_grad()
    def _merge_channels(self) -> None:
        embeddings, decoder = self.vit.embeddings.patch_embeddings, self.decoder
        channels = self.config.num_channels
        old = embeddings.projection
        embeddings.projection = nn.Conv2d(
            1, old.out_channels, old.kernel_size, old.stride, device=old.weight.device, dtype=old.weight.dtype
        )
        embeddings.projection.weight.copy_(old.weight.sum(dim=1, keepdim=True))
        embeddings.projection.bias.copy_(old.bias)
        embeddings.num_channels = 1
        old = decoder.decoder_pred
        decoder.decoder_pred = nn.Linear(
            old.in_features, old.out_features // channels, device=old.weight.device, dtype=old.weight.dtype
        )
        # The channel is the fastest axis of a predicted patch.
        decoder.decoder_pred.weight.copy_(old.weight.unflatten(0, (-1, channels)).mean(dim=1))
        decoder.decoder_pred.bias.copy_(old.bias.unflatten(0, (-1, channels)).mean(dim=1))
        for config in {id(c): c for c in (self.config, self.vit.config, decoder.config)}.values():
            config.num_channels = 1

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        mask_ratio: float | None = None,
        texture: bool = True,
        glcm_sharpness: float | None = None,
        **kwargs: Any,
    ) -> GLCMMAEForPreTrainingOutput:
        """Mask, encode, decode and judge.

        Args:
            pixel_values: `(batch_size, num_channels, height, width)`, normalised; height and width in whole patches.
            noise: `(batch_size, num_patches)`, decides which patches are masked (those of the highest noise).
            interpolate_pos_encoding: accept images of another size than the configured one.
            attention_mask: as in ViTMAE.
            mask_ratio: share of the patches to mask, at least 0 and less than 1; `config.mask_ratio` if not given.
            texture: as in `reconstruction_loss`.
            glcm_sharpness: as in `reconstruction_loss`.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, as in ViTMAE.

        Raises:
            ValueError: if the image or an argument does not fit the configuration.
        """
        outputs = self.vit(pixel_values, noise, interpolate_pos_encoding, attention_mask, mask_ratio, **kwargs)
        grid = grid_of(pixel_values.shape[-2:], self.config.patch_size)
        decoded = self.decoder(outputs.last_hidden_state, outputs.ids_restore, grid)
        # The number of masked patches is known from the shapes: to count them would wait for the device.
        num_masked = outputs.mask.numel() - len(outputs.mask) * (outputs.last_hidden_state.shape[1] - 1)
        terms = self.reconstruction_loss(
            pixel_values,
            decoded.logits,
            outputs.mask,
            num_masked,
            texture=texture,
            glcm_sharpness=glcm_sharpness,
            glcm_head_logits=decoded.glcm_head_logits,
            glcm_cls_logits=decoded.glcm_cls_logits,
        )
        return GLCMMAEForPreTrainingOutput(
            loss=terms["loss"],
            logits=decoded.logits,
            mask=outputs.mask,
            ids_restore=outputs.ids_restore,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            glcm_loss=terms["glcm"],
            ssim_loss=terms["ssim"],
            mse_loss=terms["mse"],
            glcm_head_loss=terms["glcm_head"],
            glcm_head_logits=decoded.glcm_head_logits,
            glcm_cls_loss=terms["glcm_cls"],
            glcm_cls_logits=decoded.glcm_cls_logits,
        )

    def reconstruction_loss(
        self,
        pixel_values: torch.Tensor,
        logits: torch.Tensor,
        mask: torch.Tensor,
        num_masked: int | None = None,
        *,
        texture: bool = True,
        glcm_sharpness: float | None = None,
        glcm_head_logits: torch.Tensor | None = None,
        glcm_cls_logits: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor | None]:
        r"""Judge a reconstruction.

        Args:
            pixel_values: `(batch_size, num_channels, height, width)`, normalised.
            logits: `(batch_size, num_patches, patch_size ** 2 * num_channels)`, as the decoder gives them.
            mask: `(batch_size, num_patches)`, 1 or True for masked patches, which alone count.
            num_masked: how many there are in the batch; counted if not given.
            texture: True for the configured objective, False for plain mean squared error of weight 1 (the first stage
                of a training, say).
            glcm_sharpness: of the sigmoid kernel, finite and above 0; `config.glcm_sharpness` if not given.
            glcm_head_logits: `(batch_size, num_patches, D, Q)`, as the decoder gives them; without them the texture
                head is not judged.
            glcm_cls_logits: `(batch_size, T, D, Q)`, the same of the head of the CLS token.

        Returns:
            Scalars `loss` (the weighted sum), `glcm`, `ssim`, `mse`, `glcm_head`, `glcm_cls` (unweighted; `None` where
            the weight is 0 or `texture` is False, but for `mse`). All but those of the CLS token's head, and of a head
            judged on all patches, are 0 where nothing is masked.

        Raises:
            ValueError: if the image is not in whole patches, the shapes do not fit, or `glcm_sharpness` is not allowed.
        """
        config = self.config
        if glcm_sharpness is None:
            glcm_sharpness = config.glcm_sharpness
        elif config.glcm_kernel != "sigmoid":
            raise ValueError(f"glcm_sharpness needs glcm_kernel sigmoid, got {config.glcm_kernel}")
        elif not 0 < glcm_sharpness < math.inf:
            raise ValueError(f"glcm_sharpness must be finite and greater than 0, got {glcm_sharpness}")
        with torch.autocast(pixel_values.device.type, enabled=False):
            double = logits.dtype == torch.float64
            logits = logits if double else logits.float()
            target = self.image_patches(pixel_values).to(logits.dtype)  # B N p p C
            if logits.shape != target.flatten(2).shape or mask.shape != target.shape[:2]:
                raise ValueError(
                    f"pixel_values of shape {tuple(pixel_values.shape)} need logits of shape "
                    f"{tuple(target.flatten(2).shape)} and a mask of shape {tuple(target.shape[:2])}, "
                    f"got {tuple(logits.shape)} and {tuple(mask.shape)}"
                )
            pred = logits.view_as(target)  # B N p p C
            masked = mask.bool()  # B N
            num_masked = int(masked.sum()) if num_masked is None else num_masked
            rows = masked.flatten().sort(descending=True, stable=True).indices[:num_masked]  # M
            with_glcm, with_ssim = texture and config.glcm_weight > 0, texture and config.ssim_weight > 0
            heads = [answers for answers in (glcm_head_logits, glcm_cls_logits) if answers is not None]
            if with_glcm or with_ssim or (texture and heads):
                warn_once_of_range("pixel_values", target, config.glcm_levels, config.glcm_value_range, self.grey)
            # Taken out, not multiplied by 0: an infinite prediction of a visible patch must not turn the loss into NaN.
            pred_masked = pred.flatten(0, 1).index_select(0, rows)  # M p p C
            target_masked = target.flatten(0, 1).index_select(0, rows)  # M p p C
            error = pred_masked - self.logits_of_pixels(target_masked, target_masked)
            # Summed before the division, so that a mask of nothing gives 0.
            mse = error.square().mean(dim=(-3, -2, -1)).sum() / max(num_masked, 1)

            glcm = ssim = None
            if with_glcm:
                glcm = glcm_loss(
                    self.grey(pred_masked),  # M p p
                    self.grey(target_masked),  # M p p
                    levels=config.glcm_levels,
                    value_range=config.glcm_value_range,
                    offsets=config.glcm_offsets,
                    kernel=config.glcm_kernel,
                    sharpness=glcm_sharpness,
                    reweight=config.glcm_reweight,
                    symmetric=config.glcm_symmetric,
                    normalize=config.glcm_normalize,
                    cumulative=config.glcm_cumulative,
                )
            if with_ssim:
                image = rows // masked.shape[1]  # M
                low, high = map(float, config.glcm_value_range)
                # The extremes of clamped pixels are the clamped extremes.
                span = [x.clamp(low, high) for x in extremes(pred)]
                target_span = extremes(target)

                def patch_ssim(pred: torch.Tensor, target: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
                    return ssim_loss(
                        min_max_scaled(pred.clamp(low, high), *span, image),  # M C p p
                        min_max_scaled(target, *target_span, image),  # M C p p
                        reduction="none",
                    )

                parts = list(zip(*(x.split(_SSIM_PATCHES) for x in (pred_masked, target_masked, image)), strict=True))
                if len(parts) == 1:
                    per_patch = patch_ssim(*parts[0])
                else:
                    # A dozen tensors of the size of the images are kept for the gradient: computed twice, not all kept.
                    per_patch = torch.cat([checkpoint(patch_ssim, *part, use_reentrant=False) for part in parts])
                ssim = per_patch.sum() / max(num_masked, 1)
            if not texture:
                # Distributed training wants a gradient of every parameter in every step, if only of 0.
                loss = sum((0 * answers.to(mse.dtype).sum() for answers in heads), mse)
                return {"loss": loss, "glcm": None, "ssim": None, "mse": mse, "glcm_head": None, "glcm_cls": None}
            head = cls = None
            if glcm_head_logits is not None:
                head_logits, judged = glcm_head_logits.to(logits.dtype).flatten(0, 1), target.flatten(0, 1)  # BN ...
                if config.glcm_head_patches == "masked":
                    head_logits, judged = head_logits.index_select(0, rows), target_masked  # M ...
                divergence = pair_divergence(head_logits, self.pair_distribution(judged))
                head = divergence.sum() / max(len(divergence), 1)
            if glcm_cls_logits is not None:
                tiles = self.tile_distribution(pixel_values.to(logits.dtype))
                cls = pair_divergence(glcm_cls_logits.to(logits.dtype), tiles).mean()
            loss = config.mse_weight * mse
            if with_glcm:
                loss = loss + config.glcm_weight * glcm
            if with_ssim:
                loss = loss + config.ssim_weight * ssim
            if head is not None:
                loss = loss + config.glcm_head_weight * head
            if cls is not None:
                loss = loss + config.glcm_cls_weight * cls
            return {"loss": loss, "glcm": glcm, "ssim": ssim, "mse": mse, "glcm_head": head, "glcm_cls": cls}

    def pair_distribution(self, patches: torch.Tensor) -> torch.Tensor:
        """What the texture head shall answer of patches `(M, p, p, C)` in the units of `pixel_values`: `(M, D, Q)`.

        For the D `glcm_head_offsets`, the distribution over the Q unordered pairs of the `glcm_head_levels`, in the
        order (0, 0), (0, 1), ..., (1, 1), ... No gradient.
        """
        return self._pair_distribution(self.grey(patches))

    def tile_distribution(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the CLS token's head shall answer of images `(B, C, H, W)`: `(B, T, D, Q)`, the tiles row by row.

        As `pair_distribution`, of a grid of `glcm_cls_tiles` tiles down and across.

        Raises:
            ValueError: if a tile is not longer than the offsets.
        """
        tiles, offsets = self.config.glcm_cls_tiles, self.config.glcm_head_offsets
        grey = self.grey(pixel_values.movedim(1, -1))  # B H W
        height, width = (side // tiles for side in grey.shape[1:])
        if min(height, width) <= max(abs(step) for offset in offsets for step in offset):
            raise ValueError(
                f"glcm_cls_tiles ({tiles}) cuts images of {grey.shape[1]} x {grey.shape[2]} into tiles of {height} x "
                f"{width} pixels, which must be longer than glcm_head_offsets, {offsets}"
            )
        grey = grey.unfold(1, height, height).unfold(2, width, width)[:, :tiles, :tiles]  # B t t h w
        return self._pair_distribution(grey.flatten(0, 2)).unflatten(0, (-1, tiles**2))

    def _pair_distribution(self, images: torch.Tensor) -> torch.Tensor:
        config = self.config
        return pair_distribution(
            images,
            levels=config.glcm_head_levels,
            value_range=config.glcm_value_range,
            offsets=config.glcm_head_offsets,
        )

    @torch.no_grad()
    def predict_cooccurrence(self, pixel_values: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """The co-occurrence matrices that the texture head foretells for every patch from the visible ones.

        Softmax of the head's answer over the unordered pairs of grey levels; of a pair of two levels, each of its two
        cells gets half. Comparable with `cooccurrence_matrix(..., kernel="linear", symmetric=True, normalize=True)`.

        Args:
            pixel_values: `(batch_size, num_channels, height, width)`, normalised.
            noise: `(batch_size, num_patches)`, decides which patches are masked; random if not given.

        Returns:
            `(batch_size, num_patches, D, K, K)` probabilities for the D `glcm_head_offsets` and K `glcm_head_levels`:
            symmetric, each matrix of sum 1. float64 of a float64 model, else float32.

        Raises:
            ValueError: if the model has no texture head, or the images are not in whole patches.
        """
        if self.decoder.glcm_head is None:
            raise ValueError("the model has no texture head: its glcm_head_weight is 0")
        logits = self.reconstruct(pixel_values, noise).glcm_head_logits
        pairs = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
        return matrices_of_pairs(pairs, self.config.glcm_head_levels)

    @torch.no_grad()
    def reconstruct(
        self, pixel_values: torch.Tensor, noise: torch.Tensor | None = None, mask_ratio: float | None = None
    ) -> GLCMMAEReconstructionOutput:
        """Rebuild images of any size in whole patches from their visible patches.

        Args:
            pixel_values: `(batch_size, num_channels, height, width)`, normalised.
            noise: `(batch_size, num_patches)`, decides which patches are masked; random if not given.
            mask_ratio: as in `forward`.

        Returns:
            All patches as predicted, in the units of `pixel_values` also with `norm_pix_loss`; the same with the
            visible patches of the images put back; the mask; and what a texture head answers.

        Raises:
            ValueError: if the images are not in whole patches, or `mask_ratio` is out of its range.
        """
        target = self.image_patches(pixel_values)  # B N p p C
        # The whole forward pass, a loss included: a sharded model gathers its weights when it is called, not its parts.
        outputs = self(
            pixel_values, noise, interpolate_pos_encoding=True, mask_ratio=mask_ratio, texture=False, return_dict=True
        )
        pred = self.pixels_of_logits(outputs.logits, target)
        hidden = outputs.mask.bool()[..., None, None, None].expand_as(pred)
        size, shown = tuple(pixel_values.shape[-2:]), (pred, torch.where(hidden, pred, target), hidden)
        reconstruction, pasted, pixel_mask = (self.unpatchify(patches.flatten(2), size) for patches in shown)
        return GLCMMAEReconstructionOutput(
            reconstruction, pasted, outputs.mask, pixel_mask[:, :1], outputs.glcm_head_logits
        )

    def image_patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Cut images `(B, C, H, W)` into patches `(B, N, p, p, C)`, row by row.

        Raises:
            ValueError: if the height or width is not a whole number of patches.
        """
        check_pixel_values(pixel_values)
        patch_size = self.config.patch_size
        height, width = pixel_values.shape[-2:]
        if height % patch_size or width % patch_size:
            raise ValueError(
                f"pixel_values must have a height and width divisible by patch_size ({patch_size}), "
                f"got {height} x {width}"
            )
        patches = self.patchify(pixel_values, interpolate_pos_encoding=True)  # the flag allows non-square images
        return patches.unflatten(-1, (patch_size, patch_size, self.config.num_channels))

    def pixels_of_logits(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Turn logits `(B, N, p * p * C)` into patches `(B, N, p, p, C)` in the units of the patches `target`."""
        pred = logits.to(target.dtype).view_as(target)
        if not self.config.norm_pix_loss:
            return pred
        mean, std = _patch_statistics(target)
        return pred * std + mean

    def logits_of_pixels(self, patches: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """What the decoder should answer to be read as `patches`: inverse of `pixels_of_logits`, in patches."""
        if not self.config.norm_pix_loss:
            return patches
        mean, std = _patch_statistics(target)
        return (patches - mean) / std

    def grey(self, patches: torch.Tensor) -> torch.Tensor:
        """`(..., C)` -> `(...)`: the channel whose grey levels are counted (`glcm_channel`)."""
        channel = self.config.glcm_channel
        return patches.mean(dim=-1) if channel == "mean" else patches[..., channel]


def _patch_statistics(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation that norm_pix_loss normalises each patch with, as in MAE."""
    flat = patches.flatten(-3)
    mean, variance = flat.mean(dim=-1), flat.var(dim=-1)
    return mean[..., None, None, None], (variance + 1e-6).sqrt()[..., None, None, None]


# Files of ViTMAE name the tensors as older releases of transformers did. Classes outside transformers do not inherit
# the renaming, and every layer would be left at random, with no more than a warning.
for _name, _stock_name in (("GLCMMAEModel", "ViTMAEModel"), ("GLCMMAEForPreTraining", "ViTMAEForPreTraining")):
    register_checkpoint_conversion_mapping(_name, get_checkpoint_conversion_mapping(_stock_name), overwrite=True)

_HUB_ARGUMENTS = {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"}

__all__ = [
    "GLCMMAEForPreTraining",
    "GLCMMAEForPreTrainingOutput",
    "GLCMMAEModel",
    "GLCMMAEPreTrainedModel",
    "GLCMMAEReconstructionOutput",
]
