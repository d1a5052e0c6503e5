"""What the figures of a training say, in words: whether it has learned anything, and what to change if not."""

from collections.abc import Mapping
from dataclasses import dataclass

# Of the figure of a predictor that knows nothing: above it, nothing was learned that a reader could rely on.
TEXTURE_LEARNED, PIXELS_LEARNED = 0.9, 0.98
LEVEL = 0.05  # share by which two figures may differ and still be called level


@dataclass(frozen=True)
class Verdict:
    """Attributes: `learned`, whether pixels or texture are better than without training; `words`, one sentence."""

    learned: bool
    words: str


def pretraining_verdict(
    figures: Mapping[str, float], before: Mapping[str, float] | None = None, *, normalised: bool = False
) -> Verdict:
    """Hold the last evaluation of a pretraining against predictors that learned nothing.

    Pixels are judged by the squared error, against one grey for all images and against the true mean of each hidden
    patch (a blur, which nobody can know). Texture is judged by the divergence of the texture head, or else of the CLS
    token's, where there is one, against the mean matrix of the data set; else by the L1 distance of the matrices of
    what is painted, against the same before the training, if that is known: an untrained network paints noise, which is
    nearer to a texture than any grey. No words praise that distance, since less of it can still be noise. A painted
    texture has a higher squared error than a blur, so either is enough.

    Args:
        figures: `eval_mse`, `eval_glcm_l1` and, with a head, `eval_glcm_head` or `eval_glcm_cls`, each also with
            `_dataset_mean` and `_patch_mean` behind.
        before: the same of the network before any training, if it was judged.
        normalised: whether the pixels of each patch were (`norm_pix_loss`): then the mean of a patch is no knowledge,
            and the grey is that.
    """
    error, grey, blur = (figures[f"eval_mse{suffix}"] for suffix in ("", "_dataset_mean", "_patch_mean"))
    grey, who = (blur, "one grey for each patch") if normalised else (grey, "one grey for all images")
    head = next((head for head in ("eval_glcm_head", "eval_glcm_cls") if head in figures), None)
    name = head or "eval_glcm_l1"
    found, known = figures[name], min(figures[f"{name}_dataset_mean"], figures[f"{name}_patch_mean"])
    compared = "of one grey"
    if head is None and before is not None and before[name] < known:
        known, compared = before[name], "before the training"
    with_texture = found <= TEXTURE_LEARNED * known
    if head:
        texture = (
            f"{'texture is' if with_texture else 'no texture is'} foretold (divergence of the predicted matrices from "
            f"the true ones {found:.3g}; of the data set's mean {known:.3g})"
        )
    else:
        texture = f"distance of the painted matrices from the true ones {found:.3g} ({compared} {known:.3g})"
    with_pixels = error <= PIXELS_LEARNED * grey
    if error > grey:
        pixels = f"worse than {who}"
    elif not with_pixels:
        pixels = f"level with {who}"
    elif error > (1 + LEVEL) * blur:
        pixels = f"better than {who}, worse than a blur of each patch"
    elif error >= (1 - LEVEL) * blur:
        pixels = "level with a blur of each patch"
    else:
        pixels = "finer than a blur of each patch"
    words = f"{texture}; pixels {pixels} (squared error {error:.3g}; of the grey {grey:.3g}, of the blur {blur:.3g})"
    return Verdict(with_texture or with_pixels, words)


__all__ = ["Verdict", "pretraining_verdict"]
