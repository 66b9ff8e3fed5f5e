"""Frozen models that turn text into hidden states, behind one small interface."""

from __future__ import annotations

from pathlib import Path

import torch

from memory.backbones.backbone import Backbone, Encoded
from memory.backbones.hashing_backbone import HashingBackbone
from memory.backbones.minilm_backbone import MiniLMBackbone
from memory.errors import ConfigurationError

__all__ = ["BACKBONES", "Backbone", "Encoded", "HashingBackbone", "MiniLMBackbone", "load_backbone"]

BACKBONES = ("hashing", "minilm")


def load_backbone(name: str, *, path: str | Path | None = None, device: torch.device | str = "cpu") -> Backbone:
    """Load a backbone by name.

    Raises
    ------
    ConfigurationError
        No backbone has that name, or its weights are not here.

    Examples
    --------
    >>> load_backbone("hashing").dim
    256
    """
    if name == "hashing":
        return HashingBackbone()
    if name == "minilm":
        return MiniLMBackbone(path, device)
    raise ConfigurationError(f"unknown backbone {name!r}: expected one of {', '.join(BACKBONES)}")
