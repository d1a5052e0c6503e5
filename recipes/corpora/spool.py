"""Bytes of images in a temporary file, so that memory does not grow with their number."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Spooled:
    """An image of a `Spool`, which exists as long as one of these does."""

    file: BinaryIO
    start: int
    length: int

    def read(self) -> bytes:
        """The bytes."""
        self.file.seek(self.start)
        return self.file.read(self.length)


class Spool:
    """A temporary file that bytes are added to, and read from in any order; of one thread.

    Args:
        near: the folder that is to be written, which need not exist: the file is made on the same disk, and has no
            name there.
    """

    def __init__(self, near: Path) -> None:
        parent = next(folder for folder in (near.absolute(), *near.absolute().parents) if folder.is_dir())
        self._file = tempfile.TemporaryFile(dir=parent)
        self._length = 0

    def add(self, data: bytes) -> Spooled:
        """Keep an image.

        Raises:
            OSError: the disk is full.
        """
        self._file.seek(self._length)
        self._file.write(data)
        self._length += len(data)
        return Spooled(self._file, self._length - len(data), len(data))
