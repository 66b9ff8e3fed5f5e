"""What a component keeps for each lane, beside the matrix itself.

Detectors, policies and probes all need a little memory per lane. They share one life cycle, so that the consumer can
grow, clear, spill and checkpoint a lane as a whole without knowing what is in it:

    resize(capacity)   room for `capacity` slots; rows that exist keep their values, new ones are fresh
    clear(slots)       these rows are fresh again: a lane that starts, or one that was reset
    dump(slots)        one blob a row; a copy, so later updates leave it alone
    load(slot, blob)   the row back, bit for bit; `load_all` does many at once
    layout             what the blobs hold; two components with the same layout read each other's blobs
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Slots = npt.NDArray[np.int64]


class LaneState(ABC):
    """One component's rows, indexed by slot. The module docstring tells their life."""

    @property
    @abstractmethod
    def layout(self) -> str:
        """Say what a blob holds, so that a blob of another layout is never read."""

    @property
    def bytes_held(self) -> int:
        """Bytes that grow with what lanes hold, such as filed states; rows of fixed size do not count."""
        return 0

    @abstractmethod
    def resize(self, capacity: int) -> None:
        """Make room for `capacity` slots. Capacity never shrinks."""

    @abstractmethod
    def clear(self, slots: Slots) -> None:
        """Make the rows at `slots` fresh."""

    @abstractmethod
    def dump(self, slots: Slots) -> Sequence[bytes]:
        """Return one blob for each slot, in the order given."""

    @abstractmethod
    def load(self, slot: int, blob: bytes) -> None:
        """Fill the row at `slot` from a blob of the same layout.

        Raises
        ------
        ValueError
            The blob is not of this layout.
        """

    def load_all(self, slots: Slots, blobs: Sequence[bytes]) -> None:
        """Fill the rows at `slots` `[n]`, no two the same, from a blob each."""
        for slot, blob in zip(slots.tolist(), blobs, strict=True):
            self.load(slot, blob)


@dataclass(frozen=True, slots=True)
class Column:
    """One named array with a row per lane.

    Parameters
    ----------
    dtype
        A numpy dtype string, such as ``"float64"``.
    shape
        Shape of one row; ``()`` for a scalar.
    fill
        The value of a fresh row: one number, or one for each place of the row's last axis.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    fill: float | tuple[float, ...] = 0


class Columns(LaneState):
    """Rows as named numpy arrays: what nearly every component needs.

    Parameters
    ----------
    columns
        Name → column. Blobs hold the columns in this order.

    Examples
    --------
    >>> import numpy as np
    >>> rows = Columns({"mean": Column("float64"), "recent": Column("float32", (2,), fill=-1)})
    >>> rows.resize(3)
    >>> rows["mean"][1] = 0.5
    >>> blob, = rows.dump(np.array([1]))
    >>> rows.load(2, blob)
    >>> rows["mean"].tolist(), rows["recent"].tolist()
    ([0.0, 0.5, 0.5], [[-1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0]])
    """

    def __init__(self, columns: Mapping[str, Column]):
        self.columns = dict(columns)
        self._arrays = {name: self._fresh(column, 0) for name, column in self.columns.items()}
        sizes = [np.dtype(column.dtype).itemsize * math.prod(column.shape) for column in self.columns.values()]
        ends = list(accumulate(sizes, initial=0))
        self._places = {name: slice(*place) for name, place in zip(self.columns, pairwise(ends), strict=True)}
        self._row_bytes = ends[-1]

    @staticmethod
    def _fresh(column: Column, rows: int) -> npt.NDArray[np.generic]:
        return np.full((rows, *column.shape), column.fill, dtype=column.dtype)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Return the whole column, `[capacity, *shape]`: a view, to be read and written at slots."""
        return self._arrays[name]

    @property
    def layout(self) -> str:
        """Names, dtypes and shapes, in order."""
        return ";".join(f"{name}:{column.dtype}{list(column.shape)}" for name, column in self.columns.items())

    def resize(self, capacity: int) -> None:
        """Make room for `capacity` slots."""
        for name, column in self.columns.items():
            old = self._arrays[name]
            if capacity > len(old):
                self._arrays[name] = np.concatenate([old, self._fresh(column, capacity - len(old))])

    def clear(self, slots: Slots) -> None:
        """Fill the rows at `slots` with each column's `fill`."""
        for name, column in self.columns.items():
            self._arrays[name][slots] = column.fill

    def dump(self, slots: Slots) -> Sequence[bytes]:
        """Return each row's columns end to end."""
        if not self.columns or not len(slots):
            return [b""] * len(slots)
        parts = [
            np.ascontiguousarray(array[slots]).reshape(len(slots), -1).view(np.uint8) for array in self._arrays.values()
        ]
        packed = np.concatenate(parts, axis=1)
        return [row.tobytes() for row in packed]

    def load(self, slot: int, blob: bytes) -> None:
        """Fill one row from its blob."""
        self.load_all(np.array([slot]), [blob])

    def load_all(self, slots: Slots, blobs: Sequence[bytes]) -> None:
        """Fill rows from their blobs, a column at a time."""
        for blob in blobs:
            if len(blob) != self._row_bytes:
                raise ValueError(f"expected {self._row_bytes} bytes for {self.layout!r}, got {len(blob)}")
        if not self._row_bytes:
            return
        packed = np.frombuffer(b"".join(blobs), np.uint8).reshape(len(blobs), self._row_bytes)
        for name, column in self.columns.items():
            part = np.ascontiguousarray(packed[:, self._places[name]])
            self._arrays[name][slots] = part.view(column.dtype).reshape(len(blobs), *column.shape)
