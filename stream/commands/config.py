"""`ebbtide config`: the settings a run would have, and where each came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stream.config import CONFIG_VARIABLE, RunSettings, effective
from stream.options import options_of

ConfigFile = Annotated[
    Path | None, typer.Option("--config", envvar=CONFIG_VARIABLE, help="Options as YAML, such as `rank: 32`")
]


@options_of(RunSettings)
def config(
    given: dict[str, Any],
    file: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON: option → value and origin")] = False,
) -> None:
    """Show the effective configuration, and where each value came from.

    Takes the options of `ebbtide run`; the environment (EBBTIDE_…) and --config count as they would there.
    """
    settings, origins = effective(given, file=file)
    values = settings.model_dump(mode="json")
    if as_json:
        print(json.dumps({name: {"value": values[name], "from": origins[name]} for name in values}, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("option", "value", "from", box=box.SIMPLE)
    for name, value in values.items():
        shown = value if isinstance(value, str) else json.dumps(value, indent=1 if isinstance(value, dict) else None)
        table.add_row(name, shown, origins[name], style=None if origins[name] == "default" else "bold")
    Console().print(table)
