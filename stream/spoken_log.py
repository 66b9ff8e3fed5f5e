"""What was said, in the log: only where `--log-text` asks for it, and only where something happened."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import structlog

from monitors.policies.policy import ActionKind
from stream.dead_letters import DeadLetter
from stream.engine import Outcome

log = structlog.get_logger(__name__)

MOST = 200
"""Characters of a text that are logged."""


def shortened(text: str) -> str:
    """Return a text's beginning.

    >>> shortened("tea"), len(shortened("tea " * 100))
    ('tea', 200)
    """
    return text if len(text) <= MOST else text[: MOST - 1] + "…"


def log_texts(outcome: Outcome, dead: Sequence[DeadLetter]) -> None:
    """Log each event that raised an alarm or was acted upon, and each refused line, with what was said.

    Parameters
    ----------
    outcome
        Of a micro-batch.
    dead
        Its refused lines.
    """
    alarms = list(outcome.alarms)
    raised = np.stack([outcome.alarms[name] for name in alarms] or [np.zeros(len(outcome.events), np.bool_)])
    for row in np.flatnonzero(raised.any(axis=0) | (outcome.actions.kind != 0)).tolist():
        event = outcome.events[row]
        log.info(
            "said",
            stream=event.stream,
            seq=int(outcome.seq[row]),
            alarms=[name for name, flags in zip(alarms, raised, strict=False) if flags[row]],
            action=ActionKind(int(outcome.actions.kind[row])).label,
            text=shortened(event.text or ""),
        )
    for letter in dead:
        log.info(
            "refused",
            partition=letter.partition,
            offset=letter.offset,
            reason=letter.reason,
            line=shortened(letter.raw[: 4 * MOST].decode(errors="replace")),
        )
