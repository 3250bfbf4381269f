"""Training from scratch: stages train, resume exactly, are skipped, and refuse other settings."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pt_app.core.errors import UserError
from pt_app.core.files import sha256_file
from pt_app.models.new_tokenizer import train_tokenizer
from pt_app.pretrain import loss as loss_module
from pt_app.pretrain.plans import base_train, chat_train
from pt_app.pretrain.settings import BaseSettings, MidSettings, SftSettings, parsed
from pt_app.pretrain.shards import at_end, write_shards
from pt_app.training import checkpoints
from tests import killed_recipe
from tests.conftest import ROOT
from tests.test_kills import held_at

SMALL = {"depth": 1, "max_seq_len": 64, "device_batch_size": 4, "total_batch_size": 512}
SMALL |= {"num_iterations": 12, "save_steps": 5, "eval_steps": 6, "logging_steps": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 2,000 sentences of few words, and their tokenizer."""
    folder = tmp_path_factory.mktemp("scratch") / "data"
    rng = random.Random(0)
    words = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "it"]
    lines = [" ".join(rng.choices(words, k=8)) + ".\n" for _ in range(2000)]
    tokenizer = train_tokenizer(lines, 300)
    write_shards(at_end("".join(lines)), tokenizer, folder)
    return folder


def train(data: Path, model_dir: Path, **changed: Any) -> Path:
    flags = SMALL | {"device": "cpu", "data_dir": data, "model_dir": model_dir} | changed
    return base_train(parsed(BaseSettings, [f"--{name}={v}" for name, v in flags.items()]))


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(data, tmp_path_factory.mktemp("runs"))


def weights(folder: Path) -> str:
    return sha256_file(folder / "model.safetensors")


def write_mixture(file: Path) -> Path:
    """200 conversations of one answer."""
    turns = [{"role": "user", "content": "it?"}, {"role": "assistant", "content": "the cat sat."}]
    asked = [[turns[0] | {"content": f"the cat {n}?"}, turns[1]] for n in range(200)]
    file.write_text("".join(json.dumps(each) + "\n" for each in asked))
    return file


def test_mid_and_sft_learn_answers_from_the_stage_before(made: Path, tmp_path: Path) -> None:
    model_dir, said = tmp_path / "runs", write_mixture(tmp_path / "said.jsonl")
    shutil.copytree(made, model_dir / "base")
    flags = {"mixture": said, "model_dir": model_dir, "device": "cpu", "max_seq_len": 64}
    flags |= {"total_batch_size": 512, "num_iterations": 4, "logging_steps": 1}
    argv = [f"--{name}={value}" for name, value in flags.items()]
    mid, sft = (chat_train(parsed(table, argv)) for table in (MidSettings, SftSettings))
    assert [path.name for path in (mid, sft)] == ["mid", "sft"]
    about = [json.loads((path / "stage.json").read_text()) for path in (mid, sft)]
    losses = [each["last"]["eval_loss"] for each in about]
    assert losses[1] < losses[0]
    assert len({weights(path) for path in (made, mid, sft)}) == 3
    before = weights(sft)
    assert weights(chat_train(parsed(SftSettings, argv))) == before
    said.write_text(said.read_text().replace("sat", "ran"))
    with pytest.raises(UserError, match="conversations was"):
        chat_train(parsed(SftSettings, argv))
    shutil.copytree(made, tmp_path / "other" / "base")
    plain = tmp_path / "plain"
    shutil.copytree(made, plain, ignore=shutil.ignore_patterns("chat_template.jinja"))
    with pytest.raises(UserError, match="plain has no chat template: name a stage"):
        chat_train(parsed(SftSettings, [*argv, f"--source={plain}", f"--model_dir={tmp_path}"]))
    longer = ["--max_seq_len=128", "--source=base", f"--model_dir={tmp_path / 'other'}"]
    with pytest.raises(UserError, match="reads at most 64 tokens"):
        chat_train(parsed(SftSettings, [*argv, *longer]))


def interrupt_at(patch: pytest.MonkeyPatch, call: int) -> None:
    calls, plain = iter(range(10**6)), loss_module.NextTokens.loss

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return plain(*arguments)

    patch.setattr(loss_module.NextTokens, "loss", interrupted)


def test_a_stage_leaves_a_folder_that_transformers_reads(made: Path, data: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(made)
    tokenizer = AutoTokenizer.from_pretrained(made)
    assert model.config.model_type == "qwen3"
    assert model.dtype == torch.float32
    assert tokenizer.chat_template
    assert model.generation_config.eos_token_id == sorted(
        tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    )
    ids = tokenizer("the cat sat", return_tensors="pt").input_ids
    assert torch.isfinite(model(input_ids=ids).logits).all()
    assert [path.name for path in made.parent.iterdir() if path.name[0] != "."] == ["base"]


def test_a_stage_that_is_published_leaves_what_another_one_has_written_so_far(
    data: Path, tmp_path: Path
) -> None:
    written = tmp_path / ".saving" / "mid" / "config.json"
    written.parent.mkdir(parents=True)
    written.write_text("{}")
    train(data, tmp_path, num_iterations=1)
    assert written.exists()


def test_a_stage_says_what_it_did(made: Path) -> None:
    about = json.loads((made / "stage.json").read_text("utf-8"))
    assert about["steps"] == 12
    assert about["tokens"] == 12 * 512
    assert about["settings"]["depth"] == 1
    assert about["seconds"] > 0
    lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    measured = [line for line in lines if "eval_bpb" in line]
    assert [line["step"] for line in measured] == [6, 12]
    assert measured[1]["eval_bpb"] < measured[0]["eval_bpb"]
    assert about["last"] == measured[1]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


def test_a_complete_stage_is_skipped(
    made: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(monkeypatch, 0)
    before = (made / "stage.json").stat()
    assert train(data, made.parent, save_steps=3, tracking="off") == made
    assert (made / "stage.json").stat() == before


def test_a_run_killed_after_the_model_is_published_leaves_no_checkpoints(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run skipped the complete stage, and its checkpoints stayed for ever."""
    publish = checkpoints.publish

    def killed(written: Path, run: Path) -> Path:
        place = publish(written, run)
        if written.name == "base":
            raise KeyboardInterrupt
        return place

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path, num_iterations=1)
    assert (tmp_path / "base.training" / "checkpoint-1").is_dir()
    train(data, tmp_path, num_iterations=1)
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == ["base"]


def test_checkpoints_of_another_training_stay_beside_a_complete_stage(
    made: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 11)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path, seed=1)
    shutil.copytree(made, tmp_path / "base")
    train(data, tmp_path)
    assert (tmp_path / "base.training" / "checkpoint-5").is_dir()


@pytest.mark.parametrize(("name", "value"), [("depth", 2), ("lr", 1e-4), ("seed", 1)])
def test_other_settings_than_those_of_a_complete_stage_are_refused(
    made: Path, data: Path, name: str, value: float
) -> None:
    with pytest.raises(UserError, match=f"base: {name} was .* and is {value} now"):
        train(data, made.parent, **{name: value})


def test_other_tokens_are_refused(made: Path, data: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    write_shards(at_end("the dog saw it.\n" * 999), tokenizer, tmp_path / "other")
    with pytest.raises(UserError, match="tokens was"):
        train(tmp_path / "other", made.parent)


@pytest.mark.parametrize("call", [3, 11, 31])
def test_an_interrupted_stage_resumes_to_the_same_weights(
    made: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, call)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path)
    assert not (tmp_path / "base").exists()
    with pytest.raises(UserError, match=r"base\.training: depth was 1"):
        train(data, tmp_path, depth=2)
    again = train(data, tmp_path)
    assert weights(again) == weights(made)
    lines = [(folder / "metrics.jsonl").read_text("utf-8").splitlines() for folder in (made, again)]
    numbers = [[json.loads(line) | {"seconds": 0} for line in each] for each in lines]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("checkpoint-10", "step 10 has no room; the last good checkpoint is .*-5: make room"),
        ("base", "its checkpoints are whole: make room"),
    ],
)
def test_a_full_disk_names_the_resume_that_stages_have(
    made: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    problem: str,
) -> None:
    publish = checkpoints.publish

    def full(written: Path, run: Path) -> Path:
        if written.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return publish(written, run)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "publish", full)
        with pytest.raises(UserError, match=f"is full: .*{problem}.* same command") as refused:
            train(data, tmp_path)
    assert "--resume" not in str(refused.value)
    assert weights(train(data, tmp_path)) == weights(made)


def test_a_changed_model_is_refused(data: Path, tmp_path: Path) -> None:
    final = train(data, tmp_path, num_iterations=1)
    with open(final / "model.safetensors", "ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"model\.safetensors was changed"):
        train(data, tmp_path, num_iterations=1)


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, plain = iter(range(10**6)), loss_module.NextTokens.loss

    def broken(*arguments: Any) -> Any:
        return plain(*arguments) * (float("nan") if next(calls) == 11 else 1)

    monkeypatch.setattr(loss_module.NextTokens, "loss", broken)
    with pytest.raises(UserError, match=r"nan in step 6; the last good checkpoint is .*-5: try"):
        train(data, tmp_path)


def test_a_device_that_is_not_there_is_refused(data: Path, tmp_path: Path) -> None:
    if torch.backends.mps.is_available():
        pytest.skip("there is an Apple GPU here")
    with pytest.raises(UserError, match="--device mps: there is none here"):
        train(data, tmp_path, device="mps")


def test_wandb_run_changes_no_step(
    made: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN", "dummy")
    final = train(data, tmp_path, tracking="offline")
    assert weights(final) == weights(made)
    assert not list(tmp_path.rglob("wandb"))


def test_a_config_file_is_below_the_command_line_and_reads_numbers(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("lr: 5e-4\ndepth: 2\n")
    settings = parsed(BaseSettings, [f"--config={config}", "--depth=3"])
    assert (settings.lr, settings.depth, settings.seed) == (5e-4, 3, 42)
    config.write_text("dept: 2\n")
    with pytest.raises(UserError, match="the nearest known one is 'depth'"):
        parsed(BaseSettings, [f"--config={config}"])


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_weights(
    made: Path, data: Path, tmp_path: Path
) -> None:
    flags = SMALL | {"device": "cpu", "data_dir": data, "model_dir": tmp_path, "save_steps": 1}
    command = [sys.executable, "-m", "scripts.base_train"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        seen = set(tmp_path.glob("base.training/checkpoint-*"))
        while process.poll() is None and set(tmp_path.glob("base.training/checkpoint-*")) <= seen:
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) in (-number, 130)
    subprocess.run(command, cwd=ROOT, check=True)
    assert weights(tmp_path / "base") == weights(made)


STAGES = {"base_train": "base", "mid_train": "mid", "chat_sft": "sft"}


def words_of(script: str, data: Path, mixture: Path, run: Path) -> list[str]:
    """The flags of the script of a stage, 40 short steps."""
    flags = SMALL | {"device": "cpu", "model_dir": run, "num_iterations": 40, "save_steps": 4}
    flags |= {"data_dir": data} if script == "base_train" else {"mixture": mixture}
    if script != "base_train":
        del flags["depth"]
    return [f"--{name}={value}" for name, value in flags.items()]


@pytest.mark.slow
def test_stages_killed_at_25_random_points_end_with_the_uninterrupted_weights(
    data: Path, tmp_path: Path
) -> None:
    """In the midst of steps, of savings, and of the publication of the model."""
    mixture, rng = write_mixture(tmp_path / "said.jsonl"), random.Random(25)
    for (script, name), kills in zip(STAGES.items(), (9, 8, 8), strict=True):
        folders = [tmp_path / kind / name for kind in ("whole", "cut")]
        whole, cut = (words_of(script, data, mixture, folder.parent) for folder in folders)
        killed_recipe.STAGES[script](whole)
        points = [(step, rng.choice(["0", "1", "saving"])) for step in rng.sample(range(40), kills)]
        command = [sys.executable, "-m", "tests.killed_recipe", script]
        command += [json.dumps(sorted(points)), *cut]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not folders[1].exists()
        killed_recipe.STAGES[script](cut)
        assert weights(folders[0]) == weights(folders[1])


def launched(processes: int, script: str, *words: str) -> list[str]:
    """The command that starts the script of a stage in so many processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *torchrun, "-m", f"scripts.{script}", *words]


def assert_same_losses(one: Path, other: Path) -> None:
    lines = [(path / "metrics.jsonl").read_text("utf-8").splitlines() for path in (one, other)]
    for each, same in zip(*([json.loads(line) for line in file] for file in lines), strict=True):
        for name in each.keys() & {"loss", "eval_loss", "eval_bpb", "eval_n_bytes"}:
            assert same[name] == pytest.approx(each[name], abs=1e-5), name


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(made: Path, data: Path, tmp_path: Path) -> None:
    flags = SMALL | {"device": "cpu", "data_dir": data, "model_dir": tmp_path}
    command = launched(2, "base_train", *(f"--{name}={value}" for name, value in flags.items()))
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert_same_losses(made, tmp_path / "base")


@pytest.mark.slow
def test_a_checkpoint_of_any_stage_resumes_on_another_number_of_processes(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each stage begins in one process, is stopped, and ends in two; then the other way.

    With AdamW: sums of two processes differ in the last digit, which Muon's rounding to bfloat16
    makes one in the fourth within 20 steps. The log says that they are rounded otherwise.
    """
    mixture, env = write_mixture(tmp_path / "said.jsonl"), os.environ | {"OMP_NUM_THREADS": "1"}
    before: Path | None = None
    for script, name in STAGES.items():
        run = {kind: tmp_path / kind for kind in ("whole", "wider", "narrower")}
        more = ["--optimizer=adamw", *([f"--source={before}"] if before else [])]
        words = {k: [*words_of(script, data, mixture, path), *more] for k, path in run.items()}
        killed_recipe.STAGES[script](words["whole"])
        with monkeypatch.context() as patch:
            interrupt_at(patch, 43)  # a step is two batches
            with pytest.raises(KeyboardInterrupt):
                killed_recipe.STAGES[script](words["wider"])
        subprocess.run(launched(2, script, *words["wider"]), cwd=ROOT, check=True, env=env)
        with subprocess.Popen(
            launched(2, script, *words["narrower"]),
            cwd=ROOT,
            env=env | held_at(20),
            start_new_session=True,
        ) as process:
            saved = run["narrower"] / f"{name}.training" / "checkpoint-20" / "complete.json"
            while process.poll() is None and not saved.exists():
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
        assert (saved.parents[1] / "stage.json").exists()
        killed_recipe.STAGES[script](words["narrower"])
        assert "2 processes trained before and 1 do now" in capsys.readouterr().out
        before = run["whole"] / name
        for kind in ("wider", "narrower"):
            assert_same_losses(run["whole"] / name, run[kind] / name)
