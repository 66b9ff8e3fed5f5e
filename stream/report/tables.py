"""Configuration, counters and versions, as words for the report's tables."""

from __future__ import annotations

import platform
from importlib.metadata import version

import numpy as np
import torch

from stream.store import StateStore


def versions() -> dict[str, str]:
    """Return what the report was made with.

    Examples
    --------
    >>> list(versions())
    ['ebbtide', 'python', 'torch', 'numpy', 'plotly']
    """
    return {
        "ebbtide": version("ebbtide"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "plotly": version("plotly"),
    }


def from_state(url: str) -> dict[str, dict[str, str]]:
    """Return the settings that a store's states depend on, and its counters as of the last checkpoint.

    Raises
    ------
    ConfigurationError
        There is no such store.
    """
    store = StateStore(url, create=False)
    try:
        counters = {}
        for name, rows in sorted(store.load().counters.items()):
            for *labels, value in rows:
                shown = f"{{{', '.join(map(str, labels))}}}" if labels else ""
                counters[f"{name.removeprefix('ebbtide_')}{shown}"] = f"{value:,}"
        stored = {"streams": f"{store.count():,}", **{name: str(value) for name, value in store.settings.items()}}
    finally:
        store.close()
    return {"State store": stored, "Counters at the last checkpoint": counters}
