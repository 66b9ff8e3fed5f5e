"""Passages for the causal controls, cut from a source of conversations."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import torch

from memory.backbones.hf_backbone import HFBackbone
from memory.deltamem.adapter_io import read_config
from memory.deltamem.controls import Passage
from memory.errors import ConfigurationError
from stream.event import EventParser
from stream.reader import Reader
from stream.sources import open_source
from stream.sources.source import EndOfInput


def read_passages(
    source: str, backbone: HFBackbone, adapter: Path, *, context: int, continuation: int, most: int
) -> list[Passage]:
    """Cut each stream's tokens into passages that do not overlap, and take them from the streams in turn.

    Parameters
    ----------
    source
        As `ebbtide run --source` takes it.
    backbone, adapter
        Tokenises and numbers sentences; says what is written together.
    context, continuation
        Tokens of each.
    most
        Most passages.

    Raises
    ------
    ConfigurationError
        Fewer than two streams are long enough for one.
    """
    unit = read_config(adapter).memory_write_granularity
    tokens: defaultdict[str, list[int]] = defaultdict(list)
    units: defaultdict[str, list[int]] = defaultdict(list)
    opened = open_source(source)
    reader = Reader(opened, EventParser(vocabulary=backbone.vocabulary), backbone)
    opened.open({})
    try:
        while True:
            chunk = opened.read(0.2)
            if chunk is None:
                continue
            prepared = reader.prepare(chunk)
            for event, ids in zip(prepared.events, prepared.ids, strict=True):
                stream = event.stream
                first = units[stream][-1] + 1 if units[stream] else 0
                numbers = backbone.sentences(ids) if unit == "sentence_mean" else np.zeros(len(ids), np.int64)
                tokens[stream] += ids.tolist()
                units[stream] += (numbers + first).tolist()
    except EndOfInput:
        pass
    finally:
        opened.close()

    whole = context + continuation
    by_stream = [
        [
            Passage(
                torch.tensor(row[at : at + context]),
                torch.tensor(row[at + context : at + whole]),
                stream,
                None if unit == "token" else torch.tensor(units[stream][at : at + context]),
            )
            for at in range(0, len(row) - whole + 1, whole)
        ]
        for stream, row in tokens.items()
    ]
    enough = [passages for passages in by_stream if passages]
    if len(enough) < 2:
        longest = sorted((len(row) for row in tokens.values()), reverse=True)[:2]
        raise ConfigurationError(
            f"{source}: {whole} tokens of two streams are needed, the longest have {longest}: give smaller "
            "--context-tokens and --continuation-tokens, or more of the conversations"
        )
    in_turn = [passage for passage in chain.from_iterable(zip_longest(*enough)) if passage is not None]
    return in_turn[:most]
