"""Splits of a prepared corpus: seeded, stratified, grouped, saved with file hashes, and checked for leaks."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
from accelerate import PartialState
from accelerate.utils import gather_object
from sklearn.model_selection import StratifiedGroupKFold

from recipe_args import UsageError
from recipe_data import decode_image, parquet_files
from recipe_quality import Fingerprint, fingerprint, similar_pairs

VERSION = 1
PARTS = ("train", "validation", "test")
VALIDATION_FOLDS = 8  # the validation part is one in so many of what is not test, where there are as many groups


class SplitError(ValueError):
    """A split does not fit the data, or would leak."""


def grouped_parts(labels: np.ndarray, groups: Sequence[str], num_parts: int, seed: int) -> list[np.ndarray]:
    """Positions of each of `num_parts` parts: classes in proportion, no group in two of them.

    Raises:
        SplitError: there are too few groups, of a class or in all.
    """
    groups = np.asarray(groups)
    for label in np.unique(labels):
        count = len(np.unique(groups[labels == label]))
        if count < num_parts:
            raise SplitError(
                f"class {label} has {count} group(s) (patients or sets of near-identical images); {num_parts} parts "
                "need at least one each: lower num_folds, or add data"
            )
    divide = StratifiedGroupKFold(num_parts, shuffle=True, random_state=seed)
    return [np.sort(test) for _, test in divide.split(np.zeros(len(labels)), labels, groups)]


def make_splits(
    dataset: datasets.Dataset,
    *,
    num_folds: int,
    seed: int,
    official: Sequence[str] | None = None,
    by_content: bool = False,
) -> dict[str, Any]:
    """Folds for cross-validation, and the corpus's own split.

    The result depends on the images' names, labels and groups, not on their order.

    Args:
        dataset: columns `file_name`, `sha256`, `group`, and `label` where there are labels.
        num_folds: folds, at least 2. Each has an inner validation part, about 1/8 of what is not test.
        seed: of the shuffles.
        official: the split of each image as published ("train", "validation" or "test"), if the corpus comes split.
            Images of the training part that share a group with the test part are left out of it.
        by_content: take the images in the order of their SHA-256, so that the names of images and groups, where they
            are hashes with a salt, make no difference.

    Returns:
        What splits.json holds: version, seed, num_folds, `images` (file name -> SHA-256), `folds` (train, validation
        and test, lists of file names), and `official` (likewise, with `left_out`; or `None`).

    Raises:
        SplitError: too few groups, or two images of one name.
    """
    if num_folds < 2:
        raise SplitError(f"num_folds must be at least 2, got {num_folds}")
    table = dataset.select_columns([name for name in dataset.column_names if name != "image"]).to_pandas()
    table["official"] = list(official) if official is not None else None
    if table["file_name"].duplicated().any():
        raise SplitError(
            f"two images have the file_name {table['file_name'][table['file_name'].duplicated()].iloc[0]!r}"
        )
    # Images of the same bytes are of one group and one label.
    order = ["sha256", "official", "file_name"] if by_content else "file_name"
    table = table.sort_values(order, ignore_index=True)
    if "label" not in table:
        table["label"] = 0
    names, groups, labels = (table[name].to_numpy() for name in ("file_name", "group", "label"))
    if by_content:
        groups = pd.factorize(groups)[0]

    def named(positions: np.ndarray) -> list[str]:
        return names[np.sort(positions)].tolist()

    def divided(rest: np.ndarray, test: np.ndarray) -> dict[str, list[str]]:
        # A class of few patients still has one for validation.
        fewest = min(len(np.unique(groups[rest][labels[rest] == label])) for label in np.unique(labels[rest]))
        num_parts = max(2, min(VALIDATION_FOLDS, fewest))
        validation = rest[grouped_parts(labels[rest], groups[rest], num_parts, seed)[0]]
        return {"train": named(np.setdiff1d(rest, validation)), "validation": named(validation), "test": named(test)}

    everything = np.arange(len(table))
    folds = [divided(np.setdiff1d(everything, test), test) for test in grouped_parts(labels, groups, num_folds, seed)]
    own = None
    if official is not None and "test" in official:
        in_test = (table["official"] == "test").to_numpy()
        shared = ~in_test & np.isin(groups, groups[in_test])
        own = divided(everything[~in_test & ~shared], everything[in_test])
        own["left_out"] = named(everything[shared])
    return {
        "version": VERSION,
        "seed": seed,
        "num_folds": num_folds,
        "images": dict(zip(names.tolist(), table["sha256"].tolist(), strict=True)),
        "folds": folds,
        "official": own,
    }


def load_split(
    splits_file: str | Path, data: datasets.Dataset | datasets.DatasetDict, fold: str
) -> dict[str, datasets.Dataset]:
    """The parts of a fold, after checking that the data is the data of the splits, and that nothing leaks.

    Args:
        splits_file: splits.json.
        data: the prepared corpus, all its splits.
        fold: "0", "1", ... or "official".

    Returns:
        `train`, `validation` and `test`.

    Raises:
        SplitError: no such file or fold; the data changed since; a group or picture is in two parts. Names the files.
    """
    splits = _read(Path(splits_file))
    if fold == "official":
        parts = splits["official"]
        if parts is None:
            raise SplitError(
                f"{splits_file}: the corpus has no official split; allowed are folds 0 to {splits['num_folds'] - 1}"
            )
    elif str(fold).isdecimal() and int(fold) < splits["num_folds"]:
        parts = splits["folds"][int(fold)]
    else:
        raise SplitError(
            f"fold must be 0 to {splits['num_folds'] - 1}{' or official' if splits['official'] else ''}, got {fold!r}"
        )
    if isinstance(data, datasets.DatasetDict):
        data = datasets.concatenate_datasets(list(data.values()))
    missing = {"file_name", "group", "sha256"} - set(data.column_names)
    if missing:
        raise SplitError(f"the data has no column {', '.join(sorted(missing))}: prepare it with prepare_corpus.py")
    stored = [image_sha256(image) for image in data.cast_column("image", datasets.Image(decode=False))["image"]]
    position = {name: index for index, name in enumerate(data["file_name"])}
    changed = [
        name for name, digest in splits["images"].items() if name not in position or stored[position[name]] != digest
    ]
    added = sorted(set(position) - set(splits["images"]))
    if changed or added:
        raise SplitError(
            f"the data is not what {splits_file} was made for: {len(changed)} image(s) changed or are missing, "
            f"{len(added)} were added ({', '.join([*changed, *added][:5])}). Prepare the corpus anew"
        )
    chosen = {part: data.select([position[name] for name in parts[part]]) for part in PARTS}
    check_overlap(chosen["train"], chosen["test"])
    check_overlap(chosen["validation"], chosen["test"])
    check_overlap(chosen["train"], chosen["validation"])
    return chosen


def load_prepared(
    corpus: str, splits_file: str | None, fold: str
) -> tuple[dict[str, datasets.Dataset], list[str] | None]:
    """The parts of a fold of a corpus that prepare_corpus.py wrote.

    Args:
        corpus: its output folder.
        splits_file: by default splits.json in that folder.
        fold: "0", "1", ... or "official".

    Returns:
        (`{"train": ..., "validation": ..., "test": ...}`, class names or `None`).

    Raises:
        UsageError: the folder is not a prepared corpus.
        SplitError: the data changed since the split was made, or parts overlap.
    """
    folder = Path(corpus).expanduser()
    file = Path(splits_file) if splits_file else folder / "splits.json"
    if not folder.is_dir() or not file.is_file():
        raise UsageError(
            f"corpus {corpus!r} must be the output folder of prepare_corpus.py, with its splits.json: run "
            "`python recipes/prepare_corpus.py --corpus NAME --data_dir DOWNLOAD --output_dir FOLDER` first"
        )
    stored = datasets.load_dataset("parquet", data_files=parquet_files(folder))
    stored = stored.cast_column("image", datasets.Image(decode=False))
    parts = load_split(file, stored, fold)
    label = parts["train"].features.get("label")
    return parts, list(label.names) if isinstance(label, datasets.ClassLabel) else None


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


_known: dict[str, Fingerprint] = {}  # by SHA-256: the parts of several folds are the same files


def _fingerprints(dataset: datasets.Dataset) -> list[Fingerprint]:
    found = []
    for row in dataset.select_columns(["image", "file_name"]).cast_column("image", datasets.Image(decode=False)):
        data = _bytes(row["image"])
        digest = hashlib.sha256(data).hexdigest()
        if digest not in _known:
            grey = decode_image(data, name=row["file_name"], num_channels=1, white_level=None)[..., 0]
            _known[digest] = fingerprint(data, grey)
        found.append(_known[digest])
    return found


def _bytes(image: dict[str, Any]) -> bytes:
    return image["bytes"] if image.get("bytes") is not None else Path(image["path"]).read_bytes()


def fingerprint_of(names: Sequence[str]) -> str:
    """SHA-256 of a list of names or digests, in its order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def image_sha256(image: dict[str, Any]) -> str:
    """Of the bytes of an undecoded `datasets.Image`."""
    return hashlib.sha256(_bytes(image)).hexdigest()


def image_digests(dataset: datasets.Dataset) -> list[str]:
    """SHA-256 of every image, in the order of the data set. Several processes share the work.

    Args:
        dataset: column `image`, undecoded.
    """
    state, images = PartialState(), dataset.select_columns("image")
    share = range(state.process_index, len(images), state.num_processes)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(zip(share, pool.map(lambda index: image_sha256(images[index]["image"]), share), strict=True))
    return [digest for _, digest in sorted(gather_object(found))]


def _read(file: Path) -> dict[str, Any]:
    try:
        splits = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SplitError(f"splits_file {file}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise SplitError(f"splits_file {file} is not valid JSON: {error}") from error
    if not isinstance(splits, dict) or splits.get("version") != VERSION:
        raise SplitError(f"splits_file {file} is not a splits.json of version {VERSION}")
    return splits
