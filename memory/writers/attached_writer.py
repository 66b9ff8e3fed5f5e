"""Writes of a memory attached to a language model: δ-mem, every stream reading and writing its own states."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memory.backbones.backbone import Ids
from memory.backbones.hf_backbone import HFBackbone, left_padded, right_padded
from memory.backbones.padding import MOST, SHORTEST, padded_length
from memory.deltamem import Attachment, attach
from memory.deltamem.adapter_io import read_config, read_tensors
from memory.errors import ConfigurationError
from memory.lane_state import Column, Columns, Slots
from memory.reach import largest_by_event, write_reach
from memory.rule import Mode
from memory.stages import Stages
from memory.threads import threads, torch_threads
from memory.writers.segments import Segments
from memory.writers.writer import Batch, Rows, Writer, Written

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one forward pass wrote, in all layers: N = L · H.

    Attributes
    ----------
    k, v, beta, lam
        `[M, N, R]` float32, on the model's device.
    error
        `[M, N]` float32: ‖v − S k‖ / ‖v‖ before each write.
    rows
        Event of the micro-batch → which of the M rows it wrote, in order.
    """

    k: Tensor
    v: Tensor
    beta: Tensor
    lam: Tensor
    error: Tensor
    rows: dict[int, Places]


class AttachedWriter(Writer):
    """A language model with an adapter attached; its tokens run with the stream's own states, selected by slot.

    An event of more tokens than `window` runs in several windows, which the state alone connects (and the
    context, where there is one). With segment writes each window's messages or sentences are written when it ends.

    Parameters
    ----------
    backbone
        The model.
    adapter
        The adapter's folder.
    context
        How many of the stream's last tokens the model sees again before an event; they are read with the state as it
        is, and not written again. 0: the state is the only memory.

    Raises
    ------
    ConfigurationError
        The adapter cannot be read or does not fit, or the context leaves the model no room.
    """

    def __init__(self, backbone: HFBackbone, adapter: str | Path, *, context: int = 0):
        self.backbone: HFBackbone = backbone
        self.fingerprints = {"--backbone": backbone.fingerprint, "--adapter": _fingerprint(Path(adapter))}
        self.context = context
        self.window = backbone.window
        room = getattr(backbone.model.config, "max_position_embeddings", None)
        if room is not None:
            self.window = min(backbone.window, room - context)
            if self.window < SHORTEST:
                raise ConfigurationError(
                    f"--context last:{context}: the model sees {room} tokens at most, and {SHORTEST} of them at least "
                    f"are for the event: give at most last:{max(0, room - SHORTEST)}"
                )
        self.memory: Attachment = attach(backbone.model, adapter)
        self.layers, self.heads, self.rank, _ = self.memory.state_rows.shape
        self.mode = self.memory.config.mode.label
        if context:
            self.lanes = Columns({"tail": Column("int64", (context,)), "length": Column("int64")})

    @property
    def row_gates(self) -> bool:
        """Always: one gate a head is the same number for all rows."""
        return True

    @property
    def own_lam(self) -> bool:
        """Where the rule has one: coupled to β or not."""
        return Mode.parse(self.mode) in (Mode.GATED, Mode.DECAY_OUTSIDE)

    @property
    def settings(self) -> dict[str, str]:
        """Model, adapter and context."""
        return self.fingerprints | {"--context": f"last:{self.context}" if self.context else "none"}

    def begin(self, ids: Sequence[Ids], stages: Stages) -> AttachedBatch:
        """Keep the micro-batch: nothing is encoded before its stream's state is known."""
        return AttachedBatch(self, ids, stages)

    def seen_before(self, slots: Slots) -> list[Ids]:
        """Return the tokens that each lane's next event follows, `[up to context]` int64."""
        if not self.context:
            return [np.zeros(0, np.int64)] * len(slots)
        columns = cast(Columns, self.lanes)
        tails, lengths = columns["tail"], columns["length"]
        return [tails[slot, self.context - lengths[slot] :].copy() for slot in slots]

    def remember(self, slots: Slots, tails: Sequence[Ids]) -> None:
        """Keep the last tokens of each lane."""
        if self.context:
            columns = cast(Columns, self.lanes)
            for slot, tail in zip(slots, tails, strict=True):
                last = tail[-self.context :]
                columns["length"][slot] = len(last)
                columns["tail"][slot, self.context - len(last) :] = last

    def close(self) -> None:
        """Take the memory off the model."""
        self.memory.detach()


class AttachedBatch(Batch):
    """A micro-batch that is encoded as it is written.

    Parameters
    ----------
    writer, ids, stages
        As `AttachedWriter.begin` gets them.
    """

    known_before = False

    def __init__(self, writer: AttachedWriter, ids: Sequence[Ids], stages: Stages):
        self._writer, self._ids, self._stages = writer, ids, stages
        self._pieces: list[Piece] = []  # of the events advanced last
        self._taken: dict[int, list[npt.NDArray[np.float32]]] = {}  # event → k, v, β, λ, embedding
        self._undone: set[int] = set()  # events that were kept out
        self._keep = writer.keeps_rows

    def advance(self, states: Tensor, slots: Slots, index: Slots, turn: npt.NDArray[np.int64]) -> Written:
        """Run the events' tokens through the model, window by window."""
        self._pieces = []
        at = torch.from_numpy(slots).to(states.device)
        before = states[at]
        with self._stages("backbone"), torch_threads(threads()), torch.inference_mode():
            embedding = self._run(states, slots, index)
        with self._stages("signals"):
            undone = self._undo_nonfinite(states, at, before)
            self._undone = set(index[undone].tolist())
            if self._keep:
                self._take(index, embedding, undone)
            return self._summarise(states[at], index, turn, embedding, undone)

    def _run(self, states: Tensor, slots: Slots, index: Slots) -> npt.NDArray[np.float32]:
        """Advance the states; return the events' embeddings."""
        writer = self._writer
        events = [self._ids[event] for event in index]
        tails, window = writer.seen_before(slots), writer.window
        sums = torch.zeros(len(index), writer.backbone.dim, device=states.device)
        for first in range(0, max((len(event) for event in events), default=0), window):
            parts = [event[first : first + window] for event in events]
            for rows in _groups(parts, tails):
                hidden, mask = self._forward(
                    states, slots[rows], index[rows], *([x[r] for r in rows] for x in (parts, tails))
                )
                sums[torch.from_numpy(rows)] += (hidden.float() * mask[..., None]).sum(1)
            tails = [np.concatenate([tail, part]) for tail, part in zip(tails, parts, strict=True)]
            if writer.context:
                tails = [tail[-writer.context :] for tail in tails]
            else:
                tails = [tail[:0] for tail in tails]
        writer.remember(slots, tails)
        lengths = np.fromiter((len(event) for event in events), np.float32, len(events))
        with np.errstate(invalid="ignore"):
            means: npt.NDArray[np.float32] = np.divide(
                sums.cpu().numpy(), lengths[:, None], dtype=np.float32
            )  # 0 / 0 is NaN: there is none
        return means

    def _forward(
        self, states: Tensor, slots: Slots, index: Slots, tokens: Sequence[Ids], contexts: Sequence[Ids]
    ) -> tuple[Tensor, Tensor]:
        """Run B windows of one shape; return the last hidden states `[B, T, D]` and the mask `[B, T]`."""
        writer = self._writer
        memory, model, device = writer.memory, writer.backbone.model.base_model, writer.backbone.device
        memory.bind(states, torch.from_numpy(slots))
        x, mask = right_padded(tokens, device)
        positions, seen, cache = torch.arange(x.shape[1], device=device).expand_as(x), mask, None
        if len(contexts[0]):
            from transformers.cache_utils import DynamicCache  # here: it takes seconds to import

            before, real = left_padded(contexts, device)
            cache = DynamicCache(config=writer.backbone.model.config)
            memory.write_enabled = False
            try:
                model(
                    input_ids=before,
                    attention_mask=real,
                    position_ids=(real.cumsum(1) - 1).clamp_min(0),
                    past_key_values=cache,
                    use_cache=True,
                )
            finally:
                memory.write_enabled = True
            positions, seen = positions + real.sum(1, keepdim=True), torch.cat([real, mask], 1)
        self._name_segments(tokens, mask)
        hidden = model(
            input_ids=x, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=cache is not None
        )[0]
        self._pieces.append(self._piece(index))
        return hidden, mask

    def _name_segments(self, tokens: Sequence[Ids], mask: Tensor) -> None:
        writer = self._writer
        if writer.memory.config.memory_write_granularity == "token":
            return
        message = mask - 1  # 0: the message, −1: padding
        if writer.memory.config.memory_write_granularity == "message_mean":
            writer.memory.set_segments(message_ids=message)
            return
        sentence = message.clone()
        for row, part in enumerate(tokens):
            sentence[row, : len(part)] = torch.from_numpy(writer.backbone.sentences(part))
        writer.memory.set_segments(message_ids=message, sentence_ids=sentence)

    def _piece(self, index: Slots) -> Piece:
        """Take what the layers recorded of the pass that just ended."""
        memory = self._writer.memory
        records = [memory.record(name) for name in memory.module_names]
        k, v, beta, lam = (
            torch.stack([getattr(record, name).expand_as(record.k) for record in records], 1).flatten(1, 2)
            for name in ("k", "v", "beta", "lam")
        )
        error = torch.stack([cast(Tensor, record.write_error) for record in records], 1).flatten(1)
        offsets, written = records[0].offsets.numpy(), records[0].written
        real = None if written is None else written.cpu().numpy()
        rows = {}
        for place, event in enumerate(index.tolist()):
            own = np.arange(offsets[place], offsets[place + 1])
            rows[event] = own if real is None else own[real[own]]
        return Piece(k, v, beta, lam, error, rows)

    def _undo_nonfinite(self, states: Tensor, at: Tensor, before: Tensor) -> npt.NDArray[np.bool_]:
        """Give lanes whose states are no longer finite their former ones back; say which."""
        after = states[at]
        finite = torch.isfinite(after)
        sick = ~finite.flatten(1).all(1)
        if bool(sick.any()):
            self.nonfinite += int((~finite).sum())
            states[at[sick]] = before[sick]
        undone: npt.NDArray[np.bool_] = sick.cpu().numpy()
        return undone

    def _summarise(
        self,
        states: Tensor,
        index: Slots,
        turn: npt.NDArray[np.int64],
        embedding: npt.NDArray[np.float32],
        undone: npt.NDArray[np.bool_],
    ) -> Written:
        writer, n = self._writer, len(index)
        heads = writer.layers * writer.heads
        pairs = np.zeros((2, n, heads, writer.rank), np.float32)
        count, error = np.zeros(n, np.int64), np.full((n, heads), np.nan)
        reach = np.zeros((n, heads, writer.rank), np.float32)
        for place, event in enumerate(index.tolist()):
            parts = [(piece, piece.rows[event]) for piece in self._pieces if event in piece.rows]
            count[place] = sum(len(rows) for _, rows in parts)
            if undone[place] or not count[place]:
                count[place] = 0
                continue
            error[place] = sum(piece.error[rows].double().sum(0).cpu().numpy() for piece, rows in parts) / count[place]
            chosen = int(turn[place] % count[place])
            for piece, rows in parts:
                if 0 <= chosen < len(rows):
                    pairs[:, place] = [x[rows[chosen]].cpu().numpy() for x in (piece.k, piece.v)]
                chosen -= len(rows)
                reach[place] = np.maximum(reach[place], self._reach(piece, rows))
        norms = torch.linalg.vector_norm(states, dim=(-2, -1)).flatten(1).cpu().numpy()
        bounded = reach if writer.memory.config.normalize_qk else None  # raw keys may be longer than 1
        return Written(embedding, count, error, norms, pairs[0], pairs[1], bounded)

    def _reach(self, piece: Piece, rows: Places) -> npt.NDArray[np.float32]:
        """How large the writes at `rows` allow the states to become, `[N, R]`."""
        v, beta, lam = (x[rows].cpu().numpy() for x in (piece.v, piece.beta, piece.lam))
        own = lam if self._writer.own_lam else None
        largest = largest_by_event(write_reach(self._writer.mode, v.shape[2], v, beta, own), np.array([0, len(v)]))
        first: npt.NDArray[np.float32] = largest[0]
        return first

    def _take(self, index: Slots, embedding: npt.NDArray[np.float32], undone: npt.NDArray[np.bool_]) -> None:
        for place, event in enumerate(index.tolist()):
            parts = [(p, p.rows[event]) for p in self._pieces if event in p.rows and not undone[place]]
            names = ("k", "v", "beta", "lam")
            empty = np.zeros((0, self._writer.layers * self._writer.heads, self._writer.rank), np.float32)
            rows = [np.concatenate([empty, *(getattr(p, name)[at].cpu().numpy() for p, at in parts)]) for name in names]
            self._taken[event] = [*rows, embedding[place]]

    def rows(self) -> Rows:
        """Put the events' rows end to end."""
        taken = [self._taken[event] for event in range(len(self._ids))]
        keys, values, beta, lam = (np.concatenate([rows[part] for rows in taken]) for part in range(4))
        own = lam if self._writer.own_lam else None
        bounds = np.concatenate([[0], np.cumsum([len(rows[0]) for rows in taken])]).astype(np.int64)
        return Rows(bounds, keys, values, beta, own, np.stack([rows[4] for rows in taken]))

    def segments(self, index: Slots) -> Segments:
        """Return what the events wrote.

        What upper layers write depends on what lower ones read from the stream's own state: written to another state,
        these rows are what they were, not what they would have been there.
        """
        writer = self._writer
        parts = [[(p, p.rows[event]) for p in self._pieces if event in p.rows] for event in index.tolist()]
        empty = torch.zeros(0, writer.layers * writer.heads, writer.rank, device=writer.memory.device)
        k, v, beta, lam = (
            torch.cat([empty, *(getattr(p, name)[rows] for own in parts for p, rows in own)])
            for name in ("k", "v", "beta", "lam")
        )
        bounds = np.concatenate([[0], np.cumsum([sum(len(rows) for _, rows in own) for own in parts])]).astype(np.int64)
        undone = (
            None
            if not self._undone
            else np.repeat([event in self._undone for event in index.tolist()], np.diff(bounds))
        )
        mask = None if undone is None else torch.from_numpy(~undone).to(empty.device)
        return Segments(np.arange(len(index)), bounds, k, k, v, beta, lam if writer.own_lam else None, mask)


def _groups(parts: Sequence[Ids], contexts: Sequence[Ids]) -> Iterator[Slots]:
    """Yield rows whose windows may share a forward pass: the shape depends on each row alone, so its bits do too."""
    shapes: defaultdict[tuple[int, bool, int, bool], list[int]] = defaultdict(list)
    for row, (part, context) in enumerate(zip(parts, contexts, strict=True)):
        if len(part):
            length, before = padded_length(len(part)), padded_length(len(context)) if len(context) else 0
            shapes[length, length == len(part), before, before == len(context)].append(row)
    for (length, _, before, _), rows in sorted(shapes.items()):
        most = max(1, MOST // (length + before))
        for first in range(0, len(rows), most):
            yield np.array(rows[first : first + most], np.int64)


def _fingerprint(adapter: Path) -> str:
    """Say which adapter this is: the hash of its settings and tensors, whichever file they came from."""
    digest = sha256(read_config(adapter).model_dump_json().encode())
    for name, tensor in sorted(read_tensors(adapter).items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"delta-mem/1 {digest.hexdigest()[:16]}"
