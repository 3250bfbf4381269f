"""Asks a teacher about every row of a file, and makes a dataset folder of its answers."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite
from pt_app.core.flags import check
from pt_app.core.prompt_templates import Template, fill, scale_fields
from pt_app.core.records import JudgeExample, Place, example_of
from pt_app.core.verdicts import Scale
from pt_app.judge_data.distil.answers import (
    MalformedError,
    asked_again,
    messages_for,
    read_answer,
    schema_for,
)
from pt_app.judge_data.folder import FolderSummary, build_folder
from pt_app.judge_data.groups import group_of
from pt_app.judge_data.mapping import TARGETS, ColumnMap
from pt_app.judge_data.options import DistilOptions, SplitPlan
from pt_app.judge_data.reading.tables import open_table
from pt_app.judge_data.rows import Row
from pt_app.judge_data.writing import FILES
from pt_app.models.endpoint.budget import Budget, MoneySpentError, Usage
from pt_app.models.endpoint.journal import Journal
from pt_app.models.endpoint.reply import RefusedError
from pt_app.models.endpoint.teacher import Teacher
from pt_app.models.endpoint.workers import in_parallel

TRIES = 2  # a malformed answer is asked for once more
# So many requests refused, and none answered, are the endpoint's fault and not the rows'.
REFUSED_AT_FIRST = 5


@dataclass(frozen=True)
class DistilSummary:
    """What was asked and answered, over all runs on this journal, and the folder it became."""

    asked: int
    answered: int
    set_aside: dict[str, int]
    usage: Usage
    spent: float
    folder: FolderSummary

    def lines(self) -> list[str]:
        """Say it in a few lines."""
        tokens = f"{self.usage.prompt:,} + {self.usage.answer:,} tokens"
        lines = [f"{self.answered:,} of {self.asked:,} rows answered, {tokens}, ${self.spent:.4f}"]
        lines += [f"  {n:,} set aside: {reason}" for reason, n in self.set_aside.items()]
        return [*lines, *self.folder.lines()]


@dataclass(frozen=True)
class _Question:
    key: str
    row: Row
    place: Place
    messages: list[dict[str, str]]


def distil(
    file: Path, out: Path, options: DistilOptions, plan: SplitPlan, progress: bool = True
) -> DistilSummary:
    """Ask a teacher about each row of `file`, and write the dataset folder `out`.

    Every answer is appended to `<out>.journal.jsonl` as it comes; the same command goes on from
    there. Raises UserError for a file that cannot be read, an endpoint that is down or refuses,
    and where `max_cost` is reached; the journal stays.
    """
    out = Path(out)
    journal_path = out.with_name(f"{out.name}.journal.jsonl")
    read = [file, *([options.rubric] if options.rubric else [])]
    refuse_overwrite([*(out / name for name in FILES), journal_path], read)
    scale = _scale(options)
    rubric = _rubric(options, scale)
    questions = _questions(file, options, scale, rubric)
    settings = _settings(options, scale, rubric)
    journal = Journal(journal_path, settings)
    try:
        run = _Run(questions, options, scale, journal, progress)
        run.ask()
    finally:
        journal.close()
    examples = run.examples()
    if not examples:
        raise UserError(
            f"none of {len(questions)} rows was answered usably ({run.reasons()}): "
            f"see {journal.path}"
        )
    card = _card(run, options, scale, rubric, file)
    folder = build_folder(out, examples, card, plan, progress=progress)
    return run.summary(folder)


class _Run:
    """One process's part of a distillation, on a journal that may hold others' parts."""

    def __init__(
        self,
        questions: Sequence[_Question],
        options: DistilOptions,
        scale: Scale,
        journal: Journal,
        progress: bool,
    ) -> None:
        self.questions, self.options, self.scale = questions, options, scale
        self.journal, self.progress = journal, progress
        self.budget = Budget.of(options)
        self.budget.spent = self.spent()
        self.done: dict[str, dict[str, Any]] = {}
        self.malformed: dict[str, list[dict[str, Any]]] = {}
        for entry in journal.entries:
            self._note(entry)

    def ask(self) -> None:
        """Ask what the journal does not answer yet."""
        waiting = {q.key: q for q in self.questions if q.key not in self.done}
        if waiting:
            asyncio.run(self._ask_all(list(waiting.values())))

    async def _ask_all(self, waiting: Sequence[_Question]) -> None:
        names = ("base_url", "key_env", "max_tokens", "temperature", "timeout", "retries")
        given = {name: getattr(self.options, name) for name in names}
        teacher = Teacher(self.options.model, self.budget, **given)
        try:
            await in_parallel(
                waiting,
                lambda question: self._answer(teacher, question),
                self.options.concurrency,
                self.budget,
                "distil",
                self.progress,
            )
        except MoneySpentError as error:
            raise UserError(
                f"stopped at --max_cost {self.options.max_cost:g}: {len(self.done)} of "
                f"{len(self.questions)} rows answered for ${self.budget.spent:.4f}: the journal "
                "keeps them; go on with the same command and a higher --max_cost"
            ) from error
        finally:
            await teacher.close()

    async def _answer(self, teacher: Teacher, question: _Question) -> None:
        """Ask until the answer can be used, at most TRIES times over all runs."""
        schema = schema_for(self.scale, self.options.write)
        tried = self.malformed.get(question.key, [])
        while len(tried) < TRIES:
            messages = question.messages
            if tried:
                messages = asked_again(messages, tried[-1]["text"], tried[-1]["reason"])
            try:
                reply = await teacher.ask(messages, schema)
            except RefusedError as refused:
                self._append({"key": question.key, "status": "refused", "reason": str(refused)})
                self._stop_if_all_refused()
                return
            entry: dict[str, Any] = {"key": question.key, "id": question.row["id"]}
            entry |= {"text": reply.text, "usage": asdict(reply.usage)}
            entry |= {"usage_estimated": True} if reply.estimated else {}
            try:
                read_answer(reply.text, question.row, self.scale, self.options.write)
                self._append(entry | {"status": "ok"})
                return
            except MalformedError as malformed:
                reason = "it was cut at --max_tokens" if reply.cut else str(malformed)
                self._append(entry | {"status": "malformed", "reason": reason})
                tried = self.malformed[question.key]

    def _append(self, entry: dict[str, Any]) -> None:
        self.journal.append(entry)
        self._note(entry)

    def _note(self, entry: dict[str, Any]) -> None:
        key = entry["key"]
        if entry["status"] != "malformed":
            self.done[key] = entry
            return
        tried = self.malformed.setdefault(key, [])
        tried.append(entry)
        if len(tried) >= TRIES:
            self.done[key] = entry

    def _stop_if_all_refused(self) -> None:
        statuses = Counter(entry["status"] for entry in self.done.values())
        if statuses["refused"] >= REFUSED_AT_FIRST and len(statuses) == 1:
            reason = next(iter(self.done.values()))["reason"]
            raise UserError(f"the endpoint refuses every request ({reason}): correct the settings")

    def examples(self) -> list[JudgeExample]:
        """Make examples of all answers that can be used, in the file's order."""
        found = []
        for question in self.questions:
            entry = self.done.get(question.key, {})
            if entry.get("status") == "ok":
                rows = read_answer(entry["text"], question.row, self.scale, self.options.write)
                found += [self._example(row, question.place) for row in rows]
        return found

    def _example(self, row: Row, place: Place) -> JudgeExample:
        example = example_of(row, place, self.scale)
        own = {} if row.get("group") else {"group": group_of(example)}
        return example.model_copy(update=own)

    def usage(self) -> Usage:
        """Sum the tokens of every answer in the journal, malformed ones too."""
        found = [entry["usage"] for entry in self.journal.entries if "usage" in entry]
        return Usage(sum(u["prompt"] for u in found), sum(u["answer"] for u in found))

    def spent(self) -> float:
        """Dollars for every answer in the journal, at today's prices."""
        usage = self.usage()
        return (usage.prompt * self.options.price_in + usage.answer * self.options.price_out) / 1e6

    def set_aside(self) -> dict[str, int]:
        """Count by reason the rows without a usable answer."""
        entries = (self.done.get(question.key) for question in self.questions)
        return dict(Counter(e["reason"] for e in entries if e and e["status"] != "ok"))

    def reasons(self) -> str:
        """Say why rows were set aside, in a line."""
        return "; ".join(f"{n} {reason}" for reason, n in self.set_aside().items()) or "no rows"

    def summary(self, folder: FolderSummary) -> DistilSummary:
        """Sum it all up."""
        aside = self.set_aside()
        answered = len(self.questions) - sum(aside.values())
        return DistilSummary(
            len(self.questions), answered, aside, self.usage(), self.spent(), folder
        )


def _scale(options: DistilOptions) -> Scale:
    scale = Scale.from_name(options.scale if options.task == "score" else options.task)
    check(options)
    if options.max_cost and not (options.price_in or options.price_out):
        raise UserError("--max_cost needs the prices: give --price_in and --price_out")
    return scale


def _rubric(options: DistilOptions, scale: Scale) -> str:
    if options.rubric is not None:
        try:
            text = options.rubric.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--rubric {options.rubric} cannot be read: {error}") from error
        return text
    return Template.load(_template(options)).rubric


def _template(options: DistilOptions) -> str:
    return options.template or ("translation_any" if options.task == "score" else "response")


def _questions(file: Path, options: DistilOptions, scale: Scale, rubric: str) -> list[_Question]:
    """Lay out what is asked of each row; a row that stands twice is asked about once."""
    table = open_table(str(file))
    by_name = [f"{name}={name}" for name in TARGETS if name in table.columns and name != "label"]
    map = ColumnMap.from_flags(options.map or by_name)
    map.check(table.columns, table.name)
    wanted = "candidates" if scale.task == "pairwise" else "candidate"
    shown_rubric = fill(rubric, scale_fields(scale))
    questions = []
    for place, value in table.rows():
        row = map.fields(place, value)
        if "candidates" in value and "candidates" not in row and not options.map:
            row["candidates"] = value["candidates"]
        if not row.get("source") and not row.get("conversation"):
            raise place.error("source", "the row has none", "name its column: --map source=COLUMN")
        if not options.write and row.get(wanted) is None:
            remedy = f"name its column with --map {wanted}=..., or have some written with --write 4"
            raise place.error(wanted, "the row has none", remedy)
        messages = messages_for(row, scale, row.get("rubric") or shown_rubric, options.write)
        text = json.dumps(messages, ensure_ascii=False)
        key = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        questions.append(_Question(key, row, place, messages))
    if not questions:
        raise UserError(f"{file} holds no rows: name a file with rows")
    return questions


def _settings(options: DistilOptions, scale: Scale, rubric: str) -> dict[str, Any]:
    """Name what decides an answer: a journal is of one such set."""
    return {
        "model": options.model,
        "scale": scale.name,
        "write": options.write,
        "temperature": options.temperature,
        "max_tokens": options.max_tokens,
        "rubric": sha256(rubric.encode()).hexdigest()[:12],
    }


def _card(
    run: _Run, options: DistilOptions, scale: Scale, rubric: str, file: Path
) -> dict[str, Any]:
    return {
        "task": scale.task,
        "scale": scale.name,
        "template": _template(options),
        **({"rubric": rubric} if options.rubric is not None else {}),
        "origin": f"labels by the model {options.model} on {Path(file).name}, by no person",
        "licence": options.licence or "not stated",
        "distil": {
            "model": options.model,
            "write": options.write,
            "usage": asdict(run.usage()),
            "spent": round(run.spent(), 6),
            "set_aside": run.set_aside(),
        },
    }
