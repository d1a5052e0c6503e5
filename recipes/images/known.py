"""What is known of a prepared corpus that was checked once, so that no later process reads all of its images for that.

Kept in the cache of `datasets`, under a signature of the Parquet files: sizes, times of the last change, and footers.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets

from images.fingerprint import COPY_BITS, COPY_CORRELATION, MAX_BITS, MIN_CORRELATION
from output_folder import replaced_file

VERSION = 1


@dataclass(frozen=True)
class Known:
    """What a check of all images found. Their bytes are those that the column `sha256` says, and can be decoded.

    Attributes:
        alike: names of each pair of near-identical images that are of different groups.
        images: SHA-256 -> height and width in pixels, and whether the image has more than 8 bits.
    """

    alike: list[tuple[str, str]]
    images: dict[str, tuple[int, int, bool]]


def recall(files: Sequence[str | Path]) -> Known | None:
    """What is known of these Parquet files; `None` if they were never checked here, or any was changed since."""
    file = _place(files)
    if not file.is_file():
        return None
    stored = json.loads(file.read_text())
    images = {digest: tuple(facts) for digest, facts in stored["images"].items()}
    return Known([(first, second) for first, second in stored["alike"]], images)


def remember(files: Sequence[str | Path], known: Known) -> None:
    """Keep what is known of these Parquet files.

    Raises:
        OSError: the cache cannot be written.
    """
    file = _place(files)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(file) as new:
        new.write_text(json.dumps(asdict(known)))


def _place(files: Sequence[str | Path]) -> Path:
    # With another rule of what is alike, other pairs would be found.
    signature = hashlib.sha256(repr((VERSION, MAX_BITS, MIN_CORRELATION, COPY_BITS, COPY_CORRELATION)).encode())
    for file in map(Path, files):
        status = file.stat()
        # The time of the inode too: that of the content can be set back.
        signature.update(repr((file.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)).encode())
        signature.update(_footer(file))
    return Path(datasets.config.HF_DATASETS_CACHE) / "glcm_mae_known" / f"{signature.hexdigest()}.json"


def _footer(file: Path) -> bytes:
    """The metadata of a Parquet file: its last 8 bytes are their length and a mark."""
    with file.open("rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(max(0, size - 8))
        length = int.from_bytes(opened.read(4), "little")
        opened.seek(max(0, size - 8 - length))
        return opened.read()
