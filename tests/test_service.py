"""What the HTTP server is told of a running consumer: the worst streams by their place, ages, bounds, and who acted."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitors.catalogue import WORST, WORST_GAUGES
from monitors.observations import SIGNALS
from stream.config import RunSettings
from stream.consumer import Consumer
from stream.service import ConsumerService, worst

STREAMS = 40


@pytest.fixture
def consumer() -> Iterator[Consumer]:
    """A consumer whose streams' last signals are known: stream i has i for each of them, and some have none."""
    made = Consumer(RunSettings(source="stdin:", backbone="hashing", rank=4, policy="none", shadow=("decay",)))
    slots = made.engine.pool.acquire([f"s{number}" for number in range(STREAMS)])
    made.engine.last["signals"][slots] = np.arange(STREAMS, dtype=float)[:, None]
    made.engine.last["signals"][slots[::3]] = np.nan
    yield made
    made.close()


def gauges(service: ConsumerService) -> dict[str, dict[str, float]]:
    body, _ = service.exposition("")
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[",".join(sample.labels.values())] = sample.value
    return found


def test_the_worst_streams_are_shown_by_their_place(consumer: Consumer) -> None:
    shown = gauges(ConsumerService(consumer))
    measured = [float(number) for number in range(STREAMS) if number % 3]
    for signal, gauge in WORST_GAUGES.items():
        expected = sorted(measured, reverse=signal != "retrieval_lift")[:WORST]
        assert [shown[gauge][str(place + 1)] for place in range(WORST)] == expected


def test_a_place_that_nobody_holds_any_more_is_not_shown(consumer: Consumer) -> None:
    service = ConsumerService(consumer)
    gauges(service)
    for number in range(2, STREAMS):
        consumer.engine.pool.release(f"s{number}")
    service.exporter.forget()
    shown = gauges(service)
    assert shown["ebbtide_worst_state_norm"] == {"1": 1.0}
    assert shown["ebbtide_streams_quarantined"] == {"": 0.0}


def test_what_is_in_quarantine_and_what_may_be_held_is_counted_when_somebody_asks(consumer: Consumer) -> None:
    consumer.engine.quarantine.lanes["since"][consumer.engine.pool.acquire(["s3", "s4"])] = 7
    shown = gauges(ConsumerService(consumer))
    assert shown["ebbtide_streams_quarantined"] == {"": 2.0}
    assert shown["ebbtide_pool_limit_bytes"] == {"": consumer.settings.pool_bytes}
    one = ConsumerService(consumer).stream("s3")
    assert one is not None
    assert (one["quarantined"], one["filed_topics"]) == (True, [])


def test_the_worst_of_few_of_none_and_of_many() -> None:
    dice = np.random.default_rng(0)
    values = dice.normal(size=(5_000, len(SIGNALS)))
    values[dice.random(values.shape) < 0.5] = math.nan
    for count in (0, 1, 7, 5_000):
        slots = dice.permutation(5_000)[:count]
        found = worst(values, slots, 10)
        for column, signal in enumerate(SIGNALS):
            known = sorted(value for value in values[slots, column].tolist() if not math.isnan(value))
            assert found[signal] == (known[:10] if signal == "retrieval_lift" else known[::-1][:10])


def test_policies_stand_side_by_side_once_there_is_something_to_compare(consumer: Consumer) -> None:
    consumer.metrics.observe("ebbtide_policy_write_error_ratio", np.array([0.5, 0.7]), "decay", "shadow")
    summary = ConsumerService(consumer).summary()
    assert summary["shadows"]["decay"] == {"write_error": pytest.approx(0.6), "events": 2}
    assert summary["shadows"]["none (live)"]["events"] == 0
    consumer.metrics.add("ebbtide_actions_total", 3, "reset", "operator")
    consumer.metrics.add("ebbtide_actions_total", 3, "keep", "policy")
    assert ConsumerService(consumer).summary()["origins"] == {"policy": 0, "operator": 3, "dry_run": 0}
