"""Tables of the rows of finetuned.py, made of the file that keeps every answer."""

import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd
from row_settings import BASELINE, CLASSICAL, CORPORA, ROWS, STEPS, key_of, trained_by
from side_by_side import markdown_table

from judging.summary import class_names_of, compare_all, figures_of
from judging.tables import positive_indices

COLUMNS = {  # title -> figure, the first of these that there is
    "accuracy": ("accuracy",),
    "balanced accuracy": ("balanced_accuracy",),
    "AUROC, mean of the classes": ("macro_auroc",),
    "AUROC": ("binary_auroc", "auroc"),
    "sensitivity": ("binary_sensitivity", "sensitivity"),
    "specificity": ("binary_specificity", "specificity"),
}
COMPARED = ("accuracy", "balanced accuracy", "AUROC")  # with the baseline


def table_of(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The predictions of a row, of all its seeds: each has folds of its own, of the same images."""
    parts = []
    for seed, run in enumerate(runs):
        part = pd.DataFrame({name: run[name].split(" ") for name in ("folds", "groups", "labels")})
        part = part.rename(columns={"folds": "fold", "groups": "group", "labels": "label"}).astype({"label": int})
        part["seed"], part["test_part"], part["file_name"] = seed, part["fold"], [f"{seed} {i}" for i in part.index]
        part["fold"] += f" seed {seed}" if len(runs) > 1 else ""
        for name in run["classes"]:
            part[f"probability_{name}"] = [float(value) for value in run["probabilities"][name].split(" ")]
        columns = [f"probability_{name}" for name in run["classes"]]
        part[columns] = part[columns].div(part[columns].sum(axis=1), axis=0)  # they were rounded
        part["prediction"] = part[columns].to_numpy().argmax(axis=1)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def together(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The same images with the means of both tables' probabilities, and the answers that follow."""
    columns = [name for name in table if name.startswith("probability_")]
    means = (table[columns] + other[columns]) / 2
    return table.assign(**means, prediction=means.to_numpy().argmax(axis=1))


def as_frequent(table: pd.DataFrame) -> pd.DataFrame:
    """The answers of a classifier that was trained with the classes weighed alike, for classes as frequent as they are.

    Each probability times its class's share of the images of the other folds (Saerens et al. 2002, equation 4).
    """
    columns = [name for name in table if name.startswith("probability_")]
    folds = table["test_part"]
    shares = pd.DataFrame({fold: table["label"][folds != fold].value_counts(normalize=True) for fold in folds.unique()})
    shares = shares.fillna(0)
    weighed = table[columns] * shares[folds].T.sort_index(axis=1).to_numpy()
    weighed = weighed.div(weighed.sum(axis=1), axis=0)
    return table.assign(**weighed, prediction=weighed.to_numpy().argmax(axis=1))


def _weighs_alike(run: dict[str, Any]) -> bool:
    """Whether a run, of a network or a logistic regression, answers as if the classes were equally frequent."""
    given = trained_by(run["settings"], STEPS[1:])
    weights = given.get("finetune class_weights", [run["settings"].get("class_weights")])
    return weights == ["balanced"] and given.get("finetune prior_correction") in (None, ["false"])


def selected(
    found: dict[str, Any],
    corpora: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Some of what the JSON file holds; all of it where nothing is said. `classical` is the same for every seed."""
    some: dict[str, Any] = {}
    for corpus in (name for name in found if name in (corpora or found)):
        for row, runs in found[corpus].items():
            whole = row.split("@")[0]
            wanted = {seed: run for seed, run in runs.items() if not seeds or whole == CLASSICAL or int(seed) in seeds}
            if wanted and whole in (rows or ROWS):
                some.setdefault(corpus, {})[row] = wanted
    return some


def _whole_rows(
    corpus: str, found: dict[str, Any], baseline: str, beside: str | None = None
) -> dict[str, dict[str, Any]]:
    """What is finished of a corpus with all labels: each row's runs, by those of its seeds that the baseline has too.

    Without the baseline, or where it is `classical`, in which nothing is random: that `mse` has, or else the row with
    most seeds. With `beside`, that this row has as well. What is left out is named; exits if the images differ.
    """
    whole_rows = {row: runs for row, runs in found.get(corpus, {}).items() if row in ROWS}
    if not whole_rows:
        return {}
    networks = {row: runs for row, runs in whole_rows.items() if row != CLASSICAL} or whole_rows
    decides = next((row for row in (baseline, BASELINE) if row in networks), None)
    decides = decides or max(networks, key=lambda row: len(networks[row]))
    seeds = sorted(set(networks[decides]) & set(networks.get(beside, networks[decides])))
    rows = {row: {seed: runs[seed] for seed in seeds if seed in runs} for row, runs in networks.items()}
    if CLASSICAL in whole_rows:  # it is the same for every seed
        rows[CLASSICAL] = dict.fromkeys(seeds, whole_rows[CLASSICAL][min(whole_rows[CLASSICAL])])
    for row, runs in networks.items():
        if others := sorted(set(runs) - set(seeds)):
            whose = f"{decides} and {beside}" if beside in networks else decides
            print(f"{corpus}, {row}: seed {', '.join(others)} is left out, which is not of {whose}", file=sys.stderr)
    if len({run["file_names_sha256"] for runs in rows.values() for run in runs.values()}) > 1:
        sys.exit(f"error: the rows of {corpus} are not of the same images: prepare it once for all")
    return {row: runs for row, runs in rows.items() if runs}


def short_table(found: dict[str, Any]) -> str:
    """Markdown: accuracy and AUROC of every row on each corpus, with the seeds that `mse` has, without intervals."""
    titles = ("accuracy", "AUROC")
    columns = {corpus: rows for corpus in CORPORA if (rows := _whole_rows(corpus, found, BASELINE))}
    lines = [[", ".join(titles), *(CORPORA[corpus]["title"] for corpus in columns)]]
    for row in (row for row in ROWS if any(row in rows for rows in columns.values())):
        cells = []
        for corpus, rows in columns.items():
            cells.append("")
            if row in rows:
                table = table_of(list(rows[row].values()))
                figures = figures_of(table, positive_indices(class_names_of(table), CORPORA[corpus]["positive"]))
                names = [next(name for name in COLUMNS[title] if name in figures) for title in titles]
                cells[-1] = ", ".join(f"{figures[name]:.3f}" for name in names)
        lines.append([f"`{row}`", *cells])
    return markdown_table(lines)


def _answers(
    rows: dict[str, dict[str, Any]], row: str, seeds: Sequence[str], beside: str | None, frequent: bool
) -> pd.DataFrame:
    """The predictions of a row with some of its seeds, as `tables` judges them."""
    table = table_of([rows[row][seed] for seed in seeds])
    if frequent and _weighs_alike(rows[row][seeds[0]]):
        table = as_frequent(table)
    return table if beside in (None, row) else together(table, _answers(rows, beside, seeds, None, frequent))


def tables(found: dict[str, Any], baseline: str = BASELINE, beside: str | None = None, frequent: bool = False) -> str:
    """Markdown: for each corpus the figures of every row, and the paired differences to one of them, if it is there.

    Args:
        found: what the JSON file holds.
        baseline: a row that the others are held against.
        beside: a row; of each other one, the mean of its probabilities and those of this one is judged.
        frequent: judge the networks by `as_frequent`; needs several folds, whose images it counts.
    """
    text = []
    for corpus, facts in CORPORA.items():
        if beside is not None and corpus in found and beside not in found[corpus]:
            print(f"{corpus} is left out: it has no finished row {beside}", file=sys.stderr)
            continue
        rows = _whole_rows(corpus, found, baseline, beside)
        if not rows:
            continue
        if frequent and facts["folds"]:
            print(f"{corpus} is left out: of one split the other images are not known", file=sys.stderr)
            continue
        of_all = baseline if baseline in rows else max(rows, key=lambda row: len(rows[row]))
        figures, differences = {}, {}
        for seeds in dict.fromkeys(map(tuple, rows.values())):  # each row against the same seeds of the baseline
            of_these = [row for row in rows if tuple(rows[row]) == seeds]
            both = dict.fromkeys([of_all, *of_these])
            answers = {row: _answers(rows, row, seeds, beside, frequent) for row in both}
            compared = compare_all(answers, of_all, facts["positive"])
            figures |= {row: compared["runs"][row]["figures"] for row in of_these}
            differences |= {row: pair["differences"] for row, pair in compared["against_baseline"].items()}
        names = {title: next((n for n in given if n in figures[of_all]), None) for title, given in COLUMNS.items()}
        names = {title: name for title, name in names.items() if name}
        named = {row: f"`{row}`" if beside in (None, row) else f"`{beside}` and `{row}`" for row in rows}
        title = f"{facts['title']}, classes as frequent as they are" if frequent else facts["title"]
        lines = [[title, "seeds", *names, "minutes"]]
        less = [[f"{title}: points above {named.get(baseline)}", *COMPARED]]
        for row in (row for row in ROWS if row in rows):
            runs = list(rows[row].values())[: 1 if row == CLASSICAL and beside in (None, row) else None]
            minutes = sum(run["minutes"] for run in runs) if beside is None else 0
            shown = ["{value:.3f} ({low:.3f} to {high:.3f})".format(**figures[row][name]) for name in names.values()]
            lines.append([named[row], str(len(runs)), *shown, f"{minutes:.0f}" if minutes else ""])
            if row != baseline and baseline in rows:
                of_some = f", seed {', '.join(rows[row])}" if len(rows[row]) < len(rows[baseline]) else ""
                less.append([named[row] + of_some, *(_points(differences[row][names[title]]) for title in COMPARED)])
        text += [markdown_table(lines), *([markdown_table(less)] if len(less) > 1 else [])]
        if beside is None and not frequent:
            text += _learning_curve(found[corpus], list(rows[of_all]), baseline, facts)
    return "\n\n".join(text)


def _learning_curve(rows: dict[str, Any], seeds: list[str], baseline: str, facts: dict[str, Any]) -> list[str]:
    """Tables of the rows that ran with few labels, one column for each number of groups; nothing if none did.

    All columns are of the seeds that the first network, if possible the baseline, has with the fewest groups; a row
    that lacks one of them is left out and named.
    """
    counts = sorted({int(name.split("@")[1]) for name in rows if "@" in name})
    if not counts:
        return []
    networks = [key_of(row, count) for count in counts for row in (baseline, *ROWS) if row != CLASSICAL]
    seeds = next((sorted(rows[key]) for key in networks if key in rows), seeds)
    cells, less = ({row: [] for row in ROWS} for _ in range(2))
    for count in [*counts, None]:
        found = {}
        for row in ROWS:
            runs = rows.get(key_of(row, count), {})
            wanted = sorted(runs)[:1] * len(seeds) if row == CLASSICAL else seeds  # nothing in that one is random
            if runs and set(wanted) <= set(runs):
                found[row] = table_of([runs[seed] for seed in wanted])
            elif runs:
                told = f"{facts['title']}, {key_of(row, count)}: is left out of the learning curve"
                print(f"{told}, which is of seed {', '.join(seeds)}", file=sys.stderr)
        if not found:
            for column in (*cells.values(), *less.values()):
                column.append("")
            continue
        compared = compare_all(found, baseline if baseline in found else next(iter(found)), facts["positive"])
        for row in ROWS:
            figures = compared["runs"][row]["figures"] if row in found else {}
            names = [next(name for name in COLUMNS[title] if name in figures) for title in COMPARED[1:] if figures]
            cells[row].append(", ".join("{value:.3f} ({low:.3f} to {high:.3f})".format(**figures[n]) for n in names))
            points = compared["against_baseline"].get(row, {}).get("differences") if baseline in found else None
            less[row].append(", ".join(_points(points[name]) for name in names if points))
    labels = ", ".join(COMPARED[1:])
    told = {f"{facts['title']}: {labels}": cells, f"{facts['title']}: points above `{baseline}`, {labels}": less}
    text = []
    for title, of_rows in told.items():
        lines = [[f"`{row}`", *shown] for row, shown in of_rows.items() if any(shown[:-1])]
        if lines:
            text.append(markdown_table([[title, *(f"{count} groups" for count in counts), "all"], *lines]))
    return text


def _points(difference: dict[str, float]) -> str:
    """A paired difference in points, with its interval."""
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * difference[key] for key in ("value", "low", "high")))
