"""The README of a generated dataset folder."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pt_app.judge_data.errors import KINDS


def readme(
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    command: str,
    card: Mapping[str, Any],
    dropped: Mapping[str, int],
) -> str:
    """Origin, licence, sizes, distributions, command and hashes as Markdown."""
    sizes = [[name, len(rows), len({r["group"] for r in rows})] for name, rows in splits.items()]
    verdicts = {name: Counter(r["label"]["verdict"] for r in rows) for name, rows in splits.items()}
    scores = [[s, *(verdicts[name][s] for name in splits)] for s in range(10, -1, -1)]
    found = Counter(kind for rows in splits.values() for row in rows for kind in row["errors"])
    kinds = [[k.name, k.penalty, found[k.name]] for k in KINDS.values() if found[k.name]]
    hashes = [[f"`{name}`", f"`{digest}`"] for name, digest in card["sha256"].items()]
    parts = [
        "# Judged translations, English to Portuguese",
        "Each row is an English source, a Portuguese reference and a candidate into which known "
        "errors were put; score, issues and feedback follow from them: the score is 10 less the "
        "penalties, at least 0. No person judged these rows. All rows of a source (its group) are "
        "in one split.",
        f"Origin: {card['origin']}\n\nLicence: {card['licence']}",
        f"```\n{command}\n```",
        _table(["split", "rows", "sources"], sizes),
        _table(["score", *splits], scores),
        _table(["kind", "penalty", "rows with it"], kinds),
    ]
    if dropped:
        parts.append(_table(["pairs of the corpus left out", "n"], list(dropped.items())))
    parts.append(_table(["file", "sha256"], hashes))
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
