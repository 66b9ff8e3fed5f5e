"""The results of `benchmarks.policies` as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def markdown(result: Mapping[str, Any]) -> str:
    """Return tables of shares, or of harm where there is nothing to win: a row for each policy, a column a scenario.

    Examples
    --------
    >>> row = {"scenario": "abrupt", "mode": "plain", "policy": "auto", "oracle_gain_share": 0.9, "harm_ratio": -0.1,
    ...        "error_mean": 0.4}
    >>> total = {"mode": "plain", "policy": "auto", "mean_gain_share": 0.9, "scenarios_to_win": 1,
    ...          "most_harm_stationary": None, "most_harm_elsewhere": -0.1}
    >>> run = {"first_seed": 1, "seeds": 2, "events": 3, "rank": 4, "skipped": {}}
    >>> text = markdown(run | {"rows": [row], "summary": [total]})
    >>> print(text.splitlines()[-1])
    | auto | 90 % (-10.0 %) | 90 % |  |
    """
    rows = result["rows"]
    lines = [
        "# Policies: measured",
        "",
        f"R = {result['rank']}, {result['seeds']} seeds from {result['first_seed']}, {result['events']} events each.",
        "Each cell: the share of the oracle's gain over `none`, in brackets the change of the error from `none`",
        "(negative: better). A cell without a share: the oracle itself gains under 5 %. Errors, intervals, errors",
        "on the previous visit and actions per 1,000 events are in the JSON file.",
    ]
    lines += [f"Skipped: {scenario} ({reason})." for scenario, reason in result["skipped"].items()]
    scenarios = list(dict.fromkeys(row["scenario"] for row in rows))
    cells = {(row["mode"], row["policy"], row["scenario"]): row for row in rows}
    for mode in dict.fromkeys(row["mode"] for row in rows):
        lines += ["", f"## Mode {mode}", ""]
        lines.append(f"| policy | {' | '.join(scenarios)} | mean share | most harm, stationary |")
        lines.append("|---" * (len(scenarios) + 3) + "|")
        for total in (one for one in result["summary"] if one["mode"] == mode):
            shown = [_cell(cells.get((mode, total["policy"], scenario))) for scenario in scenarios]
            share, harm = total["mean_gain_share"], total["most_harm_stationary"]
            ends = ["" if share is None else f"{100 * share:.0f} %", "" if harm is None else f"{100 * harm:+.1f} %"]
            lines.append(f"| {total['policy']} | {' | '.join([*shown, *ends])} |")
    everything = [
        total for total in result["summary"] if total["mode"] == "all" and total["mean_gain_share"] is not None
    ]
    if everything:
        lines += [
            "",
            "## All modes",
            "",
            "| policy | mean share | most harm, stationary | elsewhere |",
            "|---|---|---|---|",
        ]
    for total in everything:
        harms = (total["most_harm_stationary"], total["most_harm_elsewhere"])
        shown = ["" if harm is None else f"{100 * harm:+.1f} %" for harm in harms]
        lines.append(f"| {total['policy']} | {100 * total['mean_gain_share']:.0f} % | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    share = row["oracle_gain_share"]
    change = f"{100 * row['harm_ratio']:+.1f} %"
    return change if share is None else f"{100 * share:.0f} % ({change})"
