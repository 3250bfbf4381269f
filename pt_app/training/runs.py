"""The folder of a run: a new one or the one to resume, and what may differ from before."""

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict  # which pydantic asks for before Python 3.12

from pt_app.core import files
from pt_app.core.errors import UserError
from pt_app.core.files import write_json_atomic
from pt_app.core.grids import OFF
from pt_app.core.records import checked
from pt_app.training.checkpoints import discard_after, newest_complete, read_state, staging_folder

RUN_SETTINGS = "settings.json"
# A resumed run cannot change these, nor what is LoRA's: the order of its data or its weights would
# differ.
FIXED = {"lr", "warmup_steps", "epochs", "max_seq_length", "group_variants", "max_samples"}
FIXED |= {"chat_template", "grid", "seed"}
# Compared in other terms: the base by its identity, the step by its examples over all ranks.
OTHERWISE = ("resume", "model", "batch_size", "gradient_accumulation", "output_dir", "data_dir")
NameAt = Callable[[datetime], str]
log = logging.getLogger(__name__)


class About(TypedDict):
    """What the folder of a run keeps about it: settings, base, hashes of the data, platform.

    Runs of an earlier version have no `prompts_sha256`.
    """

    settings: dict[str, Any]
    base: dict[str, str | int | None]
    data_sha256: dict[str, str]
    prompts_sha256: NotRequired[str]
    examples_a_step: int
    platform: dict[str, str | int]


def find_run(output_dir: Path, resume: str, prefix: str) -> Path:
    """Return the run folder that `--resume` means: a path, or the newest unfinished run.

    Args:
        output_dir: the folder of runs.
        resume: the value of the flag: a run folder, or "newest".
        prefix: what the names of the runs of this model begin with.

    Raises:
        UserError: if there is none.
    """
    if resume != "newest":
        run = Path(resume)
        if not (run / RUN_SETTINGS).is_file():
            raise UserError(
                f"--resume {resume}: no run, it has no {RUN_SETTINGS}; name a run's folder under "
                f"{output_dir}, whose newest complete checkpoint is taken"
            )
        return run
    runs = [
        p
        for p in output_dir.glob(f"{prefix}*")
        if not p.name.endswith("_final")
        and any(p.glob("checkpoint-*"))
        and not Path(f"{p}_final/evaluation/report.html").exists()
    ]
    if not runs:
        raise UserError(
            f"--resume: no unfinished run {prefix}* with a checkpoint under {output_dir}; "
            "start without --resume"
        )
    # A name ends with the start time, so the last name is the newest run.
    return max(runs, key=lambda p: p.name[-len("YYYYMMDD_HHMMSS") :])


def open_run(output_dir: Path, name_at: NameAt, about: About) -> Path:
    """Create the folder of a new run, named by the time, with its settings in it.

    A folder that exists already belongs to a run that started in the same second: the next second
    is used.

    Raises:
        UserError: if the folder cannot be written.
    """
    time = datetime.now()
    while True:
        folder = output_dir / name_at(time)
        try:
            folder.mkdir(parents=True)
            break
        except OSError as error:
            # Not for every FileExistsError: a parent that is a dangling link gives one as well.
            if not os.path.lexists(folder):
                raise UserError(files.cannot_write(folder, error)) from error
            time += timedelta(seconds=1)
    write_json_atomic(folder / RUN_SETTINGS, about)
    return folder


def held(run: Path) -> AbstractContextManager[None]:
    """Lock the folder of a run; raises UserError if another process trains in it."""
    return files.held(
        run / ".lock", f"another process trains in {run}: wait until it ends, or stop it"
    )


def checkpoint_to_resume(run: Path, about: About) -> Path | None:
    """Return the newest complete checkpoint of a run; None if its training is complete.

    Args:
        run: the folder of the run.
        about: the present settings, base, platform and data hashes.

    Raises:
        UserError: if there is nothing to resume, or if the settings make it another run.
    """
    _check_same_run(run, about)
    if Path(f"{run}_final").exists():
        log.info("%s is trained: its evaluation continues", run)
        return None
    checkpoint, skipped = newest_complete(run)
    for line in skipped:
        log.warning("%s", line)
    shutil.rmtree(staging_folder(run), ignore_errors=True)
    if checkpoint is None:
        raise UserError(f"{run} has no complete checkpoint: start without --resume")
    discard_after(checkpoint)
    log.info("resuming from %s", checkpoint)
    read_state(checkpoint)  # one of an earlier version is refused before a model is loaded
    return checkpoint


def _check_same_run(run: Path, about: About) -> None:
    path, again = run / RUN_SETTINGS, "start without --resume"
    before = checked(About, files.read_json(path, f"is not there: {again}", again), path, again)
    # Runs of version 0.1 had neither.
    absent = {"chat_template": "", "grid": OFF}
    settings, settings_before = about["settings"], absent | before["settings"]
    step = "the number of examples per step (--batch_size x --gradient_accumulation x processes)"
    prompts = "the SHA-256 of the prompts that chat template, template, rubric and scale make"
    made = about.get("prompts_sha256")
    compared = {
        "the SHA-256 of the data": (before["data_sha256"], about["data_sha256"]),
        "the base": (before["base"], about["base"]),
        step: (before["examples_a_step"], about["examples_a_step"]),
        **{name: (settings_before.get(name), now) for name, now in settings.items()},
        prompts: (before.get("prompts_sha256", made), made),
    }
    for name, (then, now) in compared.items():
        if then == now or name in OTHERWISE:
            continue
        if name not in settings or name in FIXED or name.startswith("lora_"):
            raise UserError(
                f"--resume: {name} was {then} in {run.name} and is {now} now; a resumed run "
                "cannot change it: restore the old one, or start without --resume"
            )
        log.warning("%s was %s when the run began, and is %s from here on", name, then, now)
