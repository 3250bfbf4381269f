"""`judge data check`: what is in two splits, and what else makes labels doubtful."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import yaml

from pt_app.core.chat_templates import control_tokens
from pt_app.core.dataset import SPLITS, members_of, read_dataset
from pt_app.core.errors import UserError
from pt_app.core.formatting import estimate
from pt_app.core.grids import AUTO, choose_grid
from pt_app.core.leaks import (
    LEAST_WORDS,
    Leak,
    boilerplate_of,
    candidate_texts,
    find_leaks,
    input_text,
    is_telling,
)
from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import PromptEncoder
from pt_app.core.questions import Asked
from pt_app.core.records import JudgeExample, one_line
from pt_app.core.results import JsonObject, Metric
from pt_app.core.verdicts import YES_NO, Scale, Verdict
from pt_app.core.words import normalised, words_of
from pt_app.evidence.biases import share_won_by_longer
from pt_app.evidence.intervals import Z, wilson
from pt_app.judge_data.card import label_counts
from pt_app.judge_data.duplicates import near_pairs
from pt_app.judge_data.options import NEAR
from pt_app.judge_data.preview import encoder_of

Splits = Mapping[str, Sequence[JudgeExample]]
EXAMPLES = 5
MAX_LABELS = 11  # labels whose shares are listed in a line; of more numbers, quartiles are given
MIN_ALIKE = 5  # rows of a split; fewer rows may well have one label
MIN_GROUPS = 10  # for an interval of length and label
# What is measured of length and label, its value where length predicts nothing, and how far from
# that a whole interval must be for a warning.
MEASURES = {
    "spearman": ("characters and label, rho", 0.0, 0.3),
    "longer wins": ("the longer candidate (characters) wins", 0.5, 0.1),
}
LOOKED_FOR = yaml.safe_load(Path(__file__).with_name("checking.yaml").read_text(encoding="utf-8"))
_CONTROL = re.compile("|".join(LOOKED_FOR["control"]))
_VERDICT_LIKE = re.compile("|".join(LOOKED_FOR["verdict_like"]), re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Lengths:
    """How far the length of a candidate alone predicts its label.

    `name` is "spearman" (characters against label), or "longer wins" (share of pairs, ties as
    halves); [low, high] is its 95 % interval over `n` groups.
    """

    name: str
    value: float
    low: float
    high: float
    n: int

    @property
    def telling(self) -> bool:
        """Whether the whole interval is worth a warning."""
        _, centre, reach = MEASURES[self.name]
        return self.low > centre + reach or self.high < centre - reach

    def line(self) -> str:
        """Write the value with its interval and n."""
        metric = Metric.model_validate(asdict(self))
        return f"{MEASURES[self.name][0]} {estimate(metric)} ({self.n:,} groups)"


@dataclass(frozen=True)
class Fit:
    """How the rows fit `max_seq_length` tokens of a model's tokenizer; `first` is one that cannot.

    `cut` rows are shortened by `tokens_cut` tokens in all, `unfit` rows cannot be.
    """

    model: str
    max_seq_length: int
    longest: int
    cut: int
    tokens_cut: int
    unfit: int
    first: str

    def line(self) -> str:
        """Write the counts in one line."""
        return (
            f"longest row {self.longest:,} of {self.max_seq_length:,} ({self.model}), "
            f"{self.cut:,} rows would be shortened by {self.tokens_cut:,} tokens in all, "
            f"{self.unfit:,} cannot fit"
        )


@dataclass(frozen=True)
class CheckReport:
    """What a check found. Leaks make `judge data check` fail, the rest are warnings.

    `findings` say for each warning of checking.yaml which rows, or how many texts. `questions` are
    the reports of the labels of each question, of several.
    """

    leaks: Sequence[Leak]
    by_row: bool
    near: float
    labels: Mapping[str, Mapping[Verdict, int]]
    lengths: Lengths | None
    findings: Mapping[str, Sequence[str] | int]
    fit: Fit | None = None
    notes: Sequence[str] = ()
    questions: Mapping[str, "CheckReport"] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether something is in two splits."""
        return bool(self.leaks) or self.by_row

    def warnings(self) -> list[str]:
        """Say in a line each what is no leak, and yet worth a look."""
        lines = [*self.notes, *([] if self.questions else _one_class(self.labels))]
        for name, own in self.questions.items():
            lines += [f"{name}: {line}" for line in _one_class(own.labels)]
            if own.lengths and own.lengths.telling:
                lines.append(f"{name}: length alone predicts the label: {own.lengths.line()}")
        if self.lengths and self.lengths.telling:
            lines.append(f"length alone predicts the label: {self.lengths.line()}")
        if self.fit and self.fit.unfit:
            lines.append(
                f"{self.fit.unfit} rows do not fit {self.fit.max_seq_length} tokens (longest "
                f"{self.fit.longest}), such as {self.fit.first}"
            )
        for key, what in LOOKED_FOR["warnings"].items():
            if isinstance(rows := self.findings[key], int):
                lines += [f"{rows} {what}"] if rows else []
            elif rows:
                lines.append(f"{len(rows)} {what}, such as {rows[0]}")
        return lines

    def lines(self) -> list[str]:
        """Write the report in lines for a terminal, the verdict first."""
        lines = [f"check: {'LEAK' if self.failed else 'no leak'}"]
        if self.by_row:
            lines.append("  the folder was split by row: groups are in several splits")
        kinds: dict[str, list[Leak]] = defaultdict(list)
        for leak in self.leaks:
            kinds[f"{leak.field} leaks ({leak.kind})"].append(leak)
        for kind, leaks in kinds.items():
            lines += [f"  {len(leaks)} {kind}:", *(f"    {e.line()}" for e in leaks[:EXAMPLES])]
        shown = {f"{split} labels": _distribution(n) for split, n in self.labels.items() if n}
        shown |= {"length": self.lengths.line()} if self.lengths else {}
        shown |= {"tokens": self.fit.line()} if self.fit else {}
        lines += [f"  {name}: {text}" for name, text in shown.items()]
        return lines + [f"  warning: {warning}" for warning in self.warnings()]

    def summary(self) -> JsonObject:
        """Return what dataset.json and its card keep of the check."""
        summary: JsonObject = {
            "leaks": len(self.leaks),
            "by_row": self.by_row,
            "kinds": dict(Counter(f"{leak.field} {leak.kind}" for leak in self.leaks)),
            "near": self.near,
            "warnings": self.warnings(),
        }
        return summary | ({"lengths": asdict(self.lengths)} if self.lengths else {})

    def to_json(self) -> str:
        """Return the whole report as JSON."""
        leaks = [vars(leak) | {"id_a": leak.a.id, "id_b": leak.b.id} for leak in self.leaks]
        for leak in leaks:
            del leak["a"], leak["b"]
        fit = asdict(self.fit) if self.fit else None
        whole = {"examples": leaks, "labels": self.labels, **self.findings, "too_long": fit}
        return json.dumps(self.summary() | whole, ensure_ascii=False, indent=2)


def check_examples(
    splits: Splits, scale: Scale | None, *, near: float = NEAR, by_row: bool = False
) -> CheckReport:
    """Check rows in their splits; docs/DATA.md lists what is looked for.

    Without `scale` only the texts are checked. Raises UserError for a `near` that makes no sense.
    """
    rows = [example for examples in splits.values() for example in examples]
    split_of = [split for split, examples in splits.items() for _ in examples]
    leaks = find_leaks(splits)
    for pair in near_pairs(rows, near):
        a, b = split_of[pair.a], split_of[pair.b]
        if a != b:
            examples = (rows[pair.a], rows[pair.b])
            leaks.append(Leak("near", pair.field, *examples, a, b, pair.text, pair.similarity))
    findings: dict[str, Sequence[str] | int] = {
        "contradictions": _contradictions(rows),
        "control_tokens": _holding(rows, _CONTROL),
        "verdict_like": _holding(rows, _VERDICT_LIKE),
        "short_shared": _short_shared(splits),
        "boilerplate": sum(map(is_telling, boilerplate_of(rows))),
    }
    report = CheckReport(leaks, by_row, near, {}, None, findings)
    if scale is None:
        return report
    labels = {
        split: {value: counts[value] for value in scale.values if counts[value]}
        for split, counts in label_counts(splits).items()
    }
    return replace(report, labels=labels, lengths=length_and_label(rows, scale))


def check_asked(
    splits: Splits, asked: Asked, *, near: float = NEAR, by_row: bool = False
) -> CheckReport:
    """Check rows in their splits, of several questions the texts once and the labels of each."""
    if isinstance(asked, Scale):
        return check_examples(splits, asked, near=near, by_row=by_row)
    firsts = {split: _one_each(rows) for split, rows in splits.items()}
    report = check_examples(firsts, None, near=near, by_row=by_row)
    questions: dict[str, CheckReport] = {}
    labels: dict[str, Mapping[Verdict, int]] = {}
    found: list[str] = []
    for question in asked:
        name = question.name
        own = {split: [r for r in rows if r.asks == name] for split, rows in splits.items()}
        questions[name] = check_examples(own, question.scale, near=1.0)
        labels |= {f"{split}, {name}": n for split, n in questions[name].labels.items()}
        every = [row for part in own.values() for row in part]
        found += [f"{name}: {line}" for line in _contradictions(every)]
    return replace(
        report,
        labels=labels,
        findings={**report.findings, "contradictions": found},
        questions=questions,
    )


def _one_each(rows: Sequence[JudgeExample]) -> list[JudgeExample]:
    """Return an example of each row, which has one for each of its questions."""
    return [rows[own[0]] for own in members_of(rows)]


def check_folder(
    folder: Path,
    *,
    near: float = NEAR,
    model: str = "",
    max_seq_length: int = 512,
    chat_template: str = "",
) -> CheckReport:
    """Read a dataset folder and check it.

    With `model` the report also says whether the rows fit, and looks for the control tokens of that
    tokenizer. Raises UserError for a folder that cannot be read, or whose template cannot.
    """
    data = read_dataset(folder, allow_leaks=True)
    template = Template.load(data.card.template, data.card.rubric)
    if data.questions:
        template.check_asks()
    splits = {split: rows for split in SPLITS if (rows := getattr(data, split))}
    by_row = data.card.split.by == "row"
    report = replace(check_asked(splits, data.asked, near=near, by_row=by_row), notes=data.notes)
    if not model:
        return report
    rows = [row for examples in splits.values() for row in examples]
    asked, _ = choose_grid(AUTO, data.asked, data.train, others=rows)
    encoder = encoder_of(data.card, asked, model, max_seq_length, chat_template)
    holding = _holding(_one_each(rows), _control_of(encoder))
    findings = {**report.findings, "control_tokens": holding}
    return replace(report, findings=findings, fit=_fit(rows, encoder, model))


def refuse_leaks(report: CheckReport, folder: Path) -> None:
    """Raise UserError, with the remedy, if the report has a leak."""
    if not report.failed:
        return
    what = report.leaks[0].line() if report.leaks else "the folder was split by row"
    more = f" and {len(report.leaks) - 1} more" if len(report.leaks) > 1 else ""
    remedy = f"split it again with `judge data split {folder} --anew`"
    raise UserError(f"{folder} leaks: {what}{more}: {remedy}")


def _one_class(labels: Mapping[str, Mapping[Verdict, int]]) -> list[str]:
    """Say where every label is the same, so that a judge that always gives it is never wrong."""
    values = {label for counts in labels.values() for label in counts}
    if len(values) == 1:
        only = values.pop()
        right = f"one that always says {only} is right in 100 %"
        return [f"every label is {only}: a judge can neither learn nor be tested ({right})"]
    return [
        f"every {split} label is {label}: its accuracy says nothing"
        for split, counts in labels.items()
        for label, count in counts.items()
        if len(counts) == 1 and count >= MIN_ALIKE
    ]


def _contradictions(rows: Sequence[JudgeExample]) -> list[str]:
    """Name the rows that have different labels for the same input and candidate."""
    labels: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for row in rows:
        if row.label is not None and (texts := candidate_texts(row)):
            texts = [input_text(row), row.context or "", row.reference or "", *texts]
            labels[tuple(map(one_line, texts))].setdefault(str(row.label.verdict), row.id)
    return [
        " and ".join(f"{verdict} ({name})" for verdict, name in list(names.items())[:3])
        for names in labels.values()
        if len(names) > 1
    ]


def length_and_label(rows: Sequence[JudgeExample], scale: Scale) -> Lengths | None:
    """Measure how far the candidates' lengths in characters alone predict the labels.

    Returns None with under MIN_GROUPS groups, where all lengths or all labels are equal, and for
    options, which have no order. The interval counts each group as one row: Fisher's z for a
    correlation, Wilson's for a share.
    """
    labelled = [(row, texts) for row in rows if row.label and (texts := candidate_texts(row))]
    groups = len({row.group for row, _ in labelled})
    verdicts = [row.label.verdict for row, _ in labelled if row.label]
    if groups < MIN_GROUPS or (scale.task == "choice" and scale.values != YES_NO):
        return None
    if scale.task == "pairwise":
        share = share_won_by_longer([texts for _, texts in labelled], verdicts)
        return Lengths("longer wins", share, *wilson(share, groups), groups)
    from scipy.stats import spearmanr

    places = [scale.values.index(verdict) for verdict in verdicts]
    lengths = [len(texts[0]) for _, texts in labelled]
    if len(set(places)) < 2 or len(set(lengths)) < 2:
        return None
    # PASS and yes stand first.
    rho = float(spearmanr(lengths, places).statistic) * (1 if scale.task == "score" else -1)
    z, error = math.atanh(max(-0.999999, min(rho, 0.999999))), Z / math.sqrt(groups - 3)
    return Lengths("spearman", rho, math.tanh(z - error), math.tanh(z + error), groups)


def _short_shared(splits: Splits) -> int:
    """Count the short candidates that are in several splits."""
    splits_of = Counter[str]()
    for examples in splits.values():
        keys = {normalised(text) for example in examples for text in candidate_texts(example)}
        splits_of.update(key for key in keys if 0 < len(words_of(key)) < LEAST_WORDS)
    return sum(count > 1 for count in splits_of.values())


def _control_of(encoder: PromptEncoder) -> re.Pattern[str]:
    """Match what chat templates write, and the control tokens of a tokenizer."""
    tokens = control_tokens(encoder.tokenizer) | set(encoder.tokenizer.all_special_tokens)
    own = map(re.escape, sorted(tokens, key=len, reverse=True))  # a longer one may hold a shorter
    return re.compile("|".join([_CONTROL.pattern, *own]))


def _holding(rows: Sequence[JudgeExample], pattern: re.Pattern[str]) -> list[str]:
    """Name the rows whose candidates match the pattern, with what matches."""
    matches = [(row.id, map(pattern.search, candidate_texts(row))) for row in rows]
    firsts = ((name, next(filter(None, of_row), None)) for name, of_row in matches)
    return [f"{name} ({one_line(match[0])})" for name, match in firsts if match]


def _fit(rows: Sequence[JudgeExample], encoder: PromptEncoder, model: str) -> Fit:
    """Lay every row out as training does, and count what has to be cut or cannot fit."""
    encoded, cuts = encoder.fit(rows)
    unfit = members_of([row.example for row in encoded if row.unfit])
    counts = (cuts.longest, cuts.rows_cut, cuts.tokens_cut, len(unfit))
    return Fit(model, encoder.max_seq_length, *counts, first=next(iter(cuts.unfit), ""))


def _distribution(counts: Mapping[Verdict, int]) -> str:
    """Say how the labels spread: the share of each, of many numbers the quartiles."""
    total = sum(counts.values())
    numbers = sorted(value for value in counts if not isinstance(value, str))
    if len(counts) > MAX_LABELS and numbers:
        values = [value for value in numbers for _ in range(counts[value])]
        quartiles = ", ".join(f"{values[total * i // 4]:g}" for i in (1, 2, 3))
        return f"{values[0]:g} to {values[-1]:g}, quartiles {quartiles} (n {total:,})"
    shown = dict(counts if len(counts) <= MAX_LABELS else Counter(counts).most_common(MAX_LABELS))
    shares = ", ".join(f"{value} {n / total:.0%}" for value, n in shown.items())
    more = len(counts) - len(shown)
    return f"{shares}{f' and {more} more' if more else ''} (n {total:,})"
