"""A run of fine-tuning, from its arguments to the export."""

import json
import logging
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from accelerate import PartialState
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import (
    AutoImageProcessor,
    EarlyStoppingCallback,
    EvalPrediction,
    ProgressCallback,
    ViTForImageClassification,
    set_seed,
)
from transformers.trainer_utils import HubStrategy

from commandline import UsageError
from corpora.facts import facts_of
from hub.cards import ADDRESS, origin_of
from hub.contents import push_asked_for
from hub.export import TRAINING_IMAGES, images_seen, list_of_images, without_paths, write_classifier
from hub.repository import open_repository, publish_export
from images.augment import Augmentation, Mixing
from images.check import verify_images, white_and_depth
from images.splits import PARTS, fingerprint_of, load_prepared
from images.transform import ImageTransform, transform_of_processor
from judging.summary import (
    FIGURES,
    figures_explained,
    figures_of,
    load_metric,
    only_answers,
    positive_indices,
    predictions_table,
    summarise,
)
from output_folder import check_output, replaced_file
from training.arguments import FITTING, ClassifierArguments, FinetuningArguments, LabelledDataArguments
from training.callbacks import ImagesProgressCallback, MetricsFileCallback, PublishEverySave
from training.feeding import ClassificationDataset, OneHot
from training.frozen import fit_frozen, frozen_features
from training.models import load_classifier
from training.run import MAY_CHANGE, begin_run, checkpoint_to_resume, refuse_another_training, rehearse, took
from training.trainers import ClassifierTrainer

logger = logging.getLogger("finetune")

WRITTEN = (
    *("config.yaml", "metrics.jsonl", "all_results.json", "export", TRAINING_IMAGES),
    *("predictions.parquet", "validation_predictions.parquet"),
)


class Run:
    """Everything of a run, checked before the first step.

    Raises:
        ValueError, OSError: on a mistake in the arguments or the images, in one clear message.
    """

    def __init__(self, model_args: ClassifierArguments, data_args: LabelledDataArguments, args: FinetuningArguments):
        if args.n_gpu > 1:
            raise UsageError("start several GPUs with `accelerate launch`, or choose one with CUDA_VISIBLE_DEVICES=0")
        self.model_args, self.data_args, self.args = model_args, data_args, args
        self.output_dir = check_output(args.output_dir)
        self.publication = push_asked_for(args, self.output_dir / "export")
        if self.publication is not None and model_args.mode == "knn":
            raise UsageError("push_to_hub: there is no model to publish in mode knn")
        set_seed(args.seed)
        with PartialState().main_process_first():
            self.parts, self.class_names = load_prepared(data_args.corpus, data_args.splits_file, data_args.fold)
        if self.class_names is None:
            raise UsageError(f"corpus {data_args.corpus!r} has no labels to learn")
        self.positive = positive_indices(self.class_names, data_args.positive_classes)
        self.metric = load_metric()
        self.seen = self._refuse_leaks()
        self.model = load_classifier(
            model_args.model_name_or_path,
            self.class_names,
            pooling=model_args.pooling,
            drop_path=model_args.drop_path if model_args.mode == "finetune" else 0.0,
            revision=model_args.model_revision,
            subfolder=model_args.model_subfolder,
            sizes=model_args.sizes(),
        )
        sources = (model_args.model_name_or_path, data_args.corpus, data_args.splits_file)
        self.checkpoint = checkpoint_to_resume(args, WRITTEN, sources)
        self.transform = self._transform()
        self.datasets = self._datasets()
        self.trainer = self._make_trainer()
        self.resolved = self._resolve()

    def _refuse_leaks(self) -> set[str] | None:
        """SHA-256 of the images that the encoder and its ancestors have seen; `None` where that is unknown."""
        args = self.model_args
        seen = images_seen(args.model_name_or_path, args.model_revision, args.model_subfolder)
        if seen is None:
            logger.warning(
                "%s does not tell which images it was trained on, so it may have seen some of the test part; the "
                "export will not tell either",
                args.model_name_or_path,
            )
            return None
        for part in ("test", "validation"):
            known = zip(self.parts[part]["file_name"], self.parts[part]["sha256"], strict=True)
            leaked = [name for name, digest in known if digest in seen]
            if leaked:
                raise UsageError(
                    f"{args.model_name_or_path!r} was pretrained on {len(leaked)} images "
                    f"of the {part} part of fold {self.data_args.fold} ({', '.join(leaked[:2])}): pretrain on its "
                    "training part with `pretrain.py --fold`, or let cross_validate.py do it"
                )
        return seen

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
        checked, self.skipped = {}, []
        for part, images in self.parts.items():
            checked[part], skipped = verify_images(
                images,
                num_channels=3,
                white_level=args.white_level,
                bad_images=args.bad_images,
                transform=self.transform,
            )
            self.skipped += [name for name, _ in skipped]
        found = {white_and_depth([row], args.white_level) for images in checked.values() for row in images}
        levels = sorted({white for white, _ in found})
        if len(levels) > 1:
            raise UsageError(
                f"8-bit and 16-bit images are mixed (white is {', '.join(f'{white:g}' for white in levels)}), and the "
                "classifier's image processor has one white level: convert them to one depth"
            )
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

    def _make_trainer(self) -> ClassifierTrainer:
        args, data = self.args, self.data_args
        if args.device.type == "cpu":
            args.dataloader_pin_memory = False  # asked for without an accelerator, it only warns
        validation = self.datasets["validation"]
        uniform = np.full((len(validation), len(self.class_names)), 1 / len(self.class_names))
        figures = {"loss": 0.0, **self._figures_of(uniform, validation)}
        chosen = args.metric_for_best_model.removeprefix("eval_")
        if f"macro_{chosen}" in figures:
            chosen = f"macro_{chosen}"
            args.metric_for_best_model = f"eval_{chosen}"
        if chosen not in figures:
            raise UsageError(
                f"metric_for_best_model must be one of {', '.join(figures)}, got {args.metric_for_best_model!r}"
            )
        if np.isnan(figures[chosen]):
            raise UsageError(
                f"metric_for_best_model {args.metric_for_best_model!r} is undefined: the validation part of fold "
                f"{data.fold} lacks a class that it needs"
            )
        effective = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if args.learning_rate is None:
            args.learning_rate = args.base_learning_rate * effective / 256
        weights = None
        if data.class_weights == "balanced":
            counts = np.bincount(self.datasets["train"].labels, minlength=len(self.class_names))
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
        if args.early_stopping_patience:
            trainer.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        if not args.disable_tqdm:
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(ImagesProgressCallback(effective))
        trainer.add_callback(MetricsFileCallback(self.output_dir / "metrics.jsonl"))
        if self.publication is not None and args.hub_strategy == HubStrategy.EVERY_SAVE:
            trainer.add_callback(PublishEverySave(self.publication, self._export_as_it_is))
        return trainer

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
        return self._figures_of(probabilities, self.datasets["validation"])

    def _figures_of(self, probabilities: np.ndarray, dataset: ClassificationDataset) -> dict[str, float]:
        table = self._table(probabilities, dataset)
        return figures_of(table, self.metric, self.positive)

    def _table(self, probabilities: np.ndarray, dataset: ClassificationDataset):
        return predictions_table(probabilities, dataset.dataset, self.class_names, self.data_args.fold)

    def _resolve(self) -> dict:
        """Every setting of the run with its value, for config.yaml; refuses a resume that changes the training."""
        counts = {f"num_{part}_images": len(self.datasets[part]) for part in ("train", "validation", "test")}
        resolved = {
            "model": vars(self.model_args),
            "data": vars(self.data_args),
            "training": self.args.to_sanitized_dict(),
            "derived": {
                "effective_batch_size": self.trainer.effective_batch_size,
                "white_level": self.white,
                "class_names": self.class_names,
                "skipped_images": self.skipped,
                "train_images_sha256": fingerprint_of(self.datasets["train"].dataset["sha256"]),
                # of the images and their labels, in their order
                **{f"{part}_contents_sha256": self._contents_of(part) for part in PARTS},
                "pretraining_images_sha256": None if self.seen is None else fingerprint_of(sorted(self.seen)),
                "mixed_precision": self.trainer.accelerator.mixed_precision,
                "transform": asdict(self.transform),
                **counts,
            },
        }
        resolved["model_config"] = self.model.config.to_dict()
        resolved["model_config"].pop("_name_or_path", None)  # a path of this machine
        resolved["training"]["push_to_hub"] = self.publication is not None
        resolved = json.loads(json.dumps(resolved, default=str))
        if self.checkpoint is not None:
            refuse_another_training(self.checkpoint, resolved, MAY_CHANGE)
        if self.model_args.mode == "finetune":
            batches = len(self.trainer._get_train_sampler()) // self.trainer.effective_batch_size
            steps = math.ceil(self.args.num_train_epochs * batches)
            rehearse(self.trainer, self.args.max_steps if self.args.max_steps > 0 else steps)
        return resolved

    def _contents_of(self, part: str) -> str:
        images = self.datasets[part].dataset
        pairs = zip(images["sha256"], images["label"], strict=True)
        return fingerprint_of([f"{digest} {label}" for digest, label in pairs])

    def train(self) -> None:
        """Train or fit, judge, export; prints where the results are."""
        main = self.trainer.is_world_process_zero()
        PartialState().wait_for_everyone()  # until all have read the config.yaml of a run that is resumed
        if main:
            if self.publication is not None:
                open_repository(self.publication)
            begin_run(self.output_dir, WRITTEN, self.checkpoint, self.resolved)
            # Once: a relative path is known by what exists, which may be gone when it is published.
            self.published = without_paths(self.resolved)
            self.published["derived"]["skipped_images"] = len(self.skipped)
            for name, text in self._training_images().items():
                (self.output_dir / name).write_text(text)
        PartialState().wait_for_everyone()
        results, answers = {}, {}
        if self.model_args.mode == "finetune":
            results |= self.trainer.train(resume_from_checkpoint=self.checkpoint and str(self.checkpoint)).metrics
            results["best_checkpoint_step"] = self.trainer.state.best_global_step
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        if not main:
            return
        reading = (self.args.per_device_eval_batch_size, self.args.dataloader_num_workers)
        if self.model_args.mode != "finetune":
            parts = {part: self.datasets[part] for part in ("train", "validation", "test")}
            features = {part: frozen_features(model, dataset, *reading) for part, dataset in parts.items()}
            answers = fit_frozen(
                self.model_args.mode,
                model,
                features,
                {part: dataset.labels for part, dataset in parts.items()},
                self.model_args.knn_neighbours,
                self.data_args.class_weights == "balanced",
            )
        for part, file in (("validation", "validation_predictions.parquet"), ("test", "predictions.parquet")):
            dataset = self.datasets[part]
            found = answers.get(part)
            probabilities = predict(model, dataset, *reading) if found is None else found
            table = self._table(probabilities, dataset)
            with replaced_file(self.output_dir / file) as new:
                table.to_parquet(new)
            results |= {f"{part}_{name}": value for name, value in self._figures_of(probabilities, dataset).items()}
        for answer in only_answers(table).values():
            logger.warning(
                "the classifier answers %s for every test image: it has learned nothing. Train longer, or with another "
                "learning_rate than %.3g; see metrics.jsonl",
                *(answer, self.args.learning_rate),
            )
        if self.model_args.mode != "knn":
            self._export(model, results, table)
        # Last: a run with this file is finished.
        with replaced_file(self.output_dir / "all_results.json") as new:
            new.write_text(json.dumps(results, indent=2) + "\n")
        auroc = "auroc" if "test_auroc" in results else "macro_auroc"
        shown = ", ".join(f"{name} {results[f'test_{name}']:.3f}" for name in ("accuracy", "balanced_accuracy", auroc))
        print(f"test part of fold {self.data_args.fold}: {shown}")
        print(f"predictions {self.output_dir / 'predictions.parquet'}")
        if self.model_args.mode != "knn":
            print(f"export      {self.output_dir / 'export'}")
            if self.publication is not None:
                for line in publish_export(self.publication, f"Fold {self.data_args.fold}, {self.model_args.mode}"):
                    print(line, flush=True)

    def _training_images(self) -> dict[str, str]:
        """SHA-256 of every image that had a part in the weights; none if those of the encoder are unknown."""
        if self.seen is None:
            return {}
        return list_of_images(
            self.seen.union(*(self.datasets[part].dataset["sha256"] for part in ("train", "validation")))
        )

    def _export_as_it_is(self) -> None:
        if self.trainer.is_world_process_zero():
            self._export(self.trainer.accelerator.unwrap_model(self.trainer.model), {}, None)

    def _intervals(self, table: pd.DataFrame) -> list[tuple[str, str, str]]:
        """Rows of the card: figure, value, 95 % interval."""
        found = summarise(table, self.data_args.positive_classes, self.args.seed)["figures"]
        pooled = {name: figure["pooled"] for name, figure in found.items()}
        return [
            (name, f"{figure['value']:.3f}", f"{figure['low']:.3f} to {figure['high']:.3f}")
            for name, figure in pooled.items()
            if not np.isnan(figure["value"])
        ]

    def _export(self, model: ViTForImageClassification, results: dict, table: pd.DataFrame | None) -> None:
        origin = origin_of(self.model_args.model_name_or_path, self.model_args.model_revision)
        counts = {part: self.resolved["derived"][f"num_{part}_images"] for part in ("train", "validation", "test")}
        values = {name: results[f"test_{name}"] for name in FIGURES if f"test_{name}" in results}
        write_classifier(
            self.output_dir / "export",
            model,
            self.transform.processor(self.white, deep=self.deep),
            {"config.yaml": yaml.safe_dump(self.published, sort_keys=False)} | self._training_images(),
            [],
            {
                "title": f"Classifier of {Path(self.data_args.corpus).name}, by GLCM-MAE",
                "repo_id": ADDRESS,
                "corpus": Path(self.data_args.corpus).name,
                "fold": self.data_args.fold,
                "base_model": origin.base_model,
                "origin": origin,
                "environment": took(results, self.args, self.checkpoint is not None),
                "data_facts": facts_of(self.data_args.corpus),
                "counts": counts,
                "mode": self.model_args.mode,
                "pooling": self.model_args.pooling,
                "deep": self.deep,
                "figures": self._intervals(table) if values else [],
                "means": figures_explained(self.class_names, self.data_args.positive_classes),
                "only_answer": next(iter(only_answers(table).values()), None) if values else None,
                "values": values,
            },
        )


@torch.no_grad()
def predict(
    model: ViTForImageClassification, dataset: ClassificationDataset, batch_size: int, workers: int
) -> np.ndarray:
    """Probabilities `(len(dataset), num_classes)`, in float32 whatever the training's precision."""
    device = next(model.parameters()).device
    model.eval()
    answers = []
    for batch in tqdm(DataLoader(dataset, batch_size, num_workers=workers), desc="predicting", leave=False):
        answers.append(model(batch["pixel_values"].to(device)).logits.float().softmax(dim=1).cpu())
    return torch.cat(answers).double().numpy()
