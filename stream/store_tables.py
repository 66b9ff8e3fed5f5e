"""The state store's tables, and a checksum in each of their rows.

run           one row a fact: schema version, and the settings that stored states depend on
owner         one row: the epoch of the consumer that may commit, the checkpoint's number, what tells this store
              from another; a newer consumer raises the epoch, and the older one is refused
lanes         one row a lane: its state, and what the monitors and the policy keep beside it
shadow_lanes  the same of each shadow
partitions    one row a partition of the source: where to go on
marks         one row an output: up to where it belongs to this checkpoint
counters      one row: what has been counted since the first start
requests      one row an action that an operator asked for and that was not taken yet
acted         one row an operator's action that was taken: on what, when, and what the state was before
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from zlib import crc32

import sqlalchemy as sql

SCHEMA = 2
"""Version of the tables. Version 1 is brought up to it by the next run; any other is refused, never read."""


class Words(sql.types.TypeDecorator[str]):
    """Text. PostgreSQL keeps it as UTF-8 bytes: its own text holds no NUL, and sorts by the server's locale."""

    impl = sql.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sql.Dialect) -> Any:
        """Return the column's type in this database."""
        return dialect.type_descriptor(sql.LargeBinary() if dialect.name == "postgresql" else sql.Text())

    def process_bind_param(self, value: str | None, dialect: sql.Dialect) -> Any:
        """Return what is stored."""
        return value.encode() if value is not None and dialect.name == "postgresql" else value

    def process_result_value(self, value: Any, dialect: sql.Dialect) -> Any:
        """Return what was stored."""
        return bytes(value).decode() if value is not None and dialect.name == "postgresql" else value


class Tables(NamedTuple):
    """The tables of one version."""

    run: sql.Table
    owner: sql.Table
    lanes: sql.Table
    shadow_lanes: sql.Table
    partitions: sql.Table
    marks: sql.Table
    counters: sql.Table
    requests: sql.Table
    acted: sql.Table


def _tables(version: int) -> Tables:
    made = sql.MetaData()

    def table(name: str, *columns: sql.Column[Any], checked: bool = version > 1) -> sql.Table:
        return sql.Table(name, made, *columns, *([sql.Column("crc", sql.BigInteger)] if checked else []))

    def key(name: str, kind: Any = Words, **more: Any) -> sql.Column[Any]:
        return sql.Column(name, kind, primary_key=True, autoincrement=False, **more)

    def lane() -> list[sql.Column[Any]]:
        return [
            key("lane"),
            sql.Column("layout", Words),
            sql.Column("state", sql.LargeBinary),
            sql.Column("beside", sql.LargeBinary),
        ]

    owner = [key("id", sql.Integer), sql.Column("epoch", sql.Integer)]
    if version > 1:
        owner += [
            sql.Column("checkpoint", sql.BigInteger),
            sql.Column("identity", Words),
            sql.Column("tables", sql.BigInteger),
            sql.Column("renewed", sql.Double),
        ]
    return Tables(
        table("run", key("name"), sql.Column("value", Words)),
        table("owner", *owner),
        table("lanes", *lane(), checked=True),
        table("shadow_lanes", key("shadow"), *lane(), checked=True),
        table("partitions", key("partition"), sql.Column("position", Words)),
        table("marks", key("output"), sql.Column("mark", sql.BigInteger), sql.Column("identity", Words)),
        table("counters", key("id", sql.Integer), sql.Column("values", Words)),
        table("requests", key("id", sql.Integer), sql.Column("stream", Words), sql.Column("action", Words)),
        table(
            "acted",
            key("id", sql.Integer),
            sql.Column("request", sql.Integer),
            sql.Column("stream", Words, index=True),
            sql.Column("seq", sql.BigInteger),
            sql.Column("action", Words),
            sql.Column("outcome", Words),
            sql.Column("time", sql.Double),
            sql.Column("before", sql.LargeBinary),
        ),
    )


TABLES = _tables(SCHEMA)
TABLES_1 = _tables(1)
"""As the release before made them, those of them that it had: `run` to `counters`, without `shadow_lanes`."""

_UNCOUNTED = ("crc", "renewed")
"""Columns that a row's checksum is not of: itself, and the time that the server writes."""


def row_crc(table: sql.Table, row: Mapping[str, Any] | sql.RowMapping, seed: int) -> int:
    """Return the checksum of a row: of its table's name, and of each column's value, type and length.

    Parameters
    ----------
    table
        Whose row.
    row
        Column → value.
    seed
        What tells the store from another, so that a row of that one is no row here.

    Examples
    --------
    >>> row = {"output": "jsonl", "mark": 5, "identity": ""}
    >>> row_crc(TABLES.marks, row, 7) == row_crc(TABLES.marks, row | {"mark": 6}, 7)
    False
    >>> row_crc(TABLES.marks, row, 7) == row_crc(TABLES.marks, row, 8)
    False
    """
    crc = crc32(table.name.encode(), seed)
    for column in table.columns:
        if column.name not in _UNCOUNTED:
            value = row[column.name]
            if isinstance(value, bytes):
                data = value
            else:
                data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else repr(value).encode()
            crc = crc32(data, crc32(f"{type(value).__name__} {len(data)} ".encode(), crc))
    return crc


def lane_crc_1(row: Mapping[str, Any] | sql.RowMapping) -> int:
    """Return the checksum of a lane as version 1 had it.

    >>> lane_crc_1({"state": b"12345", "beside": b"6789"}) == crc32(b"123456789")
    True
    """
    return crc32(row["beside"], crc32(row["state"]))
