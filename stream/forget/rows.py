"""A stream's rows in a state store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from stream.store import FORGETTING, OutputMark, StateStore
from stream.store_rows import FETCH, CheckedRows
from stream.store_tables import TABLES

HOLDERS = {
    "lanes": TABLES.lanes.c.lane,
    "shadow_lanes": TABLES.shadow_lanes.c.lane,
    "acted": TABLES.acted.c.stream,
    "requests": TABLES.requests.c.stream,
}
"""Table → the column that names a stream."""


class Held(NamedTuple):
    """What a store has of some streams.

    Attributes
    ----------
    counts
        Table → stream → rows.
    states
        Stream → the states that are known of it: live, of shadows, and before each action by hand.
    """

    counts: dict[str, dict[str, int]]
    states: dict[str, list[bytes]]


def held(store: StateStore, streams: Sequence[str]) -> Held:
    """Return what a store has of these streams."""
    counts: dict[str, dict[str, int]] = {name: {} for name in HOLDERS}
    states: dict[str, list[bytes]] = {}
    with store.database.connect() as connection:
        for name, column in HOLDERS.items():
            for some in _parts(streams):
                query = sql.select(column, sql.func.count()).where(column.in_(some)).group_by(column)
                counts[name].update((stream, count) for stream, count in connection.execute(query))
        for table, blob in ((TABLES.lanes, "state"), (TABLES.shadow_lanes, "state"), (TABLES.acted, "before")):
            key = HOLDERS[table.name]
            for some in _parts(streams):
                for stream, state in connection.execute(sql.select(key, table.c[blob]).where(key.in_(some))):
                    if state is not None:
                        states.setdefault(stream, []).append(bytes(state))
    return Held(counts, states)


def names(store: StateStore) -> set[str]:
    """Return every stream that a store has anything of."""
    with store.database.connect() as connection:
        return {
            stream
            for column in HOLDERS.values()
            for stream in connection.execute(sql.select(column).distinct()).scalars()
        }


def remove(
    connection: Connection,
    rows: CheckedRows,
    streams: Sequence[str],
    marks: Mapping[str, OutputMark],
    pending: Mapping[str, Any],
) -> None:
    """Take a store's rows of these streams away, and say where its outputs will end, and what is left to do.

    Parameters
    ----------
    connection
        In the transaction that makes it all or nothing.
    rows
        The store's.
    streams
        Which.
    marks
        Of the outputs that were written anew.
    pending
        For the row `FORGETTING`.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA secure_delete=ON")
    for name, column in HOLDERS.items():
        table: sql.Table = getattr(TABLES, name)
        for some in _parts(streams):
            rows.delete(connection, table, column.in_(some))
    made = [{"output": name, "mark": mark.mark, "identity": mark.identity} for name, mark in marks.items()]
    rows.write(connection, TABLES.marks, made)
    rows.write(connection, TABLES.run, [{"name": FORGETTING, "value": json.dumps(pending, separators=(",", ":"))}])


def pending(store: StateStore) -> dict[str, Any] | None:
    """Return what an interrupted forgetting left to do; None where there was none."""
    value = store.settings.get(FORGETTING)
    return None if value is None else json.loads(value)


def settle(connection: Connection, rows: CheckedRows) -> None:
    """Say that nothing is left to do."""
    connection.execute(TABLES.run.delete().where(TABLES.run.c.name == FORGETTING))


def _parts(streams: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(streams), FETCH):
        yield streams[first : first + FETCH]
