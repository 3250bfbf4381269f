"""Commands of typer whose flags are declared with `pt_app.core.flags.flag`."""

import functools
import inspect
import typing
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, field, make_dataclass
from typing import Annotated, Any

import typer

from pt_app.core import streams
from pt_app.core.flags import Flag, filled, flag, flags_of

__all__ = ["JSON", "RECIPE", "RECIPE_FLAGS", "Commands", "command", "flag"]
# The recipe itself reads the flags that a command does not know.
RECIPE_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
JSON = flag("print JSON on stdout, and nothing else", False, name="json")
RECIPE = flag("recipe whose settings and packages count; cpu: that for Apple GPUs", "cuda")


class Commands(typer.Typer):
    """A typer application whose commands take flags, tables of flags, and typer's context.

    The parameters of a command are keyword-only. Those of type `typer.Context` get the context, a
    parameter whose default is a `flag` gets its value, and one whose type is a table gets the table
    filled in; the flags of a table stand in --help where the parameter stands, required ones first.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False, **settings
        )

    def command(self, *names: Any, **settings: Any) -> Callable[..., Any]:
        """Register a function as a command; it is returned as it was."""
        register = super().command(*names, **settings)

        def registered(function: Callable[..., None]) -> Callable[..., None]:
            register(_as_typer(function))
            return function

        return registered


def command(**settings: Any) -> Callable[[Callable[..., None]], Commands]:
    """Make a function an application of one command."""

    def made(function: Callable[..., None]) -> Commands:
        app = Commands()
        app.command(**settings)(function)
        return app

    return made


def _as_typer(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function with the signature that typer reads, which calls `function`."""
    hints, declared = typing.get_type_hints(function), inspect.signature(function).parameters
    contexts = [name for name in declared if hints[name] is typer.Context]
    # The parameters are a table themselves, whose fields are flags and other tables.
    table = make_dataclass(
        function.__name__,
        [
            (name, hints[name], field() if own.default is own.empty else copy(own.default))
            for name, own in declared.items()
            if name not in contexts
        ],
        kw_only=True,
    )
    flags = flags_of(table)

    def command(**given: Any) -> None:
        for each in flags:
            value = given[each.name]
            if each.repeated:
                given[each.name] = tuple(value or ())
            each.check(value)
        arguments = {name: given[name] for name in contexts} | vars(filled(table, given))
        with streams.only_json(given.get("json") is True):
            function(**arguments)

    flags.sort(key=lambda each: each.default is not MISSING)
    functools.update_wrapper(command, function)
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, keyword, annotation=typer.Context) for name in contexts]
    parameters += [_parameter(each) for each in flags]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.flags = flags  # type: ignore[attr-defined]  # for the tables in docs/
    return command


def _parameter(flag: Flag) -> inspect.Parameter:
    """Return a flag as the parameter that typer reads, with what typer shows of it."""
    look: dict[str, Any] = {"help": flag.help, "min": flag.low, "max": flag.high}
    if flag.unit:
        look["metavar"] = f"<{flag.unit}>"
    kind: Any = list[flag.item] if flag.repeated else flag.type  # type: ignore[name-defined]
    default = None if flag.repeated else flag.default
    if flag.default is MISSING:
        default = inspect.Parameter.empty
    elif flag.repeated:
        kind = kind | None
    how = typer.Argument(**look) if flag.positional else typer.Option(flag.option, **look)
    annotation, keyword = Annotated[kind, how], inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(flag.name, keyword, annotation=annotation, default=default)
