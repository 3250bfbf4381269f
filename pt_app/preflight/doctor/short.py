"""The short form that both recipes run before a model is loaded: does this device compute right."""

import logging
import time
from collections.abc import Iterator

from pt_app.core.errors import UserError
from pt_app.models import launcher
from pt_app.models.bases import ModelSource
from pt_app.models.platforms import Platform
from pt_app.preflight.doctor.finding import Finding, Status, found_by
from pt_app.preflight.doctor.needs import words_of
from pt_app.preflight.doctor.nf4 import check_nf4
from pt_app.preflight.doctor.operations import check_operations
from pt_app.preflight.doctor.parity import check_training_step

log = logging.getLogger(__name__)


def arithmetic(platform: Platform, words: int, broken: Status = "fail") -> Iterator[Finding]:
    """What the device computes, against float64 on the CPU; `words` of the base's head."""
    yield from check_operations(platform.device, platform.compute_dtype, words, broken)
    yield from training(platform, broken)


def training(platform: Platform, broken: Status = "fail") -> Iterator[Finding]:
    """A training step, and NF4 where the base is held in it."""
    yield from found_by("training step", lambda: check_training_step(platform), broken)
    yield from found_by("NF4", lambda: check_nf4(platform), broken)


def check_first(platform: Platform, source: ModelSource) -> None:
    """Check the device that a run is about to train `source` on, each rank its own.

    A CPU does a training step alone: its operations are what the others are compared with. A check
    that cannot be made is a line in the log, and the run itself shows whether it matters. Raises
    UserError where the device computes wrongly what training needs.
    """
    launcher.meet(platform.on_cpu)
    start = time.perf_counter()
    found = training(platform, "warn")
    if not platform.on_cpu:
        found = arithmetic(platform, words_of(source), "warn")
    passed = 0
    for finding in found:
        if finding.status == "fail":
            raise UserError(f"doctor: {finding.name}: {_said(finding)}")
        if finding.status == "warn":
            log.warning("doctor: %s: %s", finding.name, _said(finding))
        passed += finding.status == "ok"
    log.info("doctor: %d checks passed (%.1f s)", passed, time.perf_counter() - start)


def _said(finding: Finding) -> str:
    return f"{finding.said}; {finding.fix}"
