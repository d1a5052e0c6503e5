"""Models and images, opened for the demo: what is refused, and in which words."""

import io
import json
import logging
import math
import struct
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
import yaml
from huggingface_hub import HfApi, metadata_load, snapshot_download
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from model_card import Card, read_card
from onnx_classifier import ONNX_FILE, OnnxClassifier
from PIL import Image
from pydicom.filereader import read_file_meta_info
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    BeitForImageClassification,
    PreTrainedModel,
    ViTForImageClassification,
)

from commandline import model_inside
from corpora.record import DICOM_SUFFIXES
from images.decode import decode_image, is_deep, to_8_bits
from images.dicom import read_dicom
from modeling_glcm_mae import GLCMMAEForPreTraining

logger = logging.getLogger("demo")
CLASSIFIERS = {kind.__name__: kind for kind in (ViTForImageClassification, BeitForImageClassification)}

WEIGHTS = ("config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json")
# Of a repository on the Hub: no code, and no adapter, which names another model.
READ = ("README.md", "config.yaml", *WEIGHTS, *(f"pretraining/{name}" for name in WEIGHTS))
READ_FOR_ONNX = tuple(name for name in READ if not name.startswith("model"))
OF_A_BASE = ("config.json", "preprocessor_config.json", *(f"pretraining/{name}" for name in WEIGHTS))
DEFLATED = "1.2.840.10008.1.2.1.99"  # a DICOM file of a few KiB can hold gigabytes
MAX_MODEL_BYTES = 4 * 2**30  # of a repository that a visitor names
MAX_BYTES, MAX_PIXELS = 64 * 2**20, 64_000_000  # of an image, before it is decoded
HIDDEN_COLOUR = (58, 82, 150)  # no grey, which would look like anatomy

# What transformers, the Hub's client and safetensors raise on a repository that is damaged or not there.
UNUSABLE = (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError, yaml.YAMLError)


class Refused(ValueError):
    """In words that may be shown to everybody."""


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
        card: what its card says.
        trained_on: the name of the images that it knows; empty where its recipe does not tell.
        note: whose autoencoder is shown, or why a part is missing.
    """

    classifier: Network | None
    autoencoder: Network | None
    card: Card
    trained_on: str
    note: str


class Offered:
    """The models that visitors may choose, by names that tell nothing of this machine.

    A folder is called by its own name, or that of the folder it lies in if it is an `export`; `NAME=FOLDER` calls it
    otherwise. What a visitor names beyond these is opened only as a public model of the Hub, if that is allowed, and
    never with the token of whom the server belongs to.

    Args:
        given: Hub ids and folders, the first of them to begin with.
        any_public: whether visitors may name other models of the Hub.
        onnx: classifiers among the given are computed by ONNX Runtime, from the file in their repository.

    Raises:
        ValueError: none given, two of one name, or a folder around models.
    """

    def __init__(self, given: Sequence[str], any_public: bool = False, onnx: bool = False):
        self.any_public, self.onnx = any_public, onnx
        self.sources: dict[str, str] = {}
        for text in given:
            name, equals, source = text.partition("=")
            if not equals or Path(text).expanduser().is_dir():
                name, source = "", text
            source = str(Path(source).expanduser()) if source.startswith("~") else source
            if not Path(source).is_dir():
                _check_hub_id(source, "neither a folder here nor")  # in a terminal: the page tells no path
            elif (instead := model_inside(Path(source))) is not None:
                raise ValueError(f"model {source!r} {instead}")
            name = name or _name_of(source)
            if name in self.sources:
                raise ValueError(f"two models are called {name!r}: give one another name, as NAME={source}")
            self.sources[name] = source
        if not self.sources:
            raise ValueError("no model is given")

    @property
    def names(self) -> list[str]:
        """What can be chosen, in the order in which it was given."""
        return list(self.sources)

    def open(self, name: str) -> Model:
        """The model of that name.

        Raises:
            ValueError: it is not offered, or cannot be opened; tells no path. What the libraries say is in the log.
        """
        if name in self.sources:
            return load(self.sources[name], name, True, self.onnx)
        if not self.any_public:
            raise ValueError(f"model {name!r} is not offered here; there are {', '.join(self.names)}")
        return load(name, name, False)


def _name_of(source: str) -> str:
    folder = Path(source)
    if not folder.is_dir():
        return source
    folder = folder.resolve()
    return folder.parent.name if folder.name == "export" else folder.name


@lru_cache(maxsize=2)
def load(source: str, name: str, own: bool, onnx: bool = False) -> Model:
    """Open a model. No code of a repository is run: the classes are this package's.

    A classifier's repository has no decoder. The autoencoder is then that of the `base_model` which its card names; if
    it names none, that which a cross-validation left in the same fold, or which the run of the export started from.

    Args:
        source: Hub id or folder.
        name: what it is called on the page.
        own: whether it was chosen by whom the server belongs to. Any other is read from the Hub only, without a token.
        onnx: whether its classifier is the ONNX model in its repository, as `publish.py --onnx true` sends it.

    Raises:
        ValueError: it cannot be opened, or is of another kind; names the model.
    """
    try:
        folder = _folder(source, own, (*READ_FOR_ONNX, ONNX_FILE) if onnx else READ)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        architecture = (config.architectures or ["none"])[0]
        classifier = None
        if architecture in CLASSIFIERS:
            if onnx and not (folder / ONNX_FILE).is_file():
                raise Refused(
                    f"model {name!r} has no {ONNX_FILE}: publish it with --onnx true and give its Hub id, or start "
                    "without --onnx"
                )
            model = OnnxClassifier(config, folder / ONNX_FILE) if onnx else _model(CLASSIFIERS[architecture], folder)
            classifier = _network(model, folder)
        card = folder / "README.md" if (folder / "README.md").is_file() else None
        if classifier is None:
            autoencoder, note = _autoencoder(folder), f"{name} has no classifier: it shows reconstructions only."
        else:
            autoencoder, note = _autoencoder_of_base(folder, name, card, source, own)
        trained_on = Path(_setting(folder, "data", "corpus")).name
        said = read_card(card.read_text(encoding="utf-8") if card else "")
    except Refused:
        raise
    except UNUSABLE as error:
        logger.warning("model %s (%s) cannot be opened: %s", name, source, error)
        raise Refused(f"model {name!r} cannot be opened here") from error
    if classifier is None and autoencoder is None:
        raise ValueError(
            f"model {name!r} is a {architecture} without a pretraining/ folder; allowed are {', '.join(CLASSIFIERS)}, "
            "and encoders with one"
        )
    return Model(classifier, autoencoder, said, trained_on, note)


def _check_hub_id(source: str, what: str, refusal: type[ValueError] = Refused) -> None:
    try:
        if "/" not in source:
            raise HFValidationError("an owner is missing")
        validate_repo_id(source)
    except HFValidationError as error:
        raise refusal(f"model {source!r} is {what} a Hub id, OWNER/NAME") from error


def _folder(source: str, own: bool, files: Sequence[str]) -> Path:
    """Where the files of a model are, downloaded if need be.

    Args:
        source: Hub id; a folder too, if `own`.
        own: whether it may be one, and whether the token of whom the server belongs to may be used.
        files: patterns of those that are wanted of the Hub.

    Raises:
        ValueError: neither a folder, of those who may name one, nor a Hub id; too large.
        OSError: the Hub does not have it, or not for everybody.
    """
    if own and Path(source).is_dir():
        return Path(source)
    _check_hub_id(source, "not", ValueError if own else Refused)  # a folder that is gone since is nobody's business
    try:
        token, revision = None, None
        if not own:
            token = False
            info = HfApi(token=False).model_info(source, files_metadata=True)
            wanted = [file for file in info.siblings if any(fnmatch(file.rfilename, pattern) for pattern in files)]
            size, revision = sum(file.size or 0 for file in wanted), info.sha
            if size > MAX_MODEL_BYTES:
                raise Refused(f"model {source!r} has {size / 2**30:.1f} GiB, allowed are {MAX_MODEL_BYTES / 2**30:g}")
        folder = Path(snapshot_download(source, revision=revision, token=token, allow_patterns=list(files)))
    except Refused:
        raise
    except Exception as error:  # of the network: the client's own errors differ by release, and some are no OSError
        raise OSError(f"{source} cannot be had from the Hub: {error}") from error
    for index in folder.rglob("*.index.json"):
        # transformers would follow a path in it to any file of this machine.
        parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        if any(not isinstance(part, str) or Path(part).name != part for part in parts):
            raise ValueError(f"{index.name} of {source} names weights outside its folder")
    return folder


def _setting(folder: Path, part: str, name: str) -> str:
    """What the `config.yaml` of a run or an export says; empty where it does not."""
    try:
        return str(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))[part][name] or "")
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return ""


def _model(kind: type[PreTrainedModel], folder: Path, **where: str) -> PreTrainedModel:
    model, report = kind.from_pretrained(folder, output_loading_info=True, **where)
    if report["missing_keys"]:
        raise ValueError(f"weights are missing: {', '.join(sorted(report['missing_keys']))}")
    return model


def _network(model: PreTrainedModel, folder: Path) -> Network:
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    # `read` makes every image one of 8 bits, also for models that were trained on deeper ones.
    white = getattr(processor, "white_level", None) or round(1 / processor.rescale_factor, 6)
    processor.rescale_factor, processor.do_convert_rgb = 1 / 255, model.config.num_channels == 3
    return Network(model.eval(), processor, white)


def _autoencoder(folder: Path) -> Network | None:
    if not (folder / "pretraining" / "config.json").is_file():
        return None
    return _network(_model(GLCMMAEForPreTraining, folder, subfolder="pretraining"), folder)


def _autoencoder_of_base(
    folder: Path, name: str, card: Path | None, source: str, own: bool
) -> tuple[Network | None, str]:
    """The autoencoder of the model that a classifier was trained from, and a sentence on it."""
    called, local = f"the base_model of {name}", own and Path(source).is_dir()
    try:
        base = (metadata_load(card) or {}).get("base_model") if card else None
        if isinstance(base, list):
            base = base[0] if base else None
        base = None if base is None else str(base)
        if base is None and local and folder.resolve().match("fold_*/finetune/export"):
            beside = folder.resolve().parents[1] / "pretrain" / "export"  # as cross_validate.py leaves it
            if beside.is_dir():
                base, called = str(beside), f"the encoder of the same fold as {name}"
        if base is None and local and folder.resolve().name == "export":
            started = _setting(folder.resolve().parent, "model", "model_name_or_path")  # the export names no folders
            if started and Path(started).is_dir():
                base, called = started, f"the encoder that {name} was trained from"
        if base is None:
            return None, (
                f"No reconstruction: the card of {name} names no base_model, whose autoencoder could be shown. "
                "Publish the encoder and pass --base_model ORG/ENCODER to publish.py."
            )
        # What a card on the Hub names is not looked for among the folders here.
        same_owner = local or base.partition("/")[0] == source.partition("/")[0]
        with_token = own and same_owner and not Path(base).is_dir()
        found = Path(base) if local and Path(base).is_dir() else _folder(base, with_token, OF_A_BASE)
        autoencoder = _autoencoder(found)
    except UNUSABLE as error:
        logger.warning("%s, %s, cannot be opened: %s", base, called, error)
        return None, f"No reconstruction: {called} cannot be opened here."
    if not (local and Path(base).is_dir()):
        called = f"{base}, {called}"
    if autoencoder is None:
        return None, f"No reconstruction: {called}, has no pretraining/ folder."
    return autoencoder, f"The reconstruction is by {called}."


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
    if len(data) > MAX_BYTES:
        raise ValueError(f"{name} has {len(data) / 2**20:.0f} MiB, allowed are {MAX_BYTES / 2**20:g}")
    words, own = "", None
    if data[128:132] == b"DICM" or name.lower().endswith(DICOM_SUFFIXES):
        _refuse_huge(_dicom_pixels(data), name)
        frame = next(read_dicom(io.BytesIO(data), name=name, salt=""))
        data = frame.png
        if frame.window is not None:
            centre, width, source = frame.window
            words = f"Grey of {name}: window with centre {centre:g} and width {width:g} (of the {source})."
    else:
        _refuse_huge(_file_pixels(data), name)
        if (white != 255) if is_deep(data, name=name) else (1 < white <= 255):
            own = white
    pixels = decode_image(data, name=name, num_channels=3, white_level=own)
    return Image.fromarray(to_8_bits(pixels)), words


def _file_pixels(data: bytes) -> int:
    """As the header says; 0 of what is no image, which is refused elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return math.prod(Image.open(io.BytesIO(data)).size)
        except Image.DecompressionBombError:
            return 2 * Image.MAX_IMAGE_PIXELS
        except (OSError, SyntaxError, ValueError):
            return 0


def _dicom_pixels(data: bytes) -> int:
    """Of all frames, as the header says; 0 of what is no DICOM file, which is refused elsewhere."""
    try:
        with tempfile.NamedTemporaryFile() as file:  # of the first lines alone, before anything is inflated
            file.write(data)
            file.flush()
            if read_file_meta_info(file.name).get("TransferSyntaxUID") == DEFLATED:
                return MAX_PIXELS + 1
        header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, force=True)
        return math.prod(int(header.get(name) or 1) for name in ("Rows", "Columns", "NumberOfFrames"))
    except (OSError, ValueError, TypeError, AttributeError, EOFError, struct.error, pydicom.errors.InvalidDicomError):
        return 0


def _refuse_huge(pixels: int, name: str) -> None:
    if pixels > MAX_PIXELS:
        raise ValueError(f"{name} has more than {MAX_PIXELS:,} pixels: make it smaller first")


def opened(offered: Offered, name: str, path: str | None) -> tuple[Model, Image.Image, str]:
    """A model of that name, and the image at `path` as `read` gives it for this model."""
    if path is None:
        raise ValueError("drop an image first")
    model = offered.open((name or "").strip())
    return model, *read(Path(path).read_bytes(), Path(path).name, (model.classifier or model.autoencoder).white)
