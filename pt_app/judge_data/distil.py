"""Ask a teacher about every row of a file, and make a dataset folder of its answers."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from string import Template as StringTemplate
from typing import Any, Literal, Self

from pydantic import BaseModel, ValidationError, model_validator

from pt_app.core.errors import UserError
from pt_app.core.files import read_text, refuse_overwrite
from pt_app.core.flags import check
from pt_app.core.prompt_templates import Template, fill, scale_fields
from pt_app.core.records import JudgeExample, Place, example_of, first_problem
from pt_app.core.verdicts import Scale
from pt_app.judge_data.folder import FILES, FolderSummary, build_folder
from pt_app.judge_data.labels import LabelReader
from pt_app.judge_data.mapping import TARGETS, ColumnMap
from pt_app.judge_data.options import DistilOptions, SplitPlan
from pt_app.judge_data.reading.tables import open_table
from pt_app.judge_data.rows import Row, parsed
from pt_app.judge_data.splitting import group_of
from pt_app.models.endpoint.budget import Budget, Usage
from pt_app.models.endpoint.client import Client
from pt_app.models.endpoint.journal import Entry, Journal
from pt_app.models.endpoint.reply import RefusedError, answer_part, parsed_json

TRIES = 2  # a malformed answer is asked for once more
# So many requests refused, and none answered, are the endpoint's fault and not the rows'.
REFUSED_AT_FIRST = 5
PROMPTS = Path(__file__).with_name("distil_prompts")
SHOWN = ("source", "conversation", "context", "reference", "rubric", "candidate")
MAX_IN_ENUM = 30  # endpoints limit the values of an enum
_FENCE = re.compile(r"\A\s*```(?:json)?\s*(.*?)\s*```\s*\Z", re.DOTALL)
Turns = list[dict[str, str]]
Schema = Mapping[str, object]


class MalformedError(Exception):
    """An answer that is not of the form asked for; its text says why, in a few words."""


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
        """Summarise it in a few lines."""
        tokens = f"{self.usage.prompt:,} + {self.usage.answer:,} tokens"
        lines = [f"{self.answered:,} of {self.asked:,} rows answered, {tokens}, ${self.spent:.4f}"]
        lines += [f"  {n:,} set aside: {reason}" for reason, n in self.set_aside.items()]
        return [*lines, *self.folder.lines()]


@dataclass(frozen=True)
class _Question:
    key: str
    row: Row
    place: Place
    messages: Turns


def distil(file: Path, out: Path, options: DistilOptions, plan: SplitPlan) -> DistilSummary:
    """Ask a teacher about each row of `file`, and write the dataset folder `out`.

    Every answer is appended to `<out>.journal.jsonl` when it arrives; the same command resumes
    from there. Raises UserError for a file that cannot be read, an endpoint that is down or
    refuses, and where `max_cost` is reached; the journal stays.
    """
    path = out.with_name(f"{out.name}.journal.jsonl")
    read = [file, *([options.rubric] if options.rubric else [])]
    refuse_overwrite([*(out / name for name in FILES), path], read)
    check(options)
    if not path.exists() and any((out / name).exists() for name in FILES):
        remedy = "choose another folder with --out, or delete it"
        raise UserError(f"{out} is there and comes from another command: {remedy}")
    if options.max_cost and not (options.price_in or options.price_out):
        raise UserError("--max_cost needs the prices: give --price_in and --price_out")
    scale = Scale.from_name(options.scale if options.task == "score" else options.task)
    template = options.template or ("translation_any" if scale.task == "score" else "response")
    own_rubric = None
    if options.rubric:
        lines = read_text(options.rubric).replace("\r\n", "\n")
        own_rubric = lines.replace("\r", "\n").strip()
    rubric = Template.load(template).rubric if own_rubric is None else own_rubric
    questions = _questions(file, options, scale, rubric)
    # What decides an answer: a journal of other settings is refused.
    settings = _picked(options, "model", "write", "temperature", "max_tokens")
    settings |= {"scale": scale.name, "rubric": sha256(rubric.encode()).hexdigest()[:12]}
    with closing(Journal(path, settings, _Answered)) as journal:
        run = _Run(questions, options, scale, journal)
        run.ask()
    aside, usage = run.set_aside(), run.usage()
    spent = run.budget.cost(usage)
    examples = run.examples()
    if not examples:
        reasons = "; ".join(f"{n} {reason}" for reason, n in aside.items())
        problem = f"none of {len(questions)} rows was answered usably ({reasons})"
        raise UserError(f"{problem}: see {path}")
    about = _picked(options, "model", "write") | {"usage": asdict(usage)}
    card = {
        "task": scale.task,
        "scale": scale.name,
        "template": template,
        **({} if own_rubric is None else {"rubric": rubric}),
        "origin": f"labels by the model {options.model} on {file.name}, by no person",
        "licence": options.licence or "not stated",
        "distil": about | {"spent": round(spent, 6), "set_aside": aside},
    }
    folder = build_folder(out, examples, card, plan)
    answered = len(questions) - sum(aside.values())
    return DistilSummary(len(questions), answered, aside, usage, spent, folder)


class _Answered(BaseModel):
    """What an entry of the journal must hold."""

    key: str
    status: Literal["ok", "refused", "malformed"]
    text: str | None = None
    reason: str | None = None
    usage: Usage = Usage()

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        needed = {"ok": ["text"], "refused": ["reason"]}.get(self.status, ["text", "reason"])
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"an answer that is {self.status} needs {missing[0]}")
        return self


class _Run:
    """The questions, and their answers in a journal that may hold those of earlier runs."""

    def __init__(
        self, questions: Sequence[_Question], options: DistilOptions, scale: Scale, journal: Journal
    ) -> None:
        self.questions, self.options, self.scale = questions, options, scale
        self.journal, self.budget = journal, Budget(options)
        self.budget.spent = self.budget.cost(self.usage())
        self.entries: dict[str, list[Entry]] = defaultdict(list)
        for entry in journal.entries:
            self.entries[entry["key"]].append(entry)

    def ask(self) -> None:
        """Ask what the journal does not answer yet."""
        if waiting := {q.key: q for q in self.questions if not self._answer_to(q)}:
            names = ("model", "base_url", "max_tokens", "temperature", "timeout", "retries")
            client = Client(budget=self.budget, **_picked(self.options, *names))
            client.ask_all([*waiting.values()], partial(self._ask, client), "distil")

    async def _ask(self, client: Client, question: _Question) -> None:
        """Ask until the answer can be used, at most TRIES times over all runs."""
        schema = schema_for(self.scale, self.options.write)
        tried = self.entries[question.key]
        while not self._answer_to(question):
            messages = question.messages
            if tried:
                messages = asked_again(messages, tried[-1]["text"], tried[-1]["reason"])
            entry: Entry = {"key": question.key, "id": question.row["id"], "status": "ok"}
            try:
                reply = await client.ask(messages, schema)
                entry |= {"text": reply.text, "usage": asdict(reply.usage)}
                entry |= {"usage_estimated": True} if reply.estimated else {}
                read_answer(reply.text, question.row, self.scale, self.options.write)
            except RefusedError as refused:
                entry |= {"status": "refused", "reason": str(refused)}
            except MalformedError as malformed:
                reason = "it was cut at --max_tokens" if reply.cut else str(malformed)
                entry |= {"status": "malformed", "reason": reason}
            self.journal.append(entry)
            tried.append(entry)
            self._stop_if_all_refused()

    def _answer_to(self, question: _Question) -> Entry | None:
        """Return the last answer to a question; a malformed one only after TRIES of them."""
        entries = self.entries[question.key]
        last = entries[-1] if entries else None
        return None if last and last["status"] == "malformed" and len(entries) < TRIES else last

    def _stop_if_all_refused(self) -> None:
        entries = self.journal.entries
        if len(entries) >= REFUSED_AT_FIRST and all(e["status"] == "refused" for e in entries):
            reason = entries[0]["reason"]
            raise UserError(f"the endpoint refuses every request ({reason}): correct the settings")

    def examples(self) -> list[JudgeExample]:
        """Make examples of all answers that can be used, in the file's order."""
        examples = []
        for question in self.questions:
            entry = self._answer_to(question)
            if entry is None or entry["status"] != "ok":
                continue
            try:
                rows = read_answer(entry["text"], question.row, self.scale, self.options.write)
            except MalformedError as error:
                problem = f"the answer about {question.place} cannot be read ({error})"
                raise UserError(f"{self.journal.path}: {problem}: remove its line") from error
            for row in rows:
                example = example_of(row, question.place, self.scale)
                group = example.group if row.get("group") else group_of(example)
                examples.append(example.model_copy(update={"group": group}))
        return examples

    def usage(self) -> Usage:
        """Sum the tokens of every answer in the journal, malformed ones too."""
        usages = [entry["usage"] for entry in self.journal.entries if "usage" in entry]
        return Usage(sum(u["prompt"] for u in usages), sum(u["answer"] for u in usages))

    def set_aside(self) -> dict[str, int]:
        """Count by reason the rows without a usable answer."""
        entries = map(self._answer_to, self.questions)
        return dict(Counter(e["reason"] for e in entries if e and e["status"] != "ok"))


def _picked(options: DistilOptions, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}


def _questions(file: Path, options: DistilOptions, scale: Scale, rubric: str) -> list[_Question]:
    """Write what is asked of each row; a row that occurs twice is asked about once."""
    table = open_table(str(file))
    by_name = [f"{name}={name}" for name in TARGETS if name in table.columns and name != "label"]
    columns = ColumnMap.from_flags(options.map or by_name)
    columns.check(table.columns, table.name)
    pair = scale.task == "pairwise"
    wanted = "candidates" if pair else "candidate"
    unwritten: Row = {wanted: ("", "") if pair else ""} if options.write else {}
    shown_rubric = fill(rubric, scale_fields(scale))
    questions = []
    for place, value in table.rows():
        row = columns.fields(place, value)
        if pair and wanted not in row and not (options.map or options.write):
            row["candidates"] = parsed(value.get("candidates"))
        if not row.get("source") and not row.get("conversation"):
            raise place.error("source", "the row has none", "name its column: --map source=COLUMN")
        if not options.write and row.get(wanted) is None:
            remedy = f"name its column with --map {wanted}=..., or have some written with --write 4"
            raise place.error(wanted, "the row has none", remedy)
        # What is wrong with a row is said before its answer is paid for.
        example_of(row | unwritten, place, scale)
        messages = messages_for(row, scale, row.get("rubric") or shown_rubric, options.write)
        text = json.dumps(messages, ensure_ascii=False)
        key = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        questions.append(_Question(key, row, place, messages))
    return questions


# --- what a teacher is asked, and how its answer is read ---


def messages_for(row: Row, scale: Scale, rubric: str, write: int) -> Turns:
    """Write what a teacher is asked about one row: to label it, or to write graded candidates."""
    judgement = {"verdict": scale.values[-1], "issues": ["..."], "feedback": "..."}
    graded = {**dict.fromkeys(_candidate_names(scale), "..."), **judgement}
    shown = {name: row[name] for name in SHOWN if row.get(name) is not None}
    if "candidates" in row:
        shown |= {"candidate A": row["candidates"][0], "candidate B": row["candidates"][1]}
    item = json.dumps(shown, ensure_ascii=False)
    form = json.dumps({"candidates": [graded, "..."]} if write else judgement)
    allowed = scale.says().removeprefix("allowed are ")
    rubric = rubric or "Judge how good the candidate is."
    system = _prompt("system", rubric=rubric, allowed=allowed, form=form)
    what = "candidate A and B" if scale.task == "pairwise" else "candidate"
    user = _prompt("label", what=what, item=item)
    if write:
        user = _prompt("write", count=str(write), what=f"{what}s", item=item)
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def asked_again(messages: Turns, answer: str, reason: str) -> Turns:
    """Add the malformed answer, and why it is malformed, to what was asked."""
    again = {"role": "user", "content": _prompt("again", reason=reason)}
    return [*messages, {"role": "assistant", "content": answer}, again]


def schema_for(scale: Scale, write: int) -> Schema:
    """Return the JSON schema of an answer: one judgement, or `write` candidates with theirs."""
    fine = scale.task == "score" and len(scale.values) > MAX_IN_ENUM
    verdict: Schema = {"type": "number"} if fine else {"enum": list(scale.values)}
    text: Schema = {"type": "string"}
    judgement = {"verdict": verdict, "issues": {"type": "array", "items": text}, "feedback": text}
    if not write:
        return _object(judgement)
    graded = _object({**dict.fromkeys(_candidate_names(scale), text), **judgement})
    return _object({"candidates": {"type": "array", "items": graded}})


class Judgement(BaseModel):
    """An answer, or one of the candidates in it with its judgement."""

    verdict: object = None
    issues: list[str] = []
    feedback: str = ""
    candidate: str | None = None
    candidate_a: str | None = None
    candidate_b: str | None = None


class Written(BaseModel):
    """An answer that holds graded candidates."""

    candidates: list[Judgement]


def read_answer(text: str, row: Row, scale: Scale, write: int) -> list[Row]:
    """Make labelled rows of an answer; raises MalformedError where it is not of the form."""
    answer = answer_part(text)
    if answer is None:
        raise MalformedError("it is an unfinished thought")
    fenced = _FENCE.match(answer)
    try:
        value = parsed_json(fenced.group(1) if fenced else answer)
        if not write:
            return [row | {"label": _label(Judgement.model_validate(value), scale)}]
        graded = Written.model_validate(value).candidates
    except ValidationError as error:
        raise MalformedError(": ".join(filter(None, first_problem(error)))) from error
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"it is not JSON ({' '.join(str(error).split())[:80]})") from error
    if len(graded) != write:
        raise MalformedError(f"it has {len(graded)} candidates, not {write}")
    rows = []
    for number, judgement in enumerate(graded, start=1):
        own = {"id": f"{row['id']}-{number}", "label": _label(judgement, scale)}
        rows.append(row | _candidates(judgement, scale) | own)
    return rows


def _candidate_names(scale: Scale) -> tuple[str, ...]:
    return ("candidate_a", "candidate_b") if scale.task == "pairwise" else ("candidate",)


def _candidates(graded: Judgement, scale: Scale) -> Row:
    names = _candidate_names(scale)
    texts = [getattr(graded, name) for name in names]
    if None in texts:
        raise MalformedError(f"a candidate has no {' or '.join(names)}")
    return {"candidates": texts} if len(texts) == 2 else {"candidate": texts[0]}


def _label(judgement: Judgement, scale: Scale) -> Row:
    verdict = judgement.verdict
    try:
        read = LabelReader(scale).read(verdict, Place(Path("answer"), 1, lines=False))
        normal = scale.normalise(read)
    except Exception as error:  # RowError, whose remedy is for files; and any JSON may come
        raise MalformedError(f"its verdict is {verdict!r}") from error
    if normal is None:
        raise MalformedError(f"its verdict {verdict!r} is not allowed: {scale.says()}")
    return {"verdict": normal, "issues": judgement.issues, "feedback": judgement.feedback}


def _object(properties: Mapping[str, Schema]) -> Schema:
    required = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": dict(properties), **required}


def _prompt(name: str, **values: str) -> str:
    """Read a prompt and fill in its fields."""
    text = (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")
    return StringTemplate(text).substitute(values)
