"""A run of fine-tuning, from its arguments to the export."""

import itertools
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, BeitForImageClassification, EarlyStoppingCallback, EvalPrediction

from commandline import UsageError
from corpora.facts import facts_of
from hub.cards import ADDRESS, origin_of
from hub.export import TRAINING_IMAGES, write_classifier
from images.augment import Augmentation, Mixing
from images.check import MIXED_DEPTHS, judged, verify_images, white_and_depth
from images.folds import few_groups
from images.splits import PARTS, load_known, load_prepared, sha256_of_lines
from images.transform import ImageTransform, transform_of_processor
from judging.summary import FIGURES, collapsed_folds, figures_of, predictions_table, summarise
from judging.tables import (
    CALIBRATION,
    NO_PATIENTS,
    always_commonest_said,
    figure_rows,
    figures_explained,
    positive_class_said,
    positive_indices,
    what_it_tells,
)
from metrics.medical_classification.figures import expected_calibration_error
from output_folder import replaced_file
from training.arguments import FinetuningArguments
from training.calibration import calibrated, prior_correction
from training.callbacks import OneAnswerCallback
from training.feeding import ClassificationDataset, OneHot
from training.frozen import NEVER, fit_probe, frozen_features, nearest_neighbours
from training.models import Classifier, load_classifier, parameter_groups
from training.options import FITTING
from training.run import Run, seed_this_process, training_environment
from training.trainers import ClassifierTrainer

logger = logging.getLogger("finetune")


class FineTuning(Run):
    """A run of fine-tuning, of `ClassifierArguments`, `LabelledDataArguments` and `FinetuningArguments`."""

    written = (
        *("config.yaml", "metrics.jsonl", "curves.png", "all_results.json", "export", TRAINING_IMAGES),
        *("predictions.parquet", "validation_predictions.parquet"),
    )

    def _prepare(self) -> None:
        model_args, data_args, args = self.model_args, self.data_args, self.args
        if parse_flag_from_env("ACCELERATE_USE_FSDP"):
            raise UsageError(
                "finetune.py does not shard a classifier (FSDP): launch it with "
                "recipes/configs/accelerate/multi_gpu.yaml, one whole model a GPU"
            )
        if self.publication is not None and model_args.mode == "knn":
            raise UsageError("push_to_hub: there is no model to publish in mode knn")
        with PartialState().main_process_first():
            self.parts, self.class_names = load_prepared(
                *(data_args.corpus, data_args.splits_file, data_args.fold), verify_data=data_args.verify_data
            )
        if self.class_names is None:
            raise UsageError(f"corpus {data_args.corpus!r} has no labels to learn")
        num_images = sum(map(len, self.parts.values()))
        if data_args.labelled_groups is not None:
            self.parts["train"] = few_groups(self.parts["train"], data_args.labelled_groups)
        self.positive = positive_indices(self.class_names, data_args.positive_classes)
        for line in positive_class_said(self.class_names, data_args.positive_classes):
            logger.info(line)
        self._refuse_leaks()
        self.model = load_classifier(
            model_args.model_name_or_path,
            self.class_names,
            pooling=model_args.pooling or "usual",
            drop_path=model_args.drop_path if model_args.mode == "finetune" else 0.0,
            revision=model_args.model_revision,
            subfolder=model_args.model_subfolder,
            sizes=model_args.sizes(),
        )
        model_args.pooling = "mean" if isinstance(self.model, BeitForImageClassification) else "cls"
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        # Of all parts: not of the training part, by which the folds of one corpus might choose differently.
        updates = args.max_steps if args.max_steps > 0 else args.num_train_epochs * (num_images // batch)
        data_args.fill_in(updates if model_args.mode == "finetune" else None)
        if model_args.prior_correction and (model_args.mode == "knn" or data_args.class_weights == "none"):
            raise UsageError(
                "prior_correction needs class_weights balanced, and a mode other than knn: got class_weights "
                f"{data_args.class_weights}, mode {model_args.mode}"
            )
        logger.info(
            "the head reads %s (pooling)", {"mean": "the mean token", "cls": "the CLS token"}[model_args.pooling]
        )
        self.transform = self._transform()
        self.datasets = self._datasets()

    def _refuse_leaks(self) -> None:
        """Refuse an encoder that has seen images by which it would be judged."""
        name = self.model_args.model_name_or_path
        if self.seen is None:
            logger.warning(
                "%s does not tell which images it was trained on, so it may have seen some of the test part; the "
                "export will not tell either",
                name,
            )
            return
        for part in ("test", "validation"):
            known = zip(self.parts[part]["file_name"][:], self.parts[part]["sha256"][:], strict=True)
            leaked = [file for file, digest in known if digest in self.seen]
            if leaked:
                raise UsageError(
                    f"{name!r} has seen {len(leaked)} images of the {part} part of fold {self.data_args.fold}, in its "
                    f"training or held out of it ({', '.join(leaked[:2])}): pretrain on its training part with "
                    "`pretrain.py --fold` (--unlabelled_folds beside another corpus), or let cross_validate.py do it"
                )

    def _transform(self) -> ImageTransform:
        args = self.data_args
        given = {name: getattr(args, name) for name in FITTING if getattr(args, name) is not None}
        stored = self._saved_transform(given)
        if args.random_resized_crop is None:
            args.random_resized_crop = stored.resize != "none"
        return replace(
            stored,
            random_resized_crop=args.random_resized_crop,
            crop_scale=tuple(args.crop_scale),
            horizontal_flip=args.horizontal_flip,
            vertical_flip=args.vertical_flip,
        )

    def _datasets(self) -> dict[str, ClassificationDataset]:
        args = self.data_args
        checked, self.skipped, known = {}, [], load_known(args.corpus)
        for part, images in self.parts.items():
            checked[part], skipped = verify_images(
                images,
                num_channels=3,
                white_level=args.white_level,
                bad_images=args.bad_images,
                transform=self.transform,
                known=known,
            )
            self.skipped += [name for name, _ in skipped]
        rows = itertools.chain(*(judged(images, known) for images in checked.values()))
        found = {white_and_depth([row], args.white_level, known) for row in rows}
        levels = sorted({white for white, _ in found})
        if len(levels) > 1:
            whites = ", ".join(f"{white:g}" for white in levels)
            raise UsageError(MIXED_DEPTHS.format(whites=whites, model="classifier"))
        (self.white,), self.deep = levels, any(deep for _, deep in found)
        reading = {"white_level": self.white, "seed": self.args.seed}
        made = {part: ClassificationDataset(images, self.transform, **reading) for part, images in checked.items()}
        for part in ("train", "validation"):
            if len(set(made[part].labels.tolist())) < 2:
                raise UsageError(f"the {part} part of fold {args.fold} has images of one class only")
        if self.model_args.mode == "finetune":
            augment = Augmentation(args.randaugment, args.random_erasing)
            made["training"] = ClassificationDataset(checked["train"], self.transform, augment=augment, **reading)
        return made

    def _make_trainer(self, args: FinetuningArguments) -> ClassifierTrainer:
        data = self.data_args
        validation = self.datasets["validation"]
        uniform = np.full((len(validation), len(self.class_names)), 1 / len(self.class_names))
        figures = {"loss": 0.0, **self._figures_of(uniform, validation)}
        chosen = args.metric_for_best_model.removeprefix("eval_")
        # Of two classes there is no macro mean, of more nothing else: both names mean what there is.
        for name in (f"macro_{chosen}", chosen.removeprefix("macro_")):
            if name in figures:
                chosen, args.metric_for_best_model = name, f"eval_{name}"
        if chosen not in figures:
            raise UsageError(
                f"metric_for_best_model must be one of {', '.join(figures)}, got {args.metric_for_best_model!r}"
            )
        if np.isnan(figures[chosen]):
            raise UsageError(
                f"metric_for_best_model {args.metric_for_best_model!r} is undefined: the validation part of fold "
                f"{data.fold} lacks a class that it needs"
            )
        weights = None
        if data.class_weights == "balanced":
            counts = self._class_counts
            weights = torch.tensor(counts.sum() / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)
        trainer = ClassifierTrainer(
            class_weights=weights,
            layer_decay=args.layer_decay,
            mixing=Mixing(data.mixup, data.cutmix, args.seed),
            model=self.model,
            args=args,
            train_dataset=self.datasets.get("training"),
            eval_dataset=self.datasets["validation"],
            data_collator=OneHot(len(self.class_names)),
            compute_metrics=self._figures,
        )
        trainer.add_callback(OneAnswerCallback(self._what_may_help(args, trainer)))
        if args.early_stopping_patience:
            trainer.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        return trainer

    @property
    def _class_counts(self) -> np.ndarray:
        return np.bincount(self.datasets["train"].labels, minlength=len(self.class_names))

    def _what_may_help(self, args: FinetuningArguments, trainer: ClassifierTrainer) -> str:
        """Against a classifier that answers the commonest class: settings that this run does not have yet."""
        model, data = self.model_args, self.data_args
        if model.mode != "finetune":
            weights = model.mode == "linear_probe" and data.class_weights == "none"
            return "class_weights balanced" if weights else "an encoder that was trained longer"
        lowest = min(group["lr"] for group in parameter_groups(self.model, args.learning_rate, 0.0, args.layer_decay))
        per_epoch = len(self.datasets["training"]) // trainer.effective_batch_size
        advice = [
            f"more than {per_epoch} updates an epoch (per_device_train_batch_size {args.per_device_train_batch_size}), "
            f"more epochs than {args.num_train_epochs:g}",
            f"a higher learning_rate than {args.learning_rate:.3g}",
        ]
        if data.class_weights == "none":
            advice.insert(0, "class_weights balanced")
        if args.layer_decay < 1:
            advice.append(
                f"a layer_decay nearer to 1 than {args.layer_decay:g} (the lowest layer learns at {lowest:.1e})"
            )
        if model.head_init == "random" and model.model_name_or_path is not None:
            advice.append("head_init linear_probe")
        strong = {"randaugment": data.randaugment, "random_erasing": data.random_erasing, "drop_path": model.drop_path}
        if any(strong.values()):
            advice.append(" ".join(f"{name} 0" for name, value in strong.items() if value))
        return "; ".join(advice)

    def _saved_transform(self, given: dict[str, Any]) -> ImageTransform:
        """As the checkpoint's image processor says, but for the fields given; with neither, the usual defaults."""
        name, size = self.model_args.model_name_or_path, self.model.config.image_size
        mean, std = self.data_args.normalization(3)
        usual = ImageTransform(size, **{"image_mean": mean, "image_std": std} | given)
        if name is None:
            return usual
        source = {"revision": self.model_args.model_revision, "subfolder": self.model_args.model_subfolder}
        try:
            processor = AutoImageProcessor.from_pretrained(name, **source)
        except (OSError, ValueError) as error:
            missing = [field for field in ("resize", "image_mean", "image_std") if field not in given]
            if missing:
                raise UsageError(
                    f"model_name_or_path {name!r} has no image processor: give {', '.join(missing)} as in its "
                    f"pretraining ({str(error).splitlines()[0]})"
                ) from error
            return usual
        try:
            return transform_of_processor(processor, size, **given)[0]
        except ValueError as error:
            raise UsageError(f"model_name_or_path {name!r}: {error}; give resize") from error

    def _figures(self, prediction: EvalPrediction) -> dict[str, float]:
        probabilities = torch.from_numpy(prediction.predictions).softmax(dim=1).numpy()
        counts = np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])
        figures = self._figures_of(probabilities, self.datasets["validation"])
        return figures | {"commonest_answer": float(counts.max() / counts.sum())}

    def _figures_of(self, probabilities: np.ndarray, dataset: ClassificationDataset) -> dict[str, float]:
        table = self._table(probabilities, dataset)
        return figures_of(table, self.positive)

    def _table(self, probabilities: np.ndarray, dataset: ClassificationDataset):
        return predictions_table(probabilities, dataset.dataset, self.class_names, self.data_args.fold)

    @property
    def _skipped(self) -> list[str]:
        return self.skipped

    def _derived(self) -> dict[str, Any]:
        return {
            "white_level": self.white,
            "class_names": self.class_names,
            "train_images_sha256": sha256_of_lines(self.datasets["train"].dataset["sha256"][:]),
            # of the images and their labels, in their order
            **{f"{part}_contents_sha256": self._contents_of(part) for part in PARTS},
            "transform": asdict(self.transform),
            **{f"num_{part}_images": len(self.datasets[part]) for part in PARTS},
        }

    def _contents_of(self, part: str) -> str:
        images = self.datasets[part].dataset
        pairs = zip(images["sha256"][:], images["label"][:], strict=True)
        return sha256_of_lines([f"{digest} {label}" for digest, label in pairs])

    def _digests(self) -> set[str]:
        return set().union(*(self.datasets[part].dataset["sha256"][:] for part in ("train", "validation")))

    def _train(self) -> tuple[Classifier, dict[str, float]]:
        results = {}
        if self.model_args.mode == "finetune":
            if self._probed_head and self.checkpoint is None:
                self._fit_head()
            if self.checkpoint is None:
                seed_this_process(self.args.seed)
            results |= self.trainer.train(resume_from_checkpoint=self.checkpoint and str(self.checkpoint)).metrics
            results["best_checkpoint_step"] = self.trainer.state.best_global_step
        return self._whole_model(), results

    @property
    def _probed_head(self) -> bool:
        args = self.model_args
        return args.head_init == "linear_probe" and args.model_name_or_path is not None

    def _fit_head(self) -> None:
        """Begin from the linear probe of the encoder as it is, in every process alike (Kumar et al. 2022, LP-FT)."""
        parts = {part: self.datasets[part] for part in ("train", "validation")}
        reading = (self.args.per_device_eval_batch_size, self.args.dataloader_num_workers)
        fit_probe(
            self.model,
            {part: frozen_features(self.model, dataset, *reading) for part, dataset in parts.items()},
            {part: dataset.labels for part, dataset in parts.items()},
            self.data_args.class_weights == "balanced",
        )
        # A class without a training image, which the probe never answers, would swamp a smoothed loss.
        bias = self.model.classifier.bias.data
        bias.clamp_(min=bias[bias > NEVER].min().item() - 10)

    def _finish(self, model: Classifier, results: dict[str, float]) -> list[str]:
        reading = (self.args.per_device_eval_batch_size, self.args.dataloader_num_workers)
        if self.model_args.mode != "finetune":
            parts = {part: self.datasets[part] for part in PARTS}
            features = {part: frozen_features(model, dataset, *reading) for part, dataset in parts.items()}
            labels = {part: dataset.labels for part, dataset in parts.items()}
            if self.model_args.mode == "knn":
                neighbours, classes = self.model_args.knn_neighbours, len(self.class_names)
                answers, calibration = nearest_neighbours(features, labels, neighbours, classes), []
            else:
                fit_probe(model, features, labels, self.data_args.class_weights == "balanced")
        if self.model_args.mode != "knn":
            answers, calibration = self._calibrated_answers(model, results)
        for part, file in (("validation", "validation_predictions.parquet"), ("test", "predictions.parquet")):
            dataset = self.datasets[part]
            probabilities = answers[part]
            table = self._table(probabilities, dataset)
            with replaced_file(self.output_dir / file) as new:
                table.to_parquet(new)
            figures = self._figures_of(probabilities, dataset)
            results.update({f"{part}_{name}": value for name, value in figures.items()})
            results[f"{part}_ece"] = expected_calibration_error(probabilities, dataset.labels)
        first = "prior_correction false; " if self.model_args.prior_correction else ""
        for answer in collapsed_folds(table).values():
            logger.warning(
                "the classifier answers %s for every test image: it has learned nothing. What may help: %s; see "
                "metrics.jsonl",
                *(answer, first + self._what_may_help(self.args, self.trainer)),
            )
        auroc = "auroc" if "test_auroc" in results else "macro_auroc"
        shown = ", ".join(f"{name} {results[f'test_{name}']:.3f}" for name in ("accuracy", "balanced_accuracy", auroc))
        lines = [
            f"test part of fold {self.data_args.fold}: {shown}",
            *calibration,
            f"predictions {self.output_dir / 'predictions.parquet'}",
        ]
        if self.curves.exists():
            lines.append(f"curves      {self.curves}")
        if self.model_args.mode == "knn":
            return lines
        self._write_export(model, results, table)
        return [*lines, f"export      {self.export}"]

    def _calibrated_answers(
        self, model: Classifier, results: dict[str, Any]
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """Probabilities of validation and test, and what to print; changes the head of `model`."""
        reading = (self.args.per_device_eval_batch_size, self.args.dataloader_num_workers)
        logits = {part: predict(model, self.datasets[part], *reading) for part in ("validation", "test")}
        labels = {part: self.datasets[part].labels for part in logits}
        correction = prior_correction(self._class_counts) if self.model_args.prior_correction else None
        answers, found, said = calibrated(model, logits, labels, correction, self.model_args.calibrate)
        results.update(found)
        return answers, [said]

    @property
    def _commit_message(self) -> str:
        return f"Fold {self.data_args.fold}, {self.model_args.mode}"

    def _whole_model(self) -> Classifier:
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    def _export_as_it_is(self) -> None:
        if self.trainer.is_world_process_zero():
            self._write_export(self._whole_model(), {}, None)

    def _write_export(self, model: Classifier, results: dict, table: pd.DataFrame | None) -> None:
        origin = origin_of(self.model_args.model_name_or_path, self.model_args.model_revision)
        counts = {part: self.resolved["derived"][f"num_{part}_images"] for part in PARTS}
        values = {name: results[f"test_{name}"] for name in FIGURES if f"test_{name}" in results}
        summary = None
        if values:
            commonest = {str(self.data_args.fold): int(self._class_counts.argmax())}
            # With the draws of cross_validate.py, whose summary of this fold is then the same.
            summary = summarise(table, self.data_args.positive_classes, commonest=commonest)
        write_classifier(
            self.export,
            model,
            self.transform.processor(self.white, deep=self.deep),
            self._texts(),
            [],
            {
                "title": f"Classifier of {Path(self.data_args.corpus).name}, by GLCM-MAE",
                "repo_id": ADDRESS,
                "corpus": Path(self.data_args.corpus).name,
                "fold": self.data_args.fold,
                "base_model": origin.base_model,
                "origin": origin,
                "environment": training_environment(results, self.args, self.checkpoint is not None),
                "data_facts": facts_of(self.data_args.corpus),
                "counts": counts,
                "learning_rate": self.args.learning_rate if self.model_args.mode == "finetune" else None,
                "num_train_epochs": self.trainer.state.epoch,
                "effective_batch_size": self.resolved["derived"]["effective_batch_size"],
                "mode": self.model_args.mode,
                "pooling": self.model_args.pooling,
                "claim": what_it_tells(self.class_names, summary, "on the test part"),
                "class_weights": self.data_args.class_weights,
                "prior_correction": self.model_args.prior_correction and table is not None,
                "shares": dict(zip(self.class_names, self._class_counts / self._class_counts.sum(), strict=True)),
                "calibration": {name: results[name] for name in (*CALIBRATION, "not_calibrated") if name in results},
                "figures": figure_rows(summary) if summary else [],
                "least": always_commonest_said(summary["always_commonest"]) if summary else None,
                "caveat": NO_PATIENTS if summary and not summary["patients_known"] else None,
                "means": figures_explained(self.class_names, self.data_args.positive_classes),
                "only_answer": next(iter(collapsed_folds(table).values()), None) if values else None,
                "values": values,
            },
        )


@torch.no_grad()
def predict(model: Classifier, dataset: ClassificationDataset, batch_size: int, workers: int) -> np.ndarray:
    """Logits `(len(dataset), num_classes)`, from float32 whatever the training's precision."""
    device = next(model.parameters()).device
    model.eval()
    answers = []
    for batch in tqdm(DataLoader(dataset, batch_size, num_workers=workers), desc="predicting", leave=False):
        answers.append(model(batch["pixel_values"].to(device)).logits.float().cpu())
    return torch.cat(answers).double().numpy()
