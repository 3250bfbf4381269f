"""`judge data import`: from a file of labels to a dataset folder, every row accounted for."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pt_app.core.dataset import DatasetCard, card_scale, read_card
from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite
from pt_app.core.prompt_templates import Template
from pt_app.core.records import JudgeExample, RowError, example_of
from pt_app.core.verdicts import Scale
from pt_app.judge_data import formats
from pt_app.judge_data.annotators import rule
from pt_app.judge_data.folder import FolderSummary, build_folder
from pt_app.judge_data.formats import Format, FormatOptions
from pt_app.judge_data.groups import group_of
from pt_app.judge_data.labels import LabelReader, left_out_lines
from pt_app.judge_data.mapping import TARGETS, ColumnMap, merge_raters, pairs
from pt_app.judge_data.reading.archives import is_archive
from pt_app.judge_data.reading.tables import Quoting, Reading, Table, names_of, open_table
from pt_app.judge_data.rows import Converted
from pt_app.judge_data.splitting import SplitPlan
from pt_app.judge_data.writing import FILES

# Columns by which a file is known to hold rows as docs/DATA.md describes them.
TEMPLATE = "template"
OWN_SHAPES = ({"messages"}, {"input", "output"}, {"candidate", "label"}, {"candidates", "label"})


@dataclass(frozen=True)
class ImportOptions:
    """The flags of `judge data import`: see its help."""

    format: str = ""
    map: Sequence[str] = ()
    labels: str = ""
    task: str | None = None
    scale: str = ""
    template: str = ""
    rubric: Path | None = None
    reduce: str = ""
    mqm_weights: str = "google"
    encoding: str = ""
    delimiter: str = ""
    quoting: Quoting = "auto"
    header: str = ""
    decimal: str = ""
    hub_split: str = "train"
    only: Sequence[str] = ()
    prefix: str = ""
    drop_bad: bool = False
    origin: str = ""
    licence: str = ""

    def reading(self, known: Reading) -> Reading:
        """How to read a file: what a flag says, else what is known of its format."""
        given = {
            "encoding": self.encoding,
            "delimiter": self.delimiter,
            "quoting": "" if self.quoting == "auto" else self.quoting,
            "header": names_of(self.header),
            "decimal": self.decimal,
        }
        changed: Any = {name: value for name, value in given.items() if value}
        return replace(known, hub_split=self.hub_split, **changed)


@dataclass
class Tally:
    """Where every row of the files went: `read` = `kept` + all of `dropped`.

    `answers` counts the annotators' answers that are no labels; `said` is what was decided about
    the cells of labels.
    """

    read: int = 0
    kept: int = 0
    examples: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    first_answers: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    ungrouped: int = 0

    def drop(self, rows: int, reason: str, problem: str = "") -> None:
        """Count rows that are left out; the first problem of a reason is kept for the summary."""
        self.read += rows
        self.dropped[reason] += rows
        if problem:
            self.first.setdefault(reason, problem)

    def keep(self, rows: int) -> None:
        """Count rows that make an example."""
        self.read += rows
        self.kept += rows
        self.examples += 1

    def take(self, reader: LabelReader) -> None:
        """Take over what the reader of one file's labels left out and decided."""
        self.answers += reader.left_out
        self.first_answers = reader.first | self.first_answers
        self.said += [note for note in reader.decisions() if note not in self.said]

    def lines(self) -> list[str]:
        """Say the counts, reasons most frequent first."""
        as_examples = f" as {self.examples:,} examples" if self.examples != self.kept else ""
        dropped = sum(self.dropped.values())
        lines = [f"read {self.read:,} rows: kept {self.kept:,}{as_examples}, dropped {dropped:,}"]
        for reason, count in self.dropped.most_common():
            first = f" (first: {self.first[reason]})" if reason in self.first else ""
            lines.append(f"  {count:,} dropped: {reason}{first}")
        if self.ungrouped:
            lines.append(
                f"  {self.ungrouped:,} kept rows have an empty group: their texts are theirs"
            )
        left_out = left_out_lines(self.answers, self.first_answers)
        return lines + [f"  {line}" for line in (*left_out, *self.said)]


@dataclass(frozen=True)
class ImportSummary:
    """What was read, and the folder that it became."""

    tally: Tally
    notes: tuple[str, ...]
    folder: FolderSummary

    def lines(self) -> list[str]:
        """Say it all in a few lines."""
        return [*self.notes, *self.tally.lines(), *self.folder.lines()]


@dataclass(frozen=True)
class _Job:
    """How rows of these files become rows of a dataset."""

    format: Format | None
    map: ColumnMap
    scale: Scale
    options: ImportOptions


def import_labels(
    files: Sequence[str],
    out: Path,
    options: ImportOptions,
    plan: SplitPlan,
    append: bool = False,
    progress: bool = True,
) -> ImportSummary:
    """Read files of labels into the dataset folder `out`; see docs/DATA.md.

    Raises UserError for whatever the user can mend, before anything is written. With
    `options.drop_bad` a row that cannot be used is counted and left out instead.
    """
    read = [*files, *([str(options.rubric)] if options.rubric else [])]
    refuse_overwrite([Path(out) / name for name in FILES], read)
    known = formats.get(options.format) if options.format else None
    tables = [_open(file, options, known) for file in files]
    if not known and not options.map:
        options = replace(options, map=named_alike(tables))
    known = known or _own_shape(tables, options)
    job = _job(known, options, Path(out), append)
    for table in tables:
        _check_columns(table, job)
    tally = Tally()
    prefixes = [options.prefix] * len(files) if options.prefix else _prefixes(files)
    examples = [
        one
        for table, prefix, path in zip(tables, prefixes, _paths(files), strict=True)
        for one in _examples(table, job, tally, (prefix, path), progress)
    ]
    if not examples:
        reasons = "; ".join(tally.lines()[1:]) or "they hold none"
        raise UserError(f"no row of {', '.join(files)} can be used: {' '.join(reasons.split())}")
    card = _card(job, tables, tally, out)
    adding = append and (Path(out) / "dataset.json").exists()  # whose template stays
    folder = build_folder(Path(out), examples, card, plan, append=append, progress=progress)
    if card["template"] == TEMPLATE and not adding:
        Template.load(options.template).save(Path(out) / TEMPLATE)
    notes = tuple(f"{table.name}: {', '.join(table.notes)}" for table in tables if table.notes)
    notes += (f"task {job.scale.task}, scale {job.scale.name}, template {card['template']}",)
    return ImportSummary(tally, notes, folder)


def _open(file: str, options: ImportOptions, known: Format | None) -> Table:
    if known and known.member and "::" not in file and is_archive(Path(file)):
        file = f"{file}::{known.member}"
    return open_table(file, options.reading(known.reading if known else Reading()))


def named_alike(tables: Sequence[Table]) -> tuple[str, ...]:
    """Map columns that are called as the fields are, where a label is no object of its own."""
    for table in tables:
        first = next(table.rows(), None)
        if first is None or isinstance(first[1].get("label"), dict | None):
            return ()
        if not {"candidate", "candidate_a"} & set(table.columns):
            return ()
    return tuple(f"{name}={name}" for name in TARGETS if all(name in t.columns for t in tables))


def _own_shape(tables: Sequence[Table], options: ImportOptions) -> Format | None:
    """Take files of rows as docs/DATA.md describes them as they are, unless a map is given."""
    if options.map:
        return None
    for table in tables:
        if not any(shape <= set(table.columns) for shape in OWN_SHAPES):
            like = [
                one.name
                for one in formats.FORMATS.values()
                if one.columns and one.fits(table.columns)
            ]
            hint = f"--format {like[0]} reads it" if like else "`judge init FILE` proposes a --map"
            raise UserError(
                f"{table.name} has the columns {', '.join(table.columns)}: say what they are with "
                f"--map, or name a public --format ({hint})"
            )
    return formats.CHAT


def _job(known: Format | None, options: ImportOptions, out: Path, append: bool) -> _Job:
    map = ColumnMap.from_flags(options.map, options.labels)
    name = options.scale
    if known and not name and known is not formats.CHAT:
        name = known.scale_of(FormatOptions(options.reduce, options.mqm_weights))
    if append and (out / "dataset.json").exists():
        name = name or read_card(out).scale
    if not name:
        task = options.task or map.task()
        name = "0-10" if task == "score" else task
    scale = Scale.from_name(name)
    if options.task and options.task != scale.task:
        raise UserError(f"--task {options.task} and the scale {scale.name} ({scale.task}) differ")
    rule(scale, options.reduce)  # says what is wrong with --reduce
    if options.template:
        Template.load(options.template)
    return _Job(known, map, scale, options)


def _check_columns(table: Table, job: _Job) -> None:
    if job.format is None:
        job.map.check(table.columns, table.name)
        if "label" not in job.map.columns:
            raise UserError(
                f"--map names no label: add label=COLUMN, one of {', '.join(table.columns)}"
            )
    elif not job.format.fits(table.columns):
        missing = [name for name in job.format.columns if name not in table.columns]
        raise UserError(
            f"{table.name} is not of the format {job.format.name}: it has no column "
            f"{', '.join(missing)}; its columns are {', '.join(table.columns)}"
        )


def _prefixes(files: Sequence[str]) -> list[str]:
    """Give what ids made here begin with where files have one stem: their folder and it."""
    paths = [Path(file.partition("::")[0]) for file in files]
    count = Counter(path.stem for path in paths)
    return [f"{path.parent.name}-{path.stem}" if count[path.stem] > 1 else "" for path in paths]


def _paths(files: Sequence[str]) -> list[str]:
    """Give what names a file in messages where another has its name: the whole path; else ""."""
    paths = [Path(file.partition("::")[0]) for file in files]
    count = Counter(path.name for path in paths)
    return [str(path) if count[path.name] > 1 else "" for path in paths]


def _examples(
    table: Table, job: _Job, tally: Tally, named: tuple[str, str], progress: bool
) -> Iterator[JudgeExample]:
    """Yield what can be used of a file; the rest is counted in `tally`.

    `named` is what ids made here begin with, and what names the file, or "" for its own name.
    """
    prefix, path = named
    bar = tqdm(
        _converted(table, job, tally, prefix),
        desc=f"import {table.name}",
        unit=" rows",
        disable=not progress,
        delay=2,
    )
    for one in bar:
        if one.row is None:
            tally.drop(one.rows_read, one.reason)
            continue
        try:
            example = example_of(one.row, one.place, job.scale)
        except RowError as error:
            _drop_or_raise(error, one.rows_read, job, tally)
            continue
        if example.label is None:
            tally.drop(one.rows_read, "no label")
            continue
        grouped = bool(str(one.row.get("group") or "").strip())
        own = {} if grouped else {"group": group_of(example)}
        tally.ungrouped += not grouped and "group" in job.map.columns
        made = f"{prefix or one.place.stem}-{one.place.row}"
        name = {} if example.id else {"id": made}
        name |= {"where": f"{path}:{one.place.row}"} if path else {}
        tally.keep(one.rows_read)
        yield example.model_copy(update=own | name)


def _converted(table: Table, job: _Job, tally: Tally, prefix: str) -> Iterator[Converted]:
    if job.format is not None:
        chosen = FormatOptions(job.options.reduce, job.options.mqm_weights)
        yield from job.format.convert(table.rows(), job.scale, chosen)
        return
    reader = job.map.reader(table, job.scale, job.options.drop_bad)

    def refuse(error: RowError, rows: int) -> None:
        _drop_or_raise(error, rows, job, tally)

    rows = _mapped(table, job, reader, prefix, refuse)
    if {"id", "rater"} <= set(job.map.columns):
        rows = merge_raters(rows, reader, job.options.reduce, refuse)
    yield from rows
    tally.take(reader)


def _mapped(
    table: Table,
    job: _Job,
    reader: LabelReader,
    prefix: str,
    refuse: Callable[[RowError, int], None],
) -> Iterator[Converted]:
    wanted = wanted_values(job.options.only, table)
    for place, value in table.rows():
        other = [name for name, text in wanted.items() if str(value.get(name)) != text]
        if other:
            yield Converted(place, None, f"{other[0]} is not {wanted[other[0]]}")
            continue
        try:
            yield job.map.convert(place, value, reader, job.options.reduce, prefix)
        except RowError as error:
            refuse(error, 1)


def wanted_values(only: Sequence[str], table: Table) -> dict[str, str]:
    """Read `--only column=value`; raises UserError for a column that is not there."""
    wanted = dict(pairs(",".join(only), "--only"))
    for name in wanted:
        if name not in table.columns:
            raise UserError(
                f"--only {name}={wanted[name]}: {table.name} has no such column; its columns are "
                f"{', '.join(table.columns)}"
            )
    return wanted


def _drop_or_raise(error: RowError, rows: int, job: _Job, tally: Tally) -> None:
    if not job.options.drop_bad:
        hint = "; `judge init FILE` proposes a scale" if error.field == "label.verdict" else ""
        raise RowError(f"{error}{hint}, or leave such rows out with --drop_bad", error.field)
    tally.drop(rows, f"{error.field or 'the row'} cannot be used", str(error))


def _card(job: _Job, tables: Sequence[Table], tally: Tally, out: Path) -> dict[str, Any]:
    known, options = job.format, job.options
    template = options.template or (known.template if known else default_template(job))
    if options.template and Path(options.template).is_dir():
        template = TEMPLATE  # its files are copied there
    rubric = _rubric(options.rubric) or (known.rubric if known else "")
    names = [table.name for table in tables]
    card: dict[str, Any] = {
        "task": job.scale.task,
        "scale": job.scale.name,
        "template": template,
        **({"rubric": rubric} if rubric else {}),
        "origin": options.origin
        or (known.origin if known else "")
        or f"imported: {', '.join(names)}",
        "licence": options.licence or (known.licence if known else "") or "not stated",
        "label_rule": rule(job.scale, options.reduce),
        "imports": [
            {
                "files": names,
                "format": known.name if known else "",
                "map": list(options.map),
                "labels": options.labels,
                "read": tally.read,
                "kept": tally.kept,
                "dropped": dict(tally.dropped),
                **({"answers_left_out": dict(tally.answers)} if tally.answers else {}),
            }
        ],
    }
    card_scale(DatasetCard.model_validate(card), out / "dataset.json")
    return card


def default_template(job: _Job) -> str:
    """Choose a template for a file that no flag and no format says one for."""
    single = job.scale.task == "score" and "source" in job.map.columns
    return "translation_any" if single else "response"


def _rubric(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--rubric {path} cannot be read as UTF-8 text: {error}") from error
