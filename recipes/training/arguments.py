"""What can be asked of pretraining and fine-tuning: our options joined with those of transformers' Trainer."""

import math
import os
from dataclasses import dataclass

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from commandline import UsageError
from corpora.record import BadImageError
from training.classifier_options import ClassifierArguments, FinetuningOptions, LabelledDataArguments
from training.options import DataArguments, ModelArguments, PretrainingOptions

STAGED_SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup")
OPTIMIZERS = ("adamw_torch_fused", "adamw_torch")  # AdamW over the groups of parameter_groups is made for both


def _bf16(args: TrainingArguments) -> bool:
    """What was asked for, else whether nobody chose a precision and there is a GPU that computes in bfloat16.

    Raises:
        UsageError: false was asked for, and the launcher says bf16.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if args.bf16 is False and launched == "bf16":
        raise UsageError("bf16 false, where the launcher says mixed_precision bf16: give it --mixed_precision no")
    if args.bf16 is not None:
        return args.bf16
    # A launcher says "no" also where nobody was asked.
    if args.fp16 or args.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU") or launched != "no":
        return False
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


@dataclass
class PretrainingArguments(PretrainingOptions, TrainingArguments):
    """`TrainingArguments` with the defaults of MAE pretraining, and the schedule of the objective."""

    def __post_init__(self):
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_pictures", "picture_every_epochs", "probe_labels"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise UsageError(f"num_train_epochs must be greater than 0, got {self.num_train_epochs}")
        self.bf16 = _bf16(self)
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
class FinetuningArguments(FinetuningOptions, TrainingArguments):
    """`TrainingArguments` with the defaults of MAE fine-tuning."""

    def __post_init__(self):
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise UsageError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        self.bf16 = _bf16(self)
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
# What goes wrong in the middle of a training and is for the user to know; any other error is a fault of ours.
MISTAKES = (FloatingPointError, BadImageError, UsageError)
