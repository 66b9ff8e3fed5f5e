"""A line that kills the process must not do so for ever: starts that died without progress are counted.

Something outside starts a consumer that died again, and it goes on where its last checkpoint left off: at the line that
killed it. A small file beside the state store, `state.db.starts`, breaks that circle:

1. Each start notes from which positions it goes on. The first commit of progress takes the file away. Where
   `--crash-limit` starts in a row went on from the same positions and died, the next one is *careful*.
2. A careful run takes lines one at a time, on one thread, and commits each (`stream/careful_reader.py`). Which line is
   being looked at is noted before anything looks at it, and that nobody does any more before it is committed. What
   comes out is the same, since where a micro-batch ends never changes that. When as many lines have passed as could
   have been under way, it goes on at full speed.
3. A line at which `--crash-limit` careful runs died is refused (`Reason.CRASHED`).

A death counts where it left a trace: an error that nobody foresaw, or a signal that the process brought upon itself
(`stream/crash_trace.py`). Kills from outside leave none, and the kernel's for want of memory neither: with
`--count-kills` they count too. What keeps them from costing a line then, all but those that come again and again within
a moment of each start:

- A run that ends in order is not counted: at the end of its input, with an error that has a message, or when it was
  told to stop, even if it is killed because it took too long: the stop is noted at once.
- A kill counts against a line only while that line is parsed, tokenised, measured and written to the memory: mostly
  about a millisecond. Reading, committing, waiting for room or for a database, and operators' actions are at nobody's
  hand. Kills must hit this millisecond of the same line in as many runs in a row as `--crash-limit` says, after
  as many that hit before the first checkpoint. A line that takes so long that every run is killed over it does kill it.
- At most `IN_A_ROW` lines are refused with no event between them that passed: more, and what kills is not the lines
  but the machine, such as too little memory. Then the run goes on dying, and goes on by itself once that is mended.

The file is a hint and nothing more. If it is missing, torn, another store's or of other positions, counting begins
anew. It is not put on the disk by force: after a loss of power there is nothing to count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock

import structlog

from memory.errors import EbbtideError
from stream.crash_note import Line, Note, moved, place_of
from stream.sources.position import Position
from stream.sources.source import CHUNK_BYTES

log = structlog.get_logger(__name__)

IN_A_ROW = 5
"""Lines that are refused with no event between them that passed, at most."""

UNDER_WAY = 10 * CHUNK_BYTES
"""Bytes of input that can be between the source and a micro-batch: what waits, what is prepared, what is taken in."""

_KEPT = 16
"""Lines whose deaths are remembered."""


class CrashGuard:
    """Counts starts that died, and tells which line killed them. Its life:

    1. `begin(...)` when all is ready for the first line.
    2. All work within `watch()`. `progress(positions)` after each commit that advanced. While `careful`: `take` before
       a line is looked at, `let_go` after it.
    3. `excuse()` when the run is told to stop, and when it ends.

    Any thread may call any of them.

    Parameters
    ----------
    limit
        `--crash-limit`; 0: nothing is noted, and no run is careful.
    batch_events
        Most events in a micro-batch.
    kills
        `--count-kills`: whether deaths without a trace count.

    Examples
    --------
    A line that kills: three starts die, the fourth is careful.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "state.db.starts"
    >>> for _ in range(4):
    ...     guard = CrashGuard(limit=3, batch_events=1024)
    ...     guard.begin(path, "a1b2", {"talk.jsonl": 120})
    ...     print(guard.careful)
    False
    False
    False
    True

    It and the next two die over the line at byte 120, which is refused then.

    >>> for _ in range(4):
    ...     print(guard.deaths("talk.jsonl", 120), guard.refuses("talk.jsonl", 120))
    ...     guard.take(Line("talk.jsonl", 120, 180))
    ...     guard = CrashGuard(limit=3, batch_events=1024)
    ...     guard.begin(path, "a1b2", {"talk.jsonl": 120})
    0 False
    1 False
    2 False
    3 True
    """

    def __init__(self, limit: int, batch_events: int, *, kills: bool = True):
        self.path: Path | None = None
        """The file, once begun."""
        self.offsets: dict[str, int] = {}
        """Partition → bytes consumed and committed; kept up while careful."""
        self._limit, self._batch_events, self._kills = limit, batch_events, kills
        self._lock = RLock()
        self._note = Note(store="", at=0)
        self._there = self._excused = self._died = self._warned = False
        self.pending = False
        """Whether a line was handed out that is not committed yet."""

    @property
    def careful(self) -> bool:
        """Whether lines are taken one at a time."""
        return bool(self._note.bytes_left or self._note.lines_left)

    @property
    def excused(self) -> bool:
        """Whether the run was told to stop: however it ends, that is not a crash."""
        return self._excused

    @property
    def hopeless(self) -> bool:
        """Whether so many lines were refused in a row that it cannot be the lines."""
        return self._note.in_a_row >= IN_A_ROW

    def begin(self, path: Path | None, store: str, positions: Mapping[str, int], *, traced: bool = False) -> None:
        """Note that a run goes on from here.

        Parameters
        ----------
        path
            The file; None: nothing is noted, and the run is not careful.
        store
            The identity of its store.
        positions
            Partition → bytes consumed, as of its checkpoint.
        traced
            Whether the run before left a trace of a crash.
        """
        if path is None or not self._limit:
            return
        with self._lock:
            self.path = path
            self.offsets = dict(positions)
            last = self._fitting(path, store, place_of(positions), traced=traced)
            starts = last.starts
            if not (last.bytes_left or last.lines_left) and starts >= self._limit:
                last = last.model_copy(update={"bytes_left": UNDER_WAY, "lines_left": self._batch_events})
            self._note = last
            if not self._excused:  # told to stop already: it takes no line
                self._write(starts=0 if self.careful else starts + 1, died=False)

    def _fitting(self, path: Path, store: str, at: int, *, traced: bool) -> Note:
        """Return the note of the run before, brought up to the checkpoint; an empty one if it is of another."""
        try:
            note = Note.read(path.read_bytes())
        except OSError:
            note = None
        if note is None or note.store != store:
            return Note(store=store, at=at)
        if not (self._kills or note.died or traced):  # as if it had been told to stop
            note = note.model_copy(update={"starts": max(0, note.starts - 1), "looked_at": False})
        line, deaths = note.line, {(partition, offset): count for partition, offset, count in note.deaths}
        if line is not None and at == moved(note.at, line):  # it was committed, so it did not kill
            deaths.pop((line.partition, line.start), None)
        elif at != note.at:
            return Note(store=store, at=at)
        elif line is not None and note.looked_at:
            deaths[line.partition, line.start] = deaths.get((line.partition, line.start), 0) + 1
        kept = tuple((*where, count) for where, count in deaths.items())[-_KEPT:]
        return note.model_copy(update={"at": at, "line": None, "looked_at": False, "deaths": kept})

    def deaths(self, partition: str, offset: int) -> int:
        """Return how many runs died while the line that starts there was at hand."""
        return next((n for name, start, n in self._note.deaths if (name, start) == (partition, offset)), 0)

    def refuses(self, partition: str, offset: int) -> bool:
        """Say whether the line that starts there is not to be looked at again."""
        return self.deaths(partition, offset) >= self._limit and not self.hopeless

    def take(self, line: Line, *, refused: bool = False) -> None:
        """Note that a line is handed out.

        Parameters
        ----------
        line
            Which.
        refused
            Whether nothing will look at it.
        """
        with self._lock:
            self.pending = True
            self._write(
                line=line,
                looked_at=not (refused or self._excused),
                in_a_row=self._note.in_a_row + 1 if refused else self._note.in_a_row,
            )

    def let_go(self, *, event: bool = False) -> None:
        """Note that nothing looks at the line any more.

        Parameters
        ----------
        event
            Whether it was an event, and passed.
        """
        with self._lock:
            if self._note.looked_at or (event and self._note.in_a_row):
                self._write(looked_at=False, in_a_row=0 if event else self._note.in_a_row)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within, the run waits for something else than its line."""
        with self._lock:
            looked_at = self._note.looked_at
            self.let_go()
        yield
        with self._lock:
            if looked_at and not self._excused:
                self._write(looked_at=True)

    def progress(self, positions: Mapping[str, Position]) -> None:
        """Note a commit: these partitions are consumed up to there.

        Parameters
        ----------
        positions
            Those that moved.
        """
        with self._lock:
            if not self.careful:
                self._remove()
                return
            self.offsets |= {partition: position.offset for partition, position in positions.items()}
            note, line = self._note, self._note.line
            self.pending = False
            deaths = tuple(each for each in note.deaths if each[1] >= self.offsets.get(each[0], 0))
            changed = {"at": place_of(self.offsets) if line is None else moved(note.at, line), "deaths": deaths}
            size = 0 if line is None else line.end - line.start
            left = {"bytes_left": max(0, note.bytes_left - size), "lines_left": max(0, note.lines_left - 1)}
            # Not written: the next line's note is, and until then this line is known to be committed.
            self._note = note.model_copy(update={**changed, **left, "line": None, "looked_at": False})
            if not self.careful:
                log.info("careful_no_more", hint="as many lines have passed as could have been under way")
                self._write(starts=0 if self._excused else self._limit)  # should it die now, the next one is careful

    def passed(self) -> None:
        """Note that the input has ended: nothing is under way any more."""
        with self._lock:
            self._note = self._note.model_copy(update={"bytes_left": 0, "lines_left": 0})
            self._remove()

    def excuse(self) -> None:
        """Note that the run was told to stop, or has ended in order. A second time does nothing."""
        with self._lock:
            if not (self._died or self._excused):
                self._excused = True
                self._put_back()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Take an error that comes out of this for a crash, unless it is one that was foreseen and has a message."""
        try:
            yield
        except (EbbtideError, OSError, KeyboardInterrupt):
            raise
        except BaseException:
            with self._lock:
                self._died = True  # what is noted stays as it is
                if self._there:
                    self._write(died=True)
            raise

    def _put_back(self) -> None:
        """Write the note as it would be had this run not been started."""
        if not self._there:
            return
        starts = max(0, self._note.starts - 1)
        if starts or self.careful:
            self._write(starts=starts, looked_at=False)
        else:
            self._remove()

    def _write(self, **changed: object) -> None:
        self._note = self._note.model_copy(update=changed)
        if self.path is None:
            return
        new = self.path.with_name(self.path.name + ".new")
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb", buffering=0) as file:
                file.write(self._note.text())
            os.replace(new, self.path)
            self._there = True
        except (OSError, ValueError) as error:  # no room, mostly: counting begins anew, which harms nobody
            if not self._warned:
                self._warned = True
                log.warning("starts_not_noted", file=str(self.path), reason=str(error))
            self._remove()  # what is there says something else than what is
            with suppress(OSError):
                new.unlink(missing_ok=True)

    def _remove(self) -> None:
        if self._there and self.path is not None:
            self._there = False
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
