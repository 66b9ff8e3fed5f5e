"""Dashboards, the page of metrics and the live page: what is committed is current, and what it asks for exists."""

from __future__ import annotations

import contextlib
import html.parser
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from dashboards import grafana, metrics_page
from dashboards.live_page import content_security_policy, live_page
from dashboards.panels import Panel, Row, Target
from dashboards.promql import gauge, metric_names, quantile, rate
from monitors.catalogue import CATALOGUE
from monitors.exporter import Exporter
from monitors.metrics import Metrics
from stream.http import REQUESTS_PER_SECOND, HttpServer, create_app
from tests.test_exporter import BUILD, filled
from tests.test_http import SampleService

COMMITTED = [json.loads(path.read_text("utf-8")) for path in sorted(grafana.COMMITTED.glob("*.json"))]
PANELS = [panel for dashboard in COMMITTED for panel in dashboard["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
ANNOTATIONS = [(each["name"], each["expr"]) for dashboard in COMMITTED for each in dashboard["annotations"]["list"]]
VARIABLES = [each for dashboard in COMMITTED for each in dashboard["templating"]["list"]]
ALL_QUERIES = QUERIES + ANNOTATIONS


def for_prometheus(expr: str) -> str:
    """Fill in what Grafana fills in."""
    return expr.replace("$__rate_interval", "30s").replace("$job", ".+").replace("$instance", ".+")


class TestCommitted:
    def test_dashboards_are_current(self) -> None:
        assert grafana.stale(grafana.COMMITTED) == [], "run `python -m dashboards.grafana --write`"

    def test_the_page_of_metrics_is_current(self) -> None:
        assert metrics_page.COMMITTED.read_text("utf-8") == metrics_page.metrics_page()

    def test_the_checks_notice_what_is_stale(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert grafana.stale(tmp_path) == ["ebbtide-overview.json"]
        paths = grafana.write_dashboards(tmp_path)
        assert grafana.stale(tmp_path) == []
        paths[0].write_text(paths[0].read_text("utf-8").replace("rate", "irate", 1), "utf-8")
        (tmp_path / "old.json").write_text("{}", "utf-8")
        assert grafana.stale(tmp_path) == ["ebbtide-overview.json", "old.json"]
        for module, committed in ((grafana, tmp_path), (metrics_page, tmp_path / "docs" / "metrics.md")):
            monkeypatch.setattr(module, "COMMITTED", committed)
            assert module.main(["--check"]) == 1
            assert module.main(["--write"]) == 0
            (tmp_path / "old.json").unlink(missing_ok=True)
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

    @pytest.mark.parametrize(("title", "expr"), ALL_QUERIES)
    def test_a_query_follows_the_rules(self, title: str, expr: str) -> None:
        # One matcher list for each metric, and each narrows to the job and the instance.
        assert expr.count('{job=~"$job",instance=~"$instance"') == len(re.findall(r"(ebbtide|process)_\w+\{", expr)) > 0
        assert not re.search(r"(ebbtide|process)_\w+(?!\w|\{)", expr)
        for function, window in re.findall(r"(rate|irate|increase|changes)\([^\[]*\[([^\]]*)\]", expr):
            assert window == "$__rate_interval" or function == "increase"
        for counter in re.findall(r"\w+_(?:total|bucket|sum|count)\{", expr):
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

    def test_the_data_source_the_job_and_the_instance_can_be_chosen(self) -> None:
        assert [each["name"] for each in VARIABLES] == ["datasource", "job", "instance"]
        assert VARIABLES[0]["label"] == "Data source"
        for each in VARIABLES[1:]:
            assert (each["label"], each["multi"], each["allValue"], each["refresh"]) == (each["name"], True, ".+", 2)
            assert each["datasource"]["uid"] == "${datasource}"

    def test_every_metric_that_tells_of_health_is_shown(self) -> None:
        shown = {name for _, expr in ALL_QUERIES for name in metric_names(expr)}
        hidden = {name for name, metric in CATALOGUE.items() if not shown.intersection(metric.samples)}
        assert hidden == set()


class TestNames:
    @pytest.mark.parametrize(("title", "expr"), ALL_QUERIES)
    def test_a_query_asks_for_what_a_scrape_shows(self, title: str, expr: str) -> None:
        body, _ = Exporter(filled(), build_info=BUILD).exposition()
        scraped = {each.name for family in text_string_to_metric_families(body.decode()) for each in family.samples}
        assert metric_names(expr)
        assert metric_names(expr) <= scraped

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
            ("1 + inf", set()),
        ],
    )
    def test_names_are_found(self, expr: str, names: set[str]) -> None:
        assert metric_names(expr) == names


class TestLayout:
    @staticmethod
    def panel(width: int, height: int = 8) -> Panel:
        return Panel("x", "y", [Target("up", "")], unit="none", width=width, height=height)

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
            Panel(**{**parts, missing: ""})


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(
            f"{name} is not installed (Debian: apt-get install {'chromium' if name == 'chromium' else 'prometheus'})"
        )
    return found


class TestPrometheus:
    def test_every_query_is_promql(self, tmp_path: Path) -> None:
        rules = [{"record": f"q:{index}", "expr": for_prometheus(expr)} for index, (_, expr) in enumerate(ALL_QUERIES)]
        path = tmp_path / "rules.yml"
        path.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}), "utf-8")
        run = subprocess.run(
            [tool("promtool"), "check", "rules", str(path)], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert f"{len(rules)} rules found" in run.stdout

    @pytest.mark.slow
    def test_every_query_has_an_answer(self, tmp_path: Path) -> None:
        """Catches a label or a matcher that fits nothing, which no parser can see."""
        service = SampleService()
        service.metrics = filled_with_true_labels()
        service.exporter = Exporter(service.metrics, build_info=BUILD)
        server = HttpServer(create_app(service), "127.0.0.1", 0)
        server.start()
        try:
            with prometheus(tool("prometheus"), tmp_path, server.port) as ask:
                wait_for(lambda: ask("count_over_time(ebbtide_events_total[1m]) > 3"))
                assert {
                    title: ask(for_prometheus(expr)) for title, expr in QUERIES if not ask(for_prometheus(expr))
                } == {}
                assert ask("ebbtide_event_total") == []
                for each in VARIABLES[1:]:
                    label = each["name"]
                    match = each["definition"].removeprefix("label_values(").rsplit(",", 1)[0]
                    assert {row["metric"][label] for row in ask(for_prometheus(match))} != set()
        finally:
            server.stop()


def filled_with_true_labels() -> Metrics:
    metrics = Metrics()
    values = {
        "reason": "not_json",
        "alarm": "topic_shift",
        "kind": "reset",
        "direction": "out",
        "queue": "q",
        "stage": "scan",
        "age": "4-15",
    }
    for name, metric in CATALOGUE.items():
        labels = [values[label] for label in metric.labels if label in values]
        if metric.kind == "counter":
            metrics.add(name, 3, *labels)
        elif metric.kind == "histogram":
            metrics.observe(name, 1.0, *labels)
        elif name != "ebbtide_build_info":
            metrics.set(name, 1, *labels)
    return metrics


def wait_for(condition: Callable[[], object]) -> None:
    """Ask again until it holds; a minute is far more than any of these takes."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("waited for a minute")


@contextlib.contextmanager
def prometheus(binary: str, folder: Path, target: int) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """Run a Prometheus that scrapes the port `target` each second; yield a function that asks it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scrape = {"job_name": "ebbtide", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    arguments = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (
        subprocess.Popen(
            [binary, *arguments, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client,
    ):

        def ask(query: str) -> list[dict[str, Any]]:
            answer = client.get("/api/v1/query", params={"query": query}).json()
            assert answer["status"] == "success", answer
            result: list[dict[str, Any]] = answer["data"]["result"]
            return result

        def up() -> bool:
            assert process.poll() is None, "Prometheus ended"
            with contextlib.suppress(httpx.TransportError):
                return client.get("/-/ready").status_code == 200
            return False

        try:
            wait_for(up)
            yield ask
        finally:
            process.terminate()


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
