"""The notebook runs from its first cell to its last, and is committed without what it printed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "tuning.ipynb"


@pytest.fixture(scope="module")
def notebook() -> Any:
    import nbformat  # only here: each process that collects the tests would spend seconds on it

    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_committed_without_output(notebook: Any) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    assert str(Path.home()) not in NOTEBOOK.read_text(encoding="utf-8")


@pytest.mark.slow
def test_it_runs_and_what_it_deploys_is_what_it_recommends(notebook: Any) -> None:
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    )
    client.execute()
    said = "\n".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "240 trials" in said
    assert len(re.findall(r"recommended: \w+ since ", said)) == 1
    assert "policy: " in said
    (change, report) = re.findall(r"change: ([+-][0-9.]+)%; the report said ([+-][0-9.]+)%", said)[0]
    assert float(change) < 0
    assert float(report) < 0
    plots = [
        json.dumps(output.data)
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "display_data"
    ]
    assert len(plots) == 2
    assert all("application/vnd.plotly" in plot for plot in plots)
