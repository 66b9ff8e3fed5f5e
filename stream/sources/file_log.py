"""One partition of a file source: a file, or a log with all that its rotations left behind."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from enum import Enum
from functools import partial
from pathlib import Path
from zlib import crc32

import structlog

from memory.errors import ConfigurationError
from stream.event import Reason, Rejection
from stream.sources.byte_stream import COMPRESSED, ByteStream, CorruptFile, PlainBytes, open_bytes
from stream.sources.earlier import Earlier
from stream.sources.file_identity import HEAD_BYTES, FileIdentity, OtherContent, Reopened, reopen
from stream.sources.file_mark import FileMark, Place
from stream.sources.follow import FollowSettings
from stream.sources.gap import Gap, span
from stream.sources.instead import enter
from stream.sources.line_cutter import Cut, LineCutter
from stream.sources.log_parts import LogParts
from stream.sources.open_file import Opener, has_head, is_longer, open_readonly, open_stream, read_head
from stream.sources.position import Position
from stream.sources.siblings import Found, find_inode, look, without_packing
from stream.sources.source import CHUNK_BYTES, Chunk

log = structlog.get_logger(__name__)


class Step(Enum):
    """What a step came to when it gave no chunk."""

    PROGRESS = 1
    """Bytes were read, but no line is whole yet: go on."""
    WAIT = 2
    """Nothing new now."""
    DONE = 3
    """Nothing more, ever."""


class FileLog:
    """Reads one partition. Its life:

    1. ``open(position)``, once: checks the position; a fresh start touches nothing but the file's status.
    2. ``step()`` over and over: a chunk, or a `Step`. Never waits.
    3. ``park()`` between steps closes the file; the next step finds it again by its identity.
    4. ``close()``.

    Without `follow` the partition ends where the file ended when it was first opened. With it, the partition goes on
    through rotations: a file is finished before the next is begun, and when several rotations went by, all parts are
    read in order.

    Parameters
    ----------
    partition
        The partition's name.
    path
        Where the file, or the log's newest part, is.
    follow
        How to follow; None: do not.
    stop
        Set by another thread to end long work.
    clock
        Seconds, never going back.
    counts
        Where events worth counting are added.
    in_folder
        Whether it is one of the files of a folder.
    taken
        Says of a file whether another partition reads it, or has read it: then it is not a part of this log.
    opener
        Opens a path for reading.
    offset, lines
        Where a fresh start begins to count.
    accept_gap
        Whether to go on where what was read before is gone.

    Attributes
    ----------
    gap
        What was missing when it was opened, and accepted.
    """

    __slots__ = (
        "_accept_gap",
        "_base",
        "_clock",
        "_corrupt",
        "_counts",
        "_cutter",
        "_device",
        "_done",
        "_follow",
        "_head",
        "_idle_since",
        "_in_folder",
        "_inode",
        "_last",
        "_left",
        "_left_gone",
        "_name",
        "_opener",
        "_parts",
        "_place",
        "_seen",
        "_stop",
        "_stream",
        "_successor_since",
        "_told",
        "gap",
        "partition",
        "path",
    )  # fmt: skip  (a folder may hold a hundred thousand of them)

    def __init__(
        self,
        partition: str,
        path: Path,
        *,
        follow: FollowSettings | None,
        stop: threading.Event,
        clock: Callable[[], float],
        counts: Counter[str],
        in_folder: bool = False,
        taken: Callable[[FileLog, Found], bool] = lambda _, __: False,
        opener: Opener = open_readonly,
        offset: int = 0,
        lines: int = 0,
        accept_gap: bool = False,
    ):
        self.partition = partition
        self.path = path
        self.gap: Gap | None = None
        self._accept_gap = accept_gap
        self._follow = follow
        self._stop = stop
        self._clock = clock
        self._counts = counts
        self._in_folder = in_folder
        self._parts = LogParts(path, lambda found: taken(self, found))
        self._opener = opener
        self._cutter = LineCutter(offset, lines)
        self._stream: ByteStream | None = None
        self._name, self._device, self._inode = path.name, -1, -1
        self._base = offset
        self._head = b""
        self._corrupt = False
        self._place: Place | None = None  # where to go on after `park`: the end of the last line given out
        self._last: Chunk | None = None  # the last chunk given out, from which `_place` is made when it is needed
        self._left: Found | None = None  # what was at `path` when the file was parked
        self._left_gone = False  # it was parked because it is deleted
        self._done = False
        self._idle_since: float | None = None
        self._successor_since: float | None = None
        self._seen: tuple[int, int] | None = None
        self._told = False

    # -- opening -----------------------------------------------------------------------------------------------------

    def wait_at(self, position: Position) -> None:
        """Give the lines behind `position`, once it is this log's turn: the file is opened then, wherever it is."""
        self._place = Place.of(position, self.partition)

    def open(self, position: Position | None) -> None:
        """Be ready to give the lines behind `position`.

        Raises
        ------
        ConfigurationError
            The content is not the one that the position was taken from.
        EndOfInput
            The stop event was set meanwhile.
        """
        if position is None:
            return
        self._place = Place.of(position, self.partition)
        identity = self._place.identity
        self._parts.earlier = identity.earlier
        if identity.complete and identity.name.endswith(COMPRESSED) and self._is_unchanged(identity):
            # Saves decompressing all of a file that is finished, only to see that it is.
            self._cutter = LineCutter(position.offset, position.lines, owed=identity.unterminated)
            self._base, self._corrupt = identity.base, identity.corrupt
            self._left = look(self.path)
            self._done = self._follow is None
            return
        try:
            self._return_to(self._place)
        except OtherContent as why:
            if self._was_emptied(identity):
                self._cutter = LineCutter(position.offset, position.lines)
                self._tell("source_truncated", file=self.path.name, goes_on_in=self.path.name)
                self._begin(open_stream(self.path, fixed=False), self.path.name)
                return
            if not self._accept_gap and not identity.passed:
                there = "none" if look(self.path) is None else "other content"
                missing = span(position.offset, identity.known_end(position.offset - identity.base))
                raise ConfigurationError(
                    f"{self.path}: expected the file that was read up to byte {position.offset} (line {position.lines})"
                    f" of {self.partition!r} before, got {there} ({why}); the gap goes {missing}: put that file "
                    "back, go on without it with --accept-gap, or begin anew with another state"
                ) from None
            self._go_on_instead(self._place, str(why))

    def _go_on_instead(self, place: Place, why: str) -> None:
        """Go on without what is missing, in what is there now."""
        self._cutter = LineCutter(place.offset, place.lines)
        for path in self._instead_of(place.identity):
            try:
                fixed = self._follow is None
                entered = enter(partial(open_stream, path, fixed=fixed, opener=self._opener), place, self._stop)
            except FileNotFoundError:
                continue
            self._place = entered.place(path.name, place)
            self._take(entered.stream, path.name)
            self._cutter.owed = entered.in_line
            self._base, self._head = self._place.identity.base, entered.head
            break
        else:
            self._place = Place(place.offset, place.lines, place.identity.model_copy(update={"passed": True}))
            self._done, self._left_gone = self._follow is None, True
        if place.identity.passed:
            return  # this was accepted before
        self.gap = Gap(
            partition=self.partition,
            start=place.offset,
            end=place.identity.known_end(place.offset - place.identity.base),
            line=place.lines,
            why=why,
            goes_on=self._name if self._stream is not None else None,
            known=self._stream.offset if self._stream is not None else 0,
            position=self._place.position(),
        )

    def _instead_of(self, identity: FileIdentity) -> list[Path]:
        """Return the paths of what comes after a file that is gone, the oldest first."""
        parts = self._parts.unread() if self._follow is not None and not self._in_folder else []
        return [*(part.path for part in parts if part.size and part.mtime_ns >= identity.mtime_ns), self.path]

    def _is_unchanged(self, identity: FileIdentity) -> bool:
        """Say whether a file that was read to its end is still the same, as far as that is seen without reading it."""
        found = look(self.path) if self._opener is open_readonly else None
        return (
            found is not None
            and (found.device, found.inode, found.size) == (identity.device, identity.inode, identity.size)
            and has_head(found.path, identity.head_length, identity.head_crc)
        )

    def _was_emptied(self, identity: FileIdentity) -> bool:
        """Say whether a followed log that was read to its end was emptied in place while nobody looked.

        It is the same file with other content. What was written to it between the last look and its emptying is lost
        then, as it would be under our eyes. Had there been lines left to read, this would be no way to go on. In a
        folder it may be another file at the same place; the source finds out.
        """
        may_be = self._follow is not None and identity.complete and not self._in_folder
        found = look(self.path) if may_be else None
        return found is not None and (found.device, found.inode) == (identity.device, identity.inode)

    def _return_to(self, place: Place) -> None:
        """Find the file of a place, wherever it is now, and go on in it."""
        self._attach(place, *self._find(place, self._candidates(place.identity)))

    def _candidates(self, identity: FileIdentity) -> Iterator[Path]:
        """Yield the paths at which a file that was read before may be now, the likeliest first.

        One of which nothing was read is known by its place on the disk alone. Where it has become shorter, it was
        emptied after a copy was made; parts that were older than it when it was found are none of it.
        """
        begun = identity.head_length > 0
        if self._follow is not None:
            live = look(self.path)
            same = live is not None and (live.device, live.inode) == (identity.device, identity.inode)
            if live is not None and same and (begun or live.size >= identity.size):
                yield self.path  # mostly; looking through the folder takes long in a large one
            by_inode = None if same else find_inode(self.path.parent, identity.device, identity.inode)
            if by_inode is not None:
                yield by_inode
            yield from (part.path for part in self._parts.unread() if begun or part.mtime_ns >= identity.mtime_ns)
        yield self.path
        if self._opener is open_readonly:
            yield from (self.path.with_name(self.path.name + ending) for ending in COMPRESSED)

    def _find(self, place: Place, paths: Iterable[Path]) -> tuple[str, Reopened]:
        """Return the first of the files that holds what was read before.

        Raises
        ------
        OtherContent
            None of them does; the message says what each holds.
        """
        found: list[str] = []
        for path in paths:
            try:
                again = reopen(
                    path,
                    place.identity,
                    place.offset - place.identity.base,
                    fixed=self._follow is None,
                    stop=self._stop,
                    opener=self._opener,
                )
            except FileNotFoundError:
                if path == self.path:
                    found.append(f"{path.name}: no such file")
            except OSError as error:
                found.append(f"{path.name}: {error.strerror}")
            except OtherContent as why:
                found.append(f"{path.name}: {why}")
            else:
                return path.name, again
        raise OtherContent("; ".join(found[:3]))

    def _attach(self, place: Place, name: str, again: Reopened) -> None:
        """Go on in a file that is known again."""
        if place.identity.corrupt and again.stream.raw_size() != place.identity.size:
            again.stream.close()
            raise OtherContent(f"{name} was damaged where it was left, and has changed since")
        self._take(again.stream, name)
        self._cutter = LineCutter(place.offset, place.lines, owed=place.identity.unterminated)
        self._base, self._head, self._corrupt = place.identity.base, again.head, place.identity.corrupt

    def _begin(self, stream: ByteStream, name: str) -> None:
        """Begin a file at its start; the partition's offset goes on counting."""
        self._take(stream, name)
        self._cutter.owed = False
        self._base, self._head, self._corrupt = self._cutter.offset, b"", False

    def _take(self, stream: ByteStream, name: str) -> None:
        self._drop_stream()
        status = os.fstat(stream.fd)
        self._stream, self._name, self._device, self._inode = stream, name, status.st_dev, status.st_ino
        self._idle_since = self._successor_since = self._seen = None
        self._left, self._left_gone = None, False

    def _enter(self) -> bool:
        """Open the file that comes next, if it is there; say whether it is."""
        if self._follow is None:
            try:
                if self._place is None:
                    self._begin(open_stream(self.path, fixed=True, opener=self._opener), self.path.name)
                else:
                    self._return_to(self._place)
            except (OSError, OtherContent) as why:
                raise ConfigurationError(f"{self.path}: expected the file as it was at the start, got: {why}") from None
            return True
        now = look(self.path)
        if now == self._left and (now is not None or self._left_gone):
            return False  # nothing happened since it was parked
        if self._place is not None:
            try:
                self._return_to(self._place)
            except OtherContent as why:
                if now is None or not now.size or self._parts.is_read(now):
                    return False
                if not self._left_gone:
                    self._tell("source_lost", why=str(why))
            else:
                return True
        try:
            stream = open_stream(self.path, fixed=False, opener=self._opener)
        except OSError as error:
            if not isinstance(error, FileNotFoundError) and not self._told:
                self._told = True
                self._tell("source_unreadable", file=self.path.name, why=str(error.strerror))
            return False
        self._begin(stream, self.path.name)
        return True

    # -- reading -----------------------------------------------------------------------------------------------------

    def step(self) -> Chunk | Step:
        """Read a block, or look at what became of the file if there is none.

        Raises
        ------
        ConfigurationError
            A file that was there at the start no longer is, or is another.
        """
        if self._done:
            return Step.DONE
        if self._stream is None and not self._enter():
            return Step.WAIT
        stream = self._stream
        assert stream is not None
        if self._follow is not None and self._was_cut_back(stream):
            return self._start_over(stream)
        if not self._corrupt:
            before = stream.raw_offset
            try:
                block = stream.read(CHUNK_BYTES)
            except CorruptFile as error:
                return self._fault(stream, str(error))
            if stream.raw_offset != before:
                self._idle_since = self._successor_since = None
            if block:
                return self._feed(stream, block)
        if self._follow is not None:
            return self._look_around(stream, self._follow)
        if stream.stopped_short and not self._corrupt:
            return self._fault(stream, "the file is cut short")
        cut = self._cutter.flush()
        if cut is not None:
            return self._chunk(stream, cut)
        self._done = True
        self._drop_stream()
        return Step.DONE

    def _feed(self, stream: ByteStream, block: bytes) -> Chunk | Step:
        if len(self._head) < HEAD_BYTES:
            self._head += block[: HEAD_BYTES - len(self._head)]
        if self._cutter.owed and not block.startswith(b"\n"):
            self._tell("source_line_continued", file=self._name)
        cut = self._cutter.feed(block)
        return Step.PROGRESS if cut is None else self._chunk(stream, cut)

    def _chunk(self, stream: ByteStream, cut: Cut, faults: dict[int, Rejection] | None = None) -> Chunk:
        mark = FileMark(
            base=self._base,
            name=self._name,
            device=self._device,
            inode=self._inode,
            size=stream.raw_size(),
            head=self._head,
            complete=self._corrupt or (not self._cutter.waiting and stream.exhausted),
            corrupt=self._corrupt,
            earlier=self._parts.earlier,
            packed=not isinstance(stream, PlainBytes),
            mtime_ns=os.fstat(stream.fd).st_mtime_ns,
        )
        self._last = Chunk(
            partition=self.partition,
            start=cut.start,
            lines=cut.lines,
            ends=cut.ends,
            first_line=cut.first_line,
            mark=mark,
            truncated=cut.truncated,
            faults=faults or {},
        )
        return self._last

    def _fault(self, stream: ByteStream, detail: str) -> Chunk:
        """Give up on a damaged file: what was held of a line, and the rejection."""
        self._corrupt = True
        self._tell("source_corrupt", file=self._name, why=detail)
        cut = self._cutter.flush(even_if_empty=True)
        assert cut is not None
        rejection = Rejection(Reason.CORRUPT_COMPRESSION, f"expected {self._name!r} whole, got damage: {detail}")
        return self._chunk(stream, cut, {0: rejection})

    # -- what becomes of a file that is followed -----------------------------------------------------------------------

    def _look_around(self, stream: ByteStream, follow: FollowSettings) -> Chunk | Step:
        """At the end of what is there: wait for more, or go on to the file that came after."""
        if self._was_cut_back(stream):
            return self._start_over(stream)
        now = self._clock()
        if self._idle_since is None:
            self._idle_since = now
        mine, live = os.fstat(stream.fd), look(self.path)
        settled = now - self._idle_since >= follow.settle_wait
        cut_short = stream.stopped_short and not self._corrupt
        if live is not None and live.is_file(mine):
            return self._fault(stream, "the file is cut short") if cut_short and settled else Step.WAIT
        newer = [part for part in self._parts.newer(mine, self._as_earlier(mine), live) if part.size]
        if not newer and not (settled and mine.st_nlink == 0):
            return Step.WAIT
        if cut_short:
            return self._fault(stream, "the file is cut short") if settled else Step.WAIT
        if not newer:
            return self._let_go(stream)
        if mine.st_size > stream.raw_offset and not self._corrupt:
            return Step.PROGRESS  # it has grown since it was read
        if self._successor_since is None:
            self._successor_since = now
        if len(newer) == 1 and now - max(self._idle_since, self._successor_since) < follow.rotate_wait:
            return Step.WAIT
        return self._advance(stream, newer[0])

    def _advance(self, stream: ByteStream, part: Found) -> Chunk | Step:
        """Finish the file at hand and begin the next."""
        try:
            following = open_stream(part.path, fixed=False)
        except OSError:
            return Step.WAIT
        if not part.is_file(os.fstat(following.fd)):
            following.close()  # rotated again under our eyes: look again
            return Step.PROGRESS
        cut = self._cutter.flush()
        chunk = self._chunk(stream, cut) if cut is not None else None
        self._parts.remember(self._as_earlier(os.fstat(stream.fd)))
        self._tell("source_rotated", finished=self._name, begun=part.path.name)
        self._begin(following, part.path.name)
        return chunk or Step.PROGRESS

    def _as_earlier(self, mine: os.stat_result) -> Earlier:
        """Return what is to be remembered of the file at hand."""
        assert self._stream is not None
        return Earlier(
            name=self._name,
            device=mine.st_dev,
            inode=mine.st_ino,
            size=mine.st_size,
            mtime_ns=mine.st_mtime_ns,
            length=self._stream.offset,
            head_length=len(self._head),
            head_crc=crc32(self._head),
        )

    def _was_cut_back(self, stream: ByteStream) -> bool:
        """Say whether the file holds other content than it did. Costs nothing while it does not change."""
        status = os.fstat(stream.fd)
        seen = (status.st_size, status.st_mtime_ns)
        if seen == self._seen:
            return False
        self._seen = seen
        if status.st_size < stream.raw_offset:
            return True
        if isinstance(stream, PlainBytes):
            return os.pread(stream.fd, len(self._head), 0) != self._head
        with suppress(CorruptFile), closing(open_bytes(os.dup(stream.fd), self._name)) as again:
            return read_head(again, len(self._head)) != self._head
        return True

    def _start_over(self, stream: ByteStream) -> Chunk | Step:
        """Deal with a file that was emptied, and maybe filled again, under our eyes.

        If a copy was made first and holds what was read, it is finished before the new content is begun.
        """
        place = self._here()
        if place is not None and place.identity.base == self._base:
            emptied = self._name
            try:
                self._attach(place, *self._find(place, [part.path for part in self._parts.unread()]))
            except OtherContent:
                pass
            else:
                self._tell("source_truncated", file=emptied, goes_on_in=self._name)
                self._place, self._last = place, None
                return Step.PROGRESS
        self._tell("source_truncated", file=self._name, goes_on_in=self._name)
        cut = self._cutter.flush()
        chunk = self._chunk(stream, cut) if cut is not None else None
        self._begin(open_bytes(os.dup(stream.fd), self._name), self._name)
        return chunk or Step.PROGRESS

    def _let_go(self, stream: ByteStream) -> Chunk | Step:
        """Close a deleted file, which would keep its place on the disk; what waits of a line is one."""
        cut = self._cutter.flush()
        if cut is not None:
            return self._chunk(stream, cut)
        self.park()
        self._left, self._left_gone = look(self.path), True
        return Step.WAIT

    # -- parking -----------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Say whether a file is open."""
        return self._stream is not None

    @property
    def is_gone(self) -> bool:
        """Say whether the file was deleted after it had been read, and nothing took its place."""
        return self._left_gone and look(self.path) is None

    @property
    def here(self) -> tuple[int, int]:
        """Offset and number of lines so far."""
        return self._cutter.offset, self._cutter.lines

    def park(self) -> None:
        """Close the file for now. One that is being waited for is kept open."""
        stream = self._stream
        if stream is None or (stream.stopped_short and not self._corrupt):
            return
        self._place = self._here()
        self._last = None
        found = look(self.path)
        unchanged = (
            found is not None
            and (found.device, found.inode) == (self._device, self._inode)
            and (self._corrupt or found.size == stream.raw_offset)
        )
        self._left = found if unchanged else None
        self._cutter.drop()
        self._drop_stream()

    def close(self) -> None:
        """Close the file."""
        self._drop_stream()

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _here(self) -> Place | None:
        """Return the end of the last line given out; None before the first."""
        if self._last is None:
            return self._place
        chunk = self._last
        assert isinstance(chunk.mark, FileMark)
        return Place(chunk.ends[-1], chunk.first_line + len(chunk) - 1, chunk.mark.identify(chunk, len(chunk)))

    # -- telling -----------------------------------------------------------------------------------------------------

    def has(self, found: Found) -> bool:
        """Say whether a file is the one at hand, or one that was read before it, under whatever name."""
        place = self._on_disk()
        if place is None:
            return False
        if self._stream is not None:
            name, length, crc = self._name, len(self._head), crc32(self._head)
        else:
            assert self._place is not None
            identity = self._place.identity
            name, length, crc = identity.name, identity.head_length, identity.head_crc
        if (found.device, found.inode) == place:
            # The place on the disk is the file's as long as it is open; later it may pass to another.
            return self._stream is not None or has_head(found.path, length, crc)
        repacked = found.path.name != name and without_packing(found.path.name) == without_packing(name)
        if repacked and length and has_head(found.path, length, crc, if_unfinished=True):
            size = self._plain_size()  # what is packed beside it, and holds more, is not it
            if size is None or not is_longer(found.path, size):
                return True
        return any(file.is_at(found, if_unfinished=True) for file in self._parts.earlier)

    def _plain_size(self) -> int | None:
        """Return the size of the file at hand, if it is there and not compressed."""
        if self._stream is not None:
            return os.fstat(self._stream.fd).st_size if isinstance(self._stream, PlainBytes) else None
        live, identity = look(self.path), self._place.identity if self._place is not None else None
        if live is None or identity is None or identity.packed:
            return None
        return live.size if (live.device, live.inode) == (identity.device, identity.inode) else None

    def ahead(self) -> list[Found]:
        """Return the older parts of the log that this partition has still to come to."""
        mine = self._on_disk()
        return self._parts.ahead(*mine) if mine is not None else []

    def _on_disk(self) -> tuple[int, int] | None:
        """Return device and inode of the file at hand, or of the one that was parked."""
        if self._stream is not None:
            return self._device, self._inode
        return (self._place.identity.device, self._place.identity.inode) if self._place is not None else None

    def backlog(self) -> int:
        """Return the bytes, as stored, that are there and not read; may be called from any thread."""
        if self._done:
            return 0
        stream, place, live = self._stream, self._place, look(self.path)
        live_size = live.size if live is not None else 0
        if stream is not None:
            device, inode = self._device, self._inode
            try:
                rest = stream.raw_rest()
            except OSError:  # closed meanwhile
                rest = 0
        elif place is not None:
            device, inode = place.identity.device, place.identity.inode
            rest = live_size - (place.identity.size if place.identity.head_length else 0)
        else:
            return live_size
        if live is not None and self._follow is not None and (live.device, live.inode) != (device, inode):
            rest = live_size + (rest if stream is not None else 0)
        return max(0, rest)

    def _tell(self, event: str, **fields: str) -> None:
        """Count and log something worth knowing."""
        self._counts[event] += 1
        tell = log.info if event == "source_rotated" else log.warning
        tell(event, partition=self.partition, offset=self._cutter.offset, **fields)
