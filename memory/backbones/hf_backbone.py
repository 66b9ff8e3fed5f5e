"""Any causal language model of transformers, frozen."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memory.backbones.backbone import Backbone, Encoded, Ids
from memory.backbones.padding import MOST, padded_length
from memory.errors import ConfigurationError
from memory.threads import threads, torch_threads

WINDOW = 1024
"""Most tokens of an event in one forward pass; a longer one takes several."""

SENTENCE_END = re.compile(r"""[.!?…。！？]["'”’)\]]*\s*$|\n""")


class HFBackbone(Backbone):
    """A frozen causal language model, its embeddings the mean of the last hidden states.

    By itself it is an encoder like the others, each window of a text seen alone. With an adapter attached it is what
    `memory.writers.AttachedWriter` runs. A folder without a tokenizer will do for events that come as token ids.

    The same bits whatever the batch: inputs share a forward pass only with those of the same padded length, and those
    that need no padding (which models run without a mask) only with each other. `ebbtide doctor` checks that this holds
    for a model on the machine at hand; in half precision it may not.

    Parameters
    ----------
    source
        A folder, or the hub's name.
    device
        Where the model runs.

    Raises
    ------
    ConfigurationError
        It cannot be loaded.
    """

    name = "hf"

    def __init__(self, source: str, device: torch.device | str = "cpu"):
        import transformers

        self.device, self.source = torch.device(device), source
        if re.match(r"[./~]", source) and not Path(source).expanduser().is_dir():
            raise ConfigurationError(f"--backbone hf:{source}: there is no such folder")
        path = str(Path(source).expanduser())
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto")
        except (OSError, ValueError, KeyError) as error:
            raise ConfigurationError(
                f"--backbone hf:{source}: expected a folder or a hub name of a causal language model: {_reason(error)}"
            ) from error
        self.tokenizer: Any = _tokenizer(path)
        self.model: Any = model.eval().requires_grad_(False).to(self.device)
        self.dim = int(self.model.get_input_embeddings().weight.shape[1])
        self.vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        self.window = min(WINDOW, int(getattr(model.config, "max_position_embeddings", WINDOW)))
        self._ends: dict[int, bool] = {}

    @cached_property
    def _weights(self) -> str:
        digest = sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    @property
    def fingerprint(self) -> str:
        """The model's type, the hash of its weights, and how text is cut into windows."""
        return f"hf/1 {self.model.config.model_type} weights={self._weights} window={self.window}"

    def tokenize(self, texts: Sequence[str]) -> list[Ids]:
        """Return the tokenizer's ids, without special tokens."""
        if not texts:
            return []
        if self.tokenizer is None:
            raise ConfigurationError(
                f"--backbone hf:{self.source}: it has no tokenizer, so events need `tokens` in place of `text`"
            )
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [np.asarray(ids, np.int64) for ids in encoded["input_ids"]]

    def sentences(self, ids: Ids) -> Ids:
        """Number the sentences of an event: `[T]` int64, from 0.

        A sentence ends with a token whose text ends in ``.``, ``!``, ``?`` or their like, or holds a line break.
        Without a tokenizer there is one.
        """
        if self.tokenizer is None or not len(ids):
            return np.zeros(len(ids), np.int64)
        ends = np.fromiter((self._ends_sentence(number) for number in ids.tolist()), np.bool_, len(ids))
        return np.concatenate([[0], np.cumsum(ends[:-1])]).astype(np.int64)

    def _ends_sentence(self, number: int) -> bool:
        known = self._ends.get(number)
        if known is None:
            known = self._ends[number] = bool(SENTENCE_END.search(self.tokenizer.decode([number])))
        return known

    def encode(self, ids: Ids, offsets: Ids, *, want_hidden: bool) -> Encoded:
        """Run the model over windows, those of one padded length together."""
        embedding = torch.zeros(len(offsets) - 1, self.dim, device=self.device)
        hidden = torch.empty(len(ids), self.dim, device=self.device) if want_hidden else None
        whole = np.diff(offsets)
        with torch_threads(threads()), torch.inference_mode():
            for segments, windows in passes(offsets, self.window):
                tokens, mask = right_padded([ids[first:last] for first, last in windows], self.device)
                states = self.model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False)[0].float()
                sums = (states * mask[..., None]).sum(1)
                for row, (segment, (first, last)) in enumerate(zip(segments, windows, strict=True)):
                    embedding[segment] += sums[row] / float(whole[segment])
                    if hidden is not None:
                        hidden[first:last] = states[row, : last - first]
        return Encoded(embedding, hidden)


def passes(offsets: Ids, window: int) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """Yield (segments, windows) that may share a forward pass: of one padded length, padded or not, at most `MOST`
    tokens together. A segment's windows come in order."""
    buckets: defaultdict[tuple[int, bool], list[tuple[int, int, int]]] = defaultdict(list)
    for segment in range(len(offsets) - 1):
        end = int(offsets[segment + 1])
        for first in range(int(offsets[segment]), end, window):
            length = min(window, end - first)
            buckets[padded_length(length), padded_length(length) == length].append((segment, first, first + length))
    for padded, full in sorted(buckets, reverse=True):
        rows = buckets[padded, full]
        for at in range(0, len(rows), max(1, MOST // padded)):
            part = rows[at : at + max(1, MOST // padded)]
            yield [row[0] for row in part], [row[1:] for row in part]


def right_padded(rows: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, `[B, T]` int64, T the padded length of the longest row."""
    return _padded(rows, device, left=False)


def left_padded(rows: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """Like `right_padded`, with the tokens at the end."""
    return _padded(rows, device, left=True)


def _padded(rows: Sequence[Ids], device: torch.device, *, left: bool) -> tuple[Tensor, Tensor]:
    width = padded_length(max(len(row) for row in rows))
    tokens, mask = np.zeros((2, len(rows), width), np.int64)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[number, place], mask[number, place] = row, 1
    return torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)


def _tokenizer(path: str) -> Any:
    """Load the tokenizer; None where there is none (for some models that loads as one that knows no word)."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError):
        return None
    return tokenizer if tokenizer("a word", add_special_tokens=False)["input_ids"] else None


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
