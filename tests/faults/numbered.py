"""Numbered events, and options of a run that takes them in quickly: for tests of where they end up."""

from __future__ import annotations

import json

WHAT = ("--backbone", "hashing", "--rank", 4, "--policy", "none", "--detectors", "{}", "--metrics-port", 0)


def lines(first: int, last: int) -> bytes:
    """Return events `first` to before `last`, of five streams, one a line; each one's id is its number."""
    events = ({"stream": f"s{n % 5}", "text": f"word{n % 7} and {n % 11}", "id": f"e{n}"} for n in range(first, last))
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)
