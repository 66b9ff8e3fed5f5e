"""Which policy to deploy: chosen on one part of the streams, judged on the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stream.many import Scores, score
from stream.tuning.intervals import Change, paired_change
from stream.tuning.study import Study
from stream.tuning.trial import Figures, Trial

NONE, AUTO = 0, 1
"""The first two trials of every study: `none`, and `auto` with its defaults."""

SLICES = 24
"""Parts of each stream's length that the error over time is shown in."""


@dataclass(frozen=True)
class Reported:
    """A policy on the streams that the search did not see.

    Attributes
    ----------
    trial
        Which policy, with its figures on the streams that were searched on.
    role
        ``none``, ``auto``, ``chosen`` or ``front``.
    figures
        On the streams that are reported on.
    change
        Of the write error against `none`.
    over_time
        Write error in equal parts of each stream's length.
    """

    trial: Trial
    role: str
    figures: Figures
    change: Change
    over_time: list[float]


@dataclass(frozen=True)
class Judged:
    """What a search came to.

    Attributes
    ----------
    rows
        `none`, `auto` with its defaults, the chosen policy, then the rest of the front by actions.
    chosen
        The best within the limits, on the streams that were searched on.
    recommended
        What to deploy: the chosen policy where it is surely better than what needs no tuning.
    reason
        Why.
    against_auto
        The chosen policy's change against `auto` with its defaults.
    """

    rows: list[Reported]
    chosen: Trial
    recommended: Trial
    reason: str
    against_auto: Change

    def row(self, number: int) -> Reported:
        """Return the row of a trial."""
        return next(row for row in self.rows if row.trial.number == number)


def choose(study: Study) -> Trial:
    """Return the trial with the least write error among those within the limits.

    They are `max_actions`, and `max_forgetting` against the error of `none` on returning topics. Of equal ones the
    earliest: `none` comes first.
    """
    settings, none = study.settings, study.trials[NONE].figures
    most = none.recall_error * (1 + settings.max_forgetting)

    def allowed(trial: Trial) -> bool:
        figures = trial.figures
        forgets = math.isfinite(most) and not figures.recall_error <= most
        return figures.actions_per_1000 <= settings.max_actions and not forgets and math.isfinite(figures.write_error)

    return min(
        (trial for trial in study.trials if trial.number == NONE or allowed(trial)),
        key=lambda trial: (trial.figures.write_error, trial.number),
    )


def judge(study: Study) -> Judged:
    """Score the front and the baselines on the streams that the search did not see, and choose."""
    chosen = choose(study)
    roles = {NONE: "none", AUTO: "auto"}
    roles.setdefault(chosen.number, "chosen")
    for trial in sorted(study.front, key=lambda trial: (trial.figures.actions_per_1000, trial.number)):
        roles.setdefault(trial.number, "front")
    trials = [study.trials[number] for number in roles]
    scores = score(study.tape, [trial.policy for trial in trials], streams=study.report, slices=SLICES)
    rows = [
        Reported(
            trial,
            roles[trial.number],
            Figures.of(scores, place),
            _change(study, scores, place, NONE),
            scores.over_time[place].tolist(),
        )
        for place, trial in enumerate(trials)
    ]
    place = next(place for place, trial in enumerate(trials) if trial.number == chosen.number)
    against_auto = _change(study, scores, place, AUTO)
    recommended, reason = _recommend(study, rows[place], rows[AUTO], against_auto)
    return Judged(rows, chosen, recommended, reason, against_auto)


def _change(study: Study, scores: Scores, place: int, base: int) -> Change:
    events = np.array([int((study.tape.streams[name].writes > 0).sum()) for name in scores.streams])
    return paired_change(scores.by_stream[place], scores.by_stream[base], events, study.settings.seed)


def _recommend(study: Study, chosen: Reported, auto: Reported, against_auto: Change) -> tuple[Trial, str]:
    """Take the simplest of none, auto and the chosen policy that nothing else is surely better than."""
    none = study.trials[NONE]
    if chosen.trial.number == NONE:
        return none, "no policy within the limits predicts better than doing nothing, where the search looked"
    if len(study.report) < 2:
        return none, (
            "the other part is a single stream, so nothing can be told about others; the chosen policy is no more "
            "than a candidate"
        )
    if chosen.trial.number == AUTO:
        if chosen.change.sure_gain:
            return (
                auto.trial,
                f"auto with its defaults is the best within the limits: error {chosen.change} against none",
            )
        return none, f"auto with its defaults cannot be told from doing nothing: error {chosen.change}"
    if not chosen.change.sure_gain:
        return none, f"the chosen policy cannot be told from doing nothing: error {chosen.change}"
    auto_allowed = auto.trial.figures.actions_per_1000 <= study.settings.max_actions
    if auto_allowed and auto.change.sure_gain and not against_auto.sure_gain:
        return auto.trial, (
            f"the chosen policy cannot be told from auto with its defaults (error {against_auto}), which is surely "
            "better than doing nothing"
        )
    return chosen.trial, f"the chosen policy is surely better than doing nothing: error {chosen.change}"
