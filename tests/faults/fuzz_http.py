"""Targets that are asked over the network, or ask: the HTTP application, and the URL of a state store."""

# ruff: noqa: PT017 - this is no test: an assertion here is what a target promises, told with the input's number

from __future__ import annotations

import asyncio
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

    usual, stream.http.REQUESTS_PER_SECOND = (
        stream.http.REQUESTS_PER_SECOND,
        10**9,
    )  # waiting is not what is tested here
    try:
        app = stream.http.create_app(Obliging(), TOKEN)
        app.middleware_stack = app.build_middleware_stack()  # takes the pace; left alone, at the first request
    finally:
        stream.http.REQUESTS_PER_SECOND = usual
    return app


def http(folder: Path) -> Target:
    """Requests to the application: any method, path, headers and body; never a 5xx, never without an answer."""
    app = http_app()
    loops: list[asyncio.AbstractEventLoop] = []  # made by the process that uses it

    async def ask(scope: dict[str, Any], body: list[bytes]) -> int:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            if body:
                return {"type": "http.request", "body": body.pop(0), "more_body": bool(body)}
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await asyncio.wait_for(app(scope, receive, send), 20)
        return int(sent[0]["status"]) if sent else 0

    def one(dice: Random) -> str:
        path = dice.choice(PATHS)
        path, _, query = (mangled(path, dice) if dice.randrange(3) else path).partition(b"?")
        headers = [
            (dice.choice(HEADER_NAMES), mangled(value, dice) if dice.randrange(2) else value)
            for value in dice.sample(HEADERS, dice.randrange(5))
        ]
        body = dice.choice(BODIES)
        if path.endswith(b"actions") and dice.randrange(2):  # far enough to reach the body
            headers = [(b"content-type", b"application/json"), (b"authorization", b"Bearer " + TOKEN.encode())]
            headers += [(b"host", b"x"), (b"origin", b"http://x")] if dice.randrange(2) else []
            body = mangled(body, dice)
        scope = {  # as the server makes it of what stands on the wire
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST" if path.endswith(b"actions") and dice.randrange(2) else dice.choice(METHODS),
            "scheme": "http",
            "path": unquote(path.decode("ascii", "ignore")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": {},
        }
        if not loops:
            loops.append(asyncio.new_event_loop())
        status = loops[0].run_until_complete(ask(scope, [body[:5], body[5:] * dice.choice((1, 1, 1, 1000))]))
        assert 200 <= status < 500 or (status == 503 and path == b"/api/events"), (status, scope, body)
        return str(status)

    async def end() -> None:
        app.state.events.close()
        await asyncio.sleep(0.1)

    def close() -> None:
        for loop in loops:
            loop.run_until_complete(end())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    return Target(one, close=close)


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
