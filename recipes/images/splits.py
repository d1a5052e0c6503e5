"""Splits of a prepared corpus: seeded, stratified, grouped, saved with file hashes, and checked for leaks."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from commandline import UsageError
from corpora.load import parquet_files
from images.folds import grouped_parts
from images.known import Known, recall, remember
from images.overlap import SplitError, bytes_of, check_columns, check_overlap, examine
from images.randomness import HELD_OUT, keyed_generator

logger = logging.getLogger(__name__)
VERSION = 1
PARTS = ("train", "validation", "test")
OFFICIAL = "official split"
VALIDATION_FOLDS = 8  # the validation part is one in so many of what is not test, where there are as many groups
NEAR = np.log(2.5)  # how far the log odds of its share may be from that: 5 % to 26 % for one in 8


def _largest(groups: np.ndarray) -> tuple[Any, int]:
    names, counts = np.unique(groups, return_counts=True)
    return names[counts.argmax()], int(counts.max())


def _validation_part(
    labels: np.ndarray,
    groups: np.ndarray,
    seed: int,
    where: str,
    class_names: Sequence[str],
    group_names: Mapping[Any, str],
) -> np.ndarray:
    """Positions of the validation part of what is not test; a warning says where it cannot be near its share.

    Args:
        labels, groups: of what is not test.
        seed: of the shuffles.
        where: the fold, in messages, where classes and groups go by `class_names` and `group_names`.

    Raises:
        SplitError: a class has one group only, or none that training can spare.
    """
    classes = np.unique(labels)
    for label in classes:
        of_class = groups[labels == label]
        if len(np.unique(of_class)) == 1:
            raise SplitError(
                f"{where}: outside its test part, all {len(of_class)} images of class {class_names[label]} are of one "
                f"group (patient or set of near-identical images), '{group_names[of_class[0]]}', while training and "
                "validation need one each: take another num_folds, or add data"
            )
    # A class of few patients still has one for validation.
    num_parts = min(VALIDATION_FOLDS, min(len(np.unique(groups[labels == label])) for label in classes))
    totals = np.array([(labels == label).sum() for label in classes])

    def off(part: np.ndarray) -> np.ndarray:
        # By how much the log odds of a class's images to be in the part are off those that were meant.
        inside = np.array([(labels[part] == label).sum() for label in classes])
        return np.abs(np.log((inside + 1e-6) / (totals - inside + 1e-6) * (num_parts - 1)))

    for part in grouped_parts(labels, groups, num_parts, seed):
        if off(part).max() <= NEAR:
            return part
    # A group of very many images fills one part, and leaves too little for the others.
    part = _filled_part(labels, groups, num_parts, seed, where, class_names)
    worst = off(part).argmax()
    if off(part)[worst] > NEAR:
        of_class = labels == classes[worst]
        group, size = _largest(groups[of_class])
        logger.warning(
            "%s: the validation part has %d of the %d images of class %s outside the test part, and not one in %d, "
            "since group '%s' has %d of them",
            *(where, of_class[part].sum(), of_class.sum(), class_names[classes[worst]], num_parts),
            *(group_names[group], size),
        )
    return part


def _filled_part(
    labels: np.ndarray, groups: np.ndarray, num_parts: int, seed: int, where: str, class_names: Sequence[str]
) -> np.ndarray:
    """Positions of one in `num_parts` images of each class: groups are taken in random order where they still fit in.

    Of no class more than half of the groups are taken. A class of which none fits in gets its smallest group that
    leaves every class one outside the part.

    Raises:
        SplitError: there is no such group.
    """
    table = pd.crosstab(groups, labels)
    sizes = table.to_numpy()  # (groups, classes)
    room, allowed = np.ceil(sizes.sum(axis=0) / num_parts), (sizes > 0).sum(axis=0) // 2
    taken = np.zeros(len(sizes), dtype=bool)
    for group in np.random.default_rng(seed).permutation(len(sizes)):
        chosen = sizes[taken | (np.arange(len(sizes)) == group)]
        taken[group] = (chosen.sum(axis=0) <= room).all() and ((chosen > 0).sum(axis=0) <= allowed).all()
    for label, of_class in zip(table.columns, sizes.T, strict=True):
        if not of_class[taken].any():
            others = (sizes[~taken] > 0).sum(axis=0) - (sizes > 0)  # (groups, classes): outside, if a group is taken
            free = (of_class > 0) & (others > 0).all(axis=1)
            if not free.any():
                raise SplitError(
                    f"{where}: every group (patient or set of near-identical images) of class {class_names[label]} "
                    "that validation could have is the last one in training of another class: take another num_folds "
                    "or seed, or add data"
                )
            taken[np.where(free, of_class, len(labels) + 1).argmin()] = True
    return np.flatnonzero(np.isin(groups, table.index[taken]))


def make_splits(
    dataset: datasets.Dataset,
    *,
    num_folds: int,
    seed: int,
    official: Sequence[str] | None = None,
    by_content: bool = False,
    known_as: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Folds for cross-validation, and the corpus's own split.

    The result depends on the images' names, labels and groups, not on their order.

    Args:
        dataset: columns `file_name`, `sha256`, `group`, and `label` (`ClassLabel`) where there are labels. Images
            without one are in none of the three parts of a fold; those whose group is in neither validation nor test
            are `unlabelled` there, which pretraining takes beside the training part.
        num_folds: folds, at least 2. Each has an inner validation part, about 1/8 of the images of each class that are
            not test, where enough groups are small enough; a warning names the group that is not.
        seed: of the shuffles.
        official: the split of each image as published ("train", "validation" or "test"), if the corpus comes split.
            Images of the training part that share a group with the test part are left out of it.
        by_content: take the images in the order of their SHA-256, so that the names of images and groups, where they
            are hashes with a salt, make no difference.
        known_as: for messages, what the group of each image is called outside; its name in `group` if left out.

    Returns:
        What splits.json holds: version, seed, num_folds, `images` (file name -> SHA-256), `folds` (train, validation,
        test and where there are any unlabelled, lists of file names), and `official` (likewise, with `left_out`; or
        `None`).

    Raises:
        SplitError: too few groups in a class, or two images of one name.
    """
    if num_folds < 2:
        raise SplitError(f"num_folds must be at least 2, got {num_folds}")
    table = dataset.select_columns([name for name in dataset.column_names if name != "image"]).to_pandas()
    table["official"] = list(official) if official is not None else None
    if table["file_name"].duplicated().any():
        raise SplitError(
            f"two images have the file_name {table['file_name'][table['file_name'].duplicated()].iloc[0]!r}"
        )
    table["known_as"] = table["group"] if known_as is None else list(known_as)
    # Images of the same bytes are of one group and one label.
    order = ["sha256", "official", "file_name"] if by_content else "file_name"
    table = table.sort_values(order, ignore_index=True)
    class_names = dataset.features["label"].names if "label" in table else ["unlabelled"]
    if "label" not in table:
        table["label"] = 0
    images = dict(zip(table["file_name"].tolist(), table["sha256"].tolist(), strict=True))
    if by_content:
        table["group"] = pd.factorize(table["group"])[0]
    unlabelled = table["label"].isna()
    pool = table[unlabelled]
    table = table[~unlabelled].astype({"label": int}).reset_index(drop=True)
    names, groups, labels = (table[name].to_numpy() for name in ("file_name", "group", "label"))
    group_names = dict(zip(groups, table["known_as"], strict=True))

    def named(positions: np.ndarray) -> list[str]:
        return names[np.sort(positions)].tolist()

    def divided(rest: np.ndarray, test: np.ndarray, where: str) -> dict[str, list[str]]:
        validation = rest[_validation_part(labels[rest], groups[rest], seed, where, class_names, group_names)]
        parts = {"train": named(np.setdiff1d(rest, validation)), "validation": named(validation), "test": named(test)}
        if len(pool):
            apart = pool["group"].isin(groups[np.concatenate([validation, test])])
            apart |= (pool["official"] == "test") & (where == OFFICIAL)
            parts["unlabelled"] = sorted(pool["file_name"][~apart])
        return parts

    if not len(table):
        raise SplitError("no image is left to make folds of: each has a copy with another label, or no label")
    for label in np.unique(labels):
        of_class = groups[labels == label]
        count, (largest, size) = len(np.unique(of_class)), _largest(of_class)
        if count < num_folds:
            raise SplitError(
                f"class {class_names[label]} has {count} group(s) (patients or sets of near-identical images), and "
                f"{num_folds} folds need one each: lower num_folds, or add data"
            )
        if size > 1.5 * len(of_class) / num_folds:
            logger.warning(
                "group '%s' has %d of the %d images of class %s: folds cannot be of one size",
                *(group_names[largest], size, len(of_class), class_names[label]),
            )
    everything = np.arange(len(table))
    folds = [
        divided(np.setdiff1d(everything, test), test, f"fold {fold}")
        for fold, test in enumerate(grouped_parts(labels, groups, num_folds, seed))
    ]
    own = None
    if official is not None and "test" in official:
        in_test = (table["official"] == "test").to_numpy()
        shared = ~in_test & np.isin(groups, groups[in_test])
        own = divided(everything[~in_test & ~shared], everything[in_test], OFFICIAL)
        own["left_out"] = named(everything[shared])
    return {
        "version": VERSION,
        "seed": seed,
        "num_folds": num_folds,
        "images": images,
        "folds": folds,
        "official": own,
    }


def load_split(
    splits_file: str | Path,
    data: datasets.Dataset | datasets.DatasetDict,
    fold: str,
    *,
    unlabelled: bool = False,
    known: Known | None = None,
) -> dict[str, datasets.Dataset]:
    """The parts of a fold, after checking that the data is the data of the splits, and that nothing leaks.

    Args:
        splits_file: splits.json.
        data: the prepared corpus, all its splits.
        fold: "0", "1", ... or "official".
        unlabelled: whether the images without a label are wanted too.
        known: what was found in the data; left out, the images of the fold are read, hashed and compared.

    Returns:
        `train`, `validation`, `test`, and where they are wanted and there are any `unlabelled`.

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
    check_columns(data)
    # Before rows are chosen: datasets (5.2) gathers chosen ones one by one.
    table = data.select_columns(["file_name", "group", "sha256"]).to_pandas()
    stored = table["sha256"].tolist()
    if known is None:
        stored = [image_sha256(image) for image in data.cast_column("image", datasets.Image(decode=False))["image"]]
    position = {name: index for index, name in enumerate(table["file_name"])}
    changed = [
        name for name, digest in splits["images"].items() if name not in position or stored[position[name]] != digest
    ]
    added = sorted(set(position) - set(splits["images"]))
    if changed or added:
        raise SplitError(
            f"the data is not what {splits_file} was made for: {len(changed)} image(s) changed or are missing, "
            f"{len(added)} were added ({', '.join([*changed, *added][:5])}). Prepare the corpus anew"
        )
    named = (*PARTS, "unlabelled") if unlabelled and "unlabelled" in parts else PARTS
    rows = {part: [position[name] for name in parts[part]] for part in named}
    chosen = {part: data.select(rows[part]) for part in named}
    checked = chosen if known is None else {part: table.iloc[rows[part]] for part in named}
    alike = splits.get("near_identical", "join") == "join"  # else whoever prepared the corpus allowed some
    check_overlap(checked["validation"], checked["test"], known, alike=alike)
    for part in ("train", "unlabelled"):
        if part in checked:
            check_overlap(checked[part], checked["test"], known, alike=alike)
            check_overlap(checked[part], checked["validation"], known, alike=alike)
    return chosen


def load_prepared(
    corpus: str, splits_file: str | None, fold: str, *, unlabelled: bool = False, verify_data: bool = False
) -> tuple[dict[str, datasets.Dataset], list[str] | None]:
    """The parts of a fold of a corpus that prepare_corpus.py wrote.

    Its images are read, hashed, decoded and compared once on each machine, which prepare_corpus.py does, and again if
    size, times or footer of a Parquet file changed since.

    Args:
        corpus: its output folder.
        splits_file: by default splits.json in that folder.
        fold: "0", "1", ... or "official".
        unlabelled: whether its images without a label are wanted too.
        verify_data: check all images again, whatever is known of them.

    Returns:
        (`{"train": ..., "validation": ..., "test": ...}`, with `unlabelled` where wanted and known; class names or
        `None`).

    Raises:
        UsageError: the folder is not a prepared corpus.
        SplitError: the data changed since the split was made, or parts overlap.
    """
    folder = Path(corpus).expanduser()
    file = Path(splits_file) if splits_file else folder / "splits.json"
    if not folder.is_dir() or not file.is_file():
        missing = "" if folder.is_dir() else f"there is no folder {str(folder)!r}: "
        raise UsageError(
            f"{missing}corpus {corpus!r} must be the output folder of prepare_corpus.py, with its splits.json: run "
            "`python recipes/prepare_corpus.py --corpus NAME --data_dir DOWNLOAD --output_dir FOLDER` first"
        )
    stored = datasets.load_dataset("parquet", data_files=parquet_files(folder))
    stored = datasets.concatenate_datasets(list(stored.cast_column("image", datasets.Image(decode=False)).values()))
    # The others of a distributed run wait for the main process, and know what it found.
    known = None if verify_data and PartialState().is_main_process else load_known(corpus)
    if known is None:
        known = examine(stored)
        remember(_files(folder), known)
    parts = load_split(file, stored, fold, unlabelled=unlabelled, known=known)
    label = parts["train"].features.get("label")
    return parts, list(label.names) if isinstance(label, datasets.ClassLabel) else None


def load_known(corpus: str) -> Known | None:
    """What is known of a corpus of prepare_corpus.py: not `None` after `load_prepared`, unless it was changed since."""
    return recall(_files(Path(corpus).expanduser()))


def _files(folder: Path) -> list[str]:
    return [file for of_split in parquet_files(folder).values() for file in of_split]


def sha256_of_lines(lines: Sequence[str]) -> str:
    """SHA-256 of strings without line breaks (names, digests), in their order."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def image_sha256(image: dict[str, Any]) -> str:
    """Of the bytes of an undecoded `datasets.Image`."""
    return hashlib.sha256(bytes_of(image)).hexdigest()


def image_digests(dataset: datasets.Dataset) -> list[str]:
    """SHA-256 of every image, in the order of the data set. Several processes share the work.

    Args:
        dataset: column `image`, undecoded.
    """
    state, images = PartialState(), dataset.select_columns("image")
    own = range(state.process_index, len(images), state.num_processes)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(zip(own, pool.map(lambda index: image_sha256(images[index]["image"]), own), strict=True))
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


def split_held_out(
    dataset: datasets.Dataset, held_out: float, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Set a few images aside, at random but the same for the same seed. Images of one `group` stay together.

    Args:
        dataset: as from `load_corpus`, not streaming.
        held_out: a share of the images if below 1, else how many; 0 for none. With groups the number is approached from
            below, by whole groups.
        seed: chooses the images.

    Returns:
        (training part, held-out part or `None`), both in the order of `dataset`.

    Raises:
        ValueError: there are too few images or groups to fill both parts.
    """
    total = len(dataset)
    if held_out == 0:
        return dataset, None
    if not 0 < held_out < total or (held_out >= 1 and held_out != int(held_out)):
        raise ValueError(f"held_out must be a share below 1 or a whole number below {total} (images), got {held_out}.")
    count = int(held_out) if held_out >= 1 else round(held_out * total)
    if not 0 < count < total:
        raise ValueError(f"held_out={held_out} of {total} images: {count} held out, {total - count} left to train on.")

    groups: dict[Any, list[int]] = {}
    names = dataset["group"][:] if "group" in dataset.column_names else [None] * total
    for index, name in enumerate(names):
        groups.setdefault(index if name is None else f"group {name}", []).append(index)
    order = list(groups.values())
    generator = keyed_generator(HELD_OUT, seed)
    order = [order[position] for position in torch.randperm(len(order), generator=generator).tolist()]
    chosen: list[int] = []
    for members in order:
        if len(chosen) + len(members) <= count:
            chosen += members
    chosen = chosen or min(order, key=len)
    if len(chosen) == total:
        raise ValueError(f"All {total} images belong to one group: none can be held out with held_out={held_out}.")
    kept = sorted(set(range(total)) - set(chosen))
    return dataset.select(kept), dataset.select(sorted(chosen))
