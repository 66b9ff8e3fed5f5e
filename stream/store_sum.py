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
