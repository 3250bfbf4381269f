"""One table of flags for the recipes, the `judge` commands and scripts/vast.py.

A table is a dataclass whose fields are declared with `flag`:

    @dataclass(frozen=True)
    class Search:
        max_price: float = flag("highest price of an offer", 2.0, above=0, unit="dollars per hour")

The field gives a flag its name and type; a `Literal` type lists the allowed values. Command lines,
settings files, their validation, --help and the tables in docs/ are all made of such a table.
`flag` also declares a parameter of a `judge` command.
"""

import argparse
import difflib
import math
import operator
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from pt_app.core.errors import UserError

_FLAG = "flag"  # the key of a Flag in the metadata of its field
Table = TypeVar("Table")


@dataclass(frozen=True)
class Flag:
    """A setting, as command lines, settings files and the documentation know it.

    Attributes:
        help: What it sets.
        default: Its value where none is given; MISSING: one must be given.
        low, high: The bounds of a number, themselves allowed.
        above, below: The bounds of a number, themselves not allowed.
        unit: What a number counts; --help shows it in the place of the value.
        name: Its name without dashes; "": that of its field.
        positional: Whether it is given by its position instead of its name.
        const: Its value where it is given without one; None: a value must follow.
        also: Other names for it in a settings file, separated by spaces; "lora.lora_alpha" is a
            key of the section lora. A key r of that section is lora_r without being named here.
        means: Its value for a true or false under one of these names.
        type: The type of its field.
    """

    help: str
    default: object = MISSING
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    unit: str = ""
    name: str = ""
    positional: bool = False
    const: str | None = None
    also: str = ""
    means: Mapping[bool, object] = field(default_factory=dict)
    type: object = str

    @property
    def option(self) -> str:
        """The flag as it is typed: --rows, -n for a name of one letter, or a positional's name."""
        if self.positional:
            return self.name
        return f"-{self.name}" if len(self.name) == 1 else f"--{self.name}"

    @property
    def repeated(self) -> bool:
        """Whether it may be given several times: its type is a sequence."""
        return typing.get_origin(self.type) in (list, tuple, Sequence)

    @property
    def item(self) -> Any:
        """The type of one value, without None."""
        if self.repeated:
            return typing.get_args(self.type)[0]
        if typing.get_origin(self.type) in (typing.Union, types.UnionType):
            return next(t for t in typing.get_args(self.type) if t is not types.NoneType)
        return self.type

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed values; empty where they are not listed."""
        return typing.get_args(self.item) if typing.get_origin(self.item) is Literal else ()

    @property
    def placeholder(self) -> str:
        """What stands for the value in --help."""
        if self.choices:
            return "{" + ",".join(self.choices) + "}"
        return self.unit or str(self.item.__name__)

    @property
    def shown_default(self) -> str:
        """The default as --help and the documentation show it; "" where there is none to show."""
        hidden = self.default is False or self.default in (MISSING, None, "", ())
        return "" if hidden else str(self.default)

    def problem(self, value: object) -> str:
        """Return what the value must be; "" where it is valid."""
        if self.choices:
            return "" if value in self.choices else f"one of {', '.join(self.choices)}"
        if isinstance(value, str):
            filled = value.strip() or self.default in ("", None)
            return "" if filled else "a text that is not empty"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return ""
        rules = (
            ("at least", self.low, operator.ge),
            ("above", self.above, operator.gt),
            ("at most", self.high, operator.le),
            ("below", self.below, operator.lt),
        )
        bounds = [(word, bound, holds) for word, bound, holds in rules if bound is not None]
        if math.isfinite(value) and all(holds(value, bound) for _, bound, holds in bounds):
            return ""
        limits = " and ".join(f"{word} {bound:g}" for word, bound, _ in bounds)
        return f"a number {limits}" if limits else "a finite number"

    def check(self, value: object) -> None:
        """Raise UserError for a value that is out of range."""
        if value is not None and (problem := self.problem(value)):
            raise UserError(f"{self.option} {value!r}: must be {problem}")

    def converted(self, raw: object, where: str) -> object:
        """Convert and check a value from a command line or a settings file, named by `where`.

        YAML reads 2e-4 as a text, so a text may be a number; a list of texts may stand for a text
        with commas.

        Raises:
            UserError: if it has another type, or is out of range.
        """
        kind = str if self.choices else self.item
        wrong = UserError(f"{where}: {self.name} is {raw!r}, expected {kind.__name__}; see --help")
        if kind is str and isinstance(raw, list) and all(isinstance(part, str) for part in raw):
            raw = ",".join(raw)
        if (kind is bool) != isinstance(raw, bool) or not isinstance(raw, str | int | float):
            raise wrong
        try:
            value = kind(raw)
        except (ValueError, OverflowError):
            raise wrong from None
        if kind is int and isinstance(raw, float) and raw != value:
            raise wrong
        if problem := self.problem(value):
            raise UserError(f"{where}: {self.name} is {raw}, must be {problem}")
        return value


def flag(help: str, default: Any = MISSING, **more: Any) -> Any:
    """Declare a field of a table, or a parameter of a command, as a `Flag`."""
    return field(default=default, metadata={_FLAG: Flag(help, default, **more)})


def named(declared: object, name: str, type: object) -> Flag | None:
    """Return the flag that `flag` declared for a name and type; None for any other object."""
    if not isinstance(declared, Field) or _FLAG not in declared.metadata:
        return None
    own: Flag = declared.metadata[_FLAG]
    return replace(own, name=own.name or name, type=type)


def _fields(table: type) -> dict[str, Flag | type]:
    """Return, by its name, each field of a table that is a flag, or a table of flags itself."""
    hints, kept = typing.get_type_hints(table), dict[str, Flag | type]()
    for each in fields(table):
        name, kind = each.name, hints[each.name]
        if own := named(each, name, kind):
            kept[name] = own
        elif is_dataclass(kind):
            kept[name] = hints[name]
    return kept


def flags_of(table: type) -> list[Flag]:
    """Return the flags of a table, in order, with those of tables that are fields of it."""
    own = _fields(table).values()
    return [each for kept in own for each in ([kept] if isinstance(kept, Flag) else flags_of(kept))]


def filled(table: type[Table], values: Mapping[str, object]) -> Table:
    """Make a table of values by the names of its flags; fields that are no flags keep defaults."""
    given = {
        name: values[own.name] if isinstance(own, Flag) else filled(own, values)
        for name, own in _fields(table).items()
    }
    return table(**given)


def check(table: object) -> None:
    """Raise UserError for the first flag of a table whose value is out of range."""
    for name, own in _fields(type(table)).items():
        if isinstance(own, Flag):
            own.check(getattr(table, name))


class Parser(argparse.ArgumentParser):
    """A parser of flags: what is wrong is a UserError, and what is not given is absent."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def add_flags(self, flags: Iterable[Flag]) -> None:
        """Declare flags, whose values stay texts until `resolved` converts them."""
        for each in flags:
            default = f" (default: {each.shown_default})" if each.shown_default else ""
            how: dict[str, Any] = {"help": (each.help + default).replace("%", "%%")}
            if each.item is bool:
                how["action"] = "store_true"
            else:
                how["metavar"] = each.placeholder if each.choices else each.placeholder.upper()
            if each.const:
                how |= {"nargs": "?", "const": each.const}
            if each.positional and each.default is not MISSING:
                how["nargs"] = "?"
            elif not each.positional and each.default is MISSING:
                how["required"] = True
            self.add_argument(each.option, **how)

    def error(self, message: str) -> NoReturn:
        """Raise UserError with argparse's message."""
        raise UserError(f"{message}; {self.prog} --help lists the flags")


def resolved(
    flags: Iterable[Flag], *sources: tuple[str, Mapping[str, object]]
) -> dict[str, object]:
    """Take each value from the first of the sources that gives it, else the default.

    Args:
        flags: The flags.
        sources: Where values come from, for messages, and the values by name.

    Raises:
        UserError: for a value of the wrong type or out of range.
    """
    given = {name: (raw, where) for where, raws in reversed(sources) for name, raw in raws.items()}
    return {
        each.name: each.converted(*given[each.name]) if each.name in given else each.default
        for each in flags
    }


def read_config(path: Path, flags: Iterable[Flag]) -> dict[str, object]:
    """Read a settings file, YAML or JSON, whose keys may be other names of a setting.

    Returns:
        The values, not yet converted, by the flags' own names.

    Raises:
        UserError: if the file cannot be read, or holds an unknown key or two names of one setting.
    """
    from pt_app.core.yaml_files import read_yaml

    if path.is_dir():
        raise UserError(f"--config {path} is a folder: name a file")
    content = read_yaml(path, "is not there: give --config an existing file")
    if not isinstance(content, dict | None):
        raise UserError(f"{path}: expected lines like 'lr: 2e-4', found {type(content).__name__}")
    by_name = {name: each for each in flags for name in (each.name, *each.also.split())}
    values: dict[str, object] = {}
    keys: dict[str, str] = {}
    for key, value in _entries(content or {}):
        own = by_name.get(key) or by_name.get(key.replace(".", "_"))
        if own is None:
            near = difflib.get_close_matches(key, by_name, n=1, cutoff=0.0)
            raise UserError(f"{path}: unknown key {key!r}; the nearest known one is {near[0]!r}")
        if own.name in keys:
            raise UserError(f"{path}: {keys[own.name]} and {key} are one setting: keep one of them")
        keys[own.name] = key
        values[own.name] = value
        if key != own.name and isinstance(value, bool):
            values[own.name] = own.means.get(value, value)
    return values


def parsed(table: type[Table], argv: Sequence[str] | None, description: str | None = None) -> Table:
    """Return the flags of a command line: those given, then those of --config, then defaults.

    Raises:
        UserError: for an unknown flag or key, a wrong type or a value out of range.
    """
    parser, flags = Parser(description=description), flags_of(table)
    parser.add_argument("--config", metavar="FILE", help="settings file, YAML or JSON")
    # What must be given may stand in the file.
    parser.add_flags(replace(e, default=None) if e.default is MISSING else e for e in flags)
    given = vars(parser.parse_args(argv))
    config = given.get("config")
    from_file = read_config(Path(config), flags) if config else {}
    values = resolved(flags, ("command line", given), (str(config), from_file))
    for each in flags:
        if values[each.name] is MISSING:
            raise UserError(f"{each.option} is missing: give it, or write it into --config")
    return filled(table, values)


def _entries(section: Mapping[object, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the keys of a settings file, those within a section with its name: "lora.r"."""
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _entries(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
