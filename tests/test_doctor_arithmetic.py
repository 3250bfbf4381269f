"""The doctor sees each of the known faults of backends; here a broken CPU stands for the device.

Faults touch float32 alone: the reference computes in float64.
"""

import importlib
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from pt_app.core.errors import UserError
from pt_app.core.settings import RECIPES
from pt_app.models import platforms, tree_attention
from pt_app.models.bases import resolve_model
from pt_app.models.platforms import Platform
from pt_app.preflight.doctor import arithmetic, operations
from pt_app.preflight.doctor.arithmetic import (
    check_arithmetic,
    check_first,
    check_nf4,
    check_training_step,
)
from pt_app.preflight.doctor.finding import Finding, run_check
from pt_app.preflight.doctor.needs import QWEN_VOCABULARY
from pt_app.preflight.doctor.operations import check_operations
from tests.conftest import ROOT

Fault = Callable[..., Any]


@pytest.fixture(autouse=True)
def on_a_cpu() -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("the faults are put into the CPU, and this machine has an accelerator")


@pytest.fixture
def platform() -> Platform:
    """The CPU dressed as a GPU whose attention is SDPA."""
    return replace(platforms.decide("mps"), attention="sdpa")


def by_name(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def failing(findings: Iterator[Finding]) -> set[str]:
    found = by_name(findings).values()
    for finding in found:
        assert finding.fix or finding.status in ("ok", "skip")
    return {finding.name for finding in found if finding.status in ("fail", "warn")}


def wrong_in_float32(own: Fault, wrong: Fault) -> Fault:
    """`own`, but `wrong(*args)` where the first tensor is float32."""

    def faulty(first: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        chosen = wrong if first.dtype == torch.float32 else own
        return chosen(first, *args, **kwargs)

    return faulty


def with_shifted_mask(query: Any, key: Any, value: Any, attn_mask: Any = None, **more: Any) -> Any:
    if attn_mask is not None:
        attn_mask = attn_mask.roll(1, dims=-2)
    return F_SDPA(query, key, value, attn_mask=attn_mask, **more)


def with_mask_of_the_first_of_a_batch(query: Any, key: Any, value: Any, mask: Any = None) -> Any:
    return F_SDPA(query, key, value, mask[:1] if mask is not None and mask.dim() == 4 else mask)


def with_heads_misread(query: Any, key: Any, value: Any, mask: Any = None) -> Any:
    if query.shape[-2] <= 8 and not query.is_contiguous():
        query = query.transpose(1, 2).reshape(query.shape)
    return F_SDPA(query, key, value, mask)


def with_nan_for_empty_rows(query: Any, key: Any, value: Any, mask: Any = None) -> Any:
    if mask is None:
        return F_SDPA(query, key, value)
    empty = ~mask.any(-1, keepdim=True) if mask.dtype == torch.bool else mask.isnan()
    return F_SDPA(query, key, value, mask).masked_fill(empty.any(-1, keepdim=True), torch.nan)


def with_strides_unread(x: Any, weight: Any, bias: Any = None) -> Any:
    if not weight.is_contiguous():
        weight = weight.as_strided(weight.shape, (weight.shape[1], 1))
    return F_LINEAR(x, weight, bias)


def without_bias(x: Any, weight: Any, bias: Any = None) -> Any:
    return F_LINEAR(x, weight, None if x.shape[-2] == 1 else bias)


class _ReadsTooFar(torch.autograd.Function):
    """A product whose gradient sums one term more than there is, as MPS on M1 and M2 did."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any) -> Any:
        ctx.save_for_backward(weight)
        return F_LINEAR(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        (weight,) = ctx.saved_tensors
        beyond = weight.as_strided((1, weight.shape[1]), weight.stride(), weight.numel())
        return gradient @ weight + gradient[..., :1].roll(-1, dims=-2) @ beyond, None


def reading_too_far(x: Any, weight: Any, bias: Any = None) -> Any:
    if weight.shape[0] < 32767:
        return F_LINEAR(x, weight, bias)
    return _ReadsTooFar.apply(x, weight)


F_SDPA, F_LINEAR = F.scaled_dot_product_attention, F.linear
F_LOSS = F.cross_entropy
FAULTS = {
    "pytorch PR 184180": (
        "scaled_dot_product_attention",
        with_mask_of_the_first_of_a_batch,
        {"attention, masks"},
    ),
    "pytorch issue 156707": (
        "scaled_dot_product_attention",
        with_nan_for_empty_rows,
        {"attention, empty rows"},
    ),
    "pytorch issue 147460": (
        "scaled_dot_product_attention",
        with_shifted_mask,
        {"attention, packs", "attention, masks", "attention, empty rows"},
    ),
    "pytorch issue 163597": (
        "scaled_dot_product_attention",
        with_heads_misread,
        {"attention, strided"},
    ),
    "pytorch issue 162730": ("linear", with_strides_unread, {"linear, strided"}),
    "pytorch issue 188438": ("linear", without_bias, {"linear, one token"}),
    "pytorch issue 177116": (
        "linear",
        reading_too_far,
        {"head of 151,936 tokens", "sums of 33,001 terms"},
    ),
    "pytorch issue 108148": (
        "cross_entropy",
        lambda logits, targets, **more: F_LOSS(logits, targets.clamp(min=0), **more),
        {"loss, ignored tokens"},
    ),
}


def test_a_right_device_passes_every_check_in_each_compute_dtype(platform: Platform) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        dressed = replace(platform, compute_dtype=dtype, weights="nf4")
        found = by_name(check_arithmetic(dressed, QWEN_VOCABULARY))
        assert len(found) == len(operations.OPERATIONS) + (5 if dtype == torch.float32 else 6)
        assert {f.status for f in found.values()} == {"ok"}, found


@pytest.mark.parametrize("source", FAULTS)
def test_a_known_fault_of_a_backend_is_named_with_its_source_and_fix(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, wrong, caught = FAULTS[source]
    monkeypatch.setattr(F, name, wrong_in_float32(getattr(F, name), wrong))
    found = by_name(check_operations("cpu", torch.float32, QWEN_VOCABULARY))
    assert failing(iter(found.values())) == caught
    for operation in caught:
        assert source.split()[-1] in " ".join(found[name].said for name in caught), operation


def test_a_wrong_addcdiv_is_seen_in_its_check_and_in_the_optimizers(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = torch.Tensor.addcdiv_

    def scaled(self: Any, one: Any, two: Any, *, value: float = 1.0) -> Any:
        return own(self, one, two, value=value * (1.1 if self.dtype == torch.float32 else 1.0))

    def scaled_foreach(values: Any, *rest: Any) -> None:
        for value, one, two, by in zip(values, *rest, strict=True):
            value.addcdiv_(one, two, value=by)

    monkeypatch.setattr(torch.Tensor, "addcdiv_", scaled)
    monkeypatch.setattr(torch, "_foreach_addcdiv_", scaled_foreach)
    assert failing(check_operations("cpu", torch.float32, QWEN_VOCABULARY)) == {"Adam's parts"}
    found = by_name(check_training_step(platform))
    assert failing(iter(found.values())) == {"step, optimizer"}
    assert "addcdiv" in found["step, optimizer"].fix


def test_a_fused_adam_that_steps_over_an_overflow_is_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = torch.Tensor.add_

    def step(self: Any) -> None:
        for weight in self.param_groups[0]["params"]:
            if weight.dtype == torch.float32:
                own(weight.data, weight.grad, alpha=-1e-3)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    found = by_name(check_operations("cpu", torch.float32, QWEN_VOCABULARY))
    assert failing(iter(found.values())) == {"fused Adam, skipped step"}
    assert found["fused Adam, skipped step"].status == "warn"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_attention_that_misreads_a_packs_mask_fails_the_training_step(
    platform: Platform, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(query: Any, *rest: Any, **more: Any) -> Any:
        chosen = F_SDPA if query.dtype == torch.float64 else with_shifted_mask
        return chosen(query, *rest, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", shifted)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", shifted)
    found = by_name(check_training_step(replace(platform, compute_dtype=dtype)))
    assert found["step, pack"].status == "fail"
    assert "do not train on this device" in found["step, pack"].fix


def test_the_projects_own_attention_in_blocks_is_checked_too(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tree_attention._probabilities
    monkeypatch.setattr(tree_attention, "_probabilities", lambda *args: own(*args) * 0.9)
    found = by_name(check_training_step(replace(platform, attention="judge_blocks")))
    assert found["step, plain rows"].status == "ok"
    assert found["step, pack"].status == "fail"


def test_garbage_from_the_quantiser_and_from_the_product_are_told_apart(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitsandbytes as bnb

    nf4_platform = replace(platform, weights="nf4")
    forward = bnb.nn.Linear4bit.forward
    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", lambda self, x: forward(self, x.flip(-1)))
    assert failing(check_nf4(nf4_platform)) == {"NF4, matmul"}
    monkeypatch.undo()
    own = bnb.functional.dequantize_4bit
    monkeypatch.setattr(bnb.functional, "dequantize_4bit", lambda *a: own(*a).roll(1, 0))
    found = by_name(check_nf4(nf4_platform))
    assert found["NF4, round trip"].status == "fail"
    assert "--no_4bit" in found["NF4, round trip"].fix


def test_without_bitsandbytes_the_fix_is_said(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    (finding,) = check_nf4(replace(platform, weights="nf4"))
    assert (finding.status, finding.name) == ("fail", "NF4")
    assert "requirements-cuda.txt" in finding.fix
    (finding,) = check_nf4(platform)
    assert finding.status == "skip"


def test_a_check_that_breaks_off_is_a_finding_and_the_others_go_on() -> None:
    def breaking() -> Iterator[Finding]:
        yield Finding("first", "ok", "right")
        raise RuntimeError(f"driver\nis gone: {'/scratch' * 100}")

    first, second = run_check("operations", breaking)
    assert first.status == "ok"
    assert second.status == "fail"
    assert "RuntimeError: driver is gone: /scratch/scratch" in second.said
    assert len(second.said) < 400


def test_a_run_on_a_wrong_device_stops_before_it_loads_a_model(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "linear", wrong_in_float32(F.linear, with_strides_unread))
    gpu = DressedAsGpu(**vars(platform))
    with pytest.raises(UserError, match=r"doctor: linear, strided: .*162779.*torch 2\.14"):
        check_first(gpu, resolve_model("tiny"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_on_a_wrong_device_leaves_nothing_behind(
    recipe: str, base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = importlib.import_module(f"pt_app.eval_model.judge_train_{recipe}").main
    own = tree_attention._probabilities
    monkeypatch.setattr(tree_attention, "_probabilities", lambda *args: own(*args) * 0.9)
    with pytest.raises(UserError, match=r"doctor: step, pack: .*do not train on this device"):
        main([f"--model={base}", f"--data_dir={rows}", f"--output_dir={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_a_fault_of_large_heads_stops_no_run_on_a_base_with_a_small_vocabulary(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(F, "linear", wrong_in_float32(F.linear, reading_too_far))
    monkeypatch.setattr(logging.getLogger("pt_app"), "propagate", True)
    gpu = DressedAsGpu(**vars(platform))
    tiny = resolve_model("tiny")
    with caplog.at_level(logging.INFO, "pt_app"):
        check_first(gpu, tiny)
    assert "doctor: sums of 33,001 terms: " in caplog.text
    monkeypatch.setattr(arithmetic, "vocabulary_of", lambda _: 50_257)
    with pytest.raises(UserError, match="doctor: head of 50,257 tokens"):
        check_first(gpu, tiny)


class DressedAsGpu(Platform):
    """The CPU, said to be none, so that the single operations are checked too."""

    on_cpu = False  # type: ignore[assignment]


def test_a_check_that_cannot_be_made_does_not_stop_a_run(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_: Any) -> Iterator[Finding]:
        raise RuntimeError("not implemented on this device")

    monkeypatch.setattr(arithmetic, "check_training_step", gone)
    monkeypatch.setattr(logging.getLogger("pt_app"), "propagate", True)
    with caplog.at_level(logging.INFO, "pt_app"):
        check_first(platform, resolve_model("tiny"))
    assert "the check failed: RuntimeError: not implemented on this device" in caplog.text
    assert "doctor: 0 checks passed" in caplog.text


def test_the_short_form_changes_no_random_number_of_the_run(platform: Platform) -> None:
    torch.manual_seed(3)
    right = torch.randn(4)
    torch.manual_seed(3)
    check_first(platform, resolve_model("tiny"))
    assert torch.equal(torch.randn(4), right)


def test_each_operation_names_where_its_fault_was_seen() -> None:
    for operation in operations.OPERATIONS:
        assert "issue" in operation.source or "PR" in operation.source
        assert operation.fix
    docs = [ROOT / "docs" / f"{name}_TRAINING.md" for name in ("APPLE_SILICON", "ROCM")]
    pages = "".join(page.read_text() for page in docs)
    for operation in operations.OPERATIONS:
        for number in re.findall(r"\d{5,}", operation.source):
            assert number in pages
