"""The log of a training as one picture."""

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from judging.summary import COLOURS

# A panel each, if the log has it: the terms are those of a pretraining.
LOSSES = {
    "loss": "loss",
    "mse": "squared error",
    "glcm": "distance of co-occurrence matrices",
    "glcm_head": "texture head, nats",
    "glcm_cls": "head of the CLS token, nats",
    "ssim": "structural dissimilarity",
    "glcm_l1": "GLCM L1 (0 best, 2 worst)",
}
TRIVIAL = {"patch_mean": "mean of each patch", "dataset_mean": "mean of the data set"}
LOGARITHMIC = ("glcm", "glcm_head", "glcm_cls")  # which begin at many times of what they end at
FIGURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "macro_auroc": "macro AUROC",
}
COLUMNS = 3


def draw_training_curves(log: Path, file: Path) -> None:
    """Draw every loss, the figures of a classifier and the learning rate over the steps; nothing if none was logged.

    Args:
        log: `metrics.jsonl` of a run, with a JSON object a line, each with `step`. What begins with `eval_` is of the
            images that are held out, or of the validation part. Of several lines of a step, the last counts.
        file: PNG to write.
    """
    rows = sorted(map(json.loads, log.read_text().splitlines()), key=lambda row: row["step"])
    names = set().union(*rows)
    losses = [name for name in LOSSES if {name, f"eval_{name}"} & names]
    figures = [name for name in FIGURES if f"eval_{name}" in names]
    panels = [*losses, *(["figures"] if figures else []), *(["learning_rate"] if "learning_rate" in names else [])]
    if not panels:  # fewer steps than logging_steps
        return
    across = min(COLUMNS, len(panels))
    down = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(4 * across, 3 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        if panel in LOSSES:
            _draw_loss(axis, rows, panel)
        elif panel == "figures":
            for name, colour in zip(figures, COLOURS, strict=False):
                _draw(axis, rows, f"eval_{name}", FIGURES[name], color=colour, marker=".")
            axis.set(title="validation", ylim=(0, 1))
            axis.legend(fontsize="small")
        else:
            _draw(axis, rows, "learning_rate", None, color=COLOURS[0])
            axis.set_title("learning rate")
        axis.set_xlabel("step")
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    # One legend for all losses: of the first, which has every line that any of them has.
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(file, dpi=80)


def _draw_loss(axis: Axes, rows: Sequence[dict], name: str) -> None:
    _draw(axis, rows, name, "training", color=COLOURS[0], linewidth=0.8)
    _draw(axis, rows, f"eval_{name}", "held out", color=COLOURS[1], marker=".")
    for (suffix, label), style in zip(TRIVIAL.items(), (":", "--"), strict=True):
        _draw(axis, rows, f"eval_{name}_{suffix}", label, color="grey", linestyle=style)
    axis.set_title(LOSSES[name])
    if name in LOGARITHMIC:
        axis.set_yscale("log")


def _draw(axis: Axes, rows: Sequence[dict], name: str, label: str | None, **style) -> None:
    # A resume judges the step that it begins at once more, and every run its last one.
    points = {row["step"]: row[name] for row in rows if name in row}
    if points:
        axis.plot(list(points), list(points.values()), label=label, **style)
