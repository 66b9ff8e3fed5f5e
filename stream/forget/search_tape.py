"""Searching a tape, and saying what each hit is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from stream.forget.output import Advance
from stream.forget.search import Finding, Searcher
from stream.tape.parts import number_of, parts_of
from stream.tape.tape_reader import TapeReader

FIXED = frozenset({"alarms", "action", "reason"})
"""Columns that hold words of ours, not of those who wrote the events."""


def search_tape(folder: Path, searcher: Searcher, advance: Advance = lambda count: None) -> Iterator[Finding]:
    """Search each part of a tape."""
    told = _walk(folder, searcher)
    for part in parts_of(folder):
        finding = Finding(str(part), part.stat().st_size)
        for _, _, inside in searcher.file(part, advance):
            finding.hits += 1
            finding.in_names += inside
        found = told.get(number_of(part), finding)
        finding.traces, finding.first = found.traces, found.first
        # What is in no text of any row is a number, a word of the head, or of two texts side by side.
        finding.by_chance = max(0, finding.hits - finding.in_names - finding.left)
        yield finding


def _walk(folder: Path, searcher: Searcher) -> dict[int, Finding]:
    """Read every row of a tape; return what there is in their texts, by part."""
    found: dict[int, Finding] = {}
    reader = TapeReader(folder, partial=True)
    for batch in reader.batches():
        number = reader.at[0]
        finding = found.setdefault(number, Finding(""))
        for row, stream in enumerate(batch["stream"].to_pylist()):
            if stream in searcher.names:
                finding.trace("rows of the stream itself", f"seq {batch['seq'][row]}")
        for field, column in zip(batch.schema, batch.columns, strict=True):
            kind = field.type.value_type if pa.types.is_list(field.type) else field.type
            if not pa.types.is_string(kind) or field.name in FIXED or field.name == "stream":
                continue
            if not any(buffer is not None and searcher.holds(buffer.to_pybytes()) for buffer in column.buffers()):
                continue
            for row, value in enumerate(column.to_pylist()):
                count = sum(searcher.count(text.encode())[0] for text in _texts(value))
                if count:
                    finding.trace(f"`{field.name}` of other streams' rows", f"seq {batch['seq'][row]}", count)
    return found


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [] if value is None else list(value)
