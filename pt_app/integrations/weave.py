"""A judge as a scorer of Weave.

weave.Evaluation(dataset=rows, scorers=[JudgeScorer(adapter="adapters_eval/<name>_final")])
"""

from typing import Any

from pt_app.integrations.shared import missing, shared

try:
    import weave
except ImportError as error:
    raise missing("weave", error) from error

# Of a judgement what Weave summarizes over rows; the id and the row are its own.
SHOWN = (
    *("status", "judge", "expected", "confidence", "calibrated", "abstain", "verdict_mass"),
    "probabilities",
)


class JudgeScorer(weave.Scorer):  # type: ignore[misc]
    """Score the output of a model, a text, beside a row with the fields of the judge.

    Attributes:
        adapter: the folder of the judge.
        base: the folder of its base, if it was one.
    """

    adapter: str
    base: str | None = None

    def model_post_init(self, context: Any, /) -> None:
        """Load the judge, so that a wrong folder is refused before anything is evaluated."""
        super().model_post_init(context)
        shared(self.adapter, self.base)

    @weave.op  # type: ignore[untyped-decorator]
    def score(self, *, output: Any, **row: Any) -> dict[str, Any]:
        """Judge an output; `verdict` is null where the judge gives none, see `status`.

        Raises:
            UserError: as `shared` does; for a row without what the judge needs.
        """
        judge = shared(self.adapter, self.base)
        judgement = judge.judged(output, row, {})
        shown = {name: getattr(judgement, name) for name in SHOWN}
        return {"verdict": judge.value(judgement), **shown}
