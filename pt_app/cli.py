"""The `judge` command: its subcommands, each imported when it is used."""

import importlib
import json
import sys
from collections import UserDict
from functools import cache
from keyword import iskeyword
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from pt_app.commands.flags import Commands
from pt_app.core.errors import UserError, exit_with

# The help of the subcommands, by their names: `judge --help` imports none of them.
COMMANDS: dict[str, str] = json.loads(
    Path(__file__).with_name("commands").joinpath("commands.json").read_text(encoding="utf-8")
)


class _Imported(UserDict[str, Any]):
    """The subcommands by name; a module of `pt_app.commands` is imported when it is looked up.

    `judge --help` needs none of them, and each takes some ten milliseconds.
    """

    def __getitem__(self, name: str) -> Any:
        if name not in self.data:
            raise KeyError(name)
        return _imported(name)


@cache
def _imported(name: str) -> Any:
    """Import a subcommand, which is the one application of its module."""
    own_name = f"{name}_" if iskeyword(name) else name  # no module can be imported as `try`
    module = importlib.import_module(f"pt_app.commands.{own_name}")
    (own,) = (each for each in vars(module).values() if isinstance(each, Commands))
    return typer.main.get_command(own)


class _Judge(TyperGroup):
    """Shows the help of any command before typer imports pydantic, which takes half of the time."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Imported(COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the subcommands without an import of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as typer does, but for a command line that asks for help, or names no command."""
        command: Any = self
        context, left = ctx, list(args)
        while left and left[0] in getattr(command, "commands", {}):
            name = left.pop(0)
            command = command.commands[name]
            context = typer.Context(command, info_name=name, parent=context)
        asked = "--help" in left and command.add_help_option
        unfinished = not left and hasattr(command, "commands")
        if asked or unfinished:
            print(command.get_help(context), file=sys.stderr if unfinished else sys.stdout)
            ctx.exit(2 if unfinished else 0)
        return super().parse_args(ctx, args)


app = Commands(name="judge", cls=_Judge)


@app.callback()
def judge() -> None:
    """Fine-tune a small language model into a judge, and prove how good it is."""


def main() -> None:
    """Entry point of the `judge` command."""
    exit_with(_run)


def _run() -> None:
    try:
        code = app(prog_name="judge", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        # Typer's own usage errors carry their message; one line of it is enough.
        if type(error).__module__.split(".")[0] not in ("click", "typer"):
            raise
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        message = message.replace("Value error, ", "")  # pydantic's, by which typer checks a choice
        raise UserError(f"{message.rstrip('.')}; see judge --help") from None
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
