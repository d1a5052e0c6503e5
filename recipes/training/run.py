"""A training, from its arguments to its export: the steps that pretraining and fine-tuning share."""

import errno
import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
import yaml
from accelerate import PartialState
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, Trainer, TrainingArguments, set_seed
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import HubStrategy

from commandline import UsageError, check_repo_id
from hub.contents import with_export
from hub.export import images_seen, list_of_images, without_paths
from hub.publication import Publication
from hub.repository import open_repository, publish
from images.splits import sha256_of_lines
from judging.training_curves import draw_training_curves
from output_folder import check_output, replaced_file
from training.callbacks import ImagesProgressCallback, MetricsFileCallback, PublishEverySave, StepsAsToldNow
from training.resume import MAY_CHANGE, begin_run, best_checkpoint, checkpoint_to_resume, refuse_another_training


class Run(ABC):
    """A training: the constructor finds all that can be wrong, `train` then deletes an earlier run, trains and exports.

    Args:
        model_args: with `model_name_or_path`, `model_revision` and `model_subfolder` of the first weights.
        data_args: with `corpus` and `splits_file`.
        args: with `base_learning_rate` and `overwrite_output_dir` beside the fields of `TrainingArguments`; the rate is
            filled in.

    Raises:
        ValueError, OSError, StrictDataclassError: on a mistake in the arguments or the images, in one clear message.
    """

    written: ClassVar[tuple[str, ...]]  # what a run leaves in its output_dir, besides checkpoints
    may_change: dict[str, frozenset[str]] = MAY_CHANGE  # in a resume

    def __init__(self, model_args: Any, data_args: Any, args: TrainingArguments):
        if not PartialState().is_main_process:
            logging.getLogger().setLevel(logging.ERROR)  # one process tells what all would
        if args.n_gpu > 1:
            raise UsageError(
                f"one process sees {args.n_gpu} GPUs and would split every batch among them (DataParallel): start it "
                "with `accelerate launch` or `torchrun`, or let it see one GPU by CUDA_VISIBLE_DEVICES=0"
            )
        installed = get_available_reporting_integrations()
        if not set(args.report_to) <= set(installed):
            raise UsageError(
                f"report_to must be none or of what is installed here ({', '.join(installed) or 'nothing'}), got "
                f"{', '.join(args.report_to)}"
            )
        self.model_args, self.data_args, self.args = model_args, data_args, args
        self.output_dir = check_output(args.output_dir)
        self.publication = publication_of_run(args, self.export)
        if args.disable_tqdm:
            datasets.disable_progress_bars()  # of images that are generated or downloaded first
        args.push_to_hub = False  # Trainer's own way sends pickles, checkpoints, and a card over ours
        set_seed(args.seed)
        self.checkpoint = checkpoint_to_resume(args, self.written, self._sources())
        if self.checkpoint is not None and args.load_best_model_at_end:
            best_checkpoint(self.checkpoint)  # that it is there is known before the training
        # SHA-256 of the images that the first weights have seen; None if that will not be known of all in the end
        self.seen = images_seen(model_args.model_name_or_path, model_args.model_revision, model_args.model_subfolder)
        self._prepare()
        if args.device.type == "cpu":
            args.dataloader_pin_memory = False  # asked for without an accelerator, it only warns
        effective = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if args.learning_rate is None:
            args.learning_rate = args.base_learning_rate * effective / 256
        self.trainer = self._trainer_of(args)
        self.resolved = self._resolve()
        # Made here: a relative path is known by what exists, which may be gone when the export is written.
        self.published = without_paths(self.resolved)
        self.published["model_config"].pop("_name_or_path", None)
        self.published["derived"]["skipped_images"] = len(self._skipped)  # their names may name patients

    def _trainer_of(self, args: TrainingArguments) -> Trainer:
        trainer = self._make_trainer(args)
        trainer.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
        trainer.add_callback(ImagesProgressCallback(trainer.effective_batch_size, bars=not args.disable_tqdm))
        trainer.add_callback(MetricsFileCallback(self.log))
        trainer.add_callback(StepsAsToldNow())
        if self.publication is not None and args.hub_strategy == HubStrategy.EVERY_SAVE:
            trainer.add_callback(PublishEverySave(self.publication, self._export_as_it_is))
        return trainer

    @property
    def export(self) -> Path:
        """The folder that is shaped as a repository on the Hub."""
        return self.output_dir / "export"

    @property
    def log(self) -> Path:
        """Every log of the training."""
        return self.output_dir / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        """The log as a picture."""
        return self.output_dir / "curves.png"

    # What is trained

    @abstractmethod
    def _prepare(self) -> None:
        """Make `self.model`, and the data as checked."""

    @abstractmethod
    def _make_trainer(self, args: TrainingArguments) -> Trainer:
        """Trainer with the data and what is logged; `args` are those of the run, or of a stage of it."""

    @property
    @abstractmethod
    def _skipped(self) -> list[str]:
        """Names of the images that were passed over."""

    @abstractmethod
    def _derived(self) -> dict[str, Any]:
        """What follows from the settings and the images, for config.yaml; it must be the same in a resume."""

    @abstractmethod
    def _digests(self) -> set[str]:
        """SHA-256 of the images of this training that fine-tuning must not test."""

    @abstractmethod
    def _train(self) -> tuple[PreTrainedModel, dict[str, float]]:
        """Train and judge, in every process; returns the model with all its weights, and the figures."""

    @abstractmethod
    def _finish(self, model: PreTrainedModel, results: dict[str, float]) -> list[str]:
        """Write what else a run leaves, the export too, in the main process; returns what to print.

        What is judged here is added to `results`.
        """

    @abstractmethod
    def _export_as_it_is(self) -> None:
        """Write the export in the middle of the training; called in every process."""

    @property
    @abstractmethod
    def _commit_message(self) -> str:
        """Of what is published in the end."""

    # The steps that all have

    def _sources(self) -> list[str | None]:
        """What is read, where these are paths: it must not be deleted with an earlier run."""
        data = (getattr(self.data_args, name, None) for name in ("corpus", "data_dir", "splits_file"))
        more = getattr(self.data_args, "unlabelled_corpus", None) or []
        return [self.model_args.model_name_or_path, *data, *more]

    def _num_steps(self) -> int:
        if self.args.max_steps > 0:
            return self.args.max_steps
        batches = len(self.trainer._get_train_sampler()) // self.trainer.effective_batch_size
        return math.ceil(self.args.num_train_epochs * batches)

    def _resolve(self) -> dict[str, dict[str, Any]]:
        """Every setting of the run with its value, for config.yaml; refuses a resume that changes the training."""
        derived = {
            "effective_batch_size": self.trainer.effective_batch_size,
            "skipped_images": self._skipped,
            "mixed_precision": self.trainer.accelerator.mixed_precision,
            "pretraining_images_sha256": None if self.seen is None else sha256_of_lines(sorted(self.seen)),
            **self._derived(),
        }
        resolved = {
            "model": vars(self.model_args),
            "data": vars(self.data_args),
            "training": self.args.to_sanitized_dict() | {"push_to_hub": self.publication is not None},
            "model_config": self.model.config.to_dict(),
            "derived": derived,
        }
        resolved = json.loads(json.dumps(resolved, default=str))
        if self.checkpoint is not None:
            refuse_another_training(self.checkpoint, resolved, self.may_change)
        if self.trainer.train_dataset is not None:
            rehearse(self.trainer, self._num_steps())
        return resolved

    def train(self) -> None:
        """Train, judge, export; prints where the results are."""
        main = self.trainer.is_world_process_zero()
        PartialState().wait_for_everyone()  # until all have read the config.yaml of a run that is resumed
        if main:
            if self.publication is not None:
                open_repository(self.publication)
            begin_run(self.output_dir, self.written, self.checkpoint, self.resolved)
            for name, text in self._list_of_images().items():
                (self.output_dir / name).write_text(text)
        PartialState().wait_for_everyone()
        model, results = self._train()
        if main:
            if self.log.exists():  # not where nothing was trained
                draw_training_curves(self.log, self.curves)
            lines = self._finish(model, results)
            # Last: a run with this file is finished.
            with replaced_file(self.output_dir / "all_results.json") as new:
                new.write_text(json.dumps(results, indent=2) + "\n")
            for line in lines:
                print(line)
        # A launcher ends all processes where one of them fails, on its way out too. Not held for the upload, which may
        # last longer than processes may wait for each other (ddp_timeout).
        PartialState().wait_for_everyone()
        if main and self.publication is not None:
            filled = with_export(self.publication)
            again = f"to go on: {filled.command}"  # the same command would train anew
            for line in publish(filled, self._commit_message, self.export, how_to_go_on=again):
                print(line, flush=True)
        self.trainer.end()

    def _list_of_images(self) -> dict[str, str]:
        """A line an image that had a part in the weights, now or before; none where that is unknown.

        By their SHA-256 a later run knows a test image again.
        """
        return {} if self.seen is None else list_of_images(self.seen | self._digests())

    def _texts(self) -> dict[str, str]:
        """What an export holds beside the model: the recipe, without the paths of this machine, and the images."""
        return {"config.yaml": yaml.safe_dump(self.published, sort_keys=False), **self._list_of_images()}


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


def seed_this_process(seed: int) -> None:
    """Let each process draw its own random numbers, the first those of a run of one process.

    What is random about an image is keyed by the image; this is for what is drawn within the network. With one seed for
    all, the same places of every process's batch would lose the same layers.
    """
    torch.manual_seed(seed + PartialState().process_index)


def training_environment(results: dict[str, float], args: TrainingArguments, resumed: bool) -> str | None:
    """How long the training took on what, for the card; `None` where only a part of it was measured."""
    if resumed or "train_runtime" not in results:
        return None
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type.upper()
    hours, minutes = divmod(math.ceil(results["train_runtime"] / 60), 60)
    took = f"{hours} h {minutes} min" if hours else f"{minutes} min"
    return f"{took} on {args.world_size} x {device}; energy was not measured"


def prepare_run(run: type[Run], *arguments: Any) -> Callable[[], None] | None:
    """Check everything; returns the training, or `None` after a dry run, which leaves everything as it was.

    Args:
        run: what is trained.
        arguments: of `run`, in its order.

    Raises:
        ValueError, OSError, StrictDataclassError: as `Run`.
    """
    output_dir = Path(arguments[-1].output_dir).expanduser()
    if not arguments[-1].dry_run:
        return run(*arguments).train
    made = [folder for folder in (output_dir, *output_dir.parents) if not folder.exists()]
    try:
        run(*arguments)
        PartialState().wait_for_everyone()
    finally:
        if PartialState().is_main_process:
            for folder in filter(Path.exists, made):  # by Trainer
                try:
                    folder.rmdir()
                except OSError as error:
                    if folder == output_dir or error.errno != errno.ENOTEMPTY:
                        raise
                    break  # another run has begun beside this one
    if PartialState().is_main_process:
        print(f"nothing wrong found; output_dir {output_dir} is as it was")
    return None


def publication_of_run(args: TrainingArguments, folder: Path) -> Publication | None:
    """What `push_to_hub` of a recipe asks for, still without files; `None` if it is not set.

    Args:
        args: of the run.
        folder: its export.

    Raises:
        UsageError: `hub_model_id` or `hub_strategy` is not allowed, or a token is among the arguments.
    """
    if not args.push_to_hub:
        return None
    if args.hub_token is not None:
        raise UsageError("hub_token: a token has no place in a recipe; run `hf auth login`, or set HF_TOKEN")
    check_repo_id(args.hub_model_id, "hub_model_id")
    allowed = (HubStrategy.END, HubStrategy.EVERY_SAVE)
    if args.hub_strategy not in allowed:
        names = ", ".join(strategy.value for strategy in allowed)
        raise UsageError(f"hub_strategy must be one of {names}, got {args.hub_strategy.value!r}")
    revision = args.hub_revision or "main"
    return Publication(folder, args.hub_model_id, private=bool(args.hub_private_repo), revision=revision)
