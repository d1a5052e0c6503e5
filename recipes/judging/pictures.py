"""Pictures of reconstructions, in the grey of the files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from judging.overlay import draw_overlay
from judging.surprise import frame_of
from modeling_glcm_mae import GLCMMAEConfig, GLCMMAEReconstructionOutput, TextureSurprise, cooccurrence_matrix

COLUMNS = (
    "original",
    "masked",
    "reconstruction",
    "pasted into visible",
    "GLCM of target\n(masked patches)",
    "GLCM of reconstruction\n(masked patches)",
)
OF_HEAD = ("framed patch:\ntrue GLCM", "predicted GLCM", "surprise, nats")
SHOWN_LEVELS = 32  # a matrix of more levels is too sparse to read


def draw_reconstructions(
    file: Path,
    config: GLCMMAEConfig,
    pixel_values: torch.Tensor,
    rebuilt: GLCMMAEReconstructionOutput,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    surprise: TextureSurprise | None = None,
) -> None:
    """Draw one row an image: original | masked | reconstruction | pasted | GLCM of target | GLCM of reconstruction.

    The matrices count hard-binned pairs inside masked patches over all offsets of the configuration; brightness is the
    logarithm of the joint count, on one scale a row. With a texture head, three more columns: for the masked patch that
    is next to the middle, the matrix that is there and the one that the head predicts (mean over its offsets, square
    root, on one scale a row), and how surprising each patch is (on one scale for all rows).

    Args:
        file: PNG to write; its folder is made.
        config: patch size and texture settings of the model.
        pixel_values: `(B, C, H, W)`, normalised.
        rebuilt: what the model made of them.
        image_mean, image_std: of the normalisation, per channel.
        surprise: of the same images, by a model with a texture head.
    """
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (image_mean, image_std))
    pixel_values, reconstruction, pasted = (
        x.float().cpu() for x in (pixel_values, rebuilt.reconstruction, rebuilt.pasted)
    )
    masked, pixel_mask = rebuilt.mask.bool().cpu(), rebuilt.pixel_mask.cpu()

    def shown(images: torch.Tensor) -> np.ndarray:
        return (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()  # B H W C

    # Mid-grey in the mask: black would look like anatomy.
    panels = [
        shown(pixel_values),
        np.where(pixel_mask.permute(0, 2, 3, 1), 0.5, shown(pixel_values)),
        shown(reconstruction),
        shown(pasted),
    ]
    # Black as it stands in the file must be black here too: no stretching of each picture to its own extremes.
    columns = COLUMNS + (OF_HEAD if surprise is not None else ())
    figure = Figure(figsize=(2.1 * len(columns), 2.2 * len(pixel_values) + 0.5), layout="constrained")
    axes = figure.subplots(len(pixel_values), len(columns), squeeze=False)
    for index, row in enumerate(axes):
        for axis, panel in zip(row, panels, strict=False):
            image = panel[index]
            axis.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
        counts = [
            np.log1p(_masked_glcm(config, images[index], masked[index])) for images in (pixel_values, reconstruction)
        ]
        for axis, matrix in zip(row[len(panels) : len(COLUMNS)], counts, strict=True):
            axis.imshow(matrix, cmap="magma", vmin=0, vmax=max(c.max() for c in counts) or 1)
        if surprise is not None:
            _draw_head(row, panels[0][index], masked[index], surprise, index)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    if surprise is not None:
        figure.colorbar(axes[0, -1].images[-1], ax=axes[:, -1], shrink=0.6)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def _draw_head(row: np.ndarray, image: np.ndarray, masked: torch.Tensor, surprise: TextureSurprise, index: int) -> None:
    """The columns of the texture head of one image `(H, W, C)`, and the frame of its patch in the first column."""
    across = surprise.divergence.shape[2]
    hidden = masked.nonzero().flatten()
    place = torch.stack([hidden // across, hidden % across], dim=1).double()
    middle = (torch.tensor(surprise.divergence.shape[1:]) - 1) / 2
    chosen = int(hidden[(place - middle).square().sum(1).argmin()])
    row[0].add_patch(frame_of(surprise, chosen))
    matrices = [found[index, chosen].mean(0).sqrt().numpy() for found in (surprise.true, surprise.predicted)]
    for axis, matrix in zip(row[len(COLUMNS) :], matrices, strict=False):
        axis.imshow(matrix, cmap="magma", vmin=0, vmax=max(m.max() for m in matrices))
    shades = draw_overlay(row[-1], np.broadcast_to(image, (*image.shape[:2], 3)), surprise.map_of(index).numpy())
    shades.set_clim(0, float(surprise.divergence.max()))


def _masked_glcm(config: GLCMMAEConfig, image: torch.Tensor, masked: torch.Tensor) -> np.ndarray:
    """`(K, K)` joint counts of the masked patches of one image `(C, H, W)`."""
    grey = image.mean(dim=0) if config.glcm_channel == "mean" else image[config.glcm_channel]
    patch = config.patch_size
    patches = grey.unfold(0, patch, patch).unfold(1, patch, patch).reshape(-1, patch, patch)  # N p p
    matrix = cooccurrence_matrix(
        patches[masked],
        levels=min(config.glcm_levels, SHOWN_LEVELS),
        value_range=config.glcm_value_range,
        offsets=config.glcm_offsets,
        kernel="hard",
    )
    return matrix.sum(dim=(0, 1)).numpy()
