"""Estimate what a run costs, for `judge estimate` and for the run itself."""

import logging
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pt_app.core.errors import UserError
from pt_app.core.settings import Settings
from pt_app.models.base_files import tokenizer_files, weight_files
from pt_app.models.platforms import Platform
from pt_app.preflight.doctor.needs import free_bytes
from pt_app.preflight.estimate.flops import Cost
from pt_app.preflight.estimate.memory import (
    FLOAT32,
    GIB,
    MARGIN,
    Limit,
    Memory,
    evaluation_memory,
    host_limit,
    limit_of,
    mapped_bytes,
    optimizer_bytes,
    process_bytes,
    runtime_bytes,
    training_memory,
)
from pt_app.preflight.estimate.outline import Outline
from pt_app.preflight.estimate.plan import Plan, plan_run, replan
from pt_app.training.preparation import Prepared

PACKS = [2**power for power in range(7, 16)]  # --pack_tokens that are tried: 128 to 32768
CHECKPOINTS = 3  # the last two and the best (training.checkpoints)
# Bytes of log, report, tables and what is kept for W&B, as measured with the demo.
PAGES = 20 * 2**20
ROW = 8192  # bytes of a test row in predictions.jsonl, for both judges and in the tables

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Estimate:
    """What a run needs, and what there is; sizes in bytes.

    Attributes:
        settings: the settings of the run.
        plan: its forward passes.
        cost: their operations.
        nf4: the base is held in 4 bits.
        memory: the peak of the training.
        limit: its limit.
        evaluation: the peak of the evaluation; None without one.
        host: the limit of the evaluation.
        memory_at: returns the peak of the training with other --pack_tokens.
        disk: what the run writes.
        free: what its output folder has room for.
        base_bytes: the weight files of the base, which another machine must fetch.
    """

    settings: Settings
    plan: Plan
    cost: Cost
    nf4: bool
    memory: Memory
    limit: Limit
    evaluation: Memory | None
    host: Limit
    memory_at: Callable[[int], Memory]
    disk: int
    free: int
    base_bytes: int

    @cached_property
    def pack_tokens_that_fit(self) -> int | None:
        """The largest of PACKS that fits; None if none does, or if the limit is unknown."""
        if self.limit.bytes is None:
            return None

        def exceeds(tokens: int) -> bool:
            return not self.limit.fits(self.memory_at(tokens).total)

        fitting = bisect_left(PACKS, True, key=exceeds)
        return PACKS[fitting - 1] if fitting else None

    @property
    def training_fits(self) -> bool:
        """Whether the training stays below its limit."""
        return self.limit.fits(self.memory.total)

    @property
    def evaluation_fits(self) -> bool:
        """Whether the evaluation stays below its limit, or is skipped."""
        return self.evaluation is None or self.host.fits(self.evaluation.total)

    def lines(self) -> list[str]:
        """Return lines about memory and disk."""
        lines = [f"memory: {_of(self.memory, self.limit)}"]
        if self.evaluation is not None:
            lines.append(f"memory of the evaluation, on the CPU: {_of(self.evaluation, self.host)}")
        lines.append(
            f"disk: {self.disk / GIB:.2f} GiB of {self.free / GIB:.1f} GiB free in "
            f"{self.settings.output_dir}"
        )
        return lines

    def what_fits(self) -> str:
        """Return a line about the largest packs that fit, which takes seconds to find out."""
        if self.limit.bytes is None:
            return "whether it fits is unknown: give the GPU's memory with --gpu_memory"
        best, own = self.pack_tokens_that_fit, self.settings.pack_tokens
        if self.training_fits:
            return f"fits; the maximum is --pack_tokens {max(best or 0, own)}"
        return "does not fit" + (f": --pack_tokens {best} would" if best and best < own else "")

    def check(self, training: bool = True) -> None:
        """Check that the run can complete; without `training`, that its evaluation can.

        Raises:
            UserError: if memory or disk do not suffice.
        """
        if training and not self.training_fits:
            raise UserError(
                f"this run needs {_of(self.memory, self.limit, margin=True)}; the largest part is "
                f"{self.memory.largest}: {self._remedy()}"
            )
        if not self.evaluation_fits and self.evaluation is not None:
            raise UserError(
                "the evaluation after training loads the base in float32 on the CPU and needs "
                f"{_of(self.evaluation, self.host, margin=True)}: train with --skip_eval and "
                "evaluate on a larger machine (judge eval), or use a smaller --model"
            )
        if self.disk > self.free:
            raise UserError(
                f"this run writes {self.disk / GIB:.2f} GiB and {self.settings.output_dir} has "
                f"{self.free / GIB:.2f} GiB free: choose another --output_dir, or a lower --lora_r"
            )

    def _remedy(self) -> str:
        best = self.pack_tokens_that_fit
        if best and best < self.settings.pack_tokens:
            return f"--pack_tokens {best} would fit"
        longest = max(pack.longest for pack in self.plan.packs)
        ways = [f"a --max_seq_length below {longest}", "a lower --lora_r"]
        if not self.cost.checkpointed:
            ways.append("--activation_checkpointing full")
        if not self.nf4:
            ways.append("4 bits (judge_train_cuda.py without --no_4bit)")
        return f"no --pack_tokens fits; try {', '.join(ways)}, or a smaller --model"


def _of(memory: Memory, limit: Limit, margin: bool = False) -> str:
    size = f"{memory.total / GIB:.2f} GiB"
    if limit.bytes is not None:
        size += f" of {limit.bytes / GIB:.1f} GiB ({limit.reason}"
        size += f", of which {MARGIN:.0%} is left free)" if margin else ")"
    return f"{size}: {memory}"


def estimate(
    settings: Settings, platform: Platform, prepared: Prepared, gpu_memory: int | None = None
) -> Estimate:
    """Estimate a run before its model is loaded, which takes seconds and little memory.

    Args:
        settings: the settings of the run.
        platform: where it trains.
        prepared: its base and data.
        gpu_memory: bytes of a GPU that is not present.
    """
    process = process_bytes()
    checkpointed = settings.activation_checkpointing == "full"
    outline = Outline(prepared.source, settings, platform, checkpointed=checkpointed)
    trees = outline.why_no_tree is None
    plan = plan_run(settings, platform, prepared, outline.config.vocab_size, trees)
    mapped = mapped_bytes(prepared.source, platform)
    limit = limit_of(platform, gpu_memory)
    runtime = runtime_bytes(platform, limit)

    def memory_at(pack_tokens: int) -> Memory:
        other = replace(settings, pack_tokens=pack_tokens)
        words = outline.config.vocab_size
        replanned = replan(plan, other, platform, prepared, words, trees)
        return training_memory(outline, replanned, runtime, mapped)

    evaluation = None
    if not settings.skip_eval:
        plain = Outline(prepared.source, settings, platform, adapter=False)
        evaluation = evaluation_memory(plain, plan, prepared.source, process)
    return Estimate(
        settings=settings,
        plan=plan,
        cost=Cost.of(outline),
        nf4=platform.weights == "nf4",
        memory=training_memory(outline, plan, runtime, mapped),
        limit=limit,
        evaluation=evaluation,
        host=host_limit(),
        memory_at=memory_at,
        disk=_disk_bytes(settings, prepared, outline, plan),
        free=free_bytes(Path(settings.output_dir)),
        base_bytes=sum(path.stat().st_size for path in weight_files(prepared.source.path)),
    )


def _disk_bytes(settings: Settings, prepared: Prepared, outline: Outline, plan: Plan) -> int:
    """Return the size of checkpoints (adapter, optimizer), adapter, tokenizer and evaluation.

    The base is already on the disk: `prepare` has fetched it.
    """
    adapter = sum(outline.adapters) * FLOAT32
    tokenizer = sum(file.stat().st_size for file in tokenizer_files(prepared.source.path))
    checkpoint = adapter + optimizer_bytes(outline.platform, outline.adapters) + tokenizer
    kept = 0
    if settings.save_steps or plan.validations:
        kept = min(CHECKPOINTS, len(plan.steps))
    return kept * checkpoint + adapter + tokenizer + PAGES + ROW * len(prepared.test)


def before_loading(
    settings: Settings, platform: Platform, prepared: Prepared, *, trained: bool
) -> Estimate:
    """Log what a run needs; of a run that is `trained`, only its evaluation is checked.

    Raises:
        UserError: if the run cannot complete.
    """
    needs = estimate(settings, platform, prepared)
    for line in needs.lines():
        log.info("%s", line)
    if settings.shard_base:
        log.info("memory: as if each process held the whole base, which is sharded here")
    else:
        needs.check(training=not trained)
    return needs
