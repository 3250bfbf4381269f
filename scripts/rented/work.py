"""What the run will need, as `judge estimate` says; the recipe's flags as the host gets them."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pt_app.core.errors import UserError
from pt_app.core.settings import Settings, resolve
from scripts.rented.offers import PACKAGES_GB, Work

ESTIMATE = [sys.executable, "-m", "pt_app.cli", "estimate"]
DISK_GB = 40
"""Image, packages and their cache, beside the model and the checkpoints."""
# Decided by the launch, so that a run at home and on a host differ in nothing else.
OURS = {"tracking": "offline", "skip_eval": True, "output_dir": "adapters_eval"}


def settings_of(argv: Sequence[str]) -> Settings:
    """The recipe's settings; raises UserError for those that a rented host cannot serve."""
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
    """The recipe's flags on the host: every setting as it was resolved here, but for OURS."""
    mine = asdict(settings) | OURS | {"model": model, "data_dir": data, "resume": resume or "off"}
    flags = []
    for name, value in mine.items():
        if name in ("seeds", "folds") or value is False or (name == "resume" and resume is None):
            continue
        flags.append(f"--{name}" if value is True else f"--{name}={value}")
    return flags


def estimated(
    argv: Sequence[str],
    hours: float | None,
    gpu_ram: float | None,
    disk_gb: int | None,
    upload: bool = False,
) -> Work:
    """What the run needs; `hours` and `gpu_ram` (GiB) given by a person count before estimates.

    With both of them nothing is estimated, and the base's size is that of its files here.
    `upload`: the base is copied up. Raises UserError where the estimate fails, or neither the
    size of the base nor `disk_gb` is known.
    """
    model = settings_of(argv).model
    said: Mapping[str, Any]
    if hours is None or gpu_ram is None:
        said = _estimate(argv)
    else:
        size = _size_here(model)
        if size is None and disk_gb is None:
            raise UserError(f'the size of model "{model}" is not known here: give --disk too')
        said = {"flops": 0, "memory": {"total": 0}, "disk_bytes": 0, "base_bytes": size or 0}
    base_gb, written_gb = float(said["base_bytes"]) / 1e9, float(said["disk_bytes"]) / 1e9
    return Work(
        flops=float(said["flops"]),
        memory=float(said["memory"]["total"]) if gpu_ram is None else gpu_ram * 2**30,
        disk_gb=disk_gb or DISK_GB + math.ceil(base_gb + written_gb),
        down_gb=PACKAGES_GB + base_gb,
        up_gb=base_gb if upload or Path(model).expanduser().is_dir() else 0.0,
        hours=hours,
    )


def _size_here(model: str) -> int | None:
    """Bytes of a base's files where it lies on this machine."""
    from pt_app.models.base_files import wanted_files
    from pt_app.models.bases import from_cache, is_local, resolve_model

    folder = resolve_model(model).path if is_local(model) else from_cache(model)
    return sum(path.stat().st_size for path in wanted_files(folder)) if folder else None


def _estimate(argv: Sequence[str]) -> Mapping[str, Any]:
    """What `judge estimate` prints as JSON: flops of the training, sizes in bytes.

    What it says meanwhile is shown: it may fetch a base of several GB.
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
        said: Mapping[str, Any] = json.loads(output)
        float(said["flops"]), float(said["memory"]["total"])
        float(said["disk_bytes"]), float(said["base_bytes"])
    except (ValueError, KeyError, TypeError):
        lines = errors.decode(errors="replace").strip().splitlines()
        why = lines[-1].removeprefix("error: ") if lines else f"exit code {done.returncode}"
        raise UserError(
            f"judge estimate failed: {why}; or give --hours and --gpu_ram yourself"
        ) from None
    return said


def check_model(name: str, upload: bool) -> Path | None:
    """Where the base lies here if it must be copied up, else None: the host fetches it itself.

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

    remedy = (
        f"fetch it here with `hf download {name}` and add --upload_model, which copies it up; "
        "a token never goes to a host"
    )
    try:
        info = HfApi(token=False).model_info(name, timeout=10)
    except (GatedRepoError, RepositoryNotFoundError, HFValidationError):
        raise UserError(f'model "{name}" is not public on the hub: {remedy}') from None
    except Exception as error:  # the HTTP library's own errors, which change with its version
        raise UserError(
            f'whether model "{name}" is public cannot be seen from here ({type(error).__name__}): '
            f"try again with a network, or {remedy}"
        ) from None
    if info.gated:
        raise UserError(f'model "{name}" is gated on the hub: {remedy}')
