"""`judge init`: look at an unknown file of labels, and propose how to make a dataset of it."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from heapq import nlargest
from itertools import islice, product
from pathlib import Path
from random import Random

from pt_app.core.dataset import DatasetCard, card_asks
from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite, write_text_atomic
from pt_app.core.questions import questions_in
from pt_app.core.records import JudgeExample, example_of
from pt_app.core.verdicts import Scale
from pt_app.judge_data import formats
from pt_app.judge_data.decision_rows import as_dataset, format_of
from pt_app.judge_data.formats import Format
from pt_app.judge_data.importing import Job, Tally, examples_of, has_own_shape
from pt_app.judge_data.labels import key_of
from pt_app.judge_data.mapping import ColumnMap
from pt_app.judge_data.options import FormatOptions, ImportOptions, Reading
from pt_app.judge_data.preview import encoder_of
from pt_app.judge_data.proposing import guessing
from pt_app.judge_data.proposing.columns import Column, columns_of
from pt_app.judge_data.proposing.proposal import Lengths, Proposal, escaped
from pt_app.judge_data.proposing.questions import propose_questions
from pt_app.judge_data.question_import import converted
from pt_app.judge_data.reading.files import is_archive
from pt_app.judge_data.reading.tables import Table, open_table

# Rows that are read to recognise a shape; rows that are drawn to be tokenised, and the number of
# the longest ones that are tokenised besides.
FIRST, DRAWN, LONGEST = 200, 1000, 50
# More tokens than any example takes: nothing is cut where lengths are measured.
UNCUT = 1 << 24
STUBS: dict[str, str] = guessing.VOCABULARY["rubrics"]
_SCORE = re.compile(r"score\W{1,6}(-?\d+(?:[.,]\d+)?)(?:\s*/\s*(\d+))?", re.IGNORECASE)


def inspect(
    file: str,
    *,
    model: str = "tiny",
    reading: Reading | None = None,
    rubric: Path | None = None,
    questions: Path | None = None,
) -> Proposal:
    """Propose task, map, labels, scale, template and the next commands for a file of labels.

    The whole file is read.

    Args:
        model: Whose tokenizer measures the lengths of the proposed prompts.
        reading: How the file is to be read, where that is not recognised; proposed to import too.
        rubric: Where to write a stub of the rubric.
        questions: Where to write questions for several columns of labels.

    Raises:
        UserError: The file cannot be read, a path exists, or there are no `questions` to write.
    """
    _refuse_written(file, rubric, questions)
    reading = reading or Reading()
    table, fmt = _open(file, reading)
    columns, rows = columns_of(table)
    tally, asked = Tally(drop_bad=True), None
    if name := "" if fmt else format_of(table):
        if questions:
            raise UserError(f"{file}: its rows declare their questions: leave out --questions")
        choice, card, examples = _of_decisions(name, table, tally)
    else:
        choice, card, examples = _of_one_scale(table, fmt, columns, tally)
        try:
            asked = propose_questions(table, columns, choice.job.map.columns, reading)
        except UserError as error:
            if questions:
                problem = f"{file} gives no questions: {error}, or leave out --questions"
                raise UserError(problem) from error
    if rubric and choice.rubric:
        write_text_atomic(rubric, choice.rubric + "\n")
    if questions and asked:
        write_text_atomic(questions, asked.text)
    flags = [*choice.flags, *reading.flags()]
    flags += ["--drop_bad"] * tally.bad
    return replace(
        choice,
        flags=flags,
        tally=None if choice.missing else tally,
        file=file,
        rows=rows,
        notes=table.notes,
        columns=columns,
        rubric_path=rubric,
        questions=asked,
        questions_path=questions,
        lengths=_lengths(examples, card, model) if examples else None,
        out=_free_name(file),
    )


def _refuse_written(file: str, rubric: Path | None, questions: Path | None) -> None:
    """Raise UserError for a path that is there, or that is to be written twice."""
    for flag, path in (("--out", rubric), ("--questions", questions)):
        if path:
            refuse_overwrite([path], [file], flag)
        if path and path.exists():
            raise UserError(f"{path} is there already: choose another name with {flag}")
    if rubric and questions and rubric.resolve() == questions.resolve():
        raise UserError(f"--out and --questions are both {rubric}: name two files")


# --- what the file is ---


def _open(file: str, reading: Reading) -> tuple[Table, Format | None]:
    """Open a file as of the public format to which it belongs, else as itself."""
    packed, plain = is_archive(Path(file)), Path(file).is_file()
    for fmt in formats.FORMATS.values():
        # An archive with a known member and a file without a header show no columns by themselves.
        unnamed = fmt.reading.header and plain and not reading.header
        by_name = (fmt.member and packed) or unnamed
        if by_name and (table := _as_format(file, fmt, reading)):
            return table, fmt
    table = open_table(file, reading)
    for fmt in formats.fitting(table.columns):
        if own := _as_format(file, fmt, reading):
            return own, fmt
    return table, None


def _as_format(file: str, fmt: Format, reading: Reading) -> Table | None:
    """Open a file as of a public format; None if its first rows cannot be read as such."""
    options = FormatOptions()
    try:
        table = fmt.open(file, reading)
        scale = Scale.from_name(fmt.scale_of(options))
        list(fmt.convert(islice(table.rows(), FIRST), scale, options, lambda error: None))
    except (UserError, KeyError, TypeError, ValueError):
        return None
    return table if fmt.fits(table.columns) else None


def _own_scale(table: Table, columns: Mapping[str, Column]) -> str:
    """Return the scale of rows as docs/DATA.md describes them; "" for rows of another shape."""
    if not has_own_shape(table):
        return ""
    rows = list(islice(table.rows(), FIRST))
    answers = (str(row.get("output") or row.get("messages") or "") for _, row in rows)
    scores = _SCORE.findall(" _ ".join(answers))
    verdicts = columns.get("label.verdict") or Column("verdict", [score for score, _ in scores])
    tops = {top for _, top in scores if top}
    for name in ("pairwise", "pass_fail", *_scales_of(verdicts, sorted(tops))):
        with suppress(UserError):
            for place, value in rows:
                example_of(value, place, Scale.from_name(name))
            return name
    return ""


def _scales_of(verdicts: Column, tops: Iterable[str]) -> Iterator[str]:
    """Yield scales that may hold scores: those up to the tops written after them, the usual one."""
    if verdicts.kind == "number":
        step = f":{verdicts.step.normalize():f}" if verdicts.step and verdicts.step < 1 else ""
        for top, low in product(tops, (1, 0) if min(verdicts.numbers) >= 1 else (0,)):
            yield f"{low}-{top}{step}"
        if usual := guessing.scale_of(verdicts.numbers, verdicts.step):
            yield usual


# --- the flags of import ---


def _of_one_scale(
    table: Table, fmt: Format | None, columns: Mapping[str, Column], tally: Tally
) -> tuple[Proposal, DatasetCard, list[JudgeExample]]:
    """Take one label of each row; return also the dataset that the rows become, and these."""
    if fmt:
        choice = _of_format(fmt)
    elif name := _own_scale(table, columns):
        choice = _of_own_shape(name, columns)
    else:
        choice = _of_columns(columns)
    # Without one of the fields no row can be made.
    made = () if choice.missing else examples_of(table, choice.job, tally)
    scale, rubric = choice.job.scale, fmt.rubric if fmt else ""  # a stub is not complete
    about = {"task": scale.task, "scale": scale.name, "template": choice.template}
    card = DatasetCard.model_validate(about | {"rubric": rubric or None})
    return choice, card, [example for example, _ in made]


def _of_decisions(
    name: str, table: Table, tally: Tally
) -> tuple[Proposal, DatasetCard, list[JudgeExample]]:
    """Take rows of a decision model, which declare their questions, as `_of_one_scale` does others.

    Raises:
        UserError: no dataset can have these questions.
    """
    raw, tables = as_dataset([table], name, tally.refuse)
    _, examples = converted(tables, raw, ImportOptions(format=name), tally)
    card = DatasetCard.model_validate(raw)
    asked = questions_in(card_asks(card, Path(table.name)))
    listed = ", ".join(
        f"{one.name} ({one.scale.name if one.type == 'score' else one.type})" for one in asked
    )
    about = f"{name}: rows of a decision model, which declare {listed}"
    job = Job(Scale.from_name("0-10"))  # shown nowhere: each question has its own
    flags = ("--format", name)
    return Proposal(flags, {"decisions": about}, job, card.template, ""), card, examples


def _of_format(fmt: Format) -> Proposal:
    return Proposal(
        flags=("--format", fmt.name),
        facts={"format": fmt},
        job=Job(Scale.from_name(fmt.scale_of(FormatOptions())), format=fmt),
        template=fmt.template,
        rubric=fmt.rubric,
    )


def _of_own_shape(name: str, columns: Mapping[str, Column]) -> Proposal:
    """Take rows as they are; rows of chat bring their own prompt."""
    scale = Scale.from_name(name)
    chat = not any(column.startswith("candidate") for column in columns)
    template = "response" if "conversation" in columns else "translation_any"
    flags = ("--scale", name) if scale.task == "score" else ("--task", scale.task)
    return Proposal(
        flags if chat else (*flags, "--template", template),
        facts={"shape": "chat" if chat else "fields"},
        job=Job(scale, format=formats.CHAT),
        template=template,
        rubric="" if chat else STUBS[scale.task],
    )


def _of_columns(columns: Mapping[str, Column]) -> Proposal:
    """Guess a map, what the labels mean, and the template."""
    guessed = guessing.guess_map(columns)
    pair = "candidate_a" in guessed
    wanted = ["label", *([] if pair else ["candidate"])]
    wanted += [] if {"source", "conversation"} & set(guessed) else ["source"]
    absent = {target: target.upper() for target in wanted if target not in guessed}
    names = guessed.get("label", ())
    labels = guessing.guess_labels([columns[name] for name in names], pair)
    scale = Scale.from_name(labels.scale or "0-10")
    missing = tuple(absent.values())
    if labels.unknown or not labels.scale:
        missing += ("MEANINGS" if labels.unknown else "SCALE",)
    pairs = {target: "+".join(map(escaped, paths)) for target, paths in guessed.items()} | absent
    # A label of several lines, or with invisible characters, cannot be typed.
    unknown = [label if label.isprintable() else "LABEL" for label in labels.unknown]
    meanings = {**labels.meanings, **dict.fromkeys(unknown, "MEANINGS")}
    by_key = {key_of(label): meaning for label, meaning in labels.meanings.items()}
    unclear = next((name for name in names if columns[name].unclear), "")
    template = guessing.guess_template(guessed)
    flags = {
        "--map": ",".join(f"{target}={paths}" for target, paths in pairs.items()),
        "--labels": ",".join(f"{escaped(label)}={meant}" for label, meant in meanings.items()),
        "--scale": (labels.scale or "SCALE") if scale.task == "score" else "",
        "--task": scale.task if scale.task == "pass_fail" else "",
        "--decimal": "point" if unclear else "",
        "--template": template,
    }
    several = len(names) > 1 or "rater" in guessed or any(columns[n].most > 1 for n in names)
    return Proposal(
        flags=tuple(word for flag in flags.items() if flag[1] for word in flag),
        facts={"names": names, "labels": labels, "unclear": unclear, "several": several},
        job=Job(scale, map=ColumnMap(guessed, by_key)),
        template=template,
        rubric="" if "rubric" in guessed else STUBS[scale.task],
        missing=missing,
    )


# --- the rows of it ---


def _lengths(examples: Sequence[JudgeExample], card: DatasetCard, model: str) -> Lengths:
    """Count the tokens of prompt and answer, as the template of the dataset lays them out.

    A random draw is counted, and the examples of the most characters besides.
    """
    encoder = encoder_of(card, card_asks(card, Path("dataset.json")), model, UNCUT)
    drawn = Random(0).sample(examples, min(DRAWN, len(examples)))
    longest = nlargest(LONGEST, examples, key=_characters)
    tokens = [len(prompt.input_ids) for prompt in encoder.encode([*drawn, *longest])[0]]
    fair = sorted(tokens[: len(drawn)])
    median, p95 = fair[len(fair) // 2], fair[(len(fair) * 95 - 1) // 100]
    return Lengths(model, len(fair), median, p95, longest=max(tokens))


def _characters(example: JudgeExample) -> int:
    """Return about how long an example is, to find the longest ones before they are tokenised."""
    not_laid_out = {"id", "group", "annotators", "errors", "meta", "where"}
    return len(example.model_dump_json(exclude=not_laid_out))


def _free_name(file: str) -> str:
    """Return a folder, named after the file, that does not exist yet."""
    stem = re.sub(r"[^\w-]+", "-", Path(file.partition("::")[0]).name.partition(".")[0]).strip("-")
    names = (f"datasets/{stem or 'mine'}{end}" for end in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(name for name in names if not Path(name).exists())
