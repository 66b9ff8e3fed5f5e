"""What is looked at when a store is opened: whether it is one, of which version, and whole as far as that is quick."""

from __future__ import annotations

import secrets
from typing import Any
from zlib import crc32

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from memory.errors import StateMismatchError
from stream.store_file import StoreFile
from stream.store_lease import Note
from stream.store_rows import CheckedRows
from stream.store_tables import SCHEMA, TABLES, TABLES_1


def check_store(
    connection: Connection, rows: CheckedRows, *, create: bool, file: StoreFile | None, note: Note | None
) -> None:
    """Check a store, or make one; `rows` has its version and identity afterwards.

    Parameters
    ----------
    connection
        In a transaction.
    rows
        The store's.
    create
        Whether an empty database is made a store.
    file
        That of an SQLite store.
    note
        What is known of its last checkpoint.

    Raises
    ------
    StateMismatchError
        It is none, or of another version.
    DamagedError
        It is not what was written.
    """
    names = set(sql.inspect(connection).get_table_names())
    if not names and note is not None:
        raise rows.damaged(f"it is empty, where checkpoint {note.checkpoint} was: {_after_note(file)}")
    if not names and create:
        TABLES.run.metadata.create_all(connection)
        rows.identity = secrets.token_hex(8)
        rows.write(connection, TABLES.run, [{"name": "schema", "value": str(SCHEMA)}])
        rows.write(connection, TABLES.owner, [owner_row(rows, 0, 0, made_as(connection))])
        return
    if "run" not in names:
        raise StateMismatchError(
            f"--state {rows.shown}: this is {'an empty database' if not names else 'a database of something else'}, "
            "not a state store of Ebbtide: choose another file"
        )
    if file is not None:
        _check_pages(connection, rows)
    version = connection.execute(sql.select(TABLES_1.run.c.value).where(TABLES_1.run.c.name == "schema")).scalar()
    if version not in ("1", str(SCHEMA)) or (version == "1" and file is None):
        raise StateMismatchError(
            f"--state {rows.shown}: the store has schema version {version}, this Ebbtide reads version {SCHEMA}: "
            "use the release that wrote it, or start with another --state"
        )
    rows.version = int(version)
    if rows.version == SCHEMA:
        _check_owner(connection, rows, file, note)


def _check_pages(connection: Connection, rows: CheckedRows) -> None:
    """Let SQLite compare its pages and indices: a lane that no search finds would begin anew, unnoticed."""
    found = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar()
    if found != "ok":
        raise rows.damaged(" ".join(str(found).split()))


def _check_owner(connection: Connection, rows: CheckedRows, file: StoreFile | None, note: Note | None) -> None:
    row = connection.execute(sql.select(TABLES.owner)).mappings().first()
    if row is None:
        raise rows.damaged("the row of its owner is gone")
    rows.identity = str(row["identity"])
    rows.check(TABLES.owner, row, "the row of its owner")
    if made_as(connection) != row["tables"]:
        raise rows.damaged("its tables are not as they were made")
    if note is not None and note.identity != rows.identity:
        raise rows.damaged(f"its log or its file is another store's: {_after_note(file)}")
    if note is not None and note.checkpoint > row["checkpoint"]:
        raise rows.damaged(f"it holds checkpoint {row['checkpoint']}, where {note.checkpoint} was: {_after_note(file)}")


def _after_note(file: StoreFile | None) -> str:
    name = file.lease.path if file is not None else ""
    return f"its log was cut short or lost, or this is an older copy; to use it as it is, remove {name}"


def made_as(connection: Connection) -> int:
    """Return the checksum of what SQLite knows of our tables: it decides how values are read. 0 of a server's."""
    if connection.dialect.name != "sqlite":
        return 0
    known = connection.exec_driver_sql("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name")
    return crc32(repr([tuple(row) for row in known if row.tbl_name in TABLES.run.metadata.tables]).encode())


def owner_row(rows: CheckedRows, epoch: int, number: int, tables: int) -> dict[str, Any]:
    """Return the one row of `owner`.

    Parameters
    ----------
    rows
        The store's.
    epoch
        Of the consumer that may commit.
    number
        Of the checkpoint.
    tables
        `made_as`.
    """
    return {"id": 1, "epoch": epoch, "checkpoint": number, "identity": rows.identity, "tables": tables}
