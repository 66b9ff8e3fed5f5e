"""Long synthetic conversations that shift, return and change their facts, with the truth about each event.

`generate` yields events with their truth, `write_stream` writes both as JSON Lines. `docs/generate.md` tells the
scenarios.
"""

from __future__ import annotations

from stream.generate.conversation import Event, Fact, Truth
from stream.generate.interleave import generate
from stream.generate.settings import SCENARIOS, GenerateSettings, Scenario
from stream.generate.topics import topic_names
from stream.generate.write import Written, write_stream

__all__ = [
    "SCENARIOS",
    "Event",
    "Fact",
    "GenerateSettings",
    "Scenario",
    "Truth",
    "Written",
    "generate",
    "topic_names",
    "write_stream",
]
