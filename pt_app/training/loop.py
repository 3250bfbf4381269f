"""The training loop: steps, schedule, validation, checkpoints, exact resume, out-of-memory replay.

A judge and the tiny base are both trained by it. What is trained is handed in: the steps, the loss
of their packs, the optimizers and the schedule. Devices, mixed precision, float16's loss scale and
the files of optimizers and random states are accelerate's.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.checkpointing import load_accelerator_state, save_accelerator_state
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from accelerate.utils.memory import clear_device_cache
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, set_seed

from pt_app.core.errors import UserError
from pt_app.core.files import is_full
from pt_app.models.gemm import give_back_freed_memory, restore_matmul_choice
from pt_app.models.memory import free_memory, is_out_of_memory
from pt_app.models.packing import Batch, Step
from pt_app.training import checkpoints
from pt_app.training.distributed import any_rank, average_gradients, largest, same_start

log = logging.getLogger(__name__)

# What a resumed training may do otherwise than before. Weights, step and data order fit every
# platform and any number of processes.
CHANGES = {
    "optimizer": "the optimizer was %s and is %s here: its state does not fit, and starts empty",
    "max_grad_norm": "gradients were clipped at %g, and are at %g from here on",
    "ranks": "%d processes trained before and %d do now: the random state of dropout is new, and "
    "sums are rounded in another order",
}
# A transformers or PEFT model; neither package is typed.
Model = Any
# Returns the fraction of the full learning rate, from the number of past updates and all steps.
Schedule = Callable[[int, int], float]
MakeOptimizers = Callable[[Model], Sequence[torch.optim.Optimizer]]
# Returns numbers by name; none if there was not enough memory.
Validate = Callable[[Model], Mapping[str, float]]


class Steps(Protocol):
    """The optimizer steps of an epoch; its length is their number."""

    def __len__(self) -> int: ...

    def epoch(self, number: int, done: int) -> Iterator[Step]:
        """Yield the steps of epoch `number` without the first `done`."""


class Objective:
    """What is minimized, and how the packs of a step are computed."""

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """Return the loss summed over a batch, which is on the device of the model."""
        raise NotImplementedError

    def batches(self, model: Model, packs: Sequence[Batch]) -> list[Batch]:
        """Return the batches in which the packs of a step are computed."""
        return list(packs)

    def idle(self) -> Batch:
        """Return a batch whose loss and gradients are 0, for a rank that has nothing to do."""
        raise NotImplementedError

    def shrink(self, packs: Sequence[Batch]) -> str | None:
        """Use smaller batches from here on, and return their limit; None: none are smaller."""
        return None

    def state(self) -> dict[str, object]:
        """Return what a checkpoint should hold."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""


@dataclass(frozen=True)
class LoopArguments:
    """How a training runs. Names and meanings are those of transformers' TrainingArguments.

    Attributes:
        output_dir: the folder of the run, which gets its checkpoints.
        max_steps: the last optimizer step; None: `num_train_epochs` decides.
        first_step: steps that an earlier training of the same model has taken.
        optim: the optimizer; one of another name does not take over the state of a checkpoint.
        save_steps: steps between checkpoints; 0: only the best and the last, if validated.
        eval_steps: steps between validations; 0: never.
        patience: validations without a better one after which the training ends; 0: it does not.
        metric_for_best_model: the number of a validation that decides which weights are the best.
        greater_is_better: whether these have its maximum; else its minimum.
        mixed_precision: "no", "bf16" or "fp16".
        torch_empty_cache_steps: steps between clearings of the device's allocator; None: never.
        sharded: whether the base is sharded over the ranks.
        remedy: what to do about a loss that is not finite, for the message.
        again: what resumes the training, for messages.
    """

    output_dir: Path
    num_train_epochs: float = 1.0
    max_steps: int | None = None
    first_step: int = 0
    optim: str = "adamw_torch"
    max_grad_norm: float = 1.0
    seed: int = 42
    logging_steps: int = 10
    save_steps: int = 0
    eval_steps: int = 0
    patience: int = 0
    metric_for_best_model: str | None = None
    greater_is_better: bool = True
    use_cpu: bool = False
    mixed_precision: str = "no"
    activation_checkpointing: bool = False
    torch_empty_cache_steps: int | None = None
    dataloader_num_workers: int = 0
    dataloader_pin_memory: bool = False
    sharded: bool = False
    remedy: str = (
        "try a lower --lr or more --warmup_steps, and look at the rows with judge data preview"
    )
    again: str = "--resume continues"


@dataclass
class LoopState(TrainerState):  # type: ignore[misc]
    """The progress of a training, with what a resumed run has to know of the one before.

    Attributes:
        updates: steps that float16's loss scale did not skip.
        logged_at: the last logged step.
        loss: sum of the losses since then, as a mean over the ranks.
        optimizer: the name of the optimizer.
        ranks: processes that trained together.
        max_grad_norm: the bound of the gradients.
        fast_matmul: whether a CPU computes float32 matmuls through oneDNN.
        objective: the state of the objective.
        mps_random: the random state of an Apple GPU, of which accelerate keeps none.
    """

    updates: int = 0
    logged_at: int = 0
    loss: float = 0.0
    optimizer: str = ""
    ranks: int = 1
    max_grad_norm: float = 0.0
    fast_matmul: bool | None = None
    objective: dict[str, Any] = field(default_factory=dict)
    mps_random: list[int] = field(default_factory=list)


@dataclass
class TrainingLoop:
    """Trains a model, and leaves checkpoints from which a run resumes bit-exactly.

    Attributes:
        model: its parameters that require gradients are trained.
        args: how it is trained.
        steps: what it is trained on.
        objective: the loss.
        make_optimizers: makes one or several optimizers, each with its full learning rate.
        schedule: the learning rate over the run.
        validate: measures the model; its numbers are logged as `eval_<name>`.
        callbacks: those of transformers; they get `args`, the state, the control and the model.
    """

    model: Model
    args: LoopArguments
    steps: Steps
    objective: Objective
    make_optimizers: MakeOptimizers
    schedule: Schedule
    validate: Validate | None = None
    callbacks: list[TrainerCallback] = field(default_factory=list)

    def __post_init__(self) -> None:
        args = self.args
        set_seed(args.seed)
        # A process may train on a GPU and then on the CPU; accelerate would keep the first choice.
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(
            cpu=args.use_cpu,
            mixed_precision=args.mixed_precision,
            # Losses are divided by the count of the whole step: accelerate must not divide them
            # again, as a variable of `accelerate launch` would have it do.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
        if args.activation_checkpointing:
            options = {"use_reentrant": False}
            self.model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        # Gradients are reduced once per step (distributed.py), so that DDP is not needed.
        self.model = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        same_start(self.model)
        self.optimizers: list[torch.optim.Optimizer] = []
        self.interrupted = False  # whether to stop after this step, with a checkpoint
        self.control = TrainerControl()
        end = args.max_steps
        self.state = LoopState(
            global_step=args.first_step,
            updates=args.first_step,
            logged_at=args.first_step,
            max_steps=math.ceil(args.num_train_epochs * len(self.steps)) if end is None else end,
            is_world_process_zero=self.accelerator.is_main_process,
            optimizer=args.optim,
            max_grad_norm=args.max_grad_norm,
            ranks=self.accelerator.num_processes,
        )
        self._loss = torch.zeros((), device=self.accelerator.device)  # since the last logged step
        self._logged = 0.0  # before that

    def train(self, checkpoint: Path | None = None) -> None:
        """Train to the end, or until a callback stops the training.

        Args:
            checkpoint: a complete checkpoint from which the run resumes.

        Raises:
            UserError: if a loss or a weight is not finite, or a disk is full.
        """
        self.optimizers = list(self.make_optimizers(self.model))
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["initial_lr"] = group["lr"]
        if checkpoint is not None:
            self._resume(checkpoint)
        began, end = time.time(), self.state.max_steps
        first, summed_from = self.state.global_step, self.state.logged_at
        self._notify("on_train_begin")
        while self.state.global_step < end and not self.control.should_training_stop:
            for step in self._rest_of_epoch():
                self._take(step)
                if self.control.should_training_stop:
                    break
        seconds, now = time.time() - began, self.state.global_step
        self.log(
            {
                "train_runtime": round(seconds, 4),
                "train_steps_per_second": round((now - first) / max(seconds, 1e-9), 3),
                "train_loss": (self._logged + self._mean_loss()) / max(now - summed_from, 1),
            }
        )
        self._notify("on_train_end")

    def _rest_of_epoch(self) -> Iterator[Step]:
        epoch, done = divmod(self.state.global_step, len(self.steps))
        # A loader draws a seed for its workers here. The random state of a checkpoint within an
        # epoch is one from after that draw.
        with torch.random.fork_rng(devices=[], enabled=done > 0):
            return self.steps.epoch(epoch, done)

    def _take(self, step: Step) -> None:
        """Take one optimizer step; then log, validate and save as it is due."""
        self.control.should_save = False
        self._notify("on_step_begin")
        self._loss += self.training_step(step)
        norm = self._clip()
        self._update(norm)
        self.model.zero_grad()
        self.state.global_step += 1
        self.state.epoch = self.state.global_step / len(self.steps)
        self._notify("on_step_end")
        self._after_step(norm)

    def _clip(self) -> Tensor:
        """Clip the gradients, without float16's loss scale, and return their norm before that."""
        if scaler := self.accelerator.scaler:
            for optimizer in self.optimizers:
                scaler.unscale_(optimizer)
        limit = self.args.max_grad_norm or math.inf
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)

    def _update(self, norm: Tensor) -> None:
        """Take a step of all optimizers, or of none where float16's gradients have overflowed.

        accelerate's optimizers would each update the loss scale, and the second one divide its
        gradients by it once more.
        """
        self._notify("on_pre_optimizer_step")
        fraction = self.schedule(self.state.updates, self.state.max_steps)
        scaler = self.accelerator.scaler
        overflowed = scaler is not None and not bool(torch.isfinite(norm))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * fraction
            if not overflowed:
                optimizer.step()
        if scaler:
            scaler.update()
        self.state.updates += not overflowed

    def _after_step(self, norm: Tensor) -> None:
        now, args = self.state.global_step, self.args
        last = now >= self.state.max_steps
        self.control.should_training_stop |= last
        if now % args.logging_steps == 0:
            loss = self._mean_loss()
            rate = self.optimizers[0].param_groups[0]["lr"]
            loss_per_step = loss / (now - self.state.logged_at)
            self._logged, self.state.logged_at = self._logged + loss, now
            self._loss.zero_()
            self.log({"loss": loss_per_step, "grad_norm": norm.item(), "learning_rate": rate})
        if self.validate and args.eval_steps and (last or now % args.eval_steps == 0):
            self._validate(self.validate)
        # After the validation, so that a signal that comes within it costs no further step.
        self.interrupted = any_rank(self.interrupted, self.accelerator.device)
        if self.interrupted:
            self.control.should_save = self.control.should_training_stop = True
        regular = args.save_steps and now % args.save_steps == 0
        final = last and (args.save_steps or args.metric_for_best_model)
        if self.control.should_save or regular or final:
            self._save()

    def _mean_loss(self) -> float:
        """Return the sum of the losses since the last logged step, as a mean over the ranks."""
        return float(self.accelerator.gather(self._loss).mean())

    def log(self, numbers: dict[str, float]) -> None:
        """Add numbers of the present step to the history, and hand them to the callbacks."""
        # JSON has no infinity, which the norm is where float16's loss scale skips a step.
        numbers = {name: value for name, value in numbers.items() if math.isfinite(value)}
        numbers |= {"epoch": self.state.epoch}
        self.state.log_history.append({**numbers, "step": self.state.global_step})
        self._notify("on_log", logs=numbers)

    def _notify(self, event: str, **more: object) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self.args, self.state, self.control, model=self.model, **more)

    # The gradients of a step

    def training_step(self, step: Step) -> Tensor:
        """Run forward and backward of all packs of a step, and return the loss of the step.

        If memory runs out, the step is repeated in smaller batches of the same examples, so that
        its gradients are the same (without dropout). Ranks may have different numbers of packs, and
        only the rank that ran out repeats them: gradients are reduced when all are done.

        Raises:
            UserError: if a loss is not finite.
        """
        count = self.accelerator.gather(step["count"].to(self.accelerator.device)).sum()
        loss = self._try_step(step["packs"], count)
        while any_rank(loss is None, self.accelerator.device):
            if loss is None:
                loss = self._try_step(step["packs"], count)
        assert loss is not None
        average_gradients(self.model.parameters())
        return loss

    def _try_step(self, packs: Sequence[Batch], count: Tensor) -> Tensor | None:
        """Return the loss of the packs, with gradients in the model; None: try again."""
        try:
            return self._accumulate(self.objective.batches(self.model, packs), count)
        except (RuntimeError, MemoryError) as error:
            # The other ranks of a sharded base wait within a layer, and could not repeat the step.
            out_of_memory = is_out_of_memory(error) and not self.args.sharded
            limit = self.objective.shrink(packs) if out_of_memory else None
            if limit is None:
                raise
            reason = (str(error).splitlines() or ["MemoryError"])[0]
        # After the handler: the frames of the error hold the tensors of the failed pack until then.
        self.model.zero_grad()
        free_memory()
        message = "step %d ran out of memory (%s): repeated in packs of at most %s, the same step"
        log.warning(message, self.state.global_step + 1, reason[:160], limit)
        return None

    def _accumulate(self, batches: list[Batch], count: Tensor) -> Tensor:
        device, every = self.accelerator.device, self.args.torch_empty_cache_steps
        total = torch.zeros((), device=device)
        # A rank without rows still runs a pass: the scaler of float16 must see one before its step.
        idle = 0 if batches else 1
        if self.args.sharded:  # each rank gathers layers as often as the others
            idle = largest(len(batches) or 1, device) - len(batches)
        self.model.train()
        for batch in [*batches, *(self.objective.idle() for _ in range(idle))]:
            loss = self.compute_loss({n: t.to(device) for n, t in batch.items()}, count)
            if every and self.state.global_step % every == 0:
                clear_device_cache()
                if torch.backends.mps.is_available() and hasattr(torch.mps, "clear_graph_cache"):
                    torch.mps.clear_graph_cache()
            self.accelerator.backward(loss)
            # This waits for the device once per pack: negligible next to its forward pass.
            if not math.isfinite(value := loss.item()):
                raise UserError(self._diverged(f"the loss is {value}"))
            total += loss.detach()
        return total

    def compute_loss(self, batch: Batch, count: Tensor) -> Tensor:
        """Return the loss of a batch divided by `count`, that of the step over all ranks."""
        # The gradients are averaged over the ranks, and the divisor counts all of them.
        loss = self.objective.loss(self.model, batch)
        return loss * int(self.accelerator.num_processes) / count

    # Validation

    def _validate(self, validate: Validate) -> None:
        """Log the numbers of a validation, and save a checkpoint if they are the best so far."""
        give_back_freed_memory()  # a validation's logits do not fit where a pack's tensors were
        measured = {f"eval_{name}": value for name, value in validate(self.model).items()}
        # No validation is better than NaN: it would be the best one for good.
        numbers = {name: value for name, value in measured.items() if math.isfinite(value)}
        if undefined := ", ".join(sorted(measured.keys() - numbers.keys())):
            message = "step %d: %s undefined on the validation rows, and not compared"
            log.warning(message, self.state.global_step, undefined)
        if not numbers:  # memory ran out, or nothing is defined
            return
        self.log(numbers)
        value, best = numbers.get(self.args.metric_for_best_model or ""), self.state.best_metric
        sign = 1 if self.args.greater_is_better else -1
        if value is not None and (best is None or sign * value > sign * best):
            self.state.best_metric, self.state.best_global_step = value, self.state.global_step
            self.control.should_save = True
        elif self.args.patience and self._validations_since_best() >= self.args.patience:
            log.info("no better validation in %d: training ends here", self.args.patience)
            self.control.should_training_stop = True

    def _validations_since_best(self) -> int:
        metric, best = self.args.metric_for_best_model, self.state.best_global_step or 0
        return sum(metric in each and each["step"] > best for each in self.state.log_history)

    def load_best(self) -> None:
        """Restore the weights of the best validation; without a validation the last ones stay."""
        best, metric = self.state.best_global_step, self.args.metric_for_best_model
        if not best or best == self.state.global_step:
            return
        folder = self.args.output_dir / f"checkpoint-{best}"
        if wrong := checkpoints.fault(folder):
            message = "the best weights, of step %d, are lost: %s; the last ones are kept"
            log.warning(message, best, wrong)
            return
        self._load_weights(folder)
        log.info("weights of step %d: %s %.4g, the best", best, metric, self.state.best_metric)

    # Checkpoints

    def _trained(self) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}

    def _load_weights(self, folder: Path) -> None:
        saved = load_file(folder / checkpoints.WEIGHTS)
        for name, weight in self._trained().items():
            weight.copy_(saved[name])

    def _save(self) -> None:
        for name, weight in self._trained().items():
            if not torch.isfinite(weight).all():
                raise UserError(self._diverged(f"{name} holds values that are not finite"))
        run, checkpoint = self.args.output_dir, f"the checkpoint of step {self.state.global_step}"
        try:
            self._write_checkpoint()
        except Exception as error:
            remedy = f"make room; {self.args.again}"
            lost = f"{checkpoint} has no room; {self._kept()}: {remedy}"
            with checkpoints.full_disk_explained(run, lost):
                # Ranks wait for each other while they write, so that one alone cannot start again.
                if self.accelerator.num_processes > 1 or not is_full(error):
                    raise
                shutil.rmtree(checkpoints.staging_folder(run), ignore_errors=True)
                checkpoints.release(run)
                self._write_checkpoint()
            written = f"{checkpoint} is written, in the last room there was"
            raise UserError(f"the disk of {run} is full: {written}: {remedy}") from error

    def _write_checkpoint(self) -> None:
        run, accelerator = self.args.output_dir, self.accelerator
        staged = checkpoints.staging_folder(run) / f"checkpoint-{self.state.global_step}"
        staged.mkdir(parents=True, exist_ok=True)
        rank, scaler = accelerator.process_index, accelerator.scaler
        save_accelerator_state(str(staged), [], self.optimizers, [], [], rank, 0, scaler)
        self.state.loss, self.state.objective = self._mean_loss(), self.objective.state()
        if self.args.use_cpu:
            self.state.fast_matmul = torch.get_float32_matmul_precision() != "highest"
        if accelerator.device.type == "mps":
            self.state.mps_random = torch.mps.get_rng_state().tolist()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            weights = {name: weight.contiguous() for name, weight in self._trained().items()}
            save_file(weights, staged / checkpoints.WEIGHTS)
            self.state.save_to_json(str(staged / checkpoints.STATE))
            checkpoints.publish(staged, run)
            checkpoints.rotate(run, self.state.best_global_step)
        accelerator.wait_for_everyone()

    def _resume(self, checkpoint: Path) -> None:
        """Load a checkpoint, and log what is not bit-exact on this platform."""
        now, before = self.state, LoopState(**checkpoints.read_state(checkpoint))
        present = ("max_steps", "is_world_process_zero", "optimizer", "max_grad_norm", "ranks")
        self.state = replace(before, **{name: getattr(now, name) for name in present})
        self._load_weights(checkpoint)
        self._loss.fill_(before.loss)
        self.objective.load_state(before.objective)
        if self.args.use_cpu and before.fast_matmul is not None:
            restore_matmul_choice(before.fast_matmul)
        if self.accelerator.device.type == "mps" and before.mps_random:
            torch.mps.set_rng_state(torch.tensor(before.mps_random, dtype=torch.uint8))
        for name, message in CHANGES.items():
            if (then := getattr(before, name)) != (here := getattr(now, name)):
                log.warning(message, then, here)
        optimizers = self.optimizers if before.optimizer == now.optimizer else []
        # A platform without float16 has no loss scale, and its checkpoints have no file of one.
        scaler = self.accelerator.scaler if (checkpoint / "scaler.pt").exists() else None
        rank = self.accelerator.process_index
        load_accelerator_state(str(checkpoint), [], optimizers, [], [], rank, scaler)

    def _diverged(self, what: str) -> str:
        return f"{what} in step {self.state.global_step + 1}; {self._kept()}: {self.args.remedy}"

    def _kept(self) -> str:
        newest, _ = checkpoints.newest_complete(self.args.output_dir)
        return f"the last good checkpoint is {newest}" if newest else "no checkpoint was made yet"
