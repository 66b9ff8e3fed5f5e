"""Inputs that a coverage-guided engine makes: it keeps those that reach code which none before them reached.

Atheris (libFuzzer for Python; `pip install atheris`) is not a dependency: there is no wheel of it for each Python.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import shutil
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.faults.fuzz_input import Target

GUIDED = {
    "parser": ("stream.event",),
    "tape": ("stream.tape.format", "stream.tape.tape_reader", "stream.tape.taped_writer"),
    "adapter": ("memory.deltamem.adapter_io", "memory.deltamem.config"),
    "config": ("stream.config", "monitors.detectors", "monitors.policies", "yaml"),
    "http": ("stream.http", "stream.http_actions", "stream.http_events", "stream.operators", "stream.plain_json"),
    "wire": ("stream.http", "stream.http_events", "stream.http_limits", "h11", "uvicorn.protocols.http.h11_impl"),
    "store": ("stream.store", "stream.store_tables", "stream.store_lease", "stream.store_errors", "memory.state_pool"),
}
"""The targets whose input can be bytes → the modules that are watched."""
MOST_BYTES = 1 << 16


def guided(name: str, make: Callable[[Path], Target], *, seed: int, inputs: int, seconds: float) -> str:
    """Let the engine find inputs for a target; return in a line what came of them.

    Raises
    ------
    ValueError
        The target takes more than bytes.
    AssertionError
        A promise was broken: the message names a file with the input.
    """
    from tests.faults.fuzz import HANGS, scratch

    if name not in GUIDED:
        raise ValueError(f"expected one of {', '.join(GUIDED)}, whose input is bytes, got {name}")
    folder, back = scratch(), Path.cwd()
    child = os.fork()
    if not child:  # the engine ends the process that it runs in
        os.chdir(folder)
        _run(name, make, folder, seed, inputs, seconds, HANGS)
    _, status = os.waitpid(child, 0)
    told = folder / "outcomes.json"
    found = Counter(json.loads(told.read_text())) if told.exists() else Counter[str]()
    kept = len(list((folder / "corpus").glob("*")))
    crashes = [path for path in folder.iterdir() if path.name.startswith(("crash-", "timeout-", "oom-"))]
    saved = [shutil.copy(path, back / f"{name}-{path.name}") for path in crashes]
    shutil.rmtree(folder, ignore_errors=True)
    code = os.waitstatus_to_exitcode(status)
    assert code == 0, f"{name}: a promise was broken, exit code {code}, by the input in {saved}"
    return f"{name}: {found.total():,} inputs of atheris, {kept} kept for new coverage: {dict(found.most_common())}"


def _run(
    name: str, make: Callable[[Path], Target], folder: Path, seed: int, inputs: int, seconds: float, hangs: int
) -> None:
    import atheris

    with atheris.instrument_imports(include=list(GUIDED[name])):
        for module in GUIDED[name]:
            importlib.import_module(module)
    target = make(folder)
    check = target.check
    assert check is not None
    (folder / "corpus").mkdir()
    for place, content in enumerate(target.seeds):
        (folder / "corpus" / f"seed-{place}").write_bytes(content)
    outcomes: Counter[str] = Counter()

    def one(data: bytes) -> None:
        try:
            outcomes[check(data)] += 1
        except Exception:  # the engine would end the interpreter, which waits for threads that wait for work
            traceback.print_exc()
            (folder / f"crash-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            os._exit(1)
        if not outcomes.total() % 500 or outcomes.total() >= inputs:
            (folder / "outcomes.json").write_text(json.dumps(outcomes))

    limits = [f"-runs={inputs}", f"-seed={seed + 1}", f"-max_len={MOST_BYTES}", f"-timeout={hangs}", "-verbosity=0"]
    limits += [] if math.isinf(seconds) else [f"-max_total_time={max(1, int(seconds))}"]
    atheris.Setup(["fuzz", *limits, f"-artifact_prefix={folder}/", str(folder / "corpus")], one)
    atheris.Fuzz()
    os._exit(0)
