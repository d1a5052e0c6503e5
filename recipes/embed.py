"""Features of every image of a corpus, as a Parquet table.

    python recipes/embed.py --corpus path/to/images --features texture --output_dir features
    python recipes/embed.py --corpus data/busi --features mean --model_name_or_path path/to/export --plot pca
    python recipes/embed.py --corpus data/busi --features mean --model_name_or_path path/to/export --neighbours 8

`cls`, `mean`: the CLS token, or the mean of the patch tokens, of the last layer of an encoder (an export of
pretrain.py, a classifier of finetune.py, any ViT or ViTMAE checkpoint). Nothing is masked and nothing is random: the
same image gives the same numbers, whatever the batch size, to float32 rounding (1e-5).

`texture`: the 25 co-occurrence features of IBSI (`modeling_glcm_mae.texture_features`) of the grey image at its own
size. Grey levels are equal parts of the range from black to white (`--levels`), pairs are counted in both orders, four
directions per distance, and each feature is averaged over directions and distances.

`--neighbours K`: the K nearest images of each, by cosine similarity of the encoder's features. An image is not its own
neighbour; copies and images of the same group are, and marked. Writes neighbours.parquet (file_name, rank, neighbour,
similarity, identical, same_group, and both labels where there are any), and neighbours.png, a row for each of at most
12 images.

Writes features.parquet (file_name, label, group and sha256 if the corpus has them, one column per feature: names of
IBSI, or 0000, 0001, ...; the order of the corpus), config.yaml, and with `--plot pca` the picture features.png.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
import yaml
from tqdm.auto import tqdm
from transformers import AutoImageProcessor

from commandline import UsageError, check_model_name, run_main
from corpora.load import load_corpus
from images.check import verify_by_processor, verify_images, white_level_of
from images.decode import decode_image
from images.splits import image_digests
from images.transform import transform_of_processor
from judging.feature_space import draw_neighbours, draw_pca, nearest_images
from output_folder import check_output, replaced_folder
from training.classical import features_by_direction
from training.feeding import ImagesAsEvaluated
from training.models import load_classifier

FEATURES = ("texture", "cls", "mean")
PLOTS = ("none", "pca")
WRITTEN = ("features.parquet", "features.png", "neighbours.parquet", "neighbours.png", "config.yaml")


@dataclass
class EmbedArguments:
    """Which images, which features."""

    corpus: str = field(
        default="speckle",
        metadata={"help": "speckle, busi, pneumonia, covid_ct, gbcu, a folder of images or Parquet, or a Hub id."},
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder of the download, for a corpus given by name."})
    split: str | None = field(default=None, metadata={"help": "Split to read; train if there is one."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the images, if there are several."})
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the labels, if a table (CSV, Parquet, Hub) has another name for it; none: without "
            "labels."
        },
    )
    group_column: str | None = field(
        default=None,
        metadata={"help": "Column of the patients, if a table has another name for it; none: without patients."},
    )
    bad_images: str = field(
        default="error", metadata={"help": "error: stop at an unreadable file; skip: leave it out, named and counted."}
    )
    white_level: float | None = field(default=None, metadata={"help": "Grey value of white, as for pretrain.py."})
    features: str = field(default="texture", metadata={"help": f"What to compute: {', '.join(FEATURES)}."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "Encoder, for features cls and mean."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the encoder on the Hub."})
    batch_size: int = field(default=64, metadata={"help": "Images at once, for an encoder."})
    plot: str = field(default="none", metadata={"help": "pca: picture of the first two components, by label."})
    neighbours: int = field(default=0, metadata={"help": "Nearest images to find of each, for cls and mean. 0: none."})
    levels: int = field(default=32, metadata={"help": "Number of grey levels of the co-occurrence matrices."})
    distances: list[int] = field(
        default_factory=lambda: [1], metadata={"help": "Distances between the pixels of a pair, in pixels."}
    )
    output_dir: str = field(default="runs/features", metadata={"help": "Receives features.parquet and config.yaml."})

    def __post_init__(self):
        if self.features not in FEATURES:
            raise UsageError(f"features must be one of {', '.join(FEATURES)}, got {self.features!r}")
        if (self.model_name_or_path is None) != (self.features == "texture"):
            raise UsageError(
                f"model_name_or_path is needed for the features cls and mean, and only there; got features "
                f"{self.features} and model_name_or_path {self.model_name_or_path}"
            )
        check_model_name(self.model_name_or_path)
        if self.plot not in PLOTS:
            raise UsageError(f"plot must be one of {', '.join(PLOTS)}, got {self.plot!r}")
        if self.neighbours < 0 or (self.neighbours and self.features == "texture"):
            raise UsageError(
                f"neighbours must be at least 0, and 0 for the features texture, got {self.neighbours} for "
                f"{self.features}"
            )
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.levels < 2:
            raise UsageError(f"levels must be at least 2, got {self.levels}")
        if not self.distances or min(self.distances) < 1:
            raise UsageError(f"distances must be whole pixels of at least 1, got {self.distances}")


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


def main(argv: Sequence[str] | None = None) -> None:
    run_main(lambda args: print(f"features {embed(args)}"), (EmbedArguments,), argv, __doc__)


if __name__ == "__main__":
    main()
