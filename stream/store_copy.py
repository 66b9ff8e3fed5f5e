"""Copies of an SQLite store, made while it is in use: what `ebbtide run --recover` can go back to.

Two are kept beside the store, `state.db.copy-1` and `state.db.copy-2`, and the older one is replaced by the next. A
copy counts only once every row of it was read and found whole: one of a damaged store never takes the place of a good
one, and damage is noticed here that no run would meet for weeks.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import sqlalchemy as sql
import structlog

from memory.errors import EbbtideError
from stream.store import StateStore
from stream.store_files import copy_paths, sync

log = structlog.get_logger(__name__)


class StoreCopier:
    """Makes a copy from time to time, in a thread of its own. Only `close` waits for it.

    Parameters
    ----------
    path
        The store.
    every
        Seconds from one copy to the next; 0: never.
    clock
        Monotonic seconds.

    Attributes
    ----------
    made, failed
        Copies, so far.
    """

    def __init__(
        self,
        path: Path,
        every: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.path, self.every = path, every
        self.made = self.failed = 0
        self._clock = clock
        self._source: sqlite3.Connection | None = None
        self._closing = False
        self._thread: Thread | None = None
        made = [copy.stat().st_mtime for copy in copy_paths(path) if copy.exists()]
        age = max(0.0, time.time() - max(made)) if made else 0.0  # a run that restarts often is copied all the same
        self._due = clock() + max(0.0, every - age)

    def look(self) -> None:
        """Begin a copy if one is due and none is under way."""
        if self.every and self._clock() >= self._due and (self._thread is None or not self._thread.is_alive()):
            self._due = self._clock() + self.every
            self._thread = Thread(target=self._run, name="store-copy", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            number, made = self.copy()
        except (OSError, sqlite3.Error, EbbtideError) as error:
            if not self._closing:
                log.error("no_copy_of_the_store", reason=str(error).splitlines()[0], hint="the copies before it stand")
                self.failed += 1
            return
        log.info("store_copied", path=str(made), checkpoint=number)
        self.made += 1

    def copy(self) -> tuple[int, Path]:
        """Make a copy now, in this thread; return its checkpoint's number, and where it is.

        Raises
        ------
        OSError, sqlite3.Error, EbbtideError
            It cannot be made, or what was copied is damaged; the copies before it stand.
        """
        new = self.path.with_name(self.path.name + ".copy.part")
        for left in (new, new.with_name(new.name + "-journal")):
            left.unlink(missing_ok=True)
        try:
            os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            name = f"file:{quote(str(self.path.resolve()))}?mode=ro"
            with closing(sqlite3.connect(name, uri=True, check_same_thread=False)) as source:
                self._source = source
                if self._closing:
                    raise InterruptedError("the run ends")
                # One reading transaction: a single checkpoint, whatever is committed meanwhile.
                source.execute("VACUUM INTO ?", (str(new),))
            number = _checked(new)
            sync(new)
            older = min(copy_paths(self.path), key=lambda copy: copy.stat().st_mtime if copy.exists() else 0.0)
            os.replace(new, older)
            sync(older.parent)
        finally:
            self._source = None
            with suppress(OSError):
                new.unlink(missing_ok=True)
        return number, older

    def close(self) -> None:
        """Give up a copy that is under way."""
        self._closing = True
        while self._thread is not None and self._thread.is_alive():
            source = self._source
            if source is not None:
                with suppress(sqlite3.Error):  # closed at this moment
                    source.interrupt()
            self._thread.join(0.05)


def _checked(path: Path) -> int:
    """Read all of a copy; return its checkpoint's number."""
    store = StateStore(sql.URL.create("sqlite", database=str(path)).render_as_string(), create=False)
    try:
        return store.check()
    finally:
        store.close()
