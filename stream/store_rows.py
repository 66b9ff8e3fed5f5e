"""Rows of a state store, each with its checksum: none is written without one, and none that fails it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from zlib import crc32

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from stream.store_database import insert_of
from stream.store_errors import REPAIR, DamagedError
from stream.store_sum import MODULUS, SUM, SUMMED, KnownCrcs, replaced, sum_of, total_of
from stream.store_tables import SCHEMA, TABLES, lane_crc_1, row_crc

FETCH = 500
"""Rows read or written at once: databases bound the number of parameters, and memory is finite."""


class CheckedRows:
    """Reads and writes rows of one store.

    Parameters
    ----------
    shown
        The store's URL, without a password.

    Attributes
    ----------
    version
        That of the tables: rows of an earlier one had checksums in their lanes alone.
    identity
        What tells the store from another: rows of that one are no rows here.

    Examples
    --------
    >>> database = sql.create_engine("sqlite://")
    >>> rows = CheckedRows("sqlite://")
    >>> rows.identity = "a1b2"
    >>> with database.begin() as connection:
    ...     TABLES.run.metadata.create_all(connection)
    ...     rows.write(connection, TABLES.run, [{"name": "rank", "value": "8"}])
    ...     [row["value"] for row in rows.read(connection, TABLES.run)]
    ['8']
    >>> with database.begin() as connection:
    ...     _ = connection.execute(sql.update(TABLES.run).values(value="9"))
    ...     list(rows.read(connection, TABLES.run))
    Traceback (most recent call last):
    stream.store_errors.DamagedError: --state sqlite://: the stored row of `run` 'rank' fails its checksum: the file \
was damaged; ...
    """

    def __init__(self, shown: str):
        self.shown, self.version = shown, SCHEMA
        self._total: int | None = None
        self._crcs = KnownCrcs()
        self._identity, self._seed = "", 0

    @property
    def identity(self) -> str:
        """As said above."""
        return self._identity

    @identity.setter
    def identity(self, identity: str) -> None:
        self._identity, self._seed = identity, crc32(identity.encode("utf-8", "surrogatepass"))

    def damaged(self, how: str) -> DamagedError:
        """Return what is raised for a store that is not what was written."""
        return DamagedError(f"--state {self.shown}: the file was damaged ({how}); {REPAIR}")

    def check(self, table: sql.Table, row: sql.RowMapping | Mapping[str, Any], name: str) -> None:
        """Check one row, which an error calls `name`.

        Raises
        ------
        DamagedError
            It fails its checksum.
        """
        of_before = self.version < SCHEMA and "state" in row
        if row["crc"] != (lane_crc_1(row) if of_before else row_crc(table, row, self._seed)):
            raise DamagedError(f"--state {self.shown}: {name} fails its checksum: the file was damaged; {REPAIR}")

    def read(
        self, connection: Connection, table: sql.Table, query: sql.Select[Any] | None = None, *, many: bool = False
    ) -> Iterator[sql.RowMapping]:
        """Yield a table's rows, or those of a query of whole rows of it: each checked, but for the schema's version.

        Parameters
        ----------
        connection
            In a transaction.
        table, query
            What to read; without a query, all.
        many
            Whether there may be more rows than should be in memory at once.
        """
        options = {"yield_per": FETCH} if many else {}
        found = connection.execute(sql.select(table) if query is None else query, execution_options=options)
        try:
            for row in found.mappings():
                if "crc" in table.c:
                    first = next(iter(table.primary_key.columns)).name if table is not TABLES.shadow_lanes else "lane"
                    kind = "lane" if "state" in table.c else f"row of `{table.name}`"
                    self.check(table, row, f"the stored {kind} {row[first]!r}")
                    if not many:
                        self._crcs.note(table, [row])
                if table.name != "run" or row["name"] != "schema":
                    yield row
        finally:
            found.close()

    def write(self, connection: Connection, table: sql.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows in place of those that have the same key."""
        if not rows:
            return
        made = [{**row, "crc": row_crc(table, row, self._seed)} for row in rows]
        if self._total is not None and table in SUMMED:
            known, unknown = self._crcs.take(table, rows)
            self._total += sum(row["crc"] for row in made) - known - replaced(connection, table, unknown)
            self._crcs.note(table, made)
        insert = insert_of(connection.dialect.name)(table)
        others = {
            column.name: insert.excluded[column.name]
            for column in table.columns
            if not column.primary_key and column.name != "renewed"
        }
        connection.execute(
            insert.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=others),
            made,
        )

    def delete(self, connection: Connection, table: sql.Table, where: sql.ColumnElement[bool]) -> None:
        """Take rows away."""
        if self._total is not None:
            self._total -= sum_of(connection, table, where)
            if "state" in table.c:
                self._crcs.forget()
        connection.execute(table.delete().where(where))

    def check_sum(self, connection: Connection, number: int, total: int) -> None:
        """Check that the rows are those of a checkpoint. A store that was never claimed by this release has no sum.

        Raises
        ------
        DamagedError
            They are not.
        """
        known = self._known_sum(connection)
        if known is not None and known != (number, total):
            raise self.damaged(
                "its rows are not those of one checkpoint: some are missing, or its log was lost while it was carried "
                "back"
            )

    def write_sum(self, connection: Connection, number: int, total: int) -> None:
        """Note the sum of a checkpoint."""
        self.write(connection, TABLES.run, [{"name": SUM, "value": f"{number} {total}"}])

    @contextmanager
    def summing(self, connection: Connection, before: int, after: int) -> Iterator[None]:
        """Keep the sum up with what is written and deleted within, which makes one checkpoint of another.

        Raises
        ------
        DamagedError
            The sum that is there is not that of the checkpoint before.
        """
        known = self._known_sum(connection)
        if known is not None and known[0] != before:
            raise self.damaged(f"its sum is of checkpoint {known[0]}, where {before} was the last")
        self._total = total_of(connection) if known is None else known[1]
        self._crcs.as_of(before)
        try:
            yield
            self.write_sum(connection, after, self._total % MODULUS)
            self._crcs.moved(after)
        except BaseException:
            self._crcs.forget()  # what was written is not there
            raise
        finally:
            self._total = None

    def _known_sum(self, connection: Connection) -> tuple[int, int] | None:
        for row in self.read(connection, TABLES.run, sql.select(TABLES.run).where(TABLES.run.c.name == SUM)):
            number, total = row["value"].split()
            return int(number), int(total)
        return None
