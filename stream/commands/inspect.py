"""`ebbtide inspect`: what a state store holds."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any

import typer


def inspect(
    state: Annotated[str, typer.Option("--state", help="State store, such as sqlite:///run/state.db")],
    stream: Annotated[str | None, typer.Argument(help="One stream, in detail")] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="All of it in a fixed order, without times or paths: two stores can be compared"),
    ] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most streams shown in the table")] = 50,
) -> None:
    """Show what is stored: streams, offsets, norms; or one stream in detail. It only reads: a run may go on."""
    from memory.errors import ConfigurationError
    from stream.event import check_name
    from stream.store import StateStore

    store = StateStore(state, create=False)
    stored = store.lanes()
    try:
        if stream is None:
            lanes = (_describe(lane, record) for lane, record in stored)
            checkpoint = store.load()
            if as_json:
                places = [
                    {"offset": place.offset, "lines": place.lines} for _, place in sorted(checkpoint.positions.items())
                ]
                marks = {name: mark for name, (mark, _) in sorted(checkpoint.marks.items())}
                whole = {
                    "settings": store.settings,
                    "partitions": places,
                    "marks": marks,
                    "counters": checkpoint.counters,
                    "streams": list(lanes),
                    "shadows": {
                        shadow: [_describe(lane, record) for lane, record in store.lanes(shadow)]
                        for shadow in store.shadows()
                    },
                    "by_hand": [{"stream": each.stream} | _by_hand(each) for each in store.acted()],
                }
                print(json.dumps(whole, indent=1, sort_keys=True))
            else:
                _print_all(lanes, checkpoint, store, limit)
            return
        check_name(stream)
        found = store.fetch([stream])
        if stream not in found:
            raise ConfigurationError(
                f"--state {state} holds no stream {stream!r}; ebbtide inspect --state {state} lists them"
            )
        described = _describe(stream, found[stream]) | {"settings": store.settings}
        by_hand = store.acted(stream)
        if as_json:
            print(json.dumps(described | {"by_hand": [_by_hand(each) for each in by_hand]}, indent=1, sort_keys=True))
        else:
            print(_lines(described))
            for each in by_hand:
                when = datetime.fromtimestamp(each.time, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
                print(f"{when}  before event {each.seq}: {each.action}: {each.outcome}")
    finally:
        stored.close()
        store.close()


def _describe(lane: str, record: Any) -> dict[str, Any]:
    """Return what can be told of a stored lane from its bytes alone."""
    import numpy as np

    states = np.frombuffer(record.state, np.float32).reshape(json.loads(record.layout.removeprefix("float32")))
    states = states.reshape(-1, *states.shape[-2:]).astype(np.float64)
    norms = np.linalg.norm(states, axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        finite = bool(np.isfinite(states).all())
        sigma = np.array([np.linalg.norm(state, 2) for state in states]) if finite else np.full(len(states), np.nan)
        ranks = np.where(norms > 0, (norms / sigma) ** 2, 0.0)
    events, tokens = np.frombuffer(_part(record, "counts"), np.int64)
    return {
        "stream": lane,
        "events": int(events),
        "tokens": int(tokens),
        "layout": record.layout,
        "state_norm": round(float(np.sqrt((norms**2).sum())), 6) if finite else None,
        "stable_rank": round(float(ranks.mean()), 6) if finite else None,
        "state_sha256": sha256(record.state).hexdigest(),
        "beside_sha256": {name: sha256(blob).hexdigest() for name, blob in sorted(record.beside.items())},
    }


def _by_hand(acted: Any) -> dict[str, Any]:
    """Return an operator's action without its time."""
    return {"seq": acted.seq, "action": acted.action, "outcome": acted.outcome}


def _part(record: Any, name: str) -> bytes:
    parts: dict[str, bytes] = record.beside
    return next(blob for part, blob in parts.items() if part.split("/")[0] == name)


def _print_all(lanes: Any, checkpoint: Any, store: Any, limit: int) -> None:
    from itertools import islice

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    count = store.count()
    table = Table("stream", "events", "tokens", "state norm", "stable rank", "state (SHA-256)", box=box.SIMPLE)
    for row in islice(lanes, limit):
        table.add_row(
            Text(row["stream"] if row["stream"].isprintable() else repr(row["stream"])),
            f"{row['events']:,}",
            f"{row['tokens']:,}",
            f"{row['state_norm']:.3f}" if row["state_norm"] is not None else "not finite",
            f"{row['stable_rank']:.2f}" if row["stable_rank"] is not None else "not finite",
            row["state_sha256"][:16],
        )
    console.print(table)
    if count > limit:
        console.print(f"{limit} of {count:,} streams shown; --limit shows more, --json all")
    for name, place in sorted(checkpoint.positions.items()):
        console.print(Text(f"{name}: {place.lines:,} lines, {place.offset:,} bytes done"))
    if shadows := store.shadows():
        console.print(Text(f"shadows: {', '.join(shadows)} (lanes of their own; --json has them)"))
    if acted := store.acted():
        console.print(Text(f"{len(acted)} actions by operators; name a stream to see its own"))
    for option, value in store.settings.items():
        console.print(Text(f"{option} {value}"))


def _lines(described: dict[str, Any]) -> str:
    flat = {**described, **described["settings"]}
    del flat["settings"], flat["beside_sha256"]
    width = max(map(len, flat))
    # What a terminal would obey is written out: a stream's name is data.
    shown = {name: value if str(value).isprintable() else repr(value) for name, value in flat.items()}
    return "\n".join(f"{name:<{width}}  {value}" for name, value in shown.items())
