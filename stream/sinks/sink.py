"""What every sink is: where the output records go."""

from __future__ import annotations

from abc import ABC, abstractmethod

from stream.engine import Outcome


class Sink(ABC):
    """Takes one record for each accepted event, in each stream's order. Its life:

    1. ``open(mark, identity)``: None for a fresh start, else the mark of the checkpoint that the run goes on from, and
       the identity that stands beside it; whatever was written after that mark is taken back.
    2. ``write(outcome)`` for each micro-batch.
    3. ``flush() -> mark`` before each checkpoint: everything written is safe now, and `mark` goes into the checkpoint
       with `identity`.
    4. ``close()``: what was written after the last flush may be dropped.

    ``check(mark, identity)`` may be asked of one that is not open.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Under which the checkpoint keeps this sink's mark."""

    @abstractmethod
    def open(self, mark: int | None, identity: str = "") -> None:
        """Begin, or go on after `mark` in the output that had this identity."""

    @abstractmethod
    def check(self, mark: int, identity: str = "") -> None:
        """Say whether `open` could go on from there, and neither change nor make anything.

        Raises
        ------
        ConfigurationError
            It could not.
        """

    @property
    @abstractmethod
    def identity(self) -> str:
        """What tells this output, up to the mark, from another one that must not be touched."""

    @abstractmethod
    def write(self, outcome: Outcome) -> None:
        """Take the records of one micro-batch."""

    @abstractmethod
    def flush(self) -> int:
        """Make what was written safe; return the mark to go on from."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections."""
