"""Does pretraining for texture pay? Fine-tuned classifiers of real corpora, beside the baselines, as tables.

    python recipes/benchmarks/finetuned.py --data_dir data --output_dir runs/finetuned --json runs/finetuned.json \
        --corpora busi --rows classical mse texture --pretrain_options image_size=96
    python recipes/benchmarks/finetuned.py --tables recipes/benchmarks/results/finetuned.json

`data_dir` holds the corpora as prepare_corpus.py makes them: busi, covid_ct, pneumonia. Rows: `classical` (a logistic
regression on co-occurrence features), `none` (the network from nothing), the presets, `light` (what `texture` once
was: a texture head of weight 2, no head of the CLS token), `head` (`light` without the matrices of the pixels), and
`cls` (`light` with a head of the CLS token of weight 4). Each fold pretrains on its own training part only, by
recipes/configs/laptop/. The chest X-rays are judged on their official split. With --pretrain_options and
--finetune_options as cross_validate.py has them, at any size: `image_size` and the other sizes of the network hold for
`none` too.

With `_all` there is one encoder for all corpora: fold k of BUSI pretrains on the training parts of fold k of BUSI and
of CT, and of the official split of the chest X-rays. Run these rows of `busi` first, in the same `output_dir`: fold k
of CT and seed k of the chest X-rays are fine-tuned from the encoder of fold k there.

--labelled_groups 25 50 100 runs the learning curve of the rows instead: fine-tuned on so many groups (patients, where
they are known) of each training part, with the encoders of the whole rows, which must be in `output_dir`, and with as
many updates.

Each row of a corpus is a run of cross_validate.py in `output_dir`, which goes on where it was interrupted, and lands in
the JSON file when it is finished: its settings, its command, its commit (`-dirty` with changes that are in none), and
every answer to a test image.
The tables are made of that file alone; `--baseline texture` holds all rows against that one, and --corpora, --rows and
--seeds show some. A row is shown with the seeds that the baseline has too, and held against the same ones. With
`--together_with classical` the answers of each other row are the mean of its probabilities and those of that row: what
an encoder adds.
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

from row_settings import (
    ALL,
    BASELINE,
    CLASSICAL,
    CONFIGS,
    CORPORA,
    EPOCHS_OF_ALL,
    FIRST,
    ROOT,
    ROWS,
    STEPS,
    asked,
    differences,
    key_of,
)
from row_tables import selected, short_table, tables

from commandline import ending_children
from images.splits import sha256_of_lines
from judging.summary import class_names_of
from output_folder import replaced_file


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
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, help="to be run; or of --tables, if not all")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="the same; one takes minutes to hours on two cores")
    several = ", ".join(f"{corpus} {' '.join(map(str, facts['seeds']))}" for corpus, facts in CORPORA.items())
    parser.add_argument("--seeds", nargs="+", type=int, help=f"if left out: {several}; of --tables, all")
    parser.add_argument("--labelled_groups", nargs="+", type=int, default=[None], help="the learning curve, instead")
    parser.add_argument("--pretrain_options", nargs="+", default=[], help="more options of pretrain.py, as NAME=VALUE")
    parser.add_argument("--finetune_options", nargs="+", default=[], help="more options of finetune.py, as NAME=VALUE")
    parser.add_argument("--jobs", type=int, default=1, help="folds at once")
    options = parser.parse_args(argv)
    if options.short and (options.together_with or options.as_frequent or options.baseline != BASELINE):
        parser.error("--short has no intervals or baseline: give it --tables alone")
    if options.tables:
        found = json.loads(options.tables.read_text())
        found = selected(found, options.corpora, options.rows, options.seeds)
        if not found:
            sys.exit(f"error: {options.tables} has no row of these --corpora, --rows and --seeds")
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
