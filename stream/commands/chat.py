"""`ebbtide chat`: talk to a model with a memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stream.config import CONFIG_VARIABLE, RunSettings, effective
from stream.options import options_of

if TYPE_CHECKING:
    from stream.chat import Chat

HELP = """\
/state           what the memory holds: counts, signals, norms by layer
/reset           make the state zero, and begin the conversation anew
/freeze          stop writing to the memory, or go on: a frozen memory is read all the same
/snapshot FILE   write the states as safetensors
/help, /quit     this; the end (as does Ctrl-D)"""

OF_A_RUN_ONLY = {
    "source", "follow", "stdin_continues", "strict", "max_line_bytes", "sink", "dead_letter", "tape", "tape_text",
    "metrics_host", "metrics_port", "batch_events", "batch_tokens", "linger", "checkpoint_every", "drain", "pool_bytes",
    "rank", "mode", "write", "beta", "lam", "gate_gain", "backbone_path", "log_format", "log_level", "progress",
}  # fmt: skip


@options_of(RunSettings, leave_out=OF_A_RUN_ONLY)
def chat(
    given: dict[str, Any],
    stream: Annotated[str, typer.Option("--stream", help="Whose memory it is")] = "chat",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest reply")] = 200,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0: the likeliest token; above: drawn with --seed")
    ] = 0.0,
    file: Annotated[
        Path | None,
        typer.Option("--config", envvar=CONFIG_VARIABLE, help="Options as YAML, such as `context: last:512`"),
    ] = None,
) -> None:
    """Talk to a language model whose memory is one stream's state.

    With --state the memory outlives the conversation, and is the one that `ebbtide run` keeps for that stream. With
    --context none the model sees the last message only: whatever else it knows, it knows from the memory. In the chat,
    /help lists what else can be said.
    """
    settings, _ = effective(given, file=file)

    from memory.threads import set_threads
    from stream.chat import Chat

    if settings.threads is not None:
        set_threads(settings.threads)
    talk = Chat(settings, stream, max_new_tokens=max_new_tokens, temperature=temperature)
    try:
        talk.open()
        known = talk.events
        print(f"stream {stream}: {f'{known} messages remembered' if known else 'a new memory'}; /help for help")
        if settings.state is None:
            print("nothing is kept after the end: --state sqlite:///PATH keeps it")
        _loop(talk)
    finally:
        talk.close()


def _loop(talk: Chat) -> None:
    """Read lines until the end of the input; on a terminal, with a prompt and line editing."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 (input() edits lines and remembers them from here on)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line in ("/quit", "/exit"):
            return
        if line.startswith("/"):
            _command(talk, *line.split(maxsplit=1))
        elif line:
            talk.say(line, lambda piece: print(piece, end="", flush=True))
            print()


def _command(talk: Chat, name: str, argument: str = "") -> None:
    if name == "/state":
        _print_state(talk)
    elif name == "/reset":
        talk.reset()
        print("the state is zero")
    elif name == "/freeze":
        talk.frozen = not talk.frozen
        print("frozen: nothing is written from here on" if talk.frozen else "writing again")
    elif name == "/snapshot" and argument:
        try:
            talk.snapshot(Path(argument))
        except OSError as error:
            print(f"{argument}: {error.strerror or error}")
        else:
            print(f"{argument}: the states after {talk.events} messages")
    elif name == "/snapshot":
        print("expected a file: /snapshot states.safetensors")
    else:
        print(HELP if name == "/help" else f"{name}: no such command\n{HELP}")


def _print_state(talk: Chat) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    described = talk.describe()
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    for name, value in described.items():
        if name != "norms":
            table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    norms = described["norms"]
    largest = max(norms.values()) or 1.0
    for name, norm in norms.items():
        table.add_row(f"‖S‖ {name}", f"{norm:8.4f} {'█' * round(20 * norm / largest)}")
    Console().print(table)
