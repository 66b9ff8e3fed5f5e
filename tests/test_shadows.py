"""Shadows and dry runs: challengers on lanes of their own, that never touch a live one and survive whatever it does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memory.errors import ConfigurationError
from memory.state_pool import LaneRecord
from stream.config import RunSettings, effective
from stream.consumer import Consumer
from stream.engine import Outcome
from stream.generate import GenerateSettings, write_stream
from stream.shadows import Shadow
from stream.store import StateStore

STREAMS, EVENTS = 3, 40


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    settings = GenerateSettings(scenario="recurring", streams=STREAMS, events=EVENTS, mean_topic_length=8, seed=5)
    write_stream(settings, path)
    return path


def consume(talk: Path, folder: Path, *, most: int | None = None, **given: Any) -> Consumer:
    """Run over the whole input, or until so many batches are done and committed; nothing is drained then."""
    settings = {
        "source": f"file:{talk}",
        "backbone": "hashing",
        "rank": 8,
        "state": f"sqlite:///{folder / 'state.db'}",
        "sink": f"jsonl:{folder / 'out.jsonl'}",
        "metrics_port": 0,
        "batch_events": 16,
        "checkpoint_every": 0,
        "drain": 0,
    }
    consumer = Consumer(RunSettings(**settings | given))
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == most:
            consumer.stop()

    try:
        consumer.open()
        consumer.run(count)
    finally:
        consumer.close()
    return consumer


def stored(folder: Path, shadow: str | None = None) -> dict[str, LaneRecord]:
    store = StateStore(f"sqlite:///{folder / 'state.db'}", create=False)
    try:
        return store.fetch([f"s{number:06d}" for number in range(STREAMS)], shadow)
    finally:
        store.close()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def states(records: dict[str, LaneRecord]) -> dict[str, bytes]:
    return {name: record.state for name, record in records.items()}


def without_topic(records: dict[str, LaneRecord]) -> dict[str, LaneRecord]:
    """Leave out what a shadow need not keep: no policy moves the score of a topic shift, or how events arrived."""
    return {
        name: replace(
            record,
            beside={part: blob for part, blob in record.beside.items() if not part.startswith(("topic/", "arrivals/"))},
        )
        for name, record in records.items()
    }


def test_a_shadow_is_what_a_run_under_its_policy_would_have_been(talk: Path, tmp_path: Path) -> None:
    both, alone = tmp_path / "both", tmp_path / "alone"
    consumer = consume(talk, both, policy="none", shadow=("decay", "reset_on_shift"))
    for policy in ("decay", "reset_on_shift"):
        other = consume(talk, alone / policy, policy=policy)
        assert stored(both, policy) == without_topic(stored(alone / policy))
        mine = consumer.metrics.distribution("ebbtide_policy_write_error_ratio", policy, "shadow")
        its = other.metrics.distribution("ebbtide_policy_write_error_ratio", policy, "live")
        assert mine is not None
        assert its is not None
        assert (mine.counts, mine.sum) == (its.counts, its.sum)
    assert consumer.metrics.get("ebbtide_policy_actions_total", "decay", "shadow", "decay") == STREAMS * EVENTS
    assert states(stored(both, "decay")) != states(stored(both))


def test_it_leaves_the_live_lanes_and_their_records_alone(talk: Path, tmp_path: Path) -> None:
    consume(talk, tmp_path / "with", policy="decay", shadow=("none", "reset_on_shift"))
    consume(talk, tmp_path / "without", policy="decay")
    assert stored(tmp_path / "with") == stored(tmp_path / "without")
    assert (tmp_path / "with/out.jsonl").read_bytes() == (tmp_path / "without/out.jsonl").read_bytes()


@pytest.mark.parametrize("batches", [1, 3, 5])
def test_a_run_that_is_cut_and_goes_on_ends_with_the_same_shadows(talk: Path, tmp_path: Path, batches: int) -> None:
    consume(talk, tmp_path / "whole", policy="none", shadow=("archive", "decay"))
    cut = tmp_path / "cut"
    consume(talk, cut, most=batches, policy="none", shadow=("archive", "decay"))
    assert len(lines(cut)) < STREAMS * EVENTS
    consume(talk, cut, policy="none", shadow=("archive", "decay"), batch_events=7, pool_bytes=7 * 256)
    for shadow in ("archive", "decay"):
        assert stored(cut, shadow) == stored(tmp_path / "whole", shadow)


def test_a_shadow_that_joins_later_begins_with_the_live_state(talk: Path, tmp_path: Path) -> None:
    early, late = tmp_path / "early", tmp_path / "late"
    consume(talk, early, policy="decay", shadow=("none",), most=3)
    shutil.copytree(early, late)
    before = states(stored(late))
    consumer = consume(talk, late, policy="decay", shadow=("none", "decay"))
    assert len(before) == STREAMS
    # The shadow under the live policy is the live lane again, though it was not there at the beginning.
    assert states(stored(late, "decay")) == states(stored(late))
    assert consumer.metrics.get("ebbtide_policy_actions_total", "decay", "shadow", "decay") == STREAMS * EVENTS - len(
        lines(early)
    )
    consume(talk, early, policy="decay")  # a run without shadows leaves a gap: what they held is dropped
    assert stored(early, "none") == {}


def test_a_dry_run_says_what_would_be_done_and_does_nothing(talk: Path, tmp_path: Path) -> None:
    dry = consume(talk, tmp_path / "dry", policy="decay_on_shift", dry_run=True)
    consume(talk, tmp_path / "none", policy="none")
    consume(talk, tmp_path / "real", policy="decay_on_shift")
    assert states(stored(tmp_path / "dry")) == states(stored(tmp_path / "none"))
    assert states(stored(tmp_path / "dry", "decay_on_shift")) == states(stored(tmp_path / "real"))
    would = [line.pop("dry_run") for line in lines(tmp_path / "dry")]
    assert would == [line["action"] for line in lines(tmp_path / "real")]
    assert {line["action"]["kind"] for line in lines(tmp_path / "dry")} == {"keep"}
    decays = sum(action["kind"] == "decay" for action in would)
    assert decays > 0
    assert dry.metrics.get("ebbtide_actions_total", "decay", "dry_run") == decays
    assert dry.metrics.get("ebbtide_actions_total", "decay", "policy") == 0


def test_two_shadows_of_one_name_are_refused(talk: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.yaml").write_text("policy: decay\n")
    files = tuple(str(tmp_path / folder / "mine.yaml") for folder in ("one", "two"))
    with pytest.raises(ConfigurationError, match="with different names, got 'mine' twice; rename one of the files"):
        Consumer(RunSettings(source=f"file:{talk}", backbone="hashing", shadow=files))
    with pytest.raises(ConfigurationError, match="expected a policy"):
        Consumer(RunSettings(source=f"file:{talk}", backbone="hashing", shadow=("nonesuch",)))


def test_shadows_come_from_a_file_the_environment_and_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("shadow: [none, decay]\n")
    assert effective({}, file=file, environment={})[0].shadow == ("none", "decay")
    assert effective({}, environment={"EBBTIDE_SHADOW": "none, archive"})[0].shadow == ("none", "archive")
    assert effective({"shadow": ["auto"]}, file=file, environment={})[0].shadow == ("auto",)


def test_a_shadow_follows_a_batch_without_rows(talk: Path, tmp_path: Path) -> None:
    """An event without tokens writes nothing, and counts."""
    empty = tmp_path / "talk.jsonl"
    empty.write_text('{"stream": "s000000", "text": "  "}\n{"stream": "s000000", "text": "Hello there"}\n')
    followed: list[Outcome] = []
    consumer = Consumer(RunSettings(source=f"file:{empty}", backbone="hashing", policy="none", shadow=("decay",)))
    shadow: Shadow = consumer.shadows[0]
    follow = shadow.follow
    shadow.follow = lambda outcome: followed.append(follow(outcome)) or followed[-1]  # type: ignore[func-returns-value, method-assign]
    try:
        consumer.open()
        consumer.run()
    finally:
        consumer.close()
    assert sum(len(outcome.events) for outcome in followed) == 2
