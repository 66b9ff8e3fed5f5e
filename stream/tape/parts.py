"""The files that a tape is made of: ``part-000000.arrows`` and on, each a tape of its own."""

from __future__ import annotations

import re
from pathlib import Path

_SHIFT = 44
"""A mark holds the part's number above this many bits, and its length below."""

PART = re.compile(r"part-(\d{6})\.arrows")


def part_path(folder: Path, number: int) -> Path:
    """Return where a part is.

    >>> part_path(Path("tape"), 12).name
    'part-000012.arrows'
    """
    return folder / f"part-{number:06d}.arrows"


def number_of(part: Path) -> int:
    """Return a part's number.

    >>> number_of(Path("tape/part-000012.arrows"))
    12
    """
    found = PART.fullmatch(part.name)
    assert found is not None
    return int(found[1])


def mark_of(number: int, length: int) -> int:
    """Return the mark of a tape whose last part has a number and a length in bytes.

    >>> place_of(mark_of(3, 4096))
    (3, 4096)
    """
    return (number << _SHIFT) + length


def place_of(mark: int) -> tuple[int, int]:
    """Return the last part's number, and its length in bytes."""
    return divmod(mark, 1 << _SHIFT)


def parts_of(folder: Path) -> list[Path]:
    """Return a tape's parts, in order."""
    return sorted(path for path in folder.iterdir() if PART.fullmatch(path.name)) if folder.is_dir() else []
