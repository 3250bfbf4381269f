"""The cells of a file as labels of questions: a value, votes, or the answers of annotators."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pt_app.core.questions import Question
from pt_app.core.records import Place, RowError
from pt_app.core.state_rows import label_of, unknown_question, verdict_of
from pt_app.core.verdicts import Verdict
from pt_app.judge_data.importing import Tally
from pt_app.judge_data.labels import LabelReader, as_verdict, key_of
from pt_app.judge_data.mapping import Vote, named, one_each, pairs
from pt_app.judge_data.numbers import AmbiguousNumberError, Numbers
from pt_app.judge_data.options import ImportOptions
from pt_app.judge_data.reading.tables import Table
from pt_app.judge_data.rows import Row, find, is_empty, parsed

Labels = dict[str, Any]
"""Of each question a verdict, {"annotators": {rater: verdict}} or what else the row holds."""
OWN = "labels"  # the field of a row that holds labels by question, where it is an object


def unreadable(name: str) -> str:
    """Return the reason under which labels of a question that cannot be read are counted."""
    return f"{OWN}.{name} cannot be read"


@dataclass(frozen=True)
class QuestionReader:
    """Reads the labels of the rows of one file.

    With `tally.drop_bad`, a label that cannot be read is left out alone, and counted by question.

    Attributes:
        asked: the questions, by name.
        columns: of each question, by its name.
        mapped: all columns that --map names, or that are named like a field or question.
        meanings: those of --labels, by `key_of`; "" declares that a value is no label. What a
            question itself declares is read as it is.
        numbers: of each score, how its columns write numbers.
        tally: counts the answers that are no labels.
        has_own: whether the field `labels` holds labels: it may be any other column.
    """

    asked: Mapping[str, Question]
    columns: Mapping[str, Sequence[str]]
    mapped: frozenset[str]
    meanings: Mapping[str, str]
    numbers: Mapping[str, Numbers]
    tally: Tally
    has_own: bool

    @staticmethod
    def of(
        table: Table,
        columns: Mapping[str, Sequence[str]],
        asked: Sequence[Question],
        options: ImportOptions,
        tally: Tally,
    ) -> "QuestionReader":
        """Read numbers as the columns of a table write them."""
        numbers = {
            question.name: LabelReader(question.scale).on(table, columns[question.name]).numbers
            for question in asked
            if question.type == "score" and question.name in columns
        }
        mapped = frozenset(name for own in columns.values() for name in own)
        has_own = OWN in table.columns and OWN not in mapped
        has_own = has_own and any(isinstance(parsed(r.get(OWN)), Mapping) for _, r in table.rows())
        by_name = {question.name: question for question in asked}
        meanings = pairs(options.labels, "--labels")
        return QuestionReader(by_name, columns, mapped, meanings, numbers, tally, has_own)

    def labels(self, value: Row, place: Place) -> Labels:
        """Return the labels of a row, from its columns and from its field `labels`.

        Raises:
            RowError: for labels that are no object, and, unless `tally.drop_bad`, for a label that
                cannot be read, two of one question, and one of no question.
        """
        own, labels = self._own(value, place), Labels()
        for name in {**self.asked, **own}:
            try:
                if name not in self.asked:
                    raise unknown_question(name, self.asked, place)
                label = self._label(self.asked[name], own.get(name), value, place)
            except RowError as error:
                self._leave_out(name, error)
                continue
            labels |= {} if label is None else {name: label}
        return labels

    def of_raters(self, group: Sequence[tuple[Place, Row]]) -> Labels:
        """Join the labels of the rows of one id, and take the raters from the rows.

        Raises:
            RowError: for two answers of one annotator to a question, unless `tally.drop_bad`.
        """
        raters = [row.pop("rater") for _, row in group]
        raters = named(["" if is_empty(rater) else str(rater) for rater in raters])
        votes: dict[str, list[Vote]] = {}
        for rater, (place, row) in zip(raters, group, strict=True):
            for name, label in row["labels"].items():
                votes.setdefault(name, []).append(Vote(rater, label, place))
        return {name: kept for name, own in votes.items() if (kept := self._counted(name, own))}

    def _own(self, value: Row, place: Place) -> Labels:
        """Return the field `labels` without what is empty or mapped to a question."""
        own: Any = parsed(value.get(OWN)) if self.has_own else None
        own = {} if is_empty(own) else own
        if not isinstance(own, Mapping):
            remedy = "write {question: label}, or name the column otherwise"
            raise place.error(OWN, "they are no object", remedy)
        return {
            name: label
            for name, label in own.items()
            if not is_empty(label) and (name in self.asked or f"{OWN}.{name}" not in self.mapped)
        }

    def _leave_out(self, name: str, error: RowError) -> None:
        """Count a label of a question that cannot be read; raise its error unless `drop_bad`."""
        if not self.tally.drop_bad:
            raise error
        self.tally.answers.add(unreadable(name), str(error))

    def _label(self, question: Question, own: object, value: Row, place: Place) -> object:
        """Return the label of a question with its verdicts read; None where there is none."""
        given = [label for label in (self._of_columns(question, value), own) if label is not None]
        if len(given) == 2 and key_of(given[0]) != key_of(given[1]):
            problem = f"its column says {given[0]}, and the field labels {given[1]}"
            raise place.error(f"{OWN}.{question.name}", problem, "keep one of them")
        return self._read(question, given[0], place) if given else None

    def _of_columns(self, question: Question, value: Row) -> object:
        """Return the label of a question's columns: of several, that of annotators."""
        columns = self.columns.get(question.name, ())
        given = {column: parsed(find(value, column)) for column in columns}
        given = {column: cell for column, cell in given.items() if not is_empty(cell)}
        if len(columns) == 1 or not given:
            return next(iter(given.values()), None)
        return {"annotators": given}

    def _read(self, question: Question, label: object, place: Place) -> object:
        """Return a label with its verdicts read; None where it is none."""
        if not isinstance(label, Mapping):
            return self._verdict(question, label, place, f"{OWN}.{question.name}")
        raters = label.get("annotators")
        if isinstance(raters, Mapping):
            return self._of_people(question, raters, place)
        votes = label.get("votes")
        given = votes.items() if isinstance(votes, Mapping) else ()
        decimals = {name: float(n) for name, n in given if isinstance(n, Decimal)}  # of Parquet
        label = {**label, "votes": {**dict(given), **decimals}} if decimals else label
        label_of(label, question, place)  # raises RowError for what `examples_of` cannot read
        return label

    def _of_people(
        self, question: Question, raters: Mapping[str, object], place: Place
    ) -> Labels | None:
        """Read the answers of a row's annotators, of whom null has said nothing."""
        votes: list[Vote] = []
        for rater, cell in raters.items():
            at = f"{OWN}.{question.name}.annotators.{rater}"
            try:
                verdict = self._verdict(question, cell, place, at)
            except RowError as error:
                self._leave_out(question.name, error)
                continue
            if verdict is not None:
                votes.append(Vote(rater, verdict, place))
        return self._counted(question.name, votes)

    def _counted(self, name: str, votes: Sequence[Vote]) -> Labels | None:
        kept = one_each(votes, self.tally.answers, self.tally.drop_bad, f"{OWN}.{name}")
        return {"annotators": {vote.rater: vote.verdict for vote in kept}} if kept else None

    def _verdict(self, question: Question, cell: object, place: Place, at: str) -> Verdict | None:
        """Return what a cell stands for; None where it is empty or --labels says that it is none.

        Raises:
            RowError: for a cell that is no label of the question.
        """
        if is_empty(cell):
            return None
        key = key_of(cell)
        try:
            return self._declared(question, cell, place, at)
        except RowError:
            if key not in self.meanings:
                raise
        self.tally.meant.add(key)
        if meant := self.meanings[key]:
            return self._declared(question, meant, place, at)
        self.tally.answers.add(f"{str(cell).strip()!r} means no answer to {question.name}")
        return None

    def _declared(self, question: Question, cell: object, place: Place, at: str) -> Verdict:
        """Return the label that the question itself declares, numbers as its columns write them."""
        numbers = self.numbers.get(question.name)
        if numbers is not None and isinstance(cell, str | Decimal):
            try:
                number = numbers.read(cell)
            except AmbiguousNumberError as error:
                raise place.error(at, str(error), "name its decimal sign, --decimal") from error
            cell = cell if number is None else as_verdict(number)
        return verdict_of(cell, question, place, at)

    def decisions(self) -> Iterator[str]:
        """Describe what was decided about numbers that can be read in two ways."""
        yield from filter(None, (numbers.note for numbers in self.numbers.values()))
