"""δ-mem on real language models: `attach` a published or new adapter to a frozen `transformers` model."""

from __future__ import annotations

from memory.deltamem.attachment import Attachment, attach
from memory.deltamem.config import AdapterConfig
from memory.deltamem.create import new_adapter, save_adapter
from memory.deltamem.record import LayerRecord, LayerStats

__all__ = ["AdapterConfig", "Attachment", "LayerRecord", "LayerStats", "attach", "new_adapter", "save_adapter"]
