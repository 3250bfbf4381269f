"""Predictions as rows of Weave evaluations: a file that is written first, and its replay.

The replay runs in a process of its own (`python -m pt_app.tracking.weave_rows FILE`), because
weave 0.54 prompts without a key, and hangs at exit for minutes when its server goes away.
"""

import argparse
import hashlib
import json
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pt_app.core.files import write_text_atomic

SCHEMA = 1
# Row fields that hold no text of a user's data. `group` may be a source sentence: it is hashed.
SAFE_INPUTS = ("id", "task", "split")
SAFE_OUTPUTS = ("status", "parse_failure", "verdict_mass", "expected")
LOST = 4  # exit code: the server refused or lost something


def write_rows(file: Path, header: Mapping[str, Any], predictions: Path, log_texts: bool) -> int:
    """Write the rows file from predictions.jsonl; returns the number of rows.

    The first line is `header`; then a line for each prediction, with texts only if `log_texts`.
    """
    rows = [as_row(json.loads(line), log_texts) for line in _lines(predictions)]
    lines = [_dumps({"schema": SCHEMA, **header}), *map(_dumps, rows)]
    write_text_atomic(file, "\n".join(lines) + "\n")
    return len(rows)


def as_row(prediction: Mapping[str, Any], log_texts: bool) -> dict[str, Any]:
    """One prediction as {"model", "inputs", "output", "scores"}: no text unless `log_texts`."""
    label, verdict = verdict_of(prediction.get("label")), verdict_of(prediction.get("verdict"))
    inputs = {name: prediction[name] for name in SAFE_INPUTS if name in prediction}
    if prediction.get("group") is not None:
        digest = hashlib.sha256(str(prediction["group"]).encode()).hexdigest()
        inputs["group"] = digest[:12]
    inputs["label"] = label
    output = {name: prediction[name] for name in SAFE_OUTPUTS if name in prediction}
    if "constrained" in prediction:  # the most likely of the allowed verdicts
        output["constrained"] = verdict_of(prediction["constrained"])
    output |= {"verdict": verdict, "probabilities": _probabilities(prediction)}
    row = {
        "model": str(prediction.get("model", "judge")),
        "inputs": inputs,
        "output": output,
        "scores": _scores(verdict, label),
    }
    if log_texts:
        sent = inputs | output
        row["texts"] = {k: v for k, v in prediction.items() if k not in sent or v != sent[k]}
    return row


def verdict_of(value: Any) -> int | float | str | None:
    """The verdict alone; a label may bring issues and feedback, which are texts."""
    value = value.get("verdict") if isinstance(value, Mapping) else value
    if isinstance(value, str) and not re.fullmatch(r"\w{1,8}", value):
        return None
    return value if isinstance(value, int | float | str) else None


def _probabilities(prediction: Mapping[str, Any]) -> Any:
    """Numbers only, whether they came as a list or by verdict."""
    value = prediction.get("probabilities")
    if isinstance(value, Mapping):
        return {str(verdict_of(k)): v for k, v in value.items() if isinstance(v, int | float)}
    return [v for v in value if isinstance(v, int | float)] if isinstance(value, list) else None


def _scores(verdict: Any, label: Any) -> dict[str, Any]:
    if label is None:
        return {}
    scores: dict[str, Any] = {"parsed": verdict is not None, "exact": verdict == label}
    if isinstance(verdict, int | float) and isinstance(label, int | float):
        scores["absolute_error"] = abs(verdict - label)
    return scores


def _dumps(value: Any) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    """The same value with null where JSON has no number (NaN, infinity)."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def _lines(file: Path) -> Iterator[str]:
    with open(file, encoding="utf-8") as lines:
        yield from (line for line in lines if line.strip())


def replay(file: Path) -> None:
    """Send a rows file to Weave: one evaluation for each model in it.

    An evaluation is the unit: what an attempt that did not end has left on the server is deleted
    first (its ids are in `<file>.attempt`), then all of it is sent. Call it in a process that
    ends afterwards by os._exit. Raises what weave raises.
    """
    import weave

    header, *rows = (json.loads(line) for line in _lines(file))
    project = "/".join(name for name in (header.get("entity"), header["project"]) if name)
    client = weave.init(project)
    attempt = file.with_name(file.name + ".attempt")
    if attempt.exists():
        client.delete_calls(json.loads(attempt.read_text(encoding="utf-8")))
    calls: list[str] = []
    for model in dict.fromkeys(row["model"] for row in rows):
        evaluation = weave.EvaluationLogger(
            name=f"{header['evaluation']} {model}",
            model={"name": _class_name(model), "settings": header.get("settings", {})},
            dataset=header.get("dataset") or "test",
            trace_scores=False,  # a call for each score is most of the cost; they stay on the row
        )
        calls.append(str(evaluation._evaluate_call.id))
        write_text_atomic(attempt, json.dumps(calls))
        for row in rows:
            if row["model"] == model:
                _log_row(evaluation, row)
        evaluation.log_summary(header.get("summary", {}).get(model, {}))
    client.flush()
    attempt.unlink(missing_ok=True)


def _log_row(evaluation: Any, row: Mapping[str, Any]) -> None:
    inputs = {**row["inputs"], **row.get("texts", {})}
    prediction = evaluation.log_prediction(inputs=inputs, output=row["output"])
    for name, value in row["scores"].items():
        prediction.log_score(name, value)
    prediction.finish()


def _class_name(model: str) -> str:
    """Weave makes a Python class of a model's name."""
    return re.sub(r"\W", "_", model if model[:1].isalpha() else f"judge_{model}")


class _Losses(logging.Handler):
    """Weave reports what it lost only in its log; a lost row ends the attempt."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.ERROR or "requeuing" in message:
            _end(LOST, f"weave: {message}")


def _end(code: int, line: str) -> None:
    """Leave at once: the ordinary exit would wait for weave's queues."""
    print(" ".join(line.split())[:300], file=sys.stderr, flush=True)
    os._exit(code)


def main() -> None:
    """Replay one file within a deadline; exit 0 only if everything was taken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds")
    arguments = parser.parse_args()
    timer = threading.Timer(
        arguments.deadline, _end, (LOST, f"not done after {arguments.deadline:.0f} s")
    )
    timer.daemon = True
    timer.start()
    logging.getLogger("weave").addHandler(_Losses(level=logging.WARNING))
    try:
        replay(arguments.file)
    except BaseException as error:
        _end(LOST, f"{type(error).__name__}: {error}")
    _end(0, "sent")


if __name__ == "__main__":
    main()
