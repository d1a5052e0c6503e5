"""Features of every image of a corpus, as a table: by co-occurrence matrices, or by an encoder."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import datasets
import matplotlib
import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm
from transformers import AutoImageProcessor

from commandline import UsageError
from corpora.load import load_corpus
from images.check import verify_by_processor, verify_images, white_level_of
from images.decode import decode_image
from images.looking import EmbedArguments
from images.transform import transform_of_processor
from judging.summary import COLOURS
from output_folder import check_output, replaced_folder
from training.classical import features_by_direction
from training.feeding import ImagesAsEvaluated
from training.models import load_classifier

WRITTEN = ("features.parquet", "features.png", "config.yaml")


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
        raise UsageError(f"model_name_or_path {name!r} reads the mean of the patch tokens: give features mean")
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
    if "white_level" in images.column_names:  # each image says its own
        white = None
    # Again, now that the grey value of white is known: a deeper image must not go through an 8-bit processor.
    if args.white_level is not None:
        white = args.white_level
        images, _ = verify_images(images, num_channels=3, white_level=white, transform=transform)
    else:
        images, _ = verify_by_processor(images, white, name, num_channels=3, transform=transform)
    items = ImagesAsEvaluated(images, transform, white_level=white)
    features = []
    for start in tqdm(range(0, len(items), args.batch_size), unit=" batches"):
        batch = [items[i]["pixel_values"] for i in range(start, min(start + args.batch_size, len(items)))]
        outputs = encoder(torch.stack(batch).to(device))
        tokens = outputs.last_hidden_state  # B 1+N C
        mean = outputs.pooler_output if pools else tokens[:, 1:].mean(dim=1)
        features.append((tokens[:, 0] if args.features == "cls" else mean).cpu())
    values = torch.cat(features).numpy()
    return {f"{index:04d}": values[:, index] for index in range(values.shape[1])}


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a name is a dollar
def draw_pca(values: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str], file: Path) -> None:
    """First two principal components of standardised features `(n, d)`, a point an image, coloured by label `(n,)`."""
    varying = values[:, values.std(axis=0) > 0]
    pca = PCA(min(2, *varying.shape), svd_solver="full").fit(scaled := StandardScaler().fit_transform(varying))
    points = np.pad(pca.transform(scaled), ((0, 0), (0, 2)))[:, :2]
    share = [*pca.explained_variance_ratio_, 0.0][:2]
    figure = Figure(figsize=(7, 6), layout="constrained")
    axis = figure.subplots()
    for index, name in enumerate(class_names or ["images"]):
        chosen = points if labels is None else points[labels == index]
        colour = COLOURS[index % len(COLOURS)]
        axis.scatter(*chosen.T, s=12, alpha=0.6, color=colour, label=f"{name} ({len(chosen)})", linewidths=0)
    axis.set(xlabel=f"component 1 ({share[0]:.0%} of the variance)", ylabel=f"component 2 ({share[1]:.0%})")
    axis.legend()
    figure.savefig(file, dpi=110)


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
        if args.plot == "pca":
            names = label.names if label is not None else []
            labels = None if label is None else np.array(images["label"])
            draw_pca(
                np.stack([np.asarray(column) for column in measured.values()], axis=1),
                labels,
                names,
                new / "features.png",
            )
        (new / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return output_dir / "features.parquet"
