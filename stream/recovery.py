"""Going back to the last good checkpoint: what `ebbtide run --recover` does before it begins, and nothing else does.

Good is a checkpoint all of whose rows are whole, and that the sink, the dead letters and the tape still hold. Asked are
the store as it is, then its copies, the newest first. The events since are read again from the source: they give
the same bits once more. What operators did since is lost, since no source has it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sql

from memory.errors import ConfigurationError, EbbtideError
from stream.store import Checkpoint, StateStore
from stream.store_database import connect, shown
from stream.store_files import BESIDE, copy_paths, sync
from stream.store_lease import FileLease


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was gone back to.

    Attributes
    ----------
    checkpoint
        Its number.
    origin
        The file that holds it: the store itself, or a copy.
    aside
        Where the damaged store is now; None: it is in use.
    why
        What was wrong.
    """

    checkpoint: int
    origin: Path
    aside: Path | None
    why: str


def go_back(
    url: str, fits: Callable[[Checkpoint], None], readable: Callable[[Checkpoint], None] = lambda checkpoint: None
) -> Recovered | None:
    """Put the newest good checkpoint in place of a damaged one.

    Parameters
    ----------
    url
        Of the store.
    fits
        Raises `ConfigurationError` where the outputs do not hold a checkpoint (any more).
    readable
        Raises `ConfigurationError` where the source cannot give again what came behind an earlier checkpoint.

    Returns
    -------
    Recovered or None
        None: nothing was wrong.

    Raises
    ------
    ConfigurationError
        Another consumer uses the store, or there is no good checkpoint; nothing was changed.
    """
    path = _path_of(url)
    lease = FileLease(path)
    lease.take(shown(url))
    try:
        note = lease.note()
        faults = []
        for origin in (path, *_newest_first(copy_paths(path))):
            try:
                number, identity = _look(origin, (fits,) if origin == path else (fits, readable))
                if origin != path and note is not None and note.identity != identity:
                    raise ConfigurationError(f"{origin}: this is a copy of another store")
            except EbbtideError as error:
                faults.append(str(error))
                continue
            if origin == path and (note is None or number >= note.checkpoint):
                return None
            return _put_in_place(path, origin, number, lease, faults)
        raise ConfigurationError(
            f"--recover: no good checkpoint is left, and nothing was changed: {'; '.join(faults)}. To begin from "
            "scratch, give other files to --state and to the outputs"
        )
    finally:
        lease.close()


def _path_of(url: str) -> Path:
    database = connect(url)
    try:
        if database.dialect.name != "sqlite":
            raise ConfigurationError(
                "--recover: expected an SQLite store, whose copies lie beside it, got one on a server: restore a "
                "backup there, and run without --recover"
            )
        path = Path(str(database.url.database))
    finally:
        database.dispose()
    if not path.parent.is_dir():
        raise ConfigurationError(f"--recover: there is nothing at {path}; is it the right --state?")
    return path


def _newest_first(copies: list[Path]) -> list[Path]:
    return sorted((copy for copy in copies if copy.exists()), key=lambda copy: -copy.stat().st_mtime)


def _look(path: Path, asked: Iterable[Callable[[Checkpoint], None]]) -> tuple[int, str]:
    """Read all of a store or copy; return its checkpoint's number and its identity."""
    url = sql.URL.create("sqlite", database=str(path)).render_as_string()
    store = StateStore(url, create=False, any_checkpoint=True)
    try:
        number = store.check()
        checkpoint = store.load()
        for fits in asked:
            fits(checkpoint)
        return number, store.identity
    finally:
        store.close()


def _put_in_place(path: Path, origin: Path, number: int, lease: FileLease, faults: list[str]) -> Recovered:
    if origin == path:  # an earlier checkpoint than the last one known of, and whole
        lease.forget()
        return Recovered(number, path, None, f"{path}: its last checkpoint is {number}, an earlier one than was")
    new = path.with_name(path.name + ".recovering")
    _copy(origin, new)
    sync(new)
    aside = next(each for n in range(1, 10**6) if not (each := path.with_name(f"{path.name}.damaged-{n}")).exists())
    lease.forget()
    # A log goes first: with another file under its name, it would be read as that one's.
    for ending in reversed(BESIDE):
        old = path.with_name(path.name + ending)
        if old.exists():
            target = path.with_name(aside.name + ending)
            if ending:
                os.rename(old, target)
            else:
                _copy(old, target)  # there is a store under its name at every moment
    sync(path.parent)
    os.replace(new, path)
    sync(path.parent)
    return Recovered(number, origin, aside, faults[0])


def _copy(origin: Path, target: Path) -> None:
    """Copy a file; at no moment can others read it."""
    target.unlink(missing_ok=True)
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(origin, "rb") as old, open(fd, "wb") as new:
        shutil.copyfileobj(old, new, 1 << 20)
