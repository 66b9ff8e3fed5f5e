"""What a forgetting shows: what there is, what was found afterwards, and how far it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from stream.forget.forms import is_short
from stream.forget.output import Advance
from stream.forget.removal import Removal, copies_of
from stream.forget.search import Finding

TABLES = {
    "lanes": "states, with probes, detectors, policy and filed states",
    "shadow_lanes": "states of shadows",
    "acted": "actions by hand, with the states before them",
    "requests": "actions asked for",
}
ROWS = {"jsonl": "records", "dead_letters": "dead letters", "tape": "rows of the tape"}


def shown(name: str) -> str:
    """Return a name as a terminal may have it: what it would obey is written out."""
    text = name if name.isprintable() else repr(name)
    return text if len(text) <= 60 else text[:59] + "…"


def print_plan(console: Console, removal: Removal) -> None:
    """Show what there is of the streams."""
    names = removal.streams
    listed = ", ".join(map(shown, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    _say(console, f"to be forgotten: {listed}")
    rows: list[tuple[str, str, str, str]] = []
    for name, what in TABLES.items():
        if count := sum(removal.held.counts[name].values()):
            rows.append((f"{count:,}", "", what, removal.store.url))
    for output in removal.outputs:
        count, path = sum(output.found.values()), str(output.path)
        rows.append((f"{count:,}", f"of {output.total:,}", ROWS[output.name], path))
        if output.unsure:
            rows.append((f"{output.unsure:,}", "", "that hold a name, not whose they are: kept (--doubtful)", path))
        if output.links > 1:
            rows.append((f"{output.links - 1:,}", "", "OTHER NAMES (hard links) that keep what it was", path))
    for copy in copies_of(removal.store):
        what = "copy of the store, to be made anew" if ".copy-" in copy.name else "damaged store, to be deleted"
        rows.append(("1", "", what, str(copy)))
    _print_rows(console, rows)


def print_findings(console: Console, findings: Sequence[Finding], names: Sequence[str], states: bool) -> None:
    """Show what the search found."""
    rows: list[tuple[str, ...]] = [("bytes", "found", "in names of others", "not of it", "left", "searched")]
    for finding in findings:
        counts = (finding.bytes, finding.hits, finding.in_names, finding.by_chance, finding.left)
        rows.append((*(f"{count:,}" for count in counts), finding.place))
    _print_rows(console, rows)
    of = "the name and bytes of the last states" if states else "the name (its last state is not known any more)"
    _say(console, f"searched for {of}, as UTF-8, UTF-16, JSON, percent-encoded and base64")
    short = [name for name in names if is_short(name)]
    if short:
        listed = ", ".join(map(shown, short[:8])) + (" and others" if len(short) > 8 else "")
        how = "too short to be told from other bytes; searched for in quotes, and every row was read"
        _say(console, f"{listed}: {how}")
    for finding in findings:
        for what, count in finding.traces.items():
            _say(console, f"{finding.place}: {count:,} in {what} (first: {finding.first[what]})")


def _print_rows(console: Console, rows: Sequence[tuple[str, ...]]) -> None:
    """Print columns, the last one as long as it is: a path that is cut short names nothing."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    for row in rows:
        cells = [
            cell.rjust(width) if cell[:1].isdigit() or row[0] == "bytes" else cell.ljust(width)
            for cell, width in zip(row[:-1], widths, strict=False)
        ]
        _say(console, "  ".join([*cells, row[-1]]))


def _say(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Yield what moves a progress bar, where standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
