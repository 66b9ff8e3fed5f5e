"""The HTTP server: real sockets on the loopback, a service over real metrics."""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import logging
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from memory.errors import ConfigurationError
from monitors.exporter import Exporter
from monitors.metrics import Metrics
from stream.http import Service, create_app
from stream.http_pace import Pace
from stream.http_server import MAX_CONNECTIONS, HttpServer, Seldom
from stream.operators import Ask
from stream.store import Acted

AWKWARD_NAMES = [
    "plain",
    "a/b/c",
    "/leading",
    "50% off?",
    "#1",
    "schlüssel 🌊",
    "</script><script>alert(1)</script>",
    " ",
]


class SampleService:
    """Answers from a `Metrics` that the test fills, and from rows that it lists."""

    def __init__(self, rows: list[dict[str, Any]] | None = None, clock: Callable[[], float] = time.monotonic):
        self.metrics = Metrics()
        self.exporter = Exporter(self.metrics, build_info={"version": "0.0-test"}, clock=clock)
        self.rows = rows if rows is not None else [row(name, seq) for seq, name in enumerate(AWKWARD_NAMES)]
        self.is_healthy = self.is_ready = True
        self.signals: dict[str, float | None] = {"state_norm": 2.5, "retrieval_error": 0.31, "topic_shift_score": None}

    def exposition(self, accept: str) -> tuple[bytes, str]:
        return self.exporter.exposition(accept)

    def healthy(self) -> tuple[bool, str]:
        return self.is_healthy, "the loop ticked" if self.is_healthy else "the loop has not ticked for 60 s"

    def ready(self) -> tuple[bool, str]:
        return self.is_ready, "consuming" if self.is_ready else "restoring state"

    def summary(self) -> dict[str, Any]:
        get = self.metrics.get
        return {
            "events": get("ebbtide_events_total"),
            "tokens": get("ebbtide_tokens_total"),
            "events_per_second": 20000.0,
            "dead_letters": self.metrics.by_label("ebbtide_dead_letters_total"),
            "alarms": self.metrics.by_label("ebbtide_alarms_total"),
            "actions": self.metrics.by_label("ebbtide_actions_total", "kind"),
            "streams_resident": len(self.rows),
            "streams_stored": len(self.rows),
            "backlog_bytes": get("ebbtide_source_backlog_bytes"),
            "last_checkpoint": get("ebbtide_last_checkpoint_timestamp_seconds"),
            "signals": self.signals,
            "ready": self.is_ready,
        }

    def streams(self, limit: int) -> list[dict[str, Any]]:
        return self.rows[:limit]

    def act(self, stream: str, ask: Ask) -> Future[Acted] | None:
        return None

    def stream(self, name: str) -> dict[str, Any] | None:
        return next((each for each in self.rows if each["stream"] == name), None)


def row(name: str, seq: int) -> dict[str, Any]:
    return {
        "stream": name,
        "seq": seq,
        "state_norm": 2.5,
        "stable_rank": 3.1,
        "write_error": 0.8,
        "retrieval_error": float("nan"),
        "topic_shift_score": None,
        "last_action": "keep",
        "last_alarm_seq": None,
    }


@pytest.fixture(scope="module")
def shared() -> Iterator[httpx.Client]:
    """A client of one server, for tests that only ask."""
    server = HttpServer(create_app(SampleService()), "127.0.0.1", 0)
    server.start()
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        yield client
    server.stop()


@pytest.fixture
def service() -> SampleService:
    return SampleService()


@pytest.fixture
def server(service: SampleService) -> Iterator[HttpServer]:
    running = HttpServer(create_app(service), "127.0.0.1", 0)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def client(server: HttpServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        yield client


def test_the_sample_is_a_service(service: SampleService) -> None:
    checked: Service = service  # mypy holds the sample to the protocol
    assert checked.ready() == (True, "consuming")


class TestMetrics:
    def test_plain_text(self, client: httpx.Client, service: SampleService) -> None:
        service.metrics.add("ebbtide_events_total", 3)
        answer = client.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        samples = {sample.name: sample.value for family in parse_plain(answer.text) for sample in family.samples}
        assert samples["ebbtide_events_total"] == 3

    def test_open_metrics(self, client: httpx.Client, service: SampleService) -> None:
        service.metrics.add("ebbtide_events_total", 3)
        answer = client.get("/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0"})
        assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
        families = {family.name: family for family in parse_open_metrics(answer.text)}  # type: ignore[no-untyped-call]
        assert families["ebbtide_events"].samples[0].value == 3

    def test_head_has_the_headers_of_get_and_no_body(self, server: HttpServer, client: httpx.Client) -> None:
        got = client.get("/metrics")
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("HEAD", "/metrics")
        head = connection.getresponse()
        assert head.status == 200
        assert head.read() == b""
        assert int(head.headers["content-length"]) == len(got.content)
        # The connection is still in step: a body sent by mistake would be read as the next answer.
        connection.request("GET", "/-/healthy")
        assert connection.getresponse().read() == b"the loop ticked\n"
        connection.close()


class TestHealth:
    @pytest.mark.parametrize(("path", "flag"), [("/-/healthy", "is_healthy"), ("/-/ready", "is_ready")])
    def test_200_or_503(self, client: httpx.Client, service: SampleService, path: str, flag: str) -> None:
        assert client.get(path).status_code == 200
        setattr(service, flag, False)
        answer = client.get(path)
        assert answer.status_code == 503
        assert answer.text in ("the loop has not ticked for 60 s\n", "restoring state\n")
        assert client.head(path).status_code == 503


class TestApi:
    def test_summary(self, client: httpx.Client, service: SampleService) -> None:
        service.metrics.add("ebbtide_dead_letters_total", 2, "not_json")
        summary = client.get("/api/summary").json()
        assert summary["dead_letters"] == {"not_json": 2}
        assert summary["signals"] == {"state_norm": 2.5, "retrieval_error": 0.31, "topic_shift_score": None}
        assert summary["backlog_bytes"] is None

    def test_streams_are_limited(self, shared: httpx.Client) -> None:
        assert [each["stream"] for each in shared.get("/api/streams?limit=2").json()] == AWKWARD_NAMES[:2]
        assert len(shared.get("/api/streams").json()) == len(AWKWARD_NAMES)

    @pytest.mark.parametrize("limit", ["0", "-1", "1001", "many", "1e3"])
    def test_a_limit_out_of_range_is_refused(self, shared: httpx.Client, limit: str) -> None:
        assert shared.get("/api/streams", params={"limit": limit}).status_code == 422

    def test_numbers_that_are_not_finite_are_null(self, shared: httpx.Client) -> None:
        assert shared.get("/api/streams?limit=1").json()[0]["retrieval_error"] is None

    @pytest.mark.parametrize("name", AWKWARD_NAMES)
    def test_any_name_can_be_asked_for(self, shared: httpx.Client, name: str) -> None:
        escaped = "".join(f"%{byte:02X}" for byte in name.encode())
        assert shared.get(f"/api/streams/{escaped}").json()["stream"] == name

    def test_a_name_that_utf8_cannot_encode_is_still_sent(self) -> None:
        name = json.loads('"\\ud800"')
        client = TestClient(create_app(SampleService([row(name, 0)])))
        assert client.get("/api/streams").json()[0]["stream"] == name

    @pytest.mark.parametrize(
        "path", ["/api/streams/nobody", "/api/streams/", "/nothing", "/metrics/", "/docs", "/redoc"]
    )
    def test_404_is_json(self, shared: httpx.Client, path: str) -> None:
        answer = shared.get(path)
        assert answer.status_code == 404
        assert isinstance(answer.json()["detail"], str)

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
    @pytest.mark.parametrize(
        "path", ["/metrics", "/-/healthy", "/-/ready", "/api/summary", "/api/streams/plain", "/api/events", "/"]
    )
    def test_other_methods_are_405(self, shared: httpx.Client, method: str, path: str) -> None:
        answer = shared.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET, HEAD"

    def test_the_schema_names_every_route(self, shared: httpx.Client) -> None:
        assert set(shared.get("/openapi.json").json()["paths"]) == {
            "/metrics",
            "/-/healthy",
            "/-/ready",
            "/api/summary",
            "/api/streams",
            "/api/streams/{name}/actions",
            "/api/streams/{name}",
            "/api/events",
        }

    def test_a_failing_service_is_a_500_without_its_secrets(self, caplog: pytest.LogCaptureFixture) -> None:
        class Broken(SampleService):
            def summary(self) -> dict[str, Any]:
                raise RuntimeError("postgresql://user:secret@host")

        server = HttpServer(create_app(Broken()), "127.0.0.1", 0)
        server.start()
        try:
            answer = httpx.get(server.url + "/api/summary", trust_env=False)
            assert answer.status_code == 500
            assert "secret" not in answer.text
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert httpx.get(server.url + "/-/healthy", trust_env=False).status_code == 200
        finally:
            server.stop()
        assert "RuntimeError" in caplog.text


class TestHeaders:
    @pytest.mark.parametrize("path", ["/", "/metrics", "/-/ready", "/api/summary", "/nothing"])
    def test_every_answer_carries_them(self, shared: httpx.Client, path: str) -> None:
        headers = shared.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "server" not in headers

    def test_the_page(self, shared: httpx.Client) -> None:
        answer = shared.get("/")
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert re.search(r"<title>Ebbtide</title>", answer.text)


class TestServer:
    def test_a_port_in_use_says_what_to_do(self, server: HttpServer, service: SampleService) -> None:
        with pytest.raises(ConfigurationError, match=r"in use.*another --metrics-port, or 0 to turn") as caught:
            HttpServer(create_app(service), "127.0.0.1", server.port)
        assert str(server.port) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_port_taken_but_not_yet_served_is_in_use(self, service: SampleService) -> None:
        first = HttpServer(create_app(service), "127.0.0.1", 0)
        try:
            with pytest.raises(ConfigurationError, match="in use"):
                HttpServer(create_app(service), "127.0.0.1", first.port)
        finally:
            first.stop()

    @pytest.mark.parametrize(
        ("host", "port"), [("127.0.0.1", 65536), ("127.0.0.1", -1), ("192.0.2.1", 9464), ("no such", 9464)]
    )
    def test_an_impossible_address_is_a_configuration_error(self, service: SampleService, host: str, port: int) -> None:
        with pytest.raises(ConfigurationError, match="--metrics-port"):
            HttpServer(create_app(service), host, port)

    def test_stop_closes_the_port_and_ends_the_thread(self, service: SampleService) -> None:
        before = set(threading.enumerate())
        server = HttpServer(create_app(service), "127.0.0.1", 0)
        server.start()
        with httpx.Client(base_url=server.url, trust_env=False) as idle:
            idle.get("/api/summary")  # leaves a connection open, as a scraper does
            server.stop()
        server.stop()
        left = [thread for thread in threading.enumerate() if thread not in before and "ebbtide" in thread.name]
        assert left == []
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.port), timeout=5)
        again = HttpServer(create_app(service), "127.0.0.1", server.port)  # at once, although connections were open
        again.stop()

    def test_stop_before_start_frees_the_port(self, service: SampleService) -> None:
        server = HttpServer(create_app(service), "127.0.0.1", 0)
        server.stop()
        HttpServer(create_app(service), "127.0.0.1", server.port).stop()

    def test_nothing_is_left_unclosed(self, service: SampleService) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            server = HttpServer(create_app(service), "127.0.0.1", 0)
            server.start()
            httpx.get(server.url + "/metrics", trust_env=False)
            server.stop()
            del server
            gc.collect()
        assert [str(each.message) for each in caught if issubclass(each.category, ResourceWarning)] == []

    def test_a_slow_answer_does_not_hold_up_health_or_stop(self) -> None:
        entered, release = threading.Event(), threading.Event()

        class Slow(SampleService):
            def summary(self) -> dict[str, Any]:
                entered.set()
                release.wait(60)
                return super().summary()

        server = HttpServer(create_app(Slow()), "127.0.0.1", 0)
        server.start()
        asking = threading.Thread(target=lambda: _swallow(server.url + "/api/summary"))
        asking.start()
        try:
            assert entered.wait(30)
            assert httpx.get(server.url + "/-/healthy", trust_env=False).status_code == 200
        finally:
            release.set()
            server.stop()
            asking.join()

    def test_requests_are_not_logged_and_garbage_is(self, server: HttpServer, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        httpx.get(server.url + "/metrics", trust_env=False)
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(b"\x16\x03\x01 not http\r\n\r\n")
            assert b"400" in raw.recv(1024)
        records = [record for record in caplog.records if record.name.startswith("uvicorn")]
        assert {record.levelno for record in records} == {logging.WARNING}

    def test_many_scrapers_are_all_answered_from_one_exposition(self) -> None:
        statuses: list[int] = []
        service = SampleService(clock=lambda: 0.0)
        server = HttpServer(create_app(service), "127.0.0.1", 0)
        server.start()

        def scrape() -> None:
            with httpx.Client(base_url=server.url, trust_env=False) as client:
                statuses.extend(client.get("/metrics").status_code for _ in range(2))

        scrapers = [threading.Thread(target=scrape) for _ in range(16)]
        for scraper in scrapers:
            scraper.start()
        for scraper in scrapers:
            scraper.join()
        server.stop()
        assert statuses == [200] * 32
        assert service.exporter.generations == 1

    def test_answers_are_sent_at_once(self, server: HttpServer) -> None:
        # What asyncio looks at before it turns Nagle's algorithm off on a connection.
        assert server._socket.proto == socket.IPPROTO_TCP

    def test_too_many_connections_are_refused_and_then_served(self, server: HttpServer) -> None:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(MAX_CONNECTIONS)]
        try:
            assert httpx.get(server.url + "/-/healthy", trust_env=False).status_code == 503
        finally:
            for connection in idle:
                connection.close()
        while httpx.get(server.url + "/-/healthy", trust_env=False).status_code == 503:
            pass  # the server has not yet seen them close


def test_a_flood_of_one_message_is_logged_once_a_minute() -> None:
    seldom = Seldom()

    def passes(message: str, at: float, failure: bool = False) -> bool:
        exc_info = (ValueError, ValueError("x"), None) if failure else None
        record = logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, message, (), exc_info)
        record.created = at
        return seldom.filter(record)

    assert [passes("refused", at) for at in (0, 1, 59, 60, 61, 119.5, 120)] == [
        True,
        False,
        False,
        True,
        False,
        False,
        True,
    ]
    assert passes("another", 61)
    assert passes("failed", 61, failure=True)
    assert passes("failed", 61, failure=True)  # two failures may be of two kinds


def test_a_storm_is_spaced_out_and_a_quiet_client_is_not() -> None:
    pace = Pace(rate=10, burst=5)
    assert [pace.delay(100.0) for _ in range(7)] == pytest.approx([0, 0, 0, 0, 0, 0.1, 0.2])
    assert pace.delay(100.3) == 0
    assert all(pace.delay(200.0 + second) == 0 for second in range(100))


def _swallow(url: str) -> None:
    with contextlib.suppress(httpx.HTTPError):  # the server is stopped meanwhile
        httpx.get(url, trust_env=False, timeout=60)
