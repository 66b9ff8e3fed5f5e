"""What a scrape gets, parsed by the parsers that scrapers use."""

from __future__ import annotations

import math
import shutil
import subprocess
import threading
import time
from typing import Any

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from monitors.catalogue import CATALOGUE
from monitors.exporter import Exporter, wants_open_metrics
from monitors.metrics import Metrics

OPEN = "application/openmetrics-text;version=1.0.0"
BUILD = {
    "version": "0.1.0",
    "python": "3.11",
    "torch": "2.13",
    "backbone": "hashing",
    "device": "cpu",
    "policy": "none",
}


def filled() -> Metrics:
    """Give every metric of the catalogue a value, with labels that need escaping."""
    metrics = Metrics()
    for name, metric in CATALOGUE.items():
        labels = tuple('a "quoted"\n\\ label' for _ in metric.labels)
        if metric.kind == "counter":
            metrics.add(name, 3, *labels)
        elif metric.kind == "gauge" and name != "ebbtide_build_info":
            metrics.set(name, 2.5, *labels)
        elif metric.kind == "histogram":
            metrics.observe(name, np.array([*metric.buckets, math.inf]), *labels)
    return metrics


def families(accept: str) -> dict[str, Any]:
    body, _ = Exporter(filled(), build_info=BUILD).exposition(accept)
    parse: Any = parse_open_metrics if accept else parse_plain
    return {family.name: family for family in parse(body.decode())}


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestContent:
    @pytest.mark.parametrize("accept", ["", OPEN])
    def test_names_types_help_labels_and_buckets_are_those_of_the_catalogue(self, accept: str) -> None:
        found = families(accept)
        for name, metric in CATALOGUE.items():
            if name == "ebbtide_build_info":
                family = found["ebbtide_build" if accept else name]
                assert family.samples[0].labels == BUILD
                assert family.samples[0].value == 1
                continue
            family = found[name.removesuffix("_total")]
            assert family.type == metric.kind
            assert family.documentation == metric.help
            assert {sample.name for sample in family.samples} == set(metric.samples)
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == set(metric.labels)
            if metric.kind == "histogram":
                bounds: dict[tuple[str, ...], list[float]] = {}
                for sample in family.samples:
                    if sample.name.endswith("_bucket"):
                        series = tuple(sample.labels[label] for label in metric.labels)
                        bounds.setdefault(series, []).append(float(sample.labels["le"]))
                assert len(bounds) == len({*metric.series, *bounds})
                for found_bounds in bounds.values():
                    assert found_bounds == [*metric.buckets, math.inf]
            if accept:
                assert family.unit == metric.unit

    @pytest.mark.parametrize("accept", ["", OPEN])
    def test_values(self, accept: str) -> None:
        found = families(accept)
        samples = {
            (each.name, each.labels.get("le")): each.value for family in found.values() for each in family.samples
        }
        assert samples["ebbtide_events_total", None] == 3
        assert samples["ebbtide_pool_used_bytes", None] == 2.5
        bounds = CATALOGUE["ebbtide_state_norm"].buckets
        # One value at each bound, so each bucket holds one more than the last; infinity was left out.
        assert samples["ebbtide_state_norm_bucket", "0.125"] == 1
        assert samples["ebbtide_state_norm_bucket", "+Inf"] == len(bounds)
        assert samples["ebbtide_state_norm_count", None] == len(bounds)
        assert samples["ebbtide_state_norm_sum", None] == sum(bounds)

    @pytest.mark.parametrize("accept", ["", OPEN])
    def test_labels_survive_escaping(self, accept: str) -> None:
        reasons = [each.labels["reason"] for each in families(accept)["ebbtide_dead_letters"].samples]
        assert reasons == ['a "quoted"\n\\ label']

    def test_the_process_and_the_platform_are_there_and_created_samples_are_not(self) -> None:
        body, _ = Exporter(filled(), build_info=BUILD).exposition()
        text = body.decode()
        for name in (
            "process_resident_memory_bytes",
            "process_cpu_seconds_total",
            "python_info",
            "python_gc_collections_total",
        ):
            assert f"\n{name}" in text
        assert "_created" not in text

    def test_a_gauge_without_a_value_is_not_shown(self) -> None:
        body, _ = Exporter(Metrics(), build_info=BUILD).exposition()
        assert b"\nebbtide_source_backlog_bytes " not in body
        assert b"\nebbtide_ready 0.0\n" in body

    def test_a_label_of_build_info_that_is_not_in_the_catalogue_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"got \['revision'\]; add them to the catalogue"):
            Exporter(Metrics(), build_info={"revision": "abc"})

    def test_promtool_finds_nothing_to_say(self) -> None:
        promtool = shutil.which("promtool")
        if promtool is None:
            pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
        metrics = filled()
        body, _ = Exporter(metrics, build_info=BUILD).exposition()
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=body, capture_output=True, timeout=60, check=False
        )
        assert (checked.returncode, checked.stdout.decode(), checked.stderr.decode()) == (0, "", "")


class TestExemplars:
    NAMES = ("ann", 'a "quoted"\n\\ name', "x" * 500, "ö" * 200, "\ud800 half")

    def exposed(self, accept: str) -> Any:
        metrics = Metrics()
        values = np.array([0.05, np.nan, 0.35, 0.95, 2.5])
        metrics.observe("ebbtide_retrieval_error_ratio", values, whose=lambda row: self.NAMES[row])
        metrics.observe("ebbtide_retrieval_error_ratio", np.array([0.32, 0.34]), whose=["earlier", "later"].__getitem__)
        body, _ = Exporter(metrics, build_info=BUILD).exposition(accept)
        parse: Any = parse_open_metrics if accept else parse_plain
        found = {family.name: family for family in parse(body.decode())}["ebbtide_retrieval_error_ratio"]
        return [sample for sample in found.samples if sample.name.endswith("_bucket")]

    def test_open_metrics_names_the_last_stream_of_each_bucket(self) -> None:
        shown = {each.labels["le"]: each.exemplar for each in self.exposed(OPEN) if each.exemplar is not None}
        assert {bucket: (seen.labels["stream"], seen.value) for bucket, seen in shown.items()} == {
            "0.05": ("ann", 0.05),
            "0.4": ("later", 0.34),
            "1.0": ("ö" * 121 + "…", 0.95),
            "4.0": ("? half", 2.5),
        }
        assert all(abs(float(seen.timestamp) - time.time()) < 60 for seen in shown.values())

    def test_the_parser_of_plain_text_sees_none(self) -> None:
        assert all(each.exemplar is None for each in self.exposed(""))

    def test_a_name_is_cut_to_what_open_metrics_allows(self) -> None:
        for each in self.exposed(OPEN):
            if each.exemplar is not None:
                assert sum(len(name) + len(value) for name, value in each.exemplar.labels.items()) <= 128


class TestCache:
    def test_one_exposition_a_second_and_format(self) -> None:
        metrics, clock = Metrics(), Clock()
        exporter = Exporter(metrics, build_info=BUILD, clock=clock)
        first = exporter.exposition()
        metrics.add("ebbtide_events_total", 5)
        clock.now += 0.999
        assert exporter.exposition() == first
        assert exporter.exposition("text/plain") == first
        assert exporter.generations == 1
        assert b"ebbtide_events_total 5.0" in exporter.exposition(OPEN)[0]
        assert exporter.generations == 2
        clock.now += 0.001
        assert b"ebbtide_events_total 5.0" in exporter.exposition()[0]
        assert exporter.generations == 3

    def test_many_that_ask_at_once_share_one(self) -> None:
        exporter = Exporter(filled(), build_info=BUILD, clock=Clock())
        start = threading.Barrier(16)
        got: list[bytes] = []

        def scrape() -> None:
            start.wait()
            got.append(exporter.exposition()[0])

        scrapers = [threading.Thread(target=scrape) for _ in range(16)]
        for scraper in scrapers:
            scraper.start()
        for scraper in scrapers:
            scraper.join()
        assert exporter.generations == 1
        assert len(got) == 16
        assert len(set(got)) == 1

    def test_a_version_that_a_client_makes_up_is_neither_echoed_nor_kept(self) -> None:
        exporter = Exporter(Metrics(), build_info=BUILD, clock=Clock())
        types = {exporter.exposition(f"application/openmetrics-text;version=9.{each}")[1] for each in range(50)}
        assert types == {"text/plain; version=0.0.4; charset=utf-8"}
        assert exporter.generations == 1


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        # Prometheus 2.42
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            True,
        ),
        # Prometheus 3
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            True,
        ),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=0.0.1", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=x, text/plain", False),
        ("text/html,*/*;q=0.8", False),
        (";;;,=,", False),
        ("", False),
    ],
)
def test_content_negotiation(accept: str, expected: bool) -> None:
    assert wants_open_metrics(accept) is expected
