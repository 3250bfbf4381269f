"""`judge data check`: what stands on two sides of a split, and what else makes labels doubtful."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pt_app.core.chat_templates import control_tokens
from pt_app.core.dataset import JudgeData, read_dataset
from pt_app.core.errors import UserError
from pt_app.core.formatting import estimate
from pt_app.core.leaks import (
    LEAST_WORDS,
    Leak,
    boilerplate_of,
    candidate_texts,
    find_leaks,
    input_text,
)
from pt_app.core.records import JudgeExample, one_line
from pt_app.core.results import Metric
from pt_app.core.verdicts import Scale
from pt_app.core.words import normalised, words_of
from pt_app.evidence.biases import share_won_by_longer
from pt_app.judge_data.duplicates import near_pairs
from pt_app.judge_data.options import NEAR

EXAMPLES = 5
MAX_LABELS = 11  # told one by one in a line
LEAST_ALIKE = 5  # rows of a split; fewer may well have one label
# A correlation of labels with length from here on is worth a warning, if its interval lies beyond.
TELLING_LENGTH = 0.3
# What chat templates write, as text inside a candidate.
_CONTROL = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:bos|eos|unk|pad)>"
    r"|<(?:start|end)_of_turn>"
)
_VERDICT_LIKE = re.compile(
    r"^[ \t>*_#-]*(?:score|rating|verdict|winner|grade)[ \t*_]*[:=]|\[\[(?:\d+|[ABC]|tie)\]\]"
    r"|\[RESULT\]",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True)
class Lengths:
    """How far the length of a candidate alone tells its label.

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
        """Whether the interval lies beyond what is worth a warning."""
        centre = 0.5 if self.name == "longer wins" else 0.0
        reach = 0.1 if self.name == "longer wins" else TELLING_LENGTH
        return self.low > centre + reach or self.high < centre - reach


@dataclass(frozen=True)
class CheckReport:
    """What a check found. Leaks make `judge data check` fail, the rest are warnings."""

    leaks: Sequence[Leak]
    by_row: bool
    labels: Mapping[str, Mapping[str, int]]
    contradictions: Sequence[str]
    lengths: Lengths | None
    short_shared: int
    boilerplate: int
    control: Sequence[str]
    verdict_like: Sequence[str]
    near: float
    too_long: Mapping[str, Any] | None = None
    notes: Sequence[str] = field(default=())

    @property
    def failed(self) -> bool:
        """Whether something stands on two sides of the split."""
        return bool(self.leaks) or self.by_row

    def warnings(self) -> list[str]:
        """Say in a line each what is no leak, and yet worth a look."""
        found = [*self.notes, *_one_class(self.labels)]
        if self.contradictions:
            found.append(
                f"{len(self.contradictions)} inputs have the same candidate under different "
                f"labels, such as {self.contradictions[0]}"
            )
        if self.lengths and self.lengths.telling:
            found.append(f"length alone tells the label: {_length_line(self.lengths)}")
        for what, rows in (
            ("control tokens", self.control),
            ("verdict-like phrases", self.verdict_like),
        ):
            if rows:
                found.append(f"{len(rows)} candidates hold {what}, such as {rows[0]}")
        if self.too_long and self.too_long["unfit"]:
            found.append(
                f"{self.too_long['unfit']} rows do not fit {self.too_long['max_seq_length']} "
                f"tokens (longest {self.too_long['longest']}), such as {self.too_long['first']}"
            )
        if self.short_shared:
            found.append(
                f"{self.short_shared} candidates under {LEAST_WORDS} words stand in several "
                "splits, as short ones will"
            )
        if self.boilerplate:
            found.append(f"{self.boilerplate} long candidates stand under many inputs: boilerplate")
        return found

    def lines(self) -> list[str]:
        """Say it in lines for a terminal, the verdict first."""
        kinds = Counter((leak.field, leak.kind) for leak in self.leaks)
        lines = [f"check: {'LEAK' if self.failed else 'no leak'}"]
        if self.by_row:
            lines.append("  the folder was split by row: groups stand on several sides")
        for (what, kind), count in kinds.items():
            lines.append(f"  {count} {what} leaks ({kind}):")
            told = [leak for leak in self.leaks if (leak.field, leak.kind) == (what, kind)]
            lines += [f"    {leak.line()}" for leak in told[:EXAMPLES]]
        for split, counts in self.labels.items():
            if counts:
                lines.append(f"  {split} labels: {_distribution(counts)}")
        if self.lengths:
            lines.append(f"  length: {_length_line(self.lengths)}")
        if self.too_long:
            lines.append("  tokens: " + _token_line(self.too_long))
        return lines + [f"  warning: {warning}" for warning in self.warnings()]

    def summary(self) -> dict[str, Any]:
        """Give what dataset.json and its card keep of the check."""
        kinds = Counter(f"{leak.field} {leak.kind}" for leak in self.leaks)
        found: dict[str, Any] = {
            "leaks": len(self.leaks),
            "by_row": self.by_row,
            "kinds": dict(kinds),
            "near": self.near,
            "warnings": self.warnings(),
        }
        if self.lengths:
            found["lengths"] = vars(self.lengths)
        return found

    def to_json(self) -> str:
        """Give the whole report as JSON."""
        leaks = [
            {
                "kind": leak.kind,
                "field": leak.field,
                "similarity": leak.similarity,
                **{f"split_{x}": getattr(leak, f"split_{x}") for x in "ab"},
                **{f"id_{x}": getattr(leak, x).id for x in "ab"},
                "text": leak.text,
            }
            for leak in self.leaks
        ]
        whole = self.summary() | {
            "examples": leaks,
            "labels": self.labels,
            "contradictions": list(self.contradictions),
            "control_tokens": list(self.control),
            "verdict_like": list(self.verdict_like),
            "short_shared": self.short_shared,
            "boilerplate": self.boilerplate,
            "too_long": self.too_long,
        }
        return json.dumps(whole, ensure_ascii=False, indent=2)

    def remedy(self, folder: Path) -> str:
        """Say in one line what is wrong and what mends it."""
        what = self.leaks[0].line() if self.leaks else "the folder was split by row"
        more = f" and {len(self.leaks) - 1} more" if len(self.leaks) > 1 else ""
        return f"{folder} leaks: {what}{more}: part it anew with `judge data split {folder} --anew`"


def check_examples(
    splits: Mapping[str, Sequence[JudgeExample]],
    scale: Scale,
    *,
    near: float = NEAR,
    by_row: bool = False,
    progress: bool = False,
) -> CheckReport:
    """Check rows in their splits; see docs/DATA.md for what is looked for.

    Raises UserError for a `near` that makes no sense.
    """
    rows = [example for examples in splits.values() for example in examples]
    side = [split for split, examples in splits.items() for _ in examples]
    leaks = find_leaks(splits)
    for pair in near_pairs(rows, near, progress):
        if side[pair.a] != side[pair.b]:
            a, b = rows[pair.a], rows[pair.b]
            where = (side[pair.a], side[pair.b])
            leaks.append(Leak("near", pair.field, a, b, *where, pair.text, pair.similarity))
    boilerplate = {key for key in boilerplate_of(rows) if len(words_of(key)) >= LEAST_WORDS}
    return CheckReport(
        leaks=leaks,
        by_row=by_row,
        labels=_labels(splits, scale),
        contradictions=_contradictions(rows),
        lengths=length_and_label(rows, scale),
        short_shared=_short_shared(splits),
        boilerplate=len(boilerplate),
        control=_holding(rows, _CONTROL),
        verdict_like=_holding(rows, _VERDICT_LIKE),
        near=near,
    )


def check_folder(
    folder: Path, *, near: float = NEAR, model: str = "", max_seq_length: int = 512
) -> CheckReport:
    """Read a dataset folder and check it; with `model` also whether its rows fit that tokenizer.

    Raises UserError for a folder that cannot be read.
    """
    folder = Path(folder)
    data = read_dataset(folder, allow_leaks=True)
    splits = {"train": data.train, "val": data.val, "test": data.test}
    splits = {split: examples for split, examples in splits.items() if examples}
    by_row = data.card.split.get("by") == "row"
    report = check_examples(splits, data.scale, near=near, by_row=by_row, progress=True)
    if not model:
        return replace(report, notes=data.notes)
    tokenizer = _tokenizer(model)
    rows = [example for examples in splits.values() for example in examples]
    tokens = control_tokens(tokenizer) | set(tokenizer.all_special_tokens)
    own = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    return replace(
        report,
        notes=data.notes,
        too_long=_too_long(data, rows, tokenizer, model, max_seq_length),
        control=_holding(rows, re.compile(f"{_CONTROL.pattern}|{own}" if own else _CONTROL)),
    )


def _labels(
    splits: Mapping[str, Sequence[JudgeExample]], scale: Scale
) -> dict[str, dict[str, int]]:
    counts = {
        split: Counter(example.label.verdict for example in examples if example.label)
        for split, examples in splits.items()
    }
    return {
        split: {str(value): count[value] for value in scale.values if count[value]}
        for split, count in counts.items()
    }


def _one_class(labels: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Say where every label is the same, so that a judge that always gives it is never wrong."""
    filled = {split: counts for split, counts in labels.items() if counts}
    alike = {split: next(iter(counts)) for split, counts in filled.items() if len(counts) == 1}
    if len(alike) == len(filled) > 0 and len(set(alike.values())) == 1:
        (only,) = set(alike.values())
        return [
            f"every label is {only}: a judge can neither learn nor be tested (one that always says "
            f"{only} is right in 100 %)"
        ]
    return [
        f"every {split} label is {only}: its accuracy says nothing"
        for split, only in alike.items()
        if filled[split][only] >= LEAST_ALIKE
    ]


def _contradictions(rows: Sequence[JudgeExample]) -> list[str]:
    labels: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for row in rows:
        if row.label is not None and (texts := candidate_texts(row)):
            texts = [input_text(row), row.context or "", row.reference or "", *texts]
            labels[tuple(map(one_line, texts))].setdefault(str(row.label.verdict), row.id)
    return [
        " and ".join(f"{verdict} ({name})" for verdict, name in list(said.items())[:3])
        for said in labels.values()
        if len(said) > 1
    ]


def length_and_label(rows: Sequence[JudgeExample], scale: Scale) -> Lengths | None:
    """Measure how far the candidates' lengths in characters alone tell the labels.

    None under 10 rows. The interval takes each group for one row: Fisher's z for a correlation,
    Wilson's for a share.
    """
    told = [row for row in rows if row.label is not None and candidate_texts(row)]
    groups = len({row.group for row in told})
    verdicts = [row.label.verdict for row in told if row.label]
    if groups < 10:
        return None
    if scale.task == "pairwise":
        return _share(share_won_by_longer([candidate_texts(row) for row in told], verdicts), groups)
    from scipy.stats import spearmanr

    places = [scale.values.index(verdict) for verdict in verdicts]
    lengths = [len(candidate_texts(row)[0]) for row in told]
    if len(set(places)) < 2 or len(set(lengths)) < 2:
        return None
    rho = float(spearmanr(lengths, places).statistic) * (-1 if scale.task == "pass_fail" else 1)
    z, error = math.atanh(max(-0.999999, min(rho, 0.999999))), 1.96 / math.sqrt(groups - 3)
    return Lengths("spearman", rho, math.tanh(z - error), math.tanh(z + error), groups)


def _share(share: float, n: int) -> Lengths:
    z = 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Lengths("longer wins", share, max(0.0, centre - half), min(1.0, centre + half), n)


def _short_shared(splits: Mapping[str, Sequence[JudgeExample]]) -> int:
    sides: dict[str, set[str]] = defaultdict(set)
    for split, examples in splits.items():
        for text in (text for example in examples for text in candidate_texts(example)):
            if 0 < len(words_of(key := normalised(text))) < LEAST_WORDS:
                sides[key].add(split)
    return sum(len(where) > 1 for where in sides.values())


def _holding(rows: Sequence[JudgeExample], pattern: re.Pattern[str]) -> list[str]:
    """Name the rows whose candidates hold the pattern, with what was found."""
    found = []
    for row in rows:
        matches = (pattern.search(text) for text in candidate_texts(row))
        if match := next(filter(None, matches), None):
            found.append(f"{row.id} ({one_line(match.group(0))})")
    return found


def _tokenizer(model: str) -> Any:
    from transformers.utils import logging

    from pt_app.models import bases

    logging.set_verbosity_error()  # the tokenizer too speaks of rows that are too long
    return bases.load_tokenizer(bases.resolve_tokenizer(model))


def _too_long(
    data: JudgeData, rows: Sequence[JudgeExample], tokenizer: Any, model: str, max_seq_length: int
) -> dict[str, Any]:
    """Lay every row out as training does, and count what has to be cut or cannot fit."""
    from pt_app.core.prompt_templates import Template
    from pt_app.core.prompts import PromptEncoder

    template = Template.load(data.card.template, data.card.rubric)
    encoder = PromptEncoder(tokenizer, template, data.scale, max_seq_length)
    _, cuts = encoder.fit(rows)
    return {
        "model": model,
        "max_seq_length": max_seq_length,
        "longest": cuts.longest,
        "cut": cuts.rows_cut,
        "tokens_cut": cuts.tokens_cut,
        "unfit": len(cuts.unfit),
        "first": cuts.unfit[0] if cuts.unfit else "",
    }


def _token_line(too_long: Mapping[str, Any]) -> str:
    return (
        f"longest row {too_long['longest']:,} of {too_long['max_seq_length']:,} "
        f"({too_long['model']}), {too_long['cut']:,} rows would be shortened by "
        f"{too_long['tokens_cut']:,} tokens in all, {too_long['unfit']:,} cannot fit"
    )


def _length_line(lengths: Lengths) -> str:
    rho = lengths.name == "spearman"
    what = "characters and label, rho" if rho else "the longer candidate (characters) wins"
    return f"{what} {estimate(Metric.model_validate(vars(lengths)))} ({lengths.n:,} groups)"


def _distribution(counts: Mapping[str, int]) -> str:
    """Say how the labels spread: each one's share, or of a fine scale the quartiles."""
    total = sum(counts.values())
    if len(counts) <= MAX_LABELS:
        shares = ", ".join(f"{value} {n / total:.0%}" for value, n in counts.items())
        return f"{shares} (n {total:,})"
    values = sorted(float(value) for value, n in counts.items() for _ in range(n))
    quartiles = ", ".join(f"{values[total * i // 4]:g}" for i in (1, 2, 3))
    return f"{values[0]:g} to {values[-1]:g}, quartiles {quartiles} (n {total:,})"


def refuse_leaks(report: CheckReport, folder: Path) -> None:
    """Raise UserError if the report has a leak."""
    if report.failed:
        raise UserError(report.remedy(folder))
