"""Pictures to try the demo with: generated speckle, of no patient."""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from corpora.speckle_image import CLASS_SETS, speckle_image

SIZE = 96  # of the speckle that the recipes train on
_FOLDER = tempfile.TemporaryDirectory(prefix="glcm_mae_examples_")  # as long as the demo runs


def example_files() -> dict[str, Path]:
    """PNG files by what they show; one has a spot that differs from its surroundings in texture only."""
    fine, coarse = (
        speckle_image(kind, SIZE, seed)
        for seed, kind in enumerate(CLASS_SETS["easy"])
        if kind.name in ("fine", "coarse")
    )
    row, column = np.mgrid[:SIZE, :SIZE]
    spot = np.hypot(row - 0.6 * SIZE, column - 0.4 * SIZE) < 0.24 * SIZE
    pictures = {"Fine speckle": fine, "Coarse speckle": coarse, "A coarse spot in fine": np.where(spot, coarse, fine)}
    files = {name: Path(_FOLDER.name) / f"{name.replace(' ', '_').lower()}.png" for name in pictures}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(files[name])
    return files
