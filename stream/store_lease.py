"""Who may write into a state store: one consumer at a time, and none that was overtaken.

Each claim of a store raises its epoch, and each commit is refused whose epoch is not the store's: that alone keeps an
overtaken consumer from writing. What is here keeps a second one from overtaking the first while that one lives:

    SQLite        a lock on a file beside the store, which goes with the process. The file also tells the number of the
                  last checkpoint, so that a store that has an earlier one was damaged, or is another
    PostgreSQL    an advisory lock, which goes with the connection, and a time of renewal: one that was not renewed for
                  `LEASE` seconds, as of a machine that hangs, is taken over by the next, and its connection is ended
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import sqlalchemy as sql
from sqlalchemy.engine import Connection, Engine

from memory.errors import ConfigurationError
from stream.store_errors import AwayError

LEASE = 30.0
"""Seconds after which a consumer that did not renew its lease may be overtaken."""

TRIES = 50
"""How often to ask for a lock whose holder was just ended, a tenth of a second apart."""


class Note(NamedTuple):
    """What stands in the file beside a store: which store, and its last checkpoint's number.

    Examples
    --------
    >>> Note.read(Note("a1b2", 7).text())
    Note(identity='a1b2', checkpoint=7)
    >>> Note.read(b"torn") is None
    True
    """

    identity: str
    checkpoint: int

    def text(self) -> bytes:
        """Return it as it is written: of one length, so that one write replaces another."""
        line = f"{self.identity} {self.checkpoint:020}"
        return f"{line} {crc32(line.encode()):08x}\n".encode()

    @classmethod
    def read(cls, text: bytes) -> Note | None:
        """Read it back; None where there is none, or a torn one."""
        words = text.split()
        if len(words) != 3:
            return None
        with suppress(ValueError):
            note = cls(words[0].decode("ascii"), int(words[1]))
            if note.text() == text:
                return note
        return None


class FileLease:
    """The lock beside an SQLite store, and the note in it.

    Parameters
    ----------
    path
        The store's file.

    Examples
    --------
    >>> import tempfile
    >>> lease = FileLease(Path(tempfile.mkdtemp()) / "state.db")
    >>> lease.take("sqlite:///state.db")
    >>> lease.write(Note("a1b2", 7))
    >>> lease.note().checkpoint
    7
    >>> lease.close()
    """

    def __init__(self, path: Path):
        self.path = path.with_name(path.name + ".lock")
        self._fd: int | None = None

    def note(self) -> Note | None:
        """Return the note, if there is one that can be read."""
        try:
            return Note.read(self.path.read_bytes())
        except OSError:
            return None

    def forget(self) -> None:
        """Empty the note: the store that it told of is gone."""
        with suppress(FileNotFoundError):
            os.truncate(self.path, 0)

    def take(self, shown: str) -> None:
        """Take the lock, which goes with the process, however that ends."""
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(shown) from None

    def write(self, note: Note) -> None:
        """Write the note, once the checkpoint is on the disk: it may be lost with the power, but never be ahead."""
        if self._fd is not None:
            with suppress(OSError):  # a full disk: the note says less than it could, and nothing wrong
                os.pwrite(self._fd, note.text(), 0)

    def close(self) -> None:
        """Let go of the lock."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class SessionLease:
    """An advisory lock on PostgreSQL, and the one connection that holds it and writes.

    What is written goes through the connection that holds the lock: with the one the other is gone.

    Parameters
    ----------
    database
        The server.
    shown
        The URL, without a password.
    """

    def __init__(self, database: Engine, shown: str):
        self._database, self._shown = database, shown
        self._connection: Connection | None = None

    def take(self) -> None:
        """Take the lock, if need be from one who did not renew it for `LEASE` seconds.

        Raises
        ------
        ConfigurationError
            Another consumer holds it, and lives.
        """
        if self._connection is not None:
            return
        connection = self._database.connect().execution_options(isolation_level="READ COMMITTED")
        try:
            for tried in range(TRIES):
                with connection.begin():
                    mine = connection.execute(sql.text(_LOCK), _KEY).scalar_one()
                    in_vain = not mine and not tried and not self._end_holder(connection)
                if mine:
                    self._connection = connection
                    return
                if in_vain:
                    break
                time.sleep(0.1)
            raise _in_use(self._shown)
        except BaseException:
            connection.invalidate()
            connection.close()
            raise

    def _end_holder(self, connection: Connection) -> bool:
        """End the holder's connection if its time is over; say whether it was."""
        if not sql.inspect(connection).has_table("owner"):
            return False
        stale = sql.text("SELECT extract(epoch FROM clock_timestamp()) - renewed > :lease FROM owner")
        if not connection.execute(stale, {"lease": LEASE}).scalar() or self._renews(connection):
            return False
        connection.execute(sql.text(_END), _KEY)
        return True

    def _renews(self, connection: Connection) -> bool:
        """Say whether the holder renews its lease after all: where the server's clock was put forward, it seems old."""
        renewed = sql.text("SELECT renewed FROM owner")
        before = connection.execute(renewed).scalar()
        until = time.monotonic() + 0.5 * LEASE  # one that lives renews it every third of that
        while time.monotonic() < until:
            time.sleep(min(0.5, 0.05 * LEASE))
            if connection.execute(renewed).scalar() != before:
                return True
        return False

    @contextmanager
    def writing(self, check: Callable[[Connection], None]) -> Iterator[Connection]:
        """Do all of what is in the block in one transaction of the connection that holds the lock.

        Parameters
        ----------
        check
            Called in the transaction first, with the connection. Raises where the store is another's by now.
        """
        if self._connection is None:
            try:
                self.take()
            except ConfigurationError as error:
                with self._database.connect() as other:
                    check(other)
                raise AwayError(
                    f"--state {self._shown}: the server keeps the store for a connection of this run that was cut and "
                    "that it has not ended yet, or for another run that has just begun"
                ) from error
        connection = self._connection
        assert connection is not None
        try:
            with connection.begin():
                check(connection)
                yield connection
        except sql.exc.SQLAlchemyError:
            self.close()  # the lock with it: it is taken anew before anything else is written
            raise

    def close(self) -> None:
        """Let go of the lock, by ending the connection."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.invalidate()
            connection.close()


_KEY = {"ours": 0x65626274}
"""The first half of the lock's key; the second is the schema that the tables are in."""
_LOCK = "SELECT pg_try_advisory_lock(:ours, hashtext(current_schema()))"
_END = """
SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = :ours
AND objid = (hashtext(current_schema())::bigint & 4294967295)::oid
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def _in_use(shown: str) -> ConfigurationError:
    return ConfigurationError(
        f"--state {shown}: another ebbtide run is using this store; stop it first, or give this one its own"
    )
