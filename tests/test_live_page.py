"""The live page in a real Chromium, against a real consumer; and its server-sent events against raw sockets."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from stream.generate import GenerateSettings, write_stream
from stream.http import create_app
from stream.http_events import MAX_WATCHERS, QUEUE, LiveEvents
from stream.http_server import HttpServer
from tests.test_http import AWKWARD_NAMES, SampleService
from tests.warm import Warm

DEADLINE = 60.0
"""Seconds after which something that is waited for counts as never coming."""


def wait_for(what: Callable[[], Any], *, why: str) -> Any:
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {DEADLINE:.0f} s for {why}")


def running(service: SampleService, every: float = 1.0) -> HttpServer:
    """Serve a service, with faster samples if wanted."""
    server = HttpServer(create_app(service, sample_every=every), "127.0.0.1", 0)
    server.start()
    return server


def events_of(server: HttpServer) -> LiveEvents:
    events = server._server.config.app.state.events  # type: ignore[union-attr]
    assert isinstance(events, LiveEvents)
    return events


@pytest.fixture
def service() -> SampleService:
    return SampleService()


@pytest.fixture
def server(service: SampleService) -> Iterator[HttpServer]:
    serving = running(service, every=0.05)
    yield serving
    serving.stop()


Message = tuple[str, dict[str, Any]]


def messages(answer: httpx.Response) -> Iterator[Message]:
    """Yield the events of a stream as a browser would see them."""
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def watch(server: HttpServer, take: Callable[[list[Message]], bool]) -> list[Message]:
    """Read events until `take` is content with them."""
    seen: list[Message] = []
    with httpx.stream("GET", server.url + "/api/events", trust_env=False, timeout=DEADLINE) as answer:
        assert answer.status_code == 200
        for message in messages(answer):
            seen.append(message)
            if take(seen):
                break
    return seen


class TestEvents:
    def test_the_history_comes_first_and_goes_on_without_a_gap(self, server: HttpServer) -> None:
        events = events_of(server)
        wait_for(lambda: len(events._samples) >= 5, why="five samples with nobody watching")
        seen = watch(server, lambda so_far: len(so_far) == 4)
        assert [name for name, _ in seen] == ["hello", "tick", "tick", "tick"]
        hello = seen[0][1]
        assert len(hello["samples"]) >= 5
        times = [sample["at"] for sample in hello["samples"]] + [told["sample"]["at"] for _, told in seen[1:]]
        assert times == sorted(set(times))
        assert seen[1][1]["summary"]["events_per_second"] == 20000.0
        assert [row["stream"] for row in seen[1][1]["streams"]] == AWKWARD_NAMES

    def test_everybody_sees_the_same_samples(self, server: HttpServer) -> None:
        seen: list[list[Message]] = [[], []]

        def one(place: int) -> None:
            seen[place] = watch(server, lambda so_far: len(so_far) == 8)

        threads = [threading.Thread(target=one, args=(place,)) for place in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ticks = [{told["sample"]["at"] for name, told in each if name == "tick"} for each in seen]
        samples = [{sample["at"] for sample in each[0][1]["samples"]} for each in seen]
        first, second = ticks[0] | samples[0], ticks[1] | samples[1]
        assert ticks[0] & second or ticks[1] & first
        assert {at for at in first if min(second) <= at <= max(second)} <= second

    def test_what_happened_since_the_last_sample_is_counted(self, server: HttpServer, service: SampleService) -> None:
        def stir(so_far: list[Message]) -> bool:
            if len(so_far) == 2:
                service.metrics.add("ebbtide_alarms_total", 3, "topic_shift")
                service.metrics.add("ebbtide_dead_letters_total", 2, "not_json")
            return any(told["sample"]["alarms"] for name, told in so_far if name == "tick")

        seen = watch(server, stir)
        samples = [told["sample"] for name, told in seen if name == "tick"]
        assert samples[-1]["alarms"] == {"topic_shift": 3}
        assert all(sample["alarms"] == {} for sample in samples[:-1])
        assert sum(sample["refused"] for sample in samples) in (0, 2)  # the summary reads one counter after the other

    def test_counters_that_a_checkpoint_restores_are_not_news(self) -> None:
        events = LiveEvents(SampleService())
        start = {"ready": False, "alarms": {}, "actions": {}, "dead_letters": {}, "signals": {}}
        restored = {**start, "ready": True, "alarms": {"topic_shift": 900}, "actions": {"keep": 10**6, "decay": 40}}
        later = {**restored, "alarms": {"topic_shift": 902}, "actions": {"keep": 10**6 + 50, "decay": 41}}
        later["origins"] = {"policy": 41, "operator": 2}
        told = [events._sample(summary) for summary in (start, start, restored, later)]
        assert [sample["alarms"] for sample in told] == [{}, {}, {}, {"topic_shift": 2}]
        assert [sample["actions"] for sample in told] == [{}, {}, {}, {"decay": 1, "by operator": 2}]

    def test_the_history_is_bounded(self) -> None:
        events = LiveEvents(SampleService(), every=1.0, keep=300.0)
        assert events._samples.maxlen == 300

    def test_one_client_too_many_is_told_to_come_later(self, server: HttpServer) -> None:
        events = events_of(server)
        clients = [ask(server) for _ in range(MAX_WATCHERS)]
        try:
            wait_for(lambda: events.watchers == MAX_WATCHERS, why="all watchers")
            refused = httpx.get(server.url + "/api/events", trust_env=False)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "5"
            assert "too many" in refused.json()["detail"]
        finally:
            for client in clients:
                client.close()
        wait_for(lambda: events.watchers == 0, why="the watchers to be forgotten")
        assert watch(server, lambda so_far: True)[0][0] == "hello"

    def test_a_client_that_never_reads_is_cut_off_and_nobody_waits_for_it(
        self, server: HttpServer, service: SampleService
    ) -> None:
        service.rows[0]["note"] = "x" * 200_000  # a message is larger than what the sockets hold
        events = events_of(server)
        idle = ask(server, receive_bytes=4096)
        wait_for(lambda: events.watchers == 1, why="the watcher")
        # A second one that reads is served all the time, and so is everybody else.
        seen = watch(server, lambda so_far: len(so_far) >= 3 * QUEUE)
        assert len(seen) == 3 * QUEUE
        assert httpx.get(server.url + "/-/healthy", trust_env=False).status_code == 200
        wait_for(lambda: events.watchers == 0, why="the idle watcher to be cut off")
        wait_for(lambda: not server._server.server_state.connections, why="its connection to be gone")
        with idle, pytest.raises(ConnectionResetError):
            drain(idle)

    @pytest.mark.parametrize("reads", [True, False])
    def test_stop_does_not_wait_for_open_streams(self, reads: bool, caplog: pytest.LogCaptureFixture) -> None:
        service = SampleService()
        service.rows[0]["note"] = "x" * 200_000
        server = running(service, every=0.05)
        client = ask(server, receive_bytes=1 << 20 if reads else 4096)
        with client:
            self.stop_with(server, client, reads)
        # uvicorn logs an error where its patience ran out and it had to cancel something.
        assert [record.message for record in caplog.records] == []

    def stop_with(self, server: HttpServer, client: socket.socket, reads: bool) -> None:
        events = events_of(server)
        wait_for(lambda: events.watchers == 1, why="the watcher")
        reader = threading.Thread(target=drain, args=(client,))
        if reads:
            reader.start()
        server.stop()
        assert not server._thread.is_alive()
        assert not server._server.server_state.connections
        if reads:
            reader.join()

    def test_head_ends_and_leaves_the_connection_in_step(self, server: HttpServer) -> None:
        connection = http.client.HTTPConnection(server.host, server.port, timeout=DEADLINE)
        connection.request("HEAD", "/api/events")
        head = connection.getresponse()
        assert (head.status, head.read()) == (200, b"")
        assert head.headers["content-type"] == "text/event-stream; charset=utf-8"
        connection.request("GET", "/-/healthy")
        assert connection.getresponse().read() == b"the loop ticked\n"
        connection.close()
        assert events_of(server).watchers == 0

    def test_the_headers_of_every_answer_are_there(self, server: HttpServer) -> None:
        with httpx.stream("GET", server.url + "/api/events", trust_env=False) as answer:
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert next(answer.iter_raw()).startswith(b"retry: 2000\n\nevent: hello\ndata: ")

    def test_a_service_that_fails_is_logged_once_and_comes_back(self, caplog: pytest.LogCaptureFixture) -> None:
        class Flaky(SampleService):
            asked = 0

            def summary(self) -> dict[str, Any]:
                self.asked += 1
                if self.asked < 4:
                    raise RuntimeError("not now")
                return super().summary()

        server = running(Flaky(), every=0.02)
        try:
            assert watch(server, lambda so_far: so_far[-1][0] == "tick")[-1][1]["summary"]["ready"] is True
        finally:
            server.stop()
        assert [record.message for record in caplog.records] == ["live_events_failed"]


def ask(server: HttpServer, receive_bytes: int | None = None) -> socket.socket:
    """Ask for the events over a raw socket, and read nothing."""
    client = socket.socket()
    if receive_bytes is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.settimeout(DEADLINE)
    client.connect((server.host, server.port))
    client.sendall(b"GET /api/events HTTP/1.1\r\nHost: here\r\n\r\n")
    return client


def drain(client: socket.socket) -> None:
    while client.recv(1 << 16):
        pass


# In the browser


def until(page: Any, expression: str) -> None:
    """Wait for a truth in the page; Playwright's own wait evaluates text in it, which the page's policy forbids."""
    wait_for(lambda: page.evaluate(expression), why=expression)


class Watched:
    """A page, and what went wrong in it."""

    def __init__(self, browser: Any, url: str, **options: Any):
        self.url = url
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.goto(url)

    def value(self, title: str) -> str:
        tile = self.page.locator(".tile", has=self.page.get_by_role("heading", name=title, exact=True))
        return str(tile.locator("b").inner_text())

    def lines(self) -> int:
        return int(self.page.locator("path.line").count())


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Watched]]:
    pages: list[Watched] = []

    def open_page(url: str, **options: Any) -> Watched:
        pages.append(Watched(browser, url, **options))
        return pages[-1]

    yield open_page
    for each in pages:
        each.context.close()
        assert each.wrong == []
        assert each.hosts == {each.url.split("/")[2]}


@pytest.fixture(scope="module")
def consumer(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Callable[[int], None]]]:
    """A real consumer that follows a file, and what gives it the next lines of a generated stream."""
    folder = tmp_path_factory.mktemp("live")
    whole, followed = folder / "all.jsonl", folder / "talk.jsonl"
    write_stream(GenerateSettings(scenario="recurring", streams=6, events=400, seed=7), whole, None)
    lines = iter(whole.read_text("utf-8").splitlines(keepends=True))
    followed.touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *("run", "--source", f"file:{followed}", "--follow", "--backbone"),
        *("hashing", "--policy", "decay_on_shift", "--state", f"sqlite:///{folder}/state.db"),
        *("--sink", f"jsonl:{folder}/out.jsonl", "--metrics-port", str(port)),
    ]
    log = (folder / "log").open("wb")
    process = warm.start(command, log)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            return httpx.get(url + "/-/ready", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def feed(count: int) -> None:
        with followed.open("a") as file:
            file.writelines(next(lines) for _ in range(count))
            file.write("not json\n")

    try:
        wait_for(ready, why="the consumer")
        yield url, feed
    finally:
        process.terminate()
        assert process.wait(DEADLINE) == 0, (folder / "log").read_text()
        log.close()


class TestAgainstAConsumer:
    def test_charts_marks_and_updates(
        self, opened: Callable[..., Watched], consumer: tuple[str, Callable[[int], None]]
    ) -> None:
        url, feed = consumer
        watched = opened(url)
        page = watched.page
        page.get_by_text("Live", exact=True).wait_for()
        feed(600)
        until(page, "document.querySelector('.tile b').textContent === '600'")
        until(page, "document.querySelectorAll('path.line').length === 4")
        until(page, "document.querySelectorAll('line.alarm').length && document.querySelectorAll('line.action').length")
        assert re.search(r"topic shift × \d+", page.locator(".note").nth(3).inner_text())
        assert re.search(r"decay × \d+", page.locator(".note").nth(3).inner_text())
        assert page.locator("#rows tr").count() == 6
        feed(300)  # the page is not asked for again: what changes was sent
        until(page, "document.querySelector('.tile b').textContent === '900'")
        assert watched.value("Dead letters") == "2"
        assert page.evaluate("performance.getEntriesByType('navigation').length") == 1
        truth = httpx.get(url + "/api/summary", trust_env=False).json()
        assert watched.value("Alarms") == str(sum(truth["alarms"].values()))
        assert "the memory remembers" in page.locator("#verdict").inner_text()

    def test_a_page_opened_now_shows_what_was_before(
        self, opened: Callable[..., Watched], consumer: tuple[str, Callable[[int], None]]
    ) -> None:
        url, feed = consumer
        feed(10)
        first = opened(url)
        until(first.page, "samples.some((sample) => sample.rate > 0) && samples.length > 3")
        second = opened(url)
        until(second.page, "samples.length > 3")
        before = first.page.evaluate("samples[2].at")
        assert before in second.page.evaluate("samples.map((sample) => sample.at)")
        assert first.lines() == second.lines() > 0

    def test_the_keyboard_reaches_everything(
        self, opened: Callable[..., Watched], consumer: tuple[str, Callable[[int], None]]
    ) -> None:
        page = opened(consumer[0]).page
        until(page, "samples.length > 3 && document.querySelectorAll('#rows a').length > 1")
        names = []
        for _ in range(40):
            page.keyboard.press("Tab")
            found = page.evaluate(
                "(() => { const e = document.activeElement;"
                " return e === document.body ? '' : e.getAttribute('aria-label') || e.textContent.slice(0, 40); })()"
            )
            if not found or found in names:
                break
            names.append(found)
            outlined = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outlined != "none", found
        assert names[:7] == [
            *("Metrics", "Summary as JSON", "Streams as JSON"),
            *("Events per second over the last minutes", "State norm over the last minutes"),
            *("Retrieval error over the last minutes", "Topic shift score over the last minutes"),
        ]
        assert names[-1] == "The charts as a table"
        chart = page.get_by_role("slider", name="Retrieval error over the last minutes")
        chart.focus()
        page.keyboard.press("ArrowLeft")
        at = page.evaluate("cursor")
        told = chart.get_attribute("aria-valuetext")
        assert re.match(r"\d s ago, (0?\.\d+|\d+(\.\d+)?|–)", told), told
        page.keyboard.press("Home")
        assert page.evaluate("cursor === samples[0].at") or page.evaluate("cursor < samples[1].at")
        assert page.evaluate("cursor") <= at
        assert page.locator("line.cross").count() >= 8  # all charts are read at the same moment
        page.keyboard.press("Escape")
        assert page.evaluate("cursor") is None
        assert chart.get_attribute("aria-valuetext").startswith("now, ")

    def test_the_table_says_what_the_charts_say(
        self, opened: Callable[..., Watched], consumer: tuple[str, Callable[[int], None]]
    ) -> None:
        page = opened(consumer[0]).page
        until(page, "samples.length > 3")
        page.locator("#past summary").focus()
        page.keyboard.press("Enter")
        until(page, "document.querySelectorAll('#past-rows td').length >= 7")
        told = page.locator("#past-columns").inner_text().split("\t")
        assert [each.strip() for each in told][:3] == ["When", "Events per second", "State norm"]

    def test_a_phone_needs_no_sideways_scrolling(
        self, opened: Callable[..., Watched], consumer: tuple[str, Callable[[int], None]]
    ) -> None:
        for width in (320, 390):
            page = opened(consumer[0], viewport={"width": width, "height": 800}, has_touch=True).page
            until(page, "samples.length > 3 && document.querySelectorAll('#rows a').length > 1")
            assert page.evaluate("document.documentElement.scrollWidth") == width

    def test_dark_is_dark_and_light_is_light_and_both_can_be_read(
        self, opened: Callable[..., Watched], consumer: tuple[str, Callable[[int], None]]
    ) -> None:
        for scheme, is_dark in (("dark", True), ("light", False)):
            page = opened(consumer[0], color_scheme=scheme).page
            page.get_by_text("Live", exact=True).wait_for()
            behind = luminance(page, "getComputedStyle(document.body).backgroundColor")
            assert (behind < 0.05) is is_dark
            card = luminance(page, "getComputedStyle(document.querySelector('.card')).backgroundColor")
            for element in ("h2", ".tile b", ".tile small", ".pill", "nav a", ".note", ".axis"):
                text = luminance(page, f"getComputedStyle(document.querySelector({element!r})).color")
                high, low = max(text, card), min(text, card)
                assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, element)  # WCAG 2.2, 1.4.3

    def test_nothing_moves_for_who_wants_it_still(
        self, opened: Callable[..., Watched], consumer: tuple[str, Callable[[int], None]]
    ) -> None:
        for wish, name in (("reduce", "none"), ("no-preference", "breathe")):
            page = opened(consumer[0], reduced_motion=wish).page
            page.get_by_text("Live", exact=True).wait_for()
            style = "getComputedStyle(document.querySelector('.pill'), '::before').animationName"
            assert page.evaluate(style) == name


def luminance(page: Any, expression: str) -> float:
    """Return the relative luminance of a colour (WCAG 2.2)."""
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", page.evaluate(expression))[:3])
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


class TestAgainstASample:
    def test_names_are_data_and_unknown_keys_do_no_harm(self, opened: Callable[..., Watched]) -> None:
        class Newer(SampleService):
            def summary(self) -> dict[str, Any]:
                return {
                    **super().summary(),
                    "origins": {"policy": 12, "operator": 1},
                    "shadows": {
                        "archive": {"write_error": 0.71, "events": 900, "more": [1]},
                        "<img src=x onerror=alert(1)>": {"write_error": None, "events": 3},
                        "none": {"write_error": 0.64, "events": 900},
                    },
                    "unheard_of": {"deep": [{}]},
                }

        service = Newer()
        service.metrics.add("ebbtide_events_total", 1234567)
        service.metrics.add("ebbtide_dead_letters_total", 4, "not_json")
        service.metrics.add("ebbtide_actions_total", 13, *action_labels(service, "decay"))
        server = running(service)
        try:
            watched = opened(server.url)
            page = watched.page
            page.get_by_text("Live", exact=True).wait_for()
            until(page, "document.querySelectorAll('#rows a').length > 1")
            assert watched.value("Events") == "1,234,567"
            assert page.locator("#rows a").all_text_contents() == AWKWARD_NAMES
            assert page.locator("#rows a").nth(1).get_attribute("href") == "api/streams/a%2Fb%2Fc"
            assert page.locator("#shadow-rows td:first-child").all_text_contents() == [
                *("none", "archive", "<img src=x onerror=alert(1)>")
            ]
            assert page.locator("#shadow-rows tr").first.inner_text().split() == ["none", "0.6400", "900"]
            assert "Decided by: policy 12, operator 1" in page.locator("#lists").inner_text()
            assert page.locator("img").count() == 0
        finally:
            server.stop()

    def test_without_shadows_there_is_no_table_of_them(self, opened: Callable[..., Watched]) -> None:
        server = running(SampleService())
        try:
            page = opened(server.url).page
            page.get_by_text("Live", exact=True).wait_for()
            assert not page.locator("#shadows").is_visible()
        finally:
            server.stop()

    def test_a_lost_server_is_said_and_found_again(self, browser: Any) -> None:
        service = SampleService()
        service.metrics.add("ebbtide_events_total", 5)
        first = running(service, every=0.05)
        watched = Watched(browser, first.url)
        try:
            watched.page.get_by_text("Live", exact=True).wait_for()
            first.stop()
            watched.page.get_by_text("Reconnecting; the numbers are of").wait_for()
            assert watched.value("Events") == "5"  # what is known stays
            service.metrics.add("ebbtide_events_total", 2)
            second = HttpServer(create_app(service), "127.0.0.1", first.port)
            second.start()
            try:
                watched.page.get_by_text("Live", exact=True).wait_for()
                until(watched.page, "document.querySelector('.tile b').textContent === '7'")
            finally:
                second.stop()
        finally:
            first.stop()
            watched.context.close()

    def test_a_consumer_that_falls_behind_is_said_to(self, opened: Callable[..., Watched]) -> None:
        service = SampleService()
        server = running(service)
        try:
            page = opened(server.url).page
            page.get_by_text("Live", exact=True).wait_for()
            # The page's clock is that of the samples: here it goes on by seconds between two summaries.
            said = page.evaluate(
                "[[0, 2048], [5, 2048], [6, 3072], [1, 0]].map(([later, backlog]) => {"
                " samples.push({...samples[samples.length - 1], at: now() + later});"
                " verdict({...latest, backlog_bytes: backlog});"
                " return document.getElementById('verdict').textContent.split(';')[0]; })"
            )
            assert said == ["Keeping up", "Keeping up", "3 KiB are waiting to be read", "Keeping up"]
        finally:
            server.stop()

    def test_the_focus_stays_while_numbers_change(self, opened: Callable[..., Watched]) -> None:
        service = SampleService()
        server = running(service, every=0.05)
        try:
            page = opened(server.url).page
            until(page, "document.querySelectorAll('#rows a').length > 1")
            page.locator("#rows a").nth(2).focus()
            service.rows[2]["seq"] = 77
            until(page, "document.querySelectorAll('#rows tr')[2].children[1].textContent === '77'")
            assert page.evaluate("document.activeElement === document.querySelectorAll('#rows a')[2]")
        finally:
            server.stop()


def action_labels(service: SampleService, kind: str) -> list[str]:
    labels = service.metrics.catalogue["ebbtide_actions_total"].labels
    return [kind if label == "kind" else "policy" for label in labels]
