"""What the HTTP server sends as JSON: ASCII, and no number that JSON does not have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Return `value` as JSON has it: numpy numbers as numbers, NaN and infinities as null.

    Examples
    --------
    >>> plain({"state_norm": np.float32(1.5), "recent": [float("nan"), 2]})
    {'state_norm': 1.5, 'recent': [None, 2]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(value: Any) -> bytes:
    r"""Return `value` as ASCII JSON on one line.

    A stream's name may hold what UTF-8 cannot encode, such as half of a surrogate pair.

    Examples
    --------
    >>> to_json({"stream": "\ud800", "seq": 3})
    b'{"stream":"\\ud800","seq":3}'
    """
    return json.dumps(plain(value), allow_nan=False, separators=(",", ":")).encode("ascii")
