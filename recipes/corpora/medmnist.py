"""MedMNIST+: small images for classification, each data set one NumPy file (Yang et al., Scientific Data 2023).

CC BY 4.0, DermaMNIST CC BY-NC 4.0. A download is `breastmnist.npz` (28 pixels) or `breastmnist_224.npz` (64, 128 or
224), with the arrays `train_images`, `train_labels`, `val_images`, `val_labels`, `test_images` and `test_labels`. The
two-dimensional data sets with one label per image are read (`CLASSES`), with the published split.

Which patient an image shows is not given. BreastMNIST is BUSI, resized, with "normal" and "benign" as one class;
PneumoniaMNIST is Kermany's chest X-rays, cropped. So an encoder that was pretrained on `busi` or `pneumonia` has seen
their test images, and the other way round, without the same bytes by which that is noticed.

A file is read whole: the large data sets at 224 pixels need as much memory as they have pixels (PathMNIST 16 GB).
"""

import io
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from corpora.record import CorpusError, ImageRecord, existing_folder, list_pictures

_ORGANS = (
    *("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right"),
    *("liver", "lung-left", "lung-right", "pancreas", "spleen"),
)
# Data set -> its classes, label 0 first.
CLASSES = {
    "BloodMNIST": (
        *("basophil", "eosinophil", "erythroblast"),
        "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
        *("lymphocyte", "monocyte", "neutrophil", "platelet"),
    ),
    "BreastMNIST": ("malignant", "normal, benign"),
    "DermaMNIST": (
        *("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions"),
        *("dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions"),
    ),
    "OCTMNIST": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "OrganAMNIST": _ORGANS,
    "OrganCMNIST": _ORGANS,
    "OrganSMNIST": _ORGANS,
    "PathMNIST": (
        *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa"),
        *("cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
    ),
    "PneumoniaMNIST": ("normal", "pneumonia"),
    "RetinaMNIST": ("0", "1", "2", "3", "4"),
    "TissueMNIST": (
        *("Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells"),
        *("Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments"),
        "Thick Ascending Limb",
    ),
}
_TITLES = {title.lower(): title for title in CLASSES}
_NAME = re.compile(r"([a-z]+mnist(?:3d)?)(?:_\d+)?\.npz")
_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def _files(data_dir: Path) -> list[Path]:
    """`data_dir` itself if it is a file, else the files in it, as far as they are named like a data set of MedMNIST."""
    found = [data_dir] if data_dir.is_file() else sorted(data_dir.iterdir()) if data_dir.is_dir() else []
    return [path for path in found if _NAME.fullmatch(path.name.lower()) and path.is_file()]


def find_root(data_dir: Path) -> Path | None:
    """`data_dir` if it is a file of MedMNIST or holds one and no pictures beside it, else `None`."""
    return data_dir if _files(data_dir) and (data_dir.is_file() or not list_pictures(data_dir)) else None


def find_file(data_dir: str | Path) -> Path:
    """The file of a download. Raises `CorpusError` if there is none, or several."""
    data_dir = Path(data_dir).expanduser()
    files = _files(data_dir if data_dir.is_file() else existing_folder(data_dir))
    if len(files) != 1:
        found = f"several: {', '.join(path.name for path in files)}. Name one of them" if files else "none"
        raise CorpusError(
            f"'{data_dir}' must be or hold one file of MedMNIST, such as breastmnist_224.npz; found {found}."
        )
    return files[0]


def title_of(data_dir: str | Path) -> str | None:
    """Which data set a download is, a key of `CLASSES`; `None` if that cannot be told, or if it is not read."""
    files = _files(Path(data_dir).expanduser())
    return _TITLES.get(_NAME.fullmatch(files[0].name.lower())[1]) if len(files) == 1 else None


def class_names(data_dir: str | Path) -> tuple[str, ...]:
    """The classes of a download that `find_images` reads, label 0 first."""
    return CLASSES[title_of(data_dir)]


def find_images(data_dir: str | Path, *, bad_images: str = "error") -> list[ImageRecord]:
    """The images of a file of MedMNIST as PNG, `train/000000.png` and so on.

    Args:
        data_dir: the file, or a folder that holds one.
        bad_images: makes no difference: the file is whole, or it is refused.

    Raises:
        CorpusError: no such file, a data set of volumes or of several labels per image, a damaged file, or an array
            that is missing or not of the right kind.
    """
    file = find_file(data_dir)
    title = title_of(file)
    if title is None:
        name = _NAME.fullmatch(file.name.lower())[1]
        reason = "an image of it has several labels" if name == "chestmnist" else "it is not known"
        reason = "it holds volumes" if name.endswith("3d") else reason
        raise CorpusError(
            f"'{file.name}' is not read, since {reason}. Read are the data sets of two-dimensional images with one "
            f"label each: {', '.join(CLASSES)}."
        )
    arrays = _read(file)
    records = []
    for part, split in _SPLITS.items():
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        _check(images, labels, len(CLASSES[title]), f"'{file.name}', {part}")
        for index, (image, label) in enumerate(zip(images, labels.reshape(-1).tolist(), strict=True)):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            name = f"{part}/{index:06d}.png"
            records.append(ImageRecord(Path(name), name, CLASSES[title][label], split=split, data=png.getvalue()))
    if not records:
        raise CorpusError(f"'{file.name}' holds no image.")
    return records


def _read(file: Path) -> dict[str, np.ndarray]:
    names = [f"{part}_{kind}" for part in _SPLITS for kind in ("images", "labels")]
    try:
        with zipfile.ZipFile(file) as archive:
            absent = [name for name in names if f"{name}.npy" not in archive.namelist()]
        arrays = {}
        if not absent:
            with np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CorpusError(f"'{file}' is damaged: download it again ({error}).") from error
    if absent:
        raise CorpusError(f"'{file.name}' is not a file of MedMNIST: it lacks the array(s) {', '.join(absent)}.")
    return arrays


def _check(images: np.ndarray, labels: np.ndarray, num_classes: int, where: str) -> None:
    """Raises `CorpusError` unless these are 8-bit images `(N, H, W)` or `(N, H, W, 3)` and labels `(N, 1)`."""
    flat = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    if images.dtype != np.uint8 or not flat:
        raise CorpusError(
            f"{where}: images must be 8-bit numbers of the shape (images, height, width) or (images, height, width, "
            f"3), got {images.dtype} of the shape {images.shape}."
        )
    if labels.dtype.kind not in "iu" or labels.shape not in ((len(images), 1), (len(images),)):
        raise CorpusError(
            f"{where}: {len(images)} images need one whole number each as their label, got {labels.dtype} of the "
            f"shape {labels.shape}."
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise CorpusError(f"{where}: labels must be 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}.")
