"""Does pretraining learn texture? Trains presets at equal budget, on generated speckle or any corpus.

    python recipes/benchmarks/texture_learning.py --presets mse texture --json texture_learning.json
    python recipes/prepare_corpus.py --corpus busi --data_dir DOWNLOAD --output_dir data/busi
    python recipes/benchmarks/texture_learning.py --corpus data/busi --num_test_images 200

About 5 minutes per preset and seed on two CPU cores. The classes of the speckle differ in texture and nothing else.
Every run is one of pretrain.py with the sizes of recipes/configs/quickstart.yaml; an option that is not listed by
--help goes to it as it is (`--glcm_weight 5000`).

Columns: accuracy of a linear probe of the frozen encoder (mean patch token of whole images), fitted to a few labelled
training images and tested on other images (speckle: of the test split, the same for all seeds; another corpus: images
held out of the training, whole groups, drawn by the seed; one without groups is refused: copies of training images
would be tested on); then, on masked patches of these test images with fixed masks: the L1 distance of the hard,
normalised 16-level co-occurrence matrices of reconstruction and original (0 to 2), the mean absolute horizontal
difference of the reconstruction over that of the original (1 best, less is blur, more is noise), and the mean squared
error in units of `pixel_values`. `none` is the model before training.

With --json, results are written after each run and runs found there with equal settings are not repeated: interrupt it
and start it again as you like.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from tqdm.auto import tqdm

# The recipes import each other by bare names, and Python looks beside this file only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from side_by_side import machine, markdown_table

from commandline import UsageError, parse_args
from corpora.load import load_corpus
from corpora.speckle import CLASS_SETS
from hub.export import stock_encoder
from modeling_glcm_mae import GLCMMAEForPreTraining, texture_fidelity
from output_folder import replaced_file
from training.arguments import DataArguments, ModelArguments, PretrainingArguments
from training.feeding import PretrainDataset, collate
from training.frozen import encoder_features, probe_accuracy
from training.models import build_model
from training.pretraining import Pretraining

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
UNTRAINED = "none"
COLUMNS = {"glcm_l1": "GLCM L1", "gradient_energy_ratio": "gradient energy", "mse": "MSE"}
TEST_SEED = 0  # all runs are tested on the same images; the splits share no random stream, whatever the seed
# Nothing but the training: what a run shows on its way costs time and changes no weight.
QUIET = {
    "held_out": 0,
    "probe_labels": 0,
    "num_pictures": 0,
    "save_strategy": "no",
    "logging_steps": 50,
}
# Settings that say where a run writes or what it shows, not what is trained.
NOT_SETTINGS = {"output_dir", "overwrite_output_dir", "report_to", "dataloader_num_workers", *QUIET}


def parse_options(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The options of this script, and those that go to pretrain.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--presets", nargs="+", default=["mse", "texture"], help="presets to compare")
    parser.add_argument("--corpus", default="speckle", help="as for pretrain.py; with groups, as prepared")
    parser.add_argument("--class_set", choices=sorted(CLASS_SETS), default="easy", help="classes of the speckle corpus")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of images, weights and masks")
    parser.add_argument("--epochs", type=float, default=30)
    parser.add_argument("--num_images", type=int, default=2048, help="images to pretrain on; of a corpus, all others")
    parser.add_argument("--num_test_images", type=int, default=1000)
    parser.add_argument("--labels", nargs="+", type=int, default=[50, 500], help="labelled images of the probe")
    parser.add_argument("--config", default=CONFIG, help="sizes and rates")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    parser.add_argument("--json", type=Path, help="results so far; read first, if it exists")
    return parser.parse_known_args(argv)


def arguments_of(
    preset: str, seed: int, options: argparse.Namespace, extra: list[str], output_dir: str
) -> tuple[ModelArguments, DataArguments, PretrainingArguments]:
    """The command line of one run of pretrain.py, parsed as pretrain.py does."""
    given = {
        "config": options.config,
        "preset": "mse" if preset == UNTRAINED else preset,
        "corpus": options.corpus,
        "num_train_epochs": options.epochs,
        "seed": seed,
        "output_dir": output_dir,
        **QUIET,
    }
    if options.corpus == "speckle":
        given |= {"speckle_classes": options.class_set, "speckle_images": options.num_images}
    else:
        given |= {"held_out": options.num_test_images, "eval_strategy": "no"}
    argv = [f"--{name}={value}" for name, value in given.items()]
    return parse_args((ModelArguments, DataArguments, PretrainingArguments), argv + extra)


def settings_of(
    preset: str,
    options: argparse.Namespace,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: PretrainingArguments,
) -> dict[str, Any]:
    """All that decides what a run measures. Two runs of equal settings give equal results."""
    training = {name: getattr(args, name) for name in (*PretrainingArguments.__annotations__, "seed")}
    chosen = {name: value for name, value in (training | vars(data_args)).items() if name not in NOT_SETTINGS}
    settings = {
        "pretraining": preset,
        "model": build_model(model_args, data_args).config.to_dict(),
        "training": chosen,
        "classes": [asdict(speckle_class) for speckle_class in CLASS_SETS[options.class_set]]
        if options.corpus == "speckle"
        else None,
        "num_test_images": options.num_test_images,
        "labels": options.labels,
    }
    return json.loads(json.dumps(settings, default=str))


def measure(
    preset: str, run: Pretraining, labelled: PretrainDataset, test: PretrainDataset, labels: Sequence[int]
) -> dict[str, Any]:
    """Train one run, then probe its encoder and judge its reconstructions.

    Returns:
        `probe`: number of labels -> accuracy, mean and standard deviation over draws of the labelled images;
        `glcm_l1`, `mse`, and the same of two predictors that learned nothing (`_patch_mean`, `_dataset_mean`);
        `gradient_energy_ratio`; `minutes` of training.
    """
    started = time.monotonic()
    if preset == UNTRAINED:
        encoder = stock_encoder(run.model)
    else:
        run.trainer.train()
        encoder = stock_encoder(run.trainer.accelerator.unwrap_model(run.trainer.model))
    minutes = (time.monotonic() - started) / 60

    encoder = encoder.to(run.args.device)
    features, test_features = (encoder_features(encoder, dataset) for dataset in (labelled, test))
    classes, test_classes = (np.array(dataset.dataset["label"]) for dataset in (labelled, test))
    probe = {
        str(count): dict(
            zip(
                ("mean", "std"),
                probe_accuracy(features, classes, test_features, test_classes, num_labels=count),
                strict=True,
            )
        )
        for count in labels
    }
    metrics = run.trainer.evaluate(test)
    judged = {
        name.removeprefix("eval_"): value
        for name, value in metrics.items()
        if name.removeprefix("eval_").startswith(tuple(COLUMNS))
    }
    ratio = _gradient_energy_ratio(run.trainer.accelerator.unwrap_model(run.trainer.model), test, run.args)
    return {"probe": probe, **judged, "gradient_energy_ratio": ratio, "minutes": minutes}


def _labelled_and_test(run: Pretraining, options: argparse.Namespace) -> tuple[PretrainDataset, PretrainDataset]:
    """Whole images that the probe learns from, and those that it is tested on."""
    if options.corpus != "speckle":
        if run.data.labelled is None:
            raise UsageError(f"corpus {options.corpus!r} needs labels for the probe, and must not be a stream")
        if "group" not in run.data.labelled.dataset.column_names:
            raise UsageError(
                f"corpus {options.corpus!r} has no groups, so copies of training images would be tested on: give the "
                "folder that prepare_corpus.py made of it"
            )
        return run.data.labelled, run.data.held_out
    images = load_corpus(
        "speckle",
        split="test",
        speckle_images=options.num_test_images,
        image_size=max(run.data.transform.image_size),
        seed=TEST_SEED,
        class_set=options.class_set,
    )
    config = run.model.config
    settings = {"patch_size": config.patch_size, "num_channels": config.num_channels, "train": False}
    datasets = (run.data.train.dataset, images)
    return tuple(PretrainDataset(dataset, run.data.transform, **settings) for dataset in datasets)


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


def _mean_and_spread(values: list[float], digits: int) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def table(records: list[dict[str, Any]], labels: Sequence[int]) -> str:
    """Markdown: a row a preset; mean, and standard deviation over the seeds if there are several."""
    header = ["pretraining", "seeds", *(f"probe, {count} labels" for count in labels), *COLUMNS.values(), "minutes"]
    lines = [header]
    for preset in dict.fromkeys(record["settings"]["pretraining"] for record in records):
        results = [record["results"] for record in records if record["settings"]["pretraining"] == preset]
        lines.append(
            [
                preset,
                str(len(results)),
                *(_mean_and_spread([result["probe"][str(count)]["mean"] for result in results], 3) for count in labels),
                *(_mean_and_spread([result[name] for result in results], 3) for name in COLUMNS),
                _mean_and_spread([result["minutes"] for result in results], 1),
            ]
        )
    return markdown_table(lines)


def _write(file: Path, records: list[dict[str, Any]]) -> None:
    with replaced_file(file) as new:
        new.write_text(json.dumps({"runs": records}, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    options, extra = parse_options(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if options.threads:
        torch.set_num_threads(options.threads)
    # Runs of other settings stay in the file and out of the table.
    stored = json.loads(options.json.read_text())["runs"] if options.json and options.json.exists() else []
    plan = [(preset, seed) for seed in options.seeds for preset in dict.fromkeys([UNTRAINED, *options.presets])]
    try:  # before the first run, so that a mistake in the last one does not cost an hour
        settings = [settings_of(p, options, *arguments_of(p, seed, options, extra, "unused")) for p, seed in plan]
    except (ValueError, OSError, StrictDataclassError) as error:
        sys.exit(f"error: {error}")
    records = []
    bar = tqdm(list(zip(plan, settings, strict=True)), unit=" runs", smoothing=0)
    for (preset, seed), wanted in bar:
        bar.set_description(f"{preset}, seed {seed}")
        record = next((record for record in stored if record["settings"] == wanted), None)
        if record is None:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    run = Pretraining(*arguments_of(preset, seed, options, extra, folder))
                    labelled_and_test = _labelled_and_test(run, options)
                except (ValueError, OSError, StrictDataclassError) as error:
                    sys.exit(f"error: {error}")
                results = measure(preset, run, *labelled_and_test, options.labels)
            record = {"settings": wanted, "results": results, "machine": machine(run.args.device)}
            stored.append(record)
            if options.json:
                _write(options.json, stored)
        records.append(record)
    images, at_most = f"speckle {options.class_set}, {options.num_images} images", ""
    if options.corpus != "speckle":
        images, at_most = options.corpus, "at most "  # whole groups
    print(
        f"{images}, {options.epochs:g} epochs; tested on "
        f"{at_most}{options.num_test_images} other images; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads\n"
    )
    print(table(records, options.labels))


if __name__ == "__main__":
    main()
