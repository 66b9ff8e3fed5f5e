"""The order in which a stream is taken away, so that a crash leaves all of it, or what the same command finishes.

1. Everything that will be needed is locked and read: the store, the records, the dead letters, the tape.
2. New files are written beside the old ones. Until here nothing has happened: left as it is, the next command clears
   them away, and a run does not look at them.
3. One transaction of the store: the streams' rows go, the marks are those of the new files, and a row of `run` says
   which files are to take which places. From here on `ebbtide run` refuses the store, and `ebbtide forget` goes on.
4. The new files take the old ones' places; the copies of the store go; the database is written anew, without free room.
5. The row of `run` goes, and there are new copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stream.forget import rows
from stream.forget.compact import compact, put_away
from stream.forget.files import take_places
from stream.forget.output import Advance, Output
from stream.store import OutputMark, StateStore
from stream.store_copy import StoreCopier
from stream.store_files import copy_paths


class Removal:
    """One forgetting. Its life: `look`, `write`, `apply`; `close`, always.

    Parameters
    ----------
    store
        Locked.
    outputs
        Those of the run that has the store.
    streams
        To forget.

    Attributes
    ----------
    held
        After `look`: what the store has of them.
    """

    def __init__(self, store: StateStore, outputs: Sequence[Output], streams: Sequence[str]):
        self.store, self.outputs, self.streams = store, list(outputs), list(dict.fromkeys(streams))
        self._pending: dict[str, Any] = {}
        self._marks: dict[str, OutputMark] = {}
        self._applied = False

    def look(self, advance: Advance = lambda count: None) -> None:
        """Lock the outputs, and find what there is of the streams."""
        self.held = rows.held(self.store, self.streams)
        for output in self.outputs:
            output.open()
        self._clear()
        for output in self.outputs:
            output.look(self.streams, advance)

    @property
    def size(self) -> int:
        """Bytes that `look` goes through, and `write` at most."""
        return sum(output.size for output in self.outputs)

    def unknown(self) -> list[str]:
        """Return those of the streams that there is nothing of."""
        known = {stream for counts in self.held.counts.values() for stream in counts}
        known |= {stream for output in self.outputs for stream in output.found}
        return [stream for stream in self.streams if stream not in known]

    def others(self) -> set[str]:
        """Return the names of all other streams."""
        met = {stream for output in self.outputs for stream in output.names}
        return (rows.names(self.store) | met) - set(self.streams)

    def write(self, advance: Advance = lambda count: None) -> None:
        """Write new files beside the old ones. Nothing has happened yet."""
        renames: list[tuple[str, str]] = []
        unlinks: list[str] = []
        for output in self.outputs:
            made = output.rewrite(advance)
            renames += made.renames
            unlinks += made.unlinks
            if made.mark is not None and made.mark != output.mark:
                self._marks[output.name] = made.mark
        self._pending = {"renames": renames, "unlinks": unlinks}

    def apply(self) -> None:
        """Take the streams away: from here on there is no way back, and `finish` is to follow."""
        store, self._applied = self.store, True
        store.claim(store.settings, store.shadows())
        pending = self._pending | {"copies": [str(path) for path in copies_of(store)]}
        store.change(lambda connection, checked: rows.remove(connection, checked, self.streams, self._marks, pending))

    def close(self) -> None:
        """Let go of the outputs. What was written and not applied goes."""
        if not self._applied:  # once the store may know of them, nobody but `finish` touches the new files
            self._clear()
        for output in self.outputs:
            output.close()

    def _clear(self) -> None:
        for output in self.outputs:
            for new in output.new_files():
                new.unlink()


def finish(store: StateStore, step: Callable[[str], object] = lambda what: None) -> bool:
    """Do what the transaction left to do, also after a crash; say whether there was anything.

    Parameters
    ----------
    store
        Locked.
    step
        Told what is being done.

    Raises
    ------
    EbbtideError
        It could not be done now; the same command goes on from there.
    """
    left = rows.pending(store)
    if left is None:
        return False
    store.claim(store.settings, store.shadows())
    step("new files take the places of the old ones")
    take_places(left["renames"], left["unlinks"])
    copies = left["copies"]
    take_places([], copies)
    step("the state store is written anew")
    compact(store)
    store.change(rows.settle)
    put_away(store)
    if store.path is not None:
        for copy in copy_paths(store.path.resolve()):
            if str(copy) in copies:
                step("the state store is copied anew")
                StoreCopier(store.path, 0).copy()
    return True


def copies_of(store: StateStore) -> list[Path]:
    """Return the files beside an SQLite store that hold what it held: copies, and damaged ones that were put aside."""
    if store.path is None:
        return []
    path = store.path.resolve()
    beside = (each.name.removeprefix(path.name) for each in path.parent.iterdir() if each.name.startswith(path.name))
    return sorted(path.with_name(path.name + ending) for ending in beside if ending.startswith(_OLD))


_OLD = (".copy", ".damaged-", ".recovering")
