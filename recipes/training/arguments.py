"""What can be asked of pretraining and fine-tuning: a field is an option and a key of a YAML file."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from commandline import UsageError, check_model_name, option
from modeling_glcm_mae import GLCMMAEConfig
from training.frozen import FROZEN_MODES

MODES = ("finetune", *FROZEN_MODES)
STAGED_SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup")
POOLINGS = ("cls", "mean")  # what the classifier reads: the CLS token, or the mean of the patch tokens
HEAD_INITS = ("linear_probe", "random")
# How an image is brought to the model's size and range: fields of ImageTransform, as of the command line.
FITTING = ("resize", "resize_to", "image_mean", "image_std")
OPTIMIZERS = ("adamw_torch_fused", "adamw_torch")  # AdamW over the groups of parameter_groups is made for both


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
    glcm_head_weight: float | None = option(
        None, "Weight of the texture head, which predicts co-occurrence matrices; 0: no head."
    )
    glcm_head_levels: int | None = option(None, "Grey levels of the texture head.")
    glcm_head_offsets: str | None = option(None, "Offsets of the texture head's pixel pairs: [[dy, dx], ...].")
    glcm_head_patches: str | None = option(None, "Patches that the texture head is judged on: all or masked.")

    def __post_init__(self):
        check_model_name(self.model_name_or_path)

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
        mean, std = self.image_mean, self.image_std
        if num_channels == 3:
            return list(mean or IMAGENET_DEFAULT_MEAN), list(std or IMAGENET_DEFAULT_STD)
        average = [sum(values) / len(values) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)]
        return list(mean or average[:1] * num_channels), list(std or average[1:] * num_channels)


@dataclass
class DataArguments(ImageArguments):
    """Which images to pretrain on, and how they become tensors."""

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
class PretrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of MAE pretraining, and the schedule of the objective."""

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
        None, "Put the picture, which shows held-out images, into the export. Left out: if the corpus is open."
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
        if self.mse_images_per_update is not None:
            self._check_stages()
        if self.sharpness_start is not None and not 0 < self.sharpness_start < math.inf:
            raise UsageError(f"sharpness_start must be finite and greater than 0, got {self.sharpness_start}")

    def _check_stages(self) -> None:
        """Whether a share of the training is the same place in it whatever the images per update."""
        epochs = self.mse_epochs * (self.num_train_epochs if self.mse_epochs < 1 else 1)
        whole = all(math.isclose(count, round(count)) for count in (epochs, self.num_train_epochs))
        if self.max_steps > 0 or not epochs or not whole:
            raise UsageError(
                "mse_images_per_update needs whole epochs in both stages, and no max_steps: got mse_epochs "
                f"{self.mse_epochs:g}, num_train_epochs {self.num_train_epochs:g} and max_steps {self.max_steps}"
            )
        if self.warmup_steps >= 1 or self.lr_scheduler_type not in STAGED_SCHEDULES:
            raise UsageError(
                "mse_images_per_update needs a schedule by shares of the training: warmup_steps below 1 and "
                f"lr_scheduler_type {' or '.join(STAGED_SCHEDULES)}, got {self.warmup_steps:g} and "
                f"{self.lr_scheduler_type.value}"
            )
        # The checkpoint between the stages must be there, whole, and on every machine.
        for name in ("save_only_model", "save_on_each_node", "metric_for_best_model"):
            if getattr(self, name):
                raise UsageError(f"mse_images_per_update needs {name} left out, got {getattr(self, name)}")
        if self.save_strategy == SaveStrategy.BEST:
            raise UsageError("mse_images_per_update needs save_strategy epoch, steps or no, got best")


@dataclass
class ClassifierArguments:
    """Which encoder, and how it becomes a classifier."""

    model_name_or_path: str | None = option(
        None,
        "Export of pretrain.py or finetune.py, or any ViT or ViTMAE (folder or Hub id). Without it, from nothing.",
    )
    model_revision: str = option("main", "Branch, tag or commit of the checkpoint on the Hub.")
    model_subfolder: str = option("", "Folder inside the checkpoint.")
    mode: str = option(
        "finetune",
        "finetune: all weights; linear_probe: a logistic regression on the frozen features; knn: votes of the nearest "
        "frozen features (no export). Probes of masked autoencoders score well below their fine-tuning.",
    )
    pooling: str = option(
        "cls",
        "What the head reads. cls: the CLS token, by a stock ViTForImageClassification. mean: the mean of the patch "
        "tokens and a norm, as MAE fine-tunes, by a stock BeitForImageClassification; square images only.",
    )
    head_init: str = option(
        "linear_probe",
        "Of mode finetune. linear_probe: the new head starts as a logistic regression on what the encoder answers "
        "before it is trained, so that fine-tuning begins where mode linear_probe ends; random: as MAE. A network from "
        "nothing has no features yet: its head is random.",
    )
    drop_path: float = option(0.1, "Stochastic depth of the last layer, growing linearly from 0 at the first.")
    calibrate: bool = option(
        True,
        "Divide the logits by a temperature, fitted to the validation part after the training and written into the "
        "exported head, so that probabilities are as sure as they are right. The answers stay. Not in mode knn.",
    )
    knn_neighbours: int = option(20, "Neighbours that vote, for mode knn.")
    image_size: int | None = option(None, "Side in pixels, without a checkpoint.")
    patch_size: int | None = option(None, "Side of a patch in pixels, without a checkpoint.")
    hidden_size: int | None = option(None, "Width, without a checkpoint.")
    num_hidden_layers: int | None = option(None, "Layers, without a checkpoint.")
    num_attention_heads: int | None = option(None, "Attention heads, without a checkpoint.")
    intermediate_size: int | None = option(None, "Width of the MLPs, without a checkpoint.")

    def __post_init__(self):
        check_model_name(self.model_name_or_path)
        for name, allowed in (("mode", MODES), ("pooling", POOLINGS), ("head_init", HEAD_INITS)):
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not 0 <= self.drop_path < 1:
            raise UsageError(f"drop_path must be at least 0 and below 1, got {self.drop_path}")
        if self.knn_neighbours < 1:
            raise UsageError(f"knn_neighbours must be at least 1, got {self.knn_neighbours}")

    def sizes(self) -> dict[str, int]:
        """The fields of `ViTConfig` that were given."""
        names = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        given = {name: getattr(self, name) for name in (*names, "intermediate_size")}
        return {name: value for name, value in given.items() if value is not None}


@dataclass
class LabelledDataArguments(ImageArguments):
    """Which images and labels. Images go in as the checkpoint's processor says, but for the fields given here."""

    resize: str | None = option(
        None, "shortest (and centre crop), squash, letterbox or none; of the checkpoint if left out."
    )
    resize_to: int | None = option(
        None, "Before the centre crop, length of the shorter side or of both; of the checkpoint if left out."
    )
    image_mean: list[float] | None = option(
        None, "Mean of each channel in 0..1; of the checkpoint if left out, without one ImageNet's."
    )
    image_std: list[float] | None = option(None, "Standard deviation of each channel; likewise.")
    splits_file: str | None = option(None, "Splits; splits.json of the corpus if left out.")
    fold: str = option("0", "Fold of the splits: 0, 1, ... or official.")
    verify_data: bool = option(
        False, "Read, hash, decode and compare all images of a prepared corpus again, though its files did not change."
    )
    positive_classes: list[str] | None = option(
        None,
        "Classes that count as positive in the figures that are collapsed to two classes (GBCU: malignant). With two "
        "classes the positive one; the second if left out.",
    )
    randaugment: int = option(9, "Magnitude of RandAugment, 0 to 30; 0: none.")
    random_erasing: float = option(0.25, "Probability of erasing a random rectangle.")
    mixup: float = option(0.0, "Parameter of mixup's Beta distribution (0.8 in MAE); 0: none.")
    cutmix: float = option(0.0, "Parameter of CutMix's Beta distribution (1.0 in MAE); 0: none.")
    class_weights: str = option("none", "none, or balanced: the loss of a class is weighted by 1 / its frequency.")
    random_resized_crop: bool | None = option(None, "Train on random crops. Left out: yes, unless resize is none.")
    crop_scale: list[float] = field(
        default_factory=lambda: [0.5, 1.0], metadata={"help": "Share of the area of a random crop, smallest largest."}
    )
    horizontal_flip: bool = option(True, "Mirror every second image left-right.")

    def __post_init__(self):
        super().__post_init__()
        if self.class_weights not in ("none", "balanced"):
            raise UsageError(f"class_weights must be none or balanced, got {self.class_weights!r}")
        if not 0 <= self.randaugment <= 30:
            raise UsageError(f"randaugment must be 0 to 30, got {self.randaugment}")
        if not 0 <= self.random_erasing <= 1:
            raise UsageError(f"random_erasing must be 0 to 1, got {self.random_erasing}")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("image_mean", "image_std"):
            if getattr(self, name) is not None and len(getattr(self, name)) != 3:
                raise UsageError(f"{name} must be three numbers, one per channel, got {getattr(self, name)}")


@dataclass
class FinetuningArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of MAE fine-tuning."""

    output_dir: str | None = option("runs/finetune", "Receives everything that the run writes.")
    overwrite_output_dir: bool = option(False, "Delete what an earlier run left in output_dir.")
    dry_run: bool = option(False, "Find what is wrong with settings and images, then stop: nothing is written.")
    base_learning_rate: float = option(1e-3, "Rate at 256 images per update; scaled by images per update / 256.")
    learning_rate: float | None = option(None, "Learning rate as it is, instead of base_learning_rate.")
    layer_decay: float = option(0.75, "Factor of the learning rate from one layer to the one below it.")
    early_stopping_patience: int = option(0, "Evaluations without a better one before stopping; 0: never.")
    per_device_train_batch_size: int = option(32, "Images per process and step.")
    per_device_eval_batch_size: int = option(64, "Images per process in evaluation.")
    num_train_epochs: float = option(50, "Passes over the images.")
    weight_decay: float = option(0.05, "Not on biases and norms.")
    label_smoothing_factor: float = option(0.1, "Share of the target that is spread over all classes.")
    lr_scheduler_type: str = option("cosine", "Shape of the learning rate after the warm-up.")
    warmup_steps: float = option(0.1, "Linear warm-up: a fraction of the steps if below 1, else steps.")
    max_grad_norm: float = option(1.0, "Clip gradients to this norm.")
    logging_steps: float = option(10, "Steps between two lines of metrics.")
    eval_strategy: str = option("epoch", "When to judge on the validation part.")
    save_strategy: str = option("epoch", "When to save a checkpoint; the same as eval_strategy.")
    save_total_limit: int | None = option(2, "Checkpoints to keep: the best and the last ones.")
    hub_strategy: str = option("end", "With push_to_hub, publish at the end; every_save: at every checkpoint too.")
    metric_for_best_model: str = option(
        "eval_auroc", "Validation figure that chooses the model; with more than two, its macro mean."
    )
    load_best_model_at_end: bool = option(True, "Export the best model on the validation part.")
    restore_callback_states_from_checkpoint: bool = option(
        True, "Whether a resume goes on counting towards early_stopping_patience."
    )
    report_to: str = option("none", "tensorboard for its files in output_dir/runs; none for metrics.jsonl alone.")
    dataloader_num_workers: int = option(2, "Processes that decode images.")
    remove_unused_columns: bool = option(False, "Must stay false: the items are made as the model takes them.")

    def __post_init__(self):
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise UsageError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        super().__post_init__()
        if self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise UsageError(f"num_train_epochs must be greater than 0, got {self.num_train_epochs}")
        if self.early_stopping_patience < 0:
            raise UsageError(f"early_stopping_patience must be at least 0, got {self.early_stopping_patience}")
        if self.early_stopping_patience and self.eval_strategy == IntervalStrategy.NO:
            raise UsageError("early_stopping_patience needs evaluations, got eval_strategy no")
        if self.optim not in OPTIMIZERS or self.optim_args:
            raise UsageError(
                f"optim must be {' or '.join(OPTIMIZERS)}, without optim_args, got {self.optim.value} and optim_args "
                f"{self.optim_args}: fine-tuning is by AdamW"
            )
        if self.remove_unused_columns:
            raise UsageError("remove_unused_columns must stay false, got true")


# What each of the two recipes takes, in the order in which its run takes them.
PRETRAINING = (ModelArguments, DataArguments, PretrainingArguments)
FINETUNING = (ClassifierArguments, LabelledDataArguments, FinetuningArguments)
