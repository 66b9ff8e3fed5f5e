"""What a run left behind, as arrays: from its tape, or from the file of its records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memory.errors import ConfigurationError
from monitors.observations import SIGNALS, Floats
from stream.tape import TapeReader
from stream.tape.format import TapeHead
from stream.tape.parts import parts_of

Integers = npt.NDArray[np.int64]

KEPT_ACTION = "keep"


@dataclass
class Run:
    """Every event of a run, in the order in which it was consumed; n of them.

    Attributes
    ----------
    path
        Where it was read from.
    head
        Of the tape; None for a file of records.
    streams
        Names, in the order in which they first appear.
    stream, seq, tokens
        `[n]` int64: the place in `streams`, the event's number in its stream, its tokens.
    signals
        Name → `[n]` float64; NaN where it was not measured.
    alarms, actions
        Name or kind → the events with it, int64 places in [0, n), rising. No ``keep`` among the kinds.
    by_hand
        Kind → the events right before which an operator did it, likewise.
    first, last
        Timestamps, as they came.
    torn
        With `partial`, whether the tape ended in mid-batch.
    """

    path: Path
    head: TapeHead | None
    streams: list[str]
    stream: Integers
    seq: Integers
    tokens: Integers
    signals: dict[str, Floats]
    alarms: dict[str, Integers]
    actions: dict[str, Integers]
    first: str = ""
    last: str = ""
    torn: bool = False
    by_hand: dict[str, Integers] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.stream)


@dataclass
class _Rows:
    """Collects events."""

    names: dict[str, int] = field(default_factory=dict)
    stream: list[Integers] = field(default_factory=list)
    seq: list[Integers] = field(default_factory=list)
    tokens: list[Integers] = field(default_factory=list)
    signals: dict[str, list[Floats]] = field(default_factory=lambda: {name: [] for name in SIGNALS})
    alarms: dict[str, list[int]] = field(default_factory=dict)
    actions: dict[str, list[int]] = field(default_factory=dict)
    by_hand: dict[str, list[int]] = field(default_factory=dict)
    times: list[str] = field(default_factory=list)
    count: int = 0

    def add(
        self,
        streams: Iterable[str],
        seq: Any,
        tokens: Any,
        signals: Mapping[str, Any],
        alarms: Iterable[Iterable[str]],
        actions: Iterable[str],
        times: Iterable[str | None],
        by_hand: Iterable[Iterable[str] | None] = (),
    ) -> None:
        places = [self.names.setdefault(name, len(self.names)) for name in streams]
        self.stream.append(np.array(places, np.int64))
        self.seq.append(np.asarray(seq, np.int64))
        self.tokens.append(np.asarray(tokens, np.int64))
        for name, kept in self.signals.items():
            values = signals.get(name)
            kept.append(np.full(len(places), np.nan) if values is None else np.asarray(values, np.float64))
        for at, raised in enumerate(alarms, self.count):
            for alarm in raised:
                self.alarms.setdefault(alarm, []).append(at)
        for at, kind in enumerate(actions, self.count):
            if kind != KEPT_ACTION:
                self.actions.setdefault(kind, []).append(at)
        for at, done in enumerate(by_hand, self.count):
            for told in done or ():
                self.by_hand.setdefault(str(json.loads(told)["kind"]), []).append(at)
        some = [time for time in times if time is not None]
        self.times = [*self.times[:1], *some[:1], *some[-1:]] if not self.times else [self.times[0], *some[-1:]]
        self.count += len(places)

    def run(self, path: Path, head: TapeHead | None, *, torn: bool = False) -> Run:
        def whole(parts: list[Any], kind: type) -> Any:
            return np.concatenate(parts) if parts else np.zeros(0, kind)

        return Run(
            path,
            head,
            list(self.names),
            whole(self.stream, np.int64),
            whole(self.seq, np.int64),
            whole(self.tokens, np.int64),
            {name: whole(parts, np.float64) for name, parts in self.signals.items()},
            {name: np.array(places, np.int64) for name, places in self.alarms.items()},
            {kind: np.array(places, np.int64) for kind, places in self.actions.items()},
            self.times[0] if self.times else "",
            self.times[-1] if self.times else "",
            torn,
            {kind: np.array(places, np.int64) for kind, places in self.by_hand.items()},
        )


def read_run(path: Path, *, partial: bool = False) -> Run:
    """Read a tape's folder, or a sink's file of JSON records.

    Keeps about 100 bytes an event; keys, values and embeddings stay on the disk.

    Raises
    ------
    ConfigurationError
        There is nothing there, it is something else, or there is no event in it.
    EbbtideError
        A tape is damaged.

    Examples
    --------
    >>> import tempfile
    >>> records = Path(tempfile.mkdtemp()) / "out.jsonl"
    >>> _ = records.write_text('{"stream": "a", "seq": 0, "tokens": 4, "write_error": 1.0, "retrieval_error": null,'
    ...     '"alarms": ["topic_shift"], "action": {"kind": "decay", "factor": 0.5}}\\n')
    >>> run = read_run(records)
    >>> run.streams, run.signals["write_error"].tolist(), run.actions["decay"].tolist()
    (['a'], [1.0], [0])
    """
    if not path.exists():
        raise ConfigurationError(
            f"{path}: expected the folder of a tape (ebbtide run --tape DIR) or a file of records "
            "(--sink jsonl:PATH), got nothing there"
        )
    if path.is_dir() and not parts_of(path):
        inside = next((each.name for each in sorted(path.iterdir()) if each.is_dir() and parts_of(each)), None)
        hint = f"; did you mean {path / inside}?" if inside else "; record one with ebbtide run --tape DIR"
        raise ConfigurationError(f"{path}: expected the folder of a tape, got a folder without parts of one{hint}")
    run = _from_tape(path, partial=partial) if path.is_dir() else _from_records(path)
    if not len(run):
        raise ConfigurationError(f"{path}: expected at least one event, got none; there is nothing to report on")
    return run


def _from_tape(folder: Path, *, partial: bool) -> Run:
    reader, rows = TapeReader(folder, partial=partial), _Rows()
    for batch in reader.batches():
        rows.add(
            batch["stream"].to_pylist(),
            batch["seq"].to_numpy(),
            batch["tokens"].to_numpy(),
            {name: batch[name].to_numpy() for name in SIGNALS if name in batch.schema.names},
            batch["alarms"].to_pylist(),
            batch["action"].to_pylist(),
            batch["ts"].to_pylist(),
            batch["by_hand"].to_pylist() if "by_hand" in batch.schema.names else (),
        )
    return rows.run(folder, reader.head, torn=reader.torn is not None)


def _from_records(path: Path, *, chunk: int = 4096) -> Run:
    rows, waiting = _Rows(), []
    for record in _records(path):
        waiting.append(record)
        if len(waiting) == chunk:
            _take(rows, waiting)
            waiting = []
    if waiting:
        _take(rows, waiting)
    return rows.run(path, None)


def _take(rows: _Rows, records: list[dict[str, Any]]) -> None:
    rows.add(
        [record["stream"] for record in records],
        [record["seq"] for record in records],
        [record["tokens"] for record in records],
        {name: [_number(record.get(name)) for record in records] for name in SIGNALS},
        [record.get("alarms") or [] for record in records],
        [record["action"]["kind"] for record in records],
        [None if record.get("ts") is None else str(record["ts"]) for record in records],
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                if isinstance(record["stream"], str) and isinstance(record["action"]["kind"], str):
                    int(record["seq"]), int(record["tokens"])
                    yield record
                    continue
            except (ValueError, KeyError, TypeError):
                if not line.endswith(b"\n"):  # a run that goes on has not finished writing it
                    return
            raise ConfigurationError(
                f"{path}: line {number}: expected a record as ebbtide run --sink jsonl:PATH writes, got something "
                "else; is it the input, or the dead letters?"
            )
