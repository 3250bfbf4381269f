"""What goes to the host, and the start of the run there. No key of the user's is among it."""

import logging
import netrc
import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pt_app
from pt_app.core.errors import UserError
from pt_app.models.base_files import wanted_files
from pt_app.training import checkpoints
from scripts.rented.host import Host
from scripts.rented.market import SECRET_WORDS
from scripts.rented.record import Launch

ROOT = Path(pt_app.__file__).parents[1]
CODE = ("requirements.txt", "requirements-cuda.txt", "pyproject.toml", "README.md", "LICENSE")
SUFFIXES = {".py", ".txt", ".tsv", ".json", ".jinja", ".yaml", ".safetensors", ".md"}
DATA = ("judge_train.json", "judge_val.json", "judge_test.json", "dataset.json", "splits.json")
RECIPE = "pt_app/eval_model/judge_train_cuda.py"
SCRIPTS = {name: Path(__file__).with_name(name) for name in ("run.sh", "install.sh")}
SETUP = Path(__file__).with_name("setup.sh")
WEIGHTS = {".safetensors", ".pt", ".bin", ".pth"}
SHORTEST_KEY = 12
log = logging.getLogger("pt_app.rented")


def code_files() -> dict[str, Path]:
    """List the code that the host runs: the package and its requirements, nothing else."""
    files = {name: ROOT / name for name in CODE}
    for path in sorted((ROOT / "pt_app").rglob("*")):
        if path.is_file() and path.suffix in SUFFIXES and "__pycache__" not in path.parts:
            files[path.relative_to(ROOT).as_posix()] = path
    return files


def data_files(folder: Path) -> dict[str, Path]:
    """List a dataset's files: rows, card, split, and the template where it is the dataset's own."""
    from pt_app.core.dataset import read_card

    files = [folder / name for name in DATA]
    template = Path(read_card(folder).template)
    if template.is_absolute():
        files += sorted(template.rglob("*.txt"))
    name = folder.resolve().name
    return {
        f"data/{name}/{path.relative_to(folder.absolute()).as_posix()}": path
        for path in (file.absolute() for file in files)
        if path.is_file()
    }


def base_files(launch: Launch) -> dict[str, Path]:
    """List the files of a base that is copied up.

    A folder goes up as one; a model of the hub as the hub's cache holds it.
    """
    if launch.upload_model is None:
        return {}
    folder = Path(launch.upload_model)
    there = "models/" + folder.name
    if folder.parent.name == "snapshots":
        there = f"hf/hub/{folder.parents[1].name}/snapshots/{folder.name}"
    return {f"{there}/{path.name}": path for path in wanted_files(folder)}


def resumed_files(run: Path) -> dict[str, Path]:
    """List what the recipe needs of a run in order to resume it."""
    files = [run / "settings.json", run / "tracking.json", run / "train.log"]
    for folder in run.glob("checkpoint-*"):
        if checkpoints.fault(folder) is None:
            files += folder.rglob("*")
    return {
        f"adapters_eval/{path.relative_to(run.parent).as_posix()}": path
        for path in files
        if path.is_file()
    }


def payload(launch: Launch) -> dict[str, Path]:
    """List what the run needs on the host, but for its scripts: name there -> file here."""
    files = code_files() | data_files(Path(launch.data_dir)) | base_files(launch)
    return files | (resumed_files(Path(launch.resume)) if launch.resume else {})


def scripts(launch: Launch) -> dict[str, Path]:
    """Write the scripts that the host runs into the launch's folder, where they can be read too."""
    offline = "export HF_HUB_OFFLINE=1\n" if launch.upload_model else ""
    recipe = shlex.join([".venv/bin/python", RECIPE, *launch.flags])
    texts = {
        "setup.sh": launch.setup,
        "train.sh": "export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false WANDB_MODE=offline\n"
        f'export HF_HOME="$PWD/hf"\n{offline}exec {recipe}\n',
    }
    base = Path(launch.upload_model or "")
    if base.parent.name == "snapshots":  # by this file the hub's cache knows the newest revision
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
    folder = shlex.quote(host.remote)
    install = f"bash {folder}/install.sh tmux >/dev/null 2>&1"
    host.run(f"command -v tmux >/dev/null || {install}; command -v tmux", timeout=600)
    run = "tmux new-session -d -s judge 'bash run.sh >run.log 2>&1'"
    host.run(f"cd {folder} && {{ [ -e started ] || {run}; }} && touch started")
    launch.save(stage="training")
    log.info(
        "started in tmux, without this terminal too: `%s` follows it", launch.command("attach")
    )


def refuse_keys(launch: Launch, options: Mapping[str, object], account_key: str) -> None:
    """Look for this machine's keys in all that would be sent; raises UserError at the first.

    Weights are not searched.
    """
    keys = {name: value.encode() for name, value in keys_here(account_key).items()}

    def search(what: object, content: bytes) -> None:
        for name, key in keys.items():
            if key in content:
                raise UserError(f"{what} holds the value of {name}: take it out; it never leaves")

    search("the request to create", repr(options).encode())
    for path in (payload(launch) | scripts(launch)).values():
        if path.suffix not in WEIGHTS:
            search(path, path.read_bytes())


def keys_here(account_key: str) -> dict[str, str]:
    """Find this machine's keys: Vast's, the hub's, W&B's in netrc, variables named like a key.

    Returns:
        Where each comes from -> the key.
    """
    from huggingface_hub import get_token

    keys = {n: v for n, v in os.environ.items() if any(word in n.upper() for word in SECRET_WORDS)}
    keys |= {"the Vast account's key": account_key, "the hub's token": get_token() or ""}
    with suppress(OSError, netrc.NetrcParseError):
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
        keys |= {f"netrc, {host}": entry[2] or "" for host, entry in hosts.items()}
    return {name: key for name, key in keys.items() if len(key) >= SHORTEST_KEY}
