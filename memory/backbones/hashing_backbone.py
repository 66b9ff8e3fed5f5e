"""A backbone without weights: each word is a fixed random direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

from memory.backbones.backbone import Backbone, Encoded, Ids
from memory.threads import share_out


class HashingBackbone(Backbone):
    """Words hashed to directions: no weights, no context, deterministic on every machine, very fast.

    A token is a run of letters, digits and bytes above 127, or one other visible character; its id is a 64-bit FNV-1a
    hash of its lower-cased UTF-8 bytes (the sign bit dropped). The hidden state of an id is a vector of D signs ±1/√D,
    drawn from the id by the splitmix64 generator. Two texts are as similar as the words they share.

    Parameters
    ----------
    dim
        D, a multiple of 64.

    References
    ----------
    Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014 (splitmix64).
    Weinberger et al.: Feature hashing for large scale multitask learning, ICML 2009.

    Examples
    --------
    >>> backbone = HashingBackbone(dim=64)
    >>> ids = backbone.tokenize(["The tide: the TIDE!"])[0]
    >>> len(ids), bool(ids[0] == ids[3]), bool(ids[1] == ids[4])
    (6, True, True)
    >>> backbone.encode(ids, np.array([0, 6]), want_hidden=False).embedding.shape
    torch.Size([1, 64])
    """

    name = "hashing"
    vocabulary = None

    def __init__(self, dim: int = 256):
        if dim < 64 or dim % 64:
            raise ValueError(f"dim must be a positive multiple of 64, got {dim}")
        self.dim = dim

    @property
    def fingerprint(self) -> str:
        """The rule and its width: there is nothing else."""
        return f"hashing/1 dim={self.dim}"

    def tokenize(self, texts: Sequence[str]) -> list[Ids]:
        """Split and hash all the texts in one compiled pass."""
        if not texts:
            return []
        encoded = [text.lower().encode() for text in texts]
        ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        ids = np.empty(int(ends[-1]) if len(ends) else 0, np.int64)
        counts = np.empty(len(encoded), np.int64)
        _split(np.frombuffer(b"".join(encoded), np.uint8), ends, ids, counts)
        return np.split(ids[: counts.sum()], np.cumsum(counts)[:-1])

    def encode(self, ids: Ids, offsets: Ids, *, want_hidden: bool) -> Encoded:
        """Look each id's signs up by computing them."""
        embedding = np.empty((len(offsets) - 1, self.dim), np.float32)
        hidden = np.empty((len(ids) if want_hidden else 0, self.dim), np.float32)
        share_out(
            lambda first, last: _signs(first, last, ids, offsets, hidden, embedding),
            len(embedding),
            len(ids) * self.dim,
        )
        return Encoded(torch.from_numpy(embedding), torch.from_numpy(hidden) if want_hidden else None)


@numba.njit(cache=True, nogil=True)
def _split(text: Any, ends: Any, ids: Any, counts: Any) -> None:
    found, at = 0, 0
    for g in range(len(ends)):
        first = found
        word, inside = np.uint64(0), False
        while at < ends[g]:
            byte = text[at]
            at += 1
            letter = (97 <= byte <= 122) or (48 <= byte <= 57) or byte >= 128
            if letter:
                if not inside:
                    word, inside = np.uint64(14695981039346656037), True
                word = (word ^ np.uint64(byte)) * np.uint64(1099511628211)
                continue
            if inside:
                ids[found] = np.int64(word & np.uint64(0x7FFFFFFFFFFFFFFF))
                found += 1
                inside = False
            if byte > 32 and byte != 127:
                ids[found] = np.int64(byte)
                found += 1
        if inside:
            ids[found] = np.int64(word & np.uint64(0x7FFFFFFFFFFFFFFF))
            found += 1
        counts[g] = found - first


@numba.njit(cache=True, nogil=True)
def _signs(
    first: Any, last: Any, ids: Any, offsets: Any, hidden: npt.NDArray[np.float32], embedding: npt.NDArray[np.float32]
) -> None:
    dim = embedding.shape[1]
    unit = np.float32(1 / np.sqrt(dim))
    for g in range(first, last):
        counts = np.zeros(dim, np.int32)
        for t in range(offsets[g], offsets[g + 1]):
            seed = np.uint64(ids[t])
            for block in range(dim // 64):
                seed += np.uint64(0x9E3779B97F4A7C15)
                bits = seed
                bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                bits ^= bits >> np.uint64(31)
                for d in range(64):
                    sign = np.int32((bits >> np.uint64(d)) & np.uint64(1)) * 2 - 1
                    counts[block * 64 + d] += sign
                    if len(hidden):
                        hidden[t, block * 64 + d] = sign * unit
        length = max(offsets[g + 1] - offsets[g], 1)
        for d in range(dim):  # whole numbers until here: no order of summation to worry about
            embedding[g, d] = np.float32(counts[d]) * unit / np.float32(length)
