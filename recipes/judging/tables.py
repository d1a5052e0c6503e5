"""Figures of a run and of a comparison, in words and Markdown."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def figures_explained(class_names: Sequence[str], positive: Sequence[str] | None) -> str:
    """What the figures without a class in their name are, and those that begin with `binary_`."""
    if len(class_names) == 2:
        chosen = positive_class(class_names, positive)
        text = (
            f"Sensitivity, specificity, AUROC and F1 without a class in their name are of the positive class, {chosen}"
        )
        text += "." if positive else " (the second of the two; `positive_classes` names another)."
    else:
        text = "Figures under `macro_` are means over the classes, each against the rest."
    if positive:
        text += (
            f" Those under `binary_` are of {' + '.join(positive)} against the rest: answered where the probability is "
            "0.5 or more."
        )
    return text


def summary_markdown(summary: dict[str, Any]) -> str:
    """The summary as a table.

    Raises:
        ValueError: an earlier version wrote it, whose figures of the same names mean something else.
    """
    if "positive_class" not in summary:
        raise ValueError(
            "summary.json is of an earlier version, where sensitivity, specificity and F1 of two classes are means and "
            "AUROC mixes the scores of all folds: run the same cross_validate.py again, which repeats no finished fold"
        )
    lines = [
        f"{summary['num_images']} images of {summary['num_groups']} groups; classes {', '.join(summary['classes'])}.",
        "",
        "| figure | mean over folds | standard deviation | all folds | 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for name, found in summary["figures"].items():
        pooled = found["pooled"]
        cells = (found["mean"], found["std"], pooled["value"])
        shown = " | ".join("" if np.isnan(value) else f"{value:.3f}" for value in cells)
        lines.append(f"| {name} | {shown} | {pooled['low']:.3f} to {pooled['high']:.3f} |")
    lines += [
        "",
        figures_explained(summary["classes"], summary["positive_classes"]),
        "All folds: the answers of all counted together; for AUROC the mean over folds, because scores of different "
        "models have no common scale. Intervals are of this figure, by a bootstrap of whole groups within folds. They "
        "do not cover the choice of folds.",
    ]
    left_out = {name: found["pooled"]["undefined"] for name, found in summary["figures"].items()}
    if any(left_out.values()):
        worst = max(left_out, key=left_out.get)
        lines += [
            "",
            "Draws in which a figure is undefined, since a fold lacks all images of a class, are left out of "
            f"its interval: up to {left_out[worst]:.0%} of them ({worst}).",
        ]
    for fold, answer in summary["only_answers"].items():
        lines += ["", f"**Fold {fold} answers {answer} for every test image**: it has learned nothing."]
    return "\n".join(lines) + "\n"


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
    lines += [
        "",
        figures_explained(comparison["classes"], comparison["positive_classes"]),
        "An AUROC is the mean over folds. Bootstrap of whole groups within folds. DeLong (of each fold, then combined) "
        "and McNemar treat images as independent:",
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
