"""The flags of the from-scratch track: a table per script."""

from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NoReturn

from pt_app.core.errors import UserError, exit_with
from pt_app.core.flags import flag, parsed

Device = Literal["auto", "cuda", "mps", "cpu"]
Optimizer = Literal["muon", "adamw"]
Split = Literal["documents", "end"]
STAGES = ("base", "mid", "sft")
# Help of flags whose default differs between tables.
TEXT = "paths, patterns, tinyshakespeare, docstrings:PACKAGE, debian:PACKAGE, hub:OWNER/NAME:COUNT"
LR, MATRIX_LR = "peak learning rate of AdamW", "peak learning rate of Muon"
OPTIMIZER = "of the matrices of the layers; AdamW trains the rest"
DECAY = "share of the steps in which the rate falls to 0"
SPLIT = "validation: documents by their hashes, or the last tenth of the text"
SOURCE = "what to start from: a stage of --model_dir, or a folder"
MIXTURE = "conversations: chat, choices, judge, smalltalk and JSON Lines files"
MODEL_DIR = "folder of the model, with base, mid and sft"
OUTPUT_DIR, FINAL_DIR = "folder of checkpoints and tokens", "folder of the trained model"
DEVICE = "where to compute; auto: CUDA, then MPS, then the CPU"
WARMUP = "length of the linear warm-up; below 1: a fraction of all steps"
EVAL_STEPS = "interval of validations; below 1: a fraction of all steps; 0: only at the end"
PRECISION = "precision of the matmuls; auto: float32, 16 bits on GPUs; weights stay in float32"
TRACKING = "auto, online, offline or off, or of wandb, weave, tensorboard (docs/TRACKING.md)"
WHEEL = "evaluation wheel; default: that in the cache"
# What changes neither the steps nor what they are taken on: another value resumes a training, and
# does not make a finished one another. The step is compared by its tokens.
LAYOUT = {"device", "train_precision", "compile", "eval_steps", "save_steps", "logging_steps"}
LAYOUT |= {"tracking", "project_name", "model_dir", "output_dir", "final_dir", "log_dir", "resume"}
LAYOUT |= {"device_batch_size", "batch_size", "gradient_accumulation_steps", "data_dir"}
LAYOUT |= {"train_data", "tokenizer"}  # compared by their hashes


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """scripts.tok_train."""

    text: str = flag(TEXT, unit="list")
    vocabulary: Literal["trained", "gpt2"] = flag("a tokenizer of this text, or GPT-2's", "trained")
    vocab_size: int = flag("size of a trained vocabulary", 4096, low=260, unit="tokens")
    tokenizer_megabytes: int = flag("text that the tokenizer learns from", 100, low=1, unit="MB")
    split: Split = flag(SPLIT, "documents")
    val_bytes: int = flag("most text for validation by documents", 4_000_000, low=1, unit="bytes")
    data_dir: str = flag("folder that gets tokenizer and tokens", "data/scratch")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What all trainings from scratch share."""

    device: Device = flag(DEVICE, "auto")
    train_precision: Literal["auto", "float32", "bf16"] = flag(
        PRECISION, "auto", also="fp16", means={True: "auto", False: "float32"}
    )
    compile: Literal["auto", "off"] = flag("torch.compile; auto: on CUDA only", "auto")
    seed: int = flag("seed of the weights and of the order of the text", 42, low=0, below=2**32)
    optimizer: Optimizer = flag(OPTIMIZER, "muon")
    matrix_lr: float = flag(MATRIX_LR, 0.01, above=0)
    lr: float = flag(LR, 3e-3, above=0, also="learning_rate")
    weight_decay: float = flag("weight decay of the matrices", 0.01, low=0)
    warmup_steps: float = flag(WARMUP, 0.02, low=0, unit="steps")
    decay: float = flag(DECAY, 0.6, low=0.01, high=1)
    max_grad_norm: float = flag("bound of the norm of the gradients; 0: none", 1.0, low=0)
    eval_steps: float = flag(EVAL_STEPS, 0.25, low=0, unit="steps")
    save_steps: int = flag("interval of checkpoints; 0: only the last", 250, low=0, unit="steps")
    logging_steps: int = flag("interval of logged losses", 10, low=1, unit="steps")
    tracking: str = flag(
        TRACKING, "off", unit="list", also="wandb", means={True: "wandb", False: "off"}
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
    tokens_per_parameter: float = flag("tokens per parameter of matrices and head", 10.5, above=0)


@dataclass(frozen=True, kw_only=True)
class MidSettings(Stage):
    """scripts.mid_train: conversations, of which the answers are learned."""

    stage = "mid"
    source: str = flag(SOURCE, "base")
    mixture: str = flag(MIXTURE, "chat,judge", unit="list")
    num_epochs: float = flag("passes over the conversations", 1.0, above=0)
    num_iterations: int = flag("number of steps; 0: by --num_epochs", 0, low=0)
    matrix_lr: float = flag(MATRIX_LR, 0.005, above=0)
    lr: float = flag(LR, 1.5e-3, above=0, also="learning_rate")


@dataclass(frozen=True, kw_only=True)
class SftSettings(MidSettings):
    """scripts.chat_sft."""

    stage = "sft"
    source: str = flag(SOURCE, "mid")
    mixture: str = flag(MIXTURE, "chat", unit="list")
    matrix_lr: float = flag(MATRIX_LR, 0.002, above=0)
    lr: float = flag(LR, 6e-4, above=0, also="learning_rate")
    decay: float = flag(DECAY, 1.0, low=0.01, high=1)


@dataclass(frozen=True, kw_only=True)
class TextSettings(Training):
    """What GPT-2 and the small trainer share."""

    train_data: str = flag(TEXT, "tinyshakespeare", unit="list")
    split: Split = flag(SPLIT, "end")
    num_epochs: float = flag("passes over the text", 5.0, above=0)
    batch_size: int = flag("sequences that a process computes together", 8, low=1)
    gradient_accumulation_steps: int = flag("such batches per step", 1, low=1)
    resume: str = flag("checkpoint to resume; default: the newest of the output folder", "")
    log_dir: str = flag("folder for TensorBoard (tracking by tensorboard)", "")
    output_dir: str = flag(OUTPUT_DIR, "outputs/small_model")
    final_dir: str = flag(FINAL_DIR, "outputs/final_model")


@dataclass(frozen=True, kw_only=True)
class Gpt2Settings(TextSettings):
    """scripts/train_gpt2.py."""

    # On 124 M weights a step of Muon costs as much as some 2,500 tokens.
    optimizer: Optimizer = flag(OPTIMIZER, "adamw")
    lr: float = flag(LR, 6e-4, above=0, also="learning_rate")
    weight_decay: float = flag("weight decay of the matrices", 0.1, low=0)
    seq_length: int = flag("length of a sequence", 256, low=8, high=1024, unit="tokens")
    output_dir: str = flag(OUTPUT_DIR, "runs/gpt2")
    final_dir: str = flag(FINAL_DIR, "runs/gpt2/final_model")


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


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """scripts.base_eval and scripts.chat_eval."""

    model_dir: str = flag(MODEL_DIR, "runs/scratch")
    stage: Literal["auto", "base", "mid", "sft"] = flag("auto: base, for chat_eval sft", "auto")
    device: Device = flag(DEVICE, "auto")
    tasks: str = flag("tasks, separated by commas; default: all", "", unit="list")
    max_per_task: int | None = flag("rows of a task, drawn at random; default: all", None, low=1)
    questions: Path | None = flag("JSON Lines of multiple-choice questions of your own", None)
    eval_data: Path | None = flag(WHEEL, None)
    allow_code: bool = flag("run the programs that the model writes for HumanEval", False)
    max_new_tokens: int = flag("length of a generated answer", 256, low=1, unit="tokens")


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """scripts.fetch_data."""

    data_dir: str = flag("folder of scripts.tok_train, whose tokens are read", "data/scratch")
    mixture: str = flag("mixtures that are read", "chat,choices,judge,smalltalk", unit="list")


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """scripts.report."""

    model_dir: str = flag(MODEL_DIR, "runs/scratch")
    data_dir: str = flag("folder of the base's tokens; default: the base's own", "")
    eval_data: Path | None = flag(WHEEL, None)
    output: str = flag("the report; its pictures are put beside it", "report.md")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the tokens of a text are drawn, and when it ends."""

    temperature: float = flag("randomness; 0: always the most probable token", 0.8, low=0, high=10)
    top_k: int = flag("draw from that many of the most probable tokens; 0: from all", 50, low=0)

    top_p: float = flag("draw from the most probable tokens with this sum", 1.0, above=0, high=1)
    max_tokens: int | None = flag("maximum length; default: what the context holds", None, low=1)
    seed: int | None = flag("seed of the draws; default: another one each time", None)


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """scripts/inference.py."""

    model: str = flag("folder of a model", "outputs/final_model")
    tokenizer: str = flag("tokenizer.json; default: the model's own", "")
    device: Device = flag(DEVICE, "auto")
    prompt: str = flag("what the model continues; default: each line that is typed", "")
    sampling: Sampling = Sampling()


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """What scripts.chat_cli and scripts.chat_web share."""

    model: str = flag("folder, GGUF file or known base; default: the newest run's last stage", "")
    device: Device = flag(DEVICE, "auto")
    sampling: Sampling = Sampling()


@dataclass(frozen=True, kw_only=True)
class TalkSettings(ChatSettings):
    """scripts.chat_cli."""

    p: str = flag("answer this prompt, and end", "", unit="text")


@dataclass(frozen=True, kw_only=True)
class ServeSettings(ChatSettings):
    """scripts.chat_web; a request overrules how tokens are drawn."""

    host: str = flag("address to listen at; 0.0.0.0: other machines may ask", "127.0.0.1")
    port: int = flag("port to listen at; 0: any that is free", 8000, low=0, high=65535)


def launch(table: type[Any], function: str, description: str | None) -> NoReturn:
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


def refuse_others(folder: Path, before: dict[str, object], now: dict[str, object]) -> None:
    """Raise UserError if `folder` was made with other settings or from other data."""
    for name in sorted(before | now):
        if before.get(name) != now.get(name):
            was = f"{name} was {before.get(name)} and is {now.get(name)} now"
            raise UserError(f"{folder}: {was}: restore it, or choose another folder")
