"""Items for a classifier: augmentation keyed by (seed, epoch, index), evaluation as `pipeline` does it."""

from dataclasses import dataclass
from typing import Any

import datasets
import kornia.augmentation as augmentation
import numpy as np
import torch
from kornia.augmentation.auto import RandAugment

from images.decode import decode_image, to_8_bits
from training.feeding import ImageTransform, _generator, white_of

_CLASSIFIER_SAMPLE, _MIXING = 5, 6  # after the keys of the other files of this room
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Augmentation:
    """What training images go through after crop and flip.

    Attributes:
        randaugment: magnitude of RandAugment (Cubuk et al. 2020), 0 to 30; 0 for none. Two operations an image.
        random_erasing: probability of painting a random rectangle of 2 to 33 % of the image in the mean grey.
    """

    randaugment: int = 9
    random_erasing: float = 0.25

    def before_normalisation(self, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """RandAugment of `(3, H, W)` in [0, 1]."""
        if not self.randaugment:
            return pixels
        with _seeded(generator):
            return RandAugment(n=2, m=self.randaugment)(pixels[None])[0].clamp(0, 1)

    def after_normalisation(self, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Random erasing of normalised `(3, H, W)`: 0 is the mean."""
        if not self.random_erasing:
            return pixels
        with _seeded(generator):
            return augmentation.RandomErasing(p=self.random_erasing)(pixels[None])[0]


class _seeded:
    """kornia draws from torch's global generator: seed it from `generator`, and put it back afterwards."""

    def __init__(self, generator: torch.Generator):
        self.seed = int(torch.randint(2**62, (), generator=generator))

    def __enter__(self):
        self.fork = torch.random.fork_rng(devices=[])
        self.fork.__enter__()
        torch.manual_seed(self.seed)
        self.numpy_state = np.random.get_state()
        np.random.seed(self.seed % 2**32)

    def __exit__(self, *error):
        np.random.set_state(self.numpy_state)
        self.fork.__exit__(*error)


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
        white = white_of(row, self.white_level)
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
        self.labels = np.array(dataset["label"])

    def __getitem__(self, key: int) -> dict[str, Any]:
        epoch, index = divmod(int(key), len(self.dataset))
        row = self.dataset[index]
        name = row["file_name"]
        if self.augment is None:
            pixels = self.evaluated(row)
        else:
            generator = _generator(_CLASSIFIER_SAMPLE, self.seed, epoch, index)
            fitted = torch.from_numpy(self.transform.crop(self.decode(row), generator, name=name).astype(np.float32))
            fitted = self.augment.before_normalisation(fitted, generator)
            pixels = self.augment.after_normalisation(self.transform.finish(fitted.numpy(), generator), generator)
        return {"pixel_values": pixels, "labels": int(row["label"]), "index": int(key)}


@dataclass(frozen=True)
class Mixing:
    """Images and targets of a batch, mixed in pairs.

    Attributes:
        mixup, cutmix: parameters of the Beta distributions (Zhang et al. 2018; Yun et al. 2019); 0 for none. With both,
            each batch takes one of them at random.
        seed: the mixing of a batch depends on it and on the items only.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    seed: int = 0

    def __call__(
        self, pixel_values: torch.Tensor, targets: torch.Tensor, index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch.

        Args:
            pixel_values: `(B, 3, H, W)`.
            targets: `(B, num_classes)`, rows sum to 1.
            index: `(B,)`, numbers of the items.
        """
        if not (self.mixup or self.cutmix):
            return pixel_values, targets
        random = np.random.default_rng([_MIXING, self.seed, *index.tolist()])
        use_cutmix = self.cutmix > 0 and (not self.mixup or random.random() < 0.5)
        alpha = self.cutmix if use_cutmix else self.mixup
        share = float(random.beta(alpha, alpha))  # of the image's own label
        partner = torch.from_numpy(random.permutation(len(index))).to(pixel_values.device)
        if use_cutmix:
            height, width = pixel_values.shape[2:]
            half = (1 - share) ** 0.5 / 2
            y, x = random.random(2) * (height, width)
            top, bottom = int(max(0, y - half * height)), int(min(height, y + half * height))
            left, right = int(max(0, x - half * width)), int(min(width, x + half * width))
            pixel_values = pixel_values.clone()
            pixel_values[:, :, top:bottom, left:right] = pixel_values[partner, :, top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (height * width)
        else:
            pixel_values = share * pixel_values + (1 - share) * pixel_values[partner]
        return pixel_values, share * targets + (1 - share) * targets[partner]


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
