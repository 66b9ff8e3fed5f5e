"""Which topic each event of a stream is about: the scenarios."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from stream.generate.dice import Dice
from stream.generate.settings import GenerateSettings


@dataclass(frozen=True, slots=True)
class Moment:
    """What one event is about.

    Attributes
    ----------
    topic
        The topic in force; in a transition, the one with the greater weight.
    boundary
        Whether this event is the first of a new topic (False on a stream's first event).
    visit
        How many-th visit to `topic` this is in the stream, from 1.
    spoken
        The topic whose words the event uses: `topic`, or the other one of a transition.
    weight
        The share of `topic` in the mixture, 1 outside transitions.
    mixed_with
        The other topic of a transition.
    """

    topic: str
    boundary: bool
    visit: int
    spoken: str
    weight: float = 1.0
    mixed_with: str | None = None


def schedule(settings: GenerateSettings, dice: Dice) -> Iterator[Moment]:
    """Yield the moments of one stream, without end.

    Examples
    --------
    >>> from itertools import islice
    >>> settings = GenerateSettings(scenario="abrupt", mean_topic_length=2, min_topic_length=2)
    >>> [(moment.topic, int(moment.boundary)) for moment in islice(schedule(settings, Dice(0)), 5)]
    [('cycling', 0), ('cycling', 0), ('guitar', 1), ('guitar', 0), ('sailing', 1)]
    """
    if settings.scenario == "gradual":
        yield from _gradual(settings, dice)
        return
    visits: Counter[str] = Counter()
    boundary = False
    for topic in _sequence(settings, dice):
        visits[topic] += 1
        for _ in range(dice.geometric(settings.mean_topic_length, settings.min_topic_length)):
            yield Moment(topic, boundary, visits[topic], topic)
            boundary = False
        boundary = settings.scenario not in ("stationary", "rebinding")
        if not boundary:
            visits[topic] -= 1  # the visit goes on


def _sequence(settings: GenerateSettings, dice: Dice) -> Iterator[str]:
    """Yield the topics in the order of their visits; no topic follows itself where topics change."""
    order = dice.shuffled(settings.chosen_topics)
    match settings.scenario:
        case "stationary" | "rebinding":
            while True:
                yield order[0]
        case "abrupt" | "gradual":  # the same round again: a topic comes back only after all the others
            while True:
                yield from order
        case "recurring":
            few = order[: settings.recurring_topics]
            at = 0
            while True:
                yield few[at]
                at = (at + 1 + dice.pick(len(few) - 1)) % len(few)


def _gradual(settings: GenerateSettings, dice: Dice) -> Iterator[Moment]:
    """Yield plain stretches with a ramp between each two.

    Event j of a ramp of w events has the weight (j + 1) / (w + 1) for the new topic, and uses its words with that
    probability. The boundary is the first event on which that weight is over one half; that event always speaks of the
    new topic, so that the label does not fall on words of the old one.
    """
    visits: Counter[str] = Counter()
    topics = _sequence(settings, dice)
    old = next(topics)
    visits[old] += 1
    shortest = (settings.transition_length + 1) // 2
    widths = 2 * (settings.transition_length - shortest) + 1
    plain = settings.mean_topic_length - settings.transition_length
    for new in topics:
        for _ in range(dice.geometric(plain, settings.min_topic_length)):
            yield Moment(old, False, visits[old], old)
        width = shortest + dice.pick(widths)
        turned = False
        for j in range(width):
            weight = (j + 1) / (width + 1)
            of_new = dice.chance(weight)
            if 2 * (j + 1) > width + 1:
                boundary, turned = not turned, True
                if boundary:
                    visits[new] += 1
                spoken = new if of_new or boundary else old
                yield Moment(new, boundary, visits[new], spoken, round(weight, 4), old)
            else:
                yield Moment(old, False, visits[old], new if of_new else old, round(1 - weight, 4), new)
        old = new
