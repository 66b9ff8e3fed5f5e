"""The delta rule, the states, and everything on the device. Knows nothing of streams, metrics or policies.

The names below are loaded when they are first asked for: torch and numba take seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memory.backbones import Backbone, Encoded, load_backbone
    from memory.errors import ConfigurationError, EbbtideError, StateMismatchError
    from memory.lane_state import Column, Columns, LaneState
    from memory.probes import probe_errors
    from memory.projections import Projected, Projections
    from memory.rule import Mode, coefficients
    from memory.scan_forms import ScanResult, scan, scan_support
    from memory.spectral import largest_singular_value
    from memory.state_pool import LaneRecord, StatePool

_HOMES = {
    "memory.backbones": ("Backbone", "Encoded", "load_backbone"),
    "memory.errors": ("ConfigurationError", "EbbtideError", "StateMismatchError"),
    "memory.lane_state": ("Column", "Columns", "LaneState"),
    "memory.probes": ("probe_errors",),
    "memory.projections": ("Projected", "Projections"),
    "memory.rule": ("Mode", "coefficients"),
    "memory.scan_forms": ("ScanResult", "scan", "scan_support"),
    "memory.spectral": ("largest_singular_value",),
    "memory.state_pool": ("LaneRecord", "StatePool"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Backbone",
    "Column",
    "Columns",
    "ConfigurationError",
    "EbbtideError",
    "Encoded",
    "LaneRecord",
    "LaneState",
    "Mode",
    "Projected",
    "Projections",
    "ScanResult",
    "StateMismatchError",
    "StatePool",
    "coefficients",
    "largest_singular_value",
    "load_backbone",
    "probe_errors",
    "scan",
    "scan_support",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'memory' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
