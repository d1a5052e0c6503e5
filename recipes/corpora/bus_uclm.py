"""BUS-UCLM: breast ultrasound images of 38 women, normal, benign or malignant (Vallez et al., Scientific Data 2025).

CC BY 4.0 since version 3 of the download (Mendeley Data, 10.17632/7fvgj4jsp7); versions 1 and 2 were CC BY-NC.

Layout of the download: `BUS-UCLM/images/ALWI_000.png`, `BUS-UCLM/masks/ALWI_000.png` (green: benign lesion, red:
malignant, black: none) and `BUS-UCLM/INFO.csv`, whose columns `Image` and `Label` are divided by semicolons; what else
it says of an image (`Doppler`, `Marks`, `Combined`) is kept as its annotation. The letters before the number are the
patient; some have images of several classes.

Known to be wrong: the masks of HESN_002 to HESN_005 have another size than their images; about 40 images are in colour
(Doppler) or show two views side by side; many have calipers.
"""

import csv
import io
import json
import logging
import re
from pathlib import Path

from corpora.record import CorpusError, ImageRecord, existing_folder, list_images, read_text

logger = logging.getLogger(__name__)

CLASS_NAMES = ("normal", "benign", "malignant")
_PATIENT = re.compile(r"(.+)_\d+\.\w+")


def find_root(data_dir: Path) -> Path | None:
    """The folder with `images`, `masks` and `INFO.csv`: `data_dir`, or `BUS-UCLM` in it; `None` if neither is."""
    inner = Path("BUS-UCLM Breast ultrasound lesion segmentation dataset", "BUS-UCLM")
    for root in (data_dir, data_dir / "BUS-UCLM", data_dir / inner):
        if (root / "images").is_dir() and (root / "masks").is_dir() and (root / "INFO.csv").is_file():
            return root
    return None


def find_images(data_dir: str | Path, *, bad_images: str = "error") -> list[ImageRecord]:
    """The images that INFO.csv lists, in its order; `group` is the patient.

    Raises:
        CorpusError: another layout, a line without a known label, or (unless `bad_images` is "skip") a listed file
            that is missing.
    """
    root = find_root(existing_folder(data_dir))
    if root is None:
        raise CorpusError(f"'{data_dir}' is not a BUS-UCLM download: expected images/, masks/ and INFO.csv.")
    present = {path.name: path for path in list_images(root / "images", bad_images=bad_images)}
    masks = {path.name: path for path in list_images(root / "masks", bad_images=bad_images)}
    records, missing = {}, []
    text = read_text(root / "INFO.csv")
    rows = csv.DictReader(io.StringIO(text), delimiter=";" if ";" in text.partition("\n")[0] else ",")
    columns = [name.strip() for name in rows.fieldnames or []]
    if not {"Image", "Label"} <= set(columns):
        raise CorpusError(f"'INFO.csv' must have the columns Image and Label, found {', '.join(columns) or 'none'}.")
    for row in rows:
        values = {(key or "").strip(): value.strip() for key, value in row.items() if isinstance(value, str)}
        name, label = values.pop("Image", ""), values.pop("Label", "").lower()
        if label not in CLASS_NAMES or name in records:
            found = f"'{name}' a second time" if name in records else f"{label!r} for '{name}'"
            raise CorpusError(
                f"'INFO.csv', line {rows.line_num}: expected an image and its label ({', '.join(CLASS_NAMES)}), "
                f"got {found}."
            )
        if name not in present:
            missing.append(name)
            continue
        patient = _PATIENT.fullmatch(name)
        records[name] = ImageRecord(
            *(present[name], f"images/{name}", label, patient[1] if patient else None),
            masks=(masks[name],) if name in masks else (),
            annotation=json.dumps(values) if values else None,
        )
    if missing:
        message = f"{len(missing)} image(s) listed in INFO.csv are missing: {', '.join(missing[:10])}"
        if bad_images != "skip":
            raise CorpusError(f"{message}. Complete the download, or pass --bad_images skip to leave them out.")
        logger.warning("%s. Left out.", message)
    unlisted = sorted(set(present) - set(records))
    if unlisted:
        logger.warning(
            "%d image(s) in images/ are not in INFO.csv and are left out, such as '%s'.", len(unlisted), unlisted[0]
        )
    if not records:
        raise CorpusError(f"INFO.csv in '{root}' names no image.")
    return list(records.values())
