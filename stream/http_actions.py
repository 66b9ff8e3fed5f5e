"""`POST /api/streams/{id}/actions`: what people may do to a stream over HTTP, if the run was given a token for it."""

from __future__ import annotations

import asyncio
import hmac
import os
import stat
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import structlog
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPBearer
from pydantic import ValidationError
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect

from memory.errors import ConfigurationError
from stream.operators import Ask, slip_of
from stream.store import Acted

log = structlog.get_logger(__name__)

MAX_BODY = 8192
"""Bytes of a request; an action needs a hundred, and 6,000 more for a reason of 500 characters that are all escaped."""

MIN_TOKEN = 16
"""Characters of a token: shorter ones can be guessed."""

PATIENCE = 30.0
"""Seconds to wait for the loop, which takes actions between two micro-batches."""


REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "No token, or another one"},
    403: {"description": "Another site's page asks, or the run was given no token"},
    404: {"description": "There is no such stream"},
    409: {"description": "It cannot be done to this stream"},
    413: {"description": "The body is too long"},
    415: {"description": "The body is not JSON"},
    422: {"description": "The body is no action"},
    503: {"description": "The consumer takes no actions now"},
}
SCHEMA = Ask.model_json_schema() | {"description": "What to do."}
BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/json": {"schema": SCHEMA}}}}
"""The description of the body, which is read by hand: no more of it than is allowed, and after the token."""


class _AnyText(Convertor[str]):
    """What a stream's name in a path may be: anything, line breaks too, which the framework's own `path` leaves out."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any_text", _AnyText())


class Actor(Protocol):
    """What the endpoint asks of the consumer."""

    def act(self, stream: str, ask: Ask) -> Future[Acted] | None:
        """Ask for an action; the future is done once it is committed. None: it cannot be taken now."""


def read_token(path: Path | None) -> str | None:
    """Return the token in a file, or None without one.

    Raises
    ------
    ConfigurationError
        It cannot be read, is too short, or holds more than a token.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "token"
    >>> _ = path.write_text("correct-horse-battery\\n")
    >>> path.chmod(0o600)
    >>> read_token(path)
    'correct-horse-battery'
    """
    if path is None:
        return None
    try:
        token = path.read_text("ascii").strip()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise ConfigurationError(f"--api-token-file {path}: expected a file with a token, got: {reason}") from None
    if len(token) < MIN_TOKEN or len(token.split()) != 1 or not token.isprintable():
        raise ConfigurationError(
            f"--api-token-file {path}: expected one word of at least {MIN_TOKEN} characters, such as "
            "`openssl rand -hex 32` prints"
        )
    if mode & (stat.S_IRWXG | stat.S_IRWXO) and os.name == "posix":
        log.warning("token_readable_by_others", path=str(path), hint=f"chmod 600 {path}")
    return token


def add_actions(app: FastAPI, actor: Actor, token: str | None) -> None:
    """Give an application the endpoint; without a token it refuses everybody."""
    secret = None if token is None else token.encode()

    @app.post(
        "/api/streams/{name:any_text}/actions",
        summary="Do something to a stream",
        responses=REFUSALS,
        openapi_extra=BODY,
        dependencies=[Depends(HTTPBearer(auto_error=False))],  # for the description: `_check_token` is what checks
    )
    async def act(name: str, request: Request) -> dict[str, Any]:
        _check_origin(request)
        _check_token(request, secret)
        ask = await _read(request)
        future = actor.act(name, ask)
        if future is None:
            raise HTTPException(503, "the consumer takes no actions now: it is starting, stopping, or too many wait")
        try:
            acted = await asyncio.wait_for(asyncio.wrap_future(future), PATIENCE)
        except (TimeoutError, asyncio.CancelledError):
            raise HTTPException(503, "the consumer did not come to it; it may be stopping") from None
        if acted.before is None:
            raise HTTPException(404 if acted.seq < 0 else 409, acted.outcome)
        return {"stream": name, "seq": acted.seq, "outcome": acted.outcome}


def _check_origin(request: Request) -> None:
    """Refuse what another site's page sends in somebody's browser."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    own = f"{request.scope['scheme']}://{request.headers.get('host', '')}"
    if (origin is not None and origin != own) or site not in (None, "same-origin", "none"):
        raise HTTPException(403, "expected a request from this page or from no page, got one from another origin")


def _check_token(request: Request, secret: bytes | None) -> None:
    if secret is None:
        raise HTTPException(403, "acting over HTTP is off: start the run with --api-token-file FILE")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), secret)
    if scheme.lower() != "bearer" or not right:
        raise HTTPException(401, "expected Authorization: Bearer TOKEN, the token of --api-token-file")


async def _read(request: Request) -> Ask:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "expected Content-Type: application/json")
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                raise HTTPException(413, f"expected at most {MAX_BODY} bytes")
    except ClientDisconnect:
        raise HTTPException(400, "the request broke off") from None
    try:
        return Ask.model_validate_json(body)
    except ValidationError as error:
        raise HTTPException(422, slip_of(error)) from None
