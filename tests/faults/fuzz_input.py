"""What every target of the fuzzer is made of: dice, bytes that were mangled, and promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

NASTY = (
    *(b"1e999", b"NaN", b"\\ud800", b"null", b'"', b"{", b"[", b"\xc3", b"9" * 50, b"\0", b"\xff\xfe", b"-1", b"}"),
    *(b"__proto__", b"'; DROP TABLE lanes;--", b"<script>", b"../", b"%00", b"\r\n", b"\xe2\x80\xae", b"[" * 300),
)


@dataclass(frozen=True)
class Target:
    """Something that takes input from strangers.

    Attributes
    ----------
    one
        Takes one input from the dice; returns in a word what came of it; raises where a promise was broken.
    check
        The same for given bytes, where the input is nothing but bytes: what a coverage-guided engine needs.
    seeds
        Good inputs for `check`.
    close
        Called at the end, in the process that called `one`.
    """

    one: Callable[[Random], str]
    check: Callable[[bytes], str] | None = None
    seeds: tuple[bytes, ...] = ()
    close: Callable[[], None] = lambda: None


def mangled(good: bytes, dice: Random, most: int = 3) -> bytes:
    """Flip, cut, double, move or put something nasty into a copy of good bytes."""
    raw = bytearray(good)
    for _ in range(dice.randint(1, most)):
        at, to = sorted((dice.randrange(len(raw) + 1), dice.randrange(len(raw) + 1)))
        match dice.randrange(7):
            case 0 if at < len(raw):
                raw[at] ^= 1 << dice.randrange(8)
            case 1 if at < len(raw):
                raw[at] = dice.randrange(256)
            case 2:
                del raw[at : at + dice.randint(1, 8)]
            case 3:
                raw[at:at] = raw[at:to][:4096]
            case 4:
                del raw[at:]
            case _:
                raw[at:at] = dice.choice(NASTY)
    return bytes(raw)
