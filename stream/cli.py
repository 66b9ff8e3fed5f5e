"""The command line: `ebbtide`.

Commands import what they need when they run, so that `--help` answers at once. Errors that the user can mend end in one
line on standard error and exit code 2; failures in one line and exit code 1.
"""

from __future__ import annotations

import inspect as inspection
import io
import sys
from contextlib import suppress
from typing import Any

import typer

from stream.commands.act import act
from stream.commands.chat import chat
from stream.commands.config import config
from stream.commands.controls import controls
from stream.commands.dashboards import dashboards
from stream.commands.doctor import doctor
from stream.commands.forget import forget
from stream.commands.generate import generate
from stream.commands.inspect import inspect
from stream.commands.replay import replay
from stream.commands.report import report
from stream.commands.run import run
from stream.commands.tune import tune

app = typer.Typer(
    name="ebbtide",
    help=(
        "Feeds token streams into a delta-rule memory, watches its health, and lets it ebb (decay), clear (reset) or "
        "swap when the stream's history changes.\n\n"
        "Try it: ebbtide generate --scenario recurring --out talk.jsonl && "
        "ebbtide run --source file:talk.jsonl --backbone hashing --policy decay_on_shift --sink jsonl:out.jsonl"
    ),
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
UsageError: Any = typer.BadParameter.__bases__[0]
"""What an option that is none, or has no such value, raises; Typer gives it no public name."""


def _paragraphs(text: str) -> str:
    """Join the lines of each paragraph, so that the terminal's width breaks them and not the source's.

    >>> _paragraphs("One\\n    two.\\n\\n    Three.")
    'One two.\\n\\nThree.'
    """
    return "\n\n".join(" ".join(part.split()) for part in inspection.cleandoc(text).split("\n\n"))


for command in (run, generate, inspect, act, forget, replay, tune, report, chat, controls, dashboards, doctor, config):
    app.command(name=command.__name__, help=_paragraphs(command.__doc__ or ""))(command)


def main() -> None:
    """Run the command line and exit."""
    from memory.errors import ConfigurationError, EbbtideError
    from stream.side_output import tell
    from stream.stop_signals import process_ends

    process_ends()
    for output in (sys.stdout, sys.stderr):
        # A stream's name may be nothing that this terminal can show.
        if isinstance(output, io.TextIOWrapper):
            with suppress(OSError):
                output.reconfigure(errors="backslashreplace")
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except UsageError as error:
        tell(f"ebbtide: {error.format_message().rstrip('.')}; see ebbtide --help\n", sys.stderr)
        sys.exit(2)
    except typer.Abort as end:
        if isinstance(end.__cause__, EOFError):
            tell("ebbtide: the input ended where more was expected\n", sys.stderr)
            sys.exit(1)
        sys.exit(130)
    except MemoryError:
        tell("ebbtide: there is not enough memory; what was committed is safe\n", sys.stderr)
        sys.exit(1)
    except ConfigurationError as error:
        tell(f"ebbtide: {error}\n", sys.stderr)
        sys.exit(2)
    except EbbtideError as error:
        tell(f"ebbtide: {error}\n", sys.stderr)
        sys.exit(1)
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        tell(f"ebbtide: {error.strerror or error}{place}\n", sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
