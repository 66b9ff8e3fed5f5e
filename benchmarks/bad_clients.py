"""Clients that nobody would wish for, all at once, on one thread: see `BadClients`.

    python -m benchmarks.bad_clients PORT

says "ready" when they are there, and what came of it when its standard input ends.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

SMALL = 4096
"""Bytes that the kernel keeps for those who do not read."""

MOST = 256
"""Connections of the storm that are open at once."""

AT_ONCE = 32
"""Connections opened before the next look at the answers."""


@dataclass(eq=False)
class _Asker:
    """One connection that asks for the metrics and reads the answer."""

    again: bool
    held: socket.socket
    head: bytes = b""


@dataclass
class BadClients:
    """Clients of one server, from `with` to its end.

    Attributes
    ----------
    port
        Of the loopback.
    scrapers
        Connections that ask for the metrics again as soon as they are answered.
    rate
        Scrapes a second that are asked for besides, each on a connection of its own, whether answered or not.
    watchers
        Clients that open the live page's events and never read.
    crawlers
        Clients that ask for the metrics and read one byte a second.
    asked, answered, refused, cut
        What came of the scrapes: how many were sent; were answered 200; something else; or were cut off.
    """

    port: int
    scrapers: int = 64
    rate: float = 1_000.0
    watchers: int = 40
    crawlers: int = 4
    asked: int = 0
    answered: int = 0
    refused: int = 0
    cut: int = 0
    _idle: list[socket.socket] = field(default_factory=list)
    _slow: list[socket.socket] = field(default_factory=list)
    _open: set[_Asker] = field(default_factory=set)
    _over: threading.Event = field(default_factory=threading.Event)
    _seen: selectors.DefaultSelector = field(default_factory=selectors.DefaultSelector)

    def __enter__(self) -> BadClients:
        self._idle = [self._connect(b"/api/events", SMALL) for _ in range(self.watchers)]
        self._slow = [self._connect(b"/metrics", SMALL) for _ in range(self.crawlers)]
        self._thread = threading.Thread(target=self._run, name="bad clients", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        for each in [*self._idle, *self._slow, *(asker.held for asker in self._open)]:
            each.close()
        self._seen.close()

    def _connect(self, path: bytes, buffer: int | None = None) -> socket.socket:
        held = socket.socket()
        if buffer is not None:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        held.settimeout(5)
        with suppress(OSError):
            held.connect(("127.0.0.1", self.port))
            held.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        held.setblocking(False)
        return held

    def _ask(self, again: bool) -> None:
        asker = _Asker(again, self._connect(b"/metrics"))
        self.asked += 1
        self._open.add(asker)
        self._seen.register(asker.held, selectors.EVENT_READ, asker)

    def _run(self) -> None:
        for _ in range(self.scrapers):
            self._ask(again=True)
        begun = crawled = time.monotonic()
        sent = 0
        while not self._over.is_set():
            now = time.monotonic()
            due = min(int((now - begun) * self.rate) - sent, self.scrapers + MOST - len(self._open), AT_ONCE)
            for _ in range(due):
                self._ask(again=False)
                sent += 1
            if now - crawled >= 1.0:
                crawled = now
                for each in self._slow:
                    with suppress(OSError):
                        each.recv(1)
            for key, _ in self._seen.select(0.002):
                self._hear(key.data)

    def _hear(self, asker: _Asker) -> None:
        """Take what came of one answer; at its end count it, and ask again if that is what this one does."""
        try:
            while part := asker.held.recv(1 << 16):
                asker.head = asker.head or part[:16]
        except BlockingIOError:
            return
        except OSError:
            asker.head = b""
        self.answered += asker.head.startswith(b"HTTP/1.1 200")
        self.cut += not asker.head
        self.refused += bool(asker.head) and not asker.head.startswith(b"HTTP/1.1 200")
        self._seen.unregister(asker.held)
        self._open.discard(asker)
        asker.held.close()
        if asker.again:
            self._ask(again=True)


def main() -> None:
    """Be them until standard input ends."""
    with BadClients(int(sys.argv[1])) as clients:
        begun = time.monotonic()
        print("ready", flush=True)
        sys.stdin.read()
        passed = time.monotonic() - begun
        rates = {"asked": clients.asked, "answered": clients.answered, "refused or cut": clients.refused + clients.cut}
        print(json.dumps({f"{name}/s": count / passed for name, count in rates.items()}))


if __name__ == "__main__":
    main()
