"""What a running consumer answers over HTTP: metrics, health, a small API and the live page.

The application knows the consumer only as a `Service`, so it can be served from anything that answers these questions.
Requests are answered on one daemon thread, beside the loop; nothing here can change the consumer.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any, Protocol

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException as BaseHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dashboards.live_page import content_security_policy, live_page
from memory.errors import ConfigurationError, EbbtideError
from stream.http_actions import Actor, add_actions
from stream.http_events import EventStream, LiveEvents
from stream.http_limits import MAX_HEAD, LimitedProtocol, check_tls
from stream.plain_json import to_json

MAX_CONNECTIONS = 128
"""Connections served at once; the next ones are answered 503 without more work."""

REQUESTS_PER_SECOND = 30
"""What is answered at most, health apart. More wait their turn: every answer takes the interpreter from the loop."""

STOP_SECONDS = 5.0
"""How long `HttpServer.stop` waits for the thread. Answers under way get one second of it."""


class Service(Actor, Protocol):
    """What the application asks of the consumer.

    `exposition`, `healthy` and `ready` are called on the server's one thread and answer at once, from memory: while
    they run, no other request is served. `summary`, `streams` and `stream` are called on helper threads, several at a
    time perhaps, and may read the state store. All of them run beside the loop's thread. Numbers that are not finite
    are sent as null.
    """

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type, in the format that the Accept header prefers."""

    def healthy(self) -> tuple[bool, str]:
        """Say whether the loop is alive and moves, and a line about it."""

    def ready(self) -> tuple[bool, str]:
        """Say whether state is restored, the source connected and the process not draining, and a line about it."""

    def summary(self) -> dict[str, Any]:
        """Return the run at a glance.

        Keys, all of them always there::

            "events": int, "tokens": int         since the stream began
            "events_per_second": float           over the last few seconds
            "dead_letters": {reason: int}        likewise "alarms": {name: int}, "actions": {kind: int}
            "streams_resident": int, "streams_stored": int
            "backlog_bytes": int | None          None: the source cannot tell (standard input)
            "last_checkpoint": float | None      Unix time in seconds; None: there was none yet
            "signals": {"state_norm": float | None, "retrieval_error": float | None, "topic_shift_score": float | None}
                                                 means over the last window; None: nothing was measured in it
            "ready": bool
        """

    def streams(self, limit: int) -> list[dict[str, Any]]:
        """Return at most `limit` resident streams, worst first.

        Each row::

            "stream": str, "seq": int            its name, and the sequence number of its last event
            "state_norm", "stable_rank", "write_error", "retrieval_error", "topic_shift_score": float | None
            "last_action": str                   a kind, as in the output records
            "last_alarm_seq": int | None         None: it never alarmed
        """

    def stream(self, name: str) -> dict[str, Any] | None:
        """Return one stream's row, with whatever more is known of it; None when there is no such stream."""


class _Json(Response):
    """ASCII JSON on one line."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": content_security_policy(),
}
"""Sent with every answer."""


class Pace:
    """Spaces requests out once a burst of them is used up.

    Parameters
    ----------
    rate
        Requests a second in the long run.
    burst
        How many may come at once after a quiet time.

    Examples
    --------
    >>> pace = Pace(rate=4, burst=2)
    >>> [pace.delay(now=10.0) for _ in range(4)]
    [0.0, 0.0, 0.25, 0.5]
    >>> pace.delay(now=12.0)
    0.0
    """

    def __init__(self, rate: float, burst: int):
        self._spacing = 1 / rate
        self._slack = (burst - 1) / rate
        self._next = -math.inf

    def delay(self, now: float) -> float:
        """Return how many seconds a request that comes at `now` has to wait. Requests come in the order of `now`."""
        turn = max(self._next, now - self._slack)
        self._next = turn + self._spacing
        return max(0.0, turn - now)


class _Edge:
    """Keeps the pace, adds `HEADERS`, and asks the application for GET where HEAD came: the server drops the body."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self.pace = Pace(REQUESTS_PER_SECOND, burst=REQUESTS_PER_SECOND)
        self.headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # Probes are not made to wait behind a storm of scrapers.
        if not scope["path"].startswith("/-/") and (seconds := self.pace.delay(time.monotonic())):
            try:
                await asyncio.sleep(seconds)
            except (
                asyncio.CancelledError
            ):  # the server stops; an exception here would be one in its log for each request
                await PlainTextResponse("stopping\n", 503)(scope, receive, send)
                return

        async def pass_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *self.headers]}
            await send(message)

        if scope["method"] == "HEAD":  # an answer that never ends must know of it
            scope = {**scope, "method": "GET", "state": {**scope.get("state", {}), "head": True}}
        await self.app(scope, receive, pass_on)


def create_app(service: Service, token: str | None = None, *, sample_every: float = 1.0) -> FastAPI:
    """Make the application.

    GET and HEAD on `/metrics`, `/-/healthy`, `/-/ready`, `/api/summary`, `/api/streams`, `/api/streams/{id}`,
    `/api/events`, `/` and `/openapi.json`; POST on `/api/streams/{id}/actions` for whoever has the token; other methods
    are answered 405. There is no page of documentation: FastAPI's loads its scripts from elsewhere, and this
    application asks nothing of any other host. The live events take a summary every `sample_every` seconds.

    Examples
    --------
    >>> class Idle:
    ...     def healthy(self):
    ...         return True, "the loop ticked 0.1 s ago"
    >>> from fastapi.testclient import TestClient
    >>> TestClient(create_app(Idle())).get("/-/healthy").text
    'the loop ticked 0.1 s ago\\n'
    """
    app = FastAPI(title="Ebbtide", docs_url=None, redoc_url=None, redirect_slashes=False, default_response_class=_Json)
    app.add_middleware(_Edge)
    page = live_page().encode()

    @app.exception_handler(BaseHTTPException)
    async def refused(request: Request, error: BaseHTTPException) -> Response:
        headers = {405: {"Allow": "GET, HEAD"}, 401: {"WWW-Authenticate": "Bearer"}}.get(error.status_code)
        return _Json({"detail": error.detail}, status_code=error.status_code, headers=headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        # Sent from outside of the middleware, which is why it adds the headers itself. The server logs the traceback.
        return _Json({"detail": "the consumer could not answer; its log says why"}, 500, headers=HEADERS)

    # These run on the server's thread: handing them to another one would cost more than they do.
    @app.get("/metrics", response_class=Response, summary="Metrics for Prometheus")
    async def metrics(request: Request) -> Response:
        body, content_type = service.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type, "Vary": "Accept"})

    @app.get("/-/healthy", response_class=PlainTextResponse, summary="Is the loop alive?")
    async def healthy() -> Response:
        return _verdict(*service.healthy())

    @app.get("/-/ready", response_class=PlainTextResponse, summary="Is the consumer consuming?")
    async def ready() -> Response:
        return _verdict(*service.ready())

    @app.get("/", response_class=Response, summary="The live page", include_in_schema=False)
    async def index() -> Response:
        return Response(page, media_type="text/html; charset=utf-8")

    app.state.events = events = LiveEvents(service, every=sample_every)

    @app.get(
        "/api/events",
        response_class=Response,
        responses={200: {"content": {"text/event-stream": {}}}},
        summary="What the live page shows, as server-sent events",
    )
    async def live() -> Response:
        return EventStream(events)

    # These may read the state store: FastAPI gives each a helper thread, so that they hold up nobody.
    @app.get("/api/summary", summary="The run at a glance")
    def summary() -> Response:
        return _Json(service.summary())

    @app.get("/api/streams", summary="The worst streams")
    def streams(limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> Response:
        return _Json(service.streams(limit))

    @app.get("/api/streams/{name:any_text}", summary="One stream")
    def stream(name: str) -> Response:
        found = service.stream(name)
        if found is None:
            raise HTTPException(404, f"there is no stream named {name!r}")
        return _Json(found)

    add_actions(app, service, token)
    return app


def _verdict(good: bool, line: str) -> Response:
    return PlainTextResponse(line + "\n", 200 if good else 503)


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
    """Says when it is up, and begins and ends the live events with itself."""

    def __init__(self, config: uvicorn.Config, up: Event, events: LiveEvents | None):
        super().__init__(config)
        self._up, self._events = up, events

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._events is not None:
            self._events.start()
        self._up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
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
