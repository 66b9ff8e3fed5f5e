"""The files of an SQLite store, and those beside it."""

from __future__ import annotations

import os
from pathlib import Path

BESIDE = ("", "-wal", "-shm")
"""What is added to a store's name in those that SQLite makes."""

COPIES = 2
"""Copies that are kept: while one is replaced, the other stands."""


def copy_paths(path: Path) -> list[Path]:
    """Return where the copies of the store at `path` are, whether they are there or not.

    >>> [copy.name for copy in copy_paths(Path("run/state.db"))]
    ['state.db.copy-1', 'state.db.copy-2']
    """
    return [path.with_name(f"{path.name}.copy-{number}") for number in range(1, COPIES + 1)]


def sync(path: Path) -> None:
    """Put a file, or a folder's names, on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
