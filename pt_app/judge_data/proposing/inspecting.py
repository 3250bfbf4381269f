"""`judge init`: looks at a stranger's file of labels and proposes how to make a dataset of it."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite, write_text_atomic
from pt_app.core.records import JudgeExample, RowError, example_of
from pt_app.core.verdicts import Scale
from pt_app.judge_data import formats
from pt_app.judge_data.annotators import rule
from pt_app.judge_data.formats import Format, FormatOptions
from pt_app.judge_data.importing import OWN_SHAPES
from pt_app.judge_data.labels import LabelReader, left_out_lines
from pt_app.judge_data.mapping import ColumnMap, merge_raters
from pt_app.judge_data.proposing.columns import Column, columns_of
from pt_app.judge_data.proposing.guessing import TRANSLATED, guess_map, words_of
from pt_app.judge_data.proposing.label_guess import guess_labels, scale_of
from pt_app.judge_data.proposing.proposal import Lengths, Proposal, escaped
from pt_app.judge_data.reading.archives import is_archive
from pt_app.judge_data.reading.tables import Reading, Table, open_table
from pt_app.judge_data.rows import Converted

# So many rows are looked at to recognise a shape; so many, drawn by chance, are tokenised, and
# the longest ones beside them.
FIRST, DRAWN, LONGEST = 200, 1000, 50
# No example takes so many tokens: nothing is cut where lengths are measured.
UNCUT = 1 << 24
STUBS = {
    "score": "{high} is a candidate without a fault, {low} is a useless one.\n"
    "A serious fault, such as ..., costs ...; a small one, such as ..., costs ....",
    "pairwise": "The better candidate is the one that ...; where both do, the one that ....\n"
    "A tie is two candidates of equal worth.",
    "pass_fail": "PASS is a candidate that ....\nFAIL is one that ....",
}
_SCORE = re.compile(r"score\W{1,6}(-?\d+(?:[.,]\d+)?)(?:\s*/\s*(\d+))?", re.IGNORECASE)


@dataclass(frozen=True)
class _Choice:
    """How the rows are to be read, and what of it `judge data import` must be told."""

    flags: tuple[str, ...]
    told: Mapping[str, str]
    scale: str
    template: str
    format: Format | None = None
    map: ColumnMap | None = None
    rubric: str | None = None
    missing: tuple[str, ...] = ()


def inspect(
    file: str, *, model: str = "tiny", reading: Reading | None = None, rubric: Path | None = None
) -> Proposal:
    """Propose task, map, labels, scale, template and the next commands for a file of labels.

    The whole file is read; lengths are those of the proposed prompts for the tokenizer of `model`.
    `reading` says how the file is to be read, where that is not recognised, and is proposed to
    import too. With `rubric`, a stub of one is written there. Raises UserError for a file that
    cannot be read and a `rubric` that is there already.
    """
    if rubric:
        refuse_overwrite([rubric], [file])
    if rubric and rubric.exists():
        raise UserError(f"{rubric} is there already: choose another name with --out")
    reading = reading or Reading()
    table, known = _open(file, reading)
    columns, rows = columns_of(table)
    if known:
        choice = _of_format(known)
    else:
        own = _own_scale(table)
        choice = _of_own_shape(own, columns) if own else _of_columns(columns, rows)
    sample = _Sample() if choice.missing else _sample(table, choice)
    task = Scale.from_name(choice.scale).task
    stub = "" if choice.rubric is None else choice.rubric or STUBS[task]
    if stub and rubric:
        write_text_atomic(rubric, stub + "\n")
    flags = [*choice.flags, *_reading_flags(reading)]
    return Proposal(
        file=file,
        rows=rows,
        notes=table.notes,
        columns=columns,
        flags=[*flags, "--drop_bad"] if sample.bad else flags,
        told={**choice.told, **({} if choice.missing else sample.told())},
        missing=choice.missing,
        rubric=stub,
        rubric_path=rubric,
        lengths=_lengths(sample, choice, model) if sample.drawn else None,
        out=_free_name(file),
    )


# --- what the file is ---


def _open(file: str, reading: Reading) -> tuple[Table, Format | None]:
    """Open a file as itself, or as the public format that it is of."""
    packed = is_archive(Path(file))
    for one in formats.FORMATS.values():
        # These cannot be opened, or not by their columns, unless it is known what they are.
        if packed and one.member:
            table = _as_format(f"{file}::{one.member}", one, reading)
        elif one.reading.header and Path(file).is_file() and not reading.header:
            table = _as_format(file, one, reading)
        else:
            continue
        if table:
            return table, one
    table = open_table(file, reading)
    for one in formats.FORMATS.values():
        if one.columns and one.fits(table.columns) and (own := _as_format(file, one, reading)):
            return own, one
    return table, None


def _as_format(file: str, known: Format, reading: Reading) -> Table | None:
    """Open a file as of a public format; None if its first rows cannot be read as such."""
    options = FormatOptions()
    said = {n: cell for n, cell in vars(reading).items() if cell != getattr(Reading(), n)}
    try:
        table = open_table(file, replace(known.reading, **said))
        scale = Scale.from_name(known.scale_of(options))
        list(known.convert(islice(table.rows(), FIRST), scale, options))
    except (UserError, KeyError, TypeError, ValueError):
        return None
    return table if known.fits(table.columns) else None


def _reading_flags(reading: Reading) -> list[str]:
    """Give the flags of `judge data import` that read the file as `reading` does."""
    flags = {name: getattr(reading, name) for name in ("encoding", "delimiter", "decimal")}
    flags["quoting"] = "" if reading.quoting == "auto" else reading.quoting
    flags["header"] = ",".join(reading.header)
    flags["hub_split"] = "" if reading.hub_split == Reading().hub_split else reading.hub_split
    return [word for name, said in flags.items() if said for word in (f"--{name}", said)]


def _own_scale(table: Table) -> str:
    """Name the scale of rows as docs/DATA.md describes them; "" for rows of another shape."""
    if not any(shape <= set(table.columns) for shape in OWN_SHAPES):
        return ""
    rows = list(islice(table.rows(), FIRST))
    for name in ("pairwise", "pass_fail", *_scales_of(value for _, value in rows)):
        try:
            for place, value in rows:
                example_of(value, place, Scale.from_name(name))
            return name
        except UserError:
            continue
    return ""


def _scales_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Name scales of scores that the verdicts of such rows may be on, the usual ones first."""
    scores = Column("verdict")
    tops = set()
    for row in rows:
        label = row.get("label")
        if isinstance(label, dict):
            scores.add(label.get("verdict"))
            continue
        for score, top in _SCORE.findall(str(row.get("output") or row.get("messages") or "")):
            scores.add(score)
            tops.add(top)
    if scores.kind != "number":
        return []
    step = f":{scores.step.normalize():f}" if scores.step and scores.step < 1 else ""
    usual = scale_of(scores.low, scores.high, scores.step, scores.filled)
    lows = (1, 0) if scores.low >= 1 else (0,)
    written = [f"{low}-{top}{step}" for top in filter(None, tops) for low in lows]
    return [name for name in (*written, usual) if name]


# --- what import must be told ---


def _of_format(known: Format) -> _Choice:
    return _Choice(
        flags=("--format", known.name),
        told={"format": f"{known.name}: {known.about} ({known.licence})"},
        scale=known.scale_of(FormatOptions()),
        template=known.template,
        format=known,
        rubric=known.rubric or None,
    )


def _of_own_shape(name: str, columns: Mapping[str, Column]) -> _Choice:
    """Take rows as they are; rows of chat bring their own prompt."""
    scale = Scale.from_name(name)
    chat = not any(column.startswith("candidate") for column in columns)
    template = "response" if "conversation" in columns else "translation_any"
    flags: tuple[str, ...] = ("--scale", name) if scale.task == "score" else ("--task", scale.task)
    told = {"rows": "as docs/DATA.md describes them, " + ("of chat" if chat else "of fields")}
    told["task"] = _task(scale)
    if not chat:
        told["template"] = f"{template}, by guess: see judge data preview"
        flags += ("--template", template)
    return _Choice(flags, told, name, template, formats.CHAT, rubric=None if chat else "")


def _of_columns(columns: Mapping[str, Column], rows: int) -> _Choice:
    """Guess a map, what the labels mean, and the template."""
    found = guess_map(columns)
    pair = "candidate_a" in found
    wanted = ["label", *([] if pair else ["candidate"])]
    wanted += [] if {"source", "conversation"} & set(found) else ["source"]
    missing = tuple(target.upper() for target in wanted if target not in found)
    labels = guess_labels([columns[name] for name in found.get("label", ())], pair)
    if labels.unknown or not labels.scale:
        missing += ("MEANINGS" if labels.unknown else "SCALE",)
    scale = Scale.from_name(labels.scale or "0-10")
    pairs = {target: "+".join(map(escaped, names)) for target, names in found.items()}
    pairs |= {target: target.upper() for target in wanted if target not in found}
    flags = ["--map", ",".join(f"{target}={names}" for target, names in pairs.items())]
    # A label of several lines, or with what cannot be seen, cannot be typed.
    unknown = [name if name.isprintable() else "LABEL" for name in labels.unknown]
    meanings = {**labels.meanings, **dict.fromkeys(unknown, "MEANINGS")}
    if meanings:
        flags += ["--labels", ",".join(f"{escaped(k)}={v}" for k, v in meanings.items())]
    if scale.task == "score":
        flags += ["--scale", labels.scale or "SCALE"]
    elif scale.task == "pass_fail":
        flags += ["--task", "pass_fail"]
    unclear = [name for name in found.get("label", ()) if columns[name].unclear]
    if unclear:
        flags += ["--decimal", "point"]
    template = _template(found)
    told = {"task": _task(scale)} if "label" in found else {}
    told["template"] = f"{template}, by the columns' names"
    told |= {"labels": labels.remark} if labels.remark else {}
    if unclear:
        told["decimals"] = f"{unclear[0]} reads in two ways, by guess a comma parts thousands"
    told |= _said_of_map(found, columns, rows, scale)
    return _Choice(
        flags=(*flags, "--template", template),
        told=told | _said_of_missing(missing, labels.unknown),
        scale=scale.name,
        template=template,
        map=None if missing else ColumnMap.from_flags(flags[1:2], flags[3] if meanings else ""),
        rubric=None if "rubric" in found else "",
        missing=missing,
    )


def _template(found: Mapping[str, Sequence[str]]) -> str:
    """Choose a template by what people call the columns: translations, or answers to requests."""
    of_candidate = {
        word for t in found if t.startswith("candidate") for n in found[t] for word in words_of(n)
    }
    of_source = {word for name in found.get("source", ()) for word in words_of(name)}
    if of_source & {"en", "english"} and of_candidate & {"pt", "portuguese"}:
        return "translation"
    return "translation_any" if of_candidate & TRANSLATED else "response"


def _task(scale: Scale) -> str:
    return (
        f"score, scale {scale.name}" if scale.task == "score" else f"{scale.task}, {scale.says()}"
    )


def _said_of_map(
    found: Mapping[str, Sequence[str]], columns: Mapping[str, Column], rows: int, scale: Scale
) -> dict[str, str]:
    """Say who labelled the rows, and what keeps rows together."""
    told = {}
    labels = found.get("label", ())
    most = max((columns[name].most for name in labels), default=0)
    if len(labels) > 1 or most > 1 or "rater" in found:
        told["raters"] = f"several, kept apart; their label is {rule(scale).partition(': ')[2]}"
    groups = found.get("group") or found.get("source") or found.get("conversation") or ()
    if groups and groups[0] in columns:
        distinct = columns[groups[0]].distinct
        how = "" if "group" in found else ", normalised, and its near duplicates"
        told["groups"] = f"by {groups[0]}{how}: {distinct:,} different in {rows:,} rows"
    return told


def _said_of_missing(missing: Sequence[str], unknown: Sequence[str]) -> dict[str, str]:
    told = {}
    if "LABEL" in missing:
        told["no label"] = (
            "no column looks like labels: name one, or have a teacher label the rows with "
            "judge data distil"
        )
    if unknown:
        told["meanings"] = f"say what {', '.join(unknown)} mean: a verdict for each in --labels"
    return told


# --- the rows of it ---


class _Sample:
    """Rows drawn by chance, the longest ones, and what became of the others."""

    def __init__(self) -> None:
        self.drawn: list[JudgeExample] = []
        self.longest: list[JudgeExample] = []
        self.kept = 0
        self.dropped: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.said: list[str] = []
        self.bad = 0
        self.first_bad = ""
        self._random = Random(0)

    def take(self, example: JudgeExample) -> None:
        """Keep an example or not: each is as likely to be drawn, and the longest are kept."""
        self.kept += 1
        if len(self.drawn) < DRAWN:
            self.drawn.append(example)
        elif (place := self._random.randrange(self.kept)) < DRAWN:
            self.drawn[place] = example
        self.longest.append(example)
        if len(self.longest) > 4 * LONGEST:
            self.longest = nlargest(LONGEST, self.longest, key=_characters)

    def refuse(self, error: RowError, rows: int = 1) -> None:
        """Count rows that import would refuse."""
        self.bad += rows
        self.first_bad = self.first_bad or str(error)

    def told(self) -> dict[str, str]:
        """Say what cannot be used."""
        told = {}
        if self.dropped:
            told["left out"] = ", ".join(f"{n:,} {why}" for why, n in self.dropped.most_common())
        if self.answers:
            told["answers"] = "; ".join(left_out_lines(self.answers, {}))
        if self.said:
            told["numbers"] = "; ".join(self.said)
        if self.bad:
            told["unusable"] = f"{self.bad:,}, left out by --drop_bad; the first: {self.first_bad}"
        if not self.kept:
            told["no rows"] = "no row of the file can be used"
        return told


def _sample(table: Table, choice: _Choice) -> _Sample:
    """Make examples of all rows, as import would, and keep a sample."""
    sample, scale = _Sample(), Scale.from_name(choice.scale)
    for one in _converted(table, choice, scale, sample):
        if one.row is None:
            sample.dropped[one.reason] += one.rows_read
            continue
        try:
            sample.take(example_of(one.row, one.place, scale))
        except RowError as error:
            sample.refuse(error, one.rows_read)
    return sample


def _converted(table: Table, choice: _Choice, scale: Scale, sample: _Sample) -> Iterator[Converted]:
    if choice.format:
        yield from choice.format.convert(table.rows(), scale, FormatOptions())
        return
    assert choice.map is not None, "rows are of a format, or a map was guessed"
    reader = choice.map.reader(table, scale)
    rows = _mapped(table, choice.map, reader, sample)
    yield from (
        merge_raters(rows, reader, "", sample.refuse) if "rater" in choice.map.columns else rows
    )
    sample.answers += reader.left_out
    sample.said += reader.decisions()


def _mapped(
    table: Table, map: ColumnMap, reader: LabelReader, sample: _Sample
) -> Iterator[Converted]:
    for place, value in table.rows():
        try:
            yield map.convert(place, value, reader, "")
        except RowError as error:
            sample.refuse(error)


def _lengths(sample: _Sample, choice: _Choice, model: str) -> Lengths:
    """Measure prompt and answer in tokens, as the proposed template lays them out."""
    from pt_app.core.prompt_templates import Template
    from pt_app.core.prompts import PromptEncoder
    from pt_app.models import bases
    from pt_app.models.base_files import read_json

    source = bases.resolve_tokenizer(model)
    template = Template.load(choice.template, choice.rubric or None)
    scale = Scale.from_name(choice.scale)
    encoder = PromptEncoder(bases.load_tokenizer(source), template, scale, UNCUT)
    longest = nlargest(LONGEST, sample.longest, key=_characters)
    encoded, _ = encoder.encode([*sample.drawn, *longest])
    tokens = [len(one.input_ids) for one in encoded]
    file = source.path / "config.json"
    config = read_json(file) if file.is_file() else {}  # a tokenizer's folder has none
    return Lengths.of(tokens, len(sample.drawn), model, config.get("max_position_embeddings"))


def _characters(example: JudgeExample) -> int:
    texts = (example.source, example.context, example.reference, example.candidate, example.prompt)
    turns = [turn.content for turn in example.conversation or ()]
    own = [example.rubric, example.label.feedback if example.label else "", *turns]
    return sum(len(text) for text in (*texts, *own, *(example.candidates or ())) if text)


def _free_name(file: str) -> str:
    """Name a folder that is not there yet after the file."""
    stem = re.sub(r"[^\w-]+", "-", Path(file.partition("::")[0]).name.partition(".")[0]).strip("-")
    names = (f"datasets/{stem or 'mine'}{end}" for end in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(name for name in names if not Path(name).exists())
