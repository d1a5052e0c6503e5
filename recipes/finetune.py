"""Fine-tune an encoder into a stock image classifier, on a fold of a prepared corpus.

    accelerate launch recipes/finetune.py --config recipes/configs/busi/finetune.yaml \
        --corpus data/busi --fold 0 --model_name_or_path runs/busi/pretrain_texture/export

The corpus is the output of prepare_corpus.py. The model is chosen on the validation part, and the test part is looked
at once, at the end. ViT-B/16 at 224 pixels wants a GPU. `output_dir` receives config.yaml (resolved), metrics.jsonl,
all_results.json, predictions.parquet (the test part), validation_predictions.parquet, checkpoints and export/ (a stock
`ViTForImageClassification` with its processor and card, as it goes to the Hub).
"""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from recipe_args import ImageArguments, UsageError, option
from recipe_classifier import CLASSIFIERS, parameter_groups
from recipe_data import EpochSampler
from recipe_frozen import MODES

logger = logging.getLogger("finetune")
WRITTEN = (
    *("config.yaml", "metrics.jsonl", "all_results.json", "export"),
    *("predictions.parquet", "validation_predictions.parquet"),
)


@dataclass
class ClassifierArguments:
    """Which encoder, and how it becomes a classifier."""

    model_name_or_path: str | None = option(
        None, "Export of pretrain.py, any ViT or ViTMAE checkpoint (folder or Hub id). Without it, from nothing."
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
        "cls: stock ViTForImageClassification. mean (of the patch tokens): often better on few labels, but then others "
        "need trust_remote_code=True, and there is no widget and no pipeline without it.",
    )
    drop_path: float = option(0.1, "Stochastic depth of the last layer, growing linearly from 0 at the first.")
    knn_neighbours: int = option(20, "Neighbours that vote, for mode knn.")
    image_size: int | None = option(None, "Side in pixels, without a checkpoint.")
    patch_size: int | None = option(None, "Side of a patch in pixels, without a checkpoint.")
    hidden_size: int | None = option(None, "Width, without a checkpoint.")
    num_hidden_layers: int | None = option(None, "Layers, without a checkpoint.")
    num_attention_heads: int | None = option(None, "Attention heads, without a checkpoint.")
    intermediate_size: int | None = option(None, "Width of the MLPs, without a checkpoint.")

    def __post_init__(self):
        for name, allowed in (("mode", MODES), ("pooling", tuple(CLASSIFIERS))):
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
    """Which images and labels. Without `resize` and `image_mean`, images go in as the checkpoint's processor says."""

    resize: str | None = option(None, "shortest (and centre crop), squash, letterbox or none.")
    splits_file: str | None = option(None, "Splits; splits.json of the corpus if left out.")
    fold: str = option("0", "Fold of the splits: 0, 1, ... or official.")
    positive_classes: list[str] | None = option(
        None, "Classes that count as positive in the figures that are collapsed to two classes (GBCU: malignant)."
    )
    randaugment: int = option(9, "Magnitude of RandAugment, 0 to 30; 0: none.")
    random_erasing: float = option(0.25, "Probability of erasing a random rectangle.")
    mixup: float = option(0.0, "Parameter of mixup's Beta distribution (0.8 in MAE); 0: none.")
    cutmix: float = option(0.0, "Parameter of CutMix's Beta distribution (1.0 in MAE); 0: none.")
    class_weights: str = option("none", "none, or balanced: the loss of a class is weighted by 1 / its frequency.")
    random_resized_crop: bool = option(True, "Train on random crops.")
    crop_scale: list[float] = field(
        default_factory=lambda: [0.5, 1.0], metadata={"help": "Share of the area of a random crop, smallest largest."}
    )
    horizontal_flip: bool = option(True, "Mirror every second image left-right.")

    def __post_init__(self):
        if self.class_weights not in ("none", "balanced"):
            raise UsageError(f"class_weights must be none or balanced, got {self.class_weights!r}")
        if not 0 <= self.randaugment <= 30:
            raise UsageError(f"randaugment must be 0 to 30, got {self.randaugment}")
        if not 0 <= self.random_erasing <= 1:
            raise UsageError(f"random_erasing must be 0 to 1, got {self.random_erasing}")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must be at least 0, got {getattr(self, name)}")


@dataclass
class FinetuningArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of MAE fine-tuning."""

    output_dir: str | None = option("runs/finetune", "Receives everything that the run writes.")
    overwrite_output_dir: bool = option(False, "Delete what an earlier run left in output_dir.")
    base_learning_rate: float = option(1e-3, "Rate for 256 images an update; scaled by images per update / 256.")
    learning_rate: float | None = option(None, "Rate as it is; instead of base_learning_rate.")
    layer_decay: float = option(0.75, "Factor of the rate from one layer to the one below it.")
    early_stopping_patience: int = option(0, "Evaluations without a better one before stopping; 0: never.")
    per_device_train_batch_size: int = option(32, "Images a process and a step.")
    per_device_eval_batch_size: int = option(64, "Images a process in evaluation.")
    num_train_epochs: float = option(50, "Passes over the images.")
    weight_decay: float = option(0.05, "Not on biases and norms.")
    label_smoothing_factor: float = option(0.1, "Share of the target that is spread over all classes.")
    lr_scheduler_type: str = option("cosine", "Shape of the learning rate after the warm-up.")
    warmup_steps: float = option(0.1, "Linear warm-up: a fraction of the steps if below 1, else steps.")
    max_grad_norm: float = option(1.0, "Clip gradients to this norm.")
    logging_steps: float = option(10, "Steps between two lines of metrics.")
    eval_strategy: str = option("epoch", "When to judge on the validation part.")
    save_strategy: str = option("epoch", "When to save a checkpoint; the same as eval_strategy.")
    save_total_limit: int | None = option(1, "Checkpoints to keep besides the best.")
    metric_for_best_model: str = option("eval_auroc", "Validation figure that chooses the model.")
    load_best_model_at_end: bool = option(True, "Export the best model on the validation part.")
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
        if self.remove_unused_columns:
            raise UsageError("remove_unused_columns must stay false, got true")


class ClassifierTrainer(Trainer):
    """`Trainer` with layer-wise rates, soft targets, and the weights of the classes.

    Args:
        class_weights: `(num_classes,)`, or `None`.
        layer_decay: see `parameter_groups`.
        **kwargs: of `Trainer`.
    """

    def __init__(self, *, class_weights: torch.Tensor | None, layer_decay: float, **kwargs: Any):
        super().__init__(**kwargs)
        self._class_weights, self._layer_decay = class_weights, layer_decay

    @property
    def effective_batch_size(self) -> int:
        """Images per update of the weights."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def create_optimizer(self, model=None):
        """AdamW over the groups of `parameter_groups`."""
        if self.optimizer is None:
            args = self.args
            groups = parameter_groups(self.model, args.learning_rate, args.weight_decay, self._layer_decay)
            self.optimizer = torch.optim.AdamW(
                groups, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon
            )
        return self.optimizer

    def _get_train_sampler(self, train_dataset=None):
        return EpochSampler(len(self.train_dataset), self.effective_batch_size, self.args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy against soft targets `(B, num_classes)`; smoothing and weights in training only."""
        targets = inputs.pop("labels")
        outputs = model(**inputs)
        options = {}
        if model.training:
            weights = self._class_weights
            options = {
                "label_smoothing": self.args.label_smoothing_factor,
                "weight": None if weights is None else weights.to(outputs.logits.device),
            }
        loss = torch.nn.functional.cross_entropy(outputs.logits.float(), targets, **options)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"stopped at step {self.state.global_step + 1}: the loss is {loss.item()}. Lower learning_rate "
                f"({self.args.learning_rate:.3g}). Checkpoints saved before are intact in {self.args.output_dir}."
            )
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss, logits and integer labels of a batch."""
        inputs = self._prepare_inputs(inputs)
        targets = inputs["labels"].argmax(dim=1)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), outputs.logits.float(), targets

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        # save_pretrained writes ViT's tensors under the names of older releases; see PretrainTrainer.
        saved = type(self.model).from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        (self.model if model is None else model).load_state_dict(saved.state_dict())

    def _load_best_model(self):
        logger.info("best on validation: %s", self.state.best_model_checkpoint)
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def create_model_card(self, *args, **kwargs) -> None:
        """Leave the card to the export: Trainer's own would overwrite it."""
