"""Clinical figures of a classifier, as a module of `evaluate`."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import confusion_matrix, roc_auc_score

_DESCRIPTION = """\
Accuracy, balanced accuracy, sensitivity, specificity, AUROC and F1 of predicted probabilities: macro averages, each
class against the rest, and collapsed to two classes.
"""

_INPUTS = """\
Args:
    predictions: probabilities, a row an image, a column a class; rows sum to 1. The class with the largest is answered.
    references: the right class of each image.
    positive: classes that count as positive in the figures under `binary_`. An image is answered positive if their
        probabilities sum to 0.5 or more.
    class_names: names in the keys of the figures of each class; by default their numbers.

Returns:
    accuracy, balanced_accuracy, sensitivity, specificity, auroc, f1 (the last four: mean over classes, each against the
    rest); <figure>_<class>; with `positive` also binary_<figure>; confusion_matrix (rows: right class). What is
    undefined because the references lack a class is NaN, and left out of the means over classes.
"""

_CITATION = """\
@article{pedregosa2011scikit,
  title = {Scikit-learn: Machine Learning in Python},
  author = {Pedregosa, Fabian and others},
  journal = {Journal of Machine Learning Research},
  year = {2011}
}
"""


class MedicalClassification(evaluate.Metric):
    """See `_INPUTS`; `compute` raises `ValueError` for rows that are no probabilities."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, positive=None, class_names=None):
        probabilities, labels = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        if probabilities.ndim != 2 or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
            raise ValueError("predictions must be a row of probabilities an image, summing to 1.")
        num_classes = probabilities.shape[1]
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(f"references must be 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}.")
        if positive is not None and not (
            0 < len(set(positive)) < num_classes and set(positive) <= set(range(num_classes))
        ):
            raise ValueError(f"positive must be some, not all, of the classes 0 to {num_classes - 1}, got {positive}.")
        names = [str(name) for name in (class_names or range(num_classes))]
        if len(names) != num_classes:
            raise ValueError(f"class_names must name {num_classes} classes, got {names}.")
        answered = probabilities.argmax(axis=1)
        each = [
            _two_classes(labels == index, answered == index, probabilities[:, index]) for index in range(num_classes)
        ]
        figures = {"accuracy": float((answered == labels).mean())}
        figures["balanced_accuracy"] = _mean([figure["sensitivity"] for figure in each])
        for name in ("sensitivity", "specificity", "auroc", "f1"):
            figures[name] = _mean([figure[name] for figure in each])
        for label, figure in zip(names, each, strict=True):
            figures |= {f"{name}_{label}": value for name, value in figure.items() if name != "accuracy"}
        if positive is not None:
            score = probabilities[:, sorted(set(positive))].sum(axis=1)
            figures |= {
                f"binary_{name}": value
                for name, value in _two_classes(np.isin(labels, list(positive)), score >= 0.5, score).items()
            }
        figures["confusion_matrix"] = confusion_matrix(labels, answered, labels=range(num_classes)).tolist()
        return figures


def _two_classes(truth: np.ndarray, answer: np.ndarray, score: np.ndarray) -> dict[str, float]:
    hits, misses = int((truth & answer).sum()), int((truth & ~answer).sum())
    alarms, rejections = int((~truth & answer).sum()), int((~truth & ~answer).sum())
    sensitivity, specificity = _share(hits, misses), _share(rejections, alarms)
    return {
        "accuracy": _share(hits + rejections, misses + alarms),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "auroc": float(roc_auc_score(truth, score)) if truth.any() and not truth.all() else float("nan"),
        "f1": _share(2 * hits, misses + alarms) if truth.any() else float("nan"),
    }


def _share(part: int, rest: int) -> float:
    return part / (part + rest) if part + rest else float("nan")


def _mean(values: list[float]) -> float:
    """Over the classes that are defined; NaN if none is."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
