"""By which names the HTTP server answers, and what its log says when a client goes away."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from stream.generate import GenerateSettings, write_stream
from tests.prometheus_server import free_port
from tests.warm import Command, Warm

DEADLINE = 120.0
TOKEN = "a-token-that-nobody-may-see"


class Run:
    """A run that follows a log, with a token, and what it said."""

    def __init__(self, warm: Warm, folder: Path, *more: object):
        (folder / "token").write_text(TOKEN)
        (folder / "token").chmod(0o600)
        write_stream(GenerateSettings(scenario="recurring", streams=2, events=20, seed=2), folder / "talk.jsonl")
        self.port, self.log = free_port(), folder / "log"
        command = ["run", "--source", f"file:{folder / 'talk.jsonl'}", "--follow", "--backbone", "hashing", "--rank", 4]
        command += ["--policy", "none", "--detectors", "{}", "--metrics-port", self.port]
        command += ["--api-token-file", folder / "token", *more]
        with self.log.open("wb") as log:
            self.process: Command = warm.start(command, log)
        deadline = time.monotonic() + DEADLINE
        while self.asked("/-/ready") != 200:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def asked(self, path: str, **headers: str) -> int:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", headers=headers).status_code
        except httpx.TransportError:
            return 0


@pytest.fixture
def run(warm: Warm, tmp_path: Path) -> Iterator[Run]:
    made = Run(warm, tmp_path, "--metrics-name", "Ebbtide.example.org", "--metrics-name", "other.example")
    yield made
    made.process.terminate()
    assert made.process.wait(DEADLINE) == 0, made.log.read_text()


def test_a_name_that_was_made_to_point_here_is_not_answered(run: Run) -> None:
    for path in ("/metrics", "/api/streams", "/api/summary", "/", "/-/healthy", "/api/events", "/nowhere"):
        assert run.asked(path, host="evil.example:9464") == 421, path
    for host in ("localhost:1", "127.0.0.1", "[::1]:9464", "192.0.2.7", "ebbtide.example.org:443", "other.example."):
        assert run.asked("/api/streams", host=host) == 200, host
    headers = {"host": "evil.example:9464", "origin": "http://evil.example:9464", "authorization": f"Bearer {TOKEN}"}
    url = f"http://127.0.0.1:{run.port}/api/streams/s000000/actions"
    assert httpx.post(url, json={"kind": "reset"}, headers=headers).status_code == 421
    with socket.create_connection(("127.0.0.1", run.port)) as old:
        old.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
        assert old.recv(100).startswith(b"HTTP/1.1 200")


def test_a_body_whose_length_is_said_in_two_ways_ends_the_connection(run: Run) -> None:
    head = "POST /api/streams/s000000/actions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    hidden = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", run.port)) as client:
        client.sendall(f"{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}".encode())
        answer = b""
        while part := client.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("form", ["plain", "json"])
def test_a_client_that_goes_away_in_mid_body_leaves_no_token_in_the_log(form: str, warm: Warm, tmp_path: Path) -> None:
    run = Run(warm, tmp_path, "--log-format", form)
    head = "POST /api/streams/s000000/actions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", run.port)) as client:
            client.sendall(f"{head}Authorization: Bearer {TOKEN}\r\nContent-Length: 50\r\n\r\n{{".encode())
    assert run.asked("/-/ready") == 200
    run.process.terminate()
    assert run.process.wait(DEADLINE) == 0
    log = run.log.read_text()
    assert TOKEN not in log
    assert "Traceback" not in log


@pytest.mark.parametrize("form", ["plain", "auto", "json"])
def test_a_traceback_in_the_log_has_no_values_of_variables(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    from stream.logs import set_up_logs

    secret = "marked-" + "value"
    set_up_logs(form, "info")
    try:
        json.loads(f"{{{len(secret)}")
    except ValueError:
        logging.getLogger("stream").exception("it_failed")
    err = capfd.readouterr().err
    assert "it_failed" in err
    assert "JSONDecodeError" in err
    assert secret not in err
