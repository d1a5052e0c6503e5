"""Decoded, fitted images in a file that all processes and workers of a machine map into memory.

It lies in the cache of `datasets`, under a name that follows from the images and from how they are fitted, and is found
there again by later runs.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from commandline import UsageError
from images.splits import image_digests
from images.transform import ImageTransform
from output_folder import FILE_STAGING, replaced_file

logger = logging.getLogger(__name__)

VERSION = 1
STALE = 3600  # seconds without a byte after which a file that is being written is taken for left
AT_ONCE = 256  # images in memory, should the disk be slower than the decoding


class ImageCache:
    """The images of such a file, by position: float32 `(C, H, W)` in [0, 1], or `(1, H, W)` if none has colour.

    Raises:
        OSError, ValueError: there is no such file, or it is not whole.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._images = np.lib.format.open_memmap(file, mode="r")

    def __reduce__(self) -> tuple:
        # A worker that is spawned opens the file, instead of being sent all that is in it.
        return ImageCache, (self.file,)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._images[index]


def image_cache(
    dataset: datasets.Dataset,
    fitted: Callable[[dict[str, Any]], np.ndarray],
    transform: ImageTransform,
    num_channels: int,
    white_level: float | None,
) -> ImageCache:
    """The cache of these images. If there is none yet, one process of the machine writes it, and the others wait.

    Args:
        dataset: columns `image` (undecoded), `file_name`, and where known `white_level`.
        fitted: gives float32 `(num_channels, *transform.image_size)` in [0, 1] of a row: decoded and fitted.
        transform, num_channels, white_level: what `fitted` does it by.

    Raises:
        UsageError: the file cannot be written.
    """
    how = (VERSION, num_channels, white_level, transform.image_size)
    how += (transform.resize, transform.resize_to, transform.resample)
    whites = dataset["white_level"][:] if "white_level" in dataset.column_names else None
    key = hashlib.sha256(repr((how, whites, image_digests(dataset))).encode()).hexdigest()
    file = Path(datasets.config.HF_DATASETS_CACHE) / "glcm_mae_images" / f"{key}.npy"
    try:
        return ImageCache(file)
    except (OSError, ValueError):
        pass  # said below, if another process does not mend it before
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Of this and of other runs one process writes. Not by a barrier, which gives up after half an hour.
        with _of_one_process(file):
            if file.exists():
                try:
                    return ImageCache(file)
                except (OSError, ValueError) as error:
                    logger.warning("cache_images: %s is damaged (%s) and is made again", file, error)
            for left in file.parent.glob(f"{FILE_STAGING}*/{file.name}"):  # by a run that was killed
                # On file systems whose locks are of one machine, another may still be writing.
                if time.time() - left.stat().st_mtime > STALE:
                    shutil.rmtree(left.parent)
            with replaced_file(file) as new:
                # Most medical images are grey: a third is enough, until one is not.
                if not _write(new, dataset, fitted, 1, transform.image_size):
                    _write(new, dataset, fitted, num_channels, transform.image_size)
    except OSError as error:
        raise UsageError(
            f"cache_images: {file} cannot be written ({error.strerror or error}). Make room there, let the "
            "environment variable HF_DATASETS_CACHE name another folder, or set cache_images to false"
        ) from error
    size = file.stat().st_size / 2**20
    logger.info("cache_images: %d images, %.0f MiB, in %s, which may be deleted", len(dataset), size, file)
    return ImageCache(file)


@contextmanager
def _of_one_process(file: Path) -> Iterator[None]:
    lock = FileLock(f"{file}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("cache_images: another process writes %s, which this one waits for", file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(
    file: Path,
    dataset: datasets.Dataset,
    fitted: Callable[[dict[str, Any]], np.ndarray],
    num_channels: int,
    size: tuple[int, int],
) -> bool:
    """Write all images with so many channels; `False` if one has others, which differ."""
    shape = (len(dataset), num_channels, *size)
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    # Not as a mapping: a full disk would kill the process then.
    with (
        file.open("wb") as opened,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(dataset), desc="caching images", unit=" images", leave=False) as bar,
    ):
        np.lib.format.write_array_header_1_0(opened, header)
        for start in range(0, len(dataset), AT_ONCE):
            part = range(start, min(start + AT_ONCE, len(dataset)))
            for pixels in pool.map(lambda index: fitted(dataset[index]), part):
                if (pixels[num_channels:] != pixels[:1]).any():
                    return False
                opened.write(pixels[:num_channels].tobytes())
                bar.update()
    return True
