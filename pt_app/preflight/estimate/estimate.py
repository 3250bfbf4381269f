"""Estimate what a run costs, for `judge estimate` and for the run itself."""

import logging
from bisect import bisect_left
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from pt_app.core.errors import UserError
from pt_app.core.settings import SAMPLE, Settings
from pt_app.models.bases import tokenizer_files, weight_files
from pt_app.models.platforms import Platform
from pt_app.preflight.doctor.needs import free_bytes
from pt_app.preflight.estimate import memory
from pt_app.preflight.estimate.memory import FLOAT32, GIB, MARGIN, Limit, Memory
from pt_app.preflight.estimate.outline import Cost, Outline
from pt_app.preflight.estimate.plan import Plan, plan_run
from pt_app.scoring.branches import may_cut
from pt_app.training.preparation import Prepared

PACKS = [2**power for power in range(7, 16)]  # --pack_tokens that are tried: 128 to 32768
CHECKPOINTS = 3  # the last two and the best (training.checkpoints)
# Bytes of log, report, tables and what is kept for W&B, as measured with the demo.
PAGES = 20 * 2**20
ROW = 8192  # bytes of a test row in predictions.jsonl, for both judges and in the tables

log = logging.getLogger(__name__)


class Estimate:
    """What a run needs, and what there is; made before its model is loaded, in some seconds.

    Args:
        settings: the settings of the run.
        platform: where it trains.
        prepared: its base and data.
        gpu: bytes of a GPU that is not present.

    Attributes:
        plan: the forward passes of the run.
        cost: their operations.
        memory: the peak of the training, in bytes.
        limit: its limit.
        evaluation: the peak of the evaluation, in bytes; None without one.
        host: the limit of the evaluation.
        disk: bytes that the run writes.
        free: bytes that its output folder has room for.
        base_bytes: the weight files of the base, which another machine must fetch.
    """

    def __init__(
        self, settings: Settings, platform: Platform, prepared: Prepared, gpu: int | None = None
    ) -> None:
        self.settings, self.platform, self.prepared = settings, platform, prepared
        process, source = memory.process_bytes(), prepared.source
        self._outline = Outline(source, settings, platform)
        self.limit, self.host = memory.limit_of(platform, gpu), memory.host_limit()
        self._runtime = memory.runtime_bytes(platform, self.limit)
        self.plan = self._planned(settings)
        self.cost = Cost.of(self._outline, settings.activation_checkpointing == "full")
        self.memory = memory.training_memory(self._outline, self.plan, source, self._runtime)
        self.evaluation: Memory | None = None
        if not settings.skip_eval:
            plain = replace(platform, device="cpu", weights="float32", compute_dtype=torch.float32)
            outline = Outline(source, settings, plain)
            self.evaluation = memory.evaluation_memory(outline, self.plan, source, process)
        self.disk = _disk_bytes(settings, prepared, self._outline, self.plan)
        self.free = free_bytes(Path(settings.output_dir))
        self.base_bytes = sum(path.stat().st_size for path in weight_files(source.path))

    @property
    def vocabulary(self) -> int:
        """The number of logits per position."""
        return int(self._outline.config.vocab_size)

    def _planned(self, settings: Settings) -> Plan:
        trees = self._outline.why_no_tree is None
        return plan_run(settings, self.platform, self.prepared, self.vocabulary, trees)

    def memory_at(self, pack_tokens: int) -> Memory:
        """Return the peak of the training with another --pack_tokens."""
        other = replace(self.settings, pack_tokens=pack_tokens, epochs=1, skip_eval=True)
        plan = self._planned(other)
        return memory.training_memory(self._outline, plan, self.prepared.source, self._runtime)

    @cached_property
    def pack_tokens_that_fit(self) -> int | None:
        """The largest of PACKS that fits; None if none does, or if the limit is unknown."""
        limit = self.limit
        if limit.bytes is None:
            return None
        fitting = bisect_left(PACKS, True, key=lambda n: not limit.fits(self.memory_at(n).total))
        return PACKS[fitting - 1] if fitting else None

    @property
    def training_fits(self) -> bool:
        """Whether the training stays below its limit."""
        return self.limit.fits(self.memory.total)

    @property
    def evaluation_fits(self) -> bool:
        """Whether the evaluation stays below its limit, or is skipped."""
        return self.evaluation is None or self.host.fits(self.evaluation.total)

    @property
    def _may_read_less(self) -> bool:
        """Whether the evaluation may read less than whole lines, as only the trained model tells.

        Its peak memory stays the same: whole lines are read on a sample before.
        """
        reading, asked = self.settings.reading, self.prepared.encoder.asked
        can_be_compared = self._outline.why_no_tree is None and len(self.prepared.test) >= SAMPLE
        return can_be_compared and may_cut(reading, asked)

    def lines(self) -> list[str]:
        """Return lines about memory and disk."""
        lines = [f"memory: {_described(self.memory, self.limit)}"]
        if self.evaluation is not None:
            evaluation = _described(self.evaluation, self.host)
            lines.append(f"memory of the evaluation, on the CPU: {evaluation}")
            if self._may_read_less:
                lines.append(
                    "evaluation: as if whole lines of verdicts were read; with --reading "
                    f"{self.settings.reading} it takes less time where they can be cut"
                )
        room = f"{self.free / GIB:.1f} GiB free in {self.settings.output_dir}"
        return [*lines, f"disk: {self.disk / GIB:.2f} GiB of {room}"]

    def what_fits(self) -> str:
        """Return a line about the largest packs that fit, which takes seconds to find out."""
        if self.limit.bytes is None:
            return "whether it fits is unknown: give the GPU's memory with --gpu_memory"
        if not self.training_fits:
            return f"does not fit: {self._remedy()}"
        largest = max(self.pack_tokens_that_fit or 0, self.settings.pack_tokens)
        return f"fits; the maximum is --pack_tokens {largest}"

    def check(self, training: bool = True) -> None:
        """Check that the run can complete; without `training`, that its evaluation can.

        Raises:
            UserError: if memory or disk do not suffice.
        """
        if training and not self.training_fits:
            largest, _ = self.memory.by_size[0]
            raise UserError(
                f"this run needs {_described(self.memory, self.limit)}; the largest part is "
                f"{largest}: {self._remedy()}"
            )
        if not self.evaluation_fits and self.evaluation is not None:
            raise UserError(
                "the evaluation after training loads the base in float32 on the CPU and needs "
                f"{_described(self.evaluation, self.host)}: train with --skip_eval and evaluate on "
                "a larger machine (judge eval), or use a smaller --model"
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
        return (
            "no --pack_tokens fits; try what this run does not have yet: a --max_seq_length below "
            f"{longest}, a lower --lora_r, --activation_checkpointing full, 4 bits "
            "(judge_train_cuda.py without --no_4bit), a smaller --model"
        )


def _described(memory: Memory, limit: Limit) -> str:
    size = f"{memory.total / GIB:.2f} GiB"
    if limit.bytes is not None:
        kept = f"{limit.reason}, of which {MARGIN:.0%} is left free"
        size += f" of {limit.bytes / GIB:.1f} GiB ({kept})"
    return f"{size}: {memory}"


def _disk_bytes(settings: Settings, prepared: Prepared, outline: Outline, plan: Plan) -> int:
    """Return the size of checkpoints (weights, optimizer), adapter, tokenizer and evaluation.

    The base is already on the disk: `prepare` has fetched it.
    """
    adapter = sum(outline.adapters) * FLOAT32
    tokenizer = sum(file.stat().st_size for file in tokenizer_files(prepared.source.path))
    checkpoint = adapter + memory.optimizer_bytes(outline.platform, outline.adapters)
    saves = settings.save_steps or plan.validations
    kept = min(CHECKPOINTS, len(plan.steps)) if saves else 0
    return kept * checkpoint + adapter + tokenizer + PAGES + ROW * len(prepared.test)


def before_loading(
    settings: Settings, platform: Platform, prepared: Prepared, *, trained: bool
) -> Estimate:
    """Log what a run needs; of a run that is `trained`, only its evaluation is checked.

    Raises:
        UserError: if the run cannot complete.
    """
    needs = Estimate(settings, platform, prepared)
    for line in needs.lines():
        log.info("%s", line)
    if settings.shard_base:
        log.info("memory: as if each process held the whole base, which is sharded here")
    else:
        needs.check(training=not trained)
    return needs
