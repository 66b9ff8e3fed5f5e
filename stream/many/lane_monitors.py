"""What is measured of lanes so that their policies decide as they would in an engine, and no more than that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memory.lane_state import Slots
from memory.reach import largest_by_event, write_reach
from monitors.detectors.detector import Detector
from monitors.observations import SIGNALS, Flags, Floats, Observations
from monitors.policies import ActionKind, Actions, Policy
from monitors.retrieval_error import RetrievalErrorMonitor
from monitors.state_norm import StateNormMonitor
from stream.engine import ALARM_NAMES
from stream.many.loaded_tape import LoadedStream, LoadedTape
from stream.quarantine import LIMIT

OF_THE_TAPE = "topic_shift_score"
"""The signal that no policy changes: its alarms are the same for all, and found once."""

PROBED = frozenset({"retrieval_error", "retrieval_lift"})
OF_SINGULAR_VALUES = frozenset({"stable_rank", "saturation"})


def needed(policy: Policy, detectors: Mapping[str, Detector]) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the signals that must be measured for a policy, and those of them whose detectors must run.

    Examples
    --------
    >>> from monitors.detectors import parse_detector
    >>> from monitors.policies import DecayPolicy, ResetOnShiftPolicy
    >>> watching = {name: parse_detector("shewhart") for name in ("topic_shift_score", "retrieval_error")}
    >>> needed(DecayPolicy(), watching)
    (frozenset(), ())
    >>> needed(ResetOnShiftPolicy(on=("retrieval_error", "saturation")), watching)
    (frozenset({'retrieval_error'}), ('retrieval_error',))
    """
    looks_at = frozenset(SIGNALS) if policy.looks_at is None else policy.looks_at
    heard = tuple(
        signal for signal in detectors if policy.hears is None or ALARM_NAMES.get(signal, signal) in policy.hears
    )
    sick = {"state_norm"} if policy.hears is None or "non_finite" in policy.hears else set()
    return looks_at | frozenset(heard) | sick, heard


def shifts(stream: LoadedStream, detectors: Mapping[str, Detector]) -> Flags:
    """Return on which of the stream's events the detector of the topic-shift score alarms, `[T]` bool."""
    alarms = np.zeros(len(stream), np.bool_)
    if OF_THE_TAPE in detectors:
        detector, slot = detectors[OF_THE_TAPE], np.array([0])
        lanes = detector.new_lanes()
        lanes.resize(1)
        for event in range(len(stream)):
            alarms[event] = detector.update(lanes, slot, stream.topic_shift_score[event : event + 1])[0]
    return alarms


class LaneMonitors:
    """The monitors and detectors of n lanes on one stream: those of the engine that somebody looks at.

    Parameters
    ----------
    tape, stream
        What is replayed.
    lanes
        n.
    signals, heard
        As `needed` says.
    detectors
        Signal → detector.
    shifted
        `[T]` bool: what `shifts` gives.
    """

    def __init__(
        self,
        tape: LoadedTape,
        stream: LoadedStream,
        lanes: int,
        signals: frozenset[str],
        heard: tuple[str, ...],
        detectors: Mapping[str, Detector],
        shifted: Flags,
    ):
        head, watched = tape.head, tape.watched
        self._slots: Slots = np.arange(lanes)
        self._heads = None if head.watched is None else watched
        self._stream, self._signals, self._shifted = stream, signals, shifted
        self._detectors = {signal: detectors[signal] for signal in heard if signal != OF_THE_TAPE}
        self._hears_shifts = OF_THE_TAPE in heard
        self._lanes = {signal: detector.new_lanes() for signal, detector in self._detectors.items()}
        self._norm: StateNormMonitor | None = None
        self._probes: RetrievalErrorMonitor | None = None
        if signals & OF_SINGULAR_VALUES:
            self._norm = StateNormMonitor(len(watched), head.rank, every=head.every, row_gates=head.row_gates)
            self._reach = _reach_of(stream, head.mode, head.rank)[:, watched]
        if signals & PROBED:
            self._probes = RetrievalErrorMonitor(len(watched), head.rank, every=head.every)
            self._pairs = tuple(part.numpy()[:, watched] for part in (stream.k, stream.v))
            self._pair_rows = stream.pair_rows()
        monitors = [monitor.lanes for monitor in (self._norm, self._probes) if monitor is not None]
        for part in (*self._lanes.values(), *monitors):
            part.resize(lanes)

    def observe(
        self, event: int, states: Callable[[], tuple[Tensor, Slots]], errors: Floats, norms: npt.NDArray[np.float32]
    ) -> Observations:
        """Measure the lanes after an event was written.

        Parameters
        ----------
        event
            Its number on the tape.
        states
            Gives states `[S, N, R, R]` and where each lane's own lies, `[n]`; called only where they are looked at.
        errors, norms
            `[n, N]`: the write errors, and the norms after the write.
        """
        if self._heads is not None:
            errors, norms = errors[:, self._heads], norms[:, self._heads]
        signals = self._measure(event, states, errors.mean(axis=1), norms) if self._signals else {}
        alarms = {}
        if self._hears_shifts:
            alarms[ALARM_NAMES[OF_THE_TAPE]] = np.full(len(self._slots), self._shifted[event])
        for signal, detector in self._detectors.items():
            alarms[ALARM_NAMES.get(signal, signal)] = detector.update(self._lanes[signal], self._slots, signals[signal])
        if "state_norm" in signals:
            alarms["non_finite"] = ~(signals["state_norm"] < LIMIT)
        return Observations(self._slots, signals, alarms)

    def _measure(
        self,
        event: int,
        states: Callable[[], tuple[Tensor, Slots]],
        error: Floats,
        norms: npt.NDArray[np.float32],
    ) -> dict[str, Floats]:
        stream, slots = self._stream, self._slots
        size = norms.astype(np.float64)
        size[np.isinf(size)] = np.nan
        signals: dict[str, Floats] = {
            "write_error": error,
            "state_norm": np.sqrt((size**2).sum(axis=1)),
            "topic_shift_score": np.full(len(slots), stream.topic_shift_score[event]),
        }
        if self._norm is None and self._probes is None:
            return signals
        own, rows = states()
        if self._heads is not None:
            own, rows = own[torch.from_numpy(rows)][:, self._heads], slots
        sick = cast("Flags", ~np.isfinite(size).all(axis=1))
        if self._norm is not None:
            self._norm.allow(slots, np.broadcast_to(self._reach[event], (len(slots), *self._reach.shape[1:])))
            seen = self._norm.look(own, slots, norms, rows=rows)
            signals["stable_rank"], signals["saturation"] = seen.stable_rank, seen.most_saturated
        if self._probes is not None:
            if stream.writes[event]:
                row = self._pair_rows[event]
                key, value = (np.broadcast_to(part[row], (len(slots), *part.shape[1:])) for part in self._pairs)
                self._probes.hold_out(slots, error)
                self._probes.remember(slots, key, value)  # ages in writes are no signal
            found = self._probes.measure(own, slots, sick=sick, rows=rows)
            signals["retrieval_error"], signals["retrieval_lift"] = found.error, found.lift
        return signals

    def acted(self, actions: Actions) -> None:
        """Have the monitors look anew at lanes whose states were changed under them, as the engine does."""
        kinds, slots = actions.kind, self._slots
        reset, restored = kinds == ActionKind.RESET, kinds == ActionKind.RESTORE
        if self._norm is not None:
            self._norm.start_over(slots[reset | restored])
        if self._probes is not None:
            self._probes.expire(slots[(kinds == ActionKind.DECAY) | restored])
            self._probes.expire(slots[reset], reset=True)


def _reach_of(stream: LoadedStream, mode: str, rank: int) -> npt.NDArray[np.float32]:
    lam = None if stream.lam is None else stream.lam.numpy()
    reach = write_reach(mode, rank, stream.v.numpy(), stream.beta.numpy(), lam)
    return largest_by_event(reach, stream.bounds)
