"""A smaller tape out of a large one: some of its streams, from their first events on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa

from stream.report.read_run import Run
from stream.tape import TapeReader
from stream.tape.format import Encoder

SEVERAL = 8
"""Streams that a sample is of, if there are as many."""


@dataclass(frozen=True)
class Sample:
    """What was taken of a tape.

    Attributes
    ----------
    folder
        A tape: the whole one, or one with the streams that were drawn.
    events, streams
        On it.
    words
        What was taken, for the reader.
    """

    folder: Path
    events: int
    streams: int
    words: str


def sample_tape(run: Run, most: int, scratch: Path, *, partial: bool = False) -> Sample:
    """Return a tape of at most `most` events.

    Streams are drawn by the CRC-32 of their names, so that the same tape gives the same sample, each from its first
    event on. So that a few long streams do not stand for all, none gives more than its share of `SEVERAL`.

    Parameters
    ----------
    run
        What was read of the tape.
    most
        Events.
    scratch
        A folder to write to.
    partial
        As `stream.tape.TapeReader` takes it.
    """
    if len(run) <= most:
        return Sample(run.path, len(run), len(run.streams), f"all {len(run):,} events")
    share = max(1, most // min(SEVERAL, len(run.streams)))
    counts = np.minimum(np.bincount(run.stream, minlength=len(run.streams)), share)
    left, budget = dict[str, int](), most
    for place in sorted(range(len(run.streams)), key=lambda place: crc32(run.streams[place].encode(errors="replace"))):
        if counts[place] <= budget:
            left[run.streams[place]] = int(counts[place])
            budget -= int(counts[place])
    drawn, cut = len(left), any(count == share for count in left.values())
    folder = scratch / "sample"
    folder.mkdir()
    taken = _write(run.path, left, folder / "part-000000.arrows", partial=partial)
    words = f"{taken:,} of {len(run):,} events: {drawn:,} of {len(run.streams):,} streams, drawn by their names"
    return Sample(folder, taken, drawn, f"{words}, the first {share:,} events of each at most" if cut else words)


def _write(tape: Path, left: dict[str, int], path: Path, *, partial: bool) -> int:
    """Write the first events of some streams, as many of each as `left` says; return how many there are."""
    encoder, begun = None, sum(left.values())
    with path.open("xb") as file:
        for batch in TapeReader(tape, partial=partial).batches():
            if encoder is None:
                encoder = Encoder(batch.schema)
                file.write(encoder.head)
            wanted = []
            for name in batch["stream"].to_pylist():
                wanted.append(left.get(name, 0) > 0)
                if wanted[-1]:
                    left[name] -= 1
            if any(wanted):
                file.write(encoder.encode(as_read(batch.filter(pa.array(wanted)))))
            if not any(left.values()):
                break
    return begun - sum(left.values())


def as_read(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the rows in the very buffers that a reader will see: the checksum is of those.

    What was cut out of another batch may begin in the middle of a buffer, or carry a list of nulls without any.
    """
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, batch.schema) as writer:
        writer.write_batch(batch)
    return pa.ipc.open_stream(buffer.getvalue()).read_next_batch()
