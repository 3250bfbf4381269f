"""Predictions as rows of Weave evaluations: a file that is written first, and its replay.

The replay runs in a process of its own (`python -m pt_app.tracking.weave_rows FILE`), because
weave 0.54 prompts without a key, and hangs at exit for minutes when its server goes away.
"""

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from pt_app.core.files import write_text_atomic

if TYPE_CHECKING:
    from weave import EvaluationLogger

Json = dict[str, Any]
"""An object of a JSON file."""

SCHEMA = 1
# Row fields that hold no text of a user's data. `group` may be a source sentence: it is hashed.
SAFE_INPUTS = ("id", "task", "split")
SAFE_OUTPUTS = ("status", "parse_failure", "verdict_mass", "expected", "probabilities")
LOST = 4  # exit code: the server refused or lost something


def write_rows(file: Path, header: Json, predictions: Path, log_texts: bool) -> None:
    """Write the rows file: `header`, then a line for each prediction of predictions.jsonl.

    The texts of rows are in it only with `log_texts`. NaN and infinity become null.
    """
    rows: list[Json] = [{"schema": SCHEMA, **header}]
    rows += [as_row(prediction, log_texts) for prediction in read_lines(predictions)]
    write_text_atomic(
        file, "".join(f"{to_json(row, inf_nan_mode='null').decode()}\n" for row in rows)
    )


def as_row(prediction: Json, log_texts: bool) -> Json:
    """Return a prediction as {"model", "inputs", "output", "scores"}, without texts.

    `log_texts` adds "texts": every field of the prediction that the others do not hold as it is.
    """
    label, verdict = verdict_of(prediction.get("label")), verdict_of(prediction.get("verdict"))
    inputs = {name: prediction[name] for name in SAFE_INPUTS if name in prediction}
    if prediction.get("group") is not None:
        inputs["group"] = hashlib.sha256(str(prediction["group"]).encode()).hexdigest()[:12]
    inputs["label"] = label
    output = {name: prediction[name] for name in SAFE_OUTPUTS if name in prediction}
    if "greedy" in prediction:  # the verdict of the answer as it was written
        output["greedy"] = verdict_of(prediction["greedy"])
    output["verdict"] = verdict
    scores: Json = {}
    if label is not None:
        scores = {"parsed": output.get("greedy", verdict) is not None, "exact": verdict == label}
        if isinstance(verdict, int | float) and isinstance(label, int | float):
            scores["absolute_error"] = abs(verdict - label)
    model = str(prediction.get("model", "judge"))
    row = {"model": model, "inputs": inputs, "output": output, "scores": scores}
    if log_texts:
        sent = inputs | output
        row["texts"] = {k: v for k, v in prediction.items() if k not in sent or v != sent[k]}
    return row


def verdict_of(value: object) -> int | float | str | None:
    """Return the verdict alone; a label may bring issues and feedback, which are texts."""
    value = value.get("verdict") if isinstance(value, Mapping) else value
    if isinstance(value, str) and not re.fullmatch(r"\w{1,8}", value):
        return None
    return value if isinstance(value, int | float | str) else None


def read_lines(file: Path) -> Iterator[Json]:
    """Read the objects of a JSON Lines file."""
    with open(file, encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def replay(file: Path) -> None:
    """Send a rows file to Weave: one evaluation for each model in it.

    An evaluation is the unit: what an attempt that did not end has left on the server is deleted
    first (its ids are in `<file>.attempt`), then all of it is sent. Call it in a process that
    ends afterwards by os._exit. Raises what weave raises.
    """
    import weave

    header, *rows = read_lines(file)
    client = weave.init("/".join(filter(None, [header.get("entity"), header["project"]])))
    attempt = file.with_name(file.name + ".attempt")
    if attempt.exists():
        client.delete_calls(json.loads(attempt.read_text(encoding="utf-8")))
    calls: list[str] = []
    for model in dict.fromkeys(row["model"] for row in rows):
        # Weave makes a Python class of a model's name.
        class_name = re.sub(r"\W", "_", model if model[:1].isalpha() else f"judge_{model}")
        evaluation = weave.EvaluationLogger(
            name=f"{header['evaluation']} {model}",
            model={"name": class_name, "settings": header.get("settings", {})},
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


def _log_row(evaluation: "EvaluationLogger", row: Json) -> None:
    inputs = {**row["inputs"], **row.get("texts", {})}
    prediction = evaluation.log_prediction(inputs=inputs, output=row["output"])
    for name, value in row["scores"].items():
        prediction.log_score(name, value)
    prediction.finish()


class _Losses(logging.Handler):
    """Ends the attempt at a lost row, which weave reports only in its log."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.ERROR or "requeuing" in message:
            _end(LOST, f"weave: {message}")


def _end(code: int, line: str) -> None:
    """Leave at once: the ordinary exit would wait for weave's queues."""
    print(" ".join(line.split())[:300], file=sys.stderr, flush=True)
    os._exit(code)


def main() -> None:
    """Replay one file; exit with 0 only if the server took all of it."""
    logging.getLogger("weave").addHandler(_Losses(level=logging.WARNING))
    try:
        replay(Path(sys.argv[1]))
    except BaseException as error:
        _end(LOST, f"{type(error).__name__}: {error}")
    _end(0, "sent")


if __name__ == "__main__":
    main()
