"""The files that rotations of a log leave beside it, and their order."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from stream.sources.byte_stream import COMPRESSED

_MARK = r"(?P<mark>[0-9][0-9T.:_+Z-]*|old)"
_PACKED = r"(?P<packed>\.gz|\.zst)?"
_DATE_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Found:
    """A regular file as it was found; the fields are those of `os.stat`."""

    path: Path
    device: int
    inode: int
    size: int
    mtime_ns: int

    def is_file(self, status: os.stat_result) -> bool:
        """Say whether this is the file of that status, whatever the name."""
        return (self.device, self.inode) == (status.st_dev, status.st_ino)


def look(path: Path) -> Found | None:
    """Return what is at a path, if that is a regular file."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return Found(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def find_inode(folder: Path, device: int, inode: int) -> Path | None:
    """Return the path in a folder under which a file is to be found, whatever its name is now."""
    for name in sorted(entry.name for entry in _entries(folder) if entry.inode() == inode):
        found = look(folder / name)
        if found is not None and (found.device, found.inode) == (device, inode):
            return found.path
    return None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder; one that is gone has nothing."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def without_packing(name: str) -> str:
    """Return a file's name as it was before it was compressed."""
    return next((name.removesuffix(ending) for ending in COMPRESSED if name.endswith(ending)), name)


def rotated(path: Path) -> list[Found]:
    """Return the older parts of the log at `path`, the oldest first, without the log itself.

    They are known by their names: for ``log.jsonl`` these are ``log.jsonl.1``, ``log.jsonl-20240506``,
    ``log.jsonl.old``, ``log-20240506.jsonl`` and ``log.1.jsonl``, each also with ``.gz`` or ``.zst``, and
    ``log.jsonl.gz``. If all are numbered behind the whole name, a higher number is older; if all are dated, a later
    date is newer; otherwise the times of their last modification decide.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("log", "log.1", "log.2.gz", "log.10.gz", "logbook.1"):
    ...     _ = (folder / name).write_bytes(b"")
    >>> [part.path.name for part in rotated(folder / "log")]
    ['log.10.gz', 'log.2.gz', 'log.1']
    """
    name, stem, ending = path.name, path.stem, path.suffix
    behind = re.compile(rf"{re.escape(name)}(?:[._~-]{_MARK})?{_PACKED}")
    within = re.compile(rf"{re.escape(stem)}[._-]{_MARK}{re.escape(ending)}{_PACKED}")
    names = {entry.name for entry in _entries(path.parent)}
    parts: list[tuple[Found, str, bool]] = []
    for other in sorted(names):
        match = behind.fullmatch(other) or (within.fullmatch(other) if ending else None)
        if match is None or other == name:
            continue
        if match["packed"] and without_packing(other) in names:
            continue  # of a part that is just being compressed both forms are there, and the plain one is whole
        found = look(path.with_name(other))
        if found is not None:
            parts.append((found, match["mark"] or "", match.re is behind))
    marks = [mark for _, mark, _ in parts]
    if all(is_behind and mark.isdigit() and len(mark) < _DATE_DIGITS for _, mark, is_behind in parts):
        parts.sort(key=lambda part: -int(part[1]))
    elif all(mark[:4].isdigit() and len(mark) >= _DATE_DIGITS for mark in marks):
        parts.sort(key=lambda part: _numbers(part[1]))
    else:
        parts.sort(key=lambda part: (part[0].mtime_ns, part[0].path))
    return [found for found, _, _ in parts]


def _numbers(mark: str) -> list[int]:
    return [int(number) for number in re.findall("[0-9]+", mark)]
