"""Images that a CSV or TSV table lists, with label, patient and split; which column is which."""

import csv
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from corpora.folder import SPLIT_FOLDERS
from corpora.record import CorpusError, ImageRecord, existing_folder, list_pictures, printable, read_text

logger = logging.getLogger(__name__)

NONE = "none"  # as label_column or group_column: do without
# What people call the columns of a table, compared without case, blanks and punctuation.
COLUMN_NAMES = {
    "file": ("file", "filename", "filepath", "path", "image", "imagename", "imagefile", "imagepath"),
    "label": ("label", "labels", "class", "classname", "category", "diagnosis", "dx", "target"),
    "group": ("patient", "patientid", "subject", "subjectid", "person", "personid", "group", "groupid"),
    "split": ("split",),
}
# A column like this may tell the patient: not to use it would put patients on both sides of a split.
_LIKE_A_PATIENT = re.compile(
    "patient|subject|participant|person|^case|study|mrn|medicalrecord|accession|"
    "^pid$|^pat(id|no|nr|num|number|code|key)?$|^pt(id|no|nr)$"
)


def choose_columns(
    columns: Iterable[str], given: Mapping[str, str | None], source: str, known: Iterable[str] = ()
) -> dict[str, str | None]:
    """Which column of a table holds what.

    Args:
        columns: their names.
        given: for each thing that is looked for (a key of `COLUMN_NAMES`) the column that was asked for, `NONE` to do
            without it, or `None` to go by the usual names.
        source: what messages call the table.
        known: columns that are of no use here, and need no word.

    Returns:
        The column of each thing that was looked for, `None` if there is none. Other columns are named in a warning.

    Raises:
        CorpusError: there is no such column; two for one thing; no group, and a column that looks like one.
    """
    columns, chosen = list(columns), {}
    for thing, asked in given.items():
        names = COLUMN_NAMES[thing] if asked is None else (_plain(asked),)
        found = [name for name in columns if name == asked] or [name for name in columns if _plain(name) in names]
        if asked == NONE:
            chosen[thing] = None
        elif len(found) > 1:
            option = "keep one" if thing in ("file", "split") else f"choose one with {thing}_column"
            raise CorpusError(f"{source} has {len(found)} columns for the {thing} ({', '.join(found)}): {option}.")
        elif asked is not None and not found:
            raise CorpusError(f"{source} has no {thing}_column {asked!r}; its columns are {', '.join(columns)}.")
        else:
            chosen[thing] = found[0] if found else None
    twice = [name for name in columns if list(chosen.values()).count(name) > 1]
    if twice:
        raise CorpusError(f"{source}: the column {twice[0]} cannot be two things at once.")
    unused = [name for name in columns if name not in chosen.values() and name not in known]
    if given.get("group") is None and chosen.get("group") is None:
        suspects = [name for name in unused if _LIKE_A_PATIENT.search(_plain(name))]
        if suspects:
            raise CorpusError(
                f"{source} has no column patient, but {', '.join(suspects)}, which may tell the patient: pass "
                f"--group_column {suspects[0]!r} to keep the images of one together, or --group_column {NONE} to do "
                "without."
            )
    if unused:
        logger.warning("%s: column(s) not used: %s", source, ", ".join(unused))
    return chosen


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def read_table(
    table: str | Path,
    data_dir: str | Path,
    *,
    label_column: str | None = None,
    group_column: str | None = None,
    bad_images: str = "error",
) -> list[ImageRecord]:
    """The images that a CSV or TSV file lists.

    Blanks around a value mean nothing. Values are divided by commas or semicolons (what the header has more of), in a
    file called `.tsv` by tabs.

    Args:
        table: with a header. The columns `file` (path below `data_dir`), and where known `label`, `patient` (empty:
            unknown) and `split` (train, validation or test) are found by these and other usual names (`COLUMN_NAMES`).
        data_dir: the folder of the images.
        label_column, group_column: columns of label and patient, where they have other names; "none" to do without.
        bad_images: "error", or "skip" to leave out images that are missing, with a warning.

    Raises:
        CorpusError: a column or a file is missing, or a value is not allowed; names the line.
    """
    root, table = Path(os.path.abspath(existing_folder(data_dir))), Path(table)  # as paths in the table may be
    source = f"table '{printable(table)}'"
    rows = _rows(read_text(table), source, "\t" if table.suffix.lower() == ".tsv" else None)
    header = next(rows, (0, []))[1]
    given = {"file": None, "label": label_column, "group": group_column, "split": None}
    columns = choose_columns(filter(None, header), given, source)
    if columns["file"] is None:
        raise CorpusError(f"{source} must have a header with the column file, and one line per image; found {header}.")
    position = {thing: header.index(name) for thing, name in columns.items() if name is not None}
    records, lines, missing = [], {}, []
    for number, row in rows:
        where = f"{source}, line {number}"
        if len(row) > len(header):
            raise CorpusError(f"{where}: {len(row)} values for {len(header)} columns (one with a comma needs quotes).")
        name, label, patient, split = (
            row[position[thing]] or None if thing in position and position[thing] < len(row) else None
            for thing in ("file", "label", "group", "split")
        )
        path = None if name is None else Path(os.path.normpath(root / name))
        if path is not None and not path.is_relative_to(root):
            raise CorpusError(f"{where}: {name!r} is not below '{root}'.")
        if path is None or not path.is_file():
            if name is not None and bad_images == "skip":
                missing.append(name)
                continue
            hint = "" if name is None else _of_that_name(name, root, columns["file"])
            raise CorpusError(f"{where}: there is no file {name!r} in '{root}'{hint}.")
        if path in lines:
            raise CorpusError(f"{where}: {name!r} is listed in line {lines[path]} already.")
        lines[path] = number
        if split is not None and split.lower() not in SPLIT_FOLDERS:
            allowed = ", ".join(dict.fromkeys(SPLIT_FOLDERS.values()))
            raise CorpusError(f"{where}: split must be one of {allowed}, got {split!r}.")
        file_name = path.relative_to(root).as_posix()
        split = split and SPLIT_FOLDERS[split.lower()]
        records.append(ImageRecord(root / file_name, file_name, label, patient, split))
    if "label" in position and records and all(record.label is None for record in records):
        raise CorpusError(f"{source}: every label is empty. Fill the column, or pass --label_column {NONE}.")
    if missing and not records:
        hint = _of_that_name(missing[0], root, columns["file"])
        count = f"{len(missing)} file(s)"
        raise CorpusError(f"{source}: none of its {count} is in '{root}', such as {missing[0]!r}{hint}.")
    if missing:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        logger.warning("%s: %d file(s) are missing and left out: %s", source, len(missing), names)
    if not records:
        raise CorpusError(f"{source} must have a header with the column file, and one line per image.")
    return records


def _of_that_name(name: str, root: Path, column: str) -> str:
    """Where a file lies that a table calls by its bare name, and what the column should hold; empty if there is none.

    The extension may be missing too.
    """
    bare = name.replace("\\", "/").rsplit("/", 1)[-1]
    found = [path.relative_to(root) for path in list_pictures(root) if bare in (path.name, path.stem)]
    if not found:
        return ""
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    there = printable(found[0].as_posix())
    return f"; '{there}' has that name{more}: the column {column} must hold such paths below the folder"


def _rows(text: str, source: str, delimiter: str | None) -> Iterator[tuple[int, list[str]]]:
    """Line number and stripped values of each line of a table that is not blank."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = delimiter or max(",;", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        for row in reader:
            values = [value.strip() for value in row]
            if any(values):
                yield reader.line_num, values
    except csv.Error as error:
        raise CorpusError(f"{source}, line {reader.line_num}: {error}.") from error
