"""Augmentation of a classifier's images, keyed by (seed, epoch, index), and the mixing of a batch."""

import functools
from dataclasses import dataclass

import kornia.augmentation as augmentation
import numpy as np
import torch
from kornia.augmentation.auto import RandAugment
from torch.distributions import Beta

from images.randomness import MIXING, keyed_generator


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
            return _rand_augment(self.randaugment)(pixels[None])[0].clamp(0, 1)

    def after_normalisation(self, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Random erasing of normalised `(3, H, W)`: 0 is the mean."""
        if not self.random_erasing:
            return pixels
        with _seeded(generator):
            return _random_erasing(self.random_erasing)(pixels[None])[0]


# To make one takes as long as to apply it; they draw anew for every image.
_rand_augment = functools.cache(lambda magnitude: RandAugment(n=2, m=magnitude))
_random_erasing = functools.cache(lambda probability: augmentation.RandomErasing(p=probability))


class _seeded:
    """kornia draws from torch's global CPU generator: seed it from `generator`, and put it back afterwards."""

    def __init__(self, generator: torch.Generator):
        self.seed = int(torch.randint(2**62, (), generator=generator))

    def __enter__(self):
        self.fork = torch.random.fork_rng(devices=[])
        self.fork.__enter__()
        torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would seed those of the GPUs too
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
            each batch takes one of them at random. All pairs of a batch are mixed in one proportion, at one place.
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
        options = {"same_on_batch": True, "data_keys": ["input", "class"]}
        with _seeded(keyed_generator(MIXING, self.seed, *index.tolist())):
            cut = self.cutmix > 0 and (not self.mixup or torch.rand(()).item() < 0.5)
            if cut:
                mix = augmentation.RandomCutMixV2(beta=self.cutmix, use_correct_lambda=True, **options)
            else:
                # kornia's own draw is uniform, between these two.
                strength = Beta(self.mixup, self.mixup).sample().item()
                mix = augmentation.RandomMixUpV2((strength, strength), **options)
            drawn = mix.forward_parameters(pixel_values.shape)
        # Drawn on the CPU, so that all devices mix alike; moved here, or kornia would list every pixel of a cut there.
        drawn = {name: value.to(pixel_values.device) for name, value in drawn.items()}
        # kornia mixes one label an image, and targets are soft: it gets positions, and tells who is with whom.
        positions = torch.arange(len(index), device=pixel_values.device)
        pixel_values, pairs = mix(pixel_values, positions, params=drawn)
        _, partner, share = pairs.reshape(-1, 3).T
        own_share = (share if cut else 1 - share)[:, None]
        return pixel_values, own_share * targets + (1 - own_share) * targets[partner.long()]
