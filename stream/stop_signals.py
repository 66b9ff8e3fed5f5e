"""The signals that stop a run: SIGTERM and SIGINT, and SIGHUP where it is not ignored already, as under `nohup`.

The first one stops it cleanly. A second SIGTERM or SIGINT ends the process at once. A SIGHUP is never the second one:
whoever closes a terminal sends several, and a service manager may send one behind each SIGTERM.

A run that is finished ends with exit code 0 whatever comes then. So its handlers stay to the very end, and when nothing
is left but the interpreter's own end, which puts the system's defaults in place of Python's handlers, the signals are
ignored: that is all that lasts so long.
"""

from __future__ import annotations

import errno
import os
import signal
import termios
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any

SECOND_SIGNAL = 128
"""Exit code, with the signal's number added, of a run that was told twice to stop and stopped at once."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

HANGUP = "SIGHUP stops a run as SIGTERM does: settings are read at the start only; start it again to have them read"
"""Said where somebody may have meant something else by it."""


def leave_closed_terminals(descriptors: Iterable[int] = (1, 2)) -> None:
    """Let what is written to a terminal that was closed go nowhere: else a run would fail over what it says at its end.

    Parameters
    ----------
    descriptors
        Those that may be terminals. Others are left alone.

    Examples
    --------
    >>> ours, theirs = os.openpty()
    >>> leave_closed_terminals([theirs])
    >>> os.isatty(theirs)
    True
    >>> os.close(ours)
    >>> leave_closed_terminals([theirs])
    >>> os.write(theirs, b"nobody reads this")
    17
    """
    for fd in descriptors:
        try:
            termios.tcgetattr(fd)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                os.dup2(nowhere, fd)
                os.close(nowhere)


_last = False


def process_ends() -> None:
    """Say that this process ends with the command that it was given: nothing has to be put back for what comes then."""
    global _last
    _last = True


class StopSignals:
    """Listens for signals from `listen` to its end as a context manager; then they are ignored, if the process ends.

    Examples
    --------
    >>> before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # not as under `nohup`
    >>> told = []
    >>> with StopSignals() as signals:
    ...     signals.listen(told.append)
    ...     signal.raise_signal(signal.SIGHUP)
    ...     signal.raise_signal(signal.SIGTERM)
    >>> told
    ['SIGHUP stops a run as SIGTERM does: settings are read at the start only; start it again to have them read']
    >>> _ = signal.signal(signal.SIGHUP, before)
    """

    def __init__(self) -> None:
        self._stop: Callable[[str | None], None] = lambda hint: None
        self._before: dict[signal.Signals, Any] = {}
        self._asked = self._told = self._finished = False

    def __enter__(self) -> StopSignals:
        return self

    def listen(self, stop: Callable[[str | None], None]) -> None:
        """Take the signals over.

        Parameters
        ----------
        stop
            Called once, with a hint or None, in the midst of anything: it may take no lock that the thread has.
        """
        self._stop = stop
        for number in SIGNALS:
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._take)

    def _take(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_closed_terminals()
        else:
            if self._told:
                os._exit(0 if self._finished else SECOND_SIGNAL + number)
            self._told = True
        if not self._asked:
            self._asked = True
            self._stop(HANGUP if number == signal.SIGHUP else None)

    def finished(self) -> None:
        """Say that all is done and committed: a second signal ends the process with exit code 0, too."""
        self._finished = True

    def over(self) -> None:
        """Say that nothing is left to stop."""
        self._asked = True

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if _last else handler)
