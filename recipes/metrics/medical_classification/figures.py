"""Clinical figures of a classifier from its probabilities: what medical_classification.py makes a metric of."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

_BINS = 15  # of the expected calibration error
_FIGURES = ("sensitivity", "specificity", "auroc", "f1")


def classification_figures(
    predictions: np.ndarray,
    references: np.ndarray,
    positive: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    folds: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Clinical figures of the answers of a classifier.

    Args:
        predictions: `(n, num_classes)`, probabilities; rows sum to 1. The class with the largest is answered.
        references: `(n,)`, the right class of each image.
        positive: classes that count as positive in the figures under `binary_`. An image is answered positive if their
            probabilities sum to 0.5 or more. With two classes, the positive one; the second if left out.
        class_names: names in the keys of the figures of each class; by default their numbers.
        folds: `(n,)`, the model that answered each image, where there are several: every AUROC is then the mean over
            the folds, of those that have images of both sides. Scores of different models have no common scale, so that
            pairs of images across folds say nothing (Forman and Scholz 2010). Answers have one, so all other figures
            count all images.

    Returns:
        accuracy, balanced_accuracy; sensitivity, specificity, auroc, f1 of the positive class of two, or of more
        classes macro_<figure>, the mean over the classes, each against the rest; <figure>_<class>; with `positive` also
        binary_<figure>; confusion_matrix (rows: right class). What is undefined because the references lack a class is
        NaN, and left out of the means.

    Raises:
        ValueError: rows that are not probabilities; labels, positive classes, names or folds that do not fit them.
    """
    probabilities, labels = np.asarray(predictions, dtype=np.float64), np.asarray(references)
    if probabilities.ndim != 2 or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise ValueError("predictions must be one row of probabilities per image, summing to 1.")
    num_classes = probabilities.shape[1]
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"references must be 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}.")
    if positive is not None and not (0 < len(set(positive)) < num_classes and set(positive) <= set(range(num_classes))):
        raise ValueError(f"positive must be some, not all, of the classes 0 to {num_classes - 1}, got {positive}.")
    names = [str(name) for name in (class_names or range(num_classes))]
    if len(names) != num_classes:
        raise ValueError(f"class_names must name {num_classes} classes, got {names}.")
    if folds is not None and len(folds) != len(labels):
        raise ValueError(f"folds must name the fold of each of the {len(labels)} images, got {len(folds)}.")
    parts = [slice(None)] if folds is None else [np.asarray(folds) == fold for fold in np.unique(folds)]
    answered = probabilities.argmax(axis=1)
    each = [
        _two_classes(labels == index, answered == index, probabilities[:, index], parts) for index in range(num_classes)
    ]
    figures = {"accuracy": float((answered == labels).mean())}
    figures["balanced_accuracy"] = _mean([figure["sensitivity"] for figure in each])
    if num_classes == 2:
        chosen = each[1 if positive is None else positive[0]]
        figures |= {name: chosen[name] for name in _FIGURES}
    else:
        figures |= {f"macro_{name}": _mean([figure[name] for figure in each]) for name in _FIGURES}
    for label, figure in zip(names, each, strict=True):
        figures |= {f"{name}_{label}": value for name, value in figure.items() if name != "accuracy"}
    if positive is not None:
        score = probabilities[:, sorted(set(positive))].sum(axis=1)
        figures |= {
            f"binary_{name}": value
            for name, value in _two_classes(np.isin(labels, list(positive)), score >= 0.5, score, parts).items()
        }
    counts = np.bincount(labels * num_classes + answered, minlength=num_classes**2)
    figures["confusion_matrix"] = counts.reshape(num_classes, num_classes).tolist()
    return figures


def expected_calibration_error(predictions: np.ndarray, references: np.ndarray) -> float:
    """How far the probability of the answers is from the share of right ones (Naeini et al. 2015, Guo et al. 2017).

    Images are sorted into 15 equally wide bins by the probability of the class that is answered. In each bin the mean
    probability is compared with the share of right answers; the differences are averaged, weighted by the images.
    It has no place among `classification_figures`: a bootstrap of it is biased upwards.

    Args:
        predictions: `(n, num_classes)`, probabilities.
        references: `(n,)`, the right class of each image.

    Returns:
        From 0, calibrated, to 1.
    """
    probabilities = np.asarray(predictions, dtype=np.float64)
    said, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == np.asarray(references)
    # Of a bin, the upper end belongs to it. A probability of 1 may be a little above it.
    bins = np.minimum(np.ceil(said * _BINS), _BINS).astype(int)
    return float(np.abs(np.bincount(bins, said - right)).sum() / len(right))


def _two_classes(truth: np.ndarray, answer: np.ndarray, score: np.ndarray, parts: list) -> dict[str, float]:
    hits, misses = int((truth & answer).sum()), int((truth & ~answer).sum())
    alarms, rejections = int((~truth & answer).sum()), int((~truth & ~answer).sum())
    sensitivity, specificity = _rate(hits, misses), _rate(rejections, alarms)
    return {
        "accuracy": _rate(hits + rejections, misses + alarms),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "auroc": _mean([_auroc(truth[part], score[part]) for part in parts]),
        "f1": _rate(2 * hits, misses + alarms) if truth.any() else float("nan"),
    }


def _auroc(truth: np.ndarray, score: np.ndarray) -> float:
    """By the sum of ranks (Mann and Whitney), in a twentieth of scikit-learn's time: a bootstrap asks 100,000 times."""
    positives = int(truth.sum())
    pairs = positives * (len(truth) - positives)
    if not pairs:
        return float("nan")
    return float((rankdata(score)[truth].sum() - positives * (positives + 1) / 2) / pairs)


def _rate(counted: int, others: int) -> float:
    """Of what is counted among all; NaN if there is nothing."""
    return counted / (counted + others) if counted + others else float("nan")


def _mean(values: list[float]) -> float:
    """Of those that are defined; NaN if none is."""
    known = [value for value in values if not np.isnan(value)]
    return sum(known) / len(known) if known else float("nan")
