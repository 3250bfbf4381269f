"""Training rows of open decision models become a dataset of questions.

The files have the layouts that their projects document: decision_rows.py names the pages.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pt_app.cli import app
from pt_app.core.dataset import JudgeData, read_dataset
from pt_app.core.errors import UserError
from pt_app.judge_data.options import ImportOptions, SplitPlan
from pt_app.judge_data.proposing.inspecting import inspect
from pt_app.judge_data.question_import import import_questions

Row = dict[str, Any]
QUESTIONS: Row = {
    "team": {
        "type": "choice",
        "instructions": "Which team?",
        "criteria": {"billing": "invoices", "technical": None},
    },
    "urgent": {"type": "noul", "instructions": "Today?", "criteria": {"true": "at once"}},
    "anger": {"type": "score", "instructions": "How angry?", "criteria": ["calm", "so", "very"]},
}
ANSWERS: Row = {"team": "billing", "urgent": True, "anger": 2}
SHARES: Row = {
    "team": {"billing": 0.75, "technical": 0.25},
    "urgent": {"false": 0.1, "true": 0.9},
    "anger": {"0": 0.0, "1": 0.5, "2": 0.5},
}


def laya(i: int) -> Row:
    if i % 2:
        return {"expected": {**ANSWERS, "anger": 1.5}}
    return {"gold": {name: {"probabilities": shares} for name, shares in SHARES.items()}}


def nemo(i: int) -> Row:
    own = {"answers": ANSWERS, "meta": {"group": f"case {i // 2}"}}
    return own if i % 2 else own | {"soft_labels": SHARES}


def kev(i: int) -> Row:
    labelled = {n: {**own, "label": ANSWERS[n]} for n, own in QUESTIONS.items()}
    del labelled["anger" if i % 2 else "team"]
    return {"questions": labelled}


def write(path: Path, labels: Callable[[int], Row], state: Callable[[int], object]) -> str:
    rows = [{"id": i, "state": state(i), "questions": QUESTIONS} | labels(i) for i in range(20)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def ticket(i: int) -> Row:
    return {"subject": f"ticket {i}", "body": f"body {i} of word{i * 7} and more{i}"}


def read(file: str, name: str, out: Path, **more: Any) -> JudgeData:
    import_questions([file], out, ImportOptions(format=name, **more), SplitPlan())
    return read_dataset(out)


def labels(data: JudgeData, name: str) -> dict[str, Any]:
    rows = [*data.train, *data.val, *data.test]
    return {row.id: row for row in rows if row.asks == name}


@pytest.mark.parametrize(("name", "own"), [("laya", laya), ("nemo-decision", nemo), ("kev", kev)])
def test_a_file_declares_its_questions_and_labels(
    name: str, own: Callable[[int], Row], tmp_path: Path
) -> None:
    data = read(write(tmp_path / "rows.jsonl", own, ticket), name, tmp_path / "out")
    assert data.card.state == ["subject", "body"]
    asked = {question.name: question.declared for question in data.questions}
    assert set(asked) == set(QUESTIONS)
    assert asked["team"].options == {"billing": "invoices", "technical": None}
    assert (asked["urgent"].type, asked["urgent"].criteria) == ("bool", {"true": "at once"})
    assert asked["anger"].levels == ["calm", "so", "very"]
    urgent, team, anger = (labels(data, name) for name in ("urgent", "team", "anger"))
    assert len(urgent) == 20
    assert {row.label.verdict for row in urgent.values()} == {"yes"}
    assert {row.label.verdict for row in team.values()} == {"billing"}
    if name == "kev":
        assert (len(team), len(anger)) == (10, 10)
        return
    assert team["2"].shares == pytest.approx((0.75, 0.25))
    assert urgent["2"].shares == pytest.approx((0.9, 0.1))
    assert anger["2"].shares == pytest.approx((0, 0.5, 0.5))
    assert not team["1"].shares
    if name == "laya":
        assert anger["1"].shares == pytest.approx((0, 0.5, 0.5))
    else:
        assert anger["1"].label.verdict == 2
        assert anger["2"].group == "case 1"


@pytest.mark.parametrize(
    "state",
    [
        lambda i: f"text {i} of word{i * 7}",
        lambda i: ticket(i) if i else [f"turn {i}", {"role": "user"}],
        lambda i: ticket(i) | ({"phone": "1"} if i % 2 else {}),
        lambda i: {"team": "a field of a question's name", "body": f"body {i} of word{i * 7}"},
    ],
)
def test_other_states_are_one_text(state: Callable[[int], object], tmp_path: Path) -> None:
    data = read(write(tmp_path / "rows.jsonl", laya, state), "laya", tmp_path / "out")
    assert data.card.state == ["state"]
    own = labels(data, "team")["3"].row["state"]
    given = state(3)
    assert own == given if isinstance(given, str) else json.loads(own) == given


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"state": ...}, "field state: the row has none"),
        ({"questions": []}, "field questions: they are no object"),
        ({"questions": {"team": {"type": "box"}}}, "field questions.team.type: it is none of noul"),
        ({"questions": {"anger": {**QUESTIONS["anger"], "criteria": {}}}}, "they are no list"),
        ({"questions": {"team": {**QUESTIONS["team"], "instructions": "?"}}}, "in another way"),
        ({"questions": {"labels": QUESTIONS["team"]}}, "no question can have the name labels"),
        ({"expected": {"team": "sales"}}, 'field labels.team: "sales" is not allowed'),
        ({"expected": {"anger": math.inf}}, "field labels.anger: "),
    ],
)
def test_what_is_wrong_with_a_row_is_named(change: Row, said: str, tmp_path: Path) -> None:
    file = Path(write(tmp_path / "rows.jsonl", laya, ticket))
    lines = file.read_text().splitlines()
    row = json.loads(lines[3]) | change
    lines[3] = json.dumps({name: cell for name, cell in row.items() if cell is not ...})
    lines[3] = lines[3].replace("Infinity", "1e999")  # which JSON allows
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match=said):
        read(str(file), "laya", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_reads_a_format_and_refuses_a_map(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", kev, ticket)
    words = ["data", "import", file, "--format", "kev", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "questions: " in done.output
    with pytest.raises(UserError, match="--map does not go with --format kev"):
        read(file, "kev", tmp_path / "other", map=("state=body",))


def test_a_format_without_labels_is_refused_without_naming_a_map(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", laya, ticket)
    with pytest.raises(UserError, match="has a label: name the format that its labels have: laya"):
        read(file, "kev", tmp_path / "out")


def test_a_question_of_a_format_without_a_label_is_named(tmp_path: Path) -> None:
    def some(i: int) -> Row:
        return {"expected": {"team": "billing"}}

    file = write(tmp_path / "rows.jsonl", some, ticket)
    said = import_questions([file], tmp_path / "out", ImportOptions(format="laya"), SplitPlan())
    assert [line for line in said if line.startswith("warning: no row")] == [
        f"warning: no row has a label for {name}: append rows that have one, or leave the question "
        "out of the file"
        for name in ("urgent", "anger")
    ]


@pytest.mark.parametrize(("name", "own"), [("laya", laya), ("nemo-decision", nemo), ("kev", kev)])
def test_a_format_is_recognised_and_its_import_proposed(
    name: str, own: Callable[[int], Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(Path("rows.jsonl"), own, ticket)
    said = CliRunner().invoke(app, ["init", file]).output
    _, _, declared = " ".join(said.split()).partition(
        f"format {name}: rows of a decision model, which declare "
    )
    for one in ("team (choice)", "urgent (bool)", "anger (0-2)"):
        assert one in declared.partition(" lengths ")[0]
    commands = [line.split() for line in said.partition("next:\n")[2].strip().splitlines()]
    wanted = ["judge", "data", "import", file, "--out", "datasets/rows", "--format", name]
    assert commands[0] == wanted
    for command in commands[:3]:
        done = CliRunner().invoke(app, command[1:])
        assert done.exit_code == 0, done.output
    assert "--max_seq_length" in commands[3]
    with pytest.raises(UserError, match="its rows declare their questions: leave out --questions"):
        inspect(file, questions=Path("q.yaml"))


def test_rows_of_a_format_that_cannot_be_used_are_left_out_by_the_proposal(tmp_path: Path) -> None:
    file = Path(write(tmp_path / "rows.jsonl", laya, ticket))
    file.write_text(
        file.read_text().replace('"state": {"subject": "ticket 3"', '"stat": {"x": "y"')
    )
    proposal = inspect(str(file))
    assert proposal.flags == ["--format", "laya", "--drop_bad"]
    found = " ".join(" ".join(proposal.lines()).split())
    assert "1, left out by --drop_bad; the first:" in found
