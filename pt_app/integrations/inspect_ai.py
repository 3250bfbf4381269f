"""A judge as a scorer of inspect_ai.

Task(dataset=..., solver=generate(), scorer=judge_scorer("adapters_eval/<name>_final"))
"""

from dataclasses import asdict
from typing import Any

from pt_app.integrations.shared import missing, shared

try:
    from anyio import to_thread
    from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
    from inspect_ai.solver import TaskState
except ImportError as error:
    raise missing("inspect_ai", error) from error


@scorer(metrics=[mean(), stderr()])  # type: ignore[untyped-decorator]
def judge_scorer(adapter: str, base: str | None = None) -> Scorer:
    """Score the output of a sample: the verdict, or of a pass/fail judge whether it passes.

    `source`, `context`, `reference` and `rubric` are those of the sample's metadata, else the input
    is the source (several messages: the conversation) and the target the reference. What the judge
    gives no verdict on is unscored, and left out of the mean.

    Args:
        adapter: the folder of the judge.
        base: the folder of its base, if it was one.

    Raises:
        UserError: as `shared` does; for a sample without what the judge needs.
    """
    judge = shared(adapter, base)

    async def score(state: TaskState, target: Target) -> Score:
        defaults = {**_source(state), "reference": target.text, "id": state.sample_id}
        judgement = await to_thread.run_sync(
            judge.judged, state.output.completion, state.metadata, defaults
        )
        value, answer, details = judge.value(judgement), state.output.completion, asdict(judgement)
        if value is None:
            return Score.unscored(reason="grader_failed", answer=answer, metadata=details)
        return Score(value=value, answer=answer, metadata=details)

    return score


def _source(state: TaskState) -> dict[str, Any]:
    if isinstance(state.input, str):
        return {"source": state.input}
    turns = [{"role": turn.role, "content": turn.text} for turn in state.input]
    return {"conversation": turns} if len(turns) > 1 else {"source": state.input_text}
