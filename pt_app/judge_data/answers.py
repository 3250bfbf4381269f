"""Who said what of a row: each annotator's answer, by the annotator's id, with its status.

Reads what annotation tools export beside plain columns and lists. Label Studio: a task with
`annotations`, each with `completed_by`, `was_cancelled` and a `result` of one item a control.
Argilla 1: `responses` with `user_id`, `status` and `values`; Argilla 2: `responses` by question,
or flattened into `quality.responses`, `quality.responses.users` and `quality.responses.status`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pt_app.core.records import Place
from pt_app.judge_data.cells import MISSING, find, is_empty, parsed

RATERS = (
    *("completed_by", "user_id", "rater", "rater_id", "annotator", "annotator_id"),
    *("worker", "worker_id", "user"),
)
"""Keys under which the answers of a list name who gave them."""
NO_ANSWER = {
    *("cancelled", "canceled", "skipped", "discarded", "draft", "pending", "rejected"),
    *("in_progress", "missing"),
}
"""Statuses of an answer that its annotator has not given, or has taken back."""
# What annotation tools put around a single value.
_WRAPPED = ("value", "rating", "number", "choices", "selected", "text")
_RESULT = re.compile(r"result\.([^.]+)\.(.+)")


@dataclass(frozen=True)
class Answer:
    """What one annotator said. `rater` is "" where nobody is named; `out` says why it is none.

    `unstated` is true for a response of Argilla's whose export leaves its status out.
    """

    cell: Any
    rater: str = ""
    out: str = ""
    unstated: bool = False


def answers_of(value: Mapping[str, Any], names: Sequence[str], place: Place) -> list[Answer]:
    """Give the answers in the label's columns: one a column, or one for each item of a list.

    Raises RowError for an annotation in which several controls fit the column's path.
    """
    return [answer for name in names for answer in _answers(value, name, place)]


def _answers(value: Mapping[str, Any], name: str, place: Place) -> Iterator[Answer]:
    head, star, rest = name.partition(".*")
    if name not in value and star and (not rest or rest.startswith(".")):
        items = parsed(find(value, head))
        for item in items if isinstance(items, list) else []:
            cell = _picked(item, rest.removeprefix("."), name, place)
            yield Answer(_plain(cell, place), rater_of(item), status_of(item), _unstated(item))
        return
    cell = parsed(find(value, name))
    if not isinstance(cell, list):
        yield Answer(_plain(cell, place))
        return
    raters, states = (parsed(value.get(f"{name}.{part}")) for part in ("users", "status"))
    for i, item in enumerate(cell):
        rater = str(raters[i]) if _has(raters, i) else rater_of(item)
        out = _out(states[i]) if _has(states, i) else status_of(item)
        yield Answer(_plain(item, place), rater, out, _unstated(item))


def _unstated(item: Any) -> bool:
    return isinstance(item, Mapping) and "user_id" in item and is_empty(item.get("status"))


def _has(cell: Any, place: int) -> bool:
    return isinstance(cell, list) and place < len(cell) and not is_empty(cell[place])


def rater_of(item: Any) -> str:
    """Give the id of who gave an answer; "" where it names nobody."""
    if not isinstance(item, Mapping):
        return ""
    found = next((item[key] for key in RATERS if not is_empty(item.get(key))), "")
    if isinstance(found, Mapping):
        found = next((found[key] for key in ("id", "email", "username") if found.get(key)), "")
    return str(found)


def status_of(item: Any) -> str:
    """Say why an answer is none: cancelled, skipped, discarded, draft, pending; "" for one."""
    if not isinstance(item, Mapping):
        return ""
    if item.get("was_cancelled") is True:
        return "cancelled"
    if item.get("skipped") is True:
        return "skipped"
    return _out(item.get("status"))


def _out(status: Any) -> str:
    said = str(status).rpartition(".")[2].casefold()  # an enum may be written with its class
    return said if said in NO_ANSWER else ""


def _picked(item: Any, path: str, name: str, place: Place) -> Any:
    """Give an answer's value; that of a Label Studio result by its control, not its position."""
    match = _RESULT.fullmatch(path)
    results = parsed(find(item, "result")) if match else None
    if match is None or not isinstance(results, list):
        return find(item, path) if path else item
    control, inner = match.groups()
    fit = {i: cell for i, one in enumerate(results) if (cell := find(one, inner)) is not MISSING}
    if not (control.isdigit() or control == "*"):
        fit = {i: cell for i, cell in fit.items() if results[i].get("from_name") == control}
    called = {str(results[i].get("from_name", "")) for i in fit}
    if len(called) > 1:
        before = name.removesuffix(path)
        one = f"{before}result.{min(called)}.{inner}"
        problem = f"several results fit {name}: {', '.join(sorted(called))}"
        raise place.error("label", problem, f"name one of them, such as label={one}")
    if len(fit) > 1:
        problem = f"{len(fit)} results of {''.join(called) or 'one control'} in one annotation"
        raise place.error("label", problem, "a label is one value: leave all but one out")
    return next(iter(fit.values()), MISSING)


def _plain(cell: Any, place: Place) -> Any:
    """Give the one value of a cell that an annotation tool wrapped: ["good"], [{"rating": 4}]."""
    cell = parsed(cell)
    if isinstance(cell, list) and len(cell) <= 1:
        return _plain(cell[0], place) if cell else None
    if isinstance(cell, list):
        raise place.error("label", f"{len(cell)} values in one answer", "a label is one value")
    if isinstance(cell, Mapping):
        found = next((cell[key] for key in _WRAPPED if key in cell), MISSING)
        if found is not MISSING:
            return _plain(found, place)
    return cell
