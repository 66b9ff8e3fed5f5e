"""`ebbtide run`: the consumer."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stream.config import CONFIG_VARIABLE, RunSettings, effective
from stream.options import options_of

if TYPE_CHECKING:
    from stream.consumer import Consumer

FILES = 65_536
"""Descriptors that a run allows itself, where it may."""


@options_of(RunSettings)
def run(
    given: dict[str, Any],
    file: Annotated[
        Path | None, typer.Option("--config", envvar=CONFIG_VARIABLE, help="Options as YAML, such as `rank: 32`")
    ] = None,
    recover: Annotated[
        bool,
        typer.Option(
            "--recover",
            help="Where the state store or an output is damaged, go back to the last good checkpoint, this once",
        ),
    ] = False,
    accept_gap: Annotated[
        bool,
        typer.Option(
            "--accept-gap",
            help="Where what was still to be read of the source is gone, go on in what is there now, this once",
        ),
    ] = False,
) -> None:
    """Consume a stream: feed the memory, measure its health, let the policy act, export everything.

    Ends at the end of the input, unless --follow. With --state, a run that was killed goes on where it was when the
    same command is given again, and what comes out is the same, bit for bit. SIGTERM, SIGINT and SIGHUP stop it
    cleanly; a second SIGTERM or SIGINT at once.
    """
    settings, _ = effective(given, file=file)

    from stream.logs import set_up_logs

    set_up_logs(settings.log_format, settings.log_level)

    from memory.threads import set_threads
    from stream.consumer import Consumer
    from stream.stop_signals import StopSignals
    from stream.summary import print_summary

    if settings.threads is not None:
        set_threads(settings.threads)
    _allow_files()
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        server = _listen(settings, stack)
        consumer = Consumer(settings, recover=recover, accept_gap=accept_gap)
        stack.callback(consumer.close)
        stack.callback(signals.over)
        signals.listen(consumer.stop)
        consumer.open()
        if server is not None:
            server(consumer)
        with _progress(consumer) as each:
            totals = consumer.run(each)
        signals.finished()
        print_summary(consumer, totals)


def _allow_files() -> None:
    """Have as many descriptors as this process may: connections must not leave too few for files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _listen(settings: RunSettings, stack: ExitStack) -> Callable[[Consumer], None] | None:
    """Take the port at once, so that one in use is known before the model is loaded; serve when there is a consumer."""
    if not settings.metrics_port:
        return None
    from stream.http import create_app
    from stream.http_actions import read_token
    from stream.http_names import names_of
    from stream.http_server import HttpServer
    from stream.service import Late

    late = Late()
    names = names_of(settings.metrics_host, settings.metrics_name)
    app = create_app(late, read_token(settings.api_token_file), names=names)
    server = HttpServer(
        app,
        settings.metrics_host,
        settings.metrics_port,
        certificate=settings.metrics_tls_cert,
        key=settings.metrics_tls_key,
    )
    stack.callback(server.stop)
    server.start()
    return late.serve


@contextmanager
def _progress(consumer: Consumer) -> Iterator[Callable[[], None]]:
    """Yield what moves a progress bar, where standard error is a terminal and the input's size is known."""
    if not consumer.settings.progress or consumer.settings.log_format == "json" or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.fields[events]:,} events"),
        BarColumn(),
        TextColumn("{task.fields[rate]:,.0f} events/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        total = consumer.source.total_bytes
        bar = progress.add_task("", total=total, events=0, rate=0.0)

        def move() -> None:
            backlog, totals = consumer.source.backlog(), consumer.totals
            done = None if total is None or backlog is None else total - backlog
            rate = totals.events / totals.seconds if totals.seconds else 0.0
            progress.update(bar, completed=done, events=totals.events, rate=rate)

        yield move
