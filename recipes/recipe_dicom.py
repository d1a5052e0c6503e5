"""DICOM files as PNG images that keep their grey depth. Pixels and windows follow DICOM PS3.3, C.7.6.3 and C.11."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut, iter_pixels

from corpora.folder import BadImageError
from recipe_names import pseudonym

_GREY = ("MONOCHROME1", "MONOCHROME2")
_FRAME_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
_OF_A_FRAME = (
    *("BitsStored", "PixelRepresentation", "PhotometricInterpretation", "ModalityLUTSequence"),
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"),
)


@dataclass(frozen=True)
class DicomImage:
    """One frame.

    Attributes:
        png: 16-bit grey or 8-bit RGB.
        frame: its number, from 0; `None` for a file of one frame.
        window: centre and width that were mapped to black and white, in units after the rescale (Hounsfield units for
            CT), and where they come from: "option", "file" or "stored range". `None` for colour.
        patient: salted hash of the patient id, of the examination's UID without one; `None` where there is neither.
    """

    png: bytes
    frame: int | None
    window: tuple[float, float, str] | None
    patient: str | None


def read_dicom(path: Path, *, name: str, salt: str, window: tuple[float, float] | None = None) -> Iterator[DicomImage]:
    """Every frame of a DICOM file.

    Grey values are rescaled (slope and intercept), then a window is mapped to 0..65535: the one given, else the first
    of the file, else the whole range that the file can store. MONOCHROME1 is inverted, so that white is always bright.

    Args:
        path: the file.
        name: what errors call it.
        salt: secret text that is hashed together with the patient id, so that ids cannot be guessed from the hash.
        window: (centre, width) for all files.

    Raises:
        BadImageError: not DICOM, without pixels, truncated, of a transfer syntax that cannot be decoded, or not of
            grey or colour pixels.
    """
    try:
        header = pydicom.dcmread(path)
    except (InvalidDicomError, OSError, EOFError, ValueError, KeyError, NotImplementedError) as error:
        raise BadImageError(f"DICOM file '{name}' cannot be read: {error}") from error
    if "PixelData" not in header:
        raise BadImageError(f"DICOM file '{name}' holds no pixels ({header.get('Modality', 'no modality')}).")
    try:
        kind = header.get("PhotometricInterpretation", "")
        # Where the id was taken out, at least the images of one examination stay together.
        patient = str(header.get("PatientID") or header.get("StudyInstanceUID") or "").strip()
        hashed = pseudonym(salt, patient) if patient else None
        several = int(header.get("NumberOfFrames") or 1) > 1
        frames = iter_pixels(header)
        for number, pixels in enumerate(frames):
            frame = number if several else None
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
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadImageError(f"DICOM file '{name}' (transfer syntax {kind}) cannot be decoded: {first}") from error


def _of_frame(header: pydicom.Dataset, number: int) -> pydicom.Dataset:
    """Rescale and window of a frame: enhanced multi-frame files keep them in functional groups (C.7.6.16)."""
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*(header.get("SharedFunctionalGroupsSequence") or [])[:1], *own[number : number + 1]]
    found = [group[name][0] for group in groups for name in _FRAME_GROUPS if group.get(name)]
    if not found:
        return header
    frame = pydicom.Dataset()
    for source in (header, *found):
        for name in _OF_A_FRAME:
            if name in source:
                setattr(frame, name, source.get(name))
    return frame


def _windowed(
    pixels: np.ndarray, header: pydicom.Dataset, window: tuple[float, float] | None, name: str
) -> tuple[np.ndarray, tuple[float, float, str]]:
    """Grey `(H, W)` uint16 with white bright, and the window that was used."""
    values = apply_modality_lut(pixels, header).astype(np.float64)
    source = "option"
    if window is None:
        centre, width = (_first(header.get(key)) for key in ("WindowCenter", "WindowWidth"))
        source = "file"
        if centre is None or width is None:
            bits = int(header.BitsStored)
            low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if header.PixelRepresentation else (0, 2**bits - 1)
            ends = apply_modality_lut(np.array([low, high]), header).astype(np.float64)
            centre, width, source = ends.mean() + 0.5, ends.max() - ends.min() + 1, "stored range"
    else:
        centre, width = window
    if width < 1:
        raise BadImageError(f"DICOM file '{name}': the width of the window must be at least 1, got {width:g}.")
    # C.11.2.1.2.1: the linear function maps the window's ends to the darkest and the brightest grey.
    if width == 1:
        grey = (values > centre - 0.5).astype(np.float64)
    else:
        grey = np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    if header.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    return (grey * 65535).round().astype(np.uint16), (float(centre), float(width), source)


def _first(value: object) -> float | None:
    """The first of the windows that a file offers."""
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
