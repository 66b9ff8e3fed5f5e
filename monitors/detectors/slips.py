"""One line that says what was expected, what came and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from memory.errors import ConfigurationError

Settings = TypeVar("Settings", bound=BaseModel)


def likely_slip(given: object, known: Iterable[str]) -> str:
    """Return what was probably meant, to be put at a message's end; empty when nothing is near.

    Examples
    --------
    >>> likely_slip("ADWIM", ["ADWIN", "KSWIN"])
    "; did you mean 'ADWIN'?"
    >>> likely_slip("tracking", ["ADWIN", "KSWIN"])
    ''
    """
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(given).lower(), list(names), n=2)
    return f"; did you mean {' or '.join(repr(names[name]) for name in near)}?" if near else ""


def read_settings(data: object, kinds: Mapping[str, type[Settings]], key: str, what: str, where: str = "") -> Settings:
    """Return the settings that `data` describes, or say in one line what is wrong with it.

    Parameters
    ----------
    data
        A mapping such as ``{"name": "threshold", "above": 0.5}``.
    kinds
        Name → class, one of which `data` chooses.
    key
        The key of `data` that holds the name.
    what
        What is being read, for the message: ``"a detector"``.
    where
        Where it was written, for the message: a file's name. Empty: nowhere in particular.

    Raises
    ------
    ConfigurationError
        No such name, an unknown key, or a value out of range.

    Examples
    --------
    >>> from monitors.detectors.threshold import Threshold
    >>> read_settings({"name": "threshold", "abov": 2}, {"threshold": Threshold}, "name", "a detector", "a.yaml")
    Traceback (most recent call last):
    ...
    memory.errors.ConfigurationError: a.yaml: threshold has no key 'abov', given 2; did you mean 'above'?
    """
    start = f"{where}: " if where else ""
    if not isinstance(data, Mapping):
        raise ConfigurationError(f"{start}expected {what} as keys and values, got {_short(data)}")
    name = data.get(key)
    if not isinstance(name, str) or name not in kinds:
        given = f"{key}: {_short(name)}" if key in data else f"no key {key!r} among {_short(list(data))}"
        slip = likely_slip(name, kinds) if key in data else ""
        raise ConfigurationError(f"{start}expected {what} with {key!r} one of {', '.join(kinds)}, got {given}{slip}")
    try:
        return kinds[name].model_validate(dict(data))
    except ValidationError as error:
        _raise_in_one_line(error, start, name, kinds[name])


def _raise_in_one_line(error: ValidationError, start: str, name: str, kind: type[BaseModel]) -> NoReturn:
    wrongs = []
    for wrong in error.errors(include_url=False):
        place = ".".join(str(part) for part in wrong["loc"])
        if wrong["type"] == "extra_forbidden":
            slip = likely_slip(wrong["loc"][-1], kind.model_fields)
            wrongs.append(f"{name} has no key {place!r}, given {_short(wrong['input'])}{slip}")
        elif wrong["type"] == "value_error":  # a validator of ours, whose message is complete
            wrongs.append(f"{name}.{place}: {wrong['ctx']['error']}" if place else f"{name}: {wrong['ctx']['error']}")
        else:
            wrongs.append(f"{name}.{place}: {wrong['msg'][:1].lower()}{wrong['msg'][1:]}, got {_short(wrong['input'])}")
    raise ConfigurationError(start + "; and ".join(wrongs)) from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
