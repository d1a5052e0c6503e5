"""Written names: what a prepared data set calls images and patients, and the private table of the original names.

The names of files and patients in a hospital's download often tell who a patient is. In their place the data set holds
salted hashes, which say nothing to anybody who does not know the salt.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from corpora.record import CorpusError

# Folders in a prepared data set that are never published: this table, and what a preparation without splits found.
PRIVATE, STOPPED = "private", "stopped"
COLUMNS = ("file_name", "patient", "written_name", "group", "left_out")


def pseudonym(salt: str, text: str) -> str:
    """16 hexadecimal digits that stand for `text`: the same for the same salt, and no guess can be tried without it."""
    return hashlib.sha256(f"{salt}\0{text}".encode("utf-8", "surrogateescape")).hexdigest()[:16]


def pseudonym_of_file(salt: str, file_name: str) -> str:
    """As `pseudonym`; differs from that of a patient who is called like the file."""
    return pseudonym(salt, f"file\0{file_name}")


def with_written_names(items: Sequence, salt: str) -> list:
    """The images under names of our own, in the order of their content: that of the names would tell of the originals.

    Args:
        items: what was read (`items.Item`).
        salt: secret of the hashes.

    Returns:
        Copies with another `record` and `group`; `original` keeps the record of the download.

    Raises:
        CorpusError: two images have one name; names it.
    """
    renamed, taken = [], set()
    for item in items:
        record = item.record
        if record.file_name in taken:
            raise CorpusError(f"two images have the file_name {record.file_name!r}")
        taken.add(record.file_name)
        # The suffix says what the bytes are. That of the file may be part of a name: 1.2.840.10008, SCAN.SMITH.
        with Image.open(io.BytesIO(item.data.read())) as image:
            name = f"{pseudonym_of_file(salt, record.file_name)}.{image.format.lower()}"
        group = item.group if record.group is None else pseudonym(salt, record.group)  # of DICOM: hashed already
        annotation = record.annotation
        if annotation is not None:
            for known in (record.file_name, Path(record.file_name).name):
                annotation = annotation.replace(json.dumps(known), json.dumps(name))
        written = replace(record, file_name=name, group=group, annotation=annotation)
        renamed.append(replace(item, record=written, group=group, original=record))
    return sorted(renamed, key=lambda item: (item.print.sha256, item.record.split or "", item.record.file_name))


def publishable(problem: tuple[str, str], salt: str) -> str:
    """Why a file was left out, under its written name.

    Args:
        problem: the file's name and the message of its error, `Image 'NAME' cannot be decoded: DETAIL`.
        salt: secret of the hashes.

    Returns:
        The message without its detail, which quotes whatever stands in a damaged file.
    """
    file_name, reason = problem
    name = pseudonym_of_file(salt, file_name)
    before, found, after = reason.partition(f"'{file_name}'")
    if not found:
        return f"'{name}' cannot be used"
    return f"{before}'{name}'{after.partition(': ')[0]}"


def write_names(
    folder: Path, items: Sequence, groups: Sequence[str], conflicts: set[int], problems: Sequence[tuple[str, str]], salt
) -> None:
    """Write private/names.csv, which only its owner can read: a line a file, its original and its written names.

    Patient ids of DICOM files are not in it: they are stored nowhere.

    Args:
        folder: the data set. A .gitignore in it keeps the table out of repositories, those of the Hub included.
        items: of `with_written_names`.
        groups: of each, as written.
        conflicts: positions that are left out.
        problems: name and reason of each file that is left out.
        salt: secret of the hashes.
    """
    rows = [
        (item.original.file_name, item.original.group, item.record.file_name, group, "")
        if i not in conflicts
        else (item.original.file_name, item.original.group, item.record.file_name, group, "a copy has another label")
        for i, (item, group) in enumerate(zip(items, groups, strict=True))
    ]
    rows += [(name, None, pseudonym_of_file(salt, name), None, reason) for name, reason in problems]
    (folder / ".gitignore").write_text(f"/{PRIVATE}/\n/{STOPPED}/\n")
    (folder / PRIVATE).mkdir(mode=0o700)
    # Names that are not UTF-8 come out as the bytes that they are.
    with open(
        folder / PRIVATE / "names.csv",
        "x",
        newline="",
        encoding="utf-8",
        errors="surrogateescape",
        opener=lambda path, flags: os.open(path, flags, 0o600),
    ) as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows(sorted(rows, key=lambda row: row[0]))
