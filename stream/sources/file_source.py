"""Lines from files: one file, all files of a folder, or logs that are followed as they grow and rotate."""

from __future__ import annotations

import os
import stat
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

import structlog

from memory.errors import ConfigurationError
from stream.sources.byte_stream import COMPRESSED
from stream.sources.file_log import FileLog, Step
from stream.sources.file_mark import beginning_of
from stream.sources.follow import FollowSettings
from stream.sources.open_file import open_readonly
from stream.sources.position import Position
from stream.sources.siblings import Found, look
from stream.sources.source import Chunk, EndOfInput, Source

log = structlog.get_logger(__name__)

ENDINGS = tuple(ending + packing for ending in (".jsonl", ".ndjson") for packing in ("", *COMPRESSED))
"""Endings of the names of the files that are read in a folder."""

_OPEN_FILES = 64

_NAMED = 5
"""Partitions named in one message."""


class FileSource(Source):
    """Reads a file, or a folder of files; plain, gzip or zstd.

    A single file is a partition named by its file name. In a folder each file whose name ends in one of `ENDINGS` and
    does not begin with a dot is a partition, named by its file name; folders inside it are not read. Partitions are
    read one after the other in the order of their names; with `follow`, one is left for the next whenever it has
    nothing new.

    Parameters
    ----------
    path
        The file or folder.
    follow
        How to go on at the end of the files; None: do not.
    accept_gap
        Whether to go on where what was read before is gone.
    clock
        Seconds, never going back; for the waits in `FollowSettings`.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "events.jsonl"
    >>> _ = path.write_bytes(b'{"stream": "ann", "text": "Hello"}\\n{"stream": "ann", "text": "Bye"}\\n')
    >>> source = FileSource(path)
    >>> source.open({})
    >>> chunk = source.read(timeout=1)
    >>> chunk.lines
    [b'{"stream": "ann", "text": "Hello"}', b'{"stream": "ann", "text": "Bye"}']
    >>> position = chunk.position(1)
    >>> source.close()
    >>> again = FileSource(path)
    >>> again.open({chunk.partition: position})
    >>> again.read(timeout=1).lines
    [b'{"stream": "ann", "text": "Bye"}']
    >>> again.close()
    """

    def __init__(
        self,
        path: str | Path,
        *,
        follow: FollowSettings | None = None,
        accept_gap: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        super().__init__()
        self.path = Path(path)
        self.follow = follow
        self.accept_gap = accept_gap
        self._clock = clock
        self._is_folder = False
        self._logs: list[FileLog] = []
        self._names: set[str] = set()
        self._gone: dict[str, tuple[int, int]] = {}  # partitions whose files were deleted → where they ended
        self._claimed: dict[str, Found] = {}  # files that are parts of known partitions
        self._waiting: dict[FileLog, None] = {}  # open partitions that have nothing new, the longest first
        self._cursor = 0
        self._total: int | None = None
        self._rests: list[int] = []  # bytes in all partitions behind each
        self._backlog = 0
        self._backlog_until = 0.0
        self._final_backlog: int | None = None  # when it was closed
        self._begun: deque[tuple[str, Position]] = deque()  # what nobody has been told of, by `beginnings`

    def beginnings(self) -> Mapping[str, Position]:
        """Those of followed files that are new, and of partitions that go on behind a gap."""
        return dict(self._begun.popleft() for _ in range(len(self._begun)))

    # -- opening -----------------------------------------------------------------------------------------------------

    def _open(self, positions: Mapping[str, Position]) -> None:
        status = self._status(positions)
        self._is_folder = status is not None and stat.S_ISDIR(status.st_mode)
        if self._is_folder:
            self._open_folder(positions)
        else:
            self._open_file(positions)
        self._note_gaps()
        if self.follow is None:
            self._total = sum(found.size for each in self._logs if (found := look(each.path)) is not None)
            self._note_rests()

    def _note_gaps(self) -> None:
        self.gaps = [each.gap for each in self._logs if each.gap is not None]
        self._begun.extend((gap.partition, gap.position) for gap in self.gaps)

    def _status(self, positions: Mapping[str, Position]) -> os.stat_result | None:
        """Return the path's status; None if it is not there but a followed log's older parts may be."""
        try:
            return self.path.stat()
        except FileNotFoundError:
            if partition_name(self.path) in positions and self.path.parent.is_dir():
                return None
            if positions:
                names = _some(sorted(positions))
                raise ConfigurationError(
                    f"{self.path}: expected the folder whose files {names} were read before, got nothing"
                    f"{self._slip()}; put it back, or begin anew with another state"
                ) from None
            raise ConfigurationError(f"{self.path}: expected a file or folder, got nothing{self._slip()}") from None
        except OSError as error:
            raise ConfigurationError(f"{self.path}: expected a file or folder, cannot look: {error.strerror}") from None

    def _slip(self) -> str:
        """Name the path that was likely meant."""
        folder = self.path.parent
        if not folder.is_dir():
            return f" ({folder} is no folder)"
        near = get_close_matches(self.path.name, os.listdir(folder), 1)
        return f" (did you mean {folder / near[0]}?)" if near else ""

    def _new_log(self, path: Path, accept_gap: bool = False) -> FileLog:
        name = partition_name(path)
        offset, lines = self._gone.pop(name, (0, 0))
        return FileLog(
            name,
            path,
            follow=self.follow,
            stop=self._stop,
            clock=self._clock,
            counts=self.counts,
            in_folder=self._is_folder,
            taken=self._is_taken,
            offset=offset,
            lines=lines,
            accept_gap=accept_gap,
        )

    def _open_file(self, positions: Mapping[str, Position]) -> None:
        check_readable(self.path)
        self._open_only(self._new_log(self.path, self.accept_gap), positions)

    def _open_only(self, only: FileLog, positions: Mapping[str, Position]) -> None:
        """Read a single partition."""
        strangers = sorted(set(positions) - {only.partition})
        if strangers:
            raise ConfigurationError(
                f"{self.path}: expected a stored position of {only.partition!r}, got one of {strangers[0]!r}; "
                "read the same source as before, or begin anew with another state"
            )
        self._logs = [only]
        position = positions.get(only.partition)
        if position is None and self.follow is not None:
            position = beginning_of(self.path)
            if position is not None:
                self._begun.append((only.partition, position))
        only.open(position)

    def _open_folder(self, positions: Mapping[str, Position]) -> None:
        paths = {partition_name(path): path for path in self._listing() if look(path) is not None}
        if not paths and not positions and self.follow is None:
            inside = any(entry.is_dir() for entry in os.scandir(self.path))
            slip = "; folders inside it are not read" if inside else ""
            raise ConfigurationError(f"{self.path}: expected files ending in {', '.join(ENDINGS)}, got none{slip}")
        for path in paths.values():
            check_readable(path)
        # The files that have positions come first: they tell which of the others are theirs under a new name.
        refused: list[tuple[str, ConfigurationError]] = []
        for name in sorted(positions):
            # What was read to its end may be gone. In a followed folder its name may have passed to another file.
            may_go = bool(positions[name].identity.get("complete")) and (name not in paths or self.follow is not None)
            each = self._new_log(paths.get(name, self.path / name), self.accept_gap and not may_go)
            try:
                each.open(positions[name])
            except ConfigurationError as error:
                if may_go:
                    self._gone[name] = (positions[name].offset, positions[name].lines)
                    log.info("source_partition_gone", partition=name, offset=positions[name].offset)
                else:
                    refused.append((name, error))
            else:
                self._add(each)
        if refused:
            others = [name for name, _ in refused[1:]]
            raise ConfigurationError(f"{refused[0][1]}{f' (likewise: {_some(others)})' if others else ''}")
        self._adopt(paths.values())

    def _listing(self) -> list[Path]:
        """Return the files in the folder that are read, by name."""
        with os.scandir(self.path) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(ENDINGS) and entry.name[0] != "."]
        return [self.path / name for name in sorted(names)]

    def _adopt(self, paths: Iterable[Path]) -> bool:
        """Begin a partition for each file that is none of a known one's renamed; say whether any was."""
        new = [path for path in paths if not self._is_settled(path)]
        if not new:
            return False
        behind = {part.path for each in self._logs for part in each.ahead()}
        known = list(self._logs)
        for path in new:
            found = look(path)
            if found is None or path in behind:
                continue  # a log that catches up reads the parts in between itself; look again when it has
            if any(each.has(found) for each in known):
                self._claimed[path.name] = found
            else:
                self._add(self._begin(path))
        return len(self._logs) > len(known)

    def _begin(self, path: Path) -> FileLog:
        """Return the log of a new file, which is known from now on, whatever its name is when its turn comes."""
        each = self._new_log(path)
        position = beginning_of(path, *each.here) if self.follow is not None else None
        if position is not None:
            each.wait_at(position)
            self._begun.append((each.partition, position))
        return each

    def _is_settled(self, path: Path) -> bool:
        """Say whether it is known already what a file is."""
        if partition_name(path) in self._names:
            return True
        claimed = self._claimed.get(path.name)
        if claimed is None:
            return False
        found = look(path)
        if found == claimed:
            return True
        del self._claimed[path.name]
        return False

    def _add(self, each: FileLog) -> None:
        insort(self._logs, each, key=lambda log: log.partition)
        self._names.add(each.partition)
        self._keep_few_open(each)

    # -- reading -----------------------------------------------------------------------------------------------------

    def _read(self, timeout: float) -> Chunk | None:
        deadline = time.monotonic() + timeout
        while not self._stop.is_set():
            got = self._step_through() if self.follow is None else self._step_around()
            if isinstance(got, Chunk):
                return got
            if got is Step.DONE:
                break
            if got is Step.WAIT and self.follow is not None:
                rest = deadline - time.monotonic()
                if rest <= 0:
                    return None
                self._stop.wait(min(self.follow.interval, rest))
        raise EndOfInput

    def _step_through(self) -> Chunk | Step:
        """Read one partition after the other to its end."""
        while self._cursor < len(self._logs):
            got = self._logs[self._cursor].step()
            if got is not Step.DONE:
                return got
            self._cursor += 1
        return Step.DONE

    def _step_around(self) -> Chunk | Step:
        """Read on in the partition at hand, or in the next that has something new."""
        for _ in range(len(self._logs)):
            self._cursor %= len(self._logs)
            each = self._logs[self._cursor]
            got = each.step()
            if got is not Step.WAIT or self._stop.is_set():
                return got
            self._keep_few_open(each)
            self._cursor += 1
        self._cursor = 0
        return Step.PROGRESS if self._is_folder and self._look_for_new() else Step.WAIT

    def _look_for_new(self) -> bool:
        """Begin partitions for new files in the folder, and end those of files that are gone."""
        for each in [each for each in self._logs if each.is_gone]:
            self._gone[each.partition] = each.here
            self._logs.remove(each)
            self._names.discard(each.partition)
            log.info("source_partition_gone", partition=each.partition, offset=each.here[0])
        paths = self._listing()
        if len(self._claimed) > len(paths):
            there = {path.name for path in paths}
            self._claimed = {name: found for name, found in self._claimed.items() if name in there}
        return self._adopt(paths)

    def _is_taken(self, asker: FileLog, found: Found) -> bool:
        """Say whether a partition other than `asker` reads a file, or has read it."""
        return any(each.has(found) for each in self._logs if each is not asker)

    def _keep_few_open(self, each: FileLog) -> None:
        """Park the partition that has waited longest when many files are open: descriptors are few."""
        self._waiting.pop(each, None)
        if each.is_open:
            self._waiting[each] = None
        if len(self._waiting) > _OPEN_FILES:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.park()
            if oldest.is_open:
                self._waiting[oldest] = None

    def _close(self) -> None:
        if self._final_backlog is None:
            self._final_backlog = self.backlog()
        for each in self._logs:
            each.close()

    # -- telling -----------------------------------------------------------------------------------------------------

    def backlog(self) -> int | None:
        """Return the bytes, as stored, not yet read. Asked often of many files, it may be as old as a look at them."""
        if self._final_backlog is not None:
            return self._final_backlog
        if self.follow is None:
            cursor = self._cursor
            return self._logs[cursor].backlog() + self._rests[cursor] if cursor < len(self._rests) else 0
        if len(self._logs) > _OPEN_FILES and time.monotonic() < self._backlog_until:
            return self._backlog
        self._backlog = sum(each.backlog() for each in list(self._logs))
        self._backlog_until = time.monotonic() + self.follow.interval
        return self._backlog

    def _note_rests(self) -> None:
        """Note, for each partition, how much there is to read behind it."""
        rests = [0] if self._logs else []
        for each in reversed(self._logs[1:]):
            rests.append(rests[-1] + each.backlog())
        self._rests = rests[::-1]

    @property
    def total_bytes(self) -> int | None:
        """Bytes, as stored, in all files; None with `follow`, where there is no end."""
        return self._total


def _some(names: list[str]) -> str:
    """Name a few, and count the others."""
    more = len(names) - _NAMED
    return ", ".join(map(repr, names[:_NAMED])) + (f" and {more} more" if more > 0 else "")


def partition_name(path: Path) -> str:
    """Return a file's name as text that can be stored: bytes that are no UTF-8 become escapes."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")


def check_readable(path: Path) -> None:
    """Raise `ConfigurationError` unless a path is a regular file that can be read, or is not there."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"{path}: expected a regular file, got something else (a pipe is read as stdin:)")
        os.close(open_readonly(path))
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(f"{path}: expected a file that can be read, got: {error.strerror}") from None
