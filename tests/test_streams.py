"""What a terminal, a log file and another program read of a process: signs, bars, lines, JSON."""

import fcntl
import inspect
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import typer

from pt_app.cli import app
from pt_app.commands.flags import JSON
from pt_app.core import streams
from pt_app.core.streams import Stream
from tests.conftest import slow_case
from tests.test_judge import some_rows, write_lines

ROOT = Path(__file__).parents[1]
JUDGE = [sys.executable, "-m", "pt_app.cli"]


def run(
    *command: str, input: str = "", cwd: Path = ROOT, **env: str
) -> subprocess.CompletedProcess[bytes]:
    """Run Python with these words; bytes, since what they encode is the question."""
    words = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **env}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=words, capture_output=True, timeout=900
    )


def script(body: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run `body` as the main function of a program of ours."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    code = f"from pt_app.core.errors import exit_with\ndef main():\n{lines}exit_with(main)"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "program.py"
        file.write_text(code, encoding="utf-8")
        return run(str(file), **env)


# What a terminal lacks, and how it says so: by PYTHONIOENCODING, or the locale alone.
TERMINALS: list[tuple[dict[str, str], str]] = [
    ({"PYTHONIOENCODING": "latin-1"}, "latin-1"),
    ({"PYTHONIOENCODING": "ascii"}, "ascii"),
    ({"PYTHONIOENCODING": "cp1252:strict"}, "cp1252"),
    ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, "ascii"),
    ({"LC_ALL": "C"}, "utf-8"),
]


@pytest.mark.parametrize(("env", "encoding"), TERMINALS)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_sign_that_a_terminal_lacks_is_replaced(
    env: dict[str, str], encoding: str, stream: str
) -> None:
    body = f"import sys\nprint('0.5–0.7 “é” 語 ≥ \\udce9', file=sys.{stream})"
    made = script(body, **env)
    assert made.returncode == 0, made.stderr
    said = getattr(made, stream).decode(encoding)
    accented = "é" if encoding != "ascii" else "?"
    if encoding == "utf-8":
        assert said == "0.5–0.7 “é” 語 ≥ \\xe9\n"
    elif encoding == "cp1252":
        assert said == "0.5–0.7 “é” ? >= \\xe9\n"
    else:
        assert said == f'0.5-0.7 "{accented}" ? >= \\xe9\n'


@pytest.mark.parametrize("env", [env for env, _ in TERMINALS[:4]])
def test_error_and_table_reach_any_terminal(env: dict[str, str]) -> None:
    body = """
from rich.table import Table
from pt_app.core import console
table = Table("kappa – ≥", title="语")
table.add_row("0.5–0.7")
console.show(table)
from pt_app.core.errors import UserError
raise UserError("field “nota” – 语: correct it")"""
    made = script(body, **env)
    assert made.returncode == 2
    encoding = made.stdout.decode("latin-1")
    assert "0.5" in encoding
    assert b"Traceback" not in made.stderr
    assert b"error: field" in made.stderr


ENDS_WELL = [(command, 1) for command in ("preview", "help", "init", "check", "no such")] + [
    slow_case("preview", number) for number in (0, 2, 3)
]


@pytest.mark.parametrize(("command", "terminal"), ENDS_WELL)
def test_command_ends_well_on_any_terminal(
    command: str, terminal: int, rows: Path, tmp_path: Path
) -> None:
    env, encoding = TERMINALS[terminal]
    labels = tmp_path / "labels.csv"
    cells = "".join(f"o gato {i} – 语,casa {i} “é”,{i % 10}\n" for i in range(20))
    labels.write_text("source,candidate,label\n" + cells, encoding="utf-8")
    words = {
        "preview": ["data", "preview", str(rows), "-n", "1"],
        "help": ["data", "import", "--help"],
        "init": ["init", str(labels)],
        "check": ["data", "check", str(rows), "--json"],
        "no such": ["data", "check", f"{tmp_path}/não – 语"],
    }[command]
    made = run("-m", "pt_app.cli", *words, **env)
    assert made.returncode == (2 if command == "no such" else 0), made.stderr
    assert b"Traceback" not in made.stderr
    (made.stdout + made.stderr).decode(encoding)  # and in the terminal's own encoding
    if command == "check":
        json.loads(made.stdout)


LOGS = """
import logging, os, sys
from pt_app.core import console
console.start()
logging.getLogger("pt_app.x").info("a line")
print("not ended by the first line", file=sys.stderr)"""
SOCKET = """
import socket
one, other = socket.socketpair()
other.close()
one.send(b"x")"""
CLOSED: dict[str, list[str]] = {
    "a recipe's help": ["pt_app/eval_model/judge_train_mps.py", "--help"],
    "a script's help": ["scripts/vast.py", "--help"],
    "a group's help": ["-m", "pt_app.cli", "--help"],
    "a command's help": ["-m", "pt_app.cli", "score", "--help"],
    "a command": ["-m", "pt_app.cli", "base", "list"],
    "JSON": ["-m", "pt_app.cli", "data", "check", "datasets/judge_eval", "--json"],
}


def closed(*command: str, unbuffered: str = "1") -> tuple[int, str]:
    """Run Python with these words where stdout has no reader; return its code and its stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    words = [sys.executable, *command]
    done = subprocess.run(words, cwd=ROOT, env=env, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("what", CLOSED)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_ends_a_process_silently(what: str, unbuffered: str) -> None:
    assert closed(*CLOSED[what], unbuffered=unbuffered) == (141, "")


@pytest.mark.parametrize(("body", "code"), [(LOGS, 141), (SOCKET, 1)])
def test_log_line_that_nobody_reads_ends_a_process_and_a_closed_socket_is_a_bug(
    body: str, code: int, tmp_path: Path
) -> None:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    program = f"from pt_app.core.errors import exit_with\ndef main():\n{lines}exit_with(main)"
    ended, said = closed("-c", program)
    assert (ended, "BrokenPipeError" in said) == (code, code == 1)
    assert "not ended" not in said


class Log(io.StringIO):
    """A log file, in place of stderr."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass when a test says so."""
    now = [0.0]
    monkeypatch.setattr(streams.time, "monotonic", lambda: now[0])
    return now


def bars_of(kind: str, file: Any, updates: int, clock: list[float]) -> None:
    """Draw a bar of a second an update."""
    if kind == "transformers":
        from transformers.utils import logging

        bar: Any = logging.tqdm(total=updates, desc="Loading weights", file=file, mininterval=0)
    elif kind == "datasets":
        import datasets

        bar = datasets.utils.tqdm(total=updates, desc="Map", file=file, mininterval=0)
    elif kind == "huggingface_hub":
        from huggingface_hub.utils import tqdm as hub

        bar = hub(total=updates, desc="model.safetensors", file=file, mininterval=0)
    else:
        from tqdm import tqdm

        leave = kind != "not left"
        bar = tqdm(total=updates, desc="judge: verdicts", file=file, mininterval=0, leave=leave)
    for _ in range(updates):
        clock[0] += 1.0
        bar.update()
        bar.refresh()
    bar.close()


@pytest.mark.parametrize(
    "kind", ["tqdm", "not left", "transformers", "datasets", "huggingface_hub"]
)
def test_bar_in_a_log_file_is_a_line_every_half_minute(kind: str, clock: list[float]) -> None:
    log = Log()
    bars_of(kind, Stream(log), 100, clock)
    lines = log.getvalue().splitlines()
    assert 3 <= len(lines) <= 4, lines
    assert not re.search(r"[\r\x1b█]", log.getvalue())
    assert re.match(r"[\w: .]+: +30%", lines[0])
    assert "" not in lines


def test_bar_that_is_done_within_half_a_minute_says_nothing(clock: list[float]) -> None:
    log = Log()
    for _ in range(20):
        bars_of("tqdm", Stream(log), 5, clock)
    assert log.getvalue() == ""


def test_bars_within_bars_and_lines_between_them_are_seldom_and_whole(clock: list[float]) -> None:
    from tqdm import tqdm

    log = Log()
    stream = Stream(log)
    for _ in tqdm(range(6), desc="folds", file=stream, mininterval=0):
        for _ in tqdm(range(20), desc="rows", file=stream, mininterval=0, leave=False):
            clock[0] += 1.0
        print("warning: a line", file=stream)
    lines = log.getvalue().splitlines()
    assert lines.count("warning: a line") == 6
    assert "" not in lines
    assert len(lines) <= 6 + 10
    assert any(line.startswith("folds") for line in lines)


@pytest.mark.slow
def test_training_with_its_bars_writes_no_bar_into_a_log_file(
    tmp_path: Path, base: Path, rows: Path
) -> None:
    recipe = "pt_app/eval_model/judge_train_mps.py"
    flags = {
        "model": base,
        "data_dir": rows,
        "output_dir": tmp_path,
        "epochs": 2,
        "tracking": "off",
    }
    made = run(
        recipe, *(f"--{name}={value}" for name, value in flags.items()), PYTHONIOENCODING="latin-1"
    )
    assert made.returncode == 0, made.stderr
    assert b"\r" not in made.stdout + made.stderr
    assert b"%|" not in made.stdout + made.stderr
    assert len(made.stderr.splitlines()) < 5, made.stderr.decode()
    (report,) = tmp_path.glob("*_final/evaluation/report.md")
    assert "–" in report.read_text(encoding="utf-8")  # files stay UTF-8


def test_terminal_shows_a_bar_as_before(tmp_path: Path) -> None:
    code = """
from pt_app.core.errors import exit_with
from tqdm import tqdm
def main():
    for _ in tqdm(range(3), desc="rows", mininterval=0): pass
exit_with(main)"""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # rows, columns
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=follower)
    assert process.wait(240) == 0
    os.close(follower)
    shown = os.read(leader, 100_000).decode()
    assert re.search(r"\rrows: 100%\|█+\| 3/3", shown)
    os.close(leader)


LIBRARY = """
import logging, sys, warnings
from pathlib import Path
from pt_app.core import console
console.start()
library = logging.getLogger("bitsandbytes")
library.warning("Failed to load CPU gemm_4bit_forward from kernels-community: pip install kernels")
print("The tokenizer has new PAD/BOS/EOS tokens that differ from the model config", file=sys.stderr)
library.warning("weights of layer 3 are missing")
warnings.warn("something new")
console.also_to(Path(sys.argv[-1]))
print("half a line, ", end="", file=sys.stderr)
print("and its end", file=sys.stderr)
logging.getLogger("pt_app.x").info("a line of our own")"""


def test_known_lines_of_libraries_are_hidden_and_all_are_kept(tmp_path: Path) -> None:
    body = LIBRARY.replace("sys.argv[-1]", repr(str(tmp_path / "train.log")))
    made = script(body)
    assert made.returncode == 0, made.stderr
    shown = (made.stdout + made.stderr).decode()
    unknown = ["weights of layer 3 are missing", "something new", "half a line, and its end"]
    for line in [*unknown, "a line of our own"]:
        assert shown.count(line) >= 1
    assert "gemm_4bit" not in shown
    assert "PAD/BOS/EOS" not in shown
    kept = (tmp_path / "train.log").read_text()
    for line in [*unknown, "gemm_4bit", "PAD/BOS/EOS"]:
        assert line in kept
    assert kept.count("a line of our own") == 1


def test_line_that_is_like_a_known_one_is_shown() -> None:
    log, kept = Log(), list[str]()
    stream = Stream(log, kept.append)
    hidden = "[INFO] Running in WANDB offline mode\n"
    shown = "[INFO] Running in another mode\nwandb: ERROR no room\n"
    stream.write(hidden + shown)
    assert log.getvalue() == shown
    assert "".join(f"{line}\n" for line in kept) == hidden + shown


def test_streams_that_somebody_else_put_in_place_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = io.StringIO()
    monkeypatch.setattr(sys, "stdout", mine)
    streams.prepare()
    assert sys.stdout is mine


def json_commands() -> list[list[str]]:
    """The commands with a flag --json that takes no value."""
    found = []
    groups: list[tuple[list[str], Any]] = [([], typer.main.get_command(app))]
    for words, group in groups:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                groups.append(([*words, name], command))
            elif any("--json" in option.opts and option.is_flag for option in command.params):
                found.append([*words, name])
    return found


NOISY = """
import os, sys, subprocess, atexit
atexit.register(print, "at exit")
print("a library's line")
sys.stdout.write("another\\n")
os.write(1, b"C code\\n")
os.system("echo a child process")
from pt_app.core.streams import print_json
"""


def test_json_stands_alone_on_stdout_whatever_prints() -> None:
    code = "\n".join(
        [
            "from pt_app.commands.flags import JSON, Commands",
            "from pt_app.core.errors import exit_with",
            "app = Commands()",
            "@app.command()",
            "def show(*, as_json: bool = JSON) -> None:",
            *(f"    {line}" for line in NOISY.splitlines()),
            "    print_json('{\"a\": 1}')",
            "exit_with(lambda: app(['--json'], standalone_mode=False))",
        ]
    )
    made = run("-c", code)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout) == {"a": 1}
    for line in (b"a library's line", b"another", b"C code", b"a child process", b"at exit"):
        assert line in made.stderr


def test_every_command_with_json_has_the_one_flag() -> None:
    """And a test of its own below: a new command is added there."""
    assert sorted(json_commands()) == [["data", "check"], ["doctor"], ["estimate"]]
    for words in json_commands():
        command: Any = typer.main.get_command(app)
        for word in words:
            command = command.commands[word]
        declared = inspect.signature(command.callback.__wrapped__.__wrapped__).parameters
        assert declared["as_json"].default is JSON


@pytest.mark.slow
def test_json_of_each_command_parses_whatever_wandb_prints(rows: Path, base: Path) -> None:
    flags = [f"--data_dir={rows}", f"--model={base}"]
    for words in (["data", "check", str(rows)], ["estimate", "--no_timing", *flags]):
        made = run("-m", "pt_app.cli", *words, "--json", WANDB_MODE="offline")
        assert json.loads(made.stdout), made.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", ["doctor", "estimate"])
def test_json_of_the_long_commands_parses(command: str, rows: Path, base: Path) -> None:
    flags = [f"--data_dir={rows}", f"--model={base}"]
    made = run("-m", "pt_app.cli", command, "--json", *flags, WANDB_MODE="offline")
    assert json.loads(made.stdout), made.stderr


@pytest.mark.slow
def test_scoring_says_its_last_line_on_an_ascii_terminal(
    adapter: Path, base: Path, tmp_path: Path
) -> None:
    file = write_lines(tmp_path / "não.jsonl", some_rows(3))
    out = tmp_path / "saída – 语.jsonl"
    words = ["score", f"--adapter={adapter}", f"--base={base}", f"--input={file}"]
    made = run("-m", "pt_app.cli", *words, f"--output={out}", PYTHONIOENCODING="ascii")
    assert made.returncode == 0, made.stderr
    assert b"3 rows" in made.stdout
    made.stdout.decode("ascii")
    assert len(out.read_text(encoding="utf-8").splitlines()) == 3
