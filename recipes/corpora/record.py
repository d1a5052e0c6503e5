"""A record is one image of a download. What is never an image folder, and the walk through those that are."""

import codecs
import logging
import os
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from corpora.spool import Spooled

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
# What systems, network drives and editors leave among images, in lower case. Hidden names are passed over as well.
IGNORED = (
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "dicomdir"),
    *("__macosx", "$recycle.bin", "recycler", "system volume information", "lost+found", "__pycache__"),
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
)


class BadImageError(ValueError):
    """An image file cannot be used: unreadable, truncated, empty, its white unknown, or it would lose grey depth."""


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
        data: the bytes of the file, or where they are kept, if it comes out of a Parquet or NumPy file; then `path` is
            a name only.
        white_level: the stored grey value of white, where a Parquet file says it or the user does for all its images.
        window: centre and width of the grey window of a DICOM file, where its own do not suit the corpus.
    """

    path: Path
    file_name: str
    label: str | None = None
    group: str | None = None
    split: str | None = None
    masks: tuple[Path, ...] = ()
    annotation: str | None = None
    data: bytes | Spooled | None = None
    white_level: float | None = None
    window: tuple[float, float] | None = None


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
        dicoms = [] if dicom else list(filter(is_dicom, others))
        if dicoms and (bad_images != "skip" or not images):
            raise CorpusError(_how_to_prepare(root, dicoms, images))
        if bad_images != "skip":
            raise CorpusError(f"{message}. Move them away, or pass --bad_images skip to leave them out.")
        logger.warning("%s. Left out.", message)
    if unnamed:
        message = f"{len(unnamed)} image(s) below '{root}' have a name that is not UTF-8: {_listed(unnamed)}"
        if bad_images != "skip":
            raise CorpusError(f"{message}. Rename them, or pass --bad_images skip to leave them out.")
        logger.warning("%s. Left out.", message)
    return sorted(images, key=lambda path: path.relative_to(root).as_posix())


def _how_to_prepare(root: Path, dicoms: list[Path], images: list[Path]) -> str:
    folder, prepared = shlex.quote(printable(root)), shlex.quote(f"data/{printable(root.resolve().name)}")
    others = f" Or pass --bad_images skip for the other {len(images)} image(s) alone." if images else ""
    return (
        f"'{printable(root)}' holds {len(dicoms)} DICOM file(s) ({_listed(dicoms)}), which only prepare_corpus.py "
        f"reads: run `python recipes/prepare_corpus.py --corpus folder --data_dir {folder} --output_dir {prepared}`, "
        f"then take --corpus {prepared}.{others}"
    )


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


BAD_IMAGES = ("error", "skip")


def is_hub_id(corpus: str) -> bool:
    """Whether it is spelled like OWNER/NAME."""
    return re.fullmatch(r"[\w.-]*\w/\w[\w.-]*", corpus) is not None
