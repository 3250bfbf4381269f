"""What comes back from the host: complete checkpoints, the run's folder, the adapter."""

import logging
import shlex
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from pt_app.training import checkpoints
from scripts.rented.host import CutOffError, GoneError, Host
from scripts.rented.record import Launch

log = logging.getLogger("pt_app.rented")


def copy_back(host: Host, launch: Launch) -> None:
    """Copy what is complete on the host: checkpoints, and at the end run folder and adapter.

    Checkpoints that this launch brought and the host has rotated out are deleted here too.
    Raises CutOffError.
    """
    output = Path(launch.output_dir)
    there = list(_folders(host))
    runs = {name.split("/")[0] for name in there}
    run = _run(runs, launch)
    if run is None:
        return
    launch.save(run=run)
    (output / run).mkdir(parents=True, exist_ok=True)
    if names := _settled(host, run, output / run):
        host.fetch(f"adapters_eval/{run}", output / run, names)
    kept = {name.split("/")[1] for name in there if name.startswith(f"{run}/checkpoint-")}
    _fetch_checkpoints(host, launch, kept)
    for old in sorted(set(launch.brought) - kept) if kept else ():
        shutil.rmtree(output / run / old, ignore_errors=True)
        launch.brought.remove(old)
    launch.save()
    adapter = f"{run}_final"
    if adapter in runs and not (output / adapter).exists():
        host.fetch(f"adapters_eval/{adapter}", output / adapter)
        log.info("copied back: %s", output / adapter)


def _run(names: Collection[str], launch: Launch) -> str | None:
    """Find the launch's run among the names on the host; None where it has not begun.

    A stranger's machine could name another run of this folder: only the run that is resumed, or
    a name that is new here, becomes the launch's. Raises CutOffError for another one.
    """
    ours = launch.run or (Path(launch.resume).name if launch.resume else None)
    if ours is not None:
        return ours if ours in names else None
    runs = sorted(name for name in names if not name.endswith("_final"))
    new = [name for name in runs if not (Path(launch.output_dir) / name).exists()]
    if runs and not new:
        raise CutOffError(f"{runs[0]} is not this launch's run: move it out of the output folder")
    return new[0] if new else None


def _settled(host: Host, run: str, here: Path) -> list[str]:
    """List the entries of a run's folder that are no longer written and not here yet.

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
    """List runs, adapters and complete checkpoints, relative to the host's adapters_eval."""
    command = (
        f"cd {shlex.quote(host.remote)}/adapters_eval 2>/dev/null && "
        "ls -d [!.]*/ [!.]*/checkpoint-*/complete.json 2>/dev/null || true"
    )
    for line in host.run(command).decode(errors="replace").splitlines():
        name = line.removesuffix("/").removesuffix("/complete.json")
        # Names become paths here: only such as the recipe makes.
        if all(part and not part.startswith(".") for part in name.split("/")):
            yield name


def _fetch_checkpoints(host: Host, launch: Launch, names: Collection[str]) -> None:
    """Fetch the newest first, since the host may rotate out old ones meanwhile.

    One that fails stops no other; raises the CutOffError of the last one that did.
    """
    failed = None
    # A longer name has a longer number: this is the order of the steps.
    for name in sorted(names, key=lambda name: (len(name), name), reverse=True):
        try:
            _fetch_checkpoint(host, launch, name)
        except GoneError:
            log.info("%s is no longer on the host", name)
        except CutOffError as error:
            failed = error
    if failed is not None:
        raise failed


def _fetch_checkpoint(host: Host, launch: Launch, name: str) -> None:
    assert launch.local_run is not None
    target = launch.local_run / name
    if target.exists() and checkpoints.fault(target) is None:
        return
    shutil.rmtree(target, ignore_errors=True)
    host.fetch(f"adapters_eval/{launch.run}/{name}", target)
    if fault := checkpoints.fault(target):  # rotated out on the host while it was copied
        shutil.rmtree(target)
        raise CutOffError(f"{name}: {fault}")
    launch.save(brought=[*launch.brought, name])
    log.info("copied back: %s", target)
