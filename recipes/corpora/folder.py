"""Any folder of images, and what the modules of the known corpora share: the record of an image, the walk.

A corpus module has `CLASS_NAMES` (label 0 first), `find_root(data_dir)` and `find_images(data_dir, bad_images=...)`.
"""

import csv
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
IGNORED_FILES = ("thumbs.db", "desktop.ini", "dicomdir")
IGNORED_FOLDERS = ("__MACOSX",)
SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "validation", "validation": "validation"}


class BadImageError(ValueError):
    """An image file cannot be used: unreadable, truncated, empty, or of a kind that would lose grey depth."""


class CorpusError(ValueError):
    """A corpus is missing, or its folder is not laid out as it must be."""


@dataclass(frozen=True)
class ImageRecord:
    """One image file of a corpus.

    Attributes:
        path: where the file is.
        file_name: its path relative to the corpus's root, with `/` on every platform.
        label: class name, `None` if unknown.
        group: patient, `None` if unknown. Images of one group must not be on both sides of a split.
        split: "train", "test" or "validation" where the corpus comes split, else `None`.
        masks: files of lesion masks, where the corpus has them.
        annotation: what else the corpus tells of the image, as JSON, or `None`.
    """

    path: Path
    file_name: str
    label: str | None = None
    group: str | None = None
    split: str | None = None
    masks: tuple[Path, ...] = ()
    annotation: str | None = None


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its extension, or by the mark after its preamble (PS3.10, 7.1).

    Many are named after their UID, `1.2.840.10008.77`, so that an unknown extension tells nothing.
    """
    if path.suffix.lower() in (*DICOM_SUFFIXES, *IMAGE_SUFFIXES):
        return path.suffix.lower() in DICOM_SUFFIXES
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def list_images(
    root: Path,
    *,
    bad_images: str = "error",
    exclude: Callable[[str], bool] = lambda name: False,
    dicom: bool = False,
) -> list[Path]:
    """Every image below `root`, recursively, in the order of the relative path.

    Hidden files and folders, `Thumbs.db`, `desktop.ini`, `DICOMDIR` and `__MACOSX` are passed over.

    Args:
        root: an existing folder.
        bad_images: "error", or "skip" to leave out files without an image's extension (with a warning).
        exclude: told a file's name, says whether the file is known not to be an image of the corpus.
        dicom: take DICOM files too. Only prepare_corpus.py can read them.

    Raises:
        CorpusError: a file has no image extension and `bad_images` is "error".
    """
    images, others = [], []
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in IGNORED_FOLDERS]
        for name in names:
            if name.startswith(".") or name.lower() in IGNORED_FILES or exclude(name):
                continue
            path = Path(folder, name)
            known = name.lower().endswith(IMAGE_SUFFIXES) or (dicom and is_dicom(path))
            (images if known else others).append(path)
    if others:
        listed = ", ".join(f"'{path}'" for path in sorted(others)[:3]) + (", ..." if len(others) > 3 else "")
        message = f"{len(others)} file(s) below '{root}' are not images ({', '.join(IMAGE_SUFFIXES)}): {listed}"
        if not dicom and any(map(is_dicom, others)):
            message += " (DICOM files are read by `prepare_corpus.py --corpus folder`)"
        if bad_images != "skip":
            raise CorpusError(f"{message}. Move them away, or pass --bad_images skip to leave them out.")
        logger.warning("%s. Left out.", message)
    return sorted(images, key=lambda path: path.relative_to(root).as_posix())


def _raise(error: OSError) -> None:
    raise CorpusError(f"The folder '{error.filename}' cannot be read: {error.strerror}.") from error


def existing_folder(data_dir: str | Path) -> Path:
    """`data_dir` as a path, or a `CorpusError` if it is not a folder."""
    path = Path(data_dir).expanduser()
    if not path.is_dir():
        raise CorpusError(f"The folder '{path}' does not exist{' (it is a file)' if path.exists() else ''}.")
    return path


def find_root(data_dir: Path) -> Path | None:
    """The folder itself: any tree will do."""
    return data_dir


def find_images(data_dir: str | Path, *, bad_images: str = "error", dicom: bool = False) -> list[ImageRecord]:
    """Every image of a folder tree, in the order of the file name.

    If all images lie below top-level folders called train, test, val or validation (in any case), these are the
    splits. Below that, if every image lies in a folder, the first-level folders are the classes; else there are no
    labels.

    Raises:
        CorpusError: no such folder, no image in it, or (unless `bad_images` is "skip") a file that is not an image.
    """
    root = existing_folder(data_dir)
    paths = list_images(root, bad_images=bad_images, dicom=dicom)
    if not paths:
        raise CorpusError(f"The folder '{root}' holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    parts = [path.relative_to(root).parts for path in paths]
    splits: list[str | None] = [SPLIT_FOLDERS.get(part[0].lower()) if len(part) > 1 else None for part in parts]
    if None in splits:
        splits = [None] * len(paths)
        depth = 0
    else:
        depth = 1
    labelled = all(len(part) > depth + 1 for part in parts)
    return [
        ImageRecord(path, "/".join(part), label=part[depth] if labelled else None, split=split)
        for path, part, split in zip(paths, parts, splits, strict=True)
    ]


def read_table(table: str | Path, data_dir: str | Path) -> list[ImageRecord]:
    """The images that a CSV or TSV file lists.

    Args:
        table: with a header and the columns `file` (path below `data_dir`), and where known `label`, `patient` and
            `split` (train, validation or test). An empty patient is unknown.
        data_dir: the folder of the images.

    Raises:
        CorpusError: a column or a file is missing, or a value is not allowed; names the line.
    """
    root, table = existing_folder(data_dir), Path(table)
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t" if table.suffix.lower() == ".tsv" else ","))
    except OSError as error:
        raise CorpusError(f"table '{table}': {error.strerror}.") from error
    if not rows or "file" not in rows[0]:
        raise CorpusError(f"table '{table}' must have a header with the column file, and a line an image.")
    records = []
    for number, row in enumerate(rows, start=2):
        name, label, patient, split = (row.get(key) or None for key in ("file", "label", "patient", "split"))
        if name is None or not (root / name).is_file():
            raise CorpusError(f"table '{table}', line {number}: there is no file {name!r} in '{root}'.")
        if split is not None and split not in SPLIT_FOLDERS.values():
            allowed = ", ".join(dict.fromkeys(SPLIT_FOLDERS.values()))
            raise CorpusError(f"table '{table}', line {number}: split must be one of {allowed}, got {split!r}.")
        if "label" in row and label is None:
            raise CorpusError(f"table '{table}', line {number}: the label is empty.")
        records.append(ImageRecord(root / name, Path(name).as_posix(), label, patient, split))
    return records
