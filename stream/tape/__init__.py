"""Tapes: a run recorded so that it can be replayed without the model."""

from __future__ import annotations

from stream.tape.format import TapeHead
from stream.tape.tape_reader import TapeReader
from stream.tape.tape_writer import TapeWriter

__all__ = ["TapeHead", "TapeReader", "TapeWriter"]
