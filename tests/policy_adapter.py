"""A policy as the check suite sees it: one value of each lane in, one action and its moves out."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from memory.lane_state import Columns, Slots
from monitors.observations import SIGNALS, Floats, Observations
from monitors.policies import ALARMS, BankObservations, Policy

ALARM_ABOVE = 2.0
"""A value above this raises every alarm there is, but that of a state that is not finite."""


def observe(policy: Policy, slots: Slots, values: Floats) -> Observations:
    """Return what the policy sees of n lanes whose signals are all `values` `[n]`."""
    with np.errstate(invalid="ignore"):
        above = values > ALARM_ABOVE
    signals = dict.fromkeys(SIGNALS, values)
    alarms = {name: above for name in ALARMS if name != "non_finite"}
    if policy.learns_gates:
        shape = policy.model_dump(include={"heads", "rank"})
        pair = np.zeros((len(slots), shape["heads"], shape["rank"]), np.float32)
        with np.errstate(invalid="ignore"):
            pair[:, :, 0], pair[:, :, 1] = np.cos(4 * values)[:, None], np.sin(4 * values)[:, None]
        return BankObservations(slots, signals, alarms, miss=pair, keys=pair[:, :, ::-1].copy())
    if not policy.ways:
        return Observations(slots, signals, alarms)
    # The first filed state predicts low values, the second high ones, and the newcomer neither; what comes after the
    # newcomer and its branch, such as a state that nothing is done to, predicts as the first. Others hold nothing.
    most = policy.model_dump()["most"]
    lost = np.isnan(values)
    errors, likeness = np.full((2, len(slots), policy.ways), np.nan)
    of_first = [(way, ~above) for way in (0, *range(most + 2, policy.ways))]
    for way, fits in [*of_first, (1, above)]:
        errors[:, way] = np.where(lost, np.nan, np.where(fits, 0.2, 1.3))
        likeness[:, way] = np.where(lost, np.nan, np.where(fits, 0.6, 0.0))
    errors[:, most], likeness[:, most] = np.where(lost, np.nan, 1.0), np.where(lost, np.nan, 0.0)
    held = np.zeros(errors.shape, np.bool_)
    held[:, [0, 1, most, *range(most + 2, policy.ways)]] = True
    return BankObservations(slots, signals, alarms, errors, likeness, held)


def act(policy: Policy, lanes: Columns, slots: Slots, values: Floats) -> list[Hashable]:
    """Return each lane's action, as (kind, factor, reason, moves, gain)."""
    actions = policy.decide(lanes, observe(policy, slots, values))
    assert actions.kind.shape == actions.factor.shape == slots.shape
    assert actions.kind.dtype == np.int8
    assert actions.factor.dtype == np.float64
    moves: list[Hashable] = [None] * len(slots)
    if actions.moves is not None:
        one = actions.moves
        parts = (one.restart.tolist(), map(tuple, one.write.tolist()), one.put.tolist(), one.live.tolist())
        moves = list(zip(*parts, strict=True))
    gains: list[Hashable] = (
        [1.0] * len(slots) if actions.gain is None else list(actions.gain.tolist())
    )  # None: 1 for all
    return list(zip(actions.kind.tolist(), actions.factor.tolist(), actions.reason, moves, gains, strict=True))
