"""Making an adapter's directory: a new one, or from a memory in use."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memory.deltamem.adapter_io import Files, parse_config, write_adapter
from memory.deltamem.attachment import Attachment
from memory.deltamem.config import AdapterConfig
from memory.deltamem.initial import initial_tensors
from memory.deltamem.sites import find_sites


def new_adapter(
    model: nn.Module,
    config: AdapterConfig | Mapping[str, Any] | None = None,
    directory: str | Path | None = None,
    *,
    seed: int = 0,
    files: Files = "both",
) -> Path:
    """Write a new adapter for a model, with the published initialisation, and return its directory.

    Parameters
    ----------
    model
        The model that it is for; its frozen weights start the correction heads.
    config
        The settings; None: the released recipe.
    directory
        Where to write; None: a new temporary directory, which is the caller's to remove.
    seed
        Of the random numbers.
    files
        Which tensors files to write: ``safetensors``, the published ``pt``, or ``both``.
    """
    settings = parse_config(config or {})
    sites = find_sites(model, settings)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{site.name}.{name}": tensor
        for site in sites
        for name, tensor in initial_tensors(settings, site, generator).items()
    }
    return write_adapter(directory or tempfile.mkdtemp(prefix="deltamem-"), settings, tensors, files)


def save_adapter(attachment: Attachment, directory: str | Path, *, files: Files = "both") -> Path:
    """Write the adapter of an attachment, such as a trained one, and return its directory.

    Parameters
    ----------
    attachment
        Whose settings and tensors to write. Its states are not part of the adapter.
    directory, files
        As in `new_adapter`.
    """
    return write_adapter(directory, attachment.config, attachment.published_tensors(), files)
