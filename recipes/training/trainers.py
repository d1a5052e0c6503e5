"""The two Trainers: what a step computes and what is logged."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import EvalPrediction, Trainer

from commandline import UsageError
from images.augment import Mixing
from modeling_glcm_mae import GLCMMAEForPreTraining, texture_fidelity
from training.feeding import EpochSampler
from training.models import parameter_groups
from training.resume import best_checkpoint

logger = logging.getLogger(__name__)

TERMS = ("loss", "glcm", "ssim", "mse", "glcm_head", "glcm_cls")
# Besides the objective, every evaluation measures texture in a way that no preset was trained on.
EVALUATED = (*TERMS, "glcm_l1")
PREDICTORS = ("patch_mean", "dataset_mean")
HEADS = ("glcm_head_logits", "glcm_cls_logits")  # what they answer, in the output of the model


class PretrainTrainer(Trainer):
    """`Trainer` for `GLCMMAEForPreTraining`, with the stages of the objective.

    Args:
        dataset_mean: `(num_channels,)`, mean of the training pixels in normalised units; one of the trivial predictors
            that every evaluation is held against (the other predicts the mean of each patch).
        mean_distributions: for each of `HEADS` that there is, the mean of what it has to predict of the training
            images, `(D, Q)` and `(T, D, Q)`: what both trivial predictors answer for it, since a patch of one grey
            level has no texture.
        **kwargs: of `Trainer`. Items of the data sets are `pixel_values`, `noise` and `file_name`.
    """

    def __init__(self, *, dataset_mean: torch.Tensor, mean_distributions: Mapping[str, torch.Tensor], **kwargs: Any):
        super().__init__(compute_metrics=self._mean_terms, **kwargs)
        self._dataset_mean, self._mean_distributions = dataset_mean, mean_distributions
        self._sums: torch.Tensor | None = None  # of the terms since the last log
        self._counts: torch.Tensor | None = None
        self._files: Sequence[str] = ()
        self._baselines: dict[str, float] | None = None
        self._judged: Any = None  # the data set that they are of
        self._clock: tuple[int, float] | None = None  # step and time from which the speed is counted

    # Order of the images

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, torch.utils.data.IterableDataset):
            return None
        # A whole number of batches, so that accumulation and several processes see the batches that one would.
        return EpochSampler(len(dataset), self.effective_batch_size, self.args.seed)

    def _init_training_state(self, max_steps, *args, **kwargs):
        passes, batches = super()._init_training_state(max_steps, *args, **kwargs)
        if self.state.global_step and isinstance(self.train_dataset, torch.utils.data.IterableDataset):
            # Trainer (5.23) takes the whole training for the first pass over a stream, whose length it does not know,
            # and would go on after a resume from where that pass ended. In its own count of epochs, the whole number
            # is that of the passes, and the rest the share of `max_steps` that was done in the last one.
            share, passes = math.modf(self.state.epoch)
            passes, batches = int(passes), round(share * max_steps) * self.args.gradient_accumulation_steps
        return passes, batches

    @property
    def effective_batch_size(self) -> int:
        """Images per update of the weights."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Updates in a pass over the images; a stream has none that is known."""
        return len(self._get_train_sampler()) // self.effective_batch_size

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        # Trainer (5.23) warns of a tensor that is missing, and trains on without it.
        try:
            saved, report = GLCMMAEForPreTraining.from_pretrained(
                resume_from_checkpoint, dtype=torch.float32, output_loading_info=True
            )
            missing = sorted(report["missing_keys"])
            if missing:
                raise ValueError(f"{len(missing)} tensors are missing, {missing[0]} among them")
            (self.model if model is None else model).load_state_dict(saved.state_dict())
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(
                f"resume_from_checkpoint: the weights in {resume_from_checkpoint} cannot be used ({reason}): delete it "
                "to go on from the one before"
            ) from error

    # Schedule of the objective: a function of the step alone, so that a resumed run continues it

    def mse_steps(self, max_steps: int) -> int:
        """Steps of plain mean squared error at the beginning of a training of `max_steps`."""
        mse_epochs = self.args.mse_epochs
        if mse_epochs < 1:
            return round(mse_epochs * max_steps)
        return round(mse_epochs * self.steps_per_epoch)

    def objective_at(self, step: int) -> tuple[bool, float | None]:
        """Whether texture is on at a step of training, and the sharpness of its kernel (None: as configured)."""
        mse_steps = self.mse_steps(self.state.max_steps)
        if step < mse_steps:
            return False, None
        start, end = self.args.sharpness_start, self.accelerator.unwrap_model(self.model).config.glcm_sharpness
        if start is None:
            return True, None
        progress = (step - mse_steps) / max(self.state.max_steps - 1 - mse_steps, 1)
        return True, start * (end / start) ** min(progress, 1.0)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One forward and backward pass; the speed is counted from the first."""
        if self._clock is None:  # also where a resume begins
            self._clock = (self.state.global_step, time.monotonic())
        return super().training_step(model, inputs, num_items_in_batch)

    # Loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's loss under the objective of this step; its terms are summed up for the next log."""
        self._files = inputs.pop("file_name")
        texture, sharpness = self.objective_at(self.state.global_step)
        outputs = model(**inputs, interpolate_pos_encoding=True, texture=texture, glcm_sharpness=sharpness)
        terms = [outputs.loss, *(getattr(outputs, f"{name}_loss") for name in TERMS[1:])]
        if not torch.isfinite(outputs.loss):
            broken = [
                f"{name} ({term.item()})"
                for name, term in zip(TERMS[1:], terms[1:], strict=True)
                if term is not None and not torch.isfinite(term)
            ]
            self._stop(f"the term {', '.join(broken) or 'loss'} is not finite")
        values = torch.stack([outputs.loss.new_zeros(()) if term is None else term.detach().float() for term in terms])
        present = torch.tensor([term is not None for term in terms], device=values.device, dtype=values.dtype)
        self._sums = values if self._sums is None else self._sums + values
        self._counts = present if self._counts is None else self._counts + present
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # Under fp16 the loss scaler meets infinite gradients on its way to a good scale, and skips them.
        if norm is not None and self.accelerator.scaler is None and not math.isfinite(norm):
            self._stop("the gradient is not finite, though the loss is")
        return norm

    def _stop(self, reason: str) -> None:
        raise FloatingPointError(
            f"stopped at step {self.state.global_step + 1}: {reason}. Files of the batch: {', '.join(self._files)}. "
            f"Checkpoints saved before are intact in {self.args.output_dir}."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each term since the last log, and the speed."""
        if "loss" in logs and self._counts is not None:
            sums, counts = self.accelerator.gather(torch.stack([self._sums, self._counts])[None]).sum(dim=0).tolist()
            for name, total, count in zip(TERMS[1:], sums[1:], counts[1:], strict=True):
                if count:
                    logs[name] = total / count
            self._sums = self._counts = None
            step, now = self.state.global_step, time.monotonic()
            if step > self._clock[0]:
                logs["images_per_second"] = (step - self._clock[0]) * self.effective_batch_size / (now - self._clock[1])
            texture, sharpness = self.objective_at(step - 1)
            logs["texture"] = int(texture)
            if sharpness is not None:
                logs["sharpness"] = sharpness
            self._clock = (step, now)
        super().log(logs, start_time)

    # Evaluation: the full objective at any stage, so that its curve means the same from the first to the last step

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Evaluate on fixed masks of held-out images; the trivial predictors' terms stand beside the model's."""
        metrics = super().evaluate(*args, **kwargs)
        self._clock = (self.state.global_step, time.monotonic())
        return metrics

    def evaluation_loop(self, dataloader, *args, **kwargs):
        """As `Trainer`'s. The trivial predictors never change, so they are judged once for a data set."""
        if dataloader.dataset is not self._judged:
            self._baselines, self._judged = None, dataloader.dataset
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        if self._baselines is None:
            self._baselines = {
                name: value for name, value in output.metrics.items() if any(name.endswith(p) for p in PREDICTORS)
            }
        output.metrics.update(self._baselines)
        return output

    @torch.no_grad()
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The terms of each image alone, `(batch, terms)`: masks are of equal size, so their mean is the batch's."""
        inputs = self._prepare_inputs(inputs)
        inner = self.accelerator.unwrap_model(model)
        pixel_values = inputs["pixel_values"]
        with self.compute_loss_context_manager():
            outputs = model(  # texture is judged below, image by image
                pixel_values=pixel_values, noise=inputs["noise"], interpolate_pos_encoding=True, texture=False
            )
        heads = {name: outputs[name].float() for name in HEADS if name in outputs}
        predictions = [(outputs.logits.float(), heads)]
        if self._baselines is None:
            mean = {
                name: self._mean_distributions[name].log().to(answers).expand_as(answers)
                for name, answers in heads.items()
            }
            trivial = trivial_predictions(inner, pixel_values, self._dataset_mean)
            predictions += [(trivial[name], mean) for name in PREDICTORS]
        terms = torch.tensor(
            [
                [
                    value
                    for logits, heads in predictions
                    for value in self._evaluate_image(
                        inner,
                        pixel_values[i : i + 1],
                        logits[i : i + 1],
                        outputs.mask[i],
                        {name: answers[i : i + 1] for name, answers in heads.items()},
                    )
                ]
                for i in range(len(pixel_values))
            ],
            device=pixel_values.device,
        )
        return terms[:, 0].mean(), terms, terms

    @staticmethod
    def _evaluate_image(model: GLCMMAEForPreTraining, pixel_values, logits, mask, heads) -> list[float]:
        terms = model.reconstruction_loss(pixel_values, logits, mask[None], **heads)
        masked = mask.bool()
        target = model.image_patches(pixel_values)
        pred = model.pixels_of_logits(logits, target)
        fidelity = texture_fidelity(
            model.grey(pred)[0, masked], model.grey(target)[0, masked], value_range=model.config.glcm_value_range
        )
        return [math.nan if terms[name] is None else float(terms[name]) for name in TERMS] + [
            float(fidelity["glcm_l1"])
        ]

    def _mean_terms(self, prediction: EvalPrediction) -> dict[str, float]:
        config = self.accelerator.unwrap_model(self.model).config
        absent = {"glcm"} if not config.glcm_weight else set()
        absent |= {"ssim"} if not config.ssim_weight else set()
        absent |= {"glcm_head"} if not config.glcm_head_weight else set()
        absent |= {"glcm_cls"} if not config.glcm_cls_weight else set()
        names = [(term, suffix) for suffix in ("", *(f"_{name}" for name in PREDICTORS)) for term in EVALUATED]
        # zip stops early where the trivial predictors are already known
        means = zip(names, prediction.predictions.mean(axis=0), strict=False)
        return {f"{term}{suffix}": float(mean) for (term, suffix), mean in means if term not in absent}

    def create_model_card(self, *args, **kwargs) -> None:
        """Leave the card to the export: Trainer's own would overwrite it."""


def trivial_predictions(
    model: GLCMMAEForPreTraining, pixel_values: torch.Tensor, dataset_mean: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What two predictors that learned nothing of an image would answer.

    Args:
        model: gives the patch size.
        pixel_values: `(batch_size, num_channels, height, width)`.
        dataset_mean: `(num_channels,)` in normalised units.

    Returns:
        `patch_mean` and `dataset_mean`: logits `(batch_size, num_patches, patch_size ** 2 * num_channels)` that paint
        each patch with its own mean, or all with the mean of the data set.
    """
    target = model.image_patches(pixel_values).float()
    paints = {
        "patch_mean": target.mean(dim=(2, 3), keepdim=True).expand_as(target),
        "dataset_mean": dataset_mean.to(target).expand_as(target),
    }
    return {name: model.logits_of_pixels(paint, target).flatten(2) for name, paint in paints.items()}


class ClassifierTrainer(Trainer):
    """`Trainer` with layer-wise rates, soft targets, and the weights of the classes.

    Args:
        class_weights: `(num_classes,)`, or `None`.
        layer_decay: see `parameter_groups`.
        mixing: of the images of a training batch.
        **kwargs: of `Trainer`.
    """

    def __init__(self, *, class_weights: torch.Tensor | None, layer_decay: float, mixing: Mixing, **kwargs: Any):
        super().__init__(**kwargs)
        self._class_weights, self._layer_decay, self._mixing = class_weights, layer_decay, mixing
        # Because ViT's forward takes any keyword, Trainer believes that the loss is a sum over the accumulated batches
        # and leaves out the division by their number; ours is a mean.
        self.model_accepts_loss_kwargs = False

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
        pixel_values, targets, options = inputs["pixel_values"], inputs["labels"], {}
        if model.training:
            pixel_values, targets = self._mixing(pixel_values, targets, inputs["index"])
        outputs = model(pixel_values=pixel_values)
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
        # save_pretrained writes ViT's tensors under the names of older releases. Trainer (5.23) would look for the new
        # names, find none of the layers, warn, and train on from random ones. (Our autoencoder knows both names.)
        saved = type(self.model).from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        (self.model if model is None else model).load_state_dict(saved.state_dict())

    def _init_training_state(self, max_steps, steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial):
        done = super()._init_training_state(max_steps, steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial)
        if resume_from_checkpoint is not None and self.args.load_best_model_at_end:
            # Trainer (5.23) looks where the state says, and exports the last weights where nothing lies there any more.
            best = best_checkpoint(Path(resume_from_checkpoint))
            self.state.best_model_checkpoint = None if best is None else str(best)
        return done

    def _determine_best_metric(self, metrics, trial):
        chosen, best = f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}", self.state.best_metric
        # Trainer keeps the first of equally good epochs. A figure that has reached its end, as an AUROC of 1 does in
        # the first epoch, would have a classifier exported that has hardly been trained.
        tied = best is not None and metrics[chosen] == best and self.state.best_global_step is not None
        if tied and metrics["eval_loss"] < self._loss_of_best():
            self.state.best_metric = None
        return super()._determine_best_metric(metrics, trial)

    def _loss_of_best(self) -> float:
        """`eval_loss` of the epoch that is best so far, a run of before too: the state holds the log."""
        steps = {entry["step"]: entry["eval_loss"] for entry in self.state.log_history if "eval_loss" in entry}
        return steps[self.state.best_global_step]

    def _load_best_model(self):
        logger.info("best on validation: %s", self.state.best_model_checkpoint)
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def create_model_card(self, *args, **kwargs) -> None:
        """Leave the card to the export: Trainer's own would overwrite it."""
