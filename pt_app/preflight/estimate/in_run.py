"""What a run says of its cost before it loads its model, and before it trains."""

import logging

from pt_app.core import console
from pt_app.core.settings import Recipe, Settings
from pt_app.models.bases import ModelSource
from pt_app.models.out_of_memory import is_out_of_memory
from pt_app.models.platforms import Platform
from pt_app.preflight.estimate.estimate import Estimate, estimate
from pt_app.preflight.estimate.timing import Seconds, time_run, worth_timing
from pt_app.training.preparation import Prepared
from pt_app.training.trainer import JudgeTrainer

log = logging.getLogger(__name__)


def dollars_of(seconds: Seconds | None, price: float | None) -> float | None:
    """What the time costs at `price` dollars an hour; None where either is not known."""
    return None if seconds is None or price is None else price * seconds.total / 3600


def time_lines(seconds: Seconds | None, price: float | None) -> list[str]:
    """For people: time, and dollars at `price` an hour."""
    if seconds is None:
        return []
    line = (
        f"time: about {_minutes(seconds.training)} of training, {_minutes(seconds.validation)} of "
        f"validation, {_minutes(seconds.evaluation)} of evaluation (from {seconds.packs} timed "
        f"packs, which took {seconds.spent:.1f} s)"
    )
    dollars = dollars_of(seconds, price)
    return [line] if dollars is None else [line, f"price: about {dollars:.2f} dollars"]


def _minutes(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def before_loading(
    recipe: Recipe, settings: Settings, platform: Platform, prepared: Prepared, *, trained: bool
) -> Estimate:
    """Say in the run's log what it needs; raises UserError where it cannot end well.

    One that is `trained` only needs what its evaluation does.
    """
    found = estimate(recipe, settings, platform, prepared)
    for line in found.lines():
        log.info("%s", line)
    if settings.shard_base:
        log.info("memory: as if each process held the whole base, which is parted here")
    else:
        found.check(training=not trained)
    return found


def before_training(found: Estimate, trainer: JudgeTrainer, source: ModelSource) -> None:
    """Say in the run's log how long it will take, where timing costs little beside it."""
    if console.ranks() > 1:
        return
    if not worth_timing(found.plan, found.cost):
        log.info("time: not timed beforehand, the training is too short for that")
        return
    try:
        seconds = time_run(trainer, found.plan, found.cost, source)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        seconds = None
        log.warning("time: not known, memory ran out; training tries smaller packs")
    trainer.model.zero_grad()
    for line in time_lines(seconds, None):
        log.info("%s", line)
