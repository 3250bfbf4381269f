"""Checkpoints that count only when complete: a manifest of sizes and hashes is written last."""

import json
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pt_app.errors import UserError
from pt_app.files import sha256_file, write_json_atomic

MANIFEST = "complete.json"
RUN_SETTINGS = "settings.json"
# Two runs that differ in one of these are two runs: their order of data or weights differ.
FIXED = (
    "model",
    "lr",
    "warmup_steps",
    "epochs",
    "no_4bit",
    "batch_size",
    "gradient_accumulation",
    "max_seq_length",
    "pack_tokens",
    "group_variants",
    "train_precision",
    "max_samples",
    "seed",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_targets",
)
NameAt = Callable[[datetime], str]
log = logging.getLogger(__name__)


def mark_complete(folder: Path) -> None:
    """Write the manifest of `folder`: every file with its size in bytes and its hash.

    transformers writes a checkpoint's files in place, one after the other, and takes the highest
    number on resume, whole or not; hence this mark.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    entries = {
        str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256_file(p)}
        for p in files
    }
    write_json_atomic(folder / MANIFEST, entries)


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every file is as it was written."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"it has no readable {MANIFEST}: its writing was cut short"
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
            return f"{name} was changed or cut"
    return None


def newest_complete(run: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint of a run folder, and why newer ones were passed over."""
    folders = [p for p in run.glob("checkpoint-*") if p.name.split("-")[-1].isdigit()]
    passed_over: list[str] = []
    for folder in sorted(folders, key=lambda p: int(p.name.split("-")[-1]), reverse=True):
        wrong = fault(folder)
        if wrong is None:
            return folder, passed_over
        passed_over.append(f"{folder.name} passed over: {wrong}")
    return None, passed_over


def find_run(output_dir: Path, resume: str, prefix: str) -> Path:
    """The run folder that `--resume` means: a path, or the newest unfinished run.

    `prefix` is what the names of this model's runs begin with. Raises UserError where there
    is none.
    """
    if resume != "newest":
        run = Path(resume)
        run = run.parent if run.name.startswith("checkpoint-") else run
        if not run.is_dir():
            raise UserError(f"--resume {resume}: no such folder; name a run under {output_dir}")
        return run
    runs = [
        p
        for p in output_dir.glob(f"{prefix}*")
        if not p.name.endswith("_final")
        and any(p.glob("checkpoint-*"))
        and not Path(f"{p}_final/evaluation/results.json").exists()
    ]
    if not runs:
        raise UserError(
            f"--resume: no unfinished run {prefix}* with a checkpoint under {output_dir}; "
            "start without --resume"
        )
    # Names end with the time of the start, so the last name is the newest run.
    return max(runs, key=lambda p: p.name[-len("YYYYMMDD_HHMMSS") :])


def open_run(output_dir: Path, name_at: NameAt, about: dict[str, Any]) -> Path:
    """Make a new run's folder, named by the time, with its settings in it.

    A folder that is there already is another run's, started in the same second: the next second
    is taken. Raises UserError where it cannot be written.
    """
    time = datetime.now()
    while True:
        folder = output_dir / name_at(time)
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            time += timedelta(seconds=1)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror}): choose another folder with "
                "--output_dir"
            ) from error
    write_json_atomic(folder / RUN_SETTINGS, about)
    return folder


def resume_run(
    output_dir: Path, name_at: NameAt, resume: str, about: dict[str, Any]
) -> tuple[Path, Path | None]:
    """The run to go on with, and its newest complete checkpoint (None: it is trained).

    `resume` is a run's folder or "newest", `about` the settings, platform and data hashes of now.
    Raises UserError where there is nothing to resume, or where the settings make it another run.
    """
    prefix = name_at(datetime.now())[: -len("YYYYMMDD_HHMMSS")]
    run = find_run(output_dir, resume, prefix)
    _check_same_run(run, about)
    if Path(f"{run}_final").exists():
        log.info("%s is trained: going on with its evaluation", run)
        return run, None
    checkpoint, passed_over = newest_complete(run)
    for line in passed_over:
        log.warning("%s", line)
    if checkpoint is None:
        raise UserError(f"{run} has no complete checkpoint: start without --resume")
    log.info("resuming from %s", checkpoint)
    return run, checkpoint


def _check_same_run(run: Path, about: dict[str, Any]) -> None:
    try:
        before = json.loads((run / RUN_SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{run} has no readable {RUN_SETTINGS}: start without --resume") from None
    if before["data_sha256"] != about["data_sha256"]:
        raise UserError(f"{run} was trained on other data: bring that back, or start anew")
    for name, now in about["platform"].items():
        if (then := before["platform"][name]) != now:
            raise UserError(
                f"--resume: {name} was {then} in {run.name} and is {now} here, and the optimizer's "
                "state would not fit: resume with the same recipe and launcher, or start anew"
            )
    for name, now in about["settings"].items():
        then = before["settings"].get(name)
        if then == now or name == "resume":
            continue
        if name in FIXED:
            raise UserError(
                f"--resume: {name} was {then} in {run.name} and is {now} now; a resumed run "
                "cannot change it: give the old value, or start without --resume"
            )
        log.warning("%s was %s when the run began, and is %s from here on", name, then, now)
