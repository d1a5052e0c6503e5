"""What the figures of a training say, in words: whether it has learned anything, and what to change if not."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

# Of the figure of a predictor that knows nothing: above it, nothing was learned that a reader could rely on.
TEXTURE_LEARNED, PIXELS_LEARNED = 0.9, 0.98
LEVEL = 0.05  # share by which two figures may differ and still be called level
UNCHANGED = 0.01  # share by which a figure differs at most from that of before where a training did nothing


@dataclass(frozen=True)
class Verdict:
    """What is said of a training.

    Attributes:
        learned: whether pixels or texture are better than of who knows nothing; `None` where the figures cannot tell.
        words: one sentence.
    """

    learned: bool | None
    words: str


def pretraining_verdict(
    figures: Mapping[str, float],
    before: Mapping[str, float] | None = None,
    *,
    normalised: bool = False,
    painting: bool = False,
) -> Verdict:
    """Hold the last evaluation of a pretraining against predictors that learned nothing.

    Pixels are judged by the squared error, against one grey for all images and against the true mean of each hidden
    patch (a blur, which nobody can know). Texture is judged by the divergence of the texture head, or else of the CLS
    token's, where there is one, against the mean matrix of the data set; either is enough. Without a head, the distance
    of what is painted is told but not judged: noise can be nearer to a texture than what a trained network paints.
    Since a painted texture has a higher squared error than one grey, nothing is said then of a model that was to paint
    it, unless the training has changed nothing.

    Args:
        figures: `eval_mse`, `eval_glcm_l1` and, with a head, `eval_glcm_head` or `eval_glcm_cls`, each also with
            `_dataset_mean` and `_patch_mean` behind.
        before: the same of the network before any training, if it was judged.
        normalised: whether the pixels of each patch were (`norm_pix_loss`): then the mean of a patch is no knowledge,
            and the grey is that.
        painting: whether the objective judged painted texture (`glcm_weight`, `ssim_weight`).
    """
    error, grey, blur = (figures[f"eval_mse{suffix}"] for suffix in ("", "_dataset_mean", "_patch_mean"))
    grey, who = (blur, "one grey for each patch") if normalised else (grey, "one grey for all images")
    learned: bool | None = error <= PIXELS_LEARNED * grey
    if error > grey:
        pixels = f"worse than {who}"
    elif not learned:
        pixels = f"level with {who}"
    elif error > (1 + LEVEL) * blur:
        pixels = f"better than {who}, worse than a blur of each patch"
    elif error >= (1 - LEVEL) * blur:
        pixels = "level with a blur of each patch"
    else:
        pixels = "finer than a blur of each patch"
    head = next((head for head in ("eval_glcm_head", "eval_glcm_cls") if head in figures), None)
    if head:
        found, least = figures[head], min(figures[f"{head}_dataset_mean"], figures[f"{head}_patch_mean"])
        foretold = found <= TEXTURE_LEARNED * least
        learned = learned or foretold
        texture = (
            f"{'texture is' if foretold else 'no texture is'} foretold (divergence of the predicted matrices from the "
            f"true ones {found:.3g}; of the data set's mean {least:.3g})"
        )
    else:
        compared = "" if before is None else f", before the training {before['eval_glcm_l1']:.3g}"
        texture = f"distance of the painted matrices from the true ones {figures['eval_glcm_l1']:.3g}{compared}"
        if painting and not learned and not _unchanged(figures, before):
            learned = None
            texture += ", which does not tell whether texture was learned: a probe would"
    words = f"{texture}; pixels {pixels} (squared error {error:.3g}; of the grey {grey:.3g}, of the blur {blur:.3g})"
    return Verdict(learned, words)


def _unchanged(figures: Mapping[str, float], before: Mapping[str, float] | None) -> bool:
    names = ("eval_mse", "eval_glcm_l1")
    return before is not None and all(math.isclose(figures[name], before[name], rel_tol=UNCHANGED) for name in names)


__all__ = ["Verdict", "pretraining_verdict"]
