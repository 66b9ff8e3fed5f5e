"""Command-line options from a settings model: each field is said once, there."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo


def options_of(
    model: type[BaseModel], *, leave_out: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a Typer command one option for each field of `model`.

    The command is called with the options that were given as ``given: dict``, None for those that were not, besides
    the parameters that it declares itself.

    Parameters
    ----------
    model
        Its fields' descriptions are the help texts; its defaults are shown, and applied by the model.
    leave_out
        Fields that get no option.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        fields = {name: field for name, field in model.model_fields.items() if name not in leave_out}

        def run(**arguments: Any) -> None:
            given = {
                name: arguments.pop(name) or None if fields[name].default == () else arguments.pop(name)
                for name in fields
            }
            command(given=given, **arguments)

        own = [
            parameter
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.name != "given"
        ]
        made = [_parameter(name, field) for name, field in fields.items()]
        run.__signature__ = inspect.Signature([*own, *made])  # type: ignore[attr-defined]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    kind = _plain(field.annotation)
    flag = "--" + name.replace("_", "-")
    names = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]
    default = field.get_default(call_default_factory=False)
    text = field.description or ""
    if default is not None and kind is not dict and default != () and "[default" not in text:
        shown = ("yes" if default else "no") if kind is bool else default
        text += f" [default: {shown}]"
    option = typer.Option(*names, help=text.replace("[", r"\["), show_default=False)
    declared: Any = str if kind not in (bool, int, float, Path) else kind
    if kind is tuple:
        declared = list[str]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[declared | None, option]
    )


def _plain(annotation: Any) -> Any:
    """Take `| None` and containers off an annotation.

    >>> _plain(int | None), _plain(Literal["a", "b"]), _plain(dict[str, int])
    (<class 'int'>, <class 'str'>, <class 'dict'>)
    """
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _plain(next(part for part in get_args(annotation) if part is not type(None)))
    if origin is Literal:
        return str
    return origin or annotation
