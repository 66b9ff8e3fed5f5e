"""All that a run leaves, to be compared bit for bit with what another one left."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stream.dead_letters import read_dead_letters
from stream.store_sum import SUM
from stream.tape import TapeReader

Outcome = dict[str, Any]


def outcome_of(folder: Path, *, same_folder: bool = True) -> Outcome:
    """Return everything that must be equal, by a name that says what it is.

    Left out is what differs between two runs that nobody interrupted: when an operator's action was taken, how often
    a store was claimed, where on a tape the record batches end, inodes, and times of files.

    Parameters
    ----------
    folder
        With `state.db`, `out.jsonl`, `dead.jsonl` and the folder `tape`.
    same_folder
        Whether the input was one file that was never renamed: then what is known of it is compared too.
    """
    found: Outcome = {}
    with closing(sqlite3.connect(f"file:{folder / 'state.db'}?mode=ro", uri=True)) as store:
        (sound,) = store.execute("PRAGMA integrity_check").fetchone()
        assert sound == "ok", sound
        for lane, layout, state, beside in store.execute("SELECT lane, layout, state, beside FROM lanes"):
            found[f"lane {lane}: state"] = (layout, _digest(state))
            found |= {f"lane {lane}: {name}": digest for name, digest in _beside(beside)}
        for shadow, lane, layout, state, beside in store.execute(
            "SELECT shadow, lane, layout, state, beside FROM shadow_lanes"
        ):
            found[f"shadow {shadow}, lane {lane}: state"] = (layout, _digest(state))
            found |= {f"shadow {shadow}, lane {lane}: {name}": digest for name, digest in _beside(beside)}
        for partition, position in store.execute("SELECT partition, position FROM partitions"):
            place = json.loads(position)
            for name in ("inode", "device", "size", "mtime_ns", "earlier"):
                place["identity"].pop(name, None)
            found[f"position in {partition}"] = place if same_folder else (place["offset"], place["lines"])
        for output, mark in store.execute("SELECT output, mark FROM marks"):
            if output != "tape":
                found[f"mark of {output}"] = mark
        (found["counters"],) = (json.loads(row[0]) for row in store.execute('SELECT "values" FROM counters'))
        # But for the sum of the checksums, which tells the checkpoint's number and is of rows that differ by right.
        ours = "SELECT name, value FROM run WHERE name != ? ORDER BY name"
        found["settings"] = store.execute(ours, [SUM]).fetchall()
        found["requests"] = store.execute("SELECT id, stream, action FROM requests").fetchall()
        query = "SELECT id, request, stream, seq, action, outcome, before FROM acted ORDER BY id"
        found["acted"] = [(*row[:-1], row[-1] and _digest(row[-1])) for row in store.execute(query)]
    found["sink"] = (folder / "out.jsonl").read_bytes()
    found["dead letters"] = (folder / "dead.jsonl").read_bytes()
    found["dead letters, read"] = [
        (each.raw, each.reason, each.line) for each in read_dead_letters(folder / "dead.jsonl")
    ]
    found |= {f"tape: {name}": digest for name, digest in _columns(folder / "tape")}
    return found


def differences(expected: Outcome, found: Outcome) -> list[str]:
    """Return the names of what is not the same in both."""
    return sorted(
        name
        for name in expected.keys() | found.keys()
        if name not in expected or name not in found or expected[name] != found[name]
    )


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def _beside(packed: bytes) -> Iterator[tuple[str, str]]:
    from memory.state_pool import unpack

    for name, blob in unpack(packed).items():
        yield name, _digest(blob)


def _columns(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield a digest of each column of a tape, however it was cut into record batches and parts."""
    reader = TapeReader(folder)
    table = pa.Table.from_batches(reader.batches(), schema=None) if folder.is_dir() else None
    assert table is not None
    yield "rows", str(len(table))
    for name in table.column_names:
        column = table[name]
        parts = sha256(json.dumps(column.is_null().to_pylist()).encode())
        if pa.types.is_list(column.type) and pa.types.is_floating(column.type.value_type):
            lengths = [each.value_lengths().to_numpy(zero_copy_only=False) for each in column.chunks]
            parts.update(np.concatenate(lengths).astype(np.int64).tobytes())
        if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
            inner = column.type.value_type
            if pa.types.is_floating(inner):
                for each in column.chunks:
                    parts.update(each.flatten().to_numpy(zero_copy_only=False).tobytes())
                yield name, parts.hexdigest()
                continue
        if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
            parts.update(column.to_numpy().tobytes())
        else:
            parts.update(json.dumps(column.to_pylist()).encode())
        yield name, parts.hexdigest()
