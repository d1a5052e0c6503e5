"""Classifying without a network: a logistic regression on co-occurrence features of an image and of its tiles.

The bar that a network has to pass on images of texture, in minutes on a CPU.
"""

import json
import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from commandline import UsageError
from images.check import white_level_of
from images.decode import decode_image
from images.folds import few_groups
from images.splits import load_prepared
from judging.summary import figures_of, predictions_table
from judging.tables import positive_indices
from metrics.medical_classification.figures import expected_calibration_error
from modeling_glcm_mae import cooccurrence_matrix, offsets_from_angles, texture_features
from output_folder import replaced_file
from training.fold_options import TEXTURE_FEATURES
from training.frozen import all_columns

logger = logging.getLogger("cross_validate")

ANGLES = [0, math.pi / 4, math.pi / 2, 3 * math.pi / 4]
LEVELS, DISTANCES, TILES = 32, (1, 2, 4), 4  # grey levels, pixels, tiles along each side
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of LogisticRegression, tried on the validation part


def features_by_direction(images: torch.Tensor, levels: int, distances: Sequence[int]) -> dict[str, torch.Tensor]:
    """The 25 co-occurrence features of IBSI, pairs counted in both orders.

    Args:
        images: `(..., H, W)`, grey in [0, 1].
        levels: grey levels, equal parts of the range from black to white.
        distances: between the pixels of a pair, in pixels.

    Returns:
        For each feature `(..., len(distances), 4)`, float64: a value for every distance and direction.

    Raises:
        ValueError: if the images are not larger than the largest distance.
    """
    matrices = cooccurrence_matrix(
        images,
        levels=levels,
        value_range=(0.0, 1.0),
        offsets=offsets_from_angles(distances, ANGLES),
        kernel="hard",
        symmetric=True,
    )  # ... D K K
    features = texture_features(matrices.double())
    return {name: value.unflatten(-1, (len(distances), len(ANGLES))) for name, value in features.items()}


def features_of_image(image: torch.Tensor) -> np.ndarray:
    """Features of a whole grey image and of a grid of tiles, for each distance the mean over four directions.

    Args:
        image: `(H, W)` in [0, 1]. Up to 3 rows and columns that do not fill a tile are in no tile.

    Returns:
        `((1 + 4 * 4) * 25 * 3,)`.

    Raises:
        ValueError: if the image is too small for its tiles.
    """
    height, width = (side // TILES for side in image.shape)
    if min(height, width) <= max(DISTANCES):
        least = TILES * (max(DISTANCES) + 1)
        raise ValueError(f"{image.shape[0]} x {image.shape[1]} pixels are too few, {least} x {least} are needed")
    tiles = image.unfold(0, height, height).unfold(1, width, width).flatten(0, 1)  # T h w
    parts = [features_by_direction(images, LEVELS, DISTANCES) for images in (image[None], tiles)]
    return torch.cat([torch.stack([value.mean(-1) for value in part.values()]).flatten() for part in parts]).numpy()


def classify_folds(
    corpus: str,
    splits_file: str | None,
    folds: Sequence[str],
    output: Path,
    class_weights: str = "none",
    labelled_groups: int | None = None,
    positive: Sequence[str] | None = None,
) -> list[Path]:
    """Fit to the training part of every fold, and predict; a fold that is finished is left as it is.

    Args:
        corpus, splits_file: as for `load_prepared`.
        folds: "0", "1", ... or "official".
        output: receives fold_<k>/texture_features, with the files of a fine-tuning: predictions.parquet,
            validation_predictions.parquet, all_results.json.
        class_weights: none or balanced.
        labelled_groups: train on so many groups only, as `few_groups` draws them.
        positive: classes that count as positive, for all_results.json.

    Returns:
        The folder of each fold.

    Raises:
        UsageError: an image is too small for its tiles, or a part has images of one class only.
    """
    known: dict[str, np.ndarray] = {}  # by SHA-256: the parts of all folds are the same images
    folders = [output / f"fold_{fold}" / TEXTURE_FEATURES for fold in folds]
    for fold, folder in zip(folds, folders, strict=True):
        if (folder / "all_results.json").exists():
            logger.info("%s is finished", folder)
            continue
        parts, class_names = load_prepared(corpus, splits_file, fold)
        if labelled_groups is not None:
            parts["train"] = few_groups(parts["train"], labelled_groups)
        _measure(parts, known)
        folder.mkdir(parents=True, exist_ok=True)
        _classify_fold(parts, class_names, fold, folder, known, class_weights == "balanced", positive)
    return folders


def _measure(parts: dict[str, datasets.Dataset], known: dict[str, np.ndarray]) -> None:
    """Add the features of the images that are not known yet."""
    new = [
        images.select([index for index, digest in enumerate(images["sha256"][:]) if digest not in known])
        for images in parts.values()
    ]
    images = datasets.concatenate_datasets(new)

    def features(index: int) -> np.ndarray:
        row = images[index]
        name, white = row["file_name"], white_level_of(row, None)
        pixels = decode_image(row["image"], name=name, num_channels=1, white_level=white)[..., 0]
        try:
            return features_of_image(torch.from_numpy(pixels))
        except ValueError as error:
            raise UsageError(f"image {name!r}: {error}") from error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(features, range(len(images)))
        bar = tqdm(found, total=len(images), desc="texture features", unit=" images", disable=not len(images))
        known |= zip(images["sha256"][:], bar, strict=True)


def _classify_fold(
    parts: dict[str, datasets.Dataset],
    class_names: list[str],
    fold: str,
    folder: Path,
    known: dict[str, np.ndarray],
    balanced: bool,
    positive: Sequence[str] | None,
) -> None:
    labels = {part: np.array(images["label"][:]) for part, images in parts.items()}
    for part in ("train", "validation"):
        if len(set(labels[part].tolist())) < 2:
            raise UsageError(f"the {part} part of fold {fold} has images of one class only")
    features = {part: np.stack([known[digest] for digest in images["sha256"][:]]) for part, images in parts.items()}
    indices = positive_indices(class_names, positive)

    def judged(classifier, part: str):
        answers = all_columns(classifier.predict_proba(features[part]), classifier[-1].classes_, len(class_names))
        table = predictions_table(answers, parts[part], class_names, fold)
        return table, figures_of(table, indices)

    tried = []
    for strength in tqdm(STRENGTHS, desc=f"fold {fold}: logistic regressions", leave=False):
        regression = LogisticRegression(C=strength, max_iter=5000, class_weight="balanced" if balanced else None)
        classifier = make_pipeline(StandardScaler(), regression).fit(features["train"], labels["train"])
        table, figures = judged(classifier, "validation")
        # The figure by which finetune.py chooses an epoch, if nothing else is asked for; of equals the smallest log
        # loss, since the strongest regularisation may order all images and still answer one class for all.
        chosen_by = "auroc" if "auroc" in figures else "macro_auroc"
        probabilities = table[[f"probability_{name}" for name in class_names]]
        loss = log_loss(table["label"], probabilities, labels=range(len(class_names)))
        tried.append((figures[chosen_by], -loss, strength, classifier))
    best, _, strength, classifier = max(tried, key=lambda item: item[:2])
    logger.info("fold %s: C %g, %s %.3f on the validation part", fold, strength, chosen_by, best)
    results: dict[str, float] = {"C": strength}
    for part, file in (("validation", "validation_predictions.parquet"), ("test", "predictions.parquet")):
        table, figures = judged(classifier, part)
        with replaced_file(folder / file) as new:
            table.to_parquet(new)
        results |= {f"{part}_{name}": value for name, value in figures.items()}
        probabilities = table[[f"probability_{name}" for name in class_names]].to_numpy()
        results[f"{part}_ece"] = expected_calibration_error(probabilities, table["label"])
    with replaced_file(folder / "all_results.json") as new:  # the last: by it a fold is finished
        new.write_text(json.dumps(results, indent=4) + "\n")
