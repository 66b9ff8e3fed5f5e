"""The report as one HTML file with everything in it, plotly.js included: it needs no network and asks for nothing.

All text is written here, escaped, so that it can be read where no script runs; the script draws the figures. The
content security policy names the two scripts by their hashes and allows no address at all.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files

from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from dashboards.report_data import DRAWN, Forgetting, OneStream, PolicyRow, Report
from dashboards.report_figures import forgetting_figure, over_time_figure, policies_figure, stream_figure
from dashboards.report_words import capacity, counted, health, number, percent, policy_did, precise, what_next

NAME = 80
"""Characters of a stream's name that are shown."""

EXPLAINED = {
    "state_norm": "size of the states; healthy when it levels off",
    "stable_rank": "directions in use, at most the rank; near it, the state is full",
    "saturation": "size of the states against the largest they can get",
    "write_error": "how unexpected new messages were; lower is better, 1 is no idea",
    "retrieval_error": "error for what was taught before; 1 is an empty memory",
    "retrieval_lift": "how much better than for pairs never taught; above 0 is healthy",
    "topic_shift_score": "how much each message looks like a new topic",
}


def report_page(report: Report) -> str:
    """Return the page's HTML, about 5 MB: plotly.js is most of it."""
    figures = {
        "over-time": over_time_figure(report.over_time),
        "streams": [stream_figure(stream) for stream in report.lines],
        "forgetting": forgetting_figure(report.forgetting)
        if report.forgetting and len(report.forgetting.age)
        else None,
        "policies": policies_figure(report.policies) if len(report.policies) > 1 else None,
    }
    script = files("dashboards").joinpath("report_page.js").read_text("utf-8")
    plotly: str = get_plotlyjs()
    parts = {
        "policy": "; ".join(
            [
                *("default-src 'none'", f"script-src {_hash(plotly)} {_hash(script)}", "style-src 'unsafe-inline'"),
                *("img-src data: blob:", "base-uri 'none'", "form-action 'none'"),
            ]
        ),
        "title": escape(f"Ebbtide: {_shown(report.name)}"),
        "body": _body(report),
        "figures": json.dumps(figures, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "plotly": plotly,
        "script": script,
    }
    page = files("dashboards").joinpath("report_page.html").read_text("utf-8")
    made = []
    for piece in page.split("{{"):  # each part once, so that nothing in one is taken for a place of another
        name, closed, rest = piece.partition("}}")
        made.append(parts[name] + rest if closed else piece)
    return "".join(made)


def _hash(script: str) -> str:
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


def _body(report: Report) -> str:
    level, healthy = health(report)
    streams = counted(report.streams, "stream")
    when = f", from {_text(report.first)} to {_text(report.last)}" if report.first and report.last else ""
    return "\n".join(
        [
            f"<header><h1>{_LOGO}<span>Report on <bdi>{_text(report.name)}</bdi></span></h1>",
            f'<p class="about">{counted(report.events, "event")} of {streams}, {counted(report.tokens, "token")}{when}.'
            "</p></header>",
            "<main>",
            f'<section class="card verdict {level}" aria-label="In short">',
            *(f"<p>{escape(line)}</p>" for line in (healthy, policy_did(report), what_next(report))),
            "</section>",
            _tiles(report),
            *_notes(report.notes),
            _over_time(report),
            *_streams(report.lines),
            *_forgetting(report.forgetting, capacity(report)),
            *_policies(report.policies, report.replayed),
            *_tables(report.tables),
            "</main>",
            "<footer>Made by ebbtide report. The file needs no network and holds no text of any event.</footer>",
        ]
    )


_LOGO = (
    '<svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="8" fill="#0e7c86"/>'
    '<path d="M5 13q5.5-6 11 0t11 0M5 21q5.5-6 11 0t11 0" fill="none" stroke="#fff" stroke-width="2.6" '
    'stroke-linecap="round"/></svg>'
)


def _tiles(report: Report) -> str:
    alarms = sum(report.alarms.values())
    lasts = report.forgetting.messages if report.forgetting else math.nan
    returns = report.returns
    half = "< 1" if lasts < 1 else number(lasts)
    if report.forgetting is not None and report.forgetting.outlasts:
        half = "> " + number(float(report.forgetting.age[-1]) / max(report.forgetting.writes_per_event, 1e-9))
    tiles = [
        (
            "Alarms",
            f"{alarms:,}",
            ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in report.alarms.items()),
        ),
        (
            "Actions",
            f"{report.acted:,}",
            ", ".join(f"{k} {count:,}" for k, count in report.actions.items() if k != "keep"),
        ),
        ("An association lasts", half, "messages until half is left"),
        (
            "Topics that return",
            percent(returns.share) if math.isfinite(returns.share) else "–",
            "counted in the truth" if returns.known else "an estimate" if math.isfinite(returns.share) else "not known",
        ),
    ]
    shown = "".join(f"<div><dt>{a}</dt><dd>{escape(b)}<small>{_text(c)}</small></dd></div>" for a, b, c in tiles)
    return f'<dl class="tiles">{shown}</dl>'


def _notes(notes: Sequence[str]) -> list[str]:
    if not notes:
        return []
    return [
        '<section class="card" aria-label="What to know">',
        *(f"<p>{escape(note)}</p>" for note in notes),
        "</section>",
    ]


def _over_time(report: Report) -> str:
    rows = [
        (name.replace("_", " "), number(report.means[name]), number(report.lately.get(name, math.nan)), told)
        for name, told in EXPLAINED.items()
        if name in report.means
    ]
    band = "the median of the streams, and the band that 80 % of them lie in" if report.streams > 1 else "its mean"
    return "\n".join(
        [
            '<section class="card"><h2>Signals over time</h2>',
            f'<p class="hint">In slices of the run: {band}. Below, when something happened; larger marks, more of '
            "it.</p>",
            '<div class="plot" id="over-time" role="img" aria-label="The signals over the run; the table below has '
            'their means">'
            "</div>",
            _table(("Signal", "Mean", "Last third", "What it is"), rows, last_left=True),
            "</section>",
        ]
    )


def _streams(lines: Sequence[OneStream]) -> list[str]:
    if not lines:
        return []
    options = "".join(
        f'<option value="{place}" dir="auto">{_text(stream.name)}</option>' for place, stream in enumerate(lines)
    )
    whys = "".join(
        f'<p class="why" data-place="{place}"{"" if place == 0 else " hidden"}>{_text(stream.why)}'
        f"{_only_last(stream)}. {_marks(stream)}</p>"
        for place, stream in enumerate(lines)
    )
    return [
        '<section class="card"><h2>Single streams</h2>',
        '<p class="hint">The worst by retrieval error, then the longest. Dotted lines: true topic shifts, where '
        "known.</p>",
        f'<label>Stream <select id="picker">{options}</select></label>{whys}',
        '<div class="plot" id="stream" role="img" aria-label="The signals of the stream that was '
        'chosen"></div></section>',
    ]


def _only_last(stream: OneStream) -> str:
    return (
        f"; shown are the last {len(stream.seq):,} of {stream.events:,} events"
        if len(stream.seq) < stream.events
        else ""
    )


def _marks(stream: OneStream) -> str:
    some = [f"{name.replace('_', ' ')} alarms {len(seqs):,}" for name, seqs in stream.alarms.items()]
    some += [f"{kind} {len(seqs):,}" for kind, seqs in stream.actions.items()]
    return _text(", ".join(some)) + "." if some else "No alarms, no actions."


def _forgetting(curve: Forgetting | None, words: Sequence[str]) -> list[str]:
    told = [f"<p>{escape(line)}</p>" for line in words]
    if curve is None or not len(curve.age):
        return ['<section class="card"><h2>How long it remembers</h2>', *told, "</section>"]
    rows = [
        (number(age), f"{lift:.3f}", f"{count:,}")
        for age, lift, count in zip(curve.age.tolist(), curve.lift.tolist(), curve.count, strict=True)
    ]
    return [
        '<section class="card"><h2>How long it remembers</h2>',
        *told,
        '<p class="hint">What is left of a taught pair by its age: how much smaller its error is than that of pairs '
        "never taught. The dashed line is what the rule alone would leave if messages had nothing to do with each "
        "other.</p>",
        '<div class="plot" id="forgetting" role="img" aria-label="The forgetting curve; the table below has its '
        'numbers"></div>',
        "<details><summary>The curve as a table</summary>",
        _table(("Age in writes", "Lift", "Probes"), rows),
        "</details></section>",
    ]


def _policies(rows: Sequence[PolicyRow], replayed: str) -> list[str]:
    if not rows:
        return []
    cells = [
        (
            row.name + (" (the run's)" if row.own else ""),
            *(precise(row.means.get(name, math.nan)) for name in ("write_error", "retrieval_error", "retrieval_lift")),
            number(row.acted_per_1000),
            ", ".join(f"{kind} {count:,}" for kind, count in row.actions.items() if kind != "keep") or "none",
        )
        for row in rows
    ]
    heads = ("Policy", "Write error", "Retrieval error", "Lift", "Actions per 1,000", "Actions")
    plot = (
        '<div class="plot" id="policies" role="img" aria-label="Write errors compared; the table below has them"></div>'
        if len(rows) > 1
        else ""
    )
    return [
        '<section class="card"><h2>Policies compared</h2>',
        f"<p>The same messages again, under other policies: {escape(replayed)}. Compare by the write error: how well "
        "the memory predicted what was said next.</p>",
        plot,
        _table(heads, cells),
        '<p class="hint">Probes are of the whole past of a stream. A policy that files states away (archive, auto) is '
        "asked for pairs of other topics too, so its retrieval error looks worse than it is.</p></section>",
    ]


def _tables(tables: Mapping[str, Mapping[str, str]]) -> Iterable[str]:
    if not tables:
        return
    yield '<details class="card"><summary>Configuration and versions</summary>'
    for title, rows in tables.items():
        yield f"<h3>{_text(title)}</h3>"
        lines = "".join(
            f"<tr><th scope='row'>{_text(name)}</th><td>{_text(told)}</td></tr>" for name, told in rows.items()
        )
        yield f'<table class="facts"><tbody>{lines}</tbody></table>'
    yield "</details>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, last_left: bool = False) -> str:
    left = ' style="text-align:left"' if last_left else ""
    top = "".join(
        f"<th scope='col'{left if at == len(heads) - 1 else ''}>{escape(h)}</th>" for at, h in enumerate(heads)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<th scope='row'>{_text(cell)}</th>"
            if at == 0
            else f"<td{left if at == len(heads) - 1 else ''}>{_text(cell)}</td>"
            for at, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _shown(text: str) -> str:
    """Return text cut to `NAME` characters, without what UTF-8 cannot encode."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return whole if len(whole) <= NAME else whole[: NAME - 1] + "…"


def _text(text: str) -> str:
    return escape(_shown(text))


assert set(DRAWN) <= EXPLAINED.keys()
