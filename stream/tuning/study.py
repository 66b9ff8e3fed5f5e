"""The search: ask for a batch of policies, score it in one pass, tell, until there is a reason to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial

from memory.errors import ConfigurationError
from monitors.observations import Floats
from monitors.policies import AutoPolicy, NoPolicy, Policy
from stream.many import LoadedTape, score
from stream.tuning.fingerprint import DIFFERENCES, OBJECTIVES, fingerprint
from stream.tuning.front import hypervolume, on_front
from stream.tuning.journal import NAME, SqliteJournal
from stream.tuning.quiet import quiet
from stream.tuning.sampling import costs, seed_of, shares, suggest
from stream.tuning.settings import TuneSettings
from stream.tuning.space import SearchSpace
from stream.tuning.split import split_streams
from stream.tuning.trial import Figures, Trial

GAIN = 0.001
"""The least growth of the front's hypervolume that counts as progress: one part in a thousand."""


@dataclass
class Study:
    """A search on one tape.

    Attributes
    ----------
    tape, space, settings
        What it was given.
    tune, report
        The streams that are searched on, and those that are reported on.
    objectives
        How many of `OBJECTIVES` there are on this tape.
    trials
        What was tried so far.
    batch
        Policies scored in one pass.
    resumed
        How many of them were there already.
    stopped
        Why it ended.
    """

    tape: LoadedTape
    space: SearchSpace
    settings: TuneSettings
    tune: list[str]
    report: list[str]
    objectives: int = len(OBJECTIVES)
    batch: int = 0
    trials: list[Trial] = field(default_factory=list)
    resumed: int = 0
    stopped: str = ""
    _frozen: list[FrozenTrial] = field(default_factory=list)
    _volume: float = 0.0
    _progress_at: int = 0

    @classmethod
    def of(cls, tape: LoadedTape, space: SearchSpace, settings: TuneSettings) -> Study:
        """Return a search that has not begun."""
        tune, report = split_streams(list(tape.streams), settings.split, settings.seed)
        return cls(
            tape, space, settings, tune, report, batch=settings.batch or min(max(settings.trials // 8, 64), 2048)
        )

    def run(
        self,
        journal: SqliteJournal,
        folder: Path,
        *,
        each: Callable[[int, float], None] = lambda trials, part: None,
        told: Callable[[Study], None] = lambda study: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Search until there is a reason to stop, or go on where the journal ends.

        Parameters
        ----------
        journal
            Where the study is kept.
        folder
            Of the tape, to know it again.
        each
            Called now and then with the trials done, and the share of the batch that is being scored.
        told
            Called after each batch.
        stop
            Asked after each batch whether to stop.

        Raises
        ------
        ConfigurationError
            The journal holds another search.
        """
        began = time.monotonic()
        known = fingerprint(self.tape, self.space, self.settings, self.batch, folder)
        kept = self._open(journal, known)
        journal.commit()
        while not (reason := self._reason(began, stop)):
            batch = self._ask()
            done = len(self.trials)
            total = len(batch)
            scores = score(
                self.tape,
                [policy for policy, _ in batch],
                streams=self.tune,
                each=lambda part, whole, done=done, total=total: each(done, total * part / max(whole, 1)),  # type: ignore[misc]
            )
            for place, (policy, sampled) in enumerate(batch):
                trial = Trial(done + place, policy, sampled, Figures.of(scores, place))
                if not trial.number and math.isnan(trial.figures.recall_error):
                    self.objectives = len(OBJECTIVES) - 1
                self._take(trial)
            if kept is None:
                kept = self._create(journal, known)
            kept.add_trials(self._frozen[done:])
            journal.commit()
            self._look(len(self.trials))
            each(len(self.trials), 0.0)
            told(self)
        self.stopped = reason

    @property
    def front(self) -> list[Trial]:
        """The trials that no other beats."""
        return [self.trials[place] for place in np.flatnonzero(on_front(costs(self._frozen))).tolist()]

    def at_ends(self, trial: Trial) -> list[str]:
        """Return the settings of a trial that lie at an end of their range, which might therefore be wider."""
        return self.space.policies[trial.name].at_ends(trial.sampled) if trial.sampled else []

    def frozen(self, name: str) -> list[FrozenTrial]:
        """Return a policy's trials as Optuna has them, those of the search and not the baselines."""
        return [
            frozen
            for trial, frozen in zip(self.trials, self._frozen, strict=True)
            if trial.name == name and trial.sampled
        ]

    def _take(self, trial: Trial) -> None:
        distributions = self.space.policies[trial.name].distributions() if trial.sampled else {}
        self.trials.append(trial)
        frozen = trial.frozen(distributions, self.objectives)
        frozen.number = trial.number
        self._frozen.append(frozen)

    def _ask(self) -> list[tuple[Policy, dict[str, Any]]]:
        done, settings = len(self.trials), self.settings
        room = min(self.batch, settings.trials - done)
        batch: list[tuple[Policy, dict[str, Any]]] = []
        if not done:
            batch = [(NoPolicy(), {}), (AutoPolicy(), {})]
            batch += [(policy.policy({}), {}) for policy in self.space.policies.values() if not policy.free]
            batch = [pair for place, pair in enumerate(batch) if pair not in batch[:place]][:room]
        front = [trial.name for trial in self.front] if done else []
        for name, count in shares(self.space, room - len(batch), front).items():
            if count:
                seed = seed_of(settings.seed, name, done)
                space = self.space.policies[name]
                for sampled in suggest(space, self.frozen(name), count, self.objectives, seed):
                    batch.append((space.policy(sampled), sampled))
        return batch

    def _reason(self, began: float, stop: Callable[[], bool]) -> str:
        settings, done = self.settings, len(self.trials)
        if done >= settings.trials:
            return f"all {done:,} trials are done"
        if done and not any(policy.free for policy in self.space.policies.values()):
            return "the space has no free setting, and each of its policies was tried"
        if stop():
            return f"interrupted after {done:,} of {settings.trials:,} trials"
        if done and settings.timeout is not None and time.monotonic() - began >= settings.timeout:
            return f"the {settings.timeout:g} seconds of --timeout were over after {done:,} trials"
        if settings.patience and (since := self.since_progress) >= settings.patience:
            return f"the last {since:,} trials moved the front by less than 1 part in 1,000"
        return ""

    @property
    def since_progress(self) -> int:
        """How many trials were made since the front last grew by more than `GAIN`."""
        return len(self.trials) - self._progress_at

    def _look(self, end: int) -> None:
        """Measure the front of the first `end` trials."""
        values = costs(self._frozen[:end])
        volume = hypervolume(values[on_front(values)], worst_of(values))
        if volume > self._volume * (1 + GAIN):
            self._volume, self._progress_at = volume, end

    def _open(self, journal: SqliteJournal, now: dict[str, Any]) -> optuna.Study | None:
        """Take up what the journal holds; None where it holds nothing yet."""
        storage = JournalStorage(journal)
        if not storage.get_all_studies():
            return None
        kept = optuna.load_study(study_name=NAME, storage=storage)
        then = kept.user_attrs.get("fingerprint", {})
        if self.settings.batch is None:
            self.batch = now["batch"] = then.get("batch", self.batch)
        for key, words in DIFFERENCES.items():
            if then.get(key) != now[key]:
                raise ConfigurationError(
                    f"--study: expected the study of this search, got one of {words}; give the same command as before, "
                    "or another --out or --study"
                )
        self.objectives = len(kept.directions)
        for frozen in kept.get_trials(deepcopy=False):
            self._take(Trial.thawed(frozen))
        self.resumed = len(self.trials)
        for end in [*range(self.batch, self.resumed, self.batch), self.resumed]:
            self._look(end)
        return kept

    def _create(self, journal: SqliteJournal, now: dict[str, Any]) -> optuna.Study:
        with quiet():
            kept = optuna.create_study(
                study_name=NAME, storage=JournalStorage(journal), directions=["minimize"] * self.objectives
            )
        kept.set_user_attr("fingerprint", now)
        kept.set_user_attr("objectives", list(OBJECTIVES[: self.objectives]))
        return kept


def worst_of(values: Floats) -> Floats:
    """Return the corner that the front's volume is measured from: a tenth worse than `none`, and every event acted on.

    Parameters
    ----------
    values
        `[n, objectives]` float64, the first row those of `none`.
    """
    return np.array([1.1 * values[0, 0], 1000.0, *(1.1 * values[0, 2:])])
