"""The files that make up one log, and which of them have been read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from stream.sources.byte_stream import COMPRESSED
from stream.sources.earlier import Earlier
from stream.sources.siblings import Found, find_inode, look, rotated, without_packing


class LogParts:
    """Knows the older parts of a log beside its newest.

    Parameters
    ----------
    path
        Where the newest part is.
    taken
        Says of a file whether another partition reads it, or has read it: then it is not a part of this log.

    Attributes
    ----------
    earlier
        The parts that were read before the one at hand, as far as they are still there.
    """

    __slots__ = ("_path", "_taken", "earlier")

    def __init__(self, path: Path, taken: Callable[[Found], bool]):
        self.earlier: tuple[Earlier, ...] = ()
        self._path = path
        self._taken = taken

    def is_read(self, part: Found) -> bool:
        """Say whether a part was read before, or belongs to another partition."""
        return any(file.is_at(part, if_unfinished=False) for file in self.earlier) or self._taken(part)

    def unread(self) -> list[Found]:
        """Return the older parts that were not read before, the oldest first."""
        return [part for part in rotated(self._path) if not self.is_read(part)]

    def newer(self, mine: os.stat_result, finished: Earlier, live: Found | None) -> list[Found]:
        """Return the parts that come after the one at hand and were not read before, the oldest first.

        Parameters
        ----------
        mine
            The status of the part at hand.
        finished
            The same part, as it would be remembered.
        live
            The newest part, if it is there.
        """
        newest = [live] if live is not None and not self.is_read(live) else []
        parts = rotated(self._path)
        for index, part in enumerate(parts):
            if part.is_file(mine):
                return [*(part for part in parts[index + 1 :] if not self.is_read(part)), *newest]
        parts = [part for part in parts if not self.is_read(part)]
        for index, part in enumerate(parts):
            if part.path.name.endswith(COMPRESSED) and finished.is_content_of(part, if_unfinished=False):
                return parts[index + 1 :] + newest
        # Deleted, or moved to where its name says nothing: go by the time of its last line.
        return [part for part in parts if part.mtime_ns >= mine.st_mtime_ns] + newest

    def ahead(self, device: int, inode: int) -> list[Found]:
        """Return the older parts that come after the one at this place on the disk; all, if that is not among them."""
        live = look(self._path)
        if live is not None and (live.device, live.inode) == (device, inode):
            return []
        parts = rotated(self._path)
        for index, part in enumerate(parts):
            if (part.device, part.inode) == (device, inode):
                return parts[index + 1 :]
        return parts

    def remember(self, finished: Earlier) -> None:
        """Note the part at hand as read, and forget those that are no longer there."""
        folder = self._path.parent
        kept = []
        for file in (*self.earlier, finished):
            by_inode = find_inode(folder, file.device, file.inode)
            packed = (folder / (without_packing(file.name) + ending) for ending in COMPRESSED)
            found = [at for path in (by_inode, *packed) if path is not None and (at := look(path)) is not None]
            here = next((at for at in found if file.is_at(at, if_unfinished=False)), None)
            if here is not None:
                now = {"name": here.path.name, "device": here.device, "inode": here.inode, "size": here.size}
                kept.append(file.model_copy(update={**now, "mtime_ns": here.mtime_ns}))
        self.earlier = tuple(kept)
