"""One layer's adapter: parameters held so that one small matrix product gives all tokens' q, k, v and gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memory.deltamem.config import HEADS, AdapterConfig
from memory.deltamem.sites import Site
from memory.errors import ConfigurationError


class Projected(NamedTuple):
    """What the memory makes of hidden states: each [N, H, R] float32; λ is None where it is 1 − β or 1."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    lam: Tensor | None


class MemoryLayer(nn.Module):
    """The parameters of one layer, float32.

    `packed` [W, hidden] holds the rows of the q, k, v, β and (free) λ projections, in this order; `gate_bias` [G] or
    [2G] the biases of the last ones. `deltas` holds the correction heads transposed, [H·R, out], as a product with
    the reads wants them. `published` and `load_published` speak the adapter format.

    Parameters
    ----------
    config, site
        The settings, and the attention module whose sizes it takes.
    """

    def __init__(self, config: AdapterConfig, site: Site):
        super().__init__()
        self.config, self.site_name = config, site.name
        self.width, self.gates = config.width, config.gates
        gate_rows = self.gates * (1 if config.couple_lambda else 2)
        self.packed = nn.Parameter(torch.zeros(3 * self.width + gate_rows, site.hidden))
        self.gate_bias = nn.Parameter(torch.zeros(gate_rows))
        self.deltas = nn.ParameterDict(
            {head: nn.Parameter(torch.zeros(self.width, site.outputs[head])) for head in HEADS}
        )
        self.scale_raw = self.norm_weight = None
        if config.trainable_delta_scale:
            count = len(HEADS) if config.delta_scale_granularity == "head" else 1
            self.scale_raw = nn.Parameter(torch.zeros(count))
        if config.delta_o_rmsnorm:
            self.norm_weight = nn.Parameter(torch.ones(site.outputs["o"]))
        self._factors: dict[str, tuple[int, float]] = {}
        self.requires_grad_(False)

    def trainable(self, on: bool) -> None:
        """Ask autograd to record this layer's parameters, or not. Heads that correct nothing are never trained."""
        self.requires_grad_(on)
        for head in HEADS:
            if head not in self.config.delta_heads:
                self.deltas[head].requires_grad_(False)

    def published(self) -> dict[str, Tensor]:
        """Return the tensors under their published names, as views."""
        views = self._rows()
        views |= {f"delta_{head}_proj": self.deltas[head].detach().t() for head in HEADS}
        if self.scale_raw is not None:
            views["delta_scale_raw"] = self.scale_raw.detach()
        if self.norm_weight is not None:
            views["delta_o_rmsnorm_weight"] = self.norm_weight.detach()
        return views

    def load_published(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the tensors of this layer, by their published names.

        Raises
        ------
        ConfigurationError
            One is missing, unknown, or of another shape.
        """
        views = self.published()
        optional = {f"delta_{head}_proj" for head in HEADS if head not in self.config.delta_heads}
        missing = sorted(views.keys() - tensors.keys() - optional)
        unknown = sorted(tensors.keys() - views.keys())
        if missing:
            raise ConfigurationError(
                f"the adapter has no {self.site_name}.{missing[0]}: is its configuration another's?"
            )
        if unknown:
            raise ConfigurationError(
                f"the adapter has {self.site_name}.{unknown[0]}, which its configuration does not use: expected "
                f"{', '.join(sorted(views))}"
            )
        for name, tensor in tensors.items():
            if tensor.shape != views[name].shape:
                raise ConfigurationError(
                    f"{self.site_name}.{name} must be {list(views[name].shape)}, got {list(tensor.shape)}: "
                    f"was the adapter made for this model?"
                )
            with torch.no_grad():
                views[name].copy_(tensor)

    def _rows(self) -> dict[str, Tensor]:
        names, sizes = ["memory_q_proj", "memory_k_proj", "memory_v_proj", "beta_proj"], [self.width] * 3 + [self.gates]
        biases = ["beta_bias"]
        if not self.config.couple_lambda:
            names.append("lambda_proj")
            sizes.append(self.gates)
            biases.append("lambda_bias")
        rows = dict(zip(names, torch.split(self.packed.detach(), sizes), strict=True))
        return rows | dict(zip(biases, torch.split(self.gate_bias.detach(), self.gates), strict=True))

    def activate(self, packed: Tensor) -> Projected:
        """Turn rows of `packed @ x` into q, k, v and gates.

        Parameters
        ----------
        packed
            `[N, W]` float32: for one token the product with its hidden state, for a segment the mean of its tokens'
            (which is the product with their mean hidden state).

        Returns
        -------
        Projected
            q and k are ``L2norm(tanh(·))`` over each head's R numbers (norms below 10⁻⁶ count as 10⁻⁶), or raw where
            the settings say so; β and λ are σ(· + bias), spread over the head's rows where there is one gate a head.

        References
        ----------
        δ-mem, arXiv 2605.12357, eq. 4 and 5.
        """
        config, width = self.config, self.width
        shape = (len(packed), config.num_state_heads, config.rank)
        q, k, v = (packed[:, part * width : (part + 1) * width].reshape(shape) for part in range(3))
        if config.normalize_qk:
            q, k = (F.normalize(torch.tanh(part), dim=-1, eps=1e-6) for part in (q, k))
        gates = torch.split(torch.sigmoid(packed[:, 3 * width :] + self.gate_bias), self.gates, dim=1)
        a_head = (len(packed), config.num_state_heads, self.gates // config.num_state_heads)
        spread = [gate.reshape(a_head).expand(shape) for gate in gates]
        return Projected(q, k, v, spread[0], spread[1] if config.uses_lambda else None)

    def factor(self, head: str) -> Tensor | float:
        """α / R times the learnt scale, if there is one: a tensor where autograd records it, else a number."""
        base = self.config.alpha / self.config.rank
        raw = self.scale_raw
        if raw is None:
            return base
        place = "qkvo".index(head) if len(raw) > 1 else 0
        if raw.requires_grad and torch.is_grad_enabled():
            return base * self.config.delta_scale_max * torch.sigmoid(raw[place])
        version, known = self._factors.get(head, (-1, 0.0))
        if version != raw._version:
            known = base * self.config.delta_scale_max * float(torch.sigmoid(raw.detach()[place]))
            self._factors[head] = (raw._version, known)
        return known

    def correction(self, head: str, reads: Tensor) -> Tensor:
        """Return one head's correction (paper eq. 7), `[N, H·R]` reads → `[N, out]`, float32; δo's RMS norm last."""
        correction: Tensor = (reads @ self.deltas[head]) * self.factor(head)
        if head == "o" and self.norm_weight is not None:
            eps = self.config.delta_o_rmsnorm_eps
            correction = torch.rms_norm(correction, correction.shape[-1:], self.norm_weight, eps)
        return correction
