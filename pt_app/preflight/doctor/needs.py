"""Check what a run reads and writes, and whether it would be there without a network."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants

from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from pt_app.core.files import expanded
from pt_app.core.settings import Settings, read_tracking
from pt_app.models import bases
from pt_app.models.bases import ModelSource, read_json, weight_files
from pt_app.preflight.doctor.finding import Finding, Status, one_line, run_check
from pt_app.tracking import access as tracking_access

GIB = 2**30
QWEN_VOCABULARY = 151_936  # of the head of the recipes' default bases
# A run of the tiny base takes 0.02 GiB (judge estimate). Checkpoints and adapter of a 3B base take
# about 100 MB; a report and a W&B run a few more.
MIN_ROOM, AMPLE_ROOM = 0.02 * GIB, 5 * GIB
# Only a hub knows the size of its models: assumed is one of 8B in 16 bits, and a few GiB more.
BASE = 20 * GIB


@dataclass(frozen=True)
class Needs:
    """The settings of a run, and whether it will be without a network."""

    settings: Settings
    offline: bool

    def check(self) -> Iterator[Finding]:
        """Check the base, its tokenizer, the data, and the folders that are written."""
        yield from run_check("base", self._base)
        yield from run_check("data", self._data)
        yield from run_check("output", self._output)
        yield from run_check("cache", self._cache)

    def _base(self) -> Iterator[Finding]:
        source, finding = self.source()
        yield finding
        if source is None:
            return
        yield from _loads(source, self.settings.chat_template)
        if read_json(source.path / "config.json").get("auto_map"):
            said = "its config.json names code on a hub (auto_map), which is never run here"
            yield Finding.wrong("remote code", said, "warn")

    def _cache(self) -> Iterator[Finding]:
        folder = Path(constants.HF_HUB_CACHE)
        if self.offline or not self._to_fetch():
            yield Finding("cache", "ok", f"{folder}: the run downloads nothing into it")
        else:
            short = f", and {BASE // GIB} are assumed for a base that must still be downloaded"
            yield _room("cache", folder, BASE, 0, short)
        if self.offline and os.environ.get("HF_HUB_OFFLINE") != "1":
            said = "HF_HUB_OFFLINE is not set: what looks for the hub waits for it"
            yield Finding.wrong("hub", said, "warn")

    def _to_fetch(self) -> bool:
        """Return whether the base is on the hub and not here."""
        name = self.settings.model
        return not bases.is_local(name) and bases.from_cache(name) is None

    def source(self) -> tuple[ModelSource | None, Finding]:
        """Find the base as `resolve_model` does, but download nothing."""
        name = self.settings.model
        if self._to_fetch():
            return None, self._missing()
        try:
            source = bases.resolve_model(name)
        except UserError as error:
            return None, Finding.wrong("base", one_line(error))
        size = sum(file.stat().st_size for file in weight_files(source.path))
        where = "on this machine" if bases.is_local(name) else "in the local cache"
        where = "shipped" if name == bases.TINY else where
        return source, Finding("base", "ok", f"{name}: {where}, {size / 1e9:.2f} GB")

    def _missing(self) -> Finding:
        """Check whether the run could download its base from the hub."""
        host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
        status: Status = "fail"
        if self.offline:
            why, case = "", "base, on another machine"
        elif constants.HF_HUB_OFFLINE:
            why, case = ", and HF_HUB_OFFLINE is set", "base, with the hub off"
        elif tracking_access.reachable(constants.ENDPOINT, bases.HUB_TIMEOUT):
            why, case = f"; {host} answers: the run would fetch it", "base, to be fetched"
            status = "warn"
        else:
            why = f", and {host} does not answer within {bases.HUB_TIMEOUT:.0f} s"
            case = "base, without the hub"
        said = f"{self.settings.model} is not in the local cache, or incomplete{why}"
        return Finding.wrong("base", said, status, fix=case, model=self.settings.model)

    def _data(self) -> Iterator[Finding]:
        folder = Path(self.settings.data_dir)
        try:
            data = read_dataset(folder, self.settings.allow_leaks)
        except UserError as error:
            yield Finding.wrong("data", one_line(error), folder=folder)
            return
        rows = f"{len(data.train)} rows to train on, {len(data.val)} to validate, {len(data.test)}"
        yield Finding("data", "ok", f"{folder}: {rows} to test")

    def _output(self) -> Iterator[Finding]:
        folder = Path(self.settings.output_dir)
        short = "; judge estimate tells what the run writes"
        yield _room("output", folder, AMPLE_ROOM, MIN_ROOM, short)

    def tracking(self) -> Iterator[Finding]:
        """Check where the numbers of a run go; of a key, only whether there is one."""
        tracking = self.settings.tracking
        mode, sinks = read_tracking(tracking)
        if "tensorboard" in sinks:
            installed = tracking_access.has_tensorboard()
            yield Finding.of("tensorboard", installed, "event files need tensorboardX")
        if mode == "off":
            yield Finding("tracking", "ok", f"nothing is sent (--tracking {tracking})")
            return
        address, key, problem = tracking_access.find_key()
        host = urlsplit(address).hostname or address
        if key is None and mode != "online" and problem.startswith("no W&B key"):
            yield Finding("tracking", "ok", f"{problem}: kept for judge sync")
        elif key is None:  # none where one is required, or one that cannot be used
            yield Finding.wrong("tracking", problem, "fail" if mode == "online" else "warn")
        elif self.offline:
            yield Finding("tracking", "ok", f"a key for {host}; kept for judge sync without it")
        else:
            access = tracking_access.resolve_access(tracking)
            yield Finding("tracking", "ok", f"a key for {host}; {access.mode}: {access.reason}")


def vocabulary_of(source: ModelSource | None) -> int:
    """Return the vocabulary of a base by its config.json; without a base, that of Qwen2."""
    config = read_json(source.path / "config.json") if source else {}
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    return int(size or QWEN_VOCABULARY)


def free_bytes(folder: Path) -> int:
    """Return what is free on the file system where `folder` is, or will be."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(path: Path) -> Path:
    """Return the folder itself, or the nearest one above it that exists."""
    path = expanded(path).absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _room(name: str, folder: Path, enough: float, least: float, short: str) -> Finding:
    """Check whether `folder` can be written, or made, and has room.

    Args:
        name: of the finding.
        folder: the folder.
        enough: bytes; less is a warning.
        least: bytes; less is a failure.
        short: said of less than enough.
    """
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            free = free_bytes(folder)
    except OSError as error:
        return Finding.wrong(name, f"{folder} cannot be written: {error.strerror or error}")
    said = f"{folder}: {free / GIB:.1f} GiB free" + (short if free < enough else "")
    return Finding.of(name, free >= enough, said, "fail" if free < least else "warn")


def _loads(source: ModelSource, chat_template: str) -> Iterator[Finding]:
    """Check the tokenizer, and the weights against the architecture; no weight is read."""
    name = "tokenizer"
    try:
        tokenizer = bases.load_tokenizer(source, chat_template)
        yield Finding(name, "ok", f"{len(tokenizer):,} tokens, with a chat template")
        name = "weights"
        bases.check_model(source, tokenizer)
        yield Finding(name, "ok", "names and shapes are those of the architecture")
    except UserError as error:
        yield Finding.wrong(name, one_line(error))
