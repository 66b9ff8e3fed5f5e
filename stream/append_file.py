"""A file that only grows, and that a checkpoint can cut back to.

What the consumer writes for others (records, dead letters) must agree with its checkpoint after a crash at any
instant. So the file's length in bytes is part of the checkpoint, and a restart cuts off what came after it. Beside the
length stands what tells this file from another: cutting the wrong one would destroy what somebody else wrote.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from zlib import crc32

from memory.errors import ConfigurationError, EbbtideError

_BUFFER = 1024 * 1024

_TAIL = 4096
"""Bytes before the end by which a file is known again."""


class AppendFile:
    """A file for whole lines, appended to by one process at a time. Its life:

    1. ``open(None)`` for a fresh start, or ``open(length, identity)`` to go on from a checkpoint. A fresh start stores
       a checkpoint with length 0 before anything else: killed before its first one, a run would find its own file and
       refuse it.
    2. ``append(data)`` any number of times. Data may wait in memory, and no error comes from here.
    3. ``flush()`` before each checkpoint, which stores the length it returns, and ``identity``. A full disk raises
       `OSError` here and loses nothing: what could not be written is kept, to be flushed when there is room. After a
       failed ``fsync`` nobody can tell what is on the disk, so every later call raises: only a restart, which cuts back
       to the checkpoint, is safe.
    4. ``close()``, which does not flush: what no checkpoint knows of would be cut off anyway.

    Files are made with mode 0600: they hold what people said.

    Parameters
    ----------
    path
        The file.
    of_lines
        Whether what is appended ends with a newline, so that a length in the middle of a line is known to be wrong.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "out.jsonl"
    >>> file = AppendFile(path)
    >>> file.open(None)
    >>> file.append(b"one\\n")
    >>> file.flush()
    4
    >>> identity = file.identity
    >>> file.append(b"lost in a crash\\n")
    >>> file.close()
    >>> file.open(4, identity)
    >>> file.append(b"two\\n")
    >>> file.flush()
    8
    >>> file.close()
    >>> path.read_text()
    'one\\ntwo\\n'
    """

    def __init__(self, path: str | Path, *, of_lines: bool = True):
        self.path, self._of_lines = Path(path), of_lines
        self._fd = -1
        self._written = 0
        self._waiting = bytearray()
        self._failed = False

    def open(self, length: int | None, identity: str = "") -> None:
        """Open the file, made if need be.

        Parameters
        ----------
        length
            `None`: begin; the file must not hold anything. Otherwise go on: the file is cut to this many bytes.
        identity
            What `identity` was when the file had that length; empty if nobody knows.

        Raises
        ------
        ConfigurationError
            The file cannot be what it is expected to be; it was not changed.
        """
        if self._fd >= 0:
            raise ValueError(f"{self.path}: expected a closed file, got an open one")
        fd = self._open_fd(length)
        try:
            self._lock(fd)
            with self._named():
                self._cut(fd, length, identity)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._written, self._failed = fd, length or 0, False
        self._waiting.clear()

    def _gone(self, length: int) -> ConfigurationError:
        return ConfigurationError(
            f"{self.path}: expected the file of at least {length} bytes that the stored state goes with, got none; "
            "put it back, or begin anew with another state"
        )

    def _look(self) -> None:
        """Refuse what is there and is no file."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigurationError(f"{self.path}: cannot be opened: {error.strerror}") from None
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "something else"
            raise ConfigurationError(f"{self.path}: expected a regular file to append to, got {kind}")

    def _open_fd(self, length: int | None) -> int:
        self._look()
        if length and not self.path.exists():
            raise self._gone(length)
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise ConfigurationError(
                f"{self.path}: expected an existing folder to make the file in, got none"
            ) from None
        except OSError as error:
            raise ConfigurationError(f"{self.path}: cannot be opened for appending: {error.strerror}") from None
        return fd

    def _lock(self, fd: int) -> None:
        """Refuse a file that another process appends to. The lock goes with the process, however that ends."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"{self.path}: expected to be its only writer, got a file that another run has open; "
                "give this run its own"
            ) from None
        except OSError:
            pass  # some network file systems have no locks; the lease on the state guards there

    def check(self, length: int, identity: str = "") -> None:
        """Say whether `open` could go on from there, and neither change nor make anything.

        Raises
        ------
        ConfigurationError
            It could not.
        """
        self._look()
        if not self.path.exists():
            if length:
                raise self._gone(length)
            return
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._compare(fd, length, identity)
        finally:
            os.close(fd)

    def _compare(self, fd: int, length: int | None, identity: str) -> None:
        """Raise where the file is not the one to go on with."""
        size = os.fstat(fd).st_size
        if not length and (length is None or identity not in ("", _identity(fd, 0))):
            if size:
                raise ConfigurationError(
                    f"{self.path}: expected a new or empty file for a fresh start, got one of {size} bytes; "
                    "move it away or name another (it is never overwritten)"
                )
        elif size < length:
            raise ConfigurationError(
                f"{self.path}: expected at least the {length} bytes that the stored state goes with, got {size}; "
                "put the file back, go back to a checkpoint before with --recover, or begin anew with another state"
            )
        elif length and self._of_lines and os.pread(fd, 1, length - 1) != b"\n":
            raise ConfigurationError(
                f"{self.path}: expected a line to end at byte {length}, where the stored state left off, "
                "got the middle of one; this is another file than the one written before"
            )
        elif length and identity not in ("", _identity(fd, length)):
            raise ConfigurationError(
                f"{self.path}: expected the {length} bytes that the stored state goes with, got other ones; this is "
                "another file than the one written before"
            )

    def _cut(self, fd: int, length: int | None, identity: str) -> None:
        self._compare(fd, length, identity)
        if length is not None and os.fstat(fd).st_size > length:
            os.ftruncate(fd, length)
        os.fsync(fd)
        keep_names(self.path.parent)

    @property
    def identity(self) -> str:
        """What tells the file, as it was flushed, from another: to be stored beside its length, and given to `open`."""
        return _identity(self._fd, self._written)

    @property
    def length(self) -> int:
        """Bytes that the file will have when all that was appended is written."""
        return self._written + len(self._waiting)

    def append(self, data: bytes | memoryview) -> None:
        """Add data: whole lines, each with its newline, unless the file is of something else."""
        self._check()
        self._waiting += data
        if len(self._waiting) >= _BUFFER:
            with suppress(OSError):  # `flush` meets the same error, at a place where the caller can deal with it
                self._write()

    def flush(self) -> int:
        """Put all on the disk; return the file's length in bytes.

        Raises
        ------
        OSError
            The disk does not take it.
        EbbtideError
            It is another file than was opened that has its name now, or none, or somebody else changed its length.
        """
        self._check()
        self._write()
        try:
            with self._named():
                os.fsync(self._fd)
        except OSError:
            self._failed = True
            raise
        self._check_name()
        return self._written

    def _check_name(self) -> None:
        """Raise where what was flushed is not what stands under the file's name: nobody would find it."""
        mine = os.fstat(self._fd)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            there = None
        if there is None or not os.path.samestat(mine, there):
            what = "it was removed, renamed or replaced while it was written to"
        elif there.st_size != self._written:
            what = f"it has {there.st_size} bytes, where this run has written up to {self._written}"
        else:
            return
        raise EbbtideError(
            f"{self.path}: {what}; this run stops, and counts nothing as done that is not there: put the file back as "
            "it was, and give the same command again"
        )

    def close(self) -> None:
        """Close the file, without what was not flushed. A second time does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._waiting.clear()

    def _check(self) -> None:
        if self._fd < 0:
            raise ValueError(f"{self.path}: expected an open file, got a closed one")
        if self._failed:
            raise OSError(f"{self.path}: an earlier fsync failed, so what the disk holds is unknown; restart the run")

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say in an error of the disk which file it is about: what is done on a descriptor does not."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise

    def _write(self) -> None:
        while self._waiting:
            with memoryview(self._waiting) as view, self._named():
                count = os.write(self._fd, view)
            self._written += count
            del self._waiting[:count]


def keep_names(folder: Path) -> None:
    """Put on the disk which names a folder holds: without it a power cut may take those of new files away."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for their owner alone, so that no power cut takes it away
    with all that is in it.

    Raises
    ------
    OSError
        It cannot be made.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "run" / "tape"
    >>> make_folder(folder)
    >>> make_folder(folder)
    >>> folder.is_dir()
    True
    """
    above = [folder.parent]  # kept in any case: whoever made the folder may have been killed before it did so
    while not above[-1].exists():
        above.append(above[-1].parent)
    for each in reversed(above[:-1]):
        each.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    for each in above:
        keep_names(each)


def _identity(fd: int, length: int) -> str:
    """Tell a file of at least `length` bytes by what stands before that length; an empty one by its inode."""
    if length:
        return f"crc32:{crc32(os.pread(fd, min(length, _TAIL), max(0, length - _TAIL))):08x}"
    status = os.fstat(fd)
    return f"inode:{status.st_dev}:{status.st_ino}"
