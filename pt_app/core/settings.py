"""The settings of both recipes, as one table of flags.

A value comes from the command line, else from `--config FILE` (YAML or JSON), else from the
recipe's default.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pt_app.core.errors import UserError
from pt_app.core.flags import Flag, Parser, filled, flag, flags_of, read_config, resolved

Recipe = Literal["mps", "cuda"]
PRESETS = Path(__file__).with_name("presets")
RECIPES: tuple[Recipe, ...] = ("mps", "cuda")
Where = Literal["cpu", "mps", "cuda"]
PROBE_ROWS = 2000
PROBE_HELP = "maximum training rows of the probe on the base's hidden states; 0: no probe"
SAMPLE = 100  # rows on which a lower --score_precision or a faster --reading is compared
Precision = Literal["float32", "bf16", "int8"]
VerdictRule = Literal["auto", "mean", "median", "mode"]
By = Literal["group", "time", "row"]  # what a split of a dataset keeps together
Order = Literal["both", "as_given"]  # in which pairs are judged
ReadingMode = Literal["auto", "exact", "branches"]
READING_HELP = (
    "exact: read whole lines of verdicts; branches: leave out tokens that hardly differ between "
    "rows; auto: branches from 25 verdicts on"
)
TrackingMode = Literal["auto", "online", "offline", "off"]
MODES: tuple[TrackingMode, ...] = ("auto", "online", "offline", "off")
SERVERS, SINKS = {"wandb", "weave"}, {"wandb", "weave", "tensorboard"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every resolved setting of a training run; `also` has the names of transformers and TRL."""

    model: str = flag(
        "base model: hub id, folder, GGUF file, name of judge base list, or 'tiny' (shipped, needs "
        "no network)",
        also="model_name_or_path",
    )
    chat_template: str = flag(
        "chat template in place of the base's own, for one that has none: chatml, gemma, plain or "
        "a file; without a value chatml",
        "",
        const="chatml",
        also="chat_template_path",
        unit="name or file",
    )
    data_dir: str = flag("dataset folder with judge_{train,val,test}.json", "datasets/judge_eval")
    output_dir: str = flag("folder for runs and adapters", "adapters_eval")
    project_name: str = flag("project in W&B and Weave", "judge-training")
    epochs: float = flag("passes over the training rows", 3.0, above=0, also="num_train_epochs")
    batch_size: int = flag("examples per micro-batch", low=1, also="per_device_train_batch_size")
    gradient_accumulation: int = flag(
        "micro-batches per optimizer step", low=1, also="gradient_accumulation_steps"
    )
    lr: float = flag("peak learning rate", 2e-4, above=0, also="learning_rate")
    warmup_steps: float = flag(
        "length of the linear warm-up; below 1: a fraction of all steps", 0.03, low=0, unit="steps"
    )
    pack_tokens: int = flag(
        "maximum length of a pack of rows, which share prefixes", 2048, low=16, unit="tokens"
    )
    group_variants: bool = flag("keep the rows of a source in one step, where they fit", False)
    train_precision: Literal["auto", "float32", "bf16"] = flag(
        "precision of the frozen base; auto: float32, 16 bits on GPUs", "auto"
    )
    activation_checkpointing: Literal["none", "full"] = flag(
        "full: recompute each layer in the backward pass, for less memory; none: keep all",
        also="gradient_checkpointing",
        means={True: "full", False: "none"},
    )
    shard_base: bool = flag(
        "shard the frozen base over the processes (FSDP2), if one GPU cannot hold it", False
    )
    max_seq_length: int = flag(
        "maximum length of prompt and answer", 512, low=16, unit="tokens", also="max_length"
    )
    grid: str = flag(
        "coarser scale on which verdicts are trained and read, such as 0-9; auto: 0-9 if a scale "
        "of over 11 verdicts has under 50 training rows for each; off: none",
        "auto",
        unit="scale",
    )
    questions: str = flag(
        "questions to train, of a dataset that declares several; default: all", "", unit="list"
    )
    question_weights: str = flag(
        "weights of questions in the loss, such as tone=2,offer=0.5; default: 1 for each, however "
        "many labels it has",
        "",
        unit="list",
    )
    max_samples: int = flag("number of training rows, drawn by the seed; 0: all", 0, low=0)
    test_samples: int = flag("number of test rows, drawn by the seed; 0: all", 0, low=0)
    lora_r: int = flag("LoRA rank", 16, low=1)
    lora_alpha: int = flag(
        "LoRA alpha; the update is scaled by alpha / r", 32, low=1, also="lora.lora_alpha"
    )
    lora_dropout: float = flag(
        "dropout probability before LoRA", 0.0, low=0, below=1, also="lora.lora_dropout"
    )
    lora_targets: str = flag(
        "modules that get LoRA, separated by commas, or all-linear",
        "q_proj,k_proj,v_proj,o_proj",
        also="lora.target_modules lora_target_modules",
    )
    eval_steps: float = flag(
        "interval of validations, whose best weights are kept; one follows the last step; below 1: "
        "a fraction of all steps; 0: never",
        100,
        low=0,
        unit="steps",
    )
    patience: int = flag(
        "end training after that many validations without a better one; 0: never",
        0,
        low=0,
        also="early_stopping_patience",
    )
    save_steps: int = flag(
        "interval of checkpoints; 0: only the best and the last", 100, low=0, unit="steps"
    )
    allow_leaks: bool = flag(
        "train although texts occur on both sides of the split; every report then says so", False
    )
    seed: int = flag("seed of order, initialisation and samples", 42, low=0, below=2**32)
    seeds: int = flag(
        "number of adapters to train, with seeds from --seed on; their spread is reported", 1, low=1
    )
    folds: int = flag(
        "number of folds, with an adapter each; every row is tested once; 0: none", 0, low=0
    )
    skip_eval: bool = flag("skip the evaluation after training", False)
    feedback: bool = flag("also generate issues and feedback in the evaluation", False)
    score_precision: Precision = flag("precision of the evaluation; float32 is exact", "float32")
    verdict_rule: VerdictRule = flag(
        "how a verdict is chosen from its probabilities: mean (rounded), median or mode; auto: "
        "mean on scores, else mode",
        "auto",
    )
    reading: ReadingMode = flag(READING_HELP, "auto")
    probe_rows: int = flag(PROBE_HELP, PROBE_ROWS, low=0)
    resume: str = flag(
        "resume from the newest complete checkpoint of RUN, or of the newest unfinished run",
        "off",
        const="newest",
        unit="run",
    )
    tracking: str = flag(
        "how W&B and Weave record the run: auto, online, offline or off; or a list of wandb, weave "
        "and tensorboard, to which auto, online or offline may be added",
        "auto",
        unit="list",
    )
    log_texts: bool = flag("send the texts of rows to the tracking servers too", False)
    no_4bit: bool = flag(
        "keep the base in 16 bits instead of NF4",
        False,
        also="quantization.load_in_4bit load_in_4bit",
        means={True: False, False: True},
    )


# What the platforms force to differ.
DEFAULTS: dict[str, dict[Recipe, object]] = {
    "model": {"mps": "Qwen/Qwen2-1.5B-Instruct", "cuda": "Qwen/Qwen2.5-3B-Instruct"},
    "batch_size": {"mps": 1, "cuda": 2},
    "gradient_accumulation": {"mps": 4, "cuda": 2},
    "activation_checkpointing": {"mps": "none", "cuda": "full"},
}
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


def read_tracking(value: str, where: str = "--tracking") -> tuple[TrackingMode, set[str]]:
    """Read a value of --tracking; `where` names it in messages.

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
            f"{where} {value}: choose one of {', '.join(MODES)}, or list any of wandb, weave "
            "and tensorboard, with one of auto, online and offline if need be"
        )
    mode: TrackingMode = modes[0] if modes else "auto" if sinks & SERVERS else "off"
    return mode, sinks if mode == "off" or sinks & SERVERS else sinks | SERVERS


def recipe_of(platform: Where) -> Recipe:
    """Return the recipe that trains on `platform`: on a CPU the one that needs no bitsandbytes."""
    return "mps" if platform == "cpu" else platform


def presets() -> list[str]:
    """Return the names of the settings files that --preset takes."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_file(name: str) -> Path:
    """Return the settings file of a preset; raises UserError if there is none of that name."""
    if name not in presets():
        raise UserError(f"--preset {name}: must be one of {', '.join(presets())}")
    return PRESETS / f"{name}.yaml"


def build_parser(recipe: Recipe | None, prog: str, description: str) -> Parser:
    """Return the parser of a recipe; None: of both recipes."""
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--config", metavar="FILE", help="settings file, YAML or JSON")
    names = ",".join(presets())
    parser.add_argument(
        "--preset", metavar=f"{{{names}}}", help="named settings, which --config overrides"
    )
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
    """Resolve the settings of a run: command line, config file, preset, the recipe's defaults.

    Raises:
        UserError: for an unknown flag or key, a wrong type or a value out of range.
    """
    given = vars(build_parser(recipe, prog, description).parse_args(argv))
    flags = table(recipe).values()
    config, preset = given.get("config") or "", given.get("preset") or ""
    from_file = read_config(Path(config), flags) if config else {}
    from_preset = read_config(preset_file(preset), flags) if preset else {}
    sources = ("command line", given), (config, from_file), (f"--preset {preset}", from_preset)
    values = resolved(flags, *sources)
    settings = filled(Settings, {"no_4bit": False} | values)
    if settings.patience and not settings.eval_steps:
        raise UserError(f"--patience {settings.patience} counts validations: set --eval_steps too")
    in_file = "tracking" in from_file and "tracking" not in given
    read_tracking(settings.tracking, f"{config}: tracking" if in_file else "--tracking")
    return settings
