"""A smaller tape out of a large one: some of its streams, whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa

from stream.report.read_run import Run
from stream.tape import TapeReader
from stream.tape.format import Encoder


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

    Streams are drawn by the CRC-32 of their names, so that the same tape gives the same sample; each is taken from its
    first event to its last. Only where the first one drawn has more than `most` events is it cut at that many.

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
    counts = np.bincount(run.stream, minlength=len(run.streams))
    drawn, left = set[str](), most
    for place in sorted(range(len(run.streams)), key=lambda place: crc32(run.streams[place].encode(errors="replace"))):
        if counts[place] <= left or not drawn:
            drawn.add(run.streams[place])
            left -= int(counts[place])
        if left <= 0:
            break
    folder = scratch / "sample"
    folder.mkdir()
    taken = _write(run, drawn, most, folder / "part-000000.arrows", partial=partial)
    cut = ", the first events of it," if left < 0 else ""
    words = (
        f"{taken:,} of {len(run):,} events: {len(drawn):,} of {len(run.streams):,} streams{cut} drawn by their names"
    )
    return Sample(folder, taken, len(drawn), words)


def _write(run: Run, drawn: set[str], most: int, path: Path, *, partial: bool) -> int:
    taken, encoder = 0, None
    with path.open("xb") as file:
        for batch in TapeReader(run.path, partial=partial).batches():
            if encoder is None:
                encoder = Encoder(batch.schema)
                file.write(encoder.head)
            wanted = np.array([name in drawn for name in batch["stream"].to_pylist()], np.bool_)
            some = batch.filter(pa.array(wanted)).slice(0, most - taken)
            if len(some):
                # Written anew, so that the columns begin at their beginning: the checksum is of whole buffers.
                some = pa.RecordBatch.from_arrays([_anew(column) for column in some.columns], schema=batch.schema)
                file.write(encoder.encode(some))
                taken += len(some)
            if taken >= most:
                break
    return taken


def _anew(column: pa.Array) -> pa.Array:
    return pa.concat_arrays([column, column.slice(0, 0)]) if column.offset == 0 else column.take(range(len(column)))
