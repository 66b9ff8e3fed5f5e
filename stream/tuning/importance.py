"""Which settings of a policy its error depends on."""

from __future__ import annotations

import warnings

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from stream.tuning.quiet import quiet
from stream.tuning.study import Study

LEAST = 50
"""Trials of a policy under which nothing is said: five must be among the best tenth."""


def importances(study: Study) -> dict[str, dict[str, float]]:
    """Return for each policy with enough trials how much each setting matters for a small write error; the sum is 1.

    It compares where a setting's best tenth of trials lies with where all of them lie: a setting whose best values are
    as spread as the others does not matter.

    References
    ----------
    S. Watanabe, A. Bansal, F. Hutter, "PED-ANOVA: efficiently quantifying hyperparameter importance in arbitrary
    subspaces", IJCAI 2023.
    """
    found = {}
    for name, space in study.space.policies.items():
        trials = study.frozen(name)
        if len(trials) < LEAST or len(space.free) < 2:
            continue
        with quiet(), warnings.catch_warnings():
            alone = optuna.create_study(directions=["minimize"] * study.objectives)
            alone.add_trials(trials)
            warnings.simplefilter("ignore")  # it says that a target is made small, which is what is meant
            shares = get_param_importances(
                alone, evaluator=PedAnovaImportanceEvaluator(), target=lambda trial: float(trial.values[0])
            )
        found[name] = {key.removeprefix(f"{name}."): float(share) for key, share in shares.items()}
    return found
