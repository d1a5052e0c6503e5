"""What a run's predictions say: figures with intervals, curves, and a comparison of two runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from sklearn.metrics import ConfusionMatrixDisplay, PrecisionRecallDisplay, RocCurveDisplay

from recipe_statistics import bootstrap, delong_test, mcnemar_test

METRIC = Path(__file__).resolve().parent / "metrics" / "medical_classification"
FIGURES = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auroc", "f1")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: told apart by everybody


def load_metric() -> evaluate.Metric:
    """The metric module of this repository."""
    return evaluate.load(str(METRIC))


def predictions_table(probabilities: np.ndarray, dataset: Any, class_names: Sequence[str], fold: str) -> pd.DataFrame:
    """One row an image: fold, file_name, group, label, prediction, probability_<class>.

    Args:
        probabilities: `(n, num_classes)`.
        dataset: columns file_name, group, label, in the same order.
        class_names: label 0 first.
        fold: name of the fold.
    """
    table = pd.DataFrame(
        {
            "fold": str(fold),
            "file_name": dataset["file_name"],
            "group": dataset["group"],
            "label": np.array(dataset["label"]),
            "prediction": probabilities.argmax(axis=1),
        }
    )
    for index, name in enumerate(class_names):
        table[f"probability_{name}"] = probabilities[:, index]
    return table


def class_names_of(table: pd.DataFrame) -> list[str]:
    """The classes of a table of predictions, label 0 first."""
    return [name.removeprefix("probability_") for name in table.columns if name.startswith("probability_")]


def positive_indices(class_names: Sequence[str], positive: Sequence[str] | None) -> list[int] | None:
    """Positions of the positive classes; `None` for none.

    Raises:
        ValueError: if a name is not a class.
    """
    if not positive:
        return None
    unknown = [name for name in positive if name not in class_names]
    if unknown:
        raise ValueError(f"positive_classes: {', '.join(unknown)} is no class; allowed are {', '.join(class_names)}")
    return [list(class_names).index(name) for name in positive]


def figures_of(table: pd.DataFrame, metric: evaluate.Metric, positive: list[int] | None) -> dict[str, float]:
    """The figures of a table without the confusion matrix."""
    names = class_names_of(table)
    probabilities = table[[f"probability_{name}" for name in names]].to_numpy()
    # Not through `compute`, which writes its inputs to disk: a bootstrap calls this a thousand times.
    figures = metric._compute(probabilities, table["label"].to_numpy(), positive=positive, class_names=names)
    del figures["confusion_matrix"]
    return figures


def only_answers(table: pd.DataFrame) -> dict[str, str]:
    """Folds in which every image gets the same answer, and that answer: nothing was learned there."""
    classes = class_names_of(table)
    return {
        str(fold): classes[part["prediction"].iloc[0]]
        for fold, part in table.groupby("fold", sort=True)
        if len(part) > 1 and part["prediction"].nunique() == 1
    }


def means_explained(positive: Sequence[str] | None) -> str:
    """What the figures without a class in their name are, and those that begin with `binary_`."""
    text = (
        "Sensitivity, specificity, AUROC and F1 without a class in their name are means over the classes, each against "
        "the rest."
    )
    if positive:
        text += (
            f" Those under `binary_` are of {' + '.join(positive)} against the rest: answered where the probability is "
            "0.5 or more."
        )
    return text


def summarise(table: pd.DataFrame, positive: Sequence[str] | None = None, seed: int = 0) -> dict[str, Any]:
    """Every figure: of each fold, mean and standard deviation (n - 1) over folds, and pooled with its interval.

    Args:
        table: predictions of all folds.
        positive: classes that are collapsed against the others.
        seed: of the bootstrap.
    """
    metric, classes = load_metric(), class_names_of(table)
    indices = positive_indices(classes, positive)
    folds = {str(fold): figures_of(part, metric, indices) for fold, part in table.groupby("fold", sort=True)}
    pooled = bootstrap(lambda at: figures_of(table.iloc[at], metric, indices), table["group"].to_numpy(), seed=seed)
    figures = {}
    for name, interval in pooled.items():
        values = np.array([fold[name] for fold in folds.values()])
        defined = values[~np.isnan(values)]
        figures[name] = {
            "folds": {fold: found[name] for fold, found in folds.items()},
            "mean": float(defined.mean()) if len(defined) else float("nan"),
            "std": float(defined.std(ddof=1)) if len(defined) > 1 else float("nan"),
            "pooled": {key: interval[key] for key in ("value", "low", "high", "undefined")},
        }
    return {
        "num_images": len(table),
        "num_groups": int(table["group"].nunique()),
        "classes": classes,
        "positive_classes": list(positive) if positive else None,
        "only_answers": only_answers(table),
        "figures": figures,
    }


def summary_markdown(summary: dict[str, Any]) -> str:
    """The summary as a table."""
    lines = [
        f"{summary['num_images']} images of {summary['num_groups']} groups; classes {', '.join(summary['classes'])}.",
        "",
        "| figure | mean over folds | standard deviation | pooled | 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for name, found in summary["figures"].items():
        pooled = found["pooled"]
        cells = (found["mean"], found["std"], pooled["value"])
        shown = " | ".join("" if np.isnan(value) else f"{value:.3f}" for value in cells)
        lines.append(f"| {name} | {shown} | {pooled['low']:.3f} to {pooled['high']:.3f} |")
    lines += [
        "",
        means_explained(summary.get("positive_classes")),
        "Intervals: bootstrap of whole groups of the pooled predictions. They do not cover the choice of folds.",
    ]
    for fold, answer in (summary.get("only_answers") or {}).items():
        lines += ["", f"**Fold {fold} answers {answer} for every test image**: it has learned nothing."]
    return "\n".join(lines) + "\n"


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a name is a dollar
def draw_curves(table: pd.DataFrame, file: Path, positive: Sequence[str] | None = None) -> None:
    """ROC, precision-recall, confusion matrix and calibration of the pooled predictions, in one picture."""
    classes = class_names_of(table)
    labels = table["label"].to_numpy()
    probabilities = table[[f"probability_{name}" for name in classes]].to_numpy()
    if positive:
        indices = positive_indices(classes, positive)
        # Rounded probabilities can sum to a little more than 1, which calibration_curve refuses.
        score = probabilities[:, indices].sum(axis=1).clip(0, 1)
        curves = {" + ".join(positive): (np.isin(labels, indices), score)}
    else:
        shown = range(1, 2) if len(classes) == 2 else range(len(classes))
        curves = {classes[i]: (labels == i, probabilities[:, i]) for i in shown}
    figure = Figure(figsize=(11, 10), layout="constrained")
    roc, recall, confusion, calibration = figure.subplots(2, 2).flat
    for (name, (truth, score)), colour in zip(curves.items(), COLOURS * 9, strict=False):
        if truth.any() and not truth.all():
            style = {"name": name, "curve_kwargs": {"color": colour}}
            RocCurveDisplay.from_predictions(truth, score, ax=roc, **style)
            PrecisionRecallDisplay.from_predictions(truth, score, ax=recall, **style)
            seen, said = calibration_curve(truth, score, n_bins=10, strategy="quantile")
            calibration.plot(said, seen, "o-", color=colour, label=name)
    roc.plot([0, 1], [0, 1], ":", color="grey")
    calibration.plot([0, 1], [0, 1], ":", color="grey")
    calibration.set(
        xlabel="predicted probability", ylabel="share of images", title="calibration (tenths of the images)"
    )
    calibration.legend()
    ConfusionMatrixDisplay.from_predictions(
        labels,
        table["prediction"],
        labels=range(len(classes)),
        display_labels=classes,
        ax=confusion,
        colorbar=False,
        cmap="Blues",
    )
    for axis, title in ((roc, "ROC"), (recall, "precision and recall"), (confusion, "confusion matrix")):
        axis.set_title(title)
    figure.suptitle(f"{len(table)} images, {table['fold'].nunique()} fold(s), pooled")
    figure.savefig(file, dpi=110)


def compare(
    first: pd.DataFrame, second: pd.DataFrame, positive: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Paired tests of two runs on the same images.

    Args:
        first, second: their predictions.
        positive: classes that are collapsed against the others.
        seed: of the bootstrap.

    Returns:
        `differences` (first - second, grouped bootstrap), `delong` (of each AUROC), `mcnemar` (of the accuracy).

    Raises:
        ValueError: the runs are not of the same images, labels and folds; names some.
    """
    keys = ["fold", "file_name", "group", "label"]
    first, second = (table.sort_values("file_name", ignore_index=True) for table in (first, second))
    classes = class_names_of(first)
    if class_names_of(second) != classes:
        raise ValueError(f"the runs have different classes: {classes} and {class_names_of(second)}")
    left, right = (set(map(tuple, table[keys].astype(str).to_numpy())) for table in (first, second))
    if left != right or len(first) != len(second):
        differing = sorted(name for _, name, _, _ in left ^ right)[:5]
        raise ValueError(f"the runs are not of the same images, labels and folds: {', '.join(differing)}, ...")
    metric, indices = load_metric(), positive_indices(classes, positive)

    def differences(at: np.ndarray) -> dict[str, float]:
        found = [figures_of(table.iloc[at], metric, indices) for table in (first, second)]
        return {name: found[0][name] - found[1][name] for name in found[0]}

    labels = first["label"].to_numpy()
    questions = {name: [index] for index, name in enumerate(classes)} if len(classes) > 2 else {classes[1]: [1]}
    if indices:
        questions["binary"] = indices
    delong = {}
    for name, chosen in questions.items():
        truth = np.isin(labels, chosen)
        if min(truth.sum(), (~truth).sum()) > 1:
            columns = [f"probability_{classes[index]}" for index in chosen]
            delong[name] = delong_test(*(table[columns].to_numpy().sum(axis=1) for table in (first, second)), truth)
    return {
        "num_images": len(first),
        "differences": bootstrap(differences, first["group"].to_numpy(), seed=seed),
        "delong": delong,
        "mcnemar": mcnemar_test(*((table["prediction"] == table["label"]).to_numpy() for table in (first, second))),
    }


def comparison_markdown(comparison: dict[str, Any], names: tuple[str, str]) -> str:
    """The comparison as tables."""
    lines = [
        f"{names[0]} against {names[1]}, {comparison['num_images']} images, paired.",
        "",
        "| figure | difference | 95 % interval | p |",
        "|---|---|---|---|",
    ]
    for name, found in comparison["differences"].items():
        interval = f"{found['low']:+.3f} to {found['high']:+.3f}"
        lines.append(f"| {name} | {found['value']:+.3f} | {interval} | {found['p_value']:.3g} |")
    lines += ["", "Bootstrap of whole groups. DeLong and McNemar take images as independent:", ""]
    lines += ["| test | first | second | p |", "|---|---|---|---|"]
    for name, found in comparison["delong"].items():
        lines.append(
            f"| DeLong, AUROC {name} | {found['auroc_a']:.3f} | {found['auroc_b']:.3f} | {found['p_value']:.3g} |"
        )
    found = comparison["mcnemar"]
    lines.append(
        f"| McNemar, images only one got right | {found['only_a']} | {found['only_b']} | {found['p_value']:.3g} |"
    )
    return "\n".join(lines) + "\n"
