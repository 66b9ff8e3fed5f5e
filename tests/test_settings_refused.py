"""Settings that no run can have: refused in one line, before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.warm import Warm

SETTINGS = {
    "a NUL in the source": 'source: "file:x\\0y"',
    "a NUL in the sink": 'sink: "jsonl:x\\0y"',
    "half a character in the store": 'state: "sqlite:///x\\ud800y.db"',
    "a NUL in the tape": 'tape: "x\\0y"',
    "a sink that is the root": "sink: jsonl:/",
    "a sink that is a folder": "sink: jsonl:.",
    "looks at no event ever": "measure_every: 1000000000000000000000000000000",
    "a layer of many digits": f"monitor_layers: '{'9' * 5000}'",
    "a policy without end": "policy: /dev/full",
    "a day that is none": "seed: 2024-02-30",
    "aliases": "detectors: [&a [x], &b [*a, *a]]",
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_it_is_refused_in_one_line(setting: str, warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"stream": "ann", "text": "tea"}\n')
    file = tmp_path / "ebbtide.yaml"
    given = [setting] if setting.startswith("source") else [f"source: file:{tmp_path / 'in.jsonl'}", setting]
    file.write_text("\n".join([*given, "backbone: hashing", "metrics_port: 0"]) + "\n")
    done = warm.run(["run", "--config", file])
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("ebbtide: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
