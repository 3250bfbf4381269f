"""Run a training from scratch: skipped when complete, resumed when not, a Hugging Face folder then.

While it runs, `work` holds its settings and checkpoints. The folder of the finished model appears
complete: config.json, model.safetensors, tokenizer, chat template, stage.json (settings, hashes,
time and tokens), metrics.jsonl, and complete.json with the hash of each file.
"""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.core.files import give_mode_of, held, read_json, write_json_atomic, write_text_atomic
from pt_app.core.records import checked
from pt_app.models import launcher
from pt_app.models.memory import shortage_explained
from pt_app.models.platforms import Platform, get_device
from pt_app.models.provenance import about_this_run, without_absolute_paths
from pt_app.pretrain.chat import Chat
from pt_app.pretrain.inference import continued
from pt_app.pretrain.loss import CPU_CHUNK, GPU_CHUNK, HeldOut, NextTokens
from pt_app.pretrain.settings import Sampling, Training, refuse_others
from pt_app.tracking.access import check_tracking
from pt_app.tracking.tracker import Tracker
from pt_app.training import checkpoints
from pt_app.training.loop import LoopArguments, LoopState, Model, Steps, TrainingLoop
from pt_app.training.optimizers import ADAMW, MUON, muon_and_adamw, trapezoid
from pt_app.training.run import Progress, share_of, train

STAGE, METRICS = "stage.json", "metrics.jsonl"
CHECKPOINT = re.compile(r"checkpoint-\d+")
SAMPLE_TOKENS = 64
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A training before anything is loaded.

    Attributes:
        name: what is trained, such as "base".
        settings: its flags.
        facts: what makes it another training: decisive settings and hashes of data and parent.
        work: the folder of its checkpoints.
        final: the folder of the trained model.
        resume: the checkpoint to resume; None: the newest in `work`, if there is one.
        keep_best: whether the weights of the best validation are the result, and the checkpoints
            stay; else the last weights are, and they do not.
        log_dir: the folder for event files of TensorBoard; None: they are not asked for.
    """

    name: str
    settings: Training
    facts: Mapping[str, object]
    work: Path
    final: Path
    resume: Path | None = None
    keep_best: bool = False
    log_dir: Path | None = None


@dataclass(frozen=True)
class Parts:
    """What is trained, on what.

    Attributes:
        model: in float32, with fresh or earlier weights.
        tokenizer: with its chat template.
        steps: those of an epoch.
        total: the number of steps.
        tokens: tokens per step.
        held_out: the validation.
        prompt: what a sample at each validation continues; "": there is none.
    """

    model: Model
    tokenizer: PreTrainedTokenizerBase
    steps: Steps
    total: int
    tokens: int
    held_out: HeldOut
    prompt: str = ""


def run_stage(plan: Plan, build: Callable[[NextTokens], Parts]) -> Path:
    """Train as planned, unless that is done already; return the folder of the model.

    Args:
        plan: what is trained, and where.
        build: loads the parts; called only where something is left to train.

    Raises:
        UserError: if the folder holds a training with other settings, and for what else a user can
            fix.
        KeyboardInterrupt: after the checkpoint that a signal asked for.
    """
    console.start()
    launcher.settle()
    settings, final = replace(plan.settings, tracking=_tracking(plan)), plan.final
    check_tracking(settings.tracking)
    platform = get_device(settings.device, settings.train_precision)
    with ExitStack() as stack:
        if console.is_main_process():
            lock = final.with_name(f".{final.name}.lock")
            busy = f"another process trains {final}: wait until it ends, or stop it"
            stack.enter_context(held(lock, busy))
        if _is_complete(plan):
            _clear(plan)
            log.info("%s: complete, with the same settings: skipped", final)
            return final
        checkpoint = _checkpoint(plan)
        log.info("%s on %s (%s)", plan.name, platform.hardware, platform.reason)
        launcher.meet(platform.on_cpu)
        # WANDB_RUN names the run in W&B and changes nothing else.
        name = f"{os.environ.get('WANDB_RUN') or final.parent.name}-{plan.name}"
        folder = plan.log_dir or final.parent / "tracking" / plan.name
        tracker = stack.enter_context(Tracker(settings, folder, log.info, name))
        stack.enter_context(shortage_explained("training", "shorter sequences, or a smaller model"))
        chunk = CPU_CHUNK if platform.on_cpu else GPU_CHUNK
        parts = build(NextTokens(platform.compute_dtype, chunk))
        loop = loop_of(plan, parts, platform, tracker)
        train(loop, checkpoint)
        if console.is_main_process():
            room = "its checkpoints are whole: make room, and the same command finishes"
            with checkpoints.full_disk_explained(final.parent, room):
                _publish(plan, parts, loop, platform)
    return final


def _tracking(plan: Plan) -> str:
    """Return the value of --tracking; WANDB_RUN=dummy, nanochat's word, switches W&B off."""
    tracking = plan.settings.tracking
    if os.environ.get("WANDB_RUN") == "dummy":
        tracking = "tensorboard" if "tensorboard" in tracking else "off"
    if plan.log_dir and "tensorboard" not in tracking:
        tracking = "tensorboard" if tracking == "off" else f"{tracking},tensorboard"
    return tracking


def _is_complete(plan: Plan) -> bool:
    """Return whether the training has ended with the same settings; raises UserError for others."""
    if not plan.final.exists():
        return False
    if wrong := checkpoints.fault(plan.final):
        raise UserError(f"{plan.final} holds no complete model ({wrong}): remove it or move it")
    _compare(plan, plan.final)
    return True


def _checkpoint(plan: Plan) -> Path | None:
    """Return the checkpoint to resume, and keep in `work` what the training is."""
    source = plan.resume.parent if plan.resume else plan.work
    if plan.resume and not (CHECKPOINT.fullmatch(plan.resume.name) and plan.resume.is_dir()):
        raise UserError(f"--resume {plan.resume}: there is no checkpoint: name another")
    if plan.resume or (source / STAGE).exists():
        _compare(plan, source)
    checkpoint, skipped = plan.resume, list[str]()
    if checkpoint is None:
        checkpoint, skipped = checkpoints.newest_complete(plan.work)
    elif wrong := checkpoints.fault(checkpoint):
        raise UserError(f"--resume {checkpoint}: {wrong}: name another checkpoint")
    for line in skipped:
        log.warning("%s", line)
    if console.is_main_process():
        shutil.rmtree(checkpoints.staging_folder(plan.work), ignore_errors=True)
        if checkpoint and checkpoint.parent.resolve() == plan.work.resolve():
            checkpoints.discard_after(checkpoint)
        write_json_atomic(plan.work / STAGE, {"stage": plan.name, "facts": plan.facts})
    if checkpoint:
        log.info("resuming from %s", checkpoint)
    return checkpoint


def _compare(plan: Plan, folder: Path) -> None:
    path, remedy = folder / STAGE, f"remove {folder} or move it"
    facts = read_json(path, f"is not there: {remedy}", remedy).get("facts")
    before = checked(dict[str, object], facts, f"{path}, field facts", remedy)
    refuse_others(folder, before, json.loads(json.dumps(plan.facts)))


def loop_of(plan: Plan, parts: Parts, platform: Platform, tracker: Tracker) -> TrainingLoop:
    """Return the training loop of a plan: its optimizers, schedule, validation and progress."""
    settings, total, parameters = plan.settings, parts.total, parts.model.num_parameters()
    muon = settings.optimizer == "muon"
    shape = f"{parameters:,} parameters, {total:,} steps of {parts.tokens:,} tokens"
    log.info("%s: %s", plan.name, shape)
    if settings.compile == "auto" and platform.has_own_memory:
        parts.model.base_model.compile()
    args = LoopArguments(
        plan.work,
        max_steps=total,
        optim=MUON if muon else ADAMW,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        logging_steps=min(settings.logging_steps, total),
        save_steps=settings.save_steps or total,
        eval_steps=share_of(settings.eval_steps, total) or total,
        metric_for_best_model="eval_loss" if plan.keep_best else None,
        greater_is_better=False,
        use_cpu=platform.on_cpu,
        mixed_precision=platform.mixed_precision,
        remedy="try a lower --matrix_lr and --lr, or more --warmup_steps",
        again="the same command continues",
    )
    schedule = partial(trapezoid, settings.warmup_steps, 1 - settings.decay)
    optimizers = partial(
        muon_and_adamw,
        matrix_lr=settings.matrix_lr,
        other_lr=settings.lr,
        weight_decay=settings.weight_decay,
        muon=muon,
    )
    callbacks: list[TrainerCallback] = [Clock(tracker.log)]
    if parts.prompt:
        callbacks.append(Samples(parts, tracker))
    made = parts.held_out.objective, optimizers, schedule, parts.held_out, callbacks
    return TrainingLoop(parts.model, args, parts.steps, *made)


class Clock(Progress):
    """Shows progress; notes in the history how long the training took up to each line."""

    def on_train_begin(self, args: Any, state: LoopState, control: Any, **more: Any) -> None:
        """Start the clock at the time of the checkpoint that is resumed."""
        super().on_train_begin(args, state, control, **more)
        before = [entry["seconds"] for entry in state.log_history if "seconds" in entry]
        self.began = time.monotonic() - max(before, default=0.0)

    def on_log(self, args: Any, state: LoopState, control: Any, logs: Any, **more: Any) -> None:
        """Handle the newest numbers."""
        state.log_history[-1]["seconds"] = round(time.monotonic() - self.began, 2)
        super().on_log(args, state, control, logs, **more)


class Samples(TrainerCallback):  # type: ignore[misc]
    """Shows what the model writes after the prompt, at each validation."""

    def __init__(self, parts: Parts, tracker: Tracker) -> None:
        self.parts, self.tracker = parts, tracker

    def on_log(self, args: Any, state: LoopState, control: Any, logs: Any, **more: Any) -> None:
        """Write a sample after the numbers of a validation."""
        if "eval_loss" in logs and console.is_main_process():
            parts, how = self.parts, Sampling(max_tokens=SAMPLE_TOKENS, seed=0)
            training = parts.model.training
            chat = Chat(parts.model.eval(), parts.tokenizer, "")
            text = "".join(continued(chat, parts.prompt, how))
            parts.model.train(training)
            log.info("sample at step %d: %s", state.global_step, json.dumps(text))
            self.tracker.log_text("sample", text, state.global_step)


def _publish(plan: Plan, parts: Parts, loop: TrainingLoop, platform: Platform) -> None:
    """Write the folder of the finished model, complete or not at all; drop the checkpoints."""
    staged = checkpoints.staging_folder(plan.final.parent) / plan.final.name
    shutil.rmtree(staged, ignore_errors=True)
    model = loop.accelerator.unwrap_model(loop.model)
    model.save_pretrained(staged)
    parts.tokenizer.save_pretrained(staged)
    give_mode_of(staged / "config.json", staged.glob("*.safetensors"))
    history = [entry for entry in loop.state.log_history if "train_runtime" not in entry]
    write_text_atomic(staged / METRICS, "".join(json.dumps(each) + "\n" for each in history))
    losses = [entry for entry in history if "eval_loss" in entry]
    numbers = {
        "steps": loop.state.global_step,
        "tokens": loop.state.global_step * parts.tokens,
        "parameters": model.num_parameters(),
        "seconds": max(entry["seconds"] for entry in history),
        "processes": console.ranks(),
        "hardware": platform.hardware,
        "platform": platform.reason,
        "last": losses[-1],
        "best": min(losses, key=lambda entry: float(entry["eval_loss"])),
    }
    settings = without_absolute_paths(asdict(plan.settings))
    facts = {"stage": plan.name, "facts": plan.facts, "settings": settings}
    write_json_atomic(staged / STAGE, facts | numbers | about_this_run())
    checkpoints.publish(staged, plan.final.parent)
    with suppress(OSError):  # another stage of this folder may be written, too
        staged.parent.rmdir()
    _clear(plan)
    log.info("%s: %s", plan.name, plan.final)


def _clear(plan: Plan) -> None:
    """Remove the checkpoints of a finished training; a run that was killed then left them."""
    if plan.keep_best or not console.is_main_process():
        return
    with suppress(UserError):  # those of another training stay
        if (plan.work / STAGE).exists():
            _compare(plan, plan.work)
        shutil.rmtree(plan.work, ignore_errors=True)
