"""By which names a server may be asked for: a page of another site can have its own name point at the loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit


class KnownNames:
    """The names by which the HTTP server answers: addresses, localhost, and those that were given.

    A browser takes a name that was made to point at this machine after its page was loaded (DNS rebinding) for the same
    site, so the page could read what a listener on the loopback keeps here. It cannot send another name, or none.

    Parameters
    ----------
    names
        More of them.

    Examples
    --------
    >>> known = KnownNames(["ebbtide.example.org"])
    >>> [known.has(host) for host in ("127.0.0.1:9464", "[::1]:9464", "localhost:9464", "EBBTIDE.example.org", "")]
    [True, True, True, True, True]
    >>> known.has("elsewhere.example.org:9464"), known.has("127.0.0.1.example.org"), known.has("[")
    (False, False, False)
    """

    def __init__(self, names: Iterable[str] = ()):
        self._names = {"localhost", *(name.lower().rstrip(".") for name in names)}

    def has(self, host: str) -> bool:
        """Say whether a request with this `Host` is answered; one without any comes from no browser."""
        if not host:
            return True
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return name in self._names or name.endswith(".localhost") or _is_address(name)


def names_of(host: str, more: Iterable[str]) -> KnownNames | None:
    """Return the names by which a server that listens on `host` answers; None where it answers by any.

    Examples
    --------
    >>> names_of("127.0.0.1", []) is None, names_of("0.0.0.0", []) is None, names_of("0.0.0.0", ["a.example"]) is None
    (False, True, False)
    """
    more = tuple(more)
    return KnownNames((*more, host)) if more or _is_loopback(host) else None


def _is_loopback(host: str) -> bool:
    try:
        return all(ip_address(found[4][0]).is_loopback for found in socket.getaddrinfo(host, None))
    except (OSError, ValueError):  # nothing can listen there
        return False


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
