"""What validation rows teach about a judge's confidence, kept beside its adapter."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pt_app.core.errors import UserError
from pt_app.core.files import write_json_atomic
from pt_app.core.metrics import FloatArray
from pt_app.core.verdicts import Scale
from pt_app.evidence.calibration import (
    Isotonic,
    checked,
    confidence_of,
    fit_temperature,
    usual_tolerance,
)
from pt_app.evidence.coding import positions
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.pass_fail import operating_threshold
from pt_app.evidence.selective import guaranteed_threshold
from pt_app.evidence.summary import FAIL

FILE = "calibration.json"
FEWEST = 30  # validation rows; an isotonic map of fewer repeats their chance


@dataclass(frozen=True)
class Fitted:
    """`temperature` mends all probabilities, `isotonic` maps a confidence to the share right.

    Confidence is the probability that the verdict is within `tolerance` of the label. `threshold`
    is that of `guaranteed_threshold`, `operating` the probability from which on it costs least to
    fail a row (both errors costing the same; None on other scales, and where none should fail).
    `rows` says on how many validation rows all was fitted.
    """

    rows: int
    tolerance: float
    temperature: float
    isotonic: Isotonic
    threshold: Mapping[str, Any]
    operating: float | None = None

    @staticmethod
    def on(rows: Sequence[Mapping[str, Any]], scale: Scale, target: float) -> "Fitted | None":
        """Fit on prediction rows; None where under 30 have probabilities."""
        known = [row for row in rows if row.get("probabilities")]
        if len(known) < FEWEST:
            return None
        tolerance = usual_tolerance(scale)
        probabilities = checked([row["probabilities"] for row in known], scale, "probabilities")
        labels = positions([row["label"] for row in known], scale, "label")
        found = confidence_of(probabilities, labels, scale, tolerance)
        sample = Resampler([row["group"] for row in known])
        operating = None
        if scale.task == "pass_fail":
            operating = operating_threshold(probabilities[:, FAIL], labels)["threshold"]
        return Fitted(
            len(known),
            tolerance,
            fit_temperature(probabilities, labels),
            Isotonic.fit(found),
            guaranteed_threshold(found, sample, target),
            operating,
        )

    def write(self, folder: Path) -> None:
        """Write `folder`/calibration.json."""
        found = {
            "schema": 1,
            "rows": self.rows,
            "tolerance": self.tolerance,
            "temperature": self.temperature,
            "isotonic": {"x": self.isotonic.x, "y": self.isotonic.y},
            "threshold": dict(self.threshold),
            "operating": self.operating,
        }
        write_json_atomic(folder / FILE, found)

    @staticmethod
    def read(folder: Path) -> "Fitted | None":
        """Read `folder`/calibration.json; None where there is none. Raises UserError if broken."""
        path = folder / FILE
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            isotonic = Isotonic(tuple(found["isotonic"]["x"]), tuple(found["isotonic"]["y"]))
            return Fitted(
                int(found["rows"]),
                float(found["tolerance"]),
                float(found["temperature"]),
                isotonic,
                dict(found["threshold"]),
                found["operating"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is broken ({error!r}): evaluate the adapter again") from error

    def of_one(self, probabilities: Sequence[float], scale: Scale) -> tuple[float, bool | None]:
        """The calibrated confidence of one row's verdict, and whether to abstain.

        None where no threshold holds: the judge cannot be trusted alone.
        """
        row: FloatArray = np.array([probabilities], dtype=np.float64)
        row /= row.sum()
        sure = confidence_of(row, np.zeros(1, dtype=np.int64), scale, self.tolerance).sure
        least = self.threshold["threshold"]
        return float(self.isotonic(sure)[0]), None if least is None else bool(sure[0] < least)
