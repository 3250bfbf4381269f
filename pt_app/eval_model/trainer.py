"""The training step: loss on the answer, divided by the supervised tokens of the step."""

import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
import transformers
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from pt_app.errors import UserError
from pt_app.eval_model import checkpoints
from pt_app.eval_model.packing import IGNORED, Batch, Shapes, unpacked
from pt_app.eval_model.tree_attention import last_mlp_only_at, tree_inputs

log = logging.getLogger(__name__)


def summed_loss(model: Any, inputs: Batch) -> torch.Tensor:
    """Cross-entropy summed over the supervised tokens of a pack, or of a plain micro-batch.

    Logits are computed at `keep` only: elsewhere they cost as much as a fifth of a small model and
    most of its memory. The stock loss refuses labels together with an index tensor in
    `logits_to_keep`, hence one's own cross-entropy.
    """
    if "last" in inputs:
        layout = tree_inputs(model, inputs["input_ids"], inputs["position_ids"], inputs["last"])
    else:
        layout = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with last_mlp_only_at(model, inputs["keep"]):
        logits = model(**layout, logits_to_keep=inputs["keep"], use_cache=False).logits
    return F.cross_entropy(
        logits.float().flatten(0, 1),
        inputs["targets"].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )


class ValidateAtTheEnd(transformers.TrainerCallback):  # type: ignore[misc]
    """Validates after the last step too, so that the last weights can be the best."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by Trainer after each optimizer step."""
        if state.global_step == state.max_steps and args.metric_for_best_model:
            control.should_evaluate = True


class StopAfterStep(transformers.TrainerCallback):  # type: ignore[misc]
    """On SIGINT or SIGTERM lets the step end, saves a checkpoint, and stops the training."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the two signals within; only the main thread may, another leaves them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by Trainer after each optimizer step."""
        if self.asked:
            control.should_save = control.should_training_stop = True


@dataclass(frozen=True)
class Layout:
    """How the packs of a step are computed: as trees, or row by row where trees do not hold.

    `rows` bounds a plain micro-batch, `shapes` its sizes; `tolerance` is how far, relatively, the
    losses of the two may lie apart in the check of the first step.
    """

    pad_id: int
    rows: int = 1
    shapes: Shapes = field(default_factory=Shapes)
    trees: bool = True
    tolerance: float = 1e-4

    def plain(self, packed: Batch) -> list[Batch]:
        """The rows of a pack in padded micro-batches."""
        return unpacked(packed, self.pad_id, self.rows, self.shapes)


class JudgeTrainer(transformers.Trainer):  # type: ignore[misc]
    """transformers' Trainer with the judge's loss and with checkpoints that say they are complete.

    A batch of its loader is the whole step of a rank, from `StepCollator`; packs are a layout: the
    loss of each is divided by the supervised tokens of the step over all ranks. `validate` gives
    the numbers of an evaluation, among them `args.metric_for_best_model` (larger is better).
    """

    def __init__(
        self,
        *args: Any,
        layout: Layout,
        validate: Callable[[Any], dict[str, float]] | None = None,
        order: torch.utils.data.Sampler[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        # Trainer then counts the supervised tokens of a step and hands them to `compute_loss`.
        self.model_accepts_loss_kwargs = True
        self.layout = layout
        self.validate = validate
        self.order = order
        self.shapes_seen: set[tuple[int, ...]] = set()
        self._unchecked = layout.trees

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Supervised cross-entropy over `num_items_in_batch`, the whole step's."""
        self.shapes_seen.add((*inputs["input_ids"].shape, len(inputs["keep"])))
        total = summed_loss(model, inputs)
        if self.args.average_tokens_across_devices:
            # The divisor counts all ranks, and DDP then averages the gradients over them.
            total = total * self.accelerator.num_processes
        loss = total / num_items_in_batch
        return (loss, {"loss": loss}) if return_outputs else loss

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of all packs of a step; raises UserError where a loss is not finite.

        Ranks may have different numbers of packs: gradients are exchanged in the last of each.
        """
        packs = self._prepare_inputs(inputs["packs"])
        if self._unchecked:
            self._check_trees(packs)
        trees = self.layout.trees
        batches = packs if trees else [b for p in packs for b in self.layout.plain(p)]
        total = torch.zeros((), device=self.args.device)
        for index, batch in enumerate(batches):
            alone = index < len(batches) - 1
            with self.accelerator.no_sync(model) if alone else nullcontext():
                loss = super().training_step(model, batch, num_items_in_batch)
            # Costs one wait for the device a pack, next to nothing beside its forward pass.
            if not math.isfinite(loss.item()):
                raise UserError(self._diverged(f"the loss is {loss.item()}"))
            total += loss
        return total

    def _check_trees(self, packs: Sequence[Batch]) -> None:
        """Compare the first step's smallest pack with its rows read one by one."""
        self._unchecked = False
        smallest = min(packs, key=lambda packed: packed["input_ids"].numel())
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            tree = float(summed_loss(model, smallest))
            plain = sum(float(summed_loss(model, batch)) for batch in self.layout.plain(smallest))
        difference = abs(tree - plain) / max(abs(plain), 1.0)
        if difference <= self.layout.tolerance:
            log.info("packs: checked against plain rows, loss %.1e apart (relative)", difference)
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
        """Log the numbers of `validate`, and save a checkpoint where they are the best so far."""
        assert self.validate is not None
        numbers = self.validate(self.accelerator.unwrap_model(self.model))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in numbers.items()}
        self.log(metrics)
        control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        best = self.state.best_metric
        if best is None or metrics[self.args.metric_for_best_model] > best:
            control.should_save = True
        self.control: transformers.TrainerControl = control
        return metrics

    def load_best(self) -> None:
        """Put back the weights of the best validation; the last ones stay where there is none."""
        best, metric = self.state.best_global_step, self.args.metric_for_best_model
        if not best or best == self.state.global_step:
            return
        folder = Path(self.args.output_dir) / f"checkpoint-{best}"
        model = self.accelerator.unwrap_model(self.model)
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
        log.info("weights of step %d: %s %.4g, the best", best, metric, self.state.best_metric)

    def _get_train_sampler(self, *args: Any) -> Any:
        return self.order or super()._get_train_sampler(*args)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Trainer's estimate counts tokens of padded batches; nothing here reads it."""
        return 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise UserError(self._diverged(f"{name} holds values that are not finite"))
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.mark_complete(
                Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            )

    def _diverged(self, what: str) -> str:
        newest, _ = checkpoints.newest_complete(Path(self.args.output_dir))
        kept = f"the last good checkpoint is {newest}" if newest else "no checkpoint was made yet"
        step = self.state.global_step + 1
        return (
            f"{what} in step {step}; {kept}: try a lower --lr or more --warmup_steps, and look "
            "at the rows with judge data"
        )
