"""What a report says in words: is the memory well, what did the policy do, what now; and how long it remembers."""

from __future__ import annotations

import math
from typing import Literal

from dashboards.report_data import PolicyRow, Report
from monitors.forgetting import NullModel

Level = Literal["good", "warn", "bad"]

CLOSE = 0.005
"""Write errors that differ by less than this share are called alike."""

SHORT = 50
"""With fewer events nothing is said of the memory's health."""

GROWN = 1.25
"""A norm that is larger by this factor in the last third than over the run has not levelled off."""

OFTEN = 0.2
"""From this share of returning topics on, keeping them is worth something."""


def number(value: float) -> str:
    """Write a number with three digits that matter.

    >>> number(0.71834), number(24.04), number(12345.6), number(float("nan"))
    ('0.718', '24', '12,346', '–')
    """
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def precise(value: float) -> str:
    """Write an error with the digits that policies differ in.

    >>> precise(0.87561), precise(float("nan"))
    ('0.8756', '–')
    """
    return f"{value:.4f}" if math.isfinite(value) else "–"


def percent(share: float) -> str:
    """Write a share in per cent.

    >>> percent(0.579), percent(0.0061), percent(0)
    ('58 %', '0.61 %', '0 %')
    """
    return f"{100 * share:.2g} %" if abs(share) < 0.1 else f"{100 * share:.0f} %"


def counted(count: int, one: str, several: str = "") -> str:
    """Write how many there are of something.

    >>> counted(1, "event"), counted(1200, "event"), counted(2, "memory", "memories")
    ('1 event', '1,200 events', '2 memories')
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def health(report: Report) -> tuple[Level, str]:
    """Say whether the memory is well, and how one can tell."""
    if sick := report.alarms.get("non_finite", 0):
        return "bad", (
            f"The memory is not well: after {counted(sick, 'event')} a state held numbers that are not finite. What "
            "such a stream remembers is lost; look for it by the alarm non_finite, and at the gates and values that "
            "it wrote."
        )
    error, lift, norm = (
        report.lately.get(name, math.nan) for name in ("retrieval_error", "retrieval_lift", "state_norm")
    )
    if math.isnan(error):
        return "warn", "Whether the memory is well cannot be said: its retrieval error was never measured."
    told = (
        f"asked for what it was taught, its error is {number(error)} in the last third of the run, where an empty "
        "memory has 1"
    )
    if report.events < SHORT:
        return (
            "warn",
            f"After {counted(report.events, 'event')} nobody can say whether the memory is well; so far, {told}.",
        )
    if error >= 1:
        return "bad", f"The memory is not well: {told}. It answers worse than nothing would."
    if lift <= 0:
        return "bad", (
            f"The memory holds nothing of its own: {told}, but pairs it was never taught do as well (lift "
            f"{number(lift)})."
        )
    against = f", {number(lift)} better than for what it was never taught" if math.isfinite(lift) else ""
    if norm > GROWN * report.means.get("state_norm", math.inf):
        return "warn", (
            f"The memory works, but has not levelled off: {told}{against}; the norm of its states was "
            f"{number(norm)} there and still grew (mean over the run {number(report.means['state_norm'])})."
        )
    return (
        "good",
        f"The memory is healthy: {told}{against}, and the norm of its states has levelled off at {number(norm)}.",
    )


def policy_did(report: Report) -> str:
    """Say what the policy did, and what it was worth."""
    name = f"The policy {report.policy}" if report.policy else "The policy"
    if not report.acted:
        told = f"{name} took no action."
    else:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in report.actions.items() if kind != "keep" and count)
        told = (
            f"{name} acted on {report.acted:,} of {counted(report.events, 'event')} "
            f"({number(1000 * report.acted / report.events)} in 1,000): {kinds}."
        )
    if report.by_hand:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in report.by_hand.items())
        told += f" Operators acted {counted(sum(report.by_hand.values()), 'time')} by hand: {kinds}."
    own, none = own_row(report), named(report, "none")
    if own is not None and none is not None and own is not none and (change := gain(own, none)) is not None:
        if abs(change) < CLOSE:
            told += " Replayed without any policy, the memory would have predicted new messages about as well."
        else:
            told += (
                f" Replayed without any policy, the memory would have predicted new messages "
                f"{percent(abs(change))} {'worse' if change < 0 else 'better'} (write error "
                f"{precise(none.means['write_error'])} "
                f"against {precise(own.means['write_error'])})."
            )
    if report.shifts is not None:
        alarms = report.alarms.get("topic_shift", 0)
        told += (
            f" Of {counted(report.shifts, 'true topic shift')}, {report.found or 0:,} raised an alarm within two "
            f"events; {counted(max(0, alarms - (report.found or 0)), 'alarm')} of {alarms:,} had no shift."
        )
    return told


def what_next(report: Report) -> str:
    """Say what to do."""
    if not report.policies:
        return (
            "Next: record a tape (--tape DIR) and make the report from it, to see whether another policy does better."
        )
    own, best = own_row(report), best_row(report)
    if best is None or own is None or report.events < SHORT:
        return "Next: run longer; this is too little to compare policies by."
    change = gain(best, own)
    if best is own or change is None or change > -CLOSE:
        return (
            "Next: leave the policy as it is. None of those compared predicts new messages better by more than "
            f"{percent(CLOSE)}; ebbtide tune searches further ones."
        )
    return (
        f"Next: try --policy {best.name}. On {report.replayed} it predicts new messages {percent(-change)} better than "
        f"{own.name} (write error {precise(best.means['write_error'])} against {precise(own.means['write_error'])}). "
        "Run it as a shadow first, and compare again on a later day."
    )


def capacity(report: Report) -> list[str]:
    """Say how long an association lasts, whether topics return, and what that means for the settings."""
    told = [_lasts(report), _returns(report)]
    curve, returns = report.forgetting, report.returns
    if curve is None:
        return [line for line in told if line]
    lasts, length = curve.messages, returns.length
    begin = "A topic lasts" if returns.known else "From one topic-shift alarm to the next there are"
    if math.isfinite(lasts) and math.isfinite(length):
        if lasts < length:
            told.append(
                f"{begin} {number(length)} messages (median), more than it takes for half of an association to "
                "fade: what was said at the beginning of a topic is mostly gone before its end."
            )
        else:
            told.append(
                f"{begin} {number(length)} messages (median), less than it takes for half of an association to "
                "fade: a topic is remembered to its end, and reaches into the next one."
            )
    if math.isfinite(returns.share) and returns.share >= OFTEN:
        told.append(
            "Since topics come back, a policy that files states away and restores them (archive, auto) can keep what a "
            "single state would overwrite."
        )
    elif math.isfinite(returns.share):
        told.append("Topics seldom come back here, so there is little to gain from filing states away.")
    if hint := _levers(report):
        told.append(hint)
    return [line for line in told if line]


def _lasts(report: Report) -> str:
    curve = report.forgetting
    if curve is None:
        return "How long an association lasts cannot be said from output records: make the report from a tape."
    gates = f"these gates (β {number(report.beta)} on average)" if report.beta is not None else "these gates"
    begin = f"With rank {report.rank}, the rule {report.mode} and {gates}, "
    if curve.outlasts:
        return (
            f"{begin}an association lasts longer than the "
            f"{number(float(curve.age[-1]) / max(curve.writes_per_event, 1e-9))} "
            "messages that could be looked back on: more than half of it is left then."
        )
    if not math.isfinite(curve.messages):
        return f"{begin}nothing is left even of the association written last, beyond what any pair would give."
    told = f"{begin}an association lasts {_messages(curve.messages)} on this traffic: then half of it is left."
    if curve.left is not None and 0 < curve.left < 1:
        alone = math.log(0.5) / math.log(curve.left) / max(curve.writes_per_event, 1e-9)
        ratio = curve.messages / alone
        why = (
            "the messages are alike, so that they overwrite each other"
            if ratio < 0.8
            else "the messages say the same again"
            if ratio > 1.25
            else "much as here"
        )
        acted = ", and what the policy cleared or weakened counts too" if report.acted and ratio < 0.8 else ""
        told += f" If messages had nothing to do with each other it would be {_messages(alone)}: {why}{acted}."
    return told


def _messages(count: float) -> str:
    return "less than one message" if count < 1 else f"about {number(count)} messages"


def _returns(report: Report) -> str:
    returns = report.returns
    if not math.isfinite(returns.share):
        return f"How many topics return cannot be said: {returns.why_not}."
    how = "counted in the truth" if returns.known else "an estimate from the likeness of embeddings between alarms"
    return f"{percent(returns.share)} of topics return ({how}; {counted(returns.topics, 'topic')})."


def _levers(report: Report) -> str:
    curve = report.forgetting
    if curve is None or curve.left is None or report.beta is None or report.rank is None or report.mode is None:
        return ""
    if report.mode not in ("coupled", "plain") or not 0 < curve.left < 1:
        return ""
    now = NullModel(curve.left).half_life
    slower = NullModel.of(report.mode, report.rank, report.beta / 2).half_life / now
    larger = NullModel.of(report.mode, 2 * report.rank, report.beta).half_life / now
    return (
        f"By the rule alone, halving β makes associations last {number(slower)} times as long and each message count "
        f"half as much; doubling the rank makes them last {number(larger)} times as long, for four times the memory."
    )


def own_row(report: Report) -> PolicyRow | None:
    """Return the run's own policy."""
    return next((row for row in report.policies if row.own), None)


def named(report: Report, name: str) -> PolicyRow | None:
    """Return a policy by its name."""
    return next((row for row in report.policies if row.name == name), None)


def best_row(report: Report) -> PolicyRow | None:
    """Return the policy with the smallest write error."""
    measured = [row for row in report.policies if math.isfinite(row.means.get("write_error", math.nan))]
    return min(measured, key=lambda row: row.means["write_error"], default=None)


def gain(row: PolicyRow, against: PolicyRow) -> float | None:
    """Return by which share the write error is larger than that of another policy; None where it is not known."""
    one, other = (each.means.get("write_error", math.nan) for each in (row, against))
    return one / other - 1 if math.isfinite(one) and math.isfinite(other) and other > 0 else None
