"""Any folder of images, and what the modules of the known corpora share: the record of an image, the walk.

A corpus module has `CLASS_NAMES` (label 0 first), `find_root(data_dir)` and `find_images(data_dir, bad_images=...)`.
"""

import codecs
import csv
import io
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
# What systems, network drives and editors leave among images, in lower case. Hidden names are passed over as well.
IGNORED = (
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "dicomdir"),
    *("__macosx", "$recycle.bin", "recycler", "system volume information", "lost+found", "__pycache__"),
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
)
SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "validation", "validation": "validation"}

NONE = "none"  # as label_column or group_column: do without
# What people call the columns of a table, compared without case, blanks and punctuation.
COLUMN_NAMES = {
    "file": ("file", "filename", "filepath", "path", "image", "imagename", "imagefile", "imagepath"),
    "label": ("label", "labels", "class", "classname", "category", "diagnosis", "dx", "target"),
    "group": ("patient", "patientid", "subject", "subjectid", "person", "personid", "group", "groupid"),
    "split": ("split",),
}
# A column like this may tell the patient: not to use it would put patients on both sides of a split.
_LIKE_A_PATIENT = re.compile(
    "patient|subject|participant|person|^case|study|mrn|medicalrecord|accession|"
    "^pid$|^pat(id|no|nr|num|number|code|key)?$|^pt(id|no|nr)$"
)


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
        data: the bytes of the file, where it comes out of a Parquet file; then `path` is a name only.
        white_level: the stored grey value of white, where a Parquet file says it or the user does for all its images.
    """

    path: Path
    file_name: str
    label: str | None = None
    group: str | None = None
    split: str | None = None
    masks: tuple[Path, ...] = ()
    annotation: str | None = None
    data: bytes | None = None
    white_level: float | None = None


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is never part of a corpus: hidden, or left by a system (`IGNORED`)."""
    return name.startswith(".") or name.lower() in IGNORED


def subfolders(root: Path) -> set[str]:
    """Names of the folders in `root` that may belong to a corpus."""
    return {path.name for path in root.iterdir() if path.is_dir() and not is_ignored(path.name)}


def printable(path: str | Path) -> str:
    """A path for a message: bytes of its name that are not UTF-8 become `\\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_utf8(path: str | Path) -> bool:
    """Whether a path can be stored: names that are not UTF-8 reach Python as lone surrogates, which no table takes."""
    return not re.search("[\ud800-\udfff]", str(path))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its extension, or by the mark after its preamble (PS3.10, 7.1).

    Many are named after their UID, `1.2.840.10008.77`, so that an unknown extension tells nothing.
    """
    if path.suffix.lower() in (*DICOM_SUFFIXES, *IMAGE_SUFFIXES):
        return path.suffix.lower() in DICOM_SUFFIXES
    if not path.is_file():  # a link to nothing, a pipe
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _files(root: Path) -> Iterator[Path]:
    """Every file below `root` that may belong to a corpus; links to folders are followed, but not upwards."""
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_raise):
        folders[:] = [name for name in folders if not is_ignored(name) and not _leads_up(Path(folder, name))]
        yield from (Path(folder, name) for name in names if not is_ignored(name))


def list_pictures(root: Path) -> list[Path]:
    """The image and DICOM files with a name in UTF-8 below an existing folder, in the order of the path."""
    found = (path for path in _files(root) if path.name.lower().endswith(IMAGE_SUFFIXES) or is_dicom(path))
    return sorted(filter(is_utf8, found))


def list_images(
    root: Path,
    *,
    bad_images: str = "error",
    exclude: Callable[[str], bool] = lambda name: False,
    dicom: bool = False,
) -> list[Path]:
    """Every image below `root`, recursively, in the order of the relative path.

    What is never part of a corpus (`is_ignored`) is passed over. Links to folders are followed, but not up to a folder
    that they lie in.

    Args:
        root: an existing folder.
        bad_images: "error", or "skip" to leave out, with a warning, files without an image's extension and files whose
            name is not UTF-8.
        exclude: told a file's name, says whether the file is known not to be an image of the corpus.
        dicom: take DICOM files too. Only prepare_corpus.py can read them.

    Raises:
        CorpusError: a file has no image extension, or a name that is not UTF-8, and `bad_images` is "error".
    """
    images, others, unnamed = [], [], []
    for path in _files(root):
        if exclude(path.name):
            continue
        known = path.name.lower().endswith(IMAGE_SUFFIXES) or (dicom and is_dicom(path))
        (others if not known else images if is_utf8(path) else unnamed).append(path)
    if others:
        allowed = ", ".join(IMAGE_SUFFIXES)
        message = f"{len(others)} file(s) below '{root}' are not images ({allowed}): {_listed(others)}"
        if not dicom and any(map(is_dicom, others)):
            message += " (DICOM files are read by `prepare_corpus.py --corpus folder`)"
        if bad_images != "skip":
            raise CorpusError(f"{message}. Move them away, or pass --bad_images skip to leave them out.")
        logger.warning("%s. Left out.", message)
    if unnamed:
        message = f"{len(unnamed)} image(s) below '{root}' have a name that is not UTF-8: {_listed(unnamed)}"
        if bad_images != "skip":
            raise CorpusError(f"{message}. Rename them, or pass --bad_images skip to leave them out.")
        logger.warning("%s. Left out.", message)
    return sorted(images, key=lambda path: path.relative_to(root).as_posix())


def _leads_up(path: Path) -> bool:
    """Whether a folder is a link to one that it lies in: to follow it would give the same images without end."""
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def _listed(paths: list[Path]) -> str:
    shown = [f"'{printable(path)}'{'' if path.exists() else ' (a broken link)'}" for path in sorted(paths)[:3]]
    return ", ".join(shown) + (", ..." if len(paths) > 3 else "")


def _raise(error: OSError) -> None:
    raise CorpusError(f"The folder '{error.filename}' cannot be read: {error.strerror}.") from error


def existing_folder(data_dir: str | Path) -> Path:
    """`data_dir` as a path, or a `CorpusError` if it is not a folder."""
    path = Path(data_dir).expanduser()
    if not path.is_dir():
        raise CorpusError(f"The folder '{printable(path)}' does not exist{' (it is a file)' if path.exists() else ''}.")
    if not is_utf8(path):
        raise CorpusError(f"The name of the folder '{printable(path)}' is not UTF-8: rename it.")
    return path


def read_text(file: Path) -> str:
    """A list or table: UTF-8, with or without a byte-order mark, or UTF-16 with one, as Windows saves it.

    Raises:
        CorpusError: the file cannot be read, or has another encoding; names the line.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CorpusError(f"'{printable(file)}' cannot be read: {error.strerror}.") from error
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CorpusError(
            f"'{printable(file)}', line {line}: the byte 0x{data[error.start]:02x} is not "
            f"{encoding.removesuffix('-sig').upper()}: save the file as UTF-8."
        ) from error
    before, zero, _ = text.partition("\0")
    if zero:  # UTF-16 without its mark, or no text at all
        line = before.count("\n") + 1
        raise CorpusError(f"'{printable(file)}', line {line}: holds a zero byte: save the file as UTF-8.")
    return text


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


def choose_columns(
    columns: Iterable[str], given: Mapping[str, str | None], source: str, known: Iterable[str] = ()
) -> dict[str, str | None]:
    """Which column of a table holds what.

    Args:
        columns: their names.
        given: for each thing that is looked for (a key of `COLUMN_NAMES`) the column that was asked for, `NONE` to do
            without it, or `None` to go by the usual names.
        source: what messages call the table.
        known: columns that are of no use here, and need no word.

    Returns:
        The column of each thing that was looked for, `None` if there is none. Other columns are named in a warning.

    Raises:
        CorpusError: there is no such column; two for one thing; no group, and a column that looks like one.
    """
    columns, chosen = list(columns), {}
    for thing, asked in given.items():
        names = COLUMN_NAMES[thing] if asked is None else (_plain(asked),)
        found = [name for name in columns if name == asked] or [name for name in columns if _plain(name) in names]
        if asked == NONE:
            chosen[thing] = None
        elif len(found) > 1:
            option = "keep one" if thing in ("file", "split") else f"choose one with {thing}_column"
            raise CorpusError(f"{source} has {len(found)} columns for the {thing} ({', '.join(found)}): {option}.")
        elif asked is not None and not found:
            raise CorpusError(f"{source} has no {thing}_column {asked!r}; its columns are {', '.join(columns)}.")
        else:
            chosen[thing] = found[0] if found else None
    twice = [name for name in columns if list(chosen.values()).count(name) > 1]
    if twice:
        raise CorpusError(f"{source}: the column {twice[0]} cannot be two things at once.")
    unused = [name for name in columns if name not in chosen.values() and name not in known]
    if given.get("group") is None and chosen.get("group") is None:
        suspects = [name for name in unused if _LIKE_A_PATIENT.search(_plain(name))]
        if suspects:
            raise CorpusError(
                f"{source} has no column patient, but {', '.join(suspects)}, which may tell the patient: pass "
                f"--group_column {suspects[0]!r} to keep the images of one together, or --group_column {NONE} to do "
                "without."
            )
    if unused:
        logger.warning("%s: column(s) not used: %s", source, ", ".join(unused))
    return chosen


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def read_table(
    table: str | Path,
    data_dir: str | Path,
    *,
    label_column: str | None = None,
    group_column: str | None = None,
    bad_images: str = "error",
) -> list[ImageRecord]:
    """The images that a CSV or TSV file lists.

    Blanks around a value mean nothing. Values are divided by commas or semicolons (what the header has more of), in a
    file called `.tsv` by tabs.

    Args:
        table: with a header. The columns `file` (path below `data_dir`), and where known `label`, `patient` (empty:
            unknown) and `split` (train, validation or test) are found by these and other usual names (`COLUMN_NAMES`).
        data_dir: the folder of the images.
        label_column, group_column: columns of label and patient, where they have other names; "none" to do without.
        bad_images: "error", or "skip" to leave out images that are missing, with a warning.

    Raises:
        CorpusError: a column or a file is missing, or a value is not allowed; names the line.
    """
    root, table = Path(os.path.abspath(existing_folder(data_dir))), Path(table)  # as paths in the table may be
    source = f"table '{printable(table)}'"
    rows = _rows(read_text(table), source, "\t" if table.suffix.lower() == ".tsv" else None)
    header = next(rows, (0, []))[1]
    given = {"file": None, "label": label_column, "group": group_column, "split": None}
    columns = choose_columns(filter(None, header), given, source)
    if columns["file"] is None:
        raise CorpusError(f"{source} must have a header with the column file, and a line an image; found {header}.")
    position = {thing: header.index(name) for thing, name in columns.items() if name is not None}
    records, lines, missing = [], {}, []
    for number, row in rows:
        where = f"{source}, line {number}"
        if len(row) > len(header):
            raise CorpusError(f"{where}: {len(row)} values for {len(header)} columns (one with a comma needs quotes).")
        name, label, patient, split = (
            row[position[thing]] or None if thing in position and position[thing] < len(row) else None
            for thing in ("file", "label", "group", "split")
        )
        path = None if name is None else Path(os.path.normpath(root / name))
        if path is not None and not path.is_relative_to(root):
            raise CorpusError(f"{where}: {name!r} is not below '{root}'.")
        if path is None or not path.is_file():
            if name is not None and bad_images == "skip":
                missing.append(name)
                continue
            raise CorpusError(f"{where}: there is no file {name!r} in '{root}'.")
        if path in lines:
            raise CorpusError(f"{where}: {name!r} is listed in line {lines[path]} already.")
        lines[path] = number
        if split is not None and split.lower() not in SPLIT_FOLDERS:
            allowed = ", ".join(dict.fromkeys(SPLIT_FOLDERS.values()))
            raise CorpusError(f"{where}: split must be one of {allowed}, got {split!r}.")
        if "label" in position and label is None:
            raise CorpusError(f"{where}: the label is empty.")
        file_name = path.relative_to(root).as_posix()
        split = split and SPLIT_FOLDERS[split.lower()]
        records.append(ImageRecord(root / file_name, file_name, label, patient, split))
    if missing:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        logger.warning("%s: %d file(s) are missing and left out: %s", source, len(missing), names)
    if not records:
        raise CorpusError(f"{source} must have a header with the column file, and a line an image.")
    return records


def _rows(text: str, source: str, delimiter: str | None) -> Iterator[tuple[int, list[str]]]:
    """Line number and stripped values of each line of a table that is not blank."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = delimiter or max(",;", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        for row in reader:
            values = [value.strip() for value in row]
            if any(values):
                yield reader.line_num, values
    except csv.Error as error:
        raise CorpusError(f"{source}, line {reader.line_num}: {error}.") from error
