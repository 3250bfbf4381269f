"""Reads and checks the files of an evaluation folder."""

import json
from pathlib import Path
from typing import Any

from pt_app.core.errors import UserError
from pt_app.core.verdicts import Scale
from pt_app.evidence.gate import Judged

SCHEMA = 1
# The fields without which there is nothing to report.
REQUIRED = ("task", "data", "scale", "models")
ROW_REQUIRED = ("model", "status", "label", "verdict", "constrained")
SCORED_REQUIRED = ("model", "label", "score")  # of a metric's scores


def read_results(folder: Path) -> dict[str, Any]:
    """Read `folder`/results.json.

    Raises:
        UserError: if it is absent, broken or of another schema.
    """
    path = folder / "results.json"
    results = _parsed(_text(path), f"{path}")
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        raise UserError(f"{path}: field schema is not {SCHEMA}: evaluate again with this version")
    missing = [name for name in REQUIRED if name not in results]
    if missing:
        raise UserError(f"{path}: field {missing[0]} is missing: evaluate again")
    return results


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of `folder`/predictions.jsonl.

    Raises:
        UserError: with file and line, if the file is absent or a line is broken.
    """
    path = folder / "predictions.jsonl"
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        row = _parsed(line, f"{path}:{number}")
        required = SCORED_REQUIRED if isinstance(row, dict) and "score" in row else ROW_REQUIRED
        missing = [name for name in required if not isinstance(row, dict) or name not in row]
        if missing:
            raise UserError(f"{path}:{number}: field {missing[0]} is missing: evaluate again")
        rows.append(row)
    return rows


def read_judged(folder: Path) -> Judged:
    """Read the rows of the judge that an evaluation is about: the adapter, else the first."""
    results = read_results(folder)
    name = main_judge(results)
    rows = [row for row in read_predictions(folder) if row["model"] == name]
    missing = [field for row in rows for field in ("id", "group") if field not in row]
    if missing:
        raise UserError(f"{folder}: field {missing[0]} is missing in a row: evaluate again")
    model = next(model for model in results["models"] if model["name"] == name)
    chosen = model.get("selective")
    abstained = 1 - (chosen["kept"]["value"] or 0.0) if chosen else 0.0
    return Judged(f"{folder}", Scale.from_name(results["scale"]), rows, abstained)


def main_judge(results: dict[str, Any]) -> str:
    """Name the judge that a report is about: the adapter, else the first."""
    names = [str(model["name"]) for model in results["models"]]
    return "adapter" if "adapter" in names or not names else names[0]


def read_attacks(folder: Path) -> dict[str, Any] | None:
    """Read what `judge attack` wrote; None if it was not run."""
    path = folder / "attacks.json"
    if not path.exists():
        return None
    attacks: dict[str, Any] = _parsed(_text(path), f"{path}")
    if attacks.get("schema") != SCHEMA:
        raise UserError(f"{path}: field schema is not {SCHEMA}: attack again with this version")
    return attacks


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Read what training logged, from the adapter around the evaluation; [] elsewhere."""
    path = folder.resolve().parent / "training_config.json"
    if not path.exists():
        return []
    history: list[dict[str, Any]] = _parsed(_text(path), f"{path}").get("log_history") or []
    return history


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: evaluate first (without --skip_eval), or name another folder"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8: evaluate again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{where}: not JSON ({place}: {error.msg}): evaluate again") from error
