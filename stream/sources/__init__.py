"""Where lines come from. `open_source` makes a source from what the command line says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from memory.errors import ConfigurationError
from stream.sources.file_source import FileSource
from stream.sources.follow import FollowSettings
from stream.sources.gap import Gap
from stream.sources.pipe_source import PipeSource
from stream.sources.position import Position
from stream.sources.source import CHUNK_BYTES, Chunk, EndOfInput, Mark, Source
from stream.sources.stdin_source import StdinSource

__all__ = [
    "CHUNK_BYTES",
    "SCHEMES",
    "Chunk",
    "EndOfInput",
    "FileSource",
    "FollowSettings",
    "Gap",
    "Mark",
    "PipeSource",
    "Position",
    "Source",
    "SourceOptions",
    "StdinSource",
    "open_source",
]


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What the command line says beside the source itself; a source takes what concerns it.

    Attributes
    ----------
    follow
        How to go on at the end of the input; None: do not.
    stdin_continues
        Standard input begins where the last one left off.
    accept_gap
        Go on where what was read before is gone.
    """

    follow: FollowSettings | None = None
    stdin_continues: bool = False
    accept_gap: bool = False


def _file(rest: str, options: SourceOptions) -> Source:
    if not rest:
        raise ConfigurationError("expected a path in the source 'file:PATH', got 'file:'")
    return FileSource(Path(rest).expanduser(), follow=options.follow, accept_gap=options.accept_gap)


def _stdin(rest: str, options: SourceOptions) -> Source:
    if rest:
        raise ConfigurationError(f"expected nothing behind 'stdin:', got {rest!r}; did you mean file:{rest}?")
    return StdinSource(
        follow=options.follow is not None, continues=options.stdin_continues, accept_gap=options.accept_gap
    )


SCHEMES: dict[str, Callable[[str, SourceOptions], Source]] = {
    "file": _file,
    "stdin": _stdin,
}
"""What stands before the colon → what makes the source. A new kind of source is one more entry."""


def open_source(
    spec: str,
    *,
    follow: bool | FollowSettings = False,
    stdin_continues: bool = False,
    accept_gap: bool = False,
) -> Source:
    """Make the source that a text such as ``file:PATH`` or ``stdin:`` names; its ``open`` is still to be called.

    Parameters
    ----------
    spec
        The scheme, a colon, and what the scheme takes.
    follow
        Whether, or how, to go on at the end of the input.
    stdin_continues
        Standard input begins where the last one left off.
    accept_gap
        Whether to go on where what was read before is gone, and tell of it in ``gaps``.

    Raises
    ------
    ConfigurationError
        No source is named so.

    Examples
    --------
    >>> open_source("file:events.jsonl", follow=True).follow.interval
    0.2
    >>> open_source("fiel:log")
    Traceback (most recent call last):
    ...
    memory.errors.ConfigurationError: expected a source 'file:…' or 'stdin:…', got 'fiel:log' (did you mean file:?)
    """
    settings = follow if isinstance(follow, FollowSettings) else FollowSettings() if follow else None
    scheme, colon, rest = spec.partition(":")
    if colon and scheme in SCHEMES:
        return SCHEMES[scheme](rest, SourceOptions(settings, stdin_continues, accept_gap))
    if spec == "-" or (not colon and spec == "stdin"):
        slip = " (did you mean stdin:?)"
    elif Path(spec).exists():
        slip = f" (did you mean file:{spec}?)"
    else:
        near = get_close_matches(scheme, SCHEMES, 1)
        slip = f" (did you mean {near[0]}:?)" if near else ""
    known = " or ".join(f"'{name}:…'" for name in SCHEMES)
    raise ConfigurationError(f"expected a source {known}, got {spec!r}{slip}")
