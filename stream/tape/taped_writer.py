"""What a tape holds, written to states again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from memory.backbones.backbone import Ids
from memory.writers import RowsWriter, Shape
from stream.event import Event
from stream.tape.format import TapeHead, rows_of


class TapedWriter(RowsWriter):
    """Writes what the record batch that was loaded last says.

    Parameters
    ----------
    head
        Of the tape.
    """

    def __init__(self, head: TapeHead):
        mean = None if head.mean is None else np.array(head.mean, np.float32)
        super().__init__(
            Shape(
                head.layers,
                head.heads,
                head.rank,
                head.mode,
                head.dim,
                mean,
                head.row_gates,
                head.own_lam,
                head.settings,
            )
        )
        self._head = head

    def load(self, batch: pa.RecordBatch) -> tuple[list[Event], list[Ids]]:
        """Take a record batch; return its events, without text, and stand-ins for their tokens, as `begin` wants
        them."""
        rows = rows_of(batch, self._head)
        # The scan's tensors must be writable memory, and Arrow's is not.
        rows = replace(
            rows,
            keys=rows.keys.copy(),
            values=rows.values.copy(),
            beta=rows.beta.copy(),
            lam=None if rows.lam is None else rows.lam.copy(),
        )
        tokens = batch["tokens"].to_numpy().astype(np.int64)
        ids = self.give(rows, tokens, batch["topic_shift_score"].to_numpy(zero_copy_only=False))
        names, events = batch["stream"].to_pylist(), batch["id"].to_pylist()
        return [Event(stream, tokens=[0], id=name) for stream, name in zip(names, events, strict=True)], ids
