"""Which images of a corpus are shown, where not all are."""

from collections.abc import Sequence
from typing import Any

import datasets

from corpora.load import load_corpus
from corpora.table import NONE
from images.splits import load_prepared


def images_to_show(
    corpus: str, fold: str | None, *, labelled: bool, **reading: Any
) -> tuple[datasets.Dataset, list[str] | None]:
    """The images, and the classes of their labels (label 0 first) if they have any.

    Args:
        corpus: as for `load_corpus`.
        fold: of a prepared corpus, to show its test part only.
        labelled: whether the labels are wanted; without a fold.
        **reading: of `load_corpus`.
    """
    if fold is not None:
        parts, classes = load_prepared(corpus, None, fold)
        return parts["test"], classes
    images = load_corpus(corpus, group_column=NONE, label_column=None if labelled else NONE, **reading)
    label = images.features.get("label")
    return images, list(label.names) if isinstance(label, datasets.ClassLabel) else None


def spread(labels: Sequence[int | None], count: int) -> list[int]:
    """Positions of `count` images: as many of each class as of any other, as far as there are, evenly spread in it."""
    of_class: dict[int | None, list[int]] = {}
    for index, label in enumerate(labels):
        of_class.setdefault(label, []).append(index)
    shares, left = dict.fromkeys(of_class, 0), count
    while left:
        for label, members in of_class.items():
            if left and shares[label] < len(members):
                shares[label], left = shares[label] + 1, left - 1
    return sorted(
        members[place * len(members) // shares[label]]
        for label, members in of_class.items()
        for place in range(shares[label])
    )
