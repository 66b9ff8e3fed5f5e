"""`ebbtide report`: what a run came to, as one HTML file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[
        Path, typer.Argument(help="Folder of a tape (ebbtide run --tape DIR), or a file of records (--sink jsonl:PATH)")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="The HTML file [default: RUN with .html]")] = None,
    png: Annotated[Path | None, typer.Option("--png", help="A picture of 1920 x 1080 too, for a slide")] = None,
    truth: Annotated[
        Path | None, typer.Option("--truth", help="The true topic shifts, as ebbtide generate --truth writes them")
    ] = None,
    state: Annotated[
        str | None, typer.Option("--state", help="The run's state store: its settings and counters are shown")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help="A policy to compare with the run's own, or a YAML file; may be given several times "
            "[default: none, auto]",
        ),
    ] = None,
    sample: Annotated[
        int, typer.Option("--sample", min=1, help="Events replayed at most; whole streams are drawn from a larger tape")
    ] = 10_000,
    partial: Annotated[
        bool, typer.Option("--partial", help="Read a tape that ends in the middle of a record batch up to there")
    ] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads for compiled code")] = None,
) -> None:
    """Write a report on a run: one HTML file with everything in it, which needs no network.

    What was consumed, the signals with alarms and actions, how long the memory remembers, how other policies would have
    done, and what to do next, in words. No text of any event is in it; names of streams are.

    From a tape all of it; from output records only what they hold.
    """
    import memory.threads as pool
    from dashboards.report_page import report_page
    from memory.errors import ConfigurationError
    from stream.report import make_report

    page = run.with_name(run.name + ".html") if out is None else out
    for option, file in (("--out", page), ("--png", png)):
        if file is not None and not file.resolve().parent.is_dir():
            raise ConfigurationError(f"{option} {file}: expected a folder that exists, got {file.parent}")
        if file is not None and (file.is_dir() or file.resolve() == run.resolve()):
            raise ConfigurationError(f"{option} {file}: expected a file to write, got the run itself or a folder")
    if threads is not None:
        pool.set_threads(threads)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("reading", total=None)
        made = make_report(
            run,
            truth=truth,
            state=state,
            policies=policy,
            sample=sample,
            partial=partial,
            each=lambda what, done, of: progress.update(bar, description=what, completed=done, total=of),
        )
        _write(page, report_page(made).encode())
        if png is not None:
            from dashboards.report_slide import report_slide

            _write(png, report_slide(made))
    print(f"report: {page}" + ("" if png is None else f"\nslide: {png}"))


def _write(path: Path, data: bytes) -> None:
    """Replace a file, never leaving half of it; for its owner alone, as the names of streams are in it."""
    import os
    import tempfile

    handle, scratch = tempfile.mkstemp(dir=path.resolve().parent, prefix=f".{path.name[:40]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise
