"""`judge gate`: whether a new judge is worse than the one in use, or than a floor; for CI.

The decision is about the difference on the same rows: worse if its whole interval lies below
-margin, not worse if it lies above, else undecided. A margin of 0 asks for proof that the new
judge is better.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from pt_app.core.errors import UserError
from pt_app.core.formatting import estimate
from pt_app.core.questions import per_question
from pt_app.core.results import (
    PREDICTIONS,
    RESULTS,
    Metric,
    Prediction,
    QuestionSummary,
    read_predictions,
    read_results,
)
from pt_app.core.verdicts import Scale
from pt_app.evidence.coding import headline
from pt_app.evidence.comparison import compare
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.options import Limits
from pt_app.evidence.summary import summarise

Decision = Literal["pass", "fail", "undecided"]
EXIT_CODES: Mapping[Decision, int] = {"pass": 0, "fail": 3, "undecided": 4}


@dataclass(frozen=True)
class Check:
    """One condition, its decision, and why in one line."""

    name: str
    decision: Decision
    why: str


@dataclass(frozen=True)
class Judged:
    """A judge's prediction rows, as an evaluation folder holds them.

    `abstained` is the share below the threshold of its target accuracy; 1 if there is none.
    """

    name: str
    scale: Scale
    rows: Sequence[Prediction]
    abstained: float = 0.0

    @staticmethod
    def read(folder: Path) -> "Judged":
        """Read the rows of the judge that an evaluation is about: the adapter, else the first."""
        results = read_results(folder)
        judge = results.judge
        if judge is None:
            raise UserError(f"{folder}: nothing was judged: evaluate again")
        rows = [row for row in read_predictions(folder) if row.model == judge.name]
        for field in ("id", "group"):
            if any(field not in row.model_fields_set for row in rows):
                raise UserError(f"{folder}: field {field} is missing in a row: evaluate again")
        scored = sum(row.status != "too_long" for row in rows)
        if 0 < scored < (results.data.n or 0):  # without any row the gate is undecided
            problem = f"holds {scored} rows of {judge.name}, of {results.data.n} in {RESULTS}"
            raise UserError(f"{folder / PREDICTIONS} {problem}: evaluate again")
        abstained = 1 - (judge.selective.kept.value or 0.0) if judge.selective else 0.0
        return Judged(f"{folder}", Scale.from_name(results.scale), rows, abstained)


def gate_folders(folders: Sequence[Path], limits: Limits) -> list[Check]:
    """Return the checks of the last folder against the first, if there are two.

    Of several questions there are checks for each, with its own margin.

    Raises:
        UserError: as `gate` does, and for folders of other questions.
    """
    asked = [read_results(folder).questions for folder in folders]
    if asked[0].keys() != asked[-1].keys():
        named = " and ".join(", ".join(names) or "no questions" for names in asked)
        raise UserError(f"the folders are about {named}: compare evaluations of the same questions")
    names = list(asked[0])
    margins = per_question(limits.question_margins, names, "--question_margins", above=False)
    checks = []
    for name in names or [""]:
        # A folder may be there all the same, of an earlier evaluation with other rows.
        if name and (why := _unmeasured(name, dict(zip(folders, asked, strict=True)))):
            checks.append(Check(f"{name}: rows", "undecided", why))
            continue
        of_one = [Judged.read(folder / name) for folder in folders]
        own = replace(limits, margin=margins.get(name, limits.margin))
        found = gate(of_one[-1], of_one[0] if len(folders) == 2 else None, own)
        checks += [replace(c, name=f"{name}: {c.name}") if name else c for c in found]
    return checks


def _unmeasured(name: str, asked: Mapping[Path, Mapping[str, QuestionSummary]]) -> str:
    """Return why folders have no results of a question, as each says itself; "" if all have."""
    without = {folder: own[name] for folder, own in asked.items() if not own[name].n}
    said = (
        f"{folder}: {own.few or 'no row has a label for it'}" for folder, own in without.items()
    )
    return "; ".join(said)


def gate(new: Judged, baseline: Judged | None, limits: Limits) -> list[Check]:
    """Return all checks of `new` against `baseline`, the judge in use, if there is one.

    Raises:
        UserError: for judges of different rows, labels or scales.
    """
    scored = [row for row in new.rows if row.status != "too_long"]
    checks = [_enough(len(scored), limits)]
    if not scored:
        return [*checks, Check("agreement", "undecided", "no row was scored")]
    failures = sum(row.answered is None for row in scored)
    checks += [
        _share("parse failures", failures, len(scored), limits.parse_failures),
        _share("abstentions", new.abstained * len(scored), len(scored), limits.abstentions),
        _share("unscored rows", len(new.rows) - len(scored), len(new.rows), limits.unscored),
    ]
    if limits.floor is not None:
        checks.append(_above_floor(scored, new.scale, limits.floor))
    if baseline is not None:
        checks.append(_not_worse(new, baseline, limits.margin))
    return checks


def decide(checks: Sequence[Check]) -> Decision:
    """Return "fail" if one check fails, else "undecided" if one is, else "pass"."""
    decisions = {check.decision for check in checks} or {"undecided"}
    worst_first: tuple[Decision, ...] = ("fail", "undecided", "pass")
    return next(decision for decision in worst_first if decision in decisions)


def _enough(n: int, limits: Limits) -> Check:
    decision: Decision = "pass" if n >= max(1, limits.rows) else "undecided"
    return Check("rows", decision, f"{n} rows, at least {limits.rows} are required")


def _share(name: str, count: float, n: int, most: float) -> Check:
    decision: Decision = "pass" if count <= most * n + 1e-9 else "fail"
    return Check(name, decision, f"{count:.0f} of {n}, at most {most:.1%} are allowed")


def _above_floor(rows: Sequence[Prediction], scale: Scale, floor: float) -> Check:
    labels, verdicts = [row.label for row in rows], [row.verdict for row in rows]
    sample = Resampler([row.group for row in rows])
    metrics = summarise(labels, verdicts, sample, scale).metrics
    head = headline(scale)
    return _decided(f"{head} above {floor:g}", metrics[f"{head}_strict"], floor)


def _not_worse(new: Judged, baseline: Judged, margin: float) -> Check:
    pairs = _same_rows(new, baseline)
    fit = [(row, old) for row, old in pairs if "too_long" not in (row.status, old.status)]
    labels, sample = [row.label for row, _ in fit], Resampler([row.group for row, _ in fit])
    ours, theirs = [row.verdict for row, _ in fit], [old.verdict for _, old in fit]
    names = new.name, baseline.name
    difference = compare(labels, ours, theirs, sample, new.scale, names)
    return _decided(f"{difference.metric} not worse by {margin:g}", difference, -margin)


def _same_rows(new: Judged, baseline: Judged) -> list[tuple[Prediction, Prediction]]:
    """Return each row with its counterpart; raise UserError if the judges' rows differ."""
    names = f"{new.name} and {baseline.name}"
    if new.scale != baseline.scale:
        scales = f"{new.scale.name} and on {baseline.scale.name}"
        raise UserError(f"{names} judge on {scales}: compare judges of one scale")
    before, after = ({row.id: row for row in judged.rows} for judged in (baseline, new))
    problem, odd = "judged different rows", sorted(before.keys() ^ after.keys())
    if not odd:
        problem = "have more than one label for some rows"
        odd = [row.id for row in new.rows if row.label != before[row.id].label]
    if odd:
        where = f"{len(odd)}, such as {odd[0]}"
        raise UserError(f"{names} {problem} ({where}): evaluate both on the same test set")
    return [(row, before[row.id]) for row in new.rows]


def _decided(name: str, metric: Metric, floor: float) -> Check:
    if metric.value is None or metric.low is None or metric.high is None:
        why = metric.reason or "it has no interval"
        return Check(name, "undecided", f"undefined on {metric.n} rows: {why}")
    decision: Decision = "fail" if metric.high < floor else "undecided"
    decision = "pass" if metric.low >= floor else decision
    return Check(name, decision, f"{estimate(metric)}, n = {metric.n}")


def to_markdown(checks: Sequence[Check], title: str) -> str:
    """Write the checks as a Markdown table for a CI page."""
    lines = [f"| {check.name} | {check.decision} | {check.why} |" for check in checks]
    head = ["| check | decision | |", "|---|---|---|"]
    return "\n".join([f"## {title}: {decide(checks)}", "", *head, *lines]) + "\n"


def to_junit(checks: Sequence[Check], title: str) -> str:
    """Write the checks as JUnit XML: a failed one is a failure, an undecided one an error."""
    kinds = {"fail": "failure", "undecided": "error"}
    counts = Counter(kinds.get(check.decision, "") for check in checks)
    sizes = {"tests": len(checks), "failures": counts["failure"], "errors": counts["error"]}
    suite = ElementTree.Element(
        "testsuite", {"name": title, **{kind: str(size) for kind, size in sizes.items()}}
    )
    for check in checks:
        case = ElementTree.SubElement(suite, "testcase", classname="judge.gate", name=check.name)
        if kind := kinds.get(check.decision):
            ElementTree.SubElement(case, kind, message=check.why)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
