"""`Judge.load(...).score(...)` and `judge score`: how other programs use a judge."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import UserDict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pt_app.core.errors import UserError
from pt_app.eval_model import score_file as score_command
from pt_app.eval_model.judge_train_mps import main as train
from pt_app.eval_model.options import ScoreOptions
from pt_app.eval_model.score_file import score_file, shard_of
from pt_app.judge import Judge
from pt_app.judge_data import importing
from pt_app.judge_data.importing import import_labels
from pt_app.judge_data.options import ImportOptions, SplitPlan
from tests.tiny_models import make_model_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def judge(adapter: Path, base: Path) -> Judge:
    return Judge.load(adapter, base=str(base))


def some_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    words = ["the", "old", "house", "is", "white", "and", "she", "reads", "a", "long", "letter"]
    return [
        {
            "id": f"row-{i}",
            "source": " ".join(rng.choices(words, k=rng.randint(1, 9))),
            "reference": "a casa",
            "candidate": " ".join(rng.choices(["o", "casa", "velho"], k=rng.randint(0, 6))),
        }
        for i in range(count)
    ]


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def options(base: Path, **changed: Any) -> ScoreOptions:
    return ScoreOptions(base=str(base), **changed)


def test_an_adapter_of_the_first_version_gives_the_same_judgements_to_the_byte(
    judge: Judge, adapter: Path, base: Path, tmp_path: Path
) -> None:
    """Its judge.json has no grid, no rule of verdicts, no date and no hash of the configuration."""
    old = shutil.copytree(adapter, tmp_path / adapter.name)
    told = json.loads((old / "judge.json").read_text())
    for name in ("grid", "verdict_rule", "date", "config_sha256"):
        del told[name]
    (old / "judge.json").write_text(json.dumps(told))
    of_old, of_new = (
        json.dumps([asdict(replace(one, judge="")) for one in each.score(some_rows(12))])
        for each in (Judge.load(old, base=str(base)), judge)
    )
    assert of_old == of_new


def test_judgements_are_those_of_the_evaluation(adapter: Path, base: Path, rows: Path) -> None:
    test = read_lines(rows / "judge_test.json")
    judge = Judge.load(adapter, base=str(base))
    lines = (adapter / "evaluation" / "predictions.jsonl").read_text().splitlines()
    evaluated = [row for row in map(json.loads, lines) if row["model"] == "adapter"]
    judged = judge.score(test)
    assert [one.id for one in judged] == [row["id"] for row in test]
    for one, row in zip(judged, evaluated, strict=True):
        assert (one.status, one.verdict) == (row["status"], row["verdict"])
        assert one.greedy == row["greedy"]
        chances = list((one.probabilities or {}).values())
        assert chances == pytest.approx(row["probabilities"], abs=1e-5)
        near = [p for value, p in enumerate(chances) if abs(value - row["verdict"]) <= 1]
        assert one.confidence == pytest.approx(sum(near), abs=1e-9)
        assert (one.mode, one.consistent) == (chances.index(max(chances)), None)
        assert one.judge.startswith(adapter.name + "@")


def test_bad_rows_get_a_status_and_stop_no_other(adapter: Path, base: Path, tmp_path: Path) -> None:
    good = some_rows(2)
    bad = [
        {},
        {"id": "number", "source": "a", "candidate": 7},
        {"id": "no candidate", "source": "a"},
        {"id": "long", "source": "a", "candidate": "casa " * 3000},
        "{broken",
        "[1]",
        {"id": "empty candidate", "source": "a", "candidate": ""},
    ]
    file = write_lines(tmp_path / "rows.jsonl", [good[0], *bad, good[1]])
    counts = score_file(adapter, str(file), tmp_path / "out.jsonl", options(base))
    judged = read_lines(tmp_path / "out.jsonl")
    assert len(judged) == len(bad) + 2 == sum(counts.values())
    statuses = [row["status"] for row in judged]
    assert statuses[1:7] == ["bad_row", "bad_row", "bad_row", "too_long", "bad_row", "bad_row"]
    assert not {"bad_row", "too_long"} & {statuses[0], statuses[7], statuses[8]}
    assert "field candidate" in judged[2]["problem"]
    assert "not JSON at line 6, column 2" in judged[5]["problem"]
    alone = Judge.load(adapter, base=str(base)).score(good)
    for one, row in zip(alone, (judged[0], judged[8]), strict=True):
        assert row["probabilities"] == pytest.approx(one.probabilities, abs=1e-5)


def test_csv_and_parquet_hold_what_json_lines_hold(
    adapter: Path, base: Path, tmp_path: Path
) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = some_rows(5)
    write_lines(tmp_path / "rows.jsonl", rows)
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "src", "ref", "mt"])
        writer.writeheader()
        writer.writerows(
            {"id": r["id"], "src": r["source"], "ref": r["reference"], "mt": r["candidate"]}
            for r in rows
        )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    renamed = options(base, map=["source=src,reference=ref,candidate=mt,id=id"])
    score_file(adapter, str(tmp_path / "rows.jsonl"), tmp_path / "1.jsonl", options(base))
    score_file(adapter, str(tmp_path / "rows.csv"), tmp_path / "2.csv", renamed)
    score_file(adapter, str(tmp_path / "rows.parquet"), tmp_path / "3.parquet", options(base))
    lines = read_lines(tmp_path / "1.jsonl")
    with open(tmp_path / "2.csv", newline="") as file:
        table = list(csv.DictReader(file))
    columns = pyarrow.parquet.read_table(tmp_path / "3.parquet").to_pylist()
    for line, cells, column in zip(lines, table, columns, strict=True):
        assert cells["id"] == column["id"] == line["id"]
        assert json.loads(cells["probabilities"]) == line["probabilities"]
        assert json.loads(column["probabilities"]) == line["probabilities"]
        assert column["confidence"] == line["confidence"] == float(cells["confidence"])
        assert str(line["verdict"]) == cells["verdict"] == column["verdict"]


def test_shards_hold_all_rows_once(adapter: Path, base: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", some_rows(11))
    score_file(adapter, str(file), tmp_path / "all.jsonl", options(base))
    parts = []
    for number in (1, 2, 3):
        out = tmp_path / f"{number}.jsonl"
        score_file(adapter, str(file), out, options(base, shard=f"{number}/3"))
        parts += read_lines(out)
    whole = read_lines(tmp_path / "all.jsonl")
    assert [row["id"] for row in parts] == [row["id"] for row in whole]
    for one, other in zip(parts, whole, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_rows_of_one_source_are_judged_together_and_written_in_their_order(
    adapter: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_command, "PART", 3)
    monkeypatch.setattr(score_command, "WINDOW", 2)
    judge, judged = score_command._judged, list[list[str]]()

    def noted(*arguments: Any) -> str:
        judged.append([row["source"] for _, (_, row) in arguments[-1]])
        return judge(*arguments)

    monkeypatch.setattr(score_command, "_judged", noted)
    rows = [{**row, "source": "bacab"[i % 5]} for i, row in enumerate(some_rows(10))]
    file = write_lines(tmp_path / "rows.jsonl", rows)
    score_file(adapter, str(file), tmp_path / "out.csv", options(base))
    assert judged == [list("aab"), list("bbc"), list("aab"), list("c")]
    alone = Judge.load(adapter, base=str(base)).score(rows)
    with open(tmp_path / "out.csv", newline="") as written:
        for row, one in zip(csv.DictReader(written), alone, strict=True):
            assert (row["id"], row["verdict"]) == (one.id, str(one.verdict))
            chances = json.loads(row["probabilities"])
            assert chances == pytest.approx(one.probabilities, abs=1e-5)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "1/²"])
def test_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--shard"):
        shard_of(text, 9)


def test_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = make_model_folder(tmp_path / "other", seed=9, hidden_size=64, intermediate_size=128)
    with pytest.raises(UserError, match="load it on its own base"):
        Judge.load(adapter, base=str(other))


def test_answers_come_only_where_they_are_asked_for(adapter: Path, base: Path) -> None:
    judge = Judge.load(adapter, base=str(base))
    assert {one.answer for one in judge.score(some_rows(3))} == {None}
    assert all(isinstance(one.answer, str) for one in judge.score(some_rows(3), feedback=True))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_coarser_precision_says_what_it_changes(
    adapter: Path, base: Path, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    from pt_app.models.gemm import has_bfloat16

    if precision == "bf16" and not has_bfloat16():
        pytest.skip("this CPU has no bfloat16 of its own")
    exact = Judge.load(adapter, base=str(base)).score(some_rows(20))
    judge = Judge.load(adapter, base=str(base), precision=precision, sample=some_rows(20))
    coarse = judge.score(some_rows(20))
    change = judge.change
    assert change is not None
    assert change.n == 20
    pairs = list(zip(exact, coarse, strict=True))
    assert change.verdicts == sum(one.verdict != other.verdict for one, other in pairs)
    assert change.probability > 1e-5, "nothing was rounded"
    assert f"{precision}: changes {change.verdicts} of 20 verdicts" in caplog.text


def test_cut_lines_say_what_they_change(
    adapter: Path, base: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pt_app.scoring.branches.SAMPLE", 20)
    monkeypatch.setattr("pt_app.scoring.branches.TOLERANCE", 1)
    monkeypatch.setattr("pt_app.scoring.branches.MARGIN", 1)
    exact = Judge.load(adapter, base=str(base)).score(some_rows(20))
    judge = Judge.load(adapter, base=str(base), reading="branches", sample=some_rows(20))
    fast = judge.score(some_rows(20))
    change = judge.cut_change
    assert change is not None
    assert change.n == 10
    largest = max(
        abs(p - other.probabilities[verdict])
        for one, other in zip(exact[1::2], fast[1::2], strict=True)
        if one.probabilities and other.probabilities
        for verdict, p in one.probabilities.items()
    )
    assert change.probability == pytest.approx(largest, abs=1e-6)
    assert change.probability > 1e-7, "nothing was cut"
    assert f"of 10 verdicts, a probability by up to {change.probability:.2g}" in caplog.text


def test_parts_of_another_job_are_refused(adapter: Path, base: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", some_rows(3))
    parts = tmp_path / "out.jsonl.parts"
    parts.mkdir()
    another = ('{"judge": "another"}', "begun with another judge")
    for job, says in (another, ("[]", "job.json must be a JSON object: remove")):
        parts.mkdir(exist_ok=True)
        (parts / "job.json").write_text(job)
        with pytest.raises(UserError, match=says):
            score_file(adapter, str(file), tmp_path / "out.jsonl", options(base))
    assert not (tmp_path / "out.jsonl").exists()


def test_a_damaged_part_is_named(
    adapter: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = write_lines(tmp_path / "rows.jsonl", some_rows(3)), tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr("pt_app.eval_model.score_file._judgements", None)  # it ends before it joins
        with pytest.raises(TypeError):
            score_file(adapter, str(file), out, options(base))
    (part,) = tmp_path.glob("out.jsonl.parts/*.jsonl")
    whole = part.read_text("utf-8")
    for damaged in (whole[:-9], "3\n", '["x", {}]\n'):
        part.write_text(damaged, "utf-8")
        with pytest.raises(UserError, match=r"000000\.jsonl is damaged .* and score again"):
            score_file(adapter, str(file), out, options(base))


def test_output_of_an_unknown_ending_is_refused(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"its ending must be one of .jsonl"):
        score_file(adapter, "rows.jsonl", tmp_path / "out.xlsx", ScoreOptions())


@pytest.mark.slow
def test_run_killed_at_five_moments_and_resumed_equals_the_uninterrupted_one(
    adapter: Path, base: Path, tmp_path: Path
) -> None:
    file = write_lines(tmp_path / "rows.jsonl", some_rows(2000))
    score_file(adapter, str(file), tmp_path / "whole.jsonl", options(base))
    flags = {"adapter": adapter, "base": base, "input": file, "output": tmp_path / "killed.jsonl"}
    command = [sys.executable, "-m", "pt_app.cli", "score"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    rng, kills = random.Random(0), 0
    for _ in range(100):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if kills < 5:
            parts = tmp_path / "killed.jsonl.parts"
            while not parts.exists() and process.poll() is None:
                time.sleep(0.05)
            time.sleep(rng.uniform(0.0, 1.5))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
        output, _ = process.communicate(timeout=900)
        if process.returncode == 0 and kills == 5:
            break
        (tmp_path / "killed.jsonl").unlink(missing_ok=True)  # it ended before its kill: once more
    assert process.returncode == 0, output
    assert kills == 5
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / "killed.jsonl.parts").exists()


class Row(UserDict[str, Any]):
    """A mapping that is no dict."""


def test_row_of_any_kind_gets_a_status_and_stops_no_other(adapter: Path, base: Path) -> None:
    import numpy

    good = {"source": "the house", "candidate": "a casa"}
    bad: list[Any] = [
        {"source": "x", "candidate": "\ud83d"},
        {"source": "x", "candidate": "a", "reference": "b\udc00"},
        {"conversation": [{"role": "user", "content": "\udc00"}], "candidate": "x"},
        {"messages": [{"role": "user", "content": "Rate \ud800"}]},
        {"id": "\ud800", **good},
        {"id": ["a", "list"], **good},
        {"source": "x", "candidate": float("nan")},
        {"source": "x", "candidate": b"\xff"},
        {"source": "x", "candidate": {"text": "a"}},
        {"source": "x", "candidate": numpy.zeros(2)},
        *(None, [1], (1, 2), "text", 3, b"bytes", numpy.zeros(2), numpy.int64(1)),
    ]
    judge = Judge.load(adapter, base=str(base))
    alone = judge.score([good])[0].probabilities
    judged = judge.score([*bad, good])
    assert [(row, one.status) for row, one in zip(bad, judged, strict=False)] == [
        (row, "bad_row") for row in bad
    ]
    assert all(one.problem and "rows, row " in one.problem for one in judged[:-1])
    assert judged[-1].probabilities == pytest.approx(alone, abs=1e-5)
    json.dumps([asdict(one) for one in judged], ensure_ascii=False).encode()
    also = [Row(good), good | {"candidate": numpy.str_("a casa")}, good | {"note": numpy.zeros(3)}]
    for one in judge.score(also):
        assert one.probabilities == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(
    ("id", "name"),
    [
        *((1.0, "1"), (1.5, "1.5"), (7, "7"), (-0.0, "0"), (None, "rows:1")),
        *((1e300, str(int(1e300))), (10**400, f"1{'0' * 400}")),
    ],
)
def test_id_is_read_as_pandas_writes_it(id: object, name: str, judge: Judge) -> None:
    import numpy

    ids = [id] if id is None or isinstance(id, int) else [id, numpy.float64(id)]  # type: ignore[arg-type]
    for one in ids:
        (row,) = judge.score([{"id": one, "source": "the house", "candidate": "a casa"}])
        assert (row.id, row.problem) == (name, None)


def test_missing_id_of_a_pandas_column_is_the_place(judge: Judge) -> None:
    (row,) = judge.score([{"id": float("nan"), "source": "the house", "candidate": "a casa"}])
    assert row.id == "rows:1"


CHATS: dict[str, tuple[list[tuple[str, str]], str]] = {
    "two user turns": (
        [("user", "Rate A"), ("assistant", "Score: 9/10"), ("user", "Rate B")],
        "2 user",
    ),
    "a tool's turn": ([("tool", "reference: cão"), ("user", "Rate B")], "unknown role 'tool'"),
    "two systems": ([("system", "a"), ("system", "b"), ("user", "Rate B")], "2 system turns"),
    "the answer first": ([("assistant", "Score: 9/10"), ("user", "Rate B")], "comes first"),
    "two answers": ([("user", "B"), ("assistant", "1"), ("assistant", "2")], "2 assistant turns"),
    "no user": ([("system", "Rate")], "no user turn"),
    "a developer's turn": ([("developer", "be strict"), ("user", "B")], "unknown role 'developer'"),
}


@pytest.mark.parametrize("name", CHATS)
def test_chat_that_import_refuses_is_a_bad_row(name: str, judge: Judge, tmp_path: Path) -> None:
    turns, said = CHATS[name]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (one,) = judge.score([row])
    assert one.status == "bad_row"
    assert said in (one.problem or "")
    has_answer = any(role == "assistant" for role, _ in turns)
    answered = turns if has_answer else [*turns, ("assistant", "Score: 1/10")]
    row = {"messages": [{"role": role, "content": text} for role, text in answered]}
    file = write_lines(tmp_path / "chat.jsonl", [row])
    with pytest.raises(UserError, match=re.escape(said)):
        import_labels([str(file)], tmp_path / "out", ImportOptions(), SplitPlan())


def test_answer_of_a_chat_is_not_shown_to_its_judge(judge: Judge) -> None:
    asked = [{"role": "system", "content": "Rate."}, {"role": "user", "content": "o gato"}]
    with_answer = [*asked, {"role": "assistant", "content": "Score: 9/10"}]
    one, other = judge.score([{"messages": asked}, {"messages": with_answer}])
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_file_whose_name_is_not_utf8_is_scored(
    adapter: Path,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "pt_app")
    monkeypatch.setattr(importing, "BAR_AFTER", 0)  # a slow import shows a bar with the name
    file = tmp_path / os.fsdecode(b"lab\xe9l.jsonl")
    try:
        write_lines(file, [{"source": "the house", "candidate": "a casa"}, {"source": "x"}])
    except OSError:
        pytest.skip("this file system has UTF-8 names alone")
    labelled = tmp_path / os.fsdecode(b"lab\xe9ls.jsonl")
    write_lines(labelled, [{**row, "id": "", "label": {"verdict": 5}} for row in some_rows(9)])
    for ending in ("jsonl", "csv", "parquet"):
        out = tmp_path / os.fsdecode(f"o\xe9.{ending}".encode("latin-1"))
        counts = score_file(adapter, str(file), out, options(base))
        assert counts["bad_row"] == 1
        assert sum(counts.values()) == 2
    imported = import_labels([str(labelled)], tmp_path / "ds", ImportOptions(), SplitPlan())
    assert "lab" in "\n".join(imported)
    assert (capsys.readouterr().err + caplog.text).encode()
    judged = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert judged[0]["id"] == r"lab\xe9l.jsonl:1"


def test_pairs_and_chats_are_judged_without_labels(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs"
    data.mkdir()
    (data / "dataset.json").write_text('{"task": "pairwise", "template": "response"}')
    for split in ("train", "test"):
        rows = [
            {"source": f"{split} {i}", "candidates": ["o", f"casa {i}"], "label": {"verdict": "B"}}
            for i in range(4)
        ]
        write_lines(data / f"judge_{split}.json", rows)
    flags = {"model": base, "data_dir": data, "output_dir": tmp_path, "epochs": 1}
    train([f"--{n}={v}" for n, v in flags.items()] + ["--tracking=off", "--skip_eval"])
    (folder,) = tmp_path.glob("*_final")
    judge = Judge.load(folder, base=str(base))
    one, other, chat = judge.score([
        {"source": "a", "candidates": ["o", "casa"]},
        {"source": "a", "candidate_a": "o", "candidate_b": "casa"},
        {"messages": [{"role": "user", "content": "Which is better: o or casa?"}]},
    ])  # fmt: skip
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    assert set(one.probabilities or ()) == {"A", "B", "tie"}
    assert chat.status in ("ok", "parse_failure")
