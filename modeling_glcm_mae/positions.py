"""Where patches are: MAE's fixed positions on any grid, square or not, and the embeddings that add them.

Axis letters in trailing shape comments: B images, N patches.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings, build_2d_sinusoidal_position_embedding


def grid_of(image_size: int | Sequence[int], patch_size: int) -> tuple[int, int]:
    """Number of patches (down, across) of an image of `image_size` pixels: one side, or (height, width)."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height // patch_size, width // patch_size


def sin_cos_positions(grid: tuple[int, int], dim: int) -> torch.Tensor:
    """MAE's fixed positions: `(1, 1 + patches, dim)`, a zero row for CLS, columns encoded before rows."""
    positions = build_2d_sinusoidal_position_embedding(*grid, embed_dim=dim, cls_token=True)
    rows, columns = positions.chunk(2, dim=-1)
    return torch.cat([columns, rows], dim=-1).unsqueeze(0)


def resample_positions(positions: torch.Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> torch.Tensor:
    """Bicubic resampling of `(1, 1 + patches, dim)` positions in both directions; CLS is kept."""
    if grid == new_grid:
        return positions
    cls_position, patches = positions[:, :1], positions[:, 1:]
    patches = patches.unflatten(1, grid).permute(0, 3, 1, 2)  # 1 dim rows columns
    patches = nn.functional.interpolate(patches, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([cls_position, patches.flatten(2).transpose(1, 2)], dim=1)


def check_pixel_values(pixel_values: torch.Tensor) -> None:
    """Raise `TypeError` or `ValueError` on what is no batch of images as an image processor makes it."""
    wanted = "pixel_values must be a floating-point tensor (batch_size, num_channels, height, width), normalised"
    if not isinstance(pixel_values, torch.Tensor):
        raise TypeError(f"{wanted}, got {type(pixel_values).__name__}: an image processor makes one of images")
    if not pixel_values.is_floating_point():
        raise ValueError(f"{wanted}, got {pixel_values.dtype}: an image processor makes one of images")
    if pixel_values.dim() != 4:
        hint = ": pixel_values[None] makes a batch of one image" * (pixel_values.dim() == 3)
        raise ValueError(f"{wanted}, got the shape {tuple(pixel_values.shape)}{hint}")


class GLCMMAEEmbeddings(ViTMAEEmbeddings):
    """ViTMAE's embeddings, whose positions also fit grids that are not square, and whose mask ratio may be given."""

    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        mask_ratio: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """CLS and visible patches `(B, 1 + visible, dim)`, mask `(B, N)` and order `(B, N)`, as ViTMAE's."""
        check_pixel_values(pixel_values)
        height, width = pixel_values.shape[-2:]
        if not interpolate_pos_encoding and (height, width) != tuple(self.image_size):
            raise ValueError(
                f"Input image size ({height}*{width}) doesn't match model ({self.image_size[0]}*{self.image_size[1]})."
            )
        mask_ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio must be at least 0.0 and less than 1.0, got {mask_ratio}")
        patches = self.patch_embeddings(pixel_values)
        positions = self.interpolate_pos_encoding(patches, height, width)
        patches = patches + positions[:, 1:]
        noise = torch.rand(patches.shape[:2], device=patches.device) if noise is None else noise
        visible = int(patches.shape[1] * (1 - mask_ratio))
        ids_shuffle = noise.argsort(dim=1).to(patches.device)
        ids_restore = ids_shuffle.argsort(dim=1)
        patches = patches.gather(1, ids_shuffle[:, :visible, None].expand(-1, -1, patches.shape[-1]))
        cls_token = (self.cls_token + positions[:, :1]).expand(len(patches), -1, -1)
        return torch.cat([cls_token, patches], dim=1), (ids_restore >= visible).float(), ids_restore

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Positions `(1, 1 + patches, dim)` for an image of `height` x `width` pixels."""
        patch_size = self.config.patch_size
        return resample_positions(
            self.position_embeddings, grid_of(self.image_size, patch_size), grid_of((height, width), patch_size)
        )


__all__ = ["GLCMMAEEmbeddings", "check_pixel_values", "grid_of", "resample_positions", "sin_cos_positions"]
