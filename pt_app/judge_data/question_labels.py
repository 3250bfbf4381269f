"""The cells of a file as labels of questions: a value, votes, or the answers of annotators."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pt_app.core.questions import Question
from pt_app.core.records import Place, RowError
from pt_app.core.state_rows import verdict_of
from pt_app.core.verdicts import Verdict
from pt_app.judge_data.importing import Tally
from pt_app.judge_data.labels import LabelReader, as_verdict, key_of
from pt_app.judge_data.mapping import Vote, counted, named, pairs
from pt_app.judge_data.numbers import AmbiguousNumberError, Numbers
from pt_app.judge_data.options import ImportOptions
from pt_app.judge_data.reading.tables import Table
from pt_app.judge_data.rows import Row, find, is_empty, parsed

Labels = dict[str, Any]
"""Of each question a verdict, {"annotators": {rater: verdict}} or what else the row holds."""


@dataclass(frozen=True)
class QuestionReader:
    """Reads the labels of the rows of one file.

    Attributes:
        asked: the questions.
        columns: of each question, by its name.
        meanings: those of --labels, by `key_of`; "" declares that a value is no label.
        numbers: of each score, how its columns write numbers.
        tally: counts the answers that are no labels.
        by_rater: whether a row has the answers of one rater. With `tally.drop_bad`, one that
            cannot be read is then left out alone.
    """

    asked: Sequence[Question]
    columns: Mapping[str, Sequence[str]]
    meanings: Mapping[str, str]
    numbers: Mapping[str, Numbers]
    tally: Tally
    by_rater: bool = False

    @staticmethod
    def of(
        table: Table,
        columns: Mapping[str, Sequence[str]],
        asked: Sequence[Question],
        options: ImportOptions,
        tally: Tally,
        by_rater: bool,
    ) -> "QuestionReader":
        """Read numbers as the columns of a table write them."""
        numbers = {
            question.name: LabelReader(question.scale).on(table, columns[question.name]).numbers
            for question in asked
            if question.type == "score" and question.name in columns
        }
        meanings = pairs(options.labels, "--labels")
        return QuestionReader(asked, columns, meanings, numbers, tally, by_rater)

    def labels(self, value: Row, place: Place) -> Labels:
        """Return the labels of a row, from its columns and from its field `labels`.

        Raises:
            RowError: for a label that cannot be read, and for two of one question.
        """
        own: Any = parsed(value.get("labels"))
        own = {} if is_empty(own) else own
        if not isinstance(own, Mapping):
            remedy = "write {question: label}, or name the column otherwise"
            raise place.error("labels", "they are no object", remedy)
        labels = {name: label for name, label in own.items() if not is_empty(label)}
        for question in self.asked:
            given = [self._of_columns(question, value), labels.pop(question.name, None)]
            given = [label for label in given if label is not None]
            if len(given) == 2 and key_of(given[0]) != key_of(given[1]):
                problem = f"its column says {given[0]}, and the field labels {given[1]}"
                raise place.error(f"labels.{question.name}", problem, "keep one of them")
            read = self._read(question, given[0], place) if given else None
            labels |= {} if read is None else {question.name: read}
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
        return {name: kept for name, own in votes.items() if (kept := self._counted(name, own, []))}

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
        at = f"labels.{question.name}"
        raters = label.get("annotators") if isinstance(label, Mapping) else None
        if isinstance(raters, Mapping):
            return self._of_people(question, raters, place)
        if isinstance(label, Mapping):  # votes, which `examples_of` reads
            votes = label.get("votes")
            given = votes.items() if isinstance(votes, Mapping) else ()
            decimals = {name: float(n) for name, n in given if isinstance(n, Decimal)}  # of Parquet
            return {**label, "votes": {**dict(given), **decimals}} if decimals else label
        try:
            return self._verdict(question, label, place, at)
        except RowError as error:
            if not (self.by_rater and self.tally.drop_bad):
                raise
            self.tally.answers.add("it cannot be read", str(error))
            return None

    def _of_people(
        self, question: Question, raters: Mapping[str, object], place: Place
    ) -> Labels | None:
        """Read the answers of a row's annotators, of whom null has said nothing."""
        votes: list[Vote] = []
        bad: list[RowError] = []
        for rater, cell in raters.items():
            at = f"labels.{question.name}.annotators.{rater}"
            try:
                verdict = self._verdict(question, cell, place, at)
            except RowError as error:
                bad.append(error)
                continue
            if verdict is not None:
                votes.append(Vote(rater, verdict, place))
        return self._counted(question.name, votes, bad)

    def _counted(self, name: str, votes: Sequence[Vote], bad: Sequence[RowError]) -> Labels | None:
        tally = self.tally
        kept = counted(votes, bad, tally.answers, tally.drop_bad, f"labels.{name}")
        return {"annotators": {vote.rater: vote.verdict for vote in kept}} if kept else None

    def _verdict(self, question: Question, cell: object, place: Place, at: str) -> Verdict | None:
        """Return what a cell stands for; None where it is empty or --labels says that it is none.

        Raises:
            RowError: for a cell that is no label of the question.
        """
        if is_empty(cell):
            return None
        meant: Any = self.meanings.get(key_of(cell), cell)
        if meant == "":
            self.tally.answers.add(f"{str(cell).strip()!r} means no answer")
            return None
        numbers = self.numbers.get(question.name)
        if numbers is not None and isinstance(meant, str | Decimal):
            try:
                number = numbers.read(meant)
            except AmbiguousNumberError as error:
                raise place.error(at, str(error), "name its decimal sign, --decimal") from error
            meant = meant if number is None else as_verdict(number)
        return verdict_of(meant, question, place, at)

    def decisions(self) -> Iterator[str]:
        """Describe what was decided about numbers that can be read in two ways."""
        yield from filter(None, (numbers.note for numbers in self.numbers.values()))
