"""Debian's Prometheus scrapes a consumer that runs: what every query, rule and annotation comes to in earnest."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest
import yaml

from dashboards import grafana
from dashboards.alerts import ALERTS
from dashboards.board import Dashboard
from dashboards.names import SIGNAL_NAMES
from dashboards.preview import draw
from dashboards.preview import prometheus as prometheus_at
from dashboards.recordings import RECORDED, SHIFTS_DAY
from tests.prometheus_server import TOKEN, Prometheus, consumer, for_prometheus, prometheus, tool, wait_for
from tests.warm import Warm

pytestmark = pytest.mark.slow

BOARDS = [json.loads(path.read_text("utf-8")) for path in sorted(grafana.COMMITTED.glob("grafana/dashboards/*.json"))]

QUERIES = sorted(
    {
        target["expr"].replace("${signal}", signal).replace("$signal", signal)
        for board in BOARDS
        for panel in board["panels"]
        for target in panel.get("targets", ())
        for signal in SIGNAL_NAMES
    }
)

ANNOTATIONS = sorted(
    {(each["name"], each["target"]["expr"]) for board in BOARDS for each in board["annotations"]["list"]}
)

RULES: dict[str, Any] = yaml.safe_load((grafana.COMMITTED / "prometheus" / "rules" / "ebbtide.yml").read_text("utf-8"))

EMPTY = {
    r"ebbtide_device_memory_": "this machine has no GPU",
    re.escape(SHIFTS_DAY.name): "it looks at the day before the last hour, and the server is a minute old",
    r"ebbtide_forgetting_half_life_writes": "more than half may be left of the oldest probe",
}
"""Queries that need not have an answer here → why."""

QUIET = {
    "Alerts": "nothing is wrong",
    "Dry run: resets, restores, freezes": "the policy acts in earnest",
    "Restarts": "it was started once",
}
"""Annotations that mark nothing here → why."""


def reasons(query: str) -> list[str]:
    return [reason for pattern, reason in EMPTY.items() if re.search(pattern, query)]


@pytest.fixture(scope="module")
def server(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped a busy consumer for a while, an operator's action included."""
    folder = tmp_path_factory.mktemp("real")
    rules = copy.deepcopy(RULES)
    for group in rules["groups"]:
        group.pop("interval", None)  # at each evaluation: nobody waits five minutes for a week's mean
    with (
        consumer(warm, folder, "--policy=reset_on_shift", "--shadow=none", "--shadow=decay_on_shift") as port,
        prometheus(folder, port, rules) as found,
    ):
        wait_for(lambda: found.ask("ebbtide_events_total > 200"))
        streams = httpx.get(f"http://127.0.0.1:{port}/api/streams", trust_env=False).json()
        acted = httpx.post(
            f"http://127.0.0.1:{port}/api/streams/{streams[0]['stream']}/actions",
            headers={"Authorization": f"Bearer {TOKEN}"},
            json={"kind": "reset", "reason": "a test"},
            trust_env=False,
        )
        assert acted.is_success, acted.text
        wait_for(lambda: found.ask('sum(increase(ebbtide_actions_total{origin="operator"}[30s])) > 0'))
        wait_for(lambda: found.ask('sum(increase(ebbtide_actions_total{origin="policy",kind="reset"}[30s])) > 0'))
        wait_for(lambda: found.ask("count_over_time(ebbtide_events_total[1m]) > 12"))
        wait_for(lambda: all(rule["health"] != "unknown" for rule in found.rules()))
        yield found


def test_every_query_that_must_have_an_answer_has_one(server: Prometheus) -> None:
    """Catches a label or a matcher that fits nothing, which no parser can see."""
    silent = [query for query in QUERIES if not server.ask(for_prometheus(query)) and not reasons(query)]
    assert silent == []
    assert server.ask("ebbtide_event_total") == []


def test_no_exception_is_for_nothing() -> None:
    assert [pattern for pattern in EMPTY if not any(re.search(pattern, query) for query in QUERIES)] == []


@pytest.mark.parametrize(("name", "expr"), ANNOTATIONS)
def test_an_annotation_marks_what_happened(server: Prometheus, name: str, expr: str) -> None:
    assert bool(server.ask(for_prometheus(expr))) == (name not in QUIET)


def test_the_job_and_the_instance_can_be_chosen(server: Prometheus) -> None:
    for board in BOARDS:
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                match = variable["definition"].removeprefix("label_values(").rsplit(",", 1)[0]
                labels = {row["metric"][variable["name"]] for row in server.ask(for_prometheus(match))}
                assert len(labels) == 1


def test_every_rule_is_healthy(server: Prometheus) -> None:
    rules = server.rules()
    assert {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok"} == {}
    assert {rule["name"] for rule in rules} == RECORDED | {alert.name for alert in ALERTS}


def test_what_is_recorded_has_values(server: Prometheus) -> None:
    assert [name for name in sorted(RECORDED) if not server.ask(name) and not reasons(name)] == []


def test_no_alert_but_that_on_bad_lines_is_near(server: Prometheus) -> None:
    """The feed has a bad line among forty, and its topics last eight events; nothing else is wrong with it."""
    states = {rule["name"]: rule["state"] for rule in server.rules() if rule["type"] == "alerting"}
    expected = {"EbbtideDeadLetters", "EbbtidePoolTooSmall"}
    assert {name for name, state in states.items() if state != "inactive"} <= expected, states
    assert states["EbbtideDeadLetters"] == "pending"


@pytest.mark.parametrize("board", grafana.DASHBOARDS, ids=lambda board: board.uid)
def test_a_dashboard_can_be_drawn_without_grafana(server: Prometheus, board: Dashboard) -> None:
    end = time.time()
    picture = draw(board.to_json(), prometheus_at(str(server.client.base_url), end - 20, end), end - 20, end, "15s")
    root = ElementTree.fromstring(picture)
    texts = [str(each.text) for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == board.title
    assert {panel.title[:20] for row in board.rows for panel in row.panels if "$" not in panel.title} <= {
        text[:20] for text in texts
    }
    assert texts.count("no data") <= 2  # no GPU, and pairs that are not old enough


def test_the_linter_of_metrics_has_nothing_to_say(server: Prometheus) -> None:
    [target] = server.get("targets")["activeTargets"]
    body = httpx.get(target["scrapeUrl"], trust_env=False).content
    done = subprocess.run([tool("promtool"), "check", "metrics"], input=body, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert subprocess.run(
        [tool("promtool"), "check", "metrics"],
        input=b"# TYPE badName gauge\nbadName 1\n",
        check=False,
        capture_output=True,
    ).returncode


def test_an_exemplar_names_its_stream(server: Prometheus) -> None:
    query = 'ebbtide_retrieval_error_ratio_bucket{job="ebbtide"}'
    found = server.get("query_exemplars", query=query, start="0", end="9999999999")
    names = {each["labels"]["stream"] for series in found for each in series["exemplars"]}
    assert names
    assert all(name.startswith("s0") for name in names)


def test_the_texts_of_alerts_are_filled_in(tmp_path: Path) -> None:
    """Each alert's condition is replaced by one that holds, so that Prometheus renders its templates."""
    rules = [
        {**rule, "for": "0s", "expr": 'label_replace(vector(0.25), "instance", "here:9464", "", "")'}
        for group in RULES["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    with prometheus(tmp_path, 9, {"groups": [{"name": "texts", "rules": rules}]}) as server:
        wait_for(lambda: len(server.get("alerts")["alerts"]) == len(ALERTS))
        rendered = {each["labels"]["alertname"]: each["annotations"] for each in server.get("alerts")["alerts"]}
    for alert in ALERTS:
        texts = rendered[alert.name]
        assert not re.search(r"\{\{|\}\}|<no value>|error expanding", " ".join(texts.values())), texts
        assert ("here:9464" in texts["summary"]) == ("$labels.instance" in alert.summary)
    assert rendered["EbbtideDeadLetters"]["summary"] == "here:9464 refuses 25% of its lines."
