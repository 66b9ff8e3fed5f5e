"""What the run would have been under other policies, and how fast it forgot: from its tape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from dashboards.report_data import Forgetting, PolicyRow
from memory.errors import ConfigurationError
from monitors.forgetting import NullModel, forgetting_curve
from monitors.policies import Policy, load_policy
from monitors.retrieval_error import Retrieval
from stream.engine import Outcome
from stream.replay import recorded_policy, replay
from stream.tape import TapeHead, TapeReader
from stream.tape.format import rows_of

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
    head = TapeReader(tape, partial=partial).head
    probes = list[Retrieval]()
    gates, counts = np.zeros(2), np.zeros(2, np.int64)

    def take(_: str, batch: pa.RecordBatch, outcome: Outcome) -> None:
        rows = rows_of(batch, head)
        written = int(rows.bounds[-1])
        for place, gate in enumerate((rows.beta, rows.lam)):
            if gate is not None and gate.size:
                gates[place] += float(gate.mean(dtype=np.float64)) * written
        counts[:] += [written, len(batch)]
        probes.extend(seen for seen in outcome.probes if len(seen.measured))

    replay(tape, {"own": recorded_policy(head)}, partial=partial, each=each, take=take)
    writes, events = counts.tolist()
    curve = forgetting_curve(probes)
    beta, lam = (float(gate) / writes for gate in gates) if writes else (np.nan, np.nan)
    known = writes > 0 and not head.row_gates and (head.own_lam or head.mode in ("coupled", "plain"))
    left = NullModel.of(head.mode, head.rank, beta, lam if head.own_lam else None).left if known else None
    half = curve.half_life()
    return Forgetting(curve.age, curve.lift, curve.count.tolist(), half, left, writes / events if events else 0.0), beta
