"""COVID-CT-MD: CT slices of 169 patients with COVID-19, 60 with another pneumonia (CAP) and 76 without either.

Afshar et al., Scientific Data 2021, figshare collection 5129081. The article is CC BY 4.0; where we looked, no licence
of the images is stated.

Layout of the download: `COVID-19 Cases/P001/*.dcm`, `Cap Cases/cap001/*.dcm` and `Normal Cases/normal001/*.dcm` (in the
sample on GitHub, `... subjects`), a folder for each patient. A slice has the label of its patient. That is what a
classifier of slices must know: most slices of an infected patient show no infection.

Which ones do is known for 54 patients with COVID-19 and 25 with CAP, if `Index.csv` and `Slice-level-labels.npy` (or
the corrected `Slice-level-labels-updated-1.npy`, then used instead) lie beside the three folders; both are on
github.com/ShahinSHH/COVID-CT-MD. It becomes the annotation of these slices, and `slices="infected"` keeps by it.

Known to be wrong: the labels are said to be in the order of the slice location, but not from which end. It is from the
head: in all 47 patients with infected upper and lower lobes the lower ones come later (`Lobe-level-labels.npy`), and in
the published sample the slices that are then marked show something. `Label Index` skips 43, so patients go by the line.
The first grey window of the files is that of soft tissue, in which lungs are black.
"""

import csv
import io
import json
import logging
import re
from pathlib import Path

import numpy as np

from corpora.record import CorpusError, ImageRecord, existing_folder, list_images, printable, read_text, subfolders

logger = logging.getLogger(__name__)

CLASS_NAMES = ("normal", "CAP", "COVID")
DICOM = True  # only prepare_corpus.py can read it
# Centre and width in Hounsfield units: the second window of the files, that of lungs. The same for all slices, so that
# a grey level means the same tissue in each.
LUNG_WINDOW = (-600.0, 1200.0)
SLICES = ("all", "infected")
_FOLDER = re.compile(r"(covid-19|cap|normal)[ _-](?:cases|subjects)")
_LABELS = re.compile(r"slice[-_]level[-_]labels.*\.npy")
_CLASS_OF = {"covid-19": "COVID", "cap": "CAP", "normal": "normal"}


def _class_folders(root: Path) -> dict[str, Path]:
    """Class -> its folder; empty unless there is one of each."""
    found = [(match[1], root / name) for name in subfolders(root) if (match := _FOLDER.fullmatch(name.lower()))]
    return {_CLASS_OF[name]: folder for name, folder in found} if len(found) == len({*dict(found)}) == 3 else {}


def find_root(data_dir: Path) -> Path | None:
    """The folder with the three class folders: `data_dir` or `COVID-CT-MD` in it; `None` if neither is."""
    for root in (data_dir, data_dir / "COVID-CT-MD"):
        if root.is_dir() and _class_folders(root):
            return root
    return None


def find_images(data_dir: str | Path, *, bad_images: str = "error", slices: str = "all") -> list[ImageRecord]:
    """The slices of a download; `group` is the patient.

    Args:
        data_dir: the download.
        bad_images: "error", or "skip" to leave out, with a warning, what is not an image, folders of patients without
            slices, and slice labels that do not fit the slices.
        slices: "all", or "infected" to keep of patients with a pneumonia only the slices that are marked as infected
            (none of patients whose slices have no labels), and of the others all.

    Raises:
        CorpusError: another layout, a slice that is not in the folder of a patient, a patient without slices, slice
            labels that do not fit, or none where "infected" needs them.
    """
    root = find_root(existing_folder(data_dir))
    if root is None:
        raise CorpusError(
            f"'{data_dir}' is not a COVID-CT-MD download: expected the folders COVID-19 Cases, Cap Cases and Normal "
            "Cases."
        )
    marks = _read_marks(root)
    if slices == "infected" and not marks:
        raise CorpusError(
            f"slices infected needs Index.csv and Slice-level-labels.npy in '{root}': get them from "
            "github.com/ShahinSHH/COVID-CT-MD."
        )
    patients = {label: _patients(folder, bad_images) for label, folder in _class_folders(root).items()}
    if marks and not any(marks.keys() & found for found in patients.values()):
        raise CorpusError(
            f"'Index.csv' names no patient that has a folder in '{root}': it has '{next(iter(marks))}', for instance."
        )
    records: list[ImageRecord] = []
    for label in CLASS_NAMES:
        for patient, paths in patients[label].items():
            infected = _infected(patient, paths, marks[patient], bad_images) if patient in marks else None
            for path in paths:
                if slices == "infected" and label != "normal" and not (infected and infected[path]):
                    continue
                annotation = None if infected is None else json.dumps({"infection": infected[path]})
                name = path.relative_to(root).as_posix()
                records.append(ImageRecord(path, name, label, patient, annotation=annotation, window=LUNG_WINDOW))
    if not records:
        raise CorpusError(f"The COVID-CT-MD folder '{root}' holds no slice.")
    return records


def _patients(folder: Path, bad_images: str) -> dict[str, list[Path]]:
    """Patient -> the slices of a class folder, in the order of the names."""
    found: dict[str, list[Path]] = {name: [] for name in sorted(subfolders(folder))}
    for path in list_images(folder, bad_images=bad_images, dicom=True):
        patient = path.relative_to(folder).parts[0]
        if patient == path.name:
            raise CorpusError(f"'{printable(path)}' is not in the folder of a patient.")
        found.setdefault(patient, []).append(path)
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        message = f"{len(empty)} patient(s) in '{folder}' have no slices: {', '.join(empty[:10])}"
        if bad_images != "skip":
            raise CorpusError(f"{message}. Complete the download, or pass --bad_images skip to do without them.")
        logger.warning("%s. Left out.", message)
    return {name: paths for name, paths in found.items() if paths}


def _read_marks(root: Path) -> dict[str, np.ndarray]:
    """Patient -> for each slice, from the head, whether it is marked as infected; empty where there are no labels."""
    labels = [path for path in root.iterdir() if _LABELS.fullmatch(path.name.lower())]
    index = root / "Index.csv"
    if not labels and not index.is_file():
        logger.info("'%s': no Index.csv and Slice-level-labels.npy, so no slice is marked as infected.", root)
        return {}
    if not labels or not index.is_file():
        raise CorpusError(
            f"'{root}': Slice-level-labels.npy and Index.csv tell something together only, but there is no "
            f"{'Index.csv' if labels else 'Slice-level-labels.npy'}: add it, or move the other away."
        )
    file = max(labels, key=lambda path: path.stem)  # the corrected ones have the longer name
    try:
        marks = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CorpusError(f"'{file}' cannot be read: {error}.") from error
    rows = csv.DictReader(io.StringIO(read_text(index)))
    patients = [(row.get("Folder/ID") or "").strip() for row in rows]
    fits = isinstance(marks, np.ndarray) and marks.ndim == 2 and len(marks) == len(patients)
    if "" in patients or not fits or not np.isin(marks, (0, 1)).all():
        raise CorpusError(
            f"'Index.csv' must name a patient (Folder/ID) for each row of '{file.name}', which holds 0 or 1 for each "
            f"of its slices; got {len(patients)} lines and an array of the shape {getattr(marks, 'shape', ())}."
        )
    return dict(zip(patients, marks.astype(bool), strict=True))


def _infected(patient: str, paths: list[Path], marks: np.ndarray, bad_images: str) -> dict[Path, bool] | None:
    """Slice -> whether it is marked as infected; `None`, with a warning, where that cannot be told and may be so."""
    import pydicom  # here: every script imports all corpora, and few need it
    from pydicom.errors import InvalidDicomError

    wrong, places = "", {}
    for path in paths:
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SliceLocation"])
            places[path] = float(header.SliceLocation)
        except (InvalidDicomError, OSError, EOFError, ValueError, TypeError, AttributeError, KeyError) as error:
            wrong = f"'{printable(path)}' does not tell its SliceLocation ({error})"
            break
    if not wrong and len(set(places.values())) < len(paths):
        wrong = "two slices have the same SliceLocation"
    if not wrong and (len(paths) > len(marks) or marks[len(paths) :].any()):
        wrong = f"there are {len(paths)} slices, and labels of others"
    if not wrong:
        from_head = sorted(paths, key=places.__getitem__, reverse=True)
        return dict(zip(from_head, marks[: len(paths)].tolist(), strict=True))
    message = f"The slice labels of patient {patient} cannot be used: {wrong}"
    if bad_images != "skip":
        raise CorpusError(f"{message}. Complete the download, or pass --bad_images skip to do without these labels.")
    logger.warning("%s. Not used.", message)
    return None
