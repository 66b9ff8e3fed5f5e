"""The exceptions that Ebbtide raises on purpose.

    EbbtideError                something went wrong that the message explains; the command ends with exit code 1
    └── ConfigurationError      what was asked for cannot be done as asked; exit code 2, nothing was changed
        └── StateMismatchError  a stored state, or a snapshot, is of another shape, version or making

Wrong arguments to a function are `ValueError` or `TypeError`, as everywhere. A message says what was expected, what
came, and the likely slip, on one line.
"""

from __future__ import annotations


class EbbtideError(Exception):
    """Something went wrong that the message explains."""


class ConfigurationError(EbbtideError):
    """What was asked for cannot be done as asked; nothing was changed."""


class StateMismatchError(ConfigurationError):
    """A stored state or snapshot does not fit this run."""
