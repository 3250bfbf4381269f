"""The command line of scripts/vast.py, without the recipe's flags after the --."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pt_app.core.errors import UserError
from pt_app.core.flags import Parser, filled, flag, flags_of, resolved


@dataclass(frozen=True, kw_only=True)
class Search:
    """The flags of `offers` and `launch`: which offers count, and what the run needs."""

    max_price: float = flag("highest price of an offer", 2.0, above=0, unit="dollars per hour")
    reliability: float = flag("lowest reliability of a machine", 0.98, above=0, high=1)
    inet_down: float = flag("lowest speed of downloads", 200.0, above=0, unit="Mb/s")
    # torch 2.13's wheels bring CUDA 13.0, which asks for such a driver.
    min_cuda: float = flag("lowest CUDA version of the driver", 13.0, above=0, unit="version")
    gpu: str = flag("GPU with the name that Vast gives it, such as RTX_4090", "")
    hours: float | None = flag(
        "time of the run, in place of the estimate", None, above=0, unit="hours"
    )
    gpu_ram: float | None = flag("GPU memory, in place of the estimate", None, above=0, unit="GiB")
    disk: int | None = flag("size of the disk, in place of the estimate", None, low=1, unit="GB")
    recipe: Sequence[str] = ()  # no flag: the flags after the --


@dataclass(frozen=True, kw_only=True)
class Rental(Search):
    """The flags of `launch`."""

    offer: int | None = flag("id of the offer to take; by default the cheapest run", None)
    max_hours: float | None = flag(
        "cap of the time; by default twice the estimate", None, above=0, unit="hours"
    )
    max_dollars: float | None = flag(
        "cap of the price; by default that of --max_hours", None, above=0, unit="dollars"
    )
    yes: bool = flag("do not ask", False)
    resume: str | None = flag("folder of a run to resume from its last checkpoint", None)
    upload_model: bool = flag("copy the cached base up, for gated models", False)
    no_eval: bool = flag("skip the evaluation on this CPU afterwards", False)
    fetch_minutes: float = flag("time between copies home", 5.0, above=0, unit="minutes")
    # Python and CUDA come from the packages; of the image only the driver's libraries matter.
    image: str = flag("Docker image", "nvidia/cuda:12.8.1-base-ubuntu24.04")
    setup: str | None = flag("shell command instead of installing the packages", None)
    remote_dir: str = flag("folder on the host", "/workspace/judge")


@dataclass(frozen=True, kw_only=True)
class Listed:
    """The flags of `list`."""

    output_dir: str = flag("folder for runs and adapters of the launch", "adapters_eval")


@dataclass(frozen=True, kw_only=True)
class Launched(Listed):
    """The flags of the commands that take up a launch."""

    label: str | None = flag(
        "label of the launch; by default the newest", None, positional=True, unit="label"
    )


@dataclass(frozen=True, kw_only=True)
class Destroyed(Listed):
    """The flags of `destroy`."""

    # Not empty, as an unset shell variable is: it would match every instance without a label.
    label: str = flag("label of the launch, or id of an instance", positional=True, unit="label")


Flags = Search | Listed
COMMANDS: dict[str, tuple[type[Flags], str]] = {
    "offers": (Search, "machines that can do the run, cheapest run first"),
    "launch": (Rental, "rent, train, copy back, destroy; asks before"),
    "attach": (Launched, "follow a launch that was left"),
    "fetch": (Launched, "copy back what is complete now"),
    "destroy": (Destroyed, "end an instance, and check that it is gone"),
    "list": (Listed, "what is alive, and which runs it belongs to"),
}


def parse(words: Sequence[str], description: str | None) -> tuple[str, Flags]:
    """Parse the command line into the command and its flags; raises UserError for a wrong flag."""
    cut = words.index("--") if "--" in words else len(words)
    parser = Parser(prog="scripts/vast.py", description=description)
    commands = parser.add_subparsers(dest="verb", required=True)
    for verb, (table, help) in COMMANDS.items():
        commands.add_parser(verb, help=help).add_flags(flags_of(table))
    given = vars(parser.parse_args(words[:cut]))
    verb = given.pop("verb")
    table, recipe = COMMANDS[verb][0], words[cut + 1 :]
    flags = filled(table, resolved(flags_of(table), ("command line", given)))
    if isinstance(flags, Search):
        return verb, replace(flags, recipe=recipe)
    if recipe:
        raise UserError(f"{verb} takes no recipe flags: leave out the -- and what follows")
    return verb, flags
