"""Run `judge doctor`: all checks of a machine and a run, as lines or as JSON."""

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from rich.table import Table
from rich.text import Text

from pt_app.core import console
from pt_app.core.settings import Recipe, Where, recipe_of, resolve
from pt_app.core.streams import print_json
from pt_app.models import platforms
from pt_app.models.platforms import Platform
from pt_app.preflight.doctor.arithmetic import check_arithmetic
from pt_app.preflight.doctor.finding import Check, Finding, Status, one_line, run_check
from pt_app.preflight.doctor.machine import check_machine, check_packages
from pt_app.preflight.doctor.needs import Needs, vocabulary_of

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}
Section = tuple[str, Check]


@dataclass
class Report:
    """The findings, by section."""

    recipe: Recipe
    sections: dict[str, list[Finding]] = field(default_factory=dict)

    def count(self, status: Status) -> int:
        """Return how many findings have this status."""
        return sum(f.status == status for findings in self.sections.values() for f in findings)

    def as_json(self) -> str:
        """Return the report as JSON."""
        findings = [{"section": name} | asdict(f) for name, fs in self.sections.items() for f in fs]
        about = {"schema": 1, "recipe": self.recipe, "passed": not self.count("fail")}
        return json.dumps(about | {"findings": findings}, indent=2)

    def summary(self) -> str:
        """Return the last line."""
        ok, warnings, failed = (self.count(status) for status in ("ok", "warn", "fail"))
        end = ": fix them, then run judge doctor again" if failed else ""
        return f"{ok} ok, {warnings} warnings, {failed} failed{end}"


def sections_of(
    recipe: Recipe, argv: Sequence[str], offline: bool, on_cpu: bool = False
) -> Iterator[Section]:
    """Yield all checks for a run of `recipe` with the flags `argv`.

    Raises:
        UserError: for flags that the recipe would refuse.
    """
    settings = resolve(recipe, argv, "judge train", "")
    needs = Needs(settings, offline)
    no_4bit, precision = settings.no_4bit, settings.train_precision
    yield "packages", lambda: check_packages(recipe, no_4bit=no_4bit)
    try:
        platform = platforms.decide(recipe, no_4bit=no_4bit, precision=precision, on_cpu=on_cpu)
    except Exception as error:  # an impossible precision, or a driver that fails
        wrong = Finding.wrong("device", one_line(error))
        yield "machine", lambda: iter([wrong])
    else:
        yield from of_platform(recipe, platform, needs)
    yield "run", needs.check
    yield "tracking", needs.tracking


def of_platform(
    recipe: Recipe, platform: Platform, needs: Needs | None = None
) -> Iterator[Section]:
    """Yield the checks of a device, at the size of the base that a run needs."""
    yield "machine", lambda: check_machine(recipe, platform)
    yield "arithmetic", lambda: _arithmetic(platform, needs)


def _arithmetic(platform: Platform, needs: Needs | None) -> Iterator[Finding]:
    if platform.on_cpu:
        said = "no accelerator: the CPU's own float32 is compared with its float64"
        yield Finding("device", "skip", said)
    yield from check_arithmetic(platform, vocabulary_of(needs.source()[0] if needs else None))


def examine(recipe: Recipe, sections: Iterator[Section], quiet: bool = False) -> Report:
    """Run the checks, and print each section when it is complete, unless `quiet`."""
    report = Report(recipe)
    for name, check in sections:
        with warnings.catch_warnings():
            # Packages' old names, which users cannot act on; warnings of drivers are UserWarnings.
            warnings.simplefilter("ignore", FutureWarning)
            report.sections[name] = list(run_check(name, check))
        if not quiet:
            console.show(_table(name, report.sections[name]))
    return report


def _table(section: str, findings: Sequence[Finding]) -> Table:
    table = Table.grid(padding=(0, 1))
    for width in (4, 24, None):
        table.add_column(width=width, overflow="fold")
    table.add_row("", Text(section, style="bold"))
    for finding in findings:
        mark = Text(finding.status, STYLES[finding.status])
        table.add_row(mark, finding.name, Text(finding.said))
        if finding.fix:
            table.add_row("", "", Text(f"fix: {finding.fix}", style="bold"))
    return table


def run_doctor(where: Where | None, argv: Sequence[str], offline: bool, as_json: bool) -> int:
    """Run all checks and print them; return the exit code, 2 if one failed, else 0."""
    recipe = recipe_of(where) if where else platforms.recipe_for_this_machine()
    sections = sections_of(recipe, argv, offline, on_cpu=where == "cpu")
    report = examine(recipe, sections, quiet=as_json)
    if as_json:
        print_json(report.as_json())
    else:
        print(report.summary())
    return 2 if report.count("fail") else 0
