"""CT slices with and without COVID, from either of two public corpora. A third, COVID-CT-MD, is in `covid_ct_md`.

SARS-CoV-2 CT-scan (Soares et al. 2020; CC BY-NC-SA 4.0): `COVID/Covid (1).png` and `non-COVID/Non-Covid (1).png`.

COVID-CT (Zhao et al. 2020): `CT_COVID/*` and `CT_NonCOVID/*`, in the download or in `Images-processed/`, and where they
are beside them the split lists `Data-split/{COVID,NonCOVID}/{train,val,test}CT_{COVID,NonCOVID}.txt`.

Which patient a slice shows is not given in either.
"""

import logging
from pathlib import Path

from corpora.record import CorpusError, ImageRecord, existing_folder, list_images, read_text, subfolders

logger = logging.getLogger(__name__)

CLASS_NAMES = ("non-COVID", "COVID")
_LAYOUTS = ({"COVID": "COVID", "non-COVID": "non-COVID"}, {"CT_COVID": "COVID", "CT_NonCOVID": "non-COVID"})
_LISTS = {"train": "train", "val": "validation", "test": "test"}


def find_root(data_dir: Path) -> Path | None:
    """The folder that holds the two classes, else `None`."""
    for root in (data_dir, data_dir / "Images-processed"):
        if root.is_dir():
            folders = subfolders(root)
            # Beside COVID-CT's classes lie its split lists and other folders; the other corpus is the two classes only.
            if folders == set(_LAYOUTS[0]) or folders >= set(_LAYOUTS[1]):
                return root
    return None


def find_images(data_dir: str | Path, *, bad_images: str = "error") -> list[ImageRecord]:
    """The slices of a download. Raises `CorpusError` for another layout, or a split list that names no such file."""
    data_dir = existing_folder(data_dir)
    root = find_root(data_dir)
    if root is None:
        raise CorpusError(
            f"'{data_dir}' is not a SARS-CoV-2 CT, COVID-CT or COVID-CT-MD download: expected the folders COVID and "
            "non-COVID; CT_COVID and CT_NonCOVID; or COVID-19 Cases, Cap Cases and Normal Cases."
        )
    layout = next(layout for layout in _LAYOUTS if all((root / name).is_dir() for name in layout))
    records = []
    for folder, label in sorted(layout.items(), key=lambda item: CLASS_NAMES.index(item[1])):
        paths = list_images(root / folder, bad_images=bad_images)
        splits = _split_lists(data_dir, folder, {path.name for path in paths}, bad_images)
        unlisted = [path.name for path in paths if splits and path.name not in splits]
        if unlisted:
            logger.warning("%d image(s) in %s are in no split list and are left out.", len(unlisted), folder)
        for path in paths:
            if not splits or path.name in splits:
                name = path.relative_to(root).as_posix()
                records.append(ImageRecord(path, name, label=label, split=splits.get(path.name)))
    if not records:
        raise CorpusError(f"The CT folder '{root}' holds no image.")
    return records


def _split_lists(data_dir: Path, folder: str, present: set[str], bad_images: str) -> dict[str, str]:
    """File name -> split of a class of COVID-CT; empty where there are no lists."""
    name = folder.removeprefix("CT_")
    splits = {}
    for part, split in _LISTS.items():
        for root in (data_dir, data_dir.parent):
            file = root / "Data-split" / name / f"{part}CT_{name}.txt"
            if file.is_file():
                listed = [line.strip() for line in read_text(file).splitlines() if line.strip()]
                absent = [image for image in listed if image not in present]
                if absent:
                    message = f"'{file}' names {len(absent)} file(s) that are not in {folder}: {absent[0]!r}"
                    if bad_images != "skip":
                        raise CorpusError(f"{message}. Complete the download, or pass --bad_images skip.")
                    logger.warning("%s. Left out.", message)
                splits.update(dict.fromkeys(listed, split))
                break
    return splits
