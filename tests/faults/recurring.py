"""A conversation that several fault tests feed to a run."""

from __future__ import annotations

import json

from stream.generate import GenerateSettings, generate


def recurring(events: int) -> list[bytes]:
    """Return lines of five streams whose topics return, with a refused one after every fifteenth."""
    made = []
    for number, (event, _) in enumerate(
        generate(GenerateSettings(scenario="recurring", streams=5, events=events // 5, seed=3))
    ):
        made.append(json.dumps(event).encode() + b"\n")
        if number % 15 == 14:
            made.append(b"not json\n")
    return made
