"""Which databases hold a state store, and how each is set up."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import Connection, Engine

from memory.errors import ConfigurationError
from stream import store_patience
from stream.store_errors import first_line

WRITES = "ebbtide_writes"
"""Execution option of a transaction that writes: SQLite is asked for the right to at its begin, not halfway."""


def connect(url: str, patience: Callable[[], float] = store_patience.usual) -> Engine:
    """Return the database of a URL, without asking it for anything yet.

    Parameters
    ----------
    url
        SQLAlchemy's.
    patience
        Gives the seconds for which a server may say nothing; then its connection counts as cut.

    Raises
    ------
    ConfigurationError
        The URL is none, or of a database that is not supported.
    """
    try:
        made = sql.make_url(url)
        name = made.drivername
        if name.split("+")[0] in ("postgresql", "postgres") and name != "postgresql+psycopg":
            raise ConfigurationError(
                f"--state {shown(url)}: expected postgresql+psycopg://, the driver that is tested, got {name}://"
            )
        url.encode()  # what is no text can be a file's name, but nothing that SQLite or a server is asked for
        if name.split("+")[0] == "sqlite" and made.database not in (None, "", ":memory:"):
            # What lies beside a store (lease, copies, notes) is the same by whichever link it is named.
            made = made.set(database=os.path.realpath(str(made.database)))
        database = sql.create_engine(made, **_options(url, name))
    except (sql.exc.ArgumentError, sql.exc.NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "psycopg":
            raise ConfigurationError(
                f"--state {shown(url)}: PostgreSQL needs psycopg: pip install 'ebbtide[postgres]'"
            ) from error
        raise ConfigurationError(
            f"--state {shown(url)}: expected an URL such as sqlite:///run/state.db: {first_line(error)}"
        ) from error
    if database.dialect.name not in ("sqlite", "postgresql"):
        raise ConfigurationError(f"--state {shown(url)}: expected sqlite or postgresql, got {database.dialect.name}")
    if database.dialect.name == "sqlite":
        _set_up_sqlite(database)
    else:
        _set_up_postgres(database, patience)
    return database


def _options(url: str, name: str) -> dict[str, Any]:
    if name != "postgresql+psycopg":
        return {}
    given = sql.make_url(url).query
    # A server that went without a word is noticed within half a minute, not after two hours.
    wanted: dict[str, Any] = {
        "connect_timeout": 5,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }
    wanted |= {"tcp_user_timeout": 30_000, "application_name": "ebbtide"}
    return {
        "connect_args": {name: value for name, value in wanted.items() if name not in given},
        "pool_pre_ping": True,
        "isolation_level": "REPEATABLE READ",  # one checkpoint is read, not parts of two
    }


def _set_up_sqlite(database: Engine) -> None:
    @sql.event.listens_for(database, "connect")
    def _set_up(connection: Any, _: Any) -> None:
        # Transactions begin below: left to itself, the driver makes tables outside of one.
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous=FULL")  # a commit is on the disk when it returns
        connection.execute("PRAGMA cell_size_check=ON")  # a damaged page is told as such when it is read

    @sql.event.listens_for(database, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _set_up_postgres(database: Engine, patience: Callable[[], float]) -> None:
    @sql.event.listens_for(database, "do_connect")
    def _connect(dialect: Any, record: Any, arguments: Any, options: Any) -> Any:
        try:
            return store_patience.connection_type(patience).connect(*arguments, **options)
        except UnicodeError as error:  # of a host's name that is none
            raise dialect.dbapi.OperationalError(str(error)) from error

    @sql.event.listens_for(database, "connect")
    def _set_up(connection: Any, _: Any) -> None:
        before, connection.autocommit = connection.autocommit, True
        # A server that answers before a commit is on its disk would lose checkpoints that files were cut to.
        connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
        # The lock of a connection of ours that hangs is waited for in small parts, so that a stop is heard.
        connection.execute("SELECT set_config('lock_timeout', '5s', false) WHERE current_setting('lock_timeout') = '0'")
        connection.autocommit = before


def shown(url: str) -> str:
    """Return the URL as it may stand in a log: without its password.

    >>> shown("postgresql://ann:secret@host/db"), shown("sqlite:///run/state.db")
    ('postgresql://ann:***@host/db', 'sqlite:///run/state.db')
    >>> shown("postgresql://ann:secret@host:port/db")
    'postgresql://***@host:port/db'
    """
    try:
        made = sql.make_url(url)
        return url if made.password is None else made.render_as_string(hide_password=True)
    except (sql.exc.ArgumentError, ValueError):  # also half of a surrogate pair, which no URL can hold
        return re.sub("(?<=://).*@", "***@", url)


def insert_of(dialect: str) -> Any:
    """Return the database's own `insert`, which can replace a row.

    >>> insert_of("sqlite").__module__
    'sqlalchemy.dialects.sqlite.dml'
    """
    if dialect == "sqlite":
        from sqlalchemy.dialects.sqlite import insert
    else:
        from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
    return insert
