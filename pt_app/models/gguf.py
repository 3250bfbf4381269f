"""GGUF files as bases: checked, dequantised to float32 once, and kept in a cache by their hash.

`--model FILE.gguf` is converted into `$JUDGE_CACHE/gguf/<sha256>`, an ordinary folder of
safetensors with a record of where it comes from. Two processes convert a file once: the second
waits. Importing this module does not import torch.
"""

import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pt_app.core import files
from pt_app.core.errors import UserError
from pt_app.core.files import cache_folder, held, sha256_file, write_json_atomic
from pt_app.core.records import checked
from pt_app.models.loading import check_names, short, without_report

if TYPE_CHECKING:
    from gguf import GGUFReader

MAGIC, SUFFIX = b"GGUF", ".gguf"
RECORD = "gguf.json"
PLAIN = {"F32", "F16", "BF16", "F64"}  # types of tensors that are not quantised
# How a byte-level vocabulary splits texts (tokenizer.ggml.pre, llama.cpp's llama-vocab.cpp): as
# GPT-2's, which transformers takes for each that it does not know; these split digits first.
LIKE_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe", "gigachat"}
DIGITS_FIRST = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """Where a converted folder comes from: the content of its gguf.json.

    Attributes:
        name: the recorded name of the base.
        file: the name of the GGUF file.
        sha256: of that file.
        quantization: the types of its quantised tensors, those with the most bytes first.
    """

    name: str
    file: str
    sha256: str
    quantization: str

    @staticmethod
    def of(folder: Path) -> "Record | None":
        """Read the record of a folder; None for a folder that was not converted."""
        path, remedy = folder / RECORD, "remove that folder, and convert the GGUF file again"
        if not path.exists():
            return None
        return checked(Record, files.read_json(path, remedy=remedy), path, remedy)


def folder_of(sha256: str) -> Path:
    """Return where the conversion of a GGUF file lies, or will."""
    return cache_folder() / "gguf" / sha256


def hash_of(file: Path) -> str:
    """Return the SHA-256 of a GGUF file; raises UserError for a file of another kind."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(len(MAGIC))
    except OSError as error:
        raise UserError(files.cannot_read(file, error)) from error
    if start != MAGIC:
        raise UserError(f"{file} is not a GGUF file: name one, a model's folder, or a hub id")
    return sha256_file(file)


def converted(file: Path, name: str, sha256: str, weights: bool = True) -> Path:
    """Return the folder of a GGUF file in float32, which is converted if it has not been yet.

    Args:
        file: the GGUF file.
        name: the recorded name of the base; "": the file's without its ending.
        sha256: the hash of the file.
        weights: whether more than the tokenizer is needed.

    Raises:
        UserError: if the file cannot be a base, or the cache cannot be written.
    """
    folder = folder_of(sha256)
    if not weights and not folder.is_dir():
        folder = cache_folder() / "tokenizers" / sha256
    if not folder.is_dir():
        with held(folder.with_name(f".{sha256}.lock"), f"{file.name} is being converted", True):
            if not folder.is_dir():
                convert(file, folder, name or file.stem, sha256, weights)
    return folder


def convert(file: Path, folder: Path, name: str, sha256: str, weights: bool = True) -> None:
    """Dequantise a GGUF file to float32 into `folder`, which is complete or absent.

    Raises:
        UserError: as `converted`.
    """
    reader = _read(file)
    record = Record(name, file.name, sha256, _quantization(reader))
    if weights:
        log.info("%s: dequantising %s to float32 into %s", file, record.quantization, folder)
    staged = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)  # of a process that was killed; the lock is ours
    try:
        staged.mkdir(parents=True)
        _save_tokenizer(file, staged, _field(reader, "tokenizer.ggml.pre"))
        if weights:
            _save_model(file, staged)
        write_json_atomic(staged / RECORD, asdict(record))
        for path in staged.iterdir():
            with open(path, "rb") as written:
                os.fsync(written.fileno())
        os.replace(staged, folder)
    except Exception as error:
        if isinstance(error, OSError) or files.is_full(error):
            raise UserError(files.cannot_write(folder, error)) from error
        raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _read(file: Path) -> "GGUFReader":
    """Read the header of a GGUF file, and check that transformers can make a whole base of it."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        remedy = "pip install gguf, or make install again"
        raise UserError(f"a GGUF file needs the package gguf ({error}): {remedy}") from error
    try:
        reader = GGUFReader(file)
        _check_fields(file, reader)
    except UserError:
        raise
    except Exception as error:  # it reads past the end of an array, and numpy says so in many ways
        size = f"{file.stat().st_size:,} bytes"
        raise UserError(
            f"{file} is truncated or damaged ({size}; {short(error)}): fetch it again"
        ) from error
    return reader


def _check_fields(file: Path, reader: "GGUFReader") -> None:
    """Refuse what transformers does not read, or would leave out without a word."""
    architecture = _field(reader, "general.architecture")
    if architecture not in (known := _architectures()):
        raise UserError(
            f'{file}: transformers does not read the architecture "{architecture}" from a GGUF '
            f"file: name the original model; it reads {', '.join(sorted(known))}"
        )
    if (shards := _field(reader, "split.count") or 1) > 1:
        raise UserError(
            f"{file} is one of {shards} shards: merge them with llama-gguf-split --merge"
        )
    if "tokenizer.ggml.tokens" not in reader.fields:
        raise UserError(f"{file} holds no tokenizer: name a GGUF file with one, or the original")
    scaling = _field(reader, f"{architecture}.rope.scaling.type") or "none"
    factors = [t for t in reader.tensors if t.name.startswith("rope_f") and (t.data != 1).any()]
    if factors or (scaling != "none" and architecture != "gpt-oss"):
        # transformers 5.23 leaves both out, and the model then computes something else.
        what = f"the tensor {factors[0].name}" if factors else f"{scaling} scaling"
        raise UserError(
            f"{file}: its rotary embedding has {what}, which transformers does not read from a "
            "GGUF file: name the original model"
        )


def _field(reader: "GGUFReader", key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _architectures() -> set[str]:
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    return {*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS}


def quantization_of(file: Path) -> str:
    """Name the types of the quantised tensors of a file, else of the plain one with most bytes."""
    return _quantization(_read(file))


def _quantization(reader: "GGUFReader") -> str:
    """Name the types of the quantised tensors, those with the most bytes first."""
    sizes = Counter[str]()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_bytes)
    names = [name for name, _ in sizes.most_common()]
    return "+".join([name for name in names if name not in PLAIN] or names[:1])


@contextmanager
def _alone(file: Path) -> Iterator[str]:
    """Give a folder that holds the file and nothing else.

    transformers also reads what lies beside a GGUF file: another model's tokenizer, an adapter.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, file.name).symlink_to(file.resolve())
        yield folder


def _save_tokenizer(file: Path, folder: Path, splitting: str | None) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    try:
        with _alone(file) as place:
            tokenizer = AutoTokenizer.from_pretrained(
                place, gguf_file=file.name, trust_remote_code=False
            )
    except Exception as error:  # of tokenizers and of transformers' readers, of many kinds
        raise UserError(f"{file}: its tokenizer does not load ({short(error)})") from error
    if splitting in DIGITS_FIRST:
        backend, digits = tokenizer.backend_tokenizer, pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    elif splitting not in {None, *LIKE_GPT2, *GGUF_PRE_TOKENIZER_SPLITS}:
        log.warning("%s: its texts are split as GPT-2's, not as %s", file, splitting)
    tokenizer.save_pretrained(folder)


def _save_model(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    try:
        with _alone(file) as place, without_report():
            model, report = AutoModelForCausalLM.from_pretrained(
                place,
                gguf_file=file.name,
                trust_remote_code=False,
                dtype=torch.float32,
                # Else it would stay in its blocks where there is a kernel for them, as on Apple.
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
            )
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        raise UserError(f"{file} does not load: {short(error)}") from error
    check_names(file.name, type(model).__name__, report)
    # save_pretrained refuses a model that counts as quantised; this one is so no longer.
    model.hf_quantizer = None
    with suppress(AttributeError):
        del model.config.quantization_config
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    files.give_mode_of(folder / "config.json", folder.glob("*.safetensors"))
