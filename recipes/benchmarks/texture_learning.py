"""Does pretraining learn texture? Trains presets at equal budget, on generated speckle or prepared corpora.

    python recipes/benchmarks/texture_learning.py --presets mse texture --json texture_learning.json
    python recipes/prepare_corpus.py --corpus busi --data_dir DOWNLOAD --output_dir data/busi
    python recipes/benchmarks/texture_learning.py --corpus data/busi data/covid_ct --num_test_images 0.25 \\
        --labels 50 500 all --presets mse texture "texture --glcm_weight 0"

About 5 minutes per preset and seed on two CPU cores. The classes of the speckle differ in texture and nothing else.
Every run is one of pretrain.py with the sizes of recipes/configs/quickstart.yaml; an option that is not listed by
--help goes to it as it is (`--glcm_weight 5000`), and one behind a preset, in quotes, for that row alone. Several
corpora are pretrained on together and probed one by one.

Columns: accuracy of a linear probe of the frozen encoder (mean patch token of whole images), fitted to a few labelled
training images and tested on other images (speckle: of the test split, the same for all seeds; another corpus: images
held out of the training, whole groups, drawn by the seed; one without groups is refused: copies of training images
would be tested on); then, on masked patches of these test images with fixed masks: the L1 distance of the hard,
normalised 16-level co-occurrence matrices of reconstruction and original (0 to 2), the mean absolute horizontal
difference of the reconstruction over that of the original (1 best, less is blur, more is noise), and the mean squared
error in units of `pixel_values`. `none` is the model before training; `classical` a probe of the co-occurrence matrices
of the same pixels, without any encoder: of the whole image, of a grid of tiles, and of that in as many numbers
(principal components) as a token of the encoder has.

With --labels all, also: probes of all training images by what they read (mean token, CLS, one learned query over the
patch tokens, and the layer half way), and how far each row is above `mse`, in points with 95 % intervals: both the
seeds (trainings and splits) and the groups of test images are drawn with replacement.

With --json, results are written after each run and runs found there with equal settings are not repeated: interrupt it
and start it again as you like. With --models, what was trained is kept and not trained again: by `--train_only`, which
probes nothing, trainings can be made on a GPU that is there for minutes, and read on another machine.
"""

import argparse
import hashlib
import json
import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from tqdm.auto import tqdm

# The recipes import each other by bare names, and Python looks beside this file only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from learning_tables import ALL, BASELINE, CLASSICAL, COLUMNS, UNTRAINED, difference_table, readout_table, table
from readouts import TOKENS, attended, classical_features, features_of_encoder, narrowed, probe_of_all
from side_by_side import machine

from commandline import UsageError, parse_args, said
from corpora.load import load_corpus
from corpora.speckle import CLASS_SETS
from hub.export import stock_encoder
from images.splits import split_held_out
from modeling_glcm_mae import GLCMMAEForPreTraining, texture_fidelity
from output_folder import replaced_file
from training.arguments import PRETRAINING, DataArguments, ModelArguments, PretrainingArguments
from training.feeding import PretrainDataset, collate
from training.frozen import probe_accuracy
from training.models import build_model
from training.options import PretrainingOptions
from training.pretraining import Pretraining

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
SPECKLE = "speckle"
TEST_SEED = 0  # all runs are tested on the same images; the splits share no random stream, whatever the seed
# Nothing but the training: what a run shows on its way costs time and changes no weight.
QUIET = {
    "held_out": 0,
    "probe_labels": 0,
    "num_pictures": 0,
    "save_strategy": "no",
    "logging_steps": 50,
}
# Settings that say where a run reads, writes or what it shows, not what is trained.
NOT_SETTINGS = {
    *("corpus", "output_dir", "overwrite_output_dir", "dry_run", "report_to", "dataloader_num_workers", "verify_data"),
    *QUIET,
}

# Labelled images and test images of each corpus, by its name.
Divided = dict[str, tuple[datasets.Dataset, datasets.Dataset]]


def _number_of_labels(text: str) -> int | str:
    return text if text == ALL else int(text)


def parse_options(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The options of this script, and those that go to pretrain.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--presets", nargs="+", default=["mse", "texture"], help='presets to compare, or "PRESET --option value"'
    )
    parser.add_argument("--corpus", nargs="+", default=[SPECKLE], help="folders made by prepare_corpus.py, with groups")
    parser.add_argument("--class_set", choices=sorted(CLASS_SETS), default="easy", help="classes of the speckle corpus")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of images, weights and masks")
    parser.add_argument("--epochs", type=float, default=30)
    parser.add_argument("--num_images", type=int, default=2048, help="images to pretrain on; of a corpus, all others")
    parser.add_argument("--num_test_images", type=float, default=1000, help="of each corpus; a share, if below 1")
    parser.add_argument(
        "--labels", nargs="+", type=_number_of_labels, default=[50, 500], help='labelled images of the probe, or "all"'
    )
    parser.add_argument("--config", default=CONFIG, help="sizes and rates")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    parser.add_argument("--json", type=Path, help="results so far; read first, if it exists")
    parser.add_argument("--models", type=Path, help="folder that keeps what was trained; read first, if it exists")
    parser.add_argument("--train_only", action="store_true", help="fill --models, and stop")
    return parser.parse_known_args(argv)


def arguments_of(
    row: str, seed: int, options: argparse.Namespace, extra: list[str], corpus: str, output_dir: str
) -> tuple[ModelArguments, DataArguments, PretrainingArguments]:
    """The command line of one run of pretrain.py, parsed as pretrain.py does."""
    preset, *own = shlex.split(row)
    given = {
        "config": options.config,
        "preset": BASELINE if preset in (UNTRAINED, CLASSICAL) else preset,
        "corpus": corpus,
        "num_train_epochs": options.epochs,
        "seed": seed,
        "output_dir": output_dir,
        "eval_strategy": "no",
        **QUIET,
    }
    if corpus == SPECKLE:
        given |= {"speckle_classes": options.class_set, "speckle_images": options.num_images}
    argv = [f"--{name}={value}" for name, value in given.items()]
    return parse_args(PRETRAINING, [*argv, *extra, *own])


def settings_of(
    row: str,
    options: argparse.Namespace,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: PretrainingArguments,
) -> dict[str, Any]:
    """All that decides what a run measures. Two runs of equal settings give equal results."""
    training = {name: getattr(args, name) for name in (*(found.name for found in fields(PretrainingOptions)), "seed")}
    chosen = {name: value for name, value in (training | vars(data_args)).items() if name not in NOT_SETTINGS}
    settings = {
        "pretraining": row,
        "model": build_model(model_args, data_args).config.to_dict(),
        "training": chosen,
        "corpora": options.corpus,
        "classes": [asdict(speckle_class) for speckle_class in CLASS_SETS[options.class_set]]
        if options.corpus == [SPECKLE]
        else None,
        "num_test_images": options.num_test_images,
        "labels": options.labels,
    }
    return json.loads(json.dumps(settings, default=str))


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what is left out, so that a run of before an option was made is the run without it."""
    training = {name: value for name, value in settings["training"].items() if value is not None}
    if not training.get("bf16"):
        training.pop("bf16", None)  # once it was not among the options of a training
    return settings | {"training": training}


def divide(options: argparse.Namespace, seed: int) -> Divided:
    """Hold images of each prepared corpus out, whole groups; nothing for speckle, which is generated."""
    parts: Divided = {}
    if options.corpus == [SPECKLE]:
        if options.num_test_images < 1:
            raise UsageError(f"num_test_images must be a number of images for speckle, got {options.num_test_images}")
        return parts
    for corpus in options.corpus:
        if corpus == SPECKLE:
            raise UsageError("speckle cannot be pretrained on together with other corpora")
        images, name = load_corpus(corpus), Path(corpus).name
        if name in parts:
            raise UsageError(f"two corpora are called {name}: rename the folder of one")
        if "label" not in images.column_names:
            raise UsageError(f"corpus {corpus!r} needs labels for the probe")
        if "group" not in images.column_names:
            raise UsageError(
                f"corpus {corpus!r} has no groups, so copies of training images would be tested on: give the folder "
                "that prepare_corpus.py made of it"
            )
        train, test = split_held_out(images, options.num_test_images, seed)
        if test is None:
            raise UsageError("num_test_images must be above 0")
        parts[name] = (train, test)
    return parts


def write_union(parts: Divided, folder: Path) -> str:
    """The training images of all corpora as one folder for pretrain.py, without their labels."""
    tables = []
    for name, (train, _) in parts.items():
        columns = {"file_name": [f"{name}/{file}" for file in train["file_name"]]}
        unknown = [None] * len(train)
        columns["white_level"] = train["white_level"] if "white_level" in train.column_names else unknown
        table = train.select_columns("image")
        for column, feature in (("file_name", datasets.Value("string")), ("white_level", datasets.Value("float64"))):
            table = table.add_column(column, columns[column], feature=feature)
        tables.append(table)
    datasets.concatenate_datasets(tables).to_parquet(folder / "train.parquet")
    return str(folder)


def file_of_model(settings: dict[str, Any], extra: list[str], parts: Divided, options: argparse.Namespace) -> Path:
    """Where the weights of a run are kept: named after all that decides them, by the same command on any machine."""
    deciding = settings | {
        "extra": extra,
        "corpora": {name: sorted(train["sha256"][:]) for name, (train, _) in parts.items()},
        # Not whether the machine computes in bfloat16; an option that says so is among the extra ones.
        "training": {name: value for name, value in settings["training"].items() if name != "bf16"},
        "labels": None,
    }
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
    return options.models / f"{settings['pretraining'].split()[0]}_{settings['training']['seed']}_{digest[:16]}.pt"


def train(run: Pretraining, kept: Path | None) -> tuple[float, dict[str, Any]]:
    """Train, or take the weights that are kept. Returns the minutes that the training took, and the machine."""
    model = run.trainer.accelerator.unwrap_model(run.trainer.model)
    if kept is not None and kept.exists():
        trained = torch.load(kept, map_location="cpu", weights_only=True)
        model.load_state_dict(trained["weights"])
        return trained["minutes"], trained["machine"]
    started = time.monotonic()
    run.trainer.train()
    minutes, trained_on = (time.monotonic() - started) / 60, machine(run.args.device)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(kept) as new:
            torch.save({"minutes": minutes, "machine": trained_on, "weights": model.state_dict()}, new)
    return minutes, trained_on


def measure(
    row: str, run: Pretraining, parts: Divided, labels: Sequence[int | str], kept: Path | None = None
) -> dict[str, Any]:
    """Train one run, then probe its encoder and judge its reconstructions.

    Returns:
        `minutes` of training, the machine that it was `trained_on`, and `corpora`: name -> `probe`, number of labels ->
        what is read -> accuracy, mean and standard deviation over draws of the labelled images; with all labels,
        `right`: what is read -> a 0 or 1 for each test image, and the numbers of their `groups`; for encoders also
        `glcm_l1`, `mse`, the same of two predictors that learned nothing (`_patch_mean`, `_dataset_mean`), and
        `gradient_energy_ratio`.
    """
    minutes, trained_on = (0, None) if row in (UNTRAINED, CLASSICAL) else train(run, kept)
    model = run.trainer.accelerator.unwrap_model(run.trainer.model)
    encoder = stock_encoder(model).to(run.args.device)
    settings = {
        "patch_size": model.config.patch_size,
        "num_channels": model.config.num_channels,
        "white_level": run.data_args.white_level,
        "train": False,
    }
    found = {}
    for name, division in parts.items():
        labelled, test = (PretrainDataset(images, run.data.transform, **settings) for images in division)
        if row == CLASSICAL:
            features, test_features = (classical_features(model, dataset) for dataset in (labelled, test))
            both = narrowed(features["tiles"], test_features["tiles"], model.config.hidden_size)
            features["narrow tiles"], test_features["narrow tiles"] = both
            # The narrowed ones with all labels only: the probe standardises small components too, over which few labels
            # tell nothing.
            found[name] = _probes(["image", "tiles"], features, test_features, division, labels)
            continue
        features, test_features = (features_of_encoder(encoder, dataset) for dataset in (labelled, test))
        judged = run.trainer.evaluate(test)
        found[name] = {
            **_probes(["mean"], features, test_features, division, labels),
            **{
                column.removeprefix("eval_"): value
                for column, value in judged.items()
                if column.removeprefix("eval_").startswith(tuple(COLUMNS))
            },
            "gradient_energy_ratio": _gradient_energy_ratio(model, test, run.args),
        }
    return {"minutes": minutes, "trained_on": trained_on, "corpora": found}


def _probes(
    few: Sequence[str],
    features: dict[str, np.ndarray],
    test_features: dict[str, np.ndarray],
    division: tuple[datasets.Dataset, datasets.Dataset],
    labels: Sequence[int | str],
) -> dict[str, Any]:
    """Probes of few labels for the features named, of all labels for each."""
    classes, test_classes = (np.array(images["label"]) for images in division)
    probe = {}
    for count in labels:
        if count == ALL:
            continue
        probe[str(count)] = {
            name: dict(
                zip(
                    ("accuracy", "std"),
                    probe_accuracy(features[name], classes, test_features[name], test_classes, num_labels=int(count)),
                    strict=True,
                )
            )
            for name in few
        }
    if ALL not in labels:
        return {"probe": probe}
    groups, test_groups = (
        [str(group) if group is not None else f"image {i}" for i, group in enumerate(images["group"])]
        if "group" in images.column_names
        else [str(i) for i in range(len(images))]
        for images in division
    )
    read = {name: (features[name], test_features[name]) for name in features if name != TOKENS}
    if TOKENS in features:
        read["attentive"] = attended(features[TOKENS], classes, test_features[TOKENS])
    right = {name: probe_of_all(x, classes, groups, test, test_classes) for name, (x, test) in read.items()}
    return {
        "probe": probe,
        "right": {name: "".join(str(int(answer)) for answer in answers) for name, answers in right.items()},
        "groups": " ".join(str(number) for number in np.unique(test_groups, return_inverse=True)[1]),
    }


def _speckle_parts(run: Pretraining, options: argparse.Namespace) -> Divided:
    test = load_corpus(
        SPECKLE,
        split="test",
        speckle_images=int(options.num_test_images),
        image_size=max(run.data.transform.image_size),
        seed=TEST_SEED,
        class_set=options.class_set,
    )
    return {SPECKLE: (run.data.train.dataset, test)}


@torch.no_grad()
def _gradient_energy_ratio(model: GLCMMAEForPreTraining, test: PretrainDataset, args: PretrainingArguments) -> float:
    """Of all masked patches together: one image alone may be flat."""
    rebuilt, original = [], []
    for batch in torch.utils.data.DataLoader(test, args.per_device_eval_batch_size, collate_fn=collate):
        pixel_values = batch["pixel_values"].to(args.device)
        outputs = model(pixel_values, noise=batch["noise"].to(args.device))
        target, masked = model.image_patches(pixel_values), outputs.mask.bool()
        rebuilt.append(model.grey(model.pixels_of_logits(outputs.logits.float(), target))[masked].cpu())
        original.append(model.grey(target)[masked].cpu())
    found = texture_fidelity(torch.cat(rebuilt), torch.cat(original), value_range=model.config.glcm_value_range)
    return float(found["gradient_energy_ratio"])


def _write(file: Path, records: list[dict[str, Any]]) -> None:
    with replaced_file(file) as new:
        new.write_text(json.dumps({"runs": records}, indent=2) + "\n")


def run_all(options: argparse.Namespace, extra: list[str], scratch: Path) -> list[dict[str, Any]]:
    """Every row for every seed, or what the JSON file knows of it."""
    # Runs of other settings stay in the file and out of the table.
    stored = json.loads(options.json.read_text())["runs"] if options.json and options.json.exists() else []
    rows = list(dict.fromkeys([UNTRAINED, CLASSICAL, *options.presets]))
    union = SPECKLE if options.corpus == [SPECKLE] else str(scratch)
    # Before the first run, so that a mistake in the last one does not cost an hour.
    plan = [
        (row, seed, settings_of(row, options, *arguments_of(row, seed, options, extra, union, "unused")))
        for seed in options.seeds
        for row in rows
    ]
    divided = {seed: divide(options, seed) for seed in options.seeds}
    records, written = [], None
    bar = tqdm(plan, unit=" runs", smoothing=0)
    for row, seed, wanted in bar:
        bar.set_description(f"{row}, seed {seed}")
        record = next((record for record in stored if _given(record["settings"]) == _given(wanted)), None)
        if record is None:
            parts = divided[seed]
            kept = file_of_model(wanted, extra, parts, options) if options.models else None
            if options.train_only and (row in (UNTRAINED, CLASSICAL) or kept.exists()):
                continue
            if parts and written != seed:
                write_union(parts, scratch)
                written = seed
            with tempfile.TemporaryDirectory() as folder:
                run = Pretraining(*arguments_of(row, seed, options, extra, union, folder))
                if options.train_only:
                    train(run, kept)
                    continue
                results = measure(row, run, parts or _speckle_parts(run, options), options.labels, kept)
            record = {"settings": wanted, "results": results, "machine": machine(run.args.device)}
            stored.append(record)
            if options.json:
                _write(options.json, stored)
        records.append(record)
    return records


def main(argv: Sequence[str] | None = None) -> None:
    options, extra = parse_options(argv)
    if options.train_only and options.models is None:
        sys.exit("error: train_only needs --models FOLDER")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            records = run_all(options, extra, Path(scratch))
        except (ValueError, OSError, StrictDataclassError) as error:
            sys.exit(f"error: {said(error)}")
    if options.train_only:
        return
    if options.corpus == [SPECKLE]:
        images, at_most = f"speckle {options.class_set}, {options.num_images} images", ""
    else:
        images, at_most = " and ".join(options.corpus), "at most "  # whole groups
    tested = f"{options.num_test_images:g}" if options.num_test_images >= 1 else f"{options.num_test_images:.0%} of the"
    print(
        f"{images}, {options.epochs:g} epochs; tested on {at_most}{tested} other images; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    for corpus in records[0]["results"]["corpora"]:
        print(f"\n{corpus}\n\n{table(records, corpus, options.labels)}")
        if ALL in options.labels:
            print(f"\n{readout_table(records, corpus)}")
    if ALL in options.labels and BASELINE in options.presets and len(set(options.presets)) > 1:
        print(f"\n{difference_table(records)}")


if __name__ == "__main__":
    main()
