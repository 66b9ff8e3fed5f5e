"""Many policies on a recorded tape, and what each came to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import Event, Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from memory.errors import ConfigurationError
from memory.threads import run_pieces, threads, torch_threads
from monitors.detectors import parse_detector
from monitors.detectors.slips import likely_slip
from monitors.policies import Policy
from stream.many.loaded_tape import LoadedStream, LoadedTape
from stream.many.scores import Scores, Tally
from stream.many.stacked_policy import alike
from stream.many.stream_run import Plan, run_stream

LANES = 4096
"""Most policies that one pass over a stream takes: the more, the more of them hold the same states."""

CACHED = 4 << 20
"""Bytes of states that a pass takes where each lane has one of its own: what stays in a cache."""

SHARED = 512 << 20
"""Bytes of states that a pass may come to where lanes have several each; with most of them shared it is far less."""


def score(
    tape: LoadedTape,
    policies: Sequence[Policy],
    *,
    streams: Sequence[str] | None = None,
    detectors: Mapping[str, Any] | None = None,
    slices: int = 40,
    probes: bool = False,
    each: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Run a tape under many policies, and measure how each did.

    Parameters
    ----------
    tape
        In memory (`load`).
    policies
        At least one; each as an engine of its own would run it, to the bit, whatever the others and the threads.
    streams
        Names of those to score; None: all of the tape.
    detectors
        Signal → settings; None for those of the run.
    slices
        B of `Scores.over_time`.
    probes
        Whether to ask for `retrieval_error` as the engine does; it costs more.
    each
        Called now and then, by one thread at a time, with the lane-events done and those to do; a lane-event is one
        event under one policy. What it raises ends the scoring.

    Raises
    ------
    ConfigurationError
        A stream that is not on the tape.
    ValueError
        No policy, no stream, or no slice.

    Examples
    --------
    A stream that says the same thing three times, written with a gate of one half:

    >>> import torch
    >>> from monitors.policies import DecayPolicy, NoPolicy
    >>> from stream.tape import TapeHead
    >>> head = TapeHead(
    ...     layers=1, heads=1, rank=2, mode="plain", dim=2, mean=None, own_lam=False, row_gates=False, watched=None,
    ...     every=1, attached=False, with_text=False, policy={}, detectors={}, settings={},
    ... )
    >>> k, gate, one = torch.eye(2)[:1].expand(3, 1, 2).clone(), torch.full((3, 1, 1), 0.5), np.ones(3, np.int64)
    >>> said = LoadedStream("a", 0, one, np.arange(4), k, k, gate, None, np.ones((3, 2), np.float32), np.zeros(3))
    >>> scores = score(LoadedTape(head, {"a": said}), [NoPolicy(), DecayPolicy(factor=0.5)], slices=3)
    >>> scores.over_time.tolist(), scores.actions.tolist()
    ([[1.0, 0.5, 0.25], [1.0, 0.5, 0.375]], [0, 3])
    """
    chosen = _chosen(tape, streams)
    if not policies or not chosen or slices < 1:
        raise ValueError(
            f"expected at least one policy, stream and slice, got {len(policies)}, {len(chosen)} and {slices}"
        )
    given = tape.head.detectors if detectors is None else detectors
    watching = {name: parse_detector(detector) for name, detector in given.items()}
    heads, rank = tape.head.layers * tape.head.heads, tape.head.rank
    fitted = [policy.fitted(heads, rank) for policy in policies]
    plans = [Plan.of(stream, watching) for stream in chosen]
    tasks = [
        (place, rows)
        for place in range(len(plans))
        for group in alike(fitted)
        for rows in _chunks(group, _most(fitted[group[0]], 4 * heads * rank**2))
    ]
    # The longest first, so that no thread is left with much to do when the others have ended.
    tasks.sort(key=lambda task: -len(task[1]) * len(plans[task[0]].stream))
    tally, lock = Tally(len(policies), [stream.name for stream in chosen], slices), Lock()
    failed = Event()
    events = sum(len(stream) for stream in chosen)
    done, total = 0, events * len(policies)

    def advance(lanes: int) -> None:
        nonlocal done
        with lock:
            if failed.is_set():
                raise _Abandoned
            done += lanes
            each(done, total)

    def run(first: int, last: int) -> None:
        try:
            for place, rows in tasks[first:last]:
                some = [fitted[row] for row in rows]
                done_by_now = run_stream(tape, plans[place], some, probes=probes, each=advance)
                with lock:
                    tally.add(place, rows, done_by_now.marks)
        except _Abandoned:
            return
        except BaseException:
            failed.set()  # the other threads are not to go on for minutes
            raise

    with torch_threads(1):
        run_pieces(run, [(task, task + 1) for task in range(len(tasks))], min(threads(), len(tasks)))
    return tally.scores(policies, events, probes=probes)


class _Abandoned(Exception):  # noqa: N818  not an error
    """Another thread has failed."""


def _chosen(tape: LoadedTape, names: Sequence[str] | None) -> list[LoadedStream]:
    if names is None:
        return list(tape.streams.values())
    for name in names:
        if name not in tape.streams:
            raise ConfigurationError(f"expected streams of the tape, got {name!r}{likely_slip(name, tape.streams)}")
    return [tape.streams[name] for name in dict.fromkeys(names)]


def _most(policy: Policy, state: int) -> int:
    """Return how many policies like this one a pass takes, where a state has so many bytes."""
    lanes = SHARED // (policy.ways * state) if policy.ways else CACHED // state
    return min(LANES, max(lanes, 256))


def _chunks(group: npt.NDArray[np.int64], most: int) -> list[npt.NDArray[np.int64]]:
    """Cut a group into as few parts as hold at most so many, of like size."""
    return np.array_split(group, -(-len(group) // most))
