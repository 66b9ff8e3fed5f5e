"""Lanes with one state each, all of which read the same events: policies that file nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memory.lane_state import Slots
from memory.predict import prediction_errors
from memory.writers import Segments
from monitors.observations import Floats, Observations
from monitors.policies import Actions, Policy
from monitors.policy_runner import Before, PolicyRunner
from stream.many.loaded_tape import LoadedStream
from stream.tape.format import TapeHead


class OwnStates:
    """The states of n lanes under a stacked policy, advanced by the runner that everything else uses.

    For each event: `ask` (as often as wanted), `write`, then `after`.

    Parameters
    ----------
    policy
        For n lanes (`stack`).
    head
        Of the tape.
    lanes
        n.

    Attributes
    ----------
    states
        `[S, N, R, R]` float32.
    rows
        `[n]` int64: where in `states` each lane's own state lies.
    """

    def __init__(self, policy: Policy, head: TapeHead, lanes: int):
        heads = head.layers * head.heads
        mean = None if head.mean is None else np.array(head.mean, np.float32)
        self.mode = head.mode
        self.runner = PolicyRunner(policy, heads=heads, rank=head.rank, dim=head.dim, mode=head.mode, mean=mean)
        self.runner.resize(lanes)
        self.states: Tensor = torch.zeros(lanes, heads, head.rank, head.rank)
        self.rows: Slots = np.arange(lanes)
        self._written: Segments | None = None
        self._before = Before()

    def ask(self, stream: LoadedStream, event: int) -> Floats:
        """Return the prediction error of each lane's own state on what an event wrote, `[n]` float64."""
        n = len(self.rows)
        starts, lengths = np.full(n, stream.bounds[event]), np.full(n, stream.writes[event])
        return prediction_errors(self.states, self.rows[:, None], starts, lengths, stream.k, stream.v)[:, 0]

    def write(self, stream: LoadedStream, event: int) -> tuple[Floats, npt.NDArray[np.float32]]:
        """Write an event to all lanes; return the write error `[n, N]` float64 and the norms after it `[n, N]`."""
        n = len(self.rows)
        self._written = stream.segment(event, n)
        embeddings = np.broadcast_to(stream.embeddings[event], (n, stream.embeddings.shape[1]))
        self._before = self.runner.before(self.states, self.rows, self._written, embeddings)
        result = self._written.scan(self.states, self.rows, self.mode)
        return result.mean_write_error.numpy().astype(np.float64), result.state_norm.numpy()

    def after(self, observations: Observations) -> Actions:
        """Let the policy decide, and act."""
        assert self._written is not None
        return self.runner.after(self.states, self.rows, self._written, self._before, observations)
