"""Puts a report together."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from dashboards.report_data import Forgetting, PolicyRow, Report, Returns
from stream.report.over_time import found_shifts, one_streams, over_time
from stream.report.read_run import Run, read_run
from stream.report.read_truth import Truth, read_truth
from stream.report.replays import compare, forgetting_of, policies_of
from stream.report.sample_tape import sample_tape
from stream.report.tables import from_state, versions
from stream.report.topics_return import estimated, from_truth
from stream.tape import TapeHead

SAMPLE = 10_000
"""Events replayed at most, unless told otherwise: some seconds for each policy."""


def make_report(
    path: Path,
    *,
    truth: Path | None = None,
    state: str | None = None,
    policies: Sequence[str] | None = None,
    sample: int = SAMPLE,
    partial: bool = False,
    each: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> Report:
    """Read a run, replay it, and return everything that its report shows.

    Parameters
    ----------
    path
        A tape's folder, or a file of records; the latter has no embeddings, keys and values, so that nothing can be
        replayed.
    truth
        What ``ebbtide generate --truth`` wrote, or None.
    state
        The run's state store, whose settings and counters are shown, or None.
    policies
        Compared with the run's own; None for `stream.report.replays.STANDARD`.
    sample
        Events replayed at most.
    partial
        Whether a tape that ends in mid-batch is read up to there.
    each
        Called with what is being done, how many events of it are done, and of how many.

    Raises
    ------
    ConfigurationError
        Something given is not there, or not what it should be.
    EbbtideError
        The tape is damaged.
    """
    run = read_run(path, partial=partial)
    told = None if truth is None else read_truth(truth, run)
    stored = {} if state is None else from_state(state)  # before minutes of replaying: the address may be wrong
    notes = _notes(run, told)
    curve, beta, rows, words, returns = None, None, [], "", _returns(run, told, None)
    if run.head is not None:
        chosen = policies_of(run.head, policies)
        with tempfile.TemporaryDirectory(prefix="ebbtide-report-") as scratch:
            taken = sample_tape(run, sample, Path(scratch), partial=partial)
            words = taken.words
            curve, beta = forgetting_of(
                taken.folder, partial=partial, each=lambda done: each("forgetting", done, taken.events)
            )
            rows = compare(
                taken.folder, chosen, partial=partial, each=lambda done: each("policies", done, taken.events)
            )
            returns = _returns(run, told, taken.folder, partial=partial)
    return _report(run, told, curve, beta, rows, words, returns, stored, notes)


def _returns(run: Run, told: Truth | None, tape: Path | None, *, partial: bool = False) -> Returns:
    if told is not None:
        return from_truth(told, run)
    if tape is not None:
        return estimated(tape, run, partial=partial)
    return Returns(np.nan, 0, np.nan, known=False, why_not="records have no embeddings: make the report from a tape")


def _report(
    run: Run,
    told: Truth | None,
    curve: Forgetting | None,
    beta: float | None,
    rows: Sequence[PolicyRow],
    words: str,
    returns: Returns,
    stored: Mapping[str, Mapping[str, str]],
    notes: Sequence[str],
) -> Report:
    head = run.head
    actions = {kind: len(places) for kind, places in run.actions.items()}
    late = 2 * len(run) // 3
    return Report(
        name=run.path.name,
        kind="records" if head is None else "tape",
        events=len(run),
        tokens=int(run.tokens.sum()),
        streams=len(run.streams),
        first=run.first,
        last=run.last,
        means=_means(run, 0),
        lately=_means(run, late),
        alarms={name: len(places) for name, places in sorted(run.alarms.items())},
        actions={"keep": len(run) - sum(actions.values()), **actions},
        by_hand={kind: len(places) for kind, places in sorted(run.by_hand.items())},
        over_time=over_time(run, told),
        lines=one_streams(run, told),
        returns=returns,
        found=None if told is None else found_shifts(run, told),
        shifts=None if told is None else int(told.boundary.sum()),
        rank=None if head is None else head.rank,
        mode=None if head is None else head.mode,
        policy=None if head is None else str(head.policy.get("policy")),
        beta=None if beta is None or np.isnan(beta) else beta,
        forgetting=curve,
        policies=rows,
        replayed=words,
        tables={**({} if head is None else _configuration(head)), **stored, "Versions": versions()},
        notes=notes,
    )


def _means(run: Run, begin: int) -> dict[str, float]:
    means = {}
    for name, values in run.signals.items():
        finite = values[begin:][np.isfinite(values[begin:])]
        if len(finite):
            means[name] = float(finite.mean())
    return means


def _configuration(head: TapeHead) -> dict[str, dict[str, str]]:
    memory = {
        "layers, heads, rank": f"{head.layers}, {head.heads}, {head.rank}",
        "rule": head.mode,
        "signals from layers": "all" if head.watched is None else ", ".join(map(str, head.watched)),
        "probes looked at on one event in": str(head.every),
        "language model attached": "yes" if head.attached else "no",
        **{name: str(value) for name, value in head.settings.items()},
    }
    policy = {name: _plain(value) for name, value in head.policy.items()}
    detectors = {name: yaml.safe_dump(value, default_flow_style=True).strip() for name, value in head.detectors.items()}
    return {"Memory": memory, "Policy": policy, "Detectors": detectors}


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _notes(run: Run, told: Truth | None) -> list[str]:
    notes = []
    if run.head is None:
        notes.append(
            "Made from output records, which hold the signals, alarms and actions only. The forgetting curve, the "
            "comparison of policies, the advice on capacity and the configuration need a tape: run with --tape DIR, "
            "and give the report that folder."
        )
    else:
        begun = {int(stream) for stream, seq in zip(run.stream, run.seq, strict=True) if seq == 0}
        if late := len(run.streams) - len(begun):
            notes.append(
                f"{late:,} of {len(run.streams):,} streams are not on the tape from their first event: in a replay "
                "their states begin at zero, so its figures differ from the run's."
            )
        if run.head.attached:
            notes.append(
                "Recorded with a language model attached: under another policy, layers above the first are approximate."
            )
    if run.torn:
        notes.append("The tape ends in the middle of a record batch, which was left out: a run was killed there.")
    if told is None:
        notes.append("The true topic shifts were not given (--truth FILE), so alarms cannot be told from false ones.")
    return notes
