"""What people may do to a stream's state by hand, on the same path as what policies do.

An action is asked for over HTTP (`POST /api/streams/{id}/actions`) or through the state store (`ebbtide act`). The loop
takes it between two micro-batches and commits at once: a person who is told that it was done can rely on it after any
crash, and the events before and after it are the same ones for good.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from memory.errors import ConfigurationError
from monitors.detectors.slips import likely_slip
from monitors.metrics import Metrics
from stream.engine import Engine, Outcome
from stream.store import Acted, Request

log = structlog.get_logger(__name__)

MAX_WAITING = 64
"""Actions asked for over HTTP that wait for the loop; the next one is refused."""


KINDS = ("reset", "decay", "restore", "release")
"""What there is to ask for."""


class Ask(BaseModel):
    """One action, as an operator asks for it.

    Attributes
    ----------
    kind
        ``reset``: the state becomes zeros, and what the policy filed is forgotten. ``decay``: it is multiplied by
        `factor`. ``restore``: the state that the policy filed under the number `topic` is taken up, or, without a
        number, everything is as it was before the last action that an operator took on this stream. ``release``: a
        stream that was put into quarantine goes on with the state that it had before (so do the other three).
    factor
        For ``decay``: between 0 and 1.
    topic
        For ``restore``.
    reason
        Why; it is kept with the action.

    Examples
    --------
    >>> Ask.parse("decay", "0.5").model_dump_json(exclude_defaults=True)
    '{"kind":"decay","factor":0.5}'
    >>> Ask.parse("decay", None)
    Traceback (most recent call last):
    ...
    memory.errors.ConfigurationError: decay: expected a factor between 0 and 1, as in `decay 0.5`, got none
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["decay", "reset", "restore", "release"]
    factor: float | None = Field(default=None, allow_inf_nan=False)
    topic: int | None = Field(default=None, ge=0)
    reason: str = Field(default="", max_length=500)

    @model_validator(mode="after")
    def _whole(self) -> Ask:
        if self.kind == "decay" and (self.factor is None or not 0 < self.factor < 1):
            shown = "none" if self.factor is None else f"{self.factor:g}"
            raise ValueError(f"decay: expected a factor between 0 and 1, as in `decay 0.5`, got {shown}")
        if self.kind != "decay" and self.factor is not None:
            raise ValueError(f"{self.kind}: expected no factor, got {self.factor:g}")
        if self.kind != "restore" and self.topic is not None:
            raise ValueError(f"{self.kind}: expected no topic, got {self.topic}")
        return self

    @classmethod
    def parse(cls, kind: str, value: str | None, reason: str = "") -> Ask:
        """Read what stands on a command line.

        Raises
        ------
        ConfigurationError
            It is no action.
        """
        if kind not in KINDS:
            raise ConfigurationError(f"expected an action ({', '.join(KINDS)}), got {kind!r}{likely_slip(kind, KINDS)}")
        field = "factor" if kind == "decay" else "topic"
        try:
            return cls.model_validate({"kind": kind, "reason": reason} | ({} if value is None else {field: value}))
        except ValidationError as error:
            raise ConfigurationError(slip_of(error)) from None


def slip_of(error: ValidationError) -> str:
    """Return the first mistake, on one line."""
    first = error.errors(include_url=False)[0]
    text = str(first["msg"]).removeprefix("Value error, ")
    where = ".".join(map(str, first["loc"]))
    return text if first["type"] == "value_error" else f"{where}: {text}, got {first['input']!r}"


class ByHand:
    """Does what operators ask for to an engine's lanes, in a run and in a replay of it alike.

    Parameters
    ----------
    engine
        Whose.
    last
        Stream → what `do` returned for the last action on it in an earlier run; None: there was none.
    """

    def __init__(self, engine: Engine, last: Callable[[str], bytes | None] = lambda stream: None):
        self._engine, self._last = engine, last
        self._before: dict[str, bytes | None] = {}

    def do(self, stream: str, ask: Ask) -> tuple[str, bytes]:
        """Do it; return in words what was done, and what takes it back.

        Raises
        ------
        ValueError
            It cannot be done; nothing was changed.
        """
        if stream not in self._before:
            self._before[stream] = self._last(stream)
        held = self._engine.held(stream)
        told = self._apply(stream, ask, self._before[stream])
        self._before[stream] = held
        return told, held

    def repeat(self, stream: str, action: str) -> None:
        """Do what a tape says was done, if it can be done under this engine's policy, which may file nothing."""
        with suppress(ValueError):
            self.do(stream, Ask.model_validate_json(action))

    def _apply(self, stream: str, ask: Ask, before: bytes | None) -> str:
        engine = self._engine
        if ask.kind == "reset":
            engine.reset(stream)
            return "reset: the state is zeros, nothing is filed"
        if ask.kind == "release":
            if not engine.quarantine.holds(engine.pool.acquire([stream])).any():
                raise ValueError("this stream is not in quarantine")
            engine.release(stream)
            return "released: it is written again"
        if ask.factor is not None:
            engine.decay(stream, ask.factor)
            return f"decayed to {ask.factor:g} of what it was"
        if ask.topic is not None:
            engine.take_up(stream, ask.topic)
            return f"topic {ask.topic} is in force"
        if before is None:
            raise ValueError("no operator has done anything to this stream that could be taken back")
        engine.put_back(stream, before)
        return "as before the last action by an operator"


class Operators:
    """Actions on their way into the loop, and out again as what was done.

    `submit` may be called in any thread; everything else in the loop's.

    Parameters
    ----------
    engine
        Acts.
    metrics
        Counts.
    last
        As `ByHand` takes it: from the store.
    clock
        Unix time in seconds.
    taped
        Whether there is a tape to put them on.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        last: Callable[[str], bytes | None] = lambda stream: None,
        clock: Callable[[], float] = time.time,
        *,
        taped: bool = True,
    ):
        self._engine, self._metrics, self._clock = engine, metrics, clock
        self._is_taped = taped
        self._hand = ByHand(engine, last)
        self._asked: deque[tuple[str, Ask, Future[Acted]]] = deque()
        self._uncommitted: list[tuple[Acted, Future[Acted] | None]] = []
        self._untaped: dict[tuple[str, int], list[str]] = {}

    def submit(self, stream: str, ask: Ask) -> Future[Acted] | None:
        """Ask for an action; what is returned is done when it is committed. None: too many are waiting."""
        if len(self._asked) >= MAX_WAITING:
            return None
        future: Future[Acted] = Future()
        self._asked.append((stream, ask, future))
        return future

    @property
    def waiting(self) -> bool:
        """Whether something was submitted."""
        return bool(self._asked)

    def take(self, requests: list[Request]) -> bool:
        """Take what was submitted, and these requests of the store; say whether there was anything.

        The caller commits then.
        """
        done = False
        for request in requests:
            self._do(request.stream, request.action, None, request.id)
            done = True
        while self._asked:
            stream, ask, future = self._asked.popleft()
            if not future.set_running_or_notify_cancel():  # whoever asked has gone
                continue
            self._do(stream, ask.model_dump_json(exclude_defaults=True), future, None)
            done = True
        return done

    def _do(self, stream: str, action: str, future: Future[Acted] | None, request: int | None) -> None:
        engine, seq, before = self._engine, -1, None
        try:
            ask = Ask.model_validate_json(action)
            if not engine.pool.knows(stream):
                raise ValueError("there is no such stream")
            seq = engine.events_of(stream)
            outcome, before = self._hand.do(stream, ask)
        except ValidationError as error:
            outcome = f"refused: {slip_of(error)}"
        except ValueError as error:
            outcome = f"refused: {error}"
        acted = Acted(request, stream, seq, action, outcome, self._clock(), before)
        if before is not None and self._is_taped:
            self._untaped.setdefault((stream, seq), []).append(action)
        if before is not None:
            self._metrics.add("ebbtide_actions_total", 1, ask.kind, "operator")
        log.info("operator_action", stream=stream, seq=seq, action=action, outcome=outcome)
        self._uncommitted.append((acted, future))

    @property
    def acted(self) -> list[Acted]:
        """What was taken since the last commit."""
        return [acted for acted, _ in self._uncommitted]

    def committed(self) -> None:
        """Say that it is committed: whoever waits for it is told."""
        for acted, future in self._uncommitted:
            if future is not None:
                future.set_result(acted)
        self._uncommitted.clear()

    def close(self) -> None:
        """Give up what was not taken."""
        while self._asked:
            self._asked.popleft()[2].cancel()

    def remember(self, acted: list[Acted]) -> None:
        """Take note of what earlier runs did and no tape has yet."""
        for each in acted:
            if each.before is not None:
                self._untaped.setdefault((each.stream, each.seq), []).append(each.action)

    def taped(self, outcome: Outcome) -> dict[int, list[str]]:
        """Return what was done right before these events, as JSON, by the event's index; told once for each."""
        if not self._untaped:
            return {}
        names = (event.stream for event in outcome.events)
        found = {row: self._untaped.pop(at, []) for row, at in enumerate(zip(names, outcome.seq.tolist(), strict=True))}
        return {row: actions for row, actions in found.items() if actions}
