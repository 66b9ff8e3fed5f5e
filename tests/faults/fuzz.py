"""Hostile input, by the million: each target mangles good input and holds what it is given to to its promise.

    python -m tests.faults.fuzz parser                    a million inputs
    python -m tests.faults.fuzz --minutes 5 parser        as many as fit
    python -m tests.faults.fuzz --inputs 1 --first 12345 parser     one again, by the number that a failure names

Input number n of a seed is always the same one. What hangs for a minute is shown with its stack and ends the process.
"""

# ruff: noqa: PT017, PT018 - this is no test: an assertion here is what a target promises, told with the input's number

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import json
import math
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from memory.errors import ConfigurationError, EbbtideError

Target = Callable[[Random], str]
"""Takes one input from the dice; returns in a word what came of it; raises where a promise was broken."""

NASTY = (
    *(b"1e999", b"NaN", b"\\ud800", b"null", b'"', b"{", b"[", b"\xc3", b"9" * 50, b"\0", b"\xff\xfe", b"-1", b"}"),
    *(b"__proto__", b"'; DROP TABLE lanes;--", b"<script>", b"../", b"%00", b"\r\n", b"\xe2\x80\xae", b"[" * 300),
)


def mangled(good: bytes, dice: Random, most: int = 3) -> bytes:
    """Flip, cut, double, move or put something nasty into a copy of good bytes."""
    raw = bytearray(good)
    for _ in range(dice.randint(1, most)):
        at, to = sorted((dice.randrange(len(raw) + 1), dice.randrange(len(raw) + 1)))
        match dice.randrange(7):
            case 0 if at < len(raw):
                raw[at] ^= 1 << dice.randrange(8)
            case 1 if at < len(raw):
                raw[at] = dice.randrange(256)
            case 2:
                del raw[at : at + dice.randint(1, 8)]
            case 3:
                raw[at:at] = raw[at:to][:4096]
            case 4:
                del raw[at:]
            case _:
                raw[at:at] = dice.choice(NASTY)
    return bytes(raw)


# --- events -----------------------------------------------------------------------------------------------------------

EVENTS: tuple[dict[str, Any], ...] = (
    {"stream": "ann", "text": "Hello", "id": "m1", "ts": "2024-05-06T07:08:09.5Z", "role": "ü", "meta": {"a": [1.5e3]}},
    {"stream": "b", "tokens": [0, 7, 2**62], "ts": 1715000000.25, "lang": "en"},
    {"stream": "\U0001f600/../x", "text": " ", "meta": {"b": None, "c": {"d": [True, -2]}}},
)


KEYS = ("stream", "text", "tokens", "id", "ts", "role", "meta", "other", "__proto__")
STRANGE: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**63, 10**400, 1e308, float("inf"), float("nan"), "", " ", "\0", "\ud800", "x" * 600),
    *([], [[]], [0, True], [0.0], [-1], [2**63], {}, {"a": {"b": [1e308]}}, "2024-02-30T00:00:00Z", "\u202e\n"),
)


def parser(folder: Path) -> Target:
    """Bytes to the event parser: an event that keeps the contract, or a rejection that says nothing of the text."""
    from stream.event import STREAM_NAME_LIMIT, Event, EventParser

    lines = [json.dumps(event, ensure_ascii=bool(place % 2)).encode() for place, event in enumerate(EVENTS * 2)]
    parsers = [EventParser(), EventParser(strict=True, vocabulary=1000), EventParser(max_line_bytes=150)]

    def one(dice: Random) -> str:
        match dice.randrange(8):
            case 0:
                line = dice.randbytes(dice.randrange(64))
            case 1 | 2:
                key, value = dice.choice(KEYS), dice.choice(STRANGE)
                line = json.dumps(dice.choice(EVENTS) | {key: value}).encode()
            case _:
                line = mangled(dice.choice(lines), dice, most=dice.choice((1, 1, 3)))
        found = dice.choice(parsers).parse(line)
        if not isinstance(found, Event):
            assert found.detail.isprintable() and len(found.detail) < 400, found
            assert "Hello" not in found.detail, found
            return found.reason.value
        assert 0 < len(found.stream) <= STREAM_NAME_LIMIT and "\0" not in found.stream
        assert (found.text is None) != (found.tokens is None)
        assert found.text != "" and found.tokens != []
        assert all(type(token) is int and 0 <= token < 2**63 for token in found.tokens or ())
        assert found.ts is None or isinstance(found.ts, str) or math.isfinite(found.ts)
        for part in (found.stream, found.text or "", found.id or "", found.role or "", json.dumps(found.meta)):
            part.encode()  # no half of a surrogate pair
        json.dumps(found.meta, allow_nan=False)
        return "event"

    return one


# --- settings ---------------------------------------------------------------------------------------------------------

VALUES: dict[str, str] = {
    "source": "file:talk.jsonl",
    "backbone": "hashing",
    "context": "last:512",
    "monitor_layers": "0:36:4",
    "measure_every": "8",
    "rank": "32",
    "mode": "plain",
    "beta": "0.5",
    "shadow": "none,decay",
    "detectors": '{"state_norm": {"name": "shewhart", "width": 6.0}}',
    "state": "sqlite:///state.db",
    "metrics_port": "9464",
    "linger": "0.05",
    "dead_letter": "dead.jsonl",
    "log_level": "info",
    "follow": "true",
    "seed": "7",
    "pool_bytes": "1000000",
}


def config(folder: Path) -> Target:
    """Settings from YAML, the environment and the command line: accepted, or refused in one line."""
    from stream.config import effective

    file = folder / "ebbtide.yaml"
    yaml = "".join(f"{name}: {value}\n" for name, value in VALUES.items()).encode()
    names = list(VALUES)

    def one(dice: Random) -> str:
        environment: dict[str, str] = {}
        given: dict[str, Any] = {}
        where: Path | None = None
        match dice.randrange(3):
            case 0:
                file.write_bytes(mangled(yaml, dice))
                where = file
            case 1:
                name = dice.choice(names)
                value = mangled(VALUES[name].encode(), dice).decode("utf-8", "surrogateescape")
                environment = {"EBBTIDE_" + (name.upper() if dice.randrange(9) else value): value}
            case _:
                name = dice.choice(names)
                given = {name: mangled(VALUES[name].encode(), dice).decode("utf-8", "surrogateescape")}
        try:
            settings, _ = effective(given, file=where, environment=environment)
        except ConfigurationError as error:
            assert where is None or "\n" not in str(error), repr(str(error))  # of what one typed, it may
            return "refused"
        settings.model_dump()
        return "accepted"

    return one


# --- tapes ------------------------------------------------------------------------------------------------------------


def record_tape(folder: Path) -> Path:
    """Record a small run, and return its tape."""
    from stream.config import RunSettings
    from stream.consumer import Consumer
    from stream.generate import GenerateSettings, write_stream

    folder.mkdir(exist_ok=True)
    made = GenerateSettings(scenario="recurring", streams=3, events=20, mean_topic_length=8, seed=3)
    write_stream(made, folder / "talk.jsonl")
    settings = {"source": f"file:{folder / 'talk.jsonl'}", "backbone": "hashing", "rank": 4, "policy": "decay_on_shift"}
    more = {"tape": folder / "tape", "metrics_port": 0, "batch_events": 12, "checkpoint_every": 0, "tape_text": True}
    consumer = Consumer(RunSettings(**settings, **more))
    try:
        consumer.open()
        consumer.run()
    finally:
        consumer.close()
    return folder / "tape"


def read_tape(tape: Path) -> tuple[str, list[str]]:
    """Return all that a tape holds, as it is used: its head, and its rows one by one."""
    from stream.tape import TapeReader
    from stream.tape.taped_writer import TapedWriter

    reader = TapeReader(tape)
    writer, rows = TapedWriter(reader.head), []
    for batch in reader.batches():
        writer.load(batch)
        rows.extend(repr(row) for row in batch.to_pylist())
    return reader.head.model_dump_json(), rows


def cuts(part: Path) -> list[int]:
    """Return where the record batches of a part begin, and where the last one ends."""
    import pyarrow as pa

    with pa.OSFile(str(part)) as file:
        reader = pa.ipc.open_stream(file)
        return [file.tell(), *(file.tell() for _ in reader)]


def tape(folder: Path) -> Target:
    """A tape with bits flipped, cut, or with record batches swapped, doubled or left out: refused, or read as it was.

    A tape cut exactly between two record batches is one that ended earlier: nothing tells it from that.
    """
    made = record_tape(folder / "run")
    part = made / "part-000000.arrows"
    whole, places = part.read_bytes(), cuts(part)
    head, rows = read_tape(made)
    pieces = [whole[begin:end] for begin, end in pairwise(places)]

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
        part.write_bytes(raw)
        try:
            now, found = read_tape(made)
        except EbbtideError as error:
            assert "\n" not in str(error), repr(str(error))
            return "refused"
        assert now == head, (now, head)
        assert found == rows[: len(found)], "wrong rows were read"
        assert len(found) == len(rows) or (whole.startswith(raw) and len(raw) in places), "rows are missing"
        return "as it was" if len(found) == len(rows) else "a shorter tape"

    return one


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
    good = {name: (made / name).read_bytes() for name in (CONFIG_FILE, PUBLISHED_FILE, SAFETENSORS_FILE)}

    def one(dice: Random) -> str:
        spoilt = dice.choice(list(good))
        for name, content in good.items():
            (made / name).unlink(missing_ok=True)
            if name in (CONFIG_FILE, spoilt):  # one file of tensors at a time, so that its own reader has to notice
                (made / name).write_bytes(mangled(content, dice) if name == spoilt else content)
        try:
            if spoilt == CONFIG_FILE:
                read_config(made)
            else:
                tensors = read_tensors(made)
                assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
                assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
        except ConfigurationError as error:
            assert "\n" not in str(error), repr(str(error))
            return f"{spoilt}: refused"
        return f"{spoilt}: read"

    return one


# --- stores -----------------------------------------------------------------------------------------------------------


def store(folder: Path) -> Target:
    """URLs, and names of lanes, of a state store: used, or refused in one line."""
    from memory.state_pool import LaneRecord
    from stream.store import StateStore

    urls = (
        b"sqlite:///nowhere/state.db",
        b"postgresql+psycopg://ann:secret@[::1]:1/db?x=y",
        b"sqlite+pysqlite:///x.db",
    )
    kept = StateStore(f"sqlite:///{folder / 'names.db'}")
    kept.claim({})
    record, names = LaneRecord("float32[1]", b"1234", {"counts": b"12"}), (b"ann", "\U0001f600/x".encode(), b"a" * 500)

    def one(dice: Random) -> str:
        if not dice.randrange(8):
            many = {mangled(dice.choice(names), dice).decode("utf-8", "replace") for _ in range(4)}
            kept.commit([(name, record) for name in many], {}, {}, {})
            assert kept.fetch(sorted(many)) == dict.fromkeys(many, record), many
            return "names: came back"
        text = mangled(dice.choice(urls), dice).decode("utf-8", "surrogateescape")
        if "psycopg" in text and dice.randrange(50):  # each one that is good costs a connection
            return "url: left out"
        try:
            StateStore(text, create=False).close()
        except EbbtideError as error:
            assert "\n" not in str(error) or "\n" in text, repr(str(error))  # of what one typed, it may
            return "url: refused"
        return "url: used"

    return one


# --- HTTP -------------------------------------------------------------------------------------------------------------

TOKEN = "a-token-that-is-long-enough"
PATHS = (b"/metrics", b"/-/healthy", b"/-/ready", b"/", b"/api/summary", b"/api/streams?limit=5", b"/openapi.json")
MORE_PATHS = (
    b"/api/streams/plain",
    b"/api/streams/a%2Fb/actions",
    b"/api/streams/\xc3\xbc",
    b"/api/events",
    b"/%ff%00",
)
METHODS = ("GET", "GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "GET\0", "", "☃")
BODIES = (b'{"kind":"decay","factor":0.5}', b'{"kind":"restore","topic":3,"reason":"why"}', b"[]", b"")
HEADERS = (b"application/json", b"text/plain", b"Bearer " + TOKEN.encode(), b"identity", b"chunked", b"\xff\xfe", b"0")
HEADER_NAMES = (b"content-type", b"authorization", b"accept", b"origin", b"host", b"content-length", b"sec-fetch-site")


def http_app() -> Any:
    """Return the application over the tests' service, which takes every action, without its pace."""
    import stream.http
    from stream.operators import Ask
    from stream.store import Acted
    from tests.test_http import SampleService

    class Obliging(SampleService):
        def act(self, stream: str, ask: Ask) -> Future[Acted] | None:
            done: Future[Acted] = Future()
            done.set_result(Acted(None, stream, 1, ask.model_dump_json(), "done", 0.0, b"" if ask.reason else None))
            return done

    usual, stream.http.REQUESTS_PER_SECOND = (
        stream.http.REQUESTS_PER_SECOND,
        10**9,
    )  # waiting is not what is tested here
    try:
        app = stream.http.create_app(Obliging(), TOKEN)
        app.middleware_stack = app.build_middleware_stack()  # takes the pace; left alone, at the first request
    finally:
        stream.http.REQUESTS_PER_SECOND = usual
    return app


def http(folder: Path) -> Target:
    """Requests to the application: any method, path, headers and body; never a 5xx, never without an answer."""
    app, loop = http_app(), asyncio.new_event_loop()

    async def ask(scope: dict[str, Any], body: list[bytes]) -> int:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            if body:
                return {"type": "http.request", "body": body.pop(0), "more_body": bool(body)}
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await asyncio.wait_for(app(scope, receive, send), 20)
        return int(sent[0]["status"]) if sent else 0

    def one(dice: Random) -> str:
        path = dice.choice(PATHS + MORE_PATHS)
        path, _, query = (mangled(path, dice) if dice.randrange(3) else path).partition(b"?")
        headers = [
            (dice.choice(HEADER_NAMES), mangled(value, dice) if dice.randrange(2) else value)
            for value in dice.sample(HEADERS, dice.randrange(5))
        ]
        body = dice.choice(BODIES)
        if path.endswith(b"actions") and dice.randrange(2):  # far enough to reach the body
            headers = [(b"content-type", b"application/json"), (b"authorization", b"Bearer " + TOKEN.encode())]
            headers += [(b"host", b"x"), (b"origin", b"http://x")] if dice.randrange(2) else []
            body = mangled(body, dice)
        # As the server makes it of what stands on the wire.
        from urllib.parse import unquote

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST" if path.endswith(b"actions") and dice.randrange(2) else dice.choice(METHODS),
            "scheme": "http",
            "path": unquote(path.decode("ascii", "ignore")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": {},
        }
        status = loop.run_until_complete(ask(scope, [body[:5], body[5:] * dice.choice((1, 1, 1, 1000))]))
        assert 200 <= status < 500 or (status == 503 and path == b"/api/events"), (status, scope, body)
        return str(status)

    async def end() -> None:
        app.state.events.close()
        await asyncio.sleep(0.1)

    def close() -> None:
        loop.run_until_complete(end())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    one.close = close  # type: ignore[attr-defined]
    return one


TARGETS: dict[str, Callable[[Path], Target]] = {
    each.__name__: each for each in (parser, config, tape, adapter, store, http)
}


def fuzz(
    name: str, *, seed: int = 0, first: int = 0, inputs: int = 1_000_000, seconds: float = math.inf
) -> Counter[str]:
    """Give a target its inputs; return what came of them.

    Raises
    ------
    AssertionError
        A promise was broken; the message says by which input.
    """
    folder, back = Path(tempfile.mkdtemp(prefix="ebbtide-fuzz-")), Path.cwd()
    os.chdir(folder)  # a mangled path may name a file here
    outcomes: Counter[str] = Counter()
    close: Callable[[], None] = lambda: None  # noqa: E731
    try:
        one = TARGETS[name](folder)
        close = getattr(one, "close", close)
        until = time.monotonic() + seconds
        for number in range(first, first + inputs):
            if not number % 256:
                faulthandler.dump_traceback_later(60, exit=True)
                if time.monotonic() > until:
                    break
            try:
                outcomes[one(Random(f"{seed}:{number}"))] += 1
            except Exception as error:
                raise AssertionError(f"{name}: input {number} of seed {seed}: {error!r}") from error
    finally:
        close()
        faulthandler.cancel_dump_traceback_later()
        os.chdir(back)
        shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def main() -> None:
    """Run one target, or all."""
    options = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=fuzz.__doc__)
    options.add_argument("target", choices=[*TARGETS, "all"])
    options.add_argument("--minutes", type=float, default=math.inf)
    options.add_argument("--inputs", type=int, default=1_000_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--first", type=int, default=0)
    given = options.parse_args()
    for name in TARGETS if given.target == "all" else [given.target]:
        begun = time.monotonic()
        found = fuzz(name, seed=given.seed, first=given.first, inputs=given.inputs, seconds=60 * given.minutes)
        print(f"{name}: {found.total():,} inputs in {time.monotonic() - begun:.0f} s: {dict(found.most_common())}")


if __name__ == "__main__":
    main()
