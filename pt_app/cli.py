"""The `judge` command: registers its subcommands; flags have underscores, as in the recipes."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from pt_app.commands.agree import agree
from pt_app.commands.attack import attack
from pt_app.commands.base import base
from pt_app.commands.bench import bench
from pt_app.commands.bundle import bundle
from pt_app.commands.data import data
from pt_app.commands.demo import demo
from pt_app.commands.doctor import doctor
from pt_app.commands.estimate import estimate
from pt_app.commands.eval import evaluate
from pt_app.commands.gate import gate
from pt_app.commands.init import init
from pt_app.commands.join import join
from pt_app.commands.prefetch import prefetch
from pt_app.commands.report import report
from pt_app.commands.score import score
from pt_app.commands.sync import sync
from pt_app.commands.train import train
from pt_app.core.errors import UserError, exit_with

# The recipe itself reads the flags that a command does not know.
RECIPE_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


class _Judge(TyperGroup):
    """Shows the help of any command before typer imports pydantic, which takes half of the time."""

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


app = typer.Typer(
    name="judge",
    cls=_Judge,
    help="Fine-tune a small language model into a judge, and prove how good it is.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data, name="data")
app.add_typer(bench, name="bench")
app.add_typer(base, name="base")
app.command()(agree)
app.command()(report)
app.command()(gate)
app.command()(attack)
app.command("eval")(evaluate)
app.command(context_settings=RECIPE_FLAGS)(doctor)
app.command(context_settings=RECIPE_FLAGS)(estimate)
app.command(context_settings=RECIPE_FLAGS)(prefetch)
app.command()(bundle)
app.command(context_settings=RECIPE_FLAGS, add_help_option=False)(train)
for command in (demo, score, sync, init, join):
    app.command()(command)


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
