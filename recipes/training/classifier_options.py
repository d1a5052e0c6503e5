"""What can be asked of fine-tuning beside the options of transformers' Trainer; see options.py."""

import logging
from dataclasses import dataclass, field
from typing import ClassVar

from commandline import UsageError, check_model_name, option
from training.options import BF16, EVALUATION, MACHINE, RUN, SCHEDULE, TENSORS, ImageArguments

logger = logging.getLogger("finetune")
FROZEN_MODES = ("linear_probe", "knn")
MODES = ("finetune", *FROZEN_MODES)
POOLINGS = ("cls", "mean")  # what the classifier reads: the CLS token, or the mean of the patch tokens
HEAD_INITS = ("linear_probe", "random")
# Were all images of the corpus trained on; with fewer, other settings than MAE's pay (recipes/benchmarks/README.md).
FEW_UPDATES = 10_000
FROM_THERE_ON = f"from {FEW_UPDATES} updates on"


@dataclass
class ClassifierArguments:
    """Which encoder, and how it becomes a classifier."""

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "encoder (the sizes are for training without a checkpoint; defaults are a ViT-B/16's)": (
            *("model_name_or_path", "model_revision", "model_subfolder", "image_size", "patch_size", "hidden_size"),
            *("num_hidden_layers", "num_attention_heads", "intermediate_size"),
        ),
        "classifier": ("mode", "pooling", "head_init", "drop_path", "prior_correction", "calibrate", "knn_neighbours"),
    }

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
    pooling: str | None = option(
        None,
        "What the head reads. cls: the CLS token, by a stock ViTForImageClassification. mean: the mean of the patch "
        "tokens and a norm, as MAE fine-tunes, by a stock BeitForImageClassification; square images only. Left out: as "
        "the checkpoint's head does; a new head mean, or cls where images are not square.",
    )
    head_init: str = option(
        "linear_probe",
        "Of mode finetune. linear_probe: the new head starts as a logistic regression on what the encoder answers "
        "before it is trained, so that fine-tuning begins where mode linear_probe ends; random: as MAE. A network from "
        "nothing has no features yet: its head is random.",
    )
    drop_path: float = option(0.1, "Stochastic depth of the last layer, growing linearly from 0 at the first.")
    prior_correction: bool = option(
        False,
        "After a training with class_weights balanced: answer for classes as frequent as in the training part, by the "
        "logarithm of each one's share, added to its logit in the exported head. The commoner classes are answered "
        "more often, rare ones perhaps never: mostly a higher accuracy and a lower balanced accuracy.",
    )
    calibrate: bool = option(
        True,
        "Divide the logits by a temperature, fitted to the validation part after the training and written into the "
        "exported head, so that probabilities are as sure as they are right. Without prior_correction the answers "
        "stay. Not in mode knn.",
    )
    knn_neighbours: int = option(20, "Neighbours that vote, for mode knn.")
    image_size: int | None = option(None, "Side in pixels, without a checkpoint.", left_out=224)
    patch_size: int | None = option(None, "Side of a patch in pixels, without a checkpoint.", left_out=16)
    hidden_size: int | None = option(None, "Width, without a checkpoint.", left_out=768)
    num_hidden_layers: int | None = option(None, "Layers, without a checkpoint.", left_out=12)
    num_attention_heads: int | None = option(None, "Attention heads, without a checkpoint.", left_out=12)
    intermediate_size: int | None = option(None, "Width of the MLPs, without a checkpoint.", left_out=3072)

    def __post_init__(self):
        check_model_name(self.model_name_or_path, self.model_subfolder)
        for name, allowed in (("mode", MODES), ("pooling", POOLINGS), ("head_init", HEAD_INITS)):
            if getattr(self, name) not in allowed and (name, self.pooling) != ("pooling", None):
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

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "images": (
            "corpus",
            "fold",
            "splits_file",
            "verify_data",
            "bad_images",
            "white_level",
            "positive_classes",
            "class_weights",
            "labelled_groups",
        ),
        "from an image to a tensor": (*TENSORS, "randaugment", "random_erasing", "mixup", "cutmix"),
    }

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
    randaugment: int | None = option(
        None, "Magnitude of RandAugment, 0 to 30; 0: none.", left_out=f"9 {FROM_THERE_ON}, else 0"
    )
    random_erasing: float | None = option(
        None, "Probability of erasing a random rectangle.", left_out=f"0.25 {FROM_THERE_ON}, else 0"
    )
    mixup: float = option(0.0, "Parameter of mixup's Beta distribution (0.8 in MAE); 0: none.")
    cutmix: float = option(0.0, "Parameter of CutMix's Beta distribution (1.0 in MAE); 0: none.")
    class_weights: str | None = option(
        None,
        "none, or balanced: the loss of a class is weighted by 1 / its frequency.",
        left_out=f"none {FROM_THERE_ON} and in probes, else balanced",
    )
    labelled_groups: int | None = option(
        None,
        "Train on so many groups (patients) of the training part only, to see what more labels would be worth: drawn "
        "class by class, the same in every run of a fold, fewer among more. All if left out.",
    )
    random_resized_crop: bool | None = option(None, "Train on random crops. Left out: yes, unless resize is none.")
    crop_scale: list[float] = field(
        default_factory=lambda: [0.5, 1.0], metadata={"help": "Share of the area of a random crop, smallest largest."}
    )
    horizontal_flip: bool = option(True, "Mirror every second image left-right.")

    def __post_init__(self):
        super().__post_init__()
        if self.class_weights not in (None, "none", "balanced"):
            raise UsageError(f"class_weights must be none or balanced, got {self.class_weights!r}")
        if self.randaugment is not None and not 0 <= self.randaugment <= 30:
            raise UsageError(f"randaugment must be 0 to 30, got {self.randaugment}")
        if self.random_erasing is not None and not 0 <= self.random_erasing <= 1:
            raise UsageError(f"random_erasing must be 0 to 1, got {self.random_erasing}")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("image_mean", "image_std"):
            if getattr(self, name) is not None and len(getattr(self, name)) != 3:
                raise UsageError(f"{name} must be three numbers, one per channel, got {getattr(self, name)}")

    def fill_in(self, updates: float | None) -> None:
        """Choose what was left out and what is best depends on how long the network learns.

        Args:
            updates: of the fine-tuning, were all images of the corpus trained on; `None` where the network stays as it
                is.
        """
        few = updates is not None and updates < FEW_UPDATES
        usual = {
            "randaugment": 0 if few else 9,
            "random_erasing": 0.0 if few else 0.25,
            "class_weights": "balanced" if few else "none",
        }
        chosen = {name: value for name, value in usual.items() if getattr(self, name) is None}
        vars(self).update(chosen)
        if chosen and updates is not None:
            said = ", ".join(f"{name} {value}" for name, value in chosen.items())
            logger.info("for up to %.0f updates, left out: %s", updates, said)


@dataclass
class FinetuningOptions:
    """Defaults of MAE fine-tuning for options of `TrainingArguments`, and what it adds."""

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "run": RUN,
        "schedule": (*SCHEDULE, "early_stopping_patience", "restore_callback_states_from_checkpoint"),
        "optimiser": ("layer_decay", "weight_decay", "label_smoothing_factor", "max_grad_norm"),
        "evaluation and checkpoints": (*EVALUATION, "metric_for_best_model", "load_best_model_at_end"),
        "machine": MACHINE,
    }

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
    report_to: str = option(
        "none", "tensorboard for its files in output_dir/runs, wandb, trackio; none for metrics.jsonl alone."
    )
    bf16: bool | None = option(None, BF16)
    dataloader_num_workers: int = option(2, "Processes that decode images.")
    remove_unused_columns: bool = option(False, "Must stay false: the items are made as the model takes them.")


# What --help lists of finetune.py.
FINETUNING_OPTIONS = (ClassifierArguments, LabelledDataArguments, FinetuningOptions)
