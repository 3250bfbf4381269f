"""Score a test set with the base and with the adapter, on the CPU, and write the results.

`predictions.jsonl` keeps every row with its raw answer, `results.json` the numbers; the report is
made from these two alone.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from pt_app.core.choosing import is_tied
from pt_app.core.dataset import JudgeData, JudgeExample, draw
from pt_app.core.files import write_json_atomic
from pt_app.core.metrics import FloatArray
from pt_app.core.orders import order_of, swapped
from pt_app.core.prompts import PromptEncoder
from pt_app.core.questions import scales_of
from pt_app.core.results import PROBE, RESULTS, JsonObject, Prediction, Results
from pt_app.core.settings import PROBE_ROWS, Order, ReadingMode
from pt_app.core.verdicts import Verdict, read_comments
from pt_app.evidence.baselines import Baseline, Labelled, fit_baselines
from pt_app.evidence.calibration import MIN_ROWS, Fitted, rows_to_fit_on
from pt_app.evidence.options import EvidenceOptions
from pt_app.evidence.overview import overview
from pt_app.evidence.probe import NO_BASE, fit_probe
from pt_app.evidence.results import JudgeRows, results_of, write_evaluation
from pt_app.models import adapters, bases
from pt_app.models.gemm import pack_weights
from pt_app.models.tree_attention import BLOCKS, use_attention
from pt_app.scoring.base_states import BaseStates
from pt_app.scoring.branches import chosen_lines
from pt_app.scoring.precision import converted
from pt_app.scoring.scorer import JudgeScorer, Scored
from pt_app.training.preparation import Prepared

# Fields that a row of predictions.jsonl takes over as they are.
OF_SCORED = ("verdict", "greedy", "verdict_mass", "expected", "status", "raw")
ORDER_ROWS = 100  # test rows on which options are listed in another order
OF_EXAMPLE = {"id", "group", "source", "reference", "candidate", "errors"}
OPTIONAL = {"prompt", "conversation", "context", "candidates", "meta"}
log = logging.getLogger(__name__)
ByQuestion = Mapping[str, JudgeRows]
"""A judge's rows by question; "": of a judge without questions."""


def evaluate(
    prepared: Prepared,
    adapter: Path,
    run: JsonObject,
    feedback: bool = False,
    precision: str = "float32",
    probe_rows: int = PROBE_ROWS,
    reading: ReadingMode = "auto",
) -> Results:
    """Score the test rows with the base and with the adapter, and write `adapter`/evaluation.

    Pairs are judged in both orders. The validation rows calibrate the confidence.

    Args:
        prepared: the base and the data.
        adapter: the folder of the adapter.
        run: what results.json records about the run (command, seed, versions).
        feedback: also generate answers.
        precision: of the scoring.
        probe_rows: how many training rows the frozen probe is fitted on.
        reading: of the verdicts' lines.

    Returns:
        The content of results.json.
    """
    source, data = prepared.source, prepared.data
    # First of all, since it frees its base before another is loaded.
    probes = probed(source, prepared.encoder, data, prepared.test, probe_rows)
    scoring = Scoring(prepared.encoder, prepared.test, feedback, precision, reading=reading)
    # The base is loaded twice: packing the weights for scoring leaves no room for an adapter.
    base = scoring.each("base", source.name, bases.load_model(source))
    validation = rows_to_fit_on(data.val)
    model = adapters.load_merged(adapter, source)
    own = scoring.each("adapter", adapter.name, model, validation)
    for name, rows in own.items():
        if rows.fitted is not None:
            rows.fitted.write(adapter, name)
    run = run | {"base": bases.model_identity(source)}
    return written(adapter / "evaluation", [own, base], data, prepared.test, run, probes)


def written(
    folder: Path,
    judges: Sequence[ByQuestion],
    data: JudgeData,
    test: Sequence[JudgeExample],
    run: JsonObject,
    probes: Mapping[str, Baseline],
    evidence: EvidenceOptions | None = None,
) -> Results:
    """Write the results of judges: of each question in a folder of its name, then the overview.

    Without questions there is one, of no name, in `folder` itself.

    Returns:
        The content of `folder`/results.json.
    """
    of_each = {}
    for name, view in data.views():
        rows = [row for row in test if row.asks == name]
        if not rows:  # `judge eval` does not ask such a question
            continue
        own = [judge[name] for judge in judges]
        results, baselines = measured(own, view, rows, run, probes.get(name, NO_BASE), evidence)
        write_evaluation(folder / name, own, results, baselines)
        of_each[name] = results
    if not data.questions:
        return of_each[""]
    about: JsonObject = {"path": data.path.name, "sha256": data.sha256}
    asked_for = {q.name: (q.type, q.scale.name) for q in data.questions}
    results = overview(asked_for, of_each, about, data.leaks, run)
    write_json_atomic(folder / RESULTS, results.as_json())
    return results


def measured(
    judges: Sequence[JudgeRows],
    data: JudgeData,
    test: Sequence[JudgeExample],
    run: JsonObject,
    probe: Baseline = NO_BASE,
    evidence: EvidenceOptions | None = None,
) -> tuple[Results, list[Baseline]]:
    """Compute the results of judges on test rows of a dataset, and the baselines on them."""
    of_test, of_train = (Labelled.of_examples(rows, data.scale) for rows in (test, data.train))
    baselines = fit_baselines(of_test, data.scale, of_train)
    baselines.append(probe)
    about: JsonObject = {"path": data.path.name, "sha256": data.sha256}
    for question in data.questions:  # one at most
        about |= {"question": question.name, "asked": question.declared.instructions}
    return results_of(judges, data.scale, about, baselines, data.leaks, run, evidence), baselines


def probed(
    source: bases.ModelSource,
    encoder: PromptEncoder,
    data: JudgeData,
    test: Sequence[JudgeExample],
    rows: int,
) -> dict[str, Baseline]:
    """Fit the frozen probe on at most `rows` training rows, for each question a map of its own.

    Returns:
        Its verdicts on the test rows by question; "": without one.
    """
    if not rows:
        return {name: Baseline(PROBE, missing="--probe_rows is 0") for name, _ in data.views()}
    train, states = draw(data.train, rows, seed=0), BaseStates(source, encoder)
    pairs = any(swapped(row) is not None for row in (*train, *test))
    of_train, of_test = (_features(states, part, pairs) for part in (train, test))
    probes = {}
    for name, view in data.views():
        some, others = ([i for i, row in enumerate(p) if row.asks == name] for p in (train, test))
        if not some or not others:
            continue
        labelled = Labelled.of_examples([train[i] for i in some], view.scale)
        how = view.scale, len(view.train)
        probes[name] = fit_probe(labelled, of_train[some], of_test[others], *how)
    return probes


def _features(states: BaseStates, rows: Sequence[JudgeExample], pairs: bool) -> FloatArray:
    """Return the hidden states of rows [n, width], of `pairs` the difference of both orders.

    A row of chat among pairs has no other order, and zeros.
    """
    given = states.of(rows)
    return given - states.of([swapped(row) or row for row in rows]) if pairs else given


@dataclass(frozen=True)
class Scoring:
    """The settings with which judges score the test rows."""

    encoder: PromptEncoder
    test: Sequence[JudgeExample]
    feedback: bool
    precision: str
    order: Order = "both"
    reading: ReadingMode = "auto"

    def each(
        self,
        name: str,
        id_: str,
        model: PreTrainedModel,
        validation: Sequence[JudgeExample] | None = None,
    ) -> ByQuestion:
        """Score the test rows with one judge, and calibrate its confidence on validation rows.

        `model` is in float32; its weights are packed in place. The log names each question that
        has too few validation rows.

        Returns:
            The rows by question; "": without one.
        """
        use_attention(model, BLOCKS)
        model, change = converted(model, self.precision, self.test, self.encoder)
        model = pack_weights(model)
        tries, moved = chosen_lines(model, self.reading, self.test, self.encoder)
        scorer = JudgeScorer(model, self.encoder, name=name, order=self.order, tries=tries)
        scorer.feedback = self.feedback
        scored = scorer.score(self.test)
        rows = [prediction(name, *both) for both in zip(self.test, scored, strict=True)]
        shortened, judged = scorer.shortened, []
        scorer.name, scorer.feedback = f"{name}, options in another order", False
        self._reorder(scorer, rows)
        if validation:
            scorer.name = f"{name}, validation rows"
            scores = zip(validation, scorer.score(validation), strict=True)
            judged = [prediction(name, row, score) for row, score in scores]
        by_question = {}
        for asks, scale in scales_of(self.encoder.asked):
            own, calibrating = (
                [row for row in part if (row.question or "") == asks] for part in (rows, judged)
            )
            rule, order = self.encoder.rule_of(scale), order_of(self.order, scale)
            target = EvidenceOptions().target_accuracy
            fitted = Fitted.on(calibrating, scale, target, rule, order)
            if validation is not None and fitted is None:
                _say_uncalibrated(name, asks, calibrating)
            ties = sum(is_tied(r.probabilities, scale, rule) for r in own if r.probabilities)
            grid = scale.grid.name if scale.grid else None
            made = self.precision, change, fitted, grid, rule, order
            by_question[asks] = JudgeRows(name, id_, own, shortened, ties, *made, moved)
        return by_question

    def _reorder(self, scorer: JudgeScorer, rows: list[Prediction]) -> None:
        """Add to some rows of each choice the verdict if its options are listed backwards."""
        for question in self.encoder.questions:
            places = [i for i, row in enumerate(self.test) if row.asks == question.name]
            places = places[:ORDER_ROWS] if question.type == "choice" else []
            changed = {"question": question.backwards()}
            others = [self.test[i].model_copy(update=changed) for i in places]
            for i, scored in zip(places, scorer.score(others) if others else (), strict=True):
                rows[i] = rows[i].model_copy(update={"reordered": scored.verdict})


def _say_uncalibrated(name: str, asks: str, rows: Sequence[Prediction]) -> None:
    count = sum(row.probabilities is not None for row in rows)
    log.warning(
        "%s: no calibration and no threshold: %d validation rows have a label and fit, and %d are "
        "needed: label more",
        f"{name}, {asks}" if asks else name,
        count,
        MIN_ROWS,
    )


def prediction(name: str, example: JudgeExample, scored: Scored) -> Prediction:
    """Lay out one row of predictions.jsonl."""
    comments = scored.raw.partition("\n")[2] if scored.raw is not None else None
    row: JsonObject = {
        "model": name,
        "label": _label(example),
        "probabilities": scored.probabilities or None,
        "feedback": None if comments is None else read_comments(comments)[1],
        "label_feedback": example.label.feedback if example.label else None,
        **{field: getattr(scored, field) for field in OF_SCORED},
        **example.model_dump(include=OF_EXAMPLE),
        # Texts that only some rows have; of a chat row the prompt, which holds them all.
        **example.model_dump(include=OPTIONAL, exclude_none=True, exclude_defaults=True),
    }
    if example.asks:
        row["question"] = example.asks
    if scored.verdict_mass is None and scored.greedy == scored.verdict:
        del row["greedy"]  # as of a model at an endpoint: the verdict is that of the answer
    if example.shares and _has_several_labels(example):
        row["shares"] = example.shares
    if example.annotators:
        row["annotators"] = [annotator.model_dump() for annotator in example.annotators]
    if system := (example.meta or {}).get("system"):
        row["system"] = system
    if scored.orders is not None:
        given, other = scored.orders
        row |= {"as_given": given.verdict, "swapped": other.verdict}
        row |= {
            "swapped_greedy": other.greedy,
            "swapped_probabilities": other.probabilities or None,
        }
    return Prediction.model_validate(row)


def _has_several_labels(example: JudgeExample) -> bool:
    """Return whether the shares of a row are of several labels: of votes, its cell says it."""
    if max(example.shares) < 1:
        return True
    if example.annotators:
        return len(example.annotators) > 1
    cell: Any = (example.row or {})["labels"]
    return bool(sum(cell[example.asks]["votes"].values()) > 1)


def _label(example: JudgeExample) -> Verdict:
    assert example.label is not None, "a test row without a label passed read_dataset"
    return example.label.verdict
