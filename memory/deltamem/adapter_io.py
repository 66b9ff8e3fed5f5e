"""Reading and writing an adapter's directory.

    delta_mem_config.json          the settings, every published field in it
    delta_mem_adapter.pt           the published tensors file, opened with weights_only=True
    delta_mem_adapter.safetensors  the same tensors, our default: nothing in it can run code

A tensor is named ``<module>.<published name>``, such as ``model.layers.0.self_attn.beta_bias``. Where both files are
there they must agree, so that a directory half overwritten by another program is never read as if it were whole.
"""

from __future__ import annotations

import json
import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from memory.deltamem.config import FILE_DEFAULTS, AdapterConfig
from memory.errors import ConfigurationError

CONFIG_FILE = "delta_mem_config.json"
PUBLISHED_FILE = "delta_mem_adapter.pt"
SAFETENSORS_FILE = "delta_mem_adapter.safetensors"
Files = Literal["both", "safetensors", "pt"]

DAMAGE = (
    *(RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, MemoryError),
    struct.error,
)
"""What the readers of tensors raise, beside their own errors, at a file that is not what they take it for."""


def parse_config(
    fields: Mapping[str, Any] | AdapterConfig, where: str = "the adapter's configuration"
) -> AdapterConfig:
    """Check settings, and say in one line what is wrong with them.

    Examples
    --------
    >>> try:
    ...     parse_config({"rank": 0})
    ... except ConfigurationError as error:
    ...     print(error)
    the adapter's configuration: rank: input should be greater than or equal to 1, got 0
    """
    if isinstance(fields, AdapterConfig):
        return fields
    try:
        return AdapterConfig.model_validate(dict(fields))
    except ValidationError as error:
        slips = []
        for slip in error.errors(include_url=False):
            name, message = ".".join(str(part) for part in slip["loc"]), slip["msg"].removeprefix("Value error, ")
            name = name if name.isprintable() else repr(name)  # one line, whatever a file has for keys
            slips.append(f"{name}: {message[0].lower()}{message[1:]}, got {slip['input']!r}" if name else message)
        raise ConfigurationError(f"{where}: {'; '.join(slips)}") from None


def read_config(directory: str | Path) -> AdapterConfig:
    """Read `delta_mem_config.json`; what it leaves out is taken as the published reader takes it."""
    path = Path(directory) / CONFIG_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"no adapter in {directory}: expected {CONFIG_FILE} there") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"cannot read {path}: {_line(error)}") from None
    if not isinstance(fields, dict):
        raise ConfigurationError(f"{path}: expected an object of settings, got {type(fields).__name__}")
    return parse_config({**FILE_DEFAULTS, **fields}, str(path))


def read_tensors(directory: str | Path) -> dict[str, Tensor]:
    """Read the tensors of an adapter: float32, on the host.

    Raises
    ------
    ConfigurationError
        There is no tensors file, one cannot be read safely, or the two there disagree.
    """
    folder = Path(directory)
    found = {}
    if (folder / SAFETENSORS_FILE).exists():
        try:
            found[SAFETENSORS_FILE] = load_file(folder / SAFETENSORS_FILE)
        except (SafetensorError, OSError, *DAMAGE) as error:
            raise ConfigurationError(f"cannot read {folder / SAFETENSORS_FILE}: {_line(error)}") from None
    if (folder / PUBLISHED_FILE).exists():
        found[PUBLISHED_FILE] = _read_published(folder / PUBLISHED_FILE)
    if not found:
        raise ConfigurationError(f"no tensors in {folder}: expected {SAFETENSORS_FILE} or {PUBLISHED_FILE}")
    first, *others = ({name: tensor.float() for name, tensor in tensors.items()} for tensors in found.values())
    for other in others:
        differing = sorted(
            name
            for name in first.keys() | other.keys()
            if name not in first or name not in other or not torch.equal(first[name], other[name])
        )
        if differing:
            raise ConfigurationError(
                f"{SAFETENSORS_FILE} and {PUBLISHED_FILE} in {folder} disagree on {differing[0]} "
                f"({len(differing)} tensors): one is out of date, delete it"
            )
    return first


def _read_published(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles that it does not know; the error says enough
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError, EOFError, *DAMAGE) as error:
        raise ConfigurationError(f"cannot read {path} as tensors alone: {_line(error)}") from None
    if (
        not isinstance(tensors, dict)
        or not all(isinstance(name, str) for name in tensors)
        or not all(isinstance(value, Tensor) for value in tensors.values())
    ):
        raise ConfigurationError(f"{path}: expected a dict of tensors, got {type(tensors).__name__}")
    return tensors


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def write_adapter(
    directory: str | Path, config: AdapterConfig, tensors: Mapping[str, Tensor], files: Files = "both"
) -> Path:
    """Write an adapter's directory and return it.

    Parameters
    ----------
    directory
        Made if it is not there.
    config, tensors
        The settings; ``<module>.<published name>`` → tensor.
    files
        Which tensors files: ``safetensors``, the published ``pt``, or ``both``. One that is not written is removed,
        so that none is left out of date.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    own = {name: tensor.detach().cpu().float().clone().contiguous() for name, tensor in tensors.items()}
    if files in ("both", "safetensors"):
        save_file(own, folder / SAFETENSORS_FILE)
    else:
        (folder / SAFETENSORS_FILE).unlink(missing_ok=True)
    if files in ("both", "pt"):
        torch.save(own, folder / PUBLISHED_FILE)
    else:
        (folder / PUBLISHED_FILE).unlink(missing_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config.to_published(), indent=2) + "\n", encoding="utf-8")
    return folder
