"""Dashboards, the page of metrics and the live page: what is committed is current, and what it asks for exists."""

from __future__ import annotations

import html.parser
import json
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from dashboards import grafana, metrics_page
from dashboards.board import Row
from dashboards.live_page import content_security_policy, live_page
from dashboards.names import OTHER_METRICS, expanded, metric_names
from dashboards.panels import Panel, Target
from dashboards.promql import check, gauge, quantile, rate, select
from dashboards.recordings import BASELINES, RECORDED, RECORDINGS
from monitors.catalogue import CATALOGUE, WORST, WORST_GAUGES
from monitors.exporter import Exporter
from stream.http import REQUESTS_PER_SECOND
from tests.prometheus_server import for_prometheus, tool
from tests.test_exporter import BUILD, filled

BOARDS = grafana.COMMITTED / "grafana" / "dashboards"
COMMITTED = [json.loads(path.read_text("utf-8")) for path in sorted(BOARDS.glob("*.json"))]
PANELS = [panel for dashboard in COMMITTED for panel in dashboard["panels"] if panel["type"] not in ("row", "text")]
TEXTS = [panel for dashboard in COMMITTED for panel in dashboard["panels"] if panel["type"] == "text"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
ANNOTATIONS = [
    (each["name"], each["target"]["expr"]) for dashboard in COMMITTED for each in dashboard["annotations"]["list"]
]
ALL_QUERIES = sorted({*QUERIES, *ANNOTATIONS})


class TestCommitted:
    def test_dashboards_are_current(self) -> None:
        assert grafana.stale(grafana.COMMITTED) == [], "run `python -m dashboards.grafana --write`"

    def test_the_page_of_metrics_is_current(self) -> None:
        assert metrics_page.COMMITTED.read_text("utf-8") == metrics_page.metrics_page()

    def test_the_checks_notice_what_is_stale(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert grafana.stale(tmp_path) == sorted(grafana.rendered())
        for path in grafana.write_files(tmp_path):
            assert grafana.stale(tmp_path) == []
            text = path.read_text("utf-8")
            path.write_text(text + " ", "utf-8")
            assert grafana.stale(tmp_path) == [path.relative_to(tmp_path).as_posix()]
            path.write_text(text, "utf-8")
        old = tmp_path / "grafana" / "dashboards" / "old.json"
        old.write_text("{}", "utf-8")
        (tmp_path / "compose.yaml").write_text("ours", "utf-8")
        assert grafana.stale(tmp_path) == ["grafana/dashboards/old.json"]
        for module, committed in ((grafana, tmp_path), (metrics_page, tmp_path / "docs" / "metrics.md")):
            monkeypatch.setattr(module, "COMMITTED", committed)
            assert module.main(["--check"]) == 1
            assert module.main(["--write"]) == 0
            old.unlink(missing_ok=True)
            assert module.main(["--check"]) == 0

    @pytest.mark.parametrize("module", ["dashboards.grafana", "dashboards.metrics_page"])
    def test_the_commands_work(self, module: str) -> None:
        run = subprocess.run(
            [sys.executable, "-W", "error", "-m", module, "--check"],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


class TestPageOfMetrics:
    def test_every_metric_is_on_it_once(self) -> None:
        rows = re.findall(r"^\| `(ebbtide_\w+)` \|", metrics_page.metrics_page(), re.MULTILINE)
        assert sorted(rows) == sorted(CATALOGUE)

    def test_it_tells_the_servers_pace(self) -> None:
        assert f"Requests beyond {REQUESTS_PER_SECOND} a second wait" in metrics_page.metrics_page()


class TestDashboardRules:
    """What a linter of dashboards would ask for."""

    @pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
    def test_a_panel_is_complete(self, panel: dict[str, Any]) -> None:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len(panel["description"]) > 60
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        if panel["type"] in ("timeseries", "stat"):
            assert (len(steps) > 1) != ("No fixed limit: " in panel["description"])

    @pytest.mark.parametrize("panel", TEXTS, ids=lambda panel: panel["title"])
    def test_a_text_is_complete(self, panel: dict[str, Any]) -> None:
        assert panel["description"].endswith(".")
        assert len(panel["options"]["content"]) > 60

    @pytest.mark.parametrize(("title", "expr"), ALL_QUERIES)
    def test_a_query_follows_the_rules(self, title: str, expr: str) -> None:
        # One matcher list for each metric, and each narrows to the job and the instance.
        selectors = re.findall(r"([A-Za-z_:$][\w:${}]*)\{(?!signal)", expr)
        assert expr.count('{job=~"$job",instance=~"$instance"') == len(selectors) > 0
        bare = re.sub(r"\{[^}]*=[^}]*\}", "{}", expanded(expr)[0])
        assert {name for name in metric_names(expanded(expr)[0]) if f"{name}{{}}" not in bare} == set()
        for function, window in re.findall(r"(rate|irate|increase|changes)\([^\[]*\[([^\]]*)\]", expr):
            assert window == "$__rate_interval" or function == "increase"
        for counter in re.findall(r"[\w${}]+_(?:total|bucket|sum|count)\{", expr):
            assert re.search(rf"(rate|increase)\({re.escape(counter)}", expr), counter

    @pytest.mark.parametrize("dashboard", COMMITTED, ids=lambda dashboard: dashboard["uid"])
    def test_ids_differ_and_lines_fill_the_grid(self, dashboard: dict[str, Any]) -> None:
        assert dashboard["editable"] is False
        panels = dashboard["panels"]
        assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
        cells: set[tuple[int, int]] = set()
        for panel in panels:
            place = panel["gridPos"]
            covered = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not covered & cells, f"{panel['title']} lies on another panel"
            cells |= covered
        height = 1 + max(y for _, y in cells)
        assert cells == {(x, y) for x in range(24) for y in range(height)}

    @pytest.mark.parametrize("dashboard", COMMITTED, ids=lambda dashboard: dashboard["uid"])
    def test_the_data_source_the_job_and_the_instance_can_be_chosen(self, dashboard: dict[str, Any]) -> None:
        source, job, instance, *own = dashboard["templating"]["list"]
        assert (source["name"], source["label"], source["type"]) == ("datasource", "Data source", "datasource")
        assert (job["name"], instance["name"]) == ("job", "instance")
        for each in (job, instance):
            assert (each["label"], each["multi"], each["allValue"], each["refresh"]) == (each["name"], True, ".+", 2)
            assert each["datasource"]["uid"] == "${datasource}"
        queries = json.dumps([panel.get("targets") for panel in dashboard["panels"]])
        used = set(re.findall(r"\$\{?([a-z]\w*)\}?", queries))
        assert used == {"datasource", "job", "instance", *(each["name"] for each in own)}
        for each in own:
            assert each["type"] == "custom"
            assert len({option["value"] for option in each["options"]}) == len(each["options"]) > 1

    @pytest.mark.parametrize("dashboard", COMMITTED, ids=lambda dashboard: dashboard["uid"])
    def test_dashboards_lead_to_each_other(self, dashboard: dict[str, Any]) -> None:
        [link] = dashboard["links"]
        assert (link["type"], link["includeVars"], link["keepTime"]) == ("dashboards", True, True)
        assert set(link["tags"]) <= set(dashboard["tags"])

    def test_names_and_titles_differ(self) -> None:
        for key in ("uid", "title"):
            assert len({dashboard[key] for dashboard in COMMITTED}) == len(COMMITTED) == len(grafana.DASHBOARDS)
        for dashboard in COMMITTED:
            titles = [panel["title"] for panel in dashboard["panels"]]
            assert len(set(titles)) == len(titles)

    def test_every_signal_can_be_chosen_and_every_place(self) -> None:
        [streams] = [dashboard for dashboard in COMMITTED if dashboard["uid"] == "ebbtide-streams"]
        variables = streams["templating"]["list"]
        options = {each["name"]: [option["value"] for option in each["options"]] for each in variables}
        assert [f"ebbtide_worst_{name}" for name in options["signal"]] == list(WORST_GAUGES.values())
        assert options["place"] == ["$__all", *(str(place) for place in range(1, WORST + 1))]

    def test_every_metric_that_tells_of_health_is_shown(self) -> None:
        shown = {name for _, expr in ALL_QUERIES for each in expanded(expr) for name in metric_names(each)}
        shown |= {name for rule in (*RECORDINGS, *BASELINES) for name in metric_names(rule.expr)}
        hidden = {name for name, metric in CATALOGUE.items() if not shown.intersection(metric.samples)}
        assert hidden == set()


class TestNames:
    @pytest.mark.parametrize(("title", "expr"), ALL_QUERIES)
    def test_a_query_asks_for_what_a_scrape_shows(self, title: str, expr: str) -> None:
        body, _ = Exporter(filled(), build_info=BUILD).exposition()
        scraped = {each.name for family in text_string_to_metric_families(body.decode()) for each in family.samples}
        for each in expanded(expr):
            assert metric_names(each)
            assert metric_names(each) <= scraped | OTHER_METRICS | RECORDED

    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: Target("rate(ebbtide_event_total[5m])", ""), "did you mean 'ebbtide_events_total'"),
            (lambda: Target("sum(nothing_of_ours)", ""), "declare it in"),
            (lambda: Target("ebbtide_state_norm", ""), "did you mean 'ebbtide_state_norm_"),
            (lambda: rate("ebbtide_events"), "did you mean 'ebbtide_events_total'"),
            (
                lambda: rate("ebbtide_events_total", "reason"),
                r"expected labels of ebbtide_events_total.*got \['reason'\]",
            ),
            (lambda: gauge("ebbtide_queue_depth", "que"), r"got \['que'\]"),
            (lambda: quantile(0.5, "ebbtide_state_norms"), "did you mean 'ebbtide_state_norm_bucket'"),
            (lambda: select("ebbtide_wrst_$signal"), "did you mean 'ebbtide_worst_"),
            (lambda: check("instance:ebbtide_event_lag_seconds:mean6m"), "did you mean 'instance:ebbtide_event_lag_"),
        ],
    )
    def test_a_wrong_name_fails_when_it_is_built(self, build: Callable[[], object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build()

    @pytest.mark.parametrize(
        ("expr", "names"),
        [
            ('a{b="c_total"}', {"a"}),
            ('a{b="}", c=~"x{2}"} / on (d) group_left (e) f', {"a", "f"}),
            ("histogram_quantile(0.9, sum by (le) (rate(a_bucket[5m])))", {"a_bucket"}),
            ("sum without (x) (a) > bool 1e3 and b offset 5m", {"a", "b"}),
            ("sum(a) by (x) unless 2 * b", {"a", "b"}),
            ("time() - a:b:c", {"a:b:c"}),
            ("max_over_time(rate(a[5m])[1h:1m])", {"a"}),
            ("a offset 1d > 0 unless avg_over_time(b[1d] offset 1h)", {"a", "b"}),
            ("1 + inf", set()),
        ],
    )
    def test_names_are_found(self, expr: str, names: set[str]) -> None:
        assert metric_names(expr) == names


class TestLayout:
    @staticmethod
    def panel(width: int, height: int = 8) -> Panel:
        return Panel("x", "y", [Target("up", "")], unit="none", width=width, height=height, no_limit="none.")

    @pytest.mark.parametrize(
        ("panels", "message"),
        [
            ([(12, 8), (13, 8)], "overflows 24 columns, to 25"),
            ([(12, 8)], "does not fill 24"),
            ([(12, 8), (12, 7)], "different heights"),
        ],
    )
    def test_a_line_that_does_not_fit_is_refused(self, panels: list[tuple[int, int]], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            list(Row("r", [self.panel(*size) for size in panels]).lines())

    @pytest.mark.parametrize("missing", ["title", "description", "unit", "targets"])
    def test_an_incomplete_panel_is_refused(self, missing: str) -> None:
        parts: dict[str, Any] = {"title": "x", "description": "y", "unit": "none", "targets": [Target("up", "")]}
        with pytest.raises(ValueError, match="expected a"):
            Panel(**{**parts, "no_limit": "none.", missing: ""})

    def test_a_number_has_limits_or_a_reason(self) -> None:
        parts: dict[str, Any] = {"title": "x", "description": "y", "unit": "none", "targets": [Target("up", "")]}
        with pytest.raises(ValueError, match="expected thresholds, or the reason"):
            Panel(**parts)
        with pytest.raises(ValueError, match="expected thresholds, or the reason"):
            Panel(**parts, thresholds=[(1, "red")], no_limit="none.")


class TestPrometheus:
    def test_every_query_is_promql(self, tmp_path: Path) -> None:
        queries = [each for _, expr in ALL_QUERIES for each in expanded(expr)]
        rules = [{"record": f"q:{index}", "expr": for_prometheus(expr)} for index, expr in enumerate(queries)]
        path = tmp_path / "rules.yml"
        path.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}), "utf-8")
        run = subprocess.run(
            [tool("promtool"), "check", "rules", str(path)], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert f"{len(rules)} rules found" in run.stdout


class Page(html.parser.HTMLParser):
    """Collects what a page loads and runs."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.update(name for name, _ in attrs)
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "action", "srcset", "data")]


class TestLivePage:
    def test_it_loads_nothing_from_elsewhere(self) -> None:
        page = Page()
        page.feed(live_page())
        assert [each for each in page.loads if not each.startswith("data:image/svg+xml,")] == [
            "metrics",
            "api/summary",
            "api/streams",
        ]
        # The names of XML are not addresses that anybody asks.
        bare = re.sub(r"http://www\.w3\.org/[\w/]+", "", live_page())
        assert not re.search(r"https?://|@import|url\(", bare)

    def test_the_policy_allows_its_script_and_style_by_their_hashes(self) -> None:
        policy = content_security_policy()
        for tag in ("script", "style"):
            text = live_page().split(f"<{tag}>")[1].split(f"</{tag}>")[0]
            assert f"{tag}-src 'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" in policy
        page = Page()
        page.feed(live_page())
        assert not {name for name in page.attributes if name.startswith("on") or name == "style"}

    def test_nothing_from_the_server_becomes_markup(self) -> None:
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", live_page())
