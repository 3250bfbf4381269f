"""The overview of a judge of several questions: a row for each, from its whole results."""

from collections.abc import Mapping, Sequence

from pt_app.core import results as typed
from pt_app.core.results import QuestionSummary, Results

MIN_LABELS = 30  # below it an interval says more about its method than about the judge


def overview(
    questions: Mapping[str, tuple[str, str]],
    of_each: Mapping[str, Results],
    data: Mapping[str, object],
    leaks: Sequence[str],
    run: typed.JsonObject,
) -> Results:
    """Summarize the results of questions, in their declared order.

    Args:
        questions: by name the type and the name of the scale of all that the judge answers.
        of_each: the results of those that test rows have a label for.
        data: path and hash of the rows.
        leaks: a line for each text on both sides of the split.
        run: how the rows were made; written as it is.
    """
    summaries = {name: _summary(*of, of_each.get(name)) for name, of in questions.items()}
    used = [results.data for results in of_each.values()]
    count = {
        name: max((getattr(d, name) or 0 for d in used), default=0) for name in ("n", "groups")
    }
    return Results(
        schema=typed.SCHEMA,
        leaks=typed.Leaks(n=len(leaks), examples=list(leaks[:5])),
        task="questions",
        data=typed.DataUsed.model_validate({**data, **count}),
        scale="",
        models=[],
        questions=summaries,
        run=run,
    )


def _summary(type: str, scale: str, results: Results | None) -> QuestionSummary:
    n = (results.data.n or 0) if results else 0
    if results is None or results.judge is None or n < MIN_LABELS:
        few = f"not enough labels ({n}; {MIN_LABELS} are needed)"
        return QuestionSummary(type=type, scale=scale, n=n, few=few)
    judge, head = results.judge, results.columns()[0]
    best = results.best_baseline()
    base = next((model for model in results.models if model.name == "base"), None)
    own = (judge, base)
    ceiling, calibration, chosen = results.ceiling, judge.calibration, judge.selective
    if ceiling and ceiling.rows < MIN_LABELS:
        ceiling = None
    return QuestionSummary(
        type=type,
        scale=scale,
        judge=judge.name,
        n=n,
        metric=head,
        agreement=judge.metrics.get(head),
        of_base=base.metrics.get(head) if base else None,
        baseline=best.name if best else "",
        of_baseline=best.metrics.get(head) if best else None,
        ceiling=ceiling.metrics.get(head) if ceiling else None,
        others={each.name: each.metrics.get(head) for each in results.models if each not in own},
        ece=calibration.ece if calibration else None,
        ece_if_calibrated=calibration.ece_if_calibrated if calibration else None,
        target=chosen.target if chosen else None,
        threshold=chosen.threshold if chosen else None,
        chosen_on=chosen.chosen_on if chosen else None,
        kept=chosen.kept if chosen else None,
        right=chosen.right if chosen else None,
        verdict_mass=judge.verdict_mass,
        option_order=judge.option_order,
    )
