"""Policies: observations and alarms of many lanes in, one action a lane out. A policy is data: see `load_policy`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from memory.errors import ConfigurationError
from monitors.detectors.slips import likely_slip, read_settings
from monitors.policies.adaptive_gates import AdaptiveGatesPolicy
from monitors.policies.archive import ArchivePolicy
from monitors.policies.auto import AutoPolicy
from monitors.policies.bank_observations import BankObservations
from monitors.policies.decay import DecayPolicy
from monitors.policies.decay_on_shift import DecayOnShiftPolicy
from monitors.policies.freeze_on_anomaly import FreezeOnAnomalyPolicy
from monitors.policies.guard import ActionGuard
from monitors.policies.none import NoPolicy
from monitors.policies.norm_cap import NormCapPolicy
from monitors.policies.on_alarm import ALARMS, OnAlarm
from monitors.policies.policy import ActionKind, Actions, Moves, Policy
from monitors.policies.reset_on_shift import ResetOnShiftPolicy
from monitors.policies.scheduled_reset import ScheduledResetPolicy
from monitors.policies.topic_belief import TopicBelief
from monitors.policies.yaml_file import parse_yaml, read_yaml

__all__ = [
    "ALARMS",
    "POLICIES",
    "ActionGuard",
    "ActionKind",
    "Actions",
    "AdaptiveGatesPolicy",
    "AnyPolicy",
    "ArchivePolicy",
    "AutoPolicy",
    "BankObservations",
    "DecayOnShiftPolicy",
    "DecayPolicy",
    "FreezeOnAnomalyPolicy",
    "Moves",
    "NoPolicy",
    "NormCapPolicy",
    "OnAlarm",
    "Policy",
    "ResetOnShiftPolicy",
    "ScheduledResetPolicy",
    "TopicBelief",
    "load_policy",
    "parse_yaml",
    "policy_to_yaml",
    "read_yaml",
]

AnyPolicy = Annotated[
    AdaptiveGatesPolicy
    | ArchivePolicy
    | AutoPolicy
    | DecayOnShiftPolicy
    | DecayPolicy
    | FreezeOnAnomalyPolicy
    | NoPolicy
    | NormCapPolicy
    | ResetOnShiftPolicy
    | ScheduledResetPolicy,
    Field(discriminator="policy"),
]
"""A field of a pydantic model that holds some policy's settings, told apart by `policy`."""

POLICIES: dict[str, type[Policy]] = {
    "adaptive_gates": AdaptiveGatesPolicy,
    "archive": ArchivePolicy,
    "auto": AutoPolicy,
    "decay": DecayPolicy,
    "decay_on_shift": DecayOnShiftPolicy,
    "freeze_on_anomaly": FreezeOnAnomalyPolicy,
    "none": NoPolicy,
    "norm_cap": NormCapPolicy,
    "reset_on_shift": ResetOnShiftPolicy,
    "scheduled_reset": ScheduledResetPolicy,
}
"""The policies by the name that settings and the command line use."""


def load_policy(name_or_path: str) -> Policy:
    """Return the policy of that name with its defaults, or the one that a YAML file describes.

    Parameters
    ----------
    name_or_path
        ``"reset_on_shift"``, or the path of a file such as::

            policy: reset_on_shift
            on: [topic_shift, retrieval_error]
            cool_down: 12

    Raises
    ------
    ConfigurationError
        Neither a policy nor a file; or the file has an unknown key, or a value out of range.

    Examples
    --------
    >>> load_policy("decay").factor
    0.99
    >>> load_policy("reset-on-shift")
    Traceback (most recent call last):
    ...
    memory.errors.ConfigurationError: expected a policy (adaptive_gates, archive, auto, decay, decay_on_shift,
    freeze_on_anomaly, none, norm_cap, reset_on_shift, scheduled_reset) or a YAML file, got 'reset-on-shift';
    did you mean 'reset_on_shift'?
    """
    if name_or_path in POLICIES:
        return POLICIES[name_or_path]()
    if not os.path.exists(name_or_path):  # unlike `Path.exists`, False for what cannot be a path at all
        raise ConfigurationError(
            f"expected a policy ({', '.join(POLICIES)}) or a YAML file, got {name_or_path[:200]!r}"
            f"{likely_slip(name_or_path, POLICIES) or '; there is no such file'}"
        )
    return read_settings(read_yaml(Path(name_or_path)), POLICIES, "policy", "a policy", name_or_path)


def policy_to_yaml(policy: Policy) -> str:
    """Return the file that `load_policy` reads this policy from: every setting, defaults too.

    Examples
    --------
    >>> print(policy_to_yaml(DecayPolicy()), end="")
    policy: decay
    factor: 0.99
    """
    settings = policy.model_dump(mode="json")
    return yaml.safe_dump({"policy": settings.pop("policy")} | settings, sort_keys=False, allow_unicode=True)
