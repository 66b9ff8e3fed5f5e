"""The files that a run writes: records, dead letters, tape. They go along with its checkpoints."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from memory.errors import ConfigurationError
from stream.assembly import tape_head
from stream.config import RunSettings
from stream.dead_letters import DeadLetterFile
from stream.engine import Engine
from stream.sinks import JsonlSink, Sink, open_sink
from stream.sources import FileSource, Source
from stream.sources.file_source import ENDINGS
from stream.store import Checkpoint, OutputMark
from stream.tape import TapeWriter

NO_MARK = (None, "")
"""Where an output begins that the checkpoint does not know."""


class Outputs:
    """What a run writes, each where it is asked for. Its life is that of a `Sink`, with one mark for each output.

    Parameters
    ----------
    settings
        Which, and where.
    engine
        What a tape is of.
    """

    def __init__(self, settings: RunSettings, engine: Engine):
        self.sink: Sink | None = None if settings.sink is None else open_sink(settings.sink)
        self.dead_letter_path = dead_letter_path(settings)
        self.dead_letters = None if self.dead_letter_path is None else DeadLetterFile(self.dead_letter_path)
        self.tape: TapeWriter | None = None
        if settings.tape is not None:
            self.tape = TapeWriter(settings.tape, tape_head(settings, engine))
        self._all = [each for each in (self.sink, self.dead_letters, self.tape) if each is not None]
        self._open = ExitStack()

    def refuse_as_input(self, source: Source) -> None:
        """Refuse a source that would read what this run writes.

        Raises
        ------
        ConfigurationError
            It would.
        """
        if not isinstance(source, FileSource):
            return
        given = source.path.resolve()
        for path in (self.dead_letter_path, self.sink.path if isinstance(self.sink, JsonlSink) else None):
            if path is not None and (path.resolve() == given or _is_read_in(given, path.resolve())):
                raise ConfigurationError(
                    f"{path}: expected an output that the source {source.path} does not read, got one that it "
                    "would; write it somewhere else"
                )

    def check(self, checkpoint: Checkpoint) -> None:
        """Say whether they could go on from a checkpoint, and change nothing.

        Raises
        ------
        ConfigurationError
            One does not hold it (any more).
        """
        for output in self._all:
            if output.name in checkpoint.marks:
                output.check(*checkpoint.marks[output.name])

    def open(self, checkpoint: Checkpoint) -> None:
        """Begin, or cut each back to where the checkpoint has it."""
        # One that is new and refuses what lies there does so before another is cut.
        for output in sorted(self._all, key=lambda output: output.name in checkpoint.marks):
            output.open(*checkpoint.marks.get(output.name, NO_MARK))
            self._open.callback(output.close)

    def flush(self) -> dict[str, OutputMark]:
        """Make safe what was written; return each one's mark, for the checkpoint."""
        return {output.name: OutputMark(output.flush(), output.identity) for output in self._all}

    def close(self) -> None:
        """Let go of them."""
        self._open.close()


def dead_letter_path(settings: RunSettings) -> Path | None:
    """Return where refused lines go: as asked, else beside the sink, else nowhere (they are counted all the same).

    Examples
    --------
    >>> str(dead_letter_path(RunSettings(sink="jsonl:run/out.jsonl")))
    'run/out.dead.jsonl'
    """
    if settings.dead_letter is not None:
        return settings.dead_letter
    if settings.sink is not None and settings.sink.startswith("jsonl:"):
        return Path(settings.sink.removeprefix("jsonl:")).with_suffix(".dead.jsonl")
    return None


def _is_read_in(folder: Path, path: Path) -> bool:
    """Say whether a source of a folder reads a file: one that lies in it, or is linked to there."""
    if not folder.is_dir():
        return False
    names = [entry.name for entry in os.scandir(folder) if entry.is_symlink()] + [path.name] * (path.parent == folder)
    read = (folder / name for name in names if name.endswith(ENDINGS) and not name.startswith("."))
    return any(each.resolve() == path for each in read)
