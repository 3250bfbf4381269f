"""Guess what the columns of an unknown file are, and what its labels mean.

The names decide first, since most files use the same ones; then the content of the columns.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from pathlib import Path

import yaml

from pt_app.core.verdicts import MAX_VALUES
from pt_app.core.words import normalised
from pt_app.judge_data.mapping import LISTS, TARGETS
from pt_app.judge_data.numbers import as_number
from pt_app.judge_data.proposing.columns import Column

Columns = Mapping[str, Column]
Names = tuple[str, ...]

_FILE = Path(__file__).with_name("vocabulary.yaml")
VOCABULARY = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
NAMES: Mapping[str, Sequence[str]] = VOCABULARY["columns"]
PAIRS = (("a", "b"), ("1", "2"), ("0", "1"), ("first", "second"), ("left", "right"))
PAIRED = {*NAMES["candidate"], *NAMES["conversation"], *VOCABULARY["paired"]}
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_]+")
# Parts of a path that name nothing: positions in lists, and the wrappers of annotation tools.
_STEP = re.compile(r"\d+|\*|responses|values?")
# Of this many labels the largest one is taken for the end of the scale; of fewer, a usual end.
ENOUGH = 50
TOPS = (5, 10, 100)
STEPS = tuple(map(Decimal, ("10", "5", "1", "0.5", "0.25", "0.2", "0.1", "0.05", "0.01")))
# Numbers as verdicts of a pair: A, B and tie, in this order.
PAIR_NUMBERS = ("1 2", "1 2 0", "1 2 3", "0 1", "1 0 0.5", "1 -1 0")


# --- columns ---


def words_of(name: str) -> Names:
    """Split the name of a column, or the last name of a path: srcText and src_text are alike."""
    parts = name.split(".")
    named = [part for part in parts if not _STEP.fullmatch(part)] or parts
    return tuple(word.casefold() for word in _WORDS.findall(named[-1]))


def guess_map(columns: Columns) -> dict[str, Names]:
    """Return the columns of each field of --map that are recognised; each serves one field."""
    usable = {n: c for n, c in columns.items() if c.kind != "empty" and typable(n)}
    # A row may have a label from each of a list of raters, but only one text of each kind.
    free = {name: column for name, column in usable.items() if "*" not in name}
    pair, guessed = _pair(free)
    free = {name: column for name, column in free.items() if name not in pair}

    def take(target: str, names: Names) -> None:
        if names and target not in guessed and not (pair and target == "candidate"):
            guessed[target] = names
            for name in names:
                free.pop(name, None)

    take("label", _label({n: column for n, column in usable.items() if n in free or "*" in n}))
    for target in ("rubric", "feedback", "issues", "conversation", "candidate"):
        take(target, _named(target, free))
    if {"instruction", "input"} <= free.keys():
        take("source", ("instruction", "input"))
    for target in ("source", "reference", "context"):
        take(target, _named(target, free))
    if "conversation" not in guessed:
        take("source", _first_text(free))
    take("candidate", _first_text(free))
    # An id names one row, or one row for each rater; a group has several rows.
    ids, rater = _exactly("id", free), _exactly("rater", free)
    unique = all(free[n].distinct == free[n].rows for n in ids)
    take("id", ids if unique or rater else ())
    take("rater", () if unique else rater)
    groups = _exactly("group", free) or _exactly("id", free)
    take("group", tuple(n for n in groups if free[n].distinct < free[n].rows))
    for target in ("system", "document", "time"):
        take(target, _exactly(target, free))
    return {target: guessed[target] for target in TARGETS if target in guessed}


def typable(name: str) -> bool:
    """Return whether a path can be typed into --map: it has no blank and no invisible parts."""
    return name.isprintable() and all(part.strip() == part != "" for part in name.split("."))


def _pair(columns: Columns) -> tuple[Names, dict[str, Names]]:
    """Return the columns of two candidates, and what --map reads of them.

    These are two columns with the most words (response_a and response_b), or one column of lists of
    two texts, unless another column has the name of a candidate.
    """
    texts = {words_of(n): n for n, c in columns.items() if c.is_text or c.kind == "turns"}
    pairs = [
        (name, texts[other])
        for words, name in texts.items()
        for first, second in PAIRS
        if first in words and PAIRED & {*words, "_".join(words[:-1])}
        for other in [tuple(second if word == first else word for word in words)]
        if other in texts
    ]
    if pairs:
        a, b = pair = max(pairs, key=lambda pair: columns[pair[0]].mean_words)
        if columns[a].kind != "turns":
            return pair, {"candidate_a": (a,), "candidate_b": (b,)}
        answers = {"candidate_a": (f"{a}.1.content",), "candidate_b": (f"{b}.1.content",)}
        return pair, {"source": (f"{a}.0.content",), **answers}
    for name, c in () if _named("candidate", columns) else columns.items():
        two = c.is_text and c.most == 2 and c.filled == 2 * c.rows
        if two and _singular(name) & PAIRED:
            return (name,), {"candidate_a": (f"{name}.0",), "candidate_b": (f"{name}.1",)}
    return (), {}


def _label(columns: Columns) -> Names:
    """Return the labels: a column per rater, a list of them, one by name, else by its values."""
    fit = {name: column for name, column in columns.items() if column.may_be_label}
    series: dict[Names, Names] = {}
    for name in fit:
        *words, number = words_of(name) or ("",)
        if number.isdigit() and not set(words).isdisjoint(VOCABULARY["raters"]):
            series[tuple(words)] = (*series.get(tuple(words), ()), name)
    raters = max(series.values(), key=len, default=())
    if len(raters) > 1:
        return raters
    for name, column in fit.items():
        if column.most > 1 and not _singular(name).isdisjoint(NAMES["label"]):
            return (name,)
    others = _of_roles(fit)
    by_values = [
        n for n in fit if n not in others and 1 < fit[n].distinct < min(102, fit[n].filled)
    ]
    return _exactly("label", fit) or _loosely("label", fit) or tuple(by_values[-1:])


def _named(target: str, columns: Columns) -> Names:
    turns, many = target == "conversation", target in LISTS
    fits = {n: c for n, c in columns.items() if (c.kind == "turns" if turns else c.is_text)}
    fit = {n: c for n, c in fits.items() if many or c.most <= 1}
    return _exactly(target, fit) or _loosely(target, fit)


def _exactly(target: str, columns: Columns) -> Names:
    """Return the column with the most likely of the target's names, if there is one."""
    by_name = {"_".join(words_of(name)): name for name in reversed(list(columns))}
    return tuple(by_name[name] for name in NAMES[target] if name in by_name)[:1]


def _loosely(target: str, columns: Columns) -> Names:
    """Return the column whose name contains one of the target's: orig_response, scoreMean."""
    return tuple(name for word in NAMES[target] for name in columns if word in words_of(name))[:1]


def _singular(name: str) -> set[str]:
    """Return the words of a name, also without the `s` of a plural."""
    return {form for word in words_of(name) for form in (word, word.removesuffix("s"))}


def _first_text(columns: Columns) -> Names:
    others = _of_roles(columns)
    texts = (n for n, c in columns.items() if c.kind == "text" and c.most < 2)
    return tuple(n for n in texts if n not in others)[:1]


def _of_roles(columns: Columns) -> set[str]:
    """Return the columns that say by name which row it is, and where it comes from."""
    roles = ("id", "group", "rater", "system", "document", "time")
    return {name for role in roles for name in _exactly(role, columns)}


def guess_template(guessed: Mapping[str, Names]) -> str:
    """Choose a template by the names of the columns: translations, or answers to requests."""
    source, candidate = (
        {word for field in fields for name in guessed.get(field, ()) for word in words_of(name)}
        for fields in (("source",), ("candidate", "candidate_a"))
    )
    if source & {"en", "english"} and candidate & {"pt", "portuguese"}:
        return "translation"
    return "response" if candidate.isdisjoint(VOCABULARY["translated"]) else "translation_any"


# --- labels ---


@dataclass(frozen=True)
class Labels:
    """What the labels are.

    Attributes:
        scale: The name of the scale; "" where the numbers are too fine for one.
        meanings: Those for --labels.
        unknown: Values without a known meaning.
        remark: What the user should check.
    """

    scale: str
    meanings: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    remark: str = ""


def guess_labels(columns: Sequence[Column], pair: bool) -> Labels:
    """Guess scale and meanings from the columns of the labels, one or one per rater.

    Without any column the usual scale is returned.
    """
    if not columns:
        return Labels("0-10")
    values = list(dict.fromkeys(value.strip() for column in columns for value in column.values))
    numbers = all(column.kind == "number" for column in columns)
    if pair:
        return _pair_numbers(values) if numbers else _with_meanings(values, "pairwise", _winner)
    if numbers and {_plain(value) for value in values} != {"0", "1"}:
        steps = [column.step for column in columns]
        fit = (s for s in STEPS if all(step is not None and step % s == 0 for step in steps))
        scale = scale_of([n for column in columns for n in column.numbers], next(fit, None))
        too_fine = f"are finer than a judge's scale (at most {MAX_VALUES:,} values): round them"
        return Labels(scale, remark="" if scale else f"the labels {too_fine}")
    folded = {value: _folded(value) for value in values}
    words, verdicts = set(folded.values()), VOCABULARY["verdicts"]
    for grades in VOCABULARY["grades"]:
        if words <= set(grades) and not words <= {*verdicts["PASS"], *verdicts["FAIL"]}:
            meanings = {value: str(grades.index(word) + 1) for value, word in folded.items()}
            return Labels(f"1-{len(grades)}", meanings)
    return _with_meanings(values, "pass_fail", _passes)


def scale_of(numbers: Sequence[Decimal], step: Decimal | None) -> str:
    """Return the usual scale that holds the numbers; "" if it were too fine."""
    if step is None:
        return ""
    low, high, count = min(numbers), max(numbers), len(numbers)
    if low < 0:
        top = max(-low, high).to_integral_value(ROUND_CEILING)
        bottom = -top
    elif high <= 1 and step < 1:
        bottom, top = Decimal(0), Decimal(1)
    else:
        usual = next((top for top in TOPS if high <= top), high)
        exact = count >= ENOUGH and high == high.to_integral_value() and 2 <= high <= 10
        top = Decimal(high if exact else usual)
        bottom = Decimal(1 if low >= 1 and (top < 10 or (exact and low == 1)) else 0)
    steps = (top - bottom) / step
    if step > 1 and (count < ENOUGH or steps != steps.to_integral_value()):
        step = Decimal(1)
    if (top - bottom) / step >= MAX_VALUES:
        return ""
    return f"{bottom:f}-{top:f}" + (f":{step.normalize():f}" if step != 1 else "")


def _pair_numbers(values: Sequence[str]) -> Labels:
    numbers = {value: _plain(value) for value in values}
    usual = [row.split() for row in PAIR_NUMBERS if set(row.split()) == {*numbers.values()}]
    if not usual:
        return Labels("pairwise", unknown=tuple(values))
    named = dict(zip(usual[0], ("A", "B", "tie"), strict=False))
    meanings = {value: named[number] for value, number in numbers.items()}
    guessed = ", ".join(f"{value} is {verdict}" for value, verdict in meanings.items())
    return Labels("pairwise", meanings, remark=f"by guess {guessed}: make sure")


def _with_meanings(values: Sequence[str], task: str, meaning: Callable[[str], str]) -> Labels:
    """Give each value its meaning; no meaning is needed where all values are verdicts already."""
    meanings = {value: verdict for value in values if (verdict := meaning(value))}
    unknown = tuple(value for value in values if value not in meanings)
    plain = all(value.casefold() == verdict.casefold() for value, verdict in meanings.items())
    return Labels(task, {} if plain and not unknown else meanings, unknown)


def _winner(value: str) -> str:
    words = set(re.findall(r"[^\W\d_]+|\d+", value.casefold()))
    meant = [v for v, names in VOCABULARY["winners"].items() if not words.isdisjoint(names)]
    return meant[0] if meant and (meant[0] == "tie" or len(meant) == 1) else ""


def _passes(value: str) -> str:
    word = _folded(value) if as_number(value) is None else _plain(value)
    return next((verdict for verdict, words in VOCABULARY["verdicts"].items() if word in words), "")


def _folded(value: str) -> str:
    """Write a word as the lists here do: small letters, no accents, single spaces."""
    return normalised(value.replace("_", " "))


def _plain(value: str) -> str:
    """Write a number without trailing zeros, read with a decimal point where it can be: "1.000"."""
    number = as_number(value)
    return value if number is None else f"{number.normalize():f}"
