"""Figures of a run and of a comparison, in words and Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

NOTHING_SHOWN = "It has learned nothing that can be shown"  # begins the card of such a classifier
# What a run says of its probabilities: the temperature, and expected calibration errors (not of every mode all).
CALIBRATION = {  # and how a table calls it
    "temperature": "temperature",
    "validation_ece_uncalibrated": "validation, before",
    "validation_ece": "validation",
    "test_ece_uncalibrated": "test, before",
    "test_ece": "test",
}
OF_CLASSES = ("sensitivity", "specificity", "auroc", "f1")

# Where all images get one answer.
WHAT_MAY_HELP = (
    "What may help: classes that weigh alike (`class_weights` balanced, no `prior_correction`); in a fine-tuning also "
    "another learning rate (`base_learning_rate`), or more updates by more epochs or smaller batches "
    "(`num_train_epochs`, `per_device_train_batch_size`)."
)


def figures_explained(class_names: Sequence[str], positive: Sequence[str] | None) -> str:
    """What the figures without a class in their name are, and those that begin with `binary_`."""
    if len(class_names) == 2:
        chosen = positive_class(class_names, positive)
        text = (
            f"Sensitivity, specificity, AUROC and F1 without a class in their name are of the positive class, {chosen}"
        )
        text += "." if positive else " (the second of the two; `positive_classes` names another)."
        return text + " It is answered where its probability is above 0.5, the threshold of all but AUROC."
    text = "Figures under `macro_` are means over the classes, each against the rest."
    if positive:
        text += (
            f" Those under `binary_` are of {' + '.join(positive)} against the rest: answered where the probability is "
            "0.5 or more."
        )
    return text


def shown_figures(names: Iterable[str], class_names: Sequence[str], positive: Sequence[str] | None) -> dict[str, str]:
    """Figures that a table has room for, and how they are called there.

    Of two classes each figure goes by several names, which `summary.json` has all: the sensitivity of one class is the
    specificity of the other, and both have one AUROC. A table shows it once.
    """
    if len(class_names) == 2:
        (other,) = set(class_names) - {positive_class(class_names, positive)}
        kinds = ("balanced_accuracy", *OF_CLASSES)
        repeated = {f"{figure}_{name}" for figure in kinds for name in class_names} - {f"f1_{other}"}
        return {name: name for name in names if name not in repeated and not name.startswith("binary_")}
    thresholded = {f"binary_{name}" for name in ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "f1")}
    return {name: f"{name} (threshold 0.5)" if name in thresholded else name for name in names}


def figure_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Figures of all folds together, each with its value and its 95 % interval; those that are undefined left out."""
    pooled = {name: figure["pooled"] for name, figure in summary["figures"].items()}
    return [
        (shown, f"{pooled[name]['value']:.3f}", f"{pooled[name]['low']:.3f} to {pooled[name]['high']:.3f}")
        for name, shown in shown_figures(pooled, summary["classes"], summary["positive_classes"]).items()
        if not np.isnan(pooled[name]["value"])
    ]


def always_commonest_said(least: Mapping[str, Any]) -> str:
    """What always answering the commonest class gets (`always_commonest` of a summary), in a sentence."""
    return (
        "To be beaten: always answering the commonest class of the training part "
        f"({', '.join(dict.fromkeys(least['answers'].values()))}) gives accuracy {least['accuracy']:.3f}, balanced "
        f"accuracy {least['balanced_accuracy']:.3f} and AUROC 0.5."
    )


def above_commonest_said(figures: Mapping[str, Any], least: Mapping[str, Any]) -> str:
    """In which figures (of all folds, with intervals) a run is shown to be above the commonest class, in a sentence."""
    bars = {name: least[name] for name in ("accuracy", "balanced_accuracy")} | {"auroc": 0.5, "macro_auroc": 0.5}
    shown = {name: figures[name]["low"] > bar for name, bar in bars.items() if name in figures}
    above, others = ([name for name, beaten in shown.items() if beaten == wanted] for wanted in (True, False))
    parts = [f"Above that by their whole interval: {', '.join(above)}"] * bool(above)
    parts += [f"{'not' if above else 'Not'} shown to be above it: {', '.join(others)}"] * bool(others)
    return "; ".join(parts) + "."


def what_it_tells(
    class_names: Sequence[str], summary: Mapping[str, Any] | None, where: str, fold: str | None = None
) -> str:
    """The first sentence of a classifier's card, which claims no more than its balanced accuracy shows.

    Args:
        class_names: label 0 first.
        summary: what `summarise` returns; `None` for a classifier that was not judged.
        where: on which images.
        fold: of the classifier, where the summary is of several.
    """
    names, one = ", ".join(class_names), "A vision transformer"
    if summary is None:
        return f"{one} that was trained to tell {names} apart. It has not been judged."
    answers, chance = nothing_learned(summary), 1 / len(class_names)
    said = [text for name, text in answers.items() if fold in (None, name)]
    found = summary["figures"]["balanced_accuracy"]["pooled"]
    if found["low"] > chance and not said:
        return f"{one} that tells {names} apart."
    why = (
        said[0]
        if said
        else (
            f"{where}, the 95 % interval of its balanced accuracy, {found['low']:.3f} to {found['high']:.3f}, does "
            f"not lie above chance, {chance:.3f}"
        )
    )
    return f"**{NOTHING_SHOWN}**: {'it ' if said else ''}{why}. {one} that was trained to tell {names} apart."


def nothing_learned(found: Mapping[str, Any]) -> dict[str, str]:
    """Folds in which all test images, or all validation images, got one answer: for each what it answers."""
    said = {
        fold: f"answers {answer} for every {part} image"
        for name, part in (("validation_only_answers", "validation"), ("only_answers", "test"))
        for fold, answer in (found.get(name) or {}).items()
    }
    return dict(sorted(said.items()))


def folds_differ_said(differ: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A sentence for each option that was not the same in all folds.

    Args:
        differ: by option, its value by fold.
    """
    said = []
    for name, by_fold in differ.items():
        alike: dict[str, list[str]] = {}
        for fold, value in by_fold.items():
            alike.setdefault(value, []).append(fold)
        values = "; ".join(f"{value} in fold{'s' * (len(of) > 1)} {', '.join(of)}" for value, of in alike.items())
        said.append(f"{name}: {values}")
    return said


def _folds_differ_lines(found: Mapping[str, Any], whose: str) -> list[str]:
    said = folds_differ_said(found.get("folds_differ") or {})  # an earlier version does not say
    return (
        [f"**{whose} were not trained alike, as far as they tell.**", "", *(f"- {t}" for t in said), ""] if said else []
    )


def _where(found: Mapping[str, Any]) -> str:
    folds = list(nothing_learned(found))
    return f"nothing learned in {'fold' if len(folds) == 1 else 'folds'} {', '.join(folds)}"


NO_PATIENTS = (
    "**No patients are known**: at most images that look alike are kept together. Another image of a test patient may "
    "have been trained on, and figures may be too good for that."
)


ALL_FOLDS_SAID = (
    "All folds: the answers of all counted together; for AUROC the mean over folds, because scores of different models "
    "have no common scale. "
)


def summary_markdown(summary: dict[str, Any], title: str | None = None) -> str:
    """The summary as a table.

    Args:
        summary: what `summarise` returns.
        title: makes a heading, which says so if a fold has learned nothing.

    Raises:
        ValueError: an earlier version wrote it, whose figures of the same names mean something else.
    """
    if "positive_class" not in summary:
        raise ValueError(
            "summary.json is of an earlier version, where sensitivity, specificity and F1 of two classes are means and "
            "AUROC mixes the scores of all folds: run the same cross_validate.py again, which repeats no finished fold"
        )
    collapsed, lines = nothing_learned(summary), []
    if title is not None:
        lines += [f"# {title}" + (f": {_where(summary)}" if collapsed else ""), ""]
    for fold, answers in collapsed.items():
        lines += [f"**Fold {fold} {answers}**: it has learned nothing.", ""]
    if collapsed:
        lines += [WHAT_MAY_HELP, ""]
    lines += _folds_differ_lines(summary, "The folds")
    lines += [
        f"{summary['num_images']} images of {summary['num_groups']} groups; classes {', '.join(summary['classes'])}.",
        "",
    ]
    if not summary.get("patients_known", True):  # an earlier version does not say
        lines += [NO_PATIENTS, ""]
    least = summary.get("always_commonest")
    if least is not None:
        pooled = {name: figure["pooled"] for name, figure in summary["figures"].items()}
        lines += [f"{always_commonest_said(least)} {above_commonest_said(pooled, least)}", ""]
    folds = list(next(iter(summary["figures"].values()))["folds"])
    one = len(folds) == 1
    header = [f"fold {folds[0]}"] if one else ["mean over folds", "standard deviation", "all folds"]
    lines += [f"| figure | {' | '.join(header)} | 95 % interval |", "|---" * (len(header) + 2) + "|"]
    shown_names = shown_figures(summary["figures"], summary["classes"], summary["positive_classes"])
    for name, called in shown_names.items():
        found = summary["figures"][name]
        pooled = found["pooled"]
        cells = (pooled["value"],) if one else (found["mean"], found["std"], pooled["value"])
        shown = " | ".join("" if np.isnan(value) else f"{value:.3f}" for value in cells)
        lines.append(f"| {called} | {shown} | {pooled['low']:.3f} to {pooled['high']:.3f} |")
    lines += [
        "",
        figures_explained(summary["classes"], summary["positive_classes"]),
        ("" if one else ALL_FOLDS_SAID)
        + "Intervals are by a bootstrap of whole groups within folds. They do not cover the choice of folds.",
    ]
    left_out = {called: summary["figures"][name]["pooled"]["undefined"] for name, called in shown_names.items()}
    if any(left_out.values()):
        worst = max(left_out, key=left_out.get)
        lines += [
            "",
            "Draws in which a figure is undefined, since a fold lacks all images of a class, are left out of "
            f"its interval: up to {left_out[worst]:.0%} of them ({worst}).",
        ]
    if summary.get("calibration"):
        lines += ["", *_calibration_lines(summary["calibration"])]
    return "\n".join(lines) + "\n"


def _calibration_lines(calibration: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A row for each fold, and their mean where there are several; without what no fold has."""
    columns = {
        name: [fold.get(name, np.nan) for fold in calibration.values()]
        for name in CALIBRATION
        if any(name in fold for fold in calibration.values())
    }
    rows = {fold: [values[at] for values in columns.values()] for at, fold in enumerate(calibration)}
    if len(rows) > 1:
        rows["mean"] = [float(np.mean(values)) for values in columns.values()]
    return [
        "Expected calibration error of the answers (15 bins of equal width; Naeini et al. 2015, Guo et al. 2017)"
        + (
            ", before and after the logits are divided by the temperature, which is fitted to the validation part. All "
            "other figures are of what it gives. A temperature of 1.000 changes nothing: the fold's log says why."
            if "temperature" in columns
            else "."
        ),
        "",
        f"| fold | {' | '.join(CALIBRATION[name] for name in columns)} |",
        "|---" * (len(columns) + 1) + "|",
        *(
            f"| {fold} | {' | '.join('' if np.isnan(value) else f'{value:.3f}' for value in values)} |"
            for fold, values in rows.items()
        ),
    ]


def comparisons_markdown(comparison: dict[str, Any]) -> str:
    """Several runs as tables: one row a run, then each against the baseline.

    Args:
        comparison: what `compare_all` returns; where known, with `always_commonest`, and `validation_only_answers` and
            `folds_differ` of each run, as in their summaries.
    """
    runs, baseline, pairs = comparison["runs"], comparison["baseline"], comparison["against_baseline"]
    figures, collapsed = comparison["main_figures"], {name: run for name, run in runs.items() if nothing_learned(run)}
    said = f" ({'; '.join(f'{name}: {_where(run)}' for name, run in collapsed.items())})" if collapsed else ""
    lines = [f"# {', '.join(pairs)} against {baseline}{said}", ""]
    for name, run in collapsed.items():
        for fold, answers in nothing_learned(run).items():
            lines += [f"**{name}: fold {fold} {answers}**: it has learned nothing.", ""]
    if collapsed:
        lines += [WHAT_MAY_HELP, ""]
    for name, run in runs.items():
        lines += _folds_differ_lines(run, f"{name}: the folds")
    if not comparison.get("patients_known", True):
        lines += [NO_PATIENTS, ""]
    called = shown_figures(figures, comparison["classes"], comparison["positive_classes"])
    header = [f"| {' | '.join(called.get(name, name) for name in figures)} |", "|---" * (len(figures) + 1) + "|"]
    lines += ["All folds, with 95 % intervals:", "", f"| run {header[0]}", header[1]]
    for name, run in runs.items():
        cells = [_with_interval(run["figures"][figure], "") for figure in figures]
        lines.append(f"| {name}{' (baseline)' if name == baseline else ''} | {' | '.join(cells)} |")
    least = comparison.get("always_commonest")
    if least is not None:
        cells = [
            "0.500" if figure.endswith("auroc") else f"{least[figure]:.3f}" if figure in least else ""
            for figure in figures
        ]
        lines.append(f"| always the commonest class | {' | '.join(cells)} |")
    if len(pairs) > 1:
        lines += [
            "",
            "Differences, paired, with 95 % intervals and p:",
            "",
            f"| run minus {baseline} {header[0]}",
            header[1],
        ]
        for name, pair in pairs.items():
            found = [pair["differences"][figure] for figure in figures]
            cells = [f"{_with_interval(figure, '+')}, p {figure['p_value']:.3g}" for figure in found]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    for index, (name, pair) in enumerate(pairs.items()):
        lines += [f"## {name} against {baseline}", ""]
        lines.append(comparison_markdown(comparison | pair, (name, baseline), explained=index == 0))
    return "\n".join(lines)


def _with_interval(found: Mapping[str, float], sign: str) -> str:
    """Value and interval; `sign` is + where the value is a difference."""
    if np.isnan(found["value"]):
        return ""
    return f"{found['value']:{sign}.3f} ({found['low']:{sign}.3f} to {found['high']:{sign}.3f})"


def comparison_markdown(comparison: dict[str, Any], names: tuple[str, str], explained: bool = True) -> str:
    """Two runs as tables; `explained` says what the figures, intervals and tests are."""
    lines = [
        f"{names[0]} against {names[1]}, {comparison['num_images']} images, paired.",
        "",
        "| figure | difference | 95 % interval | p |",
        "|---|---|---|---|",
    ]
    differences, about = comparison["differences"], (comparison["classes"], comparison["positive_classes"])
    for name, called in shown_figures(differences, *about).items():
        found = differences[name]
        interval = f"{found['low']:+.3f} to {found['high']:+.3f}"
        lines.append(f"| {called} | {found['value']:+.3f} | {interval} | {found['p_value']:.3g} |")
    lines.append("")
    if explained:
        lines += [
            figures_explained(*about),
            "An AUROC is the mean over folds. Bootstrap of whole groups within folds. DeLong (of each fold, then "
            "combined) and McNemar treat images as independent:",
            "",
        ]
    lines += ["| test | first | second | p |", "|---|---|---|---|"]
    for name, found in comparison["delong"].items():
        lines.append(
            f"| DeLong, AUROC {name} | {found['auroc_a']:.3f} | {found['auroc_b']:.3f} | {found['p_value']:.3g} |"
        )
    found = comparison["mcnemar"]
    lines.append(
        f"| McNemar, images only one got right | {found['only_a']} | {found['only_b']} | {found['p_value']:.3g} |"
    )
    if comparison["without_delong"]:
        lines += [
            "",
            f"No DeLong test of {', '.join(comparison['without_delong'])}: a fold has fewer than two images of it, or "
            "of the rest.",
        ]
    return "\n".join(lines) + "\n"


def positive_indices(class_names: Sequence[str], positive: Sequence[str] | None) -> list[int] | None:
    """Positions of the positive classes; `None` for none.

    Raises:
        ValueError: if a name is not a class.
    """
    if not positive:
        return None
    unknown = [name for name in positive if name not in class_names]
    if unknown:
        raise ValueError(f"positive_classes: {', '.join(unknown)} is not a class; allowed are {', '.join(class_names)}")
    return [list(class_names).index(name) for name in positive]


def positive_class(class_names: Sequence[str], positive: Sequence[str] | None) -> str | None:
    """With two classes, the one whose figures have no class in their name; `None` for more than two classes.

    It is the one of `positive`, by default the second, which in the corpora of `corpora/` is the disease.
    """
    return (positive or class_names[1:])[0] if len(class_names) == 2 else None


def positive_class_said(class_names: Sequence[str], positive: Sequence[str] | None) -> list[str]:
    """Which class of two is taken as the positive one where none was chosen, in a line; else no line."""
    if positive or len(class_names) != 2:
        return []
    first, second = class_names
    return [f"the positive class is {second}, the second of {first} and {second}; --positive_classes names another"]
