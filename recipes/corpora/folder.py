"""Any folder of images.

A corpus module has `CLASS_NAMES` (label 0 first), `find_root(data_dir)` and `find_images(data_dir, bad_images=...)`.
"""

from pathlib import Path

from corpora.record import IMAGE_SUFFIXES, CorpusError, ImageRecord, existing_folder, list_images

UNLABELLED = ("unlabelled", "unlabeled")  # folders of these names are no class
SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "validation", "validation": "validation"}


def find_root(data_dir: Path) -> Path | None:
    """The folder itself: any tree will do."""
    return data_dir


def find_images(
    data_dir: str | Path, *, bad_images: str = "error", dicom: bool = False, some_labels: bool = False
) -> list[ImageRecord]:
    """Every image of a folder tree, in the order of the file name.

    If all images lie below top-level folders called train, test, val or validation (in any case), these are the
    splits. Below that, if every image lies in a folder, the first-level folders are the classes; else there are no
    labels, or with `some_labels` those that lie beside the folders have none. Nor have the images of a folder called
    "unlabelled".

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
    labelled = some_labels or all(len(part) > depth + 1 for part in parts)

    def label(part: tuple[str, ...]) -> str | None:
        known = labelled and len(part) > depth + 1 and part[depth].lower() not in UNLABELLED
        return part[depth] if known else None

    return [
        ImageRecord(path, "/".join(part), label=label(part), split=split)
        for path, part, split in zip(paths, parts, splits, strict=True)
    ]
