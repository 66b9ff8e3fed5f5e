"""`ebbtide dashboards`: what Grafana shows, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def dashboards(
    out: Annotated[Path, typer.Option("--out", help="Folder for the files; made if need be")],
) -> None:
    """Write the Grafana dashboards, made from the metric catalogue."""
    from dashboards.grafana import write_dashboards

    for path in write_dashboards(out):
        print(path)
