"""What can go wrong with a state store, and which of a database's errors is which.

EbbtideError
  ├─ FencedError      another consumer has the store now: stop, write nothing
  ├─ DamagedError     what is stored is not what was written: nothing of it is used
  └─ PassingError     nothing was stored, or nobody can tell yet: wait, and do the same again
       ├─ NoRoomError     no room on the disk, or it may not be written now
       └─ AwayError       the server is away, the connection was cut, or another transaction was in the way
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import sqlalchemy as sql

from memory.errors import EbbtideError

REPAIR = "`ebbtide run --recover` goes back to the last good checkpoint; or start with another --state"
"""What to do about a damaged store."""


class FencedError(EbbtideError):
    """Another consumer has taken this store over; this one must not write again."""


class DamagedError(EbbtideError):
    """What is stored is not what was written."""


class PassingError(EbbtideError):
    """Somebody may mend it while the run waits; the same can be tried again."""


class NoRoomError(PassingError):
    """The disk is full, or may not be written now: nothing was stored."""


class AwayError(PassingError):
    """The database does not answer, or had to break off: whether the last commit was stored is seen when it is back."""


_NO_ROOM = frozenset({"53100"})  # disk_full
_AWAY = frozenset({"40001", "40P01", "55P03", "57014", "57P01", "57P02", "57P03", "57P05", "25006", "53200", "53300"})
"""PostgreSQL: serialization failure, deadlock, lock not available, query cancelled, shutdown (three), idle session
ended, read-only (a standby), out of memory, too many connections."""
_SQLITE_NO_ROOM = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY})
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Errors of a file that somebody may mend while the run waits."""
_SQLITE_AWAY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_SQLITE_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})


@contextmanager
def told(shown: str) -> Iterator[None]:
    """Raise a database's errors as ours.

    Parameters
    ----------
    shown
        The store's URL, without a password.

    Examples
    --------
    >>> with told("sqlite:///state.db"):
    ...     raise sql.exc.OperationalError("SELECT", {}, Exception("disk I/O error"))
    Traceback (most recent call last):
    memory.errors.EbbtideError: --state sqlite:///state.db: the database refused: disk I/O error; the last \
checkpoint is as it was, and the same command goes on from it
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise DamagedError(f"--state {shown}: the file was damaged (a text that is none); {REPAIR}") from error
    except sql.exc.SQLAlchemyError as error:
        kind, line = kind_of(error), first_line(error)
        if _could_not_write(error) and _may_not_be_written(shown):
            kind = NoRoomError
        if kind is DamagedError:
            raise DamagedError(f"--state {shown}: the file was damaged ({line}); {REPAIR}") from error
        hint = f"; if the disk and the file may be written, it was damaged: {REPAIR}" if "readonly" in line else ""
        raise kind(
            f"--state {shown}: the database refused: {line}; the last checkpoint is as it was, "
            f"and the same command goes on from it{hint}"
        ) from error


def kind_of(error: sql.exc.SQLAlchemyError) -> type[EbbtideError]:
    """Say which of our errors a database's is.

    >>> kind_of(sql.exc.ArgumentError("no"))
    <class 'memory.errors.EbbtideError'>
    """
    cause = getattr(error, "orig", None)
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", None)
        if code is None:  # it comes from the driver: a text that is none
            return DamagedError if "decode" in str(cause) else EbbtideError
        for codes, kind in (
            (_SQLITE_NO_ROOM, NoRoomError),
            (_SQLITE_AWAY, AwayError),
            (_SQLITE_DAMAGED, DamagedError),
        ):
            if code & 0xFF in codes:
                return kind
        return EbbtideError
    state = getattr(cause, "sqlstate", None)
    if state in _NO_ROOM:
        return NoRoomError
    if state is None:  # the client's own: it could not connect, or the connection is gone
        theirs = type(cause).__module__.startswith("psycopg") and isinstance(error, sql.exc.OperationalError)
        return AwayError if theirs else _lost(error)
    return AwayError if state in _AWAY or state.startswith("08") else _lost(error)


def _could_not_write(error: sql.exc.SQLAlchemyError) -> bool:
    """Say whether SQLite's file took no write: it does not tell why. (An fsync that failed is another matter.)"""
    return getattr(getattr(error, "orig", None), "sqlite_errorcode", None) == sqlite3.SQLITE_IOERR_WRITE


def _may_not_be_written(shown: str) -> bool:
    """Say whether nothing can be written where an SQLite store is."""
    try:
        with TemporaryFile(dir=Path(sql.make_url(shown).database or "").absolute().parent) as file:
            file.write(b"0")
    except OSError as error:
        return error.errno in NO_ROOM
    return False


def _lost(error: sql.exc.SQLAlchemyError) -> type[EbbtideError]:
    return AwayError if getattr(error, "connection_invalidated", False) else EbbtideError


def first_line(error: Exception) -> str:
    """Return an error's first line, the database's own where there is one.

    >>> first_line(ValueError("one\\ntwo"))
    'one'
    """
    return (str(getattr(error, "orig", None) or error) or type(error).__name__).splitlines()[0]
