"""Where memory can be attached: attention modules with the projections q, k, v and o, whatever the architecture."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from memory.deltamem.config import AdapterConfig
from memory.errors import ConfigurationError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, slots=True)
class Site:
    """One attention module to attach to.

    Attributes
    ----------
    name
        As in `model.named_modules()`; states and adapter tensors carry it.
    module, parent
        The attention module, and the layer that holds it.
    layer
        Its number among the model's layers.
    hidden
        Size of its input.
    outputs
        Sizes of the outputs of q, k, v and o, by those letters.
    """

    name: str
    module: nn.Module
    parent: nn.Module
    layer: int
    hidden: int
    outputs: dict[str, int]


def find_sites(model: nn.Module, config: AdapterConfig) -> list[Site]:
    """Return the modules that the adapter goes to, in the model's order.

    Raises
    ------
    ConfigurationError
        There are none, one lacks a projection, or a chosen layer does not exist; the message says what was looked for.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, vocab_size=8)
    >>> [site.name for site in find_sites(LlamaForCausalLM(LlamaConfig(**sizes)), AdapterConfig(target_layers=(1,)))]
    ['model.layers.1.self_attn']
    """
    wanted = " or ".join(config.target_modules)
    looked_for = f"looked for modules named {wanted} that hold {', '.join(PROJECTIONS)}"
    named = [(name, module) for name, module in model.named_modules() if name.split(".")[-1] in config.target_modules]
    whole = [(name, module) for name, module in named if not _missing(module)]
    if not whole:
        if named:
            name, module = named[0]
            raise ConfigurationError(
                f"cannot attach to {type(model).__name__}: {looked_for}; {name} has no {', '.join(_missing(module))}"
            )
        raise ConfigurationError(
            f"cannot attach to {type(model).__name__}: {looked_for}; it has no module of that name"
        )
    sites = [_site(model, name, module) for name, module in whole]
    if not config.target_layers:
        return sites
    known = {site.layer for site in sites}
    unknown = sorted(set(config.target_layers) - known)
    if unknown:
        raise ConfigurationError(f"target_layers has {unknown}, but the model's layers are {min(known)}..{max(known)}")
    return [site for site in sites if site.layer in config.target_layers]


def _missing(module: nn.Module) -> list[str]:
    return [
        name
        for name in PROJECTIONS
        if not all(hasattr(getattr(module, name, None), size) for size in ("in_features", "out_features"))
    ]


def _site(model: nn.Module, name: str, module: nn.Module) -> Site:
    number = getattr(module, "layer_idx", None)
    if not isinstance(number, int):
        digits = re.findall(r"\.(\d+)\.", f".{name}.")
        number = int(digits[-1]) if digits else 0
    outputs = {letter: int(getattr(module, f"{letter}_proj").out_features) for letter in "qkvo"}
    hidden = int(module.q_proj.in_features)  # type: ignore[union-attr, arg-type]
    return Site(name, module, model.get_submodule(name.rpartition(".")[0]), number, hidden, outputs)
