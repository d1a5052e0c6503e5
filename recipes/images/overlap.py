"""Whether two sets of images share a group, a file or a picture."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from images.check import white_level_of
from images.decode import decode_image
from images.fingerprint import Fingerprint, fingerprint, similar_pairs


class SplitError(ValueError):
    """A split does not fit the data, or would leak."""


def check_overlap(train: datasets.Dataset, test: datasets.Dataset) -> None:
    """Refuse two parts that share a group, a file, or a picture.

    Args:
        train, test: columns `image` (undecoded or not), `file_name`, `group`.

    Raises:
        SplitError: names the images on both sides.
    """
    of_group = dict(zip(train["group"], train["file_name"], strict=True))
    shared = [
        (of_group[group], name, group)
        for group, name in zip(test["group"], test["file_name"], strict=True)
        if group in of_group
    ]
    if shared:
        first = "; ".join(f"'{a}' and '{b}' (group {group})" for a, b, group in shared[:5])
        raise SplitError(f"{len(shared)} image(s) of one group are on both sides of the split: {first}")
    left, right = _fingerprints(train), _fingerprints(test)
    pairs = similar_pairs(left, right)
    if pairs:
        names = train["file_name"], test["file_name"]
        first = "; ".join(f"'{names[0][pair.first]}' and '{names[1][pair.second]}'" for pair in pairs[:5])
        raise SplitError(f"{len(pairs)} pair(s) of (near-)identical images are on both sides of the split: {first}")


def without_copies(dataset: datasets.Dataset, kept: Sequence[datasets.Dataset]) -> datasets.Dataset:
    """The images of a data set that are no (near-)copy of any in `kept`.

    Args:
        dataset, kept: columns `image` (undecoded or not) and `file_name`.
    """
    apart = [found for part in kept for found in _fingerprints(part)]
    copies = {pair.first for pair in similar_pairs(_fingerprints(dataset), apart)}
    return dataset.select([index for index in range(len(dataset)) if index not in copies])


_known: dict[str, Fingerprint] = {}  # by SHA-256: the parts of several folds are the same files


def _fingerprints(dataset: datasets.Dataset) -> list[Fingerprint]:
    found = []
    needed = [name for name in ("image", "file_name", "white_level") if name in dataset.column_names]
    for row in dataset.select_columns(needed).cast_column("image", datasets.Image(decode=False)):
        data = bytes_of(row["image"])
        digest = hashlib.sha256(data).hexdigest()
        if digest not in _known:
            white = white_level_of(row, None)
            grey = decode_image(data, name=row["file_name"], num_channels=1, white_level=white)[..., 0]
            _known[digest] = fingerprint(data, grey)
        found.append(_known[digest])
    return found


def bytes_of(image: dict[str, Any]) -> bytes:
    """The file behind an undecoded `datasets.Image`."""
    return image["bytes"] if image.get("bytes") is not None else Path(image["path"]).read_bytes()
