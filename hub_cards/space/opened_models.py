"""Models and images, opened for the demo: what is refused, and in which words."""

import io
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from PIL import Image
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    BeitForImageClassification,
    PreTrainedModel,
    ViTForImageClassification,
)

from corpora.record import DICOM_SUFFIXES
from images.decode import decode_image, is_deep, to_8_bits
from images.dicom import read_dicom
from modeling_glcm_mae import GLCMMAEForPreTraining

CLASSIFIERS = {kind.__name__: kind for kind in (ViTForImageClassification, BeitForImageClassification)}


HIDDEN_COLOUR = (58, 82, 150)  # no grey, which would look like anatomy


# What transformers, the Hub's client and safetensors raise on a repository that is damaged or not there.
UNUSABLE = (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError, yaml.YAMLError)


@dataclass(frozen=True)
class Network:
    """A network with the processor it was trained with, and the grey value of white in its training."""

    model: PreTrainedModel
    processor: Any
    white: float

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """`(1, C, H, W)`, normalised, of an 8-bit RGB image."""
        grey = self.model.config.num_channels == 1
        try:
            return self.processor(images=image.convert("L") if grey else image, return_tensors="pt")["pixel_values"]
        except ValueError as error:  # a strip, say, of which one side would have no pixel left
            size = f"{image.width} x {image.height}"
            raise ValueError(f"an image of {size} pixels cannot be resized for the model: {error}") from error

    def picture(self, pixels: torch.Tensor) -> np.ndarray:
        """`(H, W, 3)` uint8 of normalised pixels `(C, H, W)`, which are NaN where they are hidden."""
        mean, std = (torch.tensor(getattr(self.processor, f"image_{name}")).view(-1, 1, 1) for name in ("mean", "std"))
        shown = (pixels.nan_to_num() * std + mean).clamp(0, 1)
        picture = (shown.expand(3, -1, -1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        picture[pixels.isnan().any(dim=0).numpy()] = HIDDEN_COLOUR
        return picture


@dataclass(frozen=True)
class Model:
    """A repository as far as it can be shown.

    Attributes:
        classifier, autoencoder: `None` where there is none.
        figures: the results that the card states, with their intervals, in Markdown.
        note: whose autoencoder is shown, or why a part is missing.
    """

    classifier: Network | None
    autoencoder: Network | None
    figures: str
    note: str


@lru_cache(maxsize=2)
def load(name: str) -> Model:
    """Open a model by Hub id or folder. No code of a repository is run: the classes are this package's.

    A classifier's repository has no decoder. The autoencoder is then that of the `base_model` which its card names; if
    it names none, that which a cross-validation left in the same fold.

    Raises:
        ValueError: it cannot be opened, or is of another kind; names the model.
    """
    try:
        if not name or not Path(name).is_dir():
            validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"model {name!r} is neither a folder here nor a Hub id, OWNER/NAME") from error
    try:
        architecture = (AutoConfig.from_pretrained(name, trust_remote_code=False).architectures or ["none"])[0]
        classifier = _network(CLASSIFIERS[architecture], name) if architecture in CLASSIFIERS else None
        card = _file(name, "README.md")
        if classifier is None:
            autoencoder, note = _autoencoder(name), f"{name} has no classifier: it shows reconstructions only."
        else:
            autoencoder, note = _autoencoder_of_base(name, card)
    except UNUSABLE as error:
        raise ValueError(f"model {name!r} cannot be opened: {_first_line(error)}") from error
    if classifier is None and autoencoder is None:
        raise ValueError(
            f"model {name!r} is a {architecture} without a pretraining/ folder; allowed are {', '.join(CLASSIFIERS)}, "
            "and encoders with one"
        )
    return Model(classifier, autoencoder, _figures(card), note)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _file(name: str, file: str) -> Path | None:
    """A file of a repository or folder; `None` if it is not there."""
    if Path(name).is_dir():
        return Path(name, file) if Path(name, file).is_file() else None
    try:
        return Path(hf_hub_download(name, file))
    except RemoteEntryNotFoundError:
        return None


def _network(kind: type[PreTrainedModel], name: str, **where: str) -> Network:
    model, report = kind.from_pretrained(name, output_loading_info=True, **where)
    if report["missing_keys"]:
        raise ValueError(f"weights are missing: {', '.join(sorted(report['missing_keys']))}")
    processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    # `read` makes every image one of 8 bits, also for models that were trained on deeper ones.
    white = round(1 / processor.rescale_factor, 6)
    processor.rescale_factor, processor.do_convert_rgb = 1 / 255, model.config.num_channels == 3
    return Network(model.eval(), processor, white)


def _autoencoder(name: str) -> Network | None:
    if _file(name, "pretraining/config.json") is None:
        return None
    return _network(GLCMMAEForPreTraining, name, subfolder="pretraining")


def _autoencoder_of_base(name: str, card: Path | None) -> tuple[Network | None, str]:
    """The autoencoder of the model that a classifier was trained from, and a sentence on it."""
    origin, folder = f"the base_model of {name}", Path(name).resolve()
    try:
        base = (metadata_load(card) or {}).get("base_model") if card else None
        if isinstance(base, list):
            base = base[0] if base else None
        if base is None and folder.is_dir() and folder.match("fold_*/finetune/export"):
            beside = folder.parents[1] / "pretrain" / "export"  # as cross_validate.py leaves it
            if beside.is_dir():
                base, origin = str(beside), f"the encoder of the same fold as {name}"
        if base is None:
            return None, (
                f"No reconstruction: the card of {name} names no base_model, whose autoencoder could be shown. "
                "Publish the encoder and pass --base_model ORG/ENCODER to publish.py."
            )
        autoencoder = _autoencoder(base)
    except UNUSABLE as error:
        return None, f"No reconstruction: {origin} cannot be opened ({_first_line(error)})."
    if autoencoder is None:
        return None, f"No reconstruction: {base}, {origin}, has no pretraining/ folder."
    return autoencoder, f"The reconstruction is by {base}, {origin}."


def _figures(card: Path | None) -> str:
    """The results that a card states, with their intervals. Its pictures are files of the repository: left out."""
    _, mark, rest = (card.read_text(encoding="utf-8") if card else "").partition("<!-- results -->")
    results = re.sub(r"!\[[^]]*\]\([^)]*\)", "", rest.partition("<!-- end of results -->")[0]).strip()
    return results.replace("## ", "#### ") if mark and results else "The model's card states no results."


def read(data: bytes, name: str, white: float) -> tuple[Image.Image, str]:
    """An image file, or the first frame of a DICOM file, in 8-bit RGB; and the DICOM window in words.

    Args:
        data: the file's bytes.
        name: its name; what errors call it.
        white: the grey value of white in the model's training. Files of another depth are read by the white of theirs,
            DICOM files by their window.

    Raises:
        ValueError: what the training would say of the file.
    """
    words, own = "", None
    if data[128:132] == b"DICM" or name.lower().endswith(DICOM_SUFFIXES):
        frame = next(read_dicom(io.BytesIO(data), name=name, salt=""))
        data = frame.png
        if frame.window is not None:
            centre, width, source = frame.window
            words = f"Grey of {name}: window with centre {centre:g} and width {width:g} (of the {source})."
    elif (white != 255) if is_deep(data, name=name) else (1 < white <= 255):
        own = white
    pixels = decode_image(data, name=name, num_channels=3, white_level=own)
    return Image.fromarray(to_8_bits(pixels)), words


def opened(name: str, path: str | None) -> tuple[Model, Image.Image, str]:
    if path is None:
        raise ValueError("drop an image first")
    model = load(name.strip())
    return model, *read(Path(path).read_bytes(), Path(path).name, (model.classifier or model.autoencoder).white)
