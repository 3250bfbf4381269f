"""`judge score`: judge the rows of a file, in parts from which a killed run resumes.

A few parts at a time are sorted, so that rows that share the start of their prompts are in one; the
output has the order of the input. Neither rows nor judgements are held all at once.
"""

import contextlib
import csv
import io
import itertools
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

from pt_app.core import files
from pt_app.core.choosing import FAR, FAR_LINE, apart
from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite, sha256_file, shown, write_text_atomic
from pt_app.core.questions import Question
from pt_app.core.records import Place
from pt_app.core.settings import SAMPLE
from pt_app.eval_model.options import ScoreOptions
from pt_app.judge import PROBLEM, Answer, Judge, Judgement, row_id, status_of
from pt_app.judge_data.mapping import ColumnMap
from pt_app.judge_data.options import Reading
from pt_app.judge_data.question_import import StateMap
from pt_app.judge_data.reading.tables import Table, open_table
from pt_app.models.adapters import verify_adapter

# What is written of an answer to one of several questions.
ANSWERED = (
    *("value", "confidence", "calibrated", "abstain", "expected", "verdict_mass", "status"),
    "probabilities",
)
WORST_LINE = "%s: the status of a row is the worst of its answers', which have one each"
ENDINGS = (".jsonl", ".csv", ".parquet")
# Rows; a killed run loses at most so many in each worker, and as many are read with one rubric.
PART = 100
WINDOW = 200  # parts that are sorted, and put in order again, in memory
WHO = ("ray", "workers", "python")  # options that change who judges, and no judgement
JOB = "job.json"  # in the folder of parts: whose they are
log = logging.getLogger(__name__)
Json = dict[str, Any]
Row = tuple[Place, Json]
Part = Sequence[tuple[int, Row]]
"""Rows with their number in the shard."""


def shard_of(text: str, rows: int) -> range:
    """Return which of `rows` rows are in a shard, such as "2/8"; raises UserError for no shard."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"--shard {text}: write it as 1/8 for the first of eight")
    start, stop = (rows * i // int(count) for i in (int(number) - 1, int(number)))
    return range(start, stop)


def score_file(adapter: Path, input: str, output: Path, options: ScoreOptions) -> dict[str, int]:
    """Judge every row of `input`, write `output`, and return how many rows have which status.

    What is done so far lies in `output`.parts, and is joined at the end: the same command resumes
    where a killed one stopped.

    Raises:
        UserError: for files that cannot be read or written, an output that is also read or that
            another process writes, parts of another job, and a Ray cluster that is not to be had.
    """
    if output.suffix not in ENDINGS:
        raise UserError(f"--output {output}: its ending must be one of {', '.join(ENDINGS)}")
    shard_of(options.shard, 0)  # refused before anything is read
    _check_engine(options)
    parts = output.with_name(f"{output.name}.parts")
    read = [input, str(adapter), *([options.base] if options.base else [])]
    refuse_overwrite([output, parts], read, "--output")
    lock = parts / ".lock"
    with files.held(lock, f"another judge score writes {output}: wait for its end, or stop it"):
        try:
            counts = _score(adapter, input, output, parts, options)
            shutil.rmtree(parts)
        finally:
            if not any(parts.glob("*.jsonl")):  # nothing is judged that a later run would need
                for path in (parts / JOB, lock):
                    path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    parts.rmdir()
    return counts


def _score(
    adapter: Path, input: str, output: Path, parts: Path, options: ScoreOptions
) -> dict[str, int]:
    if options.workers and not options.ray:
        raise UserError(f"--workers {options.workers}: they are Ray's: say --ray auto too")
    table = open_table(input, Reading(options.encoding, stand_in=lambda e: {PROBLEM: str(e)}))
    info = verify_adapter(adapter)
    columns: ColumnMap | StateMap | None = None
    if info.state and options.feedback:
        raise UserError("--feedback: a judge of questions writes none: leave it out")
    if info.state and options.engine == "vllm":
        raise UserError("--engine vllm: it reads no judge of questions: leave it out")
    if info.state:
        columns = StateMap.of(table, options.map, info.state)
    elif options.map:
        columns = ColumnMap.from_flags(options.map)
        columns.check(table.columns, table.name)
    sample = [row for _, row in itertools.islice(_rows(table, columns), SAMPLE)]
    shard = shard_of(options.shard, sum(1 for _ in table.rows()))
    source = Path(input.partition("::")[0])  # a member of an archive follows its name
    deciding = {name: value for name, value in asdict(options).items() if name not in WHO}
    job = {
        "judge": info.name,
        "input": sha256_file(source) if source.is_file() else input,
        "options": json.loads(json.dumps(deciding)),
        "rows_a_part": PART,
        "parts_a_window": WINDOW,
    }
    _open_parts(parts, job)
    # Workers have another working folder.
    here = replace(options, base=_absolute(options.base), python=_absolute(options.python))
    start = partial(_start, adapter.absolute(), here, sample)
    rows = itertools.islice(_rows(table, columns), shard.start, shard.stop)
    missing = _missing(rows, ("rubric", *info.row_fields, "messages", "input"), parts)
    for number, lines in _done(start, missing, options):
        write_text_atomic(_path(parts, number), lines)  # a part that exists is whole
    judged = partial(_judgements, parts, len(shard))
    counts, names, far = Counter[str](), dict[str, None](), 0
    for row in judged():
        counts[row["status"]] += 1
        names |= dict.fromkeys(row)
        far += not info.state and apart(row["verdict"], row["greedy"], info.scale)
    _write(output, judged(), list(names), info.questions)
    if not info.state:
        log.info(FAR_LINE, shown(output.name), far, len(shard), FAR)
    elif counts.keys() - {"ok", "bad_row"}:
        log.info(WORST_LINE, shown(output.name))
    return dict(counts)


def _done(
    start: Callable[[], Callable[[Part], str]],
    parts: Iterable[tuple[int, Part]],
    options: ScoreOptions,
) -> Iterator[tuple[int, str]]:
    """Judge parts here or with Ray, and yield the number of each with its lines."""
    if options.ray:
        from pt_app.eval_model.workers import in_workers

        gpus = options.device.startswith("cuda")
        yield from in_workers(start, parts, options.ray, options.workers, gpus)
        return
    judged = None
    for number, part in parts:
        judged = judged or start()  # takes seconds, and is not needed if all is judged
        yield number, judged(part)


def _start(adapter: Path, options: ScoreOptions, sample: Sequence[Json]) -> Callable[[Part], str]:
    """Load the judge, in a worker or here, and return what judges a part."""
    vllm = options.engine == "vllm"
    judge = Judge.load(
        adapter,
        base=options.base,
        device="cpu" if vllm else options.device,
        precision="float32" if vllm else options.precision,  # vLLM is compared with it
        reading="exact" if vllm else options.reading,
        sample=sample,
        order=options.order,
    )
    if vllm:
        from pt_app.serving.vllm_process import read_by_vllm

        where = str(options.python), options.device, options.precision
        read_by_vllm(judge, sample, *where, options.base)
    return partial(_judged, judge, options.feedback, not options.ray)


def _absolute(path: str | None) -> str | None:
    """Return the absolute path of what exists; a hub id or a command as it is."""
    return str(Path(path).absolute()) if path and Path(path).exists() else path


def _check_engine(options: ScoreOptions) -> None:
    """Raise UserError for an engine without its interpreter, and for what it does not have."""
    if options.engine == "judge":
        if options.python:
            raise UserError("--python is only for --engine vllm: add that, or leave --python out")
        return
    not_there = {
        "--feedback": options.feedback,
        "--reading branches": options.reading == "branches",
        "--score_precision int8": options.precision == "int8",
    }
    if wrong := [flag for flag, given in not_there.items() if given]:
        raise UserError(f"{wrong[0]}: --engine vllm does not have it: leave it out")
    from pt_app.serving.vllm_process import check_interpreter

    check_interpreter(options.python)


def _missing(
    rows: Iterator[Row], shown_first: Sequence[str], parts: Path
) -> Iterator[tuple[int, Part]]:
    """Yield the parts that are not judged yet, with their numbers.

    Args:
        rows: of the shard.
        shown_first: fields in the order of the prompt, by which the rows of a window are sorted.
        parts: the folder of those that are.
    """
    numbered, number = enumerate(rows), itertools.count()
    while window := list(itertools.islice(numbered, WINDOW * PART)):
        window.sort(key=lambda each: [str(each[1][1].get(name) or "") for name in shown_first])
        for first in range(0, len(window), PART):
            if not _path(parts, this := next(number)).exists():
                yield this, window[first : first + PART]


def _path(parts: Path, number: int) -> Path:
    return parts / f"{number:06}.jsonl"


def _judgements(parts: Path, count: int) -> Iterator[Json]:
    """Yield the judgements of all rows in their order, of which a window is in memory.

    Raises UserError where a row has none, or several.
    """
    for first in range(0, count, WINDOW * PART):
        last = min(first + WINDOW * PART, count)
        paths = [_path(parts, n) for n in range(first // PART, -(-last // PART))]
        window = sorted(itertools.chain(*map(_read_part, paths)), key=itemgetter(0))
        if [number for number, _ in window] != list(range(first, last)):
            raise UserError(
                f"{parts} holds {len(window):,} judgements of the {last - first:,} rows from "
                f"{first + 1:,} on: was the input or the folder changed meanwhile? Remove the "
                "folder, and score again"
            )
        yield from (row for _, row in window)


def _read_part(path: Path) -> list[tuple[int, Json]]:
    if not path.exists():
        return []
    try:
        with open(path, encoding="utf-8", newline="\n") as file:  # texts may hold other line ends
            return [(int(number), dict(row)) for number, row in map(json.loads, file)]
    except (ValueError, TypeError) as error:
        remedy = f"remove {path.parent}, and score again"
        raise UserError(f"{path} is damaged ({error}): {remedy}") from error


def _rows(table: Table, columns: ColumnMap | StateMap | None) -> Iterator[Row]:
    for place, value in table.rows():
        if columns is None or PROBLEM in value:
            yield place, value
            continue
        try:
            row = columns.fields(place, value)
        except UserError as error:
            row = {PROBLEM: str(error)}
        yield place, row


def _open_parts(parts: Path, job: Json) -> None:
    """Make the folder of parts, or resume in one of the same job."""
    path = parts / JOB
    if not path.exists():
        files.write_json_atomic(path, job)
        return
    before = files.read_json(path, remedy=f"remove {parts}")
    if differing := [name for name in job if before.get(name) != job[name]]:
        raise UserError(
            f"{parts} was begun with another {differing[0]}: give the former again, or remove it"
        )


def _judged(judge: Judge, feedback: bool, progress: bool, part: Part) -> str:
    """Judge the rows of a part: a line each, with the number of the row."""
    places, rows = [place for _, (place, _) in part], [row for _, (_, row) in part]
    if judge.info.questions:
        answers = judge.answer(rows, places, progress=progress)
        named = zip(rows, places, answers, strict=True)
        judged = [_answer_row(*each, judge.name) for each in named]
    else:
        scored = judge.score(rows, feedback=feedback, progress=progress, places=places)
        judged = list(map(_as_row, scored))
    numbers = [number for number, _ in part]
    return "".join(map(_as_line, zip(numbers, judged, strict=True)))


def _as_row(judgement: Judgement) -> Json:
    optional = ("answer", "problem")
    return {k: v for k, v in asdict(judgement).items() if k not in optional or v is not None}


def _answer_row(row: Json, place: Place, answers: dict[str, Answer] | str, judge: str) -> Json:
    """Lay out the answers about a row: a set of columns for each question."""
    named: Json = {"id": row_id(row, place), "status": "bad_row", "judge": judge}
    if isinstance(answers, str):
        return named | {"problem": answers}
    columns = {
        f"{name}.{field}": getattr(answer, field)
        for name, answer in answers.items()
        for field in ANSWERED
    }
    return named | {"status": status_of(answers)} | columns


def _as_line(row: object) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _write(
    output: Path, rows: Iterable[Json], names: Sequence[str], questions: Sequence[Question]
) -> None:
    # A CSV file has no truth values: they are true and false, as among the probabilities.
    written = dict | bool if output.suffix == ".csv" else dict
    flat = (
        {k: json.dumps(cell) if isinstance(cell, written) else cell for k, cell in row.items()}
        for row in rows
    )
    with files.staged(output) as file:
        if output.suffix == ".parquet":
            _write_parquet(file, flat, names, questions)
            return
        text = io.TextIOWrapper(file, "utf-8", newline="")
        if output.suffix == ".csv":
            writer = csv.DictWriter(text, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(flat)
        else:
            text.writelines(map(_as_line, rows))
        text.detach()


def _write_parquet(
    file: IO[bytes], rows: Iterator[Json], names: Sequence[str], questions: Sequence[Question]
) -> None:
    """Write a table in which answers have the types of their questions, and verdicts are texts."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    of = dict.fromkeys(("confidence", "calibrated", "expected", "verdict_mass"), arrow.float64())
    of |= dict.fromkeys(("abstain", "consistent"), arrow.bool_())
    # Of several questions behind the name of each, which may hold a point.
    kinds = {name: of[last] for name in names if (last := name.rpartition(".")[2]) in of}
    for question in questions:
        if question.type == "bool":
            kinds[f"{question.name}.value"] = arrow.bool_()
        elif question.type == "score":
            whole = all(isinstance(value, int) for value in question.scale.values)
            kinds[f"{question.name}.value"] = arrow.int64() if whole else arrow.float64()
    schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in names])
    with parquet.ParquetWriter(file, schema) as writer:  # Arrow takes no name that is not UTF-8
        while group := list(itertools.islice(rows, WINDOW * PART)):
            texts = [
                {k: v if k in kinds or v is None else str(v) for k, v in row.items()}
                for row in group
            ]
            writer.write_table(arrow.Table.from_pylist(texts, schema))
