"""What Ebbtide is made of: its dependencies with their versions and licences, as a CycloneDX file or as a table.

    python deploy/sbom.py sbom.cdx.json      everything that `pip install 'ebbtide[minilm,postgres]'` brought here
    python deploy/sbom.py --table            the same, as the table in docs/dependencies.md

Both tell of the environment that runs them: run it where Ebbtide is installed. The file needs `cyclonedx-bom`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = "ebbtide"
PROJECT = Path(__file__).resolve().parents[1]
EXTRAS = frozenset({"minilm", "postgres"})
"""What is installed for use; `dev` is not."""


def closure() -> dict[str, tuple[Distribution, list[str]]]:
    """Return name → the distribution that is installed here, and who asks for it: what `pyproject.toml` leads to."""
    stated = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = [*stated["dependencies"], *(line for extra in EXTRAS for line in stated["optional-dependencies"][extra])]
    found: dict[str, tuple[Distribution, list[str]]] = {}
    waiting = [(ROOT, Requirement(line)) for line in lines]
    seen: set[tuple[str, str]] = set()
    while waiting:
        asker, wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        try:
            made, askers = found.setdefault(name, (distribution(name), []))
        except PackageNotFoundError:
            continue  # optional, and not here
        if asker not in askers:
            askers.append(asker)
        for extra in {"", *wanted.extras} - {known for each, known in seen if each == name}:
            seen.add((name, extra))
            for line in made.requires or ():
                more = Requirement(line)
                if more.marker is None or more.marker.evaluate({"extra": extra}):
                    waiting.append((name, more))
    return found


def licence(made: Distribution) -> str:
    """Return a distribution's licence, in the words of its metadata."""
    about = made.metadata
    classifiers = [
        each.rpartition(" :: ")[2] for each in about.get_all("Classifier") or () if each.startswith("License ::")
    ]
    text = str(about.get("License") or "").strip()
    short = text if len(text) < 40 and "\n" not in text else ""  # some have the whole text there
    return about.get("License-Expression") or short or ", ".join(classifiers) or "not stated"


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Yield name, version, licence, and who asks for it, by name."""
    for name, (made, askers) in sorted(closure().items()):
        yield name, made.version, licence(made), ", ".join(sorted(askers))


def table() -> str:
    """Return the table, as Markdown."""
    lines = ["| package | version | licence | for |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows()]
    return "\n".join(lines)


def bill() -> dict[str, Any]:
    """Return the CycloneDX document of what is installed for use."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--of", "JSON"]
    command += ["--no-validate", "--pyproject", str(PROJECT / "pyproject.toml"), "-o", "-", sys.executable]
    made: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    ours = closure()
    made["components"] = [each for each in made["components"] if canonicalize_name(each["name"]) in ours]
    for each in made["components"]:  # where there is only a classifier of trove's, or a whole text
        each.setdefault("licenses", [{"license": {"name": licence(ours[canonicalize_name(each["name"])][0])}}])
    kept = {each["bom-ref"] for each in made["components"]} | {made["metadata"]["component"]["bom-ref"]}
    made["dependencies"] = [
        {**each, "dependsOn": [ref for ref in each["dependsOn"] if ref in kept]} if "dependsOn" in each else each
        for each in made["dependencies"]
        if each["ref"] in kept
    ]
    return made


def check(document: str) -> str | None:
    """Compare a document with CycloneDX's own schema; return what is wrong with it."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(document)
    return None if wrong is None else str(wrong)


def main() -> None:
    """Write the file, or print the table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("file", nargs="?", type=Path)
    options.add_argument("--table", action="store_true")
    given = options.parse_args()
    if given.table or given.file is None:
        print(table())
        return
    document = json.dumps(bill(), indent=1, sort_keys=True)
    if (wrong := check(document)) is not None:
        raise SystemExit(f"{given.file}: not written, it is no CycloneDX 1.6: {wrong}")
    given.file.write_text(document + "\n", "utf-8")
    print(f"{given.file}: {len(json.loads(document)['components'])} components, CycloneDX 1.6")


if __name__ == "__main__":
    main()
