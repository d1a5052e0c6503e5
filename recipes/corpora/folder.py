"""Any folder of images, and what the modules of the known corpora share: the record of an image, the walk.

A corpus module has `CLASS_NAMES` (label 0 first), `find_root(data_dir)` and `find_images(data_dir, bad_images=...)`.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
IGNORED_FILES = ("thumbs.db", "desktop.ini")
IGNORED_FOLDERS = ("__MACOSX",)
SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "validation", "validation": "validation"}


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
    """

    path: Path
    file_name: str
    label: str | None = None
    group: str | None = None
    split: str | None = None


def list_images(
    root: Path, *, bad_images: str = "error", exclude: Callable[[str], bool] = lambda name: False
) -> list[Path]:
    """Every image below `root`, recursively, in the order of the relative path.

    Hidden files and folders, `Thumbs.db`, `desktop.ini` and `__MACOSX` are passed over.

    Args:
        root: an existing folder.
        bad_images: "error", or "skip" to leave out files without an image's extension (with a warning).
        exclude: told a file's name, says whether the file is known not to be an image of the corpus.

    Raises:
        CorpusError: a file has no image extension and `bad_images` is "error".
    """
    images, others = [], []
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in IGNORED_FOLDERS]
        for name in names:
            if name.startswith(".") or name.lower() in IGNORED_FILES or exclude(name):
                continue
            (images if name.lower().endswith(IMAGE_SUFFIXES) else others).append(Path(folder, name))
    if others:
        listed = ", ".join(f"'{path}'" for path in sorted(others)[:3]) + (", ..." if len(others) > 3 else "")
        message = f"{len(others)} file(s) below '{root}' are not images ({', '.join(IMAGE_SUFFIXES)}): {listed}"
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


def find_images(data_dir: str | Path, *, bad_images: str = "error") -> list[ImageRecord]:
    """Every image of a folder tree, in the order of the file name.

    If all images lie below top-level folders called train, test, val or validation (in any case), these are the
    splits. Below that, if every image lies in a folder, the first-level folders are the classes; else there are no
    labels.

    Raises:
        CorpusError: no such folder, no image in it, or (unless `bad_images` is "skip") a file that is not an image.
    """
    root = existing_folder(data_dir)
    paths = list_images(root, bad_images=bad_images)
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
