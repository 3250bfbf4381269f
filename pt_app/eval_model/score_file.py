"""`judge score`: judge the rows of a file, in parts from which a killed run resumes."""

import contextlib
import csv
import io
import itertools
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pt_app.core import files
from pt_app.core.choosing import FAR, FAR_LINE, apart
from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite, sha256_file, shown, write_text_atomic
from pt_app.core.records import Place
from pt_app.core.settings import SAMPLE
from pt_app.eval_model.options import ScoreOptions
from pt_app.judge import PROBLEM, Answer, Judge, row_id
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
ENDINGS = (".jsonl", ".csv", ".parquet")
PART = 500  # rows; a killed run loses at most so many
JOB = "job.json"  # in the folder of parts: whose they are
log = logging.getLogger(__name__)
Json = dict[str, Any]
Row = tuple[Place, Json]


def shard_of(text: str, rows: int) -> range:
    """Return which of `rows` rows are in a shard, such as "2/8"; raises UserError for no shard."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise UserError(f"--shard {text}: write it as 1/8 for the first of eight")
    start, stop = (rows * i // int(count) for i in (int(number) - 1, int(number)))
    return range(start, stop)


def score_file(adapter: Path, input: str, output: Path, options: ScoreOptions) -> dict[str, int]:
    """Judge every row of `input`, write `output`, and return how many rows have which status.

    What is done so far lies in `output`.parts, and is joined at the end: the same command resumes
    where a killed one stopped.

    Raises:
        UserError: for files that cannot be read or written, an output that is also read or that
            another process writes, and parts of another job.
    """
    if output.suffix not in ENDINGS:
        raise UserError(f"--output {output}: its ending must be one of {', '.join(ENDINGS)}")
    shard_of(options.shard, 0)  # refused before anything is read
    parts = output.with_name(f"{output.name}.parts")
    read = [input, str(adapter), *([options.base] if options.base else [])]
    refuse_overwrite([output, parts], read, "--output")
    lock = parts / ".lock"
    with files.held(lock, f"another judge score writes {output}: wait for its end, or stop it"):
        try:
            counts = _score(adapter, input, output, parts, options)
            shutil.rmtree(parts)
        finally:
            if not (parts / JOB).exists():  # the job was refused before it began
                lock.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    parts.rmdir()
    return counts


def _score(
    adapter: Path, input: str, output: Path, parts: Path, options: ScoreOptions
) -> dict[str, int]:
    table = open_table(input, Reading(options.encoding, stand_in=lambda e: {PROBLEM: str(e)}))
    state = verify_adapter(adapter).state
    columns: ColumnMap | StateMap | None = None
    if state and options.feedback:
        raise UserError("--feedback: a judge of questions writes none: leave it out")
    if state:
        columns = StateMap.of(table, options.map, state)
    elif options.map:
        columns = ColumnMap.from_flags(options.map)
        columns.check(table.columns, table.name)
    sample = [row for _, row in itertools.islice(_rows(table, columns), SAMPLE)]
    judge = Judge.load(
        adapter,
        base=options.base,
        device=options.device,
        precision=options.precision,
        reading=options.reading,
        sample=sample,
        order=options.order,
    )
    shard = shard_of(options.shard, sum(1 for _ in table.rows()))
    source = Path(input.partition("::")[0])  # a member of an archive follows its name
    job = {
        "judge": judge.name,
        "input": sha256_file(source) if source.is_file() else input,
        "options": json.loads(json.dumps(asdict(options))),
        "rows_a_part": PART,
    }
    _open_parts(parts, job)
    rows = itertools.islice(_rows(table, columns), shard.start, shard.stop)
    judged: list[Json] = []
    for number in range(-(-len(shard) // PART)):
        path, batch = parts / f"{number:06}.jsonl", list(itertools.islice(rows, PART))
        if not path.exists():  # staged then renamed: a part that exists is whole
            _write_part(judge, batch, path, options.feedback)
        with open(path, encoding="utf-8", newline="\n") as file:  # texts may hold other line ends
            judged += map(json.loads, file)
    if len(judged) != len(shard):
        raise UserError(
            f"{parts} holds {len(judged):,} judgements of {len(shard):,} rows: was {input} or the "
            "folder changed meanwhile? Remove the folder, and score again"
        )
    _write(output, judged)
    if state:
        return dict(Counter(row["status"] for row in judged))
    far = sum(apart(row["verdict"], row["greedy"], judge.info.scale) for row in judged)
    log.info(FAR_LINE, shown(output.name), far, len(judged), FAR)
    return dict(Counter(row["status"] for row in judged))


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
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: remove {parts}") from error
    if differing := [name for name in job if before.get(name) != job[name]]:
        raise UserError(
            f"{parts} was begun with another {differing[0]}: give the former again, or remove it"
        )


def _write_part(judge: Judge, batch: Sequence[Row], path: Path, feedback: bool) -> None:
    places, rows = [place for place, _ in batch], [row for _, row in batch]
    if judge.info.questions:
        answers = judge.answer(rows, places, progress=True)
        named = zip(rows, places, answers, strict=True)
        write_text_atomic(path, _as_lines([_answer_row(*each, judge.name) for each in named]))
        return
    judged = map(asdict, judge.score(rows, feedback=feedback, progress=True, places=places))
    optional = ("answer", "problem")
    kept = [{k: v for k, v in one.items() if k not in optional or v is not None} for one in judged]
    write_text_atomic(path, _as_lines(kept))


def _answer_row(row: Json, place: Place, answers: dict[str, Answer] | str, judge: str) -> Json:
    """Lay out the answers about a row: a set of columns for each question."""
    named: Json = {"id": row_id(row, place), "status": "bad_row", "judge": judge}
    if isinstance(answers, str):
        return named | {"problem": answers}
    statuses = [answer.status for answer in answers.values() if answer.status != "ok"]
    columns = {
        f"{name}.{field}": getattr(answer, field)
        for name, answer in answers.items()
        for field in ANSWERED
    }
    return named | {"status": statuses[0] if statuses else "ok"} | columns


def _as_lines(rows: Sequence[Json]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write(output: Path, rows: Sequence[Json]) -> None:
    if output.suffix == ".jsonl":
        write_text_atomic(output, _as_lines(rows))
        return
    flat = [
        {k: json.dumps(cell) if isinstance(cell, dict) else cell for k, cell in row.items()}
        for row in rows
    ]
    names = list(dict.fromkeys(name for row in flat for name in row))
    if output.suffix == ".parquet":
        _write_parquet(output, flat, names)
        return
    text_file = io.StringIO(newline="")
    writer = csv.DictWriter(text_file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_text_atomic(output, text_file.getvalue())


def _write_parquet(output: Path, rows: Sequence[Json], names: Sequence[str]) -> None:
    """Write a table whose verdicts are texts: numbers and names may not share a column."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    of = dict.fromkeys(("confidence", "calibrated", "expected", "verdict_mass"), arrow.float64())
    of |= dict.fromkeys(("abstain", "consistent"), arrow.bool_())
    # Of several questions behind the name of each, which may hold a point.
    kinds = {name: of[last] for name in names if (last := name.rpartition(".")[2]) in of}
    texts = [{k: v if k in kinds or v is None else str(v) for k, v in row.items()} for row in rows]
    schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in names])
    staged = output.with_name(f".{output.name}.partial")
    try:
        with open(staged, "wb") as file:  # Arrow takes no name that is not UTF-8
            parquet.write_table(arrow.Table.from_pylist(texts, schema), file)
        staged.replace(output)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error}): choose another folder") from error
