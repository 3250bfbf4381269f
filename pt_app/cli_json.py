"""The flag `--json`, one for every command that has it."""

from typing import Annotated

import typer

from pt_app import streams


def _alone(context: typer.Context, asked: bool) -> bool:
    if asked:
        context.call_on_close(streams.only_json())
    return asked


Json = Annotated[
    bool, typer.Option("--json", callback=_alone, help="print JSON, and on stdout nothing else")
]
