"""`judge eval`: adapters, their base and a prompted model on the same rows."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pt_app.cli import app
from pt_app.core.errors import UserError
from pt_app.core.settings import Settings
from pt_app.eval_model import repeats
from pt_app.eval_model.judge_train_mps import main as train
from pt_app.models import gguf
from pt_app.models.adapters import verify_adapter
from tests.teacher_server import Answer, Body, TeacherServer, failure, reply


@pytest.fixture(scope="module")
def adapter(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("judge")
    flags = {"model": base, "data_dir": rows, "output_dir": out, "epochs": 1, "tracking": "off"}
    train([f"--{name}={value}" for name, value in flags.items()] + ["--skip_eval"])
    (folder,) = out.glob("*_final")
    return folder


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, words)])


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def test_adapters_base_and_a_prompted_model_judge_the_same_rows(
    adapter: Path, base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    other = tmp_path / "other_final"
    shutil.copytree(adapter, other)
    answers = {"Candidate": "Score: 4/10\nFeedback: fine"}

    def answer(body: Body, number: int) -> Answer:
        assert "response_format" not in body
        return reply("no verdict" if number == 3 else answers["Candidate"], prompt=100, answer=20)

    out = tmp_path / "out"
    words = [f"--data={rows}", f"--adapter={adapter}", f"--adapter={other}", "--base"]
    words += [f"--base_path={base}", "--endpoint_model=big", "--price_in=1", "--price_out=5"]
    with TeacherServer(answer) as server:
        done = run(*words, f"--endpoint={server.url}", f"--out={out}")
        assert done.exit_code == 0, done.exception
        assert server.answered == 12
        again = run(*words, f"--endpoint={server.url}", f"--out={out}")
        assert again.exit_code == 0, again.exception
        assert server.answered == 12  # what the journal holds is not paid for twice
    found = results(out)
    names = [adapter.name.removesuffix("_final"), "other", "base", "big"]
    assert [model["name"] for model in found["models"]] == names
    first, second, _, prompted = found["models"]
    assert first["metrics"] == second["metrics"]  # the same weights under another name
    assert prompted["parse_failures"] == 1
    assert "greedy" not in prompted
    assert prompted["cost"]["dollars"] == pytest.approx(12 * (100 * 1 + 20 * 5) / 1e6)
    assert prompted["cost"]["per_verdict"] == pytest.approx(prompted["cost"]["dollars"] / 12)
    assert {one["b"] for one in found["comparisons"]} >= set(names[1:])
    assert all(one["p_holm"] >= one["p"] for one in found["comparisons"])
    report = (out / "report.md").read_text()
    assert "$0.0024 for 12 verdicts" in report
    lines = [line for line in report.splitlines() if line.startswith("| big, answer")]
    assert lines[0].endswith("| 0.000200 |")
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 4 * 12


def test_one_adapter_is_compared_with_its_base(
    adapter: Path, base: Path, rows: Path, tmp_path: Path
) -> None:
    words = [f"--data={rows}", f"--adapter={adapter}", "--base", f"--base_path={base}"]
    assert run(*words, f"--out={tmp_path / 'out'}", "--rows=8").exit_code == 0
    found = results(tmp_path / "out")
    assert [model["name"] for model in found["models"]] == ["adapter", "base"]
    assert found["data"]["n"] == 8
    assert "its base at" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_a_curve_is_the_same_training_on_fewer_rows(
    adapter: Path, base: Path, rows: Path, tmp_path: Path
) -> None:
    words = [f"--data={rows}", f"--adapter={adapter}", f"--base_path={base}", "--curve"]
    done = run(*words, f"--out={tmp_path / 'out'}")
    assert done.exit_code == 0, done.exception
    found = results(tmp_path / "out")
    assert [(one["judge"], one["rows"]) for one in found["curve"]] == [
        ("quarter", 6),
        ("half", 12),
        ("adapter", 24),
    ]
    made = {
        name: json.loads((folder / "training_config.json").read_text())["settings"]
        for name in ("quarter", "half")
        for folder in (tmp_path / "out" / "curve" / name).glob("*_final")
    }
    mine = json.loads((adapter / "training_config.json").read_text())["settings"]
    for name, count in (("quarter", 6), ("half", 12)):
        other = {"max_samples", "output_dir", "model", "data_dir", "skip_eval"}
        assert made[name]["max_samples"] == count
        assert {k: v for k, v in made[name].items() if k not in other} == {
            k: v for k, v in mine.items() if k not in other
        }
    assert "## Learning curve" in (tmp_path / "out" / "report.md").read_text()
    # Its shares are used again; those of a judge that was trained otherwise are not.
    other = tmp_path / "other_final"
    shutil.copytree(adapter, other)
    config = json.loads((other / "training_config.json").read_text())
    config["settings"]["lr"] *= 2
    (other / "training_config.json").write_text(json.dumps(config))
    for judge, trainings in ((adapter, 1), (other, 2)):
        words[1] = f"--adapter={judge}"
        assert run(*words, f"--out={tmp_path / 'out'}").exit_code == 0
        for name in ("quarter", "half"):
            assert len([*(tmp_path / "out" / "curve" / name).glob("*_final")]) == trainings


def test_a_curve_takes_template_and_base_that_are_kept_by_other_names_than_their_own(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter records the bare names of a template's file and of a GGUF file."""
    monkeypatch.setenv("JUDGE_CACHE", str(tmp_path))
    asked = list[Settings]()

    def trained(settings: Settings) -> Path:
        asked.append(settings)
        return tmp_path

    monkeypatch.setattr(repeats, "train_with", lambda recipe: trained)
    info = verify_adapter(adapter)
    recorded = info.training["settings"] | {"chat_template": "own.jinja"}
    own = {"training": {**info.training, "settings": recorded}}
    converted = gguf.folder_of("0" * 64)
    converted.mkdir(parents=True)
    info = replace(info, identity={**info.identity, "gguf_sha256": converted.name}, **own)
    repeats.on_fewer_rows(info, tmp_path, 24, None, tmp_path / "out")
    assert {each.chat_template for each in asked} == {str(adapter / "chat_template.jinja")}
    assert {each.model for each in asked} == {str(converted)}


def test_examples_are_shown_as_turns_before_the_row(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    bodies = []

    def answer(body: Body, number: int) -> Answer:
        bodies.append(body)
        return reply("The translation is fine.\n**Score: 7**")

    with TeacherServer(answer) as server:
        words = [f"--data={rows}", f"--endpoint={server.url}", "--endpoint_model=m", "--shots=2"]
        done = run(*words, f"--out={tmp_path / 'out'}")
        assert done.exit_code == 0, done.exception
    turns = [turn["role"] for turn in bodies[0]["messages"]]
    assert turns == ["system", "user", "assistant", "user", "assistant", "user"]
    assert bodies[0]["messages"][2]["content"].startswith("Score: ")
    (model,) = results(tmp_path / "out")["models"]
    assert model["parse_failures"] == 0  # written as a person would, and read as such


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "name a judge"),
        (["--endpoint=http://127.0.0.1:9/v1"], "belong together"),
        (["--endpoint_model=m"], "belong together"),
    ],
)
def test_without_a_judge_nothing_is_written(
    rows: Path, tmp_path: Path, flags: list[str], words: str
) -> None:
    done = run(f"--data={rows}", f"--out={tmp_path / 'out'}", *flags)
    assert isinstance(done.exception, UserError)
    assert words in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_the_money_ends_a_run_and_the_journal_keeps_what_was_paid(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")

    def answer(body: Body, number: int) -> Answer:
        return failure(400, "flagged") if number == 1 else reply("Score: 5/10", 1000, 10)

    words = [f"--data={rows}", "--endpoint_model=m", f"--out={tmp_path / 'out'}"]
    words += ["--price_in=100", "--price_out=100", "--concurrency=1"]
    with TeacherServer(answer) as server:
        done = run(*words, f"--endpoint={server.url}", "--max_cost=0.4")
        assert isinstance(done.exception, UserError)
        assert "stopped at --max_cost 0.4" in str(done.exception)
        assert not (tmp_path / "out").exists()
        paid = server.answered
        assert 0 < paid < 12
        assert run(*words, f"--endpoint={server.url}").exit_code == 0
        assert server.answered == 11
    (model,) = results(tmp_path / "out")["models"]
    assert model["parse_failures"] == 1  # the refused one
    assert model["cost"]["dollars"] == pytest.approx(11 * 1010 * 100 / 1e6)
