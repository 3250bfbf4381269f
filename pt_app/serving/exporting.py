"""`judge export`: a judge for other engines, compared with the trained one before it is kept."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pt_app.core.errors import UserError
from pt_app.core.files import (
    cannot_write,
    refuse_overwrite,
    staged_folder,
    write_json_atomic,
    write_text_atomic,
)
from pt_app.core.questions import chosen
from pt_app.models import adapters, bases
from pt_app.models.adapters import AdapterInfo
from pt_app.serving.decision_checkpoint import checkpoint_questions, write_checkpoint
from pt_app.serving.engines import LLAMA_CPP, MLX, imported
from pt_app.serving.options import Dtype, ExportOptions, ParityOptions, Target
from pt_app.serving.parity import FILE, Parity, Reference, data_of, parity, refuse_questions

MODEL, LORA = "judge.gguf", "judge-lora.gguf"
BASE = "base.gguf"  # beside the LoRA for the comparison alone
DTYPES: dict[Target, tuple[Dtype, ...]] = {
    "merged": ("float32", "float16", "bfloat16"),
    "mlx": ("float32", "float16", "bfloat16"),
    "gguf": ("float32", "float16", "bfloat16", "q8_0"),
    "gguf-lora": ("float32",),
    "transformers": ("float32",),
}
MODELFILE = """\
# ollama create NAME -f Modelfile. Ollama takes text alone: control tokens that a candidate holds
# count there, and of the probabilities it gives the 20 largest. Use it for trusted candidates.
FROM ./{file}
TEMPLATE "{{{{ .Prompt }}}}"
PARAMETER temperature 0
"""
NOTE = """
Give token ids, not text: a server that renders a chat itself makes control tokens of what a
candidate holds.
"""
USE = """
`transformers.pipeline("decision", model=FOLDER)` takes `{{"state": ..., "questions": ...}}`: as the
state an object with the fields {fields} as texts, and any of these questions, under any
name but in these words and this order of options:

```json
{questions}
```

It reads the token that tells the verdicts apart, not the rest of their lines, and cuts nothing. The
files of calibration are for the judge's own confidence.
"""


def export(adapter: Path, to: Target, out: Path, data: Path, options: ExportOptions) -> Parity:
    """Write a judge for another engine into the folder `out`, if it gives the judge's numbers.

    Raises:
        UserError: for an `out` that exists, a precision or an adapter that the target does not
            have or would compute otherwise, and an engine for the comparison that is not installed.
    """
    refuse_overwrite([out], [adapter, data])
    if out.exists():
        raise UserError(f"{out} exists: name another --out")
    if options.dtype not in DTYPES[to]:
        raise UserError(f"--dtype {options.dtype}: {to} has {', '.join(DTYPES[to])}")
    info = _with_questions(adapters.verify_adapter(adapter), to, options)
    _require_engine(to)
    data_of(info, data)  # refused before anything is loaded and written
    with staged_folder(out) as staged:
        model = _loaded(info, to, options)
        with _writing(out):
            target = _written(model, info, to, staged, options.dtype)
        del model  # the reference loads its own
        own = ParityOptions(rows=options.rows, base=options.base, seed=options.seed)
        references = Reference.of(info, data, own, to == "transformers")
        found = parity(references, [target], own, f"{to}:{out.name}")
        if found.decision != "same":
            return found
        with _writing(out):
            (staged / BASE).unlink(missing_ok=True)
            write_json_atomic(staged / FILE, found.as_json())
            _add_records(info, staged, to, options, found)
            os.replace(staged, out)
    return found


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Raise UserError where what is written below fails; what is read has errors of its own."""
    try:
        yield
    except OSError as error:
        raise UserError(cannot_write(out, error)) from error


def _with_questions(info: AdapterInfo, to: Target, options: ExportOptions) -> AdapterInfo:
    """Take the questions that are named; raise UserError for those that the target cannot hold."""
    if to != "transformers" or (options.questions and not info.questions):
        refuse_questions(info)
        if options.questions:
            raise UserError(f"--questions {options.questions}: there are none: leave it out")
        return info
    names = [name.strip() for name in options.questions.split(",") if name.strip()]
    some = chosen(info.questions, names, f"--questions {options.questions}")
    info = replace(info, asked=some or info.asked)
    checkpoint_questions(info, bases.load_tokenizer(info.folder))
    return info


def _require_engine(to: Target) -> None:
    """Raise UserError where what the export is compared with is not installed."""
    if to == "mlx":
        imported("mlx_lm.utils", MLX)
    elif to.startswith("gguf"):
        imported("xllamacpp", LLAMA_CPP)


def _loaded(info: AdapterInfo, to: Target, options: ExportOptions) -> Any:
    """Load the model whose files are written: the judge, or the base that its LoRA goes beside."""
    source = adapters.base_of(info, options.base)
    if to != "gguf-lora":
        return adapters.load_merged(info.folder, source)
    adapters.check_base(info, bases.model_identity(source))
    return bases.load_model(source)


def _written(model: Any, info: AdapterInfo, to: Target, folder: Path, dtype: Dtype) -> str:
    """Write the model's files and return what `judge parity` is asked to compare."""
    if to in ("merged", "mlx"):
        save_folder(model, info, folder, dtype)
        return f"{to}:{folder}"
    if to == "transformers":
        write_checkpoint(model, info, bases.load_tokenizer(info.folder), folder)
        _copy_tokenizer(info, folder)
        return f"{to}:{folder}"
    from pt_app.serving import gguf_files

    if to == "gguf":
        name = info.folder.resolve().name
        gguf_files.write_model(model, info.folder, folder / MODEL, dtype, name)
        return f"gguf:{folder / MODEL}"
    gguf_files.write_lora(info, model.config, folder / LORA)
    gguf_files.write_model(model, info.folder, folder / BASE, "float32", info.base_name)
    return f"gguf:{folder / BASE}+{folder / LORA}"


def save_folder(model: Any, info: AdapterInfo, folder: Path, dtype: Dtype) -> None:
    """Write a folder that transformers and mlx-lm load."""
    model.config._name_or_path = ""  # the base's path
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    config = bases.read_json(folder / bases.CONFIG)
    # mlx-lm (0.32) reads rope_theta at top level, and takes its own default where it is absent;
    # transformers 5 writes it into rope_parameters alone: half of the verdicts would be wrong.
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None:
        config["rope_theta"] = theta
    write_json_atomic(folder / bases.CONFIG, config)
    _copy_tokenizer(info, folder)


def _copy_tokenizer(info: AdapterInfo, folder: Path) -> None:
    names = (*(path.name for path in bases.tokenizer_files(info.folder)), adapters.TEMPLATE)
    for name in (*names, "tokenizer_config.json"):
        shutil.copyfile(info.folder / name, folder / name)


def _add_records(
    info: AdapterInfo, folder: Path, to: Target, options: ExportOptions, found: Parity
) -> None:
    """Put beside the weights what is needed to read and trust them."""
    for path in (info.folder / adapters.JUDGE, *info.folder.glob("calibration*.json")):
        shutil.copyfile(path, folder / path.name)
    if to == "gguf":
        write_text_atomic(folder / "Modelfile", MODELFILE.format(file=MODEL))
    write_text_atomic(folder / adapters.CARD, _card(info, to, options.dtype, found))


def _card(info: AdapterInfo, to: Target, dtype: Dtype, found: Parity) -> str:
    asked = ", ".join(question.name for question in info.questions)
    what = f"questions {asked}" if asked else f"scale {info.scale.name}"
    head = f"# {info.folder.resolve().name}, {to} in {dtype}\n\n"
    head += f"Judge {found.judge} on base {info.base_name}, {what}.\n\n"
    head += "| engine | rows and attacks | largest change of a probability | allowed | verdicts |\n"
    head += "|---|---|---|---|---|\n"
    rows = [
        f"| {f'{t.question}: ' if t.question else ''}{t.engine} | {t.rows} and {t.attacks} "
        f"| {t.probability:.2g} | {t.limit:g} | {t.verdicts} change |\n"
        for t in found.targets
    ]
    note = NOTE
    if to == "transformers":
        each = checkpoint_questions(info, bases.load_tokenizer(info.folder))
        requests = {one.name: one.wire.as_systemone() for one in each}
        asked = json.dumps(requests, ensure_ascii=False, indent=2)
        note = USE.format(fields=", ".join(info.row_fields), questions=asked)
    return head + "".join(rows) + note
