"""A run of pretraining: model, data, objective, the figures that judge it, and its export."""

import copy
import itertools
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers.trainer_utils import IntervalStrategy

from commandline import UsageError
from corpora.facts import facts_of
from hub.cards import ADDRESS, origin_of
from hub.export import TRAINING_IMAGES, stock_encoder, without_paths, write_export
from images.splits import image_digests, image_sha256, sha256_of_lines
from judging.verdict import Verdict, pretraining_verdict
from modeling_glcm_mae import GLCMMAEForPreTraining
from training.arguments import PretrainingArguments
from training.callbacks import PictureCallback
from training.feeding import PretrainIterableDataset, collate
from training.frozen import encoder_features, probe_accuracy
from training.models import build_model
from training.options import ModelArguments
from training.pretraining_data import folds_of_others, grey_statistics, load_data
from training.resume import MAY_CHANGE, step_of
from training.run import Run, training_environment
from training.stages import StopAt, counted_anew
from training.trainers import EVALUATED, PREDICTORS, PretrainTrainer

logger = logging.getLogger(__name__)


# Beside MAY_CHANGE, in a resume: the objective and the sizes are compared as they are resolved (model_config), and the
# length as max_steps of `derived`; evaluation, pictures and checkpoints leave the training as it is.
ALSO_MAY_CHANGE = {
    "model": frozenset(ModelArguments.__dataclass_fields__),
    "training": frozenset(
        {
            *("num_train_epochs", "max_steps", "do_eval", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
            *("save_strategy", "save_steps", "probe_labels", "num_pictures", "picture_every_epochs", "export_picture"),
        }
    ),
}
# The order of a stream follows from how it is read, and that its images are the same cannot be known beforehand.
STREAM_KEEPS = frozenset(
    {
        *("corpus", "data_dir", "world_size", "dataloader_num_workers", "per_device_train_batch_size"),
        *("gradient_accumulation_steps", "train_batch_size"),
    }
)
OF_ONE_STAGE = ("train_loss", "train_samples_per_second", "train_steps_per_second")
FIRST_IMAGES = 64  # of a stream, by which it is known again


class Pretraining(Run):
    """A run of pretraining, of `ModelArguments`, `DataArguments` and `PretrainingArguments`."""

    written = (
        *("config.yaml", "metrics.jsonl", "curves.png", "all_results.json", "reconstructions", "export"),
        TRAINING_IMAGES,
    )
    verdict: Verdict | None = None  # of the last evaluation

    def _prepare(self) -> None:
        args, data_args = self.args, self.data_args
        self.facts = facts_of(data_args.corpus, data_args.data_dir)
        if args.export_picture and self.facts and self.facts.no_copies:
            raise UsageError(f"export_picture must not be true: {self.facts.no_copies}")
        self.model = build_model(self.model_args, data_args)
        self.seen = self._known_images()
        cached = data_args.cache_images and not args.dry_run  # which writes nothing
        self.data = load_data(replace(data_args, cache_images=cached), self.model.config, args.seed)
        if args.probe_labels:
            self._check_probe()
        self.statistics = self._look_at_grey_levels()
        # Once a run, though every export lists them: reading a whole corpus takes its time.
        parts = {} if self.is_stream else {"train": self.data.train, "held_out": self.data.held_out}
        self.digests = {
            name: part.dataset["sha256"][:] if self.data.known else image_digests(part.dataset)
            for name, part in parts.items()
            if part is not None
        }

    def _check_probe(self) -> None:
        labelled, count = self.data.labelled, self.args.probe_labels
        if labelled is None:
            raise UsageError("probe_labels needs a corpus with labels and held_out above 0")
        num_classes = len(set(labelled.dataset["label"][:]))
        # The split is stratified: every class among the labelled images, and among the others.
        if num_classes < 2 or not num_classes <= count <= len(labelled) - num_classes:
            raise UsageError(
                f"probe_labels must be from the number of classes ({num_classes}, at least 2) to that many less than "
                f"the training images ({len(labelled)}), got {count}"
            )

    def _known_images(self) -> set[str] | None:
        """What the first weights have seen; `None`, with a warning, if not all images will be known in the end."""
        unknown = []
        if self.seen is None:
            unknown.append(f"{self.model_args.model_name_or_path} does not tell which images it was trained on")
        if self.data_args.streaming:
            unknown.append("the images of a stream are not known beforehand")
        for reason in unknown:
            logger.warning(
                "%s, so the export will not tell either (no %s), and finetune.py cannot know whether a test image is "
                "among them",
                *(reason, TRAINING_IMAGES),
            )
        return None if unknown else self.seen

    @property
    def is_stream(self) -> bool:
        return isinstance(self.data.train, PretrainIterableDataset)

    def _look_at_grey_levels(self) -> dict:
        config = self.model.config
        statistics = grey_statistics(
            self.data.train,
            config.glcm_value_range,
            config.glcm_levels,
            config.glcm_channel,
            distributions_of={
                name: find
                for name, find, weight in (
                    ("glcm_head_logits", self._distribution_of_patches, config.glcm_head_weight),
                    ("glcm_cls_logits", self._distribution_of_tiles, config.glcm_cls_weight),
                )
                if weight
            },
        )
        logger.info(
            "grey levels: the images occupy %d of %d over %s (%.2f %% of the pixels lie outside)",
            statistics["occupied_levels"],
            config.glcm_levels,
            [round(value, 3) for value in config.glcm_value_range],
            100 * statistics["outside_fraction"],
        )
        counted = config.glcm_weight or config.glcm_head_weight or config.glcm_cls_weight
        if counted and statistics["occupied_levels"] < config.glcm_levels / 4:
            logger.warning(
                "only %d of %d grey levels are occupied, so little texture is seen: check white_level, or narrow "
                "glcm_value_range to where the grey values lie",
                statistics["occupied_levels"],
                config.glcm_levels,
            )
        return statistics

    def _distribution_of_patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.pair_distribution(self.model.image_patches(pixel_values[None])[0])

    def _distribution_of_tiles(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.tile_distribution(pixel_values[None])

    @property
    def may_change(self) -> dict[str, frozenset[str]]:
        """As in every run, and what a pretraining or a stream adds or takes away."""
        kept = STREAM_KEEPS if self.is_stream else frozenset()
        return {
            section: (names | ALSO_MAY_CHANGE.get(section, frozenset())) - kept for section, names in MAY_CHANGE.items()
        }

    def _make_trainer(self, args: PretrainingArguments) -> PretrainTrainer:
        data = self.data
        if self.is_stream:
            # Each process reads the stream and takes its share: file names cannot be broadcast as tensors are.
            args.accelerator_config.dispatch_batches = False
            if args.max_steps <= 0 or args.mse_epochs >= 1:
                raise UsageError("a stream has no length: give max_steps, and mse_epochs as a fraction below 1")
        config = self.model.config
        if args.sharpness_start is not None and config.glcm_kernel != "sigmoid":
            raise UsageError(f"sharpness_start needs glcm_kernel sigmoid, got {config.glcm_kernel}")
        if data.held_out is None:
            args.eval_strategy, args.eval_on_start = IntervalStrategy.NO, False
        trainer = PretrainTrainer(
            dataset_mean=torch.tensor(self.statistics["mean_pixel"]),
            mean_distributions=self.statistics["mean_distributions"],
            model=self.model,
            args=args,
            train_dataset=data.train,
            eval_dataset=data.held_out,
            data_collator=collate,
        )
        logger.info(
            "%d process(es) on %s; %d x %d x %d = %d images per update (process x accumulation x processes); "
            "learning rate %.3g",
            *(args.world_size, args.device.type, args.train_batch_size, args.gradient_accumulation_steps),
            *(args.world_size, trainer.effective_batch_size, args.learning_rate),
        )
        if data.held_out is not None and args.num_pictures:
            transform = data.transform
            batch = collate([data.held_out[i] for i in range(min(args.num_pictures, len(data.held_out)))])
            pictures = PictureCallback(
                *(trainer, batch, transform.image_mean, transform.image_std),
                *(self.picture.parent, args.picture_every_epochs, self._gives_pictures_out()),
            )
            if not pictures.give_out and {"wandb", "trackio"} & set(args.report_to):
                logger.info("pictures stay in %s: they show images of the corpus (export_picture)", self.picture.parent)
            # Before the trackers, which take nothing more once they have heard that the training has ended.
            trainer.callback_handler.callbacks.insert(0, pictures)
        return trainer

    @property
    def _skipped(self) -> list[str]:
        return self.data.skipped

    def _derived(self) -> dict[str, Any]:
        args = self.args
        names = None if self.is_stream else self.data.train.dataset["file_name"][:]
        derived = {
            "world_size": args.world_size,
            "num_train_images": None if self.is_stream else len(self.data.train),
            "train_file_names_sha256": None if names is None else sha256_of_lines(names),
            "num_held_out_images": None if self.data.held_out is None else len(self.data.held_out),
            "seed": args.seed,
            "max_steps": self._num_steps(),
            "white_level": self.data.white_level,
        }
        if self.is_stream:
            first = itertools.islice(self.data.train.dataset, FIRST_IMAGES)
            # by name where the stream gives only an address, or a null that is passed over
            known = [
                image_sha256(row["image"]) if (row["image"] or {}).get("bytes") else row["file_name"] for row in first
            ]
            derived["first_images_sha256"] = sha256_of_lines(known)
        else:
            derived["train_contents_sha256"] = sha256_of_lines(self.digests["train"])
        if args.mse_images_per_update is not None:
            self._stage_ratio()
        if self.trainer.mse_steps(derived["max_steps"]) >= derived["max_steps"] and args.mse_epochs:
            raise UsageError(
                f"mse_epochs {args.mse_epochs:g} leaves no step of {derived['max_steps']} for the objective: for plain "
                "squared error throughout, choose the preset mse"
            )
        return derived

    def _digests(self) -> set[str]:
        return set().union(*self.digests.values())

    def _train(self) -> tuple[GLCMMAEForPreTraining, dict[str, float]]:
        args, trainer = self.args, self.trainer
        results = {}
        if args.probe_labels:
            # The checkpoint is loaded by train(): until then the model is as it began.
            results |= self._probe("before")
        checkpoint, took = self.checkpoint, 0.0
        if args.mse_images_per_update is not None:
            checkpoint, took = self._first_stage()
        results |= trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint)).metrics
        results["train_runtime"] += took
        if args.mse_images_per_update is not None:  # these are of the second stage alone
            results = {name: value for name, value in results.items() if name not in OF_ONE_STAGE}
        if self.data.held_out is not None:
            results |= trainer.evaluate()
            self.verdict = self._verdict_of(results, self._untrained())
            if self.verdict.learned is False:
                logger.warning(
                    "this pretraining is no better than who knows nothing of the images: nothing was learned in %d "
                    "updates, at a learning_rate of at most %.3g. Give more updates (num_train_epochs, or a smaller "
                    "per_device_train_batch_size), or a higher learning_rate",
                    *(trainer.state.global_step, args.learning_rate),
                )
        if self.is_stream:
            results["skipped_images"] = self.data.train.skipped
        if args.probe_labels:
            results |= self._probe("after")
        return self._whole_model(), results

    def _verdict_of(self, results: dict[str, float], untrained: dict[str, float] | None) -> Verdict:
        config = self.model.config
        painting = bool(config.glcm_weight or config.ssim_weight)
        return pretraining_verdict(results, untrained, normalised=config.norm_pix_loss, painting=painting)

    def _untrained(self) -> dict[str, float] | None:
        """The evaluation before any training; with the weights of others, the first one is not that."""
        if self.model_args.model_name_or_path is not None:
            return None
        return next((row for row in self.trainer.state.log_history if "eval_loss" in row and row["step"] == 0), None)

    def _first_stage(self) -> tuple[Path, float]:
        """Plain squared error by `mse_images_per_update`, unless the run is resumed after it.

        Returns:
            The checkpoint that the second stage goes on from, and the seconds that the first one took.
        """
        num_steps = self.resolved["derived"]["max_steps"]
        last = self.trainer.mse_steps(num_steps)
        if self.checkpoint is not None and step_of(self.checkpoint) >= last:
            return self.checkpoint, 0.0
        ratio = self._stage_ratio()
        args = copy.copy(self.args)
        args.gradient_accumulation_steps *= ratio
        args.learning_rate *= ratio
        stage = self._trainer_of(args)
        stop = last // self.trainer.steps_per_epoch * stage.steps_per_epoch
        stage.add_callback(StopAt(stop))
        found, took = self.checkpoint, 0.0
        if found is None or step_of(found) < stop:
            done = stage.train(resume_from_checkpoint=found and str(found))
            found, took = self.output_dir / f"checkpoint-{stop}", done.metrics["train_runtime"]
        # What was wrapped around the model for this stage goes, and its optimiser: the next one makes its own.
        stage.accelerator.unwrap_model(stage.model_wrapped, keep_fp32_wrapper=False, keep_torch_compile=False)
        stage.optimizer = stage.lr_scheduler = None
        stage.accelerator.free_memory()
        new = self.output_dir / f"checkpoint-{last}"
        PartialState().wait_for_everyone()  # until each has written its part of the checkpoint
        if self.trainer.is_world_process_zero():
            counted_anew(found, new, ratio, num_steps)
        PartialState().wait_for_everyone()
        return new, took

    def _stage_ratio(self) -> int:
        """Images per update in the first stage, over those in the second."""
        wanted, now = self.args.mse_images_per_update, self.trainer.effective_batch_size
        if wanted <= now or wanted % now:
            raise UsageError(f"mse_images_per_update must be a multiple of the {now} images per update, got {wanted}")
        if self.is_stream or self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled:
            raise UsageError("mse_images_per_update needs images that are counted, and no FSDP or DeepSpeed")
        if wanted > len(self.data.train):
            raise UsageError(
                f"mse_images_per_update must be at most the {len(self.data.train)} training images, got {wanted}"
            )
        return wanted // now

    def _finish(self, model: GLCMMAEForPreTraining, results: dict[str, float]) -> list[str]:
        self._write_export(model, results)
        lines = []
        if self.args.probe_labels:
            before, after = results["probe_before"], results["probe_after"]
            lines.append(
                f"linear probe, {self.args.probe_labels} labels: accuracy {before:.3f} before pretraining, "
                f"{after:.3f} after"
            )
        if self.verdict is not None:
            lines.append(f"verdict  {self.verdict.words}")
        if self.picture.exists():
            lines.append(f"picture  {self.picture}")
        lines.append(f"metrics  {self.log}")
        if self.curves.exists():
            lines.append(f"curves   {self.curves}")
        return [*lines, f"export   {self.export}"]

    @property
    def _commit_message(self) -> str:
        return f"Pretrained for {self.trainer.state.global_step} steps"

    @property
    def picture(self) -> Path:
        """The last picture of reconstructions."""
        return self.output_dir / "reconstructions" / "last.png"

    def _write_export(self, model: GLCMMAEForPreTraining, results: dict) -> None:
        picture = self.picture if self.picture.exists() else None
        if picture and not self._gives_pictures_out():
            logger.info("no picture in the export, which may be published: %s shows images of the corpus", picture)
            picture = None
        write_export(
            self.export,
            model,
            self.data.transform.processor(self.data.white_level, deep=self.data.deep),
            self._texts(),
            [picture] if picture else [],
            self._card_facts(results, picture),
        )

    def _gives_pictures_out(self) -> bool:
        """As asked for; else of corpora that are known to be open: images of one's own may show patients."""
        if self.args.export_picture is not None:
            return self.args.export_picture
        return self.facts is not None and not self.facts.no_copies

    def _export_as_it_is(self) -> None:
        model = self._whole_model()
        if self.trainer.is_world_process_zero():
            judged = (row for row in reversed(self.trainer.state.log_history) if "eval_loss" in row)
            self._write_export(model, next(judged, {}))

    def _probe(self, when: str) -> dict[str, float]:
        labelled, held_out = self.data.labelled, self.data.held_out
        encoder = stock_encoder(self._whole_model()).to(self.args.device)
        features, test_features = (encoder_features(encoder, dataset) for dataset in (labelled, held_out))
        labels, test_labels = (np.array(dataset.dataset["label"][:]) for dataset in (labelled, held_out))
        mean, std = probe_accuracy(features, labels, test_features, test_labels, num_labels=self.args.probe_labels)
        return {f"probe_{when}": mean, f"probe_{when}_std": std}

    def _whole_model(self) -> GLCMMAEForPreTraining:
        """The model with all its weights in this process, also where they are sharded."""
        if not self.trainer.is_fsdp_enabled:
            return self.trainer.accelerator.unwrap_model(self.trainer.model)
        weights = self.trainer.accelerator.get_state_dict(self.trainer.model)
        model = GLCMMAEForPreTraining(self.model.config)
        if weights:
            model.load_state_dict(weights)
        return model

    def _card_facts(self, results: dict, picture: Path | None) -> dict:
        corpus, derived = self.data_args.corpus, self.resolved["derived"]
        on_hub = bool(re.fullmatch(r"[\w.-]+/[\w.-]+", corpus)) and not Path(corpus).exists()
        suffixes = ("", *(f"_{name}" for name in PREDICTORS))
        origin = origin_of(self.model_args.model_name_or_path, self.model_args.model_revision)
        others = [Path(name).name for name in self.data_args.unlabelled_corpus or []]
        others = others if len(others) < 2 else [f"{len(others)} more corpora"]
        trained_on = " and ".join([Path(corpus).name, *others])
        untrained = self._untrained()
        return {
            "title": f"GLCM-MAE, pretrained on {trained_on} (preset {self.model_args.preset})",
            "repo_id": ADDRESS,
            "corpus": corpus if on_hub else Path(corpus).name,
            "environment": training_environment(results, self.args, self.checkpoint is not None),
            "data_facts": self.facts,
            # a Hub id as it is, of a path the last part
            "more_images": [
                (without_paths(name), fold, facts_of(name)) for name, fold in folds_of_others(self.data_args)
            ],
            "datasets": [corpus] if on_hub else None,
            "base_model": origin.base_model,
            "origin": origin,
            "fold": self.data_args.fold,
            "preset": self.model_args.preset,
            "mse_epochs": self.args.mse_epochs,
            "mse_images_per_update": self.args.mse_images_per_update,
            "num_train_epochs": None if self.is_stream else self.args.num_train_epochs,
            "picture": picture and picture.name,
            "learning_rate": self.args.learning_rate,
            "untrained": untrained is not None,
            "metrics": {
                term: [
                    f"{found[f'eval_{term}{suffix}']:.4g}"
                    for found, suffix in [
                        (results, ""),
                        *([] if untrained is None else [(untrained, "")]),
                        *((results, f"_{name}") for name in PREDICTORS),
                    ]
                ]
                for term in EVALUATED
                if all(f"eval_{term}{suffix}" in results for suffix in suffixes)
            },
            "probe": {
                "labels": self.args.probe_labels,
                **{when: f"{results[f'probe_{when}']:.3f}" for when in ("before", "after")},
            }
            if "probe_after" in results
            else None,
            "verdict": self._verdict_of(results, untrained) if "eval_mse_dataset_mean" in results else None,
            **{name: derived[name] for name in ("num_train_images", "num_held_out_images", "effective_batch_size")},
        }
