"""What the run would have been under other policies, and how fast it forgot: from its tape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dashboards.report_data import Forgetting, PolicyRow
from memory.errors import ConfigurationError
from monitors.detectors import parse_detector
from monitors.forgetting import NullModel, forgetting_curve
from monitors.policies import Policy, load_policy
from monitors.retrieval_error import Retrieval
from stream.engine import Engine
from stream.operators import ByHand
from stream.replay import recorded_policy, replay
from stream.tape import TapeHead, TapeReader
from stream.tape.format import rows_of
from stream.tape.taped_writer import TapedWriter

STANDARD = ("none", "auto")
"""Policies compared beside the run's own, unless others are named."""


def policies_of(head: TapeHead, names: Sequence[str] | None) -> dict[str, Policy]:
    """Return the policies to compare, the run's own first.

    Parameters
    ----------
    head
        Of the tape.
    names
        Policies' names or YAML files; None for `STANDARD`. One that is the run's own to the last setting is left out.

    Raises
    ------
    ConfigurationError
        One is given twice, or is no policy.
    """
    own, kind = recorded_policy(head), str(head.policy["policy"])
    chosen = {kind: own}
    for name in STANDARD if names is None else names:
        made = load_policy(name)
        if made == own:
            continue
        label = f"{name} (defaults)" if name in chosen and name == kind else name
        if label in chosen:
            raise ConfigurationError(f"--policy {name}: expected each policy once, got it twice")
        chosen[label] = made
    return chosen


def compare(
    tape: Path, policies: Mapping[str, Policy], *, partial: bool = False, each: Callable[[int], None] = lambda _: None
) -> list[PolicyRow]:
    """Replay a tape under several policies; the first is the run's own."""
    done = replay(tape, policies, partial=partial, each=each)
    return [
        PolicyRow(result.policy, place == 0, dict(result.means), dict(result.actions), result.events)
        for place, result in enumerate(done.results)
    ]


def forgetting_of(
    tape: Path, *, partial: bool = False, each: Callable[[int], None] = lambda _: None
) -> tuple[Forgetting, float]:
    """Replay a tape under the run's own policy and look at its probes.

    Returns
    -------
    tuple
        The curve, and the mean of the gate β over all writes; NaN where nothing was written.
    """
    reader = TapeReader(tape, partial=partial)
    head = reader.head
    writer = TapedWriter(head)
    engine = Engine(
        writer,
        detectors={name: parse_detector(detector) for name, detector in head.detectors.items()},
        policy=recorded_policy(head),
        layers=head.watched,
        every=head.every,
    )
    hand, probes = ByHand(engine), list[Retrieval]()
    gates, writes, events = np.zeros(2), 0, 0
    for batch in reader.batches():
        rows = rows_of(batch, head)
        writes += int(rows.bounds[-1])
        gates += [
            float(rows.beta.mean(dtype=np.float64)) * int(rows.bounds[-1]) if rows.beta.size else 0.0,
            float(rows.lam.mean(dtype=np.float64)) * int(rows.bounds[-1])
            if rows.lam is not None and rows.lam.size
            else 0.0,
        ]
        told, ids = writer.load(batch)
        by_hand = batch["by_hand"].to_pylist() if head.version >= 2 else []
        for event, actions in zip(told, by_hand, strict=False):  # as `stream.replay` does
            for action in actions or ():
                hand.repeat(event.stream, action)
        outcome = engine.process(told, ids)
        events += len(batch)
        each(events)
        probes += [seen for seen in outcome.probes if len(seen.measured)]
    curve = forgetting_curve(probes)
    beta, lam = (float(gate) / writes for gate in gates) if writes else (np.nan, np.nan)
    known = writes > 0 and not head.row_gates and (head.own_lam or head.mode in ("coupled", "plain"))
    left = NullModel.of(head.mode, head.rank, beta, lam if head.own_lam else None).left if known else None
    half = curve.half_life()
    return Forgetting(curve.age, curve.lift, curve.count.tolist(), half, left, writes / events if events else 0.0), beta
