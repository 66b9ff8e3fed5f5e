"""`ebbtide act`: do something to a stream's state by hand."""

from __future__ import annotations

import time
from typing import Annotated

import typer

LOOK_EVERY = 0.1
"""Seconds between looks for whether it was done."""


def act(
    state: Annotated[str, typer.Option("--state", help="State store of the run, such as sqlite:///run/state.db")],
    stream: Annotated[str, typer.Argument(help="Which stream")],
    action: Annotated[str, typer.Argument(help="reset, decay, restore or release")],
    value: Annotated[
        str | None, typer.Argument(help="decay: the factor, such as 0.5; restore: the number of a filed topic")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the action")] = "",
    wait: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait until a running consumer did it")] = 10,
) -> None:
    """Do something to a stream's state by hand: clear it, weaken it, or bring one back.

    A consumer that runs with this store takes the action between two events and commits it; so does the next run,
    before its first event, if none is running. What was done is kept: ebbtide inspect --state URL STREAM shows it.

        ebbtide act --state sqlite:///run/state.db ann decay 0.5 --reason "told her old address"

        ebbtide act --state sqlite:///run/state.db ann restore        (as before the last action by hand)

        ebbtide act --state sqlite:///run/state.db ann restore 3      (the topic that the policy filed under 3)
    """
    from memory.errors import ConfigurationError, EbbtideError
    from stream.event import check_name
    from stream.operators import Ask
    from stream.store import StateStore

    check_name(stream)
    ask = Ask.parse(action, value, reason)
    store = StateStore(state, create=False)
    try:
        if stream not in store.fetch([stream]):
            raise ConfigurationError(
                f"--state {state} holds no stream {stream!r}; ebbtide inspect --state {state} lists them"
            )
        request = store.ask(stream, ask.model_dump_json(exclude_defaults=True))
        until = time.monotonic() + wait
        while not (done := store.acted(request=request)) and time.monotonic() < until:
            time.sleep(LOOK_EVERY)
    finally:
        store.close()
    if not done:
        print(f"{stream}: asked for; no consumer took it within {wait:g} s: the next run does, before its first event")
    elif done[0].before is None:
        raise EbbtideError(f"{stream}: {done[0].outcome}")
    else:
        print(f"{stream}: {done[0].outcome}, before its event {done[0].seq}")
