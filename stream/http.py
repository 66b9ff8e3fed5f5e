"""What a running consumer answers over HTTP: metrics, health, a small API and the live page.

The application knows the consumer only as a `Service`, so it can be served from anything that answers these questions.
Requests are answered on one daemon thread, beside the loop; nothing here can change the consumer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as BaseHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dashboards.live_page import content_security_policy, live_page
from stream.http_actions import Actor, add_actions
from stream.http_events import EventStream, LiveEvents
from stream.http_names import KnownNames
from stream.http_pace import Pace
from stream.plain_json import to_json

REQUESTS_PER_SECOND = 30
"""What is answered at most, health apart. More wait their turn: every answer takes the interpreter from the loop."""
PROBES_PER_SECOND = 100
"""The same of health, which does not wait behind the others."""


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


class _Edge:
    """Answers by the names it knows, keeps the pace, adds `HEADERS`, and asks the application for GET where HEAD came:
    the server drops the body."""

    def __init__(self, app: ASGIApp, names: KnownNames | None = None):
        self.app, self.names = app, names
        self.pace = Pace(REQUESTS_PER_SECOND, burst=REQUESTS_PER_SECOND)
        self.probes = Pace(PROBES_PER_SECOND, burst=PROBES_PER_SECOND)
        self.headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope)
        if self.names is not None and not self.names.has(given.get("host", "")):
            detail = "expected a Host that is an address, localhost, or given by --metrics-name, got another name"
            await _Json({"detail": detail}, 421, headers=HEADERS)(scope, receive, send)
            return
        if "transfer-encoding" in given and "content-length" in given:  # where it ends is a matter of opinion
            detail = "expected the length of the body to be said once"
            await _Json({"detail": detail}, 400, headers={**HEADERS, "Connection": "close"})(scope, receive, send)
            return
        # Probes are not made to wait behind a storm of scrapers.
        pace = self.probes if scope["path"].startswith("/-/") else self.pace
        if seconds := pace.delay(time.monotonic()):
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


def create_app(
    service: Service, token: str | None = None, *, names: KnownNames | None = None, sample_every: float = 1.0
) -> FastAPI:
    """Make the application.

    GET and HEAD on `/metrics`, `/-/healthy`, `/-/ready`, `/api/summary`, `/api/streams`, `/api/streams/{id}`,
    `/api/events`, `/` and `/openapi.json`; POST on `/api/streams/{id}/actions` for whoever has the token; other methods
    are answered 405. There is no page of documentation: FastAPI's loads its scripts from elsewhere, and this
    application asks nothing of any other host. The live events take a summary every `sample_every` seconds. A request
    for another host than `names` knows is answered 421.

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
    app.add_middleware(_Edge, names=names)
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
