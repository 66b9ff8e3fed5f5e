"""`ebbtide controls`: does the memory's content do anything?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def controls(
    backbone: Annotated[str, typer.Option("--backbone", help="The language model: hf:<folder or hub name>")],
    adapter: Annotated[Path, typer.Option("--adapter", help="Folder of its δ-mem adapter")],
    source: Annotated[
        str, typer.Option("--source", help="Conversations: file:PATH (JSON Lines, as ebbtide run takes)")
    ],
    context_tokens: Annotated[
        int, typer.Option("--context-tokens", min=1, help="Tokens written to the memory, then put out of sight")
    ] = 256,
    continuation_tokens: Annotated[
        int, typer.Option("--continuation-tokens", min=2, help="Tokens after them whose loss is measured")
    ] = 64,
    passages: Annotated[
        int, typer.Option("--passages", min=2, help="Most passages, taken from the streams in turn")
    ] = 200,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Passages in one forward pass")] = 16,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda:N")] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of the model")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the donors, permutations and resampling")] = 0,
    confidence: Annotated[float, typer.Option("--confidence", help="With which all comparisons hold together")] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON")] = False,
) -> None:
    """Measure the right state against states that it should beat, on what the stream said next.

    Each passage's context is written to an empty memory and put out of sight. The loss of the continuation under that
    state is compared, pair by pair, with the loss under no state (zero), another stream's (donor), its own with the
    layers exchanged, random numbers of the same norm, and corrections off. A memory that works beats zero, donor and
    exchanged layers; beating zero alone says only that the corrections help.
    """
    from memory.errors import ConfigurationError
    from stream.control_passages import read_passages

    if not 0 < confidence < 1:
        raise ConfigurationError(f"--confidence {confidence}: expected a number between 0 and 1, such as 0.95")
    if not backbone.startswith("hf:"):
        raise ConfigurationError(f"--backbone {backbone}: expected a language model, such as hf:FOLDER")

    import memory.threads as pool
    from memory.backbones import HFBackbone
    from memory.deltamem import attach
    from memory.deltamem.controls import run_controls
    from stream.assembly import pick_device

    if threads is not None:
        pool.set_threads(threads)
    model = HFBackbone(backbone.removeprefix("hf:"), pick_device(device))
    found = read_passages(
        source, model, adapter, context=context_tokens, continuation=continuation_tokens, most=passages
    )
    with attach(model.model, adapter) as attached, pool.torch_threads(pool.threads()):
        report = run_controls(model.model, attached, found, batch_size=batch_size, seed=seed, confidence=confidence)
    if as_json:
        print(json.dumps(_figures(report), indent=1))
    else:
        _print(report, len({passage.stream for passage in found}))


def _figures(report: Any) -> dict[str, Any]:
    return {
        "passages": len(report.losses["correct"]),
        "loss": {name: float(losses.mean()) for name, losses in report.losses.items()},
        "gain": {
            name: {"mean": each.gain.mean, "low": each.gain.low, "high": each.gain.high, "verdict": each.verdict}
            for name, each in report.comparisons.items()
        },
        "left_out": report.left_out,
        "confidence": report.confidence,
        "smallest": report.smallest,
        "remembers": report.remembers,
    }


def _print(report: Any, streams: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    count = len(report.losses["correct"])
    console.print(f"{count} passages of {streams} streams; loss in nats a token, lower is better")
    table = Table(box=box.SIMPLE, pad_edge=False)
    for title in ("state", "loss", "gain of the right one", "interval", "verdict"):
        table.add_column(title, justify="left" if title in ("state", "verdict") else "right")
    table.add_row("correct", f"{report.losses['correct'].mean():.4f}", "", "", "")
    for name, each in report.comparisons.items():
        gain = each.gain
        table.add_row(
            name.replace("_", " "),
            f"{report.losses[name].mean():.4f}",
            f"{gain.mean:+.4f}",
            f"{gain.low:+.4f} .. {gain.high:+.4f}",
            each.verdict,
        )
    console.print(table)
    for name, reason in report.left_out.items():
        console.print(f"{name}: left out, {reason}")
    console.print(
        f"All intervals hold together at {report.confidence:.0%}; less than {report.smallest} counts for nothing. "
        f"The state's content {'helps' if report.remembers else 'was not shown to help'}."
    )
