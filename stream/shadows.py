"""Shadows: challengers that write what the live lanes wrote to lanes of their own, under policies of their own.

A shadow is an engine without a model. It is measured as the live one is and acts on its own lanes only, so that what it
would have done, and how well it would have predicted, is known without anybody having to dare it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from memory.errors import ConfigurationError
from memory.state_pool import LaneRecord
from memory.writers import RowsWriter, Shape
from monitors.policies import POLICIES, Policy, load_policy
from stream.engine import Engine, Outcome

Fetch = Callable[[str, Sequence[str]], Mapping[str, LaneRecord]]
"""Shadow's name, lanes → those that the store has."""

OWN = ("policy/", "filed/")
"""What a shadow never takes over from the live lane: its policy's memory."""


def label_of(name_or_path: str) -> str:
    """Return what a policy is called in metrics and tables: its name, or its file's without the ending.

    >>> label_of("auto"), label_of("run/slow-decay.yaml")
    ('auto', 'slow-decay')
    """
    return name_or_path if name_or_path in POLICIES else Path(name_or_path).stem


class Shadow:
    """One challenger.

    Parameters
    ----------
    name
        What it is called in metrics and in the store.
    policy
        What it does to its lanes.
    live
        The engine whose writes it repeats.
    max_bytes
        Bound on the bytes of its states.
    fetch
        For its pool.
    """

    def __init__(self, name: str, policy: Policy, live: Engine, *, max_bytes: int, fetch: Fetch):
        self.name, self.live = name, live
        self.writer = RowsWriter(Shape.of(live.writer), live.pool.device)
        self.engine = Engine(
            self.writer,
            detectors=live.detectors,
            policy=policy,
            layers=live.layers,
            every=live.every,
            device=live.pool.device,
            max_bytes=max_bytes,
            fetch=lambda lanes: fetch(name, lanes),
        )

    def meet(self, streams: Sequence[str]) -> None:
        """Have lanes for these streams, before the live lanes take in their next events.

        A lane that the shadow does not know and the live engine does begins as a copy of the live one: a shadow that is
        added in mid-course starts from what there is, not from nothing.
        """
        mine = self.engine.pool.acquire(streams)
        fresh = np.flatnonzero(self.engine.counts["events"][mine] == 0)
        if not len(fresh):
            return
        theirs = self.live.pool.acquire(streams)
        known = fresh[self.live.counts["events"][theirs[fresh]] > 0]
        for lane in known.tolist():
            to, source = int(mine[lane]), theirs[lane : lane + 1]
            self.engine.pool.states[to] = self.live.pool.states[int(source[0])]
            for name, part in self.engine.pool.beside.items():
                if name in self.live.pool.beside and not name.startswith(OWN):
                    part.load(to, self.live.pool.beside[name].dump(source)[0])

    def follow(self, outcome: Outcome) -> Outcome:
        """Write what the live events wrote; return what came of it here."""
        assert outcome.rows is not None
        ids = self.writer.give(outcome.rows, outcome.tokens, outcome.signals["topic_shift_score"])
        return self.engine.process(outcome.events, ids)


def open_shadows(given: Sequence[str], live: Engine, *, max_bytes: int, fetch: Fetch) -> list[Shadow]:
    """Make the shadows that the settings name.

    Parameters
    ----------
    given
        Policies' names or YAML files.
    live, max_bytes, fetch
        As `Shadow` takes them.

    Raises
    ------
    ConfigurationError
        One is no policy, or two would have the same name.
    """
    shadows: dict[str, Shadow] = {}
    for each in given:
        name = label_of(each)
        if name in shadows:
            raise ConfigurationError(
                f"--shadow {each}: expected shadows with different names, got {name!r} twice; rename one of the files"
            )
        shadows[name] = Shadow(name, load_policy(each), live, max_bytes=max_bytes, fetch=fetch)
    return list(shadows.values())
