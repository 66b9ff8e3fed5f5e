"""The topic-shift network in torch, for training: `monitors/trained_topic_shift.py` is what it does in the consumer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.topic_data import Bank, Index
from monitors.topic_head import LAGS, RATES, WINDOWS

WIDTH, BUCKETS, WORD, EDGES, LAYER, GATES, DIM = 48, 512, 16, 48, 64, 32, 384


def shift(rows: Tensor, by: int) -> Tensor:
    """Return `[B, T, …]` moved `by` events later, zeros first."""
    return functional.pad(rows, (0, 0, by, 0))[:, : rows.shape[1]]


class TopicNet(nn.Module):
    """Logits of a boundary at each event of B streams of T events.

    Parameters
    ----------
    drop
        Share of inner values dropped in training.
    """

    def __init__(self, drop: float = 0.5):
        super().__init__()
        self.metric, self.content = nn.Linear(DIM, WIDTH, bias=False), nn.Linear(DIM, WIDTH, bias=False)
        nn.init.normal_(self.metric.weight, std=DIM**-0.5)
        nn.init.normal_(self.content.weight, std=DIM**-0.5)
        self.words = nn.ModuleList([nn.Embedding(BUCKETS + 1, WORD, padding_idx=BUCKETS) for _ in range(3)])
        for table in self.words:
            nn.init.normal_(table.weight, std=0.1)  # type: ignore[arg-type]
            with torch.no_grad():
                table.weight[BUCKETS] = 0  # type: ignore[operator]
        self.edges = nn.Linear(3 * DIM, EDGES)
        utterance = WIDTH + 3 * WORD + 1 + EDGES
        self.inner = nn.Linear(2 * utterance + 2 * LAGS + len(WINDOWS) + len(RATES) + 2 * WIDTH, LAYER)
        self.gru, self.out = nn.GRU(LAYER, GATES, batch_first=True), nn.Linear(GATES + LAYER, 1)
        self.drop, self.input_drop = nn.Dropout(drop), nn.Dropout(0.1)
        nn.init.constant_(self.out.bias, -1.5)
        self.pair = nn.Parameter(torch.tensor([5.0, -1.0]))

    def forward(self, bank: Bank, rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `[B, T]` and the metric's directions `[B, T, A]`, of the utterances `rows` `[B, T]`."""
        there = mask[..., None].float()
        unit = self.input_drop(bank.unit[rows]) * there
        a = functional.normalize(self.metric(unit), dim=-1, eps=1e-6)
        raw = functional.normalize(unit, dim=-1, eps=1e-6)
        bag = bank.bag[rows]
        held = (bag != BUCKETS).sum(2, keepdim=True).clamp(min=1)
        u = torch.cat(
            [
                self.content(unit),
                self.words[0](bag).sum(2) * 3 / held,
                self.words[1](bank.first[rows]),
                self.words[2](bank.last[rows]),
                bank.length[rows][..., None] - 2.3,
                0.3 * self.edges(bank.ends[rows]),
            ],
            dim=-1,
        )
        u = self.drop(u)
        alike = [(own * shift(own, k)).sum(-1) for own in (a, raw) for k in range(1, LAGS + 1)]
        for window in WINDOWS:
            past = sum((shift(raw, k) for k in range(1, window + 1)), torch.zeros(()))
            alike.append((raw * functional.normalize(past, dim=-1, eps=1e-6)).sum(-1))
        time = torch.arange(rows.shape[1])
        lag = (time[:, None] - time[None, :] - 1).float()
        middle = a
        for k, rate in enumerate(RATES):
            weights = torch.where(lag >= 0, rate * (1 - rate) ** lag.clamp(min=0), torch.zeros(()))
            mean = functional.normalize(weights @ a, dim=-1, eps=1e-6)
            alike.append((a * mean).sum(-1))
            middle = mean if k == 1 else middle
        products = self.drop(torch.cat([6 * a * shift(a, 1), 6 * a * middle], dim=-1))
        z = torch.cat([u, shift(u, 1), 2 * torch.stack(alike, dim=-1), products], dim=-1)
        h = functional.relu(self.inner(z))
        g, _ = self.gru(self.drop(h))
        return self.out(torch.cat([self.drop(g), self.drop(h)], dim=-1))[..., 0], a


def export(net: TopicNet, scale: float = 1.0, offset: float = 0.0) -> dict[str, npt.NDArray[np.float32]]:
    """Return the arrays of `TopicHead`; the logit is calibrated to scale · logit + offset."""
    state = {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}
    return {
        "metric": state["metric.weight"],
        "content": state["content.weight"],
        "edges": state["edges.weight"],
        "edges_bias": state["edges.bias"],
        "words": np.stack([state[f"words.{k}.weight"] for k in range(3)]),
        "inner": state["inner.weight"],
        "inner_bias": state["inner.bias"],
        "gates_in": state["gru.weight_ih_l0"],
        "gates_in_bias": state["gru.bias_ih_l0"],
        "gates_past": state["gru.weight_hh_l0"],
        "gates_past_bias": state["gru.bias_hh_l0"],
        "out": state["out.weight"][0] * np.float32(scale),
        "out_bias": state["out.bias"] * np.float32(scale) + np.float32(offset),
    }


def pad(streams: Sequence[tuple[Index, npt.NDArray[np.float32]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows `[B, T]`, labels `[B, T]` and mask `[B, T]` of streams of unlike length."""
    shape = (len(streams), max(len(rows) for rows, _ in streams))
    rows, labels, mask = np.zeros(shape, np.int64), np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
    for at, (own, label) in enumerate(streams):
        rows[at, : len(own)], labels[at, : len(own)], mask[at, : len(own)] = own, label, True
    return torch.from_numpy(rows), torch.from_numpy(labels), torch.from_numpy(mask)


@torch.no_grad()
def logits(net: TopicNet, bank: Bank, dialogues: Sequence[Index]) -> list[npt.NDArray[np.float64]]:
    """Return each dialogue's logits, `[n]`."""
    net.eval()
    found: dict[int, npt.NDArray[np.float64]] = {}
    order = sorted(range(len(dialogues)), key=lambda at: len(dialogues[at]))
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        rows, _, mask = pad([(dialogues[at], np.zeros(len(dialogues[at]), np.float32)) for at in part])
        values, _ = net(bank, rows, mask)
        found |= {at: values[k, : len(dialogues[at])].double().numpy() for k, at in enumerate(part)}
    return [found[at] for at in range(len(dialogues))]
