"""What happens beside the training: progress, the log, pictures, publishing."""

import json
import logging
import re
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from commandline import UsageError
from hub.contents import with_export
from hub.publication import Publication
from hub.repository import send
from judging.pictures import draw_reconstructions
from modeling_glcm_mae import texture_surprise
from output_folder import replaced_file

logger = logging.getLogger(__name__)


ESTIMATE_AFTER = 10  # seconds of steps, the first one not among them
# What a line for the eye leaves out and metrics.jsonl has: speeds of an evaluation, and figures of single classes.
NOT_SAID = re.compile(
    r"total_flos|eval_(runtime|samples_per_second|steps_per_second)|"
    r"eval_(balanced_accuracy|sensitivity|specificity|auroc|f1)_.+"
)


class ImagesProgressCallback(ProgressCallback):
    """`ProgressCallback` that counts images, says how long the training will take, and writes short lines.

    A figure that is what it was in the line before is not said again.

    Args:
        images_per_step: in all processes.
        bars: whether bars are drawn.
    """

    def __init__(self, images_per_step: int, bars: bool = True):
        super().__init__()
        self.images_per_step, self.bars = images_per_step, bars
        self.said: dict[str, Any] = {}
        self.first: tuple[int, float] | None = None  # step and time
        self.estimated = False

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
                disable=not self.bars,
            )

    def on_step_end(self, args, state, control, **kwargs):
        """Advance by the images of a step."""
        if state.is_world_process_zero:
            self.training_bar.update((state.global_step - self.current_step) * self.images_per_step)
            self.current_step = state.global_step
            self._estimate(state)

    def on_prediction_step(self, args, state, control, **kwargs):
        """Advance the bar of an evaluation."""
        if self.bars:
            super().on_prediction_step(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write what is new in one line."""
        if not state.is_world_process_zero:
            return
        new = {
            name: value
            for name, value in logs.items()
            if name != "epoch"
            and not NOT_SAID.fullmatch(name)
            and self.said.get(name) != value
            # Of two classes, these are the others again.
            and not (name.startswith("eval_binary_") and "eval_auroc" in logs)
        }
        self.said |= new
        if new:
            figures = [f"{name} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in new.items()]
            tqdm.write(f"epoch {logs.get('epoch', 0):.4g}: {', '.join(figures)}")

    def _estimate(self, state) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = state.global_step, now
        steps, seconds = state.global_step - self.first[0], now - self.first[1]
        if seconds >= ESTIMATE_AFTER and not self.estimated:
            self.estimated = True
            left = state.max_steps - state.global_step
            logger.info(
                "%d updates are left: about %s at %.3g images a second",
                *(left, timedelta(seconds=round(left * seconds / steps)), steps * self.images_per_step / seconds),
            )


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


class StepsAsToldNow(TrainerCallback):
    """Log, judge and save as often as this call says.

    Trainer (5.23) takes the steps between from the checkpoint: in a resume those of the call before, in a second stage
    those of the first.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        """Count anew: the state is that of the checkpoint."""
        state.compute_steps(args, state.max_steps)


def _json_or_none(line: str) -> dict | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None  # cut off when the run was killed


class PictureCallback(TrainerCallback):
    """Draw the same held-out images with the same masks every `every_epochs` epochs and at the end.

    With `report_to tensorboard`, the pictures stand there too; with wandb or trackio, which may be on other machines,
    if they may be given out.

    Args:
        trainer: whose model is drawn.
        batch: `pixel_values` and `noise` of the images.
        image_mean, image_std: of the normalisation, to show grey as it was.
        folder: receives `step-<step>.png` and `last.png`.
        every_epochs: 0 for the end only.
        give_out: whether the images may be shown to others.
    """

    def __init__(self, trainer, batch, image_mean, image_std, folder: Path, every_epochs: int, give_out: bool):
        self.trainer, self.batch, self.folder, self.give_out = trainer, batch, folder, give_out
        self.image_mean, self.image_std, self.every_epochs = image_mean, image_std, every_epochs

    def on_epoch_end(self, args, state, control, **kwargs):
        """Draw if the epoch is due."""
        if self.every_epochs and round(state.epoch) % self.every_epochs == 0 and state.global_step < state.max_steps:
            self._draw(f"step-{state.global_step:07d}.png", state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        """Draw the final picture."""
        self._draw("last.png", state.global_step)

    def _draw(self, name: str, step: int) -> None:
        # Every process rebuilds, since a sharded model needs all of them; one draws.
        model = self.trainer.model
        was_training = model.training
        model.eval()
        pixel_values, noise = (self.batch[key].to(self.trainer.args.device) for key in ("pixel_values", "noise"))
        rebuilt = model.reconstruct(pixel_values, noise=noise)
        surprising = texture_surprise(model, pixel_values) if model.config.glcm_head_weight else None
        model.train(was_training)
        if self.trainer.is_world_process_zero():
            draw_reconstructions(
                self.folder / name, model.config, pixel_values, rebuilt, self.image_mean, self.image_std, surprising
            )
            for callback in self.trainer.callback_handler.callbacks:
                if isinstance(callback, TensorBoardCallback) or self.give_out:
                    _show(callback, self.folder / name, step)


def _show(callback: TrainerCallback, picture: Path, step: int) -> None:
    """Send a picture to the tracker that a callback reports to, if it is one that shows pictures."""
    name = "reconstructions"
    if isinstance(callback, TensorBoardCallback):
        with Image.open(picture) as image:
            callback.tb_writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
    elif isinstance(callback, WandbCallback):
        import wandb

        wandb.log({name: wandb.Image(str(picture)), "train/global_step": step})
    elif isinstance(callback, TrackioCallback):
        import trackio

        trackio.log({name: trackio.Image(str(picture)), "train/global_step": step})


class OneAnswerCallback(TrainerCallback):
    """Say once, while it can still be stopped, that every validation image still gets the same answer.

    Args:
        what_may_help: to be said with it.
        share: of the training after which this is no start any more.
    """

    def __init__(self, what_may_help: str, share: float = 0.25):
        self.what_may_help, self.share, self.said = what_may_help, share, False

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Judge by `eval_commonest_answer`."""
        late = state.global_step >= self.share * state.max_steps
        if metrics.get("eval_commonest_answer") == 1 and late and not self.said and state.is_world_process_zero:
            self.said = True
            logger.warning(
                "after %d of %d updates all validation images still get the same answer. What may help: %s",
                *(state.global_step, state.max_steps, self.what_may_help),
            )


class PublishEverySave(TrainerCallback):
    """Publish at every checkpoint, for `hub_strategy: every_save`. A failure is told and does not stop the training.

    Args:
        publication: where.
        write_export: writes the export of the model as it is; called in every process.
    """

    def __init__(self, publication: Publication, write_export: Callable[[], None]):
        self.publication, self.write_export = publication, write_export

    def on_save(self, args, state, control, **kwargs) -> None:
        try:
            self.write_export()
            if state.is_world_process_zero:
                filled = with_export(self.publication)
                send(filled, f"Step {state.global_step}", "the next checkpoint is tried again")
        except (UsageError, OSError, SafetensorError) as error:  # the last: of a full disk, too
            logger.warning("step %d is not published: %s", state.global_step, error)
