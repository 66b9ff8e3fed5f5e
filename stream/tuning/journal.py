"""Optuna's journal in an SQLite file, a whole batch of trials in one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from memory.errors import ConfigurationError
from stream.tuning.quiet import quiet

NAME = "ebbtide"
"""The study's name."""


class SqliteJournal(BaseJournalBackend):
    """Keeps what Optuna logs as the rows of one table; `commit` makes it last.

    What was logged since the last commit is gone if the process dies. Optuna's own relational storage makes a
    transaction of each value of each trial: much slower, and a killed run leaves half a batch behind.

    Parameters
    ----------
    path
        The file. It is made where there is none. One process has it at a time.

    Raises
    ------
    ConfigurationError
        Another process has it, or it is no such file.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            self._file = sqlite3.connect(path, timeout=1, isolation_level=None, check_same_thread=False)
            self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._file.execute("BEGIN IMMEDIATE")
            self._file.execute("CREATE TABLE IF NOT EXISTS journal (number INTEGER PRIMARY KEY, entry TEXT NOT NULL)")
            self.commit()
        except sqlite3.OperationalError as error:
            told = "another process has it" if "locked" in str(error) else str(error)
            raise ConfigurationError(
                f"--study {path}: expected a file to keep the study in, got none: {told}"
            ) from None
        except sqlite3.DatabaseError:
            raise ConfigurationError(
                f"--study {path}: expected a study that ebbtide tune made, got another file"
            ) from None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add entries."""
        self._file.executemany("INSERT INTO journal (entry) VALUES (?)", [(json.dumps(entry),) for entry in logs])

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Return the entries from that number on, which is 0 for the first."""
        rows = self._file.execute(
            "SELECT entry FROM journal WHERE number > ? ORDER BY number", (log_number_from,)
        ).fetchall()
        return [json.loads(entry) for (entry,) in rows]

    def commit(self) -> None:
        """Make what was added last, and begin anew."""
        self._file.execute("COMMIT")
        self._file.execute("BEGIN IMMEDIATE")

    def close(self) -> None:
        """Give the file back; what was not committed is dropped."""
        self._file.execute("ROLLBACK")
        self._file.close()


def open_study(path: Path) -> optuna.Study:
    """Return a study as Optuna has it, for its plots and its dashboard.

    Parameters
    ----------
    path
        The `study.db` of `ebbtide tune`.

    Raises
    ------
    ConfigurationError
        There is none.

    Examples
    --------
    >>> open_study(Path("/nowhere/study.db"))
    Traceback (most recent call last):
    ...
    memory.errors.ConfigurationError: expected the study.db of ebbtide tune, got no file at /nowhere/study.db
    """
    if not path.is_file():
        raise ConfigurationError(f"expected the study.db of ebbtide tune, got no file at {path}")
    journal = SqliteJournal(path)
    try:
        with quiet():
            kept = optuna.load_study(study_name=NAME, storage=JournalStorage(journal))
            study = optuna.create_study(study_name=NAME, directions=kept.directions)
            study.set_metric_names(kept.user_attrs["objectives"])
            for key, value in kept.user_attrs.items():
                study.set_user_attr(key, value)
            study.add_trials(kept.trials)
    finally:
        journal.close()
    return study
