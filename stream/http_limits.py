"""What one client may take of the HTTP server: a deadline for whoever sends, or reads, too slowly.

The number of connections is bounded, so one that is held open and says nothing keeps somebody else out.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import h11

from memory.errors import ConfigurationError
from stream.http_events import CuttableProtocol

PATIENCE = 10.0
"""Seconds for a request to be there whole, and for a client to take anything of an answer."""

MAX_HEAD = 16 * 1024
"""Bytes of a request's line and headers; more is answered 400."""


class LimitedProtocol(CuttableProtocol):
    """uvicorn's protocol, which cuts a connection whose request does not arrive, or whose answer is not read.

    After an answer uvicorn's own deadline holds, which is shorter.
    """

    _deadlines: dict[str, asyncio.TimerHandle]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a new connection."""
        super().connection_made(transport)
        self._deadlines = {}
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take more of a request."""
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, where something can still be said, and cut the connection."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # what the application answers now would be a second answer
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # an answer is under way or was given; or it was HEAD, and the line is a body
            self.transport.close()

    def on_response_complete(self) -> None:
        """Go on after an answer."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._limit("answer", True)

    def resume_writing(self) -> None:
        """Go on, now that it did."""
        super().resume_writing()
        self._limit("answer", False)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        for deadline in self._deadlines.values():
            deadline.cancel()
        self._deadlines.clear()
        super().connection_lost(exc)

    def _watch(self) -> None:
        self._limit("request", self.conn.their_state in (h11.IDLE, h11.SEND_BODY))

    def _limit(self, what: str, waits: bool) -> None:
        """Let a deadline run from when the wait began, whatever trickles in meanwhile; or take it back."""
        if waits and what not in self._deadlines:
            self._deadlines[what] = self.loop.call_later(PATIENCE, self.transport.abort)
        elif not waits and what in self._deadlines:
            self._deadlines.pop(what).cancel()


def check_tls(certificate: Path | None, key: Path | None) -> None:
    """Say at once whether TLS can be had from these files; None and None: there is none.

    Raises
    ------
    ConfigurationError
        One is missing, or they are no certificate and its key.

    Examples
    --------
    >>> check_tls(None, None)
    >>> check_tls(Path("cert.pem"), None)
    Traceback (most recent call last):
    ...
    memory.errors.ConfigurationError: expected --metrics-tls-cert together with --metrics-tls-key, got one of them
    """
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise ConfigurationError("expected --metrics-tls-cert together with --metrics-tls-key, got one of them")
    for option, path in (("cert", certificate), ("key", key)):
        if not path.is_file():
            raise ConfigurationError(f"--metrics-tls-{option} {path}: expected a file in PEM form, got none")
    try:
        # The empty password: a key that is locked would have OpenSSL ask for one at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigurationError(
            f"--metrics-tls-cert {certificate}: expected a certificate, with its key, unlocked, in {key}, both in PEM "
            f"form, got: {getattr(error, 'reason', None) or error}"
        ) from None
