"""`ebbtide dashboards`: what Grafana shows and what Prometheus watches, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def dashboards(
    out: Annotated[Path, typer.Option("--out", help="Folder for the files; made if need be")],
    grafana: Annotated[
        str, typer.Option("--grafana", help="Address of Grafana, for the links of alerts [default: none]")
    ] = "",
    runbook: Annotated[
        str, typer.Option("--runbook", help="Address of the runbook, for the links of alerts")
    ] = "docs/runbook.md",
) -> None:
    """Write Grafana's dashboards, Prometheus's rules and the provisioning of both, made from the metric catalogue."""
    from dashboards.grafana import write_files
    from dashboards.rules import Links

    for path in write_files(out, Links(grafana=grafana, runbook=runbook)):
        print(path)
