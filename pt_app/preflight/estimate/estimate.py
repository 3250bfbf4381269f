"""What a run will cost, put together: for `judge estimate`, and for the run itself."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pt_app.core.errors import UserError
from pt_app.core.settings import Recipe, Settings
from pt_app.models.base_files import weight_files
from pt_app.models.platforms import Platform
from pt_app.preflight.estimate.disk import disk_bytes, free_bytes
from pt_app.preflight.estimate.flops import Cost
from pt_app.preflight.estimate.memory import (
    GIB,
    MARGIN,
    Limit,
    Memory,
    evaluation_memory,
    host_limit,
    limit_of,
    mapped_bytes,
    process_bytes,
    runtime_bytes,
    training_memory,
)
from pt_app.preflight.estimate.outline import Outline
from pt_app.preflight.estimate.plan import Plan, plan_run, replan
from pt_app.training.preparation import Prepared

PACKS = [2**power for power in range(7, 16)]  # --pack_tokens that are tried: 128 to 32768


@dataclass(frozen=True)
class Estimate:
    """What a run needs, and what there is. Sizes in bytes."""

    plan: Plan
    cost: Cost
    memory: Memory
    limit: Limit
    evaluation: Memory | None
    host: Limit
    pack_fits: Callable[[int], bool]
    disk: int
    free: int
    output_dir: str
    longest: int
    nf4: bool
    pack_tokens: int
    base_bytes: int
    """The base's weight files, which a machine must fetch that has not got them."""

    @cached_property
    def pack_tokens_that_fit(self) -> int | None:
        """The largest of PACKS that fits; None where none does, or the limit is not known."""
        if self.limit.bytes is None:
            return None
        low, high = 0, len(PACKS)  # all below `low` fit, none from `high` on
        while low < high:
            middle = (low + high) // 2
            if self.pack_fits(PACKS[middle]):
                low = middle + 1
            else:
                high = middle
        return PACKS[low - 1] if low else None

    @property
    def fits(self) -> bool:
        """Whether training and evaluation stay under their limits."""
        return self.training_fits and self.evaluation_fits

    @property
    def training_fits(self) -> bool:
        """Whether the training does."""
        return self.limit.fits(self.memory.total)

    @property
    def evaluation_fits(self) -> bool:
        """Whether the evaluation does."""
        return self.evaluation is None or self.host.fits(self.evaluation.total)

    def lines(self) -> list[str]:
        """For people: memory and disk."""
        lines = [f"memory: {_of(self.memory, self.limit)}"]
        if self.evaluation is not None:
            lines.append(f"memory of the evaluation, on the CPU: {_of(self.evaluation, self.host)}")
        lines.append(
            f"disk: {self.disk / GIB:.2f} GiB of {self.free / GIB:.1f} GiB free in "
            f"{self.output_dir}"
        )
        return lines

    def what_fits(self) -> str:
        """For people: the largest batch, which is the largest pack; costs some seconds."""
        if self.limit.bytes is None:
            return "whether it fits is not known: say the GPU's size with --gpu_memory"
        best = self.pack_tokens_that_fit
        if self.training_fits:
            return f"fits; up to --pack_tokens {max(best or 0, self.pack_tokens)} would"
        smaller = best is not None and best < self.pack_tokens
        return "does not fit" + (f": --pack_tokens {best} would" if smaller else "")

    def check(self, training: bool = True) -> None:
        """Raise UserError where the run cannot end well; without `training` it is trained."""
        if training and not self.training_fits:
            raise UserError(
                f"this run needs {_of(self.memory, self.limit, margin=True)}; the largest part is "
                f"{self.memory.largest}: {self._remedy()}"
            )
        if not self.evaluation_fits and self.evaluation is not None:
            raise UserError(
                "the evaluation after training loads the base in float32 on the CPU and needs "
                f"{_of(self.evaluation, self.host, margin=True)}: train with --skip_eval and "
                "evaluate on a larger machine (judge eval), or take a smaller --model"
            )
        if self.disk > self.free:
            raise UserError(
                f"this run writes {self.disk / GIB:.2f} GiB and {self.output_dir} has "
                f"{self.free / GIB:.2f} GiB free: choose another --output_dir, or a lower --lora_r"
            )

    def _remedy(self) -> str:
        best = self.pack_tokens_that_fit
        if best and best < self.pack_tokens:
            return f"--pack_tokens {best} would fit"
        ways = [f"a --max_seq_length below {self.longest}", "a lower --lora_r"]
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
    recipe: Recipe,
    settings: Settings,
    platform: Platform,
    prepared: Prepared,
    gpu_memory: int | None = None,
) -> Estimate:
    """Estimate a run before its model is loaded; costs a few seconds and little memory."""
    host = process_bytes()
    checkpointed = settings.activation_checkpointing == "full"
    outline = Outline(prepared.source, settings, platform, checkpointed=checkpointed)
    vocabulary, trees = outline.config.vocab_size, outline.why_no_tree is None
    plan = plan_run(settings, platform, prepared, vocabulary, trees)
    mapped = mapped_bytes(prepared.source, platform)
    limit = limit_of(platform, gpu_memory)
    held = runtime_bytes(platform, limit)
    memory = training_memory(outline, plan, held, mapped)

    def fits(pack_tokens: int) -> bool:
        own = replace(settings, pack_tokens=pack_tokens)
        there = replan(plan, own, platform, prepared, trees)
        return limit.fits(training_memory(outline, there, held, mapped).total)

    evaluation = None
    if not settings.skip_eval:
        plain = Outline(prepared.source, settings, platform, adapter=False)
        evaluation = evaluation_memory(plain, plan, prepared.source, host)
    return Estimate(
        plan=plan,
        cost=Cost.of(outline),
        memory=memory,
        limit=limit,
        evaluation=evaluation,
        host=host_limit(),
        pack_fits=fits,
        disk=disk_bytes(settings, prepared, outline, plan),
        free=free_bytes(Path(settings.output_dir)),
        output_dir=settings.output_dir,
        longest=max(pack.longest for pack in plan.packs),
        nf4=platform.weights == "nf4",
        pack_tokens=settings.pack_tokens,
        base_bytes=sum(path.stat().st_size for path in weight_files(prepared.source.path)),
    )
