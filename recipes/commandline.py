"""Command line of the recipes: a YAML file sets the defaults, options win, an unknown key is an error."""

import difflib
import json
import math
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser, TrainingArguments

from modeling_glcm_mae import GLCMMAEConfig


class UsageError(ValueError):
    """A mistake in what the user asked for; its message is all that they need to see."""


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        # The usual print of over a hundred options would bury the one line that matters.
        raise UsageError(f"{message} (--help lists all options)")


def parse_args(dataclass_types: Sequence[type], argv: Sequence[str] | None = None, description: str | None = None):
    """Fill dataclasses from `--config FILE.yaml` and from options, which win over the file.

    Args:
        dataclass_types: one dataclass for each kind of argument; field names are unique among them.
        argv: the command line without the program's name; `sys.argv[1:]` if None.
        description: shown by `--help`.

    Returns:
        A tuple of instances, in the order of `dataclass_types`.

    Raises:
        UsageError: on an unknown key or option, or a value of the wrong type; names the file and the field.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    config_parser = ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", type=Path)
    config_file, options = config_parser.parse_known_args(arguments)
    parser = _Parser(
        dataclass_types,
        description=description,
        allow_abbrev=False,
        epilog="--config FILE.yaml sets defaults for any of these; options on the command line win.",
    )
    defaults: list[str] = []
    if config_file.config is not None:
        known = {action.dest: action for action in parser._actions if action.dest != "help"}
        values = _read_yaml(config_file.config)
        for key, value in values.items():
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise UsageError(f"{config_file.config}: unknown key {key!r}{hint} (--help lists what is allowed)")
            given = _as_options(key, value, several=known[key].nargs in ("+", "*"))
            try:
                parser.parse_args(given)
            except UsageError as error:
                # HfArgumentParser knows no required fields here, so only this key can be at fault.
                raise UsageError(f"{config_file.config}: {key}: {value!r} is not allowed: {error}") from None
            defaults += given
    *parsed, unknown = parser.parse_args_into_dataclasses(defaults + options, return_remaining_strings=True)
    if unknown:
        raise UsageError(f"unknown option or value: {' '.join(unknown)} (--help lists all options)")
    return tuple(parsed)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path} is not valid YAML: {error}") from None
    if values is not None and not isinstance(values, dict):
        raise UsageError(f"--config {path}: must hold `key: value` lines, found a {type(values).__name__}")
    return values or {}


def _as_options(key: str, value: Any, several: bool) -> list[str]:
    """The command-line form of a YAML entry, so that both go through the same checks of type."""
    if value is None:
        return []
    if several:
        return [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return [f"--{key}={json.dumps(value) if isinstance(value, list | dict) else value}"]


def option(default: Any, help: str) -> Any:
    """A field of an argument class with its help text."""
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    """What is trained. The objective is the preset's; another field left out is the checkpoint's or the default."""

    preset: str = option("texture", "The objective: texture, paper or mse.")
    model_name_or_path: str | None = option(
        None, "ViTMAE checkpoint to start from (Hub id or folder; decoder included). Without it, from nothing."
    )
    model_revision: str = option("main", "Branch, tag or commit of the checkpoint on the Hub.")
    model_subfolder: str = option("", "Folder inside the checkpoint: `pretraining` for an export of this recipe.")
    image_size: str | None = option(None, "Height and width in pixels: one number, or [height, width].")
    patch_size: int | None = option(None, "Side of a patch in pixels.")
    num_channels: int | None = option(None, "3 (grey is replicated) or 1 (colour becomes luma).")
    hidden_size: int | None = option(None, "Width of the encoder.")
    num_hidden_layers: int | None = option(None, "Layers of the encoder.")
    num_attention_heads: int | None = option(None, "Attention heads of the encoder.")
    intermediate_size: int | None = option(None, "Width of the encoder's MLPs.")
    decoder_hidden_size: int | None = option(None, "Width of the decoder.")
    decoder_num_hidden_layers: int | None = option(None, "Layers of the decoder.")
    decoder_num_attention_heads: int | None = option(None, "Attention heads of the decoder.")
    decoder_intermediate_size: int | None = option(None, "Width of the decoder's MLPs.")
    mask_ratio: float | None = option(None, "Share of the patches that is hidden, 0 to below 1.")
    norm_pix_loss: bool | None = option(None, "Normalise the pixels of each patch; with the mse preset only.")
    glcm_levels: int | None = option(None, "Grey levels.")
    glcm_offsets: str | None = option(None, "Offsets of the pixel pairs: [[dy, dx], ...].")
    glcm_kernel: str | None = option(None, "sigmoid or linear.")
    glcm_sharpness: float | None = option(None, "Of the sigmoid kernel: bin width over logistic scale.")
    glcm_value_range: list[float] | None = option(
        None, "Grey range lo hi in units of pixel_values. Left out, it is black and white after normalisation."
    )
    glcm_channel: str | None = option(None, "Channel whose grey is counted: an index, or mean.")
    glcm_reweight: bool | None = option(None, "Down-weight crowded cells, as published.")
    glcm_symmetric: bool | None = option(None, "Count pairs in both orders.")
    glcm_normalize: bool | None = option(None, "Divide each matrix by its sum.")
    glcm_cumulative: bool | None = option(None, "Compare cumulative matrices.")
    glcm_weight: float | None = option(None, "Weight of the co-occurrence term.")
    ssim_weight: float | None = option(None, "Weight of 1 - SSIM.")
    mse_weight: float | None = option(None, "Weight of the mean squared error.")

    def config_overrides(self) -> dict[str, Any]:
        """The fields of `GLCMMAEConfig` that were given, in its types.

        Raises:
            UsageError: if a value cannot be read as its type.
        """
        given = {
            name: value
            for name, value in vars(self).items()
            if value is not None and name in GLCMMAEConfig.__dataclass_fields__
        }
        for name in ("image_size", "glcm_offsets"):
            if name in given:
                try:
                    given[name] = json.loads(given[name])
                except json.JSONDecodeError:
                    raise UsageError(f"{name} must be a number or a [list], got {given[name]!r}") from None
        channel = given.get("glcm_channel", "mean")
        if channel != "mean":
            if not channel.isdecimal():
                raise UsageError(f"glcm_channel must be mean or the index of a channel, got {channel!r}")
            given["glcm_channel"] = int(channel)
        return given


@dataclass
class ImageArguments:
    """Which images, and how they become tensors."""

    corpus: str = option(
        "speckle", "speckle (generated), busi, pneumonia, covid_ct, gbcu, a folder of images or Parquet, or a Hub id."
    )
    bad_images: str = option("error", "error: stop at an unreadable file; skip: leave it out, named and counted.")
    white_level: float | None = option(None, "Grey value of white; 255 for 8-bit files and 65535 for 16-bit ones.")
    resize: str = option("shortest", "shortest (and centre crop), squash, letterbox or none.")
    resize_to: int | None = option(None, "Length of the shorter side before the centre crop; published: 256.")
    random_resized_crop: bool = option(False, "Train on random crops.")
    crop_scale: list[float] = field(
        default_factory=lambda: [0.2, 1.0], metadata={"help": "Share of the area of a random crop, smallest largest."}
    )
    horizontal_flip: bool = option(False, "Mirror every second image left-right.")
    vertical_flip: bool = option(False, "Mirror every second image top-bottom.")
    image_mean: list[float] | None = option(None, "Mean of each channel in 0..1. Left out: ImageNet's.")
    image_std: list[float] | None = option(None, "Standard deviation of each channel. Left out: ImageNet's.")


@dataclass
class DataArguments(ImageArguments):
    """Which images to pretrain on, and how they become tensors."""

    data_dir: str | None = option(None, "Folder of the download, for a corpus that is given by name.")
    split: str | None = option(None, "Split to train on; train where there is one.")
    fold: str | None = option(
        None,
        "Train on the training part of this fold only (0, 1, ... or official); corpus is prepare_corpus.py's output.",
    )
    splits_file: str | None = option(None, "Splits, for fold; splits.json of the corpus if left out.")
    streaming: bool = option(False, "Read a Parquet or Hub data set as a stream; needs max_steps.")
    shuffle_buffer: int = option(1000, "Images that a stream is shuffled over.")
    image_column: str | None = option(None, "Column of the images, where a data set has several.")
    label_column: str | None = option(
        None, "Column of the labels, where a table (CSV, Parquet, Hub) calls it otherwise; none: without labels."
    )
    group_column: str | None = option(
        None, "Column of the patients, where a table calls it otherwise; none: without patients."
    )
    held_out: float = option(0.1, "Images kept for evaluation: a share below 1, or a number; whole groups. 0: none.")
    cache_images: bool = option(
        False, "Keep decoded, resized images in memory, in 8 bits: 147 KiB each at 224 pixels and three channels."
    )
    speckle_images: int = option(2560, "Number of generated images of the speckle corpus.")
    speckle_classes: str = option("easy", "Class set of the speckle corpus: easy or hard.")


@dataclass
class PretrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of MAE pretraining, and the schedule of the objective."""

    output_dir: str | None = option("runs/pretrain", "Receives everything that the run writes.")
    overwrite_output_dir: bool = option(False, "Delete what an earlier run left in output_dir.")
    base_learning_rate: float = option(1.5e-4, "Rate for 256 images an update; scaled by images per update / 256.")
    learning_rate: float | None = option(None, "Rate as it is; instead of base_learning_rate.")
    mse_epochs: float = option(
        0.0, "Plain mean squared error first: a fraction of the training if below 1, else a number of epochs."
    )
    sharpness_start: float | None = option(
        None, "Let the sharpness of the sigmoid kernel grow geometrically from here to glcm_sharpness."
    )
    picture_every_epochs: int = option(10, "Draw held-out images every so many epochs; 0: at the end only.")
    num_pictures: int = option(6, "Held-out images to draw.")
    export_picture: bool | None = option(
        None, "Put the picture, which shows held-out images, into the export. Left out: if the corpus is open."
    )
    probe_labels: int = option(
        0, "Fit a linear probe to so many labelled images before and after, tested on the held-out ones. 0: no probe."
    )
    per_device_train_batch_size: int = option(64, "Images a process and a step.")
    per_device_eval_batch_size: int = option(64, "Images a process in evaluation.")
    num_train_epochs: float = option(400, "Passes over the images.")
    weight_decay: float = option(0.05, "Not on biases and norms.")
    adam_beta2: float = option(0.95, "Second-moment decay of AdamW, as in MAE.")
    lr_scheduler_type: str = option("cosine", "Shape of the learning rate after the warm-up.")
    warmup_steps: float = option(0.1, "Linear warm-up: a fraction of the steps if below 1, else steps.")
    max_grad_norm: float = option(1.0, "Clip gradients to this norm.")
    logging_steps: float = option(10, "Steps between two lines of metrics.")
    eval_strategy: str = option("epoch", "When to evaluate on held-out images.")
    eval_on_start: bool = option(True, "Evaluate before the first step too.")
    save_strategy: str = option("epoch", "When to save a checkpoint.")
    save_total_limit: int | None = option(2, "Checkpoints to keep.")
    hub_strategy: str = option("end", "With push_to_hub, publish at the end; every_save: at every checkpoint too.")
    report_to: str = option("none", "tensorboard for its files in output_dir/runs; none for metrics.jsonl alone.")
    dataloader_num_workers: int = option(2, "Processes that decode images.")
    remove_unused_columns: bool = option(False, "Must stay false: the items are made as the model takes them.")
    logging_nan_inf_filter: bool = option(False, "Must stay false: a loss that is not finite stops the run.")
    load_best_model_at_end: bool = option(False, "Must stay false: the last step is exported, as published.")
    ddp_find_unused_parameters: bool | None = option(False, "Every parameter takes part in every step.")

    def __post_init__(self):
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_pictures", "picture_every_epochs", "probe_labels"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise UsageError(f"num_train_epochs must be greater than 0, got {self.num_train_epochs}")
        super().__post_init__()
        for name in ("remove_unused_columns", "logging_nan_inf_filter", "load_best_model_at_end"):
            if getattr(self, name):
                raise UsageError(f"{name} must stay false, got true")
        if self.mse_epochs < 0 or self.mse_epochs > max(self.num_train_epochs, 1):
            raise UsageError(
                f"mse_epochs must be a fraction below 1 or at most num_train_epochs ({self.num_train_epochs}), "
                f"got {self.mse_epochs}"
            )
        if self.sharpness_start is not None and not 0 < self.sharpness_start < math.inf:
            raise UsageError(f"sharpness_start must be finite and greater than 0, got {self.sharpness_start}")
