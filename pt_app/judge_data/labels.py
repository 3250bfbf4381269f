"""One cell as a label: the one reader of import, init, agree, relabel and distil.

Names are read in any case and by --labels, numbers as their column writes them, true and 1 as PASS
where there is pass and fail; what is no label, by --labels, is counted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from pt_app.core.records import Place
from pt_app.core.verdicts import Scale, Verdict
from pt_app.judge_data.cells import find, is_empty, parsed, refuse_bytes
from pt_app.judge_data.numbers import AmbiguousNumberError, Numbers, readings
from pt_app.judge_data.reading.tables import Table

AS_PASS = {"true": "false", "1": "0", "yes": "no"}
"""What stands for PASS, and beside it for FAIL, where --labels says nothing else."""
TWO_VALUES = dict.fromkeys(AS_PASS, "PASS") | dict.fromkeys(AS_PASS.values(), "FAIL")


@dataclass
class LabelReader:
    """Reads the label cells of one file for a scale.

    `meanings` are those of --labels, by `key_of`; a meaning "" is that of no label. With
    `drop_bad` one annotator's answer that cannot be read is left out, not its row. `left_out`
    counts answers that are no labels, by the reason; `first` has the first problem of a reason.
    `unstated` says that responses came without the status that tells a draft.
    """

    scale: Scale
    meanings: Mapping[str, str] = field(default_factory=dict)
    numbers: Numbers = field(default_factory=Numbers)
    drop_bad: bool = False
    left_out: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    unstated: bool = False
    _as_pass: set[str] = field(default_factory=set, init=False)

    @staticmethod
    def of(
        table: Table,
        columns: Sequence[str],
        scale: Scale,
        meanings: Mapping[str, str] | None = None,
        drop_bad: bool = False,
    ) -> "LabelReader":
        """Make the reader of these columns (or paths) of a file, which are written alike."""

        def cells() -> Iterator[Any]:
            for _, value in table.rows():
                for name in columns:
                    yield from flat(find(value, name))

        numbers = Numbers(
            cells,
            delimiter=table.delimiter,
            decimal=table.decimal,
            fits=lambda number: scale.normalise(_verdict_of(number)) is not None,
        )
        return LabelReader(scale, meanings or {}, numbers, drop_bad)

    def read(self, cell: Any, place: Place, column: str = "label") -> Verdict | None:
        """Read one label to the letter: None where the cell is empty, or no label by --labels.

        A number may be off the scale, as a mean of several people's is. Raises RowError for what
        is no label, and for a value that --labels does not name.
        """
        if is_empty(cell):
            return None
        refuse_bytes(cell, place, column)
        text = str(cell).strip()
        # --labels that only say what is no label leave the others as they are.
        if (key := key_of(cell)) in self.meanings or any(self.meanings.values()):
            if key not in self.meanings:
                remedy = f"add it to --labels ({text}=VERDICT, or {text}= if it is no label)"
                raise place.error(column, f"{text!r} has no meaning", remedy)
            if not (text := self.meanings[key]):
                self.leave_out(f"{str(cell).strip()!r}, no label by --labels")
                return None
            cell = text
        read = self._number if self.scale.task == "score" else self._name
        return read(cell, place, column)

    def verdict(self, cell: Any, place: Place, column: str = "label") -> Verdict | None:
        """Read one label as a verdict of the scale; see `read`.

        Raises RowError as `read` does, and for a number off the scale.
        """
        found = self.read(cell, place, column)
        if found is None:
            return None
        verdict = self.scale.normalise(found)
        if verdict is None:
            problem = f"{str(cell).strip()!r} is off the scale {self.scale.name}"
            raise place.error(column, problem, f"{self.scale.says()}; empty: no label")
        return verdict

    def leave_out(self, reason: str, problem: str = "", count: int = 1) -> None:
        """Count answers that are no labels."""
        self.left_out[reason] += count
        if problem:
            self.first.setdefault(reason, problem)

    def decisions(self) -> list[str]:
        """Say what was decided about cells that may be read in two ways."""
        said = [self.numbers.note] if self.numbers.note else []
        for yes, no in AS_PASS.items():
            if {yes, no} & self._as_pass:
                said.append(f"{yes} is read as PASS, {no} as FAIL")
        if self.unstated:
            said.append(
                "responses carry no status, so drafts and discarded ones count too: export from "
                "Argilla with flatten=True"
            )
        return said

    def notes(self) -> list[str]:
        """Say what was decided about the cells, and how many answers were left out."""
        return [*self.decisions(), *left_out_lines(self.left_out, self.first)]

    def _name(self, cell: Any, place: Place, column: str) -> Verdict:
        text = str(cell).strip()
        name = text.casefold()
        if self.scale.task == "pass_fail" and (key := key_of(cell)) in TWO_VALUES:
            self._as_pass.add(key)
            name = TWO_VALUES[key].casefold()
        for verdict in self.scale.values:
            if str(verdict).casefold() == name:
                return verdict
        known = ", ".join(map(str, self.scale.values))
        remedy = f"say what it means, such as --labels {text}={self.scale.values[0]}"
        raise place.error(column, f"{text!r} is none of {known}", remedy)

    def _number(self, cell: Any, place: Place, column: str) -> Verdict:
        try:
            number = self.numbers.read(cell)
        except AmbiguousNumberError as error:
            remedy = "name the decimal sign, --decimal point or --decimal comma"
            raise place.error(column, str(error), remedy) from error
        if number is None:
            text = str(cell).strip()
            remedy = f"say what it means with --labels ({text}= if it is no label)"
            raise place.error(column, f"{text!r} is no number", remedy)
        return _verdict_of(number)


def key_of(label: Any) -> str:
    """Give the form by which labels are compared: 1, 1.0 and "1.00" are alike, Good and good."""
    text = str(label).strip()
    point, comma = readings(text)
    number = comma if point is None else point
    if isinstance(label, bool) or number is None or (comma is not None and comma != number):
        return text.casefold()
    return f"{number.normalize():f}" if abs(number.adjusted()) < 30 else text.casefold()


def left_out_lines(counts: Counter[str], first: Mapping[str, str]) -> list[str]:
    """Say which answers were left out, the most frequent reason first."""
    return [
        f"{count:,} answer{'s' if count > 1 else ''} left out: {reason}"
        + (f" (first: {first[reason]})" if reason in first else "")
        for reason, count in counts.most_common()
    ]


def flat(cell: Any) -> Iterator[Any]:
    """Give the values in a cell: itself, or those of a list or an object, however deep."""
    cell = parsed(cell)
    inner: Iterable[Any] | None = None
    if isinstance(cell, list):
        inner = cell
    elif isinstance(cell, dict):
        inner = cell.values()
    if inner is None:
        yield cell
        return
    for one in inner:
        yield from flat(one)


def _verdict_of(number: Decimal) -> Verdict:
    return int(number) if number == number.to_integral_value() else float(number)
