"""Output records as JSON Lines, in a file that a checkpoint can cut back to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic_core import to_json

from monitors.observations import SIGNALS
from monitors.policies.policy import LABELS, ActionKind, Actions
from stream.append_file import AppendFile
from stream.engine import Outcome
from stream.sinks.sink import Sink

DIGITS = 6
"""Decimals of the signals in the records: float32 has no more to say."""


class JsonlSink(Sink):
    """One JSON object a line, in the shape that the README gives.

    Parameters
    ----------
    path
        The file; made if need be, with mode 0600. A fresh start refuses one that holds anything.
    """

    def __init__(self, path: str | Path):
        self._file = AppendFile(path)

    @property
    def path(self) -> Path:
        """The file's path."""
        return self._file.path

    @property
    def name(self) -> str:
        """The sink's kind: a run has one of each."""
        return "jsonl"

    @property
    def identity(self) -> str:
        """That of the file."""
        return self._file.identity

    def open(self, mark: int | None, identity: str = "") -> None:
        """Open the file, cut to `mark` bytes."""
        self._file.open(mark, identity)

    def check(self, mark: int, identity: str = "") -> None:
        """Say whether the file could be cut to `mark` bytes."""
        self._file.check(mark, identity)

    def write(self, outcome: Outcome) -> None:
        """Append one line for each event."""
        self._file.append(b"".join(to_json(record, inf_nan_mode="null") + b"\n" for record in records(outcome)))

    def flush(self) -> int:
        """Put all on the disk; return the length in bytes."""
        return self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def records(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the output records of a micro-batch, one for each event.

    A signal that could not be measured is NaN here, and null in the file.
    """
    signals = [outcome.signals[name].round(DIGITS).tolist() for name in SIGNALS]
    alarms = [(name, raised.tolist()) for name, raised in outcome.alarms.items() if raised.any()]
    kinds = outcome.actions.kind.tolist()
    made = []
    for row, (event, seq, tokens, *values) in enumerate(
        zip(outcome.events, outcome.seq.tolist(), outcome.tokens.tolist(), *signals, strict=True)
    ):
        made.append(
            {
                "stream": event.stream,
                "seq": seq,
                "id": event.id,
                "ts": event.ts,
                "tokens": tokens,
                **dict(zip(SIGNALS, values, strict=True)),
                "alarms": [name for name, raised in alarms if raised[row]],
                "action": {"kind": "keep"} if kinds[row] == ActionKind.KEEP else action_of(outcome.actions, row),
            }
        )
        if outcome.would is not None:
            made[-1]["dry_run"] = action_of(outcome.would, row)
    return made


def action_of(actions: Actions, row: int) -> dict[str, Any]:
    """Return one action as records have it."""
    kind = int(actions.kind[row])
    if kind == ActionKind.KEEP:
        return {"kind": LABELS[kind]}
    return {
        "kind": LABELS[kind],
        "factor": round(float(actions.factor[row]), DIGITS),
        "reason": actions.reason[row],
    }
