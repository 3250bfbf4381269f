"""Base models: where a name leads, which files count, how they are loaded, which base it is.

People have all kinds of folders on disk: Git LFS pointers in place of files, halves of downloads,
weights that are quantised already, an adapter written into the base's folder. Each of these is
reported in one line before anything is loaded. Importing this module does not import torch.
"""

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pt_app
from pt_app.core import files
from pt_app.core.chat_templates import NAMED, give
from pt_app.core.errors import UserError
from pt_app.core.files import cannot_read, cannot_write, expanded, is_full, sha256_file
from pt_app.core.records import checked
from pt_app.models import gguf
from pt_app.models.known_bases import fetched, known_bases, name_of
from pt_app.models.loading import check_names, short, without_report

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

TINY = "tiny"
HUB_TIMEOUT = 5.0  # seconds that a hub may take to answer before it counts as out of reach
# A conversation as training lays it out: what its template writes must have an embedding.
TURNS = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
INDEX = "model.safetensors.index.json"
TOKENIZER = ["*.json", "*.txt", "*.jinja", "tokenizer*", "*.model"]
WANTED = [*TOKENIZER, "model*.safetensors"]
OLDER_TOKENIZER_FILES = ("merges.txt", "spiece.model", "tokenizer.model", "vocab.json")
LFS = b"version https://git-lfs.github.com/spec/"

log = logging.getLogger(__name__)

Identity = dict[str, str | None]


@dataclass(frozen=True)
class ModelSource:
    """A base model on disk: its recorded name, its folder, its revision on the hub."""

    name: str
    path: Path
    revision: str | None = None


def shipped() -> Path:
    """Return the folder of the base that comes with the package.

    Raises:
        UserError: if it is missing.
    """
    folder = Path(pt_app.__file__).parent / "tiny_base" / "shipped"
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder} holds no base: build one with `judge base train --output ...`")
    return folder


def is_local(name: str) -> bool:
    """Return whether no hub is asked for `name`: a base of `judge base list`, a folder, a file."""
    return name == TINY or name in known_bases() or expanded(name).exists()


def resolve_model(name: str) -> ModelSource:
    """Find the model that `name` means, or an id on the hub (cache first).

    It may be "tiny", a folder, a GGUF file, which is converted, or a name of `judge base list`.

    Raises:
        UserError: if it is none of them, or the folder holds no whole model.
    """
    source = _local(name) or _on_hub(name, WANTED)
    check_base_folder(source.path)
    if record := gguf.Record.of(source.path):
        log.info("%s: quantised as %s, dequantised to float32", source.name, record.quantization)
    return source


def resolve_tokenizer(name: str) -> ModelSource:
    """Find the model whose tokenizer `name` means, as `resolve_model`; weights are not needed.

    Raises:
        UserError: if there is no such model; `load_tokenizer` checks its files.
    """
    return _local(name, weights=False) or _on_hub(name, TOKENIZER)


def _local(name: str, weights: bool = True) -> ModelSource | None:
    """Return a base that is asked of no hub, or its tokenizer alone; None if `name` is none."""
    path = expanded(name)
    if name == TINY:
        return ModelSource(TINY, shipped())
    try:
        is_file = path.is_file()
    except OSError as error:  # such as a folder above it that may not be searched
        raise UserError(cannot_read(path, error)) from error
    if is_file:
        _refuse_pointer(path)
        digest = gguf.hash_of(path)
        path = gguf.converted(path, name_of(digest), digest, weights)
    elif name in known_bases() and not path.is_dir():
        path = fetched(name)
    elif path.suffix == gguf.SUFFIX and not path.exists():
        raise UserError(f"{path} is not there: correct the path of the GGUF file")
    if not path.is_dir():
        return None
    record = gguf.Record.of(path)
    return ModelSource(record.name if record else path.resolve().name, path)


def _on_hub(name: str, patterns: list[str]) -> ModelSource:
    path = from_cache(name, patterns) or fetch(name, patterns)
    return ModelSource(name, path, path.name)


def from_cache(name: str, patterns: list[str] = WANTED) -> Path | None:
    """Return the snapshot of a hub model in the local cache, if a complete one is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    complete = tokenizer_files if patterns is TOKENIZER else weight_files
    try:
        path = Path(snapshot_download(name, local_files_only=True, allow_patterns=patterns))
        return path if complete(path) else None
    except (LocalEntryNotFoundError, HFValidationError, UserError):
        return None


def fetch(name: str, patterns: list[str] = WANTED) -> Path:
    """Fetch the newest revision of a hub model into the local cache; return its folder there.

    Raises:
        UserError: if the hub does not answer, or has no such model, or the cache cannot be written.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT)  # gives up in time where there is no hub
        # Fetched by branch: the cache keeps no name for a snapshot that was fetched by its commit,
        # and a process with the hub off would not find it.
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the HTTP library's own errors, which change with its version
        if is_full(error) or isinstance(error, PermissionError):
            raise UserError(cannot_write(Path(constants.HF_HUB_CACHE), error)) from error
        raise UserError(
            f'model "{name}" is neither a folder nor in the local cache, and the hub does not give '
            f"it ({type(error).__name__}): use --model tiny, or fetch it where there is a network "
            f"with `hf download {name}`"
        ) from error


def check_base_folder(folder: Path) -> None:
    """Check that `folder` holds one whole base model that can be loaded as it is.

    Raises:
        UserError: names the file at fault.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        # transformers would put the adapter on the base, and the base's hash would not say so.
        base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        raise UserError(
            f'{folder} holds an adapter ({ADAPTER_CONFIG}): name its base ("{base}"), or, if the '
            "base lies there too, move the adapter's files into a folder of their own"
        )
    if not (folder / CONFIG).is_file():
        inside = next((f", or the file {path.name} in it" for path in folder.glob("*.gguf")), "")
        raise UserError(f"{folder} has no {CONFIG}: name a model's folder{inside}")
    if quantized := read_json(folder / CONFIG).get("quantization_config"):
        where = f"{folder / CONFIG}, field quantization_config"
        quantized = checked(dict[str, object], quantized, where, _again(folder))
        method = quantized.get("quant_method", "an unknown method")
        raise UserError(
            f"{folder}: its weights are quantised already ({method}): name the original model"
        )
    for path in weight_files(folder):
        _check_safetensors(path)


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files that make up a model, sorted by name.

    Raises:
        UserError: if there are none, or one that the index names is missing.
    """
    names = ["model.safetensors"]
    if not (folder / names[0]).is_file() and (folder / INDEX).is_file():
        shards = read_json(folder / INDEX).get("weight_map") or None
        where = f"{folder / INDEX}, field weight_map"
        names = sorted(set(checked(dict[str, str], shards, where, _again(folder)).values()))
    for name in names:
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}: {_again(folder)}, or save it with save_pretrained"
            )
    return [folder / name for name in names]


def wanted_files(folder: Path) -> list[Path]:
    """List what is needed elsewhere of a model's folder: its weights, configuration, tokenizer.

    Whatever else lies there (.env, .git, data) stays.

    Raises:
        UserError: as `weight_files`.
    """
    others = {path for pattern in TOKENIZER for path in folder.glob(pattern) if path.is_file()}
    kept = {p for p in others if not p.name.startswith(".") and p.suffix != ".safetensors"}
    return sorted({*weight_files(folder), *kept})


def tokenizer_files(folder: Path) -> list[Path]:
    """List the files that make up a tokenizer; none where the folder has no tokenizer."""
    if (folder / "tokenizer.json").is_file():
        return [folder / "tokenizer.json"]
    return [folder / name for name in OLDER_TOKENIZER_FILES if (folder / name).is_file()]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises UserError if the file is a Git LFS pointer or damaged."""
    _refuse_pointer(path)
    return files.read_json(path, remedy=_again(path.parent))


def _check_safetensors(path: Path) -> None:
    """Compare a file's size with what its header says; costs some KB of reading."""
    from safetensors import SafetensorError, safe_open

    _refuse_pointer(path)
    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        size = f"{path.stat().st_size:,} bytes"
        raise UserError(
            f"{path} is truncated, or not a safetensors file ({size}; {error}): "
            f"{_again(path.parent)}"
        ) from error


def _again(folder: Path) -> str:
    """Say how a damaged base is replaced: a conversion in the cache would be taken again."""
    if (folder / gguf.RECORD).exists():
        return f"remove {folder}, and fetch or convert it again"
    return "fetch it again"


def _refuse_pointer(path: Path) -> None:
    """Raise UserError if the file cannot be read, or is a Git LFS pointer in place of a file."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(LFS))
    except OSError as error:
        raise UserError(cannot_read(path, error)) from error
    if start == LFS:
        raise UserError(
            f"{path} is a Git LFS pointer, not the file itself: run git lfs pull, or hf download"
        )


def model_identity(source: ModelSource) -> Identity:
    """Identify a base: name, hub revision, sha256 of its weights and of its tokenizer.

    Each hash runs over the bytes of the files in order of their names, so that for one file it is
    what `sha256sum` prints. A base from a GGUF file adds its quantisation, and the file's own hash.
    No path is in it.
    """
    identity: Identity = {
        "name": source.name,
        "revision": source.revision,
        "weights_sha256": sha256_file(*weight_files(source.path)),
        "tokenizer_sha256": sha256_file(*tokenizer_files(source.path)),
    }
    if record := gguf.Record.of(source.path):
        identity |= {"quantization": record.quantization, "gguf_sha256": record.sha256}
    return identity


def short_identity(source: ModelSource) -> dict[str, str | int | None]:
    """Identify a base without reading its weights: name, revision, size, tokenizer's hash."""
    return {
        "name": source.name,
        "revision": source.revision,
        "weights_bytes": sum(path.stat().st_size for path in weight_files(source.path)),
        "tokenizer_sha256": sha256_file(*tokenizer_files(source.path)),
    }


def load_tokenizer(
    source: ModelSource | Path, chat_template: str = ""
) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a base or of an adapter's folder; a missing pad token is set.

    Args:
        source: the base, or the adapter's folder.
        chat_template: the name or file of a template that takes the place of its own.

    Raises:
        UserError: if it does not load or has no chat template that counts as the default.
    """
    folder = source if isinstance(source, Path) else source.path
    tokenizer = read_tokenizer(folder)
    if chat_template:
        give(tokenizer, chat_template)
    elif isinstance(templates := tokenizer.chat_template, dict):
        # The others are for tools and the like.
        if "default" not in templates:
            raise UserError(
                f"{folder}: its chat templates are named {', '.join(sorted(templates))}, and none "
                "is the default: write the one to use into chat_template.jinja in that folder"
            )
        tokenizer.chat_template = templates["default"]
    if not tokenizer.chat_template:
        raise UserError(
            f"{folder}: its tokenizer has no chat template: give it one with --chat_template "
            f"({', '.join(NAMED)} or a file), or use an instruct model"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def read_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Read a tokenizer as it is; raises UserError if it does not load."""
    from transformers import AutoTokenizer

    own = tokenizer_files(folder)
    if not own:
        raise UserError(f"{folder} has no tokenizer.json: name a model's or a tokenizer's folder")
    for path in [*own, *folder.glob("*.json")]:
        _refuse_pointer(path)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises a plain Exception for a file that is cut
        problem = f"its tokenizer does not load ({short(error)})"
        raise UserError(f"{folder}: {problem}: {_again(folder)}") from error


def check_model(source: ModelSource, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Check that the weights of a base fit its architecture, and its tokens their embedding.

    No weight is read: the names and shapes in the files are compared with a model without storage,
    which takes a tenth of a second for a small base.

    Raises:
        UserError: as `load_model`, for a chat template that fails, and for tokens that a prompt
            can hold and that have no embedding.
    """
    embeddings = load_model(source, device="meta").get_input_embeddings().num_embeddings
    written = _written(source, tokenizer)
    # Other added tokens become text in prompts, so that they need no embedding: Gemma 3's smallest
    # has one for images and none of its own kind.
    added = tokenizer.added_tokens_decoder
    plain = {token for token in tokenizer.get_vocab().values() if token not in added}
    needed = {*written, *plain, tokenizer.pad_token_id, tokenizer.eos_token_id} - {None}
    beyond = sorted(token for token in needed if token >= embeddings)
    if beyond:
        names = ", ".join(map(str, tokenizer.convert_ids_to_tokens(beyond[:3])))
        raise UserError(
            f'model "{source.name}": its tokenizer has {len(tokenizer):,} tokens and the model '
            f"{embeddings:,} embeddings: none for {names}: take the tokenizer that belongs to the "
            "model, or save the model again after resize_token_embeddings"
        )


def _written(source: ModelSource, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens of a conversation; raises UserError if the chat template fails."""
    problem = ""
    # A template may refuse a system turn; PromptEncoder has a way for it.
    for turns in (TURNS, TURNS[1:]):
        try:
            ids: list[int] = tokenizer.apply_chat_template(turns, return_dict=False)
            return ids
        except Exception as error:  # of Jinja, and whatever a template does to the turns
            problem = short(error)
    raise UserError(
        f'model "{source.name}": its chat template fails ({problem}): correct it, or give another '
        f"with --chat_template ({', '.join(NAMED)} or a file)"
    )


def load_model(
    source: ModelSource,
    dtype: "torch.dtype | None" = None,
    device: "str | torch.device | None" = None,
    quantization_config: "BitsAndBytesConfig | None" = None,
) -> "PreTrainedModel":
    """Load the causal language model of `source` in `dtype` (float32) on `device` (the CPU).

    With `quantization_config` the weights are quantised on `device` as they are read. Else they are
    read on the CPU and moved, since a device map adds hooks to every layer; on "meta" none is read.

    Raises:
        UserError: if the weights do not load, need code from the hub, are not those of the
            architecture, or are not finite in `dtype`.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from pt_app.models.gemm import weights_in_own_pages

    device, dtype = torch.device(device or "cpu"), dtype or torch.float32
    mapped = quantization_config is not None or device.type == "meta"
    try:
        with weights_in_own_pages(), without_report():
            model, report = AutoModelForCausalLM.from_pretrained(
                source.path,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with their names
                dtype=dtype,
                quantization_config=quantization_config,
                device_map={"": device} if mapped else None,
            )
    except ImportError as error:
        what = f'model "{source.name}" needs a package that is not installed: {short(error)}'
        if quantization_config is not None:
            what = f"a 4-bit base needs bitsandbytes ({short(error)}): "
            what += "pip install -r requirements-cuda.txt"
        raise UserError(what) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        problem = f"does not load ({short(error)}): fetch it again, or choose another --model"
        raise UserError(f'model "{source.name}" {problem}') from error
    check_names(source.name, type(model).__name__, report)
    if device.type != "meta":
        # In the files, since NF4 turns a NaN into a number.
        check_finite(source, dtype if quantization_config is None else torch.float32)
    return model if mapped else model.to(device)


def check_finite(source: ModelSource, dtype: "torch.dtype") -> None:
    """Raise UserError for a weight of `source` that is NaN or infinite, or becomes so in `dtype`.

    This reads the files, at a third of a second per GB, once per process for the same files.
    """
    for path in weight_files(source.path):
        status = path.stat()
        if key := _not_finite(path, dtype, status.st_size, status.st_mtime_ns):
            problem = f"{key} holds numbers that are not finite in {dtype}"
            raise UserError(f"{path}: {problem}: {_again(path.parent)}")


@cache
def _not_finite(path: Path, dtype: "torch.dtype", *_: int) -> str | None:
    """Return the first tensor of a file with a number that is not finite in `dtype`."""
    import torch
    from safetensors import safe_open

    limit = torch.finfo(dtype).max
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  (it is no mapping)
            weight = file.get_tensor(key)
            if weight.is_floating_point() and weight.numel():
                low, high = torch.aminmax(weight)  # NaN where there is one
                if not (float(low) >= -limit and float(high) <= limit):
                    return str(key)
    return None
