"""Generated streams as files."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import IO, cast

import zstandard

from memory.errors import ConfigurationError
from stream.generate.interleave import generate
from stream.generate.settings import GenerateSettings

REPORT_EVERY = 1000
"""Events between two calls of `progress`."""


@dataclass(frozen=True, slots=True)
class Written:
    """What `write_stream` wrote."""

    events: int
    boundaries: int
    """Events that begin a new topic."""
    stated: int
    """Events that state a fact."""
    rebound: int
    """Events that change a fact."""
    asked: int
    """Events that ask for a fact."""


def write_stream(
    settings: GenerateSettings,
    out: Path,
    truth: Path | None = None,
    progress: Callable[[int], None] | None = None,
    *,
    overwrite: bool = False,
) -> Written:
    """Write events, and the truth about them, as JSON Lines.

    A path that ends in ``.gz`` or ``.zst`` is compressed. Files appear under their names only when they are complete.

    Parameters
    ----------
    settings
        How many streams, how long, and how they change.
    out
        Where the events go.
    truth
        Where the truth goes, one line for each event, in the same order; None: nowhere.
    progress
        Called with the number of events written so far, now and then and at the end.
    overwrite
        Whether files that exist are replaced.

    Returns
    -------
    Written
        What was written, counted.

    Raises
    ------
    ConfigurationError
        A file exists (and `overwrite` is False), its folder does not, or both paths are the same.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     out = Path(folder) / "stream.jsonl"
    ...     written = write_stream(GenerateSettings(streams=2, events=50), out)
    ...     written.events, len(out.read_text().splitlines())
    (100, 100)
    """
    paths = [out] if truth is None else [out, truth]
    _check(paths, overwrite)
    counts = {"state": 0, "rebind": 0, "ask": 0, "answer": 0}
    events = boundaries = 0
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    with ExitStack() as stack:
        # Left in the reverse order: the truth gets its name first, so that events under their name always have theirs.
        event_file = stack.enter_context(_appearing(out, overwrite))
        truth_file = None if truth is None else stack.enter_context(_appearing(truth, overwrite))
        for event, true in generate(settings):
            event_file.write(encode(event) + "\n")
            if truth_file is not None:
                truth_file.write(encode(true) + "\n")
            events += 1
            boundaries += true["boundary"]
            if true["fact"] is not None:
                counts[true["fact"]["op"]] += 1
            if progress is not None and events % REPORT_EVERY == 0:
                progress(events)
    if progress is not None and events % REPORT_EVERY:
        progress(events)
    return Written(events, boundaries, counts["state"], counts["rebind"], counts["ask"])


def _check(paths: list[Path], overwrite: bool) -> None:
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigurationError(f"expected two different files for events and truth, got {str(paths[0])!r} for both")
    for path in paths:
        if not path.parent.is_dir():
            raise ConfigurationError(
                f"expected an existing folder for {str(path)!r}, got {str(path.parent)!r}; a typing slip?"
            )
        if path.exists() and not path.is_file():  # a folder; or a device, which a rename would do away with
            raise ConfigurationError(
                f"expected the name of an ordinary file, got {str(path)!r}, which is something else"
            )
        if path.exists() and not overwrite:
            raise ConfigurationError(
                f"expected a new file, but {str(path)!r} exists; name another, or ask to overwrite it"
            )


@contextmanager
def _appearing(path: Path, overwrite: bool) -> Iterator[IO[str]]:
    """Open a text file that gets its name when everything is written and flushed to disk, and vanishes if not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as raw:
            with ExitStack() as stack:
                packed: IO[bytes]
                if path.suffix == ".gz":  # no name and no time inside: the same events, the same bytes
                    packed = cast(IO[bytes], stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0)))
                elif path.suffix == ".zst":
                    packed = cast(
                        IO[bytes],
                        stack.enter_context(zstandard.ZstdCompressor().stream_writer(raw, closefd=False)),
                    )
                else:
                    packed = raw
                text = TextIOWrapper(packed, encoding="utf-8", newline="\n")
                try:
                    yield text
                finally:
                    text.detach()  # flushes; what lies below is closed by its own context
            raw.flush()
            os.fsync(raw.fileno())
        if not overwrite:
            _check([path], overwrite)  # somebody else may have made it meanwhile
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
