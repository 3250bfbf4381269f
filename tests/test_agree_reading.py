"""`judge agree` reads what `judge data import` reads, and says what it leaves out."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.test_agree import Row, measured, refused, rows_of, run_judge, written

YES = [True, False, True, True, False, False, True, False, True, True] * 4
SAID = [True, False, False, True, False, True, True, False, True, False] * 4


def coded(yes: Any, no: Any, said_yes: Any = None, said_no: Any = None) -> list[Row]:
    pair = (yes if said_yes is None else said_yes, no if said_no is None else said_no)
    return [
        {"human": yes if label else no, "said": pair[0] if said else pair[1], "g": i // 2}
        for i, (label, said) in enumerate(zip(YES, SAID, strict=True))
    ]


def run(file: Path, *flags: str) -> Result:
    out = file.parent / "out"
    words = ["agree", str(file), "--label=human", "--verdict=said", f"--out={out}", *flags]
    return run_judge(*words)


def predictions(folder: Path) -> list[Row]:
    lines = (folder / "out" / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("yes", "no", "note"),
    [
        (True, False, "true is read as PASS, false as FAIL"),
        (1, 0, "1 is read as PASS, 0 as FAIL"),
        (1.0, 0.0, "1 is read as PASS, 0 as FAIL"),
        ("Yes", "no ", "yes is read as PASS, no as FAIL"),
    ],
)
def test_two_values_are_pass_and_fail_and_it_is_said(
    tmp_path: Path, ending: str, yes: Any, no: Any, note: str
) -> None:
    file = written(tmp_path / f"v.{ending}", coded(yes, no))
    done = run(file, "--group=g")
    assert f"note: human: {note}" in done.output, done.exception
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["scale"] == "pass_fail"
    assert results["models"][0]["metrics"]["accuracy"]["value"] == pytest.approx(28 / 40)


def test_columns_may_write_their_two_values_each_in_its_own_way(tmp_path: Path) -> None:
    results = measured(written(tmp_path / "v.csv", coded("true", "false", 1, 0)), "--group=g")
    assert results["scale"] == "pass_fail"
    results = measured(written(tmp_path / "w.csv", coded("yes", "no", "PASS", "FAIL")))
    assert results["models"][0]["metrics"]["accuracy"]["value"] == pytest.approx(28 / 40)


@pytest.mark.parametrize("flags", [[], ["--scale=pass_fail"]])
def test_labels_say_what_words_mean_and_which_are_none(tmp_path: Path, flags: list[str]) -> None:
    rows = coded("ok", "broken", "GOOD", "bad")
    rows[0]["human"] = rows[1]["said"] = "unsure"
    meanings = "--labels=OK=PASS,broken=FAIL,good=PASS,bad=FAIL,unsure="
    done = run(written(tmp_path / "v.jsonl", rows), meanings, *flags)
    assert "1 answer left out: 'unsure' means no answer" in done.output, done.exception
    (judge,) = json.loads((tmp_path / "out" / "results.json").read_text())["models"]
    assert (judge["n"], judge["parse_failures"]) == (39, 1)


def test_labels_may_name_one_columns_words_where_the_other_has_verdicts(tmp_path: Path) -> None:
    file = written(tmp_path / "v.csv", coded("ok", "broken", "PASS", "FAIL"))
    results = measured(file, "--labels=ok=PASS,broken=FAIL")
    assert results["models"][0]["metrics"]["accuracy"]["value"] == pytest.approx(28 / 40)


@pytest.mark.parametrize("flags", [[], ["--scale=0-10"]])
@pytest.mark.parametrize("failed", [-1, "-1", -1.0, "-1,0"])
def test_minus_one_is_an_unreadable_verdict_and_it_is_said(
    tmp_path: Path, flags: list[str], failed: Any
) -> None:
    rows = coded(7, 3)
    for row in rows[:4]:
        row["said"] = failed
    rows = [row | {"said": str(row["said"])} for row in rows]
    done = run(written(tmp_path / "v.jsonl", rows), "--group=g", *flags)
    said = f"note: said: 4 answers left out: '{failed}' means no answer"
    assert said in done.output, done.exception
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["scale"] == "0-10"
    assert results["models"][0]["parse_failures"] == 4


def test_minus_one_is_a_verdict_on_a_scale_that_holds_it(tmp_path: Path) -> None:
    results = measured(written(tmp_path / "v.csv", coded(1, -1)), "--scale=-1-1")
    assert results["models"][0]["parse_failures"] == 0
    assert results["models"][0]["metrics"]["mae"]["value"] == pytest.approx(2 * 12 / 40)


@pytest.mark.parametrize("no", [-1, 0])
def test_minus_one_beside_two_values_is_refused_until_it_is_said_what_it_means(
    tmp_path: Path, no: int
) -> None:
    rows = coded(1, no)
    rows[3]["said"] = -1
    file = written(tmp_path / "v.csv", rows)
    assert "say what they mean" in refused(file)
    results = measured(file, "--labels=1=PASS,0=FAIL,-1=")
    assert results["scale"] == "pass_fail"


@pytest.mark.parametrize("flags", [[], ["--scale=0-10"], ["--metric"]])
@pytest.mark.parametrize("word", ["nan", "NaN", "inf", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_refused_with_file_and_row(
    tmp_path: Path, flags: list[str], word: str
) -> None:
    rows = coded("7", "3")
    rows[3]["said"] = word
    said = refused(written(tmp_path / "v.jsonl", rows), *flags)
    assert f"v.jsonl, line 4, field said: '{word}' is not a number" in said


def test_nan_in_a_parquet_column_is_empty(tmp_path: Path) -> None:
    rows = coded(7.0, 3.0)
    rows[3]["said"] = math.nan
    results = measured(written(tmp_path / "v.parquet", rows))
    assert results["models"][0]["parse_failures"] == 1


def test_each_column_has_its_own_decimal_sign(tmp_path: Path) -> None:
    lines = ["human;said"] + [f"{i % 10},5;{i % 10}.0" for i in range(30)]
    (tmp_path / "v.csv").write_text("\n".join(lines) + "\n")
    results = measured(tmp_path / "v.csv", "--scale=0-10:0.5")
    assert results["models"][0]["metrics"]["mae"]["value"] == pytest.approx(0.5)
    scores = measured(tmp_path / "v.csv", "--metric")
    assert scores["models"][0]["metrics"]["spearman"]["value"] == pytest.approx(1)


def test_probabilities_may_have_decimal_commas(tmp_path: Path) -> None:
    rows = [
        row | {"p": "0,9 0,1" if row["said"] == "PASS" else "0,25;0,75"}
        for row in coded("PASS", "FAIL")
    ]
    measured(written(tmp_path / "v.csv", rows), "--probabilities=p")
    assert predictions(tmp_path)[1]["probabilities"] == [0.25, 0.75]


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_nested_columns_are_paths(tmp_path: Path, ending: str) -> None:
    rows: list[Row] = [
        {"s": {"human": row["human"], "said": [row["said"]]}, "g": {"id": row["g"]}}
        for row in coded("PASS", "FAIL")
    ]
    if ending == "csv":  # JSON in a cell, as programs flatten it
        rows = [{name: json.dumps(cell) for name, cell in row.items()} for row in rows]
    file = written(tmp_path / f"v.{ending}", rows)
    words = ["--label=s.human", "--verdict=s.said.0", "--group=g.id", f"--out={tmp_path / 'out'}"]
    done = run_judge("agree", str(file), *words)
    assert done.exit_code == 0, done.exception
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["data"]["n"], results["data"]["groups"]) == (40, 20)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("flag", ["human", "human ", " human"])
def test_blanks_around_a_columns_name_are_nothing(tmp_path: Path, ending: str, flag: str) -> None:
    rows = [{"human ": row["human"], "said": row["said"]} for row in coded(1, 0)]
    file = written(tmp_path / f"v.{ending}", rows)
    out = f"--out={tmp_path / 'out'}"
    assert run_judge("agree", str(file), f"--label={flag}", "--verdict=said", out).exit_code == 0
    mapped = f"--map=candidate=said,label={flag}"
    done = run_judge("data", "import", str(file), mapped, "--scale=pass_fail", f"{out}2")
    assert "no column" not in f"{done.exception}"


def test_only_measures_the_rows_that_have_a_value(tmp_path: Path) -> None:
    file = written(tmp_path / "v.csv", rows_of())
    done = run(file, "--only=domain=legal")
    assert "note: 30 of 120 rows are measured: domain is legal" in done.output, done.exception
    assert json.loads((tmp_path / "out" / "results.json").read_text())["data"]["n"] == 30
    assert run(file, "--only=domain=legal", "--metric").exit_code == 0
    assert "no column field (--only field=legal)" in str(run(file, "--only=field=legal").exception)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("empty", ["", "  ", None, math.nan])
def test_rows_without_a_group_are_groups_of_their_own(
    tmp_path: Path, ending: str, empty: Any
) -> None:
    if ending == "jsonl" and empty is math.nan:
        pytest.skip("NaN is not in JSON")
    numbered = empty is math.nan
    rows = [row | {"g": float(row["g"]) if numbered else f"s{row['g']}"} for row in coded(7, 3)]
    for row in rows[:6]:
        row["g"] = "" if numbered and ending == "csv" else empty
    done = run(written(tmp_path / f"v.{ending}", rows), "--group=g")
    assert "note: 6 rows have an empty g: each is a group of its own" in done.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["data"]["groups"] == 17 + 6
    assert run(written(tmp_path / f"v.{ending}", rows), "--group=g", "--metric").exit_code == 0


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ([0.2, 0.6], "they sum to 0.8, not 1"),
        ([0.2, 0.2, 0.6], "3 numbers, but the scale pass_fail has 2 verdicts"),
        ([-0.2, 1.2], "a number is not a probability"),
        ([None, 1], "is not a list of numbers"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_probabilities_that_are_none_name_file_and_row(
    tmp_path: Path, ending: str, cell: list[float], problem: str
) -> None:
    rows = [row | {"p": [0.5, 0.5], "human": row["human"]} for row in coded("PASS", "FAIL")]
    rows[1]["human"] = None  # a row without a label is a row of the file all the same
    rows[4]["p"] = cell
    if ending == "csv":
        rows = [row | {"p": json.dumps(row["p"]), "human": row["human"] or ""} for row in rows]
    said = refused(written(tmp_path / f"v.{ending}", rows), "--probabilities=p")
    place = {"csv": "line 6", "jsonl": "line 5", "parquet": "row 5"}[ending]
    assert f"v.{ending}, {place}, field p: " in said
    assert problem in said
    assert "Place(" not in said


def test_rows_are_called_by_their_place_in_the_file(tmp_path: Path) -> None:
    rows = coded("PASS", "FAIL")
    rows[0]["human"] = ""
    measured(written(tmp_path / "v.csv", rows))
    assert predictions(tmp_path)[0]["id"] == "line 3"


def test_rows_of_judges_that_differ_are_named_with_their_lines(tmp_path: Path) -> None:
    rows = [row | {"who": who} for who in ("a", "b") for row in coded("PASS", "FAIL")]
    rows[43]["human"] = "FAIL"
    said = refused(written(tmp_path / "v.jsonl", rows), "--judge=who")
    assert "v.jsonl:4: row 4 has label PASS" in said
    assert "v.jsonl:44" in said
    rows = [row | {"id": i % 39} for i, row in enumerate(coded("PASS", "FAIL"))]
    said = refused(written(tmp_path / "v.jsonl", rows), "--id=id")
    assert "judged 0 twice (v.jsonl:1 and v.jsonl:40)" in said


def test_two_probabilities_of_a_pair_are_of_a_and_b(tmp_path: Path) -> None:
    rows = [row | {"p": "0.8 0.2"} for row in coded("A", "B")]
    done = run(written(tmp_path / "v.csv", rows), "--probabilities=p")
    assert "two numbers in 40 rows, of A and B" in done.output, done.exception
    assert predictions(tmp_path)[0]["probabilities"] == [0.8, 0.2, 0.0]


def test_annotators_are_told_by_who_they_are(tmp_path: Path) -> None:
    rows = coded("PASS", "FAIL")
    for row in rows:
        row["people"] = [
            {"user_id": "ana", "value": row["human"], "status": "submitted"},
            {"user_id": "rui", "value": row["said"], "status": "submitted"},
            {"user_id": "eva", "value": "PASS", "status": "discarded"},
        ]
    results = measured(written(tmp_path / "v.jsonl", rows), "--annotators=people")
    (pair,) = results["people"]["pairs"]
    assert (pair["a"], pair["b"], pair["kappa"]["n"]) == ("ana", "rui", 40)


def test_gate_and_report_read_what_agree_has_read(tmp_path: Path) -> None:
    rows = coded("yes", "no")
    rows[2]["g"] = ""
    file = written(tmp_path / "v.csv", rows)
    measured(file, "--group=g")
    done = run_judge("gate", str(tmp_path / "out"), "--floor=-1", "--rows=40")
    assert done.exit_code == 0, done.output
    assert run_judge("report", str(tmp_path / "out")).exit_code == 0


def test_a_share_of_few_groups_has_an_interval_between_0_and_1(tmp_path: Path) -> None:
    rows = [*coded("PASS", "FAIL")[:10], {"human": "FAIL", "said": "PASS", "g": 99}]
    (judge,) = measured(written(tmp_path / "v.csv", rows))["models"]
    for name in ("recall_pass", "recall_fail", "precision_fail", "accuracy"):
        one = judge["metrics"][name]
        assert 0 <= one["low"] <= one["value"] <= one["high"] <= 1, name


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("empty", ["", " \t", None, math.nan])
def test_import_does_not_make_one_group_of_rows_without_one(
    tmp_path: Path, ending: str, empty: Any
) -> None:
    if ending == "jsonl" and empty is math.nan:
        pytest.skip("NaN is not in JSON")
    numbered = empty is math.nan
    rows: list[Row] = [
        {"s": f"a source, number {i * 7919}", "c": f"um texto {i}", "human": i % 10}
        | {"g": float(i // 2) if numbered else f"g{i // 2}"}
        for i in range(40)
    ]
    for row in rows[:6]:
        row["g"] = "" if numbered and ending == "csv" else empty
    file = written(tmp_path / f"v.{ending}", rows)
    out = tmp_path / "data"
    words = ["--map=source=s,candidate=c,label=human,group=g", f"--out={out}"]
    done = run_judge("data", "import", str(file), *words)
    assert "6 kept rows have an empty group" in done.output, done.exception
    assert len(json.loads((out / "splits.json").read_text())) == 17 + 6


def test_binary_cells_are_texts_or_refused_with_their_row(tmp_path: Path) -> None:
    rows = [row | {"text": f"um texto {i}".encode()} for i, row in enumerate(coded("A", "B"))]
    rows = [row | {"human": row["human"].encode()} for row in rows]
    (tmp_path / "texts").mkdir()
    measured(written(tmp_path / "texts" / "v.parquet", rows), "--slice=text")
    rows[4]["text"] = b"\xff\xd8\xff"
    said = refused(written(tmp_path / "w.parquet", rows), "--slice=text")
    assert "w.parquet, row 5, field text: it holds 3 bytes that are not UTF-8" in said


def test_the_longer_candidate_is_the_same_one_for_import_and_agree(tmp_path: Path) -> None:
    rows = []
    for i in range(40):
        few, many = f"a b c d {i}", f"internationalisation{i}"  # more words, more characters
        pair = (few, many) if i % 4 else (many, few)
        rows.append({"q": f"question {i * 7919}", "a": pair[0], "b": pair[1], "human": "A"})
    rows[7] |= {"a": "même", "b": "este"}  # of one length: half
    rows = [row | {"said": "AB"[i % 2]} for i, row in enumerate(rows)]
    file = written(tmp_path / "v.jsonl", rows)
    results = measured(file, "--candidate=a,b")
    (rule,) = [one for one in results["baselines"] if one["name"] == "length"]
    share = rule["metrics"]["accuracy_no_ties"]["value"]
    assert share == pytest.approx((10 + 0.5) / 40)
    mapped = "--map=source=q,candidate_a=a,candidate_b=b,label=human"
    done = run_judge("data", "import", str(file), mapped, f"--out={tmp_path / 'data'}")
    card = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert done.exit_code == 0, done.exception
    assert card["checks"]["lengths"]["value"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("flags", "cell"),
    [
        (["--candidate=texts"], ["one text", "another"]),
        (["--reference=texts"], {"a": "one text"}),
        (["--candidate=said,texts"], []),
    ],
)
def test_a_list_is_no_text(tmp_path: Path, flags: list[str], cell: Any) -> None:
    rows = [row | {"texts": [f"um texto {i}"]} for i, row in enumerate(coded("A", "B"))]
    rows[2]["texts"] = cell
    said = refused(written(tmp_path / "v.jsonl", rows), *flags)
    assert "v.jsonl, line 3, field texts: it is a list or an object: name one of its" in said
    named = [flag.replace("texts", "texts.0") for flag in flags if isinstance(cell, list) and cell]
    if named:
        measured(written(tmp_path / "v.jsonl", rows), *named)


def test_labels_that_only_say_what_is_none_leave_the_other_values_alone(tmp_path: Path) -> None:
    rows = coded("7", "3")
    rows[3]["said"] = "nan"
    results = measured(written(tmp_path / "v.jsonl", rows), "--labels=nan=")
    assert results["scale"] == "0-10"
    assert results["models"][0]["parse_failures"] == 1
