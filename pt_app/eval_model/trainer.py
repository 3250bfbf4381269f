"""The training step: loss on the answer, divided by the supervised tokens of the step."""

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
import transformers

from pt_app.errors import UserError
from pt_app.eval_model import checkpoints
from pt_app.eval_model.packing import IGNORED


def summed_loss(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy summed over the supervised tokens of a micro-batch of `PadCollator`.

    Logits are computed at `keep` only. The stock loss refuses labels together with an index
    tensor in `logits_to_keep`, hence one's own cross-entropy.
    """
    keep = inputs["keep"]
    logits = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        logits_to_keep=keep,
        use_cache=False,
    ).logits
    targets = inputs["labels"][:, keep + 1]
    return F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


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


class JudgeTrainer(transformers.Trainer):  # type: ignore[misc]
    """transformers' Trainer with the judge's loss and with checkpoints that say they are complete.

    One optimizer step is batch x accumulation examples a rank, whatever their layout: the loss
    of a micro-batch is divided by the supervised tokens of the whole step over all ranks.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Trainer then counts the supervised tokens of a step and hands them to `compute_loss`.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Supervised cross-entropy over `num_items_in_batch` (default: of this micro-batch)."""
        total = summed_loss(model, inputs)
        if num_items_in_batch is None:
            num_items_in_batch = (inputs["labels"] != IGNORED).sum()
        elif self.args.average_tokens_across_devices:
            # The divisor counts all ranks, and DDP then averages the gradients over them.
            total = total * self.accelerator.num_processes
        loss = total / num_items_in_batch
        return (loss, {"loss": loss}) if return_outputs else loss

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One micro-batch forward and backward; raises UserError where the loss is not finite."""
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        # Costs one wait for the device a micro-batch, next to nothing beside its forward pass.
        if not math.isfinite(loss.item()):
            raise UserError(self._diverged(f"the loss is {loss.item()}"))
        return loss

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
