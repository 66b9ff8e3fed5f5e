"""How the states are: how large, how full, what they still return, and for how long."""

from __future__ import annotations

from dashboards import limits
from dashboards.board import Dashboard, Row
from dashboards.marks import POLICY_ACTIONS
from dashboards.panels import Panel, Target
from dashboards.parts import USUAL, heatmap, quantiles
from dashboards.promql import gauge, mean, recorded
from dashboards.recordings import RETRIEVAL_ERROR, RETRIEVAL_ERROR_SPREAD, RETRIEVAL_ERROR_WEEK
from monitors.forgetting import AGE_LABELS

_USUAL_AT_MOST = f"{recorded(RETRIEVAL_ERROR_WEEK)} + {limits.WEEK_DEVIATIONS:g} * {recorded(RETRIEVAL_ERROR_SPREAD)}"


def _age(label: str) -> str:
    """Return a range of ages in words.

    >>> _age("4-15"), _age("256-")
    ('4 to 15', '256 and more')
    """
    first, _, last = label.partition("-")
    return f"{first} to {last}" if last else f"{first} and more" if label.endswith("-") else first


_SIZE = Row(
    "How large and how full: distributions over streams",
    [
        heatmap(
            "State norm",
            "ebbtide_state_norm",
            "Frobenius norm of the state after each event. A band that climbs without end: states saturate, and a "
            "decay or a norm_cap policy is due. A second band far above the first: a few streams are sick; "
            "/api/streams names them.",
        ),
        Panel(
            "State norm, quantiles",
            "p99 leaving p50 behind means that few streams grow while most are well. All of them at zero: states "
            "are reset too often, or writing is off.",
            quantiles("ebbtide_state_norm"),
            unit="none",
            no_limit=USUAL,
        ),
        heatmap(
            "Stable rank",
            "ebbtide_stable_rank",
            "How many directions each state uses. All of it in the lowest bucket: every write goes the same way. "
            "Crowding at the rank of the state: they are full.",
        ),
        Panel(
            "Stable rank, quantiles",
            "Near 1: every write goes the same way, the keys are too much alike; try another seed or backbone. Near "
            "the rank of the state: it is full, and each new pair pushes out an old one; raise the rank.",
            quantiles("ebbtide_stable_rank"),
            unit="none",
            no_limit="it depends on the rank of the state.",
        ),
        heatmap(
            "Saturation",
            "ebbtide_saturation_ratio",
            "A state's norm over what its gates and values allow. A band at 1 in mode plain: those states are as full "
            "as they get, and each new pair costs an old one.",
        ),
        Panel(
            "Saturation, quantiles",
            "In mode plain, p50 near 1: the states are as full as endless unrelated writes would make them; raise the "
            "rank, or let a policy decay them.",
            quantiles("ebbtide_saturation_ratio"),
            unit="none",
            thresholds=[(0.9, "orange"), (1, "red")],
        ),
    ],
)

_ERROR = Row(
    "What they still return",
    [
        heatmap(
            "Retrieval error",
            "ebbtide_retrieval_error_ratio",
            "Relative error of what the state returns for remembered pairs; 1 is as bad as an empty state. A band "
            "near 1: the memory holds nothing any more. Raise the rank, write less, or archive and restore where "
            "topics return.",
        ),
        Panel(
            "Retrieval error, quantiles",
            "p50 rising over days: the memory goes stale. Steps that come with alarms and resets are the price of "
            "the policy; if they do not come down again, the policy does harm: compare it with a shadow.",
            quantiles("ebbtide_retrieval_error_ratio"),
            unit="none",
            thresholds=[(1, "red")],
        ),
        Panel(
            "Retrieval error against its own week",
            f"The hourly mean, what it was on average in the last week, and {limits.WEEK_DEVIATIONS:g} standard "
            "deviations above that. Above both that line and the mean by a fifth: the alert fires; look for what "
            "changed in the input, the backbone or the policy.",
            [
                Target(recorded(RETRIEVAL_ERROR), "{{instance}}"),
                Target(recorded(RETRIEVAL_ERROR_WEEK), "{{instance}}, mean of its week"),
                Target(_USUAL_AT_MOST, "{{instance}}, usual at most"),
            ],
            unit="none",
            no_limit="its own week is the limit.",
        ),
        Panel(
            "Retrieval lift, quantiles",
            "How much smaller the error is for what was written than for pairs that never were: memory, and not the "
            "map that all pairs share. Near 0: nothing is remembered, however good the retrieval error looks.",
            quantiles("ebbtide_retrieval_lift_ratio"),
            unit="none",
            base="red",
            thresholds=[(0.02, "green")],
        ),
        heatmap(
            "Write error",
            "ebbtide_write_error_ratio",
            "How wrong the state was about what was about to be written. Two bands: events that it knew and events "
            "that it did not. Weight far above 1: states are sure of what is not so any more.",
        ),
        Panel(
            "Write error, quantiles",
            "Near 1: nothing of it was known. Far above 1: the state predicts something else with confidence, as after "
            "a change of topic; look for alarms and resets.",
            quantiles("ebbtide_write_error_ratio"),
            unit="none",
            thresholds=[(1.25, "orange")],
        ),
    ],
)

_FORGETTING = Row(
    "Forgetting",
    [
        Panel(
            "Retrieval error by age of the pair",
            "The mean error for pairs by how many writes ago they were written: the forgetting curve. Old ages at 1: "
            "nothing of that age is left. Young ages high too: the memory is overloaded, or its gates are wrong.",
            [Target(mean("ebbtide_probe_error_ratio", "age"), "{{age}} writes")],
            unit="none",
            thresholds=[(1, "red")],
        ),
        Panel(
            "Forgetting half-life, in writes",
            "Writes after which half of what is remembered of a pair is left, and what the rule alone would do if "
            "writes were unrelated. Far below it: messages are alike and overwrite each other. Empty: more than half "
            "is left of the oldest probe.",
            [
                Target(gauge("ebbtide_forgetting_half_life_writes", "instance"), "{{instance}}"),
                Target(gauge("ebbtide_null_half_life_writes", "instance"), "{{instance}}, unrelated writes"),
            ],
            unit="short",
            no_limit="the second line is what to compare with.",
        ),
        *(
            heatmap(
                f"Error of pairs {_age(label)} writes old",
                "ebbtide_probe_error_ratio",
                "Where the errors of pairs of this age lie. A band at 1: these pairs are gone; if they should not be, "
                "raise the rank or the retention gate. Empty: no probe is of this age, yet.",
                where=f'age="{label}"',
                width=8,
                height=7,
            )
            for label, _ in AGE_LABELS
        ),
    ],
)

MEMORY_HEALTH = Dashboard(
    uid="ebbtide-memory",
    title="Ebbtide: memory health",
    description="How large and how full the states are, what they still return, and for how long.",
    rows=(_SIZE, _ERROR, _FORGETTING),
    marks=(POLICY_ACTIONS,),
)
