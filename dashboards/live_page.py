"""The live page: one self-contained HTML file that asks the consumer's own API how it is.

The page itself is `live_page.html` beside this module. It loads nothing from anywhere else, and the content security
policy allows its one script and its one style sheet by their hashes, so that nothing else can run in it.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from functools import cache
from importlib.resources import files


@cache
def live_page() -> str:
    """Return the page's HTML.

    Examples
    --------
    >>> live_page().splitlines()[0]
    '<!doctype html>'
    """
    return files("dashboards").joinpath("live_page.html").read_text("utf-8")


@cache
def content_security_policy() -> str:
    """Return the value of the Content-Security-Policy header under which the page works.

    Examples
    --------
    >>> content_security_policy().split("; ")[0]
    "default-src 'self'"
    """
    return "; ".join(
        [
            "default-src 'self'",
            f"script-src {_hash('script')}",
            f"style-src {_hash('style')}",
            "img-src data:",
            "object-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _hash(tag: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", live_page(), re.DOTALL)
    assert len(found) == 1, f"expected one <{tag}> in live_page.html, found {len(found)}"
    return f"'sha256-{b64encode(hashlib.sha256(found[0].encode()).digest()).decode()}'"
