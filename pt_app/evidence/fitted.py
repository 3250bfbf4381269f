"""Calibration fitted on validation rows, which is saved with the adapter."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field

from pt_app.core.files import write_json_atomic
from pt_app.core.metrics import FloatArray
from pt_app.core.results import Prediction, Stored, Threshold, read_text
from pt_app.core.verdicts import Scale
from pt_app.evidence import calibration
from pt_app.evidence.calibration import Confidence
from pt_app.evidence.coding import positions
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.pass_fail import operating_threshold
from pt_app.evidence.summary import FAIL

FILE = "calibration.json"
MIN_ROWS = 30  # of validation; an isotonic map of fewer rows repeats their noise


class Isotonic(BaseModel):
    """A rising map of confidence to accuracy: straight lines between the points `x` and `y`."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    @staticmethod
    def fit(confidence: Confidence) -> "Isotonic":
        """Fit on rows with labels (Zadrozny and Elkan 2002)."""
        from sklearn.isotonic import IsotonicRegression

        fitted = IsotonicRegression(out_of_bounds="clip").fit(confidence.sure, confidence.right)
        return Isotonic(x=fitted.X_thresholds_.tolist(), y=fitted.y_thresholds_.tolist())

    def __call__(self, sure: FloatArray) -> FloatArray:
        """Return the accuracy that confidences [n] stand for."""
        return np.interp(sure, self.x, self.y)


class Fitted(Stored):
    """What `calibration.json` holds.

    Attributes:
        rows: the number of validation rows.
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
    tolerance: float
    temperature: float
    isotonic: Isotonic
    threshold: Threshold
    operating: float | None = None

    @staticmethod
    def on(rows: Sequence[Prediction], scale: Scale, target: float) -> "Fitted | None":
        """Fit on prediction rows; None if under `MIN_ROWS` have probabilities."""
        rows = [row for row in rows if row.probabilities]
        if len(rows) < MIN_ROWS:
            return None
        tolerance = calibration.usual_tolerance(scale)
        probabilities = calibration.checked(
            [row.probabilities for row in rows], scale, "probabilities"
        )
        labels = positions([row.label for row in rows], scale, "label")
        confidence = calibration.confidence_of(probabilities, labels, scale, tolerance)
        operating = None
        if scale.task == "pass_fail":
            operating = operating_threshold(probabilities[:, FAIL], labels).threshold
        return Fitted(
            schema=1,
            rows=len(rows),
            tolerance=tolerance,
            temperature=calibration.fit_temperature(probabilities, labels),
            isotonic=Isotonic.fit(confidence),
            threshold=calibration.guaranteed_threshold(
                confidence, Resampler([row.group for row in rows]), target
            ),
            operating=operating,
        )

    def write(self, folder: Path) -> None:
        """Write `folder`/calibration.json."""
        write_json_atomic(folder / FILE, self.as_json())

    @staticmethod
    def read(folder: Path) -> "Fitted | None":
        """Read `folder`/calibration.json; None if there is none.

        Raises:
            UserError: for a broken file.
        """
        path = folder / FILE
        if not path.exists():
            return None
        return Fitted.parse(read_text(path), str(path), "evaluate the adapter again")

    def of_one(self, probabilities: Sequence[float], scale: Scale) -> tuple[float, bool | None]:
        """Return the calibrated confidence in one row's verdict, and whether to abstain.

        The latter is None if no threshold holds: the judge cannot be trusted alone.
        """
        row: FloatArray = np.array([probabilities], dtype=np.float64)
        row /= row.sum()
        sure = calibration.confidence_of(
            row, np.zeros(1, dtype=np.int64), scale, self.tolerance
        ).sure
        least = self.threshold.threshold
        return float(self.isotonic(sure)[0]), None if least is None else bool(sure[0] < least)
