"""The states of the streams in a batch: rows of one tensor `[S, L, H, R, R]`, its own or a state pool's.

The scan advances rows in place, so a forward pass over streams that live in a pool copies nothing. With gradients
recorded the newest states are also kept as part of the autograd graph, until they are set, reset or written without
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


class States:
    """Which states a batch reads and writes.

    Parameters
    ----------
    names
        The L module names, in the order of the tensor's second dimension.
    heads, rank
        H and R.
    device
        Where the states live.

    Examples
    --------
    >>> states = States(["a", "b"], heads=1, rank=2, device="cpu")
    >>> states.reset(3)
    >>> states.stacked().shape, states.batch
    (torch.Size([3, 2, 1, 2, 2]), 3)
    """

    def __init__(self, names: Sequence[str], heads: int, rank: int, device: torch.device | str):
        self.names = tuple(names)
        self.shape = (len(names), heads, rank, rank)
        self.device = torch.device(device)
        self.batch: int | None = None
        self.recorded: dict[int, Tensor] = {}  # layer → [B, H, R, R] in the autograd graph
        self._rows = self._store = torch.zeros(0)

    def reset(self, batch: int) -> None:
        """Give `batch` streams zero states of their own."""
        if batch < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch}")
        with torch.inference_mode(False):  # so that they can also be advanced outside inference mode
            store = torch.zeros(batch, *self.shape, device=self.device)
        self.bind(store, torch.arange(batch))

    def bind(self, store: Tensor, slots: Tensor) -> None:
        """Advance the rows `slots` of `store` in place from now on.

        Parameters
        ----------
        store
            `[S, L, H, R, R]` float32, contiguous, on this device, such as `StatePool.states`.
        slots
            `[B]` int64, all different: stream b's row.
        """
        if store.ndim != 5 or store.shape[1:] != self.shape:
            raise ValueError(f"store must be [S, L, H, R, R] = [S, {str(self.shape)[1:-1]}], got {list(store.shape)}")
        if store.dtype != torch.float32 or store.device != self.device or not store.is_contiguous():
            raise TypeError(
                f"store must be contiguous float32 on {self.device}, got {store.dtype} on {store.device}"
                + ("" if store.is_contiguous() else ", not contiguous")
            )
        slots = torch.as_tensor(slots)
        if slots.dtype != torch.int64 or slots.ndim != 1 or not len(slots):
            raise TypeError(f"slots must be a row of int64, got {slots.dtype} {list(slots.shape)}")
        slots = slots.cpu()
        if int(slots.min()) < 0 or int(slots.max()) >= len(store) or len(set(slots.tolist())) != len(slots):
            raise ValueError(f"slots must be different rows of 0..{len(store) - 1}, got {slots.tolist()[:8]}")
        self.batch = len(slots)
        self.recorded.clear()
        self._store, self._slots = store, slots.to(self.device)
        self._rows = store.detach().view(-1, *self.shape[1:])
        layers = self.shape[0]
        self.layer_slots = [slots * layers + layer for layer in range(layers)]
        if self.device.type == "cpu":
            self.host_rows = self._rows.numpy()
            self.host_slots = [np.ascontiguousarray(part.numpy()) for part in self.layer_slots]
        else:
            self.device_slots = [part.to(self.device) for part in self.layer_slots]

    def snapshot(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return what `restore` needs to come back here: where the states are, and a copy of them; None before any."""
        return None if self.batch is None else (self._store, self.layer_slots[0] // self.shape[0], self.stacked())

    def restore(self, saved: tuple[Tensor, Tensor, Tensor] | None) -> None:
        """Bind again to where the states were, and put back what they were."""
        if saved is None:
            self.batch = None
            self.recorded.clear()
            return
        store, slots, states = saved
        self.bind(store, slots)
        self.put_stacked(states)

    @property
    def rows(self) -> Tensor:
        """`[S·L, H, R, R]`: what the scan advances at `layer_slots[layer]`."""
        return self._rows

    def layer(self, layer: int) -> Tensor:
        """Return one layer's states `[B, H, R, R]`: the recorded ones, or a copy."""
        recorded = self.recorded.get(layer)
        return self._store[self._slots, layer] if recorded is None else recorded

    def put(self, layer: int, states: Tensor, *, record: bool) -> None:
        """Replace one layer's states, keeping them in the autograd graph or not."""
        with torch.no_grad():
            self._store.detach()[self._slots, layer] = states.detach()
        if record:
            self.recorded[layer] = states
        else:
            self.recorded.pop(layer, None)

    def stacked(self) -> Tensor:
        """Return all states, `[B, L, H, R, R]`: a copy, or part of the graph where they are recorded."""
        self._need_batch()
        if self.recorded:
            return torch.stack([self.layer(layer) for layer in range(self.shape[0])], dim=1)
        return self._store[self._slots]

    def put_stacked(self, states: Tensor) -> None:
        """Set all states from `[B, L, H, R, R]` float32."""
        if not isinstance(states, Tensor) or states.ndim != 5 or states.shape[1:] != self.shape:
            shape = list(getattr(states, "shape", []))
            raise ValueError(f"states must be [B, L, H, R, R] = [B, {str(self.shape)[1:-1]}], got {shape}")
        if states.dtype != torch.float32:
            raise TypeError(f"states must be float32, got {states.dtype}")
        if self.batch is None:
            self.reset(len(states))
        elif len(states) != self.batch:
            raise ValueError(
                f"states of {len(states)} streams for a batch of {self.batch}: call reset({len(states)}) first"
            )
        states = states.to(self.device)
        for layer in range(self.shape[0]):
            self.put(layer, states[:, layer], record=states.requires_grad)

    def named(self) -> dict[str, Tensor]:
        """Return module name → `[B, H, R, R]`."""
        self._need_batch()
        return {name: self.layer(layer) for layer, name in enumerate(self.names)}

    def put_named(self, states: Mapping[str, Tensor]) -> None:
        """Set the states of every module by name; all or nothing."""
        missing, unknown = [name for name in self.names if name not in states], sorted(states.keys() - set(self.names))
        if missing or unknown:
            raise ValueError(
                f"states must name the {len(self.names)} modules {self.names[0]} .. {self.names[-1]}: "
                f"missing {missing[:3]}, unknown {unknown[:3]}"
            )
        batch = self.batch or len(states[self.names[0]])
        for name in self.names:
            if tuple(states[name].shape) != (batch, *self.shape[1:]):
                raise ValueError(
                    f"the state of {name} must be [B, H, R, R] = {[batch, *self.shape[1:]]}, got "
                    f"{list(states[name].shape)}" + ("; for another batch call reset first" if self.batch else "")
                )
        self.put_stacked(torch.stack([states[name].to(self.device) for name in self.names], dim=1))

    def _need_batch(self) -> None:
        if self.batch is None:
            raise RuntimeError("there are no states yet: call reset(batch_size), set them, or run the model")
