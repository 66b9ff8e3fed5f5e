"""The states that a lane has besides its own: filed ones and challengers, each with the centroid of its topic.

Room is taken only for ways that hold something. A lane's states never leave the lane: a place that is given back is
wiped before another lane may have it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memory.lane_state import LaneState, Slots
from memory.threads import share_out, torch_threads
from monitors.observations import Flags, Floats


class FiledStates(LaneState):
    """Up to W states `[H, R, R]` for each lane, in places shared by all lanes.

    Parameters
    ----------
    ways
        W.
    heads, rank
        H (layers times heads) and R.
    dim
        D, the width of an embedding.
    device
        Where the states lie.

    Examples
    --------
    >>> filed = FiledStates(ways=3, heads=1, rank=2, dim=4)
    >>> filed.resize(2)
    >>> filed.hold(np.array([1]), np.array([2]))
    >>> filed.places.tolist(), len(filed.dump(np.array([1]))[0]) - len(filed.dump(np.array([0]))[0])
    ([[-1, -1, -1], [-1, -1, 0]], 36)
    """

    def __init__(self, ways: int, heads: int, rank: int, dim: int, device: torch.device | str = "cpu"):
        self.ways, self.heads, self.rank, self.dim = ways, heads, rank, dim
        self.places: npt.NDArray[np.int64] = np.full((0, ways), -1, np.int64)
        """`[capacity, W]`: where each way lies; −1: it holds nothing."""
        self.states: Tensor = torch.zeros((0, heads, rank, rank), device=device)
        """`[P, H, R, R]` float32, by place."""
        self.centroids: npt.NDArray[np.float32] = np.zeros((0, dim), np.float32)
        """`[P, D]` float32, by place: the sum of the embeddings filed there, each of length 1."""
        self._free: list[int] = []

    @property
    def used(self) -> int:
        """Places that hold a state."""
        return len(self.centroids) - len(self._free)

    @property
    def bytes_held(self) -> int:
        """Bytes of the states and centroids that are held."""
        return 4 * self.used * (self.dim + self.heads * self.rank**2)

    @property
    def bytes_reserved(self) -> int:
        """Bytes of states and centroids, taken or free."""
        return 4 * len(self.centroids) * (self.dim + self.heads * self.rank**2)

    @property
    def layout(self) -> str:
        """Say W, H, R and D."""
        return f"filed:{self.ways}x{self.heads}x{self.rank}x{self.dim}"

    def resize(self, capacity: int) -> None:
        """Make room for `capacity` lanes; places are made when they are needed."""
        if capacity > len(self.places):
            fresh = np.full((capacity - len(self.places), self.ways), -1, np.int64)
            self.places = np.concatenate([self.places, fresh])

    def hold(self, slots: Slots, ways: Slots) -> None:
        """Give each (slot, way) of two `[m]` rows a place with a state of zeros, if it has none."""
        missing = self.places[slots, ways] < 0
        slots, ways = slots[missing], ways[missing]
        while len(self._free) < len(slots):
            self._grow()
        if len(slots):
            self.places[slots, ways] = [self._free.pop() for _ in range(len(slots))]

    def _grow(self) -> None:
        have = len(self.centroids)
        more = max(16, have // 2)
        self.states = torch.cat([self.states, self.states.new_zeros((more, *self.states.shape[1:]))])
        self.centroids = np.concatenate([self.centroids, np.zeros((more, self.dim), np.float32)])
        self._free.extend(range(have + more - 1, have - 1, -1))

    def likeness(self, slots: Slots, embeddings: npt.NDArray[np.float32]) -> Floats:
        """Return the cosine of each embedding `[n, D]` with the lane's centroids, `[n, W]`; NaN without either."""
        return cosines(self.places[slots], self.centroids, embeddings, np.arange(len(slots)))

    def learn(self, slots: Slots, ways: Slots, embeddings: npt.NDArray[np.float32]) -> None:
        """Add embeddings `[m, D]`, scaled to length 1, to the centroids at (slot, way); zeros and NaN are skipped."""
        good, unit = of_length_one(embeddings)
        self.centroids[self.places[slots[good], ways[good]]] += unit

    def clear(self, slots: Slots) -> None:
        """Let go of what the lanes hold, and wipe it."""
        held = self.places[slots]
        gone = np.sort(held[held >= 0])[::-1]
        if len(gone):
            self.states[torch.from_numpy(gone.copy()).to(self.states.device)] = 0
            self.centroids[gone] = 0
            self._free.extend(gone.tolist())
        self.places[slots] = -1

    def dump(self, slots: Slots) -> Sequence[bytes]:
        """Return for each lane which ways it holds, their centroids and their states."""
        lane, way = np.nonzero(self.places[slots] >= 0)
        at = self.places[slots[lane], way]
        with torch_threads(
            1
        ):  # one copy; for each lane by itself, waking torch's threads would cost a hundred times it
            states = self.states[torch.from_numpy(at).to(self.states.device)].cpu().numpy()
        centroids, ends = self.centroids[at], np.searchsorted(lane, np.arange(len(slots) + 1)).tolist()
        return [
            struct.pack(f"<{1 + last - first}i", last - first, *way[first:last].tolist())
            + centroids[first:last].tobytes()
            + states[first:last].tobytes()
            for first, last in pairwise(ends)
        ]

    def load(self, slot: int, blob: bytes) -> None:
        """Fill one lane from its blob."""
        one = 4 * (self.dim + self.heads * self.rank**2)
        count = struct.unpack_from("<i", blob)[0] if len(blob) >= 4 else -1
        if not 0 <= count <= self.ways or len(blob) != 4 + count * (4 + one):
            raise ValueError(f"expected a blob of {self.layout}, got {len(blob)} bytes for {count} states")
        self.clear(np.array([slot]))
        ways = np.array(struct.unpack_from(f"<{count}i", blob, 4), np.int64)
        self.hold(np.full(count, slot), ways)
        at = self.places[slot, ways]
        centroids = np.frombuffer(blob, np.float32, count * self.dim, 4 + 4 * count)
        states = np.frombuffer(blob, np.float32, count * one // 4 - centroids.size, 4 + 4 * count + 4 * centroids.size)
        self.centroids[at] = centroids.reshape(count, self.dim)
        shape = (count, self.heads, self.rank, self.rank)
        where = torch.from_numpy(at).to(self.states.device)
        self.states[where] = torch.from_numpy(states.reshape(shape).copy()).to(self.states.device)


def cosines(
    places: Slots, centroids: npt.NDArray[np.float32], embeddings: npt.NDArray[np.float32], rows: Slots
) -> Floats:
    """Return the cosines of n embeddings with some centroids each.

    Parameters
    ----------
    places
        `[n, W]` int64: rows of `centroids`; −1: none.
    centroids
        `[P, D]` float32.
    embeddings
        `[m, D]` float32.
    rows
        `[n]` int64: which embedding each of the n is.

    Returns
    -------
    ndarray
        `[n, W]` float64; NaN where either is missing, zero or not finite.

    Examples
    --------
    >>> centroids = np.array([[2, 0], [0, 0]], np.float32)
    >>> cosines(np.array([[0, 1, -1]]), centroids, np.ones((1, 2), np.float32), np.array([0])).round(3).tolist()
    [[0.707, nan, nan]]
    """
    found = np.full(places.shape, np.nan)
    arguments = (places, centroids, np.ascontiguousarray(embeddings), rows, found)
    share_out(lambda first, last: _cosines(first, last, *arguments), len(places), found.size * centroids.shape[1])
    return found


def of_length_one(embeddings: npt.NDArray[np.float32]) -> tuple[Flags, npt.NDArray[np.float32]]:
    """Say which of n embeddings `[n, D]` have a length, `[n]` bool; and return those m at length 1, `[m, D]`.

    Examples
    --------
    >>> good, unit = of_length_one(np.array([[0, 0], [3, 4], [np.nan, 1]], np.float32))
    >>> good.tolist(), unit.round(6).tolist()
    ([False, True, False], [[0.6000000238418579, 0.800000011920929]])
    """
    size = np.sqrt((embeddings.astype(np.float64) ** 2).sum(axis=1))
    good = np.isfinite(size) & (size > 0)
    return good, (embeddings[good] / size[good, None]).astype(np.float32)


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _cosines(first: Any, last: Any, places: Any, centroids: Any, embeddings: Any, rows: Any, found: Any) -> None:
    dim = embeddings.shape[1]
    for lane in range(first, last):
        embedding = embeddings[rows[lane]]
        size = np.float32(0)
        for d in range(dim):
            size += embedding[d] * embedding[d]
        if not (size > 0 and size < np.inf):
            continue
        for way in range(places.shape[1]):
            if places[lane, way] >= 0:
                centroid = centroids[places[lane, way]]
                dot, length = np.float32(0), np.float32(0)
                for d in range(dim):
                    dot += embedding[d] * centroid[d]
                    length += centroid[d] * centroid[d]
                if length > 0:
                    found[lane, way] = dot / np.sqrt(np.float64(size) * length)
