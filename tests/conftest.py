"""What all tests share. Set before anything imports Triton: without a GPU its kernels run in its interpreter."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


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
