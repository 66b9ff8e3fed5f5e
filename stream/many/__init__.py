"""A recorded tape under thousands of policies at once: the policies are the lanes."""

from __future__ import annotations

from stream.many.loaded_tape import LoadedStream, LoadedTape, load
from stream.many.scores import Scores
from stream.many.scoring import score

__all__ = ["LoadedStream", "LoadedTape", "Scores", "load", "score"]
