"""What a check finds: one line, and how to fix it if something is wrong."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from pt_app.core.errors import UserError

Status = Literal["ok", "warn", "fail", "skip"]
_FILE = Path(__file__).with_name("fixes.yaml")
FIXES: dict[str, str] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: what was checked, its status, what was found, and the fix.

    The names of the fields are keys of `judge doctor --json`.
    """

    name: str
    status: Status
    said: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert self.fix or self.status in ("ok", "skip"), f"{self.name}: how is it fixed?"

    @staticmethod
    def wrong(
        name: str, said: str, status: Status = "fail", *, fix: str = "", **values: object
    ) -> "Finding":
        """Return a finding with its fix, that of `name` or of the case `fix`, with its values."""
        return Finding(name, status, said, FIXES[fix or name].format(**values))

    @staticmethod
    def of(name: str, right: bool, said: str, status: Status = "fail", **values: str) -> "Finding":
        """Return "ok" if the check found what is `right`, else `status` with its fix."""
        return Finding(name, "ok", said) if right else Finding.wrong(name, said, status, **values)


Check = Callable[[], Iterator[Finding]]


def run_check(name: str, check: Check) -> Iterator[Finding]:
    """Yield the findings of a check; if it raises, that is another finding."""
    try:
        yield from check()
    except UserError as error:
        yield Finding.wrong(name, one_line(error), fix="wrong input")
    except Exception as error:  # a broken driver may raise anything
        said = f"the check failed: {type(error).__name__}: {one_line(error)}"
        yield Finding.wrong(name, said, fix="broken")


def one_line(error: Exception) -> str:
    """Return an error's message without line breaks, cut to 300 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "..."
