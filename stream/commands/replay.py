"""`ebbtide replay`: a recorded run again, under other policies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stream.replay import Replay


def replay(
    tape: Annotated[Path, typer.Argument(help="Folder of the tape, as ebbtide run --tape DIR writes")],
    policy: Annotated[
        list[str] | None, typer.Option("--policy", help="A policy's name, or a YAML file; may be given several times")
    ] = None,
    detectors: Annotated[
        str | None, typer.Option("--detectors", help="Signal → detector, as JSON [default: the run's own]")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Replay a tape that ends in the middle of a record batch up to there")
    ] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads for compiled code")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON")] = False,
) -> None:
    """Replay a recorded run under other policies, without the model, and compare them.

    The run's own policy is always the first row: its replay gives the recorded actions, signals and states bit for bit,
    and the last column says whether it did. With an adapter that holds for the first layer's states under another
    policy; above it a replay is an approximation, since what a layer reads changes what the next one is given.
    """
    import memory.threads as pool
    from memory.errors import ConfigurationError
    from monitors.policies import Policy, load_policy
    from stream.config import RunSettings
    from stream.replay import recorded_policy
    from stream.replay import replay as run
    from stream.tape import TapeReader

    if threads is not None:
        pool.set_threads(threads)
    head = TapeReader(tape).head
    chosen: dict[str, Policy] = {OWN: recorded_policy(head)}
    for name in policy or []:
        if name in chosen:
            raise ConfigurationError(f"--policy {name}: given twice")
        chosen[name] = load_policy(name)
    watching = None if detectors is None else RunSettings.model_validate({"detectors": detectors}).detectors
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("events", total=None)
        done = run(
            tape,
            chosen,
            detectors=watching,
            partial=partial,
            each=lambda events: progress.update(bar, completed=events),
        )
    if as_json:
        print(json.dumps(_figures(done), indent=1))
    else:
        _print(done, attached=head.attached)


OWN = "(as recorded)"


def _figures(done: Replay) -> dict[str, object]:
    return {
        "late_streams": len(done.late),
        "torn": None if done.torn is None else done.torn.name,
        "policies": [
            {
                "policy": result.policy,
                "events": result.events,
                "actions": result.actions,
                "actions_per_1000": result.actions_per_1000,
                "alarms": result.alarms,
                "means": result.means,
                "differing": result.differing,
            }
            for result in done.results
        ],
    }


def _print(done: Replay, *, attached: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    for title in ("policy", "retrieval error", "write error", "state norm", "actions per 1,000", "as recorded"):
        table.add_column(title, justify="left" if title == "policy" else "right", no_wrap=title == "policy")
    for result in done.results:
        means = result.means
        told = "every bit" if not result.differing else f"{result.events - result.differing:,} of {result.events:,}"
        table.add_row(
            result.policy,
            *(
                f"{means[name]:.4f}" if name in means else "-"
                for name in ("retrieval_error", "write_error", "state_norm")
            ),
            f"{result.actions_per_1000:.1f}",
            told,
        )
    console = Console()
    console.print(table)
    if done.late:
        console.print(
            f"{len(done.late)} streams are not on the tape from their first event: their states began as zeros here"
        )
    if done.torn is not None:
        console.print(f"{done.torn} ends in the middle of a record batch, which was left out: a run was killed there")
    if attached:
        console.print("recorded with an adapter: under another policy, layers above the first are approximate")
