"""Paediatric chest X-rays with and without pneumonia (Kermany et al., Cell 2018; CC BY 4.0).

Layout of the download: `chest_xray/{train,test,val}/{NORMAL,PNEUMONIA}/*.jpeg`; `val` may be called `validation`. A
file name carries a person number: `person1000_bacteria_2931.jpeg`, `IM-0115-0001.jpeg`, `NORMAL2-IM-0115-0001.jpeg` (a
second series of normal images with numbers of its own, so `IM-0115` and `NORMAL2-IM-0115` are two groups).
"""

import re
from pathlib import Path

from corpora.record import CorpusError, ImageRecord, existing_folder, list_images, subfolders

CLASS_NAMES = ("NORMAL", "PNEUMONIA")
_SPLITS = {"train": "train", "test": "test", "val": "validation", "validation": "validation"}
_PERSON = re.compile(r"^(person\d+|(?:NORMAL2-)?IM-\d+)[-_]")


def find_root(data_dir: Path) -> Path | None:
    """The folder with `train/NORMAL`: `data_dir` or `chest_xray` in it; `None` if neither is."""
    for root in (data_dir / "chest_xray", data_dir):
        train = root / "train"
        if train.is_dir() and subfolders(train) == set(CLASS_NAMES):
            return root
    return None


def find_images(data_dir: str | Path, *, bad_images: str = "error") -> list[ImageRecord]:
    """The images of a chest X-ray download; `group` is the person. Raises `CorpusError` for another layout."""
    root = find_root(existing_folder(data_dir))
    if root is None:
        raise CorpusError(f"'{data_dir}' is not a chest X-ray download: expected train/NORMAL and train/PNEUMONIA.")
    records = []
    for folder, split in _SPLITS.items():
        for label in CLASS_NAMES:
            class_folder = root / folder / label
            if not class_folder.is_dir():  # val/ and test/ are often left out
                continue
            for path in list_images(class_folder, bad_images=bad_images):
                person = _PERSON.match(path.name)
                group = person[1] if person else None
                records.append(ImageRecord(path, path.relative_to(root).as_posix(), label, group, split))
    if not any(record.split == "train" for record in records):
        raise CorpusError(f"The chest X-ray folder '{root / 'train'}' holds no image.")
    return records
