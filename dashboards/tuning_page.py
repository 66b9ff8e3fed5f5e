"""The page that `ebbtide tune` leaves behind: one HTML file with everything in it, plotly.js included.

The page itself is `tuning_page.html` beside this module; here is what it is told. It loads nothing from anywhere, and
its content security policy lets it load nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files

from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Point:
    """A policy that was tried.

    Attributes
    ----------
    label
        Its name and, where it has one, its place: ``auto #137``.
    settings
        What differs from its defaults, in words.
    role
        ``none``, ``auto`` (with its defaults), ``chosen``, ``front`` or ``tried``.
    error, recall, actions
        The write error, the error on returning topics (None where there are none), actions per 1,000 events.
    """

    label: str
    settings: str
    role: str
    error: float
    recall: float | None
    actions: float


@dataclass(frozen=True)
class Row:
    """A line of the table: a policy on the streams that it was not tuned on.

    Attributes
    ----------
    point
        Its figures there.
    change, low, high
        Of the write error against `none`, in shares of it, with the 95 % interval; None where there is none.
    tuned_error
        Its write error on the streams that it was tuned on.
    over_time
        Its write error in equal parts of each stream's length; None for a part without events.
    """

    point: Point
    change: float
    low: float | None
    high: float | None
    tuned_error: float
    over_time: Sequence[float | None]


@dataclass(frozen=True)
class TuningPage:
    """What the page shows.

    Attributes
    ----------
    title
        The tape's name.
    verdict
        What to deploy, in one line.
    reason
        Why.
    best
        The text of best.yaml.
    facts
        What the figures hang on: label → value.
    tried
        Policies on the streams that were searched on; of many, some.
    left_out
        How many were tried that are not in `tried`.
    rows
        The front and the baselines on the other streams: `none`, `auto`, the chosen one, the rest by actions.
    importances
        Policy → setting → share of what the error depends on.
    """

    title: str
    verdict: str
    reason: str
    best: str
    facts: Mapping[str, str]
    tried: Sequence[Point]
    left_out: int
    rows: Sequence[Row]
    importances: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def tuning_page(page: TuningPage) -> str:
    """Return the page's HTML, about 5 MB: plotly.js is most of it.

    Examples
    --------
    >>> none = Point("none", "", "none", 0.9, None, 0.0)
    >>> html = tuning_page(TuningPage("a tape", "none", "", "", {}, [none], 0, [Row(none, 0, None, None, 0.9, [0.9])]))
    >>> html.splitlines()[0], '"label": "none"' in html
    ('<!doctype html>', True)
    """
    template = files("dashboards").joinpath("tuning_page.html").read_text("utf-8")
    # No text of a user's can end the script it stands in.
    data = json.dumps(asdict(page), allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")
    before, between, after = template.replace("{{data}}", "{{plotly}}").split("{{plotly}}")
    plotly: str = get_plotlyjs()
    return before + plotly + between + data + after
