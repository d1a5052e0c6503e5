"""Whether two sets of images share a group, a file or a picture."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from tqdm.auto import tqdm

from images.check import white_level_of
from images.decode import decode_image, is_deep
from images.fingerprint import Fingerprint, fingerprint, similar_pairs
from images.known import Known


class SplitError(ValueError):
    """A split does not fit the data, or would leak."""


def check_overlap(
    train: datasets.Dataset | pd.DataFrame,
    test: datasets.Dataset | pd.DataFrame,
    known: Known | None = None,
    *,
    alike: bool = True,
) -> None:
    """Refuse two parts that share a group, a file, or a picture.

    Args:
        train, test: columns `file_name`, `group`, and without `known` also `image` (undecoded or not).
        known: what was found in all of these images; left out, they are read and compared.
        alike: whether images of different groups that look alike are refused too.

    Raises:
        SplitError: names the images on both sides.
    """
    of_group = dict(zip(train["group"][:], train["file_name"][:], strict=True))
    shared = [
        (of_group[group], name, group)
        for group, name in zip(test["group"][:], test["file_name"][:], strict=True)
        if group in of_group
    ]
    if shared:
        first = "; ".join(f"'{a}' and '{b}' (group {group})" for a, b, group in shared[:5])
        raise SplitError(f"{len(shared)} image(s) of one group are on both sides of the split: {first}")
    if not alike:
        return
    names = train["file_name"][:], test["file_name"][:]
    if known is None:
        found = similar_pairs(_fingerprints(train), _fingerprints(test))
        pairs = [(names[0][pair.first], names[1][pair.second]) for pair in found]
    else:
        left, right = map(set, names)
        both = [pair for ends in known.alike for pair in (ends, ends[::-1])]
        pairs = [(a, b) for a, b in both if a in left and b in right]
    if pairs:
        first = "; ".join(f"'{a}' and '{b}'" for a, b in pairs[:5])
        raise SplitError(f"{len(pairs)} pair(s) of (near-)identical images are on both sides of the split: {first}")


def check_columns(dataset: datasets.Dataset) -> None:
    """Refuse a table that prepare_corpus.py did not write.

    Raises:
        SplitError: names the columns that it lacks.
    """
    missing = {"file_name", "group", "sha256"} - set(dataset.column_names)
    if missing:
        raise SplitError(f"the data has no column {', '.join(sorted(missing))}: prepare it with prepare_corpus.py")


def examine(dataset: datasets.Dataset) -> Known:
    """Read, hash, decode and compare all images of a prepared corpus.

    Args:
        dataset: all its splits; `image` undecoded.

    Raises:
        SplitError: an image is not the one that its `sha256` says; names it.
        BadImageError: an image cannot be decoded.
    """
    check_columns(dataset)
    needed = [name for name in ("image", "file_name", "sha256", "white_level") if name in dataset.column_names]
    rows = dataset.select_columns(needed)

    def look(index: int) -> tuple[Fingerprint, tuple[int, int, bool]]:
        row = rows[index]
        data, name = bytes_of(row["image"]), row["file_name"]
        grey = decode_image(data, name=name, num_channels=1, white_level=white_level_of(row, None))[..., 0]
        return fingerprint(data, grey), (*grey.shape, is_deep(data, name=name))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(tqdm(pool.map(look, range(len(rows))), total=len(rows), desc="checking the corpus", leave=False))
    prints = [fingerprint for fingerprint, _ in found]
    names, groups = dataset["file_name"][:], dataset["group"][:]
    stored = zip(names, dataset["sha256"][:], prints, strict=True)
    changed = [name for name, digest, fingerprint in stored if digest != fingerprint.sha256]
    if changed:
        raise SplitError(
            f"the data is not what was prepared: {len(changed)} image(s) changed ({', '.join(changed[:5])}). Prepare "
            "the corpus anew"
        )
    alike = [(pair.first, pair.second) for pair in similar_pairs(prints)]
    return Known(
        [(names[i], names[j]) for i, j in alike if groups[i] != groups[j]],
        {fingerprint.sha256: facts for fingerprint, facts in found},
    )


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
