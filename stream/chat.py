"""A conversation with a language model whose memory is a stream's state, kept where the consumer keeps it.

Each message, the user's and the model's, is an event of the stream, and goes through the engine as in `ebbtide run`: a
chat leaves the same bits behind as a run over its transcript. Replies are generated between the two, reading the state
and not writing it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from memory.backbones.hf_backbone import HFBackbone
from memory.errors import ConfigurationError
from memory.state_pool import LaneRecord
from memory.threads import threads, torch_threads
from memory.writers import AttachedWriter
from monitors.observations import SIGNALS
from stream.assembly import build_engine
from stream.config import RunSettings
from stream.engine import Outcome
from stream.event import Event
from stream.store import Checkpoint, StateStore

Say = Callable[[str], None]


class Chat:
    """One conversation. Its life: `open()`, then `say` and the rest in any order, `close()` always.

    Parameters
    ----------
    settings
        Of a run with an attached model; source, sink and policy apply as they do there, the first two are not used.
    stream
        Whose memory it is.
    max_new_tokens
        Longest reply.
    temperature
        0 takes the likeliest token; above, tokens are drawn with the run's seed.

    Raises
    ------
    ConfigurationError
        There is no adapter, or the model has no tokenizer.
    """

    def __init__(self, settings: RunSettings, stream: str, *, max_new_tokens: int = 200, temperature: float = 0.0):
        if settings.adapter is None:
            raise ConfigurationError("--adapter is needed: without one the model does not read the memory")
        self.stream, self.max_new_tokens, self.temperature = stream, max_new_tokens, temperature
        self.frozen = False
        self.store: StateStore | None = None
        self._settings = settings
        self.engine = build_engine(settings, fetch=self._fetch)
        self._writer: AttachedWriter = self.engine.writer  # type: ignore[assignment]
        self._backbone: HFBackbone = self._writer.backbone
        if self._backbone.tokenizer is None:
            raise ConfigurationError(f"--backbone {settings.backbone}: it has no tokenizer, so it cannot be talked to")
        self._checkpoint = Checkpoint()
        self._messages: list[dict[str, str]] = []
        self._generator = torch.Generator().manual_seed(settings.seed)

    def _fetch(self, lanes: Any) -> Mapping[str, LaneRecord]:
        return self.store.fetch(lanes) if self.store else {}

    def open(self) -> None:
        """Take over the store, if there is one, and bring the stream's memory back."""
        if self._settings.state is not None:
            self.store = StateStore(self._settings.state)
            self.store.claim(self._writer.settings)
            self._checkpoint = self.store.load()
        self._slot()

    def close(self) -> None:
        """Let go of the store and of the model."""
        self._writer.close()
        if self.store is not None:
            self.store.close()

    @property
    def events(self) -> int:
        """Messages that the stream's memory has taken in so far."""
        return int(self.engine.counts["events"][self._slot()])

    def say(self, text: str, each: Say = lambda piece: None) -> str:
        """Say something; return the reply.

        Parameters
        ----------
        text
            The user's message.
        each
            Called with each piece of the reply as it is generated.
        """
        self._take("user", text)
        reply = self._reply(each)
        self._take("assistant", reply)
        self._commit()
        return reply

    def reset(self) -> None:
        """Make the stream's state zero, and forget the conversation; what the monitors remember of it stays."""
        self.engine.reset(self.stream)
        self._messages.clear()
        self._commit()

    def snapshot(self, path: Path) -> None:
        """Write the stream's states, module name → `[H, R, R]` float32, as safetensors."""
        states = self._states()
        about = {"stream": self.stream, "events": str(self.events)} | self._writer.settings
        path.touch(mode=0o600)
        path.write_bytes(save({name: states[layer].contiguous() for layer, name in enumerate(self._modules())}, about))

    def describe(self) -> dict[str, Any]:
        """Return what is known of the memory: counts, signals, and each module's norm."""
        slot, states = self._slot(), self._states()
        signals = np.asarray(self.engine.last["signals"][slot]).tolist()
        return {
            "stream": self.stream,
            "events": self.events,
            "tokens": int(self.engine.counts["tokens"][slot]),
            "frozen": self.frozen,
            **dict(zip(SIGNALS, signals, strict=True)),
            "norms": dict(zip(self._modules(), states.flatten(1).norm(dim=1).tolist(), strict=True)),
        }

    def _modules(self) -> tuple[str, ...]:
        return self._writer.memory.module_names

    def _slot(self) -> int:
        return int(self.engine.pool.acquire([self.stream])[0])

    def _states(self) -> Tensor:
        return self.engine.pool.states[self._slot()].cpu().clone()

    def _take(self, role: str, text: str) -> Outcome | None:
        self._messages.append({"role": role, "content": text})
        if self.frozen or not text:
            return None
        event = Event(self.stream, text=text)
        return self.engine.process([event], self._backbone.tokenize([text]))

    def _prompt(self) -> Tensor:
        """Return `[1, T]` int64: as many of the last messages as the context holds, the newest whole in any case."""
        tokenizer = self._backbone.tokenizer
        rows: list[int] = []
        for first in range(len(self._messages) - 1, -1, -1):
            messages = self._messages[first:]
            if tokenizer.chat_template:
                ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
            else:
                ids = tokenizer("\n".join(message["content"] for message in messages) + "\n")["input_ids"]
            if rows and len(ids) > self._writer.context:
                break
            rows = list(ids)
            if not self._writer.context:
                break
        return torch.tensor([rows], device=self._backbone.device)

    def _reply(self, each: Say) -> str:
        from transformers import TextStreamer

        class Pieces(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                each(text)

        memory, tokenizer, model = self._writer.memory, self._backbone.tokenizer, self._backbone.model
        prompt = self._prompt()
        memory.bind(self.engine.pool.states, torch.tensor([self._slot()]))
        memory.write_enabled = False
        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        try:
            with torch.random.fork_rng(), torch_threads(threads()), torch.inference_mode():
                torch.manual_seed(int(torch.randint(1 << 62, (1,), generator=self._generator)))
                out = model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=self.max_new_tokens,
                    streamer=Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True),
                    pad_token_id=tokenizer.pad_token_id
                    if tokenizer.pad_token_id is not None
                    else tokenizer.eos_token_id,
                    **sampling,
                )
        finally:
            memory.write_enabled = True
        return str(tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)).strip()

    def _commit(self) -> None:
        if self.store is not None and not self.frozen:
            checkpoint = self._checkpoint  # positions, marks and counters are a consumer's: they stay
            self.store.commit(self.engine.pool.records(), {}, checkpoint.marks, checkpoint.counters)
            self.engine.pool.committed()
