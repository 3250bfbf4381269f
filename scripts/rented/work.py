"""What the run will need, by `judge estimate`; the recipe's flags as the host gets them."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pt_app.core.errors import UserError
from pt_app.core.settings import Settings, resolve
from scripts.rented.flags import Flags
from scripts.rented.offers import PACKAGES_GB, Work

ESTIMATE = [sys.executable, "-m", "pt_app.cli", "estimate"]
DISK_GB = 40  # image, packages and their cache, beside the model and the checkpoints
# Decided by the launch, so that a run at home and on a host differ in nothing else.
OURS = {"tracking": "offline", "skip_eval": True, "output_dir": "adapters_eval"}


def settings_of(argv: Sequence[str]) -> Settings:
    """Resolve the recipe's settings; raises UserError for those that no rented host can serve."""
    settings = resolve("cuda", argv, "judge_train_cuda.py", "")
    if settings.seeds > 1 or settings.folds:
        raise UserError("--seeds and --folds need an evaluation after each adapter: rent for one")
    if settings.resume != "off":
        raise UserError("--resume belongs before the --, to `launch`: it copies the run up")
    if settings.tracking == "online":
        raise UserError(
            "--tracking online would need your W&B key on a stranger's machine: leave it out; the "
            "run is kept offline, copied back, and `judge sync` sends it from here"
        )
    return settings


def host_flags(settings: Settings, model: str, data: str, resume: str | None) -> list[str]:
    """Give the recipe's flags on the host: every setting as it was resolved here, but for OURS."""
    mine = asdict(settings) | OURS | {"model": model, "data_dir": data, "resume": resume or "off"}
    flags = []
    for name, value in mine.items():
        if name in ("seeds", "folds") or value is False or (name == "resume" and resume is None):
            continue
        flags.append(f"--{name}" if value is True else f"--{name}={value}")
    return flags


def estimated(flags: Flags) -> Work:
    """Estimate what the run needs; --hours, --gpu_ram and --disk count before the estimate.

    With --hours and --gpu_ram nothing is estimated, and the base's size is that of its files here.
    Raises UserError where the estimate fails, or neither the size of the base nor --disk is known.
    """
    model = settings_of(flags.recipe).model
    if flags.hours is None or flags.gpu_ram is None:
        flops, memory, written, base = _estimate(flags.recipe)
    else:
        size = _size_here(model)
        if size is None and flags.disk is None:
            raise UserError(f'the size of model "{model}" is not known here: give --disk too')
        flops = memory = written = 0.0
        base = float(size or 0)
    base_gb = base / 1e9
    copied_up = flags.upload_model or Path(model).expanduser().is_dir()
    return Work(
        flops=flops,
        memory=memory if flags.gpu_ram is None else flags.gpu_ram * 2**30,
        disk_gb=flags.disk or DISK_GB + math.ceil(base_gb + written / 1e9),
        down_gb=PACKAGES_GB + base_gb,
        up_gb=base_gb if copied_up else 0.0,
        hours=flags.hours,
    )


def _size_here(model: str) -> int | None:
    """Count the bytes of a base's files where it lies on this machine."""
    from pt_app.models.base_files import wanted_files
    from pt_app.models.bases import from_cache, is_local, resolve_model

    folder = resolve_model(model).path if is_local(model) else from_cache(model)
    return sum(path.stat().st_size for path in wanted_files(folder)) if folder else None


def _estimate(argv: Sequence[str]) -> tuple[float, float, float, float]:
    """Ask `judge estimate`; its messages are shown, since it may fetch a base of several GB.

    Returns:
        FLOPs of the training, and bytes of GPU memory, of files written and of the base.
    """
    command = [*ESTIMATE, "--platform", "cuda", "--no_timing", "--json", *argv]
    errors = b""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        assert done.stdout is not None
        assert done.stderr is not None
        while piece := os.read(done.stderr.fileno(), 65536):
            errors += piece
            sys.stderr.write(piece.decode(errors="replace"))
            sys.stderr.flush()
        output = done.stdout.read()  # far less than a pipe holds, so nothing waits on it
    try:
        needs = json.loads(output)
        sizes = needs["memory"]["total"], needs["disk_bytes"], needs["base_bytes"]
        return float(needs["flops"]), float(sizes[0]), float(sizes[1]), float(sizes[2])
    except (ValueError, KeyError, TypeError):
        lines = errors.decode(errors="replace").strip().splitlines()
        why = lines[-1].removeprefix("error: ") if lines else f"exit code {done.returncode}"
        raise UserError(
            f"judge estimate failed: {why}; or give --hours and --gpu_ram yourself"
        ) from None


def check_model(name: str, upload: bool) -> Path | None:
    """Find the base here if it must be copied up; None where the host fetches it itself.

    Raises UserError where the hub asks for a token, which never goes to a host.
    """
    from pt_app.models.bases import TINY, resolve_model

    if name == TINY:
        return None
    if upload or Path(name).expanduser().is_dir():
        return resolve_model(name).path.resolve()
    _check_public(name)
    return None


def _check_public(name: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        gated = HfApi(token=False).model_info(name, timeout=10).gated
        problem = "is gated on the hub: " if gated else ""
    except (GatedRepoError, RepositoryNotFoundError, HFValidationError):
        problem = "is not public on the hub: "
    except Exception as error:  # the HTTP library's own errors, which change with its version
        kind = type(error).__name__
        problem = f"cannot be looked up on the hub ({kind}): try again with a network, or "
    if problem:
        raise UserError(
            f'model "{name}" {problem}fetch it here with `hf download {name}` and add '
            "--upload_model, which copies it up; a token never goes to a host"
        )
