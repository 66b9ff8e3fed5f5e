r"""Which of a lane's states an event belongs to: a belief over them, carried from event to event.

The belief w over the filed states, the newcomer and "none of them, in passing" moves as in a hidden Markov model whose
topic stays, or changes with probability h to any filed one or (share ν) to a new one, or is left with probability b for
words that belong nowhere, which end with probability l an event:

    prior_j   = (1 − h − b) w_j + (h (1 − ν) + l w_passing) / (filed states)
    prior_new = h ν                prior_passing = (1 − l) w_passing + b (1 − w_passing)
    w_j ∝ prior_j · ((1 − ρ) + ρ exp(γ (1 − e_j))) · exp(κ (c_j − c₀))

e_j is state j's prediction error on the event's pairs before they are written, c_j the cosine between the event's
embedding and the topic's centroid. A state of zeros has the error 1, so e = 1 speaks neither for nor against, as does
c = c₀; that is all the evidence there is for what is new and what is in passing. A small error can hardly come by
chance and speaks loudly (up to γ); a large one may be a pair never told before in a topic that goes on, and speaks
against by −log(1 − ρ) at most. Likeness alone would split topics; error alone is deaf to what has not been told; each
covers for the other.

Reference: M. Herbster, M. K. Warmuth, "Tracking the best expert", Machine Learning 32 (1998), 151-178: fixed share, the
same recursion over experts, with a bound on the loss against the best sequence of experts.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from monitors.observations import Flags, Floats


class TopicBelief(BaseModel):
    """Settings and recursion of the belief.

    Parameters
    ----------
    hazard
        h: how likely the topic changes with an event.
    novelty
        ν: the share of changes that lead to a topic never met.
    passing, passing_ends
        b and l: how likely words that belong nowhere begin with an event, and end.
    trust
        ρ: how surely a state of the right topic knows the pair.
    gain
        γ: how loudly a small prediction error speaks, in nats.
    likeness_gain, likeness_floor
        κ, in nats; and c₀, the cosine that speaks neither for nor against.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hazard: float = Field(default=0.05, gt=0, lt=0.5)
    novelty: float = Field(default=0.01, gt=0, lt=1)
    passing: float = Field(default=0.01, ge=0, lt=0.5)
    passing_ends: float = Field(default=0.2, gt=0, le=1)
    trust: float = Field(default=0.7, gt=0, lt=1)
    gain: float = Field(default=5.0, ge=0, le=100)
    likeness_gain: float = Field(default=10.0, ge=0, le=100)
    likeness_floor: float = Field(default=0.2, ge=-1, le=1)

    def step(self, weight: Floats, held: Flags, errors: Floats, likeness: Floats) -> tuple[Floats, Flags]:
        """Move the beliefs of n lanes by one event.

        Parameters
        ----------
        weight
            `[n, K + 1]` float64: the belief before, each row's sum 1; the last two columns are the newcomer's and that
            of what is in passing.
        held
            `[n, K]` bool: which hold a state.
        errors, likeness
            `[n, K]` float64: e and c; NaN counts as 1 and as c₀.

        Returns
        -------
        tuple
            The belief after, and `[n]` bool: whether the newcomer begins again with this event, because that explains
            the event better than what the newcomer holds.

        Examples
        --------
        Two filed states and a newcomer; the second filed one predicts what the first, in force, does not.

        >>> rows = TopicBelief().step(np.array([[1.0, 0, 0, 0]]), np.array([[True, True, True]]),
        ...                           np.array([[1.2, 0.1, 1.0]]), np.array([[0.0, 0.4, 0.0]]))
        >>> rows[0].round(2).tolist(), rows[1].tolist()
        ([[0.01, 0.99, 0.0, 0.0]], [True])
        """
        filed = held.copy()
        filed[:, -1] = False
        count = np.maximum(filed.sum(axis=1, keepdims=True), 1)
        away = weight[:, -1:]
        arriving = (self.hazard * (1 - self.novelty) + self.passing_ends * away) / count
        prior = (1 - self.hazard - self.passing) * weight[:, :-1] + np.where(filed, arriving, 0.0)
        error = np.where(np.isnan(errors), 1.0, errors)
        alike = np.where(np.isnan(likeness), self.likeness_floor, likeness)
        odds = (1 - self.trust) + self.trust * np.exp(self.gain * (1 - error))
        odds *= np.exp(self.likeness_gain * (alike - self.likeness_floor))
        belief = np.empty_like(weight)
        belief[:, :-1] = np.where(held, prior * odds, 0.0)
        belief[:, -1:] = (1 - self.passing_ends) * away + self.passing * (1 - away)
        fresh = self.hazard * self.novelty
        newcomer = belief[:, -2:-1]
        again: Flags = (newcomer <= fresh)[:, 0]
        newcomer += fresh
        return belief / belief.sum(axis=1, keepdims=True), again
