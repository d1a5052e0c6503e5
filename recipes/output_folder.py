"""Where results are written: known to be writable before the work, put in place whole, nothing else touched."""

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from commandline import UsageError

# Begin the names of our temporary folders, which tempfile ends.
STAGING = ".glcm_mae-writing-"
FILE_STAGING = ".glcm_mae-file-"  # not cleared away with those of folders: it may be in use by another process

# In each folder that is filled as a whole: the names of what we put there. Never published.
WRITTEN_LIST = ".glcm_mae_written.json"


def check_output(folder: str | Path, option: str = "output_dir") -> Path:
    """The folder that results will go to, after seeing that files can be written there; it is not made yet.

    Args:
        folder: may be a link, a mounted volume, or `.`.
        option: names it in messages.

    Raises:
        UsageError: a file or a broken link is in the way, or the folder cannot be written to; it, or a folder in it,
            holds former content that was never put back.
    """
    output = Path(folder).expanduser()
    existing = next(path for path in (output, *output.absolute().parents) if os.path.lexists(path))
    if not existing.exists():
        raise UsageError(
            f"{option} {folder}: {existing} is a link to {existing.resolve()}, which does not exist: make that folder, "
            "or mount its disk"
        )
    if not existing.is_dir():
        raise UsageError(f"{option} {folder}: {existing} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=existing, prefix=STAGING):
            pass
    except OSError as error:
        raise UsageError(f"{option} {folder}: nothing can be written to {existing} ({error.strerror})") from error
    for pattern in (f"{STAGING}*", f"*/{STAGING}*"):  # the latter: an export in it
        for staging in output.glob(pattern):
            _refuse_former_content(staging)
    return output


def _refuse_former_content(staging: Path) -> None:
    old = staging / "old"
    if old.is_dir() and any(old.iterdir()):
        raise UsageError(
            f"{old} holds the former content of {staging.parent}, perhaps its only copy, since a process was stopped "
            "while it put new content in place: move what is in it back, or delete it"
        )


@contextmanager
def replaced_folder(folder: Path, ours: Collection[str] | None = None) -> Iterator[Path]:
    """A new folder to write to. Its content takes its place in `folder` once the block ends without an error.

    It is written inside `folder`, which is never renamed: that may be a link or a mounted volume. What others put
    into it since the last time, or into a folder in it, stays, unless it is called like something new.

    Args:
        folder: made if it does not exist.
        ours: names in `folder` that go when the new content comes; if `None` all that we wrote, which is everything
            where no list tells (`WRITTEN_LIST`).

    Raises:
        OSError: an entry could not be moved. `folder` then holds what it held before.
        UsageError: an earlier call was stopped amid the exchange, and the former content was never put back.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lefts = list(folder.glob(f"{STAGING}*"))  # by processes that were killed
    for left in lefts:
        _refuse_former_content(left)
    for left in lefts:
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))
    new, old = staging / "new", staging / "old"  # not `staging` itself, which nobody else may read
    new.mkdir()
    old.mkdir()
    try:
        yield new
        _exchange(folder, new, old, ours)
    except BaseException:
        if not any(old.iterdir()):  # else what was there could not be put back
            shutil.rmtree(staging, ignore_errors=True)
        if made and not any(folder.iterdir()):
            folder.rmdir()
        raise
    old.rename(staging / "replaced")  # a kill from here on leaves nothing that anybody wants back
    shutil.rmtree(staging, ignore_errors=True)


def _exchange(folder: Path, new: Path, old: Path, ours: Collection[str] | None) -> None:
    whole = ours is None
    if whole:
        ours = _written(folder)
    coming = {entry.name for entry in new.iterdir()}
    going = [
        entry
        for entry in folder.iterdir()
        if entry != new.parent and (ours is None or entry.name in ours or entry.name in coming)
    ]
    theirs = [path.relative_to(folder) for entry in going if not entry.is_symlink() for path in not_ours(entry)]
    theirs = [path for path in theirs if not os.path.lexists(new / path)]
    for path in theirs:
        for parent in reversed(path.parents[:-1]):
            (new / parent).mkdir(mode=(folder / parent).stat().st_mode & 0o777, exist_ok=True)
    for place, folders, files in os.walk(new):
        if whole or Path(place) != new:
            Path(place, WRITTEN_LIST).write_text(json.dumps(sorted(folders + files)) + "\n")
    moves = [(entry, old / entry.name) for entry in going]
    moves += [(entry, folder / entry.name) for entry in new.iterdir()]
    moves += [(old / path, folder / path) for path in theirs]
    done = []
    try:
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        raise


def _written(folder: Path) -> set[str] | None:
    """Names of what we put into a folder; `None` where no list tells, as in one that an earlier version wrote."""
    file = folder / WRITTEN_LIST
    return {WRITTEN_LIST, *json.loads(file.read_text())} if file.is_file() else None


def not_ours(folder: Path) -> list[Path]:
    """What others put into a folder that we filled, or into one in it, as far as our lists tell."""
    if not folder.is_dir():
        return []
    ours, found = _written(folder), []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith((STAGING, FILE_STAGING)):
            continue
        if ours is not None and entry.name not in ours:
            found.append(entry)
        elif not entry.is_symlink():
            found += not_ours(entry)
    return found


@contextmanager
def replaced_file(file: Path) -> Iterator[Path]:
    """A path to write to. The file takes the place of `file` once the block ends without an error."""
    with tempfile.TemporaryDirectory(prefix=FILE_STAGING, dir=file.parent) as staging:
        written = Path(staging) / file.name
        yield written
        os.replace(written, file)


def delete(path: Path) -> None:
    """Delete a file or a folder. Of a link to a folder and of a mounted volume only what is in it: that stays.

    So does what others put into a folder of ours, and the list by which it is known.
    """
    theirs = not_ours(path)
    if path.is_dir() and (path.is_symlink() or path.is_mount() or theirs):
        for entry in path.iterdir():
            if entry not in theirs and not (theirs and entry.name == WRITTEN_LIST):
                delete(entry)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
