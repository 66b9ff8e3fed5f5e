"""Targets that are asked over the network, or ask: the HTTP application, and the URL of a state store."""

# ruff: noqa: PT017 - this is no test: an assertion here is what a target promises, told with the input's number

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import unquote

from memory.errors import EbbtideError
from tests.faults.fuzz_input import Target, mangled

TOKEN = "a-token-that-is-long-enough"
PATHS = (
    *(b"/metrics", b"/-/healthy", b"/-/ready", b"/", b"/api/summary", b"/api/streams?limit=5", b"/openapi.json"),
    *(b"/api/streams/plain", b"/api/streams/a%2Fb/actions", b"/api/streams/\xc3\xbc", b"/api/events", b"/%ff%00"),
)
METHODS = ("GET", "GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "GET\0", "", "☃")
BODIES = (b'{"kind":"decay","factor":0.5}', b'{"kind":"restore","topic":3,"reason":"why"}', b"[]", b"")
HEADERS = (b"application/json", b"text/plain", b"Bearer " + TOKEN.encode(), b"identity", b"chunked", b"\xff\xfe", b"0")
HEADER_NAMES = (b"content-type", b"authorization", b"accept", b"origin", b"host", b"content-length", b"sec-fetch-site")


def http_app() -> Any:
    """Return the application over the tests' service, which takes every action, without its pace."""
    import stream.http
    from stream.operators import Ask
    from stream.store import Acted
    from tests.test_http import SampleService

    class Obliging(SampleService):
        def act(self, stream: str, ask: Ask) -> Future[Acted] | None:
            done: Future[Acted] = Future()
            done.set_result(Acted(None, stream, 1, ask.model_dump_json(), "done", 0.0, b"" if ask.reason else None))
            return done

    usual = stream.http.REQUESTS_PER_SECOND, stream.http.PROBES_PER_SECOND
    stream.http.REQUESTS_PER_SECOND = stream.http.PROBES_PER_SECOND = 10**9  # waiting is not what is tested here
    try:
        app = stream.http.create_app(Obliging(), TOKEN)
        app.middleware_stack = app.build_middleware_stack()  # takes the pace; left alone, at the first request
    finally:
        stream.http.REQUESTS_PER_SECOND, stream.http.PROBES_PER_SECOND = usual
    return app


class Asked:
    """The application, in process: it is asked as the server would ask it, and held to its promise."""

    def __init__(self) -> None:
        self.app = http_app()
        self._loop: asyncio.AbstractEventLoop | None = None  # made by the process that uses it

    def status(self, request: bytes) -> int:
        """Return what a request is answered with: a line with method and target, headers, an empty line, the body.

        Raises
        ------
        AssertionError
            With a 5xx, or not at all.
        """
        head, _, body = request.partition(b"\n\n")
        line, *lines = head.split(b"\n")
        method, _, target = line.partition(b" ")
        path, _, query = target.partition(b"?")
        scope = {  # as the server makes it of what stands on the wire
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method.decode("utf-8", "replace"),
            "scheme": "http",
            "path": unquote(path.decode("ascii", "ignore")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, _, value in (each.partition(b": ") for each in lines)],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": {},
        }
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        status = self._loop.run_until_complete(self._ask(scope, [body[:5], body[5:]]))
        assert 200 <= status < 500 or (status == 503 and scope["path"] == "/api/events"), f"a {status} to {request!r}"
        return status

    async def _ask(self, scope: dict[str, Any], body: list[bytes]) -> int:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            if body:
                return {"type": "http.request", "body": body.pop(0), "more_body": bool(body)}
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await asyncio.wait_for(self.app(scope, receive, send), 20)
        return int(sent[0]["status"]) if sent else 0

    def close(self) -> None:
        """Let its threads end."""
        if self._loop is not None:
            end(self.app, self._loop)


def end(app: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Let an application's threads end, and close the loop that it ran on."""

    async def events() -> None:
        app.state.events.close()
        await asyncio.sleep(0.1)

    loop.run_until_complete(events())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def written(method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]] = (), body: bytes = b"") -> bytes:
    """Return a request as `Asked.status` takes it."""
    return b"\n".join((method + b" " + target, *(name + b": " + value for name, value in headers))) + b"\n\n" + body


def http(folder: Path) -> Target:
    """Requests to the application: any method, path, headers and body; never a 5xx, never without an answer."""
    asked = Asked()
    acting = [(b"content-type", b"application/json"), (b"authorization", b"Bearer " + TOKEN.encode())]
    own = [(b"host", b"x"), (b"origin", b"http://x"), (b"sec-fetch-site", b"same-origin")]

    def check(data: bytes) -> str:
        return str(asked.status(data))

    def one(dice: Random) -> str:
        path = dice.choice(PATHS)
        path = mangled(path, dice) if dice.randrange(3) else path
        headers = [
            (dice.choice(HEADER_NAMES), mangled(value, dice) if dice.randrange(2) else value)
            for value in dice.sample(HEADERS, dice.randrange(5))
        ]
        method, body = dice.choice(METHODS).encode(), dice.choice(BODIES)
        if path.endswith(b"actions") and dice.randrange(4):
            method = b"POST"
            if dice.randrange(4):  # far enough to reach the body
                headers = acting + own * dice.randrange(2)
                body = mangled(body, dice) * dice.choice((1, 1, 1, 1000))
        return check(written(method, path, headers, body))

    seeds = [written(b"GET", path, [(b"accept", b"*/*")]) for path in PATHS]
    seeds += [written(b"POST", b"/api/streams/a%2Fb/actions", acting + own, body) for body in BODIES]
    return Target(one, check, tuple(seeds), asked.close)


def urls(folder: Path) -> Target:
    """URLs of state stores: used, or refused in one line. None of them is a server that is there."""
    from stream.store import StateStore
    from stream.store_database import connect

    good = (
        b"sqlite:///nowhere/state.db",
        b"postgresql+psycopg://ann:secret@[::1]:1/db?x=y",
        b"sqlite+pysqlite:///x.db",
    )

    def one(dice: Random) -> str:
        text = mangled(dice.choice(good), dice).decode("utf-8", "surrogateescape")
        read_only = "psycopg" in text and dice.randrange(50)  # each one that is good costs a connection
        try:
            if read_only:
                connect(text).dispose()
                return "read"
            StateStore(text, create=False).close()
        except EbbtideError as error:
            assert "\n" not in str(error) or "\n" in text, repr(str(error))  # of what one typed, it may
            return "refused"
        return "used"

    return Target(one)
