"""`ebbtide generate`: synthetic conversations that change, with their ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, Field

from stream.options import options_of


class GenerateOptions(BaseModel):
    """What the command line can set of `stream.generate.GenerateSettings`."""

    scenario: str = Field(
        "abrupt", description="How a stream changes: stationary, abrupt, gradual, recurring, rebinding"
    )
    streams: int = Field(8, description="Number of streams")
    events: int = Field(1000, description="Events in each stream")
    seed: int = Field(0, description="Everything random follows from it")
    mean_topic_length: float = Field(24.0, description="Events from one topic to the next, on average")
    recurring_topics: int = Field(4, description="Topics of a stream that return, in the recurring scenario")
    fact_share: float = Field(0.15, description="Share of events that state a fact")
    ask_share: float = Field(0.10, description="Share of events that ask for a fact stated before")


@options_of(GenerateOptions)
def generate(
    given: dict[str, Any],
    out: Annotated[Path, typer.Option("--out", help="Where the events go (JSON Lines; .gz and .zst are compressed)")],
    truth: Annotated[
        Path | None, typer.Option("--truth", help="Where the ground truth goes, one line an event")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist")] = False,
) -> None:
    """Write a synthetic, non-stationary conversation stream, and the truth about it.

    The truth has a line for each event: its topic, whether it begins a new one, and the fact that it states, changes or
    asks for. The same seed gives the same bytes.
    """
    from pydantic import ValidationError
    from rich.console import Console
    from rich.progress import Progress

    from memory.errors import ConfigurationError
    from stream.generate import GenerateSettings, write_stream

    try:
        settings = GenerateSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}: " if first["loc"] else ""
        reason = first["msg"].removeprefix("Value error, ")
        shown = f", got {first['input']!r}" if first["type"] != "value_error" else ""
        raise ConfigurationError(f"{option}{reason}{shown}") from None
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("generating", total=settings.streams * settings.events)
        written = write_stream(
            settings, out, truth, lambda done: progress.update(bar, completed=done), overwrite=overwrite
        )
    print(
        f"{written.events:,} events of {settings.streams} streams in {out}: {written.boundaries:,} topic shifts, "
        f"{written.stated:,} facts stated, {written.rebound:,} changed, {written.asked:,} asked for"
        + (f"; the truth is in {truth}" if truth else "")
    )
