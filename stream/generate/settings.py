"""What a generated conversation is like."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from stream.generate.topics import topic_names

Scenario = Literal["stationary", "abrupt", "gradual", "recurring", "rebinding"]
"""The ways in which a stream can change; `docs/generate.md` tells each."""
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)


class GenerateSettings(BaseModel):
    """How many streams, how long, and how they change.

    Parameters
    ----------
    scenario
        How a stream changes.
    streams
        Number of streams. Stream i is the same, however many others there are.
    events
        Events in each stream.
    seed
        Everything random follows from it.
    mean_topic_length, min_topic_length
        Events from one boundary to the next: a minimum, then a constant chance to end with each event.
    recurring_topics
        How many topics a stream has in the `recurring` scenario.
    transition_length
        Events over which `gradual` mixes one topic into the next, on average; each transition has from half as many to
        half as many again.
    fact_share, ask_share
        Shares of events that state a fact, and that ask for one stated before (when there is one).
    rebind_share
        Share of events that change a fact's value; by default 0.1 in `rebinding`, otherwise 0.
    question_share, filler_share
        Shares of questions about the topic, and (of events that may be one) of topic-free lines such as "Sounds good.".
    facts_per_topic
        How many facts a stream knows of each topic.
    topics
        The topics to draw from; empty: all.
    start
        When the conversations begin, give or take ten minutes.

    Examples
    --------
    >>> GenerateSettings(scenario="recurring", streams=3, events=100).recurring_topics
    4
    >>> GenerateSettings(topics=("chess", "cheese"))
    Traceback (most recent call last):
    ...
    pydantic_core._pydantic_core.ValidationError: 1 validation error for GenerateSettings
      Value error, expected topics out of ['aquarium', ...], got ['cheese'] ...
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenario: Scenario = "abrupt"
    streams: int = Field(default=8, ge=1)
    events: int = Field(default=1000, ge=1, le=1_000_000_000)
    seed: int = Field(default=0, ge=0)
    mean_topic_length: float = Field(default=24.0, ge=1.0, le=1e6)
    min_topic_length: int = Field(default=4, ge=1)
    recurring_topics: int = Field(default=4, ge=2)
    transition_length: int = Field(default=8, ge=2)
    fact_share: float = Field(default=0.15, ge=0.0, le=1.0)
    ask_share: float = Field(default=0.10, ge=0.0, le=1.0)
    rebind_share: float | None = Field(default=None, ge=0.0, le=1.0)
    question_share: float = Field(default=0.15, ge=0.0, le=1.0)
    filler_share: float = Field(default=0.05, ge=0.0, le=1.0)
    facts_per_topic: int = Field(default=12, ge=1)
    topics: tuple[str, ...] = ()
    start: AwareDatetime = datetime(2025, 1, 6, 9, 0, tzinfo=UTC)

    @property
    def chosen_topics(self) -> tuple[str, ...]:
        """The topics to draw from."""
        return self.topics or topic_names()

    @property
    def chosen_rebind_share(self) -> float:
        """The share of events that change a fact's value."""
        if self.rebind_share is None:
            return 0.1 if self.scenario == "rebinding" else 0.0
        return self.rebind_share

    @model_validator(mode="after")
    def _fits(self) -> GenerateSettings:
        unknown = sorted(set(self.topics) - set(topic_names()))
        if unknown:
            raise ValueError(f"expected topics out of {list(topic_names())}, got {unknown}")
        if len(set(self.topics)) < len(self.topics):
            raise ValueError(f"expected each topic once, got {list(self.topics)}")
        needed = {"abrupt": 2, "gradual": 2, "recurring": self.recurring_topics}.get(self.scenario, 1)
        if len(self.chosen_topics) < needed:
            raise ValueError(
                f"expected at least {needed} topics for the {self.scenario} scenario, got {len(self.chosen_topics)}; "
                "name more topics, or ask for fewer recurring ones"
            )
        least = self.min_topic_length + (self.transition_length if self.scenario == "gradual" else 0)
        if self.mean_topic_length < least:
            raise ValueError(
                f"expected mean_topic_length of at least {least} (min_topic_length, and in gradual transition_length "
                f"on top), got {self.mean_topic_length}"
            )
        total = self.fact_share + self.ask_share + self.chosen_rebind_share + self.question_share + self.filler_share
        if total > 1:
            raise ValueError(f"expected shares that add up to 1 at most, got {total:g}")
        return self
