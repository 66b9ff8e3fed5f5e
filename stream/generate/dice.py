"""Random numbers that are the same on every machine, in every version of every library.

BLAKE2b in counter mode: 64 bytes of hash are sixteen 32-bit words. A die costs its key and one block, so a hundred
thousand streams can each hold their own, and no stream's draws depend on another's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")

_BLOCK = struct.Struct("<16I")
_UNIT = 2.0**-32


class Dice:
    """A stream of random draws, fixed by the parts of its name.

    Parameters
    ----------
    *name
        Numbers and words; other parts, other draws.

    Examples
    --------
    >>> Dice(7, "topics").pick(1000), Dice(7, "topics").pick(1000), Dice(8, "topics").pick(1000)
    (579, 579, 897)
    """

    __slots__ = ("_at", "_block", "_key", "_words")

    def __init__(self, *name: int | str):
        self._key = blake2b(repr(name).encode(), digest_size=32).digest()
        self._block = 0
        self._words: tuple[int, ...] = ()
        self._at = 16

    def word(self) -> int:
        """Draw an integer from 0 to 2³² − 1."""
        at = self._at
        if at == 16:
            digest = blake2b(self._block.to_bytes(8, "little"), key=self._key, digest_size=64).digest()
            self._words = _BLOCK.unpack(digest)
            self._block += 1
            at = 0
        self._at = at + 1
        return self._words[at]

    def pick(self, n: int) -> int:
        """Draw an integer from 0 to n − 1; for `n` under a million, uneven by less than one in four thousand."""
        return self.word() * n >> 32

    def chance(self, p: float) -> bool:
        """Return True with probability `p`."""
        return self.word() * _UNIT < p

    def share(self) -> float:
        """Draw a number from 0 up to, not including, 1."""
        return self.word() * _UNIT

    def choose(self, items: Sequence[T]) -> T:
        """Draw one of `items`."""
        return items[self.word() * len(items) >> 32]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return `items` in a random order."""
        left = list(items)
        for i in range(len(left) - 1, 0, -1):
            j = self.pick(i + 1)
            left[i], left[j] = left[j], left[i]
        return left

    def geometric(self, mean: float, least: int) -> int:
        """Draw a length of at least `least` with the given mean.

        After `least`, each further step ends it with the same probability: nothing about a length so far tells when
        it will end. Drawn step by step rather than by a logarithm, whose last bit differs between machines.
        """
        end = 1.0 / (mean - least + 1.0)
        length = least
        while not self.chance(end):
            length += 1
        return length
