"""A PostgreSQL server of the machine's own binaries, in a folder of its own, and ways to disturb it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import pytest

SLOW = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
int fdatasync(int fd) { usleep(20000); return ((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(fd); }
int fsync(int fd) { usleep(20000); return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(fd); }
"""
"""Put before the server's own: each fsync takes 20 ms longer."""


def binaries() -> Path:
    """Return the folder of `initdb` and `postgres`, or skip the test."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (pip install 'ebbtide[postgres]')")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4].split(".")[0]))
    if not found and (name := shutil.which("initdb")):
        found = [Path(name).resolve()]
    if not found:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    return found[-1].parent


class Server:
    """A server that listens on a socket in its folder only. `start`, `stop` in turn; `remove` at the end.

    Parameters
    ----------
    slow
        Whether each fsync takes 20 ms longer.
    folder
        Where it keeps everything; it is removed at the end. Without one, a new one: in memory, where there is room, as
        nothing here cuts the power.
    """

    def __init__(self, *, slow: bool = False, folder: Path | None = None):
        self.bin = binaries()
        self.folder = Path(tempfile.mkdtemp(prefix="ebbtide-pg-", dir=roomy())) if folder is None else folder
        self.user: str | None = None
        if os.geteuid() == 0:  # it refuses to run as root
            names = {entry.pw_name for entry in pwd.getpwall()}
            self.user = "postgres" if "postgres" in names else "nobody"
            shutil.chown(self.folder, self.user)
        self.environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        self.process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb", "-D", str(self.folder / "data"), "-A", "trust", "-U", "ann", "-k", "--no-sync", "--wal-segsize=1"
        )
        if slow:
            compiler = shutil.which("cc")
            if compiler is None:
                pytest.skip("no C compiler for a slow fsync (Debian: apt-get install gcc)")
            (self.folder / "slow.c").write_text(SLOW)
            library = str(self.folder / "slow.so")
            subprocess.run([compiler, "-shared", "-fPIC", "-o", library, self.folder / "slow.c", "-ldl"], check=True)
            self.environment["LD_PRELOAD"] = library

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [self.bin / name, *arguments],
            check=True,
            capture_output=True,
            user=self.user,
            env=self.environment,
            cwd=self.folder,
        )

    def url(self, database: str = "postgres", folder: Path | None = None) -> str:
        return f"postgresql+psycopg://ann@/{database}?host={folder or self.folder}"

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(self.bin / "postgres", "-D", self.folder / "data", "-k", self.folder),
                    *("-c", "listen_addresses=", "-c", "deadlock_timeout=100ms", "-c", "max_connections=40"),
                    *("-c", "min_wal_size=2MB", "-c", "max_wal_size=8MB", "-c", "shared_buffers=16MB"),
                ],
                stdout=log,
                stderr=log,
                user=self.user,
                env=self.environment,
                cwd=self.folder,
            )
        self.wait()

    def up(self) -> None:
        """Make sure that it is there, whatever the test before did."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        else:
            self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        import psycopg

        until = time.monotonic() + 60
        while True:
            with suppress(psycopg.OperationalError):
                self.ask("SELECT 1")
                return
            assert time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(0.05)

    def crash(self, pid: int) -> None:
        """Kill one of its processes, and wait until it has noticed, recovered, and answers."""
        told = "all server processes terminated; reinitializing"
        log = self.folder / "log"
        before, until = log.read_text().count(told), time.monotonic() + 60
        os.kill(pid, signal.SIGKILL)
        while log.read_text().count(told) == before:
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        self.wait()

    def processes(self) -> list[int]:
        """Return its processes: the one that was started, and those that it forked."""
        assert self.process is not None
        forked = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, forked)]

    @contextmanager
    def hanging(self, *, database: str | None = None) -> Iterator[None]:
        """Let it hang, or only its connections of ours to a database: it keeps all of them open and says nothing."""
        if database is None:
            stopped = self.processes()
        else:
            ours = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND application_name = 'ebbtide'"
            stopped = [pid for (pid,) in self.ask(ours, database)]
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT cuts all connections, SIGQUIT is as a crash."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(60)
            self.process = None

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def connect(self, database: str = "postgres") -> Any:
        import psycopg

        return psycopg.connect(f"host={self.folder} user=ann dbname={database}", autocommit=True)

    def ask(self, statement: str, *values: Any, database: str = "postgres") -> list[tuple[Any, ...]]:
        with self.connect(database) as connection:
            done = connection.execute(statement, values)
            return list(done.fetchall()) if done.description else []

    def cut(self, database: str) -> int:
        """End every connection of ours to a database; return how many there were."""
        return len(
            self.ask(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = %s AND application_name = 'ebbtide'",
                database,
            )
        )


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One for all tests: each takes a database of its own, and leaves it running."""
    made = Server()
    try:
        made.start()
        yield made
    finally:
        made.remove()


def roomy() -> str | None:
    """Return a place in memory with room for a server, if there is one."""
    place = "/dev/shm"
    with suppress(OSError):
        if shutil.disk_usage(place).free > 2 << 30:
            return place
    return None


Cut = Literal["before", "after", "hang before", "hang after"]


class Between:
    """Stands between a client and the server, and breaks the connection at a COMMIT: before the server has it, or
    after it was done and before the answer. Or it keeps the connection, and hands on nothing more.

    Parameters
    ----------
    server
        Which.
    """

    def __init__(self, server: Server):
        self.folder = Path(tempfile.mkdtemp(prefix="ebbtide-between-"))
        self.cuts: list[Cut] = []
        """What to do at the next commits."""
        self._mute: set[socket.socket] = set()
        self._target = str(server.folder / ".s.PGSQL.5432")
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.folder / ".s.PGSQL.5432"))
        self._listening.listen()
        Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
                Thread(target=self._requests, args=(client, server), daemon=True).start()
                Thread(target=self._answers, args=(server, client), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if self.cuts and b"COMMIT\0" in data:
                    how = self.cuts.pop(0)
                    if how.startswith("hang"):
                        self._mute.add(client)
                        if how == "hang after":
                            server.sendall(data)
                        while client.recv(65536):
                            pass
                        break
                    client.shutdown(socket.SHUT_RDWR)  # no answer comes through any more
                    if how == "after":
                        server.sendall(data)
                        server.shutdown(socket.SHUT_WR)  # the server does what it was sent, then ends
                    else:
                        server.shutdown(socket.SHUT_RDWR)
                    return
                server.sendall(data)
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if client not in self._mute:
                    client.sendall(data)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        client.close()
        server.close()

    def close(self) -> None:
        self._listening.close()
        shutil.rmtree(self.folder)


_databases = count()


@pytest.fixture
def database(server: Server) -> str:
    """A new database on the server."""
    server.up()
    name = f"d{next(_databases)}"
    server.ask(f"CREATE DATABASE {name}")
    return name
