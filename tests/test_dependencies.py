"""What Ebbtide is made of: the table of licences, and the list in CycloneDX's form."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "deploy" / "sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_dependency_states_a_licence_and_is_in_the_table(sbom: ModuleType) -> None:
    rows = {name: (number, licence) for name, number, licence, _ in sbom.rows()}
    assert len(rows) > 50
    assert [name for name, (_, licence) in rows.items() if licence == "not stated"] == []
    page = (ROOT / "docs" / "dependencies.md").read_text()
    told = dict(re.findall(r"^\| (\S+) \| [^|]+ \| ([^|]+) \| [^|]+ \|$", page, re.MULTILINE))
    del told["package"]
    # Of another platform, or another build of PyTorch, there may be more, such as the libraries for CUDA.
    missing = {name for name in rows.keys() - told.keys() if not name.startswith(("nvidia-", "triton", "cuda-"))}
    assert missing == set()
    assert {name: rows[name][1] for name in told.keys() & rows.keys()} == {
        name: told[name] for name in told if name in rows
    }


def test_what_is_needed_is_pinned_to_what_is_here(sbom: ModuleType) -> None:
    lines = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    pinned = {canonicalize_name(name): number for name, number in lines}
    found = {name: number.partition("+")[0] for name, number, _, _ in sbom.rows()}
    assert {name for name in found if name not in pinned and name not in ("torch", "setuptools")} == set()
    assert {name: number for name, number in found.items() if pinned.get(name, number) != number} == {}


def test_the_list_is_cyclonedx_and_complete(sbom: ModuleType) -> None:
    pytest.importorskip("cyclonedx_py", reason="cyclonedx-bom is not installed (pip install cyclonedx-bom)")
    made = sbom.bill()
    components = {canonicalize_name(each["name"]): each["version"] for each in made["components"]}
    assert components == {name: number for name, number, _, _ in sbom.rows()}
    assert "pytest" not in components
    assert all("licenses" in each for each in made["components"])
    assert (made["metadata"]["component"]["name"], made["metadata"]["component"]["version"]) == (
        "ebbtide",
        version("ebbtide"),
    )
    text = json.dumps(made)
    assert str(ROOT) not in text
    assert "timestamp" not in made["metadata"]
    refs = {each["bom-ref"] for each in made["components"]} | {made["metadata"]["component"]["bom-ref"]}
    assert {ref for each in made["dependencies"] for ref in (each["ref"], *each.get("dependsOn", ()))} <= refs
    if os.environ.get("EBBTIDE_LONG"):  # its own schema takes seconds; the command checks each time
        assert sbom.check(text) is None
        made["components"][0]["version"] = 7
        assert sbom.check(json.dumps(made)) is not None
