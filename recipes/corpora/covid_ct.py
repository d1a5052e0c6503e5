"""SARS-CoV-2 CT-scan slices, with and without COVID (Soares et al. 2020; CC BY-NC-SA 4.0).

Layout of the download: `COVID/Covid (1).png` and `non-COVID/Non-Covid (1).png`. Which patient a slice shows is not
given.
"""

from pathlib import Path

from corpora.folder import CorpusError, ImageRecord, existing_folder, list_images

CLASS_NAMES = ("non-COVID", "COVID")


def find_root(data_dir: Path) -> Path | None:
    """`data_dir` if its folders are the two classes, else `None`."""
    return data_dir if {path.name for path in data_dir.iterdir() if path.is_dir()} == set(CLASS_NAMES) else None


def find_images(data_dir: str | Path, *, bad_images: str = "error") -> list[ImageRecord]:
    """The slices of a SARS-CoV-2 CT download. Raises `CorpusError` for another layout."""
    root = find_root(existing_folder(data_dir))
    if root is None:
        raise CorpusError(f"'{data_dir}' is not a SARS-CoV-2 CT download: expected the folders COVID and non-COVID.")
    paths = [path for label in CLASS_NAMES for path in list_images(root / label, bad_images=bad_images)]
    if not paths:
        raise CorpusError(f"The SARS-CoV-2 CT folder '{root}' holds no image.")
    names = [path.relative_to(root).as_posix() for path in paths]
    return [ImageRecord(path, name, label=name.split("/")[0]) for path, name in zip(paths, names, strict=True)]
