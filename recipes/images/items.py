"""Every image of a download, read once, on its way into a data set."""

import logging
import multiprocessing
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tqdm.auto import tqdm

from commandline import UsageError
from corpora import CORPORA, class_names, covid_ct_md
from corpora.load import SPLIT_NAMES, open_tables, recognised_folder, unify_tables
from corpora.record import BadImageError, CorpusError, ImageRecord, existing_folder, is_dicom, list_pictures, printable
from corpora.speckle import load_speckle
from corpora.spool import Spool, Spooled
from corpora.table import NONE, read_table
from images.arguments import PrepareArguments
from images.check import bad_said, listed, white_level_of
from images.decode import decode_image, is_deep, luma
from images.dicom import NotAPictureError, read_dicom
from images.fingerprint import FLAT_STD, Fingerprint, SimilarPair, fingerprint, looks_coloured
from images.pseudonyms import pseudonym_of_file

logger = logging.getLogger("prepare_corpus")

IMAGES_PER_FILE = 5000  # of a Parquet file
AT_ONCE = 256  # images whose bytes are in memory while they are decoded


@dataclass
class Item:
    """An image on its way into the data set."""

    record: ImageRecord
    data: Spooled
    print: Fingerprint
    size: tuple[int, int]  # height, width
    flat: bool
    coloured: bool
    black: float  # share of the pixels that are black
    bright: float  # and of those that are white
    group: str | None  # patient
    window: tuple[float, float, str] | None = None  # of a DICOM file
    original: ImageRecord | None = None  # before file names and patients were replaced
    white_level: float | None = None  # of --white_level; what the image is read with from now on
    white: float = 255  # that, or what the depth of the file says
    deep: bool = False  # more than 8 bits


def read_items(args: PrepareArguments) -> tuple[list[Item], list[str], dict[str, list[tuple[str, str]]]]:
    """Every image of the download and its classes (label 0 first); of what is left out, name and reason of each file.

    These are the files that cannot be read ("unreadable"), the DICOM files that are not pictures ("no_pictures"), and
    what has no label where that is asked for ("unlabelled").
    """
    spool = Spool(Path(args.output_dir))
    if args.corpus == "speckle":
        items, class_names = _generate(args, spool)
        return items, class_names, {"unreadable": [], "no_pictures": [], "unlabelled": []}
    records, class_names = _records(args, spool)
    unlabelled = [record.file_name for record in records if record.label is None]
    if not class_names or args.unlabelled == "keep":
        unlabelled = []
    if unlabelled and args.unlabelled == "error":
        raise CorpusError(
            f"{len(unlabelled)} of {len(records)} images have no label: {', '.join(unlabelled[:3])}. The others are "
            f"{', '.join(class_names[:3])}{' ...' if len(class_names) > 3 else ''}. Pass --unlabelled keep to pretrain "
            "on them too, --unlabelled leave_out to do without them, or --label_column none if these are no classes"
        )
    if unlabelled:
        logger.warning("%d image(s) have no label and are left out, such as '%s'", len(unlabelled), unlabelled[0])
        records = [record for record in records if record.label is not None]
    unsplit = [record.file_name for record in records if record.split is None]
    if 0 < len(unsplit) < len(records):
        raise CorpusError(
            f"{len(unsplit)} of {len(records)} images are in no official split, the others are: "
            f"{', '.join(unsplit[:3])}. Give the split of all images, or of none"
        )

    items, problems, no_pictures = [], [], []
    with _workers(args.num_workers) as pool, tqdm(total=len(records), desc="reading", unit=" files") as bar:
        for start in range(0, len(records), AT_ONCE):
            part = records[start : start + AT_ONCE]
            data = [record.data.read() if isinstance(record.data, Spooled) else record.data for record in part]
            for found in pool.map(partial(_read, args=args), part, data, chunksize=8):
                bar.update()
                if isinstance(found, tuple):
                    name, error = found
                    (no_pictures if isinstance(error, NotAPictureError) else problems).append((name, str(error)))
                else:
                    items += [replace(item, data=spool.add(item.data)) for item in found]
    if problems and args.bad_images != "skip":
        raise BadImageError(bad_said([name for name, _ in problems], problems[0][1]))
    if not items:
        raise BadImageError(f"no image can be read. The first: {[*problems, *no_pictures][0][1]}")
    if problems:
        names = listed([name for name, _ in problems])
        logger.warning(
            "%d file(s) cannot be used and are left out: %s. The first: %s", len(problems), names, problems[0][1]
        )
    if no_pictures:
        logger.warning("%d DICOM file(s) are left out. The first: %s", len(no_pictures), no_pictures[0][1])
    left_out = {"unreadable": problems, "no_pictures": no_pictures}
    return (
        items,
        class_names,
        left_out | {"unlabelled": [(name, f"Image '{name}' has no label") for name in unlabelled]},
    )


def _workers(num_workers: int) -> Executor:
    if num_workers:
        # spawned: a fork of a process with threads may hang
        return ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"))
    return ThreadPoolExecutor(os.cpu_count() or 1)


def _read(record: ImageRecord, data: bytes | None, args: PrepareArguments) -> list[Item] | tuple[str, BadImageError]:
    """The images of a file, their `data` the bytes themselves; or its name and what is wrong with it."""
    try:
        return list(_items_of(record, data, args))
    except BadImageError as error:
        return record.file_name, error


def find_unlisted(
    args: PrepareArguments, items: Iterable[Item], left_out: Iterable[tuple[str, str]]
) -> dict[str, list[tuple[str, str]]]:
    """Name and reason of each picture in the folder that `--table` ("unlisted") or `--slices` ("not_infected") leaves
    out; warns of them.

    Args:
        args: none are looked for without these options.
        items, left_out: what they take, as `read_items` gives it.
    """
    found = {"unlisted": [], "not_infected": []}
    if args.table is not None:
        root = Path(os.path.abspath(existing_folder(args.data_dir)))  # as `read_table` has it
        kind, source, here, why = "unlisted", f"table '{printable(args.table)}'", "not in it", "not in the table"
    elif args.slices != "all":
        root = covid_ct_md.find_root(existing_folder(args.data_dir))
        kind, source, here, why = "not_infected", "slices infected", *["not marked as infected"] * 2
    else:
        return found
    listed = {item.record.path for item in items} | {root / name for name, _ in left_out}
    names = [path.relative_to(root).as_posix() for path in list_pictures(root) if path not in listed]
    if names:
        logger.warning(
            "%s: %d image(s) below '%s' are %s and are left out, such as '%s'",
            *(source, len(names), printable(args.data_dir), here, names[0]),
        )
    return found | {kind: [(name, f"Image '{name}' is {why}") for name in names]}


def _records(args: PrepareArguments, spool: Spool) -> tuple[list[ImageRecord], list[str]]:
    """Every image that the corpus lists, and the classes (label 0 first; none without labels)."""
    columns = {"label_column": args.label_column, "group_column": args.group_column}
    if args.table is not None:
        records = read_table(args.table, args.data_dir, bad_images=args.bad_images, **columns)
        return records, sorted({record.label for record in records if record.label is not None})
    tables = None
    if args.corpus not in CORPORA:
        tables = open_tables(args.corpus)
    elif args.corpus == "folder":
        tables = open_tables(existing_folder(args.data_dir))
    if tables is not None:
        return _rows(tables, args, spool)
    if args.corpus == "folder":
        name, records = _of_folder(args)
    else:
        name, own = args.corpus, {"slices": args.slices} if args.corpus == "covid_ct_md" else {}
        records = CORPORA[name].find_images(args.data_dir, bad_images=args.bad_images, **own)
    for field_name, option_name in (("label", "label_column"), ("group", "group_column")):
        if columns[option_name] not in (None, NONE):
            raise UsageError(f"{option_name} is for tables, got corpus {args.corpus} without a table")
        if columns[option_name] == NONE:
            records = [replace(record, **{field_name: None}) for record in records]
    labels = sorted({record.label for record in records if record.label is not None})
    return records, class_names(name, args.data_dir, labels) if labels else []


def _of_folder(args: PrepareArguments) -> tuple[str, list[ImageRecord]]:
    """The corpus that a folder is read as, and its images: a known one if that has a place for every picture in it."""
    name = recognised_folder(args.data_dir)
    if name != "folder":
        is_mask = getattr(CORPORA[name], "is_mask", lambda name: False)
        pictures = [path for path in list_pictures(existing_folder(args.data_dir)) if not is_mask(path.name)]
        # a known corpus refuses DICOM files, or has no others
        left_out = [] if getattr(CORPORA[name], "DICOM", False) else list(filter(is_dicom, pictures))
        if not left_out:
            records = CORPORA[name].find_images(args.data_dir, bad_images=args.bad_images)
            left_out = sorted(set(pictures) - {path for record in records for path in (record.path, *record.masks)})
        if not left_out:
            return name, records
        logger.warning(
            "'%s' is read as a folder of images after all: corpus %s has no place for %d of its %d files, the first: "
            "'%s'. Pass --corpus %s to leave them out.",
            *(args.data_dir, name, len(left_out), len(pictures), printable(left_out[0]), name),
        )
    some = args.label_column != NONE
    return "folder", CORPORA["folder"].find_images(
        args.data_dir, bad_images=args.bad_images, dicom=True, some_labels=some
    )


def _rows(
    tables: dict[str, datasets.Dataset], args: PrepareArguments, spool: Spool
) -> tuple[list[ImageRecord], list[str]]:
    """The images of Parquet files or of a data set on the Hub; several splits are the official ones."""
    source = args.data_dir or args.corpus
    strange = [split for split in tables if split.lower() not in SPLIT_NAMES]
    if strange:
        raise CorpusError(f"'{source}' has the split {strange[0]!r}; allowed are {', '.join(SPLIT_NAMES)}.")
    named = {SPLIT_NAMES[split.lower()]: table for split, table in tables.items()}
    if len(named) < len(tables):
        raise CorpusError(f"'{source}' has two splits of one kind, among {', '.join(tables)}: keep one.")
    tables = named
    stored = next(iter(tables.values())).column_names
    lost = [name for name in ("masks", "annotation", "dicom_window") if name in stored]
    if lost:
        logger.warning("'%s': column(s) not taken over: %s", source, ", ".join(lost))
    columns = {name: getattr(args, name) for name in ("image_column", "label_column", "group_column")}
    parts = unify_tables(tables, source, splits=list(tables), some_labels=True, **columns)
    # Names that we gave to images of unknown patients in an earlier data set are not patients.
    ours = args.group_column is None and {"file_name", "group", "sha256"} <= set(stored)
    features = next(iter(parts.values())).features
    classes = features["label"].names if "label" in features else []
    records = []
    for split, part in parts.items():
        for row in part:
            label = row.get("label")
            label = None if label is None or label < 0 else classes[label]  # -1: what the Hub's test parts hide
            image = row["image"] or {"bytes": None, "path": None}
            group = row.get("group")
            if ours and group is not None and re.fullmatch(r"content-\d+", group):
                group = None
            data = b"" if image["bytes"] is None and image["path"] is None else image["bytes"]
            record = ImageRecord(
                Path(row["file_name"] if data is not None else image["path"]),
                row["file_name"],
                label,
                group,
                split if len(parts) > 1 else None,
                data=None if data is None else spool.add(data),
                white_level=white_level_of(row, args.white_level),
            )
            records.append(record)
    if len({record.file_name for record in records}) < len(records):  # of several folders or splits: tell them apart
        records = [
            replace(record, file_name=f"{record.split or 'train'}/{index:06d}/{record.file_name}")
            for index, record in enumerate(records)
        ]
    return records, list(classes) if any(record.label for record in records) else []


def _items_of(record: ImageRecord, data: bytes | None, args: PrepareArguments) -> Iterator[Item]:
    if data is not None:
        white = args.white_level if record.white_level is None else record.white_level
        yield _item(record, data, record.group, white, None)
    elif is_dicom(record.path):
        window = tuple(args.window) if args.window else record.window
        for image in read_dicom(record.path, name=record.file_name, salt=args.salt, window=window):
            suffix = "" if image.frame is None else f"#{image.frame}"
            named = replace(record, file_name=record.file_name + suffix)
            patient = image.patient or pseudonym_of_file(args.salt, record.file_name)
            used = image.window
            if used is not None and record.window is not None and not args.window:
                used = (*record.window, "corpus")
            # Once some images have a white level of their own, all must say theirs.
            white = None if args.white_level is None else 255 if used is None else 65535
            yield _item(named, image.png, record.group or patient, white, used)
    else:
        try:
            data = record.path.read_bytes()
        except OSError as error:
            raise BadImageError(f"Image '{record.file_name}' cannot be read: {error.strerror}.") from error
        yield _item(record, data, record.group, args.white_level, None)


def _item(record: ImageRecord, data: bytes, group, white_level, window) -> Item:
    image = decode_image(data, name=record.file_name, num_channels=3, white_level=white_level)
    grey = luma(image)[..., 0]
    deep = is_deep(data, name=record.file_name)
    return Item(
        *(replace(record, data=None), data, fingerprint(data, grey), grey.shape),
        *(bool(grey.std() < FLAT_STD), looks_coloured(image)),
        *(float((grey <= 0).mean()), float((grey >= 1).mean()), group, window),
        white_level=white_level,
        white=(65535 if deep else 255) if white_level is None else white_level,
        deep=deep,
    )


def _generate(args: PrepareArguments, spool: Spool) -> tuple[list[Item], list[str]]:
    generated = load_speckle(
        split="train",
        num_images=args.speckle_images,
        image_size=args.image_size,
        seed=args.seed,
        class_set=args.speckle_classes,
        cache_dir=None,
    ).cast_column("image", datasets.Image(decode=False))
    names = generated.features["label"].names
    items = []
    for row in tqdm(generated, desc="generating", unit=" images"):
        record = ImageRecord(Path(row["file_name"]), row["file_name"], label=names[row["label"]])
        item = _item(record, row["image"]["bytes"], None, None, None)
        items.append(replace(item, data=spool.add(item.data)))
    return items, list(names)


def warn_of_mixed_depths(items: Iterable[Item]) -> None:
    """Say that images are of several white levels: all is well until a classifier is to be fine-tuned."""
    by_white = defaultdict(list)
    for item in items:
        by_white[item.white].append(item)
    if len(by_white) < 2:
        return
    found = (
        f"{len(same)} with white {white:g}, such as '{(same[0].original or same[0].record).file_name}'"
        for white, same in sorted(by_white.items())
    )
    way = ", or make the 8-bit files 16-bit ones first (grey times 257, with which nothing is lost)"
    logger.warning(
        "images of different white levels are mixed (%s): pretrain.py takes each by its own, but finetune.py refuses "
        "them, since a classifier's image processor has one. To fine-tune, prepare a data set of each%s",
        *("; ".join(found), way if set(by_white) == {255, 65535} else ""),
    )


def tell_clipping(items: Sequence[Item]) -> None:
    """Say what the grey windows of DICOM files leave of the picture: lungs in a window for soft tissue are black."""
    windowed = [item for item in items if item.window]
    if windowed:
        black, bright = (100 * np.mean([getattr(item, name) for item in windowed]) for name in ("black", "bright"))
        centre, width, _ = windowed[0].window
        logger.info(
            "grey windows of %d DICOM image(s), the first of centre %g and width %g: %.0f %% of the pixels become "
            "black and %.0f %% white; report/samples.png shows some (--window CENTRE WIDTH sets another)",
            *(len(windowed), centre, width, black, bright),
        )


def find_conflicts(items: list[Item], pairs: list[SimilarPair]) -> set[int]:
    """Images of which a copy (the same file, or the same picture re-encoded) has another label: none can be trusted."""
    conflicts = set()
    for pair in pairs:
        labels = {items[index].record.label for index in (pair.first, pair.second)} - {None}
        if pair.is_copy and len(labels) > 1:
            conflicts |= {pair.first, pair.second}
    return conflicts


def features_of(items: Sequence[Item], class_names: list[str]) -> datasets.Features:
    """The columns of the table: those of which some image has something."""
    features = {
        "image": datasets.Image(),
        "file_name": datasets.Value("string"),
        "group": datasets.Value("string"),
        "sha256": datasets.Value("string"),
    }
    if class_names:
        features["label"] = datasets.ClassLabel(names=class_names)
    if any(item.record.masks for item in items):
        features["masks"] = datasets.List(datasets.Image())
    if any(item.record.annotation for item in items):
        features["annotation"] = datasets.Value("string")
    if any(item.window for item in items):
        features["dicom_window"] = datasets.Value("string")
    if any(item.white_level is not None for item in items):
        features["white_level"] = datasets.Value("float64")
    return datasets.Features(features)


def without_images(items: Sequence[Item], groups: Sequence[str], features: datasets.Features) -> datasets.Dataset:
    """The columns of the table that splits are made of."""
    columns = {
        "file_name": [item.record.file_name for item in items],
        "group": list(groups),
        "sha256": [item.print.sha256 for item in items],
        "label": [item.record.label for item in items],
    }
    chosen = datasets.Features({name: features[name] for name in columns if name in features})
    return datasets.Dataset.from_dict({name: columns[name] for name in chosen}, features=chosen)


def _row(item: Item, group: str) -> dict[str, Any]:
    record, name = item.record, Path(item.record.file_name)
    return {
        "image": {"bytes": item.data.read(), "path": name.name},
        "file_name": record.file_name,
        "group": group,
        "sha256": item.print.sha256,
        "label": record.label,
        "masks": [
            {
                "bytes": mask.read_bytes(),
                "path": mask.name if item.original is None else f"{name.stem}_mask_{number}{mask.suffix}",
            }
            for number, mask in enumerate(record.masks)
        ],
        "annotation": record.annotation,
        "white_level": item.white_level,
        "dicom_window": item.window and f"centre {item.window[0]:g}, width {item.window[1]:g} ({item.window[2]})",
    }


def write_parquet(
    items: Sequence[Item], groups: Sequence[str], features: datasets.Features, folder: Path, split: str
) -> None:
    """Write the files of a split; images are kept as the bytes of their files, of which few are in memory at once."""
    shards = -(-len(items) // IMAGES_PER_FILE)
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # one of all files says more
    try:
        with tqdm(total=len(items), desc=f"writing {split}", unit=" images") as bar:
            for shard, part in enumerate(np.array_split(np.arange(len(items)), shards)):
                _write_file(
                    folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet",
                    [(items[i], groups[i]) for i in part],
                    features,
                )
                bar.update(len(part))
    finally:
        if shown:
            datasets.enable_progress_bars()


def _write_file(file: Path, chosen: list[tuple[Item, str]], features: datasets.Features) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for item, group in chosen:
            row = _row(item, group)
            yield {name: row[name] for name in features}

    with tempfile.TemporaryDirectory(dir=file.parent) as cache:
        # A fingerprint of its own, or datasets would pickle all that the generator captures to make one.
        table = datasets.Dataset.from_generator(rows, features=features, cache_dir=cache, fingerprint=file.stem)
        table.to_parquet(file)
        del table
