"""One decoder: training, judging, explaining and the demo see the same pixels of a file, and refuse the same files."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from corpora.record import BadImageError

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
# White may have been said for the sake of other files: to say that it does not fit is to lead in a circle.
WHITE_OF_OTHERS = (
    " white_level is for all images: if only float or 32-bit files needed it, convert these or move them out, and "
    "leave white_level out."
)
_TIFF_BITS_PER_SAMPLE, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339


def _read_bytes(source: bytes | str | os.PathLike | dict[str, Any], name: str) -> bytes:
    if isinstance(source, dict):
        source = source["bytes"] if source.get("bytes") is not None else source["path"]
    if source is None:  # a row of a table without an image
        raise BadImageError(f"Image '{name}' is empty (the row has no image).")
    if isinstance(source, bytes):
        return source
    try:
        if "://" in str(source):  # a file of a data set that is streamed from the Hub
            from datasets.utils.file_utils import xopen  # here, since the demo goes without datasets

            with xopen(str(source), "rb") as file:
                return file.read()
        return Path(source).read_bytes()
    except OSError as error:
        raise BadImageError(f"Image '{name}' cannot be read: {error.strerror or error}.") from error


def _refuse_what_pillow_would_alter(image: Image.Image, name: str) -> None:
    """Pillow opens some files with other values than they store, without a word. Name them instead."""
    raw_modes = {tile.args if isinstance(tile.args, str) else tile.args[0] for tile in image.tile}
    tags = getattr(image, "tag_v2", {})
    grey = image.mode in ("1", "L") or image.mode.startswith(("I", "F"))
    if not grey and (any(";16" in mode for mode in raw_modes) or max(tags.get(_TIFF_BITS_PER_SAMPLE, (8,))) > 8):
        raise BadImageError(
            f"Image '{name}' has 16 bits per channel in colour or with an alpha channel, which Pillow would cut to 8. "
            "Save it as 16-bit grey (PNG or TIFF) or as 8-bit colour."
        )
    if tags.get(_TIFF_PHOTOMETRIC) == 0 and image.mode not in ("1", "L"):
        raise BadImageError(f"Image '{name}' is a TIFF that stores white as 0 (MINISWHITE), read only with 8 bits.")
    if image.mode == "L" and 2 in tags.get(_TIFF_SAMPLE_FORMAT, ()):
        raise BadImageError(f"Image '{name}' is a TIFF of signed 8-bit numbers. Save it as unsigned.")
    if image.format == "TIFF" and image.n_frames > 1:
        raise BadImageError(f"Image '{name}' is a TIFF of {image.n_frames} pages. Save each page as a file.")


def _open(data: bytes, name: str, *, header_only: bool = False) -> tuple[Image.Image, str]:
    """The decoded image, turned upright, and the mode in which its grey values are stored (as Pillow's raw mode)."""
    if not data:
        raise BadImageError(f"Image '{name}' is empty (0 bytes).")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        _refuse_what_pillow_would_alter(image, name)
        tile = image.tile[0]
        raw_mode = tile.args if isinstance(tile.args, str) else tile.args[0]
        if header_only:
            return image, raw_mode
        image.load()
        return ImageOps.exif_transpose(image), raw_mode
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError(f"Image '{name}' cannot be read as any of {', '.join(_FORMATS)}.") from error
    except Exception as error:  # damaged bytes make decoders raise nearly anything: OSError, SyntaxError, struct.error
        raise BadImageError(f"Image '{name}' cannot be decoded: {error}.") from error


def _scale_grey(values: np.ndarray, default_white: int | None, white_level: float | None, name: str) -> np.ndarray:
    """Grey values `(H, W)` or `(H, W, C)` / white level, float32 in [0, 1]."""
    white = default_white if white_level is None else white_level
    if white is None:
        raise BadImageError(  # of this file, not of a setting: others may say their white by their depth
            f"Image '{name}' stores {values.dtype} grey values up to {values.max()}, whose white is unknown: give "
            "white_level, the value that means white; if the other images are of 8 or 16 bits, convert this one or "
            "move it out."
        )
    advice = WHITE_OF_OTHERS if white_level is not None and default_white is not None else ""
    if white_level is not None and default_white == 255 and white_level > 255:
        raise ValueError(
            f"Image '{name}' has 8 bits and cannot reach white_level={white_level}: all would be dark.{advice}"
        )
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):  # NaN fails this too
        worst = low if not low >= 0 else high
        raise ValueError(f"Image '{name}' has the grey value {worst}, allowed are 0 to white_level={white}.{advice}")
    # in float64 first: float32 holds no 32-bit integer exactly
    return (values.astype(np.float64) / white).astype(np.float32)


def decode_image(
    source: bytes | str | os.PathLike | dict[str, Any],
    *,
    name: str,
    num_channels: int,
    white_level: float | None = None,
) -> np.ndarray:
    """Decode a PNG, JPEG, TIFF or BMP image to grey values in [0, 1].

    The one rule for grey depth: value / white level. The white level is 255 for 8-bit files and 65535 for 16-bit files
    unless `white_level` says otherwise (4095 for 12-bit scans in 16-bit files, say); 12-bit, 32-bit integer and float
    files have no default and need it. Nothing is stretched to the range of the image and nothing is cut to 8 bits.

    Palettes are resolved, CMYK becomes RGB, the EXIF orientation is applied. Transparency is composited on white, as
    the exported image processor does with an image that still has it; opaque alpha has no effect. `pipeline` drops the
    transparency before, so that the colour beneath shows: give it opaque images.

    Args:
        source: the file's bytes, its path, or the `{"bytes", "path"}` of an undecoded `datasets.Image`.
        name: what errors call the image.
        num_channels: 3 (grey is replicated) or 1 (colour becomes ITU-R 601 luma; equal channels stay exact).
        white_level: the stored value that means white, for all images.

    Returns:
        float32 `(H, W, num_channels)` in [0, 1].

    Raises:
        BadImageError: unreadable, truncated or empty; more than 8 bits in colour; several pages; a white level is
            needed and not given.
        ValueError: a value outside [0, white level], or a white level that cannot be meant.
    """
    if num_channels not in (1, 3):
        raise ValueError(f"num_channels must be 1 or 3, got {num_channels}.")
    image, raw_mode = _open(_read_bytes(source, name), name)
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and raw_mode == "I;16B"):  # the latter: 16-bit PNG in older Pillow
        pixels = _scale_grey(np.asarray(image), None if raw_mode == "I;12" else 65535, white_level, name)
    elif mode in ("I", "F"):
        pixels = _scale_grey(np.asarray(image), None, white_level, name)
    else:
        alpha = None
        try:
            if image.has_transparency_data:
                image = image.convert("RGBA")
                alpha = np.asarray(image.getchannel("A"), dtype=np.float32)[..., None] / 255  # (H, W, 1)
                image = image.convert("RGB")
            elif mode in ("1", "L"):
                image = image.convert("L")
            else:
                image = image.convert("RGB")
        except ValueError as error:
            raise BadImageError(f"Image '{name}' has the mode {mode}, which Pillow cannot turn into RGB.") from error
        pixels = _scale_grey(np.asarray(image), 255, white_level, name)
        if alpha is not None:
            pixels = pixels * alpha + (1 - alpha)

    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if num_channels == 3:
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    return luma(pixels) if pixels.shape[2] == 3 else pixels


def is_deep(source: bytes | str | os.PathLike | dict[str, Any], *, name: str) -> bool:
    """Whether a file stores grey of more than 8 bits: 16 or 32 bits, or float.

    Raises:
        BadImageError: as `decode_image` does, as far as the file's header tells.
    """
    return _open(_read_bytes(source, name), name, header_only=True)[0].mode.startswith(("I", "F"))


def luma(pixels: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma `(H, W, 1)` of colour `(H, W, 3)` in [0, 1]; equal channels stay exact."""
    if (pixels == pixels[..., :1]).all():
        return np.ascontiguousarray(pixels[..., :1])
    return (pixels @ _LUMA)[..., None].clip(0, 1)


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Grey values in [0, 1] as the nearest of 0 to 255, uint8 of the same shape."""
    return (pixels * 255).round().astype(np.uint8)
