"""What the command line says, read: which streams, and which outputs go with the store."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from memory.errors import ConfigurationError
from stream.event import check_name
from stream.forget.line_output import LineOutput
from stream.forget.output import Output
from stream.forget.tape_output import TapeOutput
from stream.store import OutputMark

LEAVE = {"records": "jsonl", "dead-letters": "dead_letters", "tape": "tape"}
"""What `--leave` takes, and the output that it means."""

_OPTIONS = {"jsonl": "--sink jsonl:PATH", "dead_letters": "--dead-letter PATH", "tape": "--tape DIR"}


def read_names(given: Collection[str], file: Path | None) -> list[str]:
    r"""Return the streams to forget, each once.

    Parameters
    ----------
    given
        On the command line.
    file
        One a line; a line that begins with a double quote is a JSON text.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "names"
    >>> _ = file.write_text('ann\n"two\\nlines"\nbob\n')
    >>> read_names(["bob"], file)
    ['bob', 'ann', 'two\nlines']

    Raises
    ------
    ConfigurationError
        There is none, or one is no name.
    """
    names = list(given)
    if file is not None:
        try:
            lines = file.read_text("utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"--streams-from {file}: expected a file of names as UTF-8: {error}") from None
        for number, line in enumerate(lines, start=1):
            if line.startswith('"'):
                try:
                    names.append(json.loads(line))
                except ValueError as error:
                    raise ConfigurationError(
                        f"--streams-from {file}: line {number} begins with a quote and is no JSON text: {error}"
                    ) from None
            elif line:
                names.append(line)
    if not names:
        raise ConfigurationError("expected the streams to forget, as in `ebbtide forget ann --state URL`, got none")
    for name in names:
        check_name(name)
    return list(dict.fromkeys(names))


def outputs_of(
    marks: Mapping[str, OutputMark],
    *,
    sink: str | None,
    dead_letter: Path | None,
    tape: Path | None,
    leave: Collection[str] = (),
    doubtful: bool = False,
) -> list[Output]:
    """Return the outputs to take the streams from.

    Parameters
    ----------
    marks
        The store's.
    sink, dead_letter, tape
        As `ebbtide run` had them.
    leave
        Names of `LEAVE`: outputs of the store that are left alone.
    doubtful
        Whether dead letters go that hold a name and do not tell whose they are.

    Raises
    ------
    ConfigurationError
        The store goes with one that is neither given nor left.
    """
    wrong = [name for name in leave if name not in LEAVE]
    if wrong:
        raise ConfigurationError(f"--leave: expected {', '.join(LEAVE)}, got {wrong[0]!r}")
    left = {LEAVE[name] for name in leave}
    paths: dict[str, Path] = {}
    if sink is not None:
        scheme, _, rest = sink.partition(":")
        if scheme != "jsonl" or not rest:
            raise ConfigurationError(f"--sink {sink!r}: expected jsonl:PATH, as `ebbtide run` had it")
        paths["jsonl"] = Path(rest)
        beside = Path(rest).with_suffix(".dead.jsonl")
        if "dead_letters" in marks or beside.exists():
            paths["dead_letters"] = beside
    if dead_letter is not None:
        paths["dead_letters"] = dead_letter
    if tape is not None:
        paths["tape"] = tape
    for name in marks:
        if name not in paths and name not in left:
            words = next(word for word, output in LEAVE.items() if output == name)
            raise ConfigurationError(
                f"the store goes with {words.replace('-', ' ')}, and {_OPTIONS.get(name, name)} is missing: give it as "
                f"`ebbtide run` has it, or --leave {words} to leave what is there alone"
            )
    outputs: list[Output] = []
    for name, path in paths.items():
        if name in left:
            continue
        if not path.exists():
            raise ConfigurationError(f"{path}: expected the {'folder' if name == 'tape' else 'file'}, got none")
        mark = marks.get(name)
        outputs.append(TapeOutput(path, mark) if name == "tape" else LineOutput(name, path, mark, doubtful=doubtful))
    return outputs
