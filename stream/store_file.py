"""The file of an SQLite store: made where there is none, refused where it must not be, and watched while it is used."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

from memory.errors import ConfigurationError, EbbtideError
from stream.append_file import make_folder
from stream.store_files import copy_paths
from stream.store_lease import FileLease
from stream.store_rows import CheckedRows


class StoreFile:
    """One store's file.

    Parameters
    ----------
    database
        Its path, behind all links.
    rows
        The store's: says how an error names it.
    create
        Whether it is made if it is not there.

    Attributes
    ----------
    path
        Where it is.

    Raises
    ------
    ConfigurationError
        It cannot be a store's file.
    DamagedError
        It is gone.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "run" / "state.db"
    >>> file = StoreFile(str(path), CheckedRows("sqlite:///run/state.db"), create=True)
    >>> file.check_name()
    >>> path.unlink()
    >>> file.check_name()
    Traceback (most recent call last):
    ...
    memory.errors.EbbtideError: --state sqlite:///run/state.db: its file was removed, renamed or replaced; ...
    """

    def __init__(self, database: str | None, rows: CheckedRows, *, create: bool):
        self._rows = rows
        if database in (None, "", ":memory:"):
            raise ConfigurationError(f"--state {rows.shown}: expected a file, such as sqlite:///run/state.db, got none")
        self.path = Path(str(database))
        try:
            if create:
                make_folder(self.path.parent)
                if not self.path.exists():
                    self._refuse_lost()
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            elif not self.path.is_file():
                raise ConfigurationError(f"--state {rows.shown}: there is no file {self.path}")
            self._status = self.path.stat()
        except OSError as error:
            raise ConfigurationError(
                f"--state {rows.shown}: expected a file that can be written, got {error.strerror}: {error.filename}"
            ) from None
        if self._status.st_nlink > 1:  # SQLite would keep a log beside each, and so would the lease
            raise ConfigurationError(
                f"--state {rows.shown}: expected a file with one name, got one with {self._status.st_nlink} (hard "
                "links): remove the others, or copy it"
            )

    @cached_property
    def lease(self) -> FileLease:
        """The lock beside it, and the note in that."""
        return FileLease(self.path)

    def _refuse_lost(self) -> None:
        copies = [copy.name for copy in copy_paths(self.path) if copy.exists()]
        if copies:
            raise self._rows.damaged(f"it is gone, and {' and '.join(copies)} are there: remove them to begin anew")
        note = self.lease.note()
        if note is not None:
            raise self._rows.damaged(
                f"it is gone, where checkpoint {note.checkpoint} was: put it back, or, to begin anew, remove "
                f"{self.lease.path}"
            )

    def check_name(self) -> None:
        """Look whether it still has its name.

        Raises
        ------
        EbbtideError
            It has not: what is stored in it is lost.
        """
        try:
            if os.path.samestat(os.stat(self.path), self._status):
                return
        except FileNotFoundError:
            pass
        raise EbbtideError(
            f"--state {self._rows.shown}: its file was removed, renamed or replaced; this run stops: put it back with "
            "its -wal beside it, or go back to a copy with --recover"
        )
