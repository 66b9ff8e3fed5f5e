"""What all tests share. Variables are set before what reads them is imported: without a GPU Triton's kernels run in its
interpreter, and threads that wait for each other do so asleep, since several processes share the processors."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import logging
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
import torch

from stream import stop_signals
from tests.warm import warm

__all__ = ["warm"]

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command that a test runs in this process ends, and the process goes on: its signals are as they were."""
    before = {number: signal.getsignal(number) for number in stop_signals.SIGNALS}
    monkeypatch.setattr(stop_signals, "_last", False)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def logs() -> Iterator[None]:
    """A command that a test runs in this process sets up its logs: the next test's go where they would have gone."""
    names = ("", "memory", "monitors", "dashboards", "stream")
    loggers = [logging.getLogger(name) for name in names]
    settings, levels, handlers = structlog.get_config(), [one.level for one in loggers], loggers[0].handlers[:]
    configured = structlog.is_configured()
    yield
    if configured:
        structlog.configure(**settings)
    else:
        structlog.reset_defaults()
    # Only what a command has put in place: pytest has handlers of its own there for the time of a test.
    for handler in [one for one in loggers[0].handlers if one not in handlers]:
        loggers[0].removeHandler(handler)
        handler.close()
    for one, level in zip(loggers, levels, strict=True):
        one.setLevel(level)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real Chromium, Debian's, that Playwright drives."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    with driver.sync_playwright() as made:
        opened = made.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()
