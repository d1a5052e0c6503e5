"""From a corpus to batches: the data sets and the sampler that training and judging read.

Everything random about a training image (crop, flips, masking noise) is a pure function of (seed, epoch, index). So a
resume, the number of workers or processes and gradient accumulation change none of it.
"""

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch

from corpora.record import BadImageError
from images.augment import Augmentation
from images.check import white_level_of
from images.decode import decode_image, to_8_bits
from images.randomness import CLASSIFIER_SAMPLE, EVALUATION_SAMPLE, IMAGE_ORDER, TRAINING_SAMPLE, keyed_generator
from images.transform import ImageTransform
from training.image_cache import image_cache

logger = logging.getLogger(__name__)

MIN_LEVEL_SHARE = 1e-3  # a grey level counts as occupied from this share of the pixels on


# -------------------------------------------------------------------------------------------------------- transforms


# ----------------------------------------------------------------------------------------------------------- loading


# ------------------------------------------------------------------------------------------ checking and holding out


# ---------------------------------------------------------------------------------------------- feeding the training


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
        white = white_level_of(row, self.white_level)
        return decode_image(row["image"], name=row["file_name"], num_channels=self.num_channels, white_level=white)

    def fitted(self, row: dict[str, Any]) -> np.ndarray:
        """float32 `(C, *image_size)` in [0, 1], all that is not random."""
        return self.transform.fit(self.decode(row), name=row["file_name"])

    def from_cache(self, pixels: np.ndarray, name: str, generator: torch.Generator) -> dict[str, Any]:
        """The item of an image that was `fitted` before; one channel is enough where all are the same."""
        noise = torch.rand(self.num_patches, generator=generator)
        pixel_values = self.transform.finish(pixels, generator if self.train else None)
        return {"pixel_values": pixel_values, "noise": noise, "file_name": name}


class PretrainDataset(torch.utils.data.Dataset):
    """Items for pretraining: `pixel_values` float32 `(C, H, W)`, `noise` float32 `(N,)` in [0, 1), `file_name`.

    `noise` is what ViTMAE takes to choose the masked patches. An item is asked for by epoch * len(dataset) + index, as
    `EpochSampler` does; its randomness depends on (seed, epoch, index) only. For evaluation (`train=False`) the
    transform is deterministic and the noise depends on the index only, so that losses and pictures can be compared
    over time.

    With `cache`, all images are decoded and resized at the start, into a file that all processes of a machine share,
    this run and later ones (`ImageCache`). The items are the same to the last bit.
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
        self.seed = seed
        self.train = train
        self._make_item = _ItemMaker(transform, num_patches, num_channels, white_level, train)
        self._names = dataset["file_name"][:] if cache else None
        self._cache = None
        if cache:
            self._cache = image_cache(dataset, self._make_item.fitted, transform, num_channels, white_level)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int) -> dict[str, Any]:
        epoch, index = divmod(int(key), len(self.dataset))
        if key < 0 or (epoch and not self.train):
            raise IndexError(f"No item {key}: there are {len(self.dataset)} images.")
        random_key = (TRAINING_SAMPLE, self.seed, epoch, index) if self.train else (EVALUATION_SAMPLE, index)
        generator = keyed_generator(*random_key)
        if self._cache is None:
            return self._make_item(self.dataset[index], generator)
        return self._make_item.from_cache(self._cache[index], self._names[index], generator)


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
        order = torch.randperm(self.num_images, generator=keyed_generator(IMAGE_ORDER, self.seed, self.epoch))
        return iter((order[: self._length] + self.epoch * self.num_images).tolist())


class PretrainIterableDataset(torch.utils.data.IterableDataset):
    """The items of `PretrainDataset` from a stream, their randomness keyed by (seed, epoch, position in the stream).

    With more than one worker the order of the stream depends on the number of workers (`datasets` deals the shards out
    to them), and with it the masks.

    Args:
        dataset: as from `load_corpus(..., streaming=True)`.
        bad_images: "error" to raise at the first bad image, "skip" to pass over it, log it and count it in `skipped`.
        shuffle_buffer: how many images the stream is shuffled over, anew each epoch; with 0 only its shards change
            places, from the second epoch on.
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
            key = (TRAINING_SAMPLE, self.seed, epoch, position) if self.train else (EVALUATION_SAMPLE, position)
            try:
                item = self._make_item(row, keyed_generator(*key))
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


class ImagesAsEvaluated(torch.utils.data.Dataset):
    """`pixel_values` float32 `(3, H, W)` and `index` of each image, without anything random.

    Files are read by `decode_image`, as in training. What 8 bits hold then goes through the image processor, as
    `pipeline` would take it, so that its answers are the ones judged; anything else (deeper or transparent images,
    other white levels, strips that letterbox makes thinner than a pixel) through the same transform in float.

    Args:
        dataset: columns image (undecoded), file_name, and where known white_level.
        transform: of the model, for three channels.
        white_level: grey value of white, for images that do not say theirs; `None` for that of their depth.
    """

    def __init__(self, dataset: datasets.Dataset, transform: ImageTransform, *, white_level: float | None = 255):
        self.dataset, self.transform, self.white_level = dataset, transform, white_level
        self._processor = transform.processor()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[index]
        return {"pixel_values": self.evaluated(row), "index": index}

    def decode(self, row: dict[str, Any]) -> np.ndarray:
        """`(H, W, 3)` in [0, 1]."""
        white = white_level_of(row, self.white_level)
        return decode_image(row["image"], name=row["file_name"], num_channels=3, white_level=white)

    def evaluated(self, row: dict[str, Any]) -> torch.Tensor:
        """`(3, H, W)` of a row of the data set."""
        image, name = self.decode(row), row["file_name"]
        self.transform.check(image, name)
        levels = to_8_bits(image)
        # in float64 first, as decode_image divides
        if not np.array_equal(image, (levels.astype(np.float64) / 255).astype(np.float32)):
            return self.transform(image, name=name)
        if min(self.transform.fitted_size(*image.shape[:2])) < 1:
            return self.transform(image, name=name)
        return self._processor(images=levels, input_data_format="channels_last", return_tensors="pt")["pixel_values"][0]


class ClassificationDataset(ImagesAsEvaluated):
    """`pixel_values` float32 `(3, H, W)`, `labels` int, `index` int (of the item, epoch * length + position).

    In training an item's randomness is a function of (seed, epoch, index) alone.

    Args:
        dataset: columns image (undecoded), file_name, label.
        transform, white_level: as for `ImagesAsEvaluated`.
        seed: of the augmentation.
        augment: for training; `None` for evaluation.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        transform: ImageTransform,
        *,
        white_level: float | None = 255,
        seed: int = 0,
        augment: Augmentation | None = None,
    ):
        super().__init__(dataset, transform, white_level=white_level)
        self.seed, self.augment = seed, augment
        self.labels = np.array(dataset["label"][:])

    def __getitem__(self, key: int) -> dict[str, Any]:
        epoch, index = divmod(int(key), len(self.dataset))
        row = self.dataset[index]
        name = row["file_name"]
        if self.augment is None:
            pixels = self.evaluated(row)
        else:
            generator = keyed_generator(CLASSIFIER_SAMPLE, self.seed, epoch, index)
            fitted = torch.from_numpy(self.transform.crop(self.decode(row), generator, name=name).astype(np.float32))
            fitted = self.augment.before_normalisation(fitted, generator)
            pixels = self.augment.after_normalisation(self.transform.finish(fitted.numpy(), generator), generator)
        return {"pixel_values": pixels, "labels": int(row["label"]), "index": int(key)}


@dataclass(frozen=True)
class OneHot:
    """Collates items: `pixel_values` `(B, 3, H, W)`, `labels` `(B, num_classes)` one-hot, `index` `(B,)`."""

    num_classes: int

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        labels = torch.tensor([item["labels"] for item in items])
        return {
            "pixel_values": torch.stack([item["pixel_values"] for item in items]),
            "labels": torch.nn.functional.one_hot(labels, self.num_classes).float(),
            "index": torch.tensor([item["index"] for item in items]),
        }
