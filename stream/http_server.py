"""The HTTP server: it takes connections at a pace, and serves an application on a daemon thread beside the loop."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from pathlib import Path
from threading import Event, Thread

import uvicorn
from fastapi import FastAPI

from memory.errors import ConfigurationError, EbbtideError
from stream import http_limits
from stream.http_events import LiveEvents
from stream.http_limits import MAX_HEAD, LimitedProtocol, check_tls
from stream.http_pace import Pace

MAX_CONNECTIONS = 128
"""Connections served at once; the next ones are answered 503 without more work."""

TAKEN = 2 * MAX_CONNECTIONS
"""Connections open at once, those that have asked nothing yet too. More wait in the kernel: files need descriptors."""

CONNECTIONS_PER_SECOND = 50
"""New connections taken at most, after a burst of as many as are served at once. More wait in the kernel, where they
cost nothing: to take one, even to refuse it, costs the loop about a millisecond of the interpreter."""

STOP_SECONDS = 5.0
"""How long `HttpServer.stop` waits for the thread. Answers under way get one second of it."""


class HttpServer:
    """Serves an application on a daemon thread.

    The life of one: the constructor takes the port, so that one in use is known before anything else has begun;
    `start` answers from then on; `stop` ends it, and may be called at any time and twice.

    Parameters
    ----------
    app
        What `create_app` returns.
    host
        An address of this machine, or its name.
    port
        The port; 0 for any that is free, which `port` then tells.
    certificate, key
        Files in PEM form: then it speaks TLS, 1.2 or later, and nothing else.

    Raises
    ------
    ConfigurationError
        The address cannot be listened on, or the files are not what they should be.

    Examples
    --------
    >>> import httpx
    >>> server = HttpServer(FastAPI(title="an example"), "127.0.0.1", 0)
    >>> server.start()
    >>> httpx.get(server.url + "/openapi.json").json()["info"]["title"]
    'an example'
    >>> server.stop()
    """

    def __init__(self, app: FastAPI, host: str, port: int, *, certificate: Path | None = None, key: Path | None = None):
        check_tls(certificate, key)
        self._scheme = "http" if certificate is None else "https"
        self._socket = _listen(host, port)
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        self._up = Event()
        self._failure: BaseException | None = None
        self._log = logging.getLogger("uvicorn.error")
        self._seldom = Seldom()
        self._server = _Server(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=LimitedProtocol,
                h11_max_incomplete_event_size=MAX_HEAD,
                ssl_certfile=certificate,
                ssl_keyfile=key,
                ws="none",
                lifespan="off",
                log_config=None,  # no handlers of its own: records go where the process sends its log
                log_level=logging.WARNING,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=1,
            ),
            self._up,
            getattr(app.state, "events", None),
        )
        self._thread = Thread(target=self._serve, name="ebbtide-http", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"{self._scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def start(self) -> None:
        """Begin to answer; returns when it does."""
        self._log.addFilter(self._seldom)
        self._thread.start()
        self._up.wait()
        if not self._server.started:
            raise EbbtideError(f"the HTTP server on {self.url} did not start: {self._failure!r}")

    def stop(self) -> None:
        """Let answers under way be finished, for a second, and close the port."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)
        self._log.removeFilter(self._seldom)
        self._socket.close()

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except BaseException as failure:
            # Nobody is above this to hear it. The consumer goes on without its metrics.
            self._failure = failure
            logging.getLogger(__name__).exception("http_server_failed")
        finally:
            self._up.set()


class Seldom(logging.Filter):
    """Lets a message through once a minute: the server logs one for each request that it refuses."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the record is logged; a failure with its traceback always is."""
        if record.exc_info or record.created - self._last.get(record.msg, -math.inf) >= 60:
            self._last[record.msg] = record.created
            return True
        return False


class _Server(uvicorn.Server):
    """Takes connections at a pace, says when it is up, and begins and ends the live events with itself."""

    def __init__(self, config: uvicorn.Config, up: Event, events: LiveEvents | None):
        super().__init__(config)
        self._up, self._events = up, events
        self._accepting: list[asyncio.Task[None]] = []
        self._begun: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])  # uvicorn would take whatever comes
        self._accepting = [asyncio.create_task(self._accept(listener)) for listener in sockets or ()]
        if self._events is not None:
            self._events.start()
        self._up.set()

    async def _accept(self, listener: socket.socket) -> None:
        """Take connections, at the pace."""
        loop, pace = asyncio.get_running_loop(), Pace(CONNECTIONS_PER_SECOND, burst=MAX_CONNECTIONS)
        listener.setblocking(False)
        while True:
            while len(self.server_state.connections) + len(self._begun) >= TAKEN:
                await asyncio.sleep(0.05)
            try:
                connection, _ = await loop.sock_accept(listener)
            except ConnectionError:  # it has gone already
                continue
            except OSError as error:  # no descriptors are left, say
                logging.getLogger("uvicorn.error").error("a connection cannot be taken: %s", error.strerror)
                await asyncio.sleep(1)
                continue
            task = asyncio.create_task(self._serve_one(connection))
            self._begun.add(task)
            task.add_done_callback(self._begun.discard)
            if seconds := pace.delay(time.monotonic()):  # behind the one that it is for: a burst is one larger
                await asyncio.sleep(seconds)

    async def _serve_one(self, connection: socket.socket) -> None:
        """Hand a connection to uvicorn's protocol; with TLS, after the handshake."""

        def protocol() -> asyncio.Protocol:
            return LimitedProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

        tls = self.config.ssl
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                protocol, connection, ssl=tls, ssl_handshake_timeout=None if tls is None else http_limits.PATIENCE
            )
        except OSError:  # no handshake, one that took too long, or it has gone
            connection.close()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in (*self._accepting, *self._begun):
            task.cancel()
        if self._events is not None:
            self._events.close()  # answers that never end would be waited for
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    advice = "choose another --metrics-port, or 0 to turn the HTTP server off"
    if not 0 <= port <= 65535:
        raise ConfigurationError(f"expected a port from 1 to 65535, got {port}; {advice}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # A name such as localhost has several addresses; IPv4 is what configurations of scrapers mean by it.
        family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        # asyncio turns Nagle's algorithm off only on sockets that name their protocol, and `socket.create_server` names
        # none; with it on, every answer is 40 ms late, since its head and its body are written apart.
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"expected a host to listen on, got {host!r}: {error.strerror}; {advice}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Listening at once, not only bound: two sockets can be bound to one port as long as neither listens.
        listener.listen(MAX_CONNECTIONS)
        return listener
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"expected to listen on {host} port {port}, got {error.strerror!r}; {advice}"
        ) from error
