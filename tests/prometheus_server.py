"""Debian's Prometheus on loopback, and a consumer for it to scrape: real processes, for the tests of what they show."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
import yaml

from stream.generate import GenerateSettings, generate
from tests.warm import Warm

PACKAGES = {"prometheus": "prometheus", "promtool": "prometheus", "chromium": "chromium"}
"""Command → the package of Debian that has it."""

TOKEN = "a-token-for-the-tests-only"


def tool(name: str) -> str:
    """Return the path of a command, or skip the test."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install {PACKAGES[name]})")
    return found


def wait_for(condition: Callable[[], object]) -> None:
    """Ask again until it holds; three minutes are far more than any of these takes."""
    until = time.monotonic() + 180
    while not condition():
        if time.monotonic() > until:
            pytest.fail("waited for three minutes")
        time.sleep(0.1)


def for_prometheus(expr: str, **variables: str) -> str:
    """Fill in what Grafana fills in: everything chosen, and a window of 30 seconds."""
    for name, value in {"__rate_interval": "30s", "job": ".+", "instance": ".+", "place": ".+", **variables}.items():
        expr = expr.replace("${" + name + "}", value).replace(f"${name}", value)
    assert "$" not in expr, expr
    return expr


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@dataclass
class Prometheus:
    """One that runs."""

    client: httpx.Client

    def get(self, path: str, **parameters: str) -> Any:
        answer = self.client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def ask(self, query: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.get("query", query=query)["result"]
        return result

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]


@contextlib.contextmanager
def prometheus(folder: Path, target: int, rules: dict[str, Any] | None = None) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes the port `target`, and evaluates the rules, each second."""
    binary, port = tool("prometheus"), free_port()
    scrape = {"job_name": "ebbtide", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
    config: dict[str, Any] = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [scrape],
    }
    if rules is not None:
        (folder / "rules.yml").write_text(yaml.safe_dump(rules), "utf-8")
        config["rule_files"] = ["rules.yml"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    arguments = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    arguments += ["--enable-feature=exemplar-storage", f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    with (
        (folder / "prometheus.log").open("w") as log,
        subprocess.Popen([binary, *arguments], stdout=log, stderr=log) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client,
    ):

        def up() -> bool:
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            with contextlib.suppress(httpx.TransportError):
                return client.get("/-/ready").status_code == 200
            return False

        try:
            wait_for(up)
            yield Prometheus(client)
        finally:
            process.terminate()


class Feed:
    """Appends a generated conversation to a file, some lines at a time, as a producer would: now, with bad lines."""

    def __init__(self, folder: Path, lines: int = 40, every: float = 0.25):
        settings = GenerateSettings(scenario="recurring", seed=3, streams=24, events=2_000, mean_topic_length=8)
        self.path = folder / "feed.jsonl"
        self.path.touch()
        self._lines, self._every, self._stop = lines, every, Event()
        self._events = (event for event, _ in generate(settings))
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with self.path.open("a") as out:
            while not self._stop.wait(self._every):
                for event in islice(self._events, self._lines):
                    out.write(json.dumps({**event, "ts": time.time()}) + "\n")
                out.write("{this is not an event\n")
                out.flush()


@contextlib.contextmanager
def consumer(warm: Warm, folder: Path, *options: str) -> Iterator[int]:
    """Run `ebbtide run --follow` on a feed, with a policy, shadows, a small pool and a token; yield its port."""
    port = free_port()
    token = folder / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    with Feed(folder) as feed, (folder / "ebbtide.log").open("w") as log:
        command = ["run", f"--source=file:{feed.path}", "--follow"]
        command += ["--backbone=hashing", "--measure-every=1", "--threads=1", f"--metrics-port={port}"]
        command += [
            f"--state=sqlite:///{folder}/state.db",
            f"--sink=jsonl:{folder}/out.jsonl",
            "--checkpoint-every=0.5",
            "--copy-every=2",
        ]
        command += [f"--api-token-file={token}", "--batch-events=8", "--pool-bytes=49152", *options]
        process = warm.start(command, log)

        def ready() -> bool:
            assert process.poll() is None, (folder / "ebbtide.log").read_text()
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"http://127.0.0.1:{port}/-/ready", trust_env=False, timeout=30).status_code == 200
            return False

        try:
            wait_for(ready)
            yield port
        finally:
            process.terminate()
            process.wait()
