"""What a user mistypes is said at once: before torch, whose import takes seconds, and in one line.

All doors are tried in one process, in which an import of torch, transformers, peft or bitsandbytes
ends a command, wherever the import stands and whatever would catch its error.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from pt_app.cli import app
from tests.conftest import ROOT

# Reads [name, module, words] in JSON lines, writes what each said and the code it ended with.
TRY_ALL = """
import contextlib, importlib, io, json, os, sys, traceback
HEAVY = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets"}
class Imported(BaseException):
    pass
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name in HEAVY:
            lines = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack()]
            raise Imported(f"{name} at {[line for line in lines if 'pt_app' in line][-1]}")
sys.meta_path.insert(0, Guard())
from pt_app.core.errors import exit_with
for line in sys.stdin:
    name, module, words = json.loads(line)
    out, err = io.StringIO(), io.StringIO()
    sys.argv = [module, *words]
    code, imported = 0, ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exit_with(importlib.import_module(module)._run if module == "pt_app.cli"
                      else importlib.import_module(module).main)
        except SystemExit as end:
            code = end.code
        except Imported as error:
            imported = str(error)
    print(json.dumps([name, [code, out.getvalue(), err.getvalue(), imported]]))
"""
RECIPES = [f"pt_app.eval_model.judge_train_{name}" for name in ("mps", "cuda")]
JUDGE = "pt_app.cli"
Door = tuple[str, tuple[str, ...]]
"""A module with a command line, and its words."""


@dataclass(frozen=True)
class Said:
    """How a command ended; `imported`: which heavy package ended it, and where."""

    code: int
    out: str
    err: str
    imported: str


def try_all(doors: list[Door], folder: Path) -> dict[Door, Said]:
    """Try the doors in `folder`, in a process without torch."""
    lines = [json.dumps([number, *door]) for number, door in enumerate(doors)]
    done = subprocess.run(
        [sys.executable, "-c", TRY_ALL],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"COLUMNS": "80", "PYTHONPATH": str(ROOT)},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    return {doors[number]: Said(*found) for number, found in said}


def refused(said: Said, *words: str) -> None:
    assert said.imported == ""
    assert said.code == 2, said
    assert said.err.startswith("error: ")
    assert len(said.err.splitlines()) == 1
    assert "Value error" not in said.err  # pydantic's own words
    for word in words:
        assert word in said.err


FILES = {
    "key.yaml": "learning_speed: 1e-4\n",
    "value.json": '{"epochs": "many"}',
    "range.yaml": "lora_dropout: 2\n",
    "broken.yaml": "lr: [1\n",
    "list.yaml": "- lr\n",
    "binary.yaml": "\x00\x01",
    "rows.csv": "source,candidate\na,b\n",
}
WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "an unknown flag": (("--epoch", "3"), "--epoch"),
    "a word too much": (("train",), "train"),
    "a flag without its value": (("--lr",), "--lr"),
    "a value out of range": (("--epochs", "-1"), "epochs"),
    "a text for a number": (("--batch_size", "two"), "batch_size"),
    "an unknown choice": (("--tracking", "maybe"), "tracking"),
    "a missing config": (("--config", "nowhere.yaml"), "nowhere.yaml"),
    "a folder as config": (("--config", "."), "--config"),
    "an unknown key": (("--config", "key.yaml"), "learning_speed"),
    "a config's wrong type": (("--config", "value.json"), "value.json"),
    "a config's value out of range": (("--config", "range.yaml"), "range.yaml"),
    "a broken config": (("--config", "broken.yaml"), "broken.yaml"),
    "a list as config": (("--config", "list.yaml"), "list.yaml"),
    "no text as config": (("--config", "binary.yaml"), "binary.yaml"),
    "flags that exclude each other": (("--seeds", "2", "--folds", "3"), "--folds"),
    "a missing dataset": (("--data_dir", "nowhere"), "nowhere"),
}
# The doctor lists a missing dataset among what fails.
TAKE_RECIPE_FLAGS = ("train", "doctor", "estimate", "prefetch")
NOT_THERE = {("doctor", "a missing dataset")} | {
    (command, "flags that exclude each other") for command in TAKE_RECIPE_FLAGS
}
OF_RECIPES = [(recipe, fault) for recipe in RECIPES for fault in WRONG]
OF_COMMANDS = [
    (command, fault)
    for command in TAKE_RECIPE_FLAGS
    for fault in WRONG
    if (command, fault) not in NOT_THERE
]
ABSENT = "nowhere"
MISSING: dict[str, str] = {
    "score adapter": f"score --adapter {ABSENT} --input rows.csv --output o.jsonl",
    "score input": f"score --adapter here --input {ABSENT} --output o.jsonl",
    "score ending": "score --adapter here --input rows.csv --output o.txt",
    "score shard": "score --adapter a --input b --output c.csv --shard 9/8",
    "try": f"try {ABSENT}",
    "attack": f"attack --adapter {ABSENT} --data {ABSENT}",
    "eval data": f"eval --data {ABSENT} --adapter {ABSENT}",
    "eval without a judge": "eval --data here",
    "agree": f"agree {ABSENT}.csv --label a --verdict b",
    "import": f"data import {ABSENT}.csv --out new",
    "split": f"data split {ABSENT}",
    "check": f"data check {ABSENT}",
    "preview": f"data preview {ABSENT}",
    "relabel": f"data relabel {ABSENT}",
    "distil": f"data distil {ABSENT}.csv --out new --model m",
    "init": f"init {ABSENT}.csv",
    "report": f"report {ABSENT}",
    "gate": f"gate {ABSENT} {ABSENT}",
    "join": f"join {ABSENT} --out new",
    "sync": f"sync {ABSENT}",
    "bundle": f"bundle --config {ABSENT}.yaml",
    "estimate platform": "estimate --platform tpu",
    "estimate recipe": "estimate --recipe jax",
    "estimate memory": "estimate --gpu_memory 24",
    "estimate memory of a CPU": "estimate --platform cpu --gpu_memory 24",
    "estimate price": "estimate --price 0",
    "doctor platform": "doctor --platform tpu",
    "prefetch recipe": "prefetch --recipe tpu",
}


def commands() -> list[str]:
    """Every command and group of `judge`."""

    def below(command: Any, words: list[str]) -> Iterator[str]:
        yield " ".join(words)
        for name, one in getattr(command, "commands", {}).items():
            yield from below(one, [*words, name])

    return list(below(typer.main.get_command(app), []))


def to_judge(command: str, *more: str) -> Door:
    return JUDGE, (*command.split(), *more)


def all_doors() -> list[Door]:
    helps: list[Door] = [(recipe, (flag,)) for recipe in RECIPES for flag in ("--help", "-h")]
    wrong: list[Door] = [(recipe, WRONG[fault][0]) for recipe, fault in OF_RECIPES]
    wrong += [to_judge(command, *WRONG[fault][0]) for command, fault in OF_COMMANDS]
    wrong += [(RECIPES[0], ("--no_4bit",)), *(to_judge(command) for command in MISSING.values())]
    for command in commands():
        helps += [to_judge(command, "--help"), to_judge(command, "--no_such_flag")]
    return [*helps, *wrong, *(to_judge(group) for group in ("", "data", "bench", "base"))]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[Door, Said]:
    folder = tmp_path_factory.mktemp("doors")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "datasets/judge_eval").mkdir(parents=True)  # the default, so that it is no fault
    (folder / "here").mkdir()
    return try_all(all_doors(), folder)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_a_recipe_needs_no_torch(recipe: str, flag: str, tried: dict[Door, Said]) -> None:
    said = tried[recipe, (flag,)]
    assert (said.code, said.imported) == (0, "")
    assert "--max_seq_length" in said.out


@pytest.mark.parametrize(("recipe", "fault"), OF_RECIPES)
def test_a_recipe_refuses_before_torch(recipe: str, fault: str, tried: dict[Door, Said]) -> None:
    argv, word = WRONG[fault]
    refused(tried[recipe, argv], word)


def test_a_flag_of_the_other_recipe_is_refused_before_torch(tried: dict[Door, Said]) -> None:
    refused(tried[RECIPES[0], ("--no_4bit",)], "--no_4bit")


@pytest.mark.parametrize(("command", "fault"), OF_COMMANDS)
def test_a_command_with_a_recipes_flags_refuses_before_torch(
    command: str, fault: str, tried: dict[Door, Said]
) -> None:
    argv, word = WRONG[fault]
    refused(tried[to_judge(command, *argv)], word)


@pytest.mark.parametrize("command", commands())
def test_help_of_every_command_needs_no_torch_and_fits_80_columns(
    command: str, tried: dict[Door, Said]
) -> None:
    said = tried[to_judge(command, "--help")]
    assert (said.code, said.imported) == (0, "")
    assert said.out.lower().startswith(f"usage: judge {command}".rstrip())
    assert max(map(len, said.out.splitlines())) <= 80


@pytest.mark.parametrize("command", commands())
def test_an_unknown_flag_of_every_command_is_one_line_without_torch(
    command: str, tried: dict[Door, Said]
) -> None:
    refused(tried[to_judge(command, "--no_such_flag")], "--no_such_flag")


@pytest.mark.parametrize("group", ["", "data", "bench", "base"])
def test_a_group_without_a_command_shows_its_help(group: str, tried: dict[Door, Said]) -> None:
    said = tried[to_judge(group)]
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("Usage: judge")


def test_help_of_judge_train_says_both_recipes_defaults(tried: dict[Door, Said]) -> None:
    text = " ".join(tried[to_judge("train", "--help")].out.split())
    for part in ("(default: 4 in mps, 2 in cuda)", "(default: 512)", "--no_4bit"):
        assert part in text
    for name in ("judge_train_mps.py", "judge_train_cuda.py"):
        assert name in text


@pytest.mark.parametrize("case", MISSING)
def test_what_is_missing_is_said_before_torch(case: str, tried: dict[Door, Said]) -> None:
    refused(tried[to_judge(MISSING[case])])


def test_loading_a_judge_refuses_a_wrong_folder_before_torch() -> None:
    code = (
        "import sys\nfrom pt_app.core.errors import UserError\nfrom pt_app.judge import Judge\n"
        "try:\n    Judge.load('nowhere')\n"
        "except UserError as error:\n    print(error)\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "nowhere" in done.stdout


@pytest.mark.parametrize("hidden", ["starlette", "uvicorn"])
def test_a_server_without_its_packages_says_what_to_install(hidden: str) -> None:
    code = f"""if True:
        import sys
        sys.modules["{hidden}"] = None
        sys.argv = ["judge", "serve", "folder"]
        from pt_app.cli import main
        main()"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "requirements-serve.txt" in line
