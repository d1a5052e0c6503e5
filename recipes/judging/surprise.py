"""Pictures of where the texture of an image is not what its surroundings foretell."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from judging.overlay import draw_overlay, in_lines
from modeling_glcm_mae import TextureSurprise

CAVEAT = (
    "Surprising is not diseased: borders, labels, calipers and noise surprise too, and a lesion that looks like its "
    "surroundings does not. Research only."
)


def frame_of(found: TextureSurprise, patch: int) -> Rectangle:
    """A frame around a patch, to be drawn into the image."""
    row, column = divmod(patch, found.divergence.shape[2])
    side = found.patch_size
    return Rectangle((column * side - 0.5, row * side - 0.5), side, side, fill=False, color="#ffb000", lw=2)


def draw_surprise(
    found: TextureSurprise, image: np.ndarray, title: str, limit: tuple[float, float | None] = (0, None)
) -> Figure:
    """An image with its most surprising patch framed, its map, and the two matrices of that patch.

    Args:
        found: of one image.
        image: `(H, W, C)` of 1 or 3 channels, in [0, 1].
        title: of the image.
        limit: of the colours, in nats; the greatest is that of the map if left out.
    """
    image, heat = np.broadcast_to(image, (*image.shape[:2], 3)), found.map_of(0).numpy()
    most = int(found.divergence[0].argmax())
    figure = Figure(figsize=(8, 7.6), layout="constrained")
    (plain, overlay), below = figure.subplots(2, 2)
    draw_overlay(plain, image)
    figure.suptitle(in_lines(title, 76), fontsize=10)
    plain.set_title("image, as the model sees it")
    plain.add_patch(frame_of(found, most))
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
