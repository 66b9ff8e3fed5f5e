"""Where a run was when the process died of a signal of its own: the evidence that it was a crash, and no kill."""

from __future__ import annotations

import faulthandler
import os
from contextlib import suppress
from pathlib import Path

MOST = 4000
"""Bytes of it that are read."""


class CrashTrace:
    """A file that the interpreter writes to when the process dies of SIGSEGV, SIGABRT, SIGBUS, SIGFPE or SIGILL.

    It holds the stack of each thread: names of functions and files, and lines; no value of anything. A process that is
    killed from outside, or by the kernel for want of memory, leaves nothing in it.

    Parameters
    ----------
    path
        The file.

    Examples
    --------
    >>> import subprocess, sys, tempfile
    >>> path = Path(tempfile.mkdtemp()) / "state.db.fatal"
    >>> dies = "import os, pathlib, sys; from stream.crash_trace import CrashTrace; "
    >>> dies += "CrashTrace(pathlib.Path(sys.argv[1])).begin(); os.abort()"
    >>> subprocess.run([sys.executable, "-c", dies, str(path)]).returncode
    -6
    >>> CrashTrace(path).left().splitlines()[0]
    'Fatal Python error: Aborted'
    """

    def __init__(self, path: Path):
        self.path = path
        self._fd = -1
        self._others = False

    def left(self) -> str:
        """Return what an earlier run has left; nothing, mostly."""
        try:
            with self.path.open("rb") as file:
                return file.read(MOST).decode(errors="replace")
        except OSError:
            return ""

    def begin(self) -> None:
        """Have this process write to it, emptied; where it cannot be made, crashes leave no trace."""
        with suppress(OSError):
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            self._others = faulthandler.is_enabled()
            faulthandler.enable(self._fd)

    def end(self) -> None:
        """Stop that. A second time does nothing."""
        if self._fd < 0:
            return
        faulthandler.disable()
        if self._others:
            with suppress(Exception):  # whoever had it enabled may have closed its file
                faulthandler.enable()
        with suppress(OSError):  # unless another run, which has overtaken this one, has made its own
            if os.path.samestat(os.fstat(self._fd), os.stat(self.path)):
                self.path.unlink()
        os.close(self._fd)
        self._fd = -1
