"""`judge data distil`: labels or graded candidates by a teacher model; nothing is paid twice."""

from pt_app.judge_data.distil.run import DistilSummary, distil

__all__ = ["DistilSummary", "distil"]
