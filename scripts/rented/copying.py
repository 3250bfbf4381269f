"""What comes back from the host: complete checkpoints, the run's folder, the adapter."""

import logging
import math
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pt_app.eval_model import checkpoints
from scripts.rented.host import CutOffError, GoneError, Host
from scripts.rented.record import Launch

log = logging.getLogger("pt_app.rented")


def copy_back(host: Host, launch: Launch) -> None:
    """Copy what is complete on the host: checkpoints, and at the end run folder and adapter.

    Checkpoints that the host has rotated out are dropped here too. Raises CutOffError.
    """
    output = Path(launch.output_dir)
    there = list(_folders(host))
    runs = sorted({name.split("/")[0] for name in there})
    for run in (name for name in runs if not name.endswith("_final")):
        launch.save(run=run)
        (output / run).mkdir(parents=True, exist_ok=True)
        if names := _settled(host, run, output / run):
            host.fetch(f"adapters_eval/{run}", output / run, names)
        kept = {name.split("/")[1] for name in there if name.startswith(f"{run}/checkpoint-")}
        _fetch_checkpoints(host, run, output, sorted(kept, key=_step, reverse=True))
        for old in (output / run).glob("checkpoint-*"):
            if kept and old.name not in kept:
                shutil.rmtree(old)
    for adapter in (name for name in runs if name.endswith("_final")):
        if not (output / adapter).exists():
            host.fetch(f"adapters_eval/{adapter}", output / adapter)
            log.info("copied back: %s", output / adapter)


def _settled(host: Host, run: str, here: Path) -> list[str]:
    """Entries of a run's folder that nobody writes any more and that are not here yet.

    Once the run is over these are all of them, without the checkpoints.
    """
    command = (
        f"cd {shlex.quote(f'{host.remote}/adapters_eval/{run}')} && "
        "if [ -e ../../exit_code ]; then ls -A; else echo settings.json; fi"
    )
    names = host.run(command).decode(errors="replace").splitlines()
    if names == ["settings.json"] and (here / "settings.json").exists():
        return []
    return [name for name in names if not name.startswith("checkpoint-") and "/" not in name]


def _folders(host: Host) -> Iterator[str]:
    """Runs, adapters and complete checkpoints on the host, relative to its adapters_eval."""
    command = (
        f"cd {shlex.quote(host.remote)}/adapters_eval 2>/dev/null && "
        "ls -d [!.]*/ [!.]*/checkpoint-*/complete.json 2>/dev/null || true"
    )
    for line in host.run(command).decode(errors="replace").splitlines():
        name = line.removesuffix("/").removesuffix("/complete.json")
        # Names become paths here: only such as the recipe makes.
        if all(part and not part.startswith(".") for part in name.split("/")):
            yield name


def _step(name: str) -> float:
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else math.inf


def _fetch_checkpoints(host: Host, run: str, output: Path, names: Sequence[str]) -> None:
    """Newest first, since the host may drop old ones meanwhile; one that fails stops no other."""
    failed = None
    for name in names:
        try:
            _fetch_checkpoint(host, f"adapters_eval/{run}/{name}", output / run / name)
        except GoneError:
            log.info("%s is no longer on the host", name)
        except CutOffError as error:
            failed = error
    if failed is not None:
        raise failed


def _fetch_checkpoint(host: Host, source: str, target: Path) -> None:
    if target.exists() and checkpoints.fault(target) is None:
        return
    shutil.rmtree(target, ignore_errors=True)
    host.fetch(source, target)
    wrong = checkpoints.fault(target)
    if wrong:  # rotated out on the host while it was copied
        shutil.rmtree(target)
        raise CutOffError(f"{target.name}: {wrong}")
    log.info("copied back: %s", target)
