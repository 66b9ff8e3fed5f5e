"""What a study is known again by, so that it goes on with the search that it was made for and with no other."""

from __future__ import annotations

import json
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

from stream.many import LoadedTape
from stream.tape.parts import parts_of
from stream.tuning.settings import TuneSettings
from stream.tuning.space import SearchSpace

OBJECTIVES = ("write_error", "actions_per_1000", "recall_error")
"""What is made small; the last only where topics come back."""

DIFFERENCES = {
    "tape": "another tape",
    "space": "another --space",
    "split": "another --split or --seed",
    "batch": "another --batch",
    "objectives": "another version of Ebbtide, with other objectives",
}
"""What must be the same for a study to go on, and how to say that it is not."""


def fingerprint(
    tape: LoadedTape, space: SearchSpace, settings: TuneSettings, batch: int, folder: Path
) -> dict[str, Any]:
    """Return what a study is known again by.

    Parameters
    ----------
    tape, space, settings, batch
        As the study has them.
    folder
        Of the tape.
    """
    digest = blake2b(digest_size=16)
    for part in parts_of(folder):
        with part.open("rb") as file:
            digest.update(file_digest(file, "sha256").digest())
    digest.update(str(tape.events).encode())  # a torn tape may be read in part
    described = json.dumps(space.describe(), sort_keys=True)
    return {
        "tape": digest.hexdigest(),
        "space": blake2b(described.encode(), digest_size=16).hexdigest(),
        "split": [settings.split, settings.seed],
        "batch": batch,
        "objectives": list(OBJECTIVES),
    }
