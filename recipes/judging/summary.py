"""What a run's predictions say: figures with intervals, curves, and a comparison of runs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    ConfusionMatrixDisplay,
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from judging.statistics import bootstrap, delong_test, interval, mcnemar_test
from judging.tables import OF_CLASSES, positive_class, positive_indices
from metrics.medical_classification.figures import classification_figures

# Without those of single or collapsed classes. A table has either the plain ones (two classes) or the macro means.
FIGURES = ("accuracy", "balanced_accuracy", *OF_CLASSES, *(f"macro_{name}" for name in OF_CLASSES))
FEWEST = 20  # images of a part by which it is said that nothing was learned
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: told apart by everybody


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
            "file_name": dataset["file_name"][:],
            "group": dataset["group"][:],
            "label": np.array(dataset["label"][:]),
            "prediction": probabilities.argmax(axis=1),
        }
    )
    for index, name in enumerate(class_names):
        table[f"probability_{name}"] = probabilities[:, index]
    return table


def class_names_of(table: pd.DataFrame) -> list[str]:
    """The classes of a table of predictions, label 0 first."""
    return [name.removeprefix("probability_") for name in table.columns if name.startswith("probability_")]


def figures_of(table: pd.DataFrame, positive: list[int] | None) -> dict[str, float]:
    """The figures of a table without the confusion matrix; AUROCs of several folds are means over these.

    A table may hold the answers of several trainings to the same images. It has `fold` for each of them and fold, and
    two columns more: `seed`, the training, and `test_part`, what its fold is called without it. Figures are then means
    over the trainings.
    """
    figures, seeds = _figures_at(table, positive), _seeds(table)
    found = [figures(np.flatnonzero(seeds == seed)) for seed in np.unique(seeds)]
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def _seeds(table: pd.DataFrame) -> np.ndarray:
    return table["seed"].to_numpy() if "seed" in table else np.zeros(len(table), dtype=int)


def _test_parts(table: pd.DataFrame) -> pd.Series:
    return table["test_part" if "test_part" in table else "fold"].astype(str)


def _figures_at(table: pd.DataFrame, positive: list[int] | None) -> Callable[[np.ndarray], dict[str, float]]:
    """`figures_of` as a function of positions into the table, of one training, for a bootstrap."""
    names = class_names_of(table)
    probabilities, labels = table[[f"probability_{name}" for name in names]].to_numpy(), table["label"].to_numpy()
    folds = pd.factorize(_test_parts(table), sort=True)[0]
    # Who is on the positive side, for each AUROC.
    sides = {f"auroc_{name}": labels == index for index, name in enumerate(names)}
    sides["auroc" if len(names) == 2 else "macro_auroc"] = labels[:, None] == np.arange(len(names))
    if positive is not None:
        sides["binary_auroc"] = np.isin(labels, positive)

    def folds_with_both(side: np.ndarray, at: np.ndarray) -> np.ndarray:
        total = np.bincount(folds[at], minlength=folds.max() + 1)
        columns = side.reshape(len(side), -1)[at].T
        inside = np.stack([np.bincount(folds[at], column, minlength=len(total)) for column in columns])
        return (inside > 0) & (inside < total)

    everywhere = {name: folds_with_both(side, np.arange(len(table))) for name, side in sides.items()}

    def figures(at: np.ndarray) -> dict[str, float]:
        found = classification_figures(probabilities[at], labels[at], positive, names, folds[at])
        del found["confusion_matrix"]
        for name, side in sides.items():
            # A fold that lost a side has no AUROC, and the mean of the others is another figure.
            if (everywhere[name] & ~folds_with_both(side, at)).any():
                found[name] = float("nan")
        return found

    return figures


def _drawn(table: pd.DataFrame, positive: Sequence[str] | None, seed: int) -> dict[str, dict[str, Any]]:
    """What `bootstrap` says of every figure. Tables of the same images have the same draws, in any order."""
    figures = _figures_at(table, positive_indices(class_names_of(table), positive))
    groups, parts = table["group"].astype(str), _test_parts(table)
    # Groups are drawn from each part apart, if they have none in common.
    apart = parts.groupby(groups).nunique().max() == 1
    strata = parts.to_numpy() if apart else None
    return bootstrap(figures, groups.to_numpy(), strata=strata, trainings=_seeds(table), seed=seed)


def _without_draws(found: Mapping[str, Any]) -> dict[str, float]:
    return {key: found[key] for key in ("value", "low", "high", "undefined")}


def collapsed_folds(table: pd.DataFrame) -> dict[str, str]:
    """Folds in which every image gets the same answer, and that answer: nothing was learned there.

    Not those of few images, where it may be chance, or a threshold that is off: intervals say how little is known.
    """
    classes = class_names_of(table)
    return {
        str(fold): classes[part["prediction"].iloc[0]]
        for fold, part in table.groupby("fold", sort=True)
        if len(part) >= FEWEST and part["prediction"].nunique() == 1
    }


def _patients_known(table: pd.DataFrame) -> bool:
    """Whether any group is a patient; where the patients are unknown, prepare_corpus.py calls all content-<number>."""
    return not table["group"].astype(str).str.fullmatch(r"content-\d+").all()


def always_commonest(table: pd.DataFrame, commonest: Mapping[str, int]) -> dict[str, Any]:
    """What the commonest class would get as the answer for every image: the least that a figure has to beat.

    Args:
        table: predictions, of which only the labels count.
        commonest: label that is commonest in the training part of each fold.

    Returns:
        `answers` (the class of each fold), `accuracy` and `balanced_accuracy` of all folds together.
    """
    classes = class_names_of(table)
    answers = np.eye(len(classes))[table["fold"].astype(str).map(commonest).to_numpy()]
    figures = classification_figures(answers, table["label"].to_numpy())
    named = {fold: classes[label] for fold, label in commonest.items()}
    return {"answers": named, **{name: figures[name] for name in ("accuracy", "balanced_accuracy")}}


def summarise(
    table: pd.DataFrame,
    positive: Sequence[str] | None = None,
    seed: int = 0,
    *,
    validation: pd.DataFrame | None = None,
    commonest: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Every figure: of each fold, mean and standard deviation (n - 1) over folds, and of all with its interval.

    Args:
        table: predictions of all folds.
        positive: classes that are collapsed against the others; of two classes, the positive one.
        seed: of the bootstrap.
        validation: predictions of the validation parts.
        commonest: label that is commonest in the training part of each fold.

    Returns:
        `num_images`, `num_groups`, `patients_known` (whether any group is a patient), `classes`, `positive_classes`,
        `positive_class` (of two classes, else `None`),
        `only_answers`, `validation_only_answers` (folds of one answer for all test or validation images),
        `always_commonest` (or `None`), and `figures`: for each `folds`, `mean`, `std` and `pooled`. The last counts the
        answers of all folds together; an AUROC, which needs scores of one scale, is there the mean over the folds.
    """
    classes = class_names_of(table)
    indices = positive_indices(classes, positive)
    folds = {str(fold): figures_of(part, indices) for fold, part in table.groupby("fold", sort=True)}
    figures = {}
    for name, found in _drawn(table, positive, seed).items():
        values = np.array([of_fold[name] for of_fold in folds.values()])
        defined = values[~np.isnan(values)]
        figures[name] = {
            "folds": {fold: of_fold[name] for fold, of_fold in folds.items()},
            "mean": float(defined.mean()) if len(defined) else float("nan"),
            "std": float(defined.std(ddof=1)) if len(defined) > 1 else float("nan"),
            "pooled": _without_draws(found),
        }
    return {
        "num_images": len(table),
        "num_groups": int(table["group"].nunique()),
        "patients_known": _patients_known(table),
        "classes": classes,
        "positive_classes": list(positive) if positive else None,
        "positive_class": positive_class(classes, positive),
        "only_answers": collapsed_folds(table),
        "validation_only_answers": {} if validation is None else collapsed_folds(validation),
        "always_commonest": None if commonest is None else always_commonest(table, commonest),
        "figures": figures,
    }


def _sides(table: pd.DataFrame, positive: Sequence[str] | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What ROC curves are drawn of: for each the truth, `(n,)` bool, and the score, `(n,)`."""
    classes = class_names_of(table)
    labels = table["label"].to_numpy()
    probabilities = table[[f"probability_{name}" for name in classes]].to_numpy()
    if positive:
        indices = positive_indices(classes, positive)
        # Rounded probabilities can sum to a little more than 1, which calibration_curve refuses.
        score = probabilities[:, indices].sum(axis=1).clip(0, 1)
        return {" + ".join(positive): (np.isin(labels, indices), score)}
    shown = range(1, 2) if len(classes) == 2 else range(len(classes))
    return {classes[i]: (labels == i, probabilities[:, i]) for i in shown}


def _folds_with_both(table: pd.DataFrame, truth: np.ndarray) -> list[np.ndarray]:
    """Positions of each fold that has images of both sides."""
    parts = [np.flatnonzero(table["fold"] == fold) for fold in sorted(table["fold"].unique())]
    return [part for part in parts if truth[part].any() and not truth[part].all()]


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a name is a dollar
def draw_curves(table: pd.DataFrame, file: Path, positive: Sequence[str] | None = None) -> None:
    """ROC and precision-recall of each fold, confusion matrix and calibration of all, in one picture."""
    classes = class_names_of(table)
    figure = Figure(figsize=(11, 10), layout="constrained")
    roc, recall, confusion, calibration = figure.subplots(2, 2).flat
    for (name, (truth, score)), colour in zip(_sides(table, positive).items(), COLOURS * 9, strict=False):
        parts = _folds_with_both(table, truth)
        if parts:
            # One curve per fold: across folds the scores are of different models, and have no common scale.
            curve = {"color": colour, "alpha": 1 if len(parts) == 1 else 0.4}
            for part in parts:
                found, correct, _ = precision_recall_curve(truth[part], score[part])
                roc.plot(*roc_curve(truth[part], score[part])[:2], **curve)
                recall.plot(correct, found, drawstyle="steps-post", **curve)
            areas = {
                axis: np.mean([area(truth[part], score[part]) for part in parts])
                for axis, area in ((roc, roc_auc_score), (recall, average_precision_score))
            }
            for axis, mean in areas.items():
                axis.plot([], [], color=colour, label=f"{name}: area {mean:.2f}")
            seen, said = calibration_curve(truth, score, n_bins=10, strategy="quantile")
            calibration.plot(said, seen, "o-", color=colour, label=name)
    roc.plot([0, 1], [0, 1], ":", color="grey")
    calibration.plot([0, 1], [0, 1], ":", color="grey")
    calibration.set(
        xlabel="predicted probability", ylabel="share of images", title="calibration (tenths of the images)"
    )
    roc.set(xlabel="1 - specificity", ylabel="sensitivity")
    recall.set(xlabel="recall", ylabel="precision")
    for axis in (roc, recall, calibration):
        axis.legend()
    ConfusionMatrixDisplay.from_predictions(
        table["label"],
        table["prediction"],
        labels=range(len(classes)),
        display_labels=classes,
        ax=confusion,
        colorbar=False,
        cmap="Blues",
    )
    for axis, title in ((roc, "ROC"), (recall, "precision and recall"), (confusion, "confusion matrix")):
        axis.set_title(title)
    num_folds = table["fold"].nunique()
    over_folds = "; a curve a fold, areas are means over folds" if num_folds > 1 else ""
    figure.suptitle(f"{len(table)} images, {num_folds} fold(s){over_folds}")
    figure.savefig(file, dpi=110)


def check_same_images(first: pd.DataFrame, second: pd.DataFrame) -> None:
    """See that two tables of predictions can be paired.

    Raises:
        ValueError: the runs are not of the same classes, images, labels and folds; names some.
    """
    keys = ["fold", "file_name", "group", "label"]
    if class_names_of(second) != class_names_of(first):
        raise ValueError(f"the runs have different classes: {class_names_of(first)} and {class_names_of(second)}")
    left, right = (set(map(tuple, table[keys].astype(str).to_numpy())) for table in (first, second))
    if left != right or len(first) != len(second):
        differing = sorted(name for _, name, _, _ in left ^ right)[:5]
        raise ValueError(f"the runs are not of the same images, labels and folds: {', '.join(differing)}, ...")


def compare(
    first: pd.DataFrame, second: pd.DataFrame, positive: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Paired tests of two runs on the same images.

    Args:
        first, second: their predictions.
        positive: classes that are collapsed against the others; of two classes, the positive one.
        seed: of the bootstrap.

    Returns:
        `num_images`, `classes`, `positive_classes`; `differences` (first - second, bootstrap of groups within folds);
        and of one training each, because the tests take answers as independent, `delong` (of each AUROC, the folds
        combined), `without_delong` (AUROCs that cannot be tested so, because a fold has fewer than two images of either
        side) and `mcnemar` (of the accuracy).

    Raises:
        ValueError: the runs are not of the same images, labels and folds; names some.
    """
    check_same_images(first, second)
    return _paired(first, second, positive, *(_drawn(table, positive, seed) for table in (first, second)))


def _paired(
    first: pd.DataFrame,
    second: pd.DataFrame,
    positive: Sequence[str] | None,
    of_first: Mapping[str, Any],
    of_second: Mapping[str, Any],
) -> dict[str, Any]:
    """What `compare` says, of tables of the same images and of what `_drawn` says of each."""
    first, second = (table.sort_values("file_name", ignore_index=True) for table in (first, second))
    classes = class_names_of(first)
    indices = positive_indices(classes, positive)
    differences = {
        name: interval(found["value"] - of_second[name]["value"], found["draws"] - of_second[name]["draws"])
        for name, found in of_first.items()
    }
    found = {
        "num_images": len(first),
        "classes": classes,
        "positive_classes": list(positive) if positive else None,
        "differences": differences,
    }
    if len(np.unique(_seeds(first))) > 1:
        return found
    labels, folds = first["label"].to_numpy(), first["fold"].to_numpy()
    questions = {name: [index] for index, name in enumerate(classes)}
    if len(classes) == 2:
        questions = {name: questions[name] for name in [positive_class(classes, positive)]}
    if indices:
        questions["binary"] = indices
    delong, without_delong = {}, []
    for name, chosen in questions.items():
        truth = np.isin(labels, chosen)
        if pd.crosstab(folds, truth).reindex(columns=[False, True], fill_value=0).to_numpy().min() > 1:
            columns = [f"probability_{classes[index]}" for index in chosen]
            scores = [table[columns].to_numpy().sum(axis=1) for table in (first, second)]
            delong[name] = delong_test(*scores, truth, folds)
        else:
            without_delong.append(name)
    return found | {
        "delong": delong,
        "without_delong": without_delong,
        "mcnemar": mcnemar_test(*((table["prediction"] == table["label"]).to_numpy() for table in (first, second))),
    }


def compare_all(
    tables: Mapping[str, pd.DataFrame], baseline: str, positive: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Every run with intervals, and paired tests of each against one of them.

    Args:
        tables: predictions of each run.
        baseline: name of the one that the others are held against.
        positive, seed: as for `compare`.

    Returns:
        `num_images`, `classes`, `positive_classes`, `patients_known`, `baseline`; `main_figures`, the names of those
        without single classes; `runs`, for each its `figures` (as `pooled` in `summarise`) and `only_answers`;
        `against_baseline`, for each but the baseline what `compare` says. Of two runs, what `compare` says stands
        beside these too.

    Raises:
        ValueError: a run is not of the images, labels and folds of the baseline; names it and some.
    """
    others = [name for name in tables if name != baseline]
    for name in others:
        try:
            check_same_images(tables[name], tables[baseline])
        except ValueError as error:
            raise ValueError(f"{name} against {baseline}: {error}") from error
    drawn = {name: _drawn(table, positive, seed) for name, table in tables.items()}
    runs = {
        name: {
            "figures": {figure: _without_draws(found) for figure, found in drawn[name].items()},
            "only_answers": collapsed_folds(table),
        }
        for name, table in tables.items()
    }
    pairs = {name: _paired(tables[name], tables[baseline], positive, drawn[name], drawn[baseline]) for name in others}
    some = tables[baseline]
    common = {
        "num_images": len(some),
        "classes": class_names_of(some),
        "positive_classes": list(positive) if positive else None,
    }
    main = [name for name in FIGURES if name in drawn[baseline]]
    if len(common["classes"]) > 2:  # of two classes these are the main ones
        main += [name for name in (f"binary_{figure}" for figure in OF_CLASSES) if name in drawn[baseline]]
    return {
        **(next(iter(pairs.values())) if len(pairs) == 1 else common),
        "patients_known": _patients_known(some),
        "baseline": baseline,
        "main_figures": main,
        "runs": runs,
        "against_baseline": {
            name: {key: value for key, value in pair.items() if key not in common} for name, pair in pairs.items()
        },
    }


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a name is a dollar
def draw_comparison(tables: Mapping[str, pd.DataFrame], file: Path, positive: Sequence[str] | None = None) -> None:
    """ROC curves of all runs: of each fold pale, their mean strong, a panel a class."""
    sides = {name: _sides(table, positive) for name, table in tables.items()}
    panels = list(next(iter(sides.values())))
    figure = Figure(figsize=(5.5 * len(panels), 5.5 + 0.25 * len(tables)), layout="constrained")
    grid = np.linspace(0, 1, 501)  # of 1 - specificity, where the curves of the folds are averaged
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        for (name, table), colour in zip(tables.items(), COLOURS * 9, strict=False):
            truth, score = sides[name][panel]
            curves, areas = [], []
            for part in _folds_with_both(table, truth):
                alarms, hits, _ = roc_curve(truth[part], score[part])
                axis.plot(alarms, hits, color=colour, alpha=0.2, linewidth=0.8)
                curves.append(np.interp(grid, alarms, hits))
                areas.append(roc_auc_score(truth[part], score[part]))
            if curves:
                mean = np.concatenate([[0], np.mean(curves, axis=0)])  # up from the corner
                axis.plot(np.concatenate([[0], grid]), mean, color=colour, label=f"{name}: area {np.mean(areas):.3f}")
        axis.plot([0, 1], [0, 1], ":", color="grey")
        axis.set(xlabel="1 - specificity", ylabel="sensitivity", title=f"ROC, {panel}")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize="small")
    table = next(iter(tables.values()))
    num_folds = table["fold"].nunique()
    over_folds = "; strong curves and areas are means over folds" if num_folds > 1 else ""
    figure.suptitle(f"{len(table)} images, {num_folds} fold(s){over_folds}")
    figure.savefig(file, dpi=110)
