"""The Trainer of the pretraining recipe: schedule of the objective, logged terms, checks, progress and pictures."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import EvalPrediction, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from modeling_glcm_mae import GLCMMAEForPreTraining, texture_fidelity
from recipe_args import UsageError
from recipe_data import EpochSampler
from recipe_files import replaced_file
from recipe_pictures import draw_reconstructions

TERMS = ("loss", "glcm", "ssim", "mse")
# Besides the objective, every evaluation measures texture in a way that no preset was trained on.
EVALUATED = (*TERMS, "glcm_l1")
PREDICTORS = ("patch_mean", "dataset_mean")


def checkpoint_to_resume(args: TrainingArguments, written: Sequence[str]) -> Path | None:
    """The checkpoint to resume from; `None` for a new run, after making sure that it overwrites no other.

    Args:
        args: with `overwrite_output_dir` beside the fields of `TrainingArguments`.
        written: what a run leaves in its output_dir, besides checkpoints.

    Raises:
        UsageError: there is no whole checkpoint to resume from, or an earlier run that would be overwritten.
    """
    folder = Path(args.output_dir)
    whole = whole_checkpoints(folder)
    if args.resume_from_checkpoint is not None:
        if args.resume_from_checkpoint != "last":
            checkpoint = Path(args.resume_from_checkpoint)
            if _step_of(checkpoint) is None:
                raise UsageError(f"resume_from_checkpoint: {checkpoint} is not a whole checkpoint of this recipe")
            return checkpoint
        if not whole:
            raise UsageError(f"resume_from_checkpoint: {folder} holds no whole checkpoint to resume from")
        return max(whole, key=_step_of)
    if earlier_run(folder, written) and not args.overwrite_output_dir:
        raise UsageError(
            f"output_dir {folder} holds an earlier run: pass --resume_from_checkpoint last to go on with it, "
            "--overwrite_output_dir to delete it, or another --output_dir"
        )
    return None


def earlier_run(folder: Path, written: Sequence[str]) -> list[Path]:
    """What an earlier run left in its output_dir."""
    return [folder / name for name in written if (folder / name).exists()] + list(folder.glob("checkpoint-*"))


def whole_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that can be resumed from."""
    # Its trainer_state.json is written last: without a whole one, the run was killed while saving.
    return [checkpoint for checkpoint in folder.glob("checkpoint-*") if _step_of(checkpoint) is not None]


def _step_of(checkpoint: Path) -> int | None:
    try:
        return json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    except (OSError, ValueError, KeyError):
        return None


class PretrainTrainer(Trainer):
    """`Trainer` for `GLCMMAEForPreTraining`, with the stages of the objective.

    Args:
        dataset_mean: `(num_channels,)`, mean of the training pixels in normalised units; one of the trivial predictors
            that every evaluation is held against (the other predicts the mean of each patch).
        **kwargs: of `Trainer`. Items of the data sets are `pixel_values`, `noise` and `file_name`.
    """

    def __init__(self, *, dataset_mean: torch.Tensor, **kwargs: Any):
        super().__init__(compute_metrics=self._mean_terms, **kwargs)
        self._dataset_mean = dataset_mean
        self._sums: torch.Tensor | None = None  # of the terms since the last log
        self._counts: torch.Tensor | None = None
        self._files: Sequence[str] = ()
        self._baselines: dict[str, float] | None = None
        self._clock: tuple[int, float] | None = None  # step and time from which the speed is counted

    # Order of the images

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, torch.utils.data.IterableDataset):
            return None
        # A whole number of batches, so that accumulation and several processes see the batches that one would.
        return EpochSampler(len(dataset), self.effective_batch_size, self.args.seed)

    @property
    def effective_batch_size(self) -> int:
        """Images per update of the weights."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        # save_pretrained writes ViTMAE's tensors under the names of older releases. Trainer (5.23) would look for the
        # new names, find none of the layers, warn, and train on from random ones.
        saved = GLCMMAEForPreTraining.from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        (self.model if model is None else model).load_state_dict(saved.state_dict())

    # Schedule of the objective: a function of the step alone, so that a resumed run continues it

    def mse_steps(self, max_steps: int) -> int:
        """Steps of plain mean squared error at the beginning of a training of `max_steps`."""
        mse_epochs = self.args.mse_epochs
        if mse_epochs < 1:
            return round(mse_epochs * max_steps)
        return round(mse_epochs * (len(self._get_train_sampler()) // self.effective_batch_size))

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
        """One forward and backward pass under the objective of this step."""
        if self._clock is None:  # also where a resume begins
            self._clock = (self.state.global_step, time.monotonic())
        self.accelerator.unwrap_model(model).set_objective(*self.objective_at(self.state.global_step))
        return super().training_step(model, inputs, num_items_in_batch)

    # Loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's loss; its terms are summed up for the next log."""
        self._files = inputs.pop("file_name")
        outputs = model(**inputs, interpolate_pos_encoding=True)
        terms = [outputs.loss, outputs.glcm_loss, outputs.ssim_loss, outputs.mse_loss]
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

    def evaluation_loop(self, *args, **kwargs):
        """As `Trainer`'s. The trivial predictors never change, so they are judged once."""
        output = super().evaluation_loop(*args, **kwargs)
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
        inner.set_objective(texture=False)
        with self.compute_loss_context_manager():
            outputs = model(pixel_values=pixel_values, noise=inputs["noise"], interpolate_pos_encoding=True)
        inner.set_objective(texture=True)
        predictions = {"": outputs.logits.float()}
        if self._baselines is None:
            predictions |= trivial_predictions(inner, pixel_values, self._dataset_mean)
        terms = torch.tensor(
            [
                [
                    value
                    for logits in predictions.values()
                    for value in self._evaluate_image(
                        inner, pixel_values[i : i + 1], logits[i : i + 1], outputs.mask[i]
                    )
                ]
                for i in range(len(pixel_values))
            ],
            device=pixel_values.device,
        )
        return terms[:, 0].mean(), terms, terms

    @staticmethod
    def _evaluate_image(model: GLCMMAEForPreTraining, pixel_values, logits, mask) -> list[float]:
        terms = model.reconstruction_loss(pixel_values, logits, mask[None])
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


class ImagesProgressCallback(ProgressCallback):
    """`ProgressCallback` that counts images, so that the bar shows images per second and the time left."""

    def __init__(self, images_per_step: int):
        super().__init__()
        self.images_per_step = images_per_step

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar at the step that training starts or resumes at."""
        self.current_step = state.global_step
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps * self.images_per_step,
                initial=state.global_step * self.images_per_step,
                unit=" images",
                smoothing=0.05,
                dynamic_ncols=True,
            )

    def on_step_end(self, args, state, control, **kwargs):
        """Advance by the images of a step."""
        if state.is_world_process_zero:
            self.training_bar.update((state.global_step - self.current_step) * self.images_per_step)
            self.current_step = state.global_step


class MetricsFileCallback(TrainerCallback):
    """Append every log as one JSON line to `metrics.jsonl`."""

    def __init__(self, file: Path):
        self.file = file

    def on_train_begin(self, args, state, control, **kwargs):
        """After a resume, drop what the killed run had logged beyond its checkpoint: those steps are run again."""
        if not state.is_world_process_zero or not self.file.exists():
            return
        rows = [row for row in map(_json_or_none, self.file.read_text().splitlines()) if row is not None]
        kept = [row for row in rows if row["step"] <= state.global_step] if state.global_step else []
        with replaced_file(self.file) as new:
            new.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write one line."""
        if state.is_world_process_zero:
            with self.file.open("a") as lines:
                lines.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def _json_or_none(line: str) -> dict | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None  # cut off when the run was killed


class PictureCallback(TrainerCallback):
    """Draw the same held-out images with the same masks every `every_epochs` epochs and at the end.

    Args:
        trainer: whose model is drawn.
        batch: `pixel_values` and `noise` of the images.
        image_mean, image_std: of the normalisation, to show grey as it was.
        folder: receives `step-<step>.png` and `last.png`.
        every_epochs: 0 for the end only.
    """

    def __init__(self, trainer, batch, image_mean, image_std, folder: Path, every_epochs: int):
        self.trainer, self.batch, self.folder = trainer, batch, folder
        self.image_mean, self.image_std, self.every_epochs = image_mean, image_std, every_epochs

    def on_epoch_end(self, args, state, control, **kwargs):
        """Draw if the epoch is due."""
        if self.every_epochs and round(state.epoch) % self.every_epochs == 0 and state.global_step < state.max_steps:
            self._draw(f"step-{state.global_step:07d}.png")

    def on_train_end(self, args, state, control, **kwargs):
        """Draw the final picture."""
        self._draw("last.png")

    def _draw(self, name: str) -> None:
        # Every process rebuilds, since a sharded model needs all of them; one draws.
        model = self.trainer.model
        was_training = model.training
        model.eval()
        pixel_values, noise = (self.batch[key].to(self.trainer.args.device) for key in ("pixel_values", "noise"))
        raw = model.reconstruct(pixel_values, noise=noise)
        pasted = model.reconstruct(pixel_values, noise=noise, paste=True)
        model.train(was_training)
        if self.trainer.is_world_process_zero():
            draw_reconstructions(
                self.folder / name, model.config, pixel_values, noise, raw, pasted, self.image_mean, self.image_std
            )


def took(results: dict[str, float], args: TrainingArguments, resumed: bool) -> str | None:
    """How long the training took on what, for the card; `None` where only a part of it was measured."""
    if resumed or "train_runtime" not in results:
        return None
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type.upper()
    return f"{results['train_runtime'] / 3600:.2f} h on {args.world_size} x {device}; energy was not measured"
