"""Adapters trained on the folds of one dataset: their evaluations joined, every row once."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite
from pt_app.core.verdicts import Scale
from pt_app.evidence.results import (
    PREDICTIONS,
    RESULTS,
    WRITTEN,
    JudgeRows,
    Rules,
    results_of,
    write_evaluation,
)
from pt_app.report import write_report

SAME = ("task", "scale")


def join_evaluations(adapters: Sequence[Path], out: Path) -> Path:
    """Join the evaluations of adapters, one a fold, into `out`; give the report's path.

    The numbers are computed anew over all rows, each judged by the adapter that did not see it;
    the rules' verdicts are each fold's own. Raises UserError for an adapter that was not evaluated,
    evaluations of different tasks or bases, and a row that is in two of them.
    """
    if len(adapters) < 2:
        raise UserError("one adapter is no set of folds: name the adapters of all folds")
    read = [Path(one) / "evaluation" / name for one in adapters for name in (RESULTS, PREDICTIONS)]
    refuse_overwrite([out / name for name in WRITTEN], read)
    parts = [_read(Path(adapter)) for adapter in adapters]
    first = parts[0][0]
    _check_same([results for results, _ in parts], adapters)
    names = [model["name"] for model in first["models"]]
    judges = [_joined(name, parts) for name in names]
    _check_once(judges[0], adapters)
    leaks = [results.get("leaks", {"n": 0, "examples": []}) for results, _ in parts]
    told = [line for one in leaks for line in one["examples"]]
    hashes = json.dumps([results["data"]["sha256"] for results, _ in parts], sort_keys=True)
    data = {
        "path": f"{first['data']['path']} and {len(parts) - 1} more folds",
        "sha256": sha256(hashes.encode()).hexdigest(),
    }
    run = dict(first["run"]) | {"folds": [Path(adapter).name for adapter in adapters]}
    rules = _rules(judges[0], first)
    joined = results_of(judges, Scale.from_name(first["scale"]), data, rules, told, run)
    joined["leaks"]["n"] = sum(one["n"] for one in leaks)
    write_evaluation(out, judges, joined)
    return write_report(out)


def _read(adapter: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder = adapter / "evaluation"
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        lines = (folder / PREDICTIONS).read_text(encoding="utf-8").split("\n")
        return results, [json.loads(line) for line in lines if line]
    except OSError as error:
        raise UserError(
            f"{folder} holds no evaluation ({error.strerror}): train without --skip_eval"
        ) from error
    except ValueError as error:
        raise UserError(f"{folder} is broken: {error}: evaluate the adapter again") from error


def _joined(name: str, parts: Sequence[tuple[Mapping[str, Any], Sequence[Any]]]) -> JudgeRows:
    rows = [row for _, found in parts for row in found if row["model"] == name]
    models = [model for results, _ in parts for model in results["models"] if model["name"] == name]
    ids = list(dict.fromkeys(model["id"] for model in models))
    shortened, ties = (sum(model[key] for model in models) for key in ("shortened", "ties"))
    precision = ", ".join(dict.fromkeys(model["precision"] for model in models))
    return JudgeRows(name, ", ".join(ids), rows, shortened, ties, precision)


def _rules(judge: JudgeRows, first: Mapping[str, Any]) -> Rules:
    """The rules that every fold has, each fitted on its own fold's training rows."""
    said = [row.get("rules") or {} for row in judge.rows]
    names = [name for name in said[0] if all(name in one for one in said)]
    fitted = {one["name"]: one.get("fitted") or "" for one in first["baselines"]}
    return Rules({name: [one[name] for one in said] for name in names}, fitted)


def _check_same(results: Sequence[Mapping[str, Any]], adapters: Sequence[Path]) -> None:
    for adapter, one in zip(adapters[1:], results[1:], strict=True):
        theirs, ours = ([(m["name"]) for m in each["models"]] for each in (one, results[0]))
        differing = [name for name in SAME if one[name] != results[0][name]]
        bases = [each["run"].get("base") for each in (one, results[0])]
        if theirs != ours or differing or bases[0] != bases[1]:
            what = differing[0] if differing else "base" if bases[0] != bases[1] else "judges"
            raise UserError(
                f"{adapter} has another {what} than {adapters[0]}: join adapters of one training"
            )


def _check_once(judge: JudgeRows, adapters: Sequence[Path]) -> None:
    seen: set[str] = set()
    for row in judge.rows:
        if row["id"] in seen:
            raise UserError(
                f'row "{row["id"]}" is in the test part of two of the {len(adapters)} adapters: '
                "join adapters of the folds that one `judge data split --folds` wrote"
            )
        seen.add(row["id"])
