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


POLICY_FILES = (
    b"policy: reset_on_shift\non: [topic_shift, retrieval_error]\ncool_down: 12\n",
    b"policy: archive\nmost: 4\ncertainty: 0.5\nbelief: {hazard: 0.2, novelty: 0.3, likeness_floor: 0.5}\n",
    b'policy: decay\nfactor: 0.99 # "a comment"\n',
)
WHERE = ("file", "environment", "command line", "policy")


def config(folder: Path) -> Target:
    """Settings from YAML, the environment and the command line, and a policy's file: taken, or refused in one line."""
    from monitors.policies import load_policy
    from stream.config import PREFIX, RunSettings, effective

    file, names = folder / "ebbtide.yaml", list(VALUES)

    def taken(where: str, raw: bytes) -> None:
        if where in ("file", "policy"):
            file.write_bytes(raw)
        if where == "policy":
            load_policy(str(file)).model_dump()
            return
        pairs = [part.partition("=") for part in raw.decode("utf-8", "surrogateescape").split("\0")]
        given = {
            name: value for name, _, value in pairs if where == "command line" and name in RunSettings.model_fields
        }
        environment = {PREFIX + name.upper(): value for name, _, value in pairs if where == "environment"}
        settings, _ = effective(given, file=file if where == "file" else None, environment=environment)
        settings.model_dump()

    def check(data: bytes) -> str:
        """The first byte chooses where; the rest is the file, or NAME=VALUE, several with a NUL between them."""
        where = WHERE[data[0] % len(WHERE) if data else 0]
        try:
            taken(where, data[1:])
        except ConfigurationError as error:
            # What one typed is shown as it is; a file's name is this folder's.
            assert where in ("environment", "command line") or "\n" not in str(error), repr(str(error))
            assert len(str(error)) < 2000 + 20 * len(data), f"a message of {len(str(error))} characters"
            return f"{where}: refused"
        return f"{where}: accepted"

    def one(dice: Random) -> str:
        place, name = dice.randrange(len(WHERE)), dice.choice(names)
        match WHERE[place]:
            case "file":
                some = dice.sample(names, dice.choice((1, 2, 4)))
                raw = mangled("".join(f"{each}: {VALUES[each]}\n" for each in some).encode(), dice)
            case "policy":
                raw = mangled(dice.choice(POLICY_FILES), dice)
            case _:
                raw = mangled(VALUES[name].encode(), dice)
                raw = (name.encode() if dice.randrange(9) else raw) + b"=" + raw
        return check(bytes([place]) + raw)

    everything = "".join(f"{name}: {value}\n" for name, value in VALUES.items()).encode()
    seeds = [b"\0" + everything, *(b"\3" + content for content in POLICY_FILES)]
    seeds += [bytes([place]) + f"{name}={value}".encode() for name, value in VALUES.items() for place in (1, 2)]
    return Target(one, check, tuple(seeds))
