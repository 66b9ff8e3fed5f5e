"""Where output records go. To add a sink, see docs/extending.md."""

from __future__ import annotations

from pathlib import Path

from memory.errors import ConfigurationError
from stream.sinks.jsonl_sink import JsonlSink
from stream.sinks.sink import Sink

__all__ = ["JsonlSink", "Sink", "open_sink"]


def open_sink(spec: str) -> Sink:
    """Make the sink that a specification names, such as ``jsonl:out.jsonl``; it is opened by the consumer.

    Raises
    ------
    ConfigurationError
        No sink has that scheme, or it is no file.
    """
    scheme, colon, rest = spec.partition(":")
    if scheme == "jsonl" and rest:
        if not Path(rest).name:
            raise ConfigurationError(f"--sink {spec!r}: expected a file, got a folder")
        return JsonlSink(rest)
    slip = f"; did you mean jsonl:{spec}?" if not colon else ""
    raise ConfigurationError(f"--sink {spec!r}: expected jsonl:PATH{slip}")
