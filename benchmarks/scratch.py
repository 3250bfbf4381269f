"""Measure training from scratch against nanoGPT and nanochat, in turns on one machine.

python -m benchmarks.scratch --nanogpt DIR --nanochat DIR            (some 3 hours on one core)
python -m benchmarks.scratch --nanogpt DIR --nanochat DIR --quick    (some 10 minutes)

DIR are clones of github.com/karpathy/{nanoGPT,nanochat}, of which nothing is copied. Parts:

- speed: tokens per CPU second of a whole optimizer step of GPT-2 124M on 4 x 64 tokens beside
  nanoGPT, and of depth 4 on 1 x 1,024 beside nanochat, each with and without oneDNN's matmuls
- architecture: NanoChatForCausalLM and Qwen3ForCausalLM of depth 4 after equal CPU seconds
- shakespeare: a small model of TinyShakespeare's bytes, on the whole validation split
- processes: two processes of a thread each beside one, in tokens per second; needs two idle cores
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy import stats
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    NanoChatConfig,
    PretrainedConfig,
    TrainerCallback,
)

from benchmarks.processes import Samples, Turns, Work, in_turns
from pt_app.core import console
from pt_app.core.errors import UserError, exit_with
from pt_app.core.files import write_json_atomic
from pt_app.core.flags import flag, parsed
from pt_app.models.platforms import get_device
from pt_app.pretrain import plans, shapes, shards
from pt_app.pretrain.batches import TokenSteps, in_order
from pt_app.pretrain.loss import HeldOut, NextTokens
from pt_app.pretrain.settings import BaseSettings, Gpt2Settings, SmallSettings, TokenizerSettings
from pt_app.pretrain.settings import Training as Settings
from pt_app.pretrain.stages import Parts, Plan, loop_of
from pt_app.pretrain.vocabulary import make_tokens
from pt_app.training.loop import TrainingLoop
from pt_app.training.optimizers import trapezoid

FAST, SLOW = "medium", "highest"  # torch.set_float32_matmul_precision: with and without oneDNN
ALL = "speed,architecture,shakespeare,processes"
ENDLESS = 10**6  # steps of a training that is stopped by something else
Json = dict[str, Any]
NEVER: Json = {"eval_steps": 0, "save_steps": 0}  # only at that end


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    nanogpt: Path | None = flag("clone of nanoGPT; without it ours alone is measured", None)
    nanochat: Path | None = flag("clone of nanochat; without it ours alone is measured", None)
    parts: str = flag("parts, separated by commas", ALL, unit="list")
    threads: int = flag("threads of each side", 1, low=1)
    rounds: int = flag("interleaved rounds, a step of each side in each", 20, low=2)
    compile: bool = flag("compile nanochat's model as its script does: minutes at first", False)
    seeds: int = flag("seeds of each training", 3, low=1)
    seconds: float = flag("CPU seconds of a training of each architecture", 600.0, above=0)
    steps: str = flag("steps of the trainings on TinyShakespeare", "1000,2000", unit="list")
    data_dir: str = flag("folder of tokens for the architectures; made once", "data/bench")
    quick: bool = flag("the short form: 3 rounds, one seed, 20 CPU seconds, 100 steps", False)
    json: Path | None = flag("write all numbers to this file", None)


# --- speed ---


@dataclass(frozen=True)
class Case:
    """A workload: the tokens of a step, our settings and shape, and the step of the other side."""

    name: str
    rows: int
    sequence: int
    settings: Settings
    config: PretrainedConfig
    theirs: Callable[[], Callable[[], object]] | None


def cases(options: Options) -> list[Case]:
    """Return the workloads; the last two have nothing to be compared with."""
    gpt2, nanochat = options.nanogpt, options.nanochat
    d4 = BaseSettings(device="cpu", **NEVER)
    return [
        Case(
            *("GPT-2 124M, 4 x 64", 4, 64, Gpt2Settings(device="cpu", **NEVER), shapes.gpt2()),
            partial(nanogpt_step, gpt2) if gpt2 else None,
        ),
        Case(
            *("depth 4, 1 x 1,024, 32,768 tokens", 1, 1024, d4, shapes.qwen3(4, 32_768, 1024)),
            partial(nanochat_step, nanochat, options.compile) if nanochat else None,
        ),
        Case("depth 4, 1 x 1,024, 4,096 tokens", 1, 1024, d4, shapes.qwen3(4, 4096, 1024), None),
        Case(
            *("small trainer, 23 M, 8 x 512", 8, 512, SmallSettings(device="cpu", **NEVER)),
            *(shapes.qwen3(6, 32_000, 512, 384, 6, 1024), None),
        ),
    ]


def nanogpt_step(clone: Path) -> Callable[[], object]:
    """Return the step of nanoGPT's train.py, with its defaults but for the size of a batch."""
    sys.path.insert(0, str(clone))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    model = GPT(GPTConfig(bias=False))
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")
    x, y = random_ids(4, 64, 50_257)

    def step() -> None:
        _, loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def nanochat_step(clone: Path, compiled: bool) -> Callable[[], object]:
    """Return the step of nanochat's scripts/base_train.py --depth=4, with its rates."""
    sys.path.insert(0, str(clone))
    from nanochat.gpt import GPT, GPTConfig  # type: ignore[import-not-found]

    with torch.device("meta"):
        shape = {"sequence_len": 1024, "n_layer": 4, "n_head": 2, "n_kv_head": 2, "n_embd": 256}
        model = GPT(GPTConfig(vocab_size=32_768, **shape))
    model.to_empty(device="cpu")
    model.init_weights()
    scale = (1024 / 2**19) ** 0.5
    rates = {"unembedding_lr": 0.008, "embedding_lr": 0.3, "matrix_lr": 0.02, "scalar_lr": 0.5}
    optimizer = model.setup_optimizer(**{name: lr * scale for name, lr in rates.items()})
    if not compiled:  # its optimizer is compiled too
        torch.compiler.set_stance("force_eager")
    run: Any = torch.compile(model, dynamic=False)
    x, y = random_ids(1, 1024, 32_768)

    def step() -> None:
        loss = run(x, y)
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        loss.item()

    return step


def random_ids(rows: int, sequence: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets, [rows, sequence] each."""
    ids = torch.randint(
        vocabulary, (rows, sequence + 1), generator=torch.Generator().manual_seed(0)
    )
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def their_work(make: Callable[[], Callable[[], object]], matmul: str) -> Work:
    """Return the work of the other side: a step in each turn."""

    def work(turns: Turns) -> None:
        torch.set_float32_matmul_precision(matmul)
        torch.manual_seed(0)
        step = make()
        while True:
            turns.wait()
            began = time.process_time(), time.perf_counter()
            step()
            turns.done(time.process_time() - began[0], time.perf_counter() - began[1])

    return work


class Held(TrainerCallback):  # type: ignore[misc]
    """Holds our training loop before each step; all from one step to the next is one turn."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.began = turns, (0.0, 0.0)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Hand in the step before: its CPU seconds, and its wall time as the result."""
        if any(self.began):
            cpu, wall = time.process_time() - self.began[0], time.perf_counter() - self.began[1]
            self.turns.done(cpu, wall)
        self.turns.wait()
        self.began = time.process_time(), time.perf_counter()


def our_work(case: Case, matmul: str) -> Work:
    """Return our work: the training loop of the stages, on random tokens."""

    def work(turns: Turns) -> None:
        vocabulary = case.config.vocab_size
        ids = np.random.default_rng(0).integers(vocabulary, size=10**6, dtype=np.uint16)
        shape = case.rows * case.sequence, case.sequence, ENDLESS, 0, case.rows
        steps = TokenSteps(shards.Tokens([ids]), *shape)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(case.config, dtype=torch.float32)
        loop = bare_loop(case.settings, model, steps, lambda: ())
        torch.set_float32_matmul_precision(matmul)
        loop.callbacks = [Held(turns)]
        loop.train()

    return work


def bare_loop(
    settings: Settings, model: Any, steps: TokenSteps, batches: Callable[[], Any]
) -> TrainingLoop:
    """Return the training loop of a stage without its folders."""
    platform, nowhere = get_device("cpu"), Path(tempfile.gettempdir())
    held_out = HeldOut(batches, np.ones(model.config.vocab_size, np.int64), NextTokens())
    parts = Parts(model, None, steps, len(steps), steps.batch_tokens, held_out)
    tracker: Any = SimpleNamespace(log=lambda *_: None)
    return loop_of(Plan("bench", settings, {}, nowhere, nowhere), parts, platform, tracker)


def speed(options: Options) -> Json:
    """Measure all workloads, each in turns: both sides with and without oneDNN."""
    report: Json = {}
    for case in cases(options):
        ways = {f"ours, {matmul}": our_work(case, matmul) for matmul in (FAST, SLOW)}
        if case.theirs:
            ways |= {f"theirs, {m}": their_work(case.theirs, m) for m in (FAST, SLOW)}
        found = in_turns(ways, options.rounds, print)
        tokens = case.rows * case.sequence
        report[case.name] = {
            "tokens_per_cpu_second": {
                n: tokens / s.median if s.seconds else s.error for n, s in found.items()
            },
            "tokens_per_second": {
                n: tokens / statistics.median(s.results[1:]) for n, s in found.items() if s.seconds
            },
            "first_step_seconds": {n: s.results[0] for n, s in found.items() if s.results},
            "as shipped": ratio(found, FAST, SLOW),
            "oneDNN on both sides": ratio(found, FAST, FAST),
            "oneDNN on neither": ratio(found, SLOW, SLOW),
        }
    return report


def ratio(found: dict[str, Samples], mine: str, other: str) -> Json | None:
    """Return how many times as fast we are: the geometric mean over rounds, with 95 % by t."""
    sides = [found.get(f"ours, {mine}"), found.get(f"theirs, {other}")]
    one, two = (side.seconds if side else [] for side in sides)
    if len(one) != len(two) or len(one) < 2:
        return None
    logs = np.log(np.array(two) / np.array(one))
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
    value, low, high = (float(np.exp(logs.mean() + d)) for d in (0, -half, half))
    return {"value": value, "low": low, "high": high, "n": len(logs)}


# --- architecture ---


class Clock(TrainerCallback):  # type: ignore[misc]
    """Ends a training after so many CPU seconds; its schedule is one over them."""

    def __init__(self, settings: Settings, seconds: float) -> None:
        self.settings, self.seconds, self.began = settings, seconds, time.process_time()

    @property
    def done(self) -> float:
        """The fraction of the seconds that is spent."""
        return min(1.0, (time.process_time() - self.began) / self.seconds)

    def rate(self, *_: int) -> float:
        """Return the fraction of the learning rate."""
        settings, done = self.settings, round(self.done * ENDLESS)
        return trapezoid(settings.warmup_steps, 1 - settings.decay, done, ENDLESS)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop the training at its end."""
        control.should_training_stop |= self.done >= 1


def architecture(options: Options) -> Json:
    """Train both architectures of depth 4 for equal CPU seconds; return their bits per byte."""
    folder = tokens_of(options)
    opened = shards.open_shards(folder, AutoTokenizer.from_pretrained(folder / shards.TOKENIZER))
    vocabulary, lengths = opened.manifest.vocabulary, shards.lengths_of(opened.pieces)
    shape = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}
    configs = {
        "Qwen3ForCausalLM": shapes.qwen3(4, vocabulary, 512),
        "NanoChatForCausalLM": NanoChatConfig(vocab_size=vocabulary, **shape),
    }
    settings = BaseSettings(device="cpu", **NEVER)
    runs: dict[str, list[Json]] = {name: [] for name in configs}
    for seed in range(options.seeds):
        for name, config in configs.items():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            steps = TokenSteps(opened.train, 4096, 512, ENDLESS, seed, 8)
            loop = bare_loop(replace(settings, seed=seed), model, steps, lambda: ())
            clock = Clock(settings, options.seconds)
            loop.schedule, loop.callbacks, loop.validate = clock.rate, [clock], None
            loop.train()
            batches = partial(in_order, opened.val, 512, 8)
            measured = HeldOut(batches, lengths, NextTokens())(model)
            runs[name].append(measured | {"seed": seed, "steps": loop.state.global_step})
            print(f"{name}, seed {seed}: {measured['bpb']:.4f} bits per byte", flush=True)
    return {"seconds": options.seconds, "runs": runs} | summary(runs)


def tokens_of(options: Options) -> Path:
    """Return the folder of tokens, made of what the authors of two packages wrote about them."""
    text = "docstrings:numpy,docstrings:scipy"
    make_tokens(TokenizerSettings(text=text, data_dir=options.data_dir))
    return Path(options.data_dir)


def summary(runs: dict[str, list[Json]]) -> Json:
    """Return the means, and the difference of the seeds with its 95 % interval by t."""
    bpb = {name: np.array([run["bpb"] for run in own]) for name, own in runs.items()}
    means: Json = {"mean_bpb": {name: float(values.mean()) for name, values in bpb.items()}}
    ours, other = bpb.values()
    apart = other - ours
    if len(apart) > 1:
        half = float(stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / len(apart) ** 0.5)
        mean = float(apart.mean())
        low, high = mean - half, mean + half
        means["difference"] = {"value": mean, "low": low, "high": high, "n": len(apart)}
    return means


# --- TinyShakespeare ---


def shakespeare(options: Options) -> Json:
    """Train 0.79 M weights on bytes, 12 x 64 a step as nanoGPT for CPUs; validate on all of it."""
    shape: Json = {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "intermediate_size": 320}
    batch: Json = {"max_seq_length": 64, "batch_size": 12, "vocab_size": 260}
    common = SmallSettings(device="cpu", **shape, **batch, **NEVER)
    report: Json = {}
    for steps in (int(number) for number in options.steps.split(",")):
        found = []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                places: Json = {"tokenizer": str(folder / "tokenizer" / "tokenizer.json")}
                places |= {"output_dir": str(folder / "run"), "final_dir": str(folder / "final")}
                # TinyShakespeare's first nine tenths are 1,003,855 tokens.
                settings = replace(common, seed=seed, num_epochs=steps * 768 / 1_003_855, **places)
                began = time.process_time()
                final = plans.train_small(settings)
                about = json.loads((final / "stage.json").read_text("utf-8"))
                spent = {"cpu_seconds": time.process_time() - began}
                names = ("eval_loss", "eval_bpb")
                numbers = {n: about["last"][n] for n in names} | spent
                found.append(numbers | {name: about[name] for name in ("steps", "parameters")})
        losses = [each["eval_loss"] for each in found]
        largest = {"mean_loss": statistics.mean(losses), "max_loss": max(losses)}
        report[f"{steps} steps"] = {"runs": found, "n": len(found)} | largest
    return report


# --- processes ---


def processes(options: Options) -> Json:
    """Train depth 4 in one process and in two, in turns; return how many times as fast two are."""
    data, seconds = tokens_of(options), dict[int, list[float]]()
    flags = ["--device=cpu", f"--data_dir={data}", "--num_iterations=20", "--eval_steps=0"]
    for _ in range(max(2, options.rounds // 4)):
        for number in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                torchrun = ["-m", "torch.distributed.run", "--standalone"]
                command = [sys.executable, *torchrun, f"--nproc_per_node={number}"]
                command += ["-m", "scripts.base_train", *flags, f"--model_dir={folder}"]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                subprocess.run(command, check=True, env=environment)
                lines = (Path(folder) / "base" / "metrics.jsonl").read_text("utf-8").splitlines()
                logged = [line for line in map(json.loads, lines) if "loss" in line]
                seconds.setdefault(number, []).append(logged[-1]["seconds"])
    sides = {"ours, 2": Samples(seconds[2]), "theirs, 1": Samples(seconds[1])}
    return {"seconds": seconds, "two processes / one": ratio(sides, "2", "1")}


PARTS = {each.__name__: each for each in (speed, architecture, shakespeare, processes)}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the parts, and print their numbers."""
    options = parsed(Options, argv, __doc__)
    if options.quick:
        options = replace(options, rounds=3, seeds=1, seconds=20.0, steps="100")
    console.start()
    torch.set_num_threads(options.threads)
    report: Json = {"threads": options.threads, "torch": torch.__version__}
    names = options.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise UserError(f"--parts {unknown[0]}: must be of {', '.join(PARTS)}")
    for name in names:
        report[name] = PARTS[name](options)
        print(json.dumps({name: report[name]}, indent=1), flush=True)
        if options.json:
            write_json_atomic(options.json, report)


if __name__ == "__main__":
    exit_with(main)
