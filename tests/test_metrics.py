"""The catalogue, and what the loop fills."""

from __future__ import annotations

import json
import math
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from monitors.catalogue import ALARMS, CATALOGUE, SIGNAL_HISTOGRAMS, Metric
from monitors.metrics import MAX_SERIES, Distribution, Metrics
from monitors.observations import SIGNALS

PERSISTENT = {
    "ebbtide_events_total",
    "ebbtide_tokens_total",
    "ebbtide_source_bytes_total",
    "ebbtide_source_lines_total",
    "ebbtide_dead_letters_total",
    "ebbtide_alarms_total",
    "ebbtide_actions_total",
    "ebbtide_policy_actions_total",
    "ebbtide_nonfinite_values_total",
    "ebbtide_quarantines_total",
    "ebbtide_duplicate_events_total",
    "ebbtide_late_events_total",
    "ebbtide_recoveries_total",
    "ebbtide_source_gaps_total",
}


class TestCatalogue:
    def test_counters_of_processed_work_survive_a_restart_and_nothing_else(self) -> None:
        assert {name for name, metric in CATALOGUE.items() if metric.persistent} == PERSISTENT

    def test_every_signal_has_its_histogram(self) -> None:
        assert set(SIGNAL_HISTOGRAMS) == set(SIGNALS)
        assert all(CATALOGUE[name].kind == "histogram" for name in SIGNAL_HISTOGRAMS.values())

    def test_alarms_are_named_as_in_the_records(self) -> None:
        assert ALARMS == (
            "state_norm",
            "stable_rank",
            "write_error",
            "retrieval_error",
            "topic_shift",
            "saturation",
            "retrieval_lift",
        )

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"name": "events_total"}, "expected ebbtide_"),
            ({"name": "ebbtide_Events_total"}, "expected ebbtide_"),
            ({"name": "ebbtide_events"}, "to end in _total"),
            ({"kind": "gauge"}, "only counters end in _total"),
            ({"kind": "summary"}, "expected kind counter, gauge or histogram, got 'summary'"),
            ({"unit": "bytes"}, "to end in its unit, _bytes"),
            ({"labels": ("stream",)}, "'stream' grows with the data"),
            ({"labels": ("a", "a")}, "all different"),
            ({"buckets": (1.0,)}, "expected buckets on a histogram"),
            ({"help": "Events"}, "full stop"),
            ({"series": (("a",),)}, "expected 0 label values"),
            ({"name": "ebbtide_x", "kind": "histogram"}, "expected buckets"),
            ({"name": "ebbtide_x", "kind": "histogram", "buckets": (1.0, 1.0)}, "ascending"),
            ({"name": "ebbtide_x", "kind": "histogram", "buckets": (1.0, math.inf)}, "finite"),
            ({"name": "ebbtide_x", "kind": "histogram", "buckets": (1.0, 2.0), "labels": ("le",)}, "'le'"),
            ({"name": "ebbtide_x", "kind": "gauge", "persistent": True}, "only a counter"),
        ],
    )
    def test_a_metric_that_breaks_the_rules_is_refused(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Metric(**{"name": "ebbtide_events_total", "kind": "counter", "help": "Events.", **changes})


class TestWriting:
    def test_what_is_known_beforehand_is_there_at_zero(self) -> None:
        shown = Metrics().snapshot()
        assert shown["ebbtide_events_total"] == {(): 0}
        assert shown["ebbtide_alarms_total"] == {(name,): 0 for name in ALARMS}
        assert shown["ebbtide_ready"] == {(): 0}
        assert shown["ebbtide_dead_letters_total"] == {}
        assert shown["ebbtide_source_backlog_bytes"] == {}
        assert set(shown) == set(CATALOGUE)

    def test_adding_zero_makes_a_series_known(self) -> None:
        metrics = Metrics()
        metrics.add("ebbtide_dead_letters_total", 0, "not_json")
        assert metrics.by_label("ebbtide_dead_letters_total") == {"not_json": 0}

    def test_gauges_are_set_and_taken_away(self) -> None:
        metrics = Metrics()
        metrics.set("ebbtide_ready", True)
        assert metrics.get("ebbtide_ready") == 1
        metrics.set("ebbtide_source_backlog_bytes", np.int64(7))
        assert metrics.get("ebbtide_source_backlog_bytes") == 7
        metrics.set("ebbtide_source_backlog_bytes", None)
        metrics.set("ebbtide_source_backlog_bytes", None)
        assert metrics.get("ebbtide_source_backlog_bytes") is None

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda m: m.add("events"), KeyError, "did you mean 'ebbtide_events_total'"),
            (lambda m: m.add("ebbtide_token_total", 1), KeyError, "did you mean 'ebbtide_tokens_total'"),
            (lambda m: m.get("ebbtide_tokens"), KeyError, "did you mean"),
            (lambda m: m.add("zzzz"), KeyError, "monitors/catalogue.py"),
            (
                lambda m: m.add("ebbtide_events_total", 1, "x"),
                ValueError,
                r"expected no labels after the value, got \('x',\)",
            ),
            (lambda m: m.add("ebbtide_actions_total", 1), ValueError, r"expected labels \('kind', 'origin'\)"),
            (lambda m: m.add("ebbtide_actions_total", "keep"), TypeError, "the value comes before the labels"),
            (lambda m: m.add("ebbtide_actions_total", 1, 0, "policy"), TypeError, "strings, got 0"),
            (lambda m: m.add("ebbtide_events_total", -1), ValueError, "only goes up"),
            (lambda m: m.add("ebbtide_events_total", math.nan), ValueError, "only goes up"),
            (lambda m: m.add("ebbtide_events_total", math.inf), ValueError, "only goes up"),
            (lambda m: m.add("ebbtide_ready", 1), ValueError, r"is a gauge: use set\(\), not add\(\)"),
            (lambda m: m.set("ebbtide_events_total", 1), ValueError, r"is a counter: use add\(\), not set\(\)"),
            (lambda m: m.set("ebbtide_queue_depth", math.nan, "q"), ValueError, "finite"),
            (lambda m: m.observe("ebbtide_ready", 1), ValueError, r"is a gauge: use set\(\), not observe\(\)"),
            (lambda m: m.observe("ebbtide_stage_seconds", 0.1), ValueError, "expected labels"),
            (lambda m: m.observe("ebbtide_stage_seconds", "scan"), TypeError, "the value comes before"),
            (lambda m: m.get("ebbtide_state_norm"), ValueError, "is a histogram"),
            (lambda m: m.by_label("ebbtide_events_total"), ValueError, r"expected one of its labels \(\)"),
        ],
    )
    def test_a_slip_is_named_and_changes_nothing(self, call: Any, error: type[Exception], message: str) -> None:
        metrics = Metrics()
        with pytest.raises(error, match=message):
            call(metrics)
        assert metrics.snapshot() == Metrics().snapshot()

    def test_series_are_bounded_whatever_the_labels(self) -> None:
        metrics = Metrics()
        for index in range(10_000):
            metrics.add("ebbtide_dead_letters_total", 1, f"reason {index}")
        counts = metrics.by_label("ebbtide_dead_letters_total")
        assert len(counts) == MAX_SERIES + 1
        assert counts["other"] == 10_000 - MAX_SERIES
        again = Metrics()
        again.restore(metrics.persistent())
        assert again.by_label("ebbtide_dead_letters_total") == counts


class TestHistograms:
    def test_a_bound_belongs_to_its_bucket(self) -> None:
        metrics = Metrics()
        bounds = CATALOGUE["ebbtide_state_norm"].buckets
        metrics.observe("ebbtide_state_norm", np.array(bounds))
        for bound in bounds:
            metrics.observe("ebbtide_state_norm", bound)
        metrics.observe("ebbtide_state_norm", np.array([np.nextafter(bounds[-1], np.inf)]))
        shown = metrics.snapshot()["ebbtide_state_norm"][()]
        assert isinstance(shown, Distribution)
        assert shown.counts == (2,) * len(bounds) + (1,)

    @given(st.lists(st.floats(width=32), max_size=40))
    def test_an_array_counts_as_its_values_one_by_one_do(self, values: list[float]) -> None:
        at_once, singly = Metrics(), Metrics()
        left_out = at_once.observe("ebbtide_write_error_ratio", np.array(values, dtype=np.float64))
        assert left_out == sum(singly.observe("ebbtide_write_error_ratio", value) for value in values)
        assert left_out == sum(not math.isfinite(value) for value in values)
        first = at_once.snapshot()["ebbtide_write_error_ratio"][()]
        second = singly.snapshot()["ebbtide_write_error_ratio"][()]
        assert isinstance(first, Distribution)
        assert isinstance(second, Distribution)
        assert first.counts == second.counts
        assert first.count == len(values) - left_out
        # Sums of float32 values in double precision; numpy adds in pairs, so the last digits may differ.
        scale = math.fsum(abs(value) for value in values if math.isfinite(value))
        assert abs(first.sum - second.sum) <= 1e-12 * scale

    def test_any_shape_and_float_type(self) -> None:
        metrics = Metrics()
        assert metrics.observe("ebbtide_stable_rank", np.full((3, 4), 2.0, dtype=np.float32)) == 0
        assert metrics.observe("ebbtide_stable_rank", np.array([])) == 0
        shown = metrics.snapshot()["ebbtide_stable_rank"][()]
        assert isinstance(shown, Distribution)
        assert (shown.count, shown.sum) == (12, 24.0)

    def test_one_that_is_not_finite_does_not_spoil_the_rest(self) -> None:
        metrics = Metrics()
        assert metrics.observe("ebbtide_state_norm", np.array([1.0, np.nan, np.inf, -np.inf, 2.0])) == 3
        assert metrics.observe("ebbtide_state_norm", math.nan) == 1
        shown = metrics.snapshot()["ebbtide_state_norm"][()]
        assert isinstance(shown, Distribution)
        assert (shown.count, shown.sum) == (2, 3.0)


def worked() -> Metrics:
    metrics = Metrics()
    metrics.add("ebbtide_events_total", 2**63 + 1)
    metrics.add("ebbtide_tokens_total", 0.1)
    metrics.add("ebbtide_tokens_total", 0.2)
    metrics.add("ebbtide_dead_letters_total", 3, 'quoted "reason"\n')
    metrics.add("ebbtide_spills_total", 5, "out")
    metrics.set("ebbtide_ready", 1)
    metrics.observe("ebbtide_state_norm", 1.0)
    return metrics


class TestPersistence:
    def test_round_trip_through_json_is_exact(self) -> None:
        before = worked()
        after = Metrics()
        after.restore(json.loads(json.dumps(before.persistent())))
        for name in PERSISTENT:
            assert after.snapshot()[name] == before.snapshot()[name]
        assert after.get("ebbtide_events_total") == 2**63 + 1
        assert after.get("ebbtide_tokens_total") == 0.1 + 0.2
        assert json.dumps(after.persistent()) == json.dumps(before.persistent())

    def test_only_persistent_counters_are_stored(self) -> None:
        assert set(worked().persistent()) <= PERSISTENT
        after = worked()
        after.restore({})
        assert after.persistent() == {}
        assert after.get("ebbtide_spills_total", "out") == 5
        assert after.get("ebbtide_ready") == 1

    def test_the_same_work_gives_the_same_bytes_whatever_its_order(self) -> None:
        one, two = Metrics(), Metrics()
        one.add("ebbtide_dead_letters_total", 0, "declared_only_here")
        for metrics, order in ((one, (0, 1, 2)), (two, (2, 1, 0))):
            for index in order:
                name, reason = [
                    ("ebbtide_dead_letters_total", "b"),
                    ("ebbtide_dead_letters_total", "a"),
                    ("ebbtide_alarms_total", "topic_shift"),
                ][index]
                metrics.add(name, 1, reason)
        assert json.dumps(one.persistent()) == json.dumps(two.persistent())

    def test_a_restart_ends_like_an_uninterrupted_run(self) -> None:
        uninterrupted, first = Metrics(), Metrics()
        for batch in range(10):
            uninterrupted.add("ebbtide_events_total", batch)
        for batch in range(6):
            if batch == 4:
                stored = json.dumps(first.persistent())
            first.add("ebbtide_events_total", batch)
        second = Metrics()  # the first was killed after two batches that no checkpoint holds
        second.restore(json.loads(stored))
        for batch in range(4, 10):
            second.add("ebbtide_events_total", batch)
        assert second.persistent() == uninterrupted.persistent()

    @pytest.mark.parametrize(
        "stored",
        [
            {"ebbtide_events_total": [["x", 1]]},
            {"ebbtide_actions_total": [[1]]},
            {"ebbtide_actions_total": [[1, 1]]},
            {"ebbtide_events_total": [[-1]]},
            {"ebbtide_events_total": [["7"]]},
            {"ebbtide_events_total": [[math.nan]]},
            {"ebbtide_events_total": [[True]]},
            {"ebbtide_events_total": [[None]]},
        ],
    )
    def test_a_checkpoint_that_cannot_be_right_is_refused_whole(self, stored: dict[str, Any]) -> None:
        metrics = worked()
        before = metrics.snapshot()
        with pytest.raises(ValueError, match="was the checkpoint edited"):
            metrics.restore({"ebbtide_alarms_total": [["topic_shift", 4]], **stored})
        assert metrics.snapshot() == before

    def test_counters_of_another_version_are_passed_over_with_a_line_in_the_log(self) -> None:
        metrics = Metrics()
        with capture_logs() as logged:
            metrics.restore(
                {"ebbtide_retired_total": [[3]], "ebbtide_spills_total": [["out", 1]], "ebbtide_events_total": [[4]]}
            )
        assert metrics.get("ebbtide_events_total") == 4
        assert metrics.get("ebbtide_spills_total", "out") == 0
        assert logged == [
            {
                "event": "counters_passed_over",
                "log_level": "warning",
                "names": ["ebbtide_retired_total", "ebbtide_spills_total"],
            }
        ]


class TestPublishing:
    def test_what_is_shown_never_decreases_across_a_crash(self) -> None:
        shown: list[Any] = []

        def scrape(metrics: Metrics) -> None:
            shown.extend(metrics.snapshot()["ebbtide_events_total"].values())

        first = Metrics(publish_on_commit=True)
        scrape(first)
        first.restore({})
        scrape(first)
        first.add("ebbtide_events_total", 10)
        stored = first.persistent()
        scrape(first)
        first.publish(stored)
        scrape(first)
        first.add("ebbtide_events_total", 5)
        scrape(first)
        second = Metrics(publish_on_commit=True)  # killed before the next checkpoint
        scrape(second)
        second.restore(stored)
        scrape(second)
        second.add("ebbtide_events_total", 7)
        second.publish(second.persistent())
        scrape(second)
        # Nothing before the restore: a zero there would read as a counter that began anew.
        assert shown == [0, 0, 10, 10, 10, 17]

    def test_a_new_series_is_shown_at_zero_first(self) -> None:
        metrics = Metrics(publish_on_commit=True)
        metrics.restore({})
        metrics.add("ebbtide_dead_letters_total", 2, "too_long")
        assert metrics.snapshot()["ebbtide_dead_letters_total"] == {("too_long",): 0}
        metrics.publish(metrics.persistent())
        assert metrics.snapshot()["ebbtide_dead_letters_total"] == {("too_long",): 2}

    def test_the_loop_and_the_live_page_see_what_is(self) -> None:
        metrics = Metrics(publish_on_commit=True)
        metrics.add("ebbtide_events_total", 3)
        metrics.add("ebbtide_checkpoint_failures_total")
        assert metrics.get("ebbtide_events_total") == 3
        assert metrics.snapshot()["ebbtide_checkpoint_failures_total"] == {(): 1}

    def test_without_it_everything_is_shown_at_once(self) -> None:
        metrics = Metrics()
        metrics.add("ebbtide_events_total", 3)
        metrics.publish({})
        assert metrics.snapshot()["ebbtide_events_total"] == {(): 3}


def test_readers_see_whole_histograms_and_growing_tables() -> None:
    metrics = Metrics()
    done = threading.Event()
    faults: list[str] = []

    def read() -> None:
        while not done.is_set():
            shown = metrics.snapshot()
            each = shown["ebbtide_batch_events"][()]
            # Every value observed is 4, so count and sum always agree if they are of one moment.
            if not isinstance(each, Distribution) or each.sum != 4 * each.count:
                faults.append(f"torn: {each}")
            metrics.persistent()

    readers = [threading.Thread(target=read) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads take turns within a write, and not only between writes
    try:
        for reader in readers:
            reader.start()
        batch = np.full(64, 4.0)
        for index in range(3000):
            metrics.observe("ebbtide_batch_events", batch)
            metrics.observe("ebbtide_batch_events", 4)
            metrics.add("ebbtide_dead_letters_total", 1, f"reason {index % 60}")
    finally:
        sys.setswitchinterval(interval)
        done.set()
        for reader in readers:
            reader.join()
    assert faults == []
    last = metrics.snapshot()["ebbtide_batch_events"][()]
    assert isinstance(last, Distribution)
    assert last.count == 3000 * 65
