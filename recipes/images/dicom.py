"""DICOM files as PNG images that keep their grey depth. Pixels and windows follow DICOM PS3.3, C.7.6.3 and C.11."""

import copy
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing, iter_pixels
from pydicom.uid import UID, EnhancedUSVolumeStorage

from corpora.record import BadImageError
from images.pseudonyms import pseudonym

_GREY = ("MONOCHROME1", "MONOCHROME2")
_FRAME_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
_OF_A_FRAME = (
    *("BitsStored", "PixelRepresentation", "PhotometricInterpretation", "ModalityLUTSequence", "VOILUTSequence"),
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
)


class NotAPictureError(BadImageError):
    """A DICOM object that is not a picture, whether or not it stores pixels: a segmentation, a dose, a report."""


@dataclass(frozen=True)
class DicomImage:
    """One frame.

    Attributes:
        png: 16-bit grey or 8-bit RGB.
        frame: its number, from 0; `None` for a file of one frame.
        window: centre and width that were mapped to black and white, in units after the rescale (Hounsfield units for
            CT), and where they come from: "option", "file" or "stored range". For a lookup table ("VOI LUT of the
            file") the middle and number of its entries. `None` for colour.
        patient: salted hash of the patient id, of the examination's UID without one; `None` where there is neither.
    """

    png: bytes
    frame: int | None
    window: tuple[float, float, str] | None
    patient: str | None


def read_dicom(path: Path, *, name: str, salt: str, window: tuple[float, float] | None = None) -> Iterator[DicomImage]:
    """Every frame of a DICOM file.

    Grey values are rescaled (slope and intercept), then mapped to 0..65535: by the window given, else by the first
    lookup table (VOI LUT) of the file, else by its first window and that one's function (linear, linear exact or
    sigmoid), else from the whole range that the file can store. MONOCHROME1 is inverted, so that white is always
    bright; padding around the picture is black. A palette gives 8-bit colour, of entries of 16 bits the upper 8.

    Args:
        path: the file.
        name: what errors call it.
        salt: secret text that is hashed together with the patient id, so that ids cannot be guessed from the hash.
        window: (centre, width) of a linear window for all files.

    Raises:
        NotAPictureError: its SOP class is not of a picture.
        BadImageError: not DICOM, without pixels, truncated, of a transfer syntax that cannot be decoded, or not of
            grey or colour pixels.
    """
    try:
        header = pydicom.dcmread(path)
    except InvalidDicomError as error:  # which advises its own reader's options
        raise BadImageError(f"DICOM file '{name}' cannot be read: it does not begin as DICOM files do.") from error
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError) as error:
        raise BadImageError(f"DICOM file '{name}' cannot be read: {error}") from error
    _refuse_what_is_not_a_picture(header, name)
    if "PixelData" not in header:
        raise BadImageError(f"DICOM file '{name}' holds no pixels ({header.get('Modality', 'no modality')}).")
    try:
        kind = header.get("PhotometricInterpretation", "")
        # Where the id was taken out, at least the images of one examination stay together.
        patient = str(header.get("PatientID") or header.get("StudyInstanceUID") or "").strip()
        hashed = pseudonym(salt, patient) if patient else None
        frames = range(int(header.get("NumberOfFrames") or 1))
        # By index: pydicom (3.0) then decodes into memory that it may write to when it corrects signs.
        for number, pixels in zip(frames, iter_pixels(header, indices=frames), strict=True):
            frame = number if len(frames) > 1 else None
            if kind == "PALETTE COLOR":
                pixels = apply_color_lut(pixels, header)
                pixels = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
            if pixels.ndim == 3 and pixels.shape[2] == 3:
                if pixels.dtype != np.uint8:
                    raise BadImageError(f"DICOM file '{name}' has {pixels.dtype} colour; only 8 bits are read.")
                yield DicomImage(_png(pixels), frame, None, hashed)
            elif kind in _GREY and pixels.ndim == 2:
                grey, used = _windowed(pixels, _of_frame(header, number), window, name)
                yield DicomImage(_png(grey), frame, used, hashed)
            else:
                raise BadImageError(
                    f"DICOM file '{name}' has pixels of the kind {kind or 'unknown'}, {pixels.shape}; allowed are "
                    f"{', '.join(_GREY)} and colour."
                )
    except BadImageError:
        raise
    except Exception as error:  # decoders and damaged headers raise nearly anything
        syntax = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
        kind = getattr(syntax, "name", None) or "unknown"
        # All lines: where a decoder is missing, the later ones name the packages that bring it.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImageError(f"DICOM file '{name}' (transfer syntax {kind}) cannot be decoded: {reason}") from error


def _refuse_what_is_not_a_picture(header: pydicom.Dataset, name: str) -> None:
    """By SOP class: all that store pictures are called "... Image Storage" (PS3.6, table A-1), but for one.

    Private classes and files without a class may be pictures.
    """
    uid = UID(str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or ""))
    if uid.is_private or not uid.name.partition(" - ")[0].endswith("Storage"):
        return
    if "Image Storage" not in uid.name and uid != EnhancedUSVolumeStorage:
        raise NotAPictureError(f"DICOM file '{name}' is not a picture ({uid.name}).")


def _of_frame(header: pydicom.Dataset, number: int) -> pydicom.Dataset:
    """Rescale and window of a frame: enhanced multi-frame files keep them in functional groups (C.7.6.16)."""
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*(header.get("SharedFunctionalGroupsSequence") or [])[:1], *own[number : number + 1]]
    found = [group[name][0] for group in groups for name in _FRAME_GROUPS if group.get(name)]
    if not found:
        return header
    frame = pydicom.Dataset()
    frame.file_meta = header.file_meta
    for source in (header, *found):
        for name in _OF_A_FRAME:
            if name in source:
                setattr(frame, name, source.get(name))
    return frame


def _windowed(
    pixels: np.ndarray, header: pydicom.Dataset, window: tuple[float, float] | None, name: str
) -> tuple[np.ndarray, tuple[float, float, str]]:
    """Grey `(H, W)` uint16 with white bright and padding black, and the window that was used."""
    values = apply_modality_lut(pixels, header)
    if window is None and header.get("VOILUTSequence"):
        grey, used = _looked_up(values, header, name)
    else:
        centre, width, function, source = _window_of(header, window)
        if width <= 0 or (width < 1 and function == "LINEAR"):
            allowed = "at least 1" if function == "LINEAR" else "above 0"
            raise BadImageError(f"DICOM file '{name}': the width of the window must be {allowed}, got {width:g}.")
        target = pydicom.Dataset()  # unsigned 16 bits, and no rescale: what pydicom maps the window to
        target.PhotometricInterpretation, target.PixelRepresentation, target.BitsStored = "MONOCHROME2", 0, 16
        target.WindowCenter, target.WindowWidth, target.VOILUTFunction = centre, width, function
        grey, used = apply_windowing(values, target) / 65535, (centre, width, source)
    if header.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    grey = np.where(_padding(pixels, header), 0, grey)
    return (grey * 65535).round().astype(np.uint16), used


def _looked_up(values: np.ndarray, header: pydicom.Dataset, name: str) -> tuple[np.ndarray, tuple[float, float, str]]:
    """Grey in [0, 1] by the first VOI LUT, and the middle and number of its entries."""
    table = copy.deepcopy(header.VOILUTSequence[0])
    stated, first, bits = (int(value) for value in table.LUTDescriptor)
    entries = stated or 2**16  # which 16 bits cannot say
    # pydicom (3.0) would count the entries in 8 bits where these have 8 bits.
    table.LUTDescriptor = [stated, first, 16]
    only = pydicom.Dataset()
    only.VOILUTSequence, only.file_meta = [table], header.file_meta
    largest = int(apply_voi(np.arange(first, first + entries), only).max())
    if largest >= 2**bits:
        raise BadImageError(
            f"DICOM file '{name}': the entries of the VOI LUT must be at most {2**bits - 1}, as it says that they have "
            f"{bits} bits; got {largest}."
        )
    # Rescaled values are floats, also where they are whole; an index is an integer within the table.
    index = np.clip(values.round(), first, first + entries - 1).astype(np.int64)
    return apply_voi(index, only) / (2**bits - 1), (first + entries / 2, float(entries), "VOI LUT of the file")


def _window_of(header: pydicom.Dataset, given: tuple[float, float] | None) -> tuple[float, float, str, str]:
    """Centre, width, function, and where they come from."""
    if given is not None:
        return *map(float, given), "LINEAR", "option"
    centre, width = (_first(header.get(key)) for key in ("WindowCenter", "WindowWidth"))
    if centre is not None and width is not None:
        return centre, width, (header.get("VOILUTFunction") or "LINEAR").upper(), "file"
    bits = int(header.BitsStored)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if header.PixelRepresentation else (0, 2**bits - 1)
    ends = apply_modality_lut(np.array([low, high]), header).astype(np.float64)
    return float(ends.mean() + 0.5), float(ends.max() - ends.min() + 1), "LINEAR", "stored range"


def _padding(pixels: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """Where stored `pixels` `(H, W)` are padding around the picture (C.7.5.1.1.2), as bool."""
    if header.get("PixelPaddingValue") is None:
        return np.zeros(pixels.shape, dtype=bool)
    ends = [header.PixelPaddingValue, header.get("PixelPaddingRangeLimit")]
    # Some devices write a signed value as unsigned: as stored, both are the same bits.
    ends = [np.array(int(end)).astype(pixels.dtype) for end in ends if end is not None]
    return (pixels >= min(ends)) & (pixels <= max(ends))


def _first(value: object) -> float | None:
    """The first of the windows that a file offers."""
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
