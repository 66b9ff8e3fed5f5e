"""The command line in processes of their own, without the seconds that an interpreter takes to import everything.

One process imports what `ebbtide` needs and runs it once, then forks for each command: what runs is a process like any
other, with its own memory, signals and exit code. Where the start of an interpreter is what a test is about, or the
memory of a process, this is not for it.

    warm.run(["inspect", "--state", url])                as subprocess.run does, with what it said
    warm.start(["run", ...], log)                        as subprocess.Popen does
    warm.run([...], module="tests.faults.syscalls")      another command than `ebbtide`
    warm.learn("transformers.models.qwen3")              imports more, for all commands from then on
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import IO, Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
USUAL = (
    "stream.cli",
    "stream.logs",
    "stream.http",
    "stream.http_server",
    "stream.service",
    "stream.http_actions",
    "stream.summary",
    "stream.replay",
    "psycopg",
    "uvicorn",
)
"""Imported besides what the run at the start needs, where they are."""


class Command:
    """A process that was forked for a command: what of `subprocess.Popen` tests use.

    Parameters
    ----------
    told
        Where its number comes from at once, and its exit code at its end.
    """

    def __init__(self, told: socket.socket):
        self._told = told
        self._text = b""
        self.returncode: int | None = None
        while b"\n" not in self._text:
            self._hear(60)
        self.pid = int(self._text.split(b"\n")[0])

    def _hear(self, seconds: float) -> bool:
        """Say whether something came, its end too."""
        if not select.select([self._told], [], [], seconds)[0]:
            return False
        data = self._told.recv(64)
        if not data and self._text.count(b"\n") < 2:
            raise RuntimeError("the process that starts commands is gone")
        self._text += data
        return True

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        while self.returncode is None and self._hear(0):
            if self._text.count(b"\n") == 2:
                self.returncode = int(self._text.split(b"\n")[1])
                self._told.close()
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        """Wait for its end; return the exit code."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            left = until - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            select.select([self._told], [], [], left)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def __del__(self) -> None:
        self._told.close()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Warm:
    """Starts commands. `close` at the end.

    Parameters
    ----------
    more
        Environment variables of the process that starts them.
    """

    def __init__(self, **more: str) -> None:
        self._asking = Lock()
        self._ours, theirs = socket.socketpair()
        given = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
        ours = {name: value for name, value in os.environ.items() if not name.startswith("EBBTIDE_")}
        one = {**ours, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **more}
        self._process = subprocess.Popen(given, pass_fds=[theirs.fileno()], cwd=ROOT, stderr=subprocess.PIPE, env=one)
        theirs.close()
        if self._ours.recv(1) != b"!":
            said = self._process.communicate()[1]
            raise RuntimeError(f"it did not start: {said.decode()}")

    def start(
        self,
        argv: Sequence[object],
        output: IO[Any],
        errors: IO[Any] | None = None,
        *,
        stdin: int | None = None,
        before: str = "",
        module: str = "",
        **more: str,
    ) -> Command:
        """Start a command.

        Parameters
        ----------
        argv
            What comes behind `ebbtide`, or behind the module.
        output, errors
            Files for what it says; both go into the first if there is one only.
        stdin
            Descriptor of what it reads; nothing if there is none.
        before
            Python that is run first, in the new process.
        module
            What is run in place of `ebbtide`, as by ``python -m``.
        more
            Environment variables.
        """
        ours, theirs = socket.socketpair()
        told = {"argv": [str(each) for each in argv], "before": before, "module": module, "environment": more}
        request = json.dumps(told).encode()
        files = [theirs.fileno(), output.fileno(), (errors or output).fileno(), *([] if stdin is None else [stdin])]
        self._ask(request, files)
        theirs.close()
        return Command(ours)

    def _ask(self, request: bytes, files: list[int]) -> None:
        with self._asking:
            socket.send_fds(self._ours, [len(request).to_bytes(4, "little")], files)
            self._ours.sendall(request)

    def run(
        self,
        argv: Sequence[object],
        *,
        said: str = "",
        timeout: float = 120,
        check: bool = False,
        before: str = "",
        module: str = "",
        **more: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; return its exit code and what it said. `said` is what it reads."""
        with tempfile.TemporaryFile() as heard, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            heard.write(said.encode())
            heard.seek(0)
            command = self.start(argv, output, errors, stdin=heard.fileno(), before=before, module=module, **more)
            try:
                code = command.wait(timeout)
            finally:
                command.kill()
            answers = []
            for file in (output, errors):
                file.seek(0)
                answers.append(file.read().decode())
        if check and code:
            raise AssertionError(f"{[*argv]}: exit code {code}: {answers[1]}")
        return subprocess.CompletedProcess(list(argv), code, *answers)

    def learn(self, *modules: str) -> None:
        """Import what the commands of a test need besides, once for all of them."""
        ours, theirs = socket.socketpair()
        request = json.dumps({"modules": modules}).encode()
        self._ask(request, [theirs.fileno()])
        theirs.close()
        with ours:
            if ours.recv(1) != b"!":
                raise RuntimeError(f"{modules}: they cannot be imported, or leave threads behind")

    def close(self) -> None:
        """End the process that starts commands, and those that still run."""
        self._ours.close()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Starts commands without the time that imports take."""
    made = Warm()
    yield made
    made.close()


# --- the process that forks -------------------------------------------------------------------------------------------


def _prepare() -> None:
    """Import what commands need, and load compiled code, by two small runs."""
    import structlog
    import torch

    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    from stream.config import RunSettings
    from stream.consumer import Consumer
    from stream.generate import GenerateSettings, write_stream

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_stream(GenerateSettings(scenario="recurring", streams=2, events=40, seed=1), folder / "talk.jsonl")
        structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), cache_logger_on_first_use=False)
        runs: tuple[dict[str, Any], ...] = (
            {"rank": 4, "tape": folder / "tape", "detectors": {"topic_shift_score": "page_hinkley"}},
            {"policy": "decay_on_shift"},  # the usual rank
        )
        for number, options in enumerate(runs):
            kept = {"state": f"sqlite:///{folder}/{number}.db", "sink": f"jsonl:{folder}/{number}.jsonl"}
            told = {"source": f"file:{folder / 'talk.jsonl'}", "backbone": "hashing", "metrics_port": 0}
            consumer = Consumer(RunSettings(**kept, **told, log_level="error", **options))
            try:
                consumer.open()
                consumer.run()
            finally:
                consumer.close()
    structlog.reset_defaults()
    for module in USUAL:
        with suppress(ModuleNotFoundError):
            importlib.import_module(module)
    _is_alone()


def _is_alone() -> None:
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    if len(threads) - threads.count("jemalloc_bg_thd") > 1:  # that one knows of forks
        raise RuntimeError(f"{threads}: a fork would leave them, and what they hold, behind")
    gc.freeze()  # what is there now is shared for good


def _serve(asked: socket.socket) -> None:
    """Fork for each command; tell its number at once, and its exit code at its end."""
    running: dict[int, tuple[int, int]] = {}  # what becomes readable at its end → its number, where to tell of it
    ready = select.poll()
    ready.register(asked, select.POLLIN)
    asked.sendall(b"!")
    while True:
        for found, _ in ready.poll():
            if found in running:
                ready.unregister(found)
                _tell_the_end(found, *running.pop(found))
                continue
            head, files, _, _ = socket.recv_fds(asked, 4, 4)
            if not head:
                return
            request = json.loads(asked.recv(int.from_bytes(head, "little"), socket.MSG_WAITALL))
            told, *of_command = files
            if "modules" in request:
                for module in request["modules"]:
                    importlib.import_module(module)
                _is_alone()
                os.write(told, b"!")
                os.close(told)
                continue
            child = os.fork()
            if not child:
                _end_with_parent()
                for file in (asked.detach(), told, *running, *(place for _, place in running.values())):
                    os.close(file)
                _command(request, *of_command)
            for file in of_command:
                os.close(file)  # else a pipe has two writers, and one of them says nothing
            _tell(told, child)
            end = os.pidfd_open(child)
            running[end] = child, told
            ready.register(end, select.POLLIN)


def _tell(told: int, number: int) -> None:
    with suppress(BrokenPipeError):
        os.write(told, f"{number}\n".encode())


def _tell_the_end(end: int, child: int, told: int) -> None:
    _tell(told, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os.close(told)
    os.close(end)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _command(request: Mapping[str, Any], output: int, errors: int, stdin: int = -1) -> None:
    import traceback

    if stdin < 0:
        stdin = os.open(os.devnull, os.O_RDONLY)
    for file, place in ((stdin, 0), (output, 1), (errors, 2)):
        os.dup2(file, place)
        os.close(file)
    os.environ.update(request["environment"])
    code = 0
    try:
        exec(request["before"], {})
        sys.argv = ["ebbtide", *request["argv"]]
        if request["module"]:
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        else:
            from stream.cli import main

            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        code = 1  # first: what it says may be said to a terminal that was closed
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _prepare()
    _serve(socket.socket(fileno=int(sys.argv[1])))
