"""The house stands: no import climbs, no import goes round, and every public name is there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("memory", "monitors", "dashboards", "stream")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for floor in FLOORS
    for path in sorted((ROOT / floor).rglob("*.py"))
}


def imports(path: Path, *, at_import: bool) -> set[str]:
    """Return the modules of ours that a file imports; with `at_import`, only those that importing it imports."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the floors"
            assert node.module is not None
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    ours = set()
    for name in found:
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        if name:
            ours.add(name)
    return ours


@pytest.mark.parametrize("module", MODULES)
def test_no_import_climbs(module: str) -> None:
    floor = FLOORS.index(module.split(".")[0])
    climbing = {name for name in imports(MODULES[module], at_import=False) if FLOORS.index(name.split(".")[0]) > floor}
    assert not climbing, f"{module} is below {climbing}"


def test_no_cycle() -> None:
    """A module that is being imported must not be asked for again by what it imports."""
    edges = {module: imports(path, at_import=True) - {module} for module, path in MODULES.items()}
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for name in sorted(edges[module]):
                # Importing a.b runs a's __init__ first; that a package imports its own modules is no cycle.
                if not module.startswith(name + "."):
                    walk(name, (*trail, module))
            done.add(module)

    for module in MODULES:
        walk(module, ())


@pytest.mark.parametrize("package", [module for module, path in MODULES.items() if path.name == "__init__.py"])
def test_public_names_exist(package: str) -> None:
    loaded = importlib.import_module(package)
    names = getattr(loaded, "__all__", [])
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(loaded, name) is not None


def test_the_first_floor_is_listed() -> None:
    assert importlib.import_module("memory").__all__
