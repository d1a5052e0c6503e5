"""Generators for all that is random about an image, keyed by what it is for, the seed, the epoch and the image."""

import numpy as np
import torch

# First number of every random key, so that streams for different purposes never coincide.
_IMAGE_ORDER, _TRAINING_SAMPLE, _EVALUATION_SAMPLE, _HELD_OUT = 1, 2, 3, 4


def _generator(*key: int) -> torch.Generator:
    """A generator seeded by the key; keys that differ in any number give unrelated streams."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))


_CLASSIFIER_SAMPLE, _MIXING = 5, 6  # after the keys of the other files of this room
