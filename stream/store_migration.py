"""A store of the release before, made one of this release."""

from __future__ import annotations

import json
import secrets

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from stream.store_rows import FETCH, CheckedRows
from stream.store_tables import SCHEMA, TABLES, TABLES_1, lane_crc_1


def bring_up(connection: Connection, rows: CheckedRows) -> int:
    """Make a store of version 1 one of version 2: a checksum in each row, an origin in each count of actions.

    Parameters
    ----------
    connection
        In a transaction, which makes it all or nothing.
    rows
        The store's; of version 2 afterwards, with a new identity. The row of its owner is left to the caller.

    Returns
    -------
    int
        The store's epoch.

    Raises
    ------
    DamagedError
        A lane fails its checksum.
    """
    old = TABLES_1
    kept = (old.run, old.partitions, old.marks, old.counters)
    stored = {table.name: [dict(row) for row in connection.execute(sql.select(table)).mappings()] for table in kept}
    epoch = int(connection.execute(sql.select(old.owner.c.epoch)).scalar_one())
    for table in (*kept, old.owner):
        table.drop(connection)
    TABLES.run.metadata.create_all(connection)
    rows.identity, rows.version = secrets.token_hex(8), SCHEMA
    for row in stored["run"]:
        row["value"] = str(SCHEMA) if row["name"] == "schema" else row["value"]
    for row in stored["counters"]:
        counters = json.loads(row["values"])
        if counts := counters.get("ebbtide_actions_total"):
            counters["ebbtide_actions_total"] = [[kind, "policy", count] for kind, count in counts]
            row["values"] = json.dumps(counters, separators=(",", ":"))
    for name, found in stored.items():
        rows.write(connection, getattr(TABLES, name), found)
    last = None
    while True:  # rows are not changed in the midst of reading them
        query = sql.select(TABLES.lanes).order_by(TABLES.lanes.c.lane).limit(FETCH)
        lanes = connection.execute(query if last is None else query.where(TABLES.lanes.c.lane > last)).mappings()
        batch = [dict(row) for row in lanes]
        if not batch:
            return epoch
        for row in batch:
            if row["crc"] != lane_crc_1(row):
                raise rows.damaged(f"the stored lane {row['lane']!r} fails its checksum")
        rows.write(connection, TABLES.lanes, batch)
        last = batch[-1]["lane"]
