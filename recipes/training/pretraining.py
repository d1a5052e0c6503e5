"""The Trainer of the pretraining recipe (objective, terms, pictures); how a run begins and is resumed."""

import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm.auto import tqdm
from transformers import EvalPrediction, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from commandline import UsageError
from judging.pictures import draw_reconstructions
from modeling_glcm_mae import GLCMMAEForPreTraining, texture_fidelity
from output_folder import delete, replaced_file
from training.feeding import EpochSampler

logger = logging.getLogger(__name__)
TERMS = ("loss", "glcm", "ssim", "mse")
# Besides the objective, every evaluation measures texture in a way that no preset was trained on.
EVALUATED = (*TERMS, "glcm_l1")
PREDICTORS = ("patch_mean", "dataset_mean")


# What may change in a resume, by section of config.yaml. Whatever is not named here must stay: with another setting it
# would not be the same training.
MAY_CHANGE: dict[str, frozenset[str]] = {
    # The weights are those of the checkpoint, and the images are known by their contents.
    "model": frozenset({"model_name_or_path", "model_revision", "model_subfolder"}),
    "data": frozenset({"corpus", "data_dir", "splits_file", "bad_images"}),
    "model_config": frozenset({"_name_or_path", "architectures", "dtype", "transformers_version"}),
    "derived": frozenset({"world_size", "skipped_images"}),
    "training": frozenset(
        {
            *("output_dir", "overwrite_output_dir", "resume_from_checkpoint"),
            # judged by what follows from them: learning_rate, effective_batch_size, mixed_precision
            *("base_learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "train_batch_size"),
            *("bf16", "fp16"),
            # devices, memory and speed
            *("use_cpu", "local_rank", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
            *("ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config", "parallelism_config"),
            *("gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing"),
            *("activation_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
            *("torch_empty_cache_steps", "per_device_eval_batch_size", "eval_batch_size", "eval_accumulation_steps"),
            *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
            *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "skip_memory_metrics"),
            # what is shown, kept and published
            *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "log_level"),
            *("log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id"),
            *("trackio_bucket_id", "trackio_static_space_id", "include_num_input_tokens_seen", "debug"),
            *("save_total_limit", "save_on_each_node", "enable_jit_checkpoint", "push_to_hub", "hub_token"),
            *("hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
        }
    ),
}


def checkpoint_to_resume(
    args: TrainingArguments, written: Sequence[str], sources: Sequence[str | None] = ()
) -> Path | None:
    """The checkpoint to resume from; `None` for a new run, after making sure that it overwrites no other.

    Args:
        args: with `overwrite_output_dir` beside the fields of `TrainingArguments`.
        written: what a run leaves in its output_dir, besides checkpoints.
        sources: what the run reads, where these are paths.

    Raises:
        UsageError: there is no whole checkpoint to resume from, or an earlier run that would be overwritten, or a
            source that would be deleted with it.
    """
    folder = Path(args.output_dir)
    whole = whole_checkpoints(folder)
    if args.resume_from_checkpoint is not None:
        if args.resume_from_checkpoint != "last":
            checkpoint = Path(args.resume_from_checkpoint)
            if _step_of(checkpoint) is None:
                raise UsageError(f"resume_from_checkpoint: {checkpoint} is not a whole checkpoint of this recipe")
            if checkpoint.resolve().parent != folder.resolve():
                # A resume of that checkpoint that was killed before its first own one may be repeated.
                kept = whole or any((folder / name).exists() for name in ("all_results.json", "export"))
                if kept and not args.overwrite_output_dir:
                    raise UsageError(
                        f"output_dir {folder} holds an earlier run, and not that of {checkpoint}: give another "
                        "--output_dir, or pass --overwrite_output_dir to delete it"
                    )
                _refuse_to_delete(folder, written, (*sources, str(checkpoint)))
            return checkpoint
        if not whole:
            raise UsageError(f"resume_from_checkpoint: {folder} holds no whole checkpoint to resume from")
        return max(whole, key=_step_of)
    if earlier_run(folder, written) and not args.overwrite_output_dir:
        raise UsageError(
            f"output_dir {folder} holds an earlier run: pass --resume_from_checkpoint last to go on with it, "
            "--overwrite_output_dir to delete it, or another --output_dir"
        )
    _refuse_to_delete(folder, written, sources)
    return None


def _refuse_to_delete(folder: Path, written: Sequence[str], sources: Sequence[str | None]) -> None:
    deleted = [path.resolve() for path in earlier_run(folder, written)]
    for source in filter(None, sources):
        path = Path(source).expanduser().resolve()
        if deleted and (path == folder.resolve() or any(path.is_relative_to(other) for other in deleted)):
            raise UsageError(f"output_dir {folder} holds {source}, which would be deleted: give another --output_dir")


def refuse_another_training(
    checkpoint: Path, resolved: dict[str, dict[str, Any]], may_change: dict[str, frozenset[str]]
) -> None:
    """Refuse a resume that would not go on with the training that wrote the checkpoint.

    Settings that its config.yaml does not tell, because another version wrote it, are named in a warning.

    Args:
        checkpoint: config.yaml of its run lies beside it.
        resolved: what config.yaml would hold now, by section.
        may_change: names that are not compared, by section.

    Raises:
        UsageError: config.yaml is missing, or a setting differs; names it, what it must be, and what it is.
    """
    file = checkpoint.parent / "config.yaml"
    try:
        stored = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UsageError(f"resume_from_checkpoint: {file}, which tells how the run began: {error.strerror}") from error
    if not isinstance(stored, dict) or not isinstance(stored.get("training"), dict) or not stored.get("derived"):
        raise UsageError(f"resume_from_checkpoint: {file} does not tell how the run began")
    if stored["training"].get("save_only_model"):
        raise UsageError(f"resume_from_checkpoint: {checkpoint} was saved with save_only_model, without the optimiser")
    # Until the launcher's precision was written down, all that is known is what was asked for by option.
    asked = next((name for name in ("bf16", "fp16") if stored["training"].get(name)), "no")
    stored["derived"].setdefault("mixed_precision", asked)
    # The macro mean of a figure was once named as that of two classes.
    chosen = resolved["training"].get("metric_for_best_model")
    if chosen == f"eval_macro_{str(stored['training'].get('metric_for_best_model')).removeprefix('eval_')}":
        stored["training"]["metric_for_best_model"] = chosen
    untold = []
    first = {"model": 0, "derived": 1}  # what others follow from
    for section in sorted(resolved, key=lambda section: first.get(section, len(first))):
        if section not in stored:
            untold.append(f"the section {section}")
            continue
        allowed = may_change.get(section, frozenset())
        if section == "derived" and stored["derived"].get("train_contents_sha256"):
            allowed |= {"train_images_sha256"}  # of their names
        before, now = stored[section], resolved[section]
        untold += sorted((before.keys() ^ now.keys()) - allowed)
        for name in (name for name in now if name in before):
            old, new = before[name], now[name]
            if name == "model_name_or_path":  # the list of images that were seen goes on from there
                changed = (old is None) != (new is None)
            else:
                changed = name not in allowed and old != new
            if changed:
                raise UsageError(
                    f"resume_from_checkpoint: {name} must stay {old} as in the first part of the run, got {new}. To "
                    f"train on with other settings or images, start a new run from --model_name_or_path {checkpoint}"
                )
    if untold:
        logger.warning(
            "%s was written by another version, which does not tell or know %s: these are not compared",
            *(file, ", ".join(untold)),
        )


def rehearse(trainer: Trainer, num_steps: int) -> None:
    """Make what the first step needs and drop it again, so that a mistake in it is known before anything is deleted.

    Args:
        trainer: as it will be trained.
        num_steps: steps of the whole training.

    Raises:
        ValueError: fewer images than a batch; an optimiser or a schedule that cannot be made.
    """
    trainer._get_train_sampler()
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # makes its optimiser later, of the sharded model
        return
    try:
        trainer.create_optimizer_and_scheduler(num_steps)
    except (ImportError, RuntimeError, TypeError) as error:
        raise UsageError(
            f"optim {trainer.args.optim} and lr_scheduler_type {trainer.args.lr_scheduler_type} cannot be made: {error}"
        ) from error
    finally:
        trainer.optimizer = trainer.lr_scheduler = None


def begin_run(output_dir: Path, written: Sequence[str], checkpoint: Path | None, resolved: dict[str, Any]) -> None:
    """Delete what an earlier run left, unless its own checkpoint is resumed, and write config.yaml.

    Called when nothing can be wrong any more with what was asked for.
    """
    if checkpoint is None or checkpoint.resolve().parent != output_dir.resolve():
        for path in earlier_run(output_dir, written):
            delete(path)
    output_dir.mkdir(parents=True, exist_ok=True)
    with replaced_file(output_dir / "config.yaml") as new:  # a resume reads it, also after a kill at this place
        new.write_text(yaml.safe_dump(resolved, sort_keys=False))


def earlier_run(folder: Path, written: Sequence[str]) -> list[Path]:
    """What an earlier run left in its output_dir."""
    return [folder / name for name in written if (folder / name).exists()] + _checkpoints(folder)


def _checkpoints(folder: Path) -> list[Path]:
    # Not all of checkpoint-*: somebody may have put checkpoint-notes.txt there.
    return [path for path in folder.glob("checkpoint-*") if path.is_dir() and path.name[11:].isdecimal()]


def whole_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that can be resumed from."""
    # Its trainer_state.json is written last: without a whole one, the run was killed while saving.
    return [checkpoint for checkpoint in _checkpoints(folder) if _step_of(checkpoint) is not None]


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
