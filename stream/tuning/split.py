"""Which streams are searched on, and which are reported on."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from memory.errors import ConfigurationError


def split_streams(names: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Divide streams into those that a search may look at and those that it is judged by.

    The streams are put in the order of a hash of their names, and cut: which side a stream falls on has nothing to do
    with what is in it, or with its place on the tape.

    Parameters
    ----------
    names
        The streams, at least two.
    share
        How much of them is searched on, between 0 and 1; at least one stream falls on either side.
    seed
        Chooses the order.

    Returns
    -------
    tuple
        The names to search on and those to report on, each in the order of `names`.

    Raises
    ------
    ConfigurationError
        There are fewer than two streams.

    Examples
    --------
    >>> split_streams(["ann", "bob", "cleo", "dan"], 0.5, 0)
    (['bob', 'dan'], ['ann', 'cleo'])
    """
    if len(names) < 2:
        raise ConfigurationError(
            f"expected a tape of at least 2 streams, one part to tune on and the other to report on, got {len(names)}; "
            "record more streams, or give a long conversation another stream name every so often"
        )
    order = sorted(names, key=lambda name: blake2b(name.encode(), key=f"split {seed}".encode()).digest())
    first = set(order[: min(max(round(share * len(names)), 1), len(names) - 1)])
    return [name for name in names if name in first], [name for name in names if name not in first]
