"""What changed in the streams, what the policy did about it, and what other policies would have done."""

from __future__ import annotations

from dashboards import limits, parts
from dashboards.board import Dashboard, Row
from dashboards.marks import ALERTS_FIRING, DRY_RUN_ACTIONS, POLICY_ACTIONS
from dashboards.panels import Panel, Target
from dashboards.parts import USUAL, heatmap, quantiles
from dashboards.promql import gauge, increase, mean, rate, recorded
from dashboards.recordings import ACTIONS, SHIFTS, SHIFTS_DAY

_POLICY = "{{policy}} ({{role}})"


def _regret(histogram: str) -> Target:
    """Return how much larger each policy's mean is than that of the policy called `none`."""
    none = mean(histogram, where='policy="none"')
    return Target(f"{mean(histogram, 'policy', 'role')} - ignoring (policy, role) group_left () ({none})", _POLICY)


_SHIFTS = Row(
    "What changed: topic shifts and alarms",
    [
        heatmap(
            "Topic shift score",
            "ebbtide_topic_shift_score_ratio",
            "How unlike its stream's recent past each event is. Two bands, low and high, are what a detector can "
            "tell apart. One broad band: the score does not separate topics on this traffic, and policies that act "
            "on shifts should not be used.",
        ),
        Panel(
            "Topic shift score, quantiles",
            "p50 rising: conversations jump more, or their language is one that the backbone does not know. The "
            "alarm threshold should lie between p50 and p99.",
            quantiles("ebbtide_topic_shift_score_ratio"),
            unit="none",
            no_limit=USUAL,
        ),
        Panel(
            "Share of events that begin a new topic",
            f"By instance, and what it was on average in the day before. Above {limits.SHIFT_SHARE:g} and "
            f"{limits.SHIFT_DAY_RATIO:g} times its own day is a storm of shifts: another kind of input, or a detector "
            "that fires at anything; look at single streams before trusting resets.",
            [
                Target(recorded(SHIFTS), "{{instance}}"),
                Target(recorded(SHIFTS_DAY), "{{instance}}, the day before"),
            ],
            unit="percentunit",
            width=8,
            thresholds=[(limits.SHIFT_SHARE, "red")],
        ),
        parts.ALARMS,
        Panel(
            "Write error, quantiles",
            "How wrong the states were about what was about to be written. A jump with the marks of a shift, falling "
            "back within some events: the memory learns the new topic. One that stays up: it does not, and the policy "
            "should clear more.",
            quantiles("ebbtide_write_error_ratio"),
            unit="none",
            width=8,
            thresholds=[(1.25, "orange")],
        ),
    ],
)

_ACTIONS = Row(
    "What was done about it",
    [
        Panel(
            "The policy's actions per second, by kind",
            "What the policy does to live states, keep left out. None while alarms rise: it is `none`, in its "
            "cool-down, or its budget is spent. Many resets and a retrieval error that rises: it forgets too much.",
            [
                Target(
                    rate("ebbtide_actions_total", "kind", where='kind!="keep",origin="policy"'),
                    "{{kind}}",
                )
            ],
            unit="cps",
            width=8,
            no_limit="a constant decay acts on every event, others seldom.",
        ),
        Panel(
            "Share of events that replaced or froze a state",
            f"Resets, restores and freezes of the policy over events. Above {limits.ACTION_SHARE:g}, the largest "
            "budget that a policy has by default, it thrashes: states are replaced before they are of use. Raise its "
            "cool_down, give it a budget, or go back to `none`.",
            [Target(recorded(ACTIONS), "{{instance}}")],
            unit="percentunit",
            width=8,
            thresholds=[(limits.ACTION_SHARE, "red")],
        ),
        Panel(
            "States that policies hold",
            "States filed by policies such as archive, of live lanes and of shadows, besides the lanes' own. Only ever "
            "rising: topics do not return, and filing them is for nothing.",
            [Target(gauge("ebbtide_filed_states", "instance"), "{{instance}}")],
            unit="short",
            width=8,
            no_limit=USUAL,
        ),
        Panel(
            "Operators' actions in an hour, by kind",
            "What people did by hand, marked in purple on all dashboards. A step in a signal right after one is "
            "theirs, not the policy's. Many of them: the policy leaves work to people; tune it.",
            [
                Target(
                    increase("ebbtide_actions_total", "1h", "kind", where='kind!="keep",origin="operator"'), "{{kind}}"
                )
            ],
            unit="short",
            width=12,
            no_limit="people are free to act.",
        ),
        Panel(
            "Dry run: what the policy would have done, per second",
            "A policy in dry run says what it would do and does nothing. As many resets as there are shifts is right; "
            "far more: do not let it act yet. Empty: no dry run.",
            [
                Target(
                    rate("ebbtide_actions_total", "kind", where='kind!="keep",origin="dry_run"'),
                    "{{kind}}",
                )
            ],
            unit="cps",
            width=12,
            no_limit="compare with the shifts above.",
        ),
    ],
)

_SHADOWS = Row(
    "Policies side by side: the live one and its shadows",
    [
        Panel(
            "Write error by policy, mean",
            "How wrong each policy's states are about what comes next, on the same events. A shadow that lies below "
            "the live policy for days would do better: look at its actions, then let it act. Empty: no shadow runs.",
            [Target(mean("ebbtide_policy_write_error_ratio", "policy", "role"), _POLICY)],
            unit="none",
            no_limit="the policies are each other's measure.",
        ),
        Panel(
            "Regret in write error against `none`",
            "Each policy's mean less that of doing nothing. Below 0: it helps. Above 0 for long: it does harm, take it "
            "off. Empty: neither the live policy nor a shadow is `none`; run with `--shadow none`.",
            [_regret("ebbtide_policy_write_error_ratio")],
            unit="none",
            thresholds=[(0, "orange")],
            signed=True,
        ),
        Panel(
            "Retrieval error by policy, mean",
            "What each policy's states return for remembered pairs. A policy that clears states forgets old pairs, "
            "which this counts against it; read it together with the write error.",
            [Target(mean("ebbtide_policy_retrieval_error_ratio", "policy", "role"), _POLICY)],
            unit="none",
            thresholds=[(1, "red")],
        ),
        Panel(
            "Regret in retrieval error against `none`",
            "Each policy's mean less that of doing nothing. Above 0 while the write error is below: what is forgotten "
            "was not needed. Above 0 in both: the policy does harm, take it off.",
            [_regret("ebbtide_policy_retrieval_error_ratio")],
            unit="none",
            thresholds=[(0, "orange")],
            signed=True,
        ),
        Panel(
            "Actions by policy, per second",
            "Actions other than keep of the live policy and of each shadow on its own lanes. One that acts ten times "
            "as often as another of the same kind: its detector or its cool_down is too eager.",
            [
                Target(
                    rate("ebbtide_policy_actions_total", "policy", "role", "kind", where='kind!="keep"'),
                    "{{policy}} ({{role}}): {{kind}}",
                )
            ],
            unit="cps",
            width=24,
            no_limit="a constant decay acts on every event, others seldom.",
        ),
    ],
)

POLICY = Dashboard(
    uid="ebbtide-policy",
    title="Ebbtide: non-stationarity and policy",
    description="What changed in the streams, what the policy did about it, and what others would have done.",
    rows=(_SHIFTS, _ACTIONS, _SHADOWS),
    marks=(POLICY_ACTIONS, DRY_RUN_ACTIONS, ALERTS_FIRING),
)
