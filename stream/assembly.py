"""From settings to parts: the one place that knows which defaults go with which backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from memory.backbones import Backbone, load_backbone
from memory.errors import ConfigurationError
from memory.projections import Projections
from memory.rule import Mode
from memory.state_pool import LaneRecord
from monitors.detectors import parse_detector
from monitors.policies import load_policy
from stream.config import RunSettings
from stream.engine import Engine

BATCH_TOKENS: Mapping[str, int] = {"hashing": 32768, "minilm": 4096}
"""Most tokens in a micro-batch: about a second of MiniLM on two cores, so that a stop is quick."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How a memory is written: R, the delta rule's mode, what one write is, and the gate β."""

    rank: int
    mode: str
    write: str
    beta: float


DEFAULTS: Mapping[str, Rule] = {
    "hashing": Rule(rank=32, mode="plain", write="segment", beta=0.5),
    "minilm": Rule(rank=64, mode="plain", write="segment", beta=0.5),
}
"""Chosen by measured retention on real conversations: docs/retention.md has the table and the command."""


def rule_of(settings: RunSettings) -> Rule:
    """Return the rule of a run: what the settings say, and the backbone's defaults for the rest.

    Examples
    --------
    >>> rule_of(RunSettings(backbone="hashing", rank=8))
    Rule(rank=8, mode='plain', write='segment', beta=0.5)
    """
    default = DEFAULTS[settings.backbone]
    return Rule(
        settings.rank if settings.rank is not None else default.rank,
        settings.mode if settings.mode is not None else default.mode,
        settings.write if settings.write is not None else default.write,
        settings.beta if settings.beta is not None else default.beta,
    )


def pick_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu`` or ``cuda:N`` into a device that is there.

    Raises
    ------
    ConfigurationError
        It is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigurationError(f"--device {name!r}: expected auto, cpu or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"--device {name!r}: expected auto, cpu or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"--device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices that torch can use; "
            "use --device cpu (ebbtide doctor says more)"
        )
    return device


def build_engine(
    settings: RunSettings, fetch: Callable[[Sequence[str]], Mapping[str, LaneRecord]] | None = None
) -> Engine:
    """Build backbone, projections, monitors, policy and pool.

    Raises
    ------
    ConfigurationError
        The settings do not go together.
    """
    rule = rule_of(settings)
    has_lam = Mode.parse(rule.mode) in (Mode.GATED, Mode.DECAY_OUTSIDE)
    if settings.lam is not None and not has_lam:
        raise ConfigurationError(f"--lam {settings.lam}: mode {rule.mode} has no retention gate; use --mode gated")
    if rule.mode == "gated" and settings.lam is None:
        raise ConfigurationError("--mode gated needs --lam, the retention gate, such as --lam 0.99")
    if settings.gate_gain and not 0 < rule.beta < 1:
        raise ConfigurationError(f"--gate-gain needs a β between 0 and 1 to move, got --beta {rule.beta}")
    policy = load_policy(settings.policy)
    device = pick_device(settings.device)
    backbone = load_backbone(settings.backbone, path=settings.backbone_path, device=device)
    if 2 * rule.rank > backbone.dim:
        raise ConfigurationError(
            f"--rank {rule.rank}: the hidden states of {backbone.name} have {backbone.dim} directions, enough for a "
            f"rank of {backbone.dim // 2} at most"
        )
    lane_bytes = 4 * rule.rank**2
    if settings.pool_bytes < settings.batch_events * lane_bytes:
        raise ConfigurationError(
            f"--pool-bytes {settings.pool_bytes}: a batch of {settings.batch_events} events may need as many states of "
            f"{lane_bytes} bytes: give it at least {settings.batch_events * lane_bytes}, or a smaller --batch-events"
        )
    projections = Projections(
        backbone.dim,
        1,
        rule.rank,
        beta=rule.beta,
        gain=settings.gate_gain,
        lam=settings.lam,
        mean=backbone.mean,
        seed=settings.seed,
        device=device,
    )
    return Engine(
        backbone,
        projections,
        mode=rule.mode,
        write=rule.write,
        detectors={signal: parse_detector(detector) for signal, detector in settings.detectors.items()},
        policy=policy,
        device=device,
        max_bytes=settings.pool_bytes,
        fetch=fetch,
    )


def stored_settings(settings: RunSettings, backbone: Backbone) -> dict[str, str]:
    """Return what stored states depend on, by option: a store made under others is refused."""
    rule = rule_of(settings)
    return {
        "--backbone": backbone.fingerprint,
        "--rank": str(rule.rank),
        "--mode": rule.mode,
        "--write": rule.write,
        "--beta": str(rule.beta),
        "--lam": str(settings.lam),
        "--gate-gain": str(settings.gate_gain),
        "--seed": str(settings.seed),
    }
