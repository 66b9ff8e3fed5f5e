"""What a tape holds: one row an event, in Arrow's streaming format, which grows by whole record batches.

    stream, seq, id, ts   which event
    tokens                how many it had
    text                  what it said, where that was asked for
    embedding             [D] float32
    writes                how many pairs it wrote
    keys, values          [writes · N · R] float32, row-major; N = layers · heads
    beta, lam             the gates, [writes · N · 1] or [writes · N · R]; lam only where the mode has its own
    <signal>              float64, NaN where it could not be measured
    alarms                names
    action, factor        what the policy did
    reason                and why
    by_hand               what operators did to the stream right before the event, as JSON; null mostly

What the schema's metadata tells of the run (`TapeHead`) is JSON under ``ebbtide``, with its CRC-32 beside it. Each
record batch carries the byte at which it begins, and the CRC-32 of its columns and of that place: one that was moved is
known.
Any Arrow reader opens a tape: ``pyarrow.ipc.open_stream(path)``.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, PositiveInt

from memory.errors import EbbtideError
from memory.writers import Rows
from monitors.observations import SIGNALS
from monitors.policies.policy import LABELS
from stream.engine import Outcome

VERSION = 3
"""2 added `by_hand`, 3 the head's checksum and each record batch's place; tapes of the versions before are read too."""


class TapeHead(BaseModel):
    """What a replay must know of the run beside its rows.

    Attributes
    ----------
    version
        Of the format.
    layers, heads, rank, mode
        Of the memory.
    dim, mean
        D, the width of an embedding; and the `[D]` numbers that are subtracted from it, or None.
    own_lam
        Whether `lam` is on the tape.
    row_gates
        Whether the rows of a head have gates of their own.
    watched, every
        What the signals come from, and how often probes are asked for: see `stream.engine.Engine`.
    attached
        Whether reads fed back into the model: then a replay under another policy is exact for the first layer only.
    with_text
        Whether `text` is on the tape.
    policy, detectors
        As the run had them.
    settings
        What the states depend on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = VERSION
    layers: PositiveInt
    heads: PositiveInt
    rank: PositiveInt
    mode: str
    dim: PositiveInt
    mean: list[float] | None
    own_lam: bool
    row_gates: bool
    watched: list[int] | None
    every: int
    attached: bool
    with_text: bool
    policy: dict[str, Any]
    detectors: dict[str, Any]
    settings: dict[str, str]


def schema_of(head: TapeHead) -> pa.Schema:
    """Return the schema of a tape, the head in its metadata."""
    floats = pa.list_(pa.float32())
    fields = [
        pa.field("stream", pa.utf8(), nullable=False),
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("id", pa.utf8()),
        pa.field("ts", pa.utf8()),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32(), head.dim), nullable=False),
        pa.field("writes", pa.int32(), nullable=False),
        *(pa.field(name, floats, nullable=False) for name in ("keys", "values", "beta")),
        *([pa.field("lam", floats, nullable=False)] if head.own_lam else []),
        *(pa.field(name, pa.float64(), nullable=False) for name in SIGNALS),
        pa.field("alarms", pa.list_(pa.utf8()), nullable=False),
        pa.field("action", pa.utf8(), nullable=False),
        pa.field("factor", pa.float64(), nullable=False),
        pa.field("reason", pa.utf8(), nullable=False),
        *([pa.field("by_hand", pa.list_(pa.utf8()))] if head.version >= 2 else []),
        *([pa.field("text", pa.utf8())] if head.with_text else []),
    ]
    told = head.model_dump_json()
    return pa.schema(
        fields, {"ebbtide": told} | ({"crc32": f"{crc32(told.encode()):08x}"} if head.version >= 3 else {})
    )


def to_batch(schema: pa.Schema, outcome: Outcome) -> pa.RecordBatch:
    """Make a record batch of a micro-batch."""
    rows, events = outcome.rows, outcome.events
    assert rows is not None
    columns: dict[str, Any] = {
        "stream": [event.stream for event in events],
        "seq": outcome.seq,
        "id": [event.id for event in events],
        "ts": [None if event.ts is None else str(event.ts) for event in events],
        "tokens": outcome.tokens.astype(np.int32),
        "embedding": pa.FixedSizeListArray.from_arrays(_flat(rows.embedding), rows.embedding.shape[1]),
        "writes": np.diff(rows.bounds).astype(np.int32),
        **_written(rows),
        **{name: outcome.signals[name] for name in SIGNALS},
        "alarms": _alarms(outcome),
        "action": [LABELS[kind] for kind in outcome.actions.kind.tolist()],
        "factor": outcome.actions.factor,
        "reason": outcome.actions.reason,
        "by_hand": [outcome.by_hand.get(row) for row in range(len(events))],
    }
    if "text" in schema.names:
        columns["text"] = [event.text for event in events]
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, schema.field(name).type)
        for name, column in columns.items()
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _flat(array: npt.NDArray[np.float32]) -> pa.Array:
    return pa.array(np.ascontiguousarray(array).reshape(-1))


def _written(rows: Rows) -> dict[str, pa.Array]:
    """Return keys, values and gates as lists of floats, one list an event, without copying the numbers."""
    parts = {"keys": rows.keys, "values": rows.values, "beta": rows.beta}
    if rows.lam is not None:
        parts["lam"] = rows.lam
    return {
        name: pa.ListArray.from_arrays(
            pa.array((rows.bounds * int(np.prod(part.shape[1:]))).astype(np.int32)), _flat(part)
        )
        for name, part in parts.items()
    }


def _alarms(outcome: Outcome) -> pa.Array:
    names = list(outcome.alarms)
    raised = np.stack([outcome.alarms[name] for name in names], axis=1) if names else np.zeros((len(outcome.events), 0))
    row, which = np.nonzero(raised)
    offsets = np.concatenate([[0], np.cumsum(raised.sum(axis=1))]).astype(np.int32)
    values = pa.array([names[place] for place in which.tolist()], pa.utf8())
    assert len(row) == len(values)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def checksum(batch: pa.RecordBatch, place: int | None = None) -> int:
    """Return the CRC-32 of a record batch's place, if it has one, its buffers, lengths and null counts."""
    total = 0 if place is None else crc32(str(place).encode())
    for column in batch.columns:
        total = crc32(f"{len(column)} {column.null_count} {column.offset}".encode(), total)
        for buffer in column.buffers():
            total = crc32(b"" if buffer is None else buffer, total)
    return total


class Encoder:
    """Turns record batches into the bytes to append to a tape.

    Parameters
    ----------
    schema
        The tape's.

    Attributes
    ----------
    head
        The bytes that a tape begins with.
    """

    def __init__(self, schema: pa.Schema):
        self._schema = schema
        self.head: bytes = schema.serialize().to_pybytes()
        self._next = len(self.head)

    def encode(self, batch: pa.RecordBatch, place: int | None = None) -> memoryview:
        """Return the bytes of one record batch, its checksum with it.

        Parameters
        ----------
        batch
            The record batch.
        place
            The byte of the part at which it will begin; None: right behind the one before it.
        """
        place = self._next if place is None else place
        buffer = pa.BufferOutputStream()
        writer = pa.ipc.new_stream(buffer, self._schema)
        about = {"crc32": f"{checksum(batch, place):08x}", "place": str(place)}
        writer.write_batch(batch, custom_metadata=about)
        # Not closed: that would end the stream. The schema goes before each stream's first batch, and is there already.
        data = memoryview(buffer.getvalue()).cast("B")
        assert data[: len(self.head)] == self.head
        self._next = place + len(data) - len(self.head)
        return data[len(self.head) :]


def rows_of(batch: pa.RecordBatch, head: TapeHead) -> Rows:
    """Return what the events of a record batch wrote.

    Raises
    ------
    EbbtideError
        It is not of the shape that the head tells: one of them was damaged.
    """
    try:
        return _rows_of(batch, head)
    except ValueError as error:
        raise EbbtideError(f"a record batch of a tape does not fit its head: it was damaged ({error})") from None


def _rows_of(batch: pa.RecordBatch, head: TapeHead) -> Rows:
    heads, n = head.layers * head.heads, len(batch)
    counts = batch["writes"].to_numpy().astype(np.int64)
    bounds = np.concatenate([[0], np.cumsum(counts)])

    def part(name: str, width: int | None) -> npt.NDArray[np.float32]:
        flat: npt.NDArray[np.float32] = batch[name].flatten().to_numpy(zero_copy_only=False)
        last = width if width is not None else max(1, len(flat) // max(1, heads * int(bounds[-1])))
        return flat.reshape(int(bounds[-1]), heads, last)

    embedding = batch["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(n, head.dim)
    lam = part("lam", None) if head.own_lam else None
    return Rows(bounds, part("keys", head.rank), part("values", head.rank), part("beta", None), lam, embedding)
