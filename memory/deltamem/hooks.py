"""One layer's hooks: before `self_attn` the memory is read and written, after q, k, v and o the reads are added.

Three forms of the same arithmetic, chosen by what is asked: the compiled step (a few tokens a stream on the host), a
torch step (one token, other devices: no word with the host, so it can be captured in a graph), and `memory.scan` for
all else, gradients included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from memory.deltamem.decode_step import add_low_rank, step_kernel
from memory.deltamem.forward_pass import ForwardPass
from memory.deltamem.layer import MemoryLayer, Projected
from memory.deltamem.record import LayerRecord
from memory.deltamem.sites import Site
from memory.rule import coefficients
from memory.scan_forms import scan

if TYPE_CHECKING:
    from memory.deltamem.attachment import Attachment

FEW = 4  # tokens a stream up to which the compiled step is taken: it runs on one core, and calls tanh one by one
_NO_NORMS = np.zeros(0, np.float32)


class StepBuffers:
    """What the compiled step of one layer writes to, and reads from: made once for each number of tokens.

    Parameters
    ----------
    layer
        The layer's parameters: numpy sees the same memory.
    count
        B·T.
    """

    def __init__(self, layer: MemoryLayer, count: int):
        config = layer.config
        heads, rank = config.num_state_heads, config.rank
        with torch.inference_mode(False):  # they are used in and out of it
            acts = torch.zeros(5, count, heads, rank)
            self.head_reads = torch.zeros(count, heads, rank)
            self.errors, self.norms = torch.zeros(count, heads), torch.zeros(count)
        self.count, self.mode = count, int(config.mode)
        self.acts, self.reads = Projected(*acts.unbind()), self.head_reads.flatten(1)
        self.host_acts, self.host_reads = acts.numpy().reshape(5, -1), self.reads.numpy().reshape(-1)
        self.host_errors, self.host_norms = self.errors.numpy(), self.norms.numpy()
        self.gate_bias = layer.gate_bias.detach().numpy()
        self.weights: dict[str, Any] = {head: layer.deltas[head].detach().numpy() for head in config.delta_heads}
        self.kernel = step_kernel(rank)


class LayerHooks:
    """Ties one attention module to its memory.

    Parameters
    ----------
    owner
        The attachment: states, switches, and the forward pass that all layers share.
    site, layer, place
        The attention module, its parameters, and its place among the L layers attached to.
    """

    def __init__(self, owner: Attachment, site: Site, layer: MemoryLayer, place: int):
        self.owner, self.site, self.layer, self.place = owner, site, layer, place
        self.record: LayerRecord | None = None
        self.reads: Tensor | None = None  # [B·T, H·R], between self_attn's start and o_proj's end
        self._packed = layer.packed  # not through the module: its attribute look-up is slow
        self._records = False  # whether autograd records this pass
        self._step: StepBuffers | None = None  # of the compiled step, if this pass took it
        self._buffers: StepBuffers | None = None
        module = site.module
        self.handles: list[RemovableHandle] = [module.register_forward_pre_hook(self._before, with_kwargs=True)]
        for head in dict.fromkeys((*layer.config.delta_heads, "o")):  # o_proj ends the pass, corrected or not
            hook = self._after(head)
            self.handles.append(getattr(module, f"{head}_proj").register_forward_hook(hook))

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self.handles:
            handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is not self.site.module:
            return  # a deep copy of the model carries its hooks along, and is not attached
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        owner = self.owner
        run = owner.current_pass(self.place, hidden, args, kwargs)
        if torch.is_autocast_enabled(hidden.device.type):
            with torch.autocast(hidden.device.type, enabled=False):
                self._advance(hidden, run)
        else:
            self._advance(hidden, run)

    def _advance(self, hidden: Tensor, run: ForwardPass) -> None:
        rows = hidden.reshape(-1, hidden.shape[-1])
        layer, states = self.layer, self.owner.state_rows
        self._step = None
        self._records = torch.is_grad_enabled() and (
            hidden.requires_grad
            or bool(states.recorded)
            or any(parameter.requires_grad for parameter in layer.parameters())
        )
        packed = F.linear(rows if rows.dtype == torch.float32 else rows.float(), self._packed)
        if self._records:
            self._scan(packed, run, record=True)
        elif run.tokens <= FEW and run.segments is None and packed.device.type == "cpu" and not _compiling():
            self._step_compiled(packed, run)
        elif run.tokens == 1 and run.segments is None:
            self._step_torch(packed, run)
        else:
            self._scan(packed, run, record=False)

    def _step_compiled(self, packed: Tensor, run: ForwardPass) -> None:
        layer, owner = self.layer, self.owner
        states, config = owner.state_rows, layer.config
        step = self._buffers
        if step is None or step.count != len(packed):
            step = self._buffers = StepBuffers(layer, len(packed))
        write = owner.write_enabled
        step.kernel(
            packed.numpy(), step.gate_bias, states.host_rows, states.host_slots[self.place], run.host_real, run.tokens,
            step.mode, config.normalize_qk, write, layer.gates, step.host_acts, step.host_reads, step.host_errors,
        )  # fmt: skip
        if write:
            states.recorded.pop(self.place, None)
        self.reads, self._step = step.reads, step
        self._keep(run, step.acts.q, step.head_reads, step.acts, step.errors if write else None)

    def _step_torch(self, packed: Tensor, run: ForwardPass) -> None:
        states, place = self.owner.state_rows, self.place
        new = self.layer.activate(packed)
        at = states.device_slots[place] if states.device.type != "cpu" else states.layer_slots[place]
        before = states.rows[at]
        reads = (before @ new.q[..., None])[..., 0]
        if run.real is not None:
            reads = torch.where(run.real[:, None, None], reads, torch.zeros_like(reads))
        error = None
        if self.owner.write_enabled:
            keep, erase, write = coefficients(self.layer.config.mode, new.beta, new.lam)
            predicted = (before @ new.k[..., None])[..., 0]
            after = keep[..., None] * before + (write * new.v - erase * predicted)[..., None] * new.k[..., None, :]
            if run.real is not None:
                after = torch.where(run.real[:, None, None, None], after, before)
            states.rows.index_copy_(0, at, after)
            states.recorded.pop(place, None)
            if self.owner.observe:
                tiny = torch.finfo(torch.float32).tiny
                error = (new.v - predicted).norm(dim=-1) / new.v.norm(dim=-1).clamp_min(tiny)
        self.reads = reads.flatten(1)
        self._keep(run, new.q, reads, new, error)

    def _scan(self, packed: Tensor, run: ForwardPass, *, record: bool) -> None:
        owner, layer, place = self.owner, self.layer, self.place
        states, config = owner.state_rows, layer.config
        tokens = layer.activate(packed)
        reads: Tensor | None
        if not owner.write_enabled:
            reads = self._read(states.layer(place), tokens.q, run)
            self.reads = reads.flatten(1)
            self._keep(run, tokens.q, reads, tokens, None)
            return
        if run.segments is None:
            written, offsets, mask = tokens, run.offsets, run.real
            reads = None
        else:  # every read of the pass sees the states as they were before it
            written, offsets, mask = layer.activate(run.segments.means(packed)), run.segments.offsets, None
            reads = self._read(states.layer(place), tokens.q, run)
        if record:
            at, store = torch.arange(run.batch), states.layer(place).clone()
        else:
            at, store = states.layer_slots[place], states.rows
        result = scan(
            store, at, torch.arange(run.batch), offsets, written.q, written.k, written.v, written.beta, written.lam,
            mode=config.mode.label, token_mask=mask, want_reads=run.segments is None,
        )  # fmt: skip
        if record:
            states.put(place, store if result.final_states is None else result.final_states, record=True)
        else:
            states.recorded.pop(place, None)
        if reads is None:
            assert result.reads is not None
            reads = result.reads
        self.reads = reads.flatten(1)
        self._keep(run, tokens.q, reads, written, result.write_error)

    def _read(self, state: Tensor, q: Tensor, run: ForwardPass) -> Tensor:
        """Read all tokens from one state a stream: `[B, H, R, R]`, `[B·T, H, R]` → `[B·T, H, R]`."""
        queries = q.view(run.batch, run.tokens, *q.shape[1:]).transpose(1, 2)  # [B, H, T, R]
        reads = (queries @ state.transpose(-1, -2)).transpose(1, 2).reshape(q.shape)
        return reads if run.real is None else torch.where(run.real[:, None, None], reads, torch.zeros_like(reads))

    def _keep(self, run: ForwardPass, q: Tensor, reads: Tensor, written: Projected, error: Tensor | None) -> None:
        if not self.owner.observe:
            self.record = None
            return
        lam = written.lam
        if lam is None:
            lam = coefficients(self.layer.config.mode, written.beta, None)[0]
        by_segment = run.segments is not None and self.owner.write_enabled
        offsets = run.segments.offsets if run.segments is not None and by_segment else run.offsets
        self.record = LayerRecord(
            run.batch, run.tokens, q, reads, written.k, written.v, written.beta, lam, offsets,
            None if by_segment else run.real, error, run.real, self.owner.scale,
        )  # fmt: skip

    def _after(self, head: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        projection = getattr(self.site.module, f"{head}_proj")
        corrects, last = head in self.layer.config.delta_heads, head == "o"

        def correct(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
            reads, scale = self.reads, self.owner.scale
            if reads is None or module is not projection:
                return None
            if last:
                self.reads = None
            return self._correct(head, output, reads, scale) if corrects and scale != 0 else None

        return correct

    def _correct(self, head: str, output: Tensor, reads: Tensor, scale: float) -> Tensor:
        layer = self.layer
        observed = head == "o" and self.record is not None
        recorded = self._records or output.requires_grad
        plain = output.dtype == torch.float32 and (head != "o" or layer.norm_weight is None)
        in_place = plain and not recorded and output.is_contiguous()
        step = self._step
        if in_place and step is not None:
            norms = step.host_norms if observed else _NO_NORMS
            add_low_rank(output.numpy(), step.host_reads, step.weights[head], scale * float(layer.factor(head)), norms)
            if observed and self.record is not None:
                self.record.output_norm = step.norms
            return output
        if observed and self.record is not None:
            self.record.output_norm = _norms(output.detach())
        if in_place:
            output.view(len(reads), -1).addmm_(reads, layer.deltas[head], alpha=scale * float(layer.factor(head)))
            return output
        correction = layer.correction(head, reads).view(output.shape)
        correction = correction if scale == 1 else correction * scale
        if recorded:
            return (output + correction).to(output.dtype)
        return output.add_(correction)


def _norms(output: Tensor) -> Tensor:
    """‖·‖ of each row, in float32 or better: `[B, T, O]` → `[B·T]`."""
    wide = torch.float64 if output.dtype == torch.float64 else torch.float32
    norms: Tensor = torch.linalg.vector_norm(output, dim=-1, dtype=wide).float().flatten()
    return norms


def _compiling() -> bool:
    return bool(torch.compiler.is_compiling())
