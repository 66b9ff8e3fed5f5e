"""The state store: everything that a run needs to go on, in one transaction.

A checkpoint holds the lanes that changed, each partition's position, the marks of the sink and of the dead-letter
file, and the counters, and it is either all there or not at all. SQLite by default, or PostgreSQL; the tables are in
`stream/store_tables.py`. Each row has a checksum, and none that fails it is used.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from memory.errors import ConfigurationError, StateMismatchError
from memory.state_pool import LaneRecord, pack, unpack
from stream import store_lease, store_patience
from stream.sources.position import Position
from stream.store_database import WRITES, connect, shown
from stream.store_errors import (
    REPAIR,
    AwayError,
    DamagedError,
    FencedError,
    NoRoomError,
    PassingError,
    first_line,
    kind_of,
    told,
)
from stream.store_file import StoreFile
from stream.store_lease import Note, SessionLease
from stream.store_migration import bring_up
from stream.store_opening import check_store, made_as, owner_row
from stream.store_records import Acted, Checkpoint, OutputMark, Request
from stream.store_rows import FETCH, CheckedRows
from stream.store_sum import MODULUS, SUM, SUMMED, total_of
from stream.store_tables import SCHEMA, TABLES, TABLES_1

__all__ = [
    "Acted",
    "AwayError",
    "Checkpoint",
    "DamagedError",
    "FencedError",
    "NoRoomError",
    "OutputMark",
    "PassingError",
    "Request",
    "StateStore",
]

FORGETTING = "forgetting"
"""The row of `run` that an interrupted `ebbtide forget` leaves: what is left to do, and no stream's name."""


class StateStore:
    """Lanes and checkpoints in a database.

    Life: `StateStore(url)` connects and checks the version; `claim(settings)` takes the store over, after comparing
    the settings that states depend on; then `load`, `fetch` and `commit` in any order; `close`. To look without
    taking over, leave `claim` out.

    A `PassingError` from any of them may pass: the same call can be made again, a commit too, whether it was stored
    or not.

    Parameters
    ----------
    url
        An SQLAlchemy URL, such as ``sqlite:///run/state.db`` or ``postgresql+psycopg://user@host/database``.
    create
        Whether a store that does not exist is made.
    patience
        Gives the seconds for which a database server may say nothing.
    any_checkpoint
        Whether an earlier checkpoint than the last one known of will do, where somebody asked for that.

    Raises
    ------
    ConfigurationError
        The URL is none, or the database cannot be opened.
    StateMismatchError
        The store is of another version.
    DamagedError
        The store is not what was written.
    """

    def __init__(
        self,
        url: str,
        *,
        create: bool = True,
        patience: Callable[[], float] = store_patience.usual,
        any_checkpoint: bool = False,
    ):
        self._epoch = self._number = 0
        self._shadows: list[str] | None = None  # those whose lanes the first commit leaves
        self._done = self._tried = 0  # of the operators' actions that are given again: stored already, given last
        self._held_at = 0.0
        self._database = connect(url, patience)
        self.url = shown(url)
        self._rows = CheckedRows(self.url)
        self._file: StoreFile | None = None
        self._session: SessionLease | None = None
        if self._database.dialect.name == "sqlite":
            self._file = StoreFile(self._database.url.database, self._rows, create=create)
        else:
            self._session = SessionLease(self._database, self.url)
        # Before the store is looked into: a run that goes on meanwhile moves both, the store first.
        note = self._file.lease.note() if self._file is not None and not any_checkpoint else None
        try:
            with self._database.connect().execution_options(**{WRITES: create}) as connection, connection.begin():
                check_store(connection, self._rows, create=create, file=self._file, note=note)
        except UnicodeDecodeError as error:
            self.close()
            raise self._rows.damaged("a text that is none") from error
        except sql.exc.SQLAlchemyError as error:
            self.close()
            hint = "" if issubclass(kind_of(error), PassingError) else f"; if it was one, it was damaged: {REPAIR}"
            raise ConfigurationError(
                f"--state {self.url}: cannot be opened as a state store: {first_line(error)}{hint}"
            ) from error
        except BaseException:
            self.close()
            raise

    def claim(self, settings: Mapping[str, str], shadows: Sequence[str] = ()) -> None:
        """Become the one consumer that may commit. A store of an earlier version is brought up to this one.

        Parameters
        ----------
        settings
            What stored states depend on, by the name of the option that says it. Remembered by a new store; for one
            that exists they must be the same.
        shadows
            Those of this run. The first commit drops the lanes of others: from there on they would have a gap.

        Raises
        ------
        StateMismatchError
            The store was made under other settings; nothing was changed.
        ConfigurationError
            Another consumer is using the store.
        DamagedError
            A row fails its checksum.
        """
        self._take()
        self._log_ahead()
        with self._writing(lambda connection: None) as connection:
            stored = {}
            tables = TABLES if self._rows.version == SCHEMA else TABLES_1
            if connection.execute(sql.select(tables.counters.c.id)).first() is not None:  # there is a checkpoint
                stored = {row["name"]: row["value"] for row in self._rows.read(connection, tables.run)}
            for name, value in settings.items():
                if stored and stored.get(name) != value:
                    raise StateMismatchError(
                        f"--state {self.url} was made with {name} {stored.get(name)}, but this run has {name} {value}: "
                        f"give it {name} {stored.get(name)}, or start with another --state"
                    )
            if FORGETTING in stored and FORGETTING not in settings:
                raise ConfigurationError(
                    f"--state {self.url}: `ebbtide forget` was interrupted here: give that command again, which "
                    "finishes it; until then the outputs are not those that the store goes with"
                )
            if self._rows.version < SCHEMA:
                epoch = bring_up(connection, self._rows)
                self._rows.write(connection, TABLES.owner, [owner_row(self._rows, epoch, 0, made_as(connection))])
                total = total_of(connection)
            else:
                total = self._check_all(connection)
            named = [{"name": name, "value": value} for name, value in settings.items()]
            self._rows.write(connection, TABLES.run, named)
            (owner,) = self._rows.read(connection, TABLES.owner)
            epoch, number = owner["epoch"] + 1, owner["checkpoint"] + 1
            self._rows.write_sum(connection, number, total)
            self._rows.write(connection, TABLES.owner, [owner_row(self._rows, epoch, number, owner["tables"])])
            self._renew(connection)
        self._epoch, self._number, self._done, self._tried = epoch, number, 0, 0
        self._shadows = list(shadows)
        self._noted()

    def _take(self) -> None:
        with told(self.url):
            if self._file is not None:
                self._file.lease.take(self.url)
            elif self._session is not None:
                self._session.take()

    def lock(self) -> None:
        """Keep every consumer from the store, and change nothing in it.

        Raises
        ------
        ConfigurationError
            A consumer is using it.
        StateMismatchError
            It is of an earlier version.
        """
        self._need_current()
        self._take()

    def change(self, work: Callable[[Connection, CheckedRows], None]) -> None:
        """Change rows as the one consumer that may, in one transaction, which becomes a checkpoint of its own.

        Parameters
        ----------
        work
            Called with the transaction and what writes rows into it.
        """
        with self._writing(self._check_epoch) as connection:
            (owner,) = self._rows.read(connection, TABLES.owner)
            number = owner["checkpoint"] + 1
            self._rows.write(connection, TABLES.owner, [owner_row(self._rows, self._epoch, number, owner["tables"])])
            with self._rows.summing(connection, number - 1, number):
                work(connection, self._rows)
        self._number = number
        self._noted()

    @property
    def database(self) -> sql.Engine:
        """The database itself, for what no transaction can do."""
        return self._database

    def _check_all(self, connection: Connection) -> int:
        """Check that all rows are of one checkpoint; return the sum of their checksums.

        Of an SQLite store each row is checked too, once for each run: no lane is found damaged in the midst of it.
        """
        total = 0
        if self._file is None:
            total = total_of(connection)
        else:
            for table in self._now_tables():
                for row in self._rows.read(connection, table, many=True):
                    total += row["crc"] if table in SUMMED else 0
        total %= MODULUS
        (owner,) = self._rows.read(connection, TABLES.owner)
        self._rows.check_sum(connection, owner["checkpoint"], total)
        return total

    def check(self) -> int:
        """Read every row; return the number of the checkpoint.

        Raises
        ------
        DamagedError
            A row fails its checksum.
        """
        self._need_current()
        with self._transaction() as connection:
            self._check_all(connection)
            (owner,) = self._rows.read(connection, TABLES.owner)
            return int(owner["checkpoint"])

    @property
    def path(self) -> Path | None:
        """The file of an SQLite store."""
        return self._file.path if self._file is not None else None

    @property
    def identity(self) -> str:
        """What tells this store, and the copies of it, from another."""
        return self._rows.identity

    def _renew(self, connection: Connection) -> None:
        if self._session is not None:
            now = sql.text("extract(epoch FROM clock_timestamp())")
            connection.execute(sql.update(TABLES.owner).values(renewed=now))
        self._held_at = _now()

    def _noted(self) -> None:
        if self._file is not None:
            self._file.lease.write(Note(self._rows.identity, self._number))

    def hold(self, *, lately: bool = False) -> None:
        """Make sure that this consumer may still write, and say that it lives. To be called before anything is written
        that goes with the store: a consumer that was overtaken must leave all of it alone.

        Parameters
        ----------
        lately
            Whether a look within the last third of the lease will do.

        Raises
        ------
        FencedError
            Another consumer has claimed the store since.
        EbbtideError
            The store's file was removed, renamed or replaced.
        """
        if lately and _now() - self._held_at < store_lease.LEASE / 3:
            return
        if self._session is None:
            with self._transaction() as connection:
                self._check_epoch(connection)
            if self._file is not None:
                self._file.check_name()
            self._held_at = _now()
        else:
            with self._writing(self._check_epoch) as connection:
                self._renew(connection)

    def _check_epoch(self, connection: Connection) -> None:
        query = sql.select(TABLES.owner.c.epoch)
        # Locked, so that who claims the store now waits for the end of this transaction.
        epoch = connection.execute(query if self._session is None else query.with_for_update()).scalar()
        if epoch != self._epoch:
            raise FencedError(f"--state {self.url}: another consumer has taken this store over; this one stops")

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[Connection]:
        """Do all of what is in the block, or, if that raises, nothing."""
        with (
            told(self.url),
            self._database.connect().execution_options(**{WRITES: write}) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def _writing(self, check: Any) -> Iterator[Connection]:
        """As `_transaction`, for the one consumer; `check` is called first, and raises where another has the store."""
        if self._session is None:
            with self._transaction(write=True) as connection:
                check(connection)
                yield connection
        else:
            with told(self.url), self._session.writing(check) as connection:
                yield connection

    def _log_ahead(self) -> None:
        """Have SQLite keep a write-ahead log: readers do not hold up commits then. The file remembers it."""
        if self._file is not None:
            with told(self.url), self._database.connect() as connection:
                driver = connection.connection.driver_connection
                assert driver is not None
                try:
                    (mode,) = driver.execute("PRAGMA journal_mode=WAL").fetchone()
                    if mode != "wal":
                        raise sqlite3.OperationalError(f"the journal mode stays {mode}")
                except sqlite3.Error as error:
                    raise sql.exc.OperationalError("PRAGMA journal_mode=WAL", {}, error) from error

    def _now_tables(self) -> Any:
        return TABLES if self._rows.version == SCHEMA else TABLES_1

    @property
    def settings(self) -> dict[str, str]:
        """The settings that the stored states depend on."""
        with self._transaction() as connection:
            rows = self._rows.read(connection, self._now_tables().run)
            known = sorted((row["name"], row["value"]) for row in rows)
            return {name: value for name, value in known if name != SUM}

    def load(self) -> Checkpoint:
        """Return the last checkpoint; an empty one if there is none."""
        tables = self._now_tables()
        with self._transaction() as connection:
            return Checkpoint(
                {
                    row["partition"]: Position.from_json(row["position"])
                    for row in self._rows.read(connection, tables.partitions)
                },
                {
                    row["output"]: OutputMark(row["mark"], row["identity"])
                    for row in self._rows.read(connection, tables.marks)
                },
                next((json.loads(row["values"]) for row in list(self._rows.read(connection, tables.counters))), {}),
            )

    def fetch(self, lanes: Sequence[str], shadow: str | None = None) -> dict[str, LaneRecord]:
        """Return the stored ones among these lanes, the live ones or those of a shadow.

        Raises
        ------
        DamagedError
            A row fails its checksum.
        """
        found: dict[str, LaneRecord] = {}
        table = TABLES.lanes if shadow is None else TABLES.shadow_lanes
        with self._transaction() as connection:
            for first in range(0, len(lanes), FETCH):
                query = sql.select(table).where(table.c.lane.in_(lanes[first : first + FETCH]))
                for row in self._rows.read(
                    connection, table, query if shadow is None else query.where(table.c.shadow == shadow)
                ):
                    found[row["lane"]] = _record(row)
        return found

    def lanes(self, shadow: str | None = None) -> Generator[tuple[str, LaneRecord]]:
        """Yield every stored lane, the live ones or those of a shadow, by name."""
        table = TABLES.lanes if shadow is None else TABLES.shadow_lanes
        query = sql.select(table).order_by(table.c.lane)
        if shadow is not None:
            query = query.where(table.c.shadow == shadow)
        with self._transaction() as connection:
            for row in self._rows.read(connection, table, query, many=True):
                yield row["lane"], _record(row)

    def shadows(self) -> list[str]:
        """Return the names of the shadows that have lanes."""
        if self._rows.version < SCHEMA:
            return []
        name = TABLES.shadow_lanes.c.shadow
        with self._transaction() as connection:
            return list(connection.execute(sql.select(name).distinct().order_by(name)).scalars())

    def count(self) -> int:
        """Return the number of stored lanes."""
        with self._transaction() as connection:
            return int(connection.execute(sql.select(sql.func.count()).select_from(TABLES.lanes)).scalar_one())

    def commit(
        self,
        lanes: Iterable[tuple[str, LaneRecord]],
        positions: Mapping[str, Position],
        marks: Mapping[str, OutputMark],
        counters: Mapping[str, Any],
        *,
        shadows: Mapping[str, Iterable[tuple[str, LaneRecord]]] | None = None,
        acted: Sequence[Acted] = (),
    ) -> int:
        """Store a checkpoint: all of it, or, if this raises, nothing. Returns the number of lanes written.

        Where the connection breaks at the very end, nobody knows which of the two it was. The next call finds it out
        from the checkpoint's number, and stores nothing twice.

        Parameters
        ----------
        lanes
            The lanes that changed.
        positions, marks, counters
            As in `Checkpoint`; a partition that did not move may be left out.
        shadows
            Shadow → its lanes that changed.
        acted
            Operators' actions that were taken since the last checkpoint; what asked for them is done with. After an
            error, they must be given again, newer ones behind them.

        Raises
        ------
        FencedError
            Another consumer has claimed the store since.
        PassingError
            The database cannot store it now, such as for want of room.
        EbbtideError
            The database cannot store it.
        """
        with self._writing(self._check_epoch) as connection:
            (owner,) = self._rows.read(connection, TABLES.owner)
            number = owner["checkpoint"]
            if number == self._number + 1:  # the last try was stored after all
                self._number, self._done = number, self._tried
            elif number != self._number:
                raise self._rows.damaged(f"it holds checkpoint {number}, where {self._number} was the last")
            self._tried = len(acted)
            self._rows.write(
                connection, TABLES.owner, [owner_row(self._rows, self._epoch, number + 1, owner["tables"])]
            )
            self._renew(connection)
            with self._rows.summing(connection, number, number + 1):
                if self._shadows is not None:
                    gone = TABLES.shadow_lanes.c.shadow.not_in(self._shadows)
                    self._rows.delete(connection, TABLES.shadow_lanes, gone)
                written = self._write_lanes(connection, TABLES.lanes, lanes, {})
                for shadow, changed in (shadows or {}).items():
                    written += self._write_lanes(connection, TABLES.shadow_lanes, changed, {"shadow": shadow})
                self._write_acted(connection, acted[self._done :])
                places = [{"partition": name, "position": place.to_json()} for name, place in positions.items()]
                self._rows.write(connection, TABLES.partitions, places)
                # An output that this run leaves out has a gap from here on: its old mark is no place to go on from.
                self._rows.delete(connection, TABLES.marks, TABLES.marks.c.output.not_in(list(marks)))
                marked = [
                    {"output": name, "mark": mark, "identity": identity} for name, (mark, identity) in marks.items()
                ]
                self._rows.write(connection, TABLES.marks, marked)
                values = json.dumps(counters, separators=(",", ":"))
                self._rows.write(connection, TABLES.counters, [{"id": 1, "values": values}])
        self._number, self._done, self._tried = number + 1, 0, 0
        self._shadows = None
        self._noted()
        return written

    def _write_lanes(
        self,
        connection: Connection,
        table: sql.Table,
        lanes: Iterable[tuple[str, LaneRecord]],
        key: Mapping[str, str],
    ) -> int:
        rest, written = iter(lanes), 0
        while rows := [{**key, **_row(lane, record)} for lane, record in islice(rest, FETCH)]:
            self._rows.write(connection, table, rows)
            written += len(rows)
        return written

    def _write_acted(self, connection: Connection, acted: Sequence[Acted]) -> None:
        if not acted:
            return
        last = connection.execute(sql.select(sql.func.max(TABLES.acted.c.id))).scalar() or 0
        made = [{"id": last + n, **each._asdict()} for n, each in enumerate(acted, 1)]
        self._rows.write(connection, TABLES.acted, made)
        asked = [each.request for each in acted if each.request is not None]
        connection.execute(TABLES.requests.delete().where(TABLES.requests.c.id.in_(asked)))

    def ask(self, stream: str, action: str) -> int:
        """Ask whoever consumes for an action on a stream; return the request's id. Needs no claim."""
        self._need_current()
        with self._transaction(write=True) as connection:
            if self._session is not None:  # one at a time, as in SQLite
                connection.execute(sql.text("LOCK TABLE requests IN SHARE ROW EXCLUSIVE MODE"))
            # The number of a request that is done with must not be given again.
            given = (TABLES.requests.c.id, TABLES.acted.c.request)
            made = 1 + max(connection.execute(sql.select(sql.func.max(column))).scalar() or 0 for column in given)
            self._rows.write(connection, TABLES.requests, [{"id": made, "stream": stream, "action": action}])
            return made

    def requests(self) -> list[Request]:
        """Return what was asked for and not taken yet, in order."""
        query = sql.select(TABLES.requests).order_by(TABLES.requests.c.id)
        with self._transaction() as connection:
            rows = self._rows.read(connection, TABLES.requests, query)
            return [Request(row["id"], row["stream"], row["action"]) for row in rows]

    def acted(self, stream: str | None = None, *, request: int | None = None) -> list[Acted]:
        """Return the operators' actions that were taken, in order: all, those on a stream, or the one of a request."""
        if self._rows.version < SCHEMA:
            return []
        query = sql.select(TABLES.acted).order_by(TABLES.acted.c.id)
        if stream is not None:
            query = query.where(TABLES.acted.c.stream == stream)
        if request is not None:
            query = query.where(TABLES.acted.c.request == request)
        with self._transaction() as connection:
            rows = self._rows.read(connection, TABLES.acted, query)
            return [Acted(*(row[name] for name in Acted._fields)) for row in rows]

    def _need_current(self) -> None:
        if self._rows.version < SCHEMA:
            raise StateMismatchError(
                f"--state {self.url}: the store has schema version {self._rows.version}: `ebbtide run` with this "
                f"--state brings it up to version {SCHEMA}"
            )

    def close(self) -> None:
        """Let go of the database and of the lock."""
        if self._session is not None:
            self._session.close()
        self._database.dispose()
        if self._file is not None:
            self._file.lease.close()


def _row(lane: str, record: LaneRecord) -> dict[str, Any]:
    return {"lane": lane, "layout": record.layout, "state": record.state, "beside": pack(record.beside)}


def _record(row: sql.RowMapping) -> LaneRecord:
    return LaneRecord(row["layout"], row["state"], unpack(row["beside"]))


def _now() -> float:
    """Seconds that go on while the process, or the machine, is stopped."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
