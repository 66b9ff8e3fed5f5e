"""A store of the release before is made one of this release in one transaction: killed anywhere in it, nothing is."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from stream.store import StateStore
from tests.warm import Warm

OLD = Path(__file__).parents[1] / "data" / "state-v1.db"

CLAIM = """
import os, signal
import sqlalchemy as sql
from stream.store import StateStore

left = {at}

@sql.event.listens_for(sql.engine.Engine, "before_cursor_execute")
def count(connection, cursor, statement, *rest):
    global left
    if not statement.startswith(("PRAGMA", "SELECT")):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

store = StateStore({url!r}, create=False)
store.claim(store.settings, ["decay"])
os._exit(0)
"""
"""Takes a store over, and is killed before a statement that changes something."""


def held(url: str) -> tuple[Any, ...]:
    store = StateStore(url, create=False)
    try:
        return dict(store.lanes()), store.load().positions, store.settings, store.load().marks
    finally:
        store.close()


def version(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("SELECT value FROM run WHERE name = 'schema'").fetchone()[0])


def test_killed_before_each_of_its_statements_it_is_the_old_one_and_then_the_new(warm: Warm, tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    url = f"sqlite:///{path}"
    shutil.copy(OLD, path)
    expected = held(url)
    killed = 0
    while True:
        for each in tmp_path.iterdir():
            each.unlink()
        shutil.copy(OLD, path)
        code = warm.run(["doctor"], before=CLAIM.format(at=killed + 1, url=url)).returncode
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
        assert version(path) == "1"
        assert held(url) == expected
        store = StateStore(url, create=False)
        store.claim(store.settings, ["decay"])
        store.close()
        assert version(path) == "2"
        assert held(url) == expected
    print(f"killed at {killed} statements")
    assert killed > 15
    assert version(path) == "2"
    assert held(url) == expected
