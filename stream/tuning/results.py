"""What a search leaves behind: two tables, the chosen policy as YAML, and a page."""

from __future__ import annotations

import json
import math
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from dashboards.tuning_page import Point, Row, TuningPage, tuning_page
from monitors.policies import POLICIES, Policy, policy_to_yaml
from stream.tuning.choice import AUTO, NONE, Judged
from stream.tuning.fingerprint import OBJECTIVES
from stream.tuning.importance import importances
from stream.tuning.intervals import percent
from stream.tuning.study import Study
from stream.tuning.trial import Figures, Trial

SHOWN = 2_000
"""Trials on the page, those of the front aside: more make it slow and no plainer."""


def write_results(study: Study, judged: Judged, out: Path, *, tape: Path, command: Sequence[str]) -> dict[str, Path]:
    """Write `trials.parquet`, `report.parquet`, `best.yaml` and `tuning.html`; where the best is not what was chosen,
    `chosen.yaml` too.

    Parameters
    ----------
    study, judged
        The search, and what it came to.
    out
        The folder, which exists.
    tape
        The tape's folder, for the page's title.
    command
        What was called, for the record.

    Returns
    -------
    dict
        What each file is → its path.
    """
    written = {name: out / name for name in ("trials.parquet", "report.parquet", "best.yaml", "tuning.html")}
    parquet.write_table(trials_table(study), written["trials.parquet"])
    parquet.write_table(report_table(study, judged), written["report.parquet"])
    best = as_yaml(study, judged, judged.recommended, tape, command)
    written["best.yaml"].write_text(best, encoding="utf-8")
    candidate = out / "chosen.yaml"
    candidate.unlink(missing_ok=True)  # of an earlier call
    if judged.chosen.number != judged.recommended.number:
        written["chosen.yaml"] = candidate
        candidate.write_text(as_yaml(study, judged, judged.chosen, tape, command), encoding="utf-8")
    page = page_of(study, judged, tape=tape, best=best, command=command)
    written["tuning.html"].write_text(tuning_page(page), encoding="utf-8")
    return written


def differing(policy: Policy) -> dict[str, Any]:
    """Return the settings that are not the defaults; one inside another has a dot.

    Examples
    --------
    >>> differing(POLICIES["auto"].model_validate({"enter": 2, "belief": {"gain": 3}}))
    {'belief.gain': 3.0, 'enter': 2.0}
    """
    mine = policy.model_dump(mode="json")
    return _difference(mine, POLICIES[mine["policy"]]().model_dump(mode="json"), "")


def trials_table(study: Study) -> pa.Table:
    """Return one row a trial: its policy and its figures on the streams that were searched on."""
    front = {trial.number for trial in study.front}
    return pa.Table.from_pylist(
        [
            {
                "trial": trial.number,
                "policy": trial.name,
                "settings": json.dumps(trial.policy.model_dump(mode="json")),
                **_figures(trial.figures),
                "front": trial.number in front,
            }
            for trial in study.trials
        ],
        schema=pa.schema([*_POLICY, *_FIGURES, ("front", pa.bool_())]),
    )


def report_table(study: Study, judged: Judged) -> pa.Table:
    """Return one row for each baseline and policy of the front: its figures on the streams that were not searched."""
    return pa.Table.from_pylist(
        [
            {
                "trial": row.trial.number,
                "policy": row.trial.name,
                "role": row.role,
                "recommended": row.trial.number == judged.recommended.number,
                "settings": json.dumps(row.trial.policy.model_dump(mode="json")),
                **_figures(row.figures),
                "change": _finite(row.change.mean),
                "change_low": _finite(row.change.low),
                "change_high": _finite(row.change.high),
                "tuned_write_error": _finite(row.trial.figures.write_error),
                "over_time": [_finite(value) for value in row.over_time],
            }
            for row in judged.rows
        ],
        schema=pa.schema(
            [
                *_POLICY,
                ("role", pa.string()),
                ("recommended", pa.bool_()),
                *_FIGURES,
                *((name, pa.float64()) for name in ("change", "change_low", "change_high", "tuned_write_error")),
                ("over_time", pa.list_(pa.float64())),
            ]
        ),
    )


def as_yaml(study: Study, judged: Judged, trial: Trial, tape: Path, command: Sequence[str]) -> str:
    """Return the file that `ebbtide run --policy` takes, with what it is worth above it."""
    row, head, settings = judged.row(trial.number), study.tape.head, study.settings
    lines = [
        f"Found by ebbtide tune: {judged.reason if trial is judged.recommended else 'chosen, and not recommended'}.",
        f"Write error {row.figures.write_error:.4f} on {len(study.report)} streams that it was not tuned on, "
        f"{row.change} against none; {row.trial.figures.write_error:.4f} on the {len(study.tune)} it was.",
        f"Error on returning topics {row.figures.recall_error:.4f}, actions per 1,000 events "
        f"{row.figures.actions_per_1000:.1f}.",
        f"Trials {len(study.trials)}, seed {settings.seed}, split {settings.split:g}, at most "
        f"{settings.max_actions:g} actions per 1,000, error on returning topics at most "
        f"{percent(settings.max_forgetting)} against none.",
        f"Tape {tape}: {study.tape.events} events of {len(study.tape.streams)} streams; "
        + ", ".join(f"{key} {value}" for key, value in head.settings.items()),
        f"Command: {shlex.join(command)}",
    ]
    return "".join(f"# {' '.join(line.split())}\n" for line in lines) + policy_to_yaml(trial.policy)


def page_of(study: Study, judged: Judged, *, tape: Path, best: str, command: Sequence[str]) -> TuningPage:
    """Return what the page shows."""
    roles = {row.trial.number: row.role for row in judged.rows}
    known = [trial for trial in study.trials if trial.number in roles]
    others = [trial for trial in study.trials if trial.number not in roles and math.isfinite(trial.figures.write_error)]
    every = max(1, math.ceil(len(others) / SHOWN))
    shown = others[::every]
    settings, ends = _settings(judged.recommended), study.at_ends(judged.recommended)
    return TuningPage(
        title=f"{tape.name}, {study.tape.events:,} events of {len(study.tape.streams)} streams",
        verdict=f"Deploy {_label(judged.recommended)}",
        reason=f"{judged.reason[:1].upper()}{judged.reason[1:]}."
        + (f" Settings: {settings}." if settings else "")
        + (f" At an end of their range, which could be wider: {', '.join(ends)}." if ends else ""),
        best=best,
        facts=facts(study, command),
        tried=[_point(trial, trial.figures, roles.get(trial.number, "tried")) for trial in [*shown, *known]],
        left_out=len(others) - len(shown),
        rows=[
            Row(
                _point(row.trial, row.figures, row.role),
                _finite(row.change.mean) or 0.0,
                _finite(row.change.low),
                _finite(row.change.high),
                row.trial.figures.write_error,
                [_finite(value) for value in row.over_time],
            )
            for row in judged.rows
            if math.isfinite(row.figures.write_error)
        ],
        importances=importances(study),
    )


def facts(study: Study, command: Sequence[str]) -> dict[str, str]:
    """Return what the figures hang on, label → value."""
    settings, head = study.settings, study.tape.head
    recorded = f"{head.layers} layers, {head.heads} heads, rank {head.rank}, mode {head.mode}"
    late, searched = len(study.tape.late), ", ".join(study.space.policies)
    return {
        "Tuned on": f"{len(study.tune)} streams: {_some(study.tune)}",
        "Reported on": f"{len(study.report)} others: {_some(study.report)}",
        "Split": f"by a hash of the stream's name, share {settings.split:g}, seed {settings.seed}",
        "Trials": f"{len(study.trials):,} in batches of {study.batch}, {len(study.front):,} on the front",
        "Searched": f"{searched} ({study.space.where})",
        "Made small": ", ".join(name.replace("_", " ") for name in OBJECTIVES[: study.objectives])
        + ("" if study.objectives == len(OBJECTIVES) else "; no topic comes back on these streams"),
        "Ended": study.stopped,
        "Chosen": f"least write error with at most {settings.max_actions:g} actions per 1,000 and at most "
        f"{percent(settings.max_forgetting).lstrip('+')} more error on returning topics than none",
        "Recorded with": recorded + (", an adapter: layers above the first are approximate" if head.attached else ""),
        **({"Begun elsewhere": f"{late} streams are not on the tape from their first event"} if late else {}),
        **({"Cut": f"{study.tape.torn.name} ends in mid-batch"} if study.tape.torn is not None else {}),
        "Versions": f"ebbtide {_version('ebbtide')}, optuna {_version('optuna')}, numpy {_version('numpy')}, "
        f"Python {platform.python_version()}",
        "Command": shlex.join(command),
    }


_POLICY = [("trial", pa.int64()), ("policy", pa.string()), ("settings", pa.string())]
_FIGURES = [(name, pa.float64()) for name in ("write_error", "recall_error", "actions_per_1000")]


def _figures(figures: Figures) -> dict[str, float | None]:
    return {
        "write_error": _finite(figures.write_error),
        "recall_error": _finite(figures.recall_error),
        "actions_per_1000": figures.actions_per_1000,
    }


def _point(trial: Trial, figures: Figures, role: str) -> Point:
    label = {NONE: "none", AUTO: "auto, defaults"}.get(trial.number, f"{trial.name} #{trial.number}")
    recall = _finite(figures.recall_error)
    return Point(label, _settings(trial), role, figures.write_error, recall, figures.actions_per_1000)


def _label(trial: Trial) -> str:
    return {NONE: "none", AUTO: "auto with its defaults"}.get(trial.number, f"{trial.name} #{trial.number}")


def _settings(trial: Trial) -> str:
    return ", ".join(f"{key} {_shown(value)}" for key, value in differing(trial.policy).items())


def _difference(mine: dict[str, Any], default: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in mine.items():
        if isinstance(value, dict):
            found |= _difference(value, default[key], f"{prefix}{key}.")
        elif value != default[key]:
            found[prefix + key] = value
    return dict(sorted(found.items()))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return " + ".join(map(str, value)) if isinstance(value, list) else str(value)


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
