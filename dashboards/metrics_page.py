"""The page of metrics, `docs/metrics.md`, from the catalogue.

python -m dashboards.metrics_page --write    write the committed page again
python -m dashboards.metrics_page --check    fail when it is stale
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from monitors.catalogue import CATALOGUE, PREFIX, Metric
from monitors.metrics import MAX_SERIES

COMMITTED = Path(__file__).parent.parent / "docs" / "metrics.md"
"""Where the generated page is kept."""

_HEAD = f"""\
<!-- Written by `python -m dashboards.metrics_page --write` from monitors/catalogue.py; edit that. -->

# Metrics

A running consumer serves these at `/metrics`, by default on `127.0.0.1:9464`, as Prometheus text or, for a scraper that
asks for it, as OpenMetrics. An exposition is written at most once a second and kept for whoever asks meanwhile, so
scraping more often than that shows nothing new. Requests beyond 30 a second wait their turn, `/-/healthy` and
`/-/ready` apart.

All names begin with `{PREFIX}`. Units are base units: seconds, bytes, ratios from 0 on. Times are Unix times, not ages.
Beside these there are the usual `process_*`, `python_info` and `python_gc_*` metrics.

## Labels

No label takes its values from the data. A stream's name in particular is never a label: distributions over streams are
histograms, and the worst streams are listed at `/api/streams`. Should a metric get more than {MAX_SERIES} label values
all the same, the rest is counted under `other`.

Label values that are known beforehand are there at 0 from the start, since `increase()` does not see a counter that
appears with its first value. A gauge whose value is not known (the backlog of standard input) is not there at all.

## Counters and restarts

Counters of processed work, marked *kept* below, are stored by the checkpoint, in the same transaction as the states and
the source's offsets. A restart goes on counting from there; what a killed process had done after its last checkpoint is
done again, and counted again. So they end as in a run that nothing interrupted: an event is counted once, whatever
happened in between. They are shown as of the last committed checkpoint and therefore never step back, which Prometheus
would take for a counter that began at zero. On a graph they rise once a checkpoint; take rates over more than one
checkpoint interval. Without a checkpoint (no `--state`) they are shown as they are, and begin at 0 with the process.

All other counters and the histograms tell what this process did, and begin at 0 with it.

"""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _labels(metric: Metric) -> str:
    known = [values[0] for values in metric.series] if len(metric.labels) == 1 else []
    names = ", ".join(f"`{label}`" for label in metric.labels)
    return f"{names}: {', '.join(f'`{value}`' for value in known)}" if known else names


def _of(kind: str) -> list[Metric]:
    return [metric for metric in CATALOGUE.values() if metric.kind == kind]


def metrics_page() -> str:
    """Return the page in Markdown.

    Examples
    --------
    >>> [line for line in metrics_page().splitlines() if "ebbtide_events_total" in line]
    ['| `ebbtide_events_total` | Events written to memory. |  | kept |']
    """
    counters = [
        (f"`{metric.name}`", metric.help, _labels(metric), "kept" if metric.persistent else "")
        for metric in _of("counter")
    ]
    gauges = [(f"`{metric.name}`", metric.help, _labels(metric)) for metric in _of("gauge")]
    histograms = [
        (f"`{metric.name}`", metric.help, _labels(metric), " ".join(f"{bound:g}" for bound in metric.buckets))
        for metric in _of("histogram")
    ]
    return (
        f"{_HEAD}"
        f"## Counters\n\n{_table(('Name', 'What it counts', 'Labels', 'Over a restart'), counters)}\n"
        f"## Gauges\n\n{_table(('Name', 'What it shows', 'Labels'), gauges)}\n"
        "## Histograms\n\nEach has the samples `_bucket`, `_sum` and `_count`. A bound belongs to its bucket. Values "
        "that are not finite are left out.\n\n"
        f"{_table(('Name', 'What it measures', 'Labels', 'Buckets'), histograms)}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the committed page; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dashboards.metrics_page", description="The committed docs/metrics.md."
    )
    verb = parser.add_mutually_exclusive_group(required=True)
    verb.add_argument("--write", action="store_true", help="write it again")
    verb.add_argument("--check", action="store_true", help="fail when it is stale")
    chosen = parser.parse_args(arguments)
    if chosen.write:
        COMMITTED.parent.mkdir(parents=True, exist_ok=True)
        COMMITTED.write_text(metrics_page(), "utf-8")
        return 0
    if not COMMITTED.exists() or COMMITTED.read_text("utf-8") != metrics_page():
        print(f"{COMMITTED} is stale; run `python -m dashboards.metrics_page --write`")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
