"""What the demo answers about an image: classes, reconstruction, texture, and where the model is sensitive."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from drawn import coloured, enlarged, figure, gallery, over, scale
from opened_models import Model, Network
from PIL import Image

from judging.overlay import occlusion_map
from judging.surprise import CAVEAT
from modeling_glcm_mae import cooccurrence_matrix, texture_features, texture_surprise
from modeling_glcm_mae.glcm_head import matrices_of_pairs, pair_divergence

FUNCTIONS = ("softmax", "sigmoid", "none")
SHOWN_LEVELS = 32  # a patch has too few pairs of pixels for a matrix of more grey levels
LEAST_LIMIT = 5  # points of probability that are painted in full colour, at least: no storm out of nothing
AXES = "<p>Matrices: right, the grey level of a pixel; down, that of its neighbour; dark to light.</p>"


@dataclass(frozen=True)
class Patch:
    """A square of the model's grid.

    Attributes:
        index: among the patches, row by row.
        top, left, size: in pixels of the model's input.
    """

    index: int
    top: int
    left: int
    size: int

    def of(self, pixels: torch.Tensor) -> torch.Tensor:
        """The patch `(C, p, p)` of pixels `(C, H, W)`."""
        return pixels[:, self.top : self.top + self.size, self.left : self.left + self.size]


@dataclass(frozen=True)
class Rebuilt:
    """An image `(C, H, W)`, normalised, and what an autoencoder makes of its visible patches.

    Attributes:
        parts: `original`, `masked` (NaN where hidden), `reconstruction` and `pasted`.
        patch: the chosen one, which is hidden.
        foretold: pairs of grey levels of the chosen patch as the texture head foretells them, `(D, Q)` logits; `None`
            without a head.
        true: the pairs that are there, `(D, Q)`.
    """

    parts: dict[str, torch.Tensor]
    patch: Patch
    foretold: torch.Tensor | None
    true: torch.Tensor | None


@torch.no_grad()
def classify(model: Model, image: Image.Image) -> tuple[dict[str, float], str, str]:
    """Probabilities, the most probable class, and how sure the answer is, in words."""
    network = model.classifier.model
    found = network(model.classifier.pixels(image)).logits.softmax(dim=1)[0]
    names = network.config.id2label
    entropy = float(-(found * found.clamp_min(1e-12).log()).sum() / math.log(len(found)))
    words = "sure" if entropy < 0.3 else "rather unsure" if entropy < 0.8 else "undecided"
    return (
        {names[index]: float(value) for index, value in enumerate(found)},
        names[int(found.argmax())],
        f"It is **{words}** (entropy {entropy:.2f} of 1). Sure is not the same as right.",
    )


def grid_of(network: Network, pixels: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of the patches of pixels `(1, C, H, W)`."""
    return tuple(side // network.model.config.patch_size for side in pixels.shape[-2:])


@torch.no_grad()
def rebuild(network: Network, image: Image.Image, mask_ratio: float, seed: int, down: float, right: float) -> Rebuilt:
    """Hide patches at random, and the chosen one in any case: what is visible was never judged in the training.

    Args:
        network: an autoencoder.
        image: 8-bit RGB.
        mask_ratio: share of the patches that are hidden.
        seed: of the mask.
        down, right: of the chosen patch, in per cent of the image's height and width.
    """
    model, pixels = network.model, network.pixels(image)
    rows, columns = grid_of(network, pixels)
    row, column = (min(int(part / 100 * number), number - 1) for part, number in ((down, rows), (right, columns)))
    index, size = row * columns + column, model.config.patch_size
    noise = torch.rand(1, rows * columns, generator=torch.Generator().manual_seed(seed))
    noise[0, index] = 1  # the highest are hidden
    found = model.reconstruct(pixels, noise=noise, mask_ratio=mask_ratio)
    parts = {
        "original": pixels,
        "masked": pixels.masked_fill(found.pixel_mask, math.nan),
        "reconstruction": found.reconstruction,
        "pasted": found.pasted,
    }
    foretold, true = None, None
    if model.config.glcm_head_weight:
        foretold = found.glcm_head_logits[0, index].float()
        true = model.pair_distribution(model.image_patches(pixels)[0, index : index + 1])[0]
    patch = Patch(index, row * size, column * size, size)
    return Rebuilt({name: part[0] for name, part in parts.items()}, patch, foretold, true)


def texture(network: Network, square: torch.Tensor) -> tuple[np.ndarray, dict[str, float]]:
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
    return counts.numpy(), {name: float(value) for name, value in texture_features(counts / counts.sum()).items()}


def seen_by(network: Network, image: Image.Image, patch: Patch | None) -> Image.Image:
    """The picture that the model sees, with the chosen patch framed if there is one."""
    frame = None if patch is None else (patch.top, patch.left, patch.size)
    return Image.fromarray(enlarged(network.picture(network.pixels(image)[0]), frame))


def draw_reconstruction(network: Network, rebuilt: Rebuilt) -> str:
    """The parts with their names, the chosen patch framed."""
    frame = (rebuilt.patch.top, rebuilt.patch.left, rebuilt.patch.size)
    return gallery(*(figure(enlarged(network.picture(part), frame), name) for name, part in rebuilt.parts.items()))


def draw_texture(network: Network, squares: dict[str, torch.Tensor], counts: list[np.ndarray]) -> str:
    """The chosen patch, original and rebuilt, and beside each its joint counts on one scale."""
    most = max(2.0, *(float(matrix.max()) for matrix in counts))
    shades = [  # zero has no logarithm: it is black, like 1
        coloured(np.log(np.maximum(matrix, 1)), "magma", 0, math.log(most)) * (matrix > 0)[..., None]
        for matrix in counts
    ]
    figures = []
    for (name, square), matrix in zip(squares.items(), shades, strict=True):
        figures += [figure(network.picture(square), f"patch, {name}"), figure(matrix, f"matrix, {name}")]
    bar = scale("magma", "1", f"{most:.0f}", "Pairs of neighbouring pixels, black where there are none")
    return gallery(*figures, below=bar + AXES)


def draw_foretold(network: Network, rebuilt: Rebuilt) -> str:
    """The matrix of the chosen patch that is there, and the one that the texture head foretold from around it."""
    levels = network.model.config.glcm_head_levels
    pairs = {"is there": rebuilt.true, "was foretold": rebuilt.foretold.softmax(-1)}
    shades, bar = _matrices({name: matrices_of_pairs(found, levels).mean(0).numpy() for name, found in pairs.items()})
    surprising = float(pair_divergence(rebuilt.foretold, rebuilt.true))
    said = f"<p>Surprise of the chosen patch under this mask: <b>{surprising:.2f}</b> nats (0: as foretold).</p>"
    patch = figure(network.picture(rebuilt.patch.of(rebuilt.parts["original"])), "chosen patch")
    return gallery(patch, *shades, f"<div>{said}{bar}</div>")


def _matrices(matrices: dict[str, np.ndarray]) -> tuple[list[str], str]:
    """Matrices as figures on one scale, and the scale."""
    most = max(float(matrix.max()) for matrix in matrices.values())
    figures = [figure(coloured(matrix, "magma", 0, most), f"matrix that {name}") for name, matrix in matrices.items()]
    return figures, scale("magma", "0", f"{most:.2f}", "Share of the pairs of pixels") + AXES


@torch.no_grad()
def overlay(network: Network, image: Image.Image) -> tuple[str, str]:
    """Where hiding the image lowers the probability of a classifier's answer (red) or raises it (blue)."""
    pixels, patch = network.pixels(image), network.model.config.patch_size
    target = int(network.model(pixels).logits.argmax())
    window = min(2 * patch, *pixels.shape[-2:])
    # On large grids side by side: overlapping windows of a ViT-B/16 would take a minute on two cores.
    stride = patch if pixels.shape[-1] < 10 * patch else window
    heat = 100 * occlusion_map(network.model, pixels[0], target, window=window, stride=stride).numpy()
    limit, name = max(float(np.abs(heat).max()), LEAST_LIMIT), network.model.config.id2label[target]
    picture = network.picture(pixels[0])
    mixed = over(picture, coloured(heat, "coolwarm", -limit, limit))
    bar = scale("coolwarm", f"{-limit:.0f}", f"{limit:.0f}", "Fall of the probability where hidden, in points")
    figures = figure(enlarged(picture), "original"), figure(enlarged(mixed), "sensitivity")
    return gallery(*figures, f"<div>{bar}</div>", columns=3), (
        f"Red: hiding this lowers the probability of **{name}**, by {max(float(heat.max()), 0):.1f} points at most; "
        "blue: it raises it. It shows where the model is sensitive: not why, and no outline of a lesion."
    )


def surprise_map(network: Network, image: Image.Image) -> tuple[str, str]:
    """Where the texture is not what the head of an autoencoder foretells from around it.

    Raises:
        ValueError: the autoencoder has no texture head.
    """
    pixels = network.pixels(image)
    found, picture = texture_surprise(network.model, pixels), network.picture(pixels[0])
    heat, side = found.map_of(0).numpy(), found.patch_size
    most, index = float(heat.max()), int(found.divergence[0].argmax())
    row, column = divmod(index, found.divergence.shape[2])
    mixed = over(picture, coloured(heat, "viridis", 0, most or 1))
    figures = [
        figure(enlarged(picture, (row * side, column * side, side)), "most surprising patch"),
        figure(enlarged(mixed), "surprise"),
    ]
    pairs = {"is there": found.true, "was foretold": found.predicted}
    shades, bar = _matrices({name: part[0, index].mean(0).numpy() for name, part in pairs.items()})
    below = scale("viridis", "0", f"{most:.2f}", "Surprise in nats (0: as foretold)") + bar
    return gallery(*figures, *shades, below=below), (
        "Each patch was hidden under several masks; the map shows how far its co-occurrence matrices are from those "
        f"that the model foretold from what is around it. {CAVEAT}"
    )
