"""What goes to the host, and the start of the run there. No key of the user's is among it."""

import logging
import netrc
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from pt_app.core.errors import UserError
from pt_app.core.files import expanded
from pt_app.core.settings import Settings, read_tracking, resolve
from pt_app.models.bases import wanted_files
from pt_app.preflight.wheels import CHECKOUT
from pt_app.training import checkpoints
from scripts.rented.host import Host
from scripts.rented.market import is_secret
from scripts.rented.record import Launch

CODE = ("requirements.txt", "requirements-cuda.txt", "pyproject.toml", "README.md", "LICENSE")
DATA = ("judge_train.json", "judge_val.json", "judge_test.json", "dataset.json", "splits.json")
RECIPE = "pt_app/eval_model/judge_train_cuda.py"
FOLDER = Path(__file__).parent
SCRIPTS = {name: FOLDER / name for name in ("run.sh", "install.sh", "start.sh")}
SETUP = FOLDER / "setup.sh"
WEIGHTS = {".safetensors", ".pt", ".bin", ".pth"}
MIN_KEY_LENGTH = 12
# Decided by the launch, so that a run at home and on a host differ in nothing else.
OURS = {"tracking": "offline", "skip_eval": True, "output_dir": "adapters_eval"}
log = logging.getLogger("pt_app.rented")


def settings_of(argv: Sequence[str]) -> Settings:
    """Resolve the recipe's settings; raises UserError for those that no rented host can serve."""
    settings = resolve("cuda", argv, "judge_train_cuda.py", "")
    if settings.seeds > 1 or settings.folds:
        raise UserError("--seeds and --folds need an evaluation after each adapter: rent for one")
    if settings.resume != "off":
        raise UserError("--resume belongs before the --, to `launch`: it copies the run up")
    if expanded(settings.chat_template).is_file():
        raise UserError(
            "--chat_template FILE is not copied to a host: write it as chat_template.jinja into "
            "the base's folder, and name that folder with --model"
        )
    mode, sinks = read_tracking(settings.tracking)
    if "tensorboard" in sinks:
        raise UserError(
            "--tracking tensorboard: event files are not copied back from a host: leave it out; "
            "the run is kept offline for W&B and Weave, and copied back"
        )
    if mode == "online":
        raise UserError(
            "--tracking online would need your W&B key on a stranger's machine: leave it out; the "
            "run is kept offline, copied back, and `judge sync` sends it from here"
        )
    return settings


def host_flags(settings: Settings, base: Path | None, resume: Path | None) -> list[str]:
    """Return the recipe's flags on the host: every setting as it was resolved here, but for OURS.

    Args:
        settings: the recipe's settings.
        base: the base's folder here, where it is copied up.
        resume: the run's folder here, where one is resumed.
    """
    changes: dict[str, object] = {"data_dir": f"data/{Path(settings.data_dir).resolve().name}"}
    if base is not None and not _is_cached(base):
        changes["model"] = f"models/{base.name}"
    changes["resume"] = f"adapters_eval/{resume.name}" if resume else False
    changes |= OURS | {"seeds": False, "folds": False}  # these two are their defaults
    values = asdict(settings) | changes
    flags = {f"--{name}": value for name, value in values.items() if value is not False}
    return [name if value is True else f"{name}={value}" for name, value in flags.items()]


def base_to_send(name: str, upload: bool) -> Path | None:
    """Find the base here if it must be copied up; None where the host fetches it itself.

    Raises UserError where the hub asks for a token, which never goes to a host.
    """
    from huggingface_hub import HfApi

    from pt_app.models.bases import TINY, is_local, resolve_model

    if name == TINY:
        return None
    if upload or is_local(name):
        return resolve_model(name).path.resolve()
    with suppress(Exception):  # the HTTP library's own errors, which change with its version
        if not HfApi(token=False).model_info(name, timeout=10).gated:
            return None
    raise UserError(
        f'model "{name}" is gated or not public on the hub, or the hub does not answer: fetch it '
        f"here with `hf download {name}` and add --upload_model, which copies it up; a token "
        "never goes to a host"
    )


def _is_cached(base: Path) -> bool:
    """Return whether a base's folder is a snapshot in the hub's cache."""
    return base.parent.name == "snapshots"


def payload(launch: Launch) -> dict[str, Path]:
    """List what the run needs on the host, but for its scripts: name there -> file here."""
    files = package_files() | _named("", CHECKOUT, [CHECKOUT / name for name in CODE])
    files |= _data_files(Path(launch.data_dir).absolute()) | base_files(launch)
    if launch.resume is not None:
        run = Path(launch.resume)
        kept = [run / "settings.json", run / "tracking.json", run / "train.log"]
        for folder in run.glob("checkpoint-*"):
            kept += folder.rglob("*") if checkpoints.fault(folder) is None else ()
        files |= _named("adapters_eval/", run.parent, kept)
    return files


def package_files() -> dict[str, Path]:
    """List the files of the package but for compiled ones: code, and the data beside it."""
    paths = (CHECKOUT / "pt_app").rglob("*")
    return _named("", CHECKOUT, [path for path in paths if "__pycache__" not in path.parts])


def _named(prefix: str, folder: Path, paths: Iterable[Path]) -> dict[str, Path]:
    """Name the files among `paths` by their place in `folder`, which is `prefix` on the host."""
    files = sorted(path for path in paths if path.is_file())
    return {prefix + path.relative_to(folder).as_posix(): path for path in files}


def _data_files(folder: Path) -> dict[str, Path]:
    """List a dataset's files: rows, card, split, and the template where it is the dataset's own.

    Raises UserError where that is outside of the folder.
    """
    from pt_app.core.dataset import read_card

    files = [folder / name for name in DATA]
    template = Path(read_card(folder).template)
    if template.is_absolute():
        # By its name: a link within the folder is followed, and its files are sent.
        if not Path(os.path.normpath(template)).is_relative_to(folder):
            raise UserError(
                f"{folder / 'dataset.json'}: the template {template} is outside of the folder, "
                "which alone is copied to the host: move it into the folder"
            )
        files += template.rglob("*.txt")
    return _named(f"data/{folder.resolve().name}/", folder, files)


def base_files(launch: Launch) -> dict[str, Path]:
    """List the files of a base that is copied up.

    A folder goes up as one; a model of the hub as the hub's cache holds it.
    """
    if launch.upload_model is None:
        return {}
    folder = Path(launch.upload_model)
    place = f"models/{folder.name}/"
    if _is_cached(folder):
        place = f"hf/hub/{folder.parents[1].name}/snapshots/{folder.name}/"
    return _named(place, folder, wanted_files(folder))


def scripts(launch: Launch) -> dict[str, Path]:
    """Write the scripts that the host runs into the launch's folder, where they can be read too."""
    train = (FOLDER / "train.sh").read_text(encoding="utf-8")
    recipe = shlex.join([".venv/bin/python", RECIPE, *launch.flags])
    offline = "HF_HUB_OFFLINE=1" if launch.upload_model else ""
    texts = {"setup.sh": launch.setup, "train.sh": train.format(variables=offline, recipe=recipe)}
    base = Path(launch.upload_model or "")
    if _is_cached(base):  # by this file the hub's cache knows the newest revision
        texts[f"hf/hub/{base.parents[1].name}/refs/main"] = base.name
    files = {name: launch.folder / Path(name).name for name in texts}
    for name, text in texts.items():
        files[name].write_text(text, encoding="utf-8")
    return files | SCRIPTS


def start(host: Host, launch: Launch) -> None:
    """Send everything, and start it in tmux; a second start does nothing."""
    files = payload(launch) | scripts(launch)
    size = sum(path.stat().st_size for path in files.values())
    log.info("copying %d files up, %.1f MB", len(files), size / 1e6)
    host.send(files)
    host.run(f"bash {shlex.quote(host.remote)}/start.sh", timeout=600)
    launch.save(stage="training")
    follow = launch.command("attach")
    log.info("started in tmux, which does not need this terminal: `%s` follows it", follow)


def refuse_keys(launch: Launch, options: Mapping[str, object], account_key: str) -> None:
    """Search all that would be sent for this machine's keys; raises UserError at the first.

    Keys are Vast's, the hub's, W&B's in netrc, and variables with the name of a key. Weights are
    not searched.
    """
    from huggingface_hub import get_token

    keys = {name: value for name, value in os.environ.items() if is_secret(name)}
    keys |= {"the Vast account's key": account_key, "the hub's token": get_token() or ""}
    with suppress(OSError, netrc.NetrcParseError):
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
        keys |= {f"netrc, {host}": entry[2] or "" for host, entry in hosts.items()}
    files = (payload(launch) | scripts(launch)).values()
    contents = ((str(path), path.read_bytes()) for path in files if path.suffix not in WEIGHTS)
    for what, content in chain([("the request to create", repr(options).encode())], contents):
        for name, key in keys.items():
            if len(key) >= MIN_KEY_LENGTH and key.encode() in content:
                raise UserError(f"{what} holds the value of {name}: take it out; it never leaves")
