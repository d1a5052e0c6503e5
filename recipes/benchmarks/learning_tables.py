"""Tables of what texture_learning.py measured."""

import sys
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np
from side_by_side import markdown_table

UNTRAINED, CLASSICAL, BASELINE = "none", "classical", "mse"  # rows that are no preset, and the one compared with
ALL = "all"
NUM_RESAMPLES = 2000
COLUMNS = {"glcm_l1": "GLCM L1", "gradient_energy_ratio": "gradient energy", "mse": "MSE"}
READOUTS = {  # name in the results -> title
    "mean": "mean token",
    "cls": "CLS",
    "attentive": "attentive",
    "grid": "3x3 means",
    "middle mean": "half way, mean token",
    "middle cls": "half way, CLS",
}
OF_CLASSICAL = {
    "image": "whole image",
    "tiles": "4x4 tiles",
    "narrow tiles": "4x4 tiles, narrowed to the encoder's width",
}


def _mean_and_spread(values: list[float], digits: int) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def _share_right(answers: str) -> float:
    return answers.count("1") / len(answers)


def _by_row(records: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The results of each row, a seed each."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault(record["settings"]["pretraining"], []).append(record["results"])
    return found


def _classical(read: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Names and titles of the classical features that are among what was `read` in every run."""
    return [(name, title) for name, title in OF_CLASSICAL.items() if all(name in one for one in read)]


def table(records: list[dict[str, Any]], corpus: str, labels: Sequence[int | str]) -> str:
    """Markdown: a row a preset; mean, and standard deviation over the seeds if there are several."""
    few = [str(count) for count in labels if count != ALL]
    lines = [["pretraining", "seeds", *(f"probe, {count} labels" for count in few), *COLUMNS.values(), "minutes"]]
    for row, results in _by_row(records).items():
        found = [result["corpora"][corpus] for result in results]
        read = [result["probe"][few[0]] if few else result["right"] for result in found]
        for name, title in _classical(read) if row == CLASSICAL else [("mean", "")]:
            probes = [[result["probe"][count][name]["accuracy"] for result in found] for count in few]
            lines.append(
                [
                    f"{row}, {title}" if title else row,
                    str(len(found)),
                    *(_mean_and_spread(probe, 3) for probe in probes),
                    *(
                        _mean_and_spread([result[column] for result in found], 3) if column in found[0] else ""
                        for column in COLUMNS
                    ),
                    "" if row == CLASSICAL else _mean_and_spread([result["minutes"] for result in results], 1),
                ]
            )
    return markdown_table(lines)


def readout_table(records: list[dict[str, Any]], corpus: str) -> str:
    """Markdown: accuracy with all labels, by what is read of the encoder."""
    lines = [["pretraining, all labels", *READOUTS.values()]]
    for row, results in _by_row(records).items():
        right = [result["corpora"][corpus]["right"] for result in results]
        if row == CLASSICAL:
            there = _classical(right)
            for title in (title for name, title in OF_CLASSICAL.items() if (name, title) not in there):
                print(f"{corpus}: {title}: left out, since older results do not have it", file=sys.stderr)
            for name, title in there:
                value = _mean_and_spread([_share_right(answers[name]) for answers in right], 3)
                lines.append([f"{row}, {title}", value, *[""] * (len(READOUTS) - 1)])
        else:
            values = [[_share_right(answers[name]) for answers in right if name in answers] for name in READOUTS]
            lines.append([row, *(_mean_and_spread(found, 3) if found else "" for found in values)])
    return markdown_table(lines)


def differences(
    results: list[dict[str, Any]], baseline: list[dict[str, Any]], readout: str, of_baseline: str | None = None
) -> dict[str, tuple[float, float, float]]:
    """How many points more of the test images are right than with the baseline, all labels.

    Args:
        results, baseline: of the same seeds, in the same order.
        readout: what is read of both; with `of_baseline`, of `results` only.
        of_baseline: what is read of the baseline.

    Returns:
        corpus, and "mean" of them -> (difference, low, high), its 95 % interval by the bootstrap of seeds and groups.
    """
    names = list(baseline[0]["corpora"])
    sums: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in names}
    for result, other in zip(results, baseline, strict=True):
        for name in names:
            of_both = (result, readout), (other, of_baseline or readout)
            ours, theirs = (np.array(list(found["corpora"][name]["right"][read]), int) for found, read in of_both)
            group = np.array(result["corpora"][name]["groups"].split(), int)
            sums[name].append((np.bincount(group, ours - theirs), np.bincount(group)))
    random, draws = np.random.default_rng(0), []
    for _ in range(NUM_RESAMPLES):
        seeds = random.integers(0, len(results), len(results))  # the same trainings for all corpora
        of_corpora = []
        for name in names:
            shares = []
            for seed in seeds:
                gained, size = sums[name][seed]
                drawn = random.integers(0, len(size), len(size))
                shares.append(gained[drawn].sum() / size[drawn].sum())
            of_corpora.append(mean(shares))
        draws.append([*of_corpora, mean(of_corpora)])
    whole = [mean(gained.sum() / size.sum() for gained, size in sums[name]) for name in names]
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    points = zip([*whole, mean(whole)], low, high, strict=True)
    return {name: tuple(100 * float(x) for x in point) for name, point in zip([*names, "mean"], points, strict=True)}


def difference_table(records: list[dict[str, Any]]) -> str:
    """Markdown: points above the baseline, for each row and what is read.

    First the classical features above the baseline's mean token, which says how much there is to gain.
    """
    rows = _by_row(records)
    baseline = rows.pop(BASELINE)
    lines = [[f"points above {BASELINE}, all labels", "read", *baseline[0]["corpora"], "mean"]]
    classical = rows.pop(CLASSICAL)
    read = [result["corpora"][name]["right"] for result in classical for name in result["corpora"]]
    found = [
        (f"{CLASSICAL}, {title}", f"above the {READOUTS['mean']}", differences(classical, baseline, name, "mean"))
        for name, title in _classical(read)
    ]
    for row in (row for row in rows if row != UNTRAINED):
        answers = [one["right"] for result in (*baseline, *rows[row]) for one in result["corpora"].values()]
        for readout, title in READOUTS.items():
            if all(readout in one for one in answers):
                found.append((row, title, differences(rows[row], baseline, readout)))
            else:
                print(f"{row}, {title}: no difference, since older results do not have it", file=sys.stderr)
    for row, title, points in found:
        lines.append([row, title, *(f"{x:+.1f} ({low:+.1f} to {high:+.1f})" for x, low, high in points.values())])
    return markdown_table(lines)
