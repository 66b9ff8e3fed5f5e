"""Names of streams are data: whatever they hold, nothing that shows or keeps them takes a part of them for its own."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from tests.prometheus_server import free_port
from tests.warm import Command, Warm

DEADLINE = 120.0
TOKEN = "a-token-that-nobody-guesses"
EACH = 6
"""Events of each stream."""

FORGED = "2026-01-01 00:00:00 [error    ] forged"
NAMES = [
    *(
        "plain",
        "../../etc/passwd",
        "a/b",
        "..",
        ".",
        "/",
        "C:\\con",
        "%2e%2e%2f",
        "x/actions",
        "actions",
        "?a=b#c",
        "-x",
    ),
    *("'; DROP TABLE lanes; --", '" OR 1=1 --', "x') UNION SELECT 1--", "%s%n{0}", "${jndi:ldap://x}", "$(reboot)"),
    *(
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "</script><b>",
        "<!--",
        "]]>",
        "&lt;",
        "javascript:x",
    ),
    *('x"} 1\nebbtide_forged_total 1', 'a{b="c"}', "# EOF\n", "\\", "\\n", '"', "le"),
    *(
        f"a\n{FORGED}",
        f"a\r\n{FORGED}",
        '"}\n{"event": "forged"}',
        "a\n\nevent: tick\ndata: {}",
        "\x0b\x0c\x1c\x85\u2028\u2029",
    ),
    *("\u202egnp.exe", "\u200b", "\ufeff", " ", "\t", "\x1b[2J\x1b[31mred", "\x07\x08\x7f", "\x01"),
    *("__proto__", "constructor", "toString", "null", "NaN", "=cmd|'/c calc'!A0", "[bold red]x[/]", "[/]"),
    *("e\u0301", "\u00e9", "\uffff", "\U0001f600" * 512, "n" * 512),
]
REFUSED = {
    r'""': "bad_stream",
    r'"a\u0000b"': "bad_stream",
    r'"\ud800"': "lone_surrogate",
    r'"\udc00\ud800"': "lone_surrogate",
    '"' + "n" * 513 + '"': "bad_stream",
    '"' + "n" * (1 << 20) + '"': "too_long",
    "5": "wrong_type",
}


@dataclass
class Ran:
    folder: Path
    streams: list[dict[str, Any]]
    singly: dict[str, tuple[int, Any]]
    acted: dict[str, tuple[int, Any]]
    metrics: str
    open_metrics: str
    hello: bytes
    log: str


def cli(warm: Warm, *given: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command; the width keeps tables from being cut."""
    return warm.run(given, check=check, COLUMNS="2000")


def ask(port: int, path: str, body: str | None = None, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def wait_for(port: int, events: int, run: Command) -> None:
    until = time.monotonic() + DEADLINE
    while True:
        assert run.poll() is None, run.returncode
        assert time.monotonic() < until
        try:
            if json.loads(ask(port, "/api/summary")[1])["events"] >= events:
                return
        except OSError:
            pass
        time.sleep(0.05)


@pytest.fixture(scope="module")
def ran(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run over streams of these names, asked for everything while it runs, and acted upon."""
    folder, port = tmp_path_factory.mktemp("names"), free_port()
    with (folder / "talk.jsonl").open("w") as file:
        for turn in range(EACH):
            for name in NAMES:
                words = "tea in the garden" if turn < EACH // 2 else "bridges of concrete and steel"
                file.write(json.dumps({"stream": name, "text": f"{words} {turn}", "id": f"{turn} {name}"}) + "\n")
        for bad in REFUSED:
            file.write(f'{{"stream":{bad},"text":"x"}}\n')
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    told = {
        "--source": f"file:{folder / 'talk.jsonl'}",
        "--backbone": "hashing",
        "--rank": 4,
        "--policy": "decay_on_shift",
        "--detectors": '{"topic_shift_score": "page_hinkley"}',
        "--state": f"sqlite:///{folder / 'state.db'}",
        "--sink": f"jsonl:{folder / 'out.jsonl'}",
        "--tape": folder / "tape",
        "--metrics-port": port,
        "--api-token-file": folder / "token",
        "--log-format": "plain",
        "--measure-every": 1,
        "--checkpoint-every": 0.1,
    }
    with (folder / "log").open("wb") as log:
        run = warm.start(["run", "--follow", *(part for pair in told.items() for part in pair)], log)
    try:
        wait_for(port, EACH * len(NAMES), run)
        streams = json.loads(ask(port, "/api/streams?limit=1000")[1])
        singly, acted = {}, {}
        for name in NAMES:
            at = "/api/streams/" + quote(name, safe="")
            status, text = ask(port, at)
            singly[name] = (status, json.loads(text))
            headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
            status, text = ask(
                port, at + "/actions", json.dumps({"kind": "decay", "factor": 0.5, "reason": name[:500]}), **headers
            )
            acted[name] = (status, json.loads(text))
        metrics = ask(port, "/metrics")[1]
        open_metrics = ask(port, "/metrics", Accept="application/openmetrics-text; version=1.0.0")[1]
        with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
            raw.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            hello = b""
            while hello.count(b'"streams":[{') < 1 or not hello.endswith(b"\n\n\r\n"):
                part = raw.recv(1 << 16)
                assert part, hello
                hello += part
        run.send_signal(signal.SIGTERM)
        assert run.wait(DEADLINE) == 0, (folder / "log").read_text()
    finally:
        run.kill()
        run.wait()
    return Ran(folder, streams, singly, acted, metrics, open_metrics, hello, (folder / "log").read_text())


def test_each_name_comes_out_of_the_api_as_it_went_in_and_can_be_acted_on(ran: Ran) -> None:
    assert {row["stream"] for row in ran.streams} == set(NAMES)
    for name in NAMES:
        status, found = ran.singly[name]
        assert (status, found.get("stream")) == (200, name)
        status, done = ran.acted[name]
        assert (status, done.get("stream"), done.get("seq")) == (200, name, EACH), done


def test_what_is_kept_has_each_name_and_nothing_else(ran: Ran) -> None:
    records = [json.loads(line) for line in (ran.folder / "out.jsonl").read_bytes().splitlines()]
    assert len(records) == EACH * len(NAMES)
    assert {record["stream"] for record in records} == set(NAMES)
    dead = [json.loads(line) for line in next(ran.folder.glob("*dead*")).read_bytes().splitlines()]
    assert [letter["reason"] for letter in dead] == list(REFUSED.values())
    database = sqlite3.connect(ran.folder / "state.db")
    assert {row[0] for row in database.execute("SELECT lane FROM lanes")} == set(NAMES)
    assert {row[0] for row in database.execute("SELECT stream FROM acted")} == set(NAMES)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    with pa.OSFile(str(ran.folder / "tape" / "part-000000.arrows")) as file:
        assert set(pa.ipc.open_stream(file).read_all()["stream"].to_pylist()) == set(NAMES)
    known = {
        "talk.jsonl",
        "token",
        "log",
        "out.jsonl",
        "state.db",
        "state.db.lock",
        "state.db-wal",
        "state.db-shm",
        "tape",
    }
    made = {path.name for path in ran.folder.iterdir()} - known
    assert all("dead" in name or name.endswith(".html") for name in made), made


def test_metrics_have_no_series_or_label_of_a_name(ran: Ran) -> None:
    for text, parse in ((ran.metrics, parse_plain), (ran.open_metrics, parse_open_metrics)):
        families = list(parse(text))
        assert all(family.name.startswith(("ebbtide_", "process_", "python_")) for family in families)
        assert not any("forged" in family.name for family in families)
        values = {value for family in families for sample in family.samples for value in sample.labels.values()}
        assert not values & (set(NAMES) - {"plain"})
    shown = {
        sample.exemplar.labels["stream"]
        for family in parse_open_metrics(ran.open_metrics)
        for sample in family.samples
        if sample.exemplar
    }
    assert shown
    assert all(name in NAMES or any(each.startswith(name.removesuffix("…")) for each in NAMES) for name in shown)


def test_live_events_stay_in_their_frames(ran: Ran) -> None:
    body = ran.hello.partition(b"\r\n\r\n")[2]
    text = b"".join(re.split(rb"\r\n[0-9a-f]+\r\n|^[0-9a-f]+\r\n", body)).decode("ascii")
    frames = [frame for frame in text.replace("\r\n", "").split("\n\n") if frame]
    for frame in frames:
        lines = frame.split("\n")
        if lines[0].startswith("event: "):
            assert len(lines) == 2
            json.loads(lines[1].removeprefix("data: "))
        else:
            assert lines[0].startswith(("retry: ", ": "))


def test_no_log_line_is_forged(ran: Ran) -> None:
    lines = ran.log.splitlines()
    assert not any(line.startswith(FORGED[:10]) for line in lines)
    assert sum("operator_action" in line for line in lines) == len(NAMES)


def test_a_log_for_people_has_no_control_characters_of_a_name(ran: Ran) -> None:
    assert "\x1b" not in ran.log


def test_a_log_in_json_has_one_line_for_each_fact() -> None:
    code = (
        "import json, sys, structlog; from stream.logs import set_up_logs; set_up_logs('json', 'info')\n"
        "for name in json.load(sys.stdin): structlog.get_logger('stream.x').info('operator_action', stream=name)"
    )
    given = json.dumps(NAMES)
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, check=True)
    logged = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(each["event"], each["stream"]) for each in logged] == [("operator_action", name) for name in NAMES]


class _Tags(HTMLParser):
    """Collects a page's elements and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)


def test_the_report_has_no_element_of_a_name(ran: Ran, warm: Warm) -> None:
    page = ran.folder / "report.html"
    cli(
        warm,
        "report",
        ran.folder / "tape",
        "--out",
        page,
        "--policy",
        "none",
        "--state",
        f"sqlite:///{ran.folder / 'state.db'}",
    )
    found = _Tags()
    found.feed(page.read_text())
    assert "<script>alert(1)" not in page.read_text()
    assert "<img src=x" not in page.read_text()
    assert found.handlers == []


def test_inspect_shows_and_act_takes_any_name(ran: Ran, warm: Warm) -> None:
    state = f"sqlite:///{ran.folder / 'state.db'}"
    told = json.loads(cli(warm, "inspect", "--state", state, "--json").stdout)
    assert {stream["stream"] for stream in told["streams"]} == set(NAMES)
    for name in ("'; DROP TABLE lanes; --", f"a\n{FORGED}", "-x"):
        one = json.loads(cli(warm, "inspect", "--state", state, "--json", "--", name).stdout)
        assert (one["stream"], one["events"]) == (name, EACH)
        cli(warm, "act", "--state", state, "--wait", "0", "--", name, "reset")
    database = sqlite3.connect(ran.folder / "state.db")
    assert database.execute("SELECT count(*) FROM requests").fetchone() == (3,)
    database.close()
    nobody = cli(warm, "inspect", "--state", state, "--", "nobody\nhere", check=False)
    assert (nobody.returncode, nobody.stderr.count("\n")) == (2, 1)


def test_a_table_for_a_terminal_has_no_control_characters_of_a_name(ran: Ran, warm: Warm) -> None:
    shown = cli(warm, "inspect", "--state", f"sqlite:///{ran.folder / 'state.db'}", "--limit", "1000").stdout
    assert "\x1b" not in shown
    assert not any(line.strip().startswith(FORGED[:10]) for line in shown.splitlines())
