"""Items for a classifier: augmentation keyed by (seed, epoch, index), evaluation as `pipeline` does it."""

from dataclasses import dataclass

import kornia.augmentation as augmentation
import numpy as np
import torch
from kornia.augmentation.auto import RandAugment

from images.randomness import _MIXING


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
