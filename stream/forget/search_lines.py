"""Searching records and dead letters, and saying what each hit is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from stream.dead_letters import DeadLetter
from stream.forget.output import Advance
from stream.forget.search import CHUNK, Finding, Searcher
from stream.forget.whose import of_letter

FIXED = ("alarms", "action", "dry_run")
"""Fields of a record that hold words of ours, not of those who wrote the events."""


def search_lines(name: str, path: Path, searcher: Searcher, advance: Advance = lambda count: None) -> Finding:
    """Search a file of records (`name` is ``jsonl``) or of dead letters."""
    finding = Finding(str(path))
    explain = _explain_letter if name == "dead_letters" else _explain_record
    number = 0
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            block += file.readline()
            finding.bytes += len(block)
            lines = block.splitlines(keepends=False) if searcher.holds(block) else []
            for within, line in enumerate(lines, start=1):
                if searcher.holds(line):
                    explain(line, f"line {number + within}", finding, searcher)
            number += block.count(b"\n")
            advance(len(block))
    return finding


def _explain_record(line: bytes, where: str, finding: Finding, searcher: Searcher) -> None:
    total, _ = searcher.count(line)
    finding.hits += total
    try:
        record = from_json(line)
    except ValueError:
        finding.trace("a line that is no record", where, total)
        return
    told = 0
    for key, text in _texts(record):
        count, _ = searcher.count(_bytes(text))
        if not count:
            continue
        told += count
        if key == "stream" and text in searcher.names:
            finding.trace("records of the stream itself", where, count)
        elif key == "stream":
            finding.in_names += count
        elif key in FIXED:
            finding.by_chance += count
        else:
            finding.trace(f"`{key}` of other streams' records", where, count)
    if total > told:
        rest, _ = searcher.count(_skeleton(record))
        if told or rest:
            finding.by_chance += total - told
        else:
            finding.trace("bytes in no field of a record", where, total)


def _explain_letter(line: bytes, where: str, finding: Finding, searcher: Searcher) -> None:
    total, _ = searcher.count(line)
    try:
        letter = DeadLetter.from_json(line)
    except ValueError:
        finding.hits += total
        finding.trace("a line that is no dead letter", where, total)
        return
    if count := searcher.count(_bytes(letter.partition))[0]:
        finding.hits += count
        finding.trace("the name of a source's file", where, count)
    count, inside = searcher.count(letter.raw)
    named = of_letter(letter.raw)
    if named & searcher.names:
        finding.hits += count
        finding.trace("dead letters of the stream itself", where, max(1, count))
        return
    inside = max(inside, sum(searcher.count(_bytes(name))[0] for name in named))
    finding.hits += max(count, total)
    finding.in_names += min(count, inside)
    if count > inside:
        whose = "of other streams" if named else "that do not tell whose they are (--doubtful removes them)"
        finding.trace(f"dead letters {whose}", where, count - inside)
    elif total > count:
        finding.by_chance += total - count


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a record with the name of the field that it is in."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _texts(each, key or name)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, key)


def _skeleton(value: Any) -> bytes:
    """Return a record without its texts: keys and numbers."""

    def bare(each: Any) -> Any:
        if isinstance(each, dict):
            return {name: bare(one) for name, one in each.items()}
        return [bare(one) for one in each] if isinstance(each, list) else "" if isinstance(each, str) else each

    return json.dumps(bare(value), separators=(",", ":")).encode()


def _bytes(text: str) -> bytes:
    """Return a text as JSON has it, quotes with it, so that short names are found in it too."""
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")
