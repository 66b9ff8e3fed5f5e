"""`ebbtide doctor`: what this machine can do, and a self-test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer


def doctor(
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="Test this model too: hf:<folder or hub name>")
    ] = None,
) -> None:
    """Say which device, kernels and backbones can be used, and why not; then test that results are right.

    Exit code 0 if the self-test passes, 1 if not.
    """
    import platform
    from importlib.metadata import version

    import torch
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from memory.errors import ConfigurationError
    from memory.scan_forms import FORMS, scan_support
    from memory.threads import threads

    console = Console()
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def row(name: str, value: str) -> None:
        table.add_row(name, Text(value))

    row("ebbtide", version("ebbtide"))
    row("python", platform.python_version())
    for package in ("torch", "transformers", "numba", "river", "pydantic"):
        row(package, version(package))
    row(
        "device",
        torch.cuda.get_device_name() if device == "cuda" else f"cpu: {platform.processor() or platform.machine()}",
    )
    row("threads", str(threads()))
    for form in FORMS[1:]:
        able, reason = scan_support(form, device)
        row(f"scan: {form}", "can run" if able else f"cannot run: {reason}")
    console.print(table)

    failed = False
    more = {} if backbone is None else {f"backbone {backbone}": lambda: _independent_of_batch(backbone)}
    for name, check in (_CHECKS | more).items():
        try:
            verdict, outcome = check(), "ok  "
        except ConfigurationError as error:  # an extra that is not installed is no failure
            verdict, outcome = str(error), "none"
        except Exception as error:
            verdict, outcome = f"{type(error).__name__}: {error}", "FAIL"
            failed = True
        console.print(Text(f"{outcome} {name}: {verdict}", style="bold red" if outcome == "FAIL" else ""))
    if failed:
        raise typer.Exit(1)


def _compiled_equals_definition() -> str:
    import torch

    from memory.scan_forms import scan

    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 200, 2, 8, generator=generator)
    k = torch.nn.functional.normalize(k, dim=-1)
    beta = torch.rand(200, 2, 8, generator=generator)
    slots, offsets = torch.arange(2), torch.tensor([0, 77, 200])
    fast, slow = torch.zeros(2, 2, 8, 8), torch.zeros(2, 2, 8, 8, dtype=torch.float64)
    scan(fast, slots, slots, offsets, q, k, v, beta, form="cpu")
    scan(slow, slots, slots, offsets, *(x.double() for x in (q, k, v, beta)), form="naive")
    worst = float((fast - slow).abs().max())
    if not worst < 1e-5:
        raise AssertionError(f"the compiled scan is off by {worst:.1e}")
    return f"the compiled scan is within {worst:.0e} of the definition"


def _independent_of_batch(name: str) -> str:
    import numpy as np
    import torch

    from memory.backbones import load_backbone

    backbone = load_backbone(name)
    if backbone.vocabulary is not None:
        draw = np.random.default_rng(0).integers
        ids = [draw(backbone.vocabulary, size=length) for length in (4, 16, 1) * 9]
    else:
        texts = ["The tide turns.", "At low water the harbour mouth is too shallow for the ferry, so we wait.", "Yes."]
        ids = backbone.tokenize(texts * 9)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
    together = backbone.encode(np.concatenate(ids), offsets, want_hidden=False).embedding
    for row, alone in enumerate(ids[:3]):
        single = backbone.encode(alone, np.array([0, len(alone)]), want_hidden=False).embedding[0]
        if not torch.equal(single, together[row]):
            raise AssertionError("a text's embedding depends on the texts beside it: restarts will not be bit for bit")
    return "a text's embedding has the same bits alone and in a batch"


_CHECKS: dict[str, Callable[[], str]] = {
    "scan": _compiled_equals_definition,
    "backbone hashing": lambda: _independent_of_batch("hashing"),
    "backbone minilm": lambda: _independent_of_batch("minilm"),
}
