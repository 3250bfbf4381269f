"""A judge as a metric of DeepEval.

evaluate(test_cases, [JudgeMetric("adapters_eval/<name>_final", threshold=0.7)])
"""

import asyncio
from typing import Any

from pt_app.integrations.shared import missing, shared

try:
    from deepeval.metrics import BaseMetric
    from deepeval.test_case import LLMTestCase
except ImportError as error:
    raise missing("deepeval", error) from error


class JudgeMetric(BaseMetric):  # type: ignore[misc]
    """Measure a test case: where on the judge's scale its verdict lies, from 0 to 1.

    `input` is the source, `actual_output` the candidate, `expected_output` the reference and the
    lines of `context` the context; `metadata` may name others. Where the judge gives no verdict,
    `error` says so, and the test case fails.

    Args:
        adapter: the folder of the judge.
        base: the folder of its base, if it was one.
        threshold: the least score that succeeds.

    Raises:
        UserError: as `shared` does; for a test case without what the judge needs.
    """

    def __init__(self, adapter: str, base: str | None = None, threshold: float = 0.5) -> None:
        self.adapter, self.base, self.threshold = adapter, base, threshold
        self._judge = shared(adapter, base)
        self.evaluation_model = self._judge.judge.name

    def measure(self, test_case: LLMTestCase, *_: Any, **__: Any) -> float | None:
        """Return the score, and keep it with the reason."""
        own = {"source": test_case.input, "reference": test_case.expected_output}
        own |= {"context": "\n".join(test_case.context or ()) or None, "id": test_case.name}
        judgement = self._judge.judged(test_case.actual_output, test_case.metadata or {}, own)
        value, scale = self._judge.value(judgement), self._judge.scale
        self.score = self.error = self.reason = None
        if value is None:
            self.error = f"the judge gives no verdict: {judgement.status}"
        else:
            ends = (0, 1) if scale.task == "pass_fail" else scale.values
            low, high = float(ends[0]), float(ends[-1])
            self.score = (value - low) / (high - low)
            self.reason = (
                f"{judgement.verdict} on {scale.name}, confidence {judgement.confidence:.2f}"
            )
        self.is_successful()
        return self.score

    async def a_measure(self, test_case: LLMTestCase, *_: Any, **__: Any) -> float | None:
        """Return the score, as `measure` does, without holding up other test cases."""
        return await asyncio.to_thread(self.measure, test_case)

    @property
    def __name__(self) -> str:
        return "Judge"
