"""The Grafana dashboards, the rules and the provisioning as files.

python -m dashboards.grafana --write    write the committed files again
python -m dashboards.grafana --check    fail when they are stale
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from dashboards import provisioning, rules
from dashboards.memory_health import MEMORY_HEALTH
from dashboards.overview import OVERVIEW
from dashboards.policy import POLICY
from dashboards.rules import Links
from dashboards.runtime import RUNTIME
from dashboards.streams import STREAMS

COMMITTED = Path(__file__).parent.parent / "deploy"
"""Where the generated files are kept, beside those of people."""

DASHBOARDS = (OVERVIEW, MEMORY_HEALTH, POLICY, STREAMS, RUNTIME)
"""In the order of their links."""

GENERATED = ("grafana", "prometheus/rules", "prometheus/prometheus.yml", "kubernetes/prometheus-rule.yaml")
"""Folders in which every file is generated, and single files that are."""


def rendered(links: Links | None = None) -> dict[str, str]:
    """Return each file's path, as in `deploy/`, and its text.

    Examples
    --------
    >>> [path for path in rendered() if path.endswith(".json")][:2]
    ['grafana/dashboards/ebbtide-overview.json', 'grafana/dashboards/ebbtide-memory.json']
    >>> [path for path in rendered() if not path.endswith(".json")][:2]
    ['grafana/provisioning/datasources/prometheus.yaml', 'grafana/provisioning/dashboards/ebbtide.yaml']
    """
    boards = {
        f"grafana/dashboards/{each.uid}.json": json.dumps(each.to_json(), indent=2, sort_keys=True) + "\n"
        for each in DASHBOARDS
    }
    return {
        **boards,
        "grafana/provisioning/datasources/prometheus.yaml": provisioning.grafana_source(),
        "grafana/provisioning/dashboards/ebbtide.yaml": provisioning.grafana_dashboards(),
        "prometheus/prometheus.yml": provisioning.prometheus_config(),
        "prometheus/rules/ebbtide.yml": rules.rules_file(links),
        "kubernetes/prometheus-rule.yaml": rules.prometheus_rule(links),
    }


def write_files(out: Path, links: Links | None = None) -> list[Path]:
    """Write everything into the folder `out`, which is made if need be; return the files.

    Examples
    --------
    >>> import tempfile
    >>> [path.name for path in write_files(Path(tempfile.mkdtemp()) / "out")][:2]
    ['ebbtide-overview.json', 'ebbtide-memory.json']
    """
    paths = []
    for name, text in rendered(links).items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        paths.append(path)
    return paths


def stale(folder: Path) -> list[str]:
    """Return the names of files in `folder` that are missing, other than what would be written, or too many."""
    expected = rendered()
    places = [folder / each for each in GENERATED]
    files = [path for place in places for path in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    there = {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in files if path.is_file()}
    return sorted(name for name in expected.keys() | there.keys() if expected.get(name) != there.get(name))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the committed files; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dashboards.grafana", description="The committed dashboards, rules and provisioning."
    )
    verb = parser.add_mutually_exclusive_group(required=True)
    verb.add_argument("--write", action="store_true", help="write them again")
    verb.add_argument("--check", action="store_true", help="fail when they are stale")
    chosen = parser.parse_args(arguments)
    if chosen.write:
        write_files(COMMITTED)
        return 0
    if names := stale(COMMITTED):
        print(f"stale in {COMMITTED}: {', '.join(names)}; run `python -m dashboards.grafana --write`")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
