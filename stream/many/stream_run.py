"""One stream under policies that can be stacked, from its first event to its last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from monitors.detectors.detector import Detector
from monitors.observations import Flags
from monitors.policies import ActionKind, Policy
from stream.many.lane_monitors import LaneMonitors, needed, shifts
from stream.many.loaded_tape import LoadedStream, LoadedTape
from stream.many.own_states import OwnStates
from stream.many.scores import Marks
from stream.many.shared_states import SharedStates
from stream.many.stacked_policy import stack
from stream.quarantine import LIMIT


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a stream before any policy runs.

    Attributes
    ----------
    stream
        The stream, T events.
    detectors
        Signal → detector.
    shifted
        `[T]` bool: where the detector of the topic-shift score alarms.
    """

    stream: LoadedStream
    detectors: Mapping[str, Detector]
    shifted: Flags

    @classmethod
    def of(cls, stream: LoadedStream, detectors: Mapping[str, Detector]) -> Plan:
        """Work it out."""
        return cls(stream, detectors, shifts(stream, detectors))


@dataclass(frozen=True, slots=True)
class StreamRun:
    """What n policies did on a stream of T events.

    Attributes
    ----------
    marks
        Errors and counts.
    kind, factor
        `[n, T]` int8 and float64: the actions, as in `monitors.policies.Actions`.
    states
        `[n, N, R, R]` float32: the lanes' own states after the last event; NaN for a lane that was put aside
        (`stream.quarantine`), from whose events on nothing is measured, and which is frozen.
    """

    marks: Marks
    kind: npt.NDArray[np.int8]
    factor: npt.NDArray[np.float64]
    states: torch.Tensor


def run_stream(
    tape: LoadedTape,
    plan: Plan,
    policies: Sequence[Policy],
    *,
    probes: bool = False,
    each: Callable[[int], None] = lambda lanes: None,
) -> StreamRun:
    """Run a stream under n policies that are `alike`; a policy's bits do not depend on the others.

    Of many small operations: to be called with one of torch's threads (`memory.threads.torch_threads`).

    Parameters
    ----------
    tape, plan
        The stream, and what is known of it.
    policies
        n of them.
    probes
        Whether to measure `retrieval_error` too.
    each
        Called with n after each event.
    """
    stream, n = plan.stream, len(policies)
    stacked = stack(policies)
    lanes = (SharedStates if stacked.ways else OwnStates)(stacked, tape.head, n)
    signals, heard = needed(stacked, plan.detectors)
    asked = signals | {"retrieval_error"} if probes else signals
    monitors = LaneMonitors(tape, stream, n, asked, heard, plan.detectors, plan.shifted)
    length, watched = len(stream), tape.watched
    write, recall = np.full((2, length, n), np.nan)
    retrieval = np.full((length, n), np.nan) if probes else None
    kind, factor = np.zeros((length, n), np.int8), np.ones((length, n))
    aside = np.zeros(n, np.bool_)
    for event in range(length):
        if stream.back[event] >= 0:
            recall[event] = lanes.ask(stream, int(stream.back[event]))
        errors, norms = lanes.write(stream, event)
        if stream.writes[event] == 0:
            errors[:] = np.nan
        seen = monitors.observe(event, lambda: (lanes.states, lanes.rows), errors, norms)
        actions = lanes.after(seen)
        monitors.acted(actions)
        write[event] = errors[:, watched].mean(axis=1)
        kind[event], factor[event] = actions.kind, actions.factor
        if retrieval is not None:
            retrieval[event] = seen.signals["retrieval_error"]
        for numbers in (write, recall) if retrieval is None else (write, recall, retrieval):
            numbers[event, aside] = np.nan
        size = np.sqrt((norms[:, watched].astype(np.float64) ** 2).sum(axis=1))
        sick = np.flatnonzero(~(size < LIMIT))
        if len(sick):
            own = torch.linalg.vector_norm(lanes.states[torch.from_numpy(lanes.rows[sick])].double(), dim=(1, 2, 3))
            aside[sick] |= ~(own.numpy() < LIMIT)  # else the policy has dealt with it
        kind[event, aside], factor[event, aside] = ActionKind.FREEZE, 1.0
        each(n)
    by_policy = [np.ascontiguousarray(numbers.T) for numbers in (write, recall)]
    kinds = np.stack([(kind == number).sum(axis=0) for number in range(len(ActionKind))], axis=1)
    marks = Marks(by_policy[0], by_policy[1], None if retrieval is None else np.ascontiguousarray(retrieval.T), kinds)
    states = lanes.states[torch.from_numpy(lanes.rows)]
    states[torch.from_numpy(aside)] = torch.nan
    return StreamRun(marks, np.ascontiguousarray(kind.T), np.ascontiguousarray(factor.T), states)
