"""A data set of simulated ultrasound speckle whose classes differ in texture only; see `corpora/speckle_image.py`.

from corpora.speckle import load_speckle
train = load_speckle(split="train", num_images=2048)   # made on first use, then read from the cache
"""

import hashlib
import io
import os
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image, Value
from datasets.utils import tqdm
from huggingface_hub import constants
from PIL import Image as PILImage

from corpora.speckle_image import CLASS_SETS, SpeckleClass, check_size, envelope, speckle_image

__all__ = ["CLASS_SETS", "SpeckleClass", "envelope", "load_speckle", "speckle_image"]

# Raise it whenever the same arguments would give other images, so that no cached file of the old kind is read.
FORMAT_VERSION = 1
# Position in this tuple is part of the seed of each image: train and test never share a random stream.
SPLITS = ("train", "test")


def _check_arguments(split: str, num_images: int, image_size: int, seed: int, class_set: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {list(SPLITS)}, got {split!r}.")
    if class_set not in CLASS_SETS:
        raise ValueError(f"`class_set` must be one of {list(CLASS_SETS)}, got {class_set!r}.")
    check_size("image_size", image_size)
    for field, value, lowest in (("num_images", num_images, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < lowest:
            raise ValueError(f"`{field}` must be an integer of at least {lowest}, got {value!r}.")


def _features(class_set: str) -> Features:
    return Features(
        {
            "image": Image(),
            "label": ClassLabel(names=[speckle_class.name for speckle_class in CLASS_SETS[class_set]]),
            "group": Value("string"),
            "file_name": Value("string"),
        }
    )


def _generate(split: str, num_images: int, image_size: int, seed: int, class_set: str) -> Dataset:
    """Make the images in memory, classes in turn."""
    classes = CLASS_SETS[class_set]
    columns = {"image": [], "label": [], "group": [], "file_name": []}
    for index in tqdm(range(num_images), desc=f"Making speckle ({class_set}, {split})", unit=" images"):
        label = index % len(classes)
        # The seed holds all that identifies an image, but not `num_images`: a larger set begins with the smaller one.
        image = speckle_image(classes[label], image_size, [seed, SPLITS.index(split), index, *class_set.encode()])
        png = io.BytesIO()
        PILImage.fromarray(image).save(png, format="PNG")
        name = f"speckle-{class_set}-{split}-{index:06d}"
        columns["image"].append({"bytes": png.getvalue(), "path": f"{name}.png"})
        columns["label"].append(label)
        # The seed belongs to the group: an image of another seed is another "patient".
        columns["group"].append(f"{name}-seed{seed}")
        columns["file_name"].append(f"{name}.png")
    return Dataset.from_dict(columns, features=_features(class_set))


def _is_complete(path: Path, num_images: int) -> bool:
    """Whether `path` is a readable Parquet file with that many rows."""
    try:
        return pq.read_metadata(path).num_rows == num_images
    except (OSError, pa.ArrowInvalid):
        return False


def _write_atomically(dataset: Dataset, path: Path) -> None:
    """Write Parquet so that `path` is complete or absent, whoever else writes it and whenever the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`, whose files nobody else can read: the cache may be shared.
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.tmp")
    try:
        dataset.to_parquet(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_speckle(
    *,
    split: str = "train",
    num_images: int = 2048,
    image_size: int = 96,
    seed: int = 0,
    class_set: str = "easy",
    cache_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Load a speckle data set; it is made on first use and kept as Parquet.

    Image i depends on `class_set`, `seed`, `split`, i and `image_size` only, so a larger data set begins with the
    images of the smaller one. The splits share no random stream. Labels are balanced and go round in turn: shuffle for
    training.

    Args:
        split (`str`, defaults to `"train"`): `"train"` or `"test"`.
        num_images (`int`, defaults to 2048): Number of images, at least 1.
        image_size (`int`, defaults to 96): Side of the square images in pixels, at least 16.
        seed (`int`, defaults to 0): Seed of the data set, at least 0.
        class_set (`str`, defaults to `"easy"`): A key of `CLASS_SETS`: `"easy"` or `"hard"`.
        cache_dir (`str` or path, *optional*): Folder of the cache, by default `<HF_HOME>/glcm_mae/speckle`.

    Returns:
        `datasets.Dataset` with the columns `image` (8-bit grey PNG), `label` (`ClassLabel`), `group` (unique for each
        image) and `file_name`.

    Raises:
        `ValueError`: If an argument is out of range; the message names it, its value and what is allowed.
    """
    _check_arguments(split, num_images, image_size, seed, class_set)
    folder = Path(constants.HF_HOME) / "glcm_mae" / "speckle" if cache_dir is None else Path(cache_dir).expanduser()
    # A class set whose parameters were edited gets another file, never the images of the old parameters.
    digest = hashlib.sha256(repr(CLASS_SETS[class_set]).encode()).hexdigest()[:8]
    path = folder / (
        f"speckle-{class_set}-{split}-{num_images}x{image_size}px-seed{seed}-{digest}-v{FORMAT_VERSION}.parquet"
    )
    if not _is_complete(path, num_images):
        _write_atomically(_generate(split, num_images, image_size, seed, class_set), path)
    return Dataset.from_parquet(str(path), split=split, features=_features(class_set), cache_dir=str(folder / "arrow"))
