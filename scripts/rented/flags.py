"""The command line of scripts/vast.py, without the recipe's flags after the --."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, NoReturn

from pt_app.core.errors import UserError


def _above_zero(text: str, kind: type = float, most: float = math.inf) -> float:
    try:
        value: float = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        rule = f"a {'whole ' if kind is int else ''}number above 0"
        raise argparse.ArgumentTypeError(f"{text} must be {rule}")
    if value > most:
        raise argparse.ArgumentTypeError(f"{text} must be at most {most}")
    return value


def _flag(default: Any, help: str, kind: Callable[[str], Any] = str) -> Any:
    """Declare a field that is a flag; its metadata are the arguments of add_argument."""
    how = {"action": "store_true"} if default is False else {"type": kind, "default": default}
    return field(default=default, metadata={"help": help, **how})


@dataclass
class Search:
    """The flags of `offers` and `launch`: which offers count, and what the run needs."""

    max_price: float = _flag(2.0, "dollars per hour (%(default)s)", _above_zero)
    reliability: float = _flag(0.98, "at least (%(default)s)", partial(_above_zero, most=1))
    inet_down: float = _flag(200.0, "at least, Mb/s (%(default)s)", _above_zero)
    # torch 2.13's wheels bring CUDA 13.0, which asks for such a driver.
    min_cuda: float = _flag(13.0, "of the driver (%(default)s)", _above_zero)
    gpu: str = _flag("", "name as Vast has it: RTX_4090")
    hours: float | None = _flag(None, "of the run, instead of the estimate", _above_zero)
    gpu_ram: float | None = _flag(None, "GiB at least, instead of the estimate", _above_zero)
    disk: int | None = _flag(None, "GB, instead of the estimate", partial(_above_zero, kind=int))


@dataclass
class Flags(Search):
    """The flags of all commands; those that a command does not take have their defaults."""

    offer: int | None = _flag(None, "id of the offer to take (the cheapest run)", int)
    max_hours: float | None = _flag(None, "end after so many (twice the estimate)", _above_zero)
    max_dollars: float | None = _flag(None, "end at so many (what those hours cost)", _above_zero)
    yes: bool = _flag(False, "do not ask")
    resume: str | None = _flag(None, "folder of a run to resume from its last checkpoint")
    upload_model: bool = _flag(False, "copy the cached base up: gated models")
    no_eval: bool = _flag(False, "leave out the evaluation on this CPU afterwards")
    fetch_minutes: float = _flag(5.0, "between copies (%(default)s)", _above_zero)
    # Python and CUDA come from the packages; of the image only the driver's libraries matter.
    image: str = _flag("nvidia/cuda:12.8.1-base-ubuntu24.04", "Docker image (%(default)s)")
    setup: str | None = _flag(None, "shell command instead of installing requirements-cuda.txt")
    remote_dir: str = _flag("/workspace/judge", "on the host (%(default)s)")
    # What is no flag, or no flag of these two commands.
    verb: str = ""
    label: str | None = None
    output_dir: str = ""
    recipe: list[str] = field(default_factory=list)  # the flags after the --


COMMANDS = {
    "offers": "machines that can do the run, cheapest run first",
    "launch": "rent, train, copy back, destroy; asks before",
    "attach": "follow a launch that was left",
    "fetch": "copy back what is complete now",
    "destroy": "end an instance, and check that it is gone",
    "list": "what is alive, and which runs it belongs to",
}
TABLES: dict[str, type[Search]] = {"offers": Search, "launch": Flags}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the flags")


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = _Parser(
        prog="scripts/vast.py",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="verb", required=True, parser_class=_Parser)
    for verb, help in COMMANDS.items():
        command = commands.add_parser(verb, help=help)
        if table := TABLES.get(verb):
            for flag in fields(table):
                if flag.metadata:
                    command.add_argument(f"--{flag.name}", **flag.metadata)
            continue
        command.add_argument("--output_dir", default="adapters_eval", metavar="DIR")
        if verb != "list":
            nargs = None if verb == "destroy" else "?"
            command.add_argument("label", nargs=nargs, help="of the launch (the newest)")
    return parser
