"""Scores a test set with the base and with the adapter, on the CPU, and writes what came out.

`predictions.jsonl` keeps every row with its raw answer, `results.json` the numbers; the report is
made from these two alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pt_app.core.dataset import JudgeData, JudgeExample, draw
from pt_app.core.orders import swapped
from pt_app.core.prompts import PromptEncoder
from pt_app.core.results import JsonObject, Prediction, Results
from pt_app.core.verdicts import Verdict, read_comments
from pt_app.evidence.baselines import Labelled, fit_baselines
from pt_app.evidence.fitted import Fitted
from pt_app.evidence.options import Asked
from pt_app.evidence.results import JudgeRows, results_of, write_evaluation
from pt_app.models import adapters, bases
from pt_app.models.gemm import pack
from pt_app.models.tree_attention import BLOCKS, use_attention
from pt_app.scoring.precision import converted
from pt_app.scoring.scorer import JudgeScorer, Scored
from pt_app.training.preparation import MAX_CALIBRATION_ROWS


def evaluate(
    source: bases.ModelSource,
    adapter: Path,
    data: JudgeData,
    test: Sequence[JudgeExample],
    encoder: PromptEncoder,
    run: JsonObject,
    feedback: bool = False,
    precision: str = "float32",
) -> Results:
    """Score `test` with the base and with the adapter, and write `adapter`/evaluation.

    Pairs are judged in both orders.

    Args:
        source: the base, which is loaded in float32.
        adapter: the folder of the adapter.
        data: the dataset; its validation rows calibrate the confidence, its training rows fit the
            baselines.
        test: the rows to score.
        encoder: encodes prompts and verdicts.
        run: what results.json records about the run (command, seed, versions).
        feedback: also generate answers.
        precision: of the scoring.

    Returns:
        The content of results.json.
    """
    identity = bases.model_identity(source)
    how = Scoring(encoder, test, feedback, precision)
    # The base is loaded twice: packing the weights for scoring leaves no room for an adapter.
    base = how.judged("base", source.name, bases.load_model(source))
    model = adapters.load_adapter(adapter, bases.load_model(source), identity)
    validation = draw(data.val or (), MAX_CALIBRATION_ROWS, seed=0)
    judges = [how.judged("adapter", adapter.name, adapters.merge(model), validation), base]
    if judges[0].fitted is not None:
        judges[0].fitted.write(adapter)
    baselines = fit_baselines(labelled(test, data), data.scale, labelled(data.train, data))
    about = {"path": data.path.name, "sha256": data.sha256}
    folder = adapter / "evaluation"
    run = run | {"base": identity}
    results = results_of(judges, data.scale, about, baselines, data.leaks, run)
    write_evaluation(folder, judges, results, baselines)
    return results


def labelled(examples: Sequence[JudgeExample], data: JudgeData) -> Labelled:
    """Return the rows in the form that the baselines take."""
    # The candidate of a chat row is a part of its prompt.
    rows = [
        example if example.prompt is None else example.model_copy(update={"candidate": None})
        for example in examples
    ]
    groups = [example.group for example in examples]
    return Labelled.of(rows, [_label(example) for example in examples], groups, data.scale)


@dataclass(frozen=True)
class Scoring:
    """The settings with which judges score the test rows."""

    encoder: PromptEncoder
    test: Sequence[JudgeExample]
    feedback: bool
    precision: str

    def judged(
        self, name: str, id_: str, model: Any, validation: Sequence[JudgeExample] = ()
    ) -> JudgeRows:
        """Score the test rows with one judge, and calibrate its confidence on validation rows.

        `model` is in float32; its weights are packed in place.
        """
        use_attention(model, BLOCKS)
        model, change = converted(model, self.precision, self.test, self._verdicts)
        model = pack(model)
        scorer = JudgeScorer(model, self.encoder, name=name, feedback=self.feedback)
        scored = scorer.score(self.test)
        shortened, ties = scorer.shortened, scorer.ties
        others = self._other_order(scorer)
        rows = [
            prediction(name, example, score, others.get(i))
            for i, (example, score) in enumerate(zip(self.test, scored, strict=True))
        ]
        fitted = self._fitted(scorer, name, validation)
        return JudgeRows(name, id_, rows, shortened, ties, self.precision, change, fitted)

    def _fitted(
        self, scorer: JudgeScorer, name: str, rows: Sequence[JudgeExample]
    ) -> Fitted | None:
        if not rows:
            return None
        scorer.name, scorer.feedback = f"{name}, validation rows", False
        judged = [
            prediction(name, row, score, None)
            for row, score in zip(rows, scorer.score(rows), strict=True)
        ]
        return Fitted.on(judged, self.encoder.scale, Asked().target_accuracy)

    def _verdicts(self, model: Any, rows: Sequence[JudgeExample]) -> list[Scored]:
        return JudgeScorer(model, self.encoder, progress=False).score(rows)

    def _other_order(self, scorer: JudgeScorer) -> dict[int, Scored]:
        """Return the verdicts on swapped pairs, by the index of the row."""
        pairs = [(i, two) for i, row in enumerate(self.test) if (two := swapped(row)) is not None]
        if not pairs:
            return {}
        scorer.name, scorer.feedback = f"{scorer.name}, other order", False
        second = scorer.score([other for _, other in pairs])
        return {i: score for (i, _), score in zip(pairs, second, strict=True)}


def prediction(
    name: str, example: JudgeExample, scored: Scored, other: Scored | None
) -> Prediction:
    """Lay out one row of predictions.jsonl; `other` is the verdict on the pair the other way."""
    row: JsonObject = {
        "model": name,
        "id": example.id,
        "group": example.group,
        "label": _label(example),
        "verdict": scored.verdict,
        "constrained": scored.constrained,
        "probabilities": scored.probabilities or None,
        "verdict_mass": scored.verdict_mass,
        "expected": scored.expected,
        "status": scored.status,
        "raw": scored.raw,
        "feedback": _feedback(scored),
        "label_feedback": example.label.feedback if example.label else None,
        "source": example.source,
        "reference": example.reference,
        "candidate": example.candidate,
        "errors": example.errors,
        **_if_present(example),
    }
    if example.annotators:
        row["annotators"] = [one.model_dump() for one in example.annotators]
    if system := (example.meta or {}).get("system"):
        row["system"] = system
    if other is not None:
        row |= {"swapped": other.verdict, "swapped_constrained": other.constrained}
        row["swapped_probabilities"] = other.probabilities
    return Prediction.model_validate(row)


def _if_present(example: JudgeExample) -> JsonObject:
    """Return the texts that only some rows have; of a chat row the prompt, which holds them all."""
    names = {"prompt", "conversation", "context", "candidates", "meta"}
    return example.model_dump(include=names, exclude_none=True, exclude_defaults=True)


def _label(example: JudgeExample) -> Verdict:
    assert example.label is not None, "a test row without a label passed read_dataset"
    return example.label.verdict


def _feedback(scored: Scored) -> str | None:
    if scored.raw is None:
        return None
    return read_comments(scored.raw.partition("\n")[2])[1]
