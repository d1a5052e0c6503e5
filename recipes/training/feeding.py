"""From files to batches: load any corpus, transform its images on the fly, feed the training.

Everything random about a training image (crop, flips, masking noise) is a pure function of (seed, epoch, index). So a
resume, the number of workers or processes and gradient accumulation change none of it.
"""

import itertools
import logging
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets.exceptions import DatasetNotFoundError
from PIL import Image
from tqdm.auto import tqdm
from transformers import ViTImageProcessorPil
from transformers.image_transforms import center_crop, get_resize_output_image_size
from transformers.image_utils import ChannelDimension, get_image_size_for_max_height_width

from corpora import CORPORA, recognised
from corpora.folder import (
    NONE,
    BadImageError,
    CorpusError,
    ImageRecord,
    choose_columns,
    existing_folder,
    is_ignored,
    is_utf8,
    printable,
)
from corpora.speckle import load_speckle
from images.decode import decode_image, is_deep

logger = logging.getLogger(__name__)
# What people call the splits of Parquet files and of data sets on the Hub, in lower case.
SPLIT_NAMES = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}

RESIZE_MODES = ("shortest", "squash", "letterbox", "none")
BAD_IMAGES = ("error", "skip")
# What prepare_corpus.py writes beside image, label and group.
OWN_COLUMNS = ("file_name", "sha256", "masks", "annotation", "dicom_window", "white_level")
MIN_LEVEL_SHARE = 1e-3  # a grey level counts as occupied from this share of the pixels on

# First number of every random key, so that streams for different purposes never coincide.
_IMAGE_ORDER, _TRAINING_SAMPLE, _EVALUATION_SAMPLE, _HELD_OUT = 1, 2, 3, 4


# -------------------------------------------------------------------------------------------------------- transforms


@dataclass(frozen=True)
class ImageTransform:
    """Decoded image to normalised tensor: resize, crop, flip, normalise.

    Without a generator (evaluation) it equals the image processor of `processor()` on 8-bit images to one grey level of
    255; it keeps the precision of deeper images, which the processor cannot.

    Attributes:
        image_size: (height, width) of the result in pixels; a single number means a square.
        resize: "shortest" scales the shorter side to `resize_to` and crops the centre; "squash" scales both sides
            (distorts); "letterbox" scales until the image just fits and pads with black around it; "none" demands that
            every image has `image_size`.
        resize_to: length of the shorter side before the centre crop, only for "shortest". The default is the longer
            side of `image_size`.
        random_resized_crop: in training, instead of `resize`, cut out a random part and scale it to `image_size`.
        crop_scale: smallest and largest share of the image's area that a random crop covers. Its aspect ratio is that
            of `image_size` times 3/4 to 4/3 as in MAE, but exact for "letterbox", which promises no distortion.
        horizontal_flip, vertical_flip: in training, mirror every second image.
        image_mean, image_std: per channel, in units of [0, 1]: result = (grey value - mean) / std.
        resample: Pillow's number of the filter that resizes.
    """

    image_size: int | tuple[int, int]
    resize: str = "shortest"
    resize_to: int | None = None
    random_resized_crop: bool = False
    crop_scale: tuple[float, float] = (0.2, 1.0)
    horizontal_flip: bool = False
    vertical_flip: bool = False
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: int = Image.Resampling.BILINEAR

    def __post_init__(self) -> None:
        size = (self.image_size,) * 2 if isinstance(self.image_size, int) else tuple(self.image_size)
        object.__setattr__(self, "image_size", size)
        for field in ("crop_scale", "image_mean", "image_std"):  # lists, when they come from YAML
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"image_size must be a positive number or (height, width), got {self.image_size}.")
        if self.resize not in RESIZE_MODES:
            raise ValueError(f"resize must be one of {', '.join(RESIZE_MODES)}, got {self.resize!r}.")
        if self.resize_to is not None and (self.resize != "shortest" or self.resize_to < max(size)):
            raise ValueError(
                f"resize_to={self.resize_to} needs resize='shortest' (is {self.resize!r}) and at least the longer side "
                f"of image_size {size}."
            )
        if self.random_resized_crop and self.resize == "none":
            raise ValueError("random_resized_crop resizes: it cannot go with resize='none'.")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be two increasing numbers in (0, 1], got {self.crop_scale}.")
        if len(self.image_mean) != len(self.image_std) or min(self.image_std) <= 0:
            raise ValueError(
                f"image_mean and image_std must have a value a channel, image_std above 0; "
                f"got {self.image_mean} and {self.image_std}."
            )

    def check(self, image: np.ndarray, name: str) -> None:
        """Raise `ValueError` if `image` `(H, W, C)` has wrong channels or, for `resize="none"`, a wrong size."""
        if image.shape[2] != len(self.image_mean):
            raise ValueError(
                f"Image '{name}' has {image.shape[2]} channel(s), image_mean and image_std {len(self.image_mean)}."
            )
        if self.resize == "none" and image.shape[:2] != self.image_size:
            (height, width), allowed = image.shape[:2], self.image_size
            raise ValueError(
                f"Image '{name}' is {height} x {width} pixels (height x width); with resize='none' only {allowed[0]} x "
                f"{allowed[1]} is allowed. For mixed sizes choose resize 'shortest', 'squash' or 'letterbox'."
            )

    def __call__(
        self, image: np.ndarray, generator: torch.Generator | None = None, *, name: str = "image"
    ) -> torch.Tensor:
        """Transform one image.

        Args:
            image: float32 `(H, W, C)` in [0, 1], as `decode_image` returns it.
            generator: source of all randomness; without it the result is the deterministic one for evaluation.
            name: what errors call the image.

        Returns:
            float32 `(C, image_size[0], image_size[1])`, normalised.
        """
        return self.finish(self.crop(image, generator, name=name), generator)

    def crop(self, image: np.ndarray, generator: torch.Generator | None = None, *, name: str = "image") -> np.ndarray:
        """The first half of a call: `(H, W, C)` to `(C, *image_size)`, both in [0, 1], at random with a generator."""
        if generator is None or not self.random_resized_crop:
            return self.fit(image, name=name)
        self.check(image, name)
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1))
        return _resize(self._random_crop(pixels, generator), self.image_size, self.resample)

    def finish(self, pixels: np.ndarray, generator: torch.Generator | None = None) -> torch.Tensor:
        """Flip and normalise `(C, *image_size)` in [0, 1]."""
        for axis, flip in ((2, self.horizontal_flip), (1, self.vertical_flip)):
            if generator is not None and flip and torch.rand((), generator=generator) < 0.5:
                pixels = np.flip(pixels, axis)
        mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (self.image_mean, self.image_std))
        return torch.from_numpy((pixels - mean) / std)

    def fitted_size(self, height: int, width: int) -> tuple[int, int]:
        """The size that an image is scaled to before the centre crop, by the processor's own functions.

        A side of 0 is a strip thinner than a pixel, by letterbox: `fit` takes one pixel, the processor raises.
        """
        if self.resize in ("none", "squash"):
            return self.image_size
        if self.resize == "letterbox":
            return get_image_size_for_max_height_width((height, width), *self.image_size)
        shortest = self.resize_to or max(self.image_size)
        shape = np.broadcast_to(
            np.float32(0), (1, height, width)
        )  # the function takes an image, and looks at its shape
        return get_resize_output_image_size(shape, shortest, False, input_data_format=ChannelDimension.FIRST)

    def fit(self, image: np.ndarray, *, name: str = "image") -> np.ndarray:
        """Bring `(H, W, C)` to `(C, *image_size)`, both in [0, 1], by `resize`."""
        self.check(image, name)
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1))
        if self.resize == "none":
            return pixels
        if self.resize == "squash":
            return _resize(pixels, self.image_size, self.resample)
        height, width = self.fitted_size(*pixels.shape[1:])
        pixels = _resize(pixels, (max(1, height), max(1, width)), self.resample)
        return center_crop(pixels, self.image_size, input_data_format=ChannelDimension.FIRST)

    def _random_crop(self, pixels: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """A random part of `(C, H, W)`, chosen as torchvision's RandomResizedCrop does."""
        height, width = pixels.shape[1:]
        aspect = self.image_size[1] / self.image_size[0]
        spread = 0.0 if self.resize == "letterbox" else math.log(4 / 3)
        for _ in range(10):
            scale, log_ratio, y, x = torch.rand(4, generator=generator).tolist()
            area = height * width * (self.crop_scale[0] + scale * (self.crop_scale[1] - self.crop_scale[0]))
            ratio = aspect * math.exp(spread * (2 * log_ratio - 1))
            crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < crop_height <= height and 0 < crop_width <= width:
                top, left = int(y * (height - crop_height + 1)), int(x * (width - crop_width + 1))
                return pixels[:, top : top + crop_height, left : left + crop_width]
        # no such part fits into this image: take the largest central one with the target's aspect ratio
        crop_height = max(1, min(height, round(width / aspect)))
        crop_width = max(1, min(width, round(height * aspect)))
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        return pixels[:, top : top + crop_height, left : left + crop_width]

    def processor(self, white_level: float | None = None, *, deep: bool | None = None) -> ViTImageProcessorPil:
        """The image processor of transformers for the evaluation transform, to be saved beside the model.

        All of `resize` can be said in its terms: letterbox is "max_height, max_width" and a centre crop, which pads
        with black. Three channels of 8 bits come with `do_convert_rgb`: grey files work, and transparency is composited
        on white. Without it (one channel, or deep images) an alpha channel is refused. What it cannot do: resize images
        deeper than 8 bits (it raises for values above 255), turn colour into one channel or resolve a palette there,
        and letterbox a strip so thin that a side rounds to 0 pixels (it raises). With `resize="none"` it leaves the
        size alone; the model then refuses other sizes.

        Args:
            white_level: as for `decode_image`; the default stands for 8-bit images.
            deep: the images are deeper than 8 bits; by default if `white_level` is above 255. With three channels the
                processor then refuses grey files, which it would cut to 8 bits.
        """
        height, width = self.image_size
        size = {
            "shortest": {"shortest_edge": self.resize_to or max(self.image_size)},
            "letterbox": {"max_height": height, "max_width": width},
        }.get(self.resize, {"height": height, "width": width})
        white = white_level or 255
        return ViTImageProcessorPil(
            do_resize=self.resize != "none",
            size=size,
            resample=self.resample,
            do_center_crop=self.resize in ("shortest", "letterbox"),
            crop_size={"height": height, "width": width},
            do_rescale=True,
            rescale_factor=1 / white,
            do_normalize=True,
            image_mean=list(self.image_mean),
            image_std=list(self.image_std),
            # Conversion to RGB cuts deep files to 8 bits: without it they are refused for their number of channels.
            do_convert_rgb=len(self.image_mean) == 3 and not (white > 255 if deep is None else deep),
        )


def transform_of_processor(
    processor: Any, image_size: int | tuple[int, int], **instead: Any
) -> tuple[ImageTransform, float]:
    """The transform that a saved image processor describes, for three channels; the inverse of `processor()`.

    What it does not do (normalise, say) has no effect.

    Args:
        processor: with the fields of `ViTImageProcessor`, as `AutoImageProcessor` opens it.
        image_size: of the model.
        **instead: `resize`, `resize_to`, `image_mean`, `image_std`: each takes the place of what the processor says of
            it, and of nothing else. (A `resize_to` of the processor stays only where its `resize` does.)

    Returns:
        The transform, and the grey value of white.

    Raises:
        ValueError: it resizes in a way that `ImageTransform` does not know, or that `instead` contradicts.
    """
    resize, resize_to = _resize_of_processor(processor, image_size, instead.get("resize"))
    mean, std = (
        list(getattr(processor, name)) if processor.do_normalize else [default]
        for name, default in (("image_mean", 0.0), ("image_std", 1.0))
    )
    mean, std = (tuple(values * 3) if len(values) == 1 else tuple(values) for values in (mean, std))
    white = round(1 / processor.rescale_factor, 6) if processor.do_rescale else 1.0
    resample = int(processor.resample) if processor.do_resize else Image.Resampling.BILINEAR
    found = {"resize": resize, "resize_to": resize_to, "resample": resample, "image_mean": mean, "image_std": std}
    return ImageTransform(image_size, **found | instead), white


def _resize_of_processor(
    processor: Any, image_size: int | tuple[int, int], wanted: str | None
) -> tuple[str, int | None]:
    """`resize` and `resize_to` of an image processor; (`wanted`, None) if it resizes in another way than `wanted`."""
    height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
    size, crop = (dict(getattr(processor, name, None) or {}) for name in ("size", "crop_size"))
    size, crop = ({key: value for key, value in sizes.items() if value} for sizes in (size, crop))
    exact = {"height": height, "width": width}
    cropped = bool(getattr(processor, "do_center_crop", False))
    resize_to = None
    if getattr(processor, "do_pad", False) or (cropped and (crop != exact or not processor.do_resize)):
        found = None
    elif not processor.do_resize:
        found = "none"
    elif set(size) == {"shortest_edge"} and cropped:
        found, resize_to = "shortest", size["shortest_edge"]
    elif size == {"max_height": height, "max_width": width} and cropped:
        found = "letterbox"
    elif size == exact and not cropped:
        found = "squash"
    else:
        found = None
    if wanted not in (None, found):
        return wanted, None
    if found is None:
        raise ValueError(
            f"the image processor pads, or resizes to {size} (crop {crop}); the model takes {height} x {width}"
        )
    return found, resize_to


def _resize(pixels: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """Antialiased resize of `(C, H, W)`, in float, channel by channel: Pillow has no deep colour."""
    if pixels.shape[1:] == tuple(size):
        return pixels
    height, width = size
    channels = [Image.fromarray(np.ascontiguousarray(channel)).resize((width, height), resample) for channel in pixels]
    return np.stack([np.asarray(channel) for channel in channels]).clip(0, 1)


# ----------------------------------------------------------------------------------------------------------- loading


def load_corpus(
    corpus: str,
    *,
    data_dir: str | None = None,
    split: str | None = None,
    streaming: bool = False,
    bad_images: str = "error",
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    cache_dir: str | None = None,
    speckle_images: int = 2048,
    image_size: int = 96,
    seed: int = 0,
    class_set: str = "easy",
) -> datasets.Dataset | datasets.IterableDataset:
    """Load the images of a corpus, undecoded.

    Args:
        corpus: "speckle" (generated), the name of a known corpus (then `data_dir` is its download), an existing folder
            of images or of Parquet files (also as "folder" with `data_dir`), or the id OWNER/NAME of a data set on the
            Hub. A folder laid out as a known corpus is read as that corpus.
        data_dir: the download of a known corpus.
        split: which split; by default "train" where there are splits, so that a test split is never trained on.
        streaming: return an `IterableDataset`.
        bad_images: "error" or "skip", here for files among the images that are no images.
        image_column: which column of a Parquet or Hub data set holds the images, if there are several.
        label_column, group_column: which of its columns hold the label and the patient, where they have other names
            than the usual ones (`corpora.folder.COLUMN_NAMES`); "none" for any corpus: do without.
        cache_dir: where `datasets` and the generator keep their files.
        speckle_images, image_size, seed, class_set: only for "speckle": how many images, their side in pixels, the
            seed, and "easy" or "hard" classes.

    Returns:
        A data set with the columns `image` (`datasets.Image(decode=False)`, so that `decode_image` can name the file),
        `file_name`, and where known `label` (`ClassLabel`) `group` (a string) and
        `white_level` (see `white_of`). Labels that are strings or whole
        numbers become classes, in the order of the alphabet or the numbers, over all splits.

    Raises:
        CorpusError: there is no such corpus, split, folder or column; a column looks like a patient and is not used.
    """
    if bad_images not in BAD_IMAGES:
        raise ValueError(f"bad_images must be one of {', '.join(BAD_IMAGES)}, got {bad_images!r}.")
    if data_dir is not None and corpus not in CORPORA:
        raise CorpusError(f"data_dir is for the corpora {', '.join(CORPORA)}; got corpus={corpus!r}.")

    if corpus == "speckle":
        dataset = load_speckle(
            split=split or "train",
            num_images=speckle_images,
            image_size=image_size,
            seed=seed,
            class_set=class_set,
            cache_dir=cache_dir,
        )
        dataset = dataset.cast_column("image", datasets.Image(decode=False))
        dataset = _without(dataset, label_column, group_column, "The corpus speckle")
        return dataset.to_iterable_dataset() if streaming else dataset
    if corpus in CORPORA and data_dir is None:
        raise CorpusError(f"The corpus {corpus!r} needs data_dir, the folder of its download.")
    name = corpus
    if corpus not in CORPORA or corpus == "folder":
        corpus = str(existing_folder(data_dir)) if corpus == "folder" else corpus
        tables = open_tables(corpus, streaming=streaming, cache_dir=cache_dir)
        if tables is not None:
            chosen = _named_split(tables, split, corpus)
            columns = {"image_column": image_column, "label_column": label_column, "group_column": group_column}
            return unify_tables(tables, corpus, splits=[chosen], **columns)[chosen]
        name, data_dir = recognised_folder(corpus), corpus
    dataset = _load_images(CORPORA[name], data_dir, split, bad_images)
    dataset = _without(dataset, label_column, group_column, f"'{data_dir}'")
    return dataset.to_iterable_dataset() if streaming else dataset


def _without(dataset: datasets.Dataset, label_column: str | None, group_column: str | None, source: str):
    """A data set of files, without the columns that are not wanted."""
    for name, asked in (("label", label_column), ("group", group_column)):
        if asked not in (None, NONE):
            raise CorpusError(f"{source} has no columns: {name}_column must be left out or {NONE}, got {asked!r}.")
        if asked == NONE and name in dataset.column_names:
            dataset = dataset.remove_columns(name)
    return dataset


def recognised_folder(folder: str | Path) -> str:
    """Name of the corpus in whose layout an existing folder lies, "folder" for any other; says so in the log."""
    root = existing_folder(folder)
    name = recognised(root)
    logger.info("'%s' is read as %s.", root, "a folder of images" if name == "folder" else f"corpus {name}")
    return name


def open_tables(
    corpus: str | Path, *, streaming: bool = False, cache_dir: str | None = None
) -> dict[str, datasets.Dataset] | dict[str, datasets.IterableDataset] | None:
    """The splits of a folder of Parquet files, or of a data set on the Hub; `None` for a folder without Parquet files.

    Raises:
        CorpusError: it is neither a folder nor on the Hub.
    """
    path = Path(corpus).expanduser()
    if path.is_dir():
        data_files = parquet_files(existing_folder(path))
        if not data_files:
            return None
        return datasets.load_dataset("parquet", data_files=data_files, streaming=streaming, cache_dir=cache_dir)
    if path.exists() or not is_hub_id(str(corpus)):
        raise CorpusError(_no_such_corpus(str(corpus)))
    logger.info("Loading '%s' from the Hub.", corpus)
    try:
        return datasets.load_dataset(corpus, streaming=streaming, cache_dir=cache_dir)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise CorpusError(f"{_no_such_corpus(corpus)} The Hub says: {error}") from error


def is_hub_id(corpus: str) -> bool:
    """Whether it is spelled like OWNER/NAME."""
    return re.fullmatch(r"[\w.-]*\w/\w[\w.-]*", corpus) is not None


def _no_such_corpus(corpus: str) -> str:
    return (
        f"There is no corpus '{printable(corpus)}'. Allowed: speckle; {', '.join(CORPORA)} (each with data_dir); an "
        "existing folder of images or Parquet files; a data set on the Hub as OWNER/NAME."
    )


def parquet_files(folder: Path) -> dict[str, list[str]]:
    """The Parquet files below a folder, by split.

    Raises:
        CorpusError: the name of one is not UTF-8.
    """
    found: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        if any(map(is_ignored, file.relative_to(folder).parts)):
            continue
        if not is_utf8(file):
            raise CorpusError(f"The name of the file '{printable(file)}' is not UTF-8: rename it.")
        found.setdefault(_split_of(file.relative_to(folder)), []).append(str(file))
    return found


def _split_of(file: Path) -> str:
    """The split that a Parquet file belongs to, from the words of its relative path; "train" if there is none."""
    words = re.split(r"[\W\d_]+", file.as_posix().lower())
    return next((SPLIT_NAMES[word] for word in reversed(words) if word in SPLIT_NAMES), "train")


def _named_split(names: Iterable[str], split: str | None, corpus: str | Path) -> str:
    names = list(names)
    chosen = split or "train"
    if chosen not in names:
        raise CorpusError(
            f"'{corpus}' has no split {chosen!r}; it has {', '.join(names)}. Name one of them with split."
        )
    if len(names) > 1:
        logger.info("'%s' has the splits %s: using %s.", corpus, ", ".join(names), chosen)
    return chosen


def _load_images(module: Any, data_dir: str | Path, split: str | None, bad_images: str) -> datasets.Dataset:
    """A data set of files: only their paths are kept, nothing is copied."""
    records: list[ImageRecord] = module.find_images(data_dir, bad_images=bad_images)
    labels = sorted({record.label for record in records if record.label is not None})
    splits = sorted({record.split for record in records if record.split is not None})
    if splits:
        chosen = _named_split(splits, split, data_dir)
        records = [record for record in records if record.split == chosen]
    elif split not in (None, "train"):
        raise CorpusError(f"'{data_dir}' has no split {split!r}: its images are not divided into splits.")
    columns = {"image": [str(record.path) for record in records], "file_name": [record.file_name for record in records]}
    features = {"image": datasets.Image(decode=False), "file_name": datasets.Value("string")}
    if labels:
        columns["label"] = [record.label for record in records]
        features["label"] = datasets.ClassLabel(names=list(getattr(module, "CLASS_NAMES", labels)))
    if any(record.group is not None for record in records):
        columns["group"] = [record.group for record in records]
        features["group"] = datasets.Value("string")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def unify_tables(
    tables: dict[str, datasets.Dataset] | dict[str, datasets.IterableDataset],
    corpus: str | Path,
    *,
    splits: Iterable[str],
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
) -> dict[str, datasets.Dataset] | dict[str, datasets.IterableDataset]:
    """Bring Parquet or Hub data to the columns that `load_corpus` promises.

    Args:
        tables: as from `open_tables`: all splits, since the classes are those of all.
        corpus: what messages call it.
        splits: which of them are wanted.
        image_column, label_column, group_column: as for `load_corpus`.

    Raises:
        CorpusError: a column is missing, of a type that it cannot have, or has an empty label.
    """
    source, features = f"'{corpus}'", next(iter(tables.values())).features or {}
    image_column = _image_column(features, image_column)
    others = [name for name in features if name != image_column]
    columns = choose_columns(others, {"label": label_column, "group": group_column}, source, known=OWN_COLUMNS)
    label, group = columns["label"], columns["group"]
    streams = isinstance(next(iter(tables.values())), datasets.IterableDataset)
    classes = None if label is None else features[label]
    if label is not None and not isinstance(classes, datasets.ClassLabel):
        if streams:
            # The classes are known when all rows are read, which a stream does not do first.
            message = f"{source}: the labels of a stream must be ClassLabel, {label} is {_type_of(classes)}"
            if label_column is not None:
                raise CorpusError(f"{message}: read it whole (streaming false), or pass --label_column {NONE}.")
            logger.warning("%s. Not used.", message)
            label = None
        else:
            classes = _classes(tables, label, source)
    unify = partial(_unify, columns={"image": image_column, "label": label, "group": group}, classes=classes)
    return {split: unify(tables[split], split, source=source) for split in splits}


def _type_of(feature: Any) -> str:
    return str(getattr(feature, "dtype", type(feature).__name__))


def _classes(tables: dict[str, datasets.Dataset], column: str, source: str) -> datasets.ClassLabel:
    """The classes of a column of strings or whole numbers, in all splits."""
    kind = _type_of(next(iter(tables.values())).features[column])
    if kind not in ("string", "large_string", "bool") and not re.fullmatch(r"u?int\d+", kind):
        raise CorpusError(
            f"{source}: the label column {column} must hold strings, whole numbers or a ClassLabel, got {kind}: name "
            f"another one with --label_column, or pass --label_column {NONE}."
        )
    values = {value for table in tables.values() for value in table.unique(column) if _text(value) is not None}
    values = {value.strip() if isinstance(value, str) else value for value in values}
    return datasets.ClassLabel(names=[str(value) for value in sorted(values)])


def _text(value: Any) -> str | None:
    """A label or patient as text without blanks around it; `None` for what says nothing."""
    if value is None or value != value:  # NaN, as pandas leaves it
        return None
    return str(value).strip() or None


def _image_column(features: dict[str, Any], image_column: str | None) -> str:
    """The column of the images; raises `CorpusError` if there is none, or several and none is named."""
    if image_column is None:
        candidates = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        if len(candidates) != 1:
            found = f"several image columns ({', '.join(candidates)})" if candidates else "no image column"
            raise CorpusError(f"Found {found} among {', '.join(features) or 'unknown columns'}. Name it: image_column.")
        return candidates[0]
    if image_column not in features:
        raise CorpusError(f"There is no image_column {image_column!r}; the columns are {', '.join(features)}.")
    return image_column


def _unify(
    dataset: datasets.Dataset | datasets.IterableDataset,
    split: str,
    *,
    columns: dict[str, str | None],
    classes: datasets.ClassLabel | None,
    source: str,
) -> datasets.Dataset | datasets.IterableDataset:
    """One split of `unify_tables`, its columns known."""
    used = {name: column for name, column in columns.items() if column is not None}
    kept = [name for name in ("file_name", "sha256") if name in dataset.features and name not in used.values()]
    if dataset.features.get("white_level") == datasets.Value("float64"):  # of prepare_corpus.py
        kept.append("white_level")
    dataset = dataset.select_columns([*dict.fromkeys(used.values()), *kept])
    # Before the renaming: for that, a stream would decode the images and lose their paths.
    dataset = dataset.cast_column(columns["image"], datasets.Image(decode=False))
    renamed = {column: name for name, column in used.items() if column != name}
    dataset = dataset.rename_columns(renamed) if renamed else dataset
    string = datasets.Value("string")
    if isinstance(dataset, datasets.IterableDataset):
        if "file_name" in kept and "group" not in used:
            return dataset
        features = {**dataset.features, "file_name": string, **({"group": string} if "group" in used else {})}
        return dataset.map(partial(_complete, split=split), with_indices=True, features=datasets.Features(features))
    if "label" in used and dataset.features["label"] != classes:
        names = [_text(value) for value in dataset["label"]]
        if None in names:
            raise CorpusError(
                f"{source}, split {split}, row {names.index(None)}: the label is empty ({names.count(None)} of "
                f"{len(names)} are). Complete the column {columns['label']}, or pass --label_column {NONE}."
            )
        numbers = [classes.str2int(name) for name in names]
        dataset = dataset.remove_columns("label").add_column("label", numbers, feature=classes)
    if "group" in used:
        groups = [_text(value) for value in dataset["group"]]
        dataset = dataset.remove_columns("group").add_column("group", groups, feature=string)
    if "file_name" not in kept:
        paths = dataset.select_columns("image").flatten()["image.path"]  # without the bytes
        names = [_file_name(path, split, index) for index, path in enumerate(paths)]
        dataset = dataset.add_column("file_name", names, feature=string)
    return dataset


def _file_name(path: str | None, split: str, index: int) -> str:
    if not path:
        return f"{split}-{index}"
    return Path(path).name if "://" in path or Path(path).is_absolute() else path


def _complete(row: dict[str, Any], index: int, split: str) -> dict[str, Any]:
    """What a row of a stream lacks: `file_name`, and `group` as text."""
    path = row["image"] and row["image"]["path"]
    name = row["file_name"] if "file_name" in row else _file_name(path, split, index)
    return {"file_name": name, **({"group": _text(row["group"])} if "group" in row else {})}


# ------------------------------------------------------------------------------------------ checking and holding out


def verify_images(
    dataset: datasets.Dataset,
    *,
    num_channels: int,
    white_level: float | None = None,
    bad_images: str = "error",
    transform: ImageTransform | None = None,
) -> tuple[datasets.Dataset, list[tuple[str, str]]]:
    """Decode every image once, before the training starts. Several processes share the work.

    Args:
        dataset: as from `load_corpus`, not streaming.
        num_channels, white_level: as for `decode_image`.
        bad_images: "error" to raise, "skip" to leave the bad images out with a warning.
        transform: if given, image sizes are checked too (`resize="none"`).

    Returns:
        The data set without the bad images, and (file name, reason) of each of these.

    Raises:
        BadImageError: there are bad images and `bad_images` is "error", or no image is left.
        ValueError: a setting does not fit the images (white level, size). Never skipped: it is not the file's fault.
    """
    state = PartialState()

    def problem(index: int) -> tuple[int, str, str, bool] | None:
        row = dataset[index]
        name = row["file_name"]
        try:
            white = white_of(row, white_level)
            image = decode_image(row["image"], name=name, num_channels=num_channels, white_level=white)
            if transform is not None:
                transform.check(image, name)
        except ValueError as error:
            return index, name, str(error), isinstance(error, BadImageError)
        return None

    share = range(state.process_index, len(dataset), state.num_processes)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(problem, share)
        bar = tqdm(results, total=len(share), desc="checking images", disable=not state.is_main_process, leave=False)
        found = [result for result in bar if result is not None]
    # all processes raise together: one that raised alone would leave the others waiting
    found = sorted(gather_object(found))
    for _, _, reason, is_bad_file in found:
        if not is_bad_file:
            raise ValueError(reason)
    if not found:
        return dataset, []
    if bad_images != "skip":
        raise BadImageError(
            f"{found[0][2]} {len(found)} of {len(dataset)} images are bad; pass --bad_images skip to leave them out."
        )
    if len(found) == len(dataset):
        raise BadImageError(f"None of the {len(dataset)} images can be read. The first: {found[0][2]}")
    if state.is_main_process:
        names = ", ".join(name for _, name, _, _ in found[:10]) + (", ..." if len(found) > 10 else "")
        logger.warning("Left out %d of %d images that cannot be read: %s", len(found), len(dataset), names)
    bad = {index for index, *_ in found}
    kept = dataset.select([index for index in range(len(dataset)) if index not in bad])
    return kept, [(name, reason) for _, name, reason, _ in found]


def white_of(row: dict[str, Any], given: float | None) -> float | None:
    """The white level of a row: what prepare_corpus.py was told, where its column `white_level` says so, else `given`.

    Raises:
        ValueError: `given`, `--white_level`, says otherwise than the column.
    """
    stored = row.get("white_level")
    if stored is not None and given is not None and stored != given:
        raise ValueError(
            f"white_level={given:g} contradicts the corpus: image '{row['file_name']}' was prepared with "
            f"white_level={stored:g}. Leave the option out, or prepare the corpus anew."
        )
    return given if stored is None else stored


def white_and_depth(rows: Iterable[dict[str, Any]], given: float | None) -> tuple[float, bool]:
    """What a processor for all these images needs to know.

    Args:
        rows: of a corpus, all readable.
        given: `--white_level`.

    Returns:
        The stored grey value of white: `given` or that of the prepared corpus, else 65535 if the images are 16-bit
        files, else 255; and whether they are deeper than 8 bits. Warns where files of both kinds are mixed.
    """
    found = set()
    for row in rows:
        deep = is_deep(row["image"], name=row["file_name"])
        white = white_of(row, given)
        found.add(((65535 if deep else 255) if white is None else white, deep))
    if len({white for white, _ in found}) > 1:
        logger.warning(
            "images of different white levels are mixed (%s): training takes each by its own, the exported image "
            "processor has one rule and is made for the lowest",
            ", ".join(f"{white:g}" for white in sorted({white for white, _ in found})),
        )
    white, _ = min(found, default=(255, False))
    return white, any(deep for level, deep in found if level == white)


def split_held_out(
    dataset: datasets.Dataset, held_out: float, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Set a few images aside, at random but the same for the same seed. Images of one `group` stay together.

    Args:
        dataset: as from `load_corpus`, not streaming.
        held_out: a share of the images if below 1, else how many; 0 for none. With groups the number is approached from
            below, by whole groups.
        seed: chooses the images.

    Returns:
        (training part, held-out part or `None`), both in the order of `dataset`.

    Raises:
        ValueError: there are too few images or groups to fill both parts.
    """
    total = len(dataset)
    if held_out == 0:
        return dataset, None
    if not 0 < held_out < total or (held_out >= 1 and held_out != int(held_out)):
        raise ValueError(f"held_out must be a share below 1 or a whole number below {total} (images), got {held_out}.")
    count = int(held_out) if held_out >= 1 else round(held_out * total)
    if not 0 < count < total:
        raise ValueError(f"held_out={held_out} of {total} images: {count} held out, {total - count} left to train on.")

    groups: dict[Any, list[int]] = {}
    names = dataset["group"] if "group" in dataset.column_names else [None] * total
    for index, name in enumerate(names):
        groups.setdefault(index if name is None else f"group {name}", []).append(index)
    order = list(groups.values())
    order = [order[position] for position in torch.randperm(len(order), generator=_generator(_HELD_OUT, seed)).tolist()]
    chosen: list[int] = []
    for members in order:
        if len(chosen) + len(members) <= count:
            chosen += members
    chosen = chosen or min(order, key=len)
    if len(chosen) == total:
        raise ValueError(f"All {total} images belong to one group: none can be held out with held_out={held_out}.")
    kept = sorted(set(range(total)) - set(chosen))
    return dataset.select(kept), dataset.select(sorted(chosen))


# ---------------------------------------------------------------------------------------------- feeding the training


def _generator(*key: int) -> torch.Generator:
    """A generator seeded by the key; keys that differ in any number give unrelated streams."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))


def _num_patches(transform: ImageTransform, patch_size: int, num_channels: int) -> int:
    height, width = transform.image_size
    if height % patch_size or width % patch_size:
        raise ValueError(f"image_size {height} x {width} is not a multiple of patch_size {patch_size}.")
    if len(transform.image_mean) != num_channels:
        raise ValueError(f"image_mean has {len(transform.image_mean)} value(s), num_channels is {num_channels}.")
    return (height // patch_size) * (width // patch_size)


@dataclass(frozen=True)
class _ItemMaker:
    """Turns a row of a corpus into what the model is trained on."""

    transform: ImageTransform
    num_patches: int
    num_channels: int
    white_level: float | None
    train: bool

    def __call__(self, row: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        noise = torch.rand(self.num_patches, generator=generator)  # first, so that no transform can change the mask
        image = self.decode(row)
        pixel_values = self.transform(image, generator if self.train else None, name=row["file_name"])
        return {"pixel_values": pixel_values, "noise": noise, "file_name": row["file_name"]}

    def decode(self, row: dict[str, Any]) -> np.ndarray:
        """`(H, W, C)` in [0, 1]."""
        white = white_of(row, self.white_level)
        return decode_image(row["image"], name=row["file_name"], num_channels=self.num_channels, white_level=white)

    def from_cache(self, pixels: np.ndarray, name: str, generator: torch.Generator) -> dict[str, Any]:
        """The item of an image that was decoded and fitted before: uint8 `(C, *image_size)`."""
        noise = torch.rand(self.num_patches, generator=generator)
        grey = pixels.astype(np.float32) / 255
        pixel_values = self.transform.finish(grey, generator if self.train else None)
        return {"pixel_values": pixel_values, "noise": noise, "file_name": name}


class _ImageCache:
    """Decoded, fitted images, rounded to 8 bits, in memory that all workers of the process share.

    Args:
        num_images: how many.
        shape: (C, H, W) of each.

    Raises:
        ValueError: if there is not enough shared memory.
    """

    def __init__(self, num_images: int, shape: tuple[int, ...]) -> None:
        size = num_images * math.prod(shape)
        shared_memory = Path("/dev/shm")
        if shared_memory.is_dir() and shutil.disk_usage(shared_memory).free < size:
            raise ValueError(
                f"cache_images needs {size / 2**20:.0f} MiB of shared memory for {num_images} images, {shared_memory} "
                f"has {shutil.disk_usage(shared_memory).free / 2**20:.0f} MiB left: enlarge it (docker run --shm-size) "
                "or set cache_images to false."
            )
        self.images = torch.empty((num_images, *shape), dtype=torch.uint8).share_memory_()
        self.filled = torch.zeros(num_images, dtype=torch.bool).share_memory_()
        logger.info("cache_images: %.0f MiB for %d images", size / 2**20, num_images)


class PretrainDataset(torch.utils.data.Dataset):
    """Items for pretraining: `pixel_values` float32 `(C, H, W)`, `noise` float32 `(N,)` in [0, 1), `file_name`.

    `noise` is what ViTMAE takes to choose the masked patches. An item is asked for by epoch * len(dataset) + index, as
    `EpochSampler` does; its randomness depends on (seed, epoch, index) only. For evaluation (`train=False`) the
    transform is deterministic and the noise depends on the index only, so that losses and pictures can be compared
    over time.

    With `cache`, an image is decoded and resized once only and kept in memory, rounded to 8 bits: C * H * W bytes each
    (49 KiB at 224 pixels and one channel, 147 KiB with three), in every process of a distributed run.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        transform: ImageTransform,
        *,
        patch_size: int,
        num_channels: int,
        white_level: float | None = None,
        seed: int = 0,
        train: bool = True,
        cache: bool = False,
    ) -> None:
        num_patches = _num_patches(transform, patch_size, num_channels)
        if cache and train and transform.random_resized_crop:
            raise ValueError("cache_images keeps resized images: it cannot go with random_resized_crop.")
        self.dataset = dataset
        self._names = dataset["file_name"] if cache else None
        self._cache = _ImageCache(len(dataset), (num_channels, *transform.image_size)) if cache else None
        self.seed = seed
        self.train = train
        self._make_item = _ItemMaker(transform, num_patches, num_channels, white_level, train)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int) -> dict[str, Any]:
        epoch, index = divmod(int(key), len(self.dataset))
        if key < 0 or (epoch and not self.train):
            raise IndexError(f"No item {key}: there are {len(self.dataset)} images.")
        random_key = (_TRAINING_SAMPLE, self.seed, epoch, index) if self.train else (_EVALUATION_SAMPLE, index)
        generator = _generator(*random_key)
        cache = self._cache
        if cache is None:
            return self._make_item(self.dataset[index], generator)
        if not cache.filled[index]:
            row = self.dataset[index]
            fitted = self._make_item.transform.fit(self._make_item.decode(row), name=row["file_name"])
            cache.images[index] = torch.from_numpy((fitted * 255).round().astype(np.uint8))
            cache.filled[index] = True  # last: another worker may be about to read it
        return self._make_item.from_cache(cache.images[index].numpy(), self._names[index], generator)


class EpochSampler(torch.utils.data.Sampler[int]):
    """Every image once an epoch, in an order that depends on (seed, epoch) only; the remainder of a batch is dropped.

    Yields epoch * num_images + index, by which `PretrainDataset` knows the epoch.

    Args:
        num_images: length of the data set.
        batch_size_total: images in one optimiser step, over all processes and accumulation steps.
        seed: chooses the orders.
    """

    def __init__(self, num_images: int, batch_size_total: int, seed: int) -> None:
        if num_images < batch_size_total:
            raise ValueError(
                f"{num_images} training images are fewer than one batch of {batch_size_total} (over all processes and "
                "accumulation steps): lower per_device_train_batch_size."
            )
        self.num_images = num_images
        self.seed = seed
        self.epoch = 0
        self._length = num_images // batch_size_total * batch_size_total

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.num_images, generator=_generator(_IMAGE_ORDER, self.seed, self.epoch))
        return iter((order[: self._length] + self.epoch * self.num_images).tolist())


class PretrainIterableDataset(torch.utils.data.IterableDataset):
    """The items of `PretrainDataset` from a stream, their randomness keyed by (seed, epoch, position in the stream).

    With more than one worker the order of the stream depends on the number of workers (`datasets` deals the shards out
    to them), and with it the masks.

    Args:
        dataset: as from `load_corpus(..., streaming=True)`.
        bad_images: "error" to raise at the first bad image, "skip" to pass over it, log it and count it in `skipped`.
        shuffle_buffer: how many images the stream is shuffled over, anew each epoch; 0 keeps its order.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        transform: ImageTransform,
        *,
        patch_size: int,
        num_channels: int,
        white_level: float | None = None,
        seed: int = 0,
        train: bool = True,
        bad_images: str = "error",
        shuffle_buffer: int = 0,
    ) -> None:
        num_patches = _num_patches(transform, patch_size, num_channels)
        self.dataset = dataset.shuffle(seed=seed, buffer_size=shuffle_buffer) if train and shuffle_buffer else dataset
        self.seed = seed
        self.train = train
        self.bad_images = bad_images
        self._make_item = _ItemMaker(transform, num_patches, num_channels, white_level, train)
        # in shared memory: workers read the epoch and report what they skip
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._skipped = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def skipped(self) -> int:
        """How many bad images were passed over so far, in all epochs and workers of this process."""
        return int(self._skipped)

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch = int(self._epoch)
        for row, position in zip(self.dataset, itertools.count(first, step), strict=False):
            key = (_TRAINING_SAMPLE, self.seed, epoch, position) if self.train else (_EVALUATION_SAMPLE, position)
            try:
                item = self._make_item(row, _generator(*key))
            except BadImageError as error:
                if self.bad_images != "skip":
                    raise BadImageError(f"{error} Pass --bad_images skip to pass over such images.") from error
                self._skipped += 1
                logger.warning("Passed over: %s", error)
                continue
            yield item


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Batch items: `pixel_values` `(B, C, H, W)`, `noise` `(B, N)`, `file_name` a list of B names."""
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "noise": torch.stack([item["noise"] for item in items]),
        "file_name": [item["file_name"] for item in items],
    }


def grey_statistics(
    pretrain_dataset: PretrainDataset | PretrainIterableDataset,
    value_range: tuple[float, float],
    levels: int,
    channel: int | str,
    max_images: int = 512,
) -> dict[str, Any]:
    """What the texture loss gets to see: the mean pixel, and how much of the grey levels the data occupies.

    Args:
        pretrain_dataset: where the images come from, transformed as in the first epoch.
        value_range: (lo, hi) of the grey levels, in units of `pixel_values` after normalisation.
        levels: number of grey levels over `value_range`.
        channel: the channel that is judged, or "mean" of the channels.
        max_images: look at this many images at most, spread evenly over the data set (a stream: its first).

    Returns:
        `mean_pixel`: a list, mean of each channel in units of `pixel_values`; `occupied_levels`: levels that hold at
        least 0.1 % of the pixels (`MIN_LEVEL_SHARE`), after clamping to the range; `levels`; `outside_fraction`: share
        of the pixels outside the range; `num_images`: images looked at.
    """
    lo, hi = value_range
    if isinstance(pretrain_dataset, PretrainDataset):
        count = min(max_images, len(pretrain_dataset))
        items = (pretrain_dataset[i * len(pretrain_dataset) // count] for i in range(count))
    else:
        items = itertools.islice(pretrain_dataset, max_images)
    sums, histogram, outside, num_pixels, num_images = 0.0, torch.zeros(levels), 0, 0, 0
    for item in items:
        pixels = item["pixel_values"].double()  # (C, H, W)
        sums = sums + pixels.sum((1, 2))
        grey = pixels.mean(0) if channel == "mean" else pixels[int(channel)]
        tolerance = 1e-5 * (hi - lo)  # white itself, rounded to float32, is not outside
        outside += int(((grey < lo - tolerance) | (grey > hi + tolerance)).sum())
        level = ((grey - lo) / (hi - lo) * levels).floor().clamp(0, levels - 1).long()
        histogram += torch.bincount(level.flatten(), minlength=levels)
        num_pixels += grey.numel()
        num_images += 1
    if num_images == 0:
        raise ValueError("There is no image to take grey statistics of.")
    return {
        "mean_pixel": (sums / num_pixels).tolist(),
        "occupied_levels": int((histogram / num_pixels >= MIN_LEVEL_SHARE).sum()),
        "levels": levels,
        "outside_fraction": outside / num_pixels,
        "num_images": num_images,
    }
