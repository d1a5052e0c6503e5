"""What the demo answers about an image: classes, reconstruction, texture, overlay."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from opened_models import Model, Network
from PIL import Image

from judging.overlay import draw_overlay, occlusion_map
from judging.surprise import CAVEAT, draw_surprise, surprise
from modeling_glcm_mae import cooccurrence_matrix, texture_features

FUNCTIONS = ("softmax", "sigmoid", "none")


SHOWN_LEVELS = 32  # a patch has too few pairs of pixels for a matrix of more grey levels


@dataclass(frozen=True)
class Patch:
    """A square of the model's grid, in pixels of the model's input."""

    top: int
    left: int
    size: int


@torch.no_grad()
def classify(model: Model, image: Image.Image) -> tuple[dict[str, float], str]:
    """Probabilities, and how sure the answer is, in words."""
    network = model.classifier.model
    found = network(model.classifier.pixels(image)).logits.softmax(dim=1)[0]
    entropy = float(-(found * found.clamp_min(1e-12).log()).sum() / math.log(len(found)))
    words = "sure" if entropy < 0.3 else "rather unsure" if entropy < 0.8 else "undecided"
    return (
        {network.config.id2label[index]: float(value) for index, value in enumerate(found)},
        f"The model is **{words}** (entropy {entropy:.2f} of 1). Sure is not the same as right.",
    )


@torch.no_grad()
def rebuild(
    network: Network, image: Image.Image, mask_ratio: float, seed: int, down: float, right: float
) -> tuple[dict[str, torch.Tensor], Patch]:
    """Hide patches at random, and the chosen one in any case: what is visible was never judged in the training.

    Args:
        network: an autoencoder.
        image: 8-bit RGB.
        mask_ratio: share of the patches that are hidden.
        seed: of the mask.
        down, right: of the chosen patch, in per cent of the image's height and width.

    Returns:
        `original`, `masked` (NaN where hidden), `reconstruction` and `pasted`, each `(C, H, W)`, normalised; the chosen
        patch.
    """
    pixels, size = network.pixels(image), network.model.config.patch_size
    rows, columns = (side // size for side in pixels.shape[-2:])
    row, column = (min(int(part / 100 * number), number - 1) for part, number in ((down, rows), (right, columns)))
    noise = torch.rand(1, rows * columns, generator=torch.Generator().manual_seed(seed))
    noise[0, row * columns + column] = 1  # the highest are hidden
    rebuilt = network.model.reconstruct(pixels, noise=noise, mask_ratio=mask_ratio)
    parts = {
        "original": pixels,
        "masked": pixels.masked_fill(rebuilt.pixel_mask, math.nan),
        "reconstruction": rebuilt.reconstruction,
        "pasted": rebuilt.pasted,
    }
    return {name: part[0] for name, part in parts.items()}, Patch(row * size, column * size, size)


def texture(network: Network, square: torch.Tensor) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Joint counts `(K, K)` of a normalised patch `(C, p, p)` over all offsets of the model, and their features."""
    config = network.model.config
    counts = cooccurrence_matrix(
        network.model.grey(square.movedim(0, -1)),
        levels=min(config.glcm_levels, SHOWN_LEVELS),
        value_range=config.glcm_value_range,
        offsets=config.glcm_offsets,
        kernel="hard",
        symmetric=True,
    ).sum(dim=0)
    return counts.numpy(), texture_features(counts / counts.sum())


def draw_reconstruction(network: Network, parts: dict[str, torch.Tensor], patch: Patch) -> Image.Image:
    """The parts with their names, the chosen patch framed."""
    figure = Figure(figsize=(7, 7.4), dpi=120, layout="constrained")
    for axis, (name, part) in zip(figure.subplots(2, 2).flat, parts.items(), strict=True):
        axis.imshow(network.picture(part), interpolation="nearest")
        corner = (patch.left - 0.5, patch.top - 0.5)
        axis.add_patch(Rectangle(corner, patch.size, patch.size, fill=False, color="#ffb000", lw=2))
        axis.set_title(name, fontsize=15)
        axis.axis("off")
    return _image(figure)


def draw_texture(network: Network, squares: dict[str, torch.Tensor], counts: list[np.ndarray]) -> Image.Image:
    """The chosen patch, original and rebuilt, and below each its joint counts on one scale."""
    figure = Figure(figsize=(7, 7.4), dpi=120, layout="constrained")
    above, below = figure.subplots(2, 2)
    for axis, (name, square) in zip(above, squares.items(), strict=True):
        axis.imshow(network.picture(square), interpolation="nearest")
        axis.set_title(f"patch, {name}", fontsize=15)
        axis.axis("off")
    levels, most = len(counts[0]), max(2.0, *(float(matrix.max()) for matrix in counts))
    for axis, name, matrix in zip(below, squares, counts, strict=True):
        axis.set_facecolor("black")  # where there is no pair: zero has no logarithm
        extent = (0.5, levels + 0.5, levels + 0.5, 0.5)
        shades = axis.imshow(matrix, norm=LogNorm(1, most), cmap="magma", extent=extent, interpolation="nearest")
        axis.set_title(f"GLCM, {name}", fontsize=15)
        axis.set_xlabel("grey level", fontsize=13)
        axis.tick_params(labelsize=12)
    below[0].set_ylabel("grey level of the neighbour", fontsize=13)
    ticks = [tick for tick in (1, 3, 10, 30, 100, 300, 1000) if tick <= most]
    bar = figure.colorbar(shades, ax=below, location="bottom", shrink=0.8, aspect=30, ticks=ticks, format="%d")
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=12)
    bar.set_label("pairs of pixels (black: none)", fontsize=13)
    return _image(figure)


@torch.no_grad()
def overlay(network: Network, image: Image.Image) -> tuple[Image.Image, str]:
    """Where hiding the image lowers the probability of a classifier's answer (red) or raises it (blue)."""
    pixels, patch = network.pixels(image), network.model.config.patch_size
    target = int(network.model(pixels).logits.argmax())
    window = min(2 * patch, *pixels.shape[-2:])
    # On large grids side by side: overlapping windows of a ViT-B/16 would take a minute on two cores.
    stride = patch if pixels.shape[-1] < 10 * patch else window
    heat = 100 * occlusion_map(network.model, pixels[0], target, window=window, stride=stride).numpy()
    limit, name = max(float(np.abs(heat).max()), 1e-4), network.model.config.id2label[target]
    figure = Figure(figsize=(7, 4.6), dpi=120, layout="constrained")
    plain, mixed = figure.subplots(1, 2)
    for axis, title in ((plain, "original"), (mixed, "overlay")):
        axis.set_title(title, fontsize=15)
        shades = draw_overlay(axis, network.picture(pixels[0]), heat if axis is mixed else None, limit)
    bar = figure.colorbar(shades, ax=[plain, mixed], location="bottom", shrink=0.8, aspect=30)
    bar.ax.tick_params(labelsize=12)
    bar.set_label("fall of the probability where hidden, in points", fontsize=13)
    return _image(figure), (
        f"Red: hiding this lowers the probability of **{name}**, by {max(float(heat.max()), 0):.1f} points at most; "
        "blue: it raises it. It shows where the model is sensitive: not why, and no outline of a lesion."
    )


def surprise_map(network: Network, image: Image.Image) -> tuple[Image.Image, str]:
    """Where the texture is not what the head of an autoencoder foretells from around it.

    Raises:
        ValueError: the autoencoder has no texture head.
    """
    pixels = network.pixels(image)
    found = surprise(network.model, pixels)
    figure = draw_surprise(found, network.picture(pixels[0]) / 255, "what the model sees")
    figure.set_dpi(100)
    return _image(figure), (
        "Each patch was hidden under several masks; the map shows how far its co-occurrence matrices are from those "
        f"that the model foretold from what is around it. {CAVEAT}"
    )


def enlarged(picture: np.ndarray) -> Image.Image:
    """In whole pixels to about the width of a phone: small models see small images."""
    factor = max(1, 320 // picture.shape[1])
    return Image.fromarray(picture.repeat(factor, axis=0).repeat(factor, axis=1))


def _image(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
