"""δ-mem on a frozen language model: hooks on its attention, and the states that they read and write.

For every token, in the order of the paper: the state is read with the projected hidden state, the read corrects the
queries (before their norm and rotation) and the attention's output, and the state is written. The states belong to
the streams, not to the model: they are set, taken out and shared between batches freely.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from memory.deltamem.adapter_io import read_config, read_tensors
from memory.deltamem.config import AdapterConfig
from memory.deltamem.forward_pass import ForwardPass, begin_pass
from memory.deltamem.hooks import LayerHooks
from memory.deltamem.layer import MemoryLayer
from memory.deltamem.record import LayerRecord, LayerStats, summarise
from memory.deltamem.sites import Site, find_sites
from memory.deltamem.states import States
from memory.errors import ConfigurationError

_taken: WeakSet[nn.Module] = WeakSet()  # attention modules that have an attachment


def attach(model: nn.Module, adapter_dir: str | Path) -> Attachment:
    """Give a frozen causal language model the memory of an adapter.

    Parameters
    ----------
    model
        A `transformers` model whose attention modules have `q_proj`, `k_proj`, `v_proj` and `o_proj`.
    adapter_dir
        `delta_mem_config.json` with `delta_mem_adapter.safetensors` or the published `delta_mem_adapter.pt`.

    Returns
    -------
    Attachment
        Also a context manager; leaving it detaches.

    Raises
    ------
    ConfigurationError
        The adapter cannot be read, does not fit the model, or the model is attached to already.

    Examples
    --------
    >>> import tempfile, torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from memory.deltamem import new_adapter
    >>> sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=32)
    >>> model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    >>> folder = tempfile.TemporaryDirectory()
    >>> with attach(model, new_adapter(model, {"rank": 4}, folder.name)) as memory, torch.inference_mode():
    ...     memory.reset(1)
    ...     _ = model(torch.arange(8)[None])
    ...     print(memory.stacked_states.shape, bool(memory.stacked_states.any()))
    torch.Size([1, 2, 1, 4, 4]) True
    >>> folder.cleanup()
    """
    config = read_config(adapter_dir)
    sites = find_sites(model, config)
    tensors = read_tensors(adapter_dir)
    layers = []
    for site in sites:
        prefix = f"{site.name}."
        layer = MemoryLayer(config, site)
        layer.load_published(
            {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        )
        layers.append(layer)
    if tensors:
        name = next(iter(tensors))
        raise ConfigurationError(
            f"the adapter has {name}, but the modules attached to are {sites[0].name} .. {sites[-1].name}: "
            f"another model's adapter, or target_layers too few?"
        )
    return Attachment(model, config, sites, layers)


class Attachment:
    """A model's memory: see `attach`.

    Attributes
    ----------
    config
        The adapter's settings.
    write_enabled
        False: the states are read and stay as they are, bit for bit.
    scale
        Factor on all corrections, 1 at first. At 0 the logits are the frozen model's bit for bit; the states are
        still written.
    observe
        Keep what `records` and `stats` need of the last forward pass (some 200 bytes a token, layer and state head at
        rank 8). False keeps nothing.

    Notes
    -----
    While attached, the model's own parameters do not require gradients (as they were before, after `detach`): it is
    frozen, and so a forward pass outside `torch.no_grad` takes the fast path too. `trainable` switches the adapter's
    on.
    """

    def __init__(self, model: nn.Module, config: AdapterConfig, sites: list[Site], layers: list[MemoryLayer]):
        if any(site.module in _taken for site in sites):
            raise ConfigurationError("the model has an attachment already: detach that one first")
        devices = {getattr(site.module, "q_proj").weight.device for site in sites}  # noqa: B009
        if len(devices) > 1:
            raise ConfigurationError(f"the attention modules lie on {sorted(map(str, devices))}: expected one device")
        self.config = config
        self.device: torch.device = devices.pop()
        self.write_enabled = True
        self.scale = 1.0
        self.observe = True
        self.module_names = tuple(site.name for site in sites)
        self.state_rows = States(self.module_names, config.num_state_heads, config.rank, self.device)
        self._ids: tuple[Tensor | None, Tensor | None] | None = None
        self._used_ids: tuple[Tensor | None, Tensor | None] | None = None
        self._pass: ForwardPass | None = None
        self._layers = [layer.to(self.device) for layer in layers]
        self._frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        self._hooks = [LayerHooks(self, *pair, place) for place, pair in enumerate(zip(sites, layers, strict=True))]
        self._by_name = dict(zip(self.module_names, self._hooks, strict=True))
        _taken.update(site.module for site in sites)

    def detach(self) -> None:
        """Take the memory off the model, which is then as it was bit for bit. The states stay readable."""
        for hooks in self._hooks:
            hooks.remove()
            _taken.discard(hooks.site.module)
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    # The states.

    @property
    def batch_size(self) -> int | None:
        """Streams in the batch; None before the first."""
        return self.state_rows.batch

    @property
    def bytes_per_stream(self) -> int:
        """Bytes of one stream's states."""
        layers, heads, rank, _ = self.state_rows.shape
        return 4 * layers * heads * rank * rank

    def reset(self, batch_size: int) -> None:
        """Begin with zero states for `batch_size` streams. Segment ids that wait for a forward pass are dropped."""
        self.state_rows.reset(batch_size)
        self._ids = None

    @property
    def states(self) -> dict[str, Tensor]:
        """Module name → `[B, H, R, R]` float32: copies (in training, part of the graph). Set as a whole."""
        return self.state_rows.named()

    @states.setter
    def states(self, states: Mapping[str, Tensor]) -> None:
        self.state_rows.put_named(states)

    @property
    def stacked_states(self) -> Tensor:
        """All states as one `[B, L, H, R, R]` float32 tensor, in the order of `module_names`; else like `states`."""
        return self.state_rows.stacked()

    @stacked_states.setter
    def stacked_states(self, states: Tensor) -> None:
        self.state_rows.put_stacked(states)

    def bind(self, store: Tensor, slots: Tensor) -> None:
        """Advance rows of a tensor that others own, in place and without a copy, until the next `bind` or `reset`.

        Parameters
        ----------
        store
            `[S, L, H, R, R]` float32, contiguous, on the model's device: `StatePool.states`.
        slots
            `[B]` int64, all different: the row of each stream in the batch.
        """
        self.state_rows.bind(store, slots)

    # The next forward pass.

    def set_segments(self, message_ids: Tensor | None = None, sentence_ids: Tensor | None = None) -> None:
        """Say which tokens of the next forward pass are written together; that pass uses the ids up.

        Parameters
        ----------
        message_ids, sentence_ids
            `[B, T]` int64, −1: not written. A message-mean adapter needs the first; a sentence-mean one needs the
            second, and given both writes a token only where neither is −1. A stream's segments are written in the
            order of their ids. Adapters with token writes ignore them.
        """
        for name, ids in (("message_ids", message_ids), ("sentence_ids", sentence_ids)):
            if ids is not None and (ids.ndim != 2 or ids.dtype != torch.int64):
                raise ValueError(f"{name} must be int64 [B, T], got {ids.dtype} {list(ids.shape)}")
        self._ids = (message_ids, sentence_ids)

    def current_pass(self, place: int, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ForwardPass:
        """Return what the layers share; the first one begins it. Called by the hooks."""
        mask = kwargs.get("attention_mask", args[2] if len(args) > 2 else None)
        if place == 0:
            self._check(hidden)
            self._used_ids, self._ids = self._ids, None
        elif self._pass is not None and self._pass.source is mask:
            return self._pass
        batch, tokens = hidden.shape[:2]
        ids = self._segment_ids(batch, tokens)
        kept = self._pass
        if mask is None and ids is None and kept is not None and kept.serves_again(batch, tokens):
            return kept
        cache = kwargs.get("past_key_values", args[3] if len(args) > 3 else None)
        self._pass = begin_pass(hidden, mask, cache, self._hooks[place].site.layer, ids)
        return self._pass

    def _check(self, hidden: Tensor) -> None:
        states, site = self.state_rows, self._hooks[0].site
        if hidden.device != self.device:
            raise RuntimeError(f"the model is on {hidden.device}, its memory on {self.device}: attach after moving it")
        if self.write_enabled and site.parent.training and getattr(site.parent, "gradient_checkpointing", False):
            raise RuntimeError(
                "gradient checkpointing runs a layer twice, and would write twice: turn it, or writes, off"
            )
        if states.batch is None:
            states.reset(len(hidden))
        elif len(hidden) != states.batch:
            raise ValueError(
                f"the batch has {len(hidden)} streams, the memory holds {states.batch}: call reset({len(hidden)}), or "
                f"bind or set the states of these streams"
            )

    def _segment_ids(self, batch: int, tokens: int) -> tuple[Tensor | None, ...] | None:
        unit = self.config.memory_write_granularity.removesuffix("_mean")
        if unit == "token" or not self.write_enabled:
            return None
        message, sentence = self._used_ids or (None, None)
        ids = (message,) if unit == "message" else (message, sentence)
        if ids[-1] is None:
            raise ValueError(
                f"this adapter writes {unit} means: call set_segments({unit}_ids=...) before each forward pass, or "
                f"turn write_enabled off"
            )
        for part in ids:
            if part is not None and part.shape != (batch, tokens):
                raise ValueError(f"segment ids must be [B, T] = {[batch, tokens]} as the input, got {list(part.shape)}")
        return ids

    # What happened.

    def record(self, name: str) -> LayerRecord:
        """Return what the module of that name did in the last forward pass.

        Raises
        ------
        KeyError, RuntimeError
            No module of that name is attached to; nothing ran yet, or `observe` is off.
        """
        if name not in self._by_name:
            raise KeyError(f"no attached module is called {name!r}: expected {self.module_names[0]!r} or so")
        record = self._by_name[name].record
        if record is None:
            raise RuntimeError("nothing is recorded: run the model first, with observe on")
        return record

    def stats(self) -> dict[str, LayerStats]:
        """Return module name → the last forward pass in numbers."""
        states = self.state_rows.stacked()
        return {
            name: summarise(self.record(name), states[:, place], self._layers[place])
            for place, name in enumerate(self.module_names)
        }

    # Training.

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the adapter's parameters, float32."""
        for layer in self._layers:
            yield from layer.parameters()

    def trainable(self, on: bool = True) -> Attachment:
        """Record gradients of the adapter's parameters, through reads and writes, or stop doing so.

        States written while recording are part of the graph, so that a loss reaches the writes of earlier forward
        passes; `reset`, or setting the states, begins anew.
        """
        for layer in self._layers:
            layer.trainable(on)
        if not on:
            self.state_rows.recorded.clear()
        return self

    def published_tensors(self) -> dict[str, Tensor]:
        """Return the adapter's tensors by their published names, as views."""
        return {
            f"{name}.{part}": tensor
            for name, layer in zip(self.module_names, self._layers, strict=True)
            for part, tensor in layer.published().items()
        }
