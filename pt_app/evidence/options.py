"""The flags of commands that measure verdicts or decide about a judge."""

from dataclasses import dataclass

from pt_app.core.flags import flag


@dataclass(frozen=True)
class EvidenceOptions:
    """What a user may choose about the evidence."""

    target_accuracy: float = flag("accuracy to reach by abstaining", 0.9, low=0.01, high=0.999)
    tolerance: float | None = flag(
        "distance to the label that counts as correct; default: a tenth of the scale, and 0 on "
        "scales of up to five verdicts",
        None,
        low=0,
    )
    missed_fail_costs: float = flag("cost of passing a FAIL", 1.0, low=0, name="missed_fail")
    false_alarm_costs: float = flag("cost of failing a PASS", 1.0, low=0, name="false_alarm")


@dataclass(frozen=True)
class Limits:
    """What a new judge must meet."""

    margin: float = flag("largest allowed loss of agreement", 0.02, low=0)
    question_margins: str = flag(
        "margins of single questions of a judge of several: tone=0.05,offer=0.01", "", unit="list"
    )
    floor: float | None = flag("minimum agreement; required if only one folder is given", None)
    rows: int = flag("minimum number of rows for a decision", 100, low=1)
    parse_failures: float = flag("maximum fraction of parse failures", 0.02, low=0, high=1)
    unscored: float = flag("maximum fraction of rows too long to score", 0.02, low=0, high=1)
    abstentions: float = flag(
        "maximum fraction of rows below the confidence threshold", 1.0, low=0, high=1
    )
