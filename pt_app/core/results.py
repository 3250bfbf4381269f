"""The content of results.json, predictions.jsonl and attacks.json, as pydantic models.

docs/RESULTS_JSON.md describes the fields. A file of an older version lacks some of them, which then
have their defaults; fields that this version does not know are kept. Only fields that were set are
written, so that a file that is read and written again keeps its content; one of schema 1 is
written as one of schema 2.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pt_app.core.errors import UserError
from pt_app.core.files import read_text
from pt_app.core.formatting import COLUMNS, SHOWN_WITH
from pt_app.core.records import Annotation, Turn, first_problem
from pt_app.core.verdicts import Scale, Verdict

SCHEMA = 2  # raised if the meaning of a field changes
PROBE = "frozen probe"  # the name of the baseline on the base's hidden states
PREDICTIONS, RESULTS, ATTACKS = "predictions.jsonl", "results.json", "attacks.json"
_ABSENT = "is missing: evaluate first (without --skip_eval), or name another folder"
JsonObject = dict[str, object]
_AnyMetric = TypeVar("_AnyMetric", bound="Metric")

# Both ends of an interval, and the standard error; None where they are undefined.
Spread = tuple[float | None, float | None, float | None]


class Stored(BaseModel):
    """A part of a file; unknown fields are kept, unset ones are not written."""

    model_config = ConfigDict(extra="allow")

    @property
    def required(self) -> Sequence[str]:
        """The fields without which a file is refused."""
        return ()

    def as_json(self) -> JsonObject:
        """Return the fields that were set, as JSON types."""
        return self.model_dump(by_alias=True, exclude_unset=True)

    @classmethod
    def parse(cls, text: str, where: Path | str, again: str = "evaluate again") -> Self:
        """Read JSON.

        Args:
            text: the JSON.
            where: the file, and the line in it, for messages.
            again: the remedy, for messages.

        Raises:
            UserError: if the text is not JSON or of another schema, or if a field is missing or has
                another type.
        """
        try:
            parsed = cls.model_validate_json(text)
        except ValidationError as error:
            field, problem = first_problem(error)
            what = f"field {field}" if field else "not JSON"
            raise UserError(f"{where}: {what} ({problem}): {again}") from error
        if isinstance(parsed, _Versioned) and parsed.schema_version != SCHEMA:
            raise UserError(f"{where}: field schema is not {SCHEMA}: {again} with this version")
        if missing := [name for name in parsed.required if name not in parsed.model_fields_set]:
            raise UserError(f"{where}: field {missing[0]} is missing: {again}")
        return parsed


class _Versioned(Stored):
    """A file whose fields have the meanings of one schema."""

    schema_version: int = Field(default=SCHEMA, alias="schema")

    @model_validator(mode="before")
    @classmethod
    def _of_schema_1(cls, data: object) -> object:
        """Take a file of schema 1, whose parts say themselves what their fields were."""
        if isinstance(data, dict) and data.get("schema") == 1:
            return data | {"schema": SCHEMA}
        return data


class Metric(Stored):
    """A number with its 95 % interval over `n` rows; None where it is undefined.

    Attributes:
        reason: why the number is undefined; set only then.
        error: the standard error; not written to files.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str | None = None
    error: float | None = Field(default=None, exclude=True)

    @staticmethod
    def of(value: float, n: int, spread: Spread = (None, None, None)) -> "Metric":
        """Return a number over n rows; NaN and infinity are undefined, with the reason."""
        low, high, error = spread
        metric = Metric(value=float(value), low=low, high=high, n=n, error=error)
        if not math.isfinite(value):
            metric.value = None
            metric.reason = "no rows" if n == 0 else "all labels or all verdicts are equal"
        return metric

    def extended(self, kind: type[_AnyMetric], **fields: object) -> _AnyMetric:
        """Return the same number as one of another kind, which has more fields."""
        own = {name: getattr(self, name) for name in self.model_fields_set}
        return kind.model_validate(own | fields)


Metrics = dict[str, Metric]


class Check(Metric):
    """A number that is 0 for a judge without a bias; `p_holm` is corrected for all checks."""

    p: float | None = None
    p_holm: float | None = None
    alarm: bool = False


class Comparison(Metric):
    """The difference a - b of two judges in `metric`, on the same rows."""

    a: str = ""
    b: str = ""
    metric: str = ""
    p: float | None = None
    p_holm: float | None = None
    detectable: float | None = None


class Range(Stored):
    """The mean and the 95th percentile of a simulated number."""

    mean: float
    high: float


class ReliabilityBin(Stored):
    """Rows of similar confidence: its mean, and their accuracy."""

    confidence: float
    right: Metric


class Recalibrated(Stored):
    """The calibration after a temperature that was fitted on `rows` validation rows."""

    temperature: float = 1.0
    rows: int = 0
    ece: Metric = Metric()
    overconfidence: Metric = Metric()
    brier: Metric = Metric()


class Calibration(Stored):
    """How well the confidence predicts the accuracy within `tolerance` of the label."""

    tolerance: float = 0.0
    ece: Metric = Metric()
    ece_if_calibrated: Range | None = None
    overconfidence: Metric = Metric()
    right: Metric = Metric()
    brier: Metric = Metric()
    reliability: list[ReliabilityBin] = []


class Threshold(Stored):
    """The confidence from which on the judge reaches the `target` accuracy; None: no such one."""

    target: float = 0.0
    threshold: float | None = None
    bound: float | None = None
    rows: int = 0
    risk_of_error: float = 0.0
    chosen_on: str | None = None


class RiskPoint(Stored):
    """The error rate among the surest rows."""

    coverage: float
    risk: float


class Coverage(Stored):
    """Accuracy and headline kappa among the surest `coverage` of the rows."""

    coverage: float
    right: Metric = Metric()
    accuracy: Metric = Metric()
    kappa: Metric | None = None
    kappa_quadratic: Metric | None = None


class Selective(Threshold):
    """Selective judging: risk by coverage, and what the threshold keeps.

    `left_out` counts the rows without a readable verdict or without probabilities, which are in
    none of its numbers.
    """

    curve: list[RiskPoint] = []
    aurc: Metric = Metric()
    aurc_random: Metric = Metric()
    kept: Metric = Metric()
    right: Metric = Metric()
    at_coverage: list[Coverage] = []
    left_out: int = 0


class Operating(Stored):
    """The probability of FAIL from which on failing a row costs least; None: never."""

    threshold: float | None = None
    cost: float = 0.0
    cost_of_likeliest: float = 0.0
    missed_fail_costs: float = 1.0
    false_alarm_costs: float = 1.0
    n: int = 0
    chosen_on: str | None = None


class PassRate(Metric):
    """The corrected pass rate of n rows without a label; `raw`: as the judge passes them."""

    raw: float | None = None
    labelled: int = 0


class Slice(Stored):
    """The rows with one value of a column; compared with the others if there are enough."""

    distance: Metric
    difference: Check | None = None


class SourcePairs(Stored):
    """The share of pairs of rows of one source that are in the labels' order."""

    accuracy: Metric = Metric()
    accuracy_as_is: Metric = Metric()
    tie_threshold: float | None = None
    pairs: int = 0
    groups: int = 0


class SystemMeans(Stored):
    """The mean label and verdict of one system."""

    system: str
    label: float
    verdict: float


class BetweenSystems(Stored):
    """How well verdicts order systems, by soft pairwise accuracy."""

    soft_pairwise_accuracy: float
    systems: list[SystemMeans] = []
    pairs: int = 0
    groups: int = 0


class Systems(Stored):
    """Correlations within sources and within systems, and the order of systems."""

    within_source: Metric = Metric()
    within_system: Metric = Metric()
    between_systems: BetweenSystems | None = None


class Flip(Stored):
    """How many pairs had these winners in the two orders, None for a parse failure."""

    first: Verdict | None = None
    swapped: Verdict | None = None
    n: int = 0


class Orders(Stored):
    """Pairs judged in both orders: the winners, and the accuracy by the better one's position."""

    flips: list[Flip] = []
    right_if_better_is: Metrics = {}


class Cost(Stored):
    """What `n` verdicts of a model at an endpoint cost, in dollars, repeated ones too."""

    dollars: float
    per_verdict: float
    n: int


class Repeats(Stored):
    """How far answers are the same if each row is asked about several times.

    Attributes:
        times: how often each row was asked about.
        flips: the share of rows whose verdict is not the same each time.
        probability: the largest change of a probability; None if no row has two answers.
    """

    times: int
    flips: Metric = Metric()
    probability: float | None = None


class SharesDistance(Stored):
    """The mean distance of a judge's distributions to those of the annotators' verdicts.

    Attributes:
        judge: how far probability must be moved, in units of the scale; on a nominal one, how much.
        constant: the same of one distribution for all rows: the mean of the annotators'.
    """

    judge: Metric
    constant: Metric


class EscalationPoint(Stored):
    """A judge that keeps its rows from a confidence on, and sends the others to another one.

    Attributes:
        threshold: the lowest confidence of a row that is kept; None: none is kept.
        kept: the share of rows that are kept.
        right: the accuracy within the tolerance, over all rows.
        agreement: the headline number, over all rows.
        per_verdict: the mean cost of a verdict, in dollars.
    """

    threshold: float | None
    kept: float
    right: Metric
    agreement: Metric
    per_verdict: float


class Escalation(Stored):
    """What is reached by judge `a` on the rows of which it is sure, and judge `b` on the others.

    Attributes:
        metric: the name of the headline number.
        points: from no row kept to all.
        chosen: at the threshold of judge a; None if it has none.
        chosen_on: `validation`, if that threshold is from there.
        difference: in the headline number, of the chosen point and judge b alone.
    """

    a: str
    b: str
    metric: str
    points: list[EscalationPoint] = []
    chosen: EscalationPoint | None = None
    chosen_on: str | None = None
    difference: Comparison | None = None


class PrecisionChange(Stored):
    """What a faster way of scoring changed against the exact one, on a sample of n rows."""

    n: int
    verdicts: int
    probability: float


class Measured(Stored):
    """A judge, a baseline or one annotator, measured against the labels.

    Attributes:
        metrics: of the verdicts. Without `greedy`, and of answers that could not all be read, also
            `<name>_strict`, where parse failures count as wrong.
        greedy: the same of the greedy answers, of a judge whose verdicts are chosen by their
            probabilities.
    """

    id: str = ""
    name: str = ""
    metrics: Metrics = {}
    greedy: Metrics | None = None
    parse_failures: int = 0
    n: int = 0
    groups: int = 0
    few_groups: bool = False

    @model_validator(mode="before")
    @classmethod
    def _of_schema_1(cls, data: object) -> object:
        """Rename what schema 1 called `metrics` (of greedy answers) and `constrained`."""
        if not isinstance(data, dict) or "constrained" not in data:
            return data
        data, chosen = dict(data), data["constrained"]
        del data["constrained"]
        if not chosen:
            return data
        return data | {"greedy": data.get("metrics"), "metrics": chosen, "verdict_rule": "mode"}

    @property
    def answers(self) -> Metrics:
        """The numbers of the answers as they were written."""
        return self.metrics if self.greedy is None else self.greedy


class BaselineResults(Measured):
    """A baseline; `verdict` is the one that it always answers, `fitted` on what it was fitted."""

    verdict: Verdict | None = None
    fitted: str | None = None


class Ceiling(Measured):
    """One annotator against the others; `rows` have two annotators or more."""

    rows: int = 0


class JudgeResults(Measured):
    """All numbers of one judge.

    Attributes:
        verdict_rule: how verdicts were chosen from their probabilities; None: they were given.
        order: "both" if a pair's probabilities are the mean of its two orders.
        option_order: how often the verdict on a choice is another one where its options are listed
            in another order, on some rows.
        annotator_distance: how far its distributions are from the annotators'.
        repeats: of a decision model at an endpoint, how far its answers are the same.
        far_from_greedy: rows whose verdict and greedy answer lie over a tenth of the scale apart;
            None: not counted, as in schema 1.
    """

    verdict_rule: str | None = None
    order: str | None = None
    far_from_greedy: int | None = None
    precision: str | None = None
    grid: str | None = None
    precision_change: PrecisionChange | None = None
    reading_change: PrecisionChange | None = None
    option_order: Metric | None = None
    ties: int = 0
    unscored: int = 0
    shortened: int = 0
    by_error: Metrics | None = None
    verdict_mass: Metric | float | None = None
    calibration: Calibration | None = None
    mended: Recalibrated | None = None
    selective: Selective | None = None
    roc_auc: Metric | None = None
    pr_auc: Metric | None = None
    operating: Operating | None = None
    population: PassRate | None = None
    checks: dict[str, Check] = {}
    slices: dict[str, dict[str, Slice]] = {}
    within_source_pairs: SourcePairs | None = None
    systems: Systems | None = None
    orders: Orders | None = None
    annotator_distance: SharesDistance | None = None
    repeats: Repeats | None = None
    cost: Cost | None = None


class RaterPair(Stored):
    """How often two raters, or one at two times, give equal labels, and their kappa.

    Older files hold bare numbers, without interval and n.
    """

    a: str = ""
    b: str = ""
    agreement: Metric | float | None = None
    exact: Metric | None = None
    kappa: Metric | float | None = None
    kappa_quadratic: Metric | float | None = None


class OneVersusRest(Stored):
    """Each rater's correlation with the others: by rater, their mean, and pooled."""

    by_rater: list[JsonObject] = []
    mean: Metric = Metric()
    pooled: Metric = Metric()


class AnnotatorAgreement(Stored):
    """The agreement among annotators, over the units that have two labels or more."""

    units: int = 0
    raters: int = 0
    ratings: int = 0
    raw: Metric | None = None
    fleiss_kappa: Metric | None = None
    alpha_nominal: Metric | None = None
    alpha_ordinal: Metric | None = None
    alpha_interval: Metric | None = None
    pairs: list[RaterPair] = []
    one_vs_rest: OneVersusRest | None = None


class Leaks(Stored):
    """How many texts are in training and test, and a line for some of them."""

    n: int = 0
    examples: list[str] = []


class DataUsed(Stored):
    """The file of the rows that were judged (`n`) or attacked (`rows`).

    `question` and `asked` are name and words of the one among several that they were judged by.
    """

    path: str | None = None
    question: str = ""
    asked: str = ""
    n: int | None = None
    rows: int | None = None
    groups: int | None = None
    sha256: object = None


class LearningPoint(Metric):
    """The headline number of the judge that was trained on so many rows."""

    judge: str = ""
    rows: int = 0
    metric: str = ""


class SeedSpread(Stored):
    """The headline number over training seeds."""

    metric: str
    seeds: list[object] = []
    values: list[float | None] = []
    mean: float | None = None
    sd: float | None = None


class QuestionSummary(Stored):
    """One question of a judge: a row of its overview.

    Attributes:
        type: bool, choice or score.
        scale: the name of its scale.
        judge: the name of the judge whose numbers these are.
        metric: the name of the headline number, which judge, base, baseline and ceiling have.
        baseline: the name of the best baseline.
        few: why there are no numbers; "" where there are.
        agreement, of_base, of_baseline, ceiling: the headline number of the judge, of its base, of
            the best baseline, and of one annotator against the others (None on too few rows).
        others: that of each other judge of the same rows, by its name.
        ece, ece_if_calibrated: the calibration error, and that of a calibrated judge on n rows.
        target, threshold: the accuracy that is promised, and the confidence from which on.
        chosen_on: as `Threshold` has it; unset in earlier files, which do not say it.
        kept, right: the share of the rows above the threshold, and the accuracy there.
        verdict_mass, option_order: of the judge, as `JudgeResults` has them.
    """

    type: str = ""
    scale: str = ""
    judge: str = ""
    metric: str = ""
    n: int = 0
    few: str = ""
    agreement: Metric | None = None
    of_base: Metric | None = None
    baseline: str = ""
    of_baseline: Metric | None = None
    ceiling: Metric | None = None
    others: dict[str, Metric | None] = {}
    ece: Metric | None = None
    ece_if_calibrated: Range | None = None
    target: float | None = None
    threshold: float | None = None
    chosen_on: str | None = None
    kept: Metric | None = None
    right: Metric | None = None
    verdict_mass: Metric | float | None = None
    option_order: Metric | None = None


class Results(_Versioned):
    """The content of results.json.

    `questions` has a row for each question of a judge of several; its whole results are in the
    folder of its name.
    """

    leaks: Leaks = Leaks()
    task: str = Field(default="score", pattern=f"^({'|'.join([*COLUMNS, 'questions'])})$")
    data: DataUsed = DataUsed()
    scale: str = ""
    models: list[JudgeResults] = []
    baselines: list[BaselineResults] = []
    missing_baselines: dict[str, str] = {}
    ceiling: Ceiling | None = None
    people: AnnotatorAgreement | None = None
    comparisons: list[Comparison] = []
    curve: list[LearningPoint] = []
    escalation: Escalation | None = None
    over_seeds: SeedSpread | None = None
    questions: dict[str, QuestionSummary] = {}
    run: JsonObject = {}

    @property
    def required(self) -> Sequence[str]:
        """The fields without which there is nothing to report."""
        own = ("questions",) if self.task == "questions" else ()
        return ("task", "data", "scale", "models", *own)

    def columns(self) -> tuple[str, ...]:
        """Return the names of the numbers that a table shows, the headline number first.

        ROUGE-L is among them only if answers were generated, the numbers of both orders only if
        pairs were judged in both.
        """
        models = self.models
        measured = {name for model in models for name in (*model.metrics, *model.answers)} | {""}
        return tuple(name for name in COLUMNS[self.task] if SHOWN_WITH.get(name, "") in measured)

    @property
    def judge(self) -> JudgeResults | None:
        """The judge that a report is about: the adapter, else the first."""
        adapters = (model for model in self.models if model.name == "adapter")
        return next(adapters, self.models[0] if self.models else None)

    def best_baseline(self) -> BaselineResults | None:
        """Return the baseline without a model that agrees best; None without baselines."""
        head = self.columns()[0]
        measured = [own for own in self.baselines if head in own.metrics and own.name != PROBE]
        return max(measured, key=lambda own: own.metrics[head].value or 0.0, default=None)

    @property
    def probe(self) -> BaselineResults | None:
        """The frozen probe; None if there is none."""
        return next((own for own in self.baselines if own.name == PROBE), None)

    def must_beat(self) -> list[BaselineResults]:
        """Return what a judge must beat beside its base: the best baseline and the probe."""
        return [own for own in (self.best_baseline(), self.probe) if own]

    def leak_line(self) -> str:
        """Return the warning that training and test share texts; "" if they do not."""
        if not (n := self.leaks.n):
            return ""
        return f"LEAKS: {n} texts are in training and test: these numbers are too high."


class Prediction(Stored):
    """A row of predictions.jsonl: what one judge answered to one row.

    Attributes:
        question: which is answered, of several.
        score: of a metric, in place of verdicts.
        verdict: what the judge says: chosen by the probabilities, else as it was given.
        greedy: the verdict of the greedy answer (None: a parse failure); unset if `verdict` is it.
        as_given: the verdict on the pair in this order alone; unset if `verdict` is it.
        swapped: the verdict on the pair in its other order alone, in that order's letters; unset if
            it was judged in one only.
        reordered: the verdict on a choice whose options are listed backwards; unset if it was not
            asked so.
        repeated: the verdicts of further answers to the same request.
        moved: how far these answers move a probability, at most.
        shares: of several labels, over the values of the scale.
        rules: the verdict of each baseline.
        rules_expected: its score before it was rounded, on a scale of numbers.
    """

    model: str = ""
    id: str = ""
    question: str | None = None
    group: str | int = ""
    label: Verdict = ""
    score: float | None = None
    verdict: Verdict | None = None
    greedy: Verdict | None = None
    probabilities: list[float] | None = None
    verdict_mass: float | None = None
    expected: float | None = None
    status: Literal["ok", "parse_failure", "too_long"] = "ok"
    raw: str | None = None
    feedback: str | None = None
    label_feedback: str | None = None
    source: str | None = None
    reference: str | None = None
    candidate: str | None = None
    errors: list[str] | None = None
    prompt: str | None = None
    conversation: list[Turn] | None = None
    context: str | None = None
    candidates: list[str] | None = None
    meta: JsonObject | None = None
    shares: list[float] | None = None
    annotators: list[Annotation] | None = None
    system: Verdict | None = None
    slices: dict[str, Verdict | None] | None = None
    as_given: Verdict | None = None
    swapped: Verdict | None = None
    swapped_greedy: Verdict | None = None
    swapped_probabilities: list[float] | None = None
    reordered: Verdict | None = None
    repeated: list[Verdict | None] | None = None
    moved: float | None = None
    rules: dict[str, Verdict] | None = None
    rules_expected: dict[str, float] | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_schema_1(cls, data: object) -> object:
        """Rename what schema 1 called `verdict` (of the greedy answer) and `constrained`."""
        if not isinstance(data, dict) or "constrained" not in data:
            return data
        data = dict(data)
        for name, old in (("verdict", "constrained"), ("swapped", "swapped_constrained")):
            chosen = data.pop(old, None)
            if chosen is not None:
                greedy = "greedy" if name == "verdict" else f"{name}_greedy"
                data[greedy], data[name] = data.get(name), chosen
        return data

    @property
    def required(self) -> Sequence[str]:
        """The fields of a row of verdicts, or of a metric's scores."""
        if "score" in self.model_fields_set:
            return ("model", "label", "score")
        return ("model", "status", "label", "verdict")

    @property
    def in_both_orders(self) -> bool:
        """Whether the pair was judged in its other order, too."""
        return "swapped" in self.model_fields_set

    @property
    def answered(self) -> Verdict | None:
        """The verdict of the answer as it was written; None for a parse failure."""
        return self.greedy if "greedy" in self.model_fields_set else self.verdict

    @property
    def in_one_order(self) -> Verdict | None:
        """The verdict on a pair in this order alone."""
        return self.as_given if "as_given" in self.model_fields_set else self.verdict


class AttackFamily(Stored):
    """What the attacks of one family do to the verdicts; `changed` is measured of questions."""

    shift: Metric = Metric()
    raised: Metric = Metric()
    verdict: Metric = Metric()
    parse_failures: Metric = Metric()
    changed: Metric | None = None
    attacks: int = 0


class ControlTokens(Stored):
    """Whether control tokens in candidates do more than the same characters as text."""

    attacks: int = 0
    twins: int = 0
    reason: str = ""
    other_ids: int = 0
    control_ids: int = 0
    largest_difference: float = 0.0


class AttackResults(_Versioned):
    """The content of attacks.json; of a judge of questions there is one for each `question`."""

    judge: str = ""
    question: str = ""
    data: DataUsed = DataUsed()
    scale: str = ""
    step: float = 1.0
    held_out: bool = False
    clean: Metrics = {}
    families: dict[str, AttackFamily] = {}
    unscored: int = 0
    control_tokens: ControlTokens | None = None


def read_results(folder: Path) -> Results:
    """Read `folder`/results.json.

    Raises:
        UserError: if it is absent, broken or of another schema, if it is about no judge, or if its
            scale is none.
    """
    path = folder / RESULTS
    results = Results.parse(read_text(path, _ABSENT, "evaluate again"), path)
    if results.task != "questions" and not results.models:
        raise UserError(f"{path}: field models is empty: evaluate again")
    if results.task not in ("questions", "metric"):
        _check_scale(results.scale, path)
    return results


def _check_scale(name: str, path: Path) -> None:
    try:
        Scale.from_name(name)
    except UserError as error:
        raise UserError(f"{path}: field scale: {error}") from error


def read_attacks(folder: Path) -> AttackResults | None:
    """Read `folder`/attacks.json; None if `judge attack` was not run.

    Raises:
        UserError: if it is broken or of another schema, or if its scale is none.
    """
    path = folder / ATTACKS
    again = "attack again"
    if not path.exists():
        return None
    attacks = AttackResults.parse(read_text(path, remedy=again), path, again)
    _check_scale(attacks.scale, path)
    return attacks


def read_predictions(folder: Path) -> list[Prediction]:
    """Read the rows of `folder`/predictions.jsonl.

    Raises:
        UserError: with file and line, if the file is absent or a line is broken.
    """
    path = folder / PREDICTIONS
    lines = enumerate(read_text(path, _ABSENT, "evaluate again").split("\n"), 1)
    return [Prediction.parse(line, f"{path}:{row}") for row, line in lines if line.strip()]
