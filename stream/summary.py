"""What a run came to, as a table on standard output."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stream.accounts import Totals
from stream.consumer import Consumer
from stream.side_output import tell


def print_summary(consumer: Consumer, totals: Totals) -> None:
    """Print events, tokens, speed, alarms, actions, dead letters, and where the outputs are."""
    settings, metrics = consumer.settings, consumer.metrics
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")

    def row(name: str, value: str) -> None:
        table.add_row(name, Text(value))

    all_events = int(metrics.get("ebbtide_events_total") or 0)
    since = f" ({all_events:,} since the first start)" if all_events != totals.events else ""
    row("events", f"{totals.events:,}{since}")
    row("tokens", f"{totals.tokens:,}")
    row("events/s", f"{totals.events / totals.seconds:,.0f}" if totals.seconds else "-")
    row("streams", f"{consumer.store.count() if consumer.store else consumer.engine.pool.resident:,}")
    row("alarms", _counts(metrics.by_label("ebbtide_alarms_total")))
    for origin, title in (("policy", "actions"), ("operator", "actions by hand"), ("dry_run", "would have done")):
        counts = metrics.by_label("ebbtide_actions_total", "kind", origin=origin)
        if origin == "policy" or any(counts.values()):
            row(title, _counts(counts))
    if consumer.shadows:
        row("write error", _side_by_side(consumer))
    row("dead letters", _counts(metrics.by_label("ebbtide_dead_letters_total")))
    row("records", settings.sink.removeprefix("jsonl:") if settings.sink else "none (--sink jsonl:PATH writes them)")
    if consumer.outputs.dead_letter_path is not None:
        row("refused lines", str(consumer.outputs.dead_letter_path))
    row("state", settings.state or "none (--state sqlite:///PATH keeps it)")
    if not totals.drained:
        row("stopped", "before all that was read was processed; the same command goes on from there")
    console = Console()
    with console.capture() as captured:
        console.print(table)
    tell(captured.get(), sys.stdout)


def _side_by_side(consumer: Consumer) -> str:
    """Say how well each policy's states predicted what was said next, in this run."""
    compared = consumer.accounts.side_by_side()
    return ", ".join(f"{policy} {error:.4f} ({role})" for policy, role, error, events in compared if events) or "none"


def _counts(counts: dict[str, int | float]) -> str:
    """Say how often each thing happened, the most frequent first.

    >>> _counts({"keep": 90, "decay": 3, "reset": 0})
    'keep 90, decay 3'
    """
    some = sorted(((count, name) for name, count in counts.items() if count), key=lambda pair: (-pair[0], pair[1]))
    return ", ".join(f"{name} {int(count):,}" for count, name in some) or "none"
