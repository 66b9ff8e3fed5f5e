"""A real `ebbtide run`, watched from outside: what the kernel says of its process, and what it says of itself."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from prometheus_client.parser import text_string_to_metric_families

Scrape = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""Sample's name and labels → value."""


def free_port() -> int:
    """Return a port of the loopback that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class WatchedRun:
    """One process of `ebbtide run`, with standard input from a pipe unless told otherwise.

    Parameters
    ----------
    options
        Of the command, but for the port.
    folder
        Where its log goes, and where `sizes` looks.
    stdin
        As of `subprocess.Popen`.

    Attributes
    ----------
    process
        The process.
    url
        Of its HTTP server.
    """

    def __init__(self, options: Sequence[str], folder: Path, *, stdin: int | None = subprocess.PIPE):
        port = free_port()
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        self.port = port
        self.begun = time.monotonic()
        with (folder / "run.log").open("ab") as log:
            command = [sys.executable, "-m", "stream.cli", "run", *options, "--metrics-port", str(port)]
            self.process = subprocess.Popen(command, stdin=stdin, stdout=log, stderr=log)

    def __enter__(self) -> WatchedRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def wait_ready(self, seconds: float = 120.0) -> None:
        """Wait until it consumes."""
        until = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(self.url + "/-/ready", timeout=10) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"it did not become ready; see {self.folder / 'run.log'}")
            time.sleep(0.1)

    def scrape(self) -> Scrape:
        """Return what `/metrics` says now; nothing where it does not answer."""
        try:
            with urllib.request.urlopen(self.url + "/metrics", timeout=30) as answer:
                text = answer.read().decode()
        except OSError:
            return {}
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def kernel(self) -> dict[str, float]:
        """Return what the kernel knows: resident bytes (all, and those of no file), descriptors, threads, seconds of
        processor time."""
        place = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        times = (place / "stat").read_text().rsplit(")", 1)[1].split()
        return {
            "rss": 1024.0 * int(status["VmRSS"].split()[0]),
            "anonymous": 1024.0 * int(status["RssAnon"].split()[0]),
            "fds": float(len(os.listdir(place / "fd"))),
            "threads": float(status["Threads"]),
            "processor": (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK"),
        }

    def sizes(self) -> dict[str, float]:
        """Return the bytes of the store, its log and the sink."""
        return {
            name: float(path.stat().st_size) if (path := self.folder / file).exists() else 0.0
            for name, file in {"store": "state.db", "wal": "state.db-wal", "sink": "out.jsonl"}.items()
        }


def value(scrape: Scrape, name: str, **labels: str) -> float:
    """Return one sample's value, 0 where there is none.

    >>> value({("a_total", (("way", "in"),)): 3.0}, "a_total", way="in")
    3.0
    """
    return scrape.get((name, tuple(sorted(labels.items()))), 0.0)


def buckets(scrape: Scrape, name: str, **labels: str) -> dict[str, float]:
    """Return a histogram's cumulated buckets: upper bound → count.

    >>> buckets({("s_bucket", (("le", "1.0"), ("stage", "a"))): 2.0}, "s", stage="a")
    {'1.0': 2.0}
    """
    found = {}
    for (sample, given), number in scrape.items():
        if sample == name + "_bucket":
            rest = dict(given)
            bound = rest.pop("le")
            if rest == labels:
                found[bound] = number
    return found


def quantile(share: float, later: Mapping[str, float], sooner: Mapping[str, float] | None = None) -> float:
    """Return a quantile of what came into a histogram between two scrapes, as Prometheus's histogram_quantile does.

    Within a bucket values are taken to be spread evenly, so the answer is no finer than the buckets; NaN where nothing
    came, and the last finite bound where it lies beyond.

    >>> quantile(0.5, {"1.0": 2.0, "2.0": 4.0, "+Inf": 4.0})
    1.0
    >>> quantile(0.75, {"1.0": 2.0, "2.0": 4.0, "+Inf": 4.0}, {"1.0": 0.0, "2.0": 0.0, "+Inf": 0.0})
    1.5
    """
    before = sooner or {}
    rows = sorted((float(bound), count - before.get(bound, 0.0)) for bound, count in later.items())
    if not rows or not rows[-1][1]:
        return math.nan
    wanted, low, under = share * rows[-1][1], 0.0, 0.0
    for bound, count in rows:
        if count >= wanted:
            return low if math.isinf(bound) else low + (bound - low) * (wanted - under) / (count - under)
        low, under = bound, count
    return low
