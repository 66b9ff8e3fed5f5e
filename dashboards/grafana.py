"""The Grafana dashboards as files.

python -m dashboards.grafana --write    write the committed files again
python -m dashboards.grafana --check    fail when they are stale
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from dashboards.overview import OVERVIEW

COMMITTED = Path(__file__).parent.parent / "deploy" / "grafana" / "dashboards"
"""Where the generated files are kept, beside the code that makes them."""

DASHBOARDS = (OVERVIEW,)


def rendered() -> dict[str, str]:
    """Return each dashboard's file name and text.

    Examples
    --------
    >>> list(rendered())
    ['ebbtide-overview.json']
    """
    return {f"{each.uid}.json": json.dumps(each.to_json(), indent=2, sort_keys=True) + "\n" for each in DASHBOARDS}


def write_dashboards(out: Path) -> list[Path]:
    """Write every dashboard into the folder `out`, which is made if need be; return the files.

    Examples
    --------
    >>> import tempfile
    >>> [path.name for path in write_dashboards(Path(tempfile.mkdtemp()) / "dashboards")]
    ['ebbtide-overview.json']
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in rendered().items():
        path = out / name
        path.write_text(text, "utf-8")
        paths.append(path)
    return paths


def stale(folder: Path) -> list[str]:
    """Return the names of files in `folder` that are missing, other than what would be written, or too many."""
    expected = rendered()
    there = {path.name: path.read_text("utf-8") for path in sorted(folder.glob("*.json"))}
    return sorted(name for name in expected.keys() | there.keys() if expected.get(name) != there.get(name))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the committed dashboards; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dashboards.grafana", description="The committed Grafana dashboards."
    )
    verb = parser.add_mutually_exclusive_group(required=True)
    verb.add_argument("--write", action="store_true", help="write them again")
    verb.add_argument("--check", action="store_true", help="fail when they are stale")
    chosen = parser.parse_args(arguments)
    if chosen.write:
        write_dashboards(COMMITTED)
        return 0
    if names := stale(COMMITTED):
        print(f"stale in {COMMITTED}: {', '.join(names)}; run `python -m dashboards.grafana --write`")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
