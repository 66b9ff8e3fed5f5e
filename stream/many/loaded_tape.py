"""A tape in memory, by stream: what every policy is given alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from memory.lane_state import Slots
from memory.writers import Segments
from monitors.observations import Floats
from stream.many.returns import returns
from stream.tape.format import TapeHead, rows_of
from stream.tape.tape_reader import TapeReader

Vectors = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LoadedStream:
    """What one stream's T events wrote, in order: M rows in all, N = layers · heads.

    Attributes
    ----------
    name
        The stream's.
    first
        The number of its first event on the tape; 0 unless it began before the tape did.
    tokens
        `[T]` int64: each event's tokens.
    bounds
        `[T + 1]` int64: event i wrote the rows `bounds[i]:bounds[i + 1]`.
    k, v, beta, lam
        `[M, N, R]` float32 (gates also `[M, N, 1]`); lam is None where the mode has no retention gate of its own.
    embeddings
        `[T, D]` float32.
    topic_shift_score
        `[T]` float64: no policy changes it.
    by_hand
        How many of the events came right after something that an operator did to the stream, which is left out here.
    """

    name: str
    first: int
    tokens: Integers
    bounds: Integers
    k: Tensor
    v: Tensor
    beta: Tensor
    lam: Tensor | None
    embeddings: Vectors
    topic_shift_score: Floats
    by_hand: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def writes(self) -> Integers:
        """How many rows each event wrote, `[T]` int64."""
        return np.diff(self.bounds)

    @cached_property
    def back(self) -> Integers:
        """The old event whose topic is back with each event, `[T]` int64; −1 for none: see `returns`."""
        return returns(self.embeddings, self.writes)

    def segment(self, event: int, lanes: int) -> Segments:
        """Return what an event writes, for so many lanes that all write it."""
        rows = slice(int(self.bounds[event]), int(self.bounds[event + 1]))
        bounds = np.array([0, rows.stop - rows.start])
        k, v, beta, lam = self.k[rows], self.v[rows], self.beta[rows], None if self.lam is None else self.lam[rows]
        return Segments(np.zeros(lanes, np.int64), bounds, k, k, v, beta, lam)

    def pair_rows(self) -> Slots:
        """Return the row that each event shows as its pair, `[T]` int64: its writes take turns, as in the engine."""
        return self.bounds[:-1] + np.arange(len(self)) % np.maximum(self.writes, 1)


@dataclass(frozen=True)
class LoadedTape:
    """A tape in memory.

    Attributes
    ----------
    head
        Of the run that was recorded.
    streams
        Name → stream, in the order of their first events.
    torn
        The part of the tape that ends in mid-batch, or None.
    """

    head: TapeHead
    streams: dict[str, LoadedStream]
    torn: Path | None = None

    @property
    def events(self) -> int:
        """Events of all streams."""
        return sum(len(stream) for stream in self.streams.values())

    @property
    def tokens(self) -> int:
        """Tokens of all streams."""
        return sum(int(stream.tokens.sum()) for stream in self.streams.values())

    @property
    def late(self) -> list[str]:
        """Streams that are not on the tape from their first event: their states began elsewhere."""
        return [name for name, stream in self.streams.items() if stream.first]

    @property
    def watched(self) -> list[int]:
        """Those of the N heads that signals come from."""
        head = self.head
        layers = range(head.layers) if head.watched is None else head.watched
        return [layer * head.heads + place for layer in layers for place in range(head.heads)]


def load(tape: Path, *, partial: bool = False) -> LoadedTape:
    """Read a tape into memory: about as many bytes as its files have.

    Parameters
    ----------
    tape
        Its folder.
    partial
        As `TapeReader` takes it.

    Raises
    ------
    ConfigurationError, EbbtideError
        As `TapeReader` raises them.
    """
    reader = TapeReader(tape, partial=partial)
    batches = list(reader.batches())
    if not batches:
        return LoadedTape(reader.head, {}, reader.torn)
    whole = pa.Table.from_batches(batches).combine_chunks()
    (batch,) = whole.to_batches()
    rows = rows_of(batch, reader.head)
    names, of_stream = np.unique(np.array(batch["stream"].to_pylist()), return_inverse=True)
    untouched = np.ones(len(batch), np.bool_)
    if "by_hand" in batch.schema.names:
        untouched = batch["by_hand"].is_null().to_numpy(zero_copy_only=False)
    order = np.argsort(of_stream, kind="stable")  # a stream's events stay in their order
    ends = np.cumsum(np.bincount(of_stream, minlength=len(names)))
    parts = np.split(order, ends[:-1])
    streams = {}
    for place in np.argsort([part[0] for part in parts]).tolist():
        part = parts[place]
        counts = np.diff(rows.bounds)[part]
        bounds = np.concatenate([[0], np.cumsum(counts)])
        at = np.repeat(rows.bounds[part] - bounds[:-1], counts) + np.arange(bounds[-1])
        k, v, beta = (torch.from_numpy(numbers[at]) for numbers in (rows.keys, rows.values, rows.beta))
        streams[str(names[place])] = LoadedStream(
            name=str(names[place]),
            first=int(batch["seq"][int(part[0])].as_py()),
            tokens=batch["tokens"].to_numpy()[part].astype(np.int64),
            bounds=bounds,
            k=k,
            v=v,
            beta=beta,
            lam=None if rows.lam is None else torch.from_numpy(rows.lam[at]),
            embeddings=rows.embedding[part],
            topic_shift_score=batch["topic_shift_score"].to_numpy()[part],
            by_hand=int((~untouched[part]).sum()),
        )
    return LoadedTape(reader.head, streams, reader.torn)
