"""The label cells of a row as answers: who gave each, and whether it counts by its status.

Reads what annotation tools export besides plain columns and lists. Label Studio: a task with
`annotations`, each with `completed_by`, `was_cancelled` and a `result` with one item per control.
Argilla 1: `responses` with `user_id`, `status` and `values`. Argilla 2: `responses` by question,
or flattened into `quality.responses`, `quality.responses.users` and `quality.responses.status`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pt_app.core.records import Place
from pt_app.judge_data.rows import Row, find, is_empty, parsed

RATERS = (
    *("completed_by", "user_id", "rater", "rater_id", "annotator", "annotator_id"),
    *("worker", "worker_id", "user"),
)
"""Keys under which the answers of a list name their annotator."""
NO_ANSWER = {
    *("cancelled", "canceled", "skipped", "discarded", "draft", "pending", "rejected"),
    *("in_progress", "missing"),
}
"""Statuses of an answer that its annotator has not given yet, or has withdrawn."""
# Keys that annotation tools wrap around a single value.
_WRAPPED = ("value", "rating", "number", "choices", "selected", "text")
_RESULT = re.compile(r"result\.([^.]+)\.(.+)")


@dataclass(frozen=True)
class Answer:
    """The answer of one annotator.

    `rater` is "" where nobody is named. `out` is the reason why the answer does not count, or "".
    `unstated` is true for an Argilla response whose export omits its status.
    """

    cell: object
    rater: str = ""
    out: str = ""
    unstated: bool = False


def answers_of(value: Row, names: Sequence[str], place: Place) -> list[Answer]:
    """Return the answers in the label columns: one per column, or one per item of a list.

    Raises:
        RowError: Several controls of an annotation fit the path of a column.
    """
    return [answer for name in names for answer in _answers(value, name, place)]


def _answers(value: Row, name: str, place: Place) -> Iterator[Answer]:
    head, star, rest = name.partition(".*")
    if name in value or (rest and not rest.startswith(".")):
        head, star, rest = name, "", ""
    cells = parsed(find(value, head))
    if not star and not isinstance(cells, list):
        yield Answer(_unwrapped(cells, place))
        return
    raters, states = (parsed(value.get(f"{name}.{part}")) for part in ("users", "status"))
    for i, item in enumerate(cells if isinstance(cells, list) else []):
        rater, status = find(raters, str(i)), find(states, str(i))
        yield Answer(
            _unwrapped(_picked(item, rest.removeprefix("."), name, place), place),
            _rater_of(item) if is_empty(rater) else str(rater),
            status_of(item if is_empty(status) else {"status": status}),
            isinstance(item, Mapping) and "user_id" in item and is_empty(item.get("status")),
        )


def _rater_of(item: object) -> str:
    """Return the id of the annotator of an answer; "" where it names nobody."""
    if not isinstance(item, Mapping):
        return ""
    rater = next((item[key] for key in RATERS if not is_empty(item.get(key))), "")
    if isinstance(rater, Mapping):
        rater = next((rater[key] for key in ("id", "email", "username") if rater.get(key)), "")
    return str(rater)


def status_of(item: object) -> str:
    """Return why an answer does not count, such as "cancelled" or "draft"; "" where it counts."""
    if not isinstance(item, Mapping):
        return ""
    if item.get("was_cancelled") is True:
        return "cancelled"
    if item.get("skipped") is True:
        return "skipped"
    status = str(item.get("status")).rpartition(".")[2].casefold()  # "Status.draft" of an enum
    return status if status in NO_ANSWER else ""


def _picked(item: object, path: str, name: str, place: Place) -> object:
    """Return the value of an answer; that of a Label Studio result by its control.

    The order of the results in an annotation is not fixed, so a position means nothing.
    """
    match = _RESULT.fullmatch(path)
    results = parsed(find(item, "result")) if match else None
    if match is None or not isinstance(results, list):
        return find(item, path) if path else item
    control, inner = match.groups()
    any_control = control.isdigit() or control == "*"
    values = [
        (str(result.get("from_name", "")), value)
        for result in results
        if (value := find(result, inner)) is not None
        and (any_control or result.get("from_name") == control)
    ]
    if len(values) > 1:
        controls = sorted({control for control, _ in values})
        example = f"label={name.removesuffix(path)}result.{controls[0]}.{inner}"
        problem = f"{len(values)} results fit {name}: {', '.join(controls)}"
        remedy = f"name one of them, such as {example}, and keep one result of it"
        raise place.error("label", problem, remedy)
    return values[0][1] if values else None


def _unwrapped(cell: object, place: Place) -> object:
    """Return the single value that an annotation tool wrapped: ["good"], [{"rating": 4}]."""
    cell = parsed(cell)
    if isinstance(cell, list):
        if len(cell) > 1:
            raise place.error("label", f"{len(cell)} values in one answer", "a label is one value")
        return _unwrapped(cell[0], place) if cell else None
    keys = [key for key in _WRAPPED if key in cell] if isinstance(cell, Mapping) else []
    return _unwrapped(cell[keys[0]], place) if isinstance(cell, Mapping) and keys else cell
