"""What a state store holds, as its users see it: a checkpoint's parts, and what operators asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stream.sources.position import Position


class OutputMark(NamedTuple):
    """Up to where an output belongs to a checkpoint, and what tells that output from another one."""

    mark: int
    identity: str = ""


class Request(NamedTuple):
    """An action that an operator asked for."""

    id: int
    stream: str
    action: str


class Acted(NamedTuple):
    """An operator's action that was taken.

    Attributes
    ----------
    request
        The id of the row that asked for it; None where it came by HTTP.
    stream
        On which stream.
    seq
        Before which of its events.
    action
        What, as JSON.
    outcome
        What came of it, in words; it begins with "refused" where nothing was done.
    time
        Unix time in seconds.
    before
        The state's bytes before it, for taking it back; None where nothing was done.
    """

    request: int | None
    stream: str
    seq: int
    action: str
    outcome: str
    time: float
    before: bytes | None


@dataclass(slots=True)
class Checkpoint:
    """What a run goes on from, lanes excepted: those are fetched when their streams come up.

    Attributes
    ----------
    positions
        Partition → where to go on.
    marks
        Output → its mark.
    counters
        What `Metrics.persistent` gave.
    """

    positions: dict[str, Position] = field(default_factory=dict)
    marks: dict[str, OutputMark] = field(default_factory=dict)
    counters: dict[str, Any] = field(default_factory=dict)
