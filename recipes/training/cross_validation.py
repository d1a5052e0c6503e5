"""Every fold of a corpus, trained and judged; and such runs compared."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Event, Lock, Thread
from typing import Any, TextIO

import numpy as np
import pandas as pd
import psutil
import torch
import yaml
from tqdm.auto import tqdm

from commandline import TOLD_TO_END, UsageError
from corpora.load import parquet_files
from images.splits import load_prepared, sha256_of_lines
from judging.summary import compare_all, draw_comparison, draw_curves, summarise
from judging.tables import (
    CALIBRATION,
    comparisons_markdown,
    folds_differ_said,
    nothing_learned,
    positive_class_said,
    positive_indices,
    summary_markdown,
)
from output_folder import check_output
from training.classical import DISTANCES, LEVELS, TILES, classify_folds
from training.fold_options import TEXTURE_FEATURES, CompareArguments, CrossValidationArguments
from training.fold_settings import by_name, keep_settings, refuse_options, settings_of, settings_that_differ
from training.resume import whole_checkpoints

try:
    import fcntl
except ImportError:  # Windows has no lock that a started process inherits
    fcntl = None

logger = logging.getLogger("cross_validate")

SECONDS_BETWEEN_LOOKS = 2  # at the log of a training
BAR = "{desc}: {percentage:3.0f}% {bar} {elapsed}{postfix}"
BAR_WITH_ESTIMATE = BAR.replace("{elapsed}", "{elapsed}, about {remaining} left")
# Before either of them, the start of the first training, in which nothing is learned, would be most of an estimate.
SHARE_TO_ESTIMATE, SECONDS_TO_ESTIMATE = 0.05, 600
RECIPES = Path(__file__).resolve().parents[1]


class Progress:
    """A bar over the trainings of all folds, which shows how far those are that run now; for several threads."""

    def __init__(self, num_folds: int, stages: int):
        self.bar = tqdm(total=num_folds * stages, desc=f"{num_folds} fold(s)", bar_format=BAR, miniters=0, smoothing=0)
        self.shares: dict[str, float] = {}
        self.lock = Lock()

    def tell(self, training: str, share: float) -> None:
        """Set how much of a training is done, 0 to 1. What is done when it is first told took none of this time."""
        with self.lock:
            if self.shares.get(training) == share:
                return  # of many looks at nothing new, a mean speed would be made
            if training not in self.shares and not self.bar.disable:  # by TQDM_DISABLE it has no beginning
                self.bar.initial += share
            self.shares[training] = share
            running = (f"{name} {done:.0%}" for name, done in self.shares.items() if done < 1)
            self.bar.set_postfix_str(", ".join(running), refresh=False)
            done = sum(self.shares.values())
            if not self.bar.disable and self._can_estimate(done - self.bar.initial):
                self.bar.bar_format = BAR_WITH_ESTIMATE
            self.bar.update(done - self.bar.n)

    def _can_estimate(self, done: float) -> bool:
        """Whether so much, done since the beginning, tells how long the rest will take."""
        enough = SHARE_TO_ESTIMATE * (self.bar.total - self.bar.initial)
        return done > 0 and (done >= enough or self.bar.format_dict["elapsed"] >= SECONDS_TO_ESTIMATE)


def share_done(folder: Path) -> float:
    """How much of the training in a folder is done, 0 to 1, by its last log."""
    settings, log = folder / "config.yaml", folder / "metrics.jsonl"
    try:
        training = yaml.safe_load(settings.read_text())["training"]
        lines = log.read_text().splitlines()
    except (OSError, TypeError, KeyError, yaml.YAMLError):
        return 0.0  # they are not there yet, or being written
    for line in reversed(lines):
        try:
            last = json.loads(line)
        except json.JSONDecodeError:
            continue  # it is being written
        if training["max_steps"] > 0:
            return min(1.0, last["step"] / training["max_steps"])
        return min(1.0, last.get("epoch", 0.0) / training["num_train_epochs"])
    return 0.0


def run_fold(args: CrossValidationArguments, fold: str, environment: dict[str, str], progress: Progress) -> Path:
    """Pretrain if asked to, fine-tune and predict; goes on where an earlier call was interrupted.

    Returns:
        The folder of the fine-tuning.

    Raises:
        UsageError: a step failed; with its last words, and the log that holds the rest.
    """
    folder = Path(args.output_dir) / f"fold_{fold}"
    encoder = args.checkpoint and args.checkpoint.replace("{fold}", fold)
    if args.pretrain_config is not None:
        given = ["--config", args.pretrain_config, *_of_fold(args, fold), *_options(args.pretrain_options)]
        _run("pretrain", folder / "pretrain", given, environment, progress)
        encoder = str(folder / "pretrain" / "export")
    given = _finetune_options(args, fold) + (["--model_name_or_path", encoder] if encoder else [])
    _run("finetune", folder / "finetune", given, environment, progress)
    return folder / "finetune"


def _of_fold(args: CrossValidationArguments, fold: str) -> list[str]:
    splits = ["--splits_file", args.splits_file] if args.splits_file else []
    return ["--corpus", args.corpus, "--fold", fold, *splits]


def _finetune_options(args: CrossValidationArguments, fold: str) -> list[str]:
    config = ["--config", args.finetune_config] if args.finetune_config else []
    positive = ["--positive_classes", *args.positive_classes] if args.positive_classes else []
    return [*config, *_of_fold(args, fold), *_options(args.finetune_options), *positive]


def _rehearse_fine_tuning(args: CrossValidationArguments, fold: str, environment: dict[str, str]) -> None:
    """See that the fine-tuning can begin, from random weights, before a pretraining is spent on it.

    Raises:
        UsageError: what finetune.py says.
    """
    folder = Path(args.output_dir) / f"fold_{fold}"
    begun = whole_checkpoints(folder / "pretrain") or whole_checkpoints(folder / "finetune")
    if args.pretrain_config is None or begun or (folder / "pretrain" / "all_results.json").exists():
        return
    command = [sys.executable, str(RECIPES / "finetune.py"), *_finetune_options(args, fold), *_sizes_pretrained(args)]
    command += ["--output_dir", str(folder / "finetune"), "--dry_run", "true", "--push_to_hub", "false"]
    logger.info("checking the settings of the fine-tuning")
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("error: ")] or [done.stderr[-1000:]]
        raise UsageError(f"finetune.py would fail after the pretraining: {said[-1].removeprefix('error: ')}")


def _sizes_pretrained(args: CrossValidationArguments) -> list[str]:
    """The sizes that the encoder will have, which decide what resizing fits."""
    content = yaml.safe_load(Path(args.pretrain_config).read_text(encoding="utf-8")) or {}
    given = dict(content) | dict(entry.split("=", 1) for entry in args.pretrain_options or ())
    sizes = {name: str(given[name]) for name in ("image_size", "patch_size") if name in given}
    return [text for name, value in sizes.items() if value.isdecimal() for text in (f"--{name}", value)]


def _options(entries: list[str] | None) -> list[str]:
    """Entries NAME=VALUE as a command line."""
    return [
        text
        for name, given in by_name(entries).items()
        # After "=" even a value that begins with a dash is one.
        for text in ([f"--{name}={given[0]}"] if len(given) == 1 else [f"--{name}", *given])
    ]


def _run(recipe: str, folder: Path, options: list[str], environment: dict[str, str], progress: Progress) -> None:
    fold, step = (
        folder.parent.name.removeprefix("fold_"),
        {"pretrain": "pretraining", "finetune": "fine-tuning"}[recipe],
    )
    if _finished(recipe, folder):
        logger.info("%s is finished", folder)
        progress.tell(f"fold {fold} {step}", 1.0)
        return
    folder.mkdir(parents=True, exist_ok=True)
    going_on = ["--resume_from_checkpoint", "last"] if whole_checkpoints(folder) else ["--overwrite_output_dir", "true"]
    command = [sys.executable, str(RECIPES / f"{recipe}.py"), *options, "--output_dir", str(folder), *going_on]
    command += _precision_of_others(recipe, folder.parent.parent, options)
    command += ["--push_to_hub", "false"]  # every fold would take the place of the one before
    log = folder / "log.txt"
    with log.open("a") as lines:
        _lock(lines, recipe)
        logger.info("fold %s: %s, see %s", fold, step, log)
        progress.tell(f"fold {fold} {step}", min(share_done(folder), 0.99) if "last" in going_on else 0.0)
        lines.write(f"$ {' '.join(command)}\n")
        lines.flush()
        if TOLD_TO_END.is_set():
            raise UsageError(f"told to end before {recipe}.py began in {folder}")
        with _meanwhile(lambda: progress.tell(f"fold {fold} {step}", min(share_done(folder), 0.99))):
            code = subprocess.run(command, stdout=lines, stderr=subprocess.STDOUT, env=environment).returncode
    if TOLD_TO_END.is_set():  # a recipe that is told to end may call that a success
        raise UsageError(f"told to end while {recipe}.py ran in {folder}")
    if code:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1]
        raise UsageError(f"{recipe}.py failed in {folder} (its log is {log}): {last.removeprefix('error: ')}")
    progress.tell(f"fold {fold} {step}", 1.0)


def _finished(recipe: str, folder: Path) -> bool:
    done = (folder / "all_results.json").exists()
    return done and (recipe == "finetune" or (folder / "export" / "config.json").exists())


def _lock(log: TextIO, recipe: str) -> None:
    """Lock the log of a training. The recipe inherits that with its output: the lock holds while the recipe runs."""
    try:
        if fcntl is not None:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pids = ", ".join(map(str, _writers(Path(log.name)))) or "unknown"
        raise UsageError(
            f"{recipe}.py is still running in {Path(log.name).parent} (process {pids}), started by another call: wait "
            "for it, or end it"
        ) from None


def _writers(file: Path) -> list[int]:
    """Other processes that have a file open to write, where the system tells, without those that they started."""
    found = {}
    for process in psutil.process_iter(["pid", "ppid", "open_files"]):
        for opened in process.info["open_files"] or ():
            if opened.path == str(file.resolve()) and getattr(opened, "mode", "a") != "r":
                found[process.info["pid"]] = process.info["ppid"]
    found.pop(os.getpid(), None)
    return sorted(pid for pid, parent in found.items() if parent not in found)


def _refuse_running(output: Path, folds: list[str]) -> None:
    """See that no training of an earlier call, which may have been killed without it, still runs in these folds."""
    for folder in (output / f"fold_{fold}" / recipe for fold in folds for recipe in ("pretrain", "finetune")):
        if (folder / "log.txt").exists() and not _finished(folder.name, folder):
            with (folder / "log.txt").open("a") as lines:
                _lock(lines, folder.name)


def _precision_of_others(recipe: str, output: Path, options: list[str]) -> list[str]:
    """That of the trainings which began before, maybe on another machine, unless an option says it."""
    if any(text.startswith(("--bf16", "--fp16")) for text in options):
        return []
    for file in sorted(output.glob(f"fold_*/{recipe}/config.yaml")):
        found = (yaml.safe_load(file.read_text()).get("derived") or {}).get("mixed_precision")
        if found in ("no", "bf16", "fp16"):
            return ["--bf16=false"] if found == "no" else [f"--{found}=true"]
    return []


@contextmanager
def _meanwhile(look: Callable[[], None]) -> Iterator[None]:
    """Call something every few seconds as long as the block runs."""
    ended = Event()

    def watch() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            look()

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def cross_validate(args: CrossValidationArguments) -> Path:
    """Run all folds and sum up; returns the output folder."""
    output = check_output(args.output_dir)
    args.output_dir = str(output)  # without ~
    for name in ("corpus", "splits_file", "pretrain_config", "checkpoint", "finetune_config"):
        given = getattr(args, name)
        setattr(args, name, given and os.path.expanduser(given))
    splits_file = Path(args.splits_file or Path(args.corpus) / "splits.json")
    # Checks the corpus and the names before hours of training.
    folds = args.folds
    parts, class_names = load_prepared(args.corpus, args.splits_file, folds[0] if folds else "0")
    if class_names is None:
        raise UsageError(f"corpus {args.corpus!r} has no labels to learn")
    numbered = [str(fold) for fold in range(json.loads(splits_file.read_text())["num_folds"])]
    folds = folds or numbered
    if folds != ["official"] and (len(set(folds)) != len(folds) or not set(folds) <= set(numbered)):
        raise UsageError(
            f"folds must be different numbers from 0 to {numbered[-1]}, or official alone, got {' '.join(folds)}"
        )
    settings = settings_of(args, folds)
    if args.positive_classes is None:
        named = (settings.get("finetune_config_content") or {}).get("positive_classes")
        args.positive_classes = [named] if isinstance(named, str) else named
    positive_indices(class_names, args.positive_classes)
    for line in positive_class_said(class_names, args.positive_classes):
        logger.info(line)
    settings["positive_classes"] = args.positive_classes
    labelled = (zip(part["file_name"][:], part["label"][:], strict=True) for part in parts.values())
    settings["labels_sha256"] = sha256_of_lines(sorted(f"{name} {label}" for part in labelled for name, label in part))
    settings["splits_sha256"] = hashlib.sha256(splits_file.read_bytes()).hexdigest()
    if args.mode == TEXTURE_FEATURES:
        settings["texture_features"] = {"levels": LEVELS, "distances": list(DISTANCES), "tiles": TILES}
        keep_settings(settings, output)
        how = {"class_weights": args.class_weights, "labelled_groups": args.labelled_groups}
        done = classify_folds(args.corpus, args.splits_file, folds, output, **how, positive=args.positive_classes)
    else:
        done = _train_folds(args, folds, settings, output)
    table = pd.concat([pd.read_parquet(folder / "predictions.parquet") for folder in done], ignore_index=True)
    twice = table["file_name"].duplicated()
    if twice.any():
        raise UsageError(f"{table['file_name'][twice].iloc[0]!r} was predicted in two folds: the splits overlap")
    table.to_parquet(output / "predictions.parquet")
    files = [folder / "validation_predictions.parquet" for folder in done]
    validation = [pd.read_parquet(file) for file in files if file.exists()]
    summary = summarise(
        table,
        args.positive_classes,
        args.seed,
        validation=pd.concat(validation) if validation else None,
        commonest=_commonest(args.corpus, splits_file, folds),
    )
    summary["calibration"] = _calibration(done, folds)
    summary["folds_differ"] = _differences(args, done, folds)
    for fold, answers in nothing_learned(summary).items():
        logger.warning("fold %s %s: it has learned nothing", fold, answers)
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    without = ", texture features without a network" if args.mode == TEXTURE_FEATURES else ""
    title = f"Cross-validation of {Path(args.corpus).resolve().name}{without}"
    (output / "summary.md").write_text(summary_markdown(summary, title))
    draw_curves(table, output / "curves.png", args.positive_classes)
    return output


def _train_folds(
    args: CrossValidationArguments, folds: list[str], settings: dict[str, Any], output: Path
) -> list[Path]:
    """Pretrain and fine-tune every fold; returns the folders of the fine-tunings."""
    devices: Queue[str] = Queue()
    num_gpus = torch.cuda.device_count()
    # Those that this process may use, where it was given only some.
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(device) for device in range(num_gpus)]
    for job in range(args.jobs):
        devices.put(names[job % max(num_gpus, 1)] if num_gpus else "")

    refuse_options(args)
    _refuse_running(output, folds)
    first = {**os.environ, **({"CUDA_VISIBLE_DEVICES": names[0]} if num_gpus else {})}
    _rehearse_fine_tuning(args, folds[0], first)
    keep_settings(settings, output)
    failed = Event()

    def one(fold: str) -> Path | None:
        if failed.is_set():  # what failed in a fold before would fail in this one: the error of that is raised below
            return None
        device = devices.get()
        try:
            visible = {"CUDA_VISIBLE_DEVICES": device} if num_gpus else {}
            return run_fold(args, fold, {**os.environ, **visible}, progress)
        except BaseException:
            failed.set()
            raise
        finally:
            devices.put(device)

    progress = Progress(len(folds), stages=1 if args.pretrain_config is None else 2)
    with progress.bar, ThreadPoolExecutor(args.jobs) as pool:
        return list(pool.map(one, folds))


def _calibration(done: list[Path], folds: list[str]) -> dict[str, dict[str, float]]:
    """What each fold says of its probabilities; folds that an earlier version ran say nothing, and are left out."""
    results = [json.loads((folder / "all_results.json").read_text()) for folder in done]
    told = {
        fold: {name: found[name] for name in CALIBRATION if name in found}
        for fold, found in zip(folds, results, strict=True)
    }
    return {fold: found for fold, found in told.items() if found}


def _differences(args: CrossValidationArguments, done: list[Path], folds: list[str]) -> dict[str, dict[str, str]]:
    """Settings of either training that are not the same in all folds, by fold; said in the log."""
    encoders = [args.checkpoint.replace("{fold}", fold) for fold in folds] if args.checkpoint else None
    pretrained = [Path(path) for path in encoders] if encoders else [folder.parent / "pretrain" for folder in done]
    differ = {}
    for step, folders in (("pretrain", pretrained), ("finetune", done)):
        found = settings_that_differ(dict(zip(folds, folders, strict=True)), step)
        differ |= {f"{step}: {name}": values for name, values in found.items()}
    for line in folds_differ_said(differ):
        logger.warning(line)
    return differ


def _commonest(corpus: str, splits_file: Path, folds: list[str]) -> dict[str, int]:
    """The commonest label in the training part of each fold."""
    files = [file for of_split in parquet_files(Path(corpus).expanduser()).values() for file in of_split]
    table = pd.concat([pd.read_parquet(file, columns=["file_name", "label"]) for file in files])
    label = table.set_index("file_name")["label"]
    splits = json.loads(splits_file.read_text())
    parts = {fold: splits["official"] if fold == "official" else splits["folds"][int(fold)] for fold in folds}
    return {fold: int(np.bincount(label[part["train"]].astype(int)).argmax()) for fold, part in parts.items()}


def compare_runs(runs: Sequence[str], args: CompareArguments) -> Path:
    """Paired tests of runs against one of them; returns the output folder."""
    output = check_output(args.output_dir or ".")
    names = {os.path.normpath(run): run for run in runs}
    if len(names) < len(runs):
        raise UsageError(f"compare got a run twice: {' '.join(runs)}")
    baseline = names.get(os.path.normpath(args.baseline or runs[-1]))
    if baseline is None:
        raise UsageError(f"baseline must be one of {', '.join(runs)}, got {args.baseline!r}")
    tables, collapsed, summaries = {}, {}, {}
    for run in runs:
        file = Path(run) / "predictions.parquet"
        if not file.is_file():
            raise UsageError(f"{run} holds no predictions.parquet: it is not a finished run")
        tables[run] = pd.read_parquet(file)
        settings, summary = Path(run) / "config.yaml", Path(run) / "summary.json"
        collapsed[run] = yaml.safe_load(settings.read_text()).get("positive_classes") if settings.is_file() else None
        summaries[run] = json.loads(summary.read_text()) if summary.is_file() else {}
    # A run without any is judged by those of the others.
    asked = [classes for classes in collapsed.values() if classes]
    if args.positive_classes is None and any(classes != asked[0] for classes in asked):
        other = next(classes for classes in asked if classes != asked[0])
        raise UsageError(f"the runs have the positive_classes {asked[0]} and {other}: give positive_classes")
    positive = args.positive_classes or next(iter(asked), None)
    comparison = compare_all(tables, baseline, positive, args.seed)
    for run, summary in summaries.items():
        comparison["runs"][run]["validation_only_answers"] = summary.get("validation_only_answers") or {}
        comparison["runs"][run]["folds_differ"] = summary.get("folds_differ") or {}
    comparison["always_commonest"] = summaries[baseline].get("always_commonest")
    output.mkdir(parents=True, exist_ok=True)
    (output / "comparison.json").write_text(json.dumps(comparison, indent=1) + "\n")
    (output / "comparison.md").write_text(comparisons_markdown(comparison))
    draw_comparison(tables, output / "comparison.png", positive)
    return output
