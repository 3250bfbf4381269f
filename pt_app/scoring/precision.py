"""Coarser numbers for scoring on a CPU, and what they change before they are used."""

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pt_app.core.errors import UserError
from pt_app.core.records import JudgeExample
from pt_app.core.settings import SAMPLE
from pt_app.models import gemm
from pt_app.scoring.scorer import Scored

Score = Callable[[Any, Sequence[JudgeExample]], Sequence[Scored]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """What a precision changed on a sample of `n` rows: verdicts, and probabilities at most."""

    n: int
    verdicts: int
    probability: float


def convert(model: Any, precision: str) -> Any:
    """A float32 model in another precision; "float32" gives it back as it is.

    int8 is torch's dynamic quantisation of all linear layers. Raises UserError where a CPU has no
    bfloat16 of its own.
    """
    if precision == "float32":
        return model
    if precision == "bf16":
        if model.device.type == "cpu" and not gemm.has_bfloat16():
            raise UserError(
                "--score_precision bf16: this CPU has no bfloat16 of its own, and would be slower "
                "with it: leave it out"
            )
        return _in_bfloat16(model)
    if model.device.type != "cpu":
        raise UserError("--score_precision int8 is for CPUs: use bf16 here")
    with warnings.catch_warnings():
        # torch announces that these operators move to the package torchao, once a process.
        warnings.simplefilter("ignore")
        quantise: Any = torch.ao.quantization.quantize_dynamic
        return quantise(model, {torch.nn.Linear}, dtype=torch.qint8)


def _in_bfloat16(model: Any) -> Any:
    """A copy with parameters in bfloat16; buffers, such as rotary frequencies, stay as they are."""
    memo: dict[int, Any] = {
        id(weight): torch.nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, memo)


def converted(
    model: Any, precision: str, sample: Sequence[JudgeExample], score: Score
) -> tuple[Any, Change | None]:
    """The model in `precision`, and what that changes on up to 100 rows, which is said first.

    `score` judges rows with a model. float32 is exact and changes nothing: None.
    """
    coarse = convert(model, precision)
    if precision == "float32":
        return coarse, None
    rows = sample[:SAMPLE]
    pairs = list(zip(score(model, rows), score(coarse, rows), strict=True))
    pairs = [(one, other) for one, other in pairs if one.probabilities and other.probabilities]
    change = Change(
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
    return coarse, change
