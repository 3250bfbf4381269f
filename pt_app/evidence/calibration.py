"""Whether a judge's confidence means anything: calibration, and selective judging.

A row is right if its verdict lies within `tolerance` of the label, and the confidence is the
probability that the judge gives to that event. In selective judging a judge abstains below a
threshold of its confidence, and a person or a larger judge decides those rows. What is fitted on
validation rows is saved with the adapter (`Fitted`).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, model_validator

from pt_app.core import results
from pt_app.core.dataset import JudgeExample, draw
from pt_app.core.errors import UserError
from pt_app.core.files import read_text, write_json_atomic
from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.coding import agreement_of_sums, headline, numbers_of, positions
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.pass_fail import operating_threshold
from pt_app.evidence.ranks import Levels
from pt_app.evidence.summary import FAIL

log = logging.getLogger(__name__)

FILE = "calibration.json"
MIN_ROWS = 30  # of validation; an isotonic map of fewer rows repeats their noise
MAX_ROWS = 1000  # of validation: more change little
BINS = 10
SUM_TOLERANCE = 0.01  # of probabilities; files round them
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
POINTS = 100  # of the curve in results.json
RISK_OF_ERROR = 0.05  # that a guaranteed threshold does not hold
COVERAGES = (0.25, 0.5, 0.75)  # at which accuracy and agreement are reported
STEPS = 10  # thresholds that are tried: each leaves another tenth of the rows to a person


@dataclass(frozen=True)
class Confidence:
    """How sure the judge is that its verdict on each row is right, and whether it is (1, 0) [n]."""

    sure: FloatArray
    right: FloatArray


def probabilities_of(rows: Sequence[results.Prediction], scale: Scale) -> FloatArray:
    """Return the probabilities [n, K] of the scale's verdicts in its order, NaN for a row without.

    Raises:
        UserError: for a row of another length, with a negative number, or that does not sum to 1.
    """
    given = [row.probabilities for row in rows]
    for number, row in enumerate(given, start=1):
        if row is not None and (problem := wrong_with(row, scale)):
            remedy = f"give the probability of each verdict of {scale.name}, in its order"
            raise UserError(f"probabilities in row {number}: {problem}: {remedy}")
    absent = [np.nan] * len(scale.values)
    table = np.array([row or absent for row in given]).reshape(-1, len(absent))
    return np.asarray(table / table.sum(axis=1, keepdims=True), np.float64)


def wrong_with(row: Sequence[float], scale: Scale) -> str:
    """Return why these numbers are not probabilities of the scale's verdicts; "" if they are."""
    if len(row) != len(scale.values):
        return f"{len(row)} numbers, but the scale {scale.name} has {len(scale.values)} verdicts"
    if not all(number >= 0 for number in row):  # false for NaN, too
        return "a number is not a probability"
    total = sum(row)
    return f"they sum to {total:.4g}, not 1" if abs(total - 1) > SUM_TOLERANCE else ""


def confidence_of(
    probabilities: FloatArray,
    verdicts: IntArray,
    labels: IntArray,
    scale: Scale,
    tolerance: float,
) -> Confidence:
    """Return the confidence in the verdict of each row, and whether it is right.

    Args:
        probabilities: of each verdict [n, K], NaN for a row without.
        verdicts: positions on the scale [n]; those of rows without probabilities are not used.
        labels: positions on the scale [n].
        scale: the scale.
        tolerance: how far from the label a verdict may lie to be right, in units of the scale.
    """
    near = _near(scale, tolerance)
    return Confidence(_sure(probabilities, verdicts, near), near[verdicts, labels])


def confidence_in(verdict: Verdict, probabilities: Sequence[float], scale: Scale) -> float:
    """Return the confidence in the verdict of one row, at the usual tolerance."""
    row, place = np.array([probabilities], np.float64), np.array([scale.values.index(verdict)])
    # As for all rows of an evaluation: Python's sum may round otherwise, past a threshold.
    row /= row.sum(axis=1, keepdims=True)
    return float(_sure(row, place, _near(scale, usual_tolerance(scale)))[0])


def _near(scale: Scale, tolerance: float) -> FloatArray:
    """Return which verdicts count as one [K, K]."""
    numbers = numbers_of(scale)
    if numbers is None:
        return np.eye(len(scale.values))
    return (np.abs(numbers[:, None] - numbers) <= tolerance + 1e-9).astype(np.float64)


def _sure(probabilities: FloatArray, verdicts: IntArray, near: FloatArray) -> FloatArray:
    # Rounded, so that probabilities which differ by the rounding of their sum are one confidence.
    return np.asarray((probabilities * near[verdicts]).sum(axis=1).round(12), np.float64)


def usual_tolerance(scale: Scale) -> float:
    """Return the default tolerance: a tenth of the range, but at least a step.

    It is 0 for names, and on scales of up to five verdicts.
    """
    numbers = numbers_of(scale)
    if numbers is None or len(numbers) <= 5:
        return 0.0
    return float(max(numbers[1] - numbers[0], (numbers[-1] - numbers[0]) / 10))


def calibration(
    probabilities: FloatArray,
    verdicts: IntArray,
    labels: IntArray,
    scale: Scale,
    sample: Resampler,
    tolerance: float,
) -> results.Calibration:
    """Return the calibration of the rows that have probabilities; each number with interval and n.

    Args:
        probabilities: of each verdict [n, K], NaN for a row without.
        verdicts: positions on the scale [n].
        labels: positions on the scale [n].
        scale: the scale.
        sample: the groups of the rows.
        tolerance: how far from the label a verdict may lie to be right, in units of the scale.

    Returns:
        `ece`: the expected calibration error over 10 bins of equally many rows (Nguyen and O'Connor
        2015). It is above 0 for a calibrated judge, too: `ece_if_calibrated` has the mean and the
        95th percentile for these confidences and so many rows. `overconfidence`: mean confidence
        less accuracy. `brier`: the Brier score of the whole distribution, 0 to 2 (Brier 1950).
        `reliability`: mean confidence, accuracy and n of each bin.
    """
    present = ~np.isnan(probabilities[:, 0])
    confidence = confidence_of(probabilities, verdicts, labels, scale, tolerance)
    sure, right = confidence.sure, confidence.right
    gap = np.where(present, sure - right, np.nan)
    truth = np.eye(len(scale.values))[labels]
    n, bins = int(present.sum()), _bins(sure, present)
    columns = np.zeros((len(gap), BINS + 1))
    columns[present, bins[present]] = gap[present]
    columns[:, BINS] = present

    def ece(sums: FloatArray) -> dict[str, FloatArray]:
        return {"ece": np.abs(sums[:, :-1]).sum(axis=1) / sums[:, -1]}

    def bin_of(rows: npt.NDArray[np.bool_]) -> results.ReliabilityBin:
        accuracy = sample.share(np.where(rows, right, np.nan))
        return results.ReliabilityBin(confidence=float(sure[rows].mean()), right=accuracy)

    inside = [present & (bins == b) for b in range(BINS)]
    return results.Calibration(
        tolerance=tolerance,
        ece=sample.estimate_sums(columns, ece, n)["ece"],
        ece_if_calibrated=_ece_by_chance(sure[present], bins[present], sample.seed) if n else None,
        overconfidence=sample.mean(gap),
        right=sample.share(np.where(present, right, np.nan)),
        brier=sample.mean(((probabilities - truth) ** 2).sum(axis=1)),
        reliability=[bin_of(rows) for rows in inside if rows.any()],
    )


def _bins(sure: FloatArray, present: npt.NDArray[np.bool_]) -> IntArray:
    """Return the bin of each row: equally many rows each, equal confidences together."""
    ends = np.linspace(0, 1, BINS + 1)[1:-1]
    edges = np.quantile(sure[present], ends) if present.any() else ends
    return np.asarray(np.searchsorted(edges, np.nan_to_num(sure), side="right"), np.int64)


def _ece_by_chance(sure: FloatArray, bins: IntArray, seed: int) -> results.Range:
    """Simulate the calibration error of a calibrated judge with these confidences [n]."""
    right = np.random.default_rng(seed).random((500, len(sure))) < sure
    gaps = sure - right
    sums = np.stack([gaps[:, bins == b].sum(axis=1) for b in range(BINS)], axis=1)
    errors = np.abs(sums).sum(axis=1) / len(bins)
    return results.Range(mean=float(errors.mean()), high=float(np.quantile(errors, 0.95)))


def with_temperature(probabilities: FloatArray, temperature: float) -> FloatArray:
    """Return the probabilities p^(1/T), normalised: T > 1 is less sure, with the same argmax."""
    from scipy.special import softmax

    with np.errstate(divide="ignore"):
        return np.asarray(softmax(np.log(probabilities) / temperature, axis=1), np.float64)


def fit_temperature(probabilities: FloatArray, labels: IntArray) -> float:
    """Return the temperature of least log loss on these rows (Guo et al. 2017, arXiv 1706.04599).

    A row whose label has no probability at all says nothing about it and is left out.
    """
    from scipy.optimize import minimize_scalar

    kept = np.nan_to_num(probabilities[np.arange(len(labels)), labels]) > 0
    rows, truth = probabilities[kept], labels[kept]

    def loss(log_temperature: float) -> float:
        scaled = with_temperature(rows, float(np.exp(log_temperature)))
        chosen = np.maximum(scaled[np.arange(len(truth)), truth], 1e-300)
        return float(-np.log(chosen).mean())

    if not len(rows):
        return 1.0
    bounds = (float(np.log(MIN_TEMPERATURE)), float(np.log(MAX_TEMPERATURE)))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def selective(
    confidence: Confidence,
    sample: Resampler,
    target: float,
    threshold: results.Threshold | None = None,
) -> results.Selective:
    """Return the risk-coverage curve, its area, and the threshold that reaches `target` accuracy.

    `aurc` is the mean error rate over all coverages (Geifman et al. 2019, arXiv 1805.08206),
    `aurc_random` that of a judge whose confidence says nothing: its error rate. `kept` and `right`
    are the coverage and the accuracy of the threshold on these rows.

    Args:
        confidence: confidence and correctness of each row.
        sample: the groups of the rows.
        target: the accuracy to reach.
        threshold: what `guaranteed_threshold` chose on other rows; None: choose it on these.
    """
    order = np.argsort(-confidence.sure, kind="stable")
    wrong = 1 - confidence.right
    risk = wrong[order].cumsum() / np.arange(1, len(order) + 1)
    chosen = threshold or guaranteed_threshold(confidence, sample, target)
    kept = confidence.sure >= (np.inf if chosen.threshold is None else chosen.threshold)
    places = np.unique(np.linspace(0, len(order) - 1, POINTS).round().astype(int)).tolist()
    points = [results.RiskPoint(coverage=(i + 1) / len(order), risk=float(risk[i])) for i in places]
    numbers = results.Selective(
        curve=points,
        aurc=_area(confidence, sample),
        aurc_random=sample.share(wrong),
        kept=sample.share(kept.astype(np.float64)),
        right=sample.share(np.where(kept, confidence.right, np.nan)),
    )
    return numbers.model_copy(update=chosen.as_json())


def _area(confidence: Confidence, sample: Resampler) -> results.Metric:
    """Return the area below the curve; rows of equal confidence share their mean risk."""
    levels, wrong = Levels(-confidence.sure), 1 - confidence.right

    def area(weights: FloatArray) -> dict[str, FloatArray]:
        rows, errors = levels.sums(weights), levels.sums(weights * wrong)
        covered = rows.cumsum(axis=1)
        risk = np.where(covered > 0, errors.cumsum(axis=1) / covered, 0.0)
        return {"aurc": (risk * rows).sum(axis=1) / covered[:, -1]}

    return sample.estimate(area)["aurc"]


def at_coverages(
    confidence: Confidence, verdicts: IntArray, labels: IntArray, scale: Scale, sample: Resampler
) -> list[results.Coverage]:
    """Return accuracy and agreement among the surest quarter, half and three quarters of the rows.

    Rows of equal confidence at the edge count by the share that still fits, so that the order of
    the rows in the file changes nothing; each resample has its own edge.

    Args:
        confidence: confidence and correctness of each row.
        verdicts: positions on the scale [n].
        labels: positions on the scale [n].
        scale: the scale.
        sample: the groups of the rows.

    Returns:
        For each `coverage` the accuracy within the tolerance (`right`), the share of verdicts that
        equal the label (`accuracy`) and the scale's headline number.
    """
    (columns,), statistic = agreement_of_sums(labels, scale, verdicts)
    levels, head = Levels(-confidence.sure), headline(scale)

    def numbers_at(coverage: float, weights: FloatArray) -> dict[str, FloatArray]:
        kept = weights * _kept(levels, coverage, weights)
        agreed = statistic(kept @ columns)
        return {
            "right": (kept @ confidence.right) / kept.sum(axis=1),
            "accuracy": agreed["exact" if "exact" in agreed else "accuracy"],
            head: agreed[head],
        }

    entries = []
    for coverage in COVERAGES:
        n, size = round(coverage * len(labels)), 8 * columns.shape[1]
        metrics = sample.estimate(partial(numbers_at, coverage), n, size)
        entries.append(results.Coverage.model_validate({"coverage": coverage, **metrics}))
    return entries


def _kept(levels: Levels, coverage: float, weights: FloatArray) -> FloatArray:
    """Return the share of each row that is among the surest `coverage` of the drawn ones, [r, n].

    `levels` are those of the confidences, the highest first.
    """
    rows = levels.sums(weights)
    before = rows.cumsum(axis=1) - rows
    room = coverage * weights.sum(axis=1, keepdims=True) - before
    share = np.clip(room / np.maximum(rows, 1e-12), 0.0, 1.0)
    return np.asarray(share[:, levels.of_row], np.float64)


def guaranteed_threshold(
    confidence: Confidence, sample: Resampler, target: float
) -> results.Threshold:
    """Find the lowest confidence from which on the judge reaches an accuracy of `target`.

    Ten thresholds are tried, each by an exact binomial bound (Clopper and Pearson 1934) at a tenth
    of the risk, so that in 95 of 100 cases none that holds here fails on further rows
    (Angelopoulos et al. 2021, arXiv 2110.01052). The bound is for independent rows, so that one
    row of each group counts, drawn at random. The threshold is None if none holds.
    """
    from scipy.stats import beta

    rng = np.random.default_rng([sample.seed, 2])
    shuffled = rng.permutation(len(sample.index))
    rows = shuffled[np.unique(sample.index[shuffled], return_index=True)[1]]
    sure, right = confidence.sure[rows], confidence.right[rows]
    chosen = results.Threshold(
        target=target, threshold=None, bound=None, rows=len(rows), risk_of_error=RISK_OF_ERROR
    )
    for level in np.unique(np.quantile(sure, np.arange(STEPS) / STEPS)).tolist():
        inside = sure >= level
        n, hits = int(inside.sum()), int(right[inside].sum())
        bound = float(beta.ppf(RISK_OF_ERROR / STEPS, hits, n - hits + 1)) if hits else 0.0
        if bound >= target:
            chosen.threshold, chosen.bound = level, bound
            break
    return chosen


def rows_to_fit_on(validation: Sequence[JudgeExample]) -> list[JudgeExample]:
    """Draw validation rows: of each question `MAX_ROWS`, or all that have a label for it.

    The rows are drawn for all questions together, which then share the reading of a state; only of
    the rarer questions more are added.
    """
    kept = {id(row) for row in draw(validation, MAX_ROWS, seed=0)}
    for name in dict.fromkeys(row.asks for row in validation):
        own = [row for row in validation if row.asks == name]
        others = [row for row in own if id(row) not in kept]
        if missing := min(MAX_ROWS, len(own)) - (len(own) - len(others)):
            kept |= {id(row) for row in draw(others, missing, seed=0)}
    return [row for row in validation if id(row) in kept]


def _file(question: str) -> str:
    return f"calibration.{question}.json" if question else FILE


class Isotonic(BaseModel):
    """A rising map of confidence to accuracy: straight lines between the points `x` and `y`."""

    x: tuple[float, ...] = Field(min_length=1)
    y: tuple[float, ...]

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if len(self.x) != len(self.y) or [*self.x, *self.y] != [*sorted(self.x), *sorted(self.y)]:
            raise ValueError("x and y must be of one length, and rise")
        return self

    @staticmethod
    def fit(confidence: Confidence) -> "Isotonic":
        """Fit on rows with labels (Zadrozny and Elkan 2002)."""
        from sklearn.isotonic import IsotonicRegression

        fitted = IsotonicRegression(out_of_bounds="clip").fit(confidence.sure, confidence.right)
        return Isotonic(x=fitted.X_thresholds_.tolist(), y=fitted.y_thresholds_.tolist())

    def __call__(self, sure: FloatArray) -> FloatArray:
        """Return the accuracy that confidences [n] stand for."""
        return np.interp(sure, self.x, self.y)


class Fitted(results.Stored):
    """What `calibration.json` holds.

    Attributes:
        rows: the number of validation rows.
        verdict_rule: how their verdicts were chosen; before there were rules, as the mode.
        order: in which pairs were judged; None for other rows.
        tolerance: how far from the label a verdict may lie to be right; confidence is the
            probability of that.
        temperature: recalibrates all probabilities.
        isotonic: maps a confidence to the accuracy.
        threshold: what `guaranteed_threshold` chose.
        operating: the probability of FAIL from which on failing a row costs least if both errors
            cost the same; None on other scales, and if no row should fail.
    """

    schema_version: int = Field(default=1, alias="schema")
    rows: int
    verdict_rule: str = "mode"
    order: str | None = None
    tolerance: float
    temperature: float = Field(gt=0)
    isotonic: Isotonic
    threshold: results.Threshold
    operating: float | None = None

    @staticmethod
    def on(
        rows: Sequence[results.Prediction],
        scale: Scale,
        target: float,
        rule: str = "mode",
        order: str | None = None,
    ) -> "Fitted | None":
        """Fit on prediction rows; None if under `MIN_ROWS` have probabilities."""
        rows = [row for row in rows if row.probabilities]
        if len(rows) < MIN_ROWS:
            return None
        tolerance = usual_tolerance(scale)
        probabilities = probabilities_of(rows, scale)
        labels = positions([row.label for row in rows], scale, "label")
        verdicts = positions([row.verdict for row in rows], scale, "verdict")
        confidence = confidence_of(probabilities, verdicts, labels, scale, tolerance)
        sample = Resampler([row.group for row in rows])
        fails = probabilities[:, FAIL] if scale.task == "pass_fail" else None
        return Fitted(
            schema=1,
            rows=len(rows),
            verdict_rule=rule,
            order=order,
            tolerance=tolerance,
            temperature=fit_temperature(probabilities, labels),
            isotonic=Isotonic.fit(confidence),
            threshold=guaranteed_threshold(confidence, sample, target),
            operating=None if fails is None else operating_threshold(fails, labels, 1, 1).threshold,
        )

    def write(self, folder: Path, question: str = "") -> None:
        """Write `folder`/calibration.json, or that of a question."""
        write_json_atomic(folder / _file(question), self.as_json())

    @staticmethod
    def read(
        folder: Path, rule: str, order: str | None = None, question: str = ""
    ) -> "Fitted | None":
        """Read `folder`/calibration.json, or that of a question.

        Returns:
            None if there is none for this rule and order of pairs.

        Raises:
            UserError: for a broken file.
        """
        path = folder / _file(question)
        again = "evaluate the adapter again"
        if not path.exists():
            return None
        fitted = Fitted.parse(read_text(path, remedy=again), path, again)
        if (fitted.verdict_rule, fitted.order) == (rule, order):
            return fitted
        message = "%s was fitted on verdicts that were chosen otherwise, and is not used: %s"
        log.warning(message, path, again)
        return None

    def of_one(self, confidence: float) -> tuple[float, bool | None]:
        """Return the calibrated confidence in one row's verdict, and whether to abstain.

        The latter is None if no threshold holds: the judge cannot be trusted alone.

        Args:
            confidence: what `confidence_in` returns.
        """
        least = self.threshold.threshold
        calibrated = float(self.isotonic(np.array([confidence]))[0])
        return calibrated, None if least is None else confidence < least
