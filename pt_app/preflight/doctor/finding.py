"""What a check found: a line for people, and for each failure its fix."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from pt_app.core.errors import UserError

Status = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: what was looked at, how it stands, and what mends it."""

    name: str
    status: Status
    said: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert self.fix or self.status in ("ok", "skip"), f"{self.name}: what mends it?"


Check = Callable[[], Iterator[Finding]]


def found_by(name: str, check: Check, broken: Status = "fail") -> Iterator[Finding]:
    """Yield the findings of a check; where it breaks off, that is one of its own (`broken`)."""
    try:
        yield from check()
    except UserError as error:
        yield Finding(name, "fail", one_line(error), "as the line above says")
    except Exception as error:  # a broken driver raises whatever it likes
        yield Finding(
            name,
            broken,
            f"the check broke off: {type(error).__name__}: {one_line(error)}",
            "this part of the installation does not work: install it again (make install)",
        )


def one_line(error: Exception, most: int = 300) -> str:
    """Give an error's message without line breaks, cut to `most` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else text[:most] + "..."
