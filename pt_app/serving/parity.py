"""`judge parity`: whether something that claims to be a judge gives its numbers.

The reference is the plain reading in float32, one sequence per row and verdict, on test rows and on
attacks with control tokens. What is compared, with which limits, and what is decided is written to
parity.json.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from pt_app.core import results
from pt_app.core.attack_families import attacked, families
from pt_app.core.choosing import choose
from pt_app.core.dataset import JudgeData, draw, read_dataset
from pt_app.core.errors import UserError
from pt_app.core.files import read_text, refuse_overwrite, write_json_atomic
from pt_app.core.metrics import FloatArray
from pt_app.core.prompts import Encoded, PromptEncoder
from pt_app.core.questions import Question
from pt_app.core.records import JudgeExample
from pt_app.core.state_rows import texts_of
from pt_app.core.verdicts import Scale
from pt_app.models import adapters, bases
from pt_app.models.adapters import AdapterInfo
from pt_app.models.endpoint.keys import key_in
from pt_app.scoring.scorer import verdict_trie
from pt_app.scoring.verdict_trie import VerdictTrie
from pt_app.serving.decision_checkpoint import (
    CheckpointQuestion,
    Pipeline,
    checkpoint_questions,
    label_logs,
)
from pt_app.serving.engines import (
    Case,
    Engine,
    LlamaCpp,
    Mlx,
    Plain,
    Served,
    Vllm,
    check_answers,
)
from pt_app.serving.options import ParityOptions, Precision

FILE = "parity.json"
TRANSFORMERS = "transformers"  # the kind of target that is a folder of decision_checkpoint.py
EXIT_CODES = {"same": 0, "differs": 3, "undecided": 4}
# Largest change of a probability, measured per engine in judges of 1.3 and 135 M parameters
# (docs/SERVING.md); float32 of an engine that computes otherwise than the reference has 2e-3.
LIMITS: dict[Precision, float] = {
    "float32": 2e-3,
    "float16": 5e-3,
    "bfloat16": 4e-2,
    "8bit": 5e-2,
}
STRICT = 1e-5
DECIDING = 1e-6  # of a decision model beside the same tokens of the reference
MIN_ROWS = 20
ATTACKS = 40  # prompts with control tokens as text
REPEATED = 20  # rows that are read again
TIE = 1e-3  # margin between two verdicts below which rounding may choose either
NOT_DECIDED = {"decision": "undecided", "why": ""}
HEAD = (
    *("question", "engine", "precision", "d log p", "dp", "dE"),
    *("changed", "again", "text ids", "attacks"),
)
NOTHING = {"", "-", "float32"}  # the precision is shown where it is another one
WIDE = 0.1  # margin at which a change of the verdict fails whatever the precision


class Tokens(results.Stored):
    """On how many prompts an engine makes the same ids of the text: clean ones and attacks."""

    clean: int
    clean_equal: int
    attacks: int
    attacks_equal: int


class Compared(results.Stored):
    """An engine beside the reference.

    Attributes:
        against: the target, as it was named.
        engine: the engine and its settings.
        precision: of its weights.
        rows, attacks: how many prompts were compared.
        unread: prompts that the engine did not answer.
        line: largest change of the log-probability of a verdict's line.
        probability: largest change of a probability; `limit` is what is allowed.
        variation: largest total variation distance of a row.
        expected: largest change of the mean score, in units of the scale.
        mass: largest change of the probability of all verdicts together.
        verdicts: rows whose verdict changes; `decided` of these are no ties, `wide` have a margin
            of over 0.1 between the two likeliest verdicts.
        stability: largest change of a probability when rows are read again, in another order and
            one by one, with a warm cache.
        tokens: what the engine makes of rendered text; null if it takes ids or rows alone.
        question: which of a judge's questions was asked.
        decision: same, differs or undecided, and `why`.
    """

    against: str
    question: str | None = None
    engine: str
    precision: Precision
    rows: int
    attacks: int
    unread: int
    line: float | None = None
    probability: float | None = None
    limit: float | None = None
    variation: float | None = None
    expected: float | None = None
    mass: float | None = None
    verdicts: int = 0
    decided: int = 0
    wide: int = 0
    stability: float | None = None
    tokens: Tokens | None = None
    decision: str
    why: str


class Parity(results.Stored):
    """What parity.json holds."""

    schema_version: int = Field(default=1, alias="schema")
    judge: str
    data: results.DataUsed
    reference: str = "plain reading in float32"
    targets: list[Compared]

    @property
    def decision(self) -> str:
        """The worst of the targets' decisions."""
        found = {each.decision for each in self.targets}
        return next(each for each in ("differs", "undecided", "same") if each in found)

    @property
    def kept(self) -> list[str]:
        """The questions of which no comparison found a difference."""
        lost = {each.question for each in self.targets if each.decision != "same"}
        names = dict.fromkeys(each.question for each in self.targets)
        return [name for name in names if name and name not in lost]


def refuse_questions(info: AdapterInfo) -> None:
    """Raise UserError for a judge of questions: most engines are read on one scale."""
    if info.questions:
        remedy = "use --to transformers, or --against transformers:FOLDER"
        raise UserError(f"{info.folder} has questions, which only transformers answers: {remedy}")


def data_of(info: AdapterInfo, data: Path) -> JudgeData:
    """Read the data on which a judge is compared.

    Raises:
        UserError: for data of another scale, without a question or without a test row of one.
    """
    dataset = read_dataset(data)
    if isinstance(info.asked, Scale) and dataset.scale != info.scale:
        problem = f"{data} has the scale {dataset.scale.name}, the judge {info.scale.name}"
        raise UserError(f"{problem}: name data of the judge's scale")
    shared, labelled = info.shared_with(dataset), {row.asks for row in dataset.test}
    for name in (question.name for question in info.questions):
        if name not in (question.name for question in shared):
            problem = f"{data} does not ask {name} about {', '.join(info.state)}"
            raise UserError(f"{problem}: name the judge's own data")
        if name not in labelled:
            remedy = "label some, or export other --questions"
            raise UserError(f"{data}: no test row has a label for {name}: {remedy}")
    return dataset


@dataclass(frozen=True)
class Reference:
    """What engines are compared with.

    Attributes:
        judge: the judge's name with its hash.
        encoder: makes its prompts, of a judge of questions those of one.
        trie: the lines of its verdicts.
        cases: the prompts.
        logs: the log-probability of each line [cases, lines].
        decided: that of the token that tells a line from the others among such, if it was read.
        data: the rows.
        whole: whether `logs` are of whole lines.
    """

    judge: str
    encoder: PromptEncoder
    trie: VerdictTrie
    cases: list[Case]
    logs: FloatArray
    data: results.DataUsed
    decided: FloatArray | None = None
    whole: bool = True

    @staticmethod
    def of(
        info: AdapterInfo, data: Path, options: ParityOptions, deciding: bool = False
    ) -> "list[Reference]":
        """Read test rows and attacks plainly, for each question of a judge.

        Args:
            info: the judge.
            data: the dataset folder.
            options: which rows, and the base.
            deciding: also read the tokens that tell the lines apart alone.

        Raises:
            UserError: as `data_of`, for another base, and with `deciding` for verdicts that no
                single token tells apart.
        """
        dataset = data_of(info, data)
        model = adapters.load_merged(info.folder, adapters.base_of(info, options.base)).eval()
        encoder = adapters.encoder_of(info, bases.load_tokenizer(info.folder))
        asked = [(encoder.about(own), dataset.about((own,))) for own in info.questions]
        read = []
        for own, about in asked or [(encoder, dataset)]:
            rows = draw(about.test, options.rows, options.seed)
            used = results.DataUsed(path=data.name, rows=len(rows), sha256=dataset.sha256)
            read.append(Reference.on(rows, used, model, own, info))
        if not deciding:
            return read
        return [
            replace(
                each, decided=label_logs(model, CheckpointQuestion.of(each.encoder), each.cases)
            )
            for each in read
        ]

    @staticmethod
    def on(
        rows: Sequence[JudgeExample],
        used: results.DataUsed,
        model: Any,
        encoder: PromptEncoder,
        info: AdapterInfo,
    ) -> "Reference":
        """Read rows and attacks on them plainly.

        Args:
            rows: the rows; labels in them are ignored.
            used: where they are from.
            model: the merged judge, in float32.
            encoder: makes its prompts.
            info: its adapter.

        Raises:
            UserError: if no row fits the judge.
        """
        own = [row for row in rows if row.prompt is None][:ATTACKS]
        control = [family for family in families() if family.control]
        attacks = [each.example for each in attacked(own, encoder.scale, control, info.state)]
        attacks = attacks[:: -(-len(attacks) // ATTACKS) or 1]  # some of each family
        cases = [*_cases(rows, encoder, info, False), *_cases(attacks, encoder, info, True)]
        if not cases:
            asked = "".join(f"{question.name}: " for question in encoder.questions)
            fit = f"none of {len(rows)} rows of {used.path} fits the judge's"
            remedy = "name other rows"
            raise UserError(f"{asked}{fit} {encoder.max_seq_length} tokens: {remedy}")
        trie = verdict_trie(encoder)
        logs = Plain(model, encoder.end_token_id).read(cases, trie)
        return Reference(info.name, encoder, trie, cases, logs, used)

    def of_deciding(self, against: str) -> "tuple[Reference, Compared]":
        """Return what the tokens that tell the lines apart say alone, compared with the lines."""
        assert self.decided is not None, "the deciding tokens were not read"
        clean = sum(not case.attack for case in self.cases)
        head = self._head(against, "deciding tokens", "float32", clean, 0)
        numbers = self._numbers(self.logs, self.decided) | {"line": None, "mass": None}
        found = _concluded(head | numbers | {"limit": LIMITS["float32"]})
        return replace(self, logs=self.decided, whole=False), found

    def _head(
        self, against: str, engine: str, precision: Precision, clean: int, unread: int
    ) -> dict[str, object]:
        head: dict[str, object] = {"against": against, "engine": engine, "precision": precision}
        head["question"] = next((each.name for each in self.encoder.questions), None)
        return head | {"rows": clean, "attacks": len(self.cases) - clean, "unread": unread}

    def compared(self, engine: Engine, against: str) -> Compared:
        """Compare an engine with the reference."""
        given = engine.read(self.cases, self.trie)
        read = np.isfinite(given).all(axis=1)
        clean = sum(not case.attack for case in self.cases)
        head = self._head(against, engine.name, engine.precision, clean, int((~read).sum()))
        if not read.any():
            head |= {"decision": "undecided", "why": "the engine reads no row"}
            return Compared.model_validate(head)
        numbers = self._numbers(self.logs[read], given[read])
        again = [*range(0, len(self.cases), max(1, len(self.cases) // REPEATED))][::-1]
        warm = [engine.read([self.cases[i]], self.trie)[0] for i in again]
        moved = np.abs(_shares(np.array(warm)) - _shares(given[again]))
        numbers["stability"] = float(np.nanmax(moved)) if np.isfinite(moved).any() else None
        limit = STRICT if engine.strict and engine.precision == "float32" else None
        numbers["limit"] = limit or LIMITS.get(engine.precision)
        if not self.whole:  # such an engine gives shares, which say nothing of lines
            numbers |= {"line": None, "mass": None, "limit": DECIDING}
        return _concluded(head | numbers | {"tokens": self._tokens(engine)})

    def _numbers(self, own: FloatArray, given: FloatArray) -> dict[str, object]:
        """Return the differences between two readings [rows, lines]."""
        p, q = _shares(own), _shares(given)
        scale, rule = self.encoder.scale, self.encoder.rule
        spread = [[scale.spread(row.tolist()) for row in rows] for rows in (p, q)]
        first, second = ([choose(row, scale, rule) for row in rows] for rows in spread)
        changed = np.array([a != b for a, b in zip(first, second, strict=True)])
        two = np.sort(p, axis=1)[:, -2:]
        margin = two[:, 1] - two[:, 0]
        top = p.argmax(axis=1) != q.argmax(axis=1)
        mass = np.abs(np.exp(own).sum(axis=1) - np.exp(given).sum(axis=1))
        return {
            "line": float(np.abs(own - given).max()),
            "probability": float(np.abs(p - q).max()),
            "variation": float(np.abs(p - q).sum(axis=1).max() / 2),
            "expected": _expected(spread, scale),
            "mass": float(mass.max()),
            "verdicts": int(changed.sum()),
            "decided": int((top & (margin > TIE)).sum()),
            "wide": int((top & (margin > WIDE)).sum()),
        }

    def _tokens(self, engine: Engine) -> Tokens | None:
        made = [engine.tokens(case) for case in self.cases]
        if made[0] is None:
            return None
        equal = [(ids == case.ids, case.attack) for ids, case in zip(made, self.cases, strict=True)]
        attacks = sum(attack for _, attack in equal)
        return Tokens(
            clean=len(equal) - attacks,
            clean_equal=sum(same and not attack for same, attack in equal),
            attacks=attacks,
            attacks_equal=sum(same and attack for same, attack in equal),
        )


def _concluded(about: dict[str, object]) -> Compared:
    found = Compared.model_validate(about | NOT_DECIDED)
    decision, why = decided(found)
    return found.model_copy(update={"decision": decision, "why": why})


def decided(found: Compared) -> tuple[str, str]:
    """Return what a comparison says, and why."""
    assert found.probability is not None
    tokens, limit = found.tokens, found.limit
    if tokens and tokens.clean_equal < tokens.clean:
        wrong = tokens.clean - tokens.clean_equal
        return "differs", f"other token ids on {wrong} of {tokens.clean} prompts: another tokenizer"
    if found.wide:
        return "differs", f"{found.wide} verdicts change on rows with a margin of over {WIDE}"
    if limit is not None and found.probability > limit:
        return "differs", f"a probability moves by {found.probability:.2g}, more than {limit:g}"
    if limit is not None and (found.stability or 0) > limit:
        return "differs", f"read again a probability moves by {found.stability:.2g}"
    if found.unread:
        return "undecided", f"{found.unread} prompts were not read"
    if limit is None:
        return "undecided", "no limit is known for this precision: see the numbers"
    if found.rows < MIN_ROWS:
        return "undecided", f"{found.rows} rows are too few: at least {MIN_ROWS}"
    return "same", f"a probability moves by {found.probability:.2g}, at most {limit:g} is allowed"


def engines_of(target: str, reference: Reference, options: ParityOptions) -> list[Engine]:
    """Return the engines of a target: a GGUF file in float32 is read strictly and by default.

    Raises:
        UserError: for an engine that is not installed or does not answer.
    """
    kind, _, place = target.partition(":")
    encoder, longest = reference.encoder, max(len(case.ids) for case in reference.cases)
    vocabulary = len(encoder.tokenizer)
    if kind == "gguf":
        return [*LlamaCpp.of_file(place, longest + reference.trie.depth + 8, vocabulary)]
    if kind == "mlx":
        return [Mlx(Path(place))]
    if kind == TRANSFORMERS:
        return [Pipeline(Path(place), CheckpointQuestion.of(encoder))]
    if kind == "merged":
        return [Plain.of_folder(Path(place), encoder.end_token_id, vocabulary)]
    url, precision = target.rstrip("/"), options.engine_precision
    key = _key(options)
    if options.engine == "llama.cpp":
        return [LlamaCpp(None, url.removesuffix("/v1"), vocabulary, precision, key=key)]
    if options.engine == "vllm":
        return [Vllm(url, options.served_model, precision, key=key)]
    return [Served(url, options.served_model, encoder.scale, precision, key=key)]


def check_targets(targets: Sequence[str]) -> None:
    """Raise UserError for an unknown kind of target, and for files and servers not there."""
    for target in targets:
        kind, _, place = target.partition(":")
        if kind not in ("gguf", "mlx", "merged", TRANSFORMERS, "http", "https"):
            known = "gguf:FILE, gguf:BASE+LORA, mlx:, merged: or transformers:FOLDER, or a URL"
            raise UserError(f"--against {target}: name {known}")
        if kind.startswith("http"):
            check_answers(target)
            continue
        if Path(place).exists():
            continue
        for part in place.split("+") if kind == "gguf" else [place]:
            if not Path(part).exists():
                raise UserError(f"--against {target}: {part} is not there: name one that is")


def held_by(target: str, info: AdapterInfo) -> tuple[Question, ...]:
    """Return the questions of a judge that a target holds: those that its export was compared on.

    Raises:
        UserError: for an export of other questions, and a broken record.
    """
    path = Path(target.partition(":")[2]) / FILE
    if not info.questions or not target.startswith(TRANSFORMERS) or not path.exists():
        return info.questions
    found = Parity.parse(read_text(path), path, "export again")
    names = [each.question for each in found.targets]
    own = tuple(question for question in info.questions if question.name in names)
    if other := {str(name) for name in names} - {question.name for question in own}:
        problem = f"its export holds {min(other)}, which {info.folder} does not ask"
        raise UserError(f"--against {target}: {problem}: name an export of this judge")
    return own


def parity(
    references: Sequence[Reference],
    targets: Sequence[str],
    options: ParityOptions,
    name: str = "",
    held: Mapping[str, Sequence[Question]] | None = None,
) -> Parity:
    """Compare each target, or what it is to be called, with the reference of each question.

    Args:
        references: one for each question.
        targets: what is compared.
        options: what is known of a server.
        name: what the target is to be called; default: as it is named.
        held: the questions of targets that do not hold all.

    Raises:
        UserError: as `engines_of`.
    """
    compared = []
    for reference in references:
        asked = reference.encoder.questions
        for target in targets:
            if held and asked and asked[0] not in held[target]:
                continue
            against, own = name or _shown(target), reference
            if target.startswith(TRANSFORMERS):
                own, found = reference.of_deciding(against)
                compared.append(found)
            compared += [own.compared(e, against) for e in engines_of(target, own, options)]
    first = references[0]
    return Parity(schema=1, judge=first.judge, data=first.data, targets=compared)


def check(adapter: Path, data: Path, against: Sequence[str], options: ParityOptions) -> Parity:
    """Compare targets with an adapter and write parity.json.

    Raises:
        UserError: for a damaged adapter, and as `check_targets`, `held_by`, `Reference.of` and
            `engines_of`.
    """
    refuse_overwrite([options.out], [adapter / adapters.JUDGE, data])
    check_targets(against)
    _key(options)  # one that is not there is refused before the judge is read
    info = adapters.verify_adapter(adapter)
    decides = [target.startswith(TRANSFORMERS) for target in against]
    if not all(decides):
        refuse_questions(info)
    held = {target: held_by(target, info) for target in against}
    if info.questions:
        tokenizer = bases.load_tokenizer(info.folder)
        for own in held.values():  # refused before minutes of reading
            checkpoint_questions(replace(info, asked=own), tokenizer)
        any_of = {question.name for own in held.values() for question in own}
        info = replace(info, asked=tuple(q for q in info.questions if q.name in any_of))
    references = Reference.of(info, data, options, any(decides))
    found = parity(references, against, options, held=held)
    write_json_atomic(options.out, found.as_json())
    return found


def table(found: Parity) -> str:
    """Return the comparisons as lines of text, without columns that say nothing."""
    columns = zip(HEAD, *map(_row, found.targets), strict=True)
    shown = [column for column in columns if not NOTHING.issuperset(column[1:])]
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in shown]
    lines = ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]
    several = len({each.against for each in found.targets}) > 1
    for each in found.targets:
        against = each.against if several or not each.question else ""
        about = ", ".join(filter(None, (each.question, against)))
        lines.append(f"{each.decision}: {about} ({each.engine}): {each.why}")
    return "\n".join(lines)


def _row(each: Compared) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2g}"

    n, tokens = each.rows + each.attacks - each.unread, each.tokens
    ids = attacks = "-"
    if tokens is not None:
        ids = f"{tokens.clean_equal}/{tokens.clean}"
        attacks = f"{tokens.attacks_equal}/{tokens.attacks}"
    numbers = map(number, (each.line, each.probability, each.expected))
    what = each.question or "", each.engine, each.precision
    return *what, *numbers, f"{each.verdicts}/{n}", number(each.stability), ids, attacks


def _cases(
    rows: Sequence[JudgeExample], encoder: PromptEncoder, info: AdapterInfo, attack: bool
) -> list[Case]:
    unseen: dict[str, object] = {"label": None, "annotators": [], "errors": None, "meta": {}}
    bare = [row.model_copy(update=unseen) for row in rows]
    encoded = [row for row in encoder.fit(bare)[0] if not row.unfit]
    return [_case(row, encoder, info, attack) for row in encoded]


def _case(encoded: Encoded, encoder: PromptEncoder, info: AdapterInfo, attack: bool) -> Case:
    example = encoded.example
    messages = encoder.messages(example)
    row: Mapping[str, object] = {"messages": messages}  # a judge with a grid refuses turns
    if info.state:
        row = texts_of(example, info.state)
    elif example.prompt is None:
        row = example.as_row(encoder.scale)
    write = encoder.tokenizer.apply_chat_template
    text = write(messages, tokenize=False, add_generation_prompt=True)
    return Case(messages, text, row, encoded.prompt, attack)


def _shares(logs: FloatArray) -> FloatArray:
    """Return the probabilities [rows, lines] of log-probabilities, which sum to 1."""
    shares = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True), np.float64)


def _expected(spread: Sequence[Sequence[Sequence[float]]], scale: Scale) -> float | None:
    if scale.task != "score":
        return None
    values = np.array(scale.values, np.float64)
    own, given = (np.array(rows) @ values for rows in spread)
    return float(np.abs(own - given).max())


def _key(options: ParityOptions) -> str:
    return key_in(options.key_env) if options.key_env else ""


def _shown(target: str) -> str:
    """Return a target without the folders of its files."""
    kind, _, place = target.partition(":")
    if kind in ("http", "https"):
        return target
    return f"{kind}:{'+'.join(Path(part).name for part in place.split('+'))}"
