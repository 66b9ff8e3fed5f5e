"""Giving a database's free room back, so that it holds nothing of what was deleted."""

from __future__ import annotations

import sqlite3
import time

import sqlalchemy as sql

from memory.errors import EbbtideError
from stream.store import StateStore
from stream.store_errors import told
from stream.store_tables import TABLES

TRIES = 50
"""How often to ask for a log that somebody else reads, a fifth of a second apart."""

KEPT_BY_SERVER = (
    "What it may keep for a while: its write-ahead log and archives of it, replicas, base backups, dead rows "
    "of its own statistics until they are vacuumed, its log if it logs statements, and free blocks of its disk"
)
"""What no command of a client takes away."""


def compact(store: StateStore) -> None:
    """Write a store's tables anew, without free room, and empty SQLite's log.

    Raises
    ------
    EbbtideError
        Somebody reads the store all the time, or there is no room for it; the same can be done again.
    """
    if store.path is not None:
        _empty_log(store)
        _sqlite(store, "VACUUM")
        _empty_log(store)
        return
    with told(store.url), store.database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in TABLES:
            store.hold()  # a large table takes long enough for this command to be taken for dead
            connection.execute(sql.text(f"VACUUM (FULL, ANALYZE) {table.name}"))


def put_away(store: StateStore) -> None:
    """Close an SQLite store's file, its log emptied, so that what is in it is all there is."""
    if store.path is not None:
        _empty_log(store)
        store.database.dispose()


def _empty_log(store: StateStore) -> None:
    for _ in range(TRIES):
        if not _sqlite(store, "PRAGMA wal_checkpoint(TRUNCATE)"):
            return
        time.sleep(0.2)
    raise EbbtideError(
        f"--state {store.url}: somebody reads the store all the time, so that its log cannot be emptied; stop them, "
        "and give the same command again"
    )


def _sqlite(store: StateStore, command: str) -> int:
    """Do what no transaction can; return the first number of the answer, 0 without one."""
    with told(store.url), store.database.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        try:
            row = driver.execute(command).fetchone()
        except sqlite3.Error as error:
            raise sql.exc.OperationalError(command, {}, error) from error
        return int(row[0]) if row else 0
