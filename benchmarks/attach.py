"""What an attached memory costs: the frozen model, and the same with δ-mem attached, in turns within one run.

    python -m benchmarks.attach                       hidden 512, 8 layers, CPU, 2 threads, float32
    python -m benchmarks.attach --shape qwen3-4b --device cuda --dtype bfloat16 --compile

Each round times the frozen model and then the attached one (every other round the other way round) on the same input;
a case's ratio is the median of the rounds' ratios, so that what else the machine does falls on both. Goals on the
CPU: prefill at most 1.05, decode at most 1.10. Time to first token is the prefill's; bytes are those of one stream's
states, which the length of its history does not change.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM, StaticCache

from memory.deltamem import attach, new_adapter

SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 64, "intermediate_size": 1536, "vocab_size": 4096,
    },
    "qwen3-4b": {
        "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 9728, "vocab_size": 151_936, "tie_word_embeddings": True,
    },
}  # fmt: skip
PREFILLS: dict[str, list[tuple[int, int]]] = {
    "small": [(1, 512), (8, 256)],
    "qwen3-4b": [(1, 4096), (1, 16_384), (8, 4096), (32, 4096)],
}
DECODES: dict[str, list[tuple[int, int, int]]] = {  # batch, tokens in the cache, steps a sample
    "small": [(1, 64, 16), (8, 64, 16)],
    "qwen3-4b": [(1, 4096, 64), (8, 4096, 64), (32, 4096, 64)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of an attached memory, as a ratio within one run.")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--state-heads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="torch.compile with CUDA graphs, for both sides")
    parser.add_argument("--out", type=Path, help="write the table as JSON here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    with torch.device(options.device):
        frozen: Any = Qwen3ForCausalLM(Qwen3Config(**SHAPES[options.shape]))
    frozen = frozen.eval().to(getattr(torch, options.dtype))
    steered = copy.deepcopy(frozen)
    with tempfile.TemporaryDirectory() as folder:
        new_adapter(steered, {"num_state_heads": options.state_heads, "output_init": "random"}, folder)
        memory = attach(steered, folder)
    run_frozen, run_steered = frozen, steered
    if options.compile:
        run_frozen, run_steered = (torch.compile(model, mode="reduce-overhead") for model in (frozen, steered))

    lines = []
    for batch, length in PREFILLS[options.shape]:
        x = _tokens(batch, length, options)
        sides = [_prefill(model, x) for model in (run_frozen, run_steered)]
        memory.reset(batch)
        lines.append(_case(f"prefill {batch} × {length:,}", batch * length, sides, memory.bytes_per_stream, options))
    for batch, length, steps in DECODES[options.shape]:
        memory.reset(batch)
        x = _tokens(batch, length, options)
        sides = [_decode(model, x, steps, options) for model in (run_frozen, run_steered)]
        lines.append(_case(f"decode, batch {batch}", batch * steps, sides, memory.bytes_per_stream, options))

    columns = (
        "case",
        "frozen ms",
        "attached ms",
        "ratio",
        "middle half",
        "frozen tokens/s",
        "attached tokens/s",
        "bytes/stream",
    )
    table = Table(
        *columns, title=f"δ-mem attached: {options.shape}, {options.device}, {options.dtype}, {options.threads} threads"
    )
    for line in lines:
        table.add_row(*(str(line[column]) for column in columns))
    Console(width=150).print(table)
    if options.out:
        options.out.write_text(json.dumps(lines, indent=1) + "\n")


def _tokens(batch: int, length: int, options: argparse.Namespace) -> torch.Tensor:
    return torch.randint(0, SHAPES[options.shape]["vocab_size"], (batch, length), device=options.device)


def _prefill(model: Any, x: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        model(x, use_cache=False, logits_to_keep=1).logits.argmax(-1)

    return run


def _decode(model: Any, x: torch.Tensor, steps: int, options: argparse.Namespace) -> Callable[[], None]:
    with torch.inference_mode():
        if options.compile:
            cache: Any = StaticCache(config=model.config, max_cache_len=x.shape[1] + steps)
        else:
            cache = DynamicCache(config=model.config)
        last = model(x, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
    start = torch.tensor(x.shape[1], device=x.device)

    def run() -> None:
        given = last
        for step in range(steps):
            more = {"position_ids": (start + step).expand(len(x), 1)} if options.compile else {}
            given = model(given, past_key_values=cache, **more).logits.argmax(-1)
        if options.compile:
            for layer in cache.layers:
                layer.cumulative_length.fill_(x.shape[1])
        else:
            cache.crop(-steps)

    return run


def _case(
    name: str, tokens: int, sides: list[Callable[[], None]], size: int, options: argparse.Namespace
) -> dict[str, Any]:
    times: list[list[float]] = [[], []]
    with torch.inference_mode():
        for _ in range(3 if options.compile else 1):
            for side in sides:
                _time(side, options)
        for number in range(options.rounds):
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                times[which].append(_time(sides[which], options))
    ratios = sorted(after / before for before, after in zip(*times, strict=True))
    frozen, attached = (statistics.median(side) for side in times)
    return {
        "case": name,
        "frozen ms": round(frozen * 1e3, 2),
        "attached ms": round(attached * 1e3, 2),
        "ratio": round(statistics.median(ratios), 3),
        "middle half": f"{ratios[len(ratios) // 4]:.3f} to {ratios[-1 - len(ratios) // 4]:.3f}",
        "frozen tokens/s": round(tokens / frozen),
        "attached tokens/s": round(tokens / attached),
        "bytes/stream": size,
    }


def _time(run: Callable[[], None], options: argparse.Namespace) -> float:
    _synchronise(options)
    start = time.perf_counter()
    run()
    _synchronise(options)
    return time.perf_counter() - start


def _synchronise(options: argparse.Namespace) -> None:
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
