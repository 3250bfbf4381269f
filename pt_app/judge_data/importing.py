"""`judge data import`: from a file of labels to a dataset folder, with every row accounted for."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from pt_app.core.dataset import DatasetCard, card_scale, read_card
from pt_app.core.errors import UserError
from pt_app.core.files import read_text, refuse_overwrite, shown
from pt_app.core.prompt_templates import Template
from pt_app.core.records import JudgeExample, RowError, example_of
from pt_app.core.verdicts import Scale
from pt_app.judge_data import formats
from pt_app.judge_data.folder import FILES, TEMPLATE, build_folder
from pt_app.judge_data.formats import Format
from pt_app.judge_data.labels import LabelReader, Reasons, rule
from pt_app.judge_data.mapping import TARGETS, ColumnMap, merge_raters, unwanted, wanted_values
from pt_app.judge_data.options import ImportOptions, SplitPlan
from pt_app.judge_data.reading.tables import Rows, Table
from pt_app.judge_data.rows import Converted, Row
from pt_app.judge_data.splitting import group_of

BAR_AFTER = 2  # seconds of an import: a shorter one shows no bar
# Columns by which rows of the shapes in docs/DATA.md are recognised.
_OWN_SHAPES = ({"messages"}, {"input", "output"}, {"candidate", "label"}, {"candidates", "label"})


@dataclass(frozen=True)
class Job:
    """How rows of files become rows of a dataset: by a format, or else by a map."""

    scale: Scale
    options: ImportOptions = field(default_factory=ImportOptions)
    format: Format | None = None
    map: ColumnMap = field(default_factory=lambda: ColumnMap({}, {}))


@dataclass
class Tally:
    """Where every row of the files went.

    Attributes:
        drop_bad: Whether a row that cannot be used is counted instead of raising its error.
        dropped: Dropped rows; a reason with a problem is that of rows that cannot be used.
        answers: Answers of annotators that do not count as labels.
        decisions: What was decided about the cells of labels.
        ungrouped: Kept rows whose group is empty.
        meant: Labels of several questions to which --labels gave a meaning.
    """

    drop_bad: bool = False
    kept: int = 0
    examples: int = 0
    dropped: Reasons = field(default_factory=Reasons)
    answers: Reasons = field(default_factory=Reasons)
    decisions: list[str] = field(default_factory=list)
    ungrouped: int = 0
    meant: set[str] = field(default_factory=set)

    @property
    def read(self) -> int:
        """The rows of the files."""
        return self.kept + self.dropped.counts.total()

    @property
    def bad(self) -> bool:
        """Whether something has been left out that is an error without `drop_bad`."""
        return bool(self.dropped.first or self.answers.first)

    def refuse(self, error: RowError, rows: int = 1) -> None:
        """Count rows that cannot be used; raise their error unless `drop_bad`."""
        if not self.drop_bad:
            hint = "; `judge init FILE` proposes a scale" if error.field == "label.verdict" else ""
            what = "labels" if error.field.startswith("labels.") else "rows"
            raise RowError(f"{error}{hint}, or leave such {what} out with --drop_bad", error.field)
        self.dropped.add(f"{error.field or 'the row'} cannot be used", str(error), rows)

    def about(self, files: Sequence[str], format: str, options: ImportOptions) -> Row:
        """Return what dataset.json says of the import of these files."""
        about = Row(files=list(files), format=format, map=list(options.map), labels=options.labels)
        about |= {"read": self.read, "kept": self.kept, "dropped": dict(self.dropped.counts)}
        if self.answers.counts:
            about["answers_left_out"] = dict(self.answers.counts)
        return about

    def lines(self) -> list[str]:
        """Describe the counts, the most frequent reasons first."""
        as_examples = f" as {self.examples:,} examples" if self.examples != self.kept else ""
        dropped = f"dropped {self.dropped.counts.total():,}"
        lines = [f"read {self.read:,} rows: kept {self.kept:,}{as_examples}, {dropped}"]
        lines += [f"  {count:,} dropped: {reason}" for count, reason in self.dropped.ranked()]
        if self.ungrouped:
            lines.append(f"  {self.ungrouped:,} kept rows have an empty group: it is their source")
        return lines + [f"  {line}" for line in (*self.answers.as_answers(), *self.decisions)]


def import_labels(
    files: Sequence[str], out: Path, options: ImportOptions, plan: SplitPlan, append: bool = False
) -> list[str]:
    """Read files of labels into the dataset folder `out`; see docs/DATA.md.

    With `options.drop_bad`, a row that cannot be used is counted and left out instead of raising.

    Returns:
        Lines that describe what was read, and the folder that it became.

    Raises:
        UserError: Something that the user can fix. Nothing has been written then.
    """
    out = Path(out)
    read = [*files, *([str(options.rubric)] if options.rubric else [])]
    refuse_overwrite([out / name for name in FILES], read)
    fmt = formats.get(options.format) if options.format else None
    _refuse_unread(fmt, options)
    tables = [(fmt or formats.CHAT).open(file, options.reading) for file in files]
    if not (fmt or options.map):
        options = replace(options, map=_same_names(tables))
        fmt = None if options.map else _own_shape(tables)
        _refuse_unread(fmt, options)
    adding = append and (out / "dataset.json").exists()
    job = _job(fmt, options, read_card(out).scale if adding else "")
    for table in tables:
        _check_columns(table, job)
    tally = Tally(options.drop_bad)
    examples: list[JudgeExample] = []
    paths = [Path(file.partition("::")[0]) for file in files]
    names, stems = Counter(path.name for path in paths), Counter(path.stem for path in paths)
    for table, path in zip(tables, paths, strict=True):
        file = path if names[path.name] > 1 else path.name
        # Ids of files of one name start with the folder of their file.
        longer = f"{path.parent.name}-{path.stem}"
        prefix = options.prefix or shown(longer if stems[path.stem] > 1 else path.stem)
        rows = examples_of(table, job, tally, prefix)
        bar = tqdm(rows, f"import {shown(table.name)}", unit=" rows", delay=BAR_AFTER)
        examples += [_identified(*made, job, tally, shown(file), prefix) for made in bar]
    if not examples:
        reasons = "; ".join(tally.lines()[1:]) or "they hold none"
        raise UserError(f"no row of {', '.join(files)} can be used: {' '.join(reasons.split())}")
    card = _card(job, tables, tally, out)
    folder = build_folder(out, examples, card, plan, append=append)
    if card["template"] == TEMPLATE and not adding:  # a folder that is added to keeps its own
        Template.load(options.template).save(out / TEMPLATE)
    notes = [f"{table.name}: {', '.join(table.notes)}" for table in tables if table.notes]
    notes.append(f"task {job.scale.task}, scale {job.scale.name}, template {card['template']}")
    return [*notes, *tally.lines(), *folder.lines()]


def _refuse_unread(fmt: Format | None, options: ImportOptions) -> None:
    """Raise UserError for a flag that would have no effect on rows of this format."""
    if fmt and (unread := next((name for name in ("map", "labels") if getattr(options, name)), "")):
        problem = f"does not go with the format {fmt.name}, which says itself what its rows hold"
        raise UserError(f"--{unread} {problem}: leave it out, or say both with --map and --labels")
    weighted = fmt is not None and fmt.scale == formats.BY_WEIGHTS
    if not weighted and options.mqm_weights != ImportOptions().mqm_weights:
        raise UserError("--mqm_weights goes with --format wmt-mqm alone: leave it out")


def _same_names(tables: Sequence[Table]) -> tuple[str, ...]:
    """Map the columns that are named like the fields, where a label is not an object."""
    for table in tables:
        _, first = next(table.rows())
        named = {"candidate", "candidate_a"} & set(table.columns)
        if not named or isinstance(first.get("label"), dict | None):
            return ()
    return tuple(f"{name}={name}" for name in TARGETS if all(name in t.columns for t in tables))


def has_own_shape(table: Table) -> bool:
    """Return whether the rows of a table seem to be of a shape that docs/DATA.md describes."""
    return any(shape <= set(table.columns) for shape in _OWN_SHAPES)


def _own_shape(tables: Sequence[Table]) -> Format:
    """Return the format of rows as docs/DATA.md describes them; raise UserError for others."""
    for table in tables:
        if not has_own_shape(table):
            like = formats.fitting(table.columns)
            hint = f"--format {like[0].name} reads it" if like else "`judge init` proposes a --map"
            problem = f"has the columns {', '.join(table.columns)}"
            remedy = f"say what they are with --map, or name a public --format ({hint})"
            raise UserError(f"{table.name} {problem}: {remedy}")
    return formats.CHAT


def _job(fmt: Format | None, options: ImportOptions, of_card: str) -> Job:
    """Choose the scale: that of the flag, the format, the folder's card, or the usual one."""
    map = ColumnMap.from_flags(options.map, options.labels)
    task = options.task or map.task()
    name = options.scale or (fmt.scale_of(options) if fmt else "") or of_card
    scale = Scale.from_name(name or ("0-10" if task == "score" else task))
    if options.task and options.task != scale.task:
        fits = f"the scale {scale.name}, which is of the task {scale.task}"
        remedy = "leave --task out, or give another --scale or --format"
        raise UserError(f"--task {options.task} does not fit {fits}: {remedy}")
    rule(scale, options.reduce)  # refuses a rule that the task does not have
    if options.template:
        Template.load(options.template)
    return Job(scale, options, fmt, map)


def _check_columns(table: Table, job: Job) -> None:
    columns = ", ".join(table.columns)
    if job.format is None:
        job.map.check(table.columns, table.name)
        if "label" not in job.map.columns:
            raise UserError(f"--map names no label: add label=COLUMN, one of {columns}")
    elif not job.format.fits(table.columns):
        missing = ", ".join(name for name in job.format.columns if name not in table.columns)
        problem = f"is not of the format {job.format.name}: it has no column {missing}"
        raise UserError(f"{table.name} {problem}; its columns are {columns}")


def examples_of(
    table: Table, job: Job, tally: Tally, prefix: str = ""
) -> Iterator[tuple[JudgeExample, Converted]]:
    """Yield the labelled examples of a file, each with what it was made of.

    All other rows are counted in `tally`. `prefix` is what ids made here start with.
    """
    for converted in _converted(table, job, tally, prefix):
        row, count = converted.row, converted.rows_read
        try:
            example = None if row is None else example_of(row, converted.place, job.scale)
        except RowError as error:
            tally.refuse(error, count)
            continue
        if example is None or example.label is None:
            tally.dropped.add(converted.reason or "no label", count=count)
            continue
        tally.kept += count
        tally.examples += 1
        yield example, converted


def _converted(table: Table, job: Job, tally: Tally, prefix: str) -> Iterator[Converted]:
    map, options = job.map, job.options
    wanted = wanted_values(options.only, table)

    def kept() -> Rows:
        for place, value in table.rows():
            if reason := unwanted(value, wanted):
                tally.dropped.add(reason)
            else:
                yield place, value

    if job.format is not None:
        yield from job.format.convert(kept(), job.scale, options, tally.refuse)
        return
    reader = LabelReader(job.scale, map.labels, drop_bad=options.drop_bad, how=options.reduce)
    reader.left_out = tally.answers
    reader.on(table, map.columns.get("label", ()))

    def mapped() -> Iterator[Converted]:
        for place, value in kept():
            try:
                yield map.convert(place, value, reader, prefix)
            except RowError as error:
                tally.refuse(error)

    yield from merge_raters(mapped(), reader, tally.refuse) if map.one_per_rater else mapped()
    tally.decisions += [note for note in reader.decisions() if note not in tally.decisions]


def _identified(
    example: JudgeExample, made_of: Converted, job: Job, tally: Tally, file: str, prefix: str
) -> JudgeExample:
    """Give an example the id and group that it lacks, and a place that names its file."""
    place, row = made_of.place, made_of.row or {}
    changes = {"where": f"{file}:{place.row}", "id": example.id or f"{prefix}-{place.row}"}
    if not str(row.get("group") or "").strip():
        changes["group"] = group_of(example)
        tally.ungrouped += "group" in job.map.columns
    return example.model_copy(update=changes)


def _card(job: Job, tables: Sequence[Table], tally: Tally, out: Path) -> Row:
    """Return what dataset.json says of the rows; flags overrule what is known of the format."""
    options, fmt = job.options, job.format
    names = [table.name for table in tables]
    single = job.scale.task == "score" and "source" in job.map.columns
    template = fmt.template if fmt else "translation_any" if single else "response"
    # The files of a custom template are copied into the dataset.
    own = options.template and Path(options.template).is_dir()
    rubric = read_text(options.rubric).strip() if options.rubric else fmt.rubric if fmt else ""
    card: Row = {
        "task": job.scale.task,
        "scale": job.scale.name,
        "template": TEMPLATE if own else options.template or template,
        **({"rubric": rubric} if rubric else {}),
        "origin": options.origin or (fmt and fmt.origin) or f"imported: {', '.join(names)}",
        "licence": options.licence or (fmt and fmt.licence) or "not stated",
        "label_rule": rule(job.scale, options.reduce),
        "imports": [tally.about(names, fmt.name if fmt else "", options)],
    }
    card_scale(DatasetCard.model_validate(card), out / "dataset.json")
    return card
