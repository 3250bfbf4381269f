"""The record of a launch, on disk before and after each step that costs money."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from pt_app.core.errors import UserError
from pt_app.core.files import read_json, write_text_atomic
from pt_app.core.records import checked

FOLDER = ".rented"
FILE = "launch.json"
Stage = Literal["creating", "created", "training", "ended", "copied", "destroyed"]


class Launch(BaseModel):
    """One rental: made before anything is created, saved at each stage."""

    label: str
    output_dir: str
    recipe: list[str]  # the flags after the --, as given
    flags: list[str]  # the flags that the host's recipe gets
    data_dir: str
    upload_model: str | None = None  # the base's folder here, where it must be copied up
    resume: str | None = None  # the run's folder here, where one is resumed
    image: str
    setup: str
    disk_gb: int
    max_hours: float
    max_dollars: float
    remote_dir: str
    fetch_minutes: float
    eval_at_home: bool
    stage: Stage = "creating"
    instance: int | None = None
    hourly: float = 0.0  # dollars
    fixed: float = 0.0  # dollars for traffic
    started: float | None = None  # seconds since the epoch at which the instance was created
    spent_before: float = 0.0  # dollars, at most, for instances of this launch that were given up
    run: str | None = None  # the name of the run's folder, once the host has made it
    # Checkpoints here that this launch copied back: only these may be deleted again.
    brought: list[str] = []
    exit_code: str | None = None  # what the set-up or the recipe ended with: "train 0"

    @property
    def folder(self) -> Path:
        """Where the record, the SSH key and the log of this launch are kept."""
        return Path(self.output_dir) / FOLDER / self.label

    @property
    def local_run(self) -> Path | None:
        """The run's folder here, once its name is known."""
        return Path(self.output_dir) / self.run if self.run else None

    def save(self, **changes: object) -> None:
        """Apply the changes and write the record."""
        for name, value in changes.items():
            setattr(self, name, value)
        write_text_atomic(self.folder / FILE, self.model_dump_json(indent=2) + "\n")

    def spent(self, now: float) -> float:
        """Return an upper bound of the dollars spent: waiting for the image is not billed."""
        if self.started is None:
            return self.spent_before
        hours = max(0.0, now - self.started) / 3600
        return self.spent_before + self.hourly * hours + self.fixed

    def command(self, verb: str) -> str:
        """Return the command line that does `verb` to this launch."""
        where = "" if self.output_dir == "adapters_eval" else f" --output_dir {self.output_dir}"
        return f"python scripts/vast.py {verb} {self.label}{where}"


def all_launches(output_dir: Path) -> list[Launch]:
    """Read the launches that were made from this output folder, oldest first."""
    paths, away = sorted((output_dir / FOLDER).glob(f"*/{FILE}")), "move it away"
    return [checked(Launch, read_json(path, remedy=away), path, away) for path in paths]


def the_launch(output_dir: Path, label: str | None) -> Launch:
    """Read the launch of this label, or the newest; raises UserError where there is none."""
    launches = [launch for launch in all_launches(output_dir) if label in (None, launch.label)]
    if not launches:
        raise UserError(
            f"no launch {label or ''} under {output_dir / FOLDER}: scripts/vast.py list shows what "
            "is alive; --output_dir names the folder that it was started with"
        )
    return launches[-1]
