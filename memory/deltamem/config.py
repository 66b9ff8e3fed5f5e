"""The settings of an adapter, as the published `delta_mem_config.json` names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from memory.rule import Mode

Head = Literal["q", "k", "v", "o"]
HEADS: tuple[Head, ...] = ("q", "k", "v", "o")

# Settings that the published code still writes and no longer honours. They must be there when its own reader opens a
# file of ours, and must hold these values when we open one of its files.
ARCHIVED: dict[str, Any] = {
    "num_memory_partitions": 1,
    "num_global_memory_partitions": 0,
    "memory_partition_routing": "soft",
    "memory_partition_basis": "shared",
    "tie_memory_partition_read_write": False,
    "memory_partition_read_mode": "softmax",
    "memory_partition_sigmoid_gate_bias_init": -2.0,
    "slot_read_top_k": 0,
    "global_memory_mode": "shared_rw",
    "global_memory_read_top_k": 0,
    "global_memory_merge_mode": "gated_residual",
    "global_memory_gate_bias_init": -2.0,
    "global_memory_read_logit_bias": 0.0,
    "memory_reader_layers": (),
    "memory_reader_hidden_size": 1024,
    "memory_reader_residual_scale": 0.1,
    "memory_reader_read_only": True,
    "memory_readout_mode": "delta",
    "memory_write_source": "learned_hidden",
    "memory_write_proposals_per_message": 2,
    "synthetic_memory_slots": 1,
    "latent_memory_layers": (),
    "latent_memory_hidden_size": 1024,
    "latent_memory_residual_scale": 0.1,
    "latent_memory_slots": 4,
    "latent_memory_init_std": 0.002,
    "latent_gate_init": 0.01,
}

# What the published reader takes for a setting that a file leaves out, where it differs from the released recipe below.
FILE_DEFAULTS: dict[str, Any] = {"delta_heads": HEADS, "output_init": "zero"}


class AdapterConfig(BaseModel):
    """One adapter's settings. The defaults are the released recipe (rank 8, α 16, token writes, q and o corrected).

    Parameters
    ----------
    rank, num_state_heads
        R and H: each layer keeps H states of R × R; the heads' reads are concatenated.
    alpha
        Corrections are scaled by α / R.
    beta_bias_init
        The initial bias of the write gate; a free retention gate begins at its negative.
    normalize_qk
        Keys and queries are ``L2norm(tanh(W x))``; False takes them raw.
    couple_lambda
        λ = 1 − β; False gives λ a projection of its own.
    state_update_mode
        ``standard`` (paper eq. 10), ``lambda_outside`` (the erased part is decayed too), ``no_lambda`` (λ = 1).
    rankwise_gates
        One gate for each of the R rows; False: one for each state head.
    memory_write_granularity
        ``token``, or one write for each message or sentence from the mean of its hidden states.
    target_modules, target_layers
        Last name of the modules to attach to, and layer numbers; no layers given means all.
    delta_heads
        Which of q, k, v, o are corrected.
    output_init, base_slice_ref_width, online_gain
        How a new adapter's correction heads begin: see `memory.deltamem.initial`.
    delta_o_rmsnorm, delta_o_rmsnorm_eps
        RMS norm with a learnt weight on the correction of o.
    trainable_delta_scale, delta_scale_init, delta_scale_max, delta_scale_granularity
        A learnt factor ``delta_scale_max · sigmoid(raw)`` beside α / R, one for the layer or one for each of q, k, v,
        o.

    References
    ----------
    δ-mem, arXiv 2605.12357, section 3.

    Examples
    --------
    >>> AdapterConfig(rank=4, delta_heads="q,k").delta_heads
    ('q', 'k')
    >>> AdapterConfig(slot_read_top_k=2)
    Traceback (most recent call last):
    ...
    pydantic_core._pydantic_core.ValidationError: 1 validation error for AdapterConfig
      Value error, slot_read_top_k is archived: expected 0, got 2 ...
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, allow_inf_nan=False)
    beta_bias_init: float = Field(-1.5, allow_inf_nan=False)
    normalize_qk: bool = True
    couple_lambda: bool = True
    state_update_mode: Literal["standard", "lambda_outside", "no_lambda"] = "standard"
    rankwise_gates: bool = True
    output_init: Literal["zero", "random", "base_slice", "base_slice_fixed"] = "base_slice_fixed"
    base_slice_ref_width: int = Field(8, ge=1)
    online_gain: float = Field(0.05, allow_inf_nan=False)
    num_state_heads: int = Field(1, ge=1)
    memory_write_granularity: Literal["token", "message_mean", "sentence_mean"] = "token"
    target_modules: tuple[str, ...] = Field(("self_attn",), min_length=1)
    target_layers: tuple[int, ...] = ()
    delta_heads: tuple[Head, ...] = ("q", "o")
    delta_o_rmsnorm: bool = False
    delta_o_rmsnorm_eps: float = Field(1e-6, gt=0, allow_inf_nan=False)
    trainable_delta_scale: bool = False
    delta_scale_init: float = Field(1.0, gt=0, allow_inf_nan=False)
    delta_scale_max: float = Field(2.0, gt=0, allow_inf_nan=False)
    delta_scale_granularity: Literal["layer", "head"] = "layer"
    delta_scale_parameterization: Literal["alpha_over_rank"] = "alpha_over_rank"

    @model_validator(mode="before")
    @classmethod
    def _drop_archived(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        kept = {}
        for name, value in data.items():
            if name not in ARCHIVED:
                kept[name] = value
                continue
            if (tuple(value) if isinstance(value, list) else value) != ARCHIVED[name]:
                raise ValueError(f"{name} is archived: expected {ARCHIVED[name]!r}, got {value!r}")
        return kept

    @field_validator("delta_heads", mode="before")
    @classmethod
    def _one_of_each(cls, heads: Any) -> Any:
        """Take a list or ``"q,o"``; ``"none"`` and repetitions are understood as the published reader does."""
        if isinstance(heads, str):
            heads = [part.strip() for part in heads.split(",") if part.strip()]
        return () if list(heads) == ["none"] else tuple(dict.fromkeys(heads))

    @model_validator(mode="after")
    def _scale_in_range(self) -> AdapterConfig:
        if self.delta_scale_init >= self.delta_scale_max:
            raise ValueError(
                f"delta_scale_init must be below delta_scale_max = {self.delta_scale_max}, got {self.delta_scale_init}"
            )
        return self

    @property
    def width(self) -> int:
        """H · R: numbers in one read."""
        return self.num_state_heads * self.rank

    @property
    def gates(self) -> int:
        """Numbers in one gate's projection: H · R rank-wise, else H."""
        return self.width if self.rankwise_gates else self.num_state_heads

    @property
    def uses_lambda(self) -> bool:
        """Whether the update has a retention gate of its own."""
        return not self.couple_lambda and self.state_update_mode != "no_lambda"

    @property
    def mode(self) -> Mode:
        """The scan's rule for this update."""
        if self.state_update_mode == "no_lambda":
            return Mode.PLAIN
        if self.state_update_mode == "lambda_outside":
            return Mode.DECAY_OUTSIDE
        return Mode.COUPLED if self.couple_lambda else Mode.GATED

    def to_published(self) -> dict[str, Any]:
        """Return every field that the published reader knows, the archived ones at their defaults.

        Examples
        --------
        >>> fields = AdapterConfig().to_published()
        >>> len(fields), fields["delta_heads"], fields["slot_read_top_k"]
        (49, ['q', 'o'], 0)
        """
        fields = {**ARCHIVED, **self.model_dump()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
