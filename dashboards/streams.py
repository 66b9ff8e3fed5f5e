"""The worst streams: by which signal, how far from the rest, and where to find their names."""

from __future__ import annotations

from dashboards import parts
from dashboards.board import Dashboard, Row
from dashboards.marks import POLICY_ACTIONS
from dashboards.names import SIGNAL_NAMES
from dashboards.panels import Panel, Target, Text
from dashboards.parts import USUAL, heatmap
from dashboards.promql import gauge, quantile
from dashboards.variables import Choice
from monitors.catalogue import WORST

_SIGNAL = Choice(
    "signal",
    "worst by",
    [(name.removesuffix("_ratio").replace("_", " "), name) for name in SIGNAL_NAMES],
)

_PLACE = Choice("place", "place", [(str(place), str(place)) for place in range(1, WORST + 1)], many=True)

_NAMES = f"""\
No metric carries a stream's name: a series for each of a hundred thousand streams would be too much for any Prometheus.
Shown are **places**: place 1 is the stream that is worst by the chosen signal at that moment, place {WORST} the tenth
worst. Another stream may take a place at any time; a line that jumps is often a change of stream.

**To find the names**, follow a link of the table beside this text:

- *Live page*: the worst streams by name, as they are now, with their last action and alarm.
- *Streams by name*: the same as JSON, `/api/streams`.
- `/api/streams/NAME`: one stream, head by head.

The links lead to the address that Prometheus scrapes. Where your browser cannot reach it (inside a cluster or a compose
network), forward the port first: `kubectl port-forward pod/ebbtide-0 9464`, or take `http://127.0.0.1:9464` with the
compose file that comes along. A stream that was spilled from the pool is in the store:
`ebbtide inspect --state URL NAME`.
"""


def _places(name: str) -> Target:
    """Return the value of the stream in each chosen place."""
    values = gauge(f"ebbtide_worst_{name}", "instance", "place", how="max", where='place=~"$place"')
    return Target(values, "{{place}}, {{instance}}")


def _worst(name: str, description: str, width: int = 8) -> Panel:
    title = name.removesuffix("_ratio").replace("_", " ").capitalize()
    return Panel(
        f"{title}: the worst streams",
        description,
        [_places(name)],
        unit="none",
        signed=True,
        width=width,
        no_limit=USUAL,
    )


_WHICH = Row(
    "Which streams",
    [
        Text("Places, and names", "How to read the places, and where the streams' names are.", _NAMES, height=9),
        parts.running(
            "Instances",
            12,
            9,
            links=[
                ("Live page", "http://${__data.fields.instance}/"),
                ("Streams by name", "http://${__data.fields.instance}/api/streams"),
            ],
        ),
    ],
)

_CHOSEN = Row(
    "By the chosen signal",
    [
        Panel(
            "The worst streams by ${signal}",
            "The value of the stream in each place. All places close together: it is not a few streams, look at the "
            "memory dashboard. Place 1 far away from the others: one stream is sick; find its name and reset it.",
            [_places("$signal")],
            unit="none",
            signed=True,
            width=16,
            height=10,
            no_limit=USUAL,
        ),
        Panel(
            "Now, by place",
            "The same at this moment, to be read off. Take the places to /api/streams, where they have names.",
            [_places("$signal")],
            unit="none",
            kind="table",
            width=8,
            height=10,
        ),
        Panel(
            "The worst beside all streams: ${signal}",
            "The worst stream, and the quantiles over all. The worst following p99: the whole distribution moves. "
            "Leaving it behind: one stream is unlike all others, and a reset of that one is enough.",
            [
                Target(gauge("ebbtide_worst_$signal", how="max", where='place="1"'), "place 1, largest over instances"),
                *(Target(quantile(q, "ebbtide_${signal}"), f"p{100 * q:g} of all") for q in (0.01, 0.5, 0.99)),
            ],
            unit="none",
            no_limit=USUAL,
        ),
        heatmap(
            "All streams: ${signal}",
            "ebbtide_${signal}",
            "Where the values of all streams lie. A thin band far from the rest is the few streams that the places "
            "above show; a second broad one is a kind of traffic of its own.",
        ),
    ],
)

_EACH = Row(
    "By every signal",
    [
        _worst(
            "state_norm",
            "Norms of the streams in the chosen places. One that climbs alone: that stream writes without end; find it "
            "and reset it, or cap the norm.",
        ),
        _worst(
            "stable_rank",
            "Stable ranks of the streams in the chosen places. Near 1 for a stream that is busy: it says the same "
            "thing again and again.",
        ),
        _worst(
            "saturation_ratio",
            "Saturation of the streams in the chosen places. At 1 in mode plain: full; decay it or raise the rank.",
        ),
        _worst(
            "retrieval_error_ratio",
            "Retrieval errors of the streams in the chosen places. Above 1: what is returned is worse than nothing; "
            "reset these.",
        ),
        _worst(
            "retrieval_lift_ratio",
            "Lift of the streams in the chosen places. Near 0: nothing of these streams is remembered; look at what "
            "they are sent.",
        ),
        _worst(
            "write_error_ratio",
            "Write errors of the streams in the chosen places. Far above 1: sure of what is not so; look for a change "
            "of topic that no alarm caught.",
        ),
        _worst(
            "topic_shift_score_ratio",
            "Scores of the streams in the chosen places. Always near the top: those streams jump with every event, and "
            "policies that act on shifts do them no good.",
            width=24,
        ),
    ],
)

STREAMS = Dashboard(
    uid="ebbtide-streams",
    title="Ebbtide: streams",
    description="The worst streams by each signal, how far they are from the rest, and where to find their names.",
    rows=(_WHICH, _CHOSEN, _EACH),
    choices=(_SIGNAL, _PLACE),
    marks=(POLICY_ACTIONS,),
)
