"""Files with a column a question become a dataset folder, and stay one when it is split again."""

import csv
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from pt_app.judge_data.checking import check_folder
from pt_app.judge_data.folder import split_folder
from pt_app.judge_data.generator.generate import generate
from pt_app.judge_data.options import GenerateOptions, ImportOptions, SplitPlan
from pt_app.judge_data.question_import import import_questions

DECLARED = """
state: [ticket, reply]
questions:
  polite: {type: bool, instructions: "Is the reply polite?"}
  offer:
    type: choice
    instructions: What is offered?
    options: [replacement, refund, nothing]
  quality: {type: score, instructions: "How good?", scale: 1-5}
"""
OFFERS = ["replacement", "refund", "nothing"]


def cells(i: int) -> dict[str, Any]:
    return {
        "Ticket text": f"ticket number {i} is about cup {i}",
        "Reply": f"reply {i} says word{i} and word{i * 7} to them about it",
        "polite": ["yes", "no"][i % 2],
        "ana": OFFERS[i % 3],
        "rui": OFFERS[(i + i % 2) % 3],
        "stars": "" if i % 5 == 0 else str(i % 5 + (i % 5 == 0)),
    }


MAP = ("ticket=Ticket text,reply=Reply,offer=ana+rui,quality=stars",)


@pytest.fixture
def written(tmp_path: Path) -> tuple[str, Path]:
    with open(tmp_path / "labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(cells(0)))
        writer.writeheader()
        writer.writerows(cells(i) for i in range(60))
    (tmp_path / "questions.yaml").write_text(DECLARED)
    return str(tmp_path / "labels.csv"), tmp_path / "questions.yaml"


def imported(written: tuple[str, Path], out: Path, **options: Any) -> list[str]:
    file, questions = written
    chosen = ImportOptions(questions=questions, **{"map": MAP, **options})
    return import_questions([file], out, chosen, SplitPlan())


def test_a_column_a_question_becomes_a_folder_that_training_reads(
    written: tuple[str, Path], tmp_path: Path
) -> None:
    lines = imported(written, tmp_path / "out")
    assert "read 60 rows: kept 60, dropped 0" in lines
    assert any(line.startswith("offer: agreement: 2 raters, 120 labels") for line in lines)
    data = read_dataset(tmp_path / "out")
    rows = [row for part in (data.train, data.val, data.test) for row in part]
    assert len({row.id for row in rows}) == 60
    counts = Counter(row.asks for row in rows)
    assert counts == {"polite": 60, "offer": 60, "quality": 48}
    first = next(row for row in rows if row.id == "labels-5" and row.asks == "offer")
    assert (first.row or {})["labels"] == {
        "polite": "no",
        "offer": {"annotators": {"ana": "replacement", "rui": "refund"}},
        "quality": 3,
    }


def test_every_question_is_balanced_over_the_splits(
    written: tuple[str, Path], tmp_path: Path
) -> None:
    imported(written, tmp_path / "out")
    data = read_dataset(tmp_path / "out")
    for name, values in (("polite", ("yes", "no")), ("quality", (1, 2, 3, 4))):
        for split in (data.train, data.val, data.test):
            labels = [row.label.verdict for row in split if row.asks == name and row.label]
            for value in values:
                assert abs(labels.count(value) / len(labels) - 1 / len(values)) < 0.25


def test_a_folder_of_questions_is_split_again_and_checked(
    written: tuple[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    imported(written, out)
    before = {row["id"]: row for row in rows_of(out)}
    split_folder(out, SplitPlan(seed=5, anew=True))
    after = {row["id"]: row for row in rows_of(out)}
    assert after == before
    split_folder(out, SplitPlan(folds=2))
    assert sum(len(read_dataset(out / "folds" / n).test) for n in "12") == 60 + 60 + 48
    report = check_folder(out)
    assert not report.failed
    assert set(report.questions) == {"polite", "offer", "quality"}
    assert any(line.startswith("  train, polite labels: yes") for line in report.lines())
    assert "| polite: yes |" in (out / "README.md").read_text()


def rows_of(folder: Path) -> list[dict[str, Any]]:
    texts = [path.read_text().splitlines() for path in folder.glob("judge_*.json")]
    return [json.loads(line) for lines in texts for line in lines]


def of_raters(tmp_path: Path, *odd: dict[str, Any], **options: Any) -> list[str]:
    """Import 20 rows of ana and of rui, and then some odd ones."""
    (tmp_path / "questions.yaml").write_text(DECLARED)
    usual = [
        {"id": f"r{i}", "rater": who, "ticket": f"t {i}", "reply": f"r {i}", "polite": "yes"}
        for i in range(20)
        for who in ("ana", "rui")
    ]
    lines = [*usual, *({**usual[0], **row} for row in odd)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    written = str(tmp_path / "rows.jsonl"), tmp_path / "questions.yaml"
    return imported(written, tmp_path / "out", map=(), **options)


def test_rows_of_several_raters_are_joined(tmp_path: Path) -> None:
    assert "read 40 rows: kept 40 as 20 examples, dropped 0" in of_raters(tmp_path)
    row = rows_of(tmp_path / "out")[0]
    assert row["labels"] == {"polite": {"annotators": {"ana": "yes", "rui": "yes"}}}


@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        (
            {"polite": "no"},
            r"line 41, field labels.polite: annotator ana says yes \(rows.jsonl:1\) and no: keep",
        ),
        ({"ticket": "x"}, r'line 41, field ticket: differs from that of rows.jsonl:1.*id "r0"'),
        ({"id": None}, "line 41, field id: the row has none: name the row"),
        ({"id": " "}, "line 41, field id: the row has none: name the row"),
    ],
)
def test_rows_of_raters_that_cannot_be_joined_are_refused(
    tmp_path: Path, odd: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem) as refused:
        of_raters(tmp_path, odd)
    what = "labels" if "polite" in odd else "rows"
    assert f"or leave such {what} out with --drop_bad" in str(refused.value)


def test_what_raters_say_once_more_or_otherwise_is_left_out_and_counted(tmp_path: Path) -> None:
    odd = [{}, {"id": "r1", "ticket": "t 1", "reply": "r 1", "polite": "no"}, {"id": None}]
    odd += [{"rater": who, "polite": None, "quality": 3} for who in ("ana", None)]
    said = of_raters(tmp_path, *odd, drop_bad=True)
    assert "read 45 rows: kept 44 as 20 examples, dropped 1" in said
    assert "  1 answer left out: the same annotator's answer once more" in said
    assert any("1 answer left out: its annotator contradicts themself" in line for line in said)
    labels = {row["id"]: row["labels"] for row in rows_of(tmp_path / "out")}
    assert labels["r0"] == {
        "polite": {"annotators": {"ana": "yes", "rui": "yes"}},
        "quality": {"annotators": {"ana": 3, "answer 5": 3}},
    }
    assert labels["r1"] == {"polite": {"annotators": {"rui": "yes"}}}


NATURAL = """
state: [ticket, reply]
questions:
  polite:
    type: bool
    instructions: Is the reply polite?
    criteria: {true: it is, false: it is not}
  offer: {type: choice, instructions: Is it new, options: [yes, no, 2026-01-01, 1.50]}
  kept: {type: choice, instructions: Is it kept, options: {on: , off: null}}
  tone: {type: score, instructions: Its tone, levels: [bad, null, ~, 3]}
  quality: {type: score, instructions: How good, scale: 1-5, legend: {1: bad, 5: good}}
"""


def test_words_that_yaml_takes_for_other_than_texts_stay_texts(
    written: tuple[str, Path], tmp_path: Path
) -> None:
    written[1].write_text(NATURAL)
    imported(written, tmp_path / "out", map=(MAP[0].replace("offer=ana+rui,", ""),))
    asked = json.loads((tmp_path / "out" / "dataset.json").read_text())["questions"]
    assert asked["polite"]["criteria"] == {"true": "it is", "false": "it is not"}
    assert asked["offer"]["options"] == ["yes", "no", "2026-01-01", "1.50"]
    assert asked["kept"]["options"] == {"on": None, "off": None}
    assert asked["tone"]["levels"] == ["bad", None, None, "3"]
    assert asked["quality"]["legend"] == {"1": "bad", "5": "good"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"map": ("ticket=Ticket text",)}, r"labels.csv has no column reply; its columns are"),
        ({"map": (*MAP, "tone=ana")}, "no such field or question: use ticket, reply"),
        ({"map": ("ticket=Ticket text,reply=Repyl",)}, "no column Repyl"),
        ({"map": (*MAP, "reply=ana")}, "--map says reply is '.*' and 'ana': join columns"),
        ({"map": (*MAP, "polite=stars")}, 'labels.polite: "1" is not allowed: allowed are true'),
        ({"scale": "0-10"}, "--scale does not go with --questions"),
        ({"mqm_weights": "core"}, "--mqm_weights does not go with --questions"),
    ],
)
def test_what_cannot_be_imported_is_refused_in_a_line(
    written: tuple[str, Path], tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem) as refused:
        imported(written, tmp_path / "out", **options)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_cells_of_parquet_that_hold_nothing_or_no_text_are_told_apart(
    written: tuple[str, Path], tmp_path: Path
) -> None:
    rows = [{"ticket": f"ticket {i} of cup {i}", "reply": f"reply {i}"} for i in range(60)]
    more = {"more": b"\xff", "time": math.nan, "polite": True}
    path = str(tmp_path / "labels.parquet")
    pq.write_table(pa.Table.from_pylist([row | more for row in rows]), path)
    said = imported((path, written[1]), tmp_path / "out", map=())
    assert "read 60 rows: kept 60, dropped 0" in said
    with pytest.raises(UserError, match="field more: it holds 1 bytes that are not UTF-8"):
        imported((path, written[1]), tmp_path / "joined", map=("reply=reply+more",))


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        ("- a", "it has no state or no questions"),
        (
            "state: [a\nquestions: b",
            r"questions.yaml, line 2, column 10: expected ',' or '\]', but got ':': correct it",
        ),
        (DECLARED + '  polite: {type: bool, instructions: "Again?"}\n', '"polite" stands twice'),
        (
            DECLARED.replace("bool", "boolean"),
            "questions.yaml, field questions.polite.type: input should be 'bool', .*: correct it$",
        ),
        (DECLARED.replace("1-5", "'choice:5'"), 'quality.scale: "choice:5" is not a scale'),
        (DECLARED.replace("[replacement, refund, nothing]", "[a, a]"), 'named "a"'),
        (
            DECLARED.replace("[replacement, refund, nothing]", "{a: b, '': c}"),
            "offer.options: an option has no name: name it",
        ),
        (
            DECLARED.replace("[replacement, refund, nothing]", "[[a], b]"),
            "field questions.offer.options.0: input should be a valid string",
        ),
        (
            DECLARED
            + "  given:\n    type: choice\n    instructions: ' What is offered?'\n"
            + "    options: {refund: , nothing: , replacement: }\n",
            "field questions: offer and given ask the same: remove one of them, or ask it in",
        ),
        (DECLARED + "weight: 2\n", "questions.yaml: weight is not known: use state, questions"),
        (
            DECLARED.replace("[ticket, reply]", "[ticket, reply, polite]"),
            r"labels.csv: the column polite is shown to the judge, and its label \(polite\)",
        ),
    ],
)
def test_a_file_of_questions_that_cannot_be_used_is_refused(
    written: tuple[str, Path], tmp_path: Path, declared: str, problem: str
) -> None:
    written[1].write_text(declared)
    with pytest.raises(UserError, match=problem):
        imported(written, tmp_path / "out")


def test_a_question_without_a_column_is_named(written: tuple[str, Path], tmp_path: Path) -> None:
    lines = imported(written, tmp_path / "out", map=(MAP[0].removesuffix(",quality=stars"),))
    (warning,) = [line for line in lines if line.startswith("warning")]
    assert "no row has a label for quality: name its column (--map quality=COLUMN)" in warning


def test_more_options_than_a_line_shows_are_split_and_checked(
    written: tuple[str, Path], tmp_path: Path
) -> None:
    names = [f"kind {i}" for i in range(30)]
    written[1].write_text(
        "state: [ticket]\nquestions:\n"
        f"  kind: {{type: choice, instructions: 'Which kind?', options: {names}}}\n"
    )
    file = tmp_path / "kinds.csv"
    rows = [f"ticket {i} about cup number {i},kind {i % 30}" for i in range(300)]
    file.write_text("\n".join(["ticket,kind", *rows]) + "\n")
    lines = imported((str(file), written[1]), tmp_path / "out", map=())
    (train,) = [line for line in lines if "train, kind labels" in line]
    assert train.endswith("and 19 more (n 240)"), train
    labels = [row.label.verdict for row in read_dataset(tmp_path / "out").test if row.label]
    assert len(labels) == len(set(labels)) == 30, "one of each option"


def test_a_rater_without_an_id_is_kept_as_a_note(written: tuple[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "rated.csv"
    rows = [f"ticket {i} of cup {i},reply {i} to them,yes,ana" for i in range(30)]
    file.write_text("\n".join(["ticket,reply,polite,rater", *rows]) + "\n")
    imported((str(file), written[1]), tmp_path / "out", map=())
    assert {row["meta"]["rater"] for row in rows_of(tmp_path / "out")} == {"ana"}


def test_generated_rows_ask_for_each_error_the_worst_and_the_score(tmp_path: Path) -> None:
    options = GenerateOptions(rows=60, val_rows=20, test_rows=20, lexicon="small", questions=True)
    generate(tmp_path / "out", options)
    data = read_dataset(tmp_path / "out")
    names = [question.name for question in data.questions]
    assert names[-2:] == ["worst", "overall"]
    assert "omission" in names
    rows = {row["id"]: row["labels"] for row in rows_of(tmp_path / "out")}
    assert len(rows) == 100
    for labels in rows.values():
        kinds = [name for name in names[:-2] if labels[name]]
        assert labels["worst"] == (kinds[0] if kinds else "none")
        assert (labels["overall"] == 10) == (not kinds)
    plain = replace(options, questions=False)
    generate(tmp_path / "plain", plain)
    for row in read_dataset(tmp_path / "plain").test:
        assert row.label is not None
        assert rows[row.id]["overall"] == row.label.verdict  # the same rows, asked otherwise
    with pytest.raises(UserError, match="--hard_negatives change the score alone"):
        generate(tmp_path / "other", replace(options, hard_negatives=0.5))
