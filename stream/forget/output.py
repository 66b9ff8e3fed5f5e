"""What every output is to a forgetting: something to look through, and to write anew."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple, TypeAlias

from stream.store import OutputMark

Advance: TypeAlias = Callable[[int], object]
"""Told of the bytes that were gone through since the last time."""


class Rewritten(NamedTuple):
    """What is to be done once the store knows.

    Attributes
    ----------
    renames
        New files, and those whose places they take.
    unlinks
        Files that go.
    mark
        What the store is to keep from then on; None: nothing.
    """

    renames: list[tuple[str, str]]
    unlinks: list[str]
    mark: OutputMark | None


class Output(ABC):
    """Its life:

    1. ``open()``: locked against every other writer, compared with the store's mark, and cut back to it.
    2. ``look(streams, advance)``: what there is of them.
    3. ``rewrite(advance)``: new files beside the old ones, safe on the disk. The old ones are as they were.
    4. ``close()``, always.

    Attributes
    ----------
    name
        Under which the store keeps its mark.
    path
        The file, or the folder.
    mark
        The store's; None: it has none.
    found
        After `look`: stream → its rows.
    total
        After `look`: all rows.
    unsure
        After `look`: rows that hold a name and do not tell whose they are.
    links
        Names that its file has in the file system, the most where it has several: others than ours keep the old file.
    """

    name: str
    path: Path
    mark: OutputMark | None
    found: Counter[str]
    total: int
    unsure: int
    links: int

    @abstractmethod
    def open(self) -> None:
        """Lock it, and compare it with its mark.

        Raises
        ------
        ConfigurationError
            Another process writes it, or it is not what the store goes with.
        """

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes that `look` goes through, and `rewrite` at most."""

    @property
    @abstractmethod
    def names(self) -> set[str]:
        """Other streams that `look` met."""

    @abstractmethod
    def look(self, streams: Collection[str], advance: Advance) -> None:
        """Find what there is of these streams."""

    @abstractmethod
    def rewrite(self, advance: Advance) -> Rewritten:
        """Write it anew, without what was found."""

    @abstractmethod
    def new_files(self) -> list[Path]:
        """Return the files that `rewrite` made, or left when it was killed."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it."""
