"""All streams together, in the order of time, as a live log would hold them."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import islice

from stream.generate.conversation import Conversation, Event, Truth
from stream.generate.settings import GenerateSettings


def generate(settings: GenerateSettings) -> Iterator[tuple[Event, Truth]]:
    """Yield every event with its truth, in the order of `ts` (then of stream).

    Nothing is made before it is asked for, and nothing is kept but each stream's own facts: memory grows with the
    number of streams, never with that of events.

    Parameters
    ----------
    settings
        How many streams, how long, and how they change.

    Yields
    ------
    event
        A dict in Ebbtide's input contract: stream, text, id, ts, role.
    truth
        A dict with what is true of it: stream, seq, id, topic, boundary, visit, fact.

    Examples
    --------
    >>> event, truth = next(generate(GenerateSettings(scenario="recurring", seed=3)))
    >>> event["id"] == truth["id"], truth["seq"], truth["boundary"], truth["visit"]
    (True, 0, 0, 1)
    """
    streams = [islice(Conversation(settings, index), settings.events) for index in range(settings.streams)]
    for _, _, event, truth in merge(*streams):
        yield event, truth
