"""`judge data import --questions`: from a file with a column a question to a dataset folder.

A file of questions, in YAML or JSON, says what is asked about and what is asked:

    state: [ticket, reply]
    questions:
      offer:
        type: choice
        instructions: What does the reply offer?
        options: [replacement, refund, nothing]

Several columns of a question (`--map offer=ana+rui`) are annotators; so are several rows of an id
with a `rater` each.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from pt_app.core.dataset import DatasetCard, card_asks
from pt_app.core.errors import UserError
from pt_app.core.files import read_text, refuse_overwrite, shown
from pt_app.core.prompt_templates import Template
from pt_app.core.records import JudgeExample, Place, RowError, checked, one_line
from pt_app.core.state_rows import RESERVED, examples_of
from pt_app.core.yaml_files import EachOnce
from pt_app.judge_data.decision_rows import LABELS, as_dataset
from pt_app.judge_data.folder import FILES, TEMPLATE, build_folder
from pt_app.judge_data.importing import Tally
from pt_app.judge_data.mapping import (
    META,
    by_id,
    cell_of,
    pairs,
    plain,
    split_at,
    unwanted,
    wanted_values,
)
from pt_app.judge_data.options import ImportOptions, SplitPlan
from pt_app.judge_data.question_labels import QuestionReader
from pt_app.judge_data.reading.tables import Table, open_table
from pt_app.judge_data.rows import Row, check_column, is_empty, parsed
from pt_app.judge_data.splitting import group_of

Columns = Mapping[str, Sequence[str]]
ROLES = {*RESERVED, "rater", *META}  # columns of a file that are no label
MEMBERS = ("state", "questions", "rubric", "template", "task")  # of a file of questions


def import_questions(
    files: Sequence[str], out: Path, options: ImportOptions, plan: SplitPlan, append: bool = False
) -> list[str]:
    """Read files of labels of several questions into the dataset folder `out`.

    Returns:
        Lines that describe what was read, and the folder that it became.

    Raises:
        UserError: Something that the user can fix. Nothing has been written then.
    """
    _refuse_others(options)
    own = [str(options.questions)] if options.questions else []
    refuse_overwrite([out / name for name in FILES], [*files, *own])
    if len({Path(file).name for file in files}) < len(files):
        raise UserError(f"{', '.join(files)}: two files have one name: rename one")
    tables = [open_table(file, options.reading) for file in files]
    tally = Tally(options.drop_bad)
    if options.questions:
        card = declared(read_text(options.questions), options.questions)
    else:
        card, tables = as_dataset(tables, options.format, tally.refuse)
    template = Template.load(card.get("template", "questions"), card.get("rubric"))
    template.check_asks()
    names, examples = converted(tables, card, options, tally)
    if not examples:
        raise UserError(f"no row of {', '.join(files)} {_nothing(options, tally)}")
    read = [table.name for table in tables]
    about: Row = {"origin": options.origin or f"imported: {', '.join(read)}"}
    about |= {"licence": options.licence or "not stated", "label_rule": RULE}
    about |= {"imports": [tally.about(read, options.format, options)]}
    # A template of the user's own is copied into the dataset; a folder that is added to keeps its.
    custom = "template" in card and Path(card["template"]).is_dir()
    about |= {"template": TEMPLATE} if custom else {}
    adding = append and (out / "dataset.json").exists()
    folder = build_folder(out, examples, card | about, plan, append)
    if custom and not adding:
        template.save(out / TEMPLATE)
    labelled = {row.asks for rows in folder.splits.values() for row in rows}
    bare = [_bare(name, options, adding) for name in names if name not in labelled]
    notes = [f"{table.name}: {', '.join(table.notes)}" for table in tables if table.notes]
    notes.append(f"questions: {', '.join(names)}")
    return [*notes, *tally.lines(), *_unused(options, tally), *bare, *folder.lines()]


def _nothing(options: ImportOptions, tally: Tally) -> str:
    """Say why no row of the files has become one of the dataset, and what helps."""
    if tally.answers.counts or tally.dropped.counts.keys() - {"no label"}:
        reasons = "; ".join(tally.lines()[1:])
        return f"can be used: {' '.join(reasons.split())}"
    if options.questions:
        return "has a label: name its columns with --map"
    return f"has a label: name the format that its labels have: {', '.join(LABELS)}"


def _bare(name: str, options: ImportOptions, adding: bool) -> str:
    """Warn of a question that no row of the folder has a label for."""
    remedies = [f"name its column (--map {name}=COLUMN)"] if options.questions else []
    remedies.append("append rows that have one")
    if not adding:  # rows that are added have the questions of the folder
        remedies.append(f"leave the question out{'' if options.questions else ' of the file'}")
    *others, last = remedies
    listed = f"{', '.join(others)}, or {last}" if others else last
    return f"warning: no row has a label for {name}: {listed}"


def _unused(options: ImportOptions, tally: Tally) -> list[str]:
    """Warn of what --labels says of values that no label needs."""
    return [
        f"warning: --labels {label}={meaning} has no effect: no cell says so, or the questions "
        "with such cells declare it themselves"
        for label, meaning in pairs(options.labels, "--labels").items()
        if label not in tally.meant
    ]


def _refuse_others(options: ImportOptions) -> None:
    """Raise UserError for flags that the questions, which say what is read, leave no place for."""
    asked = "--questions" if options.questions else f"--format {options.format}"
    others = ("format",) if options.questions else ("map", "labels")
    for name in (*others, "task", "scale", "reduce", "mqm_weights", "template", "rubric"):
        if getattr(options, name) != getattr(ImportOptions(), name):
            remedy = "leave it out"
            if options.questions:
                remedy = f"write it into {options.questions}, or {remedy}"
            raise UserError(f"--{name} does not go with {asked}: {remedy}")


RULE = "mean of scores, else majority; training learns the shares of all"


def converted(
    tables: Sequence[Table], card: Row, options: ImportOptions, tally: Tally
) -> tuple[list[str], list[JudgeExample]]:
    """Make examples of the rows of files.

    Args:
        tables: the files.
        card: what `declared` or `as_dataset` returned.
        options: of the import.
        tally: counts what becomes of the rows.

    Returns:
        The names of the questions, and the examples.

    Raises:
        UserError: for what is wrong with the questions, a column that is not there, and, unless
            `tally.drop_bad`, a row that cannot be used.
    """
    where = options.questions or Path(tables[0].name)
    typed, examples = checked(DatasetCard, card, where), list[JudgeExample]()
    asked = card_asks(typed, where)
    assert isinstance(asked, tuple), "the card of a file of questions has the task questions"
    names = [question.name for question in asked]
    if options.questions and (clash := ROLES.intersection(names)):
        problem = f"no question can have the name {min(clash)}, which is that of another column"
        raise UserError(f"{where}, field questions: {problem}: rename it")
    for table in tables:
        prefix = options.prefix or shown(Path(table.name).stem)
        columns = StateMap.of(table, options.map, typed.state, names)
        reader = QuestionReader.of(table, columns.columns, asked, options, tally)
        rows = _rows(table, columns, options, reader)
        for place, row, count in _merged(rows, columns, reader):
            try:
                made = list(examples_of(row, place, typed.state, asked, f"{prefix}-{place.row}"))
            except RowError as error:
                tally.refuse(error, count)
                continue
            if not made:
                tally.dropped.add("no label", count=count)
                continue
            tally.kept += count
            tally.examples += 1
            if is_empty(row.get("group")):
                tally.ungrouped += "group" in columns.columns
                group = group_of(made[0])
                made = [example.model_copy(update={"group": group}) for example in made]
            examples += made
        tally.decisions += [note for note in reader.decisions() if note not in tally.decisions]
    return names, examples


def declared(text: str, path: Path) -> Row:
    """Read the text of a file of questions as the part of dataset.json that it is."""
    try:
        value = yaml.load(text, _Texts)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark
        where = f"{path}, line {at.line + 1}, column {at.column + 1}" if at else str(path)
        remedy = "correct it (texts with marks such as ? : # stand in quotes)"
        raise UserError(f"{where}: {one_line(error.problem or str(error))}: {remedy}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = one_line(str(error))
        raise UserError(f"{path} cannot be read as YAML ({problem}): correct it") from error
    if not isinstance(value, dict) or not {"state", "questions"} <= value.keys():
        remedy = "write state, a list of fields, and questions (docs/QUESTIONS.md)"
        raise UserError(f"{path}: it has no state or no questions: {remedy}")
    if other := sorted(map(str, value.keys() - MEMBERS)):
        raise UserError(f"{path}: {other[0]} is not known: use {', '.join(MEMBERS)}")
    return {**value, "task": "questions"}


class _Texts(EachOnce):
    """A loader of texts: options may be yes and no, and a legend is of numbers.

    What YAML takes for a truth value, a number or a date stays the text that it is. Only null is no
    text: a level without words.
    """


_Texts.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag == "tag:yaml.org,2002:null"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True)
class StateMap:
    """Which columns make which field of a row, and which its labels.

    Attributes:
        columns: of each field and question.
        state: the fields that are asked about; other fields are id, group, rater and meta.
    """

    columns: Columns
    state: Sequence[str]

    @staticmethod
    def of(
        table: Table, map: Sequence[str], state: Sequence[str], asked: Sequence[str] = ()
    ) -> "StateMap":
        """Take the columns of --map, else those of the same name.

        Raises:
            UserError: for a field, question or column that is not there.
        """
        known = [*state, *asked, "id", "group", "rater", *META]
        columns: dict[str, Sequence[str]] = {}
        for target, written in pairs(",".join(map), "--map").items():
            if target not in known and not target.startswith("meta."):
                use = f"use {', '.join(known)} or meta.NAME"
                raise UserError(f"--map {target}={written}: no such field or question: {use}")
            columns[target] = [plain(name) for name in split_at(written, "+")]
            for name in columns[target]:
                check_column(table.columns, name, table.name, f"--map {target}={name}")
        for name in known:
            if name not in columns and name in table.columns:
                columns[name] = [name]
        for name in state:
            if name not in columns:
                problem = f"has no column {name}; its columns are {', '.join(table.columns)}"
                remedy = f"say which one it is with --map {name}=COLUMN"
                raise UserError(f"{table.name} {problem}: {remedy}")
        shown = {column for field in state for column in columns[field]}
        for name in asked:
            if both := shown.intersection(columns.get(name, ())):
                problem = f"the column {min(both)} is shown to the judge, and its label"
                raise UserError(f"{table.name}: {problem} ({name}): take it out of the state")
        return StateMap(columns, state)

    def fields(self, place: Place, value: Row) -> Row:
        """Return a row of the file as a row of a dataset, without labels.

        Raises:
            RowError: A cell holds binary data.
        """
        row, own_meta = Row(), parsed(value.get("meta"))
        meta = dict(own_meta) if isinstance(own_meta, Mapping) else {}
        members = {*self.state, "id", "group", *(("rater",) if self.by_rater else ())}
        for target, own in self.columns.items():
            if target in members:
                row[target] = cell_of(own, value, place)
            elif target in ROLES or target.startswith("meta."):
                cell = cell_of(own, value, place)
                meta |= {} if is_empty(cell) else {target.removeprefix("meta."): cell}
        return row | ({"meta": meta} if meta else {})

    @property
    def by_rater(self) -> bool:
        """Whether the file has a row for each rater of an id."""
        return {"id", "rater"} <= self.columns.keys() and "rater" not in self.state


def _rows(
    table: Table, columns: StateMap, options: ImportOptions, reader: QuestionReader
) -> Iterator[tuple[Place, Row]]:
    """Yield the rows of a file as rows of a dataset."""
    wanted = wanted_values(options.only, table)
    for place, value in table.rows():
        if reason := unwanted(value, wanted):
            reader.tally.dropped.add(reason)
            continue
        try:
            row = columns.fields(place, value) | {"labels": reader.labels(value, place)}
        except RowError as error:
            reader.tally.refuse(error)
            continue
        yield place, row


def _merged(
    rows: Iterator[tuple[Place, Row]], columns: StateMap, reader: QuestionReader
) -> Iterator[tuple[Place, Row, int]]:
    """Yield rows and how many rows of the file each was: those of an id, one for each rater.

    Rows without an id, of one id with different texts, or with two answers of one annotator are
    refused in the reader's tally.
    """
    if not columns.by_rater:
        yield from ((place, row, 1) for place, row in rows)
        return
    tally = reader.tally
    for group in by_id(_with_id(rows, tally), columns.state, tally.refuse):
        (place, first), count = group[0], len(group)
        try:
            labels = reader.of_raters(group)
        except RowError as error:
            tally.refuse(error, count)
            continue
        yield place, {**first, "labels": labels}, count


def _with_id(rows: Iterator[tuple[Place, Row]], tally: Tally) -> Iterator[tuple[Place, Row]]:
    """Yield the rows that have an id, by which those of several raters are joined."""
    for place, row in rows:
        if is_empty(row["id"]):
            remedy = "name the row, since rows of several raters are joined by it"
            tally.refuse(place.error("id", "the row has none", remedy))
        else:
            yield place, row
