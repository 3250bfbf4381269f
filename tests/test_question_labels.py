"""Cells of files as labels of questions: what is none, numbers, annotators, and what is refused."""

import json
from collections import Counter
from dataclasses import replace
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given as generated
from hypothesis import strategies as st

from pt_app.core.choosing import choose
from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from pt_app.core.settings import resolve
from pt_app.core.verdicts import Scale
from pt_app.judge_data.checking import check_folder
from pt_app.judge_data.folder import split_folder
from pt_app.judge_data.options import ImportOptions, Reading, SplitPlan
from pt_app.judge_data.question_import import import_questions
from pt_app.training.preparation import prepare
from tests.test_question_import import DECLARED, OFFERS, rows_of

Json = dict[str, Any]


def rows(count: int = 60) -> list[Json]:
    return [
        {
            "ticket": f"ticket number {i} is about cup {i}",
            "reply": f"reply {i} says word{i} and word{i * 7} to them about it",
            "polite": i % 2 == 0,
            "offer": OFFERS[i % 3],
            "quality": 1 + i % 5,
        }
        for i in range(count)
    ]


def imported(
    folder: Path, given: list[Json], declared: str = DECLARED, append: bool = False, **options: Any
) -> list[str]:
    """Import rows into `folder`/out, and return the lines that the command prints."""
    (folder / "questions.yaml").write_text(declared)
    file = folder / f"rows{len(list(folder.glob('rows*')))}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    chosen = ImportOptions(questions=folder / "questions.yaml", **options)
    return import_questions([str(file)], folder / "out", chosen, SplitPlan(), append)


def labels_of(folder: Path) -> Counter[tuple[str, Any]]:
    data = read_dataset(folder / "out")
    every = [row for part in (data.train, data.val, data.test) for row in part]
    return Counter((row.asks, row.label.verdict) for row in every if row.label)


@pytest.mark.parametrize("absent", ["polite", "offer", "quality"])
def test_rows_need_not_have_a_label_for_the_first_question(tmp_path: Path, absent: str) -> None:
    given = rows()
    for row in given[::3]:
        del row[absent]
    imported(tmp_path, given)
    report = check_folder(tmp_path / "out")
    assert not report.failed
    assert sum(n for (name, _), n in labels_of(tmp_path).items() if name == absent) == 40


@pytest.mark.parametrize("group", [0, False, 0.0, "0"])
def test_rows_of_one_group_stay_together_whatever_its_name(tmp_path: Path, group: Any) -> None:
    given = [row | {"group": group if i < 12 else i // 6} for i, row in enumerate(rows())]
    said = imported(tmp_path, given)
    assert not any("empty group" in line for line in said)
    placed = {
        path.name
        for path in (tmp_path / "out").glob("judge_*.json")
        for line in path.read_text().splitlines()
        if json.loads(line)["group"] in (str(group), "0")
    }
    assert len(placed) == 1


def test_rows_without_a_group_are_counted(tmp_path: Path) -> None:
    said = imported(tmp_path, [row | {"group": ""} for row in rows()])
    assert any("60 kept rows have an empty group" in line for line in said)


def test_a_column_that_begins_late_in_a_file_is_read(tmp_path: Path) -> None:
    given = rows(120)
    for row in given[:100]:
        del row["offer"]
    imported(tmp_path, given)
    assert sum(n for (name, _), n in labels_of(tmp_path).items() if name == "offer") == 20


@pytest.mark.parametrize("meaning", ["none=nothing", "nan=nothing"])
def test_a_meaning_gives_no_label_to_a_row_without_one(tmp_path: Path, meaning: str) -> None:
    given = [row | {"offer": None if i % 2 else "refund"} for i, row in enumerate(rows())]
    imported(tmp_path, given, labels=meaning)
    assert labels_of(tmp_path)["offer", "nothing"] == 0


def test_values_that_mean_no_answer_are_counted(tmp_path: Path) -> None:
    given = [row | {"offer": "unsure" if i < 4 else "refund"} for i, row in enumerate(rows())]
    assert "  4 answers left out: 'unsure' means no answer to offer" in imported(
        tmp_path, given, labels="unsure="
    )


def test_numbers_are_read_with_the_decimal_sign_that_is_named(tmp_path: Path) -> None:
    given = [row | {"quality": "1,5" if row["quality"] < 3 else "4,0"} for row in rows()]
    halves = DECLARED.replace("scale: 1-5", "scale: '1-5:0.5'")
    imported(tmp_path, given, halves, reading=Reading(decimal="comma"))
    found = {value for name, value in labels_of(tmp_path) if name == "quality"}
    assert found == {1.5, 4}


def test_one_answer_in_several_spellings_counts_once(tmp_path: Path) -> None:
    given = [row | {"id": f"r{i}", "rater": "ana"} for i, row in enumerate(rows(30))]
    again = [row | {"polite": "Yes" if row["polite"] else "FALSE"} for row in given]
    again = [row | {"quality": f"{row['quality']}.0"} for row in again]
    said = imported(tmp_path, given + again)
    assert "  90 answers left out: the same annotator's answer once more" in said
    assert rows_of(tmp_path / "out")[0]["labels"]["polite"]["annotators"].keys() == {"ana"}


def test_an_answer_that_cannot_be_read_is_left_out_alone_and_named_by_its_line(
    tmp_path: Path,
) -> None:
    given = [
        row | {"id": f"r{i}", "rater": who}
        for i, row in enumerate(rows(30))
        for who in ("ana", "rui")
    ]
    given[7]["quality"] = 9
    with pytest.raises(UserError, match=r"line 8, field labels.quality: 9 is not allowed"):
        imported(tmp_path, given)
    said = imported(tmp_path, given, drop_bad=True)
    assert "read 60 rows: kept 60 as 30 examples, dropped 0" in said
    assert any("1 answer left out: labels.quality cannot be read (first: " in line for line in said)
    labels = {row["id"]: row["labels"] for row in rows_of(tmp_path / "out")}
    assert labels["r3"]["quality"]["annotators"].keys() == {"ana"}
    assert labels["r3"]["polite"]["annotators"].keys() == {"ana", "rui"}


def test_of_annotators_in_columns_only_the_answer_that_cannot_be_read_is_left_out(
    tmp_path: Path,
) -> None:
    given = [row | {"rui": row["offer"]} for row in rows()]
    given[3]["rui"] = "?"
    how: Json = {"map": ("offer=offer+rui",)}
    problem = r"line 4, field labels.offer.annotators.rui: \"\?\" is not allowed"
    with pytest.raises(UserError, match=problem):
        imported(tmp_path, given, **how)
    said = imported(tmp_path, given, **how, drop_bad=True)
    assert "read 60 rows: kept 60, dropped 0" in said
    assert sum(len(r["labels"]["offer"]["annotators"]) for r in rows_of(tmp_path / "out")) == 119


def test_an_annotator_who_said_nothing_is_none(tmp_path: Path) -> None:
    labels = {"quality": {"annotators": {"ana": 5, "rui": None}}}
    given = rows()
    for row in given:
        row.pop("quality")
        row["labels"] = labels
    imported(tmp_path, given)
    assert rows_of(tmp_path / "out")[0]["labels"]["quality"] == {"annotators": {"ana": 5}}
    for path in (tmp_path / "out").glob("judge_*.json"):  # by hand
        path.write_text(path.read_text().replace('{"ana": 5}', '{"ana": 5, "rui": null}'))
    assert labels_of(tmp_path)["quality", 5] == 60


def test_two_labels_of_one_question_are_refused(tmp_path: Path) -> None:
    given = [row | {"labels": {"polite": row["polite"]}} for row in rows()]
    imported(tmp_path, given)
    given[5]["labels"] = {"polite": not given[5]["polite"]}
    with pytest.raises(UserError, match=r"line 6, field labels.polite: its column says False, and"):
        imported(tmp_path, given)


def test_a_member_that_stands_twice_is_refused(tmp_path: Path) -> None:
    imported(tmp_path, rows())
    path = tmp_path / "out" / "judge_train.json"
    path.write_text(path.read_text().replace('"polite": ', '"polite": true, "polite": ', 1))
    with pytest.raises(UserError, match='"polite" stands twice in one object'):
        read_dataset(tmp_path / "out")
    text = '{"ticket": "a", "reply": "b", "labels": {"polite": true, "polite": false}}\n'
    (tmp_path / "twice.jsonl").write_text(text)
    options = ImportOptions(questions=tmp_path / "questions.yaml")
    with pytest.raises(UserError, match='"polite" stands twice in one object'):
        import_questions([str(tmp_path / "twice.jsonl")], tmp_path / "new", options, SplitPlan())


def test_a_row_is_refused_that_says_nan_where_a_text_belongs(tmp_path: Path) -> None:
    imported(tmp_path, rows())
    path = tmp_path / "out" / "judge_train.json"
    path.write_text(path.read_text().replace('"reply": ', '"reply": NaN, "other": ', 1))
    with pytest.raises(UserError, match="NaN is not in JSON, write null"):
        read_dataset(tmp_path / "out")


def test_cells_of_parquet_may_be_decimals_and_dates(tmp_path: Path) -> None:
    given = [
        {
            "ticket": {"of": date(2026, 11, 1), "about": f"cup {i}"},
            "reply": f"reply {i} says word{i} and word{i * 7} to them about it",
            "labels": {"polite": {"votes": {"yes": Decimal(1 + i % 3), "no": Decimal(1)}}},
            "quality": Decimal(1 + i % 5).quantize(Decimal("0.1")),
        }
        for i in range(60)
    ]
    pq.write_table(pa.Table.from_pylist(given), tmp_path / "rows.parquet")
    (tmp_path / "questions.yaml").write_text(DECLARED)
    options = ImportOptions(questions=tmp_path / "questions.yaml")
    import_questions([str(tmp_path / "rows.parquet")], tmp_path / "out", options, SplitPlan())
    row = rows_of(tmp_path / "out")[0]
    assert row["ticket"]["of"] == "2026-11-01"
    assert row["labels"]["polite"]["votes"]["no"] == 1
    assert row["labels"]["quality"] in (1, 2, 3, 4, 5)


@pytest.mark.parametrize("votes", [10**400, 1e308])
def test_more_votes_than_can_be_added_are_refused(tmp_path: Path, votes: float) -> None:
    given = [row | {"polite": {"votes": {"yes": votes, "no": votes}}} for row in rows()]
    with pytest.raises(UserError, match=r"labels.polite.votes.yes: .* is no number of votes"):
        imported(tmp_path, given)


@pytest.mark.parametrize("name", ["id", "group", "rater", "time", "labels", "meta"])
def test_a_question_cannot_have_the_name_of_another_column(tmp_path: Path, name: str) -> None:
    given = [row | {name: row["polite"]} for row in rows()]
    with pytest.raises(UserError, match=f"no question can have the name {name}"):
        imported(tmp_path, given, DECLARED.replace("polite:", f"{name}:"))


def test_a_field_of_the_state_may_be_called_rater(tmp_path: Path) -> None:
    given = [row | {"rater": f"waiter {i}", "id": f"r{i}"} for i, row in enumerate(rows())]
    imported(tmp_path, given, DECLARED.replace("ticket,", "ticket, rater,"))
    assert {row["rater"] for row in rows_of(tmp_path / "out")} == {f"waiter {i}" for i in range(60)}


def test_notes_of_a_row_are_kept(tmp_path: Path) -> None:
    given = [row | {"meta": {"shop": i}, "time": i} for i, row in enumerate(rows())]
    imported(tmp_path, given)
    assert {row["meta"]["shop"] == row["meta"]["time"] for row in rows_of(tmp_path / "out")} == {
        True
    }


def test_a_split_by_row_that_is_undone_leaves_no_trace_in_rows(tmp_path: Path) -> None:
    imported(tmp_path, rows())
    before = {row["id"]: row for row in rows_of(tmp_path / "out")}
    split_folder(tmp_path / "out", SplitPlan(by="row", anew=True))
    split_folder(tmp_path / "out", SplitPlan(anew=True))
    assert {row["id"]: row for row in rows_of(tmp_path / "out")} == before


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("[ticket, reply]", "[reply]"), "field state: that of the new rows is another one"),
        (("state:", "rubric: Be strict.\nstate:"), "field rubric: that of the new rows is another"),
        (("Is the reply", "Is this reply"), "field questions: that of the new rows is another one"),
    ],
)
def test_rows_that_are_asked_otherwise_are_not_added(
    tmp_path: Path, change: tuple[str, str], problem: str
) -> None:
    imported(tmp_path, rows())
    before = rows_of(tmp_path / "out")
    more = [row | {"ticket": f"another {i}"} for i, row in enumerate(rows())]
    with pytest.raises(UserError, match=problem):
        imported(tmp_path, more, DECLARED.replace(*change), append=True)
    assert rows_of(tmp_path / "out") == before
    imported(tmp_path, more, append=True)
    assert len(rows_of(tmp_path / "out")) == 120


def test_new_rows_with_the_ids_of_old_ones_are_refused(tmp_path: Path) -> None:
    named = [row | {"id": f"r{i}"} for i, row in enumerate(rows())]
    imported(tmp_path, named)
    file = tmp_path / "out" / "judge_train.json"
    options = ImportOptions(questions=tmp_path / "questions.yaml")
    again = tmp_path / "judge_train.json"
    again.write_text(file.read_text())  # the same names, lines and ids
    with pytest.raises(UserError, match="two rows have the id"):
        import_questions([str(again)], tmp_path / "out", options, SplitPlan(), append=True)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("template: nonsense", "template nonsense is neither one of"),
        ("template: translation", r"template translation shows no \{state\} and \{question\}"),
        ("rubric: 'Scale {hihg}'", "field {hihg}: unknown"),
    ],
)
def test_a_template_or_rubric_that_cannot_be_used_is_refused_before_anything_is_written(
    tmp_path: Path, line: str, problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        imported(tmp_path, rows(), f"{line}\n{DECLARED}")
    assert not (tmp_path / "out").exists()


def test_a_template_of_ones_own_is_copied_into_the_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "mine"
    own.mkdir()
    (own / "user.txt").write_text("Read this.\n{state}\n{brief_question}\n")
    imported(tmp_path, rows(), f"template: {own}\n{DECLARED}")
    own.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert not check_folder(tmp_path / "out").failed
    assert (tmp_path / "out" / "template" / "user.txt").read_text().startswith("Read this.")


def test_rows_are_counted_once_however_many_questions_they_have(tmp_path: Path) -> None:
    given = [row | {"group": i // 2} for i, row in enumerate(rows(40))]
    given[7]["reply"] = "word " * 500 + "<|im_start|>"
    imported(tmp_path, given)
    report = check_folder(tmp_path / "out", model="tiny")
    assert report.fit is not None
    assert report.fit.unfit == 1
    assert len(report.findings["control_tokens"]) == 1  # type: ignore[arg-type]
    lines = split_folder(tmp_path / "out", SplitPlan(by="row", anew=True))
    (note,) = [line for line in lines if "--by row leaks" in line]
    assert "of 20 groups" in note
    assert "of 40 rows" in note


def test_a_fold_whose_training_rows_lack_a_question_is_named(tmp_path: Path) -> None:
    given = [row | {"group": i} for i, row in enumerate(rows())]
    for row in given[1:]:
        del row["offer"]
    imported(tmp_path, given)
    lines = split_folder(tmp_path / "out", SplitPlan(folds=2))
    assert sum("has a label for offer" in line for line in lines) == 1
    (fold,) = [line.split()[6] for line in lines if "has a label for offer" in line]
    with pytest.raises(UserError, match="no row has a label for offer"):
        read_dataset(tmp_path / "out" / "folds" / fold)


def test_training_rows_that_are_drawn_have_a_label_for_each_question(tmp_path: Path) -> None:
    given = rows()
    for row in given[3:]:
        del row["offer"]
    imported(tmp_path, given)
    flags = [f"--data_dir={tmp_path / 'out'}", "--model=tiny", "--max_samples=2", "--skip_eval"]
    settings = resolve("mps", flags, "judge train", "")
    with pytest.raises(UserError, match="--max_samples 2: no row drawn has a label for offer"):
        prepare(settings)
    prepare(replace(settings, questions="polite,quality"))


def test_options_that_only_seem_to_differ_are_refused(tmp_path: Path) -> None:
    both = "[caf\u00e9, cafe\u0301, nothing]"
    with pytest.raises(UserError, match='two options are named "caf\u00e9"'):
        imported(tmp_path, rows(), DECLARED.replace("[replacement, refund, nothing]", both))


@generated(votes=st.lists(st.integers(0, 10), min_size=1, max_size=6))
def test_a_mean_halfway_between_two_scores_is_the_lower_one(votes: list[int]) -> None:
    scale = Scale.from_name("0-10")
    shares = [votes.count(value) / len(votes) for value in range(11)]  # type: ignore[arg-type]
    mean = Fraction(sum(votes), len(votes))
    nearest = min(range(11), key=lambda value: (abs(mean - value), value))
    assert choose(shares, scale, "mean") == nearest


UNSURE = """
state: [ticket]
questions:
  first: {type: choice, instructions: "Which?", options: [good, bad]}
  second: {type: choice, instructions: "Is it?", options: [yes, no, unsure]}
"""


def test_a_meaning_is_for_the_questions_that_do_not_declare_the_value(tmp_path: Path) -> None:
    given = [
        {
            "ticket": f"ticket number {i} is about cup {i}",
            "first": ("good", "unsure")[i % 2],
            "second": ("unsure", "no")[i % 2],
        }
        for i in range(60)
    ]
    said = imported(tmp_path, given, UNSURE, labels="unsure=")
    assert "  30 answers left out: 'unsure' means no answer to first" in said
    assert labels_of(tmp_path) == {
        ("first", "good"): 30,
        ("second", "unsure"): 30,
        ("second", "no"): 30,
    }


def test_ones_and_zeros_are_yes_and_no_beside_a_score_that_has_them(tmp_path: Path) -> None:
    given = [
        row | {"polite": str(i % 2), "offer": ("a=b", "refund")[i % 2], "quality": str(i % 5)}
        for i, row in enumerate(rows())
    ]
    wider = DECLARED.replace("1-5", "0-10")
    said = imported(tmp_path, given, wider, labels="1.0=yes,0=no,a\\=b=nothing,n/a=")
    assert labels_of(tmp_path)["polite", "yes"] == 30
    assert labels_of(tmp_path)["quality", 1] == labels_of(tmp_path)["quality", 0] == 12
    (warning,) = [line for line in said if line.startswith("warning")]
    assert warning.startswith("warning: --labels n/a= has no effect: no cell says so")


def test_with_several_questions_one_that_cannot_be_read_is_left_out_alone(tmp_path: Path) -> None:
    given = rows()
    given[0]["quality"] = 9
    given[1]["offer"] = {"votes": {"nothing": -1}}
    given[2] |= {"offer": "?", "labels": {"quality": 5}}
    given[3] |= {"labels": {"tone": 5}}
    with pytest.raises(UserError, match=r"9 is not allowed.*leave such labels out with --drop_bad"):
        imported(tmp_path, given)
    said = imported(tmp_path, given, drop_bad=True)
    assert "read 60 rows: kept 60, dropped 0" in said
    counts = Counter(name for name, _ in labels_of(tmp_path).elements())
    assert counts == {"polite": 60, "offer": 58, "quality": 58}
    left = sorted(line for line in said if "left out" in line)[::-1]
    assert left[0].startswith("  2 answers left out: labels.quality cannot be read (first: ")
    assert "line 1, field labels.quality: 9 is not allowed" in left[0]
    assert left[1].startswith("  2 answers left out: labels.offer cannot be read (first: ")
    assert left[2].startswith("  1 answer left out: labels.tone cannot be read (first: ")


@pytest.mark.parametrize("map", [(), ("quality=labels",), ("meta.tag=labels",)])
def test_a_column_called_labels_may_hold_anything(tmp_path: Path, map: tuple[str, ...]) -> None:
    given = [row | {"labels": str(row["quality"])} for row in rows()]
    assert "read 60 rows: kept 60, dropped 0" in imported(tmp_path, given, map=map)
    assert {row["quality"] for row in (row["labels"] for row in rows_of(tmp_path / "out"))} <= set(
        range(1, 6)
    )


def test_a_member_of_the_labels_may_be_that_of_another_question(tmp_path: Path) -> None:
    given = [row | {"labels": {"Is it rude?": row.pop("polite")}} for row in rows()]
    imported(tmp_path, given, map=("polite=labels.Is it rude?",))
    assert labels_of(tmp_path)["polite", "yes"] == 30


def test_labels_that_are_no_object_are_refused_beside_some_that_are(tmp_path: Path) -> None:
    given = [row | {"labels": {"quality": row.pop("quality")}} for row in rows()]
    given[7]["labels"] = "quality: 5"
    with pytest.raises(UserError, match=r"line 8, field labels: they are no object: write \{"):
        imported(tmp_path, given)


def test_why_no_row_can_be_used_is_said(tmp_path: Path) -> None:
    bare: list[Json] = [{"ticket": f"ticket {i}", "reply": "no"} for i in range(20)]
    with pytest.raises(UserError, match=r"rows0.jsonl has a label: name its columns with --map"):
        imported(tmp_path, bare)
    given = [row | {"quality": 9} for row in bare]
    problem = (
        r"can be used: 20 dropped: no label; 20 answers left out: labels.quality cannot be read "
        r"\(first: .*line 1, field labels.quality: 9 is not allowed"
    )
    with pytest.raises(UserError, match=problem):
        imported(tmp_path, given, drop_bad=True)
    given = [row | {"reply": None, "quality": 5} for row in bare]
    with pytest.raises(UserError, match=r"can be used: 20 dropped: reply cannot be used \(first: "):
        imported(tmp_path, given, drop_bad=True)


def test_a_question_without_a_label_is_one_of_the_whole_folder(tmp_path: Path) -> None:
    """New rows may lack one; and of a folder no question can be left out."""
    given, new = rows(40), rows(60)[40:]
    for row in given + new:
        row.pop("offer")
    imported(tmp_path, given)
    for row in new:
        row.pop("quality")
    said = imported(tmp_path, new, append=True)
    (warning,) = [line for line in said if line.startswith("warning")]
    assert "no row has a label for offer: name its column (--map offer=COLUMN), or" in warning
    assert warning.endswith("append rows that have one")
