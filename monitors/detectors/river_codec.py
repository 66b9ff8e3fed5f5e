"""One river object as bytes and back, without pickle: reading a checkpoint must never be able to run what is in it.

The bytes are JSON. None, booleans, integers, finite floats and text stand for themselves; everything else is an object
with one key that says what it is:

    {"float": "inf"}                                            inf, -inf, nan
    {"bytes": "base64"}
    {"tuple": [...]}
    {"method": "_test_both", "of": ...}                         a bound method, by name
    {"list": [...]}  {"dict": [[key, value], ...]}              shared by reference, like all that follow
    {"deque": [...], "maxlen": 100}
    {"random": "base64 of 625 uint32", "gauss": null}           the state of a `random.Random`
    {"object": "river.stats.mean:Mean", "new": [...], "state": ...}
    {"ref": 3}                                                  the fourth shared thing met, again

Encoding walks what `__reduce_ex__(2)` says of an object, the protocol by which river's objects (its compiled ones too)
hand out their whole state. Decoding never calls it: an object is made by `__new__` alone, its class must already be
loaded and live under `river.`, and nothing is imported.
"""

from __future__ import annotations

import base64
import json
import math
import random
import struct
import sys
import types
from collections import deque
from typing import Any, NoReturn

import numpy as np

COMPILED = "river._river_rust."
"""Where river keeps its compiled classes: their `__new__` takes arguments, and they restore themselves."""

LARGEST = 1_000_000
"""No integer handed to a compiled class may be larger: they reserve what they are told to, or abort the process."""


def encode(subject: object) -> bytes:
    """Return the whole state of a river object.

    Parameters
    ----------
    subject
        An object of a class under `river.`, such as a drift detector.

    Returns
    -------
    bytes
        JSON in ASCII. Equal states give equal bytes. numpy scalars become Python numbers of the same value.

    Raises
    ------
    ValueError
        Somewhere in the object is a thing that this form has no word for.

    Examples
    --------
    >>> from river.stats import Mean
    >>> mean = Mean()
    >>> mean.update(0.5)
    >>> encode(mean)
    b'{"object":"river.stats.mean:Mean","new":[],"state":{"dict":[["n",1.0],["_mean",0.5]]}}'
    """
    text = json.dumps(_Encoder().encode(subject), separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def decode(blob: bytes, expected: type) -> Any:
    """Return the object that `encode` turned into `blob`.

    Parameters
    ----------
    blob
        What `encode` returned. May come from anywhere: at worst it is refused.
    expected
        The class that the object must have, exactly.

    Raises
    ------
    ValueError
        The bytes are not such an object, or name a class outside `river.`.

    Examples
    --------
    >>> from river.stats import Mean
    >>> mean = decode(b'{"object":"river.stats.mean:Mean","new":[],"state":{"dict":[["n",1.0],["_mean",0.5]]}}', Mean)
    >>> mean.get()
    0.5
    >>> decode(b'{"object":"os:system","new":["true"],"state":null}', Mean)
    Traceback (most recent call last):
    ...
    ValueError: expected a class under 'river.', got 'os:system'; these bytes are damaged or not a detector's
    """
    try:
        subject = _Decoder().decode(json.loads(blob, parse_constant=_refuse_constant))
    except ValueError:
        raise
    except RecursionError:
        raise ValueError("expected a detector's state, got a nest of values too deep to be one") from None
    except (TypeError, KeyError, IndexError, AttributeError, OverflowError, struct.error) as error:
        raise ValueError(f"expected a detector's state, got bytes that make none: {error!r}") from error
    if type(subject) is not expected:
        raise ValueError(f"expected the state of a {expected.__name__}, got that of a {type(subject).__name__}")
    return subject


class _Encoder:
    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        self.kept: list[object] = []  # what was seen must live until the end, or its id could be given to another

    def encode(self, value: Any) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if kind is bytes:
            return {"bytes": base64.b64encode(value).decode("ascii")}
        if kind is tuple:
            return {"tuple": [self.encode(item) for item in value]}
        if kind is types.MethodType:
            return {"method": value.__func__.__name__, "of": self.encode(value.__self__)}
        if id(value) in self.seen:
            return {"ref": self.seen[id(value)]}
        self.seen[id(value)] = len(self.seen)
        self.kept.append(value)
        if kind is list:
            return {"list": [self.encode(item) for item in value]}
        if kind is dict:
            return self.write_pairs(value)
        if kind is deque:
            return {"deque": [self.encode(item) for item in value], "maxlen": value.maxlen}
        if kind is random.Random:
            _, numbers, gauss = value.getstate()
            packed = base64.b64encode(struct.pack("<625I", *numbers)).decode("ascii")
            return {"random": packed, "gauss": self.encode(gauss)}
        return self.write_object(value)

    def write_pairs(self, value: dict[Any, Any]) -> Any:
        return {"dict": [[self.encode(key), self.encode(item)] for key, item in value.items()]}

    def write_object(self, value: Any) -> Any:
        kind = type(value)
        name = f"{kind.__module__}:{kind.__qualname__}"
        if not kind.__module__.startswith("river."):
            raise ValueError(f"expected only river's own objects in a detector, got one of class {name!r}")
        make, (made, *arguments), state, *items = (*value.__reduce_ex__(2), None)[:5]
        plain = getattr(make, "__name__", "") == "__newobj__" and made is kind and all(part is None for part in items)
        if kind.__module__.startswith(COMPILED):
            plain = plain and type(state) is bytes
        else:
            plain = plain and not arguments and type(state) is dict and not hasattr(kind, "__setstate__")
        if not plain:
            raise ValueError(f"expected an object made by __new__ alone that holds a dict or bytes, got {name!r}")
        # A plain object's dict is its own: written by its content, not as a thing that others might share.
        held = self.write_pairs(state) if type(state) is dict else self.encode(state)
        return {"object": name, "new": [self.encode(argument) for argument in arguments], "state": held}


class _Decoder:
    def __init__(self) -> None:
        self.met: list[Any] = []

    def decode(self, value: Any) -> Any:
        match value:
            case None | bool() | int() | float() | str():
                return value
            case {"float": "inf" | "-inf" | "nan" as text}:
                return float(text)
            case {"bytes": str(text)}:
                return base64.b64decode(text, validate=True)
            case {"tuple": list(items)}:
                return tuple(self.decode(item) for item in items)
            case {"ref": int(index)} if 0 <= index < len(self.met):
                return self.met[index]
            case {"method": str(name), "of": owner}:
                return self.read_method(name, self.decode(owner))
            case {"list": list(items)}:
                made_list: list[Any] = self.meet([])
                made_list.extend(self.decode(item) for item in items)
                return made_list
            case {"dict": list(pairs)}:
                made_dict: dict[Any, Any] = self.meet({})
                made_dict.update(self.read_pairs(pairs))
                return made_dict
            case {"deque": list(items), "maxlen": int() | None as longest}:
                made_deque: deque[Any] = self.meet(deque(maxlen=longest))
                made_deque.extend(self.decode(item) for item in items)
                return made_deque
            case {"random": str(text), "gauss": gauss}:
                generator = self.meet(random.Random(0))
                numbers = struct.unpack("<625I", base64.b64decode(text, validate=True))
                generator.setstate((3, numbers, self.decode(gauss)))
                return generator
            case {"object": str(name), "new": list(arguments), "state": state}:
                return self.read_object(name, arguments, state)
            case _:
                raise ValueError(f"expected a value as `encode` writes it, got {str(value)[:80]!r}")

    def meet(self, made: Any) -> Any:
        self.met.append(made)
        return made

    def read_pairs(self, pairs: list[Any]) -> dict[Any, Any]:
        return {self.decode(key): self.decode(item) for key, item in pairs}

    def read_object(self, name: str, arguments: list[Any], state: Any) -> Any:
        kind = _river_class(name)
        if not kind.__module__.startswith(COMPILED):
            made = self.meet(object.__new__(kind))
            held = self.read_pairs(state["dict"])
            if not all(type(attribute) is str for attribute in held):
                raise ValueError(f"expected names of attributes in a {name}, got {str(list(held))[:80]}")
            vars(made).update(held)
            return made
        index = len(self.met)
        self.met.append(None)  # its place in the order; nothing inside a compiled object refers to it
        given = [self.decode(argument) for argument in arguments]
        if any(type(argument) not in (int, float) or abs(argument) > LARGEST for argument in given):
            raise ValueError(f"expected up to {LARGEST:,} for each argument of {name}, got {str(given)[:80]}")
        self.met[index] = made = _restore_compiled(kind, given, self.decode(state))
        return made

    @staticmethod
    def read_method(name: str, owner: Any) -> Any:
        if not type(owner).__module__.startswith("river.") or not isinstance(
            getattr(type(owner), name, None), types.FunctionType
        ):
            raise ValueError(f"expected a method of a river object, got {name!r} of a {type(owner).__name__}")
        return getattr(owner, name)


def _river_class(name: str) -> type:
    """Return the class that `module:Class` names, if it is river's and loaded already."""
    module, _, qualname = name.partition(":")
    kind = getattr(sys.modules.get(module), qualname, None) if module.startswith("river.") else None
    # river's modules import others: the class must not only be found there, it must be at home there.
    if not isinstance(kind, type) or (kind.__module__, kind.__qualname__) != (module, qualname):
        raise ValueError(
            f"expected a class under 'river.', got {name[:80]!r}; these bytes are damaged or not a detector's"
        )
    return kind


def _restore_compiled(kind: type, arguments: list[Any], state: Any) -> Any:
    try:
        made = kind.__new__(kind, *arguments)
        made.__setstate__(state)
    except BaseException as error:
        # Damaged bytes make the compiled code panic, and its exception is no `Exception`.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(f"expected the state of a {kind.__name__}, got bytes that it refuses: {error}") from None
        raise
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"expected numbers as `encode` writes them, got a bare {name}")
