"""How numbers, tables and texts of others are written, on pages, in terminals and in messages."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

DIGITS = 3  # two would hide differences that intervals show: 0.955 and 0.949 are both 0.95
UNDEFINED = "–"
MAX_TEXT = 1000  # characters of a text that a page shows

NAMES = {
    "kappa_quadratic": "quadratic kappa",
    "kappa_linear": "linear kappa",
    "kappa": "kappa",
    "mae": "MAE",
    "rmse": "RMSE",
    "bias": "bias",
    "exact": "exact",
    "within_1": "within 1",
    "accuracy": "accuracy",
    "accuracy_no_ties": "accuracy without ties",
    "f1_macro": "F1 macro",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "kendall": "Kendall's tau-b",
    "alpha": "Krippendorff's alpha",
    "mcc": "MCC",
    "recall_pass": "recall of PASS",
    "recall_fail": "recall of FAIL",
    "precision_fail": "precision of FAIL",
    "rouge_l": "ROUGE-L",
    "accuracy_swapped": "accuracy, other order",
    "accuracy_both_orders": "right in both orders",
    "order_consistency": "same in both orders",
    "first_preference": "first position",
}
_OF_ORDERS = ("accuracy_swapped", "accuracy_both_orders", "order_consistency", "first_preference")
_NOMINAL = ("kappa", "mcc", "accuracy", "f1_macro")
_COLUMNS = {
    "metric": ("spearman", "pearson", "kendall"),
    "score": ("kappa_quadratic", "mae", "exact", "within_1", "pearson", "rouge_l"),
    "pairwise": (*_NOMINAL, "accuracy_no_ties", *_OF_ORDERS, "rouge_l"),
    "pass_fail": (*_NOMINAL, "recall_pass", "recall_fail", "precision_fail", "rouge_l"),
}


def number(value: float | None) -> str:
    """Write `DIGITS` digits after the point, or a dash where undefined; never "-0.000"."""
    return UNDEFINED if value is None else f"{round(value, DIGITS) + 0.0:.{DIGITS}f}"


def interval(metric: Mapping[str, Any]) -> str:
    """Write `[0.834, 0.886]`; "" where no interval exists."""
    if metric.get("low") is None or metric.get("high") is None:
        return ""
    return f"[{number(metric['low'])}, {number(metric['high'])}]"


def estimate(metric: Mapping[str, Any] | None) -> str:
    """Write `0.861 [0.834, 0.886]`; a dash where undefined; the value alone without interval."""
    if not metric or metric.get("value") is None:
        return UNDEFINED
    return f"{number(metric['value'])} {interval(metric)}".rstrip()


def with_n(metric: Mapping[str, Any] | None) -> str:
    """Write `0.861 [0.834, 0.886] (n = 40)`, or why the number is undefined, for a sentence."""
    if not metric or metric.get("value") is None:
        return f"undefined ({(metric or {}).get('reason', 'not computed')})"
    return f"{estimate(metric)} (n = {metric['n']})"


def p_value(item: Mapping[str, Any], name: str = "p") -> str:
    """Write `= 0.031`, or `< 0.001` below that."""
    return "< 0.001" if item[name] < 0.001 else f"= {item[name]:.3f}"


def columns_of(results: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the numbers that a table of `results` shows, the headline number first.

    ROUGE-L is among them only where answers were generated, the numbers of both orders only where
    pairs were judged in both.
    """
    metrics = [model["metrics"] for model in results["models"]]

    def occurs(name: str) -> bool:
        return any(name in numbers for numbers in metrics)

    shown = dict.fromkeys(_OF_ORDERS, occurs("order_consistency")) | {"rouge_l": occurs("rouge_l")}
    return tuple(name for name in _COLUMNS[results["task"]] if shown.get(name, True))


def best_baseline(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the baseline without a model that agrees best; None without baselines."""
    head = columns_of(results)[0]
    baselines = [rule for rule in results.get("baselines") or [] if head in rule["metrics"]]
    return max(baselines, key=lambda rule: rule["metrics"][head]["value"] or 0.0, default=None)


def metrics_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of the constrained verdicts if there are any, else of the own answers."""
    metrics: dict[str, Any] = model.get("constrained") or model["metrics"]
    return metrics


def leak_line(results: Mapping[str, Any]) -> str:
    """Return the warning that training and test share texts; "" where they do not."""
    count = (results.get("leaks") or {}).get("n")
    return (
        f"LEAKS: {count} texts stand in training and test: these numbers flatter." if count else ""
    )


def visible(text: str) -> str:
    """Spell control and invisible characters out as `\\u001b`; line ends and tabs stay.

    An escape sequence of a terminal or a direction override in a candidate would otherwise change
    how the page around it reads.
    """
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp")
        else f"\\u{ord(character):04x}"
        for character in text
    )


def one_line(text: object) -> str:
    """Write a text of others on one line, its control characters spelled out."""
    return " ".join(visible(str(text)).split())


def shortened(text: str) -> str:
    """Cut a text after `MAX_TEXT` characters and append its length."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text)} characters)"


def inline(text: object) -> str:
    """Write `text` as one line of Markdown that renders as these characters, not as markup."""
    line = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~!$@]|^[-+=])", r"\\\1", line)


def fenced(fields: Sequence[tuple[str, str]]) -> str:
    """Write named texts into one code block, which renders every character of them as it is.

    Lines after the first are indented, so that no text can forge a field or close the block.
    """
    width = max(len(name) for name, _ in fields) + 2
    lines = []
    for name, text in fields:
        body = visible(shortened(text)).replace("\n", "\n" + " " * width)
        lines.append(f"{name + ':':<{width}}{body}".rstrip())
    block = "\n".join(lines)
    longest = max((len(run) for run in re.findall(r"`+", block)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{block}\n{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table of cells that are already safe, numbers aligned to the right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])
