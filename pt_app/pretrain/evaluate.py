"""Evaluate a model on public test sets: CORE's tasks for a base, ChatCORE's for a chat model.

Each task is one number with its n, its 95 % interval and what guessing gets. The results are
kept task by task: evaluating again takes up the tasks that are missing.
"""

import json
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.core.files import sha256_file, write_json_atomic
from pt_app.evidence.intervals import Z, wilson
from pt_app.models.platforms import get_device
from pt_app.pretrain import code
from pt_app.pretrain.conversations import asking
from pt_app.pretrain.model import load
from pt_app.pretrain.scoring import answers, generate
from pt_app.pretrain.settings import EvalSettings
from pt_app.pretrain.tasks import LETTERS, TASKS, Bundle, Question, Row, read_questions
from pt_app.training.checkpoints import MANIFEST, fault
from pt_app.training.loop import Model

log = logging.getLogger(__name__)
FOLDER = "evaluation"  # of the folder of the model, which stages.py leaves alone
STAGES = {"core": "base", "chat": "sft"}
# How many tasks CORE and ChatCORE have: a mean over fewer is not the published number.
COMPLETE = {"core": ("CORE", 22), "chat": ("ChatCORE", 6)}
GENERATED = {"gsm8k", "humaneval"}  # tasks whose answers are generated
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Outcome:
    """How a model does on one task.

    Attributes:
        n: rows.
        accuracy, low, high: the share of right answers and its 95 % interval (Wilson's, each group
            of rows that depend on each other counted as one row).
        guess: the share that a guess gets right, the mean over rows.
        chance: the share that the model's own frequencies of each position get right without
            reading the question: more than `guess` where it prefers what the key prefers.
        shares: how often it takes each position.
        cut: rows whose context was too long and lost its beginning.
        seconds: what it took.
        why_not: why it was not run; "" where it was.
    """

    n: int = 0
    accuracy: float = 0.0
    low: float = 0.0
    high: float = 1.0
    guess: float = 0.0
    chance: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    cut: int = 0
    seconds: float = 0.0
    why_not: str = ""

    def centred(self, value: float) -> float:
        """Return a share on the scale where a guess is 0 and every row right is 1."""
        return (value - self.guess) / (1 - self.guess)

    @property
    def above_guessing(self) -> bool:
        """Whether the whole interval lies above what guessing gets."""
        return self.low > max(self.guess, self.chance)

    @staticmethod
    def of_choices(rows: Sequence[Row], taken: Sequence[int], guess: float | None) -> "Outcome":
        """Return the outcome of the positions taken; `guess` None: one of each row's choices."""
        n, right = len(rows), [a == row.gold for a, row in zip(taken, rows, strict=True)]
        several = all(len(row.pairs) > 1 for row in rows)
        if guess is None:
            guess = sum(1 / len(row.pairs) for row in rows) / n if several else 0.0
        own, key = Counter(taken), Counter(row.gold for row in rows)
        chance = sum(own[place] * key[place] for place in key) / n**2 if several else 0.0
        shares = {LETTERS[place]: own[place] / n for place in sorted(own)} if several else {}
        groups = len({row.group for row in rows})
        return _with_interval(right, groups, guess=guess, chance=chance, shares=shares)


def _with_interval(right: Sequence[bool], groups: int, **more: Any) -> Outcome:
    accuracy = sum(right) / len(right)
    low, high = wilson(accuracy, groups)
    return Outcome(len(right), accuracy, low, high, **more)


def summary(kind: str, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Return the mean of the centred accuracies, its 95 % interval and its name.

    The name says how many tasks it covers: a mean over fewer than all is another number. The
    interval takes the tasks as fixed, and their rows as drawn.
    """
    title, complete = COMPLETE[kind]
    own = [each for task, each in outcomes.items() if task in TASKS[kind] and not each.why_not]
    name = title if len(own) == complete else f"{title}, {len(own)} of {complete} tasks"
    if not own:
        return {"name": name, "tasks": 0}
    value = sum(each.centred(each.accuracy) for each in own) / len(own)
    chance = sum(max(0.0, each.centred(each.chance)) for each in own) / len(own)
    errors = [(each.centred(each.high) - each.centred(each.low)) / 2 / Z for each in own]
    reach = Z * sum(error**2 for error in errors) ** 0.5 / len(own)
    return {
        "name": name,
        "tasks": len(own),
        "n": sum(each.n for each in own),
        "value": value,
        "low": value - reach,
        "high": value + reach,
        "above_guessing": value - reach > chance,
    }


def base_eval(settings: EvalSettings) -> dict[str, Any]:
    """Evaluate a stage's model, by default the base, on CORE's tasks; return what is kept of it.

    Raises:
        UserError: for a model that is not complete, an unknown task, data that cannot be fetched.
    """
    return _evaluate("core", settings)


def chat_eval(settings: EvalSettings) -> dict[str, Any]:
    """Evaluate a stage's model, by default sft, as `base_eval` does, on the tasks of ChatCORE."""
    return _evaluate("chat", settings)


def _evaluate(kind: str, settings: EvalSettings) -> dict[str, Any]:
    console.start()
    run = Path(settings.model_dir)
    stage = STAGES[kind] if settings.stage == "auto" else settings.stage
    if wrong := fault(run / stage):
        raise UserError(f"{run / stage}: {wrong}: train it first, or name another --model_dir")
    platform = get_device(settings.device)
    model, tokenizer = load(run / stage, platform.device, platform.compute_dtype)
    file = run / FOLDER / f"{stage}-{kind}.json"
    identity = sha256_file(run / stage / MANIFEST)
    content = Evaluation(kind, model, tokenizer, settings, file, identity).run()
    log.info("%s: %s", content["summary"]["name"], mean_in_words(content["summary"]))
    return content


@dataclass
class Evaluation:
    """The evaluation of one model, whose results are kept in a file as each task ends.

    Attributes:
        kind: which tasks, "core" or "chat".
        model: a causal language model.
        tokenizer: its tokenizer.
        settings: the flags.
        file: keeps the results; those of another model or of other settings are not taken.
        identity: the hash of the model.
    """

    kind: str
    model: Model
    tokenizer: PreTrainedTokenizerBase
    settings: EvalSettings
    file: Path
    identity: str

    def __post_init__(self) -> None:
        settings, known = self.settings, list(TASKS[self.kind])
        self.names = [name.strip() for name in settings.tasks.split(",") if name.strip()] or known
        if unknown := [name for name in self.names if name not in known]:
            raise UserError(f"--tasks: no task {unknown[0]}: choose of {', '.join(known)}")
        context, answer = self.model.config.max_position_embeddings, settings.max_new_tokens
        if answer >= context and GENERATED & set(self.names):
            problem = f"{answer} leaves no room for a prompt in a context of {context}"
            raise UserError(f"--max_new_tokens {problem}: lower it, or choose other --tasks")
        self.outcomes = self._kept()

    @cached_property
    def _bundle(self) -> Bundle:
        return Bundle(self.settings.eval_data)

    def run(self) -> dict[str, Any]:
        """Evaluate every task that is missing; return the content of the file."""
        file = self.settings.questions
        questions = read_questions(file) if file else []
        for name in self.names:
            if name not in self.outcomes:
                self._add(name, partial(self._run_task, name))
        if file:
            self._add(file.name, partial(self._own_questions, questions))
        return self._write()

    def _add(self, name: str, evaluate: Callable[[], Outcome]) -> None:
        start, outcome = time.monotonic(), evaluate()
        self.outcomes[name] = replace(outcome, seconds=round(time.monotonic() - start, 1))
        self._write()
        log.info("%s: %s", name, in_words(self.outcomes[name]))

    def _run_task(self, name: str) -> Outcome:
        where = TASKS[self.kind][name]
        if self.kind == "core":
            return self._of_rows(self._drawn(self._bundle.rows(name)), where.get("guess"))
        if name in GENERATED:
            return self._generated(name)
        return self._of_letters(self._drawn(self._bundle.questions(name)))

    def _own_questions(self, questions: Sequence[Question]) -> Outcome:
        if self.kind == "chat":
            return self._of_letters(questions)
        return self._of_rows([question.row() for question in questions], None)

    def _drawn(self, rows: list[Any]) -> list[Any]:
        """Draw the rows of a task: the same ones for every model."""
        most = self.settings.max_per_task or len(rows)
        return random.Random(0).sample(rows, most) if most < len(rows) else rows

    def _of_rows(self, rows: Sequence[Row], guess: float | None, by_token: bool = True) -> Outcome:
        taken, cut = answers(self.model, self.tokenizer, rows, by_token)
        return replace(Outcome.of_choices(rows, taken, guess), cut=cut)

    def _of_letters(self, questions: Sequence[Question]) -> Outcome:
        prompts = [asking(self.tokenizer, question.prompt()) for question in questions]
        rows = [
            Row(tuple((prompt, letter) for letter in LETTERS[: len(q.choices)]), q.gold, str(i))
            for i, (prompt, q) in enumerate(zip(prompts, questions, strict=True))
        ]
        return self._of_rows(rows, None, by_token=False)

    def _generated(self, name: str) -> Outcome:
        if name == "humaneval" and not self.settings.allow_code:
            return Outcome(why_not="it runs what the model writes: --allow_code")
        problems = self._drawn(self._bundle.problems(name))
        prompts = [asking(self.tokenizer, problem.text) for problem in problems]
        written = generate(self.model, self.tokenizer, prompts, self.settings.max_new_tokens)
        right = [
            code.passes(code.program(problem, text))
            if name == "humaneval"
            else last_number(text) == last_number(problem.answer)
            for problem, text in zip(problems, written, strict=True)
        ]
        return _with_interval(right, len(right))

    def _key(self, name: str) -> list[object]:
        """Return what the outcome of a task depends on: the model, and settings."""
        key: list[object] = [self.identity, self.settings.max_per_task]
        if name in GENERATED:
            key.append(self.settings.max_new_tokens)
        if name == "humaneval":
            key.append(self.settings.allow_code)
        return key

    def _kept(self) -> dict[str, Outcome]:
        """Return the outcomes in the file that are of this model and these settings."""
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            keys, tasks = content["keys"], content["tasks"]
            same = [name for name in tasks if keys.get(name) == self._key(name)]
            return {name: Outcome(**tasks[name]) for name in same}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _write(self) -> dict[str, Any]:
        tasks = {name: asdict(outcome) for name, outcome in self.outcomes.items()}
        keys = {name: self._key(name) for name in tasks}
        content = {"keys": keys, "summary": summary(self.kind, self.outcomes), "tasks": tasks}
        write_json_atomic(self.file, content)
        return content


def last_number(text: str) -> float | None:
    """Return the number that a text ends on: the one after ####, else the last one."""
    found = _NUMBER.findall(text.rpartition("####")[2])
    return float(found[-1].replace(",", "")) if found else None


def mean_in_words(mean: dict[str, Any]) -> str:
    """Write the mean of `summary` with its interval."""
    if not mean["tasks"]:
        return "no task was run"
    told = "" if mean["above_guessing"] else ", not above guessing"
    return f"{mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}] (n = {mean['n']:,}{told})"


def in_words(outcome: Outcome) -> str:
    """Write an outcome in a line, with what guessing gets."""
    if outcome.why_not:
        return f"not run ({outcome.why_not})"
    level = max(outcome.guess, outcome.chance)
    told = "" if outcome.above_guessing else ", not above guessing"
    interval = f"{outcome.accuracy:.3f} [{outcome.low:.3f}, {outcome.high:.3f}]"
    return f"{interval} (n = {outcome.n}, guessing {level:.3f}{told})"
