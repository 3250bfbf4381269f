"""Lower precisions for scoring, and what they change, measured before they are used."""

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pt_app.core.errors import UserError
from pt_app.core.records import JudgeExample
from pt_app.core.results import PrecisionChange
from pt_app.core.settings import SAMPLE
from pt_app.models import gemm
from pt_app.scoring.scorer import Scored

Score = Callable[[Any, Sequence[JudgeExample]], Sequence[Scored]]
log = logging.getLogger(__name__)


def convert(model: Any, precision: str) -> Any:
    """Return a float32 model in another precision; "float32" returns the model itself.

    int8 is the dynamic quantization of torch, for all linear layers.

    Raises:
        UserError: if the device cannot compute in this precision, or only more slowly.
    """
    if precision == "float32":
        return model
    if precision == "bf16":
        if model.device.type == "cpu" and not gemm.has_bfloat16():
            raise UserError(
                "--score_precision bf16: this CPU has no bfloat16 instructions and would be slower "
                "with it: leave it out"
            )
        return _in_bfloat16(model)
    if model.device.type != "cpu":
        raise UserError("--score_precision int8 is for CPUs: use bf16 here")
    with warnings.catch_warnings():
        # torch announces once per process that these operators move to the package torchao.
        warnings.simplefilter("ignore")
        quantize: Any = torch.ao.quantization.quantize_dynamic
        return quantize(model, {torch.nn.Linear}, dtype=torch.qint8)


def _in_bfloat16(model: Any) -> Any:
    """Return a copy with parameters in bfloat16; buffers, such as rotary frequencies, stay."""
    memo: dict[int, Any] = {
        id(weight): torch.nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, memo)


def converted(
    model: Any, precision: str, sample: Sequence[JudgeExample], score: Score
) -> tuple[Any, PrecisionChange | None]:
    """Convert a model, and measure and log what that changes on up to 100 rows.

    Args:
        model: a model in float32.
        precision: float32, bf16 or int8.
        sample: rows to compare on.
        score: scores rows with a model.

    Returns:
        The model in `precision`, and the change; None for float32, which changes nothing.
    """
    lower = convert(model, precision)
    if precision == "float32":
        return lower, None
    rows = sample[:SAMPLE]
    pairs = list(zip(score(model, rows), score(lower, rows), strict=True))
    pairs = [(one, other) for one, other in pairs if one.probabilities and other.probabilities]
    change = PrecisionChange(
        n=len(pairs),
        verdicts=sum(one.verdict != other.verdict for one, other in pairs),
        probability=max(
            (
                abs(p - q)
                for one, other in pairs
                for p, q in zip(one.probabilities, other.probabilities, strict=True)
            ),
            default=0.0,
        ),
    )
    log.warning(
        "%s: changes %d of %d verdicts against float32, and a probability by up to %.2g",
        precision,
        change.verdicts,
        change.n,
        change.probability,
    )
    return lower, change
