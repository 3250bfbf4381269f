"""What a run reads and writes, and whether it would be there without a network."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from pt_app.core.settings import Settings
from pt_app.models import bases
from pt_app.models.base_files import read_json, weight_files
from pt_app.models.bases import ModelSource
from pt_app.preflight.doctor.finding import Finding, found_by, one_line
from pt_app.tracking import access as tracking_access

GIB = 2**30
QWEN_WORDS = 151_936  # of the head of the recipes' default bases
# A run of the tiny base takes 0.02 GiB (judge estimate). Checkpoints and adapter of a 3B base take
# some 100 MB; a report and a W&B run a few more.
ROOM, LITTLE = 0.02 * GIB, 5 * GIB
# A hub alone knows the size of what it holds: assumed is one of 8B in 16 bits, and a few GiB more.
BASE = 20 * GIB


@dataclass(frozen=True)
class Needs:
    """The settings of a run, and whether it will have a network."""

    settings: Settings
    offline: bool

    def check(self) -> Iterator[Finding]:
        """The base, its tokenizer, the data, and the folders that are written."""
        yield from found_by("base", self._base)
        yield from found_by("data", self._data)
        yield from found_by("output", self._output)
        yield from found_by("cache", self._cache)

    def _base(self) -> Iterator[Finding]:
        source, finding = self.source()
        yield finding
        if source is not None:
            yield from _loads(source)
            yield from _code_of_its_own(source)

    def _cache(self) -> Iterator[Finding]:
        from huggingface_hub import constants

        folder = Path(constants.HF_HUB_CACHE)
        free = shutil.disk_usage(_existing(folder)).free
        there = "" if folder.is_dir() else ", not made yet"
        said = f"{folder}{there}: {free / GIB:.1f} GiB free"
        problem, other = _refused(folder), "name another folder with HF_HOME"
        if self.offline or not self._to_fetch():
            yield Finding("cache", "ok", f"{said}; only read" if problem else said)
        elif problem:
            said = f"{folder} cannot be written ({problem}), and the base is yet to be fetched"
            yield Finding("cache", "fail", said, other)
        elif free < BASE:
            said += f", and {BASE // GIB} are assumed for a base that is yet to be fetched"
            yield Finding("cache", "warn", said, f"make room, or {other}")
        else:
            yield Finding("cache", "ok", said)
        if self.offline and os.environ.get("HF_HUB_OFFLINE") != "1":
            said = "HF_HUB_OFFLINE is not set: what looks for the hub waits for it"
            yield Finding("hub", "warn", said, "export HF_HUB_OFFLINE=1 in the job")

    def _to_fetch(self) -> bool:
        """Whether the base is one of the hub that is not here."""
        name = self.settings.model
        return not bases.is_local(name) and bases.from_cache(name) is None

    def source(self) -> tuple[ModelSource | None, Finding]:
        """The base as `resolve_model` would find it, but nothing is fetched."""
        name = self.settings.model
        if self._to_fetch():
            return None, self._missing(name)
        try:
            source = bases.resolve_model(name)
        except UserError as error:
            return None, Finding("base", "fail", one_line(error), "name another with --model")
        size = sum(file.stat().st_size for file in weight_files(source.path))
        here = "a folder" if bases.is_local(name) else "in the local cache"
        where = "shipped" if name == bases.TINY else here
        return source, Finding("base", "ok", f"{name}: {where}, {size / 1e9:.2f} GB")

    def _missing(self, name: str) -> Finding:
        """A base of the hub that is not here: whether a run could fetch it."""
        from huggingface_hub import constants

        said = f"{name} is not in the local cache, or not whole"
        fetch = f"hf download {name}"
        if self.offline:
            fix = f"on a machine with a network and this cache (the login node): {fetch}"
            return Finding("base", "fail", said, fix)
        host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
        if constants.HF_HUB_OFFLINE:
            said, fix = f"{said}, and HF_HUB_OFFLINE is set", f"HF_HUB_OFFLINE=0 {fetch}"
            return Finding("base", "fail", said, f"{fix}, or --model tiny")
        if not tracking_access.reachable(constants.ENDPOINT, bases.HUB_TIMEOUT):
            said = f"{said}, and {host} does not answer within {bases.HUB_TIMEOUT:.0f} s"
            return Finding("base", "fail", said, f"{fetch}, where there is a network; --model tiny")
        return Finding("base", "warn", f"{said}; {host} answers: the run would fetch it", fetch)

    def _data(self) -> Iterator[Finding]:
        folder = Path(self.settings.data_dir)
        try:
            data = read_dataset(folder, self.settings.allow_leaks)
        except UserError as error:
            fix = "name the folder with --data_dir; judge data generate makes one"
            if folder.is_dir():
                fix = f"mend the rows (judge data check {folder}), or name another with --data_dir"
            yield Finding("data", "fail", one_line(error), fix)
            return
        rows = f"{len(data.train)} rows to train on, {len(data.val)} to validate, {len(data.test)}"
        yield Finding("data", "ok", f"{folder}: {rows} to test")

    def _output(self) -> Iterator[Finding]:
        """Whether the folder can be written, by writing; and the room that it has."""
        wanted = Path(self.settings.output_dir)
        other = "name another folder with --output_dir"
        if problem := _refused(wanted):
            yield Finding("output", "fail", f"{wanted} cannot be written: {problem}", other)
            return
        free = shutil.disk_usage(_existing(wanted)).free
        said = f"{wanted}: {free / GIB:.1f} GiB free"
        if free < ROOM:
            yield Finding("output", "fail", f"{said}: no run fits", f"make room, or {other}")
        elif free < LITTLE:
            fix = f"judge estimate says what the run takes: make room, or {other}"
            yield Finding("output", "warn", said, fix)
        else:
            yield Finding("output", "ok", said)

    def tracking(self) -> Iterator[Finding]:
        """Where the numbers of a run would go; of a key only whether there is one."""
        mode = self.settings.tracking
        if mode == "off":
            yield Finding("tracking", "ok", "off (--tracking off)")
            return
        address, key, problem = tracking_access.find_key()
        host = urlsplit(address).hostname or address
        if key is None:
            fix = "set WANDB_API_KEY, or run wandb login; or choose --tracking offline"
            if mode == "online":
                yield Finding("tracking", "fail", problem, fix)
            elif problem.startswith("no W&B key"):
                said = f"{problem}: the run is kept in its folder for judge sync"
                yield Finding("tracking", "ok", said)
            else:  # there, but of no use
                yield Finding("tracking", "warn", problem, fix)
        elif self.offline:
            yield Finding("tracking", "ok", f"a key for {host}; kept for judge sync without it")
        else:
            access = tracking_access.resolve_access(mode)
            yield Finding("tracking", "ok", f"a key for {host}; {access.mode}: {access.reason}")


def words_of(source: ModelSource | None) -> int:
    """How many words the head of a base has, by its config.json; else as many as Qwen2's."""
    if source is None:
        return QWEN_WORDS
    config = read_json(source.path / "config.json")
    words = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    return int(words or QWEN_WORDS)


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    path = path.expanduser().absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _refused(folder: Path) -> str:
    """Why nothing can be written into `folder`, made if it must be; empty where it can."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _loads(source: ModelSource) -> Iterator[Finding]:
    """The tokenizer, and whether the weights are those of the architecture; none is read."""
    try:
        tokenizer = bases.load_tokenizer(source)
    except UserError as error:
        yield Finding("tokenizer", "fail", one_line(error), "name an instruct model with --model")
        return
    yield Finding("tokenizer", "ok", f"{len(tokenizer):,} tokens, with a chat template")
    try:
        bases.check_model(source, tokenizer)
    except UserError as error:
        yield Finding("weights", "fail", one_line(error), "name another with --model")
        return
    yield Finding("weights", "ok", "names and shapes are those of the architecture")


def _code_of_its_own(source: ModelSource) -> Iterator[Finding]:
    """A base whose code lies on a hub is refused in training; say so before."""
    config = read_json(source.path / "config.json")
    if config.get("auto_map"):
        said = "its config.json names code on a hub (auto_map), which is never run here"
        fix = "if transformers does not know the model itself, name another with --model"
        yield Finding("remote code", "warn", said, fix)
