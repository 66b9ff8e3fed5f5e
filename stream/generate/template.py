"""Sentences with gaps: read once, filled many times."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from stream.generate.dice import Dice

HOLES = frozenset({"subject", "phrase", "value", "previous", "partner"})
"""Gaps that are filled by what the conversation is about at that moment, not by a list."""

DWELL = 0.3
"""How often a sticky slot keeps its filler."""

_GAP = re.compile(r"\{(a )?(\w+)\}")
_NEW_SENTENCE = re.compile(r"[.?!] $")
_VOWEL = re.compile(r"(?i)[aeiou]|hour|honest|heir")
_CONSONANT_AFTER_ALL = re.compile(r"[Ee]uro|[Oo]ne\b|[Oo]nce\b|[Uu](?:ni|se|ru|k)|U[A-Z]")


def with_article(noun: str) -> str:
    """Put ``a`` or ``an`` before a noun, by its sound.

    Examples
    --------
    >>> [with_article(noun) for noun in ("wok", "oven", "hour", "unicycle", "umbrella", "UX designer", "online shop")]
    ['a wok', 'an oven', 'an hour', 'a unicycle', 'an umbrella', 'a UX designer', 'an online shop']
    """
    return f"an {noun}" if _VOWEL.match(noun) and not _CONSONANT_AFTER_ALL.match(noun) else f"a {noun}"


def capitalised(text: str) -> str:
    """Return `text` with its first letter in upper case.

    Examples
    --------
    >>> capitalised("my aunt's soup"), capitalised("6 eggs")
    ("My aunt's soup", '6 eggs')
    """
    return text[:1].upper() + text[1:]


@dataclass(frozen=True, slots=True)
class Choice:
    """A gap filled from a list.

    Attributes
    ----------
    slot
        The name of the list.
    fillers
        The list.
    again
        The place of the part whose filler must not be repeated here, or −1.
    sticky
        Whether the filler used last in the conversation may be used again on purpose.
    """

    slot: str
    fillers: tuple[str, ...]
    again: int = -1
    sticky: bool = False


@dataclass(frozen=True, slots=True)
class Hole:
    """A gap filled by the conversation."""

    name: str
    capital: bool


class Template:
    """A sentence with gaps: ``{slot}`` for a filler, ``{a slot}`` for one with its article.

    A slot that is named twice gets two different fillers. The text begins in lower case, unless it begins with ``I`` or
    with a filler that has a capital; `capitalised` makes a sentence of it.

    Parameters
    ----------
    text
        The sentence.
    slots
        Slot name → fillers. `HOLES` may be named too.
    sticky
        The slots that a conversation dwells on, see `fill`.

    Raises
    ------
    ValueError
        The sentence names a slot that does not exist, or one slot three times.

    Examples
    --------
    >>> template = Template("The {pan} is older than {a pan}.", {"pan": ["wok", "oven dish"]})
    >>> template.fill(Dice(1), {}, {})
    'the wok is older than an oven dish.'
    """

    __slots__ = ("parts", "text")

    def __init__(self, text: str, slots: Mapping[str, Sequence[str]], sticky: Container[str] = ()):
        self.text = text
        parts: list[str | Choice | Hole] = []
        places: dict[str, int] = {}
        named: list[str] = []
        at = 0
        for gap in _GAP.finditer(text):
            literal = text[at : gap.start()]
            if literal:
                parts.append(literal if at else _uncapitalised(literal))
            article, name = gap.group(1), gap.group(2)
            capital = bool(_NEW_SENTENCE.search(literal))
            named.append(name)
            if name in HOLES:
                parts.append(Hole(name, capital))
            elif name in slots:
                if named.count(name) > 2:
                    raise ValueError(f"expected a slot at most twice in a sentence, got {name!r} again in {text!r}")
                fillers = [with_article(filler) if article else filler for filler in slots[name]]
                if capital:
                    fillers = [capitalised(filler) for filler in fillers]
                parts.append(Choice(name, tuple(fillers), places.get(name, -1), name in sticky))
                places.setdefault(name, len(parts) - 1)
            else:
                raise ValueError(
                    f"expected one of the slots {sorted(slots)} or {sorted(HOLES)}, got {name!r} in {text!r}"
                )
            at = gap.end()
        if at < len(text):
            parts.append(text[at:] if at else _uncapitalised(text))
        if "{" in "".join(part for part in parts if isinstance(part, str)):
            raise ValueError(f"expected {{slot}} or {{a slot}}, got an unreadable gap in {text!r}")
        self.parts = tuple(parts)

    def fill(self, dice: Dice, holes: Mapping[str, str], focus: MutableMapping[str, int]) -> str:
        """Return the sentence with its gaps filled, beginning in lower case.

        Parameters
        ----------
        dice
            Where fillers are drawn.
        holes
            What stands in the `HOLES` at this moment.
        focus
            Sticky slot → the filler used last, as an index. With a chance of three in ten it is used again: people who
            talk of a soup say "that soup", not the name of another dish. Updated.
        """
        out: list[str] = []
        drawn: dict[int, int] = {}
        for place, part in enumerate(self.parts):
            if isinstance(part, str):
                out.append(part)
            elif isinstance(part, Choice):
                fillers = part.fillers
                if part.again >= 0:  # any filler but the one drawn before
                    index = (drawn[part.again] + 1 + dice.pick(len(fillers) - 1)) % len(fillers)
                elif part.sticky and part.slot in focus and dice.chance(DWELL):
                    index = drawn[place] = focus[part.slot]
                else:
                    index = drawn[place] = dice.pick(len(fillers))
                if part.sticky:
                    focus[part.slot] = index
                out.append(fillers[index])
            else:
                value = holes[part.name]
                out.append(capitalised(value) if part.capital else value)
        return "".join(out)


def _uncapitalised(text: str) -> str:
    first = re.match(r"[\w']+", text)
    if first and (first.group() == "I" or first.group().startswith("I'")):
        return text
    return text[:1].lower() + text[1:]
