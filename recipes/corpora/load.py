"""Any corpus, by name, folder, Parquet folder or Hub id, as a data set of undecoded images."""

import logging
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetNotFoundError

from corpora import CORPORA, class_names, recognised, resolved
from corpora.record import (
    BAD_IMAGES,
    CorpusError,
    ImageRecord,
    existing_folder,
    is_hub_id,
    is_ignored,
    is_utf8,
    printable,
)
from corpora.speckle import load_speckle
from corpora.table import NONE, choose_columns

logger = logging.getLogger(__name__)

# What people call the splits of Parquet files and of data sets on the Hub, in lower case.
SPLIT_NAMES = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}
# What prepare_corpus.py writes beside image, label and group.
OWN_COLUMNS = ("file_name", "sha256", "masks", "annotation", "dicom_window", "white_level")


def load_corpus(
    corpus: str,
    *,
    data_dir: str | None = None,
    split: str | None = None,
    streaming: bool = False,
    bad_images: str = "error",
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    cache_dir: str | None = None,
    speckle_images: int = 2048,
    image_size: int = 96,
    seed: int = 0,
    class_set: str = "easy",
) -> datasets.Dataset | datasets.IterableDataset:
    """Load the images of a corpus, undecoded.

    Args:
        corpus: "speckle" (generated), the name of a known corpus (then `data_dir` is its download), an existing folder
            of images or of Parquet files (also as "folder" with `data_dir`), or the id OWNER/NAME of a data set on the
            Hub. A folder laid out as a known corpus is read as that corpus.
        data_dir: the download of a known corpus.
        split: which split; by default "train" where there are splits, so that a test split is never trained on.
        streaming: return an `IterableDataset`.
        bad_images: "error" or "skip", here for files among the images that are not images.
        image_column: which column of a Parquet or Hub data set holds the images, if there are several.
        label_column, group_column: which of its columns hold the label and the patient, where they have other names
            than the usual ones (`corpora.folder.COLUMN_NAMES`); "none" for any corpus: do without.
        cache_dir: where `datasets` and the generator keep their files.
        speckle_images, image_size, seed, class_set: only for "speckle": how many images, their side in pixels, the
            seed, and "easy" or "hard" classes.

    Returns:
        A data set with the columns `image` (`datasets.Image(decode=False)`, so that `decode_image` can name the file),
        `file_name` (which may come twice in Parquet or Hub data), and where known `label` (`ClassLabel`), `group` (a
        string) and `white_level` (see `white_level_of`). Labels that are strings or whole numbers become classes, in
        the order of the alphabet or the numbers, over all splits.

    Raises:
        CorpusError: there is no such corpus, split, folder or column; a column looks like a patient and is not used.
    """
    if bad_images not in BAD_IMAGES:
        raise ValueError(f"bad_images must be one of {', '.join(BAD_IMAGES)}, got {bad_images!r}.")
    if data_dir is not None and corpus not in CORPORA:
        raise CorpusError(f"data_dir is for the corpora {', '.join(CORPORA)}; got corpus={corpus!r}.")

    if corpus == "speckle":
        dataset = load_speckle(
            split=split or "train",
            num_images=speckle_images,
            image_size=image_size,
            seed=seed,
            class_set=class_set,
            cache_dir=cache_dir,
        )
        dataset = dataset.cast_column("image", datasets.Image(decode=False))
        dataset = _without(dataset, label_column, group_column, "The corpus speckle")
        return dataset.to_iterable_dataset() if streaming else dataset
    if corpus in CORPORA and data_dir is None:
        raise CorpusError(f"The corpus {corpus!r} needs data_dir, the folder of its download.")
    name = resolved(corpus, data_dir)
    if corpus not in CORPORA or corpus == "folder":
        corpus = str(existing_folder(data_dir)) if corpus == "folder" else corpus
        tables = open_tables(corpus, streaming=streaming, cache_dir=cache_dir)
        if tables is not None:
            chosen = _named_split(tables, split, corpus)
            columns = {"image_column": image_column, "label_column": label_column, "group_column": group_column}
            return unify_tables(tables, corpus, splits=[chosen], **columns)[chosen]
        name, data_dir = recognised_folder(corpus), corpus
    dataset = _load_images(name, data_dir, split, bad_images)
    dataset = _without(dataset, label_column, group_column, f"'{data_dir}'")
    return dataset.to_iterable_dataset() if streaming else dataset


def _without(dataset: datasets.Dataset, label_column: str | None, group_column: str | None, source: str):
    """A data set of files, without the columns that are not wanted."""
    for name, asked in (("label", label_column), ("group", group_column)):
        if asked not in (None, NONE):
            raise CorpusError(f"{source} has no columns: {name}_column must be left out or {NONE}, got {asked!r}.")
        if asked == NONE and name in dataset.column_names:
            dataset = dataset.remove_columns(name)
    return dataset


def recognised_folder(folder: str | Path) -> str:
    """Name of the corpus in whose layout an existing folder lies, "folder" for any other; says so in the log."""
    root = existing_folder(folder)
    name = recognised(root)
    logger.info("'%s' is read as %s.", root, "a folder of images" if name == "folder" else f"corpus {name}")
    return name


def open_tables(
    corpus: str | Path, *, streaming: bool = False, cache_dir: str | None = None
) -> dict[str, datasets.Dataset] | dict[str, datasets.IterableDataset] | None:
    """The splits of a folder of Parquet files, or of a data set on the Hub; `None` for a folder without Parquet files.

    Raises:
        CorpusError: it is neither a folder nor on the Hub.
    """
    path = Path(corpus).expanduser()
    if path.is_dir():
        data_files = parquet_files(existing_folder(path))
        if not data_files:
            return None
        return datasets.load_dataset("parquet", data_files=data_files, streaming=streaming, cache_dir=cache_dir)
    if path.exists() or not is_hub_id(str(corpus)):
        raise CorpusError(_no_such_corpus(str(corpus)))
    logger.info("Loading '%s' from the Hub.", corpus)
    try:
        return datasets.load_dataset(corpus, streaming=streaming, cache_dir=cache_dir)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise CorpusError(f"{_no_such_corpus(corpus)} The Hub says: {error}") from error


def _no_such_corpus(corpus: str) -> str:
    return (
        f"There is no corpus '{printable(corpus)}'. Allowed: speckle; {', '.join(CORPORA)} (each with data_dir); an "
        "existing folder of images or Parquet files; a data set on the Hub as OWNER/NAME."
    )


def parquet_files(folder: Path) -> dict[str, list[str]]:
    """The Parquet files below a folder, by split.

    Raises:
        CorpusError: the name of one is not UTF-8.
    """
    found: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        if any(map(is_ignored, file.relative_to(folder).parts)):
            continue
        if not is_utf8(file):
            raise CorpusError(f"The name of the file '{printable(file)}' is not UTF-8: rename it.")
        found.setdefault(_split_of(file.relative_to(folder)), []).append(str(file))
    return found


def _split_of(file: Path) -> str:
    """The split that a Parquet file belongs to, from the words of its relative path; "train" if there is none."""
    words = re.split(r"[\W\d_]+", file.as_posix().lower())
    return next((SPLIT_NAMES[word] for word in reversed(words) if word in SPLIT_NAMES), "train")


def _named_split(names: Iterable[str], split: str | None, corpus: str | Path) -> str:
    names = list(names)
    chosen = split or "train"
    if chosen not in names:
        raise CorpusError(
            f"'{corpus}' has no split {chosen!r}; it has {', '.join(names)}. Name one of them with split."
        )
    if len(names) > 1:
        logger.info("'%s' has the splits %s: using %s.", corpus, ", ".join(names), chosen)
    return chosen


def _load_images(name: str, data_dir: str | Path, split: str | None, bad_images: str) -> datasets.Dataset:
    """A data set of files: only their paths are kept, nothing is copied, unless they are parts of another file."""
    if getattr(CORPORA[name], "DICOM", False):
        raise CorpusError(
            f"'{data_dir}' holds DICOM files (corpus {name}), which only prepare_corpus.py reads: run `python "
            f"recipes/prepare_corpus.py --corpus {name} --data_dir {data_dir} --output_dir data/{name}`, then take "
            f"--corpus data/{name}."
        )
    records: list[ImageRecord] = CORPORA[name].find_images(data_dir, bad_images=bad_images)
    labels = sorted({record.label for record in records if record.label is not None})
    splits = sorted({record.split for record in records if record.split is not None})
    if splits:
        chosen = _named_split(splits, split, data_dir)
        records = [record for record in records if record.split == chosen]
    elif split not in (None, "train"):
        raise CorpusError(f"'{data_dir}' has no split {split!r}: its images are not divided into splits.")
    images = [
        str(record.path) if record.data is None else {"bytes": record.data, "path": record.file_name}
        for record in records
    ]
    columns = {"image": images, "file_name": [record.file_name for record in records]}
    features = {"image": datasets.Image(decode=False), "file_name": datasets.Value("string")}
    if labels:
        columns["label"] = [record.label for record in records]
        features["label"] = datasets.ClassLabel(names=class_names(name, data_dir, labels))
    if any(record.group is not None for record in records):
        columns["group"] = [record.group for record in records]
        features["group"] = datasets.Value("string")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def unify_tables(
    tables: dict[str, datasets.Dataset] | dict[str, datasets.IterableDataset],
    corpus: str | Path,
    *,
    splits: Iterable[str],
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    some_labels: bool = False,
) -> dict[str, datasets.Dataset] | dict[str, datasets.IterableDataset]:
    """Bring Parquet or Hub data to the columns that `load_corpus` promises.

    Args:
        tables: as from `open_tables`: all splits, since the classes are those of all.
        corpus: what messages call it.
        splits: which of them are wanted.
        image_column, label_column, group_column: as for `load_corpus`.
        some_labels: whether a label may be empty, if not all are.

    Raises:
        CorpusError: a column is missing, of a type that it cannot have, or has an empty label.
    """
    source, features = f"'{corpus}'", next(iter(tables.values())).features or {}
    image_column = _image_column(features, image_column)
    others = [name for name in features if name != image_column]
    columns = choose_columns(others, {"label": label_column, "group": group_column}, source, known=OWN_COLUMNS)
    label, group = columns["label"], columns["group"]
    streams = isinstance(next(iter(tables.values())), datasets.IterableDataset)
    classes = None if label is None else features[label]
    if label is not None and not isinstance(classes, datasets.ClassLabel):
        if streams:
            # The classes are known when all rows are read, which a stream does not do first.
            message = f"{source}: the labels of a stream must be ClassLabel, {label} is {_type_of(classes)}"
            if label_column is not None:
                raise CorpusError(f"{message}: read it whole (streaming false), or pass --label_column {NONE}.")
            logger.warning("%s. Not used.", message)
            label = None
        else:
            classes = _classes(tables, label, source)
    columns = {"image": image_column, "label": label, "group": group}
    unify = partial(_unify, columns=columns, classes=classes, some_labels=some_labels)
    return {split: unify(tables[split], split, source=source) for split in splits}


def _type_of(feature: Any) -> str:
    return str(getattr(feature, "dtype", type(feature).__name__))


def _classes(tables: dict[str, datasets.Dataset], column: str, source: str) -> datasets.ClassLabel:
    """The classes of a column of strings or whole numbers, in all splits."""
    kind = _type_of(next(iter(tables.values())).features[column])
    if kind not in ("string", "large_string", "bool") and not re.fullmatch(r"u?int\d+", kind):
        raise CorpusError(
            f"{source}: the label column {column} must hold strings, whole numbers or a ClassLabel, got {kind}: name "
            f"another one with --label_column, or pass --label_column {NONE}."
        )
    values = {value for table in tables.values() for value in table.unique(column) if _text(value) is not None}
    values = {value.strip() if isinstance(value, str) else value for value in values}
    return datasets.ClassLabel(names=[str(value) for value in sorted(values)])


def _text(value: Any) -> str | None:
    """A label or patient as text without blanks around it; `None` for what says nothing."""
    if value is None or value != value:  # NaN, as pandas leaves it
        return None
    return str(value).strip() or None


def _image_column(features: dict[str, Any], image_column: str | None) -> str:
    """The column of the images; raises `CorpusError` if there is none, or several and none is named."""
    if image_column is None:
        candidates = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        if len(candidates) != 1:
            found = f"several image columns ({', '.join(candidates)})" if candidates else "no image column"
            raise CorpusError(f"Found {found} among {', '.join(features) or 'unknown columns'}. Name it: image_column.")
        return candidates[0]
    if image_column not in features:
        raise CorpusError(f"There is no image_column {image_column!r}; the columns are {', '.join(features)}.")
    return image_column


def _unify(
    dataset: datasets.Dataset | datasets.IterableDataset,
    split: str,
    *,
    columns: dict[str, str | None],
    classes: datasets.ClassLabel | None,
    source: str,
    some_labels: bool,
) -> datasets.Dataset | datasets.IterableDataset:
    """One split of `unify_tables`, its columns known."""
    used = {name: column for name, column in columns.items() if column is not None}
    kept = [name for name in ("file_name", "sha256") if name in dataset.features and name not in used.values()]
    if dataset.features.get("white_level") == datasets.Value("float64"):  # of prepare_corpus.py
        kept.append("white_level")
    dataset = dataset.select_columns([*dict.fromkeys(used.values()), *kept])
    # Before the renaming: for that, a stream would decode the images and lose their paths.
    dataset = dataset.cast_column(columns["image"], datasets.Image(decode=False))
    renamed = {column: name for name, column in used.items() if column != name}
    dataset = dataset.rename_columns(renamed) if renamed else dataset
    string = datasets.Value("string")
    if isinstance(dataset, datasets.IterableDataset):
        if "file_name" in kept and "group" not in used:
            return dataset
        features = {**dataset.features, "file_name": string, **({"group": string} if "group" in used else {})}
        return dataset.map(partial(_complete, split=split), with_indices=True, features=datasets.Features(features))
    if "label" in used and dataset.features["label"] != classes:
        names = [_text(value) for value in dataset["label"]]
        if None in names and not (some_labels and classes.names):
            raise CorpusError(
                f"{source}, split {split}, row {names.index(None)}: the label is empty ({names.count(None)} of "
                f"{len(names)} are). Complete the column {columns['label']}, or pass --label_column {NONE}."
            )
        numbers = [None if name is None else classes.str2int(name) for name in names]
        dataset = dataset.remove_columns("label").add_column("label", numbers, feature=classes)
    if "group" in used:
        groups = [_text(value) for value in dataset["group"]]
        dataset = dataset.remove_columns("group").add_column("group", groups, feature=string)
    if "file_name" not in kept:
        paths = dataset.select_columns("image").flatten()["image.path"]  # without the bytes
        names = [_file_name(path, split, index) for index, path in enumerate(paths)]
        dataset = dataset.add_column("file_name", names, feature=string)
    return dataset


def _file_name(path: str | None, split: str, index: int) -> str:
    if not path:
        return f"{split}-{index}"
    return Path(path).name if "://" in path or Path(path).is_absolute() else path


def _complete(row: dict[str, Any], index: int, split: str) -> dict[str, Any]:
    """What a row of a stream lacks: `file_name`, and `group` as text. `index` starts anew in each shard."""
    path = row["image"] and row["image"]["path"]
    name = row["file_name"] if "file_name" in row else _file_name(path, split, index)
    return {"file_name": name, **({"group": _text(row["group"])} if "group" in row else {})}
