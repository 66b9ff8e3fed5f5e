"""Searching a state store: its files byte by byte, or, on a server, its rows; and saying what each hit is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sql

from stream.forget.output import Advance
from stream.forget.search import Finding, Searcher
from stream.store import StateStore
from stream.store_tables import TABLES

NAMES = {("lanes", "lane"), ("shadow_lanes", "lane"), ("acted", "stream"), ("requests", "stream")}
"""Columns that hold streams' names."""

SAID = {
    ("acted", "action"): "what an operator asked for, for another stream",
    ("acted", "outcome"): "what came of an operator's action on another stream",
    ("requests", "action"): "what an operator asks for, for another stream",
    ("partitions", "partition"): "the name of a source's file",
    ("partitions", "position"): "a position in a source",
}
"""Columns that hold what people wrote."""


def files_of(path: Path) -> list[Path]:
    """Return the store's own file and all that lie beside it under its name."""
    return sorted(each for each in path.parent.iterdir() if each.is_file() and each.name.startswith(path.name))


def search_store(store: StateStore, searcher: Searcher, advance: Advance = lambda count: None) -> Iterator[Finding]:
    """Search a store. One in a file must be closed, or its locks would be lost."""
    rows = search_rows(store, searcher)
    if store.path is None:
        yield rows
        return
    store.database.dispose()
    path = store.path.resolve()
    for file in files_of(path):
        finding = Finding(str(file), file.stat().st_size)
        first = -1
        for at, _, inside in searcher.file(file, advance):
            finding.hits += 1
            finding.in_names += inside
            if not inside and first < 0:
                first = at
        outside = finding.hits - finding.in_names
        of_store = file == path or ".copy-" in file.name or file.name.endswith("-wal")
        if outside and of_store and rows.left:
            finding.traces, finding.first = rows.traces.copy(), rows.first
            finding.by_chance = max(0, outside - finding.left)
        elif outside and ((of_store and rows.by_chance) or file.name.endswith(".lock")):
            finding.by_chance = outside
        elif outside:
            finding.trace("bytes in no row", f"byte {first}", outside)
        yield finding


def search_rows(store: StateStore, searcher: Searcher) -> Finding:
    """Search every value of every row, and what the database says of its tables."""
    finding = Finding(store.url)
    with store.database.connect() as connection:
        if store.path is not None:
            for (made,) in connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"):
                finding.by_chance += searcher.count(str(made).encode())[0]
        for table in TABLES:
            for row in connection.execute(sql.select(table), execution_options={"yield_per": 500}).mappings():
                for column, value in row.items():
                    _explain(table.name, str(column), value, finding, searcher)
    finding.hits = finding.by_chance + finding.in_names + finding.left
    return finding


def _explain(table: str, column: str, value: object, finding: Finding, searcher: Searcher) -> None:
    if value is None:
        return
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    finding.bytes += len(data)
    count, _ = searcher.count(data)
    if (table, column) in NAMES:
        if value in searcher.names:
            finding.trace("the stream itself", f"table `{table}`", max(1, count))
        else:
            finding.in_names += count
    elif (table, column) in SAID and count:
        finding.trace(SAID[table, column], f"table `{table}`", count)
    else:
        finding.by_chance += count
