"""What goes to the host, and the start of the run there. No key of the person is among it."""

import logging
import netrc
import os
import shlex
from collections.abc import Iterator, Mapping
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
# The watchdog may be at apt-get too, and a lock that is held fails it.
APT = (
    "for _ in 1 2 3 4 5 6 7 8; do "
    "apt-get update -q && apt-get install -yq {} && break; sleep 5; done"
)
SETUP = f"""set -e
if ! python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; then
  export DEBIAN_FRONTEND=noninteractive
  {APT.format("python3 python3-venv")}
fi
python3 -m venv .venv
.venv/bin/pip install --quiet -r requirements-cuda.txt
"""
WEIGHTS = {".safetensors", ".pt", ".bin", ".pth"}
SHORTEST_KEY = 12
log = logging.getLogger("pt_app.rented")


def code_files() -> dict[str, Path]:
    """The code that the host runs: the package and its requirements, nothing else of the folder."""
    files = {name: ROOT / name for name in CODE}
    for path in sorted((ROOT / "pt_app").rglob("*")):
        if path.is_file() and path.suffix in SUFFIXES and "__pycache__" not in path.parts:
            files[path.relative_to(ROOT).as_posix()] = path
    return files


def data_files(folder: Path) -> dict[str, Path]:
    """A dataset's files as the host gets them: rows, card, split and a template of its own."""
    from pt_app.core.dataset import read_card

    found = [folder / name for name in DATA]
    template = Path(read_card(folder).template)
    if template.is_absolute():
        found += sorted(template.rglob("*.txt"))
    name = folder.resolve().name
    return {
        f"data/{name}/{p.relative_to(folder.absolute()).as_posix()}": p
        for p in (one.absolute() for one in found)
        if p.is_file()
    }


def base_files(launch: Launch) -> dict[str, Path]:
    """The base where it is copied up: a folder as one, a hub's model as its cache would hold it."""
    if launch.upload_model is None:
        return {}
    folder = Path(launch.upload_model)
    there = "models/" + folder.name
    if folder.parent.name == "snapshots":
        there = f"hf/hub/{folder.parents[1].name}/snapshots/{folder.name}"
    return {f"{there}/{path.name}": path for path in wanted_files(folder)}


def resumed_files(run: Path) -> dict[str, Path]:
    """What the recipe needs of a run in order to go on with it."""
    files = [run / "settings.json", run / "tracking.json", run / "train.log"]
    for folder in run.glob("checkpoint-*"):
        if checkpoints.fault(folder) is None:
            files += [path for path in folder.rglob("*") if path.is_file()]
    return {
        f"adapters_eval/{path.relative_to(run.parent).as_posix()}": path
        for path in files
        if path.is_file()
    }


def scripts(launch: Launch) -> dict[str, Path]:
    """The scripts that the host runs, as files here, where they can be read too."""
    offline = ["export HF_HUB_OFFLINE=1"] if launch.upload_model else []
    train = [
        "export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false WANDB_MODE=offline",
        'export HF_HOME="$PWD/hf"',
        *offline,
        "exec " + shlex.join([".venv/bin/python", RECIPE, *launch.flags]),
        "",
    ]
    texts = {"setup.sh": launch.setup, "train.sh": "\n".join(train)}
    for name, text in texts.items():
        (launch.folder / name).write_text(text, encoding="utf-8")
    files = {name: launch.folder / name for name in texts}
    refs = hub_ref(launch)
    if refs:
        (launch.folder / "ref").write_text(refs[1], encoding="utf-8")
        files[refs[0]] = launch.folder / "ref"
    return files | {"run.sh": Path(__file__).with_name("run.sh")}


def hub_ref(launch: Launch) -> tuple[str, str] | None:
    """(name, content) of the file by which a hub's cache knows the newest revision."""
    folder = Path(launch.upload_model or "")
    if folder.parent.name != "snapshots":
        return None
    return f"hf/hub/{folder.parents[1].name}/refs/main", folder.name


def everything(launch: Launch) -> dict[str, Path]:
    """All files that go to the host: name there -> file here."""
    files = code_files() | data_files(Path(launch.data_dir)) | base_files(launch)
    if launch.resume:
        files |= resumed_files(Path(launch.resume))
    return files | scripts(launch)


def start(host: Host, launch: Launch) -> None:
    """Send everything, and start it in tmux; a second start does nothing."""
    files = everything(launch)
    size = sum(path.stat().st_size for path in files.values())
    log.info("copying %d files up, %.1f MB", len(files), size / 1e6)
    host.send(files)
    remote = shlex.quote(host.remote)
    host.run(
        f"command -v tmux >/dev/null || {{ {APT.format('tmux')}; }} >/dev/null 2>&1; "
        "command -v tmux",
        timeout=600,
    )
    host.run(
        f"cd {remote} && {{ [ -e started ] || "
        "tmux new-session -d -s judge 'bash run.sh >run.log 2>&1'; } && touch started"
    )
    launch.save(stage="training")
    log.info("started in tmux; this terminal may be closed: `%s` goes on", launch.command("attach"))


def refuse_keys(launch: Launch, options: Mapping[str, object], account_key: str) -> None:
    """Look for this machine's keys in all that would be sent; raises UserError at the first.

    Weights are not looked through.
    """
    keys = {name: value.encode() for name, value in keys_here(account_key).items()}
    for what, content in _all_sent(launch, options):
        for name, key in keys.items():
            if key in content:
                raise UserError(f"{what} holds the value of {name}: take it out; it never leaves")


def keys_here(account_key: str) -> dict[str, str]:
    """Where from -> key: of Vast, of variables named like one, of W&B's netrc, of the hub."""
    from huggingface_hub import get_token

    found = {n: v for n, v in os.environ.items() if any(word in n.upper() for word in SECRET_WORDS)}
    found |= {"the Vast account's key": account_key, "the hub's token": get_token() or ""}
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
        found |= {f"netrc, {host}": entry[2] or "" for host, entry in hosts.items()}
    except (OSError, netrc.NetrcParseError):
        pass
    return {name: value for name, value in found.items() if len(value) >= SHORTEST_KEY}


def _all_sent(launch: Launch, options: Mapping[str, object]) -> Iterator[tuple[str, bytes]]:
    yield "the request to create", repr(options).encode()
    for path in everything(launch).values():
        if path.suffix not in WEIGHTS:
            yield str(path), path.read_bytes()
