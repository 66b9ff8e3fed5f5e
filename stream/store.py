"""The state store: everything that a run needs to go on, in one transaction.

A checkpoint holds the lanes that changed, each partition's position, the marks of the sink and of the dead-letter
file, and the counters, and it is either all there or not at all. SQLite by default; the schema is plain, so that
another database is a URL away.

    run           one row a fact: schema version, and the settings that stored states depend on
    owner         the epoch of the consumer that may commit; a newer consumer raises it, and the older one is refused
    lanes         one row a lane: its state, and what the monitors and the policy keep beside it
    shadow_lanes  the same of each shadow
    partitions    one row a partition of the source: where to go on
    marks         one row an output: up to where it belongs to this checkpoint
    counters      one row: what has been counted since the first start
    requests      one row an action that an operator asked for and that was not taken yet
    acted         one row an operator's action that was taken: on what, when, and what the state was before
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import sqlalchemy as sql
from sqlalchemy.engine import Connection, Engine

from memory.errors import ConfigurationError, EbbtideError, StateMismatchError
from memory.state_pool import LaneRecord, pack, unpack
from stream.sources.source import Position

SCHEMA = 2
"""Version of the tables. Version 1 is brought up to it by the next run; any other is refused, never read."""

_tables = sql.MetaData()
_run = sql.Table("run", _tables, sql.Column("name", sql.Text, primary_key=True), sql.Column("value", sql.Text))
_owner = sql.Table("owner", _tables, sql.Column("id", sql.Integer, primary_key=True), sql.Column("epoch", sql.Integer))


def _lane_columns() -> Iterator[sql.Column[Any]]:
    yield sql.Column("lane", sql.Text, primary_key=True)
    yield sql.Column("layout", sql.Text)
    yield sql.Column("state", sql.LargeBinary)
    yield sql.Column("beside", sql.LargeBinary)
    yield sql.Column("crc", sql.BigInteger)


_lanes = sql.Table("lanes", _tables, *_lane_columns())
_shadow_lanes = sql.Table("shadow_lanes", _tables, sql.Column("shadow", sql.Text, primary_key=True), *_lane_columns())
_partitions = sql.Table(
    "partitions", _tables, sql.Column("partition", sql.Text, primary_key=True), sql.Column("position", sql.Text)
)
_marks = sql.Table(
    "marks",
    _tables,
    sql.Column("output", sql.Text, primary_key=True),
    sql.Column("mark", sql.BigInteger),
    sql.Column("identity", sql.Text),
)
_counters = sql.Table(
    "counters", _tables, sql.Column("id", sql.Integer, primary_key=True), sql.Column("values", sql.Text)
)
_requests = sql.Table(
    "requests",
    _tables,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("stream", sql.Text),
    sql.Column("action", sql.Text),
    sqlite_autoincrement=True,  # the number of a request that is done with must not be given again
)
_acted = sql.Table(
    "acted",
    _tables,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("request", sql.Integer),
    sql.Column("stream", sql.Text, index=True),
    sql.Column("seq", sql.BigInteger),
    sql.Column("action", sql.Text),
    sql.Column("outcome", sql.Text),
    sql.Column("time", sql.Float),
    sql.Column("before", sql.LargeBinary),
)
_NEW_IN_2 = (_shadow_lanes, _requests, _acted)

FETCH = 500
"""Lanes asked for in one query, or written by one: databases bound the number of parameters, and memory is finite."""


class FencedError(EbbtideError):
    """Another consumer has taken this store over; this one must not write again."""


class NoRoomError(EbbtideError):
    """The disk is full, or may not be written now: nothing was stored, and it can be tried again."""


class OutputMark(NamedTuple):
    """Up to where an output belongs to a checkpoint, and what tells that output from another one."""

    mark: int
    identity: str = ""


class Request(NamedTuple):
    """An action that an operator asked for."""

    id: int
    stream: str
    action: str


class Acted(NamedTuple):
    """An operator's action that was taken.

    Attributes
    ----------
    request
        The id of the row that asked for it; None where it came by HTTP.
    stream
        On which stream.
    seq
        Before which of its events.
    action
        What, as JSON.
    outcome
        What came of it, in words; it begins with "refused" where nothing was done.
    time
        Unix time in seconds.
    before
        The state's bytes before it, for taking it back; None where nothing was done.
    """

    request: int | None
    stream: str
    seq: int
    action: str
    outcome: str
    time: float
    before: bytes | None


@dataclass(slots=True)
class Checkpoint:
    """What a run goes on from, lanes excepted: those are fetched when their streams come up.

    Attributes
    ----------
    positions
        Partition → where to go on.
    marks
        Output → its mark.
    counters
        What `Metrics.persistent` gave.
    """

    positions: dict[str, Position] = field(default_factory=dict)
    marks: dict[str, OutputMark] = field(default_factory=dict)
    counters: dict[str, Any] = field(default_factory=dict)


class StateStore:
    """Lanes and checkpoints in a database.

    Life: `StateStore(url)` connects and checks the version; `claim(settings)` takes the store over, after comparing
    the settings that states depend on; then `load`, `fetch` and `commit` in any order; `close`. To look without
    taking over, leave `claim` out.

    Parameters
    ----------
    url
        An SQLAlchemy URL, such as ``sqlite:///run/state.db``.
    create
        Whether a store that does not exist is made.

    Raises
    ------
    ConfigurationError
        The URL is none, or the database cannot be opened.
    StateMismatchError
        The store is of another version.
    """

    def __init__(self, url: str, *, create: bool = True):
        self._epoch = self._version = 0
        self._lock: int | None = None
        self._database = _connect(url)
        self.url = _shown(url)
        self._file = None if self._database.dialect.name != "sqlite" else self._path(create)
        try:
            with self._database.begin() as connection:
                self._check_version(connection, create)
        except sql.exc.SQLAlchemyError as error:
            self.close()
            raise ConfigurationError(
                f"--state {self.url}: cannot be opened as a state store: {_first_line(error)}"
            ) from error
        except BaseException:
            self.close()
            raise

    def _path(self, create: bool) -> Path:
        """Return the path of an SQLite store, the file made if need be and asked for."""
        name = self._database.url.database
        if name in (None, "", ":memory:"):
            raise ConfigurationError(f"--state {self.url}: expected a file, such as sqlite:///run/state.db, got none")
        path = Path(name)
        try:
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            elif not path.exists():
                raise ConfigurationError(f"--state {self.url}: there is no file {path}")
        except OSError as error:
            raise ConfigurationError(
                f"--state {self.url}: expected a file that can be written, got {error.strerror}: {error.filename}"
            ) from None
        return path

    def _check_version(self, connection: Connection, create: bool) -> None:
        names = set(sql.inspect(connection).get_table_names())
        if not names and create:
            _tables.create_all(connection)
            connection.execute(_run.insert(), {"name": "schema", "value": str(SCHEMA)})
            connection.execute(_owner.insert(), {"id": 1, "epoch": 0})
            self._version = SCHEMA
            return
        if "run" not in names:
            raise StateMismatchError(
                f"--state {self.url}: this is {'an empty database' if not names else 'a database of something else'}, "
                "not a state store of Ebbtide: choose another file"
            )
        version = connection.execute(sql.select(_run.c.value).where(_run.c.name == "schema")).scalar()
        if version not in ("1", str(SCHEMA)):
            raise StateMismatchError(
                f"--state {self.url}: the store has schema version {version}, this Ebbtide reads version {SCHEMA}: "
                "use the release that wrote it, or start with another --state"
            )
        self._version = int(version)

    def _bring_up(self, connection: Connection) -> None:
        """Make a store of version 1 one of version 2: new tables, and an origin in each count of actions."""
        if self._version == SCHEMA:
            return
        _tables.create_all(connection, tables=list(_NEW_IN_2))
        stored = connection.execute(sql.select(_counters.c["values"])).scalar()
        if stored:
            counters = json.loads(stored)
            rows = counters.get("ebbtide_actions_total", [])
            if rows:
                counters["ebbtide_actions_total"] = [[kind, "policy", count] for kind, count in rows]
            connection.execute(_counters.update().values({"values": json.dumps(counters, separators=(",", ":"))}))
        connection.execute(_run.update().where(_run.c.name == "schema").values(value=str(SCHEMA)))

    def claim(self, settings: Mapping[str, str], shadows: Sequence[str] = ()) -> None:
        """Become the one consumer that may commit. A store of an earlier version is brought up to this one.

        Parameters
        ----------
        settings
            What stored states depend on, by the name of the option that says it. Remembered by a new store; for one
            that exists they must be the same.
        shadows
            Those of this run. The lanes of others are dropped: from here on they would have a gap.

        Raises
        ------
        StateMismatchError
            The store was made under other settings; nothing was changed.
        ConfigurationError
            Another consumer is using the store on this machine.
        """
        self._take_lock()
        self._log_ahead()
        with self._transaction() as connection:
            stored = {}
            if connection.execute(sql.select(_counters.c.id)).first() is not None:  # there is a checkpoint
                stored = {row.name: row.value for row in connection.execute(sql.select(_run)) if row.name != "schema"}
            for name, value in settings.items():
                if stored and stored.get(name) != value:
                    raise StateMismatchError(
                        f"--state {self.url} was made with {name} {stored.get(name)}, but this run has {name} {value}: "
                        f"give it {name} {stored.get(name)}, or start with another --state"
                    )
            self._bring_up(connection)
            rows = [{"name": name, "value": value} for name, value in settings.items()]
            self._replace(connection, _run, [_run.c.name], rows)
            connection.execute(_shadow_lanes.delete().where(_shadow_lanes.c.shadow.not_in(list(shadows))))
            connection.execute(_owner.update().values(epoch=_owner.c.epoch + 1))
            self._epoch = connection.execute(sql.select(_owner.c.epoch)).scalar_one()
        self._version = SCHEMA

    def _take_lock(self) -> None:
        """Hold a lock on a file beside an SQLite store; it goes with the process, however that ends."""
        if self._file is None:
            return
        if self._lock is None:
            path = self._file.with_name(self._file.name + ".lock")
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"--state {self.url}: another ebbtide run is using this store; stop it first, or give this one its own"
            ) from None

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Do all of what is in the block, or, if that raises, nothing."""
        try:
            with self._database.begin() as connection:
                yield connection
        except sql.exc.SQLAlchemyError as error:
            kind = NoRoomError if _lacks_room(error) else EbbtideError
            raise kind(
                f"--state {self.url}: the database refused: {_first_line(error)}; the last checkpoint is as it was, "
                "and the same command goes on from it"
            ) from error

    def _log_ahead(self) -> None:
        """Have SQLite keep a write-ahead log: readers do not hold up commits then. The file remembers it."""
        if self._file is not None:
            connection = self._database.raw_connection()
            try:
                connection.cursor().execute("PRAGMA journal_mode=WAL")
            finally:
                connection.close()

    @property
    def settings(self) -> dict[str, str]:
        """The settings that the stored states depend on."""
        with self._transaction() as connection:
            rows = connection.execute(sql.select(_run).order_by(_run.c.name))
            return {row.name: row.value for row in rows if row.name != "schema"}

    def load(self) -> Checkpoint:
        """Return the last checkpoint; an empty one if there is none."""
        with self._transaction() as connection:
            counters = connection.execute(sql.select(_counters.c["values"])).scalar()
            return Checkpoint(
                {
                    row.partition: Position.from_json(row.position)
                    for row in connection.execute(sql.select(_partitions))
                },
                {row.output: OutputMark(row.mark, row.identity) for row in connection.execute(sql.select(_marks))},
                json.loads(counters) if counters else {},
            )

    def fetch(self, lanes: Sequence[str], shadow: str | None = None) -> dict[str, LaneRecord]:
        """Return the stored ones among these lanes, the live ones or those of a shadow.

        Raises
        ------
        EbbtideError
            A row fails its checksum.
        """
        found: dict[str, LaneRecord] = {}
        with self._transaction() as connection:
            for first in range(0, len(lanes), FETCH):
                table = _lanes if shadow is None else _shadow_lanes
                query = sql.select(table).where(table.c.lane.in_(lanes[first : first + FETCH]))
                for row in connection.execute(query if shadow is None else query.where(table.c.shadow == shadow)):
                    found[row.lane] = self._record(row)
        return found

    def lanes(self, shadow: str | None = None) -> Generator[tuple[str, LaneRecord]]:
        """Yield every stored lane, the live ones or those of a shadow, by name."""
        table = _lanes if shadow is None else _shadow_lanes
        query = sql.select(table).order_by(table.c.lane)
        if shadow is not None:
            query = query.where(table.c.shadow == shadow)
        with self._transaction() as connection:
            for row in connection.execute(query).yield_per(FETCH):
                yield row.lane, self._record(row)

    def shadows(self) -> list[str]:
        """Return the names of the shadows that have lanes."""
        if self._version < SCHEMA:
            return []
        with self._transaction() as connection:
            names = connection.execute(sql.select(_shadow_lanes.c.shadow).distinct().order_by(_shadow_lanes.c.shadow))
            return list(names.scalars())

    def count(self) -> int:
        """Return the number of stored lanes."""
        with self._transaction() as connection:
            return int(connection.execute(sql.select(sql.func.count()).select_from(_lanes)).scalar_one())

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

        Parameters
        ----------
        lanes
            The lanes that changed.
        positions, marks, counters
            As in `Checkpoint`; a partition that did not move may be left out.
        shadows
            Shadow → its lanes that changed.
        acted
            Operators' actions that were taken since the last checkpoint; what asked for them is done with.

        Raises
        ------
        FencedError
            Another consumer has claimed the store since.
        EbbtideError
            The database cannot store it, such as for want of room.
        """
        written = 0
        with self._transaction() as connection:
            mine = connection.execute(_owner.update().where(_owner.c.epoch == self._epoch).values(epoch=self._epoch))
            if mine.rowcount != 1:
                raise FencedError(f"--state {self.url}: another consumer has taken this store over; this one stops")
            rest = iter(lanes)
            while rows := [_row(lane, record) for lane, record in islice(rest, FETCH)]:
                self._replace(connection, _lanes, [_lanes.c.lane], rows)
                written += len(rows)
            for shadow, changed in (shadows or {}).items():
                rest, key = iter(changed), [_shadow_lanes.c.shadow, _shadow_lanes.c.lane]
                while rows := [{"shadow": shadow} | _row(lane, record) for lane, record in islice(rest, FETCH)]:
                    self._replace(connection, _shadow_lanes, key, rows)
                    written += len(rows)
            if acted:
                connection.execute(_acted.insert(), [each._asdict() for each in acted])
                asked = [each.request for each in acted if each.request is not None]
                connection.execute(_requests.delete().where(_requests.c.id.in_(asked)))
            places = [{"partition": name, "position": place.to_json()} for name, place in positions.items()]
            self._replace(connection, _partitions, [_partitions.c.partition], places)
            # An output that this run leaves out has a gap from here on: its old mark is no place to go on from.
            connection.execute(_marks.delete().where(_marks.c.output.not_in(list(marks))))
            marked = [{"output": name, "mark": mark, "identity": identity} for name, (mark, identity) in marks.items()]
            self._replace(connection, _marks, [_marks.c.output], marked)
            values = json.dumps(counters, separators=(",", ":"))
            self._replace(connection, _counters, [_counters.c.id], [{"id": 1, "values": values}])
        return written

    def _replace(
        self,
        connection: Connection,
        table: sql.Table,
        key: Sequence[sql.Column[Any]],
        rows: Sequence[Mapping[str, Any]],
    ) -> None:
        if not rows:
            return
        insert = _dialect_insert(connection.dialect.name)(table)
        others = {column.name: insert.excluded[column.name] for column in table.columns if not column.primary_key}
        connection.execute(insert.on_conflict_do_update(index_elements=list(key), set_=others), list(rows))

    def ask(self, stream: str, action: str) -> int:
        """Ask whoever consumes for an action on a stream; return the request's id. Needs no claim."""
        self._need_current()
        with self._transaction() as connection:
            made = connection.execute(
                _requests.insert().returning(_requests.c.id), {"stream": stream, "action": action}
            )
            return int(made.scalar_one())

    def requests(self) -> list[Request]:
        """Return what was asked for and not taken yet, in order."""
        with self._transaction() as connection:
            return [Request(*row) for row in connection.execute(sql.select(_requests).order_by(_requests.c.id))]

    def acted(self, stream: str | None = None, *, request: int | None = None) -> list[Acted]:
        """Return the operators' actions that were taken, in order: all, those on a stream, or the one of a request."""
        if self._version < SCHEMA:
            return []
        query = sql.select(*(_acted.c[name] for name in Acted._fields)).order_by(_acted.c.id)
        if stream is not None:
            query = query.where(_acted.c.stream == stream)
        if request is not None:
            query = query.where(_acted.c.request == request)
        with self._transaction() as connection:
            return [Acted(*row) for row in connection.execute(query)]

    def _need_current(self) -> None:
        if self._version < SCHEMA:
            raise StateMismatchError(
                f"--state {self.url}: the store has schema version {self._version}: `ebbtide run` with this --state "
                f"brings it up to version {SCHEMA}"
            )

    def _record(self, row: Any) -> LaneRecord:
        if row.crc != _crc(row.state, row.beside):
            raise EbbtideError(
                f"--state {self.url}: the stored lane {row.lane!r} fails its checksum: the file was damaged; restore a "
                "copy of it, or start with another --state"
            )
        return LaneRecord(row.layout, row.state, unpack(row.beside))

    def close(self) -> None:
        """Let go of the database and of the lock."""
        self._database.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _connect(url: str) -> Engine:
    try:
        database = sql.create_engine(url)
    except (sql.exc.ArgumentError, sql.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigurationError(
            f"--state {_shown(url)}: expected an URL such as sqlite:///run/state.db: {_first_line(error)}"
        ) from error
    if database.dialect.name not in ("sqlite", "postgresql"):
        raise ConfigurationError(f"--state {_shown(url)}: expected sqlite or postgresql, got {database.dialect.name}")
    if database.dialect.name == "sqlite":

        @sql.event.listens_for(database, "connect")
        def _set_up(connection: Any, _: Any) -> None:
            # Transactions begin below: left to itself, the driver makes tables outside of one.
            connection.isolation_level = None
            connection.execute("PRAGMA synchronous=FULL")  # a commit is on the disk when it returns

        @sql.event.listens_for(database, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN")

    return database


def _shown(url: str) -> str:
    """Return the URL as it may stand in a log: without its password.

    >>> _shown("postgresql://ann:secret@host/db"), _shown("sqlite:///run/state.db")
    ('postgresql://ann:***@host/db', 'sqlite:///run/state.db')
    """
    try:
        made = sql.make_url(url)
    except sql.exc.ArgumentError:
        return url
    return url if made.password is None else made.render_as_string(hide_password=True)


def _dialect_insert(dialect: str) -> Any:
    if dialect == "sqlite":
        from sqlalchemy.dialects.sqlite import insert
    else:
        from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
    return insert


def _row(lane: str, record: LaneRecord) -> dict[str, Any]:
    beside = pack(record.beside)
    crc = _crc(record.state, beside)
    return {"lane": lane, "layout": record.layout, "state": record.state, "beside": beside, "crc": crc}


def _crc(state: bytes, beside: bytes) -> int:
    return crc32(beside, crc32(state))


def _lacks_room(error: Exception) -> bool:
    """Say whether a database only lacks room, or the right to write for now."""
    cause = getattr(error, "orig", None)
    code = getattr(cause, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY)
    return getattr(cause, "sqlstate", None) == "53100"  # PostgreSQL: disk_full


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]
