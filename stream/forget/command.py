"""What `ebbtide forget` does, from the first look to the proof."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import typer
from rich.console import Console

from memory.errors import ConfigurationError, EbbtideError
from monitors.detectors.slips import likely_slip
from stream.forget.compact import KEPT_BY_SERVER
from stream.forget.forms import needles_of, state_needles
from stream.forget.given import outputs_of
from stream.forget.output import Output
from stream.forget.removal import Removal, finish
from stream.forget.search import Finding, Searcher
from stream.forget.search_lines import search_lines
from stream.forget.search_store import files_of, search_store
from stream.forget.search_tape import search_tape
from stream.forget.show import print_findings, print_plan, progress
from stream.store import StateStore


def forget_streams(
    streams: Sequence[str],
    state: str,
    *,
    sink: str | None = None,
    dead_letter: Path | None = None,
    tape: Path | None = None,
    leave: Collection[str] = (),
    doubtful: bool = False,
    ask: bool = True,
) -> None:
    """Forget streams, and prove it.

    Parameters
    ----------
    streams
        Which.
    state, sink, dead_letter, tape
        As `ebbtide run` has them.
    leave, doubtful
        As `stream.forget.given.outputs_of` takes them.
    ask
        Whether a person is asked before anything is changed.

    Raises
    ------
    ConfigurationError
        It cannot be done; nothing was changed.
    EbbtideError
        It was not done, or something is left.
    """
    console = Console(stderr=False)
    store = StateStore(state, create=False)
    try:
        store.lock()
        resumed = finish(store, lambda what: console.print(f"an interrupted forgetting is finished: {what}"))
        given = {"sink": sink, "dead_letter": dead_letter, "tape": tape}
        outputs = outputs_of(store.load().marks, **given, leave=leave, doubtful=doubtful)  # type: ignore[arg-type]
        removal = Removal(store, outputs, streams)
        try:
            with progress("looking", sum(_size(output.path) for output in outputs)) as advance:
                removal.look(advance)
            others, states, unknown = removal.others(), removal.held.states, removal.unknown()
            if unknown and not resumed:
                raise ConfigurationError(_no_such(unknown, others, state))
            if len(unknown) < len(streams):
                print_plan(console, removal)
                if ask:
                    _confirm()
                with progress("writing", removal.size) as advance:
                    removal.write(advance)
                removal.apply()
        finally:
            removal.close()
        finish(store)
        findings = prove(store, outputs, streams, others, states)
        print_findings(console, findings, streams, bool(states))
        if store.path is None:
            console.print(f"Of a server every row is searched. {KEPT_BY_SERVER}.", soft_wrap=True)
        left = sum(finding.left for finding in findings)
        if left:
            raise EbbtideError(
                f"the stream was removed, but {left:,} places that hold its name or state are left: see above"
            )
        console.print(
            "Nothing is left in these files. Not touched: sources, logs, scraped metrics, reports, backups.",
            soft_wrap=True,
        )
    finally:
        store.close()


def prove(
    store: StateStore,
    outputs: Sequence[Output],
    streams: Sequence[str],
    others: Collection[str],
    states: dict[str, list[bytes]],
) -> list[Finding]:
    """Search everything for what is left of the streams.

    Parameters
    ----------
    store
        Its connections are closed, if it is in a file.
    outputs
        Closed.
    streams
        Those that were forgotten.
    others
        Names of all other streams.
    states
        Stream → the states that were known of it.
    """
    needles = [needle for name in streams for needle in needles_of(name)]
    needles += [needle for name, known in states.items() for needle in state_needles(name, known)]
    searcher = Searcher(needles, others)
    files = files_of(store.path.resolve()) if store.path is not None else []
    total = sum(_size(path) for path in [*files, *(output.path for output in outputs)])
    findings: list[Finding] = []
    with progress("searching", total) as advance:
        findings += search_store(store, searcher, advance)
        for output in outputs:
            if output.name == "tape":
                findings += search_tape(output.path, searcher, advance)
            else:
                findings.append(search_lines(output.name, output.path, searcher, advance))
    return findings


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in path.iterdir()) if path.is_dir() else path.stat().st_size


def _no_such(unknown: Sequence[str], others: Collection[str], state: str) -> str:
    slip = likely_slip(unknown[0], sorted(others))
    more = f" (and {len(unknown) - 1} others of those given)" if len(unknown) > 1 else ""
    where = f"in --state {state} or its outputs{slip}"
    return f"there is nothing of a stream {unknown[0]!r}{more} {where}; nothing was changed"


def _confirm() -> None:
    if not sys.stdin.isatty():
        raise ConfigurationError("expected --yes, since there is no terminal to ask on; nothing was changed")
    if not typer.confirm("Forget for good?"):
        raise EbbtideError("nothing was changed")
