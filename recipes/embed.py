"""Features of every image of a corpus, as a Parquet table.

    python recipes/embed.py --corpus path/to/images --features texture --output_dir features

`texture`: the 25 co-occurrence features of IBSI (`modeling_glcm_mae.texture_features`) of the grey image at its own
size. Grey levels are equal parts of the range from black to white (`--levels`), pairs are counted in both orders, four
directions a distance, and each feature is averaged over directions and distances.

Writes features.parquet (file_name, the label and group where the corpus has them, a column a feature; the order of the
corpus) and config.yaml to output_dir.
"""

import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import datasets
import torch
import yaml
from tqdm.auto import tqdm

from modeling_glcm_mae import cooccurrence_matrix, offsets_from_angles, texture_features
from recipe_args import UsageError, parse_args
from recipe_data import BadImageError, decode_image, load_corpus, verify_images

logger = logging.getLogger(__name__)

FEATURES = ("texture",)
ANGLES = [0, math.pi / 4, math.pi / 2, 3 * math.pi / 4]


@dataclass
class EmbedArguments:
    """Which images, which features."""

    corpus: str = field(
        default="speckle",
        metadata={"help": "speckle, busi, pneumonia, covid_ct, gbcu, a folder of images or Parquet, or a Hub id."},
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder of the download, for a corpus given by name."})
    split: str | None = field(default=None, metadata={"help": "Split to read; train where there is one."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the images, where there are several."})
    bad_images: str = field(
        default="error", metadata={"help": "error: stop at an unreadable file; skip: leave it out, named and counted."}
    )
    white_level: float | None = field(default=None, metadata={"help": "Grey value of white, as for pretrain.py."})
    features: str = field(default="texture", metadata={"help": f"What to compute: {', '.join(FEATURES)}."})
    levels: int = field(default=32, metadata={"help": "Number of grey levels of the co-occurrence matrices."})
    distances: list[int] = field(
        default_factory=lambda: [1], metadata={"help": "Distances between the pixels of a pair, in pixels."}
    )
    output_dir: str = field(default="runs/features", metadata={"help": "Receives features.parquet and config.yaml."})

    def __post_init__(self):
        if self.features not in FEATURES:
            raise UsageError(f"features must be one of {', '.join(FEATURES)}, got {self.features!r}")
        if self.levels < 2:
            raise UsageError(f"levels must be at least 2, got {self.levels}")
        if not self.distances or min(self.distances) < 1:
            raise UsageError(f"distances must be whole pixels of at least 1, got {self.distances}")


def image_features(image: torch.Tensor, levels: int, distances: Sequence[int]) -> dict[str, float]:
    """Texture features of one grey image `(H, W)` in [0, 1].

    Raises:
        ValueError: if the image is not larger than the largest distance.
    """
    matrices = cooccurrence_matrix(
        image,
        levels=levels,
        value_range=(0.0, 1.0),
        offsets=offsets_from_angles(distances, ANGLES),
        kernel="hard",
        symmetric=True,
    )  # D K K
    return {name: value.mean().item() for name, value in texture_features(matrices.double()).items()}


def embed(args: EmbedArguments) -> Path:
    """Compute the features and write them; returns the path of the table."""
    images = load_corpus(
        args.corpus,
        data_dir=args.data_dir,
        split=args.split,
        bad_images=args.bad_images,
        image_column=args.image_column,
    )
    images, skipped = verify_images(images, num_channels=1, white_level=args.white_level, bad_images=args.bad_images)
    columns = {name: [] for name in images.column_names if name != "image"}
    for row in tqdm(images, unit=" images"):
        pixels = decode_image(row["image"], name=row["file_name"], num_channels=1, white_level=args.white_level)
        try:
            features = image_features(torch.from_numpy(pixels[..., 0]), args.levels, args.distances)
        except ValueError as error:
            raise UsageError(f"image {row['file_name']!r}: {error}") from error
        for name, value in ({name: row[name] for name in images.column_names if name != "image"} | features).items():
            columns.setdefault(name, []).append(value)
    kept = {name: images.features[name] for name in images.column_names if name != "image"}
    measured = {name: datasets.Value("float64") for name in columns if name not in kept}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(kept | measured))
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / "features.parquet"
    partial = path.with_suffix(".partial")
    table.to_parquet(partial)
    partial.replace(path)
    settings = asdict(args) | {"num_images": len(table), "skipped": [name for name, _ in skipped]}
    (output_dir / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def main(argv: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        (args,) = parse_args((EmbedArguments,), argv, description=__doc__)
        path = embed(args)
    except (ValueError, OSError, BadImageError) as error:
        logger.debug("where it was found", exc_info=True)
        sys.exit(f"error: {error}")
    print(f"features {path}")


if __name__ == "__main__":
    main()
