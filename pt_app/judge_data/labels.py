"""Reads the cells of a row as labels, and combines the labels of several annotators into one.

Import, init, agree, relabel and distil share this reader. Names are read in any case and through
--labels, numbers as their column writes them, and true and 1 as PASS where the task is pass or
fail. What --labels declares to be no label is counted.

Answers are read from columns, from lists, and from what annotation tools export. Label Studio: a
task with `annotations`, each with `completed_by`, `was_cancelled` and a `result` with one item per
control. Argilla 1: `responses` with `user_id`, `status` and `values`. Argilla 2: `responses` by
question, or flattened into `quality.responses`, `quality.responses.users` and
`quality.responses.status`.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from statistics import fmean, median_low, multimode

import yaml

from pt_app.core.errors import UserError
from pt_app.core.records import Place
from pt_app.core.verdicts import Scale, Verdict
from pt_app.judge_data.numbers import AmbiguousNumberError, Numbers, readings
from pt_app.judge_data.reading.tables import Table
from pt_app.judge_data.rows import Row, find, is_empty, parsed, refuse_bytes

WORDS = yaml.safe_load(Path(__file__).with_name("labels.yaml").read_text(encoding="utf-8"))
AS_PASS: dict[str, str] = WORDS["as_pass"]
TWO_VALUES = dict.fromkeys(AS_PASS, "PASS") | dict.fromkeys(AS_PASS.values(), "FAIL")
_RESULT = re.compile(r"result\.([^.]+)\.(.+)")


@dataclass
class Reasons:
    """Counts by reason, with the first problem of each reason that has one."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, problem: str = "", count: int = 1) -> None:
        """Count a reason."""
        self.counts[reason] += count
        if problem:
            self.first.setdefault(reason, problem)

    def ranked(self) -> Iterator[tuple[int, str]]:
        """Yield each count and its reason with the first problem, the most frequent one first."""
        for reason, count in self.counts.most_common():
            first = f" (first: {self.first[reason]})" if reason in self.first else ""
            yield count, reason + first

    def as_answers(self) -> list[str]:
        """Describe counts of annotators' answers."""
        return [f"{n:,} answer{'s' if n > 1 else ''} left out: {text}" for n, text in self.ranked()]


@dataclass
class LabelReader:
    """Reads the label cells of one file for a scale.

    Attributes:
        meanings: Those of --labels, by `key_of`; the meaning "" declares that a value is no label.
        numbers: Reads numbers as the label columns write them.
        drop_bad: Whether an unreadable answer of one of several annotators is left out alone,
            instead of its row.
        how: The rule of labels.yaml by which several labels become one; "": the task's default.
        left_out: The answers that do not count as labels.
        unstated: Whether responses came without the status that would tell drafts apart.
    """

    scale: Scale
    meanings: Mapping[str, str] = field(default_factory=dict)
    numbers: Numbers = field(default_factory=Numbers)
    drop_bad: bool = False
    how: str = ""
    left_out: Reasons = field(default_factory=Reasons)
    unstated: bool = False
    _as_pass: set[str] = field(default_factory=set, init=False)

    def on(self, table: Table, columns: Sequence[str]) -> "LabelReader":
        """Read numbers as these columns (or paths) of a table, which are alike, write them."""

        def cells() -> Iterator[object]:
            return (c for _, row in table.rows() for name in columns for c in flat(find(row, name)))

        def fits(number: Decimal) -> bool:
            return self.scale.normalise(as_verdict(number)) is not None

        self.numbers = Numbers(cells, table.delimiter, table.decimal, fits)
        return self

    def read(self, cell: object, place: Place, column: str = "label") -> Verdict | None:
        """Read one label exactly; a number may be off the scale, as a mean of several labels is.

        Returns:
            The label; None where the cell is empty or --labels declares it to be no label.

        Raises:
            RowError: The cell holds no label, or a value that --labels does not name.
        """
        if is_empty(cell):
            return None
        refuse_bytes(cell, place, column)
        text = str(cell).strip()
        # Where --labels only declares what is no label, other values keep their own meaning.
        own = None if any(self.meanings.values()) else cell
        if (meant := self.meanings.get(key_of(cell), own)) is None:
            remedy = f"add it to --labels ({text}=VERDICT, or {text}= if it is no label)"
            raise place.error(column, f"{text!r} has no meaning", remedy)
        if meant == "":
            self.left_out.add(f"{text!r} means no answer")
            return None
        read = self._number if self.scale.task == "score" else self._name
        return read(meant, place, column)

    def verdict(self, cell: object, place: Place, column: str = "label") -> Verdict | None:
        """Read one label as a verdict of the scale; see `read`.

        Raises:
            RowError: As `read` does, and for a number off the scale.
        """
        label = self.read(cell, place, column)
        verdict = self.scale.normalise(label)
        if verdict is None and label is not None:
            problem = f"{str(cell).strip()!r} is off the scale {self.scale.name}"
            raise place.error(column, problem, f"{self.scale.says()}; empty: no label")
        return verdict

    def decisions(self) -> list[str]:
        """Describe what was decided about cells that can be read in two ways."""
        used = [(yes, no) for yes, no in AS_PASS.items() if {yes, no} & self._as_pass]
        notes = [self.numbers.note, *(f"{yes} is read as PASS, {no} as FAIL" for yes, no in used)]
        if self.unstated:
            unstated = "responses carry no status, so drafts and discarded ones count too"
            notes.append(f"{unstated}: export from Argilla with flatten=True")
        return [note for note in notes if note]

    def notes(self) -> list[str]:
        """Describe what was decided about the cells, and how many answers were left out."""
        return [*self.decisions(), *self.left_out.as_answers()]

    def _name(self, cell: object, place: Place, column: str) -> Verdict:
        text, names = str(cell).strip(), {str(v).casefold(): v for v in self.scale.values}
        if self.scale.task == "pass_fail" and (key := key_of(cell)) in TWO_VALUES:
            self._as_pass.add(key)
            return TWO_VALUES[key]
        if text.casefold() not in names:
            allowed = ", ".join(map(str, self.scale.values))
            remedy = f"say what it means, such as --labels {text}={self.scale.values[0]}"
            raise place.error(column, f"{text!r} is none of {allowed}", remedy)
        return names[text.casefold()]

    def _number(self, cell: object, place: Place, column: str) -> Verdict:
        try:
            number = self.numbers.read(cell)
        except AmbiguousNumberError as error:
            raise place.error(column, str(error), "name its decimal sign, --decimal") from error
        if number is None:
            text = str(cell).strip()
            remedy = f"say what it means with --labels ({text}= if it is no label)"
            raise place.error(column, f"{text!r} is not a number", remedy)
        return as_verdict(number)


def key_of(label: object) -> str:
    """Return the form by which labels are compared: 1, 1.0 and "1.00" are alike, Good and good."""
    text = str(label).strip()
    numbers = {number for number in readings(text) if number is not None}
    if isinstance(label, bool) or len(numbers) != 1:
        return text.casefold()
    (number,) = numbers
    return f"{number.normalize():f}" if abs(number.adjusted()) < 30 else text.casefold()


def flat(cell: object) -> Iterator[object]:
    """Yield the values in a cell: itself, or those of a list or an object, at any depth."""
    cell = parsed(cell)
    if not isinstance(cell, list | dict):
        yield cell
        return
    for item in cell.values() if isinstance(cell, dict) else cell:
        yield from flat(item)


def as_verdict(number: Decimal) -> Verdict:
    return int(number) if number == number.to_integral_value() else float(number)


# --- several labels ---


def rule(scale: Scale, how: str = "") -> str:
    """Describe the rule in words, "mean: ..."; an empty `how` is the task's default rule.

    Raises:
        UserError: The task does not have that rule.
    """
    how = how or ("mean" if scale.task == "score" else "majority")
    if scale.task not in WORDS["rules"].get(how, {}):
        allowed = ", ".join(name for name, tasks in WORDS["rules"].items() if scale.task in tasks)
        raise UserError(f"--reduce {how} is not a rule of the task {scale.task}: use {allowed}")
    return f"{how}: {WORDS['rules'][how][scale.task]}"


def reduce(verdicts: Sequence[Verdict], scale: Scale, how: str = "") -> Verdict:
    """Combine the labels of at least one annotator; see labels.yaml.

    Raises:
        UserError: The task does not have that rule.
    """
    how = rule(scale, how).partition(":")[0]
    if how == "majority":
        verdicts = multimode(verdicts)
        if len(verdicts) == 1:
            return verdicts[0]
        if scale.task != "score":
            return "tie" if scale.task == "pairwise" else "FAIL"
    numbers = [float(verdict) for verdict in verdicts]
    return nearest(fmean(numbers) if how == "mean" else median_low(numbers), scale)


def nearest(number: float, scale: Scale) -> Verdict:
    """Return the verdict of the scale nearest to a number, the upper of two equally near ones."""
    low, step = float(scale.values[0]), float(scale.values[1]) - float(scale.values[0])
    # 1e-9: a mean such as 2.4999999999999996 of 2 and 3 is a half.
    place = math.floor((number - low) / step + 0.5 + 1e-9)
    return scale.values[min(max(place, 0), len(scale.values) - 1)]


# --- who gave each answer ---


@dataclass(frozen=True)
class Answer:
    """The answer of one annotator.

    `rater` is "" where nobody is named. `out` is the reason why the answer does not count, or "".
    `unstated` is true for an Argilla response whose export omits its status.
    """

    cell: object
    rater: str = ""
    out: str = ""
    unstated: bool = False


def answers_of(value: Row, names: Sequence[str], place: Place) -> list[Answer]:
    """Return the answers in the label columns: one per column, or one per item of a list.

    Raises:
        RowError: Several controls of an annotation fit the path of a column.
    """
    return [answer for name in names for answer in _answers(value, name, place)]


def _answers(value: Row, name: str, place: Place) -> Iterator[Answer]:
    head, star, rest = name.partition(".*")
    if name in value or (rest and not rest.startswith(".")):
        head, star, rest = name, "", ""
    cells = parsed(find(value, head))
    if not star and not isinstance(cells, list):
        yield Answer(_unwrapped(cells, place))
        return
    raters, states = (parsed(value.get(f"{name}.{part}")) for part in ("users", "status"))
    for i, item in enumerate(cells if isinstance(cells, list) else []):
        rater, status = find(raters, str(i)), find(states, str(i))
        yield Answer(
            _unwrapped(_picked(item, rest.removeprefix("."), name, place), place),
            _rater_of(item) if is_empty(rater) else str(rater),
            status_of(item if is_empty(status) else {"status": status}),
            isinstance(item, Mapping) and "user_id" in item and is_empty(item.get("status")),
        )


def _rater_of(item: object) -> str:
    """Return the id of the annotator of an answer; "" where it names nobody."""
    if not isinstance(item, Mapping):
        return ""
    rater = next((item[key] for key in WORDS["raters"] if not is_empty(item.get(key))), "")
    if isinstance(rater, Mapping):
        rater = next((rater[key] for key in ("id", "email", "username") if rater.get(key)), "")
    return str(rater)


def status_of(item: object) -> str:
    """Return why an answer does not count, such as "cancelled" or "draft"; "" where it counts."""
    if not isinstance(item, Mapping):
        return ""
    if item.get("was_cancelled") is True:
        return "cancelled"
    if item.get("skipped") is True:
        return "skipped"
    status = str(item.get("status")).rpartition(".")[2].casefold()  # "Status.draft" of an enum
    return status if status in WORDS["no_answer"] else ""


def _picked(item: object, path: str, name: str, place: Place) -> object:
    """Return the value of an answer; that of a Label Studio result by its control.

    The order of the results in an annotation is not fixed, so a position means nothing.
    """
    match = _RESULT.fullmatch(path)
    results = parsed(find(item, "result")) if match else None
    if match is None or not isinstance(results, list):
        return find(item, path) if path else item
    control, inner = match.groups()
    any_control = control.isdigit() or control == "*"
    values = [
        (str(result.get("from_name", "")), value)
        for result in results
        if (value := find(result, inner)) is not None
        and (any_control or result.get("from_name") == control)
    ]
    if len(values) > 1:
        controls = sorted({control for control, _ in values})
        problem = f"{len(values)} results fit {name}: {', '.join(controls)}"
        example = f"{name.removesuffix(path)}result.{controls[0]}.{inner}"
        remedy = f"name one of them, such as label={example}, and keep one result of it"
        raise place.error("label", problem, remedy)
    return values[0][1] if values else None


def _unwrapped(cell: object, place: Place) -> object:
    """Return the single value that an annotation tool wrapped: ["good"], [{"rating": 4}]."""
    cell = parsed(cell)
    if isinstance(cell, list):
        if len(cell) > 1:
            raise place.error("label", f"{len(cell)} values in one answer", "a label is one value")
        return _unwrapped(cell[0], place) if cell else None
    keys = [key for key in WORDS["wrapped"] if key in cell] if isinstance(cell, Mapping) else []
    return _unwrapped(cell[keys[0]], place) if isinstance(cell, Mapping) and keys else cell
