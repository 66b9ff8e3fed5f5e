"""Panels that are alike on several dashboards, said once."""

from __future__ import annotations

from collections.abc import Sequence

from dashboards import limits
from dashboards.panels import Panel, Target
from dashboards.promql import SCOPE, buckets, gauge, increase, quantile, rate, recorded, select
from dashboards.recordings import REFUSED

TRAFFIC = "it follows the traffic; compare with other days."
"""Why a rate has no threshold."""

USUAL = "what is usual differs by backbone and traffic; compare with its own past."
"""Why a signal has no threshold."""


def quantiles(
    histogram: str, *, legend: str = "", where: str = "", of: Sequence[float] = (0.5, 0.9, 0.99)
) -> list[Target]:
    """Return one line for each quantile.

    Examples
    --------
    >>> [target.legend for target in quantiles("ebbtide_state_norm")]
    ['p50', 'p90', 'p99']
    """
    return [Target(quantile(q, histogram, where=where), f"{legend}p{100 * q:g}") for q in of]


def heatmap(
    title: str,
    histogram: str,
    description: str,
    *,
    where: str = "",
    width: int = 12,
    height: int = 8,
    unit: str = "none",
) -> Panel:
    """Return a histogram over time."""
    targets = [Target(buckets(histogram, where), "{{le}}")]
    return Panel(title, description, targets, unit, kind="heatmap", width=width, height=height)


def number(
    title: str,
    description: str,
    target: Target,
    unit: str,
    *,
    thresholds: Sequence[tuple[float, str]] = (),
    base: str = "green",
    no_limit: str = "",
    names: Sequence[tuple[float, str]] = (),
    width: int = 3,
) -> Panel:
    """Return one number, to be seen from afar."""
    return Panel(
        title,
        description,
        [target],
        unit,
        kind="stat",
        width=width,
        height=4,
        thresholds=thresholds,
        base=base,
        no_limit=no_limit,
        names=names,
    )


def by_instance(counter: str) -> list[Target]:
    """Return a counter's rate, a line for each instance."""
    return [Target(rate(counter, "instance"), "{{instance}}")]


def checkpoint_age(*by: str, legend: str) -> Target:
    """Return the seconds since the last checkpoint, of the instance that waits longest."""
    return Target(f"time() - {gauge('ebbtide_last_checkpoint_timestamp_seconds', *by, how='min')}", legend)


def running(title: str, width: int, height: int, links: Sequence[tuple[str, str]] = ()) -> Panel:
    """Return a table of the instances and of what each of them runs."""
    return Panel(
        title,
        "Version, backbone, device and policy of each instance. Two versions at once for longer than a roll-out: one "
        "instance was forgotten. An instance that is missing is not scraped: see the alert EbbtideDown.",
        [Target(f"ebbtide_build_info{{{SCOPE}}}", "{{instance}}")],
        unit="none",
        kind="table",
        width=width,
        height=height,
        links=links,
    )


def alerts_firing() -> Target:
    """Return how many alerts fire now; 0 where none does, which is no sample in Prometheus."""
    firing = select("ALERTS", 'alertname=~"Ebbtide.+",alertstate="firing"')
    return Target(f"count({firing}) or vector(0)", "firing")


ALARMS = Panel(
    "Alarms per second, by alarm",
    "One alarm that rises alone points to its signal. All of them together: the input changed, or the backbone did.",
    [Target(rate("ebbtide_alarms_total", "alarm"), "{{alarm}}")],
    unit="cps",
    width=8,
    no_limit=USUAL,
)

ACTIONS = Panel(
    "Actions per second other than keep, by kind",
    "What was done to live states, by policy and operators. Many resets with a rising retrieval error: the policy "
    "forgets what it should keep. None at all while alarms rise: the policy is `none`, or in its cool-down.",
    [Target(rate("ebbtide_actions_total", "kind", where='kind!="keep",origin!="dry_run"'), "{{kind}}")],
    unit="cps",
    width=8,
    no_limit="a constant decay acts on every event, others seldom.",
)

LAG = Panel(
    "Lag of events, quantiles",
    "Time from an event's own ts to the end of its micro-batch. Rising: more comes in than is done; see the backlog "
    "and, on the runtime dashboard, which stage takes the time. High but falling: old input is being caught up with. "
    "Empty: the events carry no ts.",
    quantiles("ebbtide_event_lag_seconds"),
    unit="s",
    width=8,
    thresholds=[(limits.LAG_SECONDS, "red")],
)

BACKLOG = Panel(
    "Backlog, by instance",
    "Bytes that the source holds and that are not read yet. A line that only rises never catches up: give that "
    "instance fewer streams, a larger batch or a faster backbone. Empty where the source cannot tell, such as "
    "standard input.",
    [Target(gauge("ebbtide_source_backlog_bytes", "instance"), "{{instance}}")],
    unit="bytes",
    width=8,
    thresholds=[(limits.BACKLOG_BYTES, "orange")],
)

REFUSED_LINES = Panel(
    "Share of lines that were refused",
    "Dead letters over lines read. A steady share is a format that some producer does not keep; a jump is an "
    "incident: read the newest lines of the dead-letter file.",
    [Target(recorded(REFUSED), "{{instance}}")],
    unit="percentunit",
    width=8,
    thresholds=[(limits.REFUSED_SHARE, "red")],
)

NONFINITE = Panel(
    "Values that were not finite, in 10 minutes",
    "NaN or infinity among what was measured. Anything above zero is a fault: a sick backbone, an overflow in half "
    "precision, a damaged adapter. Detectors never see these values. Find the stream at /api/streams, look at what "
    "it was sent, and reset it.",
    [Target(increase("ebbtide_nonfinite_values_total", "10m", "instance"), "{{instance}}")],
    unit="short",
    width=8,
    thresholds=[(1, "red")],
)

QUARANTINED = Panel(
    "Streams in quarantine",
    "Resident streams whose next event would have made their state not finite, and how many went there in an hour. "
    "They stand still until a person lets them go on: look at what they were sent, then `ebbtide act` with release or "
    "reset.",
    [
        Target(gauge("ebbtide_streams_quarantined", "instance"), "{{instance}}"),
        Target(increase("ebbtide_quarantines_total", "1h", "instance"), "{{instance}}, new in 1 h"),
    ],
    unit="short",
    width=8,
    thresholds=[(1, "red")],
)

WAITING_FOR_ROOM = Panel(
    "Waiting for room on a disk",
    "1 while nothing is read because a disk is full or may not be written. Make room: it goes on by itself, and "
    "nothing is lost.",
    [Target(gauge("ebbtide_waiting_for_room", "instance", how="max"), "{{instance}}")],
    unit="none",
    width=8,
    thresholds=[(1, "red")],
    names=[(0, "no"), (1, "waiting")],
)
