"""From settings to parts: the one place that knows which defaults go with which backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import structlog
import torch

from memory.backbones import HF, Backbone, HFBackbone, load_backbone
from memory.errors import ConfigurationError
from memory.projections import Projections
from memory.rule import Mode
from memory.state_pool import LaneRecord
from memory.writers import AttachedWriter, ProjectedWriter, Writer
from monitors.detectors import Detector, parse_detector
from monitors.forgetting import NullModel
from monitors.policies import load_policy
from monitors.topic_monitors import topic_monitor_for
from stream.config import BY_BACKBONE, RunSettings
from stream.engine import Engine
from stream.tape import TapeHead

log = structlog.get_logger(__name__)

SLOW_TO_COMPILE = 128
"""Ranks above this take minutes to compile the first time: 15 s at 128, over 200 s at 256."""

BATCH_TOKENS: Mapping[str, int] = {"hashing": 32768, "minilm": 4096, HF: 4096}
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
    # A language model without an adapter takes MiniLM's, unmeasured; with one, the adapter says.
    default = DEFAULTS["minilm" if settings.backbone.startswith(HF) else settings.backbone]
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
    """Build model, memory, monitors, policy and pool.

    Raises
    ------
    ConfigurationError
        The settings do not go together.
    """
    policy = load_policy("none" if settings.dry_run else settings.policy)
    device = pick_device(settings.device)
    writer = build_writer(settings, device)
    if writer.rank > SLOW_TO_COMPILE and device.type == "cpu":
        log.warning(
            "compiling", rank=writer.rank, hint="the scan is compiled once for each rank; this one takes minutes"
        )
    lane_bytes = 4 * writer.layers * writer.heads * writer.rank**2
    if settings.pool_bytes < settings.batch_events * lane_bytes:
        raise ConfigurationError(
            f"--pool-bytes {settings.pool_bytes}: a batch of {settings.batch_events} events may need as many states of "
            f"{lane_bytes} bytes: give it at least {settings.batch_events * lane_bytes}, or a smaller --batch-events"
        )
    return Engine(
        writer,
        detectors=parse_detectors(settings, writer.backbone),
        policy=policy,
        layers=chosen_layers(settings.monitor_layers, writer.layers),
        every=settings.measure_every,
        window=settings.dedupe_window,
        device=device,
        max_bytes=settings.pool_bytes,
        fetch=fetch,
    )


def parse_detectors(settings: RunSettings, backbone: Backbone) -> dict[str, Detector]:
    """Return signal → detector, the topic monitor's own where the backbone is to say.

    Examples
    --------
    >>> parse_detectors(RunSettings(), load_backbone("hashing"))["topic_shift_score"].name
    'shewhart'
    """
    given = dict(settings.detectors)
    if given.get("topic_shift_score") == BY_BACKBONE:
        given["topic_shift_score"] = topic_monitor_for(backbone).detector
    return {signal: parse_detector(detector) for signal, detector in given.items()}


def build_writer(settings: RunSettings, device: torch.device) -> Writer:
    """Load the model, and put the memory beside it or into it."""
    if settings.adapter is not None:
        return _attached(settings, settings.adapter, device)
    if settings.context != "none":
        raise ConfigurationError(f"--context {settings.context}: only a model with an --adapter has a context")
    rule = rule_of(settings)
    has_lam = Mode.parse(rule.mode) in (Mode.GATED, Mode.DECAY_OUTSIDE)
    if settings.lam is not None and not has_lam:
        raise ConfigurationError(f"--lam {settings.lam}: mode {rule.mode} has no retention gate; use --mode gated")
    if rule.mode == "gated" and settings.lam is None:
        raise ConfigurationError("--mode gated needs --lam, the retention gate, such as --lam 0.99")
    if settings.gate_gain and not 0 < rule.beta < 1:
        raise ConfigurationError(f"--gate-gain needs a β between 0 and 1 to move, got --beta {rule.beta}")
    backbone = load_backbone(settings.backbone, path=settings.backbone_path, device=device)
    if 2 * rule.rank > backbone.dim:
        raise ConfigurationError(
            f"--rank {rule.rank}: the hidden states of {backbone.name} have {backbone.dim} directions, enough for a "
            f"rank of {backbone.dim // 2} at most"
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
    return ProjectedWriter(backbone, projections, mode=rule.mode, write=rule.write)


def _attached(settings: RunSettings, adapter: Path, device: torch.device) -> Writer:
    if not settings.backbone.startswith(HF):
        raise ConfigurationError(
            f"--adapter {adapter}: an adapter goes to a language model, such as --backbone hf:FOLDER, got --backbone "
            f"{settings.backbone}"
        )
    for name in ("rank", "mode", "write", "beta", "lam"):
        value = getattr(settings, name)
        if value is not None:
            raise ConfigurationError(f"--{name} {value}: with --adapter that is the adapter's to say; leave it out")
    if settings.gate_gain:
        raise ConfigurationError(f"--gate-gain {settings.gate_gain}: with --adapter the gates are the adapter's")
    context = 0 if settings.context == "none" else int(settings.context.removeprefix("last:"))
    backbone = load_backbone(settings.backbone, device=device)
    return AttachedWriter(cast(HFBackbone, backbone), adapter, context=context)


def chosen_layers(text: str, count: int) -> list[int] | None:
    """Return the layers that are watched, or None for all.

    Raises
    ------
    ConfigurationError
        There is no such layer.

    Examples
    --------
    >>> chosen_layers("all", 4), chosen_layers("0,3", 4), chosen_layers("::2", 4), chosen_layers("0:4", 4)
    (None, [0, 3], [0, 2], None)
    """
    if text == "all":
        return None
    if ":" in text:
        chosen = list(range(count))[slice(*(int(part) if part else None for part in text.split(":")))]
    else:
        chosen = sorted({int(part) for part in text.split(",")})
    if not chosen or chosen[-1] >= count:
        raise ConfigurationError(f"--monitor-layers {text}: the memory's layers are 0..{count - 1}")
    return None if len(chosen) == count else chosen


def batch_tokens(settings: RunSettings) -> int:
    """Return the most tokens in a micro-batch: as asked, or the backbone's default."""
    return settings.batch_tokens or BATCH_TOKENS[HF if settings.backbone.startswith(HF) else settings.backbone]


def tape_head(settings: RunSettings, engine: Engine) -> TapeHead:
    """Say on a tape what it is of."""
    writer = engine.writer
    return TapeHead(
        layers=writer.layers,
        heads=writer.heads,
        rank=writer.rank,
        mode=writer.mode,
        dim=writer.backbone.dim,
        mean=None if writer.backbone.mean is None else writer.backbone.mean.tolist(),
        own_lam=writer.own_lam,
        row_gates=writer.row_gates,
        watched=engine.layers,
        every=engine.every,
        attached=isinstance(writer, AttachedWriter),
        with_text=settings.tape_text,
        policy=engine.policy.model_dump(mode="json"),
        detectors={signal: detector.model_dump(mode="json") for signal, detector in engine.detectors.items()},
        settings=writer.settings,
    )


def null_model(writer: Writer) -> NullModel | None:
    """Return what the rule alone would make of unrelated writes; None where the gates are not constant.

    Examples
    --------
    >>> model = null_model(build_writer(RunSettings(backbone="hashing", rank=8), torch.device("cpu")))
    >>> round(model.half_life, 1)
    10.7
    """
    if not isinstance(writer, ProjectedWriter) or writer.row_gates:
        return None
    return NullModel.of(writer.mode, writer.rank, writer.project.beta, writer.project.lam)
