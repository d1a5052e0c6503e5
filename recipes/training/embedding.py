"""Features of every image of a corpus, as a table: by co-occurrence matrices, or by an encoder."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
import yaml
from tqdm.auto import tqdm
from transformers import AutoImageProcessor

from commandline import UsageError
from corpora.load import load_corpus
from images.check import verify_by_processor, verify_images, white_level_of
from images.decode import decode_image
from images.looking import EmbedArguments
from images.splits import image_digests
from images.transform import transform_of_processor
from judging.feature_space import draw_neighbours, draw_pca, nearest_images
from output_folder import check_output, replaced_folder
from training.classical import features_by_direction
from training.feeding import ImagesAsEvaluated
from training.frozen import GRID, means_of_parts
from training.models import load_classifier

WRITTEN = ("features.parquet", "features.png", "neighbours.parquet", "neighbours.png", "config.yaml")


def image_features(image: torch.Tensor, levels: int, distances: Sequence[int]) -> dict[str, float]:
    """Texture features of one grey image `(H, W)` in [0, 1].

    Raises:
        ValueError: if the image is not larger than the largest distance.
    """
    return {name: value.mean().item() for name, value in features_by_direction(image, levels, distances).items()}


def _texture(args: EmbedArguments, images: datasets.Dataset) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for row in tqdm(images, unit=" images"):
        white = white_level_of(row, args.white_level)
        pixels = decode_image(row["image"], name=row["file_name"], num_channels=1, white_level=white)
        try:
            features = image_features(torch.from_numpy(pixels[..., 0]), args.levels, args.distances)
        except ValueError as error:
            raise UsageError(f"image {row['file_name']!r}: {error}") from error
        for name, value in features.items():
            columns.setdefault(name, []).append(value)
    return columns


@torch.no_grad()
def _encoded(args: EmbedArguments, images: datasets.Dataset) -> dict[str, np.ndarray]:
    name = args.model_name_or_path
    encoder = load_classifier(name, ["unused"], pooling=None, revision=args.model_revision).base_model.eval()
    pools = encoder.config.model_type == "beit"  # a classifier of the mean token, whose CLS token nothing has read
    if pools and args.features == "cls":
        raise UsageError(f"model_name_or_path {name!r} reads the mean of the patch tokens: give features mean or grid")
    sides = (
        [side] * 2 if isinstance(side, int) else side for side in (encoder.config.image_size, encoder.config.patch_size)
    )
    grid = [of_image // of_patch for of_image, of_patch in zip(*sides, strict=True)]
    if args.features == "grid" and min(grid) < GRID:
        raise UsageError(
            f"features grid needs {GRID} x {GRID} patches at least, and model_name_or_path {name!r} has "
            f"{grid[0]} x {grid[1]}: give features mean"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder.to(device)
    try:
        processor = AutoImageProcessor.from_pretrained(name, revision=args.model_revision)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"model_name_or_path {name!r} has no image processor ({str(error).splitlines()[0]})"
        ) from error
    try:
        transform, white = transform_of_processor(processor, encoder.config.image_size)
    except ValueError as error:
        raise UsageError(f"model_name_or_path {name!r}: {error}") from error
    # Again, now that the grey value of white is known: a deeper image must not go through an 8-bit processor.
    checking = {"num_channels": 3, "transform": transform}
    images, white = verify_by_processor(images, white, name, given=args.white_level, **checking)
    items = ImagesAsEvaluated(images, transform, white_level=white)
    features = []
    for start in tqdm(range(0, len(items), args.batch_size), unit=" batches"):
        batch = [items[i]["pixel_values"] for i in range(start, min(start + args.batch_size, len(items)))]
        pixels = torch.stack(batch).to(device)
        tokens = encoder(pixels).last_hidden_state  # B 1+N C
        if args.features == "cls":
            read = tokens[:, 0]
        else:
            patches = tokens[:, 1:]
            means = means_of_parts(patches, grid[0]) if args.features == "grid" else patches.mean(dim=1)
            read = (encoder.pooler.layernorm(means) if pools else means).flatten(1)
        features.append(read.cpu())
    values = torch.cat(features).numpy()
    return {f"{index:04d}": values[:, index] for index in range(values.shape[1])}


def _write_neighbours(
    args: EmbedArguments, images: datasets.Dataset, columns: dict[str, list], values: np.ndarray, folder: Path
) -> None:
    known = {name: columns[name] for name in ("file_name", "group", "label_name") if name in columns}
    digests = columns.get("sha256") or image_digests(images)
    table = nearest_images(values, pd.DataFrame(known | {"sha256": digests}), args.neighbours)
    table.to_parquet(folder / "neighbours.parquet")
    places = {name: index for index, name in enumerate(columns["file_name"])}

    def picture_of(name: str) -> np.ndarray:
        row = images[places[name]]
        return decode_image(row["image"], name=name, num_channels=3, white_level=white_level_of(row, args.white_level))

    draw_neighbours(table, picture_of, folder / "neighbours.png")


def embed(args: EmbedArguments) -> Path:
    """Compute the features and write them; returns the path of the table."""
    output_dir = check_output(args.output_dir)
    if (output_dir / "config.yaml").exists() and not (output_dir / "features.parquet").exists():
        raise UsageError(f"output_dir {output_dir} holds the config.yaml of something else: give another folder")
    images = load_corpus(
        args.corpus,
        data_dir=args.data_dir,
        split=args.split,
        bad_images=args.bad_images,
        image_column=args.image_column,
        label_column=args.label_column,
        group_column=args.group_column,
    )
    images, skipped = verify_images(images, num_channels=1, white_level=args.white_level, bad_images=args.bad_images)
    if args.neighbours > len(images) - 1:
        raise UsageError(
            f"neighbours must be at most {len(images) - 1}, one less than the images, got {args.neighbours}"
        )
    if args.neighbours:
        names = pd.Series(images["file_name"][:])
        twice = names[names.duplicated()]
        if len(twice):
            raise UsageError(
                f"neighbours needs images of different names, but {twice.iloc[0]!r} is there twice: prepare_corpus.py "
                "gives each a name of its own"
            )
    measured = _texture(args, images) if args.features == "texture" else _encoded(args, images)
    kept = {name: images.features[name] for name in images.column_names if name != "image"}
    columns = {name: images[name] for name in kept}
    label = kept.get("label")
    if isinstance(label, datasets.ClassLabel) and "label_name" not in kept:
        kept["label_name"] = datasets.Value("string")
        columns["label_name"] = [label.names[i] if i is not None and i >= 0 else None for i in columns["label"]]
    columns |= measured
    types = kept | {name: datasets.Value("float64" if args.features == "texture" else "float32") for name in measured}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(types))
    settings = asdict(args) | {"num_images": len(table), "skipped": [name for name, _ in skipped]}
    with replaced_folder(output_dir, WRITTEN) as new:
        table.to_parquet(new / "features.parquet")
        values = np.stack([np.asarray(column) for column in measured.values()], axis=1)
        if args.plot == "pca":
            names = label.names if label is not None else []
            draw_pca(values, None if label is None else np.array(images["label"]), names, new / "features.png")
        if args.neighbours:
            _write_neighbours(args, images, columns, values, new)
        (new / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return output_dir / "features.parquet"
