"""Targets that read files: tapes, adapters and state stores, each read by the product's own readers."""

# ruff: noqa: PT017 - this is no test: an assertion here is what a target promises, told with the input's number

from __future__ import annotations

import functools
import json
import shutil
import sqlite3
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from memory.errors import ConfigurationError, EbbtideError
from tests.faults.fuzz_input import Target, mangled

PAGE = 512
"""Bytes of a page of the store that is mangled: the smallest, so that few bytes of it are idle."""

# --- tapes ------------------------------------------------------------------------------------------------------------


def record_tape(folder: Path, *, events: int = 20, rank: int = 4) -> Path:
    """Record a small run of three streams, twelve events a batch, and return its tape."""
    from stream.config import RunSettings
    from stream.consumer import Consumer
    from stream.generate import GenerateSettings, write_stream

    folder.mkdir(exist_ok=True)
    made = GenerateSettings(scenario="recurring", streams=3, events=events, mean_topic_length=8, seed=3)
    write_stream(made, folder / "talk.jsonl")
    given: dict[str, Any] = {"source": f"file:{folder / 'talk.jsonl'}", "backbone": "hashing", "rank": rank}
    given |= {"policy": "decay_on_shift", "tape": folder / "tape", "metrics_port": 0, "checkpoint_every": 0}
    consumer = Consumer(RunSettings(**given, batch_events=12 if events > 12 else 4, tape_text=True))
    try:
        consumer.open()
        consumer.run()
    finally:
        consumer.close()
    return folder / "tape"


def read_tape(tape: Path) -> tuple[str, list[bytes]]:
    """Return all that a tape holds, as it is used: its head, and its record batches."""
    from stream.tape import TapeReader
    from stream.tape.taped_writer import TapedWriter

    reader = TapeReader(tape)
    writer, batches = TapedWriter(reader.head), []
    for batch in reader.batches():
        writer.load(batch)
        batches.append(batch.serialize().to_pybytes())
    return reader.head.model_dump_json(), batches


def cuts(part: Path) -> list[int]:
    """Return where the record batches of a part begin, and where the last one ends."""
    import pyarrow as pa

    with pa.OSFile(str(part)) as file:
        reader = pa.ipc.open_stream(file)
        return [file.tell(), *(file.tell() for _ in reader)]


def checksums(part: Path) -> list[bytes]:
    """Return those that stand beside the record batches of a part that can be read."""
    import pyarrow as pa

    found = []
    with pa.OSFile(str(part)) as file:
        reader = pa.ipc.open_stream(file)
        while True:
            try:
                _, about = reader.read_next_batch_with_custom_metadata()
            except StopIteration:
                return found
            found.append(about.to_dict()[b"crc32"])


def tape(folder: Path) -> Target:
    """A tape with bits flipped, cut, or with record batches swapped, doubled or left out: refused, or read as it was.

    A tape cut exactly between two record batches is one that ended earlier: nothing tells it from that.
    """
    made = record_tape(folder / "run", events=6, rank=1)
    part = made / "part-000000.arrows"
    whole, places = part.read_bytes(), cuts(part)
    head, rows = read_tape(made)
    pieces = [whole[begin:end] for begin, end in pairwise(places)]
    written = checksums(part)

    def check(raw: bytes) -> str:
        part.write_bytes(raw)
        try:
            now, found = read_tape(made)
        except EbbtideError as error:
            assert "\n" not in str(error), repr(str(error))
            return "refused"
        if json.loads(now)["version"] < 3:
            return "as one of an older version, whose head has no checksum"
        assert now == head, (now, head)
        if found != rows[: len(found)]:  # a guided engine sees which checksum is wanted, and writes it in
            forged = [one != other for one, other in zip(checksums(part), written, strict=False)]
            assert all(one == other or new for one, other, new in zip(found, rows, forged, strict=False)), "wrong rows"
            return "with a forged checksum"
        assert len(found) == len(rows) or (whole.startswith(raw) and len(raw) in places), "rows are missing"
        return "as it was" if len(found) == len(rows) else "a shorter tape"

    def one(dice: Random) -> str:
        match dice.randrange(4):
            case 0:
                order = dice.sample(pieces, len(pieces)) if dice.randrange(2) else [dice.choice(pieces) for _ in pieces]
                raw = whole[: places[0]] + b"".join(order)
            case 1:  # in the head or at a batch's beginning, where lengths and offsets are
                at = min(len(whole) - 1, dice.choice([0, *places]) + dice.randrange(400))
                raw = whole[:at] + bytes([whole[at] ^ (1 << dice.randrange(8))]) + whole[at + 1 :]
            case 2:
                at = dice.randrange(len(whole))
                raw = whole[:at] + bytes([whole[at] ^ (1 << dice.randrange(8))]) + whole[at + 1 :]
            case _:
                raw = mangled(whole, dice)
        return check(raw)

    return Target(one, check, (whole,))


# --- adapters ---------------------------------------------------------------------------------------------------------


def make_adapter(folder: Path) -> Path:
    """Write a small adapter's directory, with both files of tensors."""
    import torch

    from memory.deltamem.adapter_io import parse_config, write_adapter

    tensors = {f"model.layers.{layer}.self_attn.beta_bias": torch.arange(4.0) + layer for layer in range(2)}
    tensors["model.layers.0.self_attn.memory_q_proj.weight"] = torch.ones(4, 8)
    return write_adapter(folder, parse_config({"rank": 4}), tensors)


def adapter(folder: Path) -> Target:
    """An adapter's three files, mangled: read as tensors alone, or `ConfigurationError`, and nothing in them runs."""
    import torch

    from memory.deltamem.adapter_io import CONFIG_FILE, PUBLISHED_FILE, SAFETENSORS_FILE, read_config, read_tensors

    made = make_adapter(folder / "adapter")
    names = (CONFIG_FILE, PUBLISHED_FILE, SAFETENSORS_FILE)
    good = [(made / name).read_bytes() for name in names]
    for name in names:  # a folder for each, so that its own reader has to notice
        (folder / name).mkdir(exist_ok=True)
        (folder / name / CONFIG_FILE).write_bytes(good[0])

    def check(data: bytes) -> str:
        """The first byte chooses the file, the rest is what stands in it."""
        name = names[data[0] % len(names) if data else 0]
        (folder / name / name).write_bytes(data[1:])
        try:
            if name == CONFIG_FILE:
                read_config(folder / name)
            else:
                tensors = read_tensors(folder / name)
                assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
                assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
        except ConfigurationError as error:
            assert "\n" not in str(error), repr(str(error))
            return f"{name}: refused"
        return f"{name}: read"

    def one(dice: Random) -> str:
        place = dice.randrange(len(names))
        return check(bytes([place]) + mangled(good[place], dice))

    return Target(one, check, tuple(bytes([place]) + content for place, content in enumerate(good)))


# --- stores -----------------------------------------------------------------------------------------------------------


def make_store(folder: Path) -> None:
    """Make a store with something in each table: as a run leaves it, and, in the log beside it, as a kill does."""
    from memory.state_pool import LaneRecord
    from stream.sources.position import Position
    from stream.store import Acted, OutputMark, StateStore

    def lane(number: int) -> tuple[str, LaneRecord]:
        return f"stream {number}", LaneRecord("float32[1, 1, 4, 4]", bytes(range(64)), {"probes/1": b"p" * 30})

    (folder / "open").mkdir(parents=True, exist_ok=True)
    store = StateStore(f"sqlite:///{folder / 'open' / 'state.db'}")
    store.claim({"--rank": "4"}, ["decay"])
    marks = {"jsonl": OutputMark(10, "crc32:00000000"), "tape": OutputMark(7, "inode:1:2")}
    asked = [store.ask(f"stream {number}", '{"kind": "reset"}') for number in range(3)]
    acted = [Acted(asked[0], "stream 0", 7, '{"kind": "reset"}', "reset", 1.5e9, b"state")]
    place = Position(offset=1000, lines=9, identity={"crc": 7, "length": 4096})
    shadows = {"decay": [lane(3)]}
    store.commit([lane(number) for number in range(4)], {"a": place}, marks, {"n": [[1]]}, shadows=shadows, acted=acted)
    store.close()
    connection = sqlite3.connect(folder / "open" / "state.db")
    for statement in ("journal_mode=DELETE", f"page_size={PAGE}"):
        connection.execute(f"PRAGMA {statement}")
    connection.execute("VACUUM")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    shutil.copytree(folder / "open", folder / "closed", dirs_exist_ok=True)
    store = StateStore(f"sqlite:///{folder / 'open' / 'state.db'}")
    store.claim({"--rank": "4"}, ["decay"])
    store.commit([lane(5)], {"b": place}, marks, {"n": [[2]]})
    shutil.copytree(folder / "open", folder / "killed", dirs_exist_ok=True)
    store.close()
    (folder / "killed" / "state.db-shm").unlink()  # made anew from the log


def store(folder: Path) -> Target:
    """A state store's file, or its write-ahead log, mangled: all of it is read as it was written, or it is refused."""
    import stream.store

    (folder / "store").mkdir(exist_ok=True)
    make_store(folder / "made")
    kinds = [
        {path.name: path.read_bytes() for path in (folder / "made" / name).iterdir()} for name in ("closed", "killed")
    ]
    # One engine for all: what SQLAlchemy makes of our queries is not what is tested, and takes most of the time.
    connect = stream.store.connect
    stream.store.connect = functools.cache(connect)

    def read() -> tuple[Any, ...]:
        found = stream.store.StateStore(f"sqlite:///{folder / 'store' / 'state.db'}", create=False)
        try:
            everything = (list(found.lanes()), {name: list(found.lanes(name)) for name in found.shadows()})
            return *everything, found.load(), found.settings, found.acted(), found.requests(), found.count()
        finally:
            found.close()

    def put(files: dict[str, bytes]) -> None:
        for path in (folder / "store").iterdir():
            if path.name not in files:
                path.unlink()
        for name, content in files.items():
            (folder / "store" / name).write_bytes(content)

    expected = []
    for files in kinds:
        put(files)
        expected.append(read())
    mangling = ((0, "state.db"), (1, "state.db-wal"), (1, "state.db"))

    def check(data: bytes) -> str:
        """The first byte chooses the file, the rest is what stands in it."""
        kind, name = mangling[data[0] % len(mangling) if data else 0]
        put(kinds[kind] | {name: data[1:]})
        try:
            found = read()
        except EbbtideError as error:
            assert "\n" not in str(error), repr(str(error))
            return f"{name}: refused"
        assert found == expected[kind], "read as something else"
        return f"{name}: as it was"

    def one(dice: Random) -> str:
        place = dice.choice((0, 0, 1, 2))
        kind, name = mangling[place]
        good = kinds[kind][name]
        at = dice.randrange(len(good))
        flipped = good[:at] + bytes([good[at] ^ (1 << dice.randrange(8))]) + good[at + 1 :]
        return check(bytes([place]) + (flipped if dice.randrange(2) else mangled(good, dice)))

    def close() -> None:
        stream.store.connect = connect

    seeds = tuple(bytes([place]) + kinds[kind][name] for place, (kind, name) in enumerate(mangling))
    return Target(one, check, seeds, close)


def names(folder: Path) -> Target:
    """Names of lanes in a state store, by the dozen: they come back as they were, or are refused in one line."""
    from memory.state_pool import LaneRecord
    from stream.store import StateStore

    @functools.cache
    def made() -> StateStore:  # in the process that uses it: no connection to SQLite survives a fork
        found = StateStore(f"sqlite:///{folder / 'names.db'}")
        found.claim({})
        return found

    record, good = LaneRecord("float32[1]", b"1234", {"counts": b"12"}), (b"ann", "\U0001f600/x".encode(), b"a" * 500)

    def one(dice: Random) -> str:
        many = {mangled(dice.choice(good), dice).decode("utf-8", "replace") for _ in range(dice.choice((1, 4, 12)))}
        made().commit([(name, record) for name in many], {}, {}, {})
        assert made().fetch(sorted(many)) == dict.fromkeys(many, record), many
        return "came back"

    return Target(one, close=lambda: made().close())
