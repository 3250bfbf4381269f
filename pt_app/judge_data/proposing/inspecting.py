"""`judge init`: looks at an unknown file of labels, and proposes how to make a dataset of it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from heapq import nlargest
from itertools import islice
from pathlib import Path
from random import Random

from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite, write_text_atomic
from pt_app.core.records import JudgeExample, example_of
from pt_app.core.verdicts import Scale
from pt_app.judge_data import formats
from pt_app.judge_data.formats import Format
from pt_app.judge_data.importing import Job, Tally, examples_of, has_own_shape
from pt_app.judge_data.labels import rule
from pt_app.judge_data.mapping import ColumnMap
from pt_app.judge_data.options import FormatOptions, Reading
from pt_app.judge_data.proposing import guessing
from pt_app.judge_data.proposing.columns import Column, columns_of
from pt_app.judge_data.proposing.proposal import Lengths, Proposal, escaped
from pt_app.judge_data.reading.files import is_archive
from pt_app.judge_data.reading.tables import Table, open_table
from pt_app.judge_data.rows import Row

# Rows that are read to recognise a shape; rows that are drawn to be tokenised, and the number of
# the longest ones that are tokenised besides.
FIRST, DRAWN, LONGEST = 200, 1000, 50
# More tokens than any example takes: nothing is cut where lengths are measured.
UNCUT = 1 << 24
STUBS: dict[str, str] = guessing.VOCABULARY["rubrics"]
_SCORE = re.compile(r"score\W{1,6}(-?\d+(?:[.,]\d+)?)(?:\s*/\s*(\d+))?", re.IGNORECASE)


def inspect(
    file: str, *, model: str = "tiny", reading: Reading | None = None, rubric: Path | None = None
) -> Proposal:
    """Propose task, map, labels, scale, template and the next commands for a file of labels.

    The whole file is read.

    Args:
        model: Whose tokenizer measures the lengths of the proposed prompts.
        reading: How the file is to be read, where that is not recognised; proposed to import too.
        rubric: Where to write a stub of the rubric.

    Raises:
        UserError: The file cannot be read, or `rubric` exists.
    """
    if rubric:
        refuse_overwrite([rubric], [file])
    if rubric and rubric.exists():
        raise UserError(f"{rubric} is there already: choose another name with --out")
    reading = reading or Reading()
    table, fmt = _open(file, reading)
    columns, rows = columns_of(table)
    if fmt:
        choice = _of_format(fmt)
    elif name := _own_scale(table):
        choice = _of_own_shape(name, columns)
    else:
        choice = _of_columns(columns)
    tally = Tally(drop_bad=True)
    # Without one of the fields no row can be made.
    made = () if choice.missing else examples_of(table, choice.job, tally)
    examples = [example for example, _ in made]
    if rubric and choice.rubric:
        write_text_atomic(rubric, choice.rubric + "\n")
    flags = [*choice.flags, *_reading_flags(reading)]
    findings = {**choice.findings, **({} if choice.missing else _found_in_rows(tally))}
    return replace(
        choice,
        flags=[*flags, "--drop_bad"] if tally.dropped.first else flags,
        findings={subject: text for subject, text in findings.items() if text},
        file=file,
        rows=rows,
        notes=table.notes,
        columns=columns,
        rubric_path=rubric,
        lengths=_lengths(examples, choice, model) if examples else None,
        out=_free_name(file),
    )


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
        list(fmt.convert(islice(table.rows(), FIRST), scale, options))
    except (UserError, KeyError, TypeError, ValueError):
        return None
    return table if fmt.fits(table.columns) else None


def _reading_flags(reading: Reading) -> list[str]:
    """Return the flags of `judge data import` that read the file as `reading` does."""
    return [word for name, value in reading.given().items() for word in (f"--{name}", value)]


def _own_scale(table: Table) -> str:
    """Return the scale of rows as docs/DATA.md describes them; "" for rows of another shape."""
    if not has_own_shape(table):
        return ""
    rows = list(islice(table.rows(), FIRST))
    for name in ("pairwise", "pass_fail", *_scales_of(value for _, value in rows)):
        with suppress(UserError):
            for place, value in rows:
                example_of(value, place, Scale.from_name(name))
            return name
    return ""


def _scales_of(rows: Iterable[Row]) -> list[str]:
    """Return scales to which the scores of such rows may belong, the usual ones first."""
    cells: list[object] = []
    tops = set()
    for row in rows:
        if isinstance(label := row.get("label"), dict):
            cells.append(label.get("verdict"))
            continue
        for score, top in _SCORE.findall(str(row.get("output") or row.get("messages") or "")):
            cells.append(score)
            tops.add(top)
    scores = Column("verdict", cells)
    if scores.kind != "number":
        return []
    step = f":{scores.step.normalize():f}" if scores.step and scores.step < 1 else ""
    lows = (1, 0) if min(scores.numbers) >= 1 else (0,)
    written = [f"{low}-{top}{step}" for top in filter(None, tops) for low in lows]
    return [*written, *filter(None, [guessing.scale_of(scores.numbers, scores.step)])]


# --- the flags of import ---


def _of_format(fmt: Format) -> Proposal:
    return Proposal(
        flags=("--format", fmt.name),
        findings={"format": f"{fmt.name}: {fmt.about} ({fmt.licence})"},
        job=Job(Scale.from_name(fmt.scale_of(FormatOptions())), format=fmt),
        template=fmt.template,
        rubric=fmt.rubric,
    )


def _of_own_shape(name: str, columns: Mapping[str, Column]) -> Proposal:
    """Take rows as they are; rows of chat bring their own prompt."""
    scale = Scale.from_name(name)
    chat = not any(column.startswith("candidate") for column in columns)
    template = "response" if "conversation" in columns else "translation_any"
    flags: tuple[str, ...] = ("--scale", name) if scale.task == "score" else ("--task", scale.task)
    findings = {"rows": "as docs/DATA.md describes them, " + ("of chat" if chat else "of fields")}
    findings["task"] = _task(scale)
    if not chat:
        findings["template"] = f"{template}, by guess: see judge data preview"
        flags += ("--template", template)
    job = Job(scale, format=formats.CHAT)
    return Proposal(flags, findings, job, template, rubric="" if chat else STUBS[scale.task])


def _of_columns(columns: Mapping[str, Column]) -> Proposal:
    """Guess a map, what the labels mean, and the template."""
    guessed = guessing.guess_map(columns)
    pair = "candidate_a" in guessed
    wanted = ["label", *([] if pair else ["candidate"])]
    wanted += [] if {"source", "conversation"} & set(guessed) else ["source"]
    absent = [target for target in wanted if target not in guessed]
    names = guessed.get("label", ())
    labels = guessing.guess_labels([columns[name] for name in names], pair)
    scale = Scale.from_name(labels.scale or "0-10")
    missing = tuple(map(str.upper, absent))
    if labels.unknown or not labels.scale:
        missing += ("MEANINGS" if labels.unknown else "SCALE",)
    pairs = {target: "+".join(map(escaped, paths)) for target, paths in guessed.items()}
    pairs |= {target: target.upper() for target in absent}
    # A label of several lines, or with invisible characters, cannot be typed.
    unknown = [label if label.isprintable() else "LABEL" for label in labels.unknown]
    meanings = {**labels.meanings, **dict.fromkeys(unknown, "MEANINGS")}
    unclear = [name for name in names if columns[name].unclear]
    template = guessing.guess_template(guessed)
    flags = {
        "--map": ",".join(f"{target}={paths}" for target, paths in pairs.items()),
        "--labels": ",".join(f"{escaped(label)}={meant}" for label, meant in meanings.items()),
        "--scale": (labels.scale or "SCALE") if scale.task == "score" else "",
        "--task": scale.task if scale.task == "pass_fail" else "",
        "--decimal": "point" if unclear else "",
        "--template": template,
    }
    by_guess = (
        f"{unclear[0]} reads in two ways, by guess a comma groups thousands" if unclear else ""
    )
    several = len(names) > 1 or "rater" in guessed or any(columns[n].most > 1 for n in names)
    of_several = rule(scale).partition(": ")[2]
    no_label = "no column looks like labels: name one, or use judge data distil"
    findings = {
        "task": _task(scale) if names else "",
        "template": f"{template}, by the names of the columns",
        "labels": labels.remark,
        "decimals": by_guess,
        "raters": f"several, kept apart; their label is {of_several}" if several else "",
        "no label": "" if names else no_label,
        "meanings": f"say what {', '.join(labels.unknown)} mean with --labels" if unknown else "",
    }
    # Without one of the fields no row can be made.
    typed = {} if missing else flags
    mapped = ColumnMap.from_flags([typed.get("--map", "")], typed.get("--labels", ""))
    return Proposal(
        flags=tuple(word for flag in flags.items() if flag[1] for word in flag),
        findings=findings,
        job=Job(scale, map=mapped),
        template=template,
        rubric="" if "rubric" in guessed else STUBS[scale.task],
        missing=missing,
    )


def _task(scale: Scale) -> str:
    about = f"scale {scale.name}" if scale.task == "score" else scale.says()
    return f"{scale.task}, {about}"


# --- the rows of it ---


def _found_in_rows(tally: Tally) -> dict[str, str]:
    """Describe which rows and answers cannot be used, and how labels are read."""
    counts, first = tally.dropped.counts, tally.dropped.first  # only bad rows have a first problem
    left_out = [f"{n:,} {reason}" for reason, n in counts.most_common() if reason not in first]
    bad = sum(counts[reason] for reason in first)
    problem = next(iter(first.values()), "")
    return {
        "left out": ", ".join(left_out),
        "answers": "; ".join(tally.answers.as_answers()),
        "numbers": "; ".join(tally.decisions),
        "unusable": f"{bad:,}, left out by --drop_bad; the first: {problem}" if bad else "",
        "no rows": "" if tally.kept else "no row of the file can be used",
    }


def _lengths(examples: Sequence[JudgeExample], choice: Proposal, model: str) -> Lengths:
    """Count the tokens of prompt and answer, as the proposed template lays them out.

    A random draw is counted, and the examples of the most characters besides.
    """
    from pt_app.core.prompt_templates import Template
    from pt_app.core.prompts import PromptEncoder
    from pt_app.models import bases

    rubric = choice.job.format.rubric if choice.job.format else ""  # a stub is not complete
    template = Template.load(choice.template, rubric or None)
    drawn = Random(0).sample(examples, min(DRAWN, len(examples)))
    longest = nlargest(LONGEST, examples, key=_characters)
    tokenizer = bases.load_tokenizer(bases.resolve_tokenizer(model))
    encoder = PromptEncoder(tokenizer, template, choice.job.scale, UNCUT)
    encoded, _ = encoder.encode([*drawn, *longest])
    tokens = [len(prompt.input_ids) for prompt in encoded]
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
