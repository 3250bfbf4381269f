"""Guesses what labels mean: the scale of a score, the winner of a pair, pass or fail."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal

from pt_app.core.verdicts import MOST_VALUES
from pt_app.core.words import normalised
from pt_app.judge_data.numbers import as_number
from pt_app.judge_data.proposing.columns import Column

# Of this many labels the largest one is taken for the end of the scale; of fewer, a usual end.
ENOUGH = 50
TOPS = (5, 10, 100)
STEPS = tuple(map(Decimal, ("10", "5", "1", "0.5", "0.25", "0.2", "0.1", "0.05", "0.01")))
# Numbers as verdicts of a pair, (A, B, tie).
PAIR_NUMBERS = {
    ("1", "2"): ("1", "2", ""),
    ("0", "1", "2"): ("1", "2", "0"),
    ("1", "2", "3"): ("1", "2", "3"),
    ("0", "1"): ("0", "1", ""),
    ("0", "0.5", "1"): ("1", "0", "0.5"),
    ("-1", "0", "1"): ("1", "-1", "0"),
}


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


_FIRST = {"a", "1", "first", "left"}
_SECOND = {"b", "2", "second", "right"}
_TIE = {"tie", "tied", "draw", "equal", "same", "both", "neither", "none"}
_PASS = _listed(
    "pass, passed, good, ok, okay, yes, true, correct, valid, accept, 1, accepted, acceptable, "
    "right, positive, success, sim, bom, aprovado"
)
_FAIL = _listed(
    "fail, failed, bad, no, false, incorrect, invalid, reject, rejected, 0, unacceptable, "
    "not acceptable, wrong, negative, failure, nao, ruim, reprovado, not ok, poor"
)
_GRADES = (
    ("low", "medium", "high"),
    ("incorrect", "partially correct", "correct"),
    ("very bad", "bad", "ok", "good", "very good"),
    ("terrible", "bad", "acceptable", "good", "excellent"),
    ("very poor", "poor", "fair", "good", "very good", "excellent"),
    ("strongly disagree", "disagree", "neutral", "agree", "strongly agree"),
)


@dataclass(frozen=True)
class Labels:
    """What the labels are.

    Attributes:
        scale: The name of the scale; "" where the numbers are too fine for one.
        meanings: Those for --labels.
        unknown: Values without a known meaning.
        remark: What the user should check.
    """

    task: str
    scale: str
    meanings: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    remark: str = ""


def guess_labels(columns: Sequence[Column], pair: bool) -> Labels:
    """Guess task, scale and meanings from the columns of the labels, one or one per rater.

    Without any column the usual scale is returned.
    """
    if not columns:
        return Labels("score", "0-10")
    values = list(dict.fromkeys(value.strip() for column in columns for value in column.values))
    numbers = all(column.kind == "number" for column in columns)
    if pair:
        return _pair_numbers(values) if numbers else _named(values, "pairwise", _winner)
    if numbers and {_plain(value) for value in values} != {"0", "1"}:
        step = next((s for s in STEPS if all(_divides(s, c.step) for c in columns)), None)
        low, high = min(c.low for c in columns), max(c.high for c in columns)
        scale = scale_of(low, high, step, sum(c.filled for c in columns))
        too_fine = (
            f"the labels, {low} to {high}, are finer than a judge's scale ({MOST_VALUES:,} values "
            "at most): round them in the file"
        )
        return Labels("score", scale, remark="" if scale else too_fine)
    folded = {value: _folded(value) for value in values}
    words = set(folded.values())
    for grades in _GRADES:
        if words <= set(grades) and not words <= {*_PASS, *_FAIL}:
            meanings = {value: str(grades.index(word) + 1) for value, word in folded.items()}
            return Labels("score", f"1-{len(grades)}", meanings)
    return _named(values, "pass_fail", _passes)


def scale_of(low: Decimal, high: Decimal, step: Decimal | None, count: int) -> str:
    """Return the usual scale that holds numbers from `low` to `high`; "" if it were too fine."""
    if step is None:
        return ""
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
    if (top - bottom) / step >= MOST_VALUES:
        return ""
    return f"{bottom:f}-{top:f}" + (f":{step.normalize():f}" if step != 1 else "")


def _divides(step: Decimal, of: Decimal | None) -> bool:
    return of is not None and of % step == 0


def _pair_numbers(values: Sequence[str]) -> Labels:
    numbers = {value: _plain(value) for value in values}
    verdicts = PAIR_NUMBERS.get(tuple(sorted(set(numbers.values()), key=Decimal)))
    if verdicts is None:
        return Labels("pairwise", "pairwise", unknown=tuple(values))
    named = dict(zip(verdicts, ("A", "B", "tie"), strict=True))
    meanings = {value: named[number] for value, number in numbers.items()}
    guessed = ", ".join(f"{value} is {verdict}" for value, verdict in meanings.items())
    return Labels("pairwise", "pairwise", meanings, remark=f"by guess {guessed}: make sure")


def _named(values: Sequence[str], task: str, meaning: Callable[[str], str]) -> Labels:
    """Give each value its meaning; no meaning is needed where all values are verdicts already."""
    meanings = {value: verdict for value in values if (verdict := meaning(value))}
    unknown = tuple(value for value in values if value not in meanings)
    plain = all(value.casefold() == verdict.casefold() for value, verdict in meanings.items())
    return Labels(task, task, {} if plain and not unknown else meanings, unknown)


def _winner(value: str) -> str:
    words = set(re.findall(r"[^\W\d_]+|\d+", value.casefold()))
    if _TIE & words:
        return "tie"
    first, second = bool(_FIRST & words), bool(_SECOND & words)
    return "" if first == second else "A" if first else "B"


def _passes(value: str) -> str:
    word = _folded(value) if as_number(value) is None else _plain(value)
    return "PASS" if word in _PASS else "FAIL" if word in _FAIL else ""


def _folded(value: str) -> str:
    """Write a word as the lists here do: small letters, no accents, single spaces."""
    return normalised(value.replace("_", " "))


def _plain(value: str) -> str:
    number = as_number(value)
    return value if number is None else f"{number.normalize():f}"
