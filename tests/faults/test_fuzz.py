"""Hostile input: the short form of `tests/faults/fuzz.py`, and requests made from the application's own OpenAPI."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory.deltamem.adapter_io import PUBLISHED_FILE, SAFETENSORS_FILE, read_tensors
from memory.errors import ConfigurationError, EbbtideError
from monitors.policies import load_policy
from stream.config import RunSettings, effective
from stream.event import Event, EventParser, Rejection
from stream.store import StateStore
from stream.tape import TapeReader
from stream.tape.format import TapeHead, rows_of
from tests.faults.fuzz import TARGETS, fuzz
from tests.faults.fuzz_atheris import GUIDED
from tests.faults.fuzz_files import cuts, make_adapter, read_tape, record_tape
from tests.faults.fuzz_http import TOKEN, written
from tests.faults.fuzz_input import Target, mangled
from tests.faults.fuzz_schema import described
from tests.faults.fuzz_text import WHERE
from tests.test_http import SampleService

INPUTS = {
    "parser": 20_000,
    "http": 2_500,
    "wire": 500,
    "config": 4_000,
    "adapter": 5_000,
    "tape": 2_000,
    "store": 600,
    "names": 300,
    "urls": 300,
}
"""Of each target, where the long form takes a million."""
ROOT = Path(__file__).resolve().parents[2]
OFTEN = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks_a_promise(name: str) -> None:
    found = fuzz(name, inputs=INPUTS[name])
    assert found.total() == INPUTS[name]
    assert len(found) > 1 or name == "names", "every input came to the same"


def test_a_broken_promise_is_told_with_the_number_that_brings_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def brittle(folder: Path) -> Target:
        def one(dice: Random) -> str:
            assert dice.randrange(100) != 7
            return "held"

        return Target(one)

    monkeypatch.setitem(TARGETS, "brittle", brittle)
    with pytest.raises(AssertionError, match=r"brittle: input \d+ of seed 3") as told:
        fuzz("brittle", seed=3, inputs=5_000)
    number = int(str(told.value).split()[2])
    assert fuzz("brittle", seed=3, inputs=number)["held"] == number
    with pytest.raises(AssertionError, match=rf"input {number} of seed 3"):
        fuzz("brittle", seed=3, first=number, inputs=1)


def test_an_input_that_ends_its_process_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def deadly(folder: Path) -> Target:
        def one(dice: Random) -> str:
            if dice.randrange(100) == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            return "held"

        return Target(one)

    monkeypatch.setitem(TARGETS, "deadly", deadly)
    with pytest.raises(AssertionError, match=r"deadly: input \d+ of seed 3 ended its process: SIGKILL") as told:
        fuzz("deadly", seed=3, inputs=5_000, block=40)
    number = int(str(told.value).split()[2])
    assert fuzz("deadly", seed=3, inputs=number, block=40)["held"] == number


def test_child_processes_take_the_same_inputs() -> None:
    assert fuzz("parser", inputs=300, block=70) == fuzz("parser", inputs=300)


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("parser", {"event"}),
        ("config", {f"{where}: accepted" for where in WHERE}),
        ("http", {"200", "404", "422"}),
        ("wire", {"200", "404", "409", "422"}),
    ],
)
def test_what_a_guided_engine_begins_with_is_good(tmp_path: Path, name: str, good: set[str]) -> None:
    target = TARGETS[name](tmp_path)
    assert target.check is not None
    try:
        found = {target.check(seed) for seed in target.seeds}
    finally:
        target.close()
    assert found >= good
    assert not any("refused" in came for came in found)


def test_the_modules_that_a_guided_engine_watches_are_there() -> None:
    assert [module for modules in GUIDED.values() for module in modules if find_spec(module) is None] == []


@pytest.mark.parametrize("name", ["parser", "config", "http", "wire"])
def test_a_coverage_guided_engine_gives_inputs(name: str) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed (pip install atheris)")
    command = [sys.executable, "-m", "tests.faults.fuzz", name, "--engine", "atheris", "--inputs", "3000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert f"{name}: 3,000 inputs of atheris" in done.stdout


def test_a_coverage_guided_engine_finds_what_breaks(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed (pip install atheris)")
    code = (
        "from tests.faults.fuzz_atheris import guided; from tests.faults.fuzz_input import Target\n"
        "def check(data):\n    assert len(data) < 40\n    return 'short'\n"
        "print(guided('parser', lambda folder: Target(None, check, (b'x' * 30,)), seed=1, inputs=9000, seconds=60))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    broken = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert broken.returncode == 1
    assert "parser: a promise was broken" in broken.stderr
    (saved,) = tmp_path.glob("parser-crash-*")
    assert len(saved.read_bytes()) >= 40


def test_a_servers_url_that_is_no_text_is_refused_without_its_password() -> None:
    """As a command line gives it that is not UTF-8."""
    with pytest.raises(ConfigurationError, match="expected an URL such as") as told:
        StateStore("postgresql+psycopg://ann:sec\udcffret@host/db", create=False)
    assert "ret" not in str(told.value).replace("sqlite:///run", "")
    assert "\n" not in str(told.value)


LIKE = (  # what looks like a number or a date and is none, or says so of itself; PyYAML raises Python's own errors
    *("2024-02-30", "2024-01-01T99:00:00Z", "2024-01-01T00:00:00+99:99", "0x_", "0b_", "9" * 5000),
    *("!!int x", "!!float x", "!!bool maybe", "!!timestamp x", "!!timestamp [x]", "? [x]\n  : 1", "&a [*a]"),
)


@pytest.mark.parametrize("scalar", LIKE)
def test_what_only_looks_like_a_value_in_yaml_is_refused_in_one_line(tmp_path: Path, scalar: str) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(f"seed:\n  {scalar}\n")
    tries: list[Callable[[], Any]] = [
        lambda: effective({}, file=file, environment={}),
        lambda: load_policy(str(file)),
        lambda: effective({"detectors": f"state_norm:\n  {scalar}"}, environment={}),
        lambda: effective({}, environment={"EBBTIDE_SHADOW": f"[{scalar}]"}),
    ]
    for attempt in tries:
        with pytest.raises(ConfigurationError) as told:
            attempt()
        if str(file) in str(told.value):
            assert "\n" not in str(told.value)


@pytest.mark.parametrize("key", ["seed", "detectors", "policy", "nonsense"])
def test_aliases_in_yaml_that_double_and_double_are_refused(tmp_path: Path, key: str) -> None:
    """Written out, the 400 bytes would be 9 to the power of 10 words."""
    places = [", ".join([f"*a{place}"] * 9) for place in range(10)]
    bomb = "[&a0 [x], " + ", ".join(f"&a{place + 1} [{inner}]" for place, inner in enumerate(places)) + "]"
    file = tmp_path / "some.yaml"
    file.write_text(f"{key}: {bomb}\n")
    tries: list[Callable[[], Any]] = [
        lambda: effective({}, file=file, environment={}),
        lambda: load_policy(str(file)),
        lambda: effective({"detectors": bomb}, environment={}),
    ]
    for attempt in tries:
        with pytest.raises(ConfigurationError) as told:
            attempt()
        assert len(str(told.value)) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


@OFTEN
@given(
    st.dictionaries(st.sampled_from(["stream", "text", "tokens", "id", "ts", "role", "meta", "x"]), JSON), st.booleans()
)
def test_any_object_is_an_event_or_a_rejection(found: dict[str, Any], strict: bool) -> None:
    assert isinstance(EventParser(strict=strict).parse(json.dumps(found).encode()), Event | Rejection)


@OFTEN
@given(st.sampled_from(sorted(RunSettings.model_fields)), JSON)
def test_any_value_of_any_setting_is_taken_or_refused(tmp_path_factory: Any, name: str, value: Any) -> None:
    file = tmp_path_factory.mktemp("config") / "ebbtide.yaml"
    try:
        file.write_text(yaml.safe_dump({name: value}), "utf-8")
    except (UnicodeEncodeError, yaml.YAMLError):
        return
    try:
        effective({}, file=file, environment={})
    except ConfigurationError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most values are refused, and some are not


# --- tapes ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_tape(tmp_path_factory.mktemp("run"))


def test_every_bit_of_a_tapes_head_matters(tape: Path) -> None:
    """The policy, the detectors and the rank are there: a flipped digit would replay another run."""
    part = tape / "part-000000.arrows"
    whole = part.read_bytes()
    begin, end = whole.index(b'{"version"'), whole.index(b'{"version"') + len(read_tape(tape)[0])
    try:
        for place in range(begin, end, 3):
            part.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(ConfigurationError):
                read_tape(tape)
    finally:
        part.write_bytes(whole)


def test_what_a_tapes_first_message_is_called_is_looked_at(tape: Path) -> None:
    """Arrow reads one of an unknown type as a schema, and crashes."""
    part = tape / "part-000000.arrows"
    whole = part.read_bytes()
    named = [place for place in range(64) if whole[place] == 1 and _type_of(_with(whole, place, 249)) == "unknown"]
    assert named, "where the type is could not be found"
    try:
        for place in named:
            for value in (0, 2, 5, 6, 249, 255):
                part.write_bytes(_with(whole, place, value))
                with pytest.raises(ConfigurationError, match="this is no tape"):
                    read_tape(tape)
    finally:
        part.write_bytes(whole)


def test_record_batches_that_do_not_fit_the_head_are_refused(tape: Path) -> None:
    """A tape of version 2 had no checksum in its head."""
    reader = TapeReader(tape)
    batch = next(reader.batches())
    for changed in ({"rank": 5}, {"heads": 7}, {"dim": 3}):
        with pytest.raises(EbbtideError, match="does not fit its head"):
            rows_of(batch, reader.head.model_copy(update=changed))
    told = reader.head.model_dump()
    for name in ("layers", "heads", "rank", "dim"):
        with pytest.raises(ValueError, match="greater than 0"):
            TapeHead.model_validate(told | {name: 0})


def _with(whole: bytes, place: int, value: int) -> bytes:
    return whole[:place] + bytes([value]) + whole[place + 1 :]


def _type_of(raw: bytes) -> str:
    try:
        return str(pa.ipc.read_message(pa.BufferReader(raw)).type)
    except (OSError, pa.ArrowException):
        return "none"


@pytest.mark.parametrize("how", ["swapped", "doubled", "left out at the front", "left out in the middle"])
def test_record_batches_stay_where_they_were_written(tape: Path, how: str) -> None:
    part = tape / "part-000000.arrows"
    whole, places = part.read_bytes(), cuts(part)
    head, first, second, third = whole[: places[0]], *(whole[a:b] for a, b in pairwise(places[:4]))
    rest = whole[places[3] :]
    order = {
        "swapped": [second, first, third],
        "doubled": [first, first, second, third],
        "left out at the front": [second, third],
        "left out in the middle": [first, third],
    }
    try:
        part.write_bytes(head + b"".join(order[how]) + rest)
        with pytest.raises(EbbtideError, match=r"record batch \d is not where it was written"):
            read_tape(tape)
    finally:
        part.write_bytes(whole)


def test_a_part_that_is_missing_in_the_middle_is_noticed(tape: Path) -> None:
    part = tape / "part-000000.arrows"
    later = tape / "part-000002.arrows"
    try:
        later.write_bytes(part.read_bytes())
        with pytest.raises(
            ConfigurationError, match=r"expected parts with numbers that follow each other, got \[0, 2\]"
        ):
            read_tape(tape)
    finally:
        later.unlink()


# --- adapters ---------------------------------------------------------------------------------------------------------


class Payload:
    """What would run, were it unpickled: it makes a folder."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", [PUBLISHED_FILE, SAFETENSORS_FILE])
@pytest.mark.parametrize("packed", ["plain", "as torch saves", "as torch saved once", "beside the tensors"])
def test_what_is_pickled_in_an_adapter_does_not_run(tmp_path: Path, name: str, packed: str) -> None:
    import torch

    folder, mark = make_adapter(tmp_path / "adapter"), tmp_path / "it-ran"
    content: Any = (
        {"model.x": torch.ones(2), "evil": Payload(mark)} if packed == "beside the tensors" else Payload(mark)
    )
    for file in (PUBLISHED_FILE, SAFETENSORS_FILE):
        (folder / file).unlink()
    if packed == "plain":
        (folder / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, folder / name, _use_new_zipfile_serialization=packed != "as torch saved once")
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_tensors(folder)
    assert not mark.exists()
    # The payload is a live one: unpickled, it does run.
    raw = pickle.dumps(Payload(mark))
    pickle.loads(raw)  # noqa: S301
    assert mark.exists()


def test_an_archive_that_unpacks_to_more_than_it_says_is_refused(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter")
    (folder / SAFETENSORS_FILE).unlink()
    with zipfile.ZipFile(folder / PUBLISHED_FILE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("adapter/data.pkl", b"\0" * 50_000_000)
    assert (folder / PUBLISHED_FILE).stat().st_size < 100_000
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_tensors(folder)


@pytest.mark.parametrize("header", [b"\xff" * 8, (10**9).to_bytes(8, "little") + b"{}", b"\2" + b"\0" * 7 + b"{}x"])
def test_a_safetensors_file_with_lengths_that_lie_is_refused(tmp_path: Path, header: bytes) -> None:
    folder = make_adapter(tmp_path / "adapter")
    (folder / PUBLISHED_FILE).unlink()
    (folder / SAFETENSORS_FILE).write_bytes(header)
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_tensors(folder)


# --- HTTP -------------------------------------------------------------------------------------------------------------


def test_requests_made_from_the_applications_own_openapi() -> None:
    found, different = described(seed=0, inputs=100, seconds=60)
    assert found.total() == 100
    assert different > 80
    asked = Counter(name.partition(": ")[0] for name in found.elements())
    once = ("GET /metrics", "GET /-/healthy", "GET /-/ready", "GET /api/summary", "GET /api/events")
    assert {name: asked.pop(name) for name in once} == dict.fromkeys(once, 1), "they have no parameters"
    assert set(asked) == {"GET /api/streams", "GET /api/streams/{name}", "POST /api/streams/{name}/actions"}
    assert found["GET /api/streams: 422"], "no request that its description does not allow"
    assert found["POST /api/streams/{name}/actions: 422"], "no body was read"


def test_an_answer_that_does_not_come_is_told_with_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SampleService, "streams", lambda self, limit: [][limit])
    with pytest.raises(AssertionError, match=r"seed 5, turn 0: IndexError.*, asked b'GET /api/streams"):
        described(seed=5, inputs=40, seconds=60)


@pytest.mark.parametrize("seed", range(3))
def test_mangling_changes_something_and_is_repeatable(seed: int) -> None:
    good = b'{"stream": "ann", "text": "Hello"}'
    several = [mangled(good, Random(f"{seed}:{number}")) for number in range(50)]
    assert several == [mangled(good, Random(f"{seed}:{number}")) for number in range(50)]
    assert len(set(several)) > 40


@pytest.mark.parametrize(
    "line", ["HEAD / HTTP/1.1", "GET / HTTP/1.1", "GET /api/summary HTTP/1.1", "GET /api/events HTTP/1.1"]
)
def test_a_body_that_is_no_http_is_refused_without_a_word_in_the_log(tmp_path: Path, line: str) -> None:
    """The application was asked already: its answer would be a second one, and HEAD's refusal has no body."""
    target = TARGETS["wire"](tmp_path)
    assert target.check is not None
    try:
        head = f"{line}\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        assert target.check(head + b"ZZ\r\n") == "400"
        assert target.check(head + b"0\r\n\r\n") == "200"
    finally:
        target.close()


def test_a_query_that_is_no_text_is_no_failure(tmp_path: Path) -> None:
    """The server refuses it, so that only another server would let it through."""
    target = TARGETS["http"](tmp_path)
    assert target.check is not None
    headers = [(b"content-type", b"application/json"), (b"authorization", b"Bearer " + TOKEN.encode())]
    try:
        asked = target.check(
            written(b"POST", b"/api/streams/a/actions?\xff", headers, b'{"kind": "reset", "reason": "r"}')
        )
        assert asked == "200"
    finally:
        target.close()
