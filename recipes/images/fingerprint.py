"""Which images of a corpus are the same picture, and which look wrong: what leaks between training and test."""

import hashlib
from collections import defaultdict
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
_PARTS, _TILE = 8, 1024  # most pairs are ruled out by the means of 8 x 8 parts, so many by so many images at once
_ROUNDING = 1e-4  # of float32, generously
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
    bits, thumbnails, bounds = zip(*map(_stacked, [first] if second is None else [first, second]), strict=True)
    same_bytes = defaultdict(list)
    for j, item in enumerate(others):
        same_bytes[item.sha256].append(j)
    found = [np.array([(i, j) for i, item in enumerate(first) for j in same_bytes[item.sha256]], dtype=int)]
    for row in range(0, len(first), _TILE):
        for column in range(0 if second is not None else row, len(others), _TILE):
            bound = bounds[0][row : row + _TILE] @ bounds[-1][column : column + _TILE].T
            near = np.argwhere(bound >= MIN_CORRELATION - _ROUNDING)
            bound = bound[tuple(near.T)]
            near += row, column
            possible = (_differing(bits, near) <= MAX_BITS) | (bound >= COPY_CORRELATION - _ROUNDING)
            near = near[possible]
            correlation = _correlation(thumbnails, near)
            found.append(near[(_differing(bits, near) <= MAX_BITS) & (correlation >= MIN_CORRELATION)])
            found.append(near[correlation >= COPY_CORRELATION])
    pairs = np.unique(np.concatenate([part.reshape(-1, 2) for part in found]), axis=0)
    if second is None:
        pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    measured = zip(pairs.tolist(), _differing(bits, pairs).tolist(), _correlation(thumbnails, pairs), strict=True)
    return [
        SimilarPair(i, j, count, float(correlation), first[i].sha256 == others[j].sha256)
        for (i, j), count, correlation in measured
    ]


def _stacked(items: Sequence[Fingerprint]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of n fingerprints: the bits, uint64 `(n, 4)`; the thumbnails `(n, 1024)`; and `(n, 65)`, for bounds.

    The product of two rows of the latter is at least the correlation of the thumbnails: the means of 8 x 8 parts give
    what these have to do with each other, and by Cauchy-Schwarz the norms of what is left give the most that it can be.
    """
    bits = np.stack([item.bits for item in items]).view(np.uint64)
    thumbnails = np.stack([item.thumbnail for item in items])
    side = _THUMBNAIL_SIDE // _PARTS
    sums = thumbnails.reshape(-1, _PARTS, side, _PARTS, side).sum(axis=(2, 4)).reshape(len(items), -1) / side
    left = np.einsum("nd,nd->n", thumbnails, thumbnails) - (sums**2).sum(axis=1)
    return bits, thumbnails, np.column_stack([sums, np.sqrt(left.clip(0))])


def _differing(bits: Sequence[np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """How many bits differ, for each of the pairs `(n, 2)`."""
    return np.bitwise_count(bits[0][pairs[:, 0]] ^ bits[-1][pairs[:, 1]]).sum(axis=1)


def _correlation(thumbnails: Sequence[np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """Correlation of the thumbnails of each of the pairs `(n, 2)`; in parts, since all at once may be many."""
    parts = [pairs[start : start + _TILE] for start in range(0, len(pairs), _TILE)]
    found = [np.einsum("nd,nd->n", thumbnails[0][part[:, 0]], thumbnails[-1][part[:, 1]]) for part in parts]
    return np.concatenate([np.empty(0, dtype=np.float32), *found])


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
    red, green, blue = np.moveaxis(
        image, 2, 0
    )  # one by one: over an axis of three, numpy's max takes ten times as long
    highest, lowest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return bool((highest - lowest > COLOUR_DIFFERENCE).mean() > COLOUR_SHARE)
