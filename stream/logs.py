"""Structured logs on standard error: facts with fields, as JSON or for a person."""

from __future__ import annotations

import logging
import sys

import structlog

from stream.side_output import PatientHandler, is_pipe


def set_up_logs(form: str, level: str) -> None:
    """Send the logs of Ebbtide, and the warnings of the libraries that it uses, to standard error.

    Parameters
    ----------
    form
        ``json``: one JSON object a line. ``plain``: readable lines. ``auto``: the same, with colours on a terminal.
    level
        The least level that is logged.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json":
        shared.append(structlog.processors.format_exc_info)
        renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    else:
        shared.append(_printable)
        renderer = structlog.dev.ConsoleRenderer(
            colors=form == "auto" and sys.stderr.isatty(),
            pad_event_to=0,
            # Its usual one shows local variables: what was said, and the token.
            exception_formatter=structlog.dev.plain_traceback,
        )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    # Who reads the log must not be able to stop the run: a terminal or a file is written to at once, a pipe is not.
    handler: logging.Handler = PatientHandler(sys.stderr) if is_pipe(sys.stderr) else logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        if isinstance(old, PatientHandler):
            old.close()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for ours in ("memory", "monitors", "dashboards", "stream"):
        logging.getLogger(ours).setLevel(level.upper())


def _printable(_: object, __: str, facts: structlog.typing.EventDict) -> structlog.typing.EventDict:
    r"""Write out what a terminal would obey: names of streams are data.

    >>> _printable(None, "info", {"event": "operator_action", "stream": "\x1b[2Jred", "seq": 3})
    {'event': 'operator_action', 'stream': "'\\x1b[2Jred'", 'seq': 3}
    """
    return {
        name: repr(value) if isinstance(value, str) and not value.isprintable() else value
        for name, value in facts.items()
    }
