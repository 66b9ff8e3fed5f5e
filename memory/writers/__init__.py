"""How events become writes on states: beside a frozen encoder, attached to a language model, or known already."""

from __future__ import annotations

from memory.writers.attached_writer import AttachedWriter
from memory.writers.projected_writer import ProjectedWriter
from memory.writers.rows_writer import RowsWriter, Shape
from memory.writers.segments import Segments
from memory.writers.writer import Batch, Rows, Writer, Written

__all__ = [
    "AttachedWriter",
    "Batch",
    "ProjectedWriter",
    "Rows",
    "RowsWriter",
    "Segments",
    "Shape",
    "Writer",
    "Written",
]
