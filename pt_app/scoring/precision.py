"""Lower precisions for scoring, and what they change, measured before they are used."""

import copy
import logging
import warnings
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from pt_app.core.errors import UserError
from pt_app.core.prompts import PromptEncoder
from pt_app.core.records import JudgeExample
from pt_app.core.results import PrecisionChange
from pt_app.core.settings import SAMPLE
from pt_app.models import gemm
from pt_app.scoring.scorer import JudgeScorer, Scored

log = logging.getLogger(__name__)


def convert(model: PreTrainedModel, precision: str) -> PreTrainedModel:
    """Return a float32 model in another precision; "float32" returns the model itself.

    int8 is the dynamic quantization of torch, for all linear layers.

    Raises:
        UserError: if the device cannot compute in this precision, or only more slowly.
    """
    if precision == "float32":
        return model
    on_cpu = model.device.type == "cpu"
    if precision == "bf16":
        if on_cpu and not gemm.has_bfloat16():
            problem = "this CPU has no bfloat16 instructions and would be slower with it"
            raise UserError(f"--score_precision bf16: {problem}: leave it out")
        # A copy of the parameters alone: buffers, such as rotary frequencies, stay in float32.
        memo: dict[int, object] = {
            id(weight): torch.nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
            for weight in model.parameters()
        }
        return copy.deepcopy(model, memo)
    if not on_cpu:
        raise UserError("--score_precision int8 is for CPUs: use bf16 here")
    # torch announces once per process that these operators move to the package torchao.
    with warnings.catch_warnings(action="ignore"):
        return torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            model, {torch.nn.Linear}, dtype=torch.qint8
        )


def converted(
    model: PreTrainedModel, precision: str, sample: Sequence[JudgeExample], encoder: PromptEncoder
) -> tuple[PreTrainedModel, PrecisionChange | None]:
    """Convert a model, and measure and log what that changes on up to 100 rows.

    Args:
        model: a model in float32.
        precision: float32, bf16 or int8.
        sample: rows to compare on.
        encoder: encodes prompts and verdicts.

    Returns:
        The model in `precision`, and the change; None for float32, which changes nothing.
    """
    lower = convert(model, precision)
    if precision == "float32":
        return lower, None
    exact, coarse = (
        JudgeScorer(each, encoder, progress=False).score(sample[:SAMPLE]) for each in (model, lower)
    )
    change = change_between(exact, coarse)
    changed = f"{change.verdicts} of {change.n} verdicts against float32"
    log.warning(
        "%s: changes %s, a probability by up to %.2g", precision, changed, change.probability
    )
    return lower, change


def change_between(exact: Sequence[Scored], other: Sequence[Scored]) -> PrecisionChange:
    """Return what another way of scoring changes on the same rows."""
    scored = zip(exact, other, strict=True)
    pairs = [(a, b) for a, b in scored if a.probabilities and b.probabilities]
    differences = [
        abs(p - q) for a, b in pairs for p, q in zip(a.probabilities, b.probabilities, strict=True)
    ]
    verdicts = sum(a.verdict != b.verdict for a, b in pairs)
    largest = max(differences, default=0.0)
    return PrecisionChange(n=len(pairs), verdicts=verdicts, probability=largest)
