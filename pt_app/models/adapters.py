"""Adapter folders: saved, verified, loaded, merged. docs/ADAPTERS.md is the contract."""

import copy
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pt_app.core import files
from pt_app.core.chat_templates import DAY, asks_for_the_date
from pt_app.core.choosing import resolved_rule
from pt_app.core.dataset import DatasetCard, JudgeData, card_scale
from pt_app.core.errors import UserError
from pt_app.core.files import sha256_file, write_json_atomic, write_text_atomic
from pt_app.core.formatting import NAMES, VERDICT_RULES, estimate
from pt_app.core.prompt_templates import Template, asked_fields
from pt_app.core.prompts import PromptEncoder
from pt_app.core.questions import Asked, Declared, Question, only_scale, questions_in, questions_of
from pt_app.core.records import checked
from pt_app.core.results import Results
from pt_app.core.settings import VerdictRule
from pt_app.core.verdicts import Scale, Task
from pt_app.models import bases, gguf
from pt_app.models.bases import ADAPTER_CONFIG as CONFIG
from pt_app.models.bases import Identity, ModelSource, read_json, tokenizer_files
from pt_app.models.provenance import without_absolute_paths

WEIGHTS = "adapter_model.safetensors"
JUDGE = "judge.json"
TRAINING = "training_config.json"
CARD = "README.md"
TEMPLATE = "chat_template.jinja"
REQUIRED = (CONFIG, WEIGHTS, JUDGE, TRAINING, CARD, "tokenizer_config.json", TEMPLATE)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

# Fields of adapter_config.json that say where it comes from, not what is computed.
NOT_COMPUTED = {"base_model_name_or_path", "revision", "inference_mode", "peft_version"}
NOT_COMPUTED |= {"auto_mapping", "task_type", "lora_dropout"}

# The content of one of the JSON files of an adapter.
Json = Mapping[str, Any]
AGAIN = "copy the adapter again"


class _Lora(BaseModel):
    """What is read of adapter_config.json beside what peft reads."""

    r: int
    lora_alpha: float
    target_modules: list[str] | str | None = None


class _Saved(BaseModel):
    """judge.json; those of earlier versions have neither rule nor date."""

    task: Literal[Task, "questions"]
    scale: str = ""  # of questions each has its own
    grid: str | None = None
    state: list[str] = []
    questions: dict[str, Declared] = {}
    template: Template
    max_seq_length: int = Field(gt=0, strict=True)
    verdict_rule: VerdictRule = "auto"
    day: Annotated[date, BeforeValidator(lambda value: date.fromisoformat(str(value)))] | None = (
        Field(default=None, alias="date")
    )


class _Base(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str | None]
    name: str


class Trained(BaseModel):
    """What is read of training_config.json; early versions had no settings."""

    base: _Base
    settings: dict[str, Any] = {}
    data: dict[str, Any] = {}


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter folder says about itself.

    Attributes:
        folder: where it is.
        identity: the base that it was trained on.
        asked: the scale of its verdicts, or its questions.
        state: the fields of a row that its questions are about.
        template: the template of its prompts.
        max_seq_length: maximum tokens of a prompt and its answer.
        rule: how a verdict is chosen from its probabilities.
        training: the content of training_config.json.
        config: the content of adapter_config.json.
        parameters: the number of its weights.
        day: the date that its chat template prints.
        sha256: over all that a verdict depends on; the names of judges end with its start.
    """

    folder: Path
    identity: Identity
    asked: Asked
    template: Template
    max_seq_length: int
    rule: VerdictRule
    training: dict[str, Any]
    config: dict[str, Any]
    parameters: int
    day: date
    sha256: str
    state: tuple[str, ...] = ()

    @property
    def scale(self) -> Scale:
        """The scale of its verdicts; raises UserError if it answers several questions."""
        return only_scale(self.asked)

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions that it answers; empty if it has a scale of its own."""
        return questions_in(self.asked)

    def shared_with(self, data: JudgeData) -> list[Question]:
        """Return the questions of a dataset that it answers; none if they are of other fields.

        They have its names, and its options in one order: results are found by the name, and
        compared position by position of a scale.
        """

        def same(question: Question) -> object:
            return question.name, question.content, question.scale, question.described

        own = [same(question) for question in self.questions]
        is_about = (*data.card.state,) == self.state
        return [question for question in data.questions if is_about and same(question) in own]

    @property
    def name(self) -> str:
        """The name of the judge: its folder, and the start of the hash."""
        return f"{self.folder.resolve().name}@{self.sha256[:12]}"

    @property
    def row_fields(self) -> list[str]:
        """The fields of a row that it is shown."""
        return [*self.state] or asked_fields(self.template, self.scale)

    @property
    def words(self) -> str:
        """The question that it was trained on in words, of a judge with one scale."""
        return self.template.words(self.scale)

    @property
    def base_name(self) -> str:
        """The base's hub id, or the bare name of its folder."""
        return str(self.identity["name"])


def adapter_folder_name(model_name: str, epochs: float, now: datetime) -> str:
    """Name a new adapter's folder: `<model>-judge-<epochs>ep-<YYYYMMDD_HHMMSS>_final`."""
    last = model_name.replace("\\", "/").rstrip("/").split("/")[-1]
    model = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.") or "model"
    return f"{model}-judge-{epochs:g}ep-{now:%Y%m%d_%H%M%S}_final"


def attach_lora(
    model: "PreTrainedModel", *, r: int, alpha: int, dropout: float, targets: str
) -> "PeftModel":
    """Put a fresh float32 LoRA adapter on `model`.

    `targets` are module names by commas, or "all-linear".

    Raises:
        UserError: if the model has none of them.
    """
    from peft import LoraConfig, get_peft_model

    names = [name.strip() for name in targets.split(",") if name.strip()]
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear" if names == ["all-linear"] else names,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        linear = {n.split(".")[-1] for n, m in model.named_modules() if "Linear" in str(type(m))}
        raise UserError(
            f"--lora_targets {targets}: the model has no such modules; it has "
            f"{', '.join(sorted(linear - {'lm_head'}))}, or use all-linear"
        ) from error


def save_adapter(
    model: "PeftModel",
    encoder: PromptEncoder,
    folder: Path,
    *,
    identity: Identity,
    training_config: Json,
    state: Sequence[str] = (),
) -> AdapterInfo:
    """Write the LoRA adapter of `model` as a complete folder or not at all.

    Tokenizer, template and scale are those of `encoder`, the fields of its questions are `state`.
    Of absolute paths in `training_config` the last part is kept.

    Raises:
        UserError: if `folder` exists, cannot be written, or a weight is not finite.
    """
    if folder.exists():
        raise UserError(f"{folder} exists: name another folder for the adapter")
    try:
        with files.staged_folder(folder) as staged:
            _write_weights(model, staged, identity)
            encoder.tokenizer.save_pretrained(staged)
            _write_judge(staged, encoder, state)
            training = without_absolute_paths({**training_config, "base": dict(identity)})
            write_json_atomic(staged / TRAINING, training)
            write_text_atomic(staged / CARD, "# Adapter\n")
            info = verify_adapter(staged)
            write_text_atomic(staged / CARD, _card(info, folder.name))
            # Flushed before the rename: files are complete or absent.
            for path in filter(Path.is_file, staged.rglob("*")):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            os.replace(staged, folder)
    except Exception as error:  # tokenizers has no kind of its own for a disk that is full
        if isinstance(error, UserError) or not (isinstance(error, OSError) or files.is_full(error)):
            raise
        raise UserError(files.cannot_write(folder, error)) from error
    return verify_adapter(folder)


def _write_weights(model: "PeftModel", folder: Path, identity: Identity) -> None:
    """Write weights and configuration as peft does, but float32, sorted, and without paths.

    PeftModel.save_pretrained would keep the base's absolute path in the card, the order of a set
    in target_modules, and the dtype of training.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    weights = {
        key: state[key].detach().to("cpu", torch.float32).contiguous().clone()
        for key in sorted(state)
    }
    # save_file would make a file that its owner alone can read, whatever the umask says.
    (folder / WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))
    config = copy.deepcopy(model.peft_config["default"])
    config.base_model_name_or_path = identity["name"]
    config.revision = identity["revision"]
    config.inference_mode = True
    if isinstance(config.target_modules, set | list | tuple):
        config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))


def _write_judge(folder: Path, encoder: PromptEncoder, state: Sequence[str]) -> None:
    if encoder.questions:
        declared = {q.name: q.declared.model_dump(exclude_none=True) for q in encoder.questions}
        asked: dict[str, object] = {"task": "questions", "state": [*state], "questions": declared}
    else:
        scale = encoder.scale
        grid = scale.grid and scale.grid.name
        asked = {"task": scale.task, "scale": scale.name, "grid": grid}
    judge = {
        "schema": 1,
        **asked,
        "max_seq_length": encoder.max_seq_length,
        "verdict_rule": encoder.asked_rule,
        "template": asdict(encoder.template),
        "weights_sha256": sha256_file(folder / WEIGHTS),
        "date": encoder.day.isoformat(),
        "config_sha256": config_sha256(read_json(folder / CONFIG)),
    }
    write_json_atomic(folder / JUDGE, judge)


def config_sha256(config: Json) -> str:
    """Hash what an adapter_config.json says about the computation.

    Another release of peft may write it in another order, with the defaults of its new fields: what
    is empty or off, and what only says where the adapter comes from, does not count.
    """
    computed = {
        key: sorted(value) if key == "target_modules" and isinstance(value, list) else value
        for key, value in config.items()
        if value and key not in NOT_COMPUTED
    }
    return sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()


def _judge_sha256(folder: Path, identity: Identity, config: str, judge: Json) -> str:
    """Hash all that a verdict depends on: weights, configuration, prompts, tokenizer, base.

    `calibration.json` is left out: it is fitted later, and moves no verdict.
    """
    parts = {
        "base": [identity.get(key) for key in ("weights_sha256", "tokenizer_sha256")],
        "config": config,
        "judge": {**judge, "config_sha256": None},
        "tokenizer": sha256_file(*tokenizer_files(folder)),
        "template": sha256_file(folder / TEMPLATE),
    }
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def verify_adapter(folder: Path) -> AdapterInfo:
    """Read an adapter folder and check all of it: files, hash, keys, dtype, finite weights.

    Raises:
        UserError: names the file at fault.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the folder of an adapter")
    for name in REQUIRED:
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: it is not a complete judge adapter")
    config, judge, training = (read_json(folder / name) for name in (CONFIG, JUDGE, TRAINING))
    checked(_Lora, config, folder / CONFIG, AGAIN)
    saved = checked(_Saved, judge, folder / JUDGE, AGAIN)
    identity = checked(Trained, training, folder / TRAINING, AGAIN).base.model_dump()
    parameters = _check_weights(folder / WEIGHTS, judge)
    _check_config(folder, config, judge, training)
    asked, rule = _asked(saved, folder / JUDGE), saved.verdict_rule
    return AdapterInfo(
        folder=folder,
        identity=identity,
        asked=asked,
        state=(*saved.state,),
        template=saved.template,
        max_seq_length=saved.max_seq_length,
        rule=resolved_rule(rule, asked) if isinstance(asked, Scale) else rule,
        training=training,
        config=config,
        parameters=parameters,
        day=saved.day or _day_of(folder),
        sha256=_judge_sha256(folder, identity, config_sha256(config), judge),
    )


def _asked(saved: _Saved, path: Path) -> Asked:
    if saved.task == "questions":
        return questions_of(saved.questions, f"{path}, field questions")
    if not saved.scale:  # a card without one has the usual one
        raise UserError(f"{path}, field scale: it is missing: {AGAIN}")
    scale = card_scale(DatasetCard(task=saved.task, scale=saved.scale), path)
    try:
        return scale.with_grid(saved.grid) if saved.grid else scale
    except UserError as error:
        raise UserError(f"{path}, field grid: {error}") from error


def _day_of(folder: Path) -> date:
    """Return the day of an adapter without a date: when it was trained, by its folder's name."""
    match = re.search(r"ep-(\d{8})_\d{6}_final$", folder.resolve().name)
    try:
        return datetime.strptime(match[1], "%Y%m%d").date() if match else DAY
    except ValueError:
        return DAY


def encoder_of(info: AdapterInfo, tokenizer: "PreTrainedTokenizerBase") -> PromptEncoder:
    """Make prompts as the adapter was trained with, by the tokenizer of its folder."""
    if asks_for_the_date(tokenizer):
        message = "%s: its prompts named the day on which they were made; now it is always %s"
        log.warning(message, info.folder, info.day)
    length, day, rule = info.max_seq_length, info.day, info.rule
    return PromptEncoder(tokenizer, info.template, info.asked, length, day, rule)


def _check_config(folder: Path, config: Json, judge: Json, training: Json) -> None:
    """Compare adapter_config.json with what the judge was saved with.

    Judges of version 0.1 have no hash of it; their training's own settings are compared.
    """
    path, settings = folder / CONFIG, training.get("settings") or {}
    if not config.get("target_modules"):  # peft would choose modules by the architecture
        raise UserError(f"{path} names no target_modules: copy the adapter again")
    for name, setting in (("r", "lora_r"), ("lora_alpha", "lora_alpha")):
        trained = settings.get(setting)
        if trained not in (None, config[name]):
            raise UserError(
                f"{path}: {name} is {config[name]}, and the judge was trained with {trained}: "
                "copy the adapter again"
            )
    own = config_sha256(config)
    if judge.get("config_sha256", own) != own:
        raise UserError(f"{path} is not the one that the judge was saved with: copy it again")


def _check_weights(path: Path, judge: Json) -> int:
    """Check the weights file and count its parameters."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if sha256_file(path) != judge.get("weights_sha256"):
        raise UserError(f"{path} is damaged (its hash is not that of {JUDGE}): copy it again")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): copy it again") from error
    for key, weight in weights.items():
        if weight.dtype != torch.float32:
            raise UserError(f"{path}: {key} is {weight.dtype}, not float32; save the adapter again")
        if not bool(torch.isfinite(weight).all()):
            raise UserError(f"{path}: {key} holds numbers that are not finite; train it again")
    if not any(".lora_A." in key for key in weights):
        raise UserError(f"{path} holds no LoRA weights; train it again")
    return sum(weight.numel() for weight in weights.values())


def load_adapter(folder: Path, base_model: "PreTrainedModel", identity: Identity) -> "PeftModel":
    """Put the adapter on `base_model`, whose `model_identity` is given; the base is changed.

    Raises:
        UserError: if the adapter is damaged, its weights are not all loaded, or it was trained on
            another base: the same names with other weights would give other verdicts.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    check_base(verify_adapter(folder), identity)
    try:
        model = PeftModel.from_pretrained(base_model, folder, torch_device="cpu")
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder / CONFIG} does not fit the weights or the base ({reason}): copy it again"
        ) from error
    # peft drops weights that have no place in the model without an error.
    own = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        saved = set(file.keys())
    for what, keys in (("has no place for", saved - own), ("lacks", own - saved)):
        if keys:
            raise UserError(
                f"{folder / CONFIG} does not fit {WEIGHTS}: the adapter {what} {len(keys)} "
                f"weights (such as {min(keys)}): copy the adapter again"
            )
    return model.eval()


def base_of(info: AdapterInfo, named: str | None = None) -> ModelSource:
    """Find the base of an adapter: the one that is `named` (--base), else by its own name.

    Raises:
        UserError: if there is no such base, and as `base_place`.
    """
    return bases.resolve_model(base_place(info, named))


def base_place(info: AdapterInfo, named: str | None = None) -> str:
    """Return what --model would say for the base of an adapter, as `base_of` finds it.

    Raises:
        UserError: where it was a folder or file and none is named: an adapter does not keep its
            path.
    """
    name = named or info.base_name
    from_folder = info.identity.get("revision") is None and info.base_name != bases.TINY
    digest = info.identity.get("gguf_sha256")
    if named is None and digest and gguf.folder_of(digest).is_dir():
        return str(gguf.folder_of(digest))
    if named is None and from_folder and not bases.is_local(name):
        kind, place = ("GGUF file", "FILE") if digest else ("folder", "FOLDER")
        raise UserError(
            f'{info.folder} was trained on a base from a {kind}, "{name}", whose path it does not '
            f'keep: name it with --base {place} (base="{place}" in Python)'
        )
    return name


def check_base(info: AdapterInfo, identity: Identity) -> None:
    """Raise UserError where the adapter was trained on another base than that of `identity`."""
    for key in ("weights_sha256", "tokenizer_sha256"):
        if info.identity.get(key) != identity.get(key):
            trained, given = (
                f'"{base.get("name")}" ({key.partition("_")[0]} {str(base.get(key))[:12]})'
                for base in (info.identity, identity)
            )
            raise UserError(
                f"{info.folder} was trained on {trained}, not on {given}: load it on its own base"
            )


def merge(model: "PeftModel") -> "PreTrainedModel":
    """Merge an adapter into its base, and return the plain model.

    Raises:
        UserError: for weights other than float32: a quantised base would be rounded again, which
            changes the verdicts.
    """
    import torch

    if any(weight.dtype != torch.float32 for weight in model.parameters()):
        raise UserError("an adapter is merged into a float32 base only: load the base in float32")
    return model.merge_and_unload(safe_merge=True)


def load_merged(folder: Path, source: ModelSource) -> "PreTrainedModel":
    """Load a base in float32, and merge the adapter of `folder` into it; raises UserError."""
    return merge(load_adapter(folder, bases.load_model(source), bases.model_identity(source)))


def update_model_card(folder: Path, results: Results) -> None:
    """Rewrite the card of a saved adapter with the results of its evaluation."""
    write_text_atomic(folder / CARD, _card(verify_adapter(folder), folder.name, results))


def _card(info: AdapterInfo, name: str, results: Results | None = None) -> str:
    """Write the card of an adapter as Markdown with YAML front matter.

    Each number of its evaluation is shown with its interval and n.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    environment.filters["json"] = json.dumps
    template = Path(__file__).with_name("model_card.md.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        info=info,
        title=name,
        results=results,
        names=NAMES,
        rules=VERDICT_RULES,
        estimate=estimate,
    )
