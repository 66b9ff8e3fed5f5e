"""What the HTTP server bears: requests that are large, slow, many, forged or from other sites."""

from __future__ import annotations

import http.client
import json
import logging
import os
import resource
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

import stream.http_limits
import stream.http_server
from memory.errors import ConfigurationError
from stream.config import RunSettings
from stream.http import create_app
from stream.http_actions import MAX_BODY, read_token
from stream.http_limits import MAX_HEAD
from stream.http_server import MAX_CONNECTIONS, HttpServer
from stream.operators import Ask
from stream.store import Acted
from tests.test_http import SampleService
from tests.warm import Warm

TOKEN = "correct-horse-battery-staple"
ACT = "/api/streams/plain/actions"
GOOD = json.dumps({"kind": "decay", "factor": 0.5})


class Obliging(SampleService):
    """Takes every action, and keeps what was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, Ask]] = []

    def act(self, stream: str, ask: Ask) -> Future[Acted] | None:
        self.asked.append((stream, ask))
        done: Future[Acted] = Future()
        done.set_result(Acted(None, stream, 3, ask.model_dump_json(), "done", 0.0, b""))
        return done


@pytest.fixture
def service() -> Obliging:
    return Obliging()


@pytest.fixture
def server(service: Obliging, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpServer]:
    monkeypatch.setattr(stream.http_limits, "PATIENCE", 1.0)
    running = HttpServer(create_app(service, TOKEN), "127.0.0.1", 0)
    running.start()
    yield running
    running.stop()


def ask(
    server: HttpServer, method: str, path: str, body: str | bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def act(server: HttpServer, body: str | bytes = GOOD, token: str | None = TOKEN, **headers: str) -> int:
    given = {"Content_Type": "application/json"} | headers
    if token is not None:
        given["Authorization"] = f"Bearer {token}"
    return ask(server, "POST", ACT, body, **given)[0]


def ends(raw: socket.socket) -> bytes:
    """Return what comes until the other side ends the connection."""
    raw.settimeout(60)
    came = b""
    try:
        while part := raw.recv(1 << 16):
            came += part
    except ConnectionResetError:
        pass
    return came


class TestSizes:
    def test_a_body_may_be_as_large_as_an_action_can_be_and_no_larger(self, server: HttpServer) -> None:
        longest = json.dumps({"kind": "decay", "factor": 0.123456789012345, "reason": "\U0001f600" * 500})
        assert len(longest) < MAX_BODY
        assert act(server, longest) == 200
        assert act(server, longest + " " * (MAX_BODY - len(longest))) == 200
        assert act(server, longest + " " * (MAX_BODY + 1 - len(longest))) == 413

    @pytest.mark.parametrize("length", [b"Content-Length: 1000000000000\r\n", b"Transfer-Encoding: chunked\r\n"])
    def test_a_body_without_end_is_not_kept_and_is_cut_off(self, server: HttpServer, length: bytes) -> None:
        head = f"POST {ACT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer {TOKEN}\r\n"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
            raw.sendall(head.encode() + length + b"\r\n")
            chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n" if b"chunked" in length else b" " * 0x10000
            until = time.monotonic() + 60
            with pytest.raises((ConnectionError, TimeoutError)):  # noqa: PT012 - it is not said at which send
                while time.monotonic() < until:
                    raw.sendall(chunk)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "it was kept, in KiB"
        assert ask(server, "GET", "/-/healthy")[0] == 200

    @pytest.mark.parametrize("head", [b"GET /" + b"a" * 2 * MAX_HEAD, b"GET / HTTP/1.1\r\nX: " + b"a" * 2 * MAX_HEAD])
    def test_a_head_that_is_too_long_is_400(self, server: HttpServer, head: bytes) -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
            raw.sendall(head)
            assert ends(raw).startswith(b"HTTP/1.1 400 ")

    def test_a_name_of_the_greatest_length_fits_into_a_head(self, server: HttpServer) -> None:
        assert ask(server, "GET", "/api/streams/" + "%F0%9F%98%80" * 512)[0] == 404


class TestSlowClients:
    @pytest.mark.parametrize(
        "begun",
        [
            b"",
            b"GET / HTTP/1.1\r\nHost: x\r\nX-",
            f"POST {ACT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Length: 100\r\n\r\n{".encode(),
        ],
        ids=["says nothing", "half a head", "half a body"],
    )
    def test_one_that_does_not_finish_its_request_is_cut_off(self, server: HttpServer, begun: bytes) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(begun)
            assert ends(raw) == b""

    def test_what_trickles_does_not_put_the_deadline_off(self, server: HttpServer) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n")
            raw.settimeout(0.05)
            until = time.monotonic() + 60
            while time.monotonic() < until:
                try:
                    raw.sendall(b"X-Y: z\r\n")
                    if raw.recv(1) == b"":
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
            else:
                pytest.fail("it was waited for")

    def test_slow_ones_keep_nobody_out_for_long(self, server: HttpServer) -> None:
        slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(MAX_CONNECTIONS)]
        try:
            for raw in slow:
                raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-")
            until = time.monotonic() + 60
            while ask(server, "GET", "/-/healthy")[0] != 200:
                assert time.monotonic() < until
            assert all(ends(raw) == b"" for raw in slow[:5])
        finally:
            for raw in slow:
                raw.close()

    def test_a_storm_of_connections_is_taken_at_a_pace(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stream.http_server, "CONNECTIONS_PER_SECOND", 1e-3)
        monkeypatch.setattr(stream.http_server, "MAX_CONNECTIONS", 20)
        server = HttpServer(create_app(SampleService()), "127.0.0.1", 0)
        server.start()
        try:
            for _ in range(21):
                with socket.create_connection(("127.0.0.1", server.port)) as raw:
                    raw.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    assert raw.recv(12) == b"HTTP/1.1 200"
            with socket.create_connection(("127.0.0.1", server.port), timeout=0.5) as late:  # the kernel took it
                late.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
                with pytest.raises(TimeoutError):
                    late.recv(1)
        finally:
            server.stop()
        assert not server._thread.is_alive()

    def test_one_that_does_not_read_its_answer_is_cut_off(self, server: HttpServer, service: Obliging) -> None:
        service.rows = [{"stream": "x" * 1000}] * 1000
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(("127.0.0.1", server.port))
            raw.sendall(b"GET /api/streams?limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
            connections = server._server.server_state.connections
            until = time.monotonic() + 60
            while not connections:  # it has come
                assert time.monotonic() < until
            while connections:  # it does not read
                assert time.monotonic() < until
                time.sleep(0.05)
        assert ask(server, "GET", "/-/healthy")[0] == 200

    def test_a_slow_answer_is_waited_for(self, server: HttpServer, service: Obliging) -> None:
        """The deadline is for clients: an answer of ours may take longer."""
        entered, release = threading.Event(), threading.Event()
        plain = service.summary

        def slow() -> dict[str, object]:
            entered.set()
            assert release.wait(60)
            return plain()

        service.summary = slow  # type: ignore[method-assign]
        found: list[int] = []
        asking = threading.Thread(target=lambda: found.append(ask(server, "GET", "/api/summary")[0]))
        asking.start()
        assert entered.wait(60)
        time.sleep(1.5)  # longer than the deadline
        release.set()
        asking.join()
        assert found == [200]


class TestToken:
    @pytest.mark.parametrize(
        "token",
        [
            None,
            "",
            "x",
            TOKEN[:-1],
            TOKEN + "x",
            TOKEN[:-1] + "X",
            TOKEN.upper(),
            "\u00fc" * 8,
            f"{TOKEN} {TOKEN}",
            "\x7f",
        ],
    )
    def test_another_one_is_401_whatever_its_length(
        self, server: HttpServer, service: Obliging, token: str | None
    ) -> None:
        given = None if token is None else token.encode().decode("latin-1")
        assert act(server, token=given) == 401
        assert service.asked == []

    @pytest.mark.parametrize("scheme", ["Basic", "", "Bearer Bearer"])
    def test_another_scheme_is_401(self, server: HttpServer, scheme: str) -> None:
        assert act(server, token=None, Authorization=f"{scheme} {TOKEN}") == 401

    def test_it_is_never_logged_or_told(self, server: HttpServer, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        told = b""
        for given in (GOOD, "{}", "["):
            told += ask(server, "POST", ACT, given, Authorization=f"Bearer {TOKEN}", Content_Type="application/json")[1]
        told += ask(server, "POST", ACT, GOOD, Authorization=f"Bearer {TOKEN}x", Content_Type="application/json")[1]
        told += ask(server, "GET", "/metrics")[1] + ask(server, "GET", "/openapi.json")[1]
        assert TOKEN not in caplog.text
        assert TOKEN.encode() not in told

    def test_it_is_compared_in_constant_time(self) -> None:
        """Timing cannot be tested; what compares can be looked at."""
        text = Path(stream.http_limits.__file__).with_name("http_actions.py").read_text()
        assert "hmac.compare_digest(" in text
        assert "== secret" not in text
        assert "secret ==" not in text

    def test_a_file_with_a_word_that_is_too_short_or_two_is_refused_without_showing_it(self, tmp_path: Path) -> None:
        path = tmp_path / "token"
        for wrong in ("short", "two words-of-good-length", "über-lang-und-nicht-ascii"):
            path.write_text(wrong, "utf-8")
            with pytest.raises(ConfigurationError) as told:
                read_token(path)
            assert wrong not in str(told.value)


class TestOtherSites:
    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": "https://127.0.0.1"},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site"},
        ],
    )
    def test_their_pages_may_not_act_even_with_the_token(
        self, server: HttpServer, service: Obliging, headers: dict[str, str]
    ) -> None:
        assert act(server, **headers) == 403
        assert service.asked == []

    def test_the_own_page_may(self, server: HttpServer) -> None:
        assert act(server, Origin=server.url, Sec_Fetch_Site="same-origin") == 200

    def test_what_a_form_of_theirs_can_send_is_refused(self, server: HttpServer) -> None:
        assert act(server, Content_Type="text/plain") == 415
        assert act(server, Content_Type="application/x-www-form-urlencoded") == 415

    def test_no_answer_lets_another_site_read_it(self, server: HttpServer) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("GET", "/api/summary", headers={"Origin": "http://evil.example"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert answer.getheader("Access-Control-Allow-Origin") is None
        assert answer.getheader("Cross-Origin-Resource-Policy") == "same-origin"


def test_it_listens_on_the_loopback_unless_told_otherwise() -> None:
    assert RunSettings().metrics_host == "127.0.0.1"
    server = HttpServer(create_app(SampleService()), RunSettings().metrics_host, 0)
    try:
        assert server._socket.getsockname()[0] == "127.0.0.1"
    finally:
        server.stop()


def test_smuggled_and_broken_requests_are_refused_and_the_connection_ended(server: HttpServer) -> None:
    for raw_request in (
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"\0" * 100 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(raw_request)
            came = ends(raw)
        assert came.count(b"HTTP/1.1 ") <= 1
        assert came.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 405 ")), (raw_request, came)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(made, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not here")
    return certificate, key


class TestTls:
    def test_it_speaks_tls_and_nothing_else(self, pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
        server = HttpServer(create_app(SampleService()), "127.0.0.1", 0, certificate=pair[0], key=pair[1])
        server.start()
        try:
            assert server.url.startswith("https://")
            trusting = ssl.create_default_context(cafile=str(pair[0]))
            connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=30, context=trusting)
            connection.request("GET", "/-/healthy")
            assert connection.getresponse().status == 200
            assert connection.sock.version() in ("TLSv1.2", "TLSv1.3")
            connection.close()
            with pytest.raises((http.client.HTTPException, ConnectionError)):
                ask(server, "GET", "/-/healthy")
        finally:
            server.stop()

    def test_one_that_does_not_shake_hands_is_cut_off(
        self, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stream.http_limits, "PATIENCE", 0.3)
        server = HttpServer(create_app(SampleService()), "127.0.0.1", 0, certificate=pair[0], key=pair[1])
        server.start()
        try:
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as silent:  # asyncio's own is 60
                assert silent.recv(1) == b""
        finally:
            server.stop()

    def test_what_is_no_certificate_is_refused_in_one_line(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        (tmp_path / "other.pem").write_text("no certificate")
        locked = tmp_path / "locked.pem"
        told = ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", str(pair[1]), "-out", str(locked)]
        subprocess.run(told, check=True, capture_output=True)
        for certificate, key in (
            (pair[0], None),
            (None, pair[1]),
            (pair[0], tmp_path / "none.pem"),
            (tmp_path / "other.pem", pair[1]),
            (pair[1], pair[0]),
            (pair[0], locked),
        ):
            with pytest.raises(ConfigurationError, match="--metrics-tls-") as error:
                HttpServer(create_app(SampleService()), "127.0.0.1", 0, certificate=certificate, key=key)
            assert "\n" not in str(error.value)

    def test_the_command_line_takes_it(self, warm: Warm, pair: tuple[Path, Path], tmp_path: Path) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        command = ["run", "--source", "stdin:", "--backbone", "hashing", "--rank", "4"]
        command += ["--metrics-port", str(port), "--metrics-tls-cert", str(pair[0]), "--metrics-tls-key", str(pair[1])]
        end, begin = os.pipe()
        with (tmp_path / "log").open("wb") as log:
            run = warm.start(command, log, stdin=end)
        os.close(end)
        try:
            trusting = ssl.create_default_context(cafile=str(pair[0]))
            until = time.monotonic() + 120
            while True:
                assert run.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < until
                try:
                    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=trusting)
                    connection.request("GET", "/-/healthy")
                    assert connection.getresponse().status == 200
                    connection.close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.1)
            os.close(begin)
            assert run.wait(120) == 0
        finally:
            run.kill()
