"""Calibration fitted on validation rows, which is saved with the adapter."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from pt_app.core.errors import UserError
from pt_app.core.files import write_json_atomic
from pt_app.core.metrics import FloatArray
from pt_app.core.verdicts import Scale
from pt_app.evidence.calibration import (
    Isotonic,
    checked,
    confidence_of,
    fit_temperature,
    guaranteed_threshold,
    usual_tolerance,
)
from pt_app.evidence.coding import positions
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.pass_fail import operating_threshold
from pt_app.evidence.summary import FAIL

FILE = "calibration.json"
MIN_ROWS = 30  # of validation; an isotonic map of fewer rows repeats their noise


@dataclass(frozen=True)
class Fitted:
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

    rows: int
    tolerance: float
    temperature: float
    isotonic: Isotonic
    threshold: Mapping[str, Any]
    operating: float | None = None

    @staticmethod
    def on(rows: Sequence[Mapping[str, Any]], scale: Scale, target: float) -> "Fitted | None":
        """Fit on prediction rows; None if under `MIN_ROWS` have probabilities."""
        rows = [row for row in rows if row.get("probabilities")]
        if len(rows) < MIN_ROWS:
            return None
        tolerance = usual_tolerance(scale)
        probabilities = checked([row["probabilities"] for row in rows], scale, "probabilities")
        labels = positions([row["label"] for row in rows], scale, "label")
        confidence = confidence_of(probabilities, labels, scale, tolerance)
        sample = Resampler([row["group"] for row in rows])
        operating = None
        if scale.task == "pass_fail":
            operating = operating_threshold(probabilities[:, FAIL], labels)["threshold"]
        return Fitted(
            len(rows),
            tolerance,
            fit_temperature(probabilities, labels),
            Isotonic.fit(confidence),
            guaranteed_threshold(confidence, sample, target),
            operating,
        )

    def write(self, folder: Path) -> None:
        """Write `folder`/calibration.json."""
        write_json_atomic(folder / FILE, {"schema": 1, **asdict(self)})

    @staticmethod
    def read(folder: Path) -> "Fitted | None":
        """Read `folder`/calibration.json; None if there is none.

        Raises:
            UserError: for a broken file.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return TypeAdapter(Fitted).validate_python(content)
        except ValueError as error:  # no JSON, or a field that is missing or of another type
            problem = " ".join(str(error).split())
            raise UserError(f"{path} is broken ({problem}): evaluate the adapter again") from error

    def of_one(self, probabilities: Sequence[float], scale: Scale) -> tuple[float, bool | None]:
        """Return the calibrated confidence in one row's verdict, and whether to abstain.

        The latter is None if no threshold holds: the judge cannot be trusted alone.
        """
        row: FloatArray = np.array([probabilities], dtype=np.float64)
        row /= row.sum()
        sure = confidence_of(row, np.zeros(1, dtype=np.int64), scale, self.tolerance).sure
        least = self.threshold["threshold"]
        return float(self.isotonic(sure)[0]), None if least is None else bool(sure[0] < least)
