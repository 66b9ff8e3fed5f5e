"""The monitors as the check suite sees them: one value of each lane in, one measured number out.

Each adapter turns a value into what its monitor is given in the engine, so that the measured number is in one place
while the value is near 0.5 and in another once it has moved by 4. If a monitor's interface changes, only its adapter
here changes with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from memory.lane_state import LaneState, Slots
from monitors.observations import Floats
from monitors.retrieval_error import RetrievalErrorMonitor
from monitors.state_norm import StateNormMonitor
from monitors.topic_shift import TopicShiftMonitor

HEADS, RANK = 2, 4
APART = 2.0
"""Values below this are of the one kind, values above it of the other."""

Singles = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """What a monitor said of one lane.

    Attributes
    ----------
    bits
        Every number it gave, to the bit.
    away
        Whether the number lies where a shift puts it.
    """

    bits: str
    away: bool


class MonitorLanes(LaneState):
    """One monitor with its rows, and the room that an adapter needs beside them."""

    def __init__(self, monitor: StateNormMonitor | RetrievalErrorMonitor | TopicShiftMonitor):
        self.monitor = monitor
        self.rows: LaneState = monitor.lanes

    @property
    def layout(self) -> str:
        return self.rows.layout

    def resize(self, capacity: int) -> None:
        self.rows.resize(capacity)

    def clear(self, slots: Slots) -> None:
        self.rows.clear(slots)

    def dump(self, slots: Slots) -> Sequence[bytes]:
        return self.rows.dump(slots)

    def load(self, slot: int, blob: bytes) -> None:
        self.rows.load(slot, blob)


class Monitored(ABC):
    """A monitor under check."""

    @abstractmethod
    def new_lanes(self) -> MonitorLanes:
        """Make the monitor, with no lanes yet."""

    @abstractmethod
    def measure(self, lanes: MonitorLanes, slots: Slots, values: Floats) -> list[Measured]:
        """Show each lane at `slots` `[n]` the event that `values` `[n]` stands for."""


class WatchedTopic(Monitored):
    """A value is the direction of an embedding: 0.5 and 4.5 are nearly opposite."""

    def new_lanes(self) -> MonitorLanes:
        return MonitorLanes(TopicShiftMonitor(8))

    def measure(self, lanes: MonitorLanes, slots: Slots, values: Floats) -> list[Measured]:
        monitor = cast(TopicShiftMonitor, lanes.monitor)
        embeddings = np.zeros((len(slots), 8), np.float32)
        with np.errstate(invalid="ignore"):
            embeddings[:, 0], embeddings[:, 1] = np.cos(values * np.pi / 4), np.sin(values * np.pi / 4)
        embeddings[~np.isfinite(values), 0] = values[~np.isfinite(values)]
        scores = monitor.measure(slots, embeddings)
        return [Measured(score.hex(), score > 0.25) for score in scores.tolist()]


class WatchedNorm(Monitored):
    """A value is the size of a state whose stable rank is known."""

    def new_lanes(self) -> MonitorLanes:
        return MonitorLanes(StateNormMonitor(HEADS, RANK))

    def measure(self, lanes: MonitorLanes, slots: Slots, values: Floats) -> list[Measured]:
        monitor = cast(StateNormMonitor, lanes.monitor)
        states = torch.zeros(1 + int(slots.max(initial=0)), HEADS, RANK, RANK)
        one = np.diag([3.0, 2.0, 1.0, 0.0]) / 28**0.5  # stable rank 14 / 9; over both heads, norm 1
        with np.errstate(invalid="ignore"):
            states.numpy()[slots] = values[:, None, None, None] * one
        norms = np.repeat(np.abs(values)[:, None] / 2**0.5, HEADS, axis=1).astype(np.float32)
        norm, rank = monitor.measure(states, slots, norms)
        # A lane leaves a state that is not finite by a reset, which clears these rows as well.
        monitor.lanes.clear(slots[~np.isfinite(values)])
        pairs = zip(norm.tolist(), rank.tolist(), strict=True)
        return [Measured(f"{n.hex()} {r.hex()}", n > APART and abs(r - 14 / 9) < 0.02) for n, r in pairs]


class WatchedRetrieval(Monitored):
    """A value picks the key to be written, and which of two memories the state is: neither knows the other's."""

    def new_lanes(self) -> MonitorLanes:
        return MonitorLanes(RetrievalErrorMonitor(HEADS, RANK))

    def measure(self, lanes: MonitorLanes, slots: Slots, values: Floats) -> list[Measured]:
        monitor = cast(RetrievalErrorMonitor, lanes.monitor)
        finite = np.isfinite(values)
        angles = np.where(finite, 20 * values, 0.0)
        keys = np.zeros((len(slots), HEADS, RANK), np.float32)
        keys[:, :, 0], keys[:, :, 1] = np.cos(angles)[:, None], np.sin(angles)[:, None]
        memories = np.stack([np.eye(RANK), np.roll(np.eye(RANK), 2, axis=0)]).astype(np.float32)
        held = np.array(memories[(np.where(finite, values, 0.0) > APART).astype(np.int64)])  # [n, R, R]
        monitor.remember(slots[finite], keys[finite], (held[:, None] @ keys[..., None])[finite, ..., 0])
        states = torch.zeros(1 + int(slots.max(initial=0)), HEADS, RANK, RANK)
        held[~finite] = np.nan
        states.numpy()[slots] = held[:, None]
        errors = monitor.measure(states, slots).error
        return [Measured(error.hex(), error > 0.25) for error in errors.tolist()]


MONITORS: dict[str, Monitored] = {
    "retrieval_error": WatchedRetrieval(),
    "state_norm": WatchedNorm(),
    "topic_shift": WatchedTopic(),
}
"""The monitors by the name of what they measure."""
