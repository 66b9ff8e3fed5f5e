"""The command line as a user meets it: help, exit codes, one clear line for each slip, and nothing overwritten."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from memory.errors import ConfigurationError
from stream.cli import app
from stream.config import RunSettings, effective

RUN = ["run", "--backbone", "hashing", "--metrics-port", "0"]


def ebbtide(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stream.cli", *arguments], capture_output=True, text=True, timeout=120, env=env
    )


def fails(*arguments: str) -> str:
    """Run in this process; return the one line that says what is wrong."""
    with pytest.raises(ConfigurationError) as error:
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    line = str(error.value)
    assert "\n" not in line
    return line


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps({"stream": f"s{n % 3}", "text": f"word{n} and more"}) + "\n" for n in range(60)))
    return path


@pytest.mark.parametrize("command", ["run", "generate", "inspect", "config", "doctor", "dashboards"])
def test_help(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert len(result.output) > 100


@pytest.mark.parametrize("command", ["run", "config"])
def test_every_setting_has_an_option_and_a_help_text(command: str) -> None:
    shown = re.sub(r"\x1b\[[0-9;]*m", "", CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300"}).output)
    for name, field in RunSettings.model_fields.items():
        assert field.description, name
        assert f"--{name.replace('_', '-')}" in shown


def test_run_twice_resumes_and_another_rank_is_refused(talk: Path, tmp_path: Path) -> None:
    outputs = ["--state", f"sqlite:///{tmp_path}/s.db", "--sink", f"jsonl:{tmp_path}/out.jsonl"]
    first = ebbtide(*RUN, "--source", f"file:{talk}", *outputs)
    assert first.returncode == 0, first.stderr
    assert "60" in first.stdout
    before = (tmp_path / "out.jsonl").read_bytes()
    assert len(before.splitlines()) == 60

    again = ebbtide(*RUN, "--source", f"file:{talk}", *outputs)
    assert again.returncode == 0
    assert (tmp_path / "out.jsonl").read_bytes() == before

    other = ebbtide(*RUN, "--source", f"file:{talk}", *outputs, "--rank", "8")
    assert other.returncode == 2
    assert "Traceback" not in other.stderr
    assert "--rank 32" in other.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == before

    shown = ebbtide("inspect", "--state", f"sqlite:///{tmp_path}/s.db", "--json")
    held = json.loads(shown.stdout)
    assert [stream["stream"] for stream in held["streams"]] == ["s0", "s1", "s2"]
    assert str(tmp_path) not in shown.stdout


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (["--source", "file:no-such-file.jsonl"], "no-such-file"),
        (["--source", "talk.jsonl"], "file:"),
        (["--policy", "decay_on_shft"], "decay_on_shift"),
        (["--rank", "0"], "--rank"),
        (["--mode", "copled"], "coupled"),
        (["--backbone", "minlm"], "minilm"),
        (["--device", "cuda:7"], "cuda"),
        (["--mode", "gated"], "--lam"),
        (["--rank", "200"], "128"),
        (["--sink", "out.jsonl"], "jsonl:out.jsonl"),
        (["--state", "nonsense"], "sqlite:///"),
    ],
)
def test_a_slip_is_one_clear_line(
    option: list[str], expected: str, talk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(talk.parent)
    source = [] if option[0] == "--source" else ["--source", f"file:{talk}"]
    assert expected in fails(*RUN, *source, *option)


def test_a_sink_that_holds_something_is_left_alone(talk: Path, tmp_path: Path) -> None:
    sink = tmp_path / "out.jsonl"
    sink.write_text("precious\n")
    assert "never overwritten" in fails(*RUN, "--source", f"file:{talk}", "--sink", f"jsonl:{sink}")
    assert sink.read_text() == "precious\n"


def test_a_port_in_use(talk: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = fails("run", "--backbone", "hashing", "--source", f"file:{talk}", "--metrics-port", port)
    assert port in line


def test_layers_and_unknown_names(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("rank: 8\nseed: 1\n")
    settings, origins = effective({"seed": 3}, file=file, environment={"EBBTIDE_RANK": "16"})
    assert (settings.rank, settings.seed, origins["rank"], origins["seed"]) == (16, 3, "EBBTIDE_RANK", "command line")
    with pytest.raises(ConfigurationError, match="did you mean 'rank'"):
        effective({}, environment={"EBBTIDE_RNK": "16"})
    file.write_text("polcy: none\n")
    with pytest.raises(ConfigurationError, match="did you mean 'policy'"):
        effective({}, file=file, environment={})


def test_metrics_move_while_it_runs_and_sigterm_ends_it(talk: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "stream.cli",
        "run",
        "--backbone",
        "hashing",
        "--source",
        f"file:{talk}",
        "--follow",
    ]
    options = ["--metrics-port", str(port), "--state", f"sqlite:///{tmp_path}/s.db", "--checkpoint-every", "0.1"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log)
    try:
        _wait_for(port, "ebbtide_events_total 60.0")
        assert httpx.get(f"http://127.0.0.1:{port}/-/ready").status_code == 200
        with talk.open("a") as file:
            file.write('{"stream": "s9", "text": "one more"}\nnot an event\n')
        _wait_for(port, "ebbtide_events_total 61.0")
        _wait_for(port, 'ebbtide_dead_letters_total{reason="not_json"} 1.0')
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, line: str) -> None:
    end, body = time.monotonic() + 90, ""
    while time.monotonic() < end:
        try:
            body = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        except httpx.TransportError:
            body = "no answer"
        if line in body.splitlines():
            return
        time.sleep(0.1)
    raise AssertionError(f"{line!r} did not come; last: {body[:2000]}")
