"""`ebbtide forget`: take a stream out of everything that a run keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def forget(
    state: Annotated[str, typer.Option("--state", help="State store of the run, such as sqlite:///run/state.db")],
    streams: Annotated[list[str] | None, typer.Argument(help="Which; -- before one that begins with a dash")] = None,
    sink: Annotated[str | None, typer.Option("--sink", help="Its records, as the run has them: jsonl:PATH")] = None,
    dead_letter: Annotated[
        Path | None,
        typer.Option("--dead-letter", help=r"Its refused lines \[default: beside the records, as in a run]"),
    ] = None,
    tape: Annotated[Path | None, typer.Option("--tape", help="Its tape")] = None,
    streams_from: Annotated[
        Path | None, typer.Option("--streams-from", help="More streams, one a line (or a JSON text a line)")
    ] = None,
    doubtful: Annotated[
        bool,
        typer.Option("--doubtful", help="Also dead letters that hold a name and do not tell whose they are"),
    ] = False,
    leave: Annotated[
        list[str] | None,
        typer.Option("--leave", help="An output to leave alone: records, dead-letters or tape (may be repeated)"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
) -> None:
    """Forget a stream: take it out of the state store and its copies, the records, the dead letters and the tape.

    Stop the run first. This shows what there is of the stream and asks; then takes it out, and searches every one of
    those files for what is left of it. The next run with the same options goes on as if nothing else had happened. If
    events of the stream come again, it begins anew, as one that was never there.

        ebbtide forget ann --state sqlite:///run/state.db --sink jsonl:run/out.jsonl --tape run/tape

    If this is killed, either nothing has happened, or the next run refuses the store and says to give this command
    again, which finishes it. Exit codes: 0 nothing is left; 1 something is, and what it is has been shown; 2 there is
    no such stream, a run has the store, or a file is not what it should be: then nothing was changed.

    Not touched: the files that the events came from, logs, what Prometheus has scraped, reports, backups, and the free
    blocks of a disk. Counters keep their totals.
    """
    from stream.forget.command import forget_streams
    from stream.forget.given import read_names

    forget_streams(
        read_names(streams or [], streams_from),
        state,
        sink=sink,
        dead_letter=dead_letter,
        tape=tape,
        leave=leave or [],
        doubtful=doubtful,
        ask=not yes,
    )
