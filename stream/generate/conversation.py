"""One stream: two people who talk, and the truth about what they say."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal, NotRequired, TypedDict

from stream.generate.dice import Dice
from stream.generate.schedule import Moment, schedule
from stream.generate.settings import GenerateSettings
from stream.generate.template import Template, capitalised
from stream.generate.topics import Common, FactKey, Topic, load_common, load_topic

Op = Literal["state", "rebind", "ask", "answer"]

MOST_WORDS = 40
RECENT_EVENTS = 3
"""Nobody asks for, or changes, what was said fewer than so many events ago."""
RECENT_SENTENCES = 12
"""A sentence is rarely built like one of the last so many of its stream."""


class Event(TypedDict):
    """One message, in Ebbtide's input contract."""

    stream: str
    text: str
    id: str
    ts: str
    role: str


class Fact(TypedDict):
    """What an event does to a fact. `value` is true after the event, `previous` (rebind only) was true before."""

    op: Op
    subject: str
    attribute: str
    value: str
    previous: NotRequired[str]


class Truth(TypedDict):
    """What is true of one event. The last three keys are there in the `gradual` scenario only."""

    stream: str
    seq: int
    id: str
    topic: str
    boundary: int
    visit: int
    fact: Fact | None
    weight: NotRequired[float]
    mixed_with: NotRequired[str | None]
    spoken: NotRequired[str]


class _Known:
    """A fact that was stated: its key, its value now (as an index), and when it was last spoken of."""

    __slots__ = ("key", "seq", "value")

    def __init__(self, key: FactKey, value: int, seq: int):
        self.key = key
        self.value = value
        self.seq = seq


class _Facts:
    """The facts that one stream knows of one topic: those still to be told, and those told."""

    __slots__ = ("known", "untold")

    def __init__(self, topic: Topic, count: int, dice: Dice):
        self.untold = dice.shuffled(topic.facts)[:count]
        self.known: list[_Known] = []

    def rested(self, seq: int, dice: Dice) -> _Known | None:
        """Draw a told fact that nobody has spoken of just now."""
        for _ in range(2):
            if self.known:
                known = dice.choose(self.known)
                if seq - known.seq >= RECENT_EVENTS:
                    return known
        return None


class Conversation:
    """The events of one stream, without end.

    Parameters
    ----------
    settings
        What the conversation is like.
    index
        Which stream; with the seed, this fixes everything.
    """

    def __init__(self, settings: GenerateSettings, index: int):
        self.name = f"s{index:06d}"
        self.index = index
        self._settings = settings
        self._common: Common = load_common()
        # One die for each concern, so that a longer sentence never moves a boundary.
        self._topic_dice = Dice("topics", settings.seed, index)
        self._dice = Dice("words", settings.seed, index)
        clock = Dice("clock", settings.seed, index)
        self._clock = clock
        self._ms = int(settings.start.timestamp() * 1000) + clock.pick(600_000)
        pair = Dice("speakers", settings.seed, index).shuffled(self._common.speakers)[:2]
        self._speakers = (pair[0], pair[1])
        self._turn = clock.pick(2)
        self._facts: dict[str, _Facts] = {}
        self._asked: _Known | None = None
        self._holes: dict[str, str] = {}
        self._focus: dict[str, int] = {}
        self._focus_topic = ""
        self._recent: deque[Template] = deque(maxlen=RECENT_SENTENCES)

    def __iter__(self) -> Iterator[tuple[int, int, Event, Truth]]:
        """Yield (time in ms since 1970, stream index, event, truth)."""
        gradual = self._settings.scenario == "gradual"
        for seq, moment in enumerate(schedule(self._settings, self._topic_dice)):
            switched = self._next_turn()
            text, fact = self._say(seq, moment, switched, opening=moment.boundary or seq == 0)
            event_id = f"{self.name}-{seq}"
            event: Event = {
                "stream": self.name,
                "text": text,
                "id": event_id,
                "ts": _rfc3339(self._ms),
                "role": self._speakers[self._turn],
            }
            truth: Truth = {
                "stream": self.name,
                "seq": seq,
                "id": event_id,
                "topic": moment.topic,
                "boundary": int(moment.boundary),
                "visit": moment.visit,
                "fact": fact,
            }
            if gradual:
                truth["weight"] = moment.weight
                truth["mixed_with"] = moment.mixed_with
                truth["spoken"] = moment.spoken
            yield self._ms, self.index, event, truth
            self._ms += self._gap()

    def _next_turn(self) -> bool:
        """Pass the word on, or keep it; return whether it was passed on."""
        switched = self._dice.chance(0.72)
        if switched:
            self._turn = 1 - self._turn
        self._holes = {"partner": self._speakers[1 - self._turn]}
        return switched

    def _gap(self) -> int:
        """Draw the milliseconds until the next message: under a minute mostly, at times a pause of up to two hours."""
        if self._clock.chance(0.02):
            return 60_000 + self._clock.pick(7_140_000)
        return 1_500 + self._clock.pick(58_500)

    def _say(self, seq: int, moment: Moment, switched: bool, *, opening: bool) -> tuple[str, Fact | None]:
        """Choose what kind of message this is, and say it.

        A topic's first event is a statement, a question or a fact: words that carry the topic.
        """
        settings, dice = self._settings, self._dice
        topic = load_topic(moment.spoken)
        if topic.name != self._focus_topic:
            self._focus, self._focus_topic = {}, topic.name
        facts = self._facts.get(topic.name)
        if facts is None:
            chosen = Dice("facts", settings.seed, self.index, topic.name)
            facts = self._facts[topic.name] = _Facts(topic, settings.facts_per_topic, chosen)

        asked, self._asked = self._asked, None
        if asked is not None and switched and not opening and asked in facts.known and dice.chance(0.9):
            return self._say_fact("answer", topic, asked, seq)

        kind = dice.share()
        kind -= settings.fact_share
        if kind < 0:
            return self._state(topic, facts, seq)
        kind -= settings.ask_share
        if kind < 0:
            known = facts.rested(seq, dice)
            if known is not None:
                self._asked = known
                return self._say_fact("ask", topic, known, seq)
            return self._statement(topic), None
        kind -= settings.chosen_rebind_share
        if kind < 0:
            known = facts.rested(seq, dice)
            if known is not None:
                return self._rebind(topic, known, seq)
            return self._statement(topic), None
        kind -= settings.question_share
        if kind < 0:
            return self._question(topic), None
        if opening:
            return self._statement(topic), None
        kind -= settings.filler_share
        if kind < 0:
            return (self._sentence(self._common.fillers) if switched else self._statement(topic)), None
        match dice.pick(8):
            case 0:
                return self._talk(topic), None
            case 1 | 2 | 3 if switched:
                return self._reply(topic), None
            case _:
                return self._statement(topic), None

    # Facts

    def _state(self, topic: Topic, facts: _Facts, seq: int) -> tuple[str, Fact | None]:
        if facts.untold:
            key = facts.untold.pop()
            known = _Known(key, self._dice.pick(len(key.family.values)), seq)
            facts.known.append(known)
        else:
            rested = facts.rested(seq, self._dice)
            if rested is None:
                return self._statement(topic), None
            known = rested
        return self._say_fact("state", topic, known, seq)

    def _rebind(self, topic: Topic, known: _Known, seq: int) -> tuple[str, Fact]:
        values = known.key.family.values
        before = known.value
        known.value = (before + 1 + self._dice.pick(len(values) - 1)) % len(values)
        text, fact = self._say_fact("rebind", topic, known, seq, previous=values[before])
        fact["previous"] = values[before]
        return text, fact

    def _say_fact(self, op: Op, topic: Topic, known: _Known, seq: int, previous: str = "") -> tuple[str, Fact]:
        key, dice = known.key, self._dice
        value = key.family.values[known.value]
        known.seq = seq
        self._holes.update(subject=key.subject, phrase=key.phrase, value=value, previous=previous)
        body = self._filled(key.family.ways[op])
        if op == "ask":
            text = self._opened(body, self._common.asides, 0.4)
        elif op == "answer":
            text = capitalised(body)
            if dice.chance(0.3):
                text = _joined(self._sentence(self._common.pauses), text)
        else:
            text = self._opened(body, self._common.openers, 0.3)
        if dice.chance(0.3):
            more = self._sentence(topic.statements if dice.chance(0.6) else topic.talk)
            text = _joined(more, text) if op == "ask" else _joined(text, more)
        fact: Fact = {"op": op, "subject": key.subject, "attribute": key.family.attribute, "value": value}
        return text, fact

    # Everything else

    def _statement(self, topic: Topic) -> str:
        dice = self._dice
        body = self._filled(topic.statements)
        how = dice.pick(16)
        if how < 4:
            text = self._with_opener(body, self._common.openers)
        elif how < 6:
            text = capitalised(body[:-1]) + self._filled(self._common.tails) + "."
        else:
            text = capitalised(body)
        if dice.chance(0.25):
            text = _joined(text, self._sentence(topic.questions if dice.chance(0.4) else topic.talk))
        return text

    def _question(self, topic: Topic) -> str:
        dice = self._dice
        text = self._opened(self._filled(topic.questions), self._common.asides, 0.35)
        if dice.chance(0.2):
            text = _joined(self._sentence(topic.talk if dice.chance(0.5) else topic.statements), text)
        return text

    def _reply(self, topic: Topic) -> str:
        dice = self._dice
        text = self._sentence(topic.replies)
        if dice.chance(0.35):
            text = _joined(self._sentence(self._common.reactions), text)
        if dice.chance(0.25):
            text = _joined(text, self._sentence(topic.questions if dice.chance(0.5) else topic.statements))
        return text

    def _talk(self, topic: Topic) -> str:
        text = self._opened(self._filled(topic.talk), self._common.openers, 0.25)
        if self._dice.chance(0.5):
            text = _joined(text, self._sentence(topic.statements))
        return text

    def _sentence(self, templates: tuple[Template, ...]) -> str:
        return capitalised(self._filled(templates))

    def _filled(self, templates: tuple[Template, ...]) -> str:
        """Fill one of `templates`, rather one that was not used just now."""
        dice, recent = self._dice, self._recent
        for _ in range(3):
            template = dice.choose(templates)
            if template not in recent:
                break
        recent.append(template)
        return template.fill(dice, self._holes, self._focus)

    def _opened(self, body: str, openers: tuple[Template, ...], share: float) -> str:
        return self._with_opener(body, openers) if self._dice.chance(share) else capitalised(body)

    def _with_opener(self, body: str, openers: tuple[Template, ...]) -> str:
        return f"{self._sentence(openers)} {body}"


def _joined(first: str, second: str) -> str:
    """Put two sentences into one message, or leave the first alone where both would be too long for chat."""
    both = f"{first} {second}"
    return both if both.count(" ") < MOST_WORDS else first


def _rfc3339(ms: int) -> str:
    seconds, rest = divmod(ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"
