"""Generators for all that is random about an image, keyed by what it is for, the seed, the epoch and the image."""

import numpy as np
import torch

# First numbers of every random key, so that streams for different purposes never coincide.
IMAGE_ORDER = 1
"""The order of the images of an epoch: with the seed and the epoch."""
TRAINING_SAMPLE = 2
"""Crop, flip and mask noise of an image of pretraining: with the seed, the epoch and the image."""
EVALUATION_SAMPLE = 3
"""Mask noise of a held-out image: with the image only, so that all runs are judged alike."""
HELD_OUT = 4
"""Which images are held out: with the seed."""
CLASSIFIER_SAMPLE = 5
"""Crop, flip and augmentation of an image of fine-tuning: with the seed, the epoch and the image."""
MIXING = 6
"""Mixup and cutmix of a batch of fine-tuning: with the seed and the batch's items."""
FEW_GROUPS = 7
"""Which groups have labels where only a few are to have them: with the class."""


def keyed_generator(*key: int) -> torch.Generator:
    """A generator seeded by the key; keys that differ in any number give unrelated streams.

    Args:
        key: one of the purposes above, then whatever the stream depends on; whole numbers of at least 0.
    """
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))
