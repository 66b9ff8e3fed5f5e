"""The search space: which policies are tried, and which values of their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from optuna.distributions import BaseDistribution
from pydantic import BaseModel, ValidationError

from memory.errors import ConfigurationError
from monitors.detectors.slips import likely_slip
from monitors.policies import POLICIES, Policy, read_yaml
from stream.tuning.ranges import Choices, Range

BUILT_IN = "the built-in space"


@dataclass(frozen=True)
class PolicySpace:
    """What is tried of one policy.

    Attributes
    ----------
    name
        The policy's.
    free
        Setting → its range or choices; a setting inside another has a dot, as in ``belief.gain``.
    fixed
        Setting → its value in every trial.
    """

    name: str
    free: dict[str, Range | Choices]
    fixed: dict[str, Any]

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return `policy.setting` → Optuna's distribution, sorted by name."""
        return {f"{self.name}.{setting}": self.free[setting].distribution() for setting in sorted(self.free)}

    def policy(self, sampled: Mapping[str, Any]) -> Policy:
        """Return the policy of a trial.

        Parameters
        ----------
        sampled
            `policy.setting` → what Optuna sampled.

        Raises
        ------
        ConfigurationError
            The policy refuses these values together.

        Examples
        --------
        >>> space = PolicySpace("auto", {"belief.gain": Range(low=1, high=9)}, {"enter": 2})
        >>> policy = space.policy({"auto.belief.gain": 3.00000012})
        >>> policy.enter, policy.belief.gain
        (2.0, 3.0)
        """
        flat = self.fixed | {name: kind.value(sampled[f"{self.name}.{name}"]) for name, kind in self.free.items()}
        try:
            return POLICIES[self.name].model_validate(_nested(flat))
        except ValidationError as error:
            raise ConfigurationError(f"{self.name} with {flat}: {_reason(error)}") from None

    def at_ends(self, sampled: Mapping[str, Any]) -> list[str]:
        """Return the settings that lie at an end of their range, where the policy would take a value past it.

        Parameters
        ----------
        sampled
            As `policy` takes it.

        Examples
        --------
        >>> space = PolicySpace("auto", {"enter": Range(low=1, high=9), "certainty": Range(low=0.5, high=0.9)}, {})
        >>> space.at_ends({"auto.enter": 8.99, "auto.certainty": 0.5})
        ['enter']
        """
        found = []
        for setting, kind in self.free.items():
            past = kind.beyond(sampled[f"{self.name}.{setting}"]) if isinstance(kind, Range) else None
            if past is None:
                continue
            try:
                POLICIES[self.name].model_validate(_nested({setting: past}))
            except ValidationError:
                continue
            found.append(setting)
        return found


@dataclass(frozen=True)
class SearchSpace:
    """Which policies are tried, and how.

    Attributes
    ----------
    policies
        Name → what is tried of it.
    where
        Where it was written, for messages.
    """

    policies: dict[str, PolicySpace]
    where: str

    def describe(self) -> dict[str, Any]:
        """Return it as plain values: two spaces that are searched alike are described alike."""
        return {
            name: {
                "free": {key: kind.model_dump(mode="json") for key, kind in sorted(space.free.items())},
                "fixed": dict(sorted(space.fixed.items())),
            }
            for name, space in sorted(self.policies.items())
        }


def default_space() -> str:
    """Return the text of the space that is searched when none is given: a file to begin with.

    Examples
    --------
    >>> [line for line in default_space().splitlines() if line.startswith("policies")]
    ['policies:']
    """
    return files("stream.tuning").joinpath("default_space.yaml").read_text("utf-8")


def read_space(path: Path | None) -> SearchSpace:
    """Read a search space.

    Parameters
    ----------
    path
        The YAML file; None: the default space.

    Raises
    ------
    ConfigurationError
        It is none, names a policy or a setting that there is not, or a value that a policy refuses. One line.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "space.yaml"
    >>> _ = path.write_text("policies: {decay: {factor: {low: 0.9, high: 0.999}}, reset_on_shift: {}}")
    >>> space = read_space(path)
    >>> space.policies["decay"].policy({"decay.factor": 0.95})
    DecayPolicy(policy='decay', factor=0.95)
    """
    where = BUILT_IN if path is None else str(path)
    with as_file(files("stream.tuning").joinpath("default_space.yaml")) as built_in:
        content = read_yaml(path or built_in)
    if not isinstance(content, dict) or list(content) != ["policies"] or not isinstance(content["policies"], dict):
        shown = f"keys {', '.join(map(str, content))}" if isinstance(content, dict) else type(content).__name__
        raise ConfigurationError(f"{where}: expected one key, policies, that holds policies by name, got {shown}")
    if not content["policies"]:
        raise ConfigurationError(f"{where}: expected at least one policy under policies, got none")
    return SearchSpace({name: _policy_space(where, name, told) for name, told in content["policies"].items()}, where)


def _policy_space(where: str, name: Any, told: Any) -> PolicySpace:
    if name not in POLICIES:
        raise ConfigurationError(
            f"{where}: expected policies among {', '.join(POLICIES)}, got {name!r}{likely_slip(name, POLICIES)}"
        )
    space = PolicySpace(name, {}, {})
    _collect(f"{where}: {name}", POLICIES[name], "", {} if told is None else told, space)
    for setting, values in [(key, kind.values) for key, kind in space.free.items()] + [
        (key, (value,)) for key, value in space.fixed.items()
    ]:
        for value in values:
            try:
                POLICIES[name].model_validate(_nested({setting: value}))
            except ValidationError as error:
                raise ConfigurationError(f"{where}: {name}.{setting} as {value!r}: {_reason(error)}") from None
    return space


def _collect(start: str, model: type[BaseModel], prefix: str, told: Any, space: PolicySpace) -> None:
    """Put what `told` says of the fields of `model` into `space`."""
    if not isinstance(told, dict):
        raise ConfigurationError(f"{start}: expected settings with their ranges, got {told!r}")
    known = {name: field for name, field in model.model_fields.items() if name != "policy"}
    for key, value in told.items():
        if key not in known:
            among = f"among {', '.join(known)}" if known else "(it has none)"
            raise ConfigurationError(f"{start}: expected settings {among}, got {key!r}{likely_slip(key, known)}")
        inner, setting, place = known[key].annotation, prefix + key, f"{start}.{key}"
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            _collect(place, inner, setting + ".", value, space)
        elif isinstance(value, dict):
            space.free[setting] = _kind(place, value, whole=_is_whole(inner))
        else:
            space.fixed[setting] = value


def _kind(place: str, value: dict[str, Any], *, whole: bool) -> Range | Choices:
    made: type[Range] | type[Choices] = Choices if "choices" in value else Range
    keys = ["low", "high", "log", "int"] if made is Range else ["choices"]
    for key in value:
        if key not in keys:
            raise ConfigurationError(
                f"{place}: expected {{low, high, log, int}} or {{choices}}, got {key!r}{likely_slip(key, keys)}"
            )
    try:
        return made.model_validate({"int": True} | value if whole and made is Range else value)
    except ValidationError as error:
        raise ConfigurationError(f"{place}: {_reason(error)}") from None


def _is_whole(annotation: Any) -> bool:
    """Say whether a field holds whole numbers.

    >>> _is_whole(int), _is_whole(int | None), _is_whole(float)
    (True, True, False)
    """
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return int in parts


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with dots in their names as settings inside settings.

    >>> _nested({"enter": 1, "belief.gain": 2, "belief.trust": 0.5})
    {'enter': 1, 'belief': {'gain': 2, 'trust': 0.5}}
    """
    made: dict[str, Any] = {}
    for name, value in flat.items():
        *outer, last = name.split(".")
        inside = made
        for part in outer:
            inside = inside.setdefault(part, {})
        inside[last] = value
    return made


def _reason(error: ValidationError) -> str:
    """Return what is wrong, in one line."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "missing":
        return f"expected {first['loc'][-1]}, got none"
    message = first["msg"][:1].lower() + first["msg"][1:]
    return message.removeprefix("input should be ").join(["expected ", f", got {first['input']!r}"])
