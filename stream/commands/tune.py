"""`ebbtide tune`: find a policy for a recorded run."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stream.options import options_of
from stream.tuning.settings import TuneSettings

if TYPE_CHECKING:
    from stream.tuning.choice import Judged
    from stream.tuning.study import Study


@options_of(TuneSettings)
def tune(
    given: dict[str, Any],
    tape: Annotated[Path | None, typer.Argument(help="Folder of the tape, as ebbtide run --tape DIR writes")] = None,
    space: Annotated[
        Path | None, typer.Option("--space", help="Which policies and settings to try, as YAML \\[default: built in]")
    ] = None,
    show_space: Annotated[
        bool, typer.Option("--show-space", help="Print the built-in space, to copy and edit")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Threads that score; the results are the same \\[default: all cores]"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results")] = Path("tuning"),
    study: Annotated[
        Path | None, typer.Option("--study", help="File that the study is kept in \\[default: study.db in --out]")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Use a tape that ends in the middle of a record batch up to there")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON")] = False,
) -> None:
    """Find a policy for a recorded run: try thousands, without the model, and say what the best is worth.

    The search sees one part of the streams; every figure reported is from the other part. A study that was killed, or
    interrupted with Ctrl-C, goes on where it was when the same command is given again.
    """
    import memory.threads as pool
    from memory.errors import ConfigurationError
    from stream.many import load
    from stream.tuning.choice import judge
    from stream.tuning.journal import SqliteJournal
    from stream.tuning.results import write_results
    from stream.tuning.space import default_space, read_space
    from stream.tuning.study import Study

    if show_space:
        print(default_space(), end="")
        return
    if tape is None:
        raise ConfigurationError("expected the folder of a tape, as ebbtide run --tape DIR writes, got none")
    settings = _settings(given)
    if jobs is not None:
        pool.set_threads(jobs)
    searched = Study.of(load(tape, partial=partial), read_space(space), settings)
    _make(out)
    journal = SqliteJournal(out / "study.db" if study is None else study)
    print(
        f"{tape}: tuning on {len(searched.tune)} streams, reporting on {len(searched.report)} others", file=sys.stderr
    )
    if by_hand := sum(stream.by_hand for stream in searched.tape.streams.values()):
        print(f"{by_hand} events came after something done by hand, which is left out here", file=sys.stderr)
    try:
        with _stopped_by_interrupt() as stop, _progress(searched) as (each, told):
            searched.run(journal, tape, each=each, told=told, stop=stop)
    finally:
        journal.close()
    judged = judge(searched)
    written = write_results(searched, judged, out, tape=tape, command=["ebbtide", *sys.argv[1:]])
    if as_json:
        print(json.dumps(_figures(searched, judged, written), indent=1))
    else:
        _print(searched, judged, written)


def _settings(given: dict[str, Any]) -> TuneSettings:
    from pydantic import ValidationError

    from memory.errors import ConfigurationError

    try:
        return TuneSettings.model_validate({key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}"
        reason = first["msg"].replace("Input should be", "expected a value")
        raise ConfigurationError(f"{option}: {reason}, got {first['input']}") from None


def _make(out: Path) -> None:
    from memory.errors import ConfigurationError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--out {out}: expected a folder, or a place for one, got {error.strerror}") from None


@contextmanager
def _stopped_by_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield what says whether SIGINT or SIGTERM came; a second one ends the process at once: nothing that was scored is
    lost."""
    import os

    told = False

    def stop(number: int, _: object) -> None:
        nonlocal told
        if told:
            os._exit(128 + number)
        told = True
        print("Stopping at the end of this batch; once more stops at once", file=sys.stderr)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(study: Study) -> Iterator[tuple[Callable[[int, float], None], Callable[[Study], None]]]:
    """Yield what moves a progress bar on a terminal, or says a line a batch elsewhere."""
    total = study.settings.trials
    if not sys.stderr.isatty():

        def line(now: Study) -> None:
            print(
                f"{len(now.trials):,} of {total:,} trials: {len(now.front):,} on the front, {_best(now)}",
                file=sys.stderr,
                flush=True,
            )

        yield (lambda trials, part: None), line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (MofNCompleteColumn(), TextColumn("trials"), BarColumn(), TextColumn("{task.fields[best]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=total, best="")
        yield (
            lambda trials, part: progress.update(bar, completed=int(trials + part)),
            lambda now: progress.update(
                bar, completed=len(now.trials), best=_best(now).removesuffix(" where it is tuned")
            ),
        )


def _best(study: Study) -> str:
    from stream.tuning.choice import NONE, choose
    from stream.tuning.intervals import percent

    chosen = choose(study)
    none = study.trials[NONE].figures.write_error
    change = chosen.figures.write_error / none - 1 if none else 0.0
    return f"best {chosen.name} {percent(change)} where it is tuned"


def _figures(study: Study, judged: Judged, written: dict[str, Path]) -> dict[str, object]:
    from stream.tuning.results import report_table

    return {
        "trials": len(study.trials),
        "resumed": study.resumed,
        "stopped": study.stopped,
        "front": len(study.front),
        "tuned_on": study.tune,
        "reported_on": study.report,
        "recommended": judged.recommended.policy.model_dump(mode="json"),
        "chosen": judged.chosen.policy.model_dump(mode="json"),
        "reason": judged.reason,
        "at_ends": study.at_ends(judged.recommended),
        "policies": report_table(study, judged).drop_columns(["settings", "over_time"]).to_pylist(),
        "files": {name: str(path) for name, path in written.items()},
    }


ROWS = 12
"""Policies of the front in the terminal's table; all of them are in report.parquet and on the page."""


def _print(study: Study, judged: Judged, written: dict[str, Path]) -> None:
    import math

    from rich import box
    from rich.console import Console
    from rich.table import Table

    from stream.tuning.intervals import percent

    console = Console()
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    for title in ("error", "change, %", "on return", "actions"):
        table.add_column(title, justify="right", no_wrap=True)
    front = [row for row in judged.rows if row.role == "front"]
    step = max(1, math.ceil(len(front) / ROWS))
    for row in [row for row in judged.rows if row.role != "front"] + front[::step]:
        change, figures = row.change, row.figures
        interval = ""
        if math.isfinite(change.low) and row.trial.number:
            interval = f" ({percent(change.low)[:-2]} to {percent(change.high)[:-2]})"
        name = {"none": "none", "auto": "auto, defaults"}.get(row.role, f"{row.trial.name} #{row.trial.number}")
        table.add_row(
            name + (" ←" if row.role == "chosen" else ""),
            f"{figures.write_error:.4f}",
            percent(change.mean)[:-2] + interval,
            f"{figures.recall_error:.4f}" if math.isfinite(figures.recall_error) else "-",
            f"{figures.actions_per_1000:.1f}",
        )
    console.print(
        f"{len(study.trials):,} trials on {len(study.tune)} streams"
        + (f", {study.resumed:,} of them from before" if study.resumed else "")
        + f"; ended: {study.stopped}. On the {len(study.report)} streams that the search did not see, "
        "with 95 % intervals, and actions per 1,000 events:"
    )
    console.print(table)
    if len(front) > len(front[::step]):
        console.print(f"{len(front[::step])} of the {len(front):,} others on the front; all are in report.parquet")
    if any(row.role == "chosen" for row in judged.rows):
        console.print("← chosen: the least error within the limits, where it was tuned")
    if len(study.report) < FEW:
        console.print(f"The intervals are over {len(study.report)} streams: rough")
    console.print(f"Recommended: {judged.recommended.name}, since {judged.reason}")
    if ends := study.at_ends(judged.recommended):
        console.print(f"At an end of their range, which could be wider: {', '.join(ends)}")
    console.print(f"Next: ebbtide run --policy {written['best.yaml']} …", soft_wrap=True)
    console.print(f"The whole picture: {written['tuning.html']}", soft_wrap=True)


FEW = 6
"""Streams under which an interval over them is rough."""
