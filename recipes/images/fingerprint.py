"""Which images of a corpus are the same picture, and which look wrong: what leaks between training and test."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Two images are near-identical (frames of one scan, another crop of it) from here on. Measured on BUSI, SARS-CoV-2 CT
# and chest X-rays: copies resized to 40 to 150 % and saved as JPEG of quality 40 to 90 differ in at most 18 of the 256
# bits and correlate above 0.98; pairs up to 24 bits that were looked at show one scan. Unrelated X-rays, the
# most alike of the three, begin at 33 bits.
MAX_BITS = 24
MIN_CORRELATION = 0.95
# Copies of one file, re-encoded or resized: the same picture without doubt, so two different labels cannot be right.
COPY_BITS = 8
COPY_CORRELATION = 0.995  # alone enough for near-identical: the bits of a smooth image are noise

_HASH_SIDE, _THUMBNAIL_SIDE = 16, 32
MIN_SIDE = 32  # pixels; a smaller image is reported as tiny
FLAT_STD = 2 / 255  # grey standard deviation in [0, 1] below which an image is reported as flat
COLOUR_DIFFERENCE = 16 / 255  # between channels of a pixel, in [0, 1]; JPEG of grey images stays below
COLOUR_SHARE = 1e-3  # of the pixels


@dataclass(frozen=True)
class Fingerprint:
    """What is compared of an image.

    Attributes:
        sha256: hex digest of the file's bytes.
        bits: uint8 `(32,)`, the 256 bits of its perceptual hash (DCT of the grey image, by `imagehash`).
        thumbnail: float32 `(1024,)`, 32 x 32 grey means with mean 0 and norm 1; all 0 for a flat image.
    """

    sha256: str
    bits: np.ndarray
    thumbnail: np.ndarray


def fingerprint(data: bytes, grey: np.ndarray) -> Fingerprint:
    """Fingerprint of a file.

    Args:
        data: its bytes.
        grey: float `(H, W)` in [0, 1], decoded.
    """
    # By the brightest pixel, so that the white level that a reader assumes makes no difference.
    image = Image.fromarray((grey / max(float(grey.max()), 1e-6) * 255).round().astype(np.uint8))
    small = image.resize((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.BOX)
    thumbnail = np.asarray(small, dtype=np.float32).ravel()
    thumbnail = thumbnail - thumbnail.mean()
    norm = np.linalg.norm(thumbnail)
    return Fingerprint(
        hashlib.sha256(data).hexdigest(),
        np.packbits(imagehash.phash(image, hash_size=_HASH_SIDE).hash.ravel()),
        thumbnail / norm if norm > 0 else thumbnail,
    )


@dataclass(frozen=True)
class SimilarPair:
    """Two images that show the same: positions, differing bits of 256, correlation of the thumbnails."""

    first: int
    second: int
    bits: int
    correlation: float
    identical: bool  # byte by byte

    @property
    def is_copy(self) -> bool:
        """The same picture, if not the same file."""
        return self.identical or (self.bits <= COPY_BITS and self.correlation >= COPY_CORRELATION)


def similar_pairs(first: Sequence[Fingerprint], second: Sequence[Fingerprint] | None = None) -> list[SimilarPair]:
    """Pairs of identical or near-identical images; mirrored or rotated copies are not found.

    Args:
        first: fingerprints.
        second: compare each of `first` with each of these; `None` compares `first` among themselves.

    Returns:
        The pairs, by position in `first`, then in `second`.
    """
    others = first if second is None else second
    if not first or not others:
        return []
    bits = np.stack([item.bits for item in others])
    thumbnails = np.stack([item.thumbnail for item in others])
    hashes = np.array([item.sha256 for item in others])
    pairs = []
    for i, item in enumerate(first):
        start = i + 1 if second is None else 0
        distance = np.bitwise_count(bits[start:] ^ item.bits).sum(axis=1)
        same_file = hashes[start:] == item.sha256
        correlation = thumbnails[start:] @ item.thumbnail
        near = ((distance <= MAX_BITS) & (correlation >= MIN_CORRELATION)) | (correlation >= COPY_CORRELATION)
        for j in np.flatnonzero(near | same_file):
            pairs.append(SimilarPair(i, start + int(j), int(distance[j]), float(correlation[j]), bool(same_file[j])))
    return pairs


def merged_groups(known: Sequence[str | None], pairs: Sequence[SimilarPair]) -> list[str]:
    """Groups that must stay on one side of a split: the patient, joined with whatever shows the same picture.

    Args:
        known: patient of each image, `None` where unknown.
        pairs: of images that show the same.

    Returns:
        For each image a name: the patient's (the first in order, where a copy joins several), or `content-N` where no
        patient is known, N the position of the group's first image.
    """
    first_of: dict[str, int] = {}
    edges = [(first_of.setdefault(name, i), i) for i, name in enumerate(known) if name is not None]
    edges += [(pair.first, pair.second) for pair in pairs]
    rows, columns = np.array(edges, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges), dtype=bool), (rows, columns)), shape=(len(known), len(known)))
    groups = connected_components(graph, directed=False)[1].tolist()
    names: dict[int, str] = {}
    for group, name in zip(groups, known, strict=True):
        if name is not None:
            names.setdefault(group, name)
    for i, group in enumerate(groups):
        names.setdefault(group, f"content-{i}")
    return [names[group] for group in groups]


def looks_coloured(image: np.ndarray) -> bool:
    """Whether a decoded image `(H, W, 3)` in [0, 1] has colour, beyond what JPEG leaves in a grey one."""
    return bool(((image.max(axis=2) - image.min(axis=2)) > COLOUR_DIFFERENCE).mean() > COLOUR_SHARE)
