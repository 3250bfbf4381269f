"""One table of settings for both recipes: flag, default, check, help.

A value comes from the command line, else from `--config FILE` (YAML or JSON), else from the
recipe's default. No flag has a default in argparse, so that no default can override the file.
"""

import argparse
import difflib
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn

from pt_app.core.errors import UserError

Recipe = Literal["mps", "cuda"]
RECIPES: tuple[Recipe, ...] = ("mps", "cuda")
Where = Literal["cpu", "mps", "cuda"]
SAMPLE = 100  # rows on which a lower --score_precision is compared with float32
PLATFORMS: tuple[Where, ...] = ("cpu", *RECIPES)

Check = Callable[[Any], str | None]  # returns what a value must be, or None where it is valid


def _number(low: float, *, above: bool = False, high: float = math.inf) -> Check:
    def check(value: Any) -> str | None:
        bound = f"{'above' if above else 'at least'} {low:g}"
        if high < math.inf:
            bound += f" and below {high:g}"
        right = math.isfinite(value) and value < high and (value > low if above else value >= low)
        return None if right else f"a number {bound}"

    return check


def _one_of(*names: str) -> Check:
    return lambda value: None if value in names else f"one of {', '.join(names)}"


def _filled(value: Any) -> str | None:
    return None if str(value).strip() else "a text that is not empty"


def _setting(
    help: str,
    default: Any = None,
    *,
    check: Check = _filled,
    mps: Any = None,
    cuda: Any = None,
    only: Recipe | None = None,
) -> Any:
    defaults = {"mps": default if mps is None else mps, "cuda": default if cuda is None else cuda}
    return field(metadata={"help": help, "defaults": defaults, "check": check, "only": only})


@dataclass(frozen=True)
class Settings:
    """Every resolved setting of a training run; the field names are the flags."""

    model: str = _setting(
        "base model: hub id, folder, or 'tiny' (shipped, needs no network)",
        mps="Qwen/Qwen2-1.5B-Instruct",
        cuda="Qwen/Qwen2.5-3B-Instruct",
    )
    data_dir: str = _setting(
        "dataset folder with judge_{train,val,test}.json", "datasets/judge_eval"
    )
    output_dir: str = _setting("folder for runs and adapters", "adapters_eval")
    project_name: str = _setting("project in W&B and Weave", "judge-training")
    epochs: float = _setting("passes over the training rows", 3.0, check=_number(0, above=True))
    batch_size: int = _setting("examples per micro-batch", mps=1, cuda=2, check=_number(1))
    gradient_accumulation: int = _setting(
        "micro-batches per optimizer step", mps=4, cuda=2, check=_number(1)
    )
    lr: float = _setting("peak learning rate", 2e-4, check=_number(0, above=True))
    warmup_steps: float = _setting(
        "steps of linear warm-up; below 1: a fraction of all steps", 0.03, check=_number(0)
    )
    pack_tokens: int = _setting(
        "maximum tokens per forward pass in training; rows share their common prefixes",
        2048,
        check=_number(16),
    )
    group_variants: bool = _setting(
        "keep the rows of a source in one optimizer step, where they fit", False
    )
    train_precision: str = _setting(
        "precision of the frozen base in training: auto (float32; 16 bits on GPUs), float32, bf16",
        "auto",
        check=_one_of("auto", "float32", "bf16"),
    )
    activation_checkpointing: str = _setting(
        "full: recompute each layer in the backward pass, for less memory; none: keep all",
        check=_one_of("none", "full"),
        mps="none",
        cuda="full",
    )
    shard_base: bool = _setting(
        "shard the frozen base over the processes (FSDP2), if one GPU cannot hold it", False
    )
    max_seq_length: int = _setting("maximum tokens of prompt and answer", 512, check=_number(16))
    max_samples: int = _setting(
        "number of training rows, drawn by the seed; 0: all", 0, check=_number(0)
    )
    test_samples: int = _setting(
        "number of test rows, drawn by the seed; 0: all", 0, check=_number(0)
    )
    lora_r: int = _setting("LoRA rank", 16, check=_number(1))
    lora_alpha: int = _setting(
        "LoRA alpha; the update is scaled by alpha / r", 32, check=_number(1)
    )
    lora_dropout: float = _setting("dropout probability before LoRA", 0.0, check=_number(0, high=1))
    lora_targets: str = _setting(
        "modules that get LoRA, separated by commas, or all-linear", "q_proj,k_proj,v_proj,o_proj"
    )
    eval_steps: int = _setting(
        "steps between validations, which keep the best weights; 0: never validate",
        100,
        check=_number(0),
    )
    save_steps: int = _setting(
        "steps between checkpoints; 0: only those of the best validation and of the end",
        100,
        check=_number(0),
    )
    allow_leaks: bool = _setting(
        "train although texts occur on both sides of the split; every report then says so", False
    )
    seed: int = _setting(
        "seed of order, initialisation and samples", 42, check=_number(0, high=2**32)
    )
    seeds: int = _setting(
        "number of adapters to train, with seeds from --seed on; their spread is reported",
        1,
        check=_number(1),
    )
    folds: int = _setting(
        "number of folds: one adapter is trained per fold, each row is tested once; 0: none",
        0,
        check=_number(0),
    )
    skip_eval: bool = _setting("skip the evaluation after training", False)
    feedback: bool = _setting("also generate issues and feedback in the evaluation", False)
    score_precision: str = _setting(
        "precision of the evaluation: float32 (exact), bf16, int8",
        "float32",
        check=_one_of("float32", "bf16", "int8"),
    )
    resume: str = _setting(
        "resume from the newest complete checkpoint of RUN, or of the newest unfinished run",
        "off",
    )
    tracking: str = _setting(
        "W&B and Weave: auto, online, offline, off",
        "auto",
        check=_one_of("auto", "online", "offline", "off"),
    )
    log_texts: bool = _setting("send the texts of rows to the tracking servers too", False)
    no_4bit: bool = _setting("keep the base in 16 bits instead of NF4", False, only="cuda")


def table(recipe: Recipe) -> dict[str, tuple[type, Mapping[str, Any]]]:
    """Return (type, metadata with help, defaults, check) by flag, for the settings of `recipe`."""
    types = typing.get_type_hints(Settings)
    return {
        f.name: (types[f.name], f.metadata)
        for f in fields(Settings)
        if f.metadata["only"] in (None, recipe)
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; judge train --help lists the flags")


def recipe_of(platform: Where) -> Recipe:
    """Return the recipe that trains on `platform`: on a CPU the one that needs no bitsandbytes."""
    return "mps" if platform == "cpu" else platform


def build_parser(recipe: Recipe | None, prog: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of a recipe, in which a flag is absent unless given; None: both recipes."""
    parser = _Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="settings file, YAML or JSON")
    for name, (kind, meta) in table(recipe or "cuda").items():
        help = f"{meta['help']} ({_default(meta, recipe)})".replace("%", "%%")
        if kind is bool:
            parser.add_argument(f"--{name}", action="store_true", default=None, help=help)
        elif name == "resume":
            parser.add_argument("--resume", nargs="?", const="newest", metavar="RUN", help=help)
        else:
            parser.add_argument(f"--{name}", metavar=kind.__name__.upper(), help=help)
    return parser


def _default(meta: Mapping[str, Any], recipe: Recipe | None) -> str:
    defaults = meta["defaults"]
    if recipe or defaults["mps"] == defaults["cuda"]:
        return f"default: {defaults[recipe or 'mps']}"
    return "default: " + ", ".join(f"{defaults[name]} in {name}" for name in RECIPES)


def _convert(name: str, kind: type, check: Check, raw: Any, where: str) -> Any:
    """Convert `raw` to the setting's type; YAML reads 2e-4 as text, so texts may be numbers."""
    wrong = UserError(f"{where}: {name} is {raw!r}, expected {kind.__name__}; see --help")
    if kind is bool:
        if not isinstance(raw, bool):
            raise wrong
        return raw
    if isinstance(raw, bool) or not isinstance(raw, (str, int, float)):
        raise wrong
    try:
        value = kind(raw)
    except (ValueError, OverflowError):
        raise wrong from None
    if kind is int and isinstance(raw, float) and raw != value:
        raise wrong
    expected = check(value)
    if expected:
        raise UserError(f"{where}: {name} is {raw}, must be {expected}")
    return value


def read_config(path: Path, known: Sequence[str]) -> dict[str, Any]:
    """Read a YAML or JSON settings file.

    Raises:
        UserError: if the file cannot be read or holds a key that is not in `known`.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give --config an existing file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is neither YAML nor JSON: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected lines like 'lr: 2e-4', found {type(values).__name__}")
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise UserError(f"{path}: unknown key {key!r}; the nearest known one is {near[0]!r}")
    return values


def check_flags(argv: Sequence[str], prog: str, recipe: Recipe | None = None) -> Settings:
    """Resolve the settings of `argv` for `recipe`, or for the first recipe that accepts them.

    Only torch can tell which recipe is this machine's, and its import takes seconds. What every
    recipe refuses is therefore refused before.

    Raises:
        UserError: if every recipe refuses `argv`.
    """
    *others, last = (recipe,) if recipe else RECIPES
    for other in others:
        try:
            return resolve(other, argv, prog, "")
        except UserError:  # perhaps a flag that the next one has
            continue
    return resolve(last, argv, prog, "")


def resolve(recipe: Recipe, argv: Sequence[str] | None, prog: str, description: str) -> Settings:
    """Resolve the settings of a run: command line over config file over the recipe's defaults.

    Raises:
        UserError: for an unknown flag or key, a wrong type or a value out of range.
    """
    given = vars(build_parser(recipe, prog, description).parse_args(argv))
    config = given.pop("config")
    known = table(recipe)
    from_file = read_config(Path(config), list(known)) if config else {}
    resolved: dict[str, Any] = {}
    for name, (kind, meta) in known.items():
        raw, where = meta["defaults"][recipe], "default"
        if name in from_file:
            raw, where = from_file[name], config
        if given[name] is not None:
            raw, where = given[name], "command line"
        resolved[name] = _convert(name, kind, meta["check"], raw, where)
    return Settings(**{"no_4bit": False} | resolved)
