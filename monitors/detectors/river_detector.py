"""Any detector of `river.drift`, one object on each lane."""

from __future__ import annotations

import inspect
import json
import math
import random
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any, Literal, cast

import numpy as np
from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from memory.lane_state import LaneState, Slots
from monitors.detectors import river_codec
from monitors.detectors.detector import Detector
from monitors.detectors.slips import likely_slip
from monitors.observations import Flags, Floats


@cache
def river_classes() -> dict[str, type]:
    """Return river's detectors by name: those for numbers, then those for bits.

    Imported when first asked for: river brings libraries that take seconds to load, which `--help` should not wait for.
    """
    import river.drift
    import river.drift.binary
    from river.base import BinaryDriftDetector, DriftDetector

    return {
        name: kind
        for module in (river.drift, river.drift.binary)
        for name, kind in sorted(vars(module).items())
        if isinstance(kind, type) and issubclass(kind, DriftDetector | BinaryDriftDetector)
    }


class RiverDetector(Detector):
    """Puts a detector of `river.drift` on each lane.

    For river's own rules where no vectorised one is here. It runs Python (or compiled code) once a lane, so it costs
    far more than the others: see `docs/extending.md` for how much. A lane's object is made when its first value
    comes, from the class and its parameters: never by `clone`, which for some of them keeps what the old one had seen.

    Parameters
    ----------
    detector
        Class name in `river.drift` or `river.drift.binary`, such as ``"ADWIN"``, ``"KSWIN"`` or ``"DDM"``.
    params
        Arguments for the class, by name. A detector that draws random numbers gets ``seed=0`` if none is given: an
        unseeded one could not be replayed.
    above
        If given, the detector is fed the bit *value > above* in the place of the value. Detectors for bits are always
        fed bits; with none given, theirs is 0.5.

    Raises
    ------
    ValueError
        No such detector, or parameters that it does not take. They are tried out on a throw-away object first,
        since several of river's fail only once their window is full.

    References
    ----------
    J. Montiel et al., "River: machine learning for streaming data in Python", JMLR 22 (2021). Each detector's paper is
    cited by river.

    Examples
    --------
    >>> import numpy as np
    >>> detector = RiverDetector(detector="ADWIN", params={"clock": 1})
    >>> lanes = detector.new_lanes()
    >>> lanes.resize(1)
    >>> step = [0.0] * 50 + [1.0] * 50
    >>> [i for i, x in enumerate(step) if detector.update(lanes, np.array([0]), np.array([x]))]
    [71]
    """

    name: Literal["river"] = "river"
    detector: str = "ADWIN"
    params: dict[str, JsonValue] = Field(default_factory=dict, validate_default=True)
    above: float | None = Field(default=None, allow_inf_nan=False)

    @field_validator("detector")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in river_classes():
            raise ValueError(
                f"expected one of {', '.join(river_classes())}, got {name!r}{likely_slip(name, river_classes())}"
            )
        return name

    @field_validator("params")
    @classmethod
    def _accepted(cls, params: dict[str, JsonValue], info: ValidationInfo) -> dict[str, JsonValue]:
        if "detector" not in info.data:  # it is wrong itself, and said so
            return params
        name = info.data["detector"]
        takes = inspect.signature(river_classes()[name]).parameters
        for key, value in params.items():
            if key not in takes:
                raise ValueError(
                    f"{name} takes {', '.join(takes) or 'no arguments'}, got {key!r}{likely_slip(key, takes)}"
                )
            _check_kind(f"{name}.{key}", value, takes[key].default)
        if "seed" in takes:
            params = {"seed": 0} | params
            if params["seed"] is None:
                raise ValueError(f"{name}.seed: expected an integer, got None; unseeded, a run could not be replayed")
        return params

    @model_validator(mode="after")
    def _tried(self) -> RiverDetector:
        longest = max([200, *(value for value in self.params.values() if type(value) is int)])
        values = random.Random(0)
        try:
            probe = self.make()
            for _ in range(min(2 * longest, 10_000)):
                probe.update(self.bit(values.random()) if self.bits else values.random())
        except BaseException as error:
            # river's compiled code panics on some parameters, and its exception is no `Exception`.
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise ValueError(f"{self.detector} cannot run with {self.params}: {error}") from None
            raise
        return self

    @property
    def bits(self) -> bool:
        """Whether the detector is fed bits in the place of values."""
        from river.base import BinaryDriftDetector

        return self.above is not None or issubclass(river_classes()[self.detector], BinaryDriftDetector)

    def bit(self, value: float) -> int:
        """Return the bit that stands for a value."""
        return int(value > (0.5 if self.above is None else self.above))

    def make(self) -> Any:
        """Make one lane's object, fresh."""
        return river_classes()[self.detector](**self.params)

    def new_lanes(self) -> RiverLanes:
        """Make an empty shelf of river objects."""
        return RiverLanes(self)

    def _update(self, lanes: LaneState, slots: Slots, values: Floats) -> Flags:
        objects = cast(RiverLanes, lanes).objects
        inputs: list[Any] = values.tolist()
        if self.bits:
            inputs = [self.bit(value) for value in inputs]
        alarms = np.zeros(len(slots), dtype=np.bool_)
        for i, (slot, value) in enumerate(zip(slots.tolist(), inputs, strict=True)):
            one = objects[slot]
            if one is None:
                one = objects[slot] = self.make()
            one.update(value)
            if one.drift_detected:
                alarms[i] = True
        return alarms


class RiverLanes(LaneState):
    """River objects by slot; None where a lane is fresh.

    Parameters
    ----------
    detector
        The settings that the objects are made by.
    """

    def __init__(self, detector: RiverDetector):
        self.detector = detector
        self.objects: list[Any] = []

    @property
    def layout(self) -> str:
        """The class, its parameters, which a blob carries along, and river's version, whose insides it holds."""
        params = json.dumps(self.detector.params, sort_keys=True)
        return f"river {version('river')} {self.detector.detector} {params}"

    def resize(self, capacity: int) -> None:
        """Make room for `capacity` slots."""
        self.objects.extend([None] * (capacity - len(self.objects)))

    def clear(self, slots: Slots) -> None:
        """Forget the objects at `slots`."""
        for slot in slots.tolist():
            self.objects[slot] = None

    def dump(self, slots: Slots) -> Sequence[bytes]:
        """Return each object's whole state; nothing for a fresh lane."""
        held = (self.objects[slot] for slot in slots.tolist())
        return [b"" if one is None else river_codec.encode(one) for one in held]

    def load(self, slot: int, blob: bytes) -> None:
        """Put an object back."""
        if not blob:
            self.objects[slot] = None
            return
        fresh = self.detector.make()
        one = river_codec.decode(blob, type(fresh))
        if vars(one).keys() != vars(fresh).keys():
            raise ValueError(f"expected {self.layout} with {', '.join(vars(fresh))}, got {', '.join(vars(one))}")
        self.objects[slot] = one


def _check_kind(name: str, value: JsonValue, default: object) -> None:
    """Refuse a value of another kind than the parameter's default: river itself may find out much later, or never."""
    if isinstance(default, bool):
        fits, kind = isinstance(value, bool), "true or false"
    elif isinstance(default, int | float):
        fits, kind = _is_number(value), "a number"
    elif isinstance(default, str):
        fits, kind = isinstance(value, str), "text"
    else:
        fits = value is None or _is_number(value) or (isinstance(value, list) and all(map(_is_number, value)))
        kind = "a number, a list of numbers, or null"
    if not fits:
        raise ValueError(f"{name}: expected {kind}, got {value!r}")
    least = 1 if name in ("ADWIN.clock", "ADWIN.max_buckets") else 0  # compiled code panics on 0, with a backtrace
    if isinstance(value, int | float) and not least <= value <= river_codec.LARGEST:
        raise ValueError(f"{name}: expected a number from {least} to {river_codec.LARGEST:,}, got {value!r}")


def _is_number(value: JsonValue) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
