"""Base models: where a name leads, how a model and its tokenizer are loaded, which one it is."""

import hashlib
import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pt_app.errors import UserError

if TYPE_CHECKING:
    import torch

TINY = "tiny"
INDEX = "model.safetensors.index.json"
WANTED = ["*.json", "model*.safetensors", "*.txt", "*.jinja", "tokenizer*", "*.model"]
OLDER_TOKENIZER_FILES = ("merges.txt", "spiece.model", "tokenizer.model", "vocab.json")
HUB_TIMEOUT = 5.0  # seconds that a hub may take to answer before it counts as out of reach


@dataclass(frozen=True)
class ModelSource:
    """A base model on disk: the name to write down, its folder, its revision on the hub."""

    name: str
    path: Path
    revision: str | None = None


def is_local(name: str) -> bool:
    """Whether `name` means the shipped base or a folder here: then no hub is asked for it."""
    return name == TINY or Path(name).expanduser().is_dir()


def resolve_model(name: str) -> ModelSource:
    """Find the model that `name` means: "tiny", a folder, or an id on the hub (cache first).

    Raises UserError where it is none of them, or where the folder is not a loadable model.
    """
    folder = Path(name).expanduser()
    if name == TINY:
        from pt_app.base_model import shipped

        source = ModelSource(TINY, Path(shipped()))
    elif folder.is_dir():
        source = ModelSource(folder.resolve().name, folder)
    else:
        path = from_cache(name) or fetch(name)
        source = ModelSource(name, path, path.name)
    if not (source.path / "config.json").is_file():
        raise UserError(f'model "{name}": {source.path} has no config.json; name a model\'s folder')
    weight_files(source.path)
    return source


def from_cache(name: str) -> Path | None:
    """Give the complete snapshot of a hub model in the local cache, if there is one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, local_files_only=True, allow_patterns=WANTED))
        weight_files(path)
    except (LocalEntryNotFoundError, HFValidationError, UserError):
        return None
    return path


def fetch(name: str) -> Path:
    """Fetch the newest revision of a hub model into the local cache; give its snapshot's folder.

    Raises UserError where the hub does not answer, or has no such model.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT)  # gives up in time where there is no hub
        # By the branch: of a snapshot fetched by its commit the cache keeps no name, and a process
        # with the hub off would not find it.
        return Path(snapshot_download(name, allow_patterns=WANTED))
    except Exception as error:  # the HTTP library's own errors, which change with its version
        raise UserError(
            f'model "{name}" is neither a folder nor in the local cache, and the hub does not give '
            f"it ({type(error).__name__}): use --model tiny, or fetch it where there is a network "
            f"with `hf download {name}`"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files that make up a model, sorted by name.

    Raises UserError where there are none, or one that the index names is missing.
    """
    names = ["model.safetensors"]
    if not (folder / names[0]).is_file() and (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    for name in names:
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}: fetch the model again, or save it with "
                "save_pretrained, which writes safetensors"
            )
    return [folder / name for name in names]


def wanted_files(folder: Path) -> list[Path]:
    """List what of a model's folder is needed elsewhere: its weights, configuration, tokenizer.

    Whatever else lies there (.env, .git, data) stays. Raises UserError as `weight_files`.
    """
    weights = {path.name for path in weight_files(folder)}
    return sorted(
        path
        for path in folder.iterdir()
        if path.name in weights
        or (
            path.is_file()
            and not path.name.startswith(".")
            and not path.name.endswith(".safetensors")
            and any(fnmatch(path.name, pattern) for pattern in WANTED)
        )
    )


def model_identity(source: ModelSource) -> dict[str, str | None]:
    """Say which base this is: name, hub revision, sha256 of its weights and of its tokenizer.

    Each hash runs over the bytes of the files in order of their names, so that for one file it is
    what `sha256sum` prints. No path is in it.
    """
    return {
        "name": source.name,
        "revision": source.revision,
        "weights_sha256": _sha256(weight_files(source.path)),
        "tokenizer_sha256": _sha256(_tokenizer_files(source.path)),
    }


def short_identity(source: ModelSource) -> dict[str, Any]:
    """Which base this is, without reading its weights: name, revision, size, tokenizer's hash."""
    return {
        "name": source.name,
        "revision": source.revision,
        "weights_bytes": sum(path.stat().st_size for path in weight_files(source.path)),
        "tokenizer_sha256": _sha256(_tokenizer_files(source.path)),
    }


def _tokenizer_files(folder: Path) -> list[Path]:
    if (folder / "tokenizer.json").is_file():
        return [folder / "tokenizer.json"]
    return [folder / name for name in OLDER_TOKENIZER_FILES if (folder / name).is_file()]


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def load_tokenizer(source: ModelSource | Path) -> Any:
    """Load the tokenizer of a base or of an adapter's folder; a missing pad token is set.

    Raises UserError where it does not load or has no chat template.
    """
    from transformers import AutoTokenizer

    folder = source if isinstance(source, Path) else source.path
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: its tokenizer does not load ({_short(error)})") from error
    if tokenizer.chat_template is None:
        raise UserError(f"{folder}: its tokenizer has no chat template; use an instruct model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_model(
    source: ModelSource,
    dtype: "torch.dtype | None" = None,
    device: "str | torch.device | None" = None,
    quantization_config: Any = None,
) -> Any:
    """Load the causal language model of `source` in `dtype` (float32) on `device` (the CPU).

    With `quantization_config` the weights are quantised on `device` as they are read. Else they are
    read on the CPU and moved, since a device map adds hooks to every layer. Raises UserError
    where the weights do not load, or need code from the hub.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from pt_app.eval_model.gemm import weights_apart

    device = torch.device(device or "cpu")
    options: dict[str, Any] = {"dtype": dtype or torch.float32}
    if quantization_config is not None:
        options |= {"quantization_config": quantization_config, "device_map": {"": device}}
    try:
        with weights_apart():
            model = AutoModelForCausalLM.from_pretrained(
                source.path, trust_remote_code=False, use_safetensors=True, **options
            )
    except ImportError as error:
        raise UserError(
            f"a 4-bit base needs bitsandbytes ({_short(error)}): "
            "pip install -r requirements-cuda.txt"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(f'model "{source.name}" does not load: {_short(error)}') from error
    return model if quantization_config is not None else model.to(device)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:200] + "..."
