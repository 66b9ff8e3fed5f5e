"""The published initialisation of a new adapter.

The memory's q, k and v projections are Kaiming-uniform (a = √5); the gates' projections are zero, so that β begins at
σ(−1.5) = 0.18 everywhere; the correction heads are not zero but a thin slice of the frozen weight they correct, so
that a gradient reaches the memory from the first step:

    base_slice_fixed   first min(8, R) columns of the weight, each of unit length, times `online_gain`; the rest zero
    base_slice         the same with the first R columns
    random             Kaiming-uniform times `online_gain`
    zero               zero
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memory.deltamem.config import HEADS, AdapterConfig
from memory.deltamem.sites import Site
from memory.errors import ConfigurationError


def initial_tensors(config: AdapterConfig, site: Site, generator: torch.Generator) -> dict[str, Tensor]:
    """Return one layer's tensors under their published names, float32 on the host.

    Parameters
    ----------
    config
        The adapter's settings.
    site
        The attention module that it will correct; its frozen weights are sliced.
    generator
        Source of the random numbers, on the host.

    Returns
    -------
    dict
        ``memory_q_proj``, ``memory_k_proj``, ``memory_v_proj`` [H·R, hidden]; ``delta_{q,k,v,o}_proj`` [out, H·R];
        ``beta_proj`` [G, hidden] and ``beta_bias`` [G]; where the settings ask for them ``lambda_proj``,
        ``lambda_bias``, ``delta_scale_raw`` [1] or [4], ``delta_o_rmsnorm_weight`` [out].
    """
    width, gates = config.width, config.gates
    tensors = {}
    for name in ("memory_q_proj", "memory_k_proj", "memory_v_proj"):
        tensors[name] = _kaiming(width, site.hidden, generator)
    for head in HEADS:
        out = site.outputs[head]
        if head not in config.delta_heads:
            tensors[f"delta_{head}_proj"] = torch.zeros(out, width)
        else:
            tensors[f"delta_{head}_proj"] = _correction_head(config, site, head, generator)
    tensors["beta_proj"] = torch.zeros(gates, site.hidden)
    tensors["beta_bias"] = torch.full((gates,), config.beta_bias_init)
    if not config.couple_lambda:
        tensors["lambda_proj"] = torch.zeros(gates, site.hidden)
        tensors["lambda_bias"] = torch.full((gates,), -config.beta_bias_init)
    if config.trainable_delta_scale:
        share = min(max(config.delta_scale_init / config.delta_scale_max, 1e-4), 1 - 1e-4)
        count = len(HEADS) if config.delta_scale_granularity == "head" else 1
        tensors["delta_scale_raw"] = torch.full((count,), math.log(share / (1 - share)))
    if config.delta_o_rmsnorm:
        tensors["delta_o_rmsnorm_weight"] = torch.ones(site.outputs["o"])
    return tensors


def _kaiming(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return nn.init.kaiming_uniform_(torch.empty(rows, columns), a=math.sqrt(5), generator=generator)


def _correction_head(config: AdapterConfig, site: Site, head: str, generator: torch.Generator) -> Tensor:
    out, width = site.outputs[head], config.width
    if config.output_init == "random":
        return _kaiming(out, width, generator) * config.online_gain
    tensor = torch.zeros(out, width)
    if config.output_init == "zero":
        return tensor
    weight = getattr(site.module, f"{head}_proj").weight
    if weight.ndim != 2 or len(weight) != out:
        raise ConfigurationError(
            f"output_init {config.output_init!r} slices {site.name}.{head}_proj.weight, expected [{out}, in], "
            f"got {list(weight.shape)}: a quantised model? Take output_init 'random'"
        )
    limit = config.base_slice_ref_width if config.output_init == "base_slice_fixed" else config.rank
    columns = min(limit, config.rank, weight.shape[1])
    piece = weight[:, :columns].detach().float().cpu()
    tensor[:, :columns] = F.normalize(piece, dim=0, eps=1e-6) * config.online_gain
    return tensor
