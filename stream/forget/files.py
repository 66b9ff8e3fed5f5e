"""New files beside the old ones, and their taking the old ones' places."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from memory.errors import ConfigurationError
from stream.append_file import AppendFile
from stream.store_files import sync

SUFFIX = ".forgetting"
"""What the new files are called until they take the old ones' places."""


MUCH = 64 << 20
"""Bytes of a new file after which it is flushed."""


def new_path(path: Path) -> Path:
    """Return where the file that is to take the place of the one at `path` is written.

    >>> new_path(Path("run/out.jsonl")).name
    'out.jsonl.forgetting'
    """
    return path.with_name(path.name + SUFFIX)


def begin_new(path: Path) -> AppendFile:
    """Open the file that is to take the place of the one at `path`: empty, with its mode and owner."""
    new = new_path(path)
    new.unlink(missing_ok=True)
    file = AppendFile(new, of_lines=False)
    file.open(None)
    status = path.stat()
    with suppress(PermissionError):
        os.chown(new, status.st_uid, status.st_gid)
    os.chmod(new, status.st_mode & 0o777)
    return file


def keep_up(file: AppendFile, written: int) -> int:
    """Put on the disk what waits, where that is much: a full disk is met before memory is full of it.

    Parameters
    ----------
    file
        A new one.
    written
        What this returned the last time; 0 at first.
    """
    return file.flush() if file.length - written >= MUCH else written


def take_places(renames: Iterable[tuple[str, str]], unlinks: Iterable[str]) -> None:
    """Put new files in the places of the old ones, and take others away. To be done again after a crash, as it was.

    Parameters
    ----------
    renames
        The new file, and the one whose place it takes; one that is gone has taken it already.
    unlinks
        Files that go.

    Raises
    ------
    ConfigurationError
        The files are not on this machine; nothing was changed.
    """
    pairs = [(Path(new), Path(old)) for new, old in renames]
    for new, old in pairs:
        if not new.exists() and not old.exists():
            raise ConfigurationError(
                f"{old}: expected the file that an interrupted `ebbtide forget` was about to replace, got none; "
                "give the command where that file is"
            )
    folders = set()
    for new, old in pairs:
        if new.exists():
            os.replace(new, old)
        folders.add(old.parent)
    for path in map(Path, unlinks):
        path.unlink(missing_ok=True)
        folders.add(path.parent)
    for folder in folders:
        sync(folder)
