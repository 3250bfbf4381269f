"""TensorBoard as a sink of tracking: event files are read back record by record."""

import json
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pt_app.core.errors import UserError, exit_with
from pt_app.core.settings import read_tracking, resolve
from pt_app.preflight.prefetch import verify
from pt_app.tracking.tensorboard import EventFile
from pt_app.tracking.tracker import Tracker
from tests.conftest import slow_case
from tests.test_kills import argv, start
from tests.test_recipes import flags, main

pytest.importorskip("tensorboardX", reason="pip install -r requirements-tensorboard.txt")
Curve = dict[int, float]
SETTINGS = resolve("mps", ["--tracking=tensorboard"], "", "")


def events(file: Path) -> Iterator[Any]:
    """The events of a file of TFRecords: length, its checksum, content, its checksum."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    data = file.read_bytes()
    while data:
        (length,), content = struct.unpack("<Q", data[:8]), data[12:]
        assert struct.unpack("<I", data[8:12]) == (masked_crc32c(data[:8]),)
        content, rest = content[:length], content[length:]
        assert struct.unpack("<I", rest[:4]) == (masked_crc32c(content),)
        data = rest[4:]
        yield Event.FromString(content)


def curves(run: Path) -> dict[str, Curve]:
    """The curves of a run as TensorBoard joins them: a restart drops the steps after it."""
    curves: dict[str, Curve] = {}
    for file in sorted((run / "tensorboard").iterdir(), key=lambda file: file.stat().st_mtime):
        for event in events(file):
            if event.HasField("session_log"):
                for tag, curve in curves.items():
                    curves[tag] = {step: v for step, v in curve.items() if step < event.step}
            for value in event.summary.value:
                curve = curves.setdefault(value.tag, {})
                assert event.step not in curve, f"{value.tag}: two values of step {event.step}"
                curve[event.step] = value.simple_value
    return curves


@pytest.mark.parametrize("recipe", ["mps", slow_case("cuda")])
def test_a_run_writes_its_curves_and_the_numbers_of_its_evaluation(
    recipe: str, base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--tracking=tensorboard", "--eval_steps=8", "--epochs=4"]  # 24 steps
    main(recipe, flags(base, rows, tmp_path, *more))
    (adapter,) = tmp_path.glob("*_final")
    run = Path(str(adapter).removesuffix("_final"))
    drawn = curves(run)
    history = json.loads((adapter / "training_config.json").read_text())["log_history"]
    for name in ("loss", "grad_norm", "learning_rate"):
        logged = {entry["step"]: entry[name] for entry in history if name in entry}
        assert drawn[f"train/{name}"] == pytest.approx(logged, rel=1e-6)
        assert set(logged) == {10, 20}
    validated = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    assert drawn["eval/loss"] == pytest.approx(validated, rel=1e-6)
    assert set(validated) == {8, 16, 24}
    results = json.loads((adapter / "evaluation" / "results.json").read_text())
    for model in results["models"]:
        mae = model["metrics"]["mae"]
        for tag, value in (("mae", mae["value"]), ("mae_high", mae["high"]), ("mae_n", mae["n"])):
            shown = drawn.get(f"{model['name']}/{tag}")
            assert shown == (None if value is None else pytest.approx({24: value}, rel=1e-6))
    assert f"tensorboard --logdir {run}/tensorboard" in capsys.readouterr().out
    assert not {file.name for file in run.iterdir()} & {
        "wandb",
        "tracking.json",
        "weave_rows.jsonl",
    }


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_shows_each_step_once(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    killed = ["-m", "tests.killed_recipe", "mps", '[[17, "0"], [33, "0"]]']
    process = start(base, rows, tmp_path, "--tracking=tensorboard", script=killed)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    main("mps", argv(base, rows, tmp_path, "--tracking=tensorboard", "--resume"))
    (adapter,) = tmp_path.glob("*_final")
    run = Path(str(adapter).removesuffix("_final"))
    history = json.loads((adapter / "training_config.json").read_text())["log_history"]
    logged = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    assert len(list((run / "tensorboard").iterdir())) == 3
    assert curves(run)["train/loss"] == pytest.approx(logged, rel=1e-6)
    assert {10, 20, 30, 40, 120} <= set(logged)


KILLED = """
import os, sys
from pathlib import Path
from pt_app.core.settings import resolve
from pt_app.tracking.tracker import Tracker
settings = resolve("mps", ["--tracking=tensorboard"], "", "")
tracker = Tracker(settings, Path(sys.argv[1]))
for step in range(1, 6):
    tracker.log({"loss": 1.0 / step}, step)
os.kill(os.getpid(), 9)
"""


def test_a_killed_run_keeps_its_curve_and_a_resumed_one_appends_to_it(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    assert curves(tmp_path)["train/loss"] == pytest.approx({s: 1 / s for s in range(1, 6)})
    with Tracker(SETTINGS, tmp_path) as resumed:  # after step 3
        for step in (4, 5, 6):
            resumed.log({"loss": 0.0, "eval_loss": float("nan")}, step)
    with Tracker(SETTINGS, tmp_path) as evaluated:
        evaluated.finish(None, tmp_path / "predictions.jsonl", tmp_path, lambda _: ())
    drawn = curves(tmp_path)["train/loss"]
    assert drawn == pytest.approx({1: 1, 2: 1 / 2, 3: 1 / 3, 4: 0, 5: 0, 6: 0})


def test_a_full_disk_costs_a_line_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    lines: list[str] = []
    with Tracker(SETTINGS, tmp_path, lines.append) as tracker:
        tracker.log({"loss": 1.0}, 1)
        monkeypatch.setattr(EventFile, "write", full)
        tracker.log({"loss": 1.0}, 2)
        tracker.log({"loss": 1.0}, 3)
    assert len(lines) == 2
    assert "No space left on device" in lines[1]


def test_without_the_package_a_run_stops_before_anything_is_made(
    base: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # as if it were not installed
    argv = flags(base, rows, tmp_path / "out", "--tracking=offline,tensorboard")
    with pytest.raises(SystemExit) as ended:
        exit_with(lambda: main("mps", argv))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install -r requirements-tensorboard.txt" in line
    assert not (tmp_path / "out").exists()


def test_the_doctor_looks_for_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from pt_app.preflight.doctor.needs import Needs

    needs = Needs(SETTINGS, offline=True)
    assert {(each.name, each.status) for each in needs.tracking()} == {
        ("tensorboard", "ok"),
        ("tracking", "ok"),
    }
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    first = next(needs.tracking())
    assert (first.name, first.status) == ("tensorboard", "fail")
    assert first.fix == "pip install -r requirements-tensorboard.txt"


BOTH = {"wandb", "weave"}


@pytest.mark.parametrize(
    ("value", "mode", "sinks"),
    [
        ("off", "off", set()),
        ("auto", "auto", BOTH),
        ("online", "online", BOTH),
        ("offline", "offline", BOTH),
        ("wandb,weave", "auto", BOTH),
        ("weave", "auto", {"weave"}),
        ("offline, wandb", "offline", {"wandb"}),
        ("tensorboard", "off", {"tensorboard"}),
        ("online,tensorboard", "online", BOTH | {"tensorboard"}),
        ("tensorboard,wandb", "auto", {"wandb", "tensorboard"}),
    ],
)
def test_a_list_of_sinks_and_one_mode_is_read(value: str, mode: str, sinks: set[str]) -> None:
    assert read_tracking(value) == (mode, sinks)


@pytest.mark.parametrize("value", ["", "tensorbord", "off,wandb", "online,offline", "wandb weave"])
def test_a_list_that_means_nothing_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=f"--tracking {value}: choose one of"):
        read_tracking(value)


def test_servers_that_wandbs_own_variable_turns_off_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    said: list[str] = []
    tracker = Tracker(
        resolve("mps", ["--tracking=wandb,tensorboard"], "", ""), tmp_path, said.append
    )
    with tracker:
        pass
    assert "event files for TensorBoard" in said[0]
    assert "W&B: off (WANDB_MODE=disabled)" in said[0]


def test_an_evaluation_alone_is_drawn_at_the_last_step_of_the_training(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    more = ["--tracking=tensorboard", "--eval_steps=0"]
    main("mps", flags(base, rows, tmp_path, *more, "--skip_eval"))
    main("mps", flags(base, rows, tmp_path, *more, "--resume"))
    (run,) = [path for path in tmp_path.iterdir() if not path.name.endswith("_final")]
    evaluated = {tag: list(c) for tag, c in curves(run).items() if tag.startswith("adapter/")}
    assert evaluated
    assert all(steps == [6] for steps in evaluated.values())  # 24 rows in steps of 4


def test_unknown_sink_in_a_settings_file_is_named_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("tracking: wandb,tensorbord")
    with pytest.raises(UserError, match=r"mine\.yaml: tracking wandb,tensorbord: choose one of"):
        resolve("mps", [f"--config={file}"], "", "")


def test_prefetch_misses_the_package_before_a_job_does(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pt_app.tracking.access.has_tensorboard", lambda: False)
    with pytest.raises(UserError, match="tensorboardX is missing: pip install"):
        verify("mps", flags(base, rows, tmp_path, "--tracking=tensorboard"))
