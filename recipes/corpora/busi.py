"""BUSI: breast ultrasound images, normal, benign or malignant (Al-Dhabyani et al., Data in Brief 2020; CC BY 4.0).

Layout of the download: `Dataset_BUSI_with_GT/{benign,malignant,normal}/benign (1).png`, and beside each image its
lesion masks, `benign (1)_mask.png`, `benign (1)_mask_1.png`. Which patient an image shows is not given.
"""

import glob
import re
from pathlib import Path

from corpora.record import CorpusError, ImageRecord, existing_folder, list_images, subfolders

CLASS_NAMES = ("normal", "benign", "malignant")
_MASK = re.compile(r"_mask(_\d+)?\.png$")


def is_mask(name: str) -> bool:
    """Whether a file of this name is a lesion mask."""
    return _MASK.search(name) is not None


def find_root(data_dir: Path) -> Path | None:
    """The folder with the three class folders: `data_dir` or `Dataset_BUSI_with_GT` in it; `None` if neither is."""
    for root in (data_dir / "Dataset_BUSI_with_GT", data_dir):
        if root.is_dir() and subfolders(root) == set(CLASS_NAMES):
            return root
    return None


def find_images(data_dir: str | Path, *, bad_images: str = "error") -> list[ImageRecord]:
    """The images of a BUSI download, without the masks. Raises `CorpusError` for another layout."""
    root = find_root(existing_folder(data_dir))
    if root is None:
        raise CorpusError(f"'{data_dir}' is not a BUSI download: expected the folders {', '.join(CLASS_NAMES)}.")
    paths = list_images(root, bad_images=bad_images, exclude=is_mask)
    if not paths:
        raise CorpusError(f"The BUSI folder '{root}' holds no image.")
    records = []
    for path in paths:
        name = path.relative_to(root).as_posix()
        masks = (file for file in path.parent.glob(f"{glob.escape(path.stem)}_mask*.png") if is_mask(file.name))
        records.append(ImageRecord(path, name, label=name.split("/")[0], masks=tuple(sorted(masks))))
    return records
