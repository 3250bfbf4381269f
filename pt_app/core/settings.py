"""The settings of both recipes, as one table of flags; settings.toml describes them.

A value comes from the command line, else from `--config FILE` (YAML or JSON), else from the
recipe's default.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from pt_app.core.errors import UserError
from pt_app.core.flags import Flag, Parser, filled, flags_of, read_config, resolved

Recipe = Literal["mps", "cuda"]
RECIPES: tuple[Recipe, ...] = ("mps", "cuda")
Where = Literal["cpu", "mps", "cuda"]
SAMPLE = 100  # rows on which a lower --score_precision is compared with float32
Precision = Literal["float32", "bf16", "int8"]
TrackingMode = Literal["auto", "online", "offline", "off"]
MODES: tuple[TrackingMode, ...] = ("auto", "online", "offline", "off")
SERVERS, SINKS = {"wandb", "weave"}, {"wandb", "weave", "tensorboard"}
_FILE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
DEFAULTS: dict[str, dict[Recipe, object]] = _FILE["defaults"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every resolved setting of a training run."""

    ABOUT: ClassVar = _FILE["flags"]

    model: str
    data_dir: str = "datasets/judge_eval"
    output_dir: str = "adapters_eval"
    project_name: str = "judge-training"
    epochs: float = 3.0
    batch_size: int
    gradient_accumulation: int
    lr: float = 2e-4
    warmup_steps: float = 0.03
    pack_tokens: int = 2048
    group_variants: bool = False
    train_precision: Literal["auto", "float32", "bf16"] = "auto"
    activation_checkpointing: Literal["none", "full"]
    shard_base: bool = False
    max_seq_length: int = 512
    max_samples: int = 0
    test_samples: int = 0
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_targets: str = "q_proj,k_proj,v_proj,o_proj"
    eval_steps: int = 100
    save_steps: int = 100
    allow_leaks: bool = False
    seed: int = 42
    seeds: int = 1
    folds: int = 0
    skip_eval: bool = False
    feedback: bool = False
    score_precision: Precision = "float32"
    resume: str = "off"
    tracking: str = "auto"
    log_texts: bool = False
    no_4bit: bool = False


CUDA_ONLY = ("no_4bit",)


def table(recipe: Recipe | None) -> dict[str, Flag]:
    """Return the flags of a recipe by name; None: of both, where a default may name both."""
    flags = {}
    for each in flags_of(Settings):
        if own := DEFAULTS.get(each.name):
            both = ", ".join(f"{value} in {name}" for name, value in own.items())
            each = replace(each, default=own[recipe] if recipe else both)
        if recipe != "mps" or each.name not in CUDA_ONLY:
            flags[each.name] = each
    return flags


def read_tracking(value: str) -> tuple[TrackingMode, set[str]]:
    """Read a value of --tracking.

    Returns:
        How W&B and Weave are used ("off": not at all), and the sinks that record the run. A mode
        without wandb or weave means both; either of these without a mode means `auto`.

    Raises:
        UserError: for an unknown word, and for a mode that contradicts another word.
    """
    words = {word.strip() for word in value.split(",")}
    modes, sinks = [mode for mode in MODES if mode in words], words & SINKS
    if words - sinks - set(MODES) or len(modes) > 1 or (modes == ["off"] and sinks):
        raise UserError(
            f"--tracking {value}: choose one of {', '.join(MODES)}, or list any of wandb, weave "
            "and tensorboard, with one of auto, online and offline if need be"
        )
    mode: TrackingMode = modes[0] if modes else "auto" if sinks & SERVERS else "off"
    return mode, sinks if mode == "off" or sinks & SERVERS else sinks | SERVERS


def recipe_of(platform: Where) -> Recipe:
    """Return the recipe that trains on `platform`: on a CPU the one that needs no bitsandbytes."""
    return "mps" if platform == "cpu" else platform


def build_parser(recipe: Recipe | None, prog: str, description: str) -> Parser:
    """Return the parser of a recipe; None: of both recipes."""
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--config", metavar="FILE", help="settings file, YAML or JSON")
    parser.add_flags(table(recipe).values())
    return parser


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
    flags = table(recipe).values()
    config = given.get("config") or ""
    from_file = read_config(Path(config), flags) if config else {}
    values = resolved(flags, ("command line", given), (config, from_file))
    settings = filled(Settings, {"no_4bit": False} | values)
    read_tracking(settings.tracking)
    return settings
