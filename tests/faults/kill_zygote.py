"""Real consumers that start within a tenth of a second: forked from a process that has imported everything.

A killed consumer has to be started again, and most of a second start is imports. So the process that does the killing
imports them once and forks: each child runs the command line of `ebbtide`, in a process of its own, and is really
killed. What is made smaller for it, so that little input goes through much, is said in `shrink`.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import select
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DEADLINE = 120.0
"""Seconds after which a process that should have ended is a failure."""

PART_BYTES = 48 * 1024
"""A part of a tape is full at this size: a run makes several."""

BUFFER = 2_500
"""Bytes that wait in memory before a file is written to, so that most writes fall between two checkpoints."""

ROTATE_WAIT = 0.05
"""Seconds that a rotated log must not have grown."""

LOG_PAGES = 150
"""Pages of SQLite's log after which it is carried over into the database, and begun anew."""

MAIN, TAPE, READER = 0, 1, 2
_READY = 8
_CELLS = 16


class Aim:
    """A kill inside a place where a consumer spends little time: by a timer of the kernel's, set on the way in.

    Parameters
    ----------
    place
        Its number.
    passing
        How often it is passed through unharmed.
    delay
        Seconds from the way in to the kill.
    """

    def __init__(self, place: int, passing: int, delay: float):
        self.place, self.passing, self.delay = place, passing, delay

    def entered(self) -> None:
        """Set the timer, if it is time."""
        self.passing -= 1
        if self.passing == -1:
            library, timer = ctypes.CDLL(None, use_errno=True), ctypes.c_void_p()
            # struct sigevent: value, signal, how (0: as a signal); struct itimerspec: interval, then time to go
            event = ctypes.create_string_buffer(struct.pack("Qii", 0, signal.SIGKILL, 0), 64)
            if library.timer_create(time.CLOCK_MONOTONIC, event, ctypes.byref(timer)):
                raise OSError(ctypes.get_errno(), "timer_create")
            when = struct.pack("qqqq", 0, 0, 0, max(1, int(self.delay * 1e9)))
            if library.timer_settime(timer, 0, when, None):
                raise OSError(ctypes.get_errno(), "timer_settime")


class Marks:
    """Where a consumer is in its work, in memory that its starter shares: to be read after the kill.

    Nothing of the consumer is replaced: the methods named in `PLACES` set a number on their way in, and the one before
    on their way out.
    """

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _CELLS + 8)
        self.aim: Aim | None = None

    def clear(self) -> None:
        """Forget the last process."""
        self._page[:] = bytes(len(self._page))

    def place(self, cell: int) -> str:
        """Return where one of the threads was, empty if nowhere of note."""
        return NAMES[self._page[cell]]

    @property
    def ready_at(self) -> float:
        """When the consumer began to consume, on the monotonic clock; 0 if it never did."""
        return float(struct.unpack_from("d", self._page, _CELLS - _READY)[0])

    def _around(self, owner: Any, method: str, number: int, cell: int) -> None:
        original, page, main = getattr(owner, method), self._page, threading.main_thread()

        def marked(*args: Any, **kwargs: Any) -> Any:
            if (threading.current_thread() is main) != (cell == MAIN):
                return original(*args, **kwargs)
            before = page[cell]
            page[cell] = number
            if self.aim is not None and self.aim.place == number:
                self.aim.entered()
            try:
                return original(*args, **kwargs)
            finally:
                page[cell] = before

        setattr(owner, method, marked)

    def install(self) -> None:
        """Wrap what `PLACES` names, once, in the process that forks."""
        import importlib

        from stream.consumer import Consumer

        for number, (name, where, cell) in enumerate(PLACES, 1):
            assert NAMES[number] == name
            module, owner, method = where.rsplit(".", 2)
            self._around(getattr(importlib.import_module(module), owner), method, number, cell)
        run, page = Consumer.run, self._page

        def ready(self: Consumer, *args: Any, **kwargs: Any) -> Any:
            struct.pack_into("d", page, _CELLS - _READY, time.monotonic())
            return run(self, *args, **kwargs)

        Consumer.run = ready  # type: ignore[method-assign]


PLACES: tuple[tuple[str, str, int], ...] = (
    ("opening", "stream.consumer.Consumer.open", MAIN),
    ("opening: the store is taken over", "stream.store.StateStore.claim", MAIN),
    ("opening: the checkpoint is read", "stream.store.StateStore.load", MAIN),
    ("opening: a file is cut back", "stream.append_file.AppendFile.open", MAIN),
    ("opening: the tape is cut back", "stream.tape.tape_writer.TapeWriter.open", MAIN),
    ("opening: the source", "stream.sources.source.Source.open", MAIN),
    ("micro-batch", "stream.consumer.Consumer._take", MAIN),
    ("micro-batch: memory, monitors, policy", "stream.engine.Engine.process", MAIN),
    ("micro-batch: lanes come back", "memory.state_pool.StatePool._bring", MAIN),
    ("micro-batch: lanes are spilled", "memory.state_pool.StatePool._spill", MAIN),
    ("micro-batch: lanes are read from the store", "stream.store.StateStore.fetch", MAIN),
    ("micro-batch: the shadow", "stream.shadows.Shadow.follow", MAIN),
    ("micro-batch: the sink is written", "stream.sinks.jsonl_sink.JsonlSink.write", MAIN),
    ("micro-batch: dead letters are written", "stream.dead_letters.DeadLetterFile.write", MAIN),
    ("micro-batch: handed to the tape", "stream.tape.tape_writer.TapeWriter.write", MAIN),
    ("checkpoint", "stream.consumer.Consumer._commit", MAIN),
    ("checkpoint: the sink is flushed", "stream.sinks.jsonl_sink.JsonlSink.flush", MAIN),
    ("checkpoint: the tape is flushed", "stream.tape.tape_writer.TapeWriter.flush", MAIN),
    ("checkpoint: the transaction", "stream.store.StateStore.commit", MAIN),
    ("checkpoint: the note beside the store", "stream.store.StateStore._noted", MAIN),
    ("operators' actions", "stream.operators.Operators.take", MAIN),
    ("ending", "stream.consumer.Consumer.close", MAIN),
    ("tape: a record batch", "stream.tape.tape_writer.TapeWriter._append", TAPE),
    ("tape: a new part", "stream.tape.tape_writer.TapeWriter._open_part", TAPE),
    ("source: waits whether a rotated log grows", "stream.sources.file_log.FileLog._look_around", READER),
    ("source: goes on in the next file", "stream.sources.file_log.FileLog._advance", READER),
    ("source: begins an emptied file", "stream.sources.file_log.FileLog._start_over", READER),
)
NAMES = ["", *(name for name, _, _ in PLACES)]


STACKS = signal.SIGUSR2
"""Has a process that hangs write into its log where each of its threads is."""


class Process:
    """A child; its life ends with `wait`."""

    def __init__(self, pid: int):
        self.pid, self._fd = pid, os.pidfd_open(pid)
        self._code: int | None = None
        self._ends = select.poll()
        self._ends.register(self._fd, select.POLLIN)
        self.started = time.monotonic()

    def ends_within(self, seconds: float) -> bool:
        """Wait so long, or until the process has ended; say whether it has."""
        return self._code is not None or bool(self._ends.poll(max(0.0, seconds) * 1000))

    def send(self, number: int) -> None:
        signal.pidfd_send_signal(self._fd, number)

    def wait(self, seconds: float = DEADLINE) -> int:
        """Return the exit code, or minus the signal that ended it."""
        if self._code is None:
            if not self.ends_within(seconds):
                self.send(STACKS)
                self.ends_within(2)
                self.send(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                os.close(self._fd)
                self._code = -signal.SIGKILL
                raise TimeoutError(f"process {self.pid} did not end within {seconds:g} s; its log has its stacks")
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._fd)
        return self._code


class Zygote:
    """Imports what a consumer needs, and forks consumers. For a process without other threads.

    Parameters
    ----------
    small
        Whether `shrink` is called.
    """

    def __init__(self, *, small: bool = True):
        os.environ.setdefault("OMP_NUM_THREADS", "2")
        os.environ.pop("EBBTIDE_LONG", None)  # of the tests; `ebbtide` knows no such option
        import river.drift  # noqa: F401

        import stream.cli
        import stream.commands.run
        import stream.consumer
        import stream.logs
        import stream.sources
        import stream.summary
        import stream.tape
        from memory.backbones import load_backbone

        load_backbone("hashing").tokenize(["what is compiled is loaded"])
        if small:
            shrink()
        self.marks = Marks()
        self.marks.install()
        self._main: Callable[[], None] = stream.cli.main

    def start(
        self, arguments: Sequence[str], log: Path, *, stopped: bool = False, stdin: Path | None = None
    ) -> Process:
        """Fork a process that runs ``ebbtide`` with these arguments.

        Parameters
        ----------
        arguments
            As on the command line.
        log
            Where standard output and error are appended.
        stopped
            Whether it stops itself before it does anything, so that it can be traced from its first step; SIGCONT lets
            it go on.
        """
        self.marks.clear()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return Process(pid)
        code = 70
        try:
            os.setsid()
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            feed = os.open(os.devnull, os.O_RDONLY)
            for fd, to in ((feed, 0), (out, 1), (out, 2)):
                os.dup2(fd, to)
            os.close(out)
            os.close(feed)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            faulthandler.register(STACKS, all_threads=True)
            if stopped:
                os.kill(os.getpid(), signal.SIGSTOP)
            sys.argv = ["ebbtide", *arguments]
            try:
                self._main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)


def shrink() -> None:
    """Make parts of tapes, buffers of files, SQLite's log and the wait at a rotation small, in this process and its
    children."""
    import sqlalchemy as sql

    from stream import append_file
    from stream.sources.follow import FollowSettings
    from stream.tape.tape_writer import TapeWriter

    @sql.event.listens_for(sql.engine.Engine, "connect")
    def _small_log(connection: Any, _: object) -> None:
        connection.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")

    append_file._BUFFER = BUFFER
    defaults = TapeWriter.__init__.__kwdefaults__
    assert defaults is not None
    defaults["part_bytes"] = PART_BYTES
    FollowSettings.model_fields["rotate_wait"].default = ROTATE_WAIT
    FollowSettings.model_fields["interval"].default = 0.02
    FollowSettings.model_rebuild(force=True)
