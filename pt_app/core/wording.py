"""How numbers and other people's texts are written on a page."""

import re
import unicodedata
from typing import Any

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
    "first_preference": "first place",
}
SCORE_COLUMNS = ("kappa_quadratic", "mae", "exact", "within_1", "pearson", "rouge_l")
NOMINAL_COLUMNS = ("kappa", "mcc", "accuracy", "f1_macro", "rouge_l")
RANK_COLUMNS = ("spearman", "pearson", "kendall")
CLASS_COLUMNS = (*NOMINAL_COLUMNS[:-1], "recall_pass", "recall_fail", "precision_fail", "rouge_l")
ORDER_COLUMNS = (
    "accuracy_swapped",
    "accuracy_both_orders",
    "order_consistency",
    "first_preference",
)
PAIR_COLUMNS = (*NOMINAL_COLUMNS[:-1], "accuracy_no_ties", *ORDER_COLUMNS, "rouge_l")
LONGEST_TEXT = 1000


def columns_of(results: dict[str, Any]) -> tuple[str, ...]:
    """The numbers a table shows, the headline first; ROUGE-L only where answers were generated."""
    metrics = [model["metrics"] for model in results["models"]]
    columns: tuple[str, ...] = SCORE_COLUMNS
    if results["task"] == "metric":
        return RANK_COLUMNS
    if results["task"] != "score":
        columns = PAIR_COLUMNS if results["task"] == "pairwise" else CLASS_COLUMNS
        if not any("order_consistency" in numbers for numbers in metrics):
            columns = tuple(name for name in columns if name not in ORDER_COLUMNS)
    answered = any("rouge_l" in numbers for numbers in metrics)
    return columns if answered else tuple(name for name in columns if name != "rouge_l")


def best_rule(results: dict[str, Any]) -> dict[str, Any] | None:
    """The rule without a model that agrees best; None without rules."""
    head = columns_of(results)[0]
    rules = [rule for rule in results.get("baselines") or [] if head in rule["metrics"]]
    return max(rules, key=lambda rule: rule["metrics"][head]["value"] or 0.0, default=None)


def p_value(item: dict[str, Any], name: str = "p") -> str:
    """`= 0.031`, or `< 0.001` below that."""
    return "< 0.001" if item[name] < 0.001 else f"= {item[name]:.3f}"


def leak_line(results: dict[str, Any]) -> str:
    """Say first that training and test share texts; "" where they do not."""
    count = (results.get("leaks") or {}).get("n")
    return (
        f"LEAKS: {count} texts stand in training and test: these numbers flatter." if count else ""
    )


def visible(text: str) -> str:
    """Show control and invisible characters as `\\u001b`; line ends and tabs stay.

    An escape sequence of a terminal or a direction override in a candidate would otherwise change
    how the page around it reads.
    """
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp")
        else f"\\u{ord(character):04x}"
        for character in text
    )


def inline(text: object) -> str:
    """`text` as one line of Markdown that renders as these characters: no markup, HTML or cell."""
    line = " ".join(visible(str(text)).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~!$@]|^[-+=])", r"\\\1", line)


def fenced(fields: list[tuple[str, str]]) -> str:
    """Named texts in one code block, which renders every character of them as it is.

    Lines after the first are indented, so that no text can forge a field or close the block.
    """
    width = max(len(name) for name, _ in fields) + 2
    lines = []
    for name, text in fields:
        if len(text) > LONGEST_TEXT:
            text = f"{text[:LONGEST_TEXT]} … ({len(text)} characters)"
        body = visible(text).replace("\n", "\n" + " " * width)
        lines.append(f"{name + ':':<{width}}{body}".rstrip())
    block = "\n".join(lines)
    longest = max((len(run) for run in re.findall(r"`+", block)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{block}\n{fence}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table of cells that are already safe; numbers sit to the right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])
