"""What the two speakers can talk about: `topics/*.yaml`, one topic a file, and `common.yaml` for what all share.

A topic has slots (lists of fillers), sentences by use, and families of facts. In a family, every subject has one value
at a time out of the family's list. A (subject, attribute) pair belongs to one topic only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from stream.generate.template import Template

Lines = Annotated[tuple[str, ...], BeforeValidator(lambda block: _lines(block))]
"""A YAML block with one sentence a line."""
Names = Annotated[tuple[str, ...], BeforeValidator(lambda block: _strings(block)), Field(min_length=2)]
"""A YAML list of words."""

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same result, ten times sooner


def _lines(block: object) -> tuple[str, ...]:
    if not isinstance(block, str):
        raise ValueError(f"expected a block of lines, got {type(block).__name__}; is the '|' after the key missing?")
    return tuple(line.strip() for line in block.splitlines() if line.strip())


def _strings(block: object) -> tuple[str, ...]:
    if not isinstance(block, list) or not all(isinstance(item, str) for item in block):
        raise ValueError(
            f"expected a list of words, got {block!r}; YAML reads a bare 12, true or 7:42 as something else"
        )
    if len(set(block)) < len(block):
        raise ValueError(f"expected each word once, got {block!r}")
    return tuple(block)


class _Text(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FamilyText(_Text):
    """A family of facts, as its file says it."""

    attribute: str
    subjects: Names | tuple[str] = Field(union_mode="left_to_right")
    phrase: str
    values: Names
    state: Lines
    rebind: Lines
    ask: Lines
    answer: Lines

    @model_validator(mode="after")
    def _gives_away(self) -> FamilyText:
        """Check that a question never holds its answer, and that everything else holds the value."""
        for line in (*self.state, *self.rebind, *self.answer):
            if "{value}" not in line:
                raise ValueError(f"expected {{value}} in a sentence that tells a fact, got {line!r}")
        for line in self.ask:
            if "{value}" in line or "{subject}" not in line:
                raise ValueError(f"expected {{subject}} and no {{value}} in a question for a fact, got {line!r}")
        return self


class TopicText(_Text):
    """A topic, as its file says it."""

    slots: dict[str, Names]
    statements: Lines
    questions: Lines
    replies: Lines
    talk: Lines
    facts: tuple[FamilyText, ...]


class WaysText(_Text):
    """Plain sentences about any fact."""

    state: Lines
    rebind: Lines
    ask: Lines
    answer: Lines


class CommonText(_Text):
    """What every topic shares, as `common.yaml` says it."""

    speakers: Names
    slots: dict[str, Names]
    fillers: Lines
    openers: Lines
    asides: Lines
    tails: Lines
    reactions: Lines
    pauses: Lines
    ways: WaysText


Templates = tuple[Template, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """Sentences about the facts of one attribute, and the values these can take."""

    attribute: str
    values: tuple[str, ...]
    ways: Mapping[str, Templates]
    """`state`, `rebind`, `ask`, `answer` → sentences."""


@dataclass(frozen=True, slots=True)
class FactKey:
    """What a fact is about: a subject's attribute."""

    family: Family
    subject: str
    phrase: str


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic, ready to be spoken about."""

    name: str
    slots: Mapping[str, Sequence[str]]
    statements: Templates
    questions: Templates
    replies: Templates
    talk: Templates
    facts: tuple[FactKey, ...]


@dataclass(frozen=True, slots=True)
class Common:
    """What every topic shares, ready to be spoken."""

    speakers: tuple[str, ...]
    slots: Mapping[str, Sequence[str]]
    fillers: Templates
    openers: Templates
    asides: Templates
    tails: Templates
    reactions: Templates
    pauses: Templates
    ways: WaysText


@cache
def topic_names() -> tuple[str, ...]:
    """Name every topic, in alphabetical order.

    Examples
    --------
    >>> topic_names()[:3]
    ('aquarium', 'astronomy', 'beekeeping')
    """
    folder = files(__package__) / "topics"
    return tuple(sorted(path.name[: -len(".yaml")] for path in folder.iterdir() if path.name.endswith(".yaml")))


@cache
def load_common() -> Common:
    """Read what every topic shares."""
    text = CommonText.model_validate(_read("common.yaml"))

    def compiled(lines: Sequence[str]) -> Templates:
        return tuple(Template(line, text.slots) for line in lines)

    return Common(
        speakers=text.speakers,
        slots=text.slots,
        fillers=compiled(text.fillers),
        openers=compiled(text.openers),
        asides=compiled(text.asides),
        tails=compiled(text.tails),
        reactions=compiled(text.reactions),
        pauses=compiled(text.pauses),
        ways=text.ways,
    )


@cache
def load_topic(name: str) -> Topic:
    """Read one topic.

    Examples
    --------
    >>> chess = load_topic("chess")
    >>> len(chess.statements) > 10, {fact.family.attribute for fact in chess.facts} >= {"rating"}
    (True, True)
    """
    common = load_common()
    text = TopicText.model_validate(_read(f"topics/{name}.yaml"))
    slots = {**common.slots, **text.slots}

    def compiled(lines: Sequence[str]) -> Templates:
        return tuple(Template(line, slots, sticky=text.slots) for line in lines)

    facts: list[FactKey] = []
    for family_text in text.facts:
        ways = {
            op: compiled([*getattr(family_text, op), *getattr(common.ways, op)])
            for op in ("state", "rebind", "ask", "answer")
        }
        family = Family(family_text.attribute, family_text.values, ways)
        for pattern in family_text.subjects:
            owners = common.slots["owner"] if "{owner}" in pattern else ("",)
            for owner in owners:
                subject = pattern.replace("{owner}", owner)
                facts.append(FactKey(family, subject, family_text.phrase.replace("{subject}", subject)))
    return Topic(
        name=name,
        slots=text.slots,
        statements=compiled(text.statements),
        questions=compiled(text.questions),
        replies=compiled(text.replies),
        talk=compiled(text.talk),
        facts=tuple(facts),
    )


def _read(name: str) -> object:
    return yaml.load((files(__package__) / name).read_text("utf-8"), Loader=_Loader)  # a safe loader in either case
