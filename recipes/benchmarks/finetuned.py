"""Does pretraining for texture pay? Fine-tuned classifiers of real corpora, beside the baselines, as tables.

    python recipes/benchmarks/finetuned.py --data_dir data --output_dir runs/finetuned --json runs/finetuned.json \
        --corpora busi --rows classical mse texture --pretrain_options image_size=96
    python recipes/benchmarks/finetuned.py --tables recipes/benchmarks/results/finetuned.json

`data_dir` holds the corpora as prepare_corpus.py makes them: busi, covid_ct, pneumonia. Rows: `classical` (a logistic
regression on co-occurrence features), `none` (the network from nothing), the presets, and `head` (`texture` without
the matrices of the pixels). Each fold pretrains on its own training part only, by recipes/configs/laptop/. The chest
X-rays are judged on their official split. With --pretrain_options and --finetune_options as
cross_validate.py has them, at any size: `image_size` and the other sizes of the network hold for `none` too.

With `_all` there is one encoder for all corpora: fold k of BUSI pretrains on the training parts of fold k of BUSI and
of CT, and of the official split of the chest X-rays. Run these rows of `busi` first, in the same `output_dir`: fold k
of CT and seed k of the chest X-rays are fine-tuned from the encoder of fold k there.

--labelled_groups 25 50 100 runs the learning curve of the rows instead: fine-tuned on so many groups (patients, where
they are known) of each training part, with the encoders of the whole rows, which must be in `output_dir`, and with as
many updates.

Each row of a corpus is a run of cross_validate.py in `output_dir`, which goes on where it was interrupted, and lands in
the JSON file when it is finished: its settings, its command, its commit (`-dirty` with changes that are in none), and
every answer to a test image.
The tables are made of that file alone; `--baseline texture` holds all rows against that one. With `--together_with
classical` the answers of each other row are the mean of its probabilities and those of that row: what an encoder adds.
The networks weigh the classes alike, `classical` as frequent as they are: `--as_frequent` has all do as that one does.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

# The recipes import each other by bare names, and Python looks beside this file only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from row_settings import ROOT, STEPS, asked, differences, trained_by
from side_by_side import markdown_table

from commandline import ending_children
from images.splits import sha256_of_lines
from judging.summary import class_names_of, compare_all, figures_of
from judging.tables import positive_indices
from output_folder import replaced_file

CONFIGS = "recipes/configs/laptop"
CLASSICAL, BASELINE = "classical", "mse"
ROWS: dict[str, list[str] | None] = {  # options of the pretraining; None: there is none
    CLASSICAL: None,
    "none": None,
    BASELINE: ["preset=mse"],
    "paper": ["preset=paper", "mse_epochs=0.5"],
    "head": ["preset=texture", "glcm_weight=0"],
    "texture": ["preset=texture"],
    "mse_all": ["preset=mse"],
    "head_all": ["preset=texture", "glcm_weight=0"],
    "texture_all": ["preset=texture"],
}
ALL, FIRST = "_all", "busi"  # rows of one encoder for all corpora; where it is pretrained
# `epochs`: of the pretraining on this corpus, and of the fine-tuning.
CORPORA: dict[str, dict[str, Any]] = {
    "busi": {"title": "BUSI", "positive": ["malignant"], "folds": None, "seeds": [0, 1], "epochs": (60, 30)},
    "covid_ct": {"title": "SARS-CoV-2 CT", "positive": None, "folds": None, "seeds": [0], "epochs": (30, 20)},
    "pneumonia": {
        "title": "Chest X-ray",
        "positive": None,
        "folds": ["official"],
        "seeds": [0, 1, 2],
        "epochs": (15, 8),
    },
}
EPOCHS_OF_ALL = 24
COLUMNS = {  # title -> figure, the first of these that there is
    "accuracy": ("accuracy",),
    "balanced accuracy": ("balanced_accuracy",),
    "AUROC, mean of the classes": ("macro_auroc",),
    "AUROC": ("binary_auroc", "auroc"),
    "sensitivity": ("binary_sensitivity", "sensitivity"),
    "specificity": ("binary_specificity", "specificity"),
}
COMPARED = ("accuracy", "balanced accuracy", "AUROC")  # with the baseline


def command(corpus: str, row: str, seed: int, options: argparse.Namespace, labelled: int | None = None) -> list[str]:
    """The call of cross_validate.py for one row, with all labels or few, relative to the repository."""
    facts = CORPORA[corpus]
    words = ["recipes/cross_validate.py", "--corpus", str(Path(options.data_dir, corpus))]
    words += ["--output_dir", str(Path(options.output_dir, corpus, key_of(row, labelled), f"seed_{seed}"))]
    words += ["--folds", *facts["folds"]] if facts["folds"] else []
    words += ["--positive_classes", *facts["positive"]] if facts["positive"] else []
    if row == CLASSICAL:
        few = ["--labelled_groups", str(labelled)] if labelled else []
        return [*words, "--mode", "texture_features", *few]
    sizes = yaml.safe_load((ROOT / CONFIGS / "pretrain.yaml").read_text())
    of_finetuning = [*_once([f"num_train_epochs={facts['epochs'][1]}"], options.finetune_options), f"seed={seed}"]
    if ROWS[row] is None:
        names = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        given = dict(entry.split("=", 1) for entry in options.pretrain_options)
        of_finetuning += [f"{name}={given.get(name, sizes[name])}" for name in (*names, "intermediate_size")]
    elif labelled or (row.endswith(ALL) and corpus != FIRST):
        words += ["--checkpoint", str(_encoder(corpus, row, seed, options))]
    else:
        words += ["--pretrain_config", f"{CONFIGS}/pretrain.yaml", "--pretrain_options"]
        epochs = [f"num_train_epochs={EPOCHS_OF_ALL if row.endswith(ALL) else facts['epochs'][0]}"]
        others = [name for name in CORPORA if name != corpus] if row.endswith(ALL) else []
        more = [f"unlabelled_corpus={Path(options.data_dir, name)}" for name in others]
        more += [f"unlabelled_folds={(CORPORA[name]['folds'] or ['same'])[0]}" for name in others]
        words += [*ROWS[row], *more, *_once(epochs, options.pretrain_options)]
        words.append(f"seed={seed}")
    if labelled:
        of_finetuning += [f"labelled_groups={labelled}", f"max_steps={_updates_of_all(corpus, options)}"]
        # An epoch of few images is too short to judge after each.
        of_finetuning += ["eval_strategy=steps", "eval_steps=0.05", "save_strategy=steps", "save_steps=0.05"]
    words += ["--finetune_config", f"{CONFIGS}/finetune.yaml", "--finetune_options", *of_finetuning]
    return [*words, "--jobs", str(options.jobs)]


def _encoder(corpus: str, row: str, seed: int, options: argparse.Namespace) -> Path:
    """Where the encoder of a whole row is, with `{fold}` for the fold."""
    seeds, fold = seed, "{fold}"
    if row.endswith(ALL) and corpus != FIRST and CORPORA[corpus]["folds"]:
        seeds, fold = CORPORA[FIRST]["seeds"][0], str(seed)  # its part is the same in every fold there
    whose = FIRST if row.endswith(ALL) else corpus
    return Path(options.output_dir, whose, row, f"seed_{seeds}", f"fold_{fold}", "pretrain", "export")


def key_of(row: str, labelled: int | None) -> str:
    """What a row is called in the results."""
    return f"{row}@{labelled}" if labelled else row


def _updates_of_all(corpus: str, options: argparse.Namespace) -> int:
    """Updates of a fine-tuning with all labels, in the mean over the folds."""
    splits = json.loads(Path(options.data_dir, corpus, "splits.json").read_text())
    folds = [splits[name] for name in CORPORA[corpus]["folds"] or []] or splits["folds"]
    images = sum(len(fold["train"]) for fold in folds) / len(folds)
    batch = yaml.safe_load((ROOT / CONFIGS / "finetune.yaml").read_text())["per_device_train_batch_size"]
    return round(CORPORA[corpus]["epochs"][1] * images / batch)


def _once(usual: list[str], given: list[str]) -> list[str]:
    """NAME=VALUE entries, without the usual ones that are given."""
    names = {entry.split("=", 1)[0] for entry in given}
    return [*(entry for entry in usual if entry.split("=", 1)[0] not in names), *given]


def _pretrained_there(row: str, here: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The settings that made the encoders of a row of all corpora; exits if there are none, or others."""
    file = ROOT / options.output_dir / FIRST / row / f"seed_{CORPORA[FIRST]['seeds'][0]}" / "config.yaml"
    if not file.is_file():
        sys.exit(f"error: run --corpora {FIRST} --rows {row} first: there is no {file}")
    there = yaml.safe_load(file.read_text())
    if differing := differences(there, here, STEPS[:1]):
        sys.exit(f"error: the encoders of {row} in {file.parent} were trained with other settings: {differing}")
    return {name: there[name] for name in ("pretrain_config", "pretrain_options", "pretrain_config_content")}


def record(words: Sequence[str], output: Path, pretraining: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is kept of a finished run: how to repeat it, how long its trainings took, every answer.

    Args:
        words: the call.
        output: its folder.
        pretraining: settings of the one that made its encoder, if that was not in this folder.
    """
    settings = yaml.safe_load((output / "config.yaml").read_text()) | (pretraining or {})
    took = [json.loads(file.read_text()).get("train_runtime", 0.0) for file in output.glob("fold_*/*/all_results.json")]
    table = pd.read_parquet(output / "predictions.parquet").sort_values(["fold", "file_name"], ignore_index=True)
    classes = class_names_of(table)
    describe = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "command": shlex.join(["python", *words]),
        "commit": commit,
        "settings": {name: value for name, value in settings.items() if name not in ("corpus", "splits_file")},
        "minutes": sum(took) / 60,
        "classes": classes,
        # A column a line of text: these files are read by git too.
        "file_names_sha256": sha256_of_lines(table["file_name"].tolist()),
        "folds": " ".join(table["fold"].astype(str)),
        "groups": " ".join(map(str, pd.factorize(table["group"])[0])),
        "labels": " ".join(map(str, table["label"])),
        "probabilities": {name: " ".join(f"{value:.6g}" for value in table[f"probability_{name}"]) for name in classes},
    }


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


def _whole_rows(corpus: str, found: dict[str, Any], baseline: str) -> tuple[dict[str, list[Any]], list[str]]:
    """What is finished of a corpus with all labels: each row's runs, and their seeds. Exits if their images differ."""
    whole_rows = {row: runs for row, runs in found.get(corpus, {}).items() if row in ROWS}
    # The seeds of the baseline, for nothing in the classical row is random; without it of any other.
    by_seeds = [row for row in (baseline, BASELINE, *whole_rows) if row in whole_rows]
    by_seeds = sorted(by_seeds, key=lambda row: row == CLASSICAL)
    seeds = sorted(whole_rows[by_seeds[0]]) if by_seeds else []
    rows = {
        row: [runs[seed] for seed in (seeds if row != CLASSICAL else sorted(runs)[:1])]
        for row, runs in whole_rows.items()
        if row == CLASSICAL or sorted(runs) == seeds  # with other seeds it is not finished, and cannot be paired
    }
    if others := [row for row in whole_rows if row not in rows]:
        print(f"{corpus}: left out are {', '.join(others)}, not of the seeds {', '.join(seeds)}", file=sys.stderr)
    if len({run["file_names_sha256"] for runs in rows.values() for run in runs}) > 1:
        sys.exit(f"error: the rows of {corpus} are not of the same images: prepare it once for all")
    return rows, seeds


def short_table(found: dict[str, Any]) -> str:
    """Markdown: accuracy and AUROC of every finished row on each corpus, without intervals."""
    titles = ("accuracy", "AUROC")
    columns = {corpus: rows for corpus in CORPORA if (rows := _whole_rows(corpus, found, BASELINE)[0])}
    lines = [[", ".join(titles), *(CORPORA[corpus]["title"] for corpus in columns)]]
    for row in (row for row in ROWS if any(row in rows for rows in columns.values())):
        cells = []
        for corpus, rows in columns.items():
            cells.append("")
            if row in rows:
                table = table_of(rows[row])
                figures = figures_of(table, positive_indices(class_names_of(table), CORPORA[corpus]["positive"]))
                names = [next(name for name in COLUMNS[title] if name in figures) for title in titles]
                cells[-1] = ", ".join(f"{figures[name]:.3f}" for name in names)
        lines.append([f"`{row}`", *cells])
    return markdown_table(lines)


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
        rows, seeds = _whole_rows(corpus, found, baseline)
        if not rows:
            continue
        if beside is not None and beside not in rows:
            print(f"{corpus} is left out: it has no finished row {beside}", file=sys.stderr)
            continue
        # Nothing in the classical row is random: it is the same for every seed.
        whole = {row: table_of(runs * (len(seeds) if row == CLASSICAL else 1)) for row, runs in rows.items()}
        named = {row: f"`{row}`" for row in whole}
        if frequent:
            if facts["folds"]:
                print(f"{corpus} is left out: of one split the other images are not known", file=sys.stderr)
                continue
            alike = [row for row in whole if _weighs_alike(rows[row][0])]
            whole |= {row: as_frequent(whole[row]) for row in alike}
        if beside is not None:
            others = [row for row in whole if row != beside]
            named |= {row: f"`{beside}` and `{row}`" for row in others}
            whole |= {row: together(whole[row], whole[beside]) for row in others}
            rows |= {row: max(rows[row], rows[beside], key=len) for row in others}
        of_all = baseline if baseline in whole else next(iter(whole))
        compared = compare_all(whole, of_all, facts["positive"])
        names = {
            title: next((n for n in given if n in compared["runs"][of_all]["figures"]), None)
            for title, given in COLUMNS.items()
        }
        names = {title: name for title, name in names.items() if name}
        title = f"{facts['title']}, classes as frequent as they are" if frequent else facts["title"]
        lines = [[title, "seeds", *names, "minutes"]]
        less = [[f"{title}: points above {named.get(baseline)}", *COMPARED]]
        for row in (row for row in ROWS if row in whole):
            figures = compared["runs"][row]["figures"]
            minutes = sum(run["minutes"] for run in rows[row]) if beside is None else 0
            shown = [
                f"{figures[name]['value']:.3f} ({figures[name]['low']:.3f} to {figures[name]['high']:.3f})"
                for name in names.values()
            ]
            lines.append([named[row], str(len(rows[row])), *shown, f"{minutes:.0f}" if minutes else ""])
            if row != baseline and baseline in whole:
                against = compared["against_baseline"][row]["differences"]
                less.append([named[row], *(_points(against[names[title]]) for title in COMPARED)])
        text += [markdown_table(lines), *([markdown_table(less)] if len(less) > 1 else [])]
        text += _learning_curve(found[corpus], seeds, baseline, facts) if beside is None and not frequent else []
    return "\n\n".join(text)


def _learning_curve(rows: dict[str, Any], seeds: list[str], baseline: str, facts: dict[str, Any]) -> list[str]:
    """Tables of the rows that ran with few labels, one column for each number of groups; nothing if none did.

    All columns are of the seeds that the first network, if possible the baseline, has with the fewest groups.
    """
    counts = sorted({int(name.split("@")[1]) for name in rows if "@" in name})
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


def run_one(
    corpus: str, row: str, seed: int, labelled: int | None, found: dict[str, Any], options: argparse.Namespace
) -> None:
    """Run one row, if it is not in `found` yet, and keep it there and in the JSON file."""
    key = key_of(row, labelled)
    shares_encoder = row.endswith(ALL) and corpus != FIRST
    known = found.get(corpus, {}).get(key, {}).get(str(seed))
    # A learning curve has the updates of the whole row among its options, which only the corpus tells.
    words = command(corpus, row, seed, options, labelled if known is None else None)
    here = (asked(command(FIRST, row, CORPORA[FIRST]["seeds"][0], options)) if shares_encoder else {}) | asked(words)
    if known is not None:
        differing = "" if labelled else differences(known["settings"], here)
        other = f", though it ran with other settings: {differing}" if differing else ""
        at = f"of commit {known['commit'][:12]}"
        print(f"{corpus}, {key}, seed {seed}: is in {options.json} already, {at}: not run{other}")
        return
    pretraining = _pretrained_there(row, here, options) if shares_encoder else None
    print(f"{corpus}, {key}, seed {seed}", flush=True)
    if subprocess.run([sys.executable, *words], cwd=ROOT).returncode:
        sys.exit(f"error: {shlex.join(words)} failed; the same command goes on")
    output = ROOT / options.output_dir / corpus / key / f"seed_{seed}"
    found.setdefault(corpus, {}).setdefault(key, {})[str(seed)] = record(words, output, pretraining)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(options.json) as new:
        new.write_text(json.dumps(found, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is not in the file yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, help="print the tables of this file, run nothing")
    parser.add_argument(
        "--baseline", default=BASELINE, choices=ROWS, help="the row that tables hold the others against"
    )
    parser.add_argument(
        "--together_with", choices=ROWS, help="with --tables: of each other row's mean with this one, all labels"
    )
    parser.add_argument(
        "--as_frequent", action="store_true", help="with --tables: networks for classes as frequent as they are"
    )
    parser.add_argument("--short", action="store_true", help="with --tables: accuracy and AUROC of all corpora in one")
    parser.add_argument("--data_dir", default="data", help="holds the prepared corpora")
    parser.add_argument("--output_dir", default="runs/finetuned", help="receives the runs")
    parser.add_argument(
        "--json", type=Path, default=Path("runs/finetuned.json"), help="results; what is in it is not run again"
    )
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, help="each of them takes hours; or --tables")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="to be run, or --tables")
    parser.add_argument("--seeds", nargs="+", type=int, help="those of the corpus if left out")
    parser.add_argument("--labelled_groups", nargs="+", type=int, default=[None], help="the learning curve, instead")
    parser.add_argument("--pretrain_options", nargs="+", default=[], help="more options of pretrain.py, as NAME=VALUE")
    parser.add_argument("--finetune_options", nargs="+", default=[], help="more options of finetune.py, as NAME=VALUE")
    parser.add_argument("--jobs", type=int, default=1, help="folds at once")
    options = parser.parse_args(argv)
    if options.short and (options.together_with or options.as_frequent or options.baseline != BASELINE):
        parser.error("--short has no intervals or baseline: give it --tables alone")
    if options.tables:
        found = json.loads(options.tables.read_text())
        if options.short:
            print(short_table(found))
        else:
            print(tables(found, options.baseline, options.together_with, options.as_frequent))
        return
    if not options.corpora or not options.rows:
        parser.error("give --corpora and --rows to run, or --tables FILE to show")
    if options.together_with or options.as_frequent or options.short:
        parser.error("--short, --together_with and --as_frequent go with --tables")
    found = json.loads(options.json.read_text()) if options.json.exists() else {}
    with ending_children():
        for corpus in options.corpora:
            for row in options.rows:
                for seed in options.seeds or CORPORA[corpus]["seeds"][: 1 if row == CLASSICAL else None]:
                    for labelled in options.labelled_groups:
                        run_one(corpus, row, seed, labelled, found, options)
    print(tables(found, options.baseline))


if __name__ == "__main__":
    main()
