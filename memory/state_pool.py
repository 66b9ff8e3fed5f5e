"""Where the states live: one preallocated tensor, a slot a lane, the least recently used lanes spilled.

A lane is resident (in a slot of `states`), spilled (a record in host memory), or stored (a record that the store brings
back). Records go to the store only through `records` and `committed`, which the caller wraps in its own transaction: a
lane never reaches the store ahead of the input position that it belongs to. Until then a spilled lane that changed
stays in host memory, and `wants_commit` says when there are too many of them.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from memory.errors import StateMismatchError
from memory.lane_state import LaneState, Slots

EXPORT = 1024
"""Lanes copied off the device at a time."""

RELIEF = 64
"""Lanes spilled at a time where what they hold is over the bound."""


@dataclass(frozen=True, slots=True)
class LaneRecord:
    """One lane, whole, as it is spilled and stored: a copy.

    Attributes
    ----------
    layout
        Dtype and shape of the state, such as ``float32[1, 1, 32, 32]``.
    state
        The state's bytes, row-major, little-endian.
    beside
        What each `LaneState` beside the pool keeps for this lane, by its name.
    """

    layout: str
    state: bytes
    beside: dict[str, bytes]


class StatePool:
    """Slots for the states of many streams.

    Parameters
    ----------
    layers, heads, rank
        Shape of one state, `[L, H, R, R]`, always float32 (bfloat16 states drift).
    beside
        Components that keep something for each lane; they grow, spill and come back with it.
    device
        Where the states live.
    capacity
        Slots at the start. Doubled when full, up to `max_bytes`; after that the least recently used lane is spilled.
    max_bytes
        Bound on the bytes of the resident lanes' states, and of what grows beside them (`LaneState.bytes_held`).
    max_spilled
        Changed lanes in host memory above which `wants_commit` asks for a commit.
    fetch
        Called with the keys that are neither resident nor spilled; returns the records of those that the store has.

    Examples
    --------
    >>> pool = StatePool(layers=1, heads=1, rank=2, capacity=1, max_bytes=16)
    >>> slot = pool.acquire(["ann"])[0]
    >>> pool.states[slot] = 1.5
    >>> _ = pool.acquire(["bob"])  # one slot only: ann is spilled
    >>> pool.resident, pool.spilled
    (1, 1)
    >>> pool.states[pool.acquire(["ann"])[0]].flatten().tolist()
    [1.5, 1.5, 1.5, 1.5]
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        rank: int,
        *,
        beside: Mapping[str, LaneState] | None = None,
        device: torch.device | str = "cpu",
        capacity: int = 1024,
        max_bytes: int = 4 << 30,
        max_spilled: int = 65_536,
        fetch: Callable[[Sequence[str]], Mapping[str, LaneRecord]] | None = None,
    ):
        self.shape = (layers, heads, rank, rank)
        self.lane_bytes = 4 * layers * heads * rank * rank
        self.device = torch.device(device)
        self.max_bytes = max_bytes
        self.max_capacity = max_bytes // self.lane_bytes
        if self.max_capacity < 1:
            raise ValueError(f"max_bytes={max_bytes} does not hold one state of {self.lane_bytes} bytes")
        self.max_spilled = max_spilled
        self.beside = dict(beside or {})
        self._moves = {"out": 0, "in": 0}
        self._fetch = fetch
        self._slots: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._spilled: dict[str, LaneRecord] = {}
        self._changed: dict[str, None] = {}  # in the order they changed, so that commits are in a fixed order
        self._free: list[int] = []
        self._used = 0  # slots at or above this were never taken, and are zero
        self._taken = np.zeros(0, np.bool_)
        self.states = self._zeros(0)
        self._grow(min(max(capacity, 1), self.max_capacity))

    @property
    def layout(self) -> str:
        """Dtype and shape of one state, as in `LaneRecord.layout`."""
        return f"float32{list(self.shape)}"

    @property
    def capacity(self) -> int:
        """Slots allocated."""
        return len(self.states)

    @property
    def resident(self) -> int:
        """Lanes in a slot."""
        return len(self._slots)

    @property
    def spilled(self) -> int:
        """Lanes in host memory."""
        return len(self._spilled)

    @property
    def changed(self) -> int:
        """Lanes that changed since the last commit."""
        return len(self._changed)

    @property
    def bytes_reserved(self) -> int:
        """Bytes of `states`, taken or free. On the host, pages never written are not resident."""
        return self.capacity * self.lane_bytes

    @property
    def bytes_used(self) -> int:
        """Bytes of the resident lanes' states."""
        return self.resident * self.lane_bytes

    @property
    def bytes_beside(self) -> int:
        """Bytes of what grows beside the resident lanes' states, such as filed states."""
        return sum(component.bytes_held for component in self.beside.values())

    @property
    def wants_commit(self) -> bool:
        """Whether so many changed lanes are spilled that they should be committed now."""
        return len(self._spilled) > self.max_spilled

    def __contains__(self, key: str) -> bool:
        return key in self._slots or key in self._spilled

    def knows(self, key: str) -> bool:
        """Say whether there is such a lane, in the pool or in the store."""
        return key in self or (self._fetch is not None and key in self._fetch([key]))

    def acquire(self, keys: Sequence[str]) -> Slots:
        """Make the lanes resident, new ones as zeros, and count them as changed.

        Parameters
        ----------
        keys
            The lanes' names, all different.

        Returns
        -------
        Slots
            `[n]` int64, in the order of `keys`. Valid until the next call: a later one may spill these lanes, or grow
            `states` (take `pool.states` afresh each time).

        Raises
        ------
        ValueError
            A key twice, or more keys than the pool may ever hold at once.
        StateMismatchError
            A record brought back is of another shape or dtype; no lane was changed or lost.
        """
        if len(keys) > self.max_capacity:
            raise ValueError(
                f"{len(keys)} lanes at once do not fit a pool of {self.max_capacity} slots: raise its bound in bytes, "
                "or make the batches smaller"
            )
        if len(set(keys)) < len(keys):
            raise ValueError(f"expected lanes that are all different, got one twice among {len(keys)}")
        absent = []
        for key in keys:
            if key in self._slots:
                self._slots.move_to_end(key)
            else:
                absent.append(key)
        if absent:
            self._bring(absent, len(keys))
        self._relieve(len(keys))
        self._changed.update(dict.fromkeys(keys))
        slots = self._slots
        return np.fromiter((slots[key] for key in keys), np.int64, len(keys))

    def release(self, key: str) -> None:
        """Forget a lane: its slot is free, its record gone. The store is the caller's to clear."""
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._taken[slot] = False
            self._free.append(slot)
        self._spilled.pop(key, None)
        self._changed.pop(key, None)

    def record(self, key: str) -> LaneRecord:
        """Return a copy of a lane that is resident or spilled.

        Raises
        ------
        KeyError
            The lane is neither.
        """
        if key in self._spilled:
            return self._spilled[key]
        return next(iter(self._export([key])))[1]

    def put_back(self, key: str, record: LaneRecord) -> None:
        """Make a resident lane what a record of it says."""
        slot = self._slots[key]
        for component in self.beside.values():
            component.clear(np.array([slot]))
        self._import({key: slot}, {key: record})

    def records(self) -> Iterator[tuple[str, LaneRecord]]:
        """Yield the lanes that changed since the last commit, each a copy."""
        resident = [key for key in self._changed if key in self._slots]
        yield from self._export(resident)
        for key in self._changed:
            if key in self._spilled:
                yield key, self._spilled[key]

    def committed(self) -> None:
        """Say that what `records` gave is in the store, from where `fetch` brings back what was spilled.

        Without a `fetch` there is no store, and spilled records stay in host memory.
        """
        self._changed.clear()
        if self._fetch is not None:
            self._spilled.clear()

    def slots(self) -> dict[str, int]:
        """Return the resident lanes and their slots, least recently used first: a copy, safe to take in any thread."""
        return dict(self._slots)

    def slot_array(self) -> Slots:
        """Return the slots that hold a lane, `[n]` int64, ascending: quick, and safe to take in any thread."""
        return np.flatnonzero(self._taken)

    def take_moves(self) -> dict[str, int]:
        """Return how many lanes left the pool (`out`) and came back (`in`) since this was last asked."""
        moves, self._moves = self._moves, {"out": 0, "in": 0}
        return moves

    def _zeros(self, capacity: int) -> Tensor:
        if self.device.type == "cpu":  # numpy's zeros come from calloc: pages not yet written cost nothing
            return torch.from_numpy(np.zeros((capacity, *self.shape), np.float32))
        return torch.zeros((capacity, *self.shape), device=self.device)

    def _grow(self, capacity: int) -> None:
        grown = self._zeros(capacity)
        grown[: self._used] = self.states[: self._used]
        self._free[:0] = range(capacity - 1, self.capacity - 1, -1)  # taken last: pages far up stay untouched
        self.states = grown
        self._taken = np.concatenate([self._taken, np.zeros(capacity - len(self._taken), np.bool_)])
        for component in self.beside.values():
            component.resize(capacity)

    def _bring(self, absent: Sequence[str], wanted: int) -> None:
        """Give each absent lane a slot and its content. The other `wanted − absent` lanes were just touched."""
        unknown = [key for key in absent if key not in self._spilled]
        found = dict(self._fetch(unknown)) if self._fetch is not None and unknown else {}
        found.update((key, self._spilled[key]) for key in absent if key in self._spilled)
        for key, record in found.items():
            self._check(key, record)
        while len(self._free) < len(absent) and self.capacity < self.max_capacity:
            self._grow(min(2 * self.capacity, self.max_capacity))
        surplus = len(absent) - len(self._free)
        if surplus > 0:
            self._spill([key for key, _ in zip(self._slots, range(surplus), strict=False)])
        taken = [self._free.pop() for _ in absent]
        slots = np.array(taken, np.int64)
        reused = slots[slots < self._used]
        if len(reused):
            self.states[torch.from_numpy(reused)] = 0
        self._used = max(self._used, int(slots.max()) + 1)
        for component in self.beside.values():
            component.clear(slots)
        given = dict(zip(absent, taken, strict=True))
        try:
            self._import(given, found)
        except BaseException:
            self._free.extend(taken)
            raise
        self._moves["in"] += len(found)
        for key in found:
            self._spilled.pop(key, None)
        self._slots.update(given)
        self._taken[slots] = True

    def _relieve(self, wanted: int) -> None:
        """Spill lanes, but for the `wanted` used last, while what they hold beside their states is over the bound."""
        spare = len(self._slots) - wanted
        while spare > 0 and self.bytes_used + self.bytes_beside > self.max_bytes:
            some = list(islice(self._slots, min(RELIEF, spare)))
            slots = np.fromiter((self._slots[key] for key in some), np.int64, len(some))
            self._spill(some)
            for component in self.beside.values():  # what they held is free now, not only once the slot is taken again
                component.clear(slots)
            spare -= len(some)

    def _spill(self, keys: Sequence[str]) -> None:
        # A lane that did not change is in the store as it is: only changed ones are kept in host memory.
        changed = [key for key in keys if key in self._changed or self._fetch is None]
        for key, record in self._export(changed):
            self._spilled[key] = record
        self._moves["out"] += len(keys)
        for key in keys:
            slot = self._slots.pop(key)
            self._free.append(slot)
            self._taken[slot] = False

    def _export(self, keys: Sequence[str]) -> Iterator[tuple[str, LaneRecord]]:
        layout = self.layout
        for first in range(0, len(keys), EXPORT):
            some = keys[first : first + EXPORT]
            slots = np.fromiter((self._slots[key] for key in some), np.int64, len(some))
            states = self.states[torch.from_numpy(slots).to(self.device)].cpu().numpy()  # one copy off the device
            beside = {name: component.dump(slots) for name, component in self.beside.items()}
            for row, key in enumerate(some):
                blobs = {name: each[row] for name, each in beside.items()}
                yield key, LaneRecord(layout, states[row].tobytes(), blobs)

    def _check(self, key: str, record: LaneRecord) -> None:
        if record.layout != self.layout or len(record.state) != self.lane_bytes:
            raise StateMismatchError(
                f"the stored state of {key!r} is {record.layout} ({len(record.state)} bytes) but this run uses "
                f"{self.layout}: run with the rank and backbone it was made with, or with another --state"
            )

    def _import(self, given: Mapping[str, int], found: Mapping[str, LaneRecord]) -> None:
        """Fill slots (lane → slot) from the records of those lanes that have one."""
        if not found:
            return
        slots = np.fromiter((given[key] for key in found), np.int64, len(found))
        whole = bytearray().join(record.state for record in found.values())
        states = torch.from_numpy(np.frombuffer(whole, np.float32).reshape(len(found), *self.shape))
        self.states[torch.from_numpy(slots).to(self.device)] = states.to(self.device)
        for name, component in self.beside.items():
            known = {key: record.beside[name] for key, record in found.items() if name in record.beside}
            at = slots if len(known) == len(found) else np.fromiter((given[key] for key in known), np.int64, len(known))
            try:
                component.load_all(at, list(known.values()))
            except ValueError as error:
                raise StateMismatchError(
                    f"what is stored beside the state of {_some(known)} does not fit: {error}"
                ) from error


def _some(keys: Iterable[str]) -> str:
    """Name one of several lanes, or the only one."""
    first, *others = keys
    return repr(first) if not others else f"{first!r} or {len(others)} more"


def pack(parts: Mapping[str, bytes]) -> bytes:
    """Put named blobs end to end behind one line that says how long each is.

    >>> unpack(pack({"a": b"1", "b": b""}))
    {'a': b'1', 'b': b''}
    """
    head = json.dumps({name: len(blob) for name, blob in parts.items()}).encode()
    return b"\n".join([head, b"".join(parts.values())])


def unpack(packed: bytes) -> dict[str, bytes]:
    """Take apart what `pack` put together."""
    head, _, body = packed.partition(b"\n")
    parts, at = {}, 0
    for name, length in json.loads(head).items():
        parts[name] = body[at : at + length]
        at += length
    return parts
