"""The training step: the loss of the answers, divided by the supervised tokens of the step."""

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
import transformers
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils.memory import clear_device_cache
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from pt_app.core.errors import UserError
from pt_app.core.files import is_full, write_json_atomic
from pt_app.models.gemm import give_back_freed_memory, restore_matmul_choice
from pt_app.models.out_of_memory import is_out_of_memory
from pt_app.models.packing import IGNORED, Batch
from pt_app.models.tree_attention import last_mlp_only_at, tree_inputs
from pt_app.training import checkpoints, room
from pt_app.training.distributed import any_rank, average_gradients, largest, same_start
from pt_app.training.layout import Layout
from pt_app.training.ordering import StepLoader, StepSampler, own_process_group

log = logging.getLogger(__name__)


def summed_loss(model: Any, inputs: Batch) -> torch.Tensor:
    """Return the cross-entropy summed over the supervised tokens of a pack or a plain micro-batch.

    Logits are computed at the positions `keep` only. Elsewhere they would cost up to a fifth of the
    time of a small model and most of its memory. The stock loss refuses labels together with an
    index tensor in `logits_to_keep`, hence the cross-entropy here.

    Args:
        model: the model with its adapter.
        inputs: a pack (`input_ids` [1, t], `position_ids`, `last`) or a plain micro-batch
            (`input_ids` [b, t], `attention_mask`), with `keep` [k] and `targets`.
    """
    if "last" in inputs:
        layout = tree_inputs(model, inputs["input_ids"], inputs["position_ids"], inputs["last"])
    else:
        layout = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with last_mlp_only_at(model, torch.unique(inputs["keep"])):
        logits = model(**layout, logits_to_keep=inputs["keep"], use_cache=False).logits
    return F.cross_entropy(
        logits.float().flatten(0, 1),
        inputs["targets"].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )


class JudgeTrainer(transformers.Trainer):  # type: ignore[misc]
    """transformers' Trainer with the loss of a judge, and checkpoints known to be complete.

    A batch of its loader is the whole step of a rank, from `StepCollator`. Packs are only a layout:
    the loss of each is divided by the supervised tokens of the step over all ranks.

    Args:
        layout: how packs are computed.
        validate: returns the numbers of a validation, among them `args.metric_for_best_model`
            (larger is better).
        order: yields the rows of an epoch; default: a seeded shuffle.
        weights: the format in which the base is held.
        sharded: whether the base is sharded over the ranks.
    """

    def __init__(
        self,
        *args: Any,
        layout: Layout,
        validate: Callable[[Any, Layout], dict[str, float]] | None = None,
        order: torch.utils.data.Sampler[int] | None = None,
        weights: str = "float32",
        sharded: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        # Trainer then counts the supervised tokens of a step and passes them to `compute_loss`.
        self.model_accepts_loss_kwargs = True
        self.layout = layout
        self.validate = validate
        self.order = order
        self.weights = weights
        self.sharded = sharded
        # Gradients are reduced once per step (distributed.py): DDP has nothing to do.
        self.accelerator.prepare_model = partial(
            self.accelerator.prepare_model, evaluation_mode=True
        )
        self._writing: Path | None = None
        self._loss_before: tuple[int, float] | None = None
        same_start(self.model)
        self.shapes_seen: set[tuple[int, ...]] = set()
        self._unchecked = layout.trees and not sharded

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the cross-entropy of a pack divided by `num_items_in_batch`, those of the step."""
        self.shapes_seen.add((*inputs["input_ids"].shape, len(inputs["keep"])))
        total = summed_loss(model, inputs)
        if self.args.average_tokens_across_devices:
            # The divisor counts all ranks, and the gradients are then averaged over them.
            total = total * self.accelerator.num_processes
        loss = total / num_items_in_batch
        return (loss, {"loss": loss}) if return_outputs else loss

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Run forward and backward of all packs of a step, and return the loss of the step.

        If memory runs out, the step is repeated in smaller packs of the same examples, so that its
        gradients are the same (without dropout). Ranks may have different numbers of packs, and
        only the rank that ran out repeats them: gradients are reduced when all are done.

        Raises:
            UserError: if a loss is not finite.
        """
        if self._loss_before is not None:  # Trainer restarts the logged mean of a resumed run
            self._globalstep_last_logged, logged = self._loss_before
            self._tr_loss.add_(logged)
            self._loss_before = None
        loss: torch.Tensor | None = None
        while True:
            if loss is None:
                loss = self._try_step(model, inputs["packs"], num_items_in_batch)
            if not any_rank(loss is None, self.args.device):
                break
        assert loss is not None
        average_gradients(model.parameters())
        return loss

    def _try_step(self, model: Any, packs: Sequence[Batch], count: Any) -> torch.Tensor | None:
        """Return the summed loss of the packs, with gradients in the model; None: try again."""
        packs = self.layout.fitting(packs)
        try:
            if self._unchecked and packs:
                self._check_trees(packs)
            trees = self.layout.trees
            batches = packs if trees else [b for p in packs for b in self.layout.plain(p)]
            return self._accumulate(model, batches, count)
        except (RuntimeError, MemoryError) as error:
            smaller = self.layout.smaller(packs) if is_out_of_memory(error) else None
            if smaller is None or self.sharded:  # the other ranks wait within a layer
                raise
            said = (str(error).splitlines() or ["MemoryError"])[0]
        # After the handler: the frames of the error hold the tensors of the failed pack until then.
        model.zero_grad()
        clear_device_cache(garbage_collection=True)
        give_back_freed_memory()
        log.warning(
            "step %d ran out of memory (%s): repeated in packs of at most %s, the same step",
            self.state.global_step + 1,
            said[:160],
            f"{smaller.budget} tokens" if smaller.trees else f"{smaller.rows} rows",
        )
        self.layout = smaller
        return None

    def _accumulate(self, model: Any, batches: Sequence[Batch], count: Any) -> torch.Tensor:
        total = torch.zeros((), device=self.args.device)
        # A rank without rows still runs a pass: the scaler of float16 must see one before its step.
        batches = list(batches) or [self.layout.idle()]
        if self.sharded:  # each rank gathers layers as often as the others
            idle = largest(len(batches), self.args.device) - len(batches)
            batches += [self.layout.idle()] * idle
        for batch in batches:
            loss = super().training_step(model, self._prepare_inputs(batch), count)
            # This waits for the device once per pack: negligible next to its forward pass.
            if not math.isfinite(loss.item()):
                raise UserError(self._diverged(f"the loss is {loss.item()}"))
            total += loss
        return total

    def _check_trees(self, packs: Sequence[Batch]) -> None:
        """Compare the loss of the smallest pack of the first step with that of its plain rows."""
        smallest = min(packs, key=lambda packed: packed["input_ids"].numel())
        smallest = self._prepare_inputs(smallest)
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            tree = float(summed_loss(model, smallest))
            plain = sum(float(summed_loss(model, batch)) for batch in self.layout.plain(smallest))
        self._unchecked = False
        difference = abs(tree - plain) / max(abs(plain), 1.0)
        if difference <= self.layout.tolerance:
            log.info(
                "packs: checked against plain rows, relative difference of the loss %.1e",
                difference,
            )
            return
        log.warning(
            "packs: the loss of a pack is %.6g and of its rows one by one %.6g, more than %.0e "
            "apart: this model is trained on plain rows",
            tree,
            plain,
            self.layout.tolerance,
        )
        self.layout = replace(self.layout, trees=False)

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Log the numbers of `validate`, and save a checkpoint if they are the best so far."""
        assert self.validate is not None
        give_back_freed_memory()  # a validation's logits do not fit where a pack's tensors were
        numbers = self.validate(self.accelerator.unwrap_model(self.model), self.layout)
        if not numbers:  # memory ran out
            return {}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in numbers.items()}
        self.log(metrics)
        control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        best = self.state.best_metric
        if best is None or metrics[self.args.metric_for_best_model] > best:
            control.should_save = True
        self.control: transformers.TrainerControl = control
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Return whether these numbers are the best; a skipped validation has none."""
        return bool(metrics) and bool(super()._determine_best_metric(metrics, trial))

    def load_best(self) -> None:
        """Restore the weights of the best validation; without a validation the last ones stay."""
        best, metric = self.state.best_global_step, self.args.metric_for_best_model
        if not best or best == self.state.global_step:
            return
        folder = Path(self.args.output_dir) / f"checkpoint-{best}"
        if wrong := checkpoints.fault(folder):
            log.warning(
                "the best weights, of step %d, are lost: %s; the last ones are kept", best, wrong
            )
            return
        model = self.accelerator.unwrap_model(self.model)
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
        log.info("weights of step %d: %s %.4g, the best", best, metric, self.state.best_metric)

    def get_train_dataloader(self) -> StepLoader:
        """Return the steps of this rank; accelerate does not shard them (see StepSampler)."""
        args = self.args
        order = self.order or SeedableRandomSampler(self.train_dataset, data_seed=args.seed)
        size = self._train_batch_size * args.world_size
        return StepLoader(
            self.train_dataset,
            batch_sampler=StepSampler(order, size, args.process_index, args.world_size),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            worker_init_fn=own_process_group,
        )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: Trainer would count the tokens of padded batches, and nothing reads it."""
        return 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise UserError(self._diverged(f"{name} holds values that are not finite"))
        run, step = Path(self.args.output_dir), self.state.global_step
        try:
            self._write_checkpoint(run, model, trial)
        except Exception as error:
            # Ranks wait for each other while they write, so that one alone cannot start again.
            if not is_full(error) or self.args.world_size > 1:
                raise
            shutil.rmtree(checkpoints.aside(run), ignore_errors=True)
            room.release(run)
            with room.explained(run, f"the checkpoint of step {step} has no room; {self._kept()}"):
                self._write_checkpoint(run, model, trial)
            raise UserError(
                f"the disk of {run} is full: the checkpoint of step {step} is written, in the room "
                "that was reserved for it: make room, then run the same command with --resume"
            ) from error

    def _write_checkpoint(self, run: Path, model: Any, trial: Any) -> None:
        self._writing = checkpoints.aside(run)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writing = None
        own = self._own_state(float(self.accelerator.gather(self._tr_loss).mean()))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            written = checkpoints.aside(run) / f"checkpoint-{self.state.global_step}"
            # Trainer records the staging folder, which a resumed run would not find.
            self.state.best_model_checkpoint = None
            self.state.save_to_json(str(written / "trainer_state.json"))
            write_json_atomic(written / checkpoints.STATE, own)
            checkpoints.publish(written, run)
            checkpoints.rotate(run, self.state.best_global_step)
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writing or super()._get_output_dir(trial))

    def _own_state(self, loss: float) -> dict[str, Any]:
        """Return the state that Trainer does not save.

        Args:
            loss: the sum of the losses since the last logged step.
        """
        on_cpu = self.args.use_cpu
        return {
            "optimizer": self.args.optim.value,
            "weights": self.weights,
            "ranks": self.args.world_size,
            "max_grad_norm": self.args.max_grad_norm,
            "fast_matmul": torch.get_float32_matmul_precision() != "highest" if on_cpu else None,
            "loss_since": [self._globalstep_last_logged, loss],
            "pack_tokens": self.layout.budget,
            "rows": self.layout.rows,
            "trees": self.layout.trees,
        }

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both; an optimizer of another kind starts with an empty state, and says so."""
        if checkpoint is None:
            return
        before = checkpoints.read_state(Path(checkpoint))
        if before["weights"] == self.weights:
            trees = self.layout.trees and before["trees"]
            budget = before["pack_tokens"] and min(before["pack_tokens"], self.data_collator.budget)
            rows = min(before["rows"], self.layout.rows)
            self.layout = replace(self.layout, trees=trees, budget=budget, rows=rows)
        self._loss_before = before["loss_since"]
        if self.args.use_cpu and before["fast_matmul"] is not None:
            restore_matmul_choice(before["fast_matmul"])
        if before["max_grad_norm"] != self.args.max_grad_norm:
            then, now = before["max_grad_norm"], self.args.max_grad_norm
            log.warning("gradients were clipped at %g, and are at %g from here on", then, now)
        now = self.args.optim.value
        if before["optimizer"] == now:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        log.warning(
            "the optimizer was %s and is %s here: its state does not fit, and starts empty",
            before["optimizer"],
            now,
        )
        schedule = torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True)
        self.lr_scheduler.load_state_dict(schedule)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Load the loss scale of float16, if this platform uses one."""
        if self.accelerator.scaler is not None:
            super()._load_scaler(checkpoint)

    def _diverged(self, what: str) -> str:
        step = self.state.global_step + 1
        return (
            f"{what} in step {step}; {self._kept()}: try a lower --lr or more --warmup_steps, and "
            "look at the rows with judge data preview"
        )

    def _kept(self) -> str:
        newest, _ = checkpoints.newest_complete(Path(self.args.output_dir))
        return f"the last good checkpoint is {newest}" if newest else "no checkpoint was made yet"
