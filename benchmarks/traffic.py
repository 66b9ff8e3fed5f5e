"""Events as many streams send them: a few talk much at any moment, most little, and who talks much shifts.

Each event's stream is drawn by its place in a queue of popularity: place r (from 0) has a weight of 1 / (r + 50)^1.2,
so that of 100,000 streams the first has 0.5 % of the events and the first tenth 84 %. The queue moves on by one place
every `events / streams` events: in the course of the whole, each stream comes to the front once and goes to the end.
The texts are sixteen words of one of sixteen topics; a stream changes its topic every 50,000 events of the whole.

Events are made a block at a time, each block from a seed of its own, so the same event has the same number wherever the
making begins, and some streams' events can be had without those of the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from stream.generate import GenerateSettings, generate

BLOCK = 10_000
"""Events made at a time."""

TOPICS, TEXTS, WORDS = 16, 256, 16
"""Topics, texts of each, and words of a text."""

FLATNESS, STEEPNESS = 50.0, 1.2
"""Of the weights: how flat the front of the queue is, and how fast the rest falls."""


@dataclass(frozen=True)
class Traffic:
    """So many events of so many streams.

    Attributes
    ----------
    events, streams
        How many.
    seed
        Chooses all of it.

    Examples
    --------
    >>> traffic = Traffic(events=20_000, streams=1_000)
    >>> first = next(traffic.lines())
    >>> first.count(b"\\n"), first[:50]
    (10000, b'{"stream":"user-000227","id":"0","ts":1700000000.0')
    >>> one = next(traffic.lines(1, only=[int(traffic.numbers(1)[5])])).splitlines()[0]
    >>> one == next(traffic.lines(1)).splitlines()[5]
    True
    """

    events: int
    streams: int
    seed: int = 0

    @property
    def blocks(self) -> int:
        """How many blocks there are; the last may be short."""
        return -(-self.events // BLOCK)

    @staticmethod
    def name(number: int) -> str:
        """Return a stream's name.

        >>> Traffic.name(7)
        'user-000007'
        """
        return f"user-{number:06d}"

    def numbers(self, block: int) -> npt.NDArray[np.int64]:
        """Return the streams' numbers of a block's events, `[n]` int64."""
        at = block * BLOCK + np.arange(min(BLOCK, self.events - block * BLOCK))
        place = np.searchsorted(self._shares, np.random.default_rng([self.seed, block]).random(len(at)))
        return (place + at * self.streams // self.events) % self.streams

    def lines(self, first: int = 0, *, only: Collection[int] | None = None) -> Iterator[bytes]:
        """Yield block after block, from a block on: whole lines of JSON, of all streams or of some."""
        wanted = None if only is None else np.array(sorted(only))
        for block in range(first, self.blocks):
            numbers = self.numbers(block)
            at = block * BLOCK
            topics = (numbers * 7 + at // 50_000) % TOPICS
            texts = topics * TEXTS + np.random.default_rng([self.seed, block, 1]).integers(TEXTS, size=len(numbers))
            rows = np.arange(len(numbers)) if wanted is None else np.flatnonzero(np.isin(numbers, wanted))
            yield b"".join(
                b'{"stream":"user-%06d","id":"%d","ts":%d.0,"text":"%b"}\n'
                % (number, at + row, 1_700_000_000 + at + row, self._texts[text])
                for row, number, text in zip(rows.tolist(), numbers[rows].tolist(), texts[rows].tolist(), strict=True)
            )

    @cached_property
    def _shares(self) -> npt.NDArray[np.float64]:
        weights = (np.arange(self.streams) + FLATNESS) ** -STEEPNESS
        shares = np.cumsum(weights)
        return np.asarray(shares / shares[-1])

    @cached_property
    def _texts(self) -> list[bytes]:
        told = generate(GenerateSettings(scenario="recurring", streams=1, events=2_000, seed=self.seed))
        text = " ".join(event["text"] for event, _ in told)
        words = sorted({word.lower() for word in text.replace(".", " ").replace(",", " ").split() if word.isalpha()})
        dice = np.random.default_rng(self.seed)
        vocabularies = [dice.choice(words, 40) for _ in range(TOPICS)]
        return [
            " ".join(dice.choice(vocabulary, WORDS)).encode("ascii", "ignore")
            for vocabulary in vocabularies
            for _ in range(TEXTS)
        ]
