"""That the rows of a store are of one checkpoint: the sum of their checksums, which each checkpoint brings along.

Each row by itself may be one that was written, and the store a mixture all the same: where SQLite was killed while it
carried its log back into the file, page by page, and the log was lost then; or where a row is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from stream.store_tables import TABLES

SUM = "rows"
"""The row of `run` that has it, as two numbers: of the checkpoint, and the sum."""

SUMMED = (TABLES.lanes, TABLES.shadow_lanes, TABLES.partitions, TABLES.marks, TABLES.counters, TABLES.acted)
"""The tables that only the consumer writes, at checkpoints."""

MODULUS = 1 << 63

KNOWN = 1 << 16
"""Lanes whose checksum in the store is remembered, so that it need not be read there."""


class KnownCrcs:
    """The checksums of lanes that were read or written lately, as of one checkpoint.

    Examples
    --------
    >>> known = KnownCrcs()
    >>> known.as_of(3)
    >>> known.note(TABLES.lanes, [{"lane": "ann", "crc": 5}])
    >>> known.take(TABLES.lanes, [{"lane": "ann"}, {"lane": "bob"}])
    (5, [{'lane': 'bob'}])
    >>> known.as_of(4)
    >>> known.take(TABLES.lanes, [{"lane": "ann"}])
    (0, [{'lane': 'ann'}])
    """

    def __init__(self) -> None:
        self._number = -1
        self._crcs: dict[tuple[Any, ...], int] = {}

    def as_of(self, number: int) -> None:
        """Forget all, unless it is of this checkpoint."""
        if number != self._number:
            self._crcs.clear()
        self._number = number

    def forget(self) -> None:
        """Forget all."""
        self._crcs.clear()
        self._number = -1

    def moved(self, number: int) -> None:
        """Note that what was written is of this checkpoint, if that is stored."""
        self._number = number

    def note(self, table: sql.Table, rows: Sequence[Mapping[str, Any] | sql.RowMapping]) -> None:
        """Remember rows that are stored, with their checksums."""
        if "state" in table.c:
            if len(self._crcs) + len(rows) > KNOWN:
                self._crcs.clear()
            self._crcs.update((_key(row), row["crc"]) for row in rows)

    def take(self, table: sql.Table, rows: Sequence[Mapping[str, Any]]) -> tuple[int, Sequence[Mapping[str, Any]]]:
        """Return the sum of those that are known, and the rows that are not."""
        if "state" not in table.c:
            return 0, rows
        total, unknown = 0, []
        for row in rows:
            crc = self._crcs.get(_key(row))
            if crc is None:
                unknown.append(row)
            else:
                total += crc
        return total, unknown


def _key(row: Mapping[str, Any] | sql.RowMapping) -> tuple[Any, ...]:
    return (row["shadow"], row["lane"]) if "shadow" in row else (row["lane"],)


def sum_of(connection: Connection, table: sql.Table, where: sql.ColumnElement[bool] | None = None) -> int:
    """Return the sum of the checksums of some rows, or of all; of a table that is not summed 0."""
    if table not in SUMMED:
        return 0
    query = sql.select(sql.func.coalesce(sql.func.sum(table.c.crc), 0))
    return int(connection.execute(query if where is None else query.where(where)).scalar_one())


def total_of(connection: Connection) -> int:
    """Return the sum over all tables."""
    return sum(sum_of(connection, table) for table in SUMMED) % MODULUS


def replaced(connection: Connection, table: sql.Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Return the sum of the rows that stand under these rows' keys."""
    return sum(sum_of(connection, table, where) for where in _keys(table, rows)) if table in SUMMED else 0


def _keys(table: sql.Table, rows: Sequence[Mapping[str, Any]]) -> Iterator[sql.ColumnElement[bool]]:
    *first, last = table.primary_key.columns
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column.name] for column in first), []).append(row[last.name])
    for values, lasts in groups.items():
        same = (column == value for column, value in zip(first, values, strict=True))
        yield sql.and_(*same, last.in_(lasts))
