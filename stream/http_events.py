"""The live page's server-sent events: one sampler for everybody who watches.

Once a second the sampler takes the service's summary, whoever listens, and keeps what the charts need of the last five
minutes. A watcher is sent that history first (event `hello`), then one message a second (event `tick`), which is
encoded once for all of them.

A watcher that does not read costs a few messages in its queue and what the socket's buffers hold; when the queue is
full its connection is cut. Nothing here ever waits for a watcher but the task that serves it.

    hello   {"every": s, "keep": s, "samples": [sample, ...], "summary": {...}, "streams": [...]}
    tick    {"sample": sample, "summary": {...}, "streams": [...]}      streams: about every other second
    sample  {"at": Unix time, "rate": events/s, "signals": {name: mean}, "alarms": {name: how many since the last one},
             "actions": {kind, or "by operator": how many}, "refused": how many lines}    no keep; nothing that is zero
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import anyio.to_thread
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from stream.plain_json import to_json

log = logging.getLogger(__name__)

MAX_WATCHERS = 32
"""Event streams served at once; the next one is answered 503. They count as connections too."""

QUEUE = 8
"""Messages that wait for a watcher who reads slowly, before its connection is cut."""

SEND_BUFFER = 64 * 1024
"""Bytes that the kernel keeps for a watcher; left alone it would grow to megabytes."""

HEARTBEAT = 10.0
"""Seconds without a message after which a comment is sent: it keeps proxies from closing a quiet connection."""

WORST = 10
"""Streams in a message."""

REST = 50
"""The worst streams are not looked for again before so many times as long as it took: of 100,000 it takes a while."""

CHARTED = ("state_norm", "retrieval_error", "topic_shift_score")
"""Signals that the page draws."""

RETRY = b"retry: 2000\n\n"
"""Milliseconds until a browser that lost the connection asks again."""


class Watched(Protocol):
    """What is asked of the consumer: see `stream.http.Service`."""

    def summary(self) -> dict[str, Any]:
        """Return the run at a glance."""

    def streams(self, limit: int) -> list[dict[str, Any]]:
        """Return at most `limit` resident streams, worst first."""


class Watcher:
    """One client's queue.

    Parameters
    ----------
    cut
        Cuts its connection, without waiting for anything to be sent.
    stuck
        Whether anything waits to be sent.
    """

    def __init__(self, cut: Callable[[], None] = lambda: None, stuck: Callable[[], bool] = lambda: False):
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE)
        self._cut, self._stuck = cut, stuck
        self.closed = False

    def put(self, message: bytes) -> bool:
        """Queue a message; False where there is no room: the client is cut off."""
        if self.closed:
            return False
        try:
            self._messages.put_nowait(message)
        except asyncio.QueueFull:
            self.drop()
            return False
        return True

    async def next(self) -> bytes | None:
        """Return what to send next, a heartbeat where nothing came for long; None: it is over."""
        if self.closed:
            return None
        try:
            return await asyncio.wait_for(self._messages.get(), HEARTBEAT)
        except TimeoutError:
            return b": nothing new\n\n"

    def drop(self) -> None:
        """End it and cut the connection."""
        self.end()
        self._cut()

    def end(self) -> None:
        """End it after what is being sent; a client that does not take even that is cut off."""
        self.closed = True
        while not self._messages.empty():
            self._messages.get_nowait()
        self._messages.put_nowait(None)
        if self._stuck():
            self._cut()


class LiveEvents:
    """The sampler and its watchers, all on the server's event loop.

    The life of one: made with the application; `start` when the loop turns (a watcher that comes earlier starts it);
    `close` when the server is told to stop, after which no watcher is served.

    Parameters
    ----------
    service
        What is watched. Its methods are called on a helper thread, one call at a time.
    every
        Seconds between two samples.
    keep
        Seconds of samples kept.
    clock
        Unix time.
    """

    def __init__(
        self,
        service: Watched,
        *,
        every: float = 1.0,
        keep: float = 300.0,
        clock: Callable[[], float] = time.time,
    ):
        self._service, self._every, self._keep, self._clock = service, every, keep, clock
        self._samples: deque[bytes] = deque(maxlen=max(1, round(keep / every)))
        self._counts: dict[str, Mapping[str, Any]] | None = None
        self._summary: dict[str, Any] | None = None
        self._streams: list[dict[str, Any]] = []
        self._watchers: set[Watcher] = set()
        self._task: asyncio.Task[None] | None = None
        self._streams_due = -math.inf
        self._failing = self._closed = False

    @property
    def watchers(self) -> int:
        """How many clients watch."""
        return len(self._watchers)

    def start(self) -> None:
        """Begin to take samples, on the loop that runs now; may be called again."""
        if self._task is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="ebbtide-live-events")

    def close(self) -> None:
        """Take no more samples, and let every watcher go."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
        for watcher in self._watchers:
            watcher.end()

    def join(self, watcher: Watcher) -> bool:
        """Take a watcher in; False: there are too many, or it is over."""
        if self._closed or len(self._watchers) >= MAX_WATCHERS:
            return False
        self.start()
        watcher.put(self._hello())
        self._watchers.add(watcher)
        self._streams_due = -math.inf  # one who comes now is told with the next message
        return True

    def leave(self, watcher: Watcher) -> None:
        """Forget a watcher."""
        self._watchers.discard(watcher)

    async def _run(self) -> None:
        due = time.monotonic()
        while True:
            try:
                await self._turn()
                self._failing = False
            except Exception:
                if not self._failing:  # once, not once a second
                    log.exception("live_events_failed")
                self._failing = True
            due = max(due + self._every, time.monotonic())  # what was missed is not caught up with
            await asyncio.sleep(due - time.monotonic())

    async def _turn(self) -> None:
        summary = await anyio.to_thread.run_sync(self._service.summary, abandon_on_cancel=True)
        sample = to_json(self._sample(summary))
        self._samples.append(sample)
        self._summary = summary
        if not self._watchers:
            return
        fields = b'{"sample":' + sample + b',"summary":' + to_json(summary)
        begun = time.monotonic()
        if begun >= self._streams_due:
            self._streams = await anyio.to_thread.run_sync(self._service.streams, WORST, abandon_on_cancel=True)
            ended = time.monotonic()
            self._streams_due = max(begun + 1.5 * self._every, ended + REST * (ended - begun))
            fields += b',"streams":' + to_json(self._streams)
        message = _event(b"tick", fields + b"}")
        for watcher in [each for each in self._watchers if not each.put(message)]:
            self._watchers.discard(watcher)

    def _hello(self) -> bytes:
        head = to_json(
            {"every": self._every, "keep": self._keep, "summary": self._summary, "streams": self._streams}
        ).removesuffix(b"}")
        return RETRY + _event(b"hello", head + b',"samples":[' + b",".join(self._samples) + b"]}")

    def _sample(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        counts = {name: summary.get(name) or {} for name in ("alarms", "actions", "origins", "dead_letters")}
        # Before the consumer is ready its counters are those of nothing, and then at once those of the checkpoint.
        before = self._counts
        if before is not None or summary.get("ready"):
            self._counts = counts
        signals = summary.get("signals") or {}
        new = {name: _more(counts[name], (before or counts)[name]) for name in counts}
        new["actions"].pop("keep", None)
        new["origins"].pop("policy", None)  # those are told by their kind
        return {
            "at": round(self._clock(), 3),
            "rate": summary.get("events_per_second"),
            "signals": {name: signals.get(name) for name in CHARTED},
            "alarms": new["alarms"],
            "actions": {**new["actions"], **{f"by {origin}": count for origin, count in new["origins"].items()}},
            "refused": sum(new["dead_letters"].values()),
        }


def _more(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, int]:
    """Return how much each count grew, where it did.

    >>> _more({"decay": 5, "reset": 2, "keep": 9}, {"decay": 3, "reset": 2})
    {'decay': 2, 'keep': 9}
    """
    grown = {name: int(count - before.get(name, 0)) for name, count in now.items()}
    return {name: more for name, more in grown.items() if more > 0}


def _event(name: bytes, data: bytes) -> bytes:
    return b"event: " + name + b"\ndata: " + data + b"\n\n"


class EventStream(Response):
    """The answer to one client, which ends with its connection, or with the server.

    Parameters
    ----------
    events
        What it shows.
    """

    media_type = "text/event-stream"

    def __init__(self, events: LiveEvents):
        super().__init__()
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the client leaves, or is cut off, or the server stops."""
        state: Mapping[str, Any] = scope.get("state") or {}
        transport: asyncio.Transport | None = state.get("transport")
        watcher = Watcher() if transport is None else Watcher(lambda: _cut(transport), lambda: _waiting(transport))
        if state.get("head"):
            await _answer(send, 200, b"")
            return
        if not self._events.join(watcher):
            await _answer(send, 503, to_json({"detail": "too many watch already; ask again in some seconds"}))
            return
        if transport is not None and (held := transport.get_extra_info("socket")) is not None:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        leaving = asyncio.create_task(_gone(receive, watcher))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            while (message := await watcher.next()) is not None:
                await send({"type": "http.response.body", "body": message, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._events.leave(watcher)
            leaving.cancel()
            with suppress(asyncio.CancelledError):
                await leaving


_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]


async def _answer(send: Send, status: int, body: bytes) -> None:
    kind = (b"content-type", b"application/json") if body else _HEADERS[0]
    headers = [kind, *([(b"retry-after", b"5"), (b"content-length", str(len(body)).encode())] if body else [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _gone(receive: Receive, watcher: Watcher) -> None:
    """Wait for the client to leave."""
    while (await receive())["type"] != "http.disconnect":
        pass
    watcher.end()


def _cut(transport: asyncio.Transport) -> None:
    """Close the connection at once: without a linger of 0 the kernel would go on offering what it holds for minutes."""
    if (held := transport.get_extra_info("socket")) is not None and not transport.is_closing():
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _waiting(transport: asyncio.Transport) -> bool:
    return transport.get_write_buffer_size() > 0


class CuttableProtocol(H11Protocol):
    """uvicorn's protocol, where an answer can reach its own connection: an endless one must be able to cut it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a new connection."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}
