"""What can be asked of pretraining beside the options of transformers' Trainer, and what fine-tuning shares of it.

A field is an option and a key of a YAML file. `--help` shows these, so nothing that needs torch is imported here;
arguments.py joins them with `TrainingArguments`.
"""

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

from commandline import UsageError, check_model_name, option

# How an image is brought to the model's size and range: fields of ImageTransform, as of the command line.
FITTING = ("resize", "resize_to", "image_mean", "image_std")
# The same and augmentation, in the order of the help.
TENSORS = (
    *("resize", "resize_to", "image_mean", "image_std", "random_resized_crop", "crop_scale", "horizontal_flip"),
    "vertical_flip",
)
# What both trainings have, in the order of the help.
RUN = ("output_dir", "overwrite_output_dir", "dry_run", "report_to", "logging_steps", "hub_strategy")
SCHEDULE = (
    *("num_train_epochs", "per_device_train_batch_size", "base_learning_rate", "learning_rate", "lr_scheduler_type"),
    "warmup_steps",
)
EVALUATION = ("eval_strategy", "per_device_eval_batch_size", "save_strategy", "save_total_limit")
MACHINE = ("bf16", "dataloader_num_workers", "remove_unused_columns")
BF16 = (
    "Train in bfloat16 where that is safe, for speed and memory. Left out: if the launcher says bf16, or on a GPU that "
    "computes in it, unless it says fp16; not on a CPU, where it may be slower."
)
# Fields that decide the shapes of the weights.
SIZES = (
    "patch_size",
    "num_channels",
    *(
        prefix + name
        for prefix in ("", "decoder_")
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    ),
)


@dataclass
class ModelArguments:
    """What is trained. The objective is the preset's; another field left out is the checkpoint's or the default."""

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "model (with a checkpoint, defaults are the checkpoint's; without one, a ViT-B/16's)": (
            *("model_name_or_path", "model_revision", "model_subfolder", "image_size", *SIZES, "mask_ratio"),
        ),
        "objective (defaults are those of the preset texture)": (
            *("preset", "norm_pix_loss", "glcm_weight", "ssim_weight", "mse_weight", "glcm_levels", "glcm_offsets"),
            *("glcm_kernel", "glcm_sharpness", "glcm_value_range", "glcm_channel", "glcm_reweight", "glcm_symmetric"),
            *("glcm_normalize", "glcm_cumulative", "glcm_head_weight", "glcm_head_levels", "glcm_head_offsets"),
            *("glcm_head_patches", "glcm_cls_weight", "glcm_cls_tiles"),
        ),
    }

    preset: str = option("texture", "The objective: texture, paper or mse.")
    model_name_or_path: str | None = option(
        None, "ViTMAE checkpoint to start from (Hub id or folder; decoder included). Without it, from nothing."
    )
    model_revision: str = option("main", "Branch, tag or commit of the checkpoint on the Hub.")
    model_subfolder: str = option("", "Folder inside the checkpoint: `pretraining` for an export of this recipe.")
    image_size: str | None = option(None, "Height and width in pixels: one number, or [height, width].", left_out=224)
    patch_size: int | None = option(None, "Side of a patch in pixels.", left_out=16)
    num_channels: int | None = option(None, "3 (grey is replicated) or 1 (colour becomes luma).", left_out=3)
    hidden_size: int | None = option(None, "Width of the encoder.", left_out=768)
    num_hidden_layers: int | None = option(None, "Layers of the encoder.", left_out=12)
    num_attention_heads: int | None = option(None, "Attention heads of the encoder.", left_out=12)
    intermediate_size: int | None = option(None, "Width of the encoder's MLPs.", left_out=3072)
    decoder_hidden_size: int | None = option(None, "Width of the decoder.", left_out=512)
    decoder_num_hidden_layers: int | None = option(None, "Layers of the decoder.", left_out=8)
    decoder_num_attention_heads: int | None = option(None, "Attention heads of the decoder.", left_out=16)
    decoder_intermediate_size: int | None = option(None, "Width of the decoder's MLPs.", left_out=2048)
    mask_ratio: float | None = option(None, "Share of the patches that is hidden, 0 to below 1.", left_out=0.75)
    norm_pix_loss: bool | None = option(
        None, "Normalise the pixels of each patch; with the mse preset only.", left_out=False
    )
    glcm_levels: int | None = option(None, "Grey levels.", left_out=16)
    glcm_offsets: str | None = option(None, "Offsets of the pixel pairs: [[dy, dx], ...].", left_out="[[0, 1], [1, 0]]")
    glcm_kernel: str | None = option(None, "sigmoid or linear.", left_out="linear")
    glcm_sharpness: float | None = option(None, "Of the sigmoid kernel: bin width over logistic scale.", left_out=30.0)
    glcm_value_range: list[float] | None = option(
        None, "Grey range lo hi in units of pixel_values. Left out, it is black and white after normalisation."
    )
    glcm_channel: str | None = option(None, "Channel whose grey is counted: an index, or mean.", left_out="mean")
    glcm_reweight: bool | None = option(None, "Down-weight crowded cells, as published.", left_out=False)
    glcm_symmetric: bool | None = option(None, "Count pairs in both orders.", left_out=False)
    glcm_normalize: bool | None = option(None, "Divide each matrix by its sum.", left_out=True)
    glcm_cumulative: bool | None = option(None, "Compare cumulative matrices.", left_out=False)
    glcm_weight: float | None = option(None, "Weight of the co-occurrence term.", left_out=2560.0)
    ssim_weight: float | None = option(None, "Weight of 1 - SSIM.", left_out=0.0)
    mse_weight: float | None = option(None, "Weight of the mean squared error.", left_out=1.0)
    glcm_head_weight: float | None = option(
        None, "Weight of the texture head, which predicts co-occurrence matrices; 0: no head.", left_out=8.0
    )
    glcm_head_levels: int | None = option(None, "Grey levels of the heads.", left_out=8)
    glcm_head_offsets: str | None = option(
        None,
        "Offsets of the heads' pixel pairs: [[dy, dx], ...].",
        left_out="[[0, 1], [1, 0], [1, 1], [1, -1]]",
    )
    glcm_head_patches: str | None = option(
        None, "Patches that the texture head is judged on: all or masked.", left_out="all"
    )
    glcm_cls_weight: float | None = option(
        None,
        "Weight of the CLS token's head, which predicts the matrices of a grid of tiles; 0: no head.",
        left_out=0.5,
    )
    glcm_cls_tiles: int | None = option(None, "Tiles of the CLS token's head, down and across.", left_out=4)

    def __post_init__(self):
        check_model_name(self.model_name_or_path, self.model_subfolder)

    def config_overrides(self) -> dict[str, Any]:
        """The fields of `GLCMMAEConfig` that were given, in its types.

        Raises:
            UsageError: if a value cannot be read as its type.
        """
        from modeling_glcm_mae import GLCMMAEConfig  # here: it needs torch

        given = {
            name: value
            for name, value in vars(self).items()
            if value is not None and name in GLCMMAEConfig.__dataclass_fields__
        }
        for name in ("image_size", "glcm_offsets", "glcm_head_offsets"):
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

    corpus: str | None = option(
        None, "speckle (generated), busi, pneumonia, covid_ct, gbcu, a folder of images or Parquet, or a Hub id."
    )
    bad_images: str = option("error", "error: stop at an unreadable file; skip: leave it out, named and counted.")
    white_level: float | None = option(None, "Grey value of white; 255 for 8-bit files and 65535 for 16-bit ones.")
    resize: str = option("shortest", "shortest (and centre crop), squash, letterbox or none.")
    resize_to: int | None = option(
        None,
        "Before the centre crop, length of the shorter side (of the longer one with squash); published: 256.",
    )
    random_resized_crop: bool = option(False, "Train on random crops.")
    crop_scale: list[float] = field(
        default_factory=lambda: [0.2, 1.0], metadata={"help": "Share of the area of a random crop, smallest largest."}
    )
    horizontal_flip: bool = option(False, "Mirror every second image left-right.")
    vertical_flip: bool = option(False, "Mirror every second image top-bottom.")
    image_mean: list[float] | None = option(None, "Mean of each channel in 0..1. Left out: ImageNet's.")
    image_std: list[float] | None = option(None, "Standard deviation of each channel. Left out: ImageNet's.")

    def __post_init__(self):
        if self.corpus is None:
            raise UsageError("corpus is needed: a folder of images, a name that --help lists, or a data set on the Hub")

    def normalization(self, num_channels: int) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel; for other than three channels the average of ImageNet's."""
        from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # here: it needs torch

        mean, std = self.image_mean, self.image_std
        if num_channels == 3:
            return list(mean or IMAGENET_DEFAULT_MEAN), list(std or IMAGENET_DEFAULT_STD)
        average = [sum(values) / len(values) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)]
        return list(mean or average[:1] * num_channels), list(std or average[1:] * num_channels)


@dataclass
class DataArguments(ImageArguments):
    """Which images to pretrain on, and how they become tensors."""

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "images": (
            *(
                "corpus",
                "data_dir",
                "split",
                "fold",
                "splits_file",
                "verify_data",
                "unlabelled_corpus",
                "unlabelled_folds",
                "streaming",
                "shuffle_buffer",
            ),
            *("image_column", "label_column", "group_column", "held_out", "bad_images", "white_level", "cache_images"),
            *("speckle_images", "speckle_classes"),
        ),
        "from an image to a tensor": TENSORS,
    }

    data_dir: str | None = option(None, "Folder of the download, for a corpus that is given by name.")
    split: str | None = option(None, "Split to train on; train if there is one.")
    fold: str | None = option(
        None,
        "Train on the training part of this fold only (0, 1, ... or official); corpus is prepare_corpus.py's output.",
    )
    splits_file: str | None = option(None, "Splits, for fold; splits.json of the corpus if left out.")
    verify_data: bool = option(
        False, "Read, hash, decode and compare all images of a prepared corpus again, though its files did not change."
    )
    unlabelled_corpus: list[str] | None = option(
        None,
        "More images to train on, of folders, Parquet or the Hub. Their labels are not read, none of them is held out, "
        "and (near-)copies of images that are kept for validation or test are left out. Patients are not known again.",
    )
    unlabelled_folds: list[str] | None = option(
        None,
        "Of each unlabelled_corpus (of prepare_corpus.py) the fold whose training part alone is read, so that the "
        "encoder can be fine-tuned there too: 0, 1, ..., official, or same, the one of fold; all: the whole corpus.",
    )
    streaming: bool = option(False, "Read a Parquet or Hub data set as a stream; needs max_steps.")
    shuffle_buffer: int = option(1000, "Images that a stream is shuffled over.")
    image_column: str | None = option(None, "Column of the images, if a data set has several.")
    label_column: str | None = option(
        None, "Column of the labels, if a table (CSV, Parquet, Hub) has another name for it; none: without labels."
    )
    group_column: str | None = option(
        None, "Column of the patients, if a table has another name for it; none: without patients."
    )
    held_out: float = option(0.1, "Images kept for evaluation: a share below 1, or a number; whole groups. 0: none.")
    cache_images: bool = option(
        False, "Decode and resize once, into a file that all processes share: 196 KiB for a grey image at 224 pixels."
    )
    speckle_images: int = option(2560, "Number of generated images of the speckle corpus.")
    speckle_classes: str = option("easy", "Class set of the speckle corpus: easy or hard.")


@dataclass
class PretrainingOptions:
    """Defaults of MAE pretraining for options of `TrainingArguments`, and the schedule of the objective."""

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "run": (*RUN, "picture_every_epochs", "num_pictures", "export_picture", "probe_labels"),
        "schedule": (*SCHEDULE, "mse_epochs", "mse_images_per_update", "sharpness_start"),
        "optimiser": ("weight_decay", "adam_beta2", "max_grad_norm"),
        "evaluation and checkpoints": (*EVALUATION, "eval_on_start", "load_best_model_at_end"),
        "machine": (*MACHINE, "logging_nan_inf_filter", "ddp_find_unused_parameters"),
    }

    output_dir: str | None = option("runs/pretrain", "Receives everything that the run writes.")
    overwrite_output_dir: bool = option(False, "Delete what an earlier run left in output_dir.")
    dry_run: bool = option(False, "Find what is wrong with settings and images, then stop: nothing is written.")
    base_learning_rate: float = option(1.5e-4, "Rate at 256 images per update; scaled by images per update / 256.")
    learning_rate: float | None = option(None, "Learning rate as it is, instead of base_learning_rate.")
    mse_epochs: float = option(
        0.0, "Plain mean squared error first: a fraction of the training if below 1, else a number of epochs."
    )
    mse_images_per_update: int | None = option(
        None,
        "During mse_epochs, as the paper has it: a multiple of the images per update that follow. The learning rate is "
        "that many times higher then, and the optimiser goes on.",
    )
    sharpness_start: float | None = option(
        None, "Let the sharpness of the sigmoid kernel grow geometrically from here to glcm_sharpness."
    )
    picture_every_epochs: int = option(10, "Draw held-out images every this many epochs; 0: at the end only.")
    num_pictures: int = option(6, "Held-out images to draw.")
    export_picture: bool | None = option(
        None,
        "Give out the pictures, which show held-out images: into the export, to wandb and trackio. Left out: if the "
        "corpus is open.",
    )
    probe_labels: int = option(
        0, "Fit a linear probe to this many labelled images before and after, tested on the held-out ones. 0: no probe."
    )
    per_device_train_batch_size: int = option(64, "Images per process and step.")
    per_device_eval_batch_size: int = option(64, "Images per process in evaluation.")
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
    report_to: str = option(
        "none", "tensorboard for its files in output_dir/runs, wandb, trackio; none for metrics.jsonl alone."
    )
    bf16: bool | None = option(None, BF16)
    dataloader_num_workers: int = option(2, "Processes that decode images.")
    remove_unused_columns: bool = option(False, "Must stay false: the items are made as the model takes them.")
    logging_nan_inf_filter: bool = option(False, "Must stay false: a loss that is not finite stops the run.")
    load_best_model_at_end: bool = option(False, "Must stay false: the last step is exported, as published.")
    ddp_find_unused_parameters: bool | None = option(False, "Every parameter takes part in every step.")


# What --help lists of pretrain.py.
PRETRAINING_OPTIONS = (ModelArguments, DataArguments, PretrainingOptions)
MORE_OPTIONS = """\
--help_all lists over a hundred more, of transformers' Trainer, which are taken too. Those that are needed most:
  --seed N                         of everything that is random (default: 42)
  --gradient_accumulation_steps N  batches per update (default: 1)
  --max_steps N                    updates, instead of num_train_epochs
  --use_cpu true                   leave a GPU alone
  --torch_compile true             compile the model: a longer start, for faster steps in a long training
  --resume_from_checkpoint last    go on where a run was stopped
  --push_to_hub true               publish at the end, with --hub_model_id OWNER/NAME and --hub_private_repo true"""
