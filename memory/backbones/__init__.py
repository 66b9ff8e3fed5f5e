"""Frozen models that turn text into hidden states, behind one small interface."""

from __future__ import annotations

from pathlib import Path

import torch

from memory.backbones.backbone import Backbone, Encoded
from memory.backbones.hashing_backbone import HashingBackbone
from memory.backbones.hf_backbone import HFBackbone
from memory.backbones.minilm_backbone import MiniLMBackbone
from memory.errors import ConfigurationError

__all__ = ["BACKBONES", "Backbone", "Encoded", "HFBackbone", "HashingBackbone", "MiniLMBackbone", "load_backbone"]

BACKBONES = ("hashing", "minilm")
"""Backbones that are a name; `HF` and a folder or a hub's name is one too."""

HF = "hf:"


def load_backbone(name: str, *, path: str | Path | None = None, device: torch.device | str = "cpu") -> Backbone:
    """Load a backbone by name.

    Raises
    ------
    ConfigurationError
        No backbone has that name, or its weights are not here.

    Notes
    -----
    ``hf:<folder or hub name>`` is any causal language model of transformers.

    Examples
    --------
    >>> load_backbone("hashing").dim
    256
    """
    if name == "hashing":
        return HashingBackbone()
    if name == "minilm":
        return MiniLMBackbone(path, device)
    if name.startswith(HF):
        return HFBackbone(name.removeprefix(HF), device)
    raise ConfigurationError(f"unknown backbone {name!r}: expected one of {', '.join(BACKBONES)} or hf:<path or id>")
