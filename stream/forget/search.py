"""Searching files for what should not be there, whatever form it has."""

from __future__ import annotations

import re
from base64 import b64decode
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stream.forget.forms import Needle, needles_of
from stream.forget.output import Advance

CHUNK = 8 << 20


@dataclass(slots=True)
class Finding:
    """What a search of one file came to.

    Attributes
    ----------
    place
        The file, or the database.
    bytes
        How many were searched.
    hits
        How often a name, or bytes of a state, were found.
    in_names
        How many of those are parts of other streams' names.
    by_chance
        How many are words, keys and numbers that every such file has.
    traces
        What the rest is: description → how many.
    first
        Where the first of each stands.
    """

    place: str
    bytes: int = 0
    hits: int = 0
    in_names: int = 0
    by_chance: int = 0
    traces: Counter[str] = field(default_factory=Counter)

    first: dict[str, str] = field(default_factory=dict)

    def trace(self, what: str, where: str, count: int = 1) -> None:
        """Note hits that remain."""
        self.traces[what] += count
        self.first.setdefault(what, where)

    @property
    def left(self) -> int:
        """Hits that are neither parts of other names nor there by chance."""
        return sum(self.traces.values())


class Searcher:
    """Looks for needles, and tells those that stand within another stream's name from the others.

    Parameters
    ----------
    needles
        What to look for.
    others
        Names of other streams.

    Examples
    --------
    >>> from stream.forget.forms import needles_of
    >>> searcher = Searcher(needles_of("anna"), ["joanna", "bob"])
    >>> [(at, inside) for at, _, inside in searcher.hits(b"--joanna--anna--")]
    [(4, True), (10, False)]
    """

    def __init__(self, needles: Iterable[Needle], others: Iterable[str]):
        self.needles = list(needles)
        self.longest = max((len(needle.data) for needle in self.needles), default=1)
        self.names = {needle.name for needle in self.needles}
        self._others = list(others)
        self._around: dict[tuple[str, str, bytes], Mapping[tuple[int, int], set[bytes]]] = {}

    def holds(self, data: bytes) -> bool:
        """Say whether any needle is in `data`."""
        return any(needle.data in data for needle in self.needles)

    def count(self, data: bytes) -> tuple[int, int]:
        """Return how many hits there are in `data`, and how many of them within other names."""
        found = [inside for _, _, inside in self.hits(data)]
        return len(found), sum(found)

    def hits(self, data: bytes, end: int | None = None) -> Iterator[tuple[int, Needle, bool]]:
        """Yield each hit that begins before `end`: where, what, and whether it is within another stream's name."""
        seen: set[tuple[int, str]] = set()
        for needle in self.needles:
            at = data.find(needle.data)
            while 0 <= at < (len(data) if end is None else end):
                if (at, needle.name) not in seen and (needle.form != "base64" or _decodes(data, at, needle)):
                    seen.add((at, needle.name))
                    yield at, needle, self._inside(data, at, needle)
                at = data.find(needle.data, at + 1)

    def _inside(self, data: bytes, at: int, needle: Needle) -> bool:
        for (before, length), wholes in self._wholes(needle).items():
            if at >= before and data[at - before : at - before + length] in wholes:
                return True
        return False

    def _wholes(self, needle: Needle) -> Mapping[tuple[int, int], set[bytes]]:
        """Return other names that the needle is part of, in its form, by where it stands in them and their length."""
        key = (needle.name, needle.form, needle.data)
        found = self._around.get(key)
        if found is None:
            found = {}
            for other in self._others:
                if needle.name in other and needle.form not in ("base64", "state", "SHA-256"):
                    for whole in _in_form(other, needle):
                        before = whole.find(needle.data)
                        while before >= 0:
                            found.setdefault((before, len(whole)), set()).add(whole)
                            before = whole.find(needle.data, before + 1)
            self._around[key] = found
        return found

    def file(self, path: Path, advance: Advance = lambda count: None) -> Iterator[tuple[int, Needle, bool]]:
        """Yield each hit in a file."""
        margin = max([self.longest, *(12 * len(other) for other in self._others)])  # as percent-encoded emoji
        with path.open("rb") as file:
            before, base = b"", 0
            while True:
                chunk = file.read(CHUNK)
                data = before + chunk
                last = len(chunk) < CHUNK
                # A hit is told where all that may be around it is in `data`: not at either edge.
                end = len(data) if last else len(data) - margin
                for at, needle, inside in self.hits(data, end):
                    if at >= (0 if base == 0 else margin):
                        yield base + at, needle, inside
                advance(len(chunk))
                if last:
                    return
                keep = min(len(data), 2 * margin)
                base += len(data) - keep
                before = data[len(data) - keep :]


_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]*")


def _decodes(data: bytes, at: int, needle: Needle) -> bool:
    """Say whether what is around a hit in base64 is the name: its first and last bits are shared with their neighbours.

    >>> from base64 import b64encode
    >>> [_decodes(b64encode(text), 0, Needle(b"czAwMDAwM", "base64", "s000001")) for text in (b"s000001", b"s000002")]
    [True, False]
    """
    name = needle.name.encode("utf-8", "surrogatepass")
    texts = {each.data for each in needles_of(needle.name) if each.form in ("UTF-8", "JSON", "JSON text")} | {name}
    for first in range(max(0, at - 3), at + 1):
        found = _BASE64.match(data, first, at + len(needle.data) + 4)
        assert found is not None
        whole = found[0].translate(bytes.maketrans(b"-_", b"+/"))
        decoded = b64decode(whole[: len(whole) - (len(whole) % 4 == 1)] + b"=" * (-len(whole) % 4))
        if any(text in decoded for text in texts):
            return True
    return False


def _in_form(other: str, needle: Needle) -> Iterator[bytes]:
    for each in needles_of(other):
        if each.form == needle.form:
            yield each.data
