"""Fabricated test images: every kind of file that people have, and every way in which files break."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import tifffile  # scikit-image brings it
from PIL import Image


def grey(height: int = 40, width: int = 56, *, bits: int = 8, seed: int = 0) -> np.ndarray:
    """A smooth, textured grey image over the whole range of `bits` (8 or 16): `(height, width)` unsigned."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).random((height, width))
    values = 0.35 * (1 + np.sin(x / 7 + y / 11 + seed)) + 0.3 * noise
    values = (values - values.min()) / (values.max() - values.min())
    return (values * (2**bits - 1)).round().astype(np.uint8 if bits == 8 else np.uint16)


def colour(height: int = 40, width: int = 56, *, channels: int = 3, seed: int = 0) -> np.ndarray:
    """`(height, width, channels)` uint8, each channel another image."""
    return np.stack([grey(height, width, seed=seed + channel) for channel in range(channels)], axis=-1)


def picture(seed: int, size: int = 128) -> np.ndarray:
    """A grey picture with large structures of its own, `(size, size)` uint8."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def encode(image: Image.Image | np.ndarray, image_format: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png16(values: np.ndarray) -> bytes:
    """A 16-bit PNG of `(H, W)` grey or `(H, W, 2|3|4)` LA, RGB, RGBA values, which Pillow itself cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2] if values.ndim == 3 else 1]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff16(values: np.ndarray, planar: bool = False) -> bytes:
    """A TIFF of `(H, W, 3)` 16-bit RGB values, the channels interleaved or (`planar`) one after the other."""
    buffer = io.BytesIO()
    if planar:
        tifffile.imwrite(buffer, values.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    else:
        tifffile.imwrite(buffer, values, photometric="rgb")
    return buffer.getvalue()


def truncated_png() -> bytes:
    data = encode(grey())
    return data[: len(data) // 2]


def write(path: Path, data: bytes | None = None) -> Path:
    """Write `data`, by default an 8-bit grey PNG, and make the folders for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(grey()) if data is None else data)
    return path


def write_folder(root: Path, names: list[str]) -> Path:
    """A folder with a different 8-bit grey PNG under each relative name."""
    for seed, name in enumerate(names):
        write(root / name, encode(grey(seed=seed)))
    return root


def write_mixed_folder(root: Path) -> Path:
    """A folder with one image of every readable kind."""
    palette = Image.fromarray(colour()).convert("P", palette=Image.Palette.ADAPTIVE)
    files = {
        "grey8.png": encode(grey()),
        "grey16.png": encode(grey(bits=16)),
        "grey16.tif": encode(grey(bits=16), "TIFF"),
        "grey.bmp": encode(grey(), "BMP"),
        "grey.jpg": encode(grey(), "JPEG"),
        "rgb.png": encode(colour()),
        "rgb.jpeg": encode(colour(), "JPEG"),
        "rgba.png": encode(colour(channels=4)),
        "palette.png": encode(palette),
        "binary.png": encode(Image.fromarray(grey()).convert("1")),
    }
    for name, data in files.items():
        write(root / name, data)
    return root
