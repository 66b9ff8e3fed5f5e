"""Records and dead letters: files of lines, from which some lines are taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

from memory.errors import EbbtideError
from stream.append_file import AppendFile
from stream.dead_letters import DeadLetter
from stream.forget.files import begin_new, keep_up, new_path
from stream.forget.forms import needles_of
from stream.forget.output import Advance, Output, Rewritten
from stream.forget.whose import of_letter, of_record
from stream.store import OutputMark

_CHUNK = 1 << 20


class LineOutput(Output):
    """A file of lines. See `Output` for its life.

    Parameters
    ----------
    name
        Under which the store keeps its mark: ``jsonl`` or ``dead_letters``.
    path
        The file.
    mark
        The store's; None: it has none, and the file is taken as it is.
    doubtful
        Whether dead letters that hold a name, but do not tell whose they are, go too.
    """

    def __init__(self, name: str, path: Path, mark: OutputMark | None, *, doubtful: bool = False):
        self.name, self.mark, self._doubtful = name, mark, doubtful
        self.path = path.resolve()
        self.found: Counter[str] = Counter()
        self.unsure = self.total = 0
        self.links = 1
        self._file = AppendFile(self.path)
        self._length = 0
        self._gaps: list[tuple[int, int]] = []
        self._names: set[str] = set()

    def open(self) -> None:
        """Lock the file, and compare it with its mark."""
        self.links = self.path.stat().st_nlink
        if self.mark is None:
            self._file.open(self.path.stat().st_size)
        else:
            self._file.open(*self.mark)
        self._length = self._file.length

    @property
    def size(self) -> int:
        """Bytes to look through."""
        return self._length

    @property
    def names(self) -> set[str]:
        """Streams that have lines here, as far as `look` met them."""
        return self._names

    def look(self, streams: Collection[str], advance: Advance) -> None:
        """Find the lines of these streams."""
        wanted, at, told = set(streams), 0, 0
        self.found, self._gaps, self._names, self.total, self.unsure = Counter(), [], set(), 0, 0
        whose = self._letter_of(wanted) if self.name == "dead_letters" else self._record_of
        with self.path.open("rb") as file:
            while at < self._length:
                line = file.readline()
                end = at + len(line)
                self.total += 1
                stream = whose(line)
                if stream in wanted:
                    self.found[stream] += 1
                    if self._gaps and self._gaps[-1][1] == at:
                        self._gaps[-1] = (self._gaps[-1][0], end)
                    else:
                        self._gaps.append((at, end))
                elif stream and self.name != "dead_letters":  # what those name may be anything
                    self._names.add(stream)
                at = end
                if at - told >= _CHUNK or at >= self._length:
                    advance(at - told)
                    told = at

    def _record_of(self, line: bytes) -> str:
        stream = of_record(line)
        if stream is None:
            raise EbbtideError(
                f"{self.path}: line {self.total} is no output record: the file was damaged, or is another one"
            )
        return stream

    def _letter_of(self, wanted: Collection[str]) -> Callable[[bytes], str]:
        needles = {name: [needle.data for needle in needles_of(name)] for name in wanted}

        def whose(line: bytes) -> str:
            try:
                letter = DeadLetter.from_json(line)
            except ValueError as error:
                raise EbbtideError(f"{self.path}: line {self.total}: {error}") from None
            named = of_letter(letter.raw)
            for name in named & needles.keys():
                return name
            if named and not letter.truncated:
                return min(named)
            for name, forms in needles.items():
                if any(form in letter.raw for form in forms):
                    if self._doubtful:
                        return name
                    self.unsure += 1
                    break
            return ""

        return whose

    def rewrite(self, advance: Advance) -> Rewritten:
        """Write the file anew, without the lines found."""
        if not self._gaps:
            return Rewritten([], [], self.mark)
        new = begin_new(self.path)
        try:
            with self.path.open("rb") as old:
                at = written = 0
                for begin, end in [*self._gaps, (self._length, self._length)]:
                    old.seek(at)
                    while at < begin:
                        part = old.read(min(_CHUNK, begin - at))
                        new.append(part)
                        written = keep_up(new, written)
                        at += len(part)
                        advance(len(part))
                    advance(end - at)
                    at = end
            mark = OutputMark(new.flush(), new.identity)
        finally:
            new.close()
        return Rewritten([(str(new.path), str(self.path))], [], None if self.mark is None else mark)

    def new_files(self) -> list[Path]:
        """Return the file that `rewrite` made."""
        new = new_path(self.path)
        return [new] if new.exists() else []

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
