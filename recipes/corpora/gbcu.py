"""GBCU: gallbladder ultrasound images, normal, benign or malignant (Basu et al., CVPR 2022; on request only).

Layout: `imgs/im00001.jpg`, and `train.txt` and `test.txt` with a line `im00001.jpg,LABEL` an image (0 normal, 1 benign,
2 malignant), and where they were given out too `bbox_annot.json` and `roi_pred.json`, keyed by file name. Which patient
an image shows is not given.
"""

import json
import logging
from pathlib import Path

from corpora.record import CorpusError, ImageRecord, existing_folder, list_images, read_text

logger = logging.getLogger(__name__)

CLASS_NAMES = ("normal", "benign", "malignant")
_SPLITS = ("train", "test")


def find_root(data_dir: Path) -> Path | None:
    """`data_dir` if it holds `imgs`, `train.txt` and `test.txt`, else `None`."""
    listed = all((data_dir / f"{split}.txt").is_file() for split in _SPLITS)
    return data_dir if listed and (data_dir / "imgs").is_dir() else None


def find_images(data_dir: str | Path, *, bad_images: str = "error") -> list[ImageRecord]:
    """The images that the two lists name, in the order of the lists.

    Raises:
        CorpusError: another layout, a line that is not `FILE,LABEL`, or (unless `bad_images` is "skip") a listed file
            that is missing.
    """
    root = find_root(existing_folder(data_dir))
    if root is None:
        raise CorpusError(f"'{data_dir}' is not a GBCU download: expected imgs/, train.txt and test.txt.")
    present = {path.relative_to(root).as_posix() for path in list_images(root / "imgs", bad_images=bad_images)}
    records, missing = [], []
    boxes = {name: _read_boxes(root / f"{name}.json") for name in ("bbox_annot", "roi_pred")}
    for split in _SPLITS:
        for number, line in enumerate(read_text(root / f"{split}.txt").splitlines(), start=1):
            if not line.strip():
                continue
            name, _, label = (part.strip() for part in line.partition(","))
            if label not in ("0", "1", "2"):
                raise CorpusError(f"'{split}.txt', line {number}: expected FILE,LABEL, LABEL 0, 1 or 2; got {line!r}.")
            file_name = f"imgs/{name}"
            if file_name not in present:
                missing.append(file_name)
                continue
            known = {key: entries[name] for key, entries in boxes.items() if name in entries}
            annotation = json.dumps(known) if known else None
            label = CLASS_NAMES[int(label)]
            records.append(ImageRecord(root / file_name, file_name, label, split=split, annotation=annotation))
    if missing:
        message = f"{len(missing)} image(s) listed in train.txt and test.txt are missing: {', '.join(missing[:10])}"
        if bad_images != "skip":
            raise CorpusError(f"{message}. Complete the download, or pass --bad_images skip to leave them out.")
        logger.warning("%s. Left out.", message)
    unlisted = present - {record.file_name for record in records}
    if unlisted:
        logger.warning("%d image(s) in imgs/ are in neither train.txt nor test.txt and are left out.", len(unlisted))
    if not records:
        raise CorpusError(f"train.txt and test.txt in '{root}' name no image.")
    return records


def _read_boxes(file: Path) -> dict:
    """Boxes by file name; none if the file is not there."""
    if not file.exists():
        return {}
    try:
        entries = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise CorpusError(f"'{file}' is not valid JSON: {error}.") from error
    if not isinstance(entries, dict):
        raise CorpusError(f"'{file}' must hold an object keyed by file name.")
    return entries
