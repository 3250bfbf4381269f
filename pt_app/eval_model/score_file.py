"""`judge score`: rows in, judgements out, in parts from which a killed run resumes."""

import contextlib
import csv
import io
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pt_app.core.errors import UserError
from pt_app.core.files import (
    held,
    refuse_overwrite,
    sha256_file,
    write_json_atomic,
    write_text_atomic,
)
from pt_app.core.records import Place
from pt_app.core.settings import SAMPLE
from pt_app.eval_model.options import ScoreOptions
from pt_app.judge import PROBLEM, Judge, Judgement
from pt_app.judge_data.mapping import ColumnMap
from pt_app.judge_data.options import Reading
from pt_app.judge_data.reading.tables import Table, open_table

ENDINGS = (".jsonl", ".csv", ".parquet")
PART = 500  # rows; a killed run loses at most so many
JOB = "job.json"  # in the folder of parts: whose they are
Row = tuple[Place, dict[str, Any]]


@dataclass(frozen=True)
class Shard:
    """One of several equal shards of the rows: `number` of `count`, from 1."""

    number: int = 1
    count: int = 1

    @staticmethod
    def parse(text: str) -> "Shard":
        """Read "2/8"; raises UserError for anything else."""
        number, _, count = text.partition("/")
        if number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count):
            return Shard(int(number), int(count))
        raise UserError(f"--shard {text}: write it as 1/8 for the first of eight")

    def of(self, rows: int) -> range:
        """Return the rows of this shard."""
        return range(rows * (self.number - 1) // self.count, rows * self.number // self.count)


def score_file(adapter: Path, input: str, output: Path, options: ScoreOptions) -> dict[str, int]:
    """Judge every row of `input`, write `output`; gives how many rows have which status.

    What is done so far lies in `output`.parts, and is joined at the end: the same command resumes
    where a killed one stopped. Raises UserError for files that cannot be read or written, an output
    that is also read or that another process writes, and where the parts are another job's.
    """
    if output.suffix not in ENDINGS:
        raise UserError(f"--output {output}: its ending must be one of {', '.join(ENDINGS)}")
    Shard.parse(options.shard)
    parts = output.with_name(f"{output.name}.parts")
    read = [input, str(adapter), *([options.base] if options.base else [])]
    refuse_overwrite([output, parts], read, "--output")
    lock = parts / ".lock"
    with held(lock, f"another judge score writes {output}: wait for its end, or stop it"):
        try:
            counts = _score(adapter, input, output, parts, options)
            shutil.rmtree(parts)
        finally:
            if not (parts / JOB).exists():  # refused before it began
                lock.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    parts.rmdir()
    return counts


def _score(
    adapter: Path, input: str, output: Path, parts: Path, options: ScoreOptions
) -> dict[str, int]:
    table = open_table(input, Reading(options.encoding, stand_in=lambda e: {PROBLEM: str(e)}))
    columns = ColumnMap.from_flags(options.map) if options.map else None
    if columns:
        columns.check(table.columns, table.name)
    sample = [row for _, row in itertools.islice(_rows(table, columns), SAMPLE)]
    judge = Judge.load(
        adapter,
        base=options.base,
        device=options.device,
        precision=options.precision,
        sample=sample,
    )
    mine = Shard.parse(options.shard).of(sum(1 for _ in table.rows()))
    _open_parts(parts, _job(judge, input, options))
    rows = itertools.islice(_rows(table, columns), mine.start, mine.stop)
    written = [parts / f"{number:06}.jsonl" for number in range(-(-len(mine) // PART))]
    for path in written:
        _write_part(judge, list(itertools.islice(rows, PART)), path, options.feedback)
    lines = [line for path in written for line in _lines(path)]
    if len(lines) != len(mine):
        raise UserError(
            f"{parts} holds {len(lines):,} judgements of {len(mine):,} rows: was {input} or the "
            "folder changed meanwhile? Remove the folder, and score again"
        )
    _write(output, lines)
    return dict(Counter(line["status"] for line in lines))


def _rows(table: Table, columns: ColumnMap | None) -> Iterator[Row]:
    for place, value in table.rows():
        if columns is None or PROBLEM in value:
            yield place, value
            continue
        try:
            row = columns.fields(place, value)
        except UserError as error:
            row = {PROBLEM: str(error)}
        yield place, row


def _job(judge: Judge, input: str, options: ScoreOptions) -> dict[str, Any]:
    path = Path(input.partition("::")[0])
    return {
        "judge": judge.name,
        "input": sha256_file(path) if path.is_file() else input,
        "options": json.loads(json.dumps(asdict(options))),
        "rows_a_part": PART,
    }


def _open_parts(parts: Path, job: Mapping[str, Any]) -> None:
    """Make the folder of parts, or resume in one of the same job."""
    about = parts / JOB
    if not about.exists():
        write_json_atomic(about, job)
        return
    try:
        before = json.loads(about.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{about} is damaged: remove {parts}") from error
    other = [name for name in job if before.get(name) != job[name]]
    if other:
        raise UserError(
            f"{parts} was begun with another {other[0]}: give the former again, or remove it"
        )


def _write_part(judge: Judge, batch: Sequence[Row], path: Path, feedback: bool) -> None:
    if path.exists():  # staged then renamed: it is whole
        return
    judged = judge.score(
        [row for _, row in batch],
        feedback=feedback,
        progress=True,
        places=[place for place, _ in batch],
    )
    text = "".join(json.dumps(_as_row(one), ensure_ascii=False) + "\n" for one in judged)
    write_text_atomic(path, text)


def _as_row(one: Judgement) -> dict[str, Any]:
    row = asdict(one)
    for name in ("answer", "problem"):
        if row[name] is None:
            del row[name]
    return row


def _lines(part: Path) -> Iterator[dict[str, Any]]:
    with open(part, encoding="utf-8", newline="\n") as file:
        yield from (json.loads(line) for line in file)


def _write(output: Path, rows: Sequence[dict[str, Any]]) -> None:
    if output.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text_atomic(output, text)
        return
    flat = [
        {**row, "probabilities": row["probabilities"] and json.dumps(row["probabilities"])}
        for row in rows
    ]
    names = list(dict.fromkeys(name for row in flat for name in row))
    if output.suffix == ".csv":
        text_file = io.StringIO(newline="")
        writer = csv.DictWriter(text_file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        write_text_atomic(output, text_file.getvalue())
        return
    _write_parquet(output, flat, names)


def _write_parquet(output: Path, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Write a table whose verdicts are texts: numbers and names may not share a column."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    numbers = ("confidence", "calibrated", "expected", "verdict_mass")
    kinds = dict.fromkeys(numbers, arrow.float64()) | {"abstain": arrow.bool_()}
    columns = {
        name: arrow.array(
            [_cell(row.get(name), name in kinds) for row in rows], kinds.get(name, arrow.string())
        )
        for name in names
    }
    aside = output.with_name(f".{output.name}.partial")
    try:
        with open(aside, "wb") as file:  # Arrow takes no name that is not UTF-8
            parquet.write_table(arrow.table(columns), file)
        aside.replace(output)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error}): choose another folder") from error


def _cell(value: Any, number: bool) -> Any:
    return value if number or value is None else str(value)
