"""Requests that schemathesis makes of the application's own OpenAPI: such as it allows, and such as it does not."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.faults.fuzz_http import TOKEN, Asked, written

ROUND = 2_000
"""Requests made of one operation before it is the next one's turn: more than most have of different ones."""


def described(
    *,
    seed: int,
    inputs: int,
    seconds: float,
    tell: Callable[[Counter[str]], None] = lambda found: None,
) -> tuple[Counter[str], int]:
    """Ask for what the application's OpenAPI describes; return how often which operation answered with which status.

    An operation that has no more requests to make than were made leaves its turn to the others.

    Returns
    -------
    tuple
        The counts, and how many of the requests were different ones.

    Raises
    ------
    AssertionError
        An answer was a 5xx, or did not come; the message has the seed and the request.
    """
    import hypothesis
    import schemathesis
    from hypothesis.errors import Unsatisfiable
    from schemathesis.generation import GenerationMode

    asked = Asked()
    schema = schemathesis.openapi.from_dict(asked.app.openapi())
    operations = [found.ok() for found in schema.get_all_operations()]
    waiting = [(operation, mode) for operation in operations for mode in GenerationMode]
    found: Counter[str] = Counter()
    different: set[int] = set()
    end, turn = time.monotonic() + seconds, 0

    def ask(operation: Any, mode: Any, most: int) -> bool:
        """Make requests of an operation; say whether it has more of them."""
        before = found.total()

        @hypothesis.seed(f"{seed}:{turn}:{mode}:{operation.label}")
        @hypothesis.settings(
            max_examples=most,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(operation.as_strategy(mode))
        def make(case: Any) -> None:
            request = on_the_wire(case)
            try:
                found[f"{operation.label}: {asked.status(request)}"] += 1
            except Exception as error:
                raise AssertionError(f"seed {seed}, turn {turn}: {error!r}, asked {request!r}") from error
            different.add(hash(request))

        try:
            make()
        except Unsatisfiable:  # nothing breaks the description of an operation without parameters
            return False
        return found.total() - before >= most

    try:
        while waiting and found.total() < inputs and time.monotonic() < end:
            for pair in tuple(waiting):
                left = inputs - found.total()
                if left > 0 and time.monotonic() < end and not ask(*pair, min(ROUND, -(-left // len(waiting)))):
                    waiting.remove(pair)
                tell(found)
            turn += 1
    finally:
        asked.close()
    return found, len(different)


def on_the_wire(case: Any) -> bytes:
    """Return a case of schemathesis's as the server reads it."""
    import requests

    made = requests.Request(**case.as_transport_kwargs(base_url="http://127.0.0.1")).prepare()
    if made.headers.get("authorization", "").startswith("Bearer "):  # the right one; others stay as they are
        made.headers["authorization"] = f"Bearer {TOKEN}"
    made.headers.pop("X-Schemathesis-TestCaseId", None)  # would make each request a different one
    headers = [(_bytes(name), _bytes(value)) for name, value in made.headers.items()]
    return written(_bytes(made.method), _bytes(made.path_url), headers, _bytes(made.body or b""))


def _bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
