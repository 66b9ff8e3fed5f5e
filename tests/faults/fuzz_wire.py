"""The target that is given what stands on the wire: a connection's bytes, to the server's own protocol."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.fuzz_http import BODIES, PATHS, TOKEN, end, http_app
from tests.faults.fuzz_input import Target, mangled

HEADERS = (
    *(b"Host: y", b"Connection: keep-alive", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Accept: */*"),
    *(b"Expect: 100-continue", b"Upgrade: websocket", b"Content-Type: application/json", b"A" * 300 + b": \xff"),
)
WAIT = 0.005
"""Seconds that a request is given which is not whole, and an answer that does not end."""


def wire(folder: Path) -> Target:
    """Bytes on a connection: answered, or the connection is cut; never a 5xx, never an exception in the server."""
    import h11
    import uvicorn
    from uvicorn.server import ServerState

    from stream.http_limits import MAX_HEAD, LimitedProtocol

    failures: list[Any] = []
    said = logging.getLogger("uvicorn.error")  # what it warns of is that something is no HTTP
    usual, keep = said.level, failures.append
    said.setLevel(logging.ERROR)
    said.addFilter(keep)
    app = http_app()
    set_up: dict[str, Any] = {"ws": "none", "lifespan": "off", "log_config": None, "access_log": False}
    config = uvicorn.Config(app, http=LimitedProtocol, h11_max_incomplete_event_size=MAX_HEAD, **set_up)
    loops: list[asyncio.AbstractEventLoop] = []  # made by the process that uses it

    async def talk(data: bytes) -> bytes:
        loop, state, (client, served) = asyncio.get_running_loop(), ServerState(), socket.socketpair()
        client.setblocking(False)
        with client:
            _, server = await loop.connect_accepted_socket(lambda: LimitedProtocol(config, state, {}), served)
            for piece in (data[:20], data[20:]):
                try:
                    await asyncio.wait_for(loop.sock_sendall(client, piece), 20)
                except ConnectionError:  # cut by the server
                    break
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            until = loop.time() + 20
            while state.tasks and server.conn.their_state is not h11.SEND_BODY and not server.cycle.response_started:
                assert loop.time() < until, f"no answer to {data!r}"
                await asyncio.wait(state.tasks, timeout=WAIT)
            if state.tasks:
                await asyncio.wait(state.tasks, timeout=WAIT)
            try:
                answer = client.recv(1 << 20)
            except (BlockingIOError, ConnectionError):
                answer = b""
        if state.tasks:  # nobody is there any more
            _, left = await asyncio.wait(state.tasks, timeout=20)
            assert not left, f"it still works for a client that has gone, after {data!r}"
        while state.connections:
            await asyncio.sleep(0)
        return answer

    def check(data: bytes) -> str:
        if not loops:
            loops.append(asyncio.new_event_loop())
            loops[0].set_exception_handler(lambda loop, context: failures.append(context))
        answer = loops[0].run_until_complete(talk(data))
        failed = failures.copy()
        failures.clear()
        assert not failed, (failed, data)
        found: list[bytes] = re.findall(rb"HTTP/1\.1 (\d\d\d) ", answer)
        assert not any(status[:1] == b"5" for status in found), (found, data)
        return found[0].decode() if found else "cut, or not whole"

    def one(dice: Random) -> str:
        requests = []
        for _ in range(dice.choice((1, 1, 2))):
            acting = dice.randrange(2)
            lines = [b"POST /api/streams/a/actions HTTP/1.1" if acting else b"GET " + dice.choice(PATHS) + b" HTTP/1.1"]
            lines += [b"Host: x"] * (dice.randrange(8) > 0)
            lines += [b"Authorization: Bearer " + TOKEN.encode()] * acting + dice.sample(HEADERS, dice.randrange(5))
            body = dice.choice(BODIES)
            lines += [b"Content-Length: %d" % len(body), b"Content-Type: application/json"] * acting
            requests.append(b"\r\n".join(lines) + b"\r\n\r\n" + body * acting)
        raw = b"".join(requests)
        return check(mangled(raw, dice) if dice.randrange(4) else raw)

    def close() -> None:
        said.removeFilter(keep)
        said.setLevel(usual)
        for loop in loops:
            end(app, loop)

    seeds = [b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in PATHS]
    post = (
        b"POST /api/streams/a/actions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer "
    )
    post += TOKEN.encode() + b"\r\n"
    seeds += [post + b"Content-Length: %d\r\n\r\n%s" % (len(body), body) for body in BODIES]
    seeds.append(post + b"Transfer-Encoding: chunked\r\n\r\n10\r\n" + b'{"kind":"reset" \r\n1\r\n}\r\n0\r\n\r\n')
    return Target(one, check, tuple(seeds), close)
