"""Clients that ask too often, read too slowly or not at all, while a real run consumes: it does not notice.

All at once: 64 scrapers that ask again as soon as they are answered, 1,000 scrapes a second besides, forty clients that
open the live page's events and never read, four that read the metrics byte by byte. How much slower the run gets is
measured by `python -m benchmarks.overload`, not here.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from benchmarks.bad_clients import BadClients
from tests.faults.fed_run import FedRun, outcome, undisturbed

LONG = bool(os.environ.get("EBBTIDE_LONG"))
STREAMS = 100_000 if LONG else 10_000
PARTS = 5
ANSWERS = 300 if LONG else 30
"""Scrapes that are answered while each part of the input is on its way."""

GROWTH = 40 << 20
"""Bytes by which memory may grow while they are there: 128 connections, with their answers under way."""


def series(exposition: str) -> set[str]:
    """Return names and labels of all samples."""
    return {line.rsplit(" ", 1)[0] for line in exposition.splitlines() if line and not line.startswith("#")}


def test_a_run_ends_as_it_would_without_them_and_keeps_little(tmp_path: Path) -> None:
    for name in ("fed", "alone"):
        (tmp_path / name).mkdir()
    lines = [
        json.dumps({"stream": f"s{n % STREAMS}", "id": str(n), "text": f"we said {n} things"}).encode() + b"\n"
        for n in range(2 * STREAMS)
    ]
    with FedRun(tmp_path / "fed") as run:
        run.wait_ready()
        run.offer_all(b"".join(lines[:500]))
        run.wait_for(lambda: run.summary()["events"] == 500)
        assert run.metric("ebbtide_streams_resident") == 500
        few = series(run.get("/metrics")[1])
        run.offer_all(b"".join(lines[500:STREAMS]))
        run.wait_for(lambda: run.summary()["events"] == STREAMS)
        before = run.memory()
        with BadClients(run.port) as clients:
            for part in range(PARTS):
                first, last = (STREAMS + STREAMS * each // PARTS for each in (part, part + 1))
                run.offer_all(b"".join(lines[first:last]))
                enough = clients.answered + ANSWERS
                run.wait_for(lambda enough=enough: clients.answered >= enough)  # type: ignore[misc]
            asked, refused = clients.asked, clients.refused + clients.cut
        run.wait_for(lambda: run.says("/-/ready", 200))
        run.wait_for(lambda: run.says("/-/healthy", 200))
        run.wait_for(lambda: run.summary()["events"] == len(lines))
        assert run.metric("ebbtide_streams_resident") == STREAMS
        many, grown = series(run.get("/metrics")[1]), run.memory() - before
        assert run.finish() == 0, run.log()
    assert asked > refused > 0, "it was not too much for the server"
    assert {re.sub(r"_created.*", "", each) for each in many} == {re.sub(r"_created.*", "", each) for each in few}
    assert grown < GROWTH
    assert outcome(tmp_path / "fed") == undisturbed(tmp_path / "alone", b"".join(lines))
