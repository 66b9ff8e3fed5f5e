"""Targets that read text: the event parser, and settings."""

# ruff: noqa: PT017, PT018 - this is no test: an assertion here is what a target promises, told with the input's number

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

from memory.errors import ConfigurationError
from tests.faults.fuzz_input import Target, mangled

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

    def check(data: bytes) -> str:
        """The first byte chooses the parser, the rest is the line."""
        found = parsers[data[0] % len(parsers) if data else 0].parse(data[1:])
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

    def one(dice: Random) -> str:
        match dice.randrange(8):
            case 0:
                line = dice.randbytes(dice.randrange(64))
            case 1 | 2:
                key, value = dice.choice(KEYS), dice.choice(STRANGE)
                line = json.dumps(dice.choice(EVENTS) | {key: value}).encode()
            case _:
                line = mangled(dice.choice(lines), dice, most=dice.choice((1, 1, 3)))
        return check(bytes([dice.randrange(len(parsers))]) + line)

    return Target(one, check, tuple(bytes([place % 3]) + line for place, line in enumerate(lines)))


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

    file, names = folder / "ebbtide.yaml", list(VALUES)

    def one(dice: Random) -> str:
        environment: dict[str, str] = {}
        given: dict[str, Any] = {}
        where: Path | None = None
        match dice.randrange(3):
            case 0:
                some = dice.sample(names, dice.choice((1, 2, 4)))
                file.write_bytes(mangled("".join(f"{name}: {VALUES[name]}\n" for name in some).encode(), dice))
                where = file
            case 1:
                name = dice.choice(names)
                value = mangled(VALUES[name].encode(), dice).decode("utf-8", "surrogateescape")
                environment = {"EBBTIDE_" + (name.upper() if dice.randrange(9) else value): value}
            case _:
                name = dice.choice(names)
                given = {name: mangled(VALUES[name].encode(), dice).decode("utf-8", "surrogateescape")}
        how = ("environment" if environment else "command line") if where is None else "file"
        try:
            settings, _ = effective(given, file=where, environment=environment)
        except ConfigurationError as error:
            assert where is None or "\n" not in str(error), repr(str(error))  # of what one typed, it may
            return f"{how}: refused"
        settings.model_dump()
        return f"{how}: accepted"

    return Target(one)
