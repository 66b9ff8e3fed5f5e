"""Recording and alert rules: current, well named, proven to fire and not to fire, and told in the runbook."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from dashboards import grafana
from dashboards.alerts import ALERTS, Alert
from dashboards.names import metric_names
from dashboards.recordings import BASELINES, RECORDED, RECORDINGS, Recording
from dashboards.rules import Links, rule_groups
from monitors.catalogue import CATALOGUE
from stream.cli import app
from tests.prometheus_server import tool

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNIT_TESTS = sorted((DEPLOY / "prometheus" / "tests").glob("*.yml"))
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text("utf-8")
BY_NAME = {alert.name: alert for alert in ALERTS}


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tool("promtool"), *(str(each) for each in arguments)], capture_output=True, text=True, check=False
    )


class TestFiles:
    def test_prometheus_reads_them(self) -> None:
        """Debian's Prometheus is 2.42: what is newer than that in PromQL fails here."""
        done = promtool("check", "rules", DEPLOY / "prometheus" / "rules" / "ebbtide.yml")
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"SUCCESS: {len(RECORDED) + len(ALERTS)} rules found" in done.stdout

    def test_prometheus_reads_its_configuration(self) -> None:
        done = promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 rule files found" in done.stdout

    def test_the_object_for_kubernetes_has_the_same_rules(self) -> None:
        plain = yaml.safe_load((DEPLOY / "prometheus" / "rules" / "ebbtide.yml").read_text("utf-8"))
        there = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-rule.yaml").read_text("utf-8"))
        assert (there["apiVersion"], there["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
        assert there["spec"] == plain == rule_groups()

    def test_links_lead_where_they_are_told(self) -> None:
        links = Links(grafana="https://grafana.example/", runbook="https://docs.example/runbook")
        for rule in rule_groups(links)["groups"][2]["rules"]:
            annotations = rule["annotations"]
            assert annotations["runbook_url"] == f"https://docs.example/runbook#{rule['alert'].lower()}"
            assert annotations["dashboard_url"] == f"https://grafana.example/d/{BY_NAME[rule['alert']].dashboard}"


class TestNames:
    @pytest.mark.parametrize("rule", [*RECORDINGS, *BASELINES], ids=lambda rule: rule.name)
    def test_a_recording_is_named_after_what_it_is(self, rule: Recording) -> None:
        level, metric, operations = rule.name.split(":")
        assert level == "instance"
        assert "_total" not in metric
        assert rule.help.endswith(".")
        windows = set(re.findall(r"\[(\w+)\]", rule.expr))
        assert all(operations.endswith(window) for window in windows), "the window is the end of the name"
        assert " by " not in rule.expr, "labels that a cluster adds are kept: without, not by"

    @pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
    def test_an_alert_asks_for_what_there_is(self, alert: Alert) -> None:
        samples = {sample for metric in CATALOGUE.values() for sample in metric.samples}
        assert metric_names(alert.expr) <= samples | RECORDED | {"up", "process_start_time_seconds"}
        assert alert.summary.endswith(".")
        assert alert.description.endswith(".")
        assert alert.dashboard in {board.uid for board in grafana.DASHBOARDS}

    def test_all_that_is_recorded_is_used(self) -> None:
        text = json.dumps([alert.expr for alert in ALERTS] + [rule.expr for rule in BASELINES])
        assert [name for name in sorted(RECORDED) if name not in text] == []

    @pytest.mark.parametrize(
        "parts",
        [
            {"name": "ebbtideDown"},
            {"name": "Ebbtide_down"},
            {"expr": "ebbtide_redy == 0"},
            {"expr": "instance:ebbtide_state_norm:mean1h > 1"},
        ],
    )
    def test_a_wrong_alert_is_refused(self, parts: dict[str, str]) -> None:
        good: dict[str, Any] = {
            "name": "EbbtideDown",
            "expr": "up == 0",
            "wait": "1m",
            "severity": "critical",
            "summary": "Down.",
            "description": "It is down.",
            "dashboard": "ebbtide-overview",
        }
        assert Alert(**good)
        with pytest.raises(ValueError, match="expected"):
            Alert(**{**good, **parts})


class TestFiring:
    @pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
    def test_alerts_fire_when_they_should(self, path: Path) -> None:
        done = promtool("test", "rules", path)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_each_alert_is_seen_to_fire_and_not_to_fire(self) -> None:
        fires: dict[str, set[bool]] = {}
        for path in UNIT_TESTS:
            for group in yaml.safe_load(path.read_text("utf-8"))["tests"]:
                for each in group["promql_expr_test"]:
                    found = re.fullmatch(r"ALERTS\{alertname='(\w+)',alertstate='firing'\}", each["expr"])
                    assert found, each["expr"]
                    assert group["name"].startswith(found[1])
                    fires.setdefault(found[1], set()).add(bool(each["exp_samples"]))
        assert fires == {alert.name: {True, False} for alert in ALERTS}

    @pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
    def test_an_alert_that_never_fires_would_be_noticed(self, alert: Alert, tmp_path: Path) -> None:
        """Alone with what it asks for it passes its unit tests; as one that never fires it fails them."""
        groups = [group for path in UNIT_TESTS for group in yaml.safe_load(path.read_text("utf-8"))["tests"]]
        mine = [group for group in groups if group["name"].startswith(alert.name)]
        tests = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": mine}
        (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests), "utf-8")
        for more, code in (("", 0), (" and absent(up) and vector(0) > 1", 1)):
            rules = asked_for(alert.name)
            rules[-1]["rules"][-1]["expr"] = f"({rules[-1]['rules'][-1]['expr']}){more}"
            (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": rules}), "utf-8")
            done = promtool("test", "rules", tmp_path / "tests.yml")
            assert done.returncode == code, (more, done.stdout, done.stderr)
            assert ("FAILED" in done.stderr) == bool(more), done.stderr


def asked_for(alert: str) -> list[dict[str, Any]]:
    """Return the groups of rules, with this alert, the last one, and with the recordings that it needs."""
    groups = rule_groups()["groups"]
    wanted, left = set[str](), [alert]
    while left:
        wanted.add(name := left.pop())
        [rule] = [
            each for group in groups for each in group["rules"] if name in (each.get("record"), each.get("alert"))
        ]
        left += [each for each in RECORDED if re.search(rf"(?<![\w:]){each}(?![\w:])", rule["expr"])]
    kept = [
        {**group, "rules": [each for each in group["rules"] if {each.get("record"), each.get("alert")} & wanted]}
        for group in groups
    ]
    return [group for group in kept if group["rules"]]


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", RUNBOOK, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands(text: str) -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


class TestRunbook:
    def test_each_alert_has_a_section_and_nothing_else_has(self) -> None:
        assert list(sections()) == [alert.name for alert in ALERTS]
        rows = re.findall(r"^\| \[(\w+)\]\(#(\w+)\) \| (\w+) \| (.+) \|$", RUNBOOK, re.MULTILINE)
        assert rows == [
            (each.name, each.name.lower(), each.severity, "at once" if each.wait == "0m" else each.wait)
            for each in ALERTS
        ]

    @pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
    def test_a_section_has_the_query_the_causes_and_the_commands(self, alert: Alert) -> None:
        text = sections()[alert.name]
        assert f"```promql\n{alert.expr}\n```" in text
        assert re.search(r"Likely causes:\n\n- .+", text)
        assert commands(text)

    def test_the_commands_exist(self) -> None:
        line: Any = typer.main.get_command(app)
        assert len(commands(RUNBOOK)) > len(ALERTS)
        for program, *rest in commands(RUNBOOK):
            if program == "ebbtide":
                command = line.commands[rest[0]]
                known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
                given = {word for word in rest[1:] if word.startswith("--")}
                assert given <= known, (rest, given - known)
                required = {parameter.opts[0] for parameter in command.params if parameter.required}
                assert {name for name in required if name.startswith("--")} <= given, rest
            else:
                assert program in ("curl", "df", "promtool", "tail"), program

    def test_the_addresses_are_served(self) -> None:
        from stream.http import create_app
        from tests.test_http import SampleService

        routes = {getattr(route, "path", "") for route in create_app(SampleService()).routes}
        asked = {
            re.sub(r"https?://[^/]+|\?.*", "", word) for line in commands(RUNBOOK) for word in line if "://127" in word
        }
        assert asked
        assert asked <= routes
