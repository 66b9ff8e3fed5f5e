"""What people do to a stream by hand: once, for good, and only whoever may."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from memory.errors import ConfigurationError
from monitors.policies import load_policy
from stream.assembly import build_engine
from stream.config import RunSettings
from stream.consumer import Consumer
from stream.engine import Engine
from stream.event import Event
from stream.generate import GenerateSettings, write_stream
from stream.http_actions import read_token
from stream.operators import Ask, ByHand
from stream.replay import recorded_policy, replay
from stream.store import StateStore
from stream.tape import TapeReader
from tests.prometheus_server import free_port
from tests.warm import Warm

TOKEN = "a-token-for-this-test-alone"
STREAMS, EVENTS = 3, 30


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    settings = GenerateSettings(scenario="recurring", streams=STREAMS, events=EVENTS, mean_topic_length=6, seed=2)
    write_stream(settings, path)
    return path


def engine_of(policy: str = "none") -> Engine:
    engine = build_engine(RunSettings(backbone="hashing", rank=4, policy=policy))
    feed(engine, 8)
    return engine


def feed(engine: Engine, count: int, word: str = "tea") -> None:
    events = [Event("ann", f"{word} number {number} is blue {number % 5}") for number in range(count)]
    engine.process(events, engine.backbone.tokenize([event.text or "" for event in events]))


def state(engine: Engine, stream: str = "ann") -> np.ndarray[Any, Any]:
    copy: np.ndarray[Any, Any] = engine.pool.states[int(engine.pool.acquire([stream])[0])].numpy().copy()
    return copy


class TestActing:
    @pytest.mark.parametrize("policy", ["none", "adaptive_gates", "archive", "auto"])
    def test_decay_and_reset_do_as_they_say_and_can_be_taken_back(self, policy: str) -> None:
        engine = engine_of(policy)
        hand, before = ByHand(engine), state(engine)
        assert np.abs(before).sum() > 0
        hand.do("ann", Ask(kind="decay", factor=0.5))
        np.testing.assert_array_equal(state(engine), np.float32(0.5) * before)
        hand.do("ann", Ask(kind="reset"))
        assert not state(engine).any()
        hand.do("ann", Ask(kind="restore"))
        np.testing.assert_array_equal(state(engine), np.float32(0.5) * before)
        hand.do("ann", Ask(kind="restore"))  # takes the taking back back
        assert not state(engine).any()

    @pytest.mark.parametrize("policy", ["archive", "auto"])
    def test_what_was_taken_back_goes_on_as_if_nothing_had_been_done(self, policy: str) -> None:
        touched, left = engine_of(policy), engine_of(policy)
        hand = ByHand(touched)
        hand.do("ann", Ask(kind="reset"))
        hand.do("ann", Ask(kind="restore"))
        for engine in (touched, left):
            feed(engine, 12, "coffee")
        np.testing.assert_array_equal(state(touched), state(left))
        of_policy = [name for name in left.pool.beside if name.startswith(("policy/", "filed/"))]
        assert len(of_policy) == 2
        records = [engine.pool.record("ann").beside for engine in (touched, left)]
        assert [records[0][name] for name in of_policy] == [records[1][name] for name in of_policy]

    def test_nothing_done_nothing_to_take_back(self) -> None:
        with pytest.raises(ValueError, match="no operator has done anything to this stream"):
            ByHand(engine_of()).do("ann", Ask(kind="restore"))

    def test_a_filed_topic_is_taken_up_and_the_other_one_stays_filed(self) -> None:
        policy = load_policy("archive").model_copy(update={"most": 3})
        engine = engine_of()
        engine = Engine(engine.writer, detectors={}, policy=policy)
        feed(engine, 4)
        filed, slot = engine.runner.filed, int(engine.pool.acquire(["ann"])[0])
        assert filed is not None
        filed.hold(np.array([slot]), np.array([2]))
        filed.states[filed.places[slot, 2]] = torch.full((1, 4, 4), 0.25)
        own = state(engine)
        with pytest.raises(ValueError, match=r"expected the number of a filed topic \(0, 2\), got 1"):
            ByHand(engine).do("ann", Ask(kind="restore", topic=1))
        np.testing.assert_array_equal(state(engine), own)
        ByHand(engine).do("ann", Ask(kind="restore", topic=2))
        np.testing.assert_array_equal(state(engine), np.full((1, 1, 4, 4), 0.25, np.float32))
        np.testing.assert_array_equal(filed.states[filed.places[slot, 0]].numpy(), own[0])
        assert engine.runner.lanes["in_force"][slot] == 2
        ByHand(engine).do("ann", Ask(kind="restore", topic=0))
        np.testing.assert_array_equal(state(engine), own)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (("decay", None), "expected a factor between 0 and 1"),
            (("decay", "1.5"), "expected a factor between 0 and 1, as in `decay 0.5`, got 1.5"),
            (("decay", "nan"), "factor: Input should be a finite number"),
            (("reset", "1"), "reset: expected no topic, got 1"),
            (("restore", "-1"), "topic: Input should be greater than or equal to 0"),
            (
                ("decya", "1"),
                r"expected an action \(reset, decay, restore, release\), got 'decya'; did you mean 'decay'\?",
            ),
        ],
    )
    def test_a_slip_is_named(self, given: tuple[str, str | None], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            Ask.parse(*given)


def settings(talk: Path, folder: Path, **given: Any) -> RunSettings:
    return RunSettings(
        **{
            "source": f"file:{talk}",
            "backbone": "hashing",
            "rank": 4,
            "policy": "decay_on_shift",
            "state": f"sqlite:///{folder / 'state.db'}",
            "sink": f"jsonl:{folder / 'out.jsonl'}",
            "tape": folder / "tape",
            "metrics_port": 0,
            "batch_events": 8,
            "checkpoint_every": 0,
            "drain": 0,
        }
        | given
    )


class TestRun:
    def test_what_was_asked_for_is_done_by_the_next_run_and_replays_to_the_bit(
        self, talk: Path, tmp_path: Path
    ) -> None:
        """Two runs over one input, an action before the second one's first event."""
        consumer = Consumer(settings(talk, tmp_path))
        batches = 0

        def stop_early() -> None:
            nonlocal batches
            batches += 1
            if batches == 4:
                consumer.stop()

        consumer.open()
        consumer.run(stop_early)
        consumer.close()
        store = StateStore(f"sqlite:///{tmp_path / 'state.db'}", create=False)
        for action in ('{"kind":"reset"}', '{"kind":"decay","factor":0.5}', '{"kind":"restore","topic":4}', "no JSON"):
            store.ask("s000001", action)
        store.ask("nobody", '{"kind":"reset"}')
        consumer = Consumer(settings(talk, tmp_path))
        consumer.open()
        consumer.run()
        final = {name: (record.state, record.beside) for name, record in store.lanes()}
        assert store.requests() == []
        outcomes = [each.outcome for each in store.acted()]
        assert outcomes[:2] == ["reset: the state is zeros, nothing is filed", "decayed to 0.5 of what it was"]
        assert [outcome.split(":")[0] for outcome in outcomes[2:]] == ["refused"] * 3
        assert consumer.metrics.by_label("ebbtide_actions_total", "kind", origin="operator") == {
            **dict.fromkeys(("keep", "restore", "freeze"), 0),
            "reset": 1,
            "decay": 1,
        }
        consumer.close()
        store.close()
        reader = TapeReader(tmp_path / "tape")
        by_hand = [row for batch in reader.batches() for row in batch["by_hand"].to_pylist() if row]
        assert by_hand == [['{"kind":"reset"}', '{"kind":"decay","factor":0.5}']]
        done = replay(tmp_path / "tape", {"own": recorded_policy(reader.head), "none": load_policy("none")})
        assert done.results[0].differing == 0
        replayed = {name: record.state for name, record in done.engines[0].pool.records()}
        assert replayed == {name: held for name, (held, _) in final.items()}

    def test_without_the_action_the_states_would_be_others(self, talk: Path, tmp_path: Path) -> None:
        consumer = Consumer(settings(talk, tmp_path / "a", follow=False))
        consumer.open()
        consumer.run()
        before = consumer.engine.held("s000001")
        future = consumer.operators.submit("s000001", Ask(kind="decay", factor=0.5))
        assert future is not None
        assert consumer.operators.take([])
        assert not future.done()  # not before it is committed
        consumer.commit()
        assert future.result(0).seq == EVENTS
        assert consumer.engine.held("s000001") != before
        consumer.close()


def events_kept(folder: Path) -> int:
    """Return how many events the last checkpoint has."""
    store = StateStore(f"sqlite:///{folder / 'state.db'}", create=False)
    try:
        rows = store.load().counters.get("ebbtide_events_total", [[0]])
    finally:
        store.close()
    return int(rows[0][-1])


class Run:
    """A real `ebbtide run --follow` with an HTTP server."""

    def __init__(self, warm: Warm, talk: Path, folder: Path, port: int, *, token: Path | None):
        command = ["run", "--source", f"file:{talk}", "--follow", "--rank", "4"]
        command += ["--backbone", "hashing", "--state", f"sqlite:///{folder / 'state.db'}", "--detectors", "{}"]
        command += ["--sink", f"jsonl:{folder / 'out.jsonl'}", "--metrics-port", str(port), "--policy", "none"]
        command += ["--api-token-file", str(token)] if token is not None else []
        self.log = (folder / "log").open("ab")
        self.process = warm.start(command, self.log)
        self.url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                all_in = httpx.get(self.url + "/api/summary").json()["events"] == STREAMS * EVENTS
                if all_in and events_kept(folder) == STREAMS * EVENTS:
                    return
            except httpx.TransportError:
                assert self.process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        raise AssertionError((folder / "log").read_text())

    def post(self, stream: str, body: Any = None, *, token: str | None = TOKEN, **headers: str) -> httpx.Response:
        sent = {"Content-Type": "application/json", **headers}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        content = body if isinstance(body, bytes) else json.dumps(body if body is not None else {"kind": "reset"})
        return httpx.post(f"{self.url}/api/streams/{stream}/actions", headers=sent, content=content, timeout=60)

    def end(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(60)
        self.log.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "token").chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def run(warm: Warm, talk: Path, folder: Path) -> Iterator[Run]:
    made = Run(warm, talk, folder, free_port(), token=folder / "token")
    yield made
    if made.process.poll() is None:
        made.end()


def sha(warm: Warm, folder: Path, stream: str) -> str:
    command = ["inspect", "--state", f"sqlite:///{folder / 'state.db'}", "--json", stream]
    told = json.loads(warm.run(command, check=True).stdout)
    return str(told["state_sha256"])


class TestHttp:
    def test_only_whoever_has_the_token_may(self, warm: Warm, run: Run, folder: Path) -> None:
        before = sha(warm, folder, "s000000")
        for token in (None, "wrong", TOKEN[:-1], TOKEN + "x", "é" * 20):
            answer = run.post("s000000", token=token) if token != "é" * 20 else raw(run, b"Bearer \xc3\xa9\xff")
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert sha(warm, folder, "s000000") == before
        assert TOKEN not in (folder / "log").read_text()

    @pytest.mark.parametrize(
        "headers",
        [{"Origin": "https://elsewhere.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}],
    )
    def test_no_page_of_another_site_may(self, run: Run, headers: dict[str, str]) -> None:
        assert run.post("s000000", **headers).status_code == 403

    @pytest.mark.parametrize(
        ("body", "headers", "status", "detail"),
        [
            ({"kind": "reset"}, {"Content-Type": "text/plain"}, 415, "expected Content-Type: application/json"),
            ({"kind": "decay"}, {}, 422, "decay: expected a factor between 0 and 1, as in `decay 0.5`, got none"),
            ({"kind": "keep"}, {}, 422, "kind: Input should be 'decay', 'reset', 'restore' or 'release', got 'keep'"),
            ({"kind": "reset", "also": 1}, {}, 422, "also: Extra inputs are not permitted, got 1"),
            (b"{", {}, 422, "Invalid JSON"),
            (b'"' + b"x" * 9000 + b'"', {}, 413, "expected at most 8192 bytes"),
            ({"kind": "restore", "topic": 1}, {}, 409, "refused: expected the number of a filed topic (none), got 1"),
        ],
    )
    def test_a_slip_is_named(self, run: Run, body: Any, headers: dict[str, str], status: int, detail: str) -> None:
        answer = run.post("s000000", body, **headers)
        assert (answer.status_code, detail in answer.json()["detail"]) == (status, True), answer.text

    def test_what_is_filed_can_be_asked_for(self, run: Run) -> None:
        assert httpx.get(f"{run.url}/api/streams/s000000").json()["filed_topics"] == []

    def test_a_stream_that_is_not_there(self, run: Run) -> None:
        answer = run.post("no/such%20stream")
        assert (answer.status_code, answer.json()["detail"]) == (404, "refused: there is no such stream")

    def test_what_was_answered_holds_after_a_kill(self, warm: Warm, talk: Path, run: Run, folder: Path) -> None:
        """By HTTP and by the store; then the process is killed, and the next one goes on from it."""
        answer = run.post("s000001", {"kind": "decay", "factor": 0.5, "reason": "told a lie"})
        assert answer.json() == {"stream": "s000001", "seq": EVENTS, "outcome": "decayed to 0.5 of what it was"}
        act = ["act", "--state", f"sqlite:///{folder / 'state.db'}", "s000002"]
        told = warm.run([*act, "reset"], check=True).stdout
        assert told == f"s000002: reset: the state is zeros, nothing is filed, before its event {EVENTS}\n"
        refused = warm.run([*act, "restore", "7"])
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "s000002: refused: expected the number of a filed topic" in refused.stderr
        run.end(signal.SIGKILL)
        after = [sha(warm, folder, f"s00000{number}") for number in range(STREAMS)]
        queued = warm.run([*act, "--wait", "0", "restore"], check=True).stdout
        assert "no consumer took it within 0 s: the next run does, before its first event" in queued
        again = Run(warm, talk, folder, free_port(), token=None)
        assert again.post("s000001").status_code == 403  # without a token the endpoint is off, whatever is sent
        deadline = time.monotonic() + 60
        while sha(warm, folder, "s000002") == after[2] and time.monotonic() < deadline:
            time.sleep(0.05)
        again.end()
        assert [sha(warm, folder, f"s00000{number}") for number in range(2)] == after[:2]
        assert sha(warm, folder, "s000002") != after[2]
        store = StateStore(f"sqlite:///{folder / 'state.db'}", create=False)
        assert [
            (each.stream, json.loads(each.action)["kind"]) for each in store.acted() if each.before is not None
        ] == [
            ("s000001", "decay"),
            ("s000002", "reset"),
            ("s000002", "restore"),
        ]
        assert json.loads(store.acted("s000001")[0].action)["reason"] == "told a lie"
        counters = store.load().counters["ebbtide_actions_total"]
        assert [row for row in counters if row[1] == "operator"] == [
            ["decay", "operator", 1],
            ["reset", "operator", 1],
            ["restore", "operator", 1],
        ]
        store.close()


def raw(run: Run, authorization: bytes) -> httpx.Response:
    headers = [(b"Content-Type", b"application/json"), (b"Authorization", authorization)]
    return httpx.post(f"{run.url}/api/streams/s000000/actions", headers=headers, content=b'{"kind":"reset"}')


class TestToken:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"short", "at least 16"),
            (b"two words " * 4, "one word"),
            (b"\xff" * 20, "not ASCII"),
            (None, "No such file"),
        ],
    )
    def test_a_file_that_holds_none_is_refused(self, tmp_path: Path, content: bytes | None, message: str) -> None:
        path = tmp_path / "token"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=f"--api-token-file {path}: expected .*{message}"):
            read_token(path)

    def test_one_that_others_can_read_is_told_of(self, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text(TOKEN)
        os.chmod(path, 0o644)
        with capture_logs() as logs:
            assert read_token(path) == TOKEN
        assert [entry["event"] for entry in logs] == ["token_readable_by_others"]
        assert TOKEN not in str(logs)
