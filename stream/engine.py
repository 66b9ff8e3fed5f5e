"""One micro-batch through the memory: encode and write, measure, decide, act.

Nothing here reads input, writes output or keeps time except to say where it went: the engine is a function of the
lanes and of the events, and gives the same bits for the same events however they are cut into batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memory.backbones.backbone import Ids
from memory.lane_state import Column, Columns, LaneState, Slots
from memory.stages import Stages
from memory.state_pool import LaneRecord, StatePool, pack, unpack
from memory.threads import torch_threads
from memory.writers import Batch, Rows, Segments, Writer, Written
from monitors.detectors.detector import Detector
from monitors.observations import SIGNALS, Flags, Floats, Observations
from monitors.policies.policy import ActionKind, Actions, Policy
from monitors.policy_runner import Before, PolicyRunner
from monitors.retrieval_error import Retrieval, RetrievalErrorMonitor
from monitors.state_norm import StateNormMonitor
from monitors.topic_monitors import topic_monitor_for
from stream.arrivals import Arrivals
from stream.event import Event
from stream.quarantine import LIMIT, REASON, Quarantine
from stream.rounds import rounds

ALARM_NAMES = {"topic_shift_score": "topic_shift"}
"""Alarms are called like their signal, but for this one: the alarm says that a new topic begins."""


@dataclass(slots=True)
class Outcome:
    """What a micro-batch of n events came to, in input order.

    Attributes
    ----------
    events
        The events.
    seq, tokens
        `[n]` int64: each event's number in its stream, from 0, and its tokens.
    signals
        Name → `[n]` float64; NaN where a signal could not be measured.
    alarms
        Name → `[n]` bool.
    actions
        One for each event.
    nonfinite
        Non-finite numbers met in hidden states, and kept out of the memory; and in states after a write.
    seconds
        Stage → seconds spent on this batch.
    rows
        Everything that the events wrote, where the writer keeps it; else None.
    probes
        What the probes gave, one for each round.
    would
        What a policy that is only tried would have done; None where none is.
    put_aside
        Lanes that were put into quarantine.
    by_hand
        Index of an event → what operators did to its stream right before it, as JSON.
    """

    events: Sequence[Event]
    seq: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    signals: dict[str, Floats]
    alarms: dict[str, Flags]
    actions: Actions
    nonfinite: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    rows: Rows | None = None
    probes: list[Retrieval] = field(default_factory=list)
    would: Actions | None = None
    put_aside: int = 0
    by_hand: dict[int, list[str]] = field(default_factory=dict)

    def take(self, index: Slots, seq: npt.NDArray[np.int64], observed: Observations, actions: Actions) -> None:
        """Put one round's numbers in the places `index` of its events."""
        n = len(self.events)
        self.seq[index] = seq
        for name, values in observed.signals.items():
            self.signals.setdefault(name, np.full(n, np.nan))[index] = values
        for name, raised in observed.alarms.items():
            self.alarms.setdefault(name, np.zeros(n, np.bool_))[index] = raised
        self.actions.kind[index] = actions.kind
        self.actions.factor[index] = actions.factor
        for row in np.flatnonzero(actions.kind).tolist():
            self.actions.reason[int(index[row])] = actions.reason[row]


class Engine:
    """The memory, its monitors and its policy, wired for micro-batches.

    Parameters
    ----------
    writer
        What turns events into writes on states.
    detectors
        Signal name → detector.
    policy
        Decides on each lane after each event.
    layers
        Those of the memory's layers that the signals come from, in order; None: all.
    every
        Probes and σ₁ are looked at on one of a lane's events in so many (`monitors.turns`).
    window
        Ids that are remembered of each stream, to tell events that come again (`Arrivals`); None: `sift` is not used.
    device, capacity, max_bytes, fetch
        For the state pool.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        detectors: Mapping[str, Detector],
        policy: Policy,
        layers: Sequence[int] | None = None,
        every: int = 1,
        window: int | None = None,
        device: torch.device | str = "cpu",
        capacity: int = 1024,
        max_bytes: int = 4 << 30,
        fetch: Callable[[Sequence[str]], Mapping[str, LaneRecord]] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.writer, self.backbone = writer, writer.backbone
        self.policy = policy.fitted(writer.layers * writer.heads, writer.rank)
        self.detectors = dict(detectors)
        self.layers, self.every = None if layers is None else list(layers), every
        watched = range(writer.layers) if layers is None else layers
        self._heads = [layer * writer.heads + head for layer in watched for head in range(writer.heads)]
        heads, rank = len(self._heads), writer.rank
        self.norm = StateNormMonitor(heads, rank, every=every, row_gates=writer.row_gates)
        self.retrieval = RetrievalErrorMonitor(heads, rank, every=every)
        self.topic = None if writer.knows_topic_shift else topic_monitor_for(self.backbone)
        writer.wants_edges = self.topic is not None and self.topic.wants_edges
        self.detector_lanes = {signal: detector.new_lanes() for signal, detector in self.detectors.items()}
        self.runner = PolicyRunner(
            self.policy,
            heads=writer.layers * writer.heads,
            rank=rank,
            dim=self.backbone.dim,
            mode=writer.mode,
            mean=self.backbone.mean,
            device=device,
        )
        self.counts = Columns({"events": Column("int64"), "tokens": Column("int64")})
        self.last = Columns(
            {
                "signals": Column("float64", (len(SIGNALS),), fill=np.nan),  # in the order of SIGNALS
                "action": Column("int8"),
                "alarm_seq": Column("int64", fill=-1),
            }
        )
        self.quarantine = Quarantine()
        self.arrivals = None if window is None else Arrivals(window)
        self._clock = clock
        self.pool = StatePool(
            writer.layers,
            writer.heads,
            rank,
            beside=self._beside(),
            device=device,
            capacity=capacity,
            max_bytes=max_bytes,
            fetch=fetch,
        )

    def _beside(self) -> dict[str, LaneState]:
        """Name what is kept for each lane; other settings or another layout make another name, and a fresh start."""
        parts: list[tuple[str, str, LaneState]] = [
            ("counts", "", self.counts),
            ("last", "", self.last),
            ("quarantine", "", self.quarantine.lanes),
            ("norm", "", self.norm.lanes),
            ("probes", "", self.retrieval.lanes),
            *((name, self.policy.model_dump_json(), lanes) for name, lanes in self.runner.beside.items()),
        ]
        if self.arrivals is not None:
            parts.append(("arrivals", "", self.arrivals.lanes))
        if self.topic is not None:
            parts.append(("topic", self.topic.settings, self.topic.lanes))
        if self.writer.lanes is not None:
            parts.append(("writer", "", self.writer.lanes))
        for signal, detector in self.detectors.items():
            parts.append((f"detector.{signal}", detector.model_dump_json(), self.detector_lanes[signal]))
        return {f"{name}/{_digest(settings + lanes.layout)}": lanes for name, settings, lanes in parts}

    def sift(self, events: Sequence[Event]) -> tuple[Slots, Flags, Flags]:
        """Look at n events before they are processed, in order, and once each.

        Returns
        -------
        slots
            `[n]` int64: their lanes.
        repeated
            `[n]` bool: those whose id was among the last ones of their stream.
        late
            `[n]` bool: those of the others whose time is earlier than that of the event before them in their stream.
        """
        if self.arrivals is None:
            raise ValueError("expected an engine that was given a window, got one without")
        slots = self._lanes_of(events)
        return slots, *self.arrivals.take(slots, events)

    def _lanes_of(self, events: Sequence[Event]) -> Slots:
        names = list(dict.fromkeys(event.stream for event in events))
        by_name = dict(zip(names, self.pool.acquire(names).tolist(), strict=True))
        return np.fromiter((by_name[event.stream] for event in events), np.int64, len(events))

    def process(self, events: Sequence[Event], ids: Sequence[Ids], slots: Slots | None = None) -> Outcome:
        """Take in n events, in order.

        Parameters
        ----------
        events
            The events.
        ids
            Their tokens, `[length]` int64 each.
        slots
            `[n]` int64: their lanes, as `sift` gave them; None: not known yet.
        """
        # Many small operations: waking torch's threads for each would cost more than they do.
        with torch_threads(1):
            return self._process(events, ids, slots)

    def _process(self, events: Sequence[Event], ids: Sequence[Ids], slots: Slots | None) -> Outcome:
        n, stages = len(events), Stages(self._clock)
        lengths = np.fromiter((len(row) for row in ids), np.int64, n)
        outcome = Outcome(events, np.zeros(n, np.int64), lengths, {}, {}, Actions.keep(n), seconds=stages.seconds)
        if not n:
            outcome.signals = {name: np.empty(0) for name in SIGNALS}
            return outcome
        batch = self.writer.begin(ids, stages)
        if slots is None:
            with stages("pool"):
                slots = self._lanes_of(events)
        for index in rounds(slots):
            self._round(index, slots[index], [ids[event] for event in index], batch, outcome, stages)
        outcome.nonfinite += batch.nonfinite
        if self.writer.keeps_rows:
            with stages("tape"):
                outcome.rows = batch.rows()
        return outcome

    def _round(
        self, index: Slots, slots: Slots, ids: Sequence[Ids], batch: Batch, outcome: Outcome, stages: Stages
    ) -> None:
        """Advance lanes by one event each: those at `index` `[n]`, of tokens `ids`, on the lanes at `slots` `[n]`."""
        held = self.quarantine.holds(slots)
        if held.any():
            self._pass_over(index[held], slots[held], outcome)
            ids = [each for each, out in zip(ids, held.tolist(), strict=True) if not out]
            index, slots = index[~held], slots[~held]
            if not len(index):
                return
        names = [outcome.events[event].stream for event in index.tolist()]
        norms = self.last["signals"][slots][:, SIGNALS.index("state_norm")]
        copies = self.quarantine.copy(self.pool, names, norms, batch, index)
        states, rows = self.pool.states, slots
        turn = self.counts["events"][slots]
        written, segments, before = self._advance(slots, index, turn, batch, stages)
        with stages("signals"):
            if self.layers is not None:
                states, rows = states[torch.from_numpy(slots).to(states.device)][:, self.layers], np.arange(len(slots))
                written = written.heads(self._heads)
            signals, probes = self._measure(states.flatten(1, 2), slots, rows, written, turn)
            signals["topic_shift_score"] = self._topic_shift(slots, ids, written)
            outcome.probes.append(probes)
        observations = Observations(slots, signals)
        with stages("detectors"):
            for signal, detector in self.detectors.items():
                alarms = detector.update(self.detector_lanes[signal], slots, signals[signal])
                observations.alarms[ALARM_NAMES.get(signal, signal)] = alarms
            sick = ~(signals["state_norm"] < LIMIT)
            observations.alarms["non_finite"] = sick
            outcome.nonfinite += int(sick.sum())
        with stages("policy"):
            actions = self.runner.after(self.pool.states.flatten(1, 2), slots, segments, before, observations)
            self._acted(slots, actions)
        if sick.any():
            aside = self.quarantine.put_aside(self.pool, names, slots, turn, sick, copies)
            actions.kind[aside], actions.factor[aside] = ActionKind.FREEZE, 1.0
            for row in np.flatnonzero(aside).tolist():
                actions.reason[row] = REASON
            outcome.put_aside += int(aside.sum())
        seq = self._number(slots, outcome.tokens[index])
        self._show(slots, seq, observations, actions)
        outcome.take(index, seq, observations, actions)

    def _pass_over(self, index: Slots, slots: Slots, outcome: Outcome) -> None:
        """Count the events of lanes that are put aside; nothing is written or measured."""
        nothing = {name: np.full(len(slots), np.nan) for name in SIGNALS}
        observations = Observations(slots, nothing, {"non_finite": np.zeros(len(slots), np.bool_)})
        actions = Actions.keep(len(slots))
        actions.kind[:] = ActionKind.FREEZE
        actions.reason = [REASON] * len(slots)
        seq = self._number(slots, outcome.tokens[index])
        outcome.take(index, seq, observations, actions)

    def _advance(
        self, slots: Slots, index: Slots, turn: npt.NDArray[np.int64], batch: Batch, stages: Stages
    ) -> tuple[Written, Segments, Before]:
        """Write the events; return also what the policy asked of the states before."""
        pool, flat = self.pool.states, self.pool.states.flatten(1, 2)
        if batch.known_before:
            segments = batch.segments(index)
            with stages("policy"):
                before = self.runner.before(flat, slots, segments, batch.embeddings(index))
            return batch.advance(pool, slots, index, turn), segments, before
        at = torch.from_numpy(slots).to(pool.device)
        old = flat[at]
        written = batch.advance(pool, slots, index, turn)
        segments = batch.segments(index)
        new = flat[at]
        flat[at] = old  # what is written is known only now: ask the states as they were
        with stages("policy"):
            before = self.runner.before(flat, slots, segments, written.embedding)
        flat[at] = new
        return written, segments, before

    def _measure(
        self, states: Tensor, slots: Slots, rows: Slots, written: Written, turn: npt.NDArray[np.int64]
    ) -> tuple[dict[str, Floats], Retrieval]:
        """Measure lanes whose states are at `rows` of `states` `[S, N, R, R]`, N the heads that are watched."""
        wrote = written.count > 0
        at, count, error = slots[wrote], written.count[wrote], written.write_error.mean(axis=1)
        if written.reach is not None:
            self.norm.allow(slots, written.reach)
        norms = self.norm.look(states, slots, written.head_norms, rows=rows)
        # Before it was written, an event's pair was one that the state had never seen: the control.
        self.retrieval.hold_out(at, error[wrote])
        self.retrieval.remember(at, written.keys[wrote], written.values[wrote], count, count - 1 - turn[wrote] % count)
        probes = self.retrieval.measure(states, slots, sick=norms.sick, rows=rows)
        signals = {
            "state_norm": norms.state_norm,
            "stable_rank": norms.stable_rank,
            "saturation": norms.most_saturated,
            "write_error": error,
            "retrieval_error": probes.error,
            "retrieval_lift": probes.lift,
        }
        return signals, probes

    def _topic_shift(self, slots: Slots, ids: Sequence[Ids], written: Written) -> Floats:
        if self.topic is None:
            assert written.topic_shift_score is not None
            return written.topic_shift_score
        offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens in ids])])
        return self.topic.measure(slots, written.embedding, np.concatenate(ids), offsets, written.edges)

    def _acted(self, slots: Slots, actions: Actions) -> None:
        """Have the monitors look anew at lanes whose states were changed under them."""
        kinds = actions.kind
        reset, restored = slots[kinds == ActionKind.RESET], slots[kinds == ActionKind.RESTORE]
        self.norm.start_over(reset)  # of another state the old one's direction says nothing
        self.norm.start_over(restored)
        self.retrieval.expire(slots[(kinds == ActionKind.DECAY) | (kinds == ActionKind.RESTORE)])
        self.retrieval.expire(reset, reset=True)

    def heads_of(self, slot: int) -> list[dict[str, float]]:
        """Return what is known of each head that is watched, as of its lane's last event or look."""
        state = self.pool.states[slot].flatten(0, 1)
        norms = torch.linalg.vector_norm(state, dim=(1, 2)).cpu().numpy().astype(np.float64)[self._heads]
        lanes, heads = self.norm.lanes, self.writer.heads
        reach = np.sqrt(lanes["reach"][slot].sum(axis=1, dtype=np.float64))
        return [
            {
                "layer": head // heads,
                "head": head % heads,
                "state_norm": float(norms[row]),
                "largest_singular_value": float(lanes["sigma"][slot][row]),
                "stable_rank": float(lanes["rank"][slot][row]),
                "saturation": float(norms[row] / reach[row]) if reach[row] > 0 else math.nan,
            }
            for row, head in enumerate(self._heads)
        ]

    def reset(self, stream: str) -> None:
        """Make a stream's state zero, by hand; what its monitors remember of it stays, and shows what was lost."""
        slots = self.release(stream)
        self.pool.states[torch.from_numpy(slots).to(self.pool.device)] = 0
        self.norm.start_over(slots)
        self.retrieval.expire(slots, reset=True)
        if self.writer.lanes is not None:
            self.writer.lanes.clear(slots)
        if self.runner.filed is not None:  # filed states are of the same history
            for lanes in self.runner.beside.values():
                lanes.clear(slots)

    def release(self, stream: str) -> Slots:
        """Let a stream that was put aside go on, by hand; return its slot, `[1]` int64."""
        slots = self._touch(stream)
        self.quarantine.lanes.clear(slots)
        return slots

    def decay(self, stream: str, factor: float) -> None:
        """Multiply a stream's state, by hand."""
        slots = self.release(stream)
        self.pool.states[int(slots[0])] *= factor
        self.retrieval.expire(slots)

    def take_up(self, stream: str, topic: int) -> None:
        """Make the state that the policy filed under a number a stream's own, by hand.

        Raises
        ------
        ValueError
            Nothing is filed under it.
        """
        slots = self._touch(stream)
        self.runner.take_up(self.pool.states.flatten(1, 2), int(slots[0]), topic)
        self.release(stream)
        self.norm.start_over(slots)
        self.retrieval.expire(slots)

    def held(self, stream: str) -> bytes:
        """Return a stream's state and what its policy keeps of it, as `put_back` takes them."""
        slots = self._touch(stream)
        parts = {name: lanes.dump(slots)[0] for name, lanes in self._of_policy().items()}
        parts["state"] = self.pool.states[int(slots[0])].cpu().numpy().tobytes()
        return pack(parts)

    def put_back(self, stream: str, held: bytes) -> None:
        """Make a stream's state what it was, by hand; what the policy keeps too, if it is the same policy."""
        slots, parts = self.release(stream), unpack(held)
        slot = int(slots[0])
        state = np.frombuffer(parts["state"], np.float32).reshape(self.pool.shape)
        self.pool.states[slot] = torch.from_numpy(state.copy())
        for name, lanes in self._of_policy().items():
            lanes.clear(slots)
            if name in parts:
                lanes.load(slot, parts[name])
        self.norm.start_over(slots)
        self.retrieval.expire(slots)

    def events_of(self, stream: str) -> int:
        """Return how many events a stream has had."""
        return int(self.counts["events"][self._touch(stream)[0]])

    def _touch(self, stream: str) -> Slots:
        return self.pool.acquire([stream])

    def _of_policy(self) -> dict[str, LaneState]:
        return {name: lanes for name, lanes in self.pool.beside.items() if name.split("/")[0] in self.runner.beside}

    def _number(self, slots: Slots, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the events' numbers in their streams, and count them."""
        events = cast("npt.NDArray[np.int64]", self.counts["events"])
        seq = events[slots]
        events[slots] += 1
        self.counts["tokens"][slots] += tokens
        return seq

    def _show(self, slots: Slots, seq: npt.NDArray[np.int64], observed: Observations, actions: Actions) -> None:
        """Keep each lane's last numbers, for whoever looks at one stream."""
        self.last["signals"][slots] = np.stack([observed.signals[name] for name in SIGNALS], axis=1)
        self.last["action"][slots] = actions.kind
        alarmed = np.logical_or.reduce(list(observed.alarms.values()))
        self.last["alarm_seq"][slots[alarmed]] = seq[alarmed]


def _digest(text: str) -> str:
    return f"{crc32(text.encode()):08x}"
