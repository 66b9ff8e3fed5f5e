"""The truth about generated streams, beside what a run made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memory.errors import ConfigurationError
from stream.report.read_run import Run


@dataclass(frozen=True)
class Truth:
    """What is true of the n events of a run.

    Attributes
    ----------
    boundary
        `[n]` bool: the event begins a new topic.
    returning
        `[n]` bool: it begins a topic that its stream had before.
    """

    boundary: npt.NDArray[np.bool_]
    returning: npt.NDArray[np.bool_]


def read_truth(path: Path, run: Run) -> Truth:
    """Read a file as ``ebbtide generate --truth`` writes, and find the run's events in it.

    Raises
    ------
    ConfigurationError
        It is no such file, or has none of the run's events.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "truth.jsonl").write_text('{"stream": "a", "seq": 1, "topic": "t", "boundary": 1, "visit": 2}\\n')
    >>> column = np.array([0, 0])
    >>> run = Run(folder, None, ["a"], column, np.array([0, 1]), column, {}, {}, {})
    >>> truth = read_truth(folder / "truth.jsonl", run)
    >>> truth.boundary.tolist(), truth.returning.tolist()
    ([False, True], [False, True])
    """
    at = {
        (run.streams[stream], seq): place
        for place, (stream, seq) in enumerate(zip(run.stream.tolist(), run.seq.tolist(), strict=True))
    }
    boundary, returning = np.zeros(len(run), np.bool_), np.zeros(len(run), np.bool_)
    found = number = 0
    line = b""
    try:
        with path.open("rb") as file:
            for line in file:
                number += 1
                row = json.loads(line)
                place = at.get((row["stream"], row["seq"]))
                begins, visit = bool(row["boundary"]), int(row["visit"])
                if place is not None:
                    found += 1
                    boundary[place], returning[place] = begins, begins and visit > 1
    except FileNotFoundError:
        raise ConfigurationError(f"--truth {path}: expected a file, got nothing there") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigurationError(
            f"--truth {path}: line {number}: expected what ebbtide generate --truth writes (stream, seq, topic, "
            f"boundary, visit), got {line[:60].decode('utf-8', 'replace')!r}; is it the stream itself?"
        ) from None
    if not found:
        raise ConfigurationError(
            f"--truth {path}: none of its events is in {run.path}; expected the truth of the stream that was run"
        )
    return Truth(boundary, returning)
