"""What stands in label cells, through `judge data import`: numbers, names, annotators, statuses."""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from typer.testing import CliRunner

from pt_app.commands.data import data
from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from pt_app.core.records import JudgeExample, Place

WORDS = ["house", "river", "tree", "stone", "bird", "cloud", "window", "garden", "bread", "train"]
MAP = ("--map", "source=source,candidate=mt,label=label")
RATINGS = "annotations.*.result.0.value.rating"


def text(i: int, salt: int) -> str:
    """Give a text of six words of its own for each row."""
    return " ".join(WORDS[(i * 7 + salt * 5 + k * (i + 1)) % 10] + str(i) for k in range(6))


def run(file: str, out: Path, *argv: str) -> str:
    """Import by the command; give what it printed, or raise its UserError."""
    words = ["import", file, "--out", str(out), "--near", "1", *argv]
    done = CliRunner().invoke(data, words)
    if done.exception is not None:
        raise done.exception
    return " ".join(done.output.split())


def rows_of(out: Path) -> dict[str, JudgeExample]:
    found = read_dataset(out, allow_leaks=True)
    return {row.id: row for row in [*found.train, *found.val, *found.test]}


def verdicts(out: Path) -> list[Any]:
    rows = rows_of(out)
    in_order = sorted(rows, key=lambda name: int(re.findall(r"\d+", name)[-1]))
    return [row.label.verdict for name in in_order if (row := rows[name]).label]


def delimited(folder: Path, labels: Sequence[str], delimiter: str = ",", end: str = "csv") -> str:
    written = io.StringIO()
    writer = csv.writer(written, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL)
    writer.writerow(["source", "mt", "label"])
    writer.writerows([text(i, 1), text(i, 2), label] for i, label in enumerate(labels))
    path = folder / f"labels.{end}"
    path.write_text(written.getvalue(), encoding="utf-8")
    return str(path)


def lines(folder: Path, rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


# --- numbers ---


@pytest.mark.parametrize(
    ("delimiter", "scale", "written", "expected"),
    [
        (",", "0-1000", ["1,000", "500"], [1000, 500]),
        (";", "0-10:0.5", ["7,5", "3"], [7.5, 3]),
        (";", "0-10:0.5", ["1,000", "2,500"], [1, 2.5]),
        (",", "0-1000", ["1,000", "7,5"], [1, 7.5]),
        (";", "0-2000:2", ["1.000,5", "1.000"], [1000.5, 1000]),
        (",", "0-2000:2", ["1 000", "1\N{NARROW NO-BREAK SPACE}000.5"], [1000, 1000.5]),
        (",", "0-20000:20", ["12,345.6", "9,000"], [12345.6, 9000]),
        ("\t", "0-20000:20", ["12,345.6", "9,000"], [12345.6, 9000]),
        ("\t", "0-10", ["1.000", "0.875"], [1, 0.875]),
        (",", "0-1000", ["0,875", "0,125"], [0.875, 0.125]),
        (";", "0-1000", ["1'000", "20"], [1000, 20]),
        (",", "-1000-1000:2", ["\N{MINUS SIGN}1,000", "-20"], [-1000, -20]),
        (",", "0-1000000:1000", ["1,000,000", "5"], [1000000, 5]),
        (";", "0-10", ["1.000", "7"], [1, 7]),  # 1000 would be off the scale
        ("\t", "0-10", ["1,000", "7"], [1, 7]),
    ],
)
def test_thousands_and_decimals_are_told_by_column_scale_and_delimiter(
    delimiter: str, scale: str, written: list[str], expected: list[float], tmp_path: Path
) -> None:
    file = delimited(tmp_path, written * 6, delimiter)
    # Two annotators, whose answers are kept to the letter, also off the steps of the scale.
    twice = "source=source,candidate=mt,label=label+label"
    run(file, tmp_path / "out", "--map", twice, "--scale", scale)
    said = [row.annotators[0].verdict for _, row in sorted(rows_of(tmp_path / "out").items())]
    assert sorted(said) == sorted(expected * 6)


def test_how_an_unclear_number_is_read_is_said_and_a_flag_overrules_it(tmp_path: Path) -> None:
    file = delimited(tmp_path, ["1,000", "500", "250"] * 7)
    said = run(file, tmp_path / "a", *MAP, "--scale", "0-1000")
    assert "1,000 is read as 1000 (--decimal comma: 1)" in said
    run(file, tmp_path / "b", *MAP, "--scale", "0-1000", "--decimal", "comma")
    assert verdicts(tmp_path / "b")[:3] == [1, 500, 250]


def test_a_number_that_nothing_tells_is_refused_with_the_flag(tmp_path: Path) -> None:
    rows = [{"source": text(i, 1), "mt": text(i, 2), "label": "1,000"} for i in range(12)]
    file = lines(tmp_path, rows)
    with pytest.raises(UserError, match=r"line 1, field label: '1,000' may be 1000 or 1: .*--dec"):
        run(file, tmp_path / "a", *MAP, "--scale", "0-1000")
    mixed = delimited(tmp_path, ["1,000", "7,5", "7.5"] * 4)
    with pytest.raises(UserError, match=r"line 2, field label: '1,000' may be 1000 or 1"):
        run(mixed, tmp_path / "b", *MAP, "--scale", "0-1000:2")
    with pytest.raises(UserError, match=r"line 4, field label: '7.5' is not a number"):
        run(mixed, tmp_path / "c", *MAP, "--scale", "0-10:0.5", "--decimal", "comma")


@pytest.mark.parametrize("written", ["inf", "nan", "1e999", "12,34,56", "3/5", "--5"])
def test_what_is_no_number_is_refused_by_its_row(written: str, tmp_path: Path) -> None:
    file = delimited(tmp_path, ["5", written, "6"] * 4)
    with pytest.raises(UserError, match=r"line 3, field label: .* is not a number"):
        run(file, tmp_path / "out", *MAP)


# --- names ---


def test_true_and_1_are_pass_and_0_is_fail_and_it_is_said(tmp_path: Path) -> None:
    cells: list[Any] = [True, False, 1, 0, "1", "0.0", "true", "FALSE", 1.0, "pass"]
    rows = [{"source": text(i, 1), "mt": text(i, 2), "label": c} for i, c in enumerate(cells * 2)]
    said = run(lines(tmp_path, rows), tmp_path / "out", *MAP, "--task", "pass_fail")
    assert verdicts(tmp_path / "out")[:10] == [*["PASS", "FAIL"] * 4, "PASS", "PASS"]
    assert "1 is read as PASS, 0 as FAIL" in said


def test_labels_name_numbers_however_they_are_written(tmp_path: Path) -> None:
    cells: list[Any] = [1, "1.0", 1.0, "2", "02", 2.0]
    rows = [
        {"source": text(i, 1), "a": text(i, 2), "b": text(i, 3), "label": c}
        for i, c in enumerate(cells * 2)
    ]
    pair = ("--map", "source=source,candidate_a=a,candidate_b=b,label=label")
    run(lines(tmp_path, rows), tmp_path / "out", *pair, "--labels", "1=A,2=B")
    assert verdicts(tmp_path / "out")[:6] == ["A"] * 3 + ["B"] * 3


def raters(cells: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"source": text(i, 1), "mt": text(i, 2), "label": cells} for i in range(12)]


def test_a_label_that_is_none_is_said_with_an_empty_meaning(tmp_path: Path) -> None:
    file = lines(tmp_path, raters(["yes", "Unsure", "no", "yes"]))
    said = run(file, tmp_path / "out", *MAP, "--labels", "yes=PASS,no=FAIL,unsure=")
    (row, *_) = rows_of(tmp_path / "out").values()
    assert [(a.rater, a.verdict) for a in row.annotators] == [
        ("1", "PASS"),
        ("3", "FAIL"),
        ("4", "PASS"),
    ]
    assert "kept 12, dropped 0 12 answers left out: 'Unsure' means no answer" in said


def test_a_row_of_no_label_alone_is_dropped_and_counted(tmp_path: Path) -> None:
    file = delimited(tmp_path, ["yes", "unsure", "no", "no"] * 4)
    meanings = ("--labels", "yes=PASS,no=FAIL,unsure=")
    said = run(file, tmp_path / "out", *MAP, *meanings)
    assert "read 16 rows: kept 12, dropped 4 4 dropped: no label" in said


@pytest.mark.parametrize(
    ("cells", "flags", "kept"),
    [
        (["yes", "maybe", "no"], ("--labels", "yes=PASS,no=FAIL"), ["PASS", "FAIL"]),
        ([4, "?", 6], (), [4, 6]),
        ([4, 99, 6], (), [4, 6]),
    ],
)
def test_drop_bad_leaves_out_an_answer_and_keeps_its_row(
    cells: list[Any], flags: tuple[str, ...], kept: list[Any], tmp_path: Path
) -> None:
    file = lines(tmp_path, raters(cells))
    with pytest.raises(UserError, match="line 1, field label"):
        run(file, tmp_path / "out", *MAP, *flags)
    said = run(file, tmp_path / "out", *MAP, *flags, "--drop_bad")
    (row, *_) = rows_of(tmp_path / "out").values()
    assert [a.verdict for a in row.annotators] == kept
    assert "kept 12, dropped 0 12 answers left out: it cannot be read (first: " in said


def test_columns_are_found_whatever_blanks_stand_at_their_ends(tmp_path: Path) -> None:
    rows = [{"source ": text(i, 1), "mt": text(i, 2), " label ": i % 11} for i in range(12)]
    run(lines(tmp_path, rows), tmp_path / "out", *MAP)
    assert verdicts(tmp_path / "out") == [i % 11 for i in range(12)]
    with pytest.raises(UserError, match="two columns are called mt, but for spaces"):
        run(lines(tmp_path, [{"mt": "a", "mt ": "b"}]), tmp_path / "b", *MAP)


# --- annotators ---


def long_form_rows(answers: Sequence[tuple[Any, Any]]) -> list[dict[str, Any]]:
    return [
        {"id": i, "who": who, "source": text(i, 1), "mt": text(i, 2), "label": said}
        for i in range(12)
        for who, said in answers
    ]


def long_form(folder: Path, answers: Sequence[tuple[Any, Any]]) -> str:
    return lines(folder, long_form_rows(answers))


LONG = ("--map", "id=id,rater=who,source=source,candidate=mt,label=label")


def test_an_annotator_listed_twice_counts_once(tmp_path: Path) -> None:
    file = long_form(tmp_path, [("ann", 9), ("ann", 9), ("bob", 3)])
    said = run(file, tmp_path / "out", *LONG)
    assert set(verdicts(tmp_path / "out")) == {6}
    assert "read 36 rows: kept 36 as 12 examples, dropped 0" in said
    assert "12 answers left out: the same annotator's answer once more" in said


def test_an_answer_left_out_by_its_meaning_is_no_row_of_its_candidate(tmp_path: Path) -> None:
    kept = long_form_rows([("ann", 9), ("ann", "unsure"), ("bob", 3), ("cat", "unsure")])
    unlabelled = [
        {"id": 3, "who": "dan", "source": "another", "mt": "text", "label": "unsure"},
        {"id": 99, "who": "ann", "source": text(99, 1), "mt": text(99, 2), "label": "unsure"},
    ]
    file = lines(tmp_path, [*unlabelled, *kept])
    said = run(file, tmp_path / "out", *LONG, "--labels", "unsure=")
    assert "read 50 rows: kept 24 as 12 examples, dropped 26 26 dropped: no label" in said
    assert "26 answers left out: 'unsure' means no answer" in said
    for row in rows_of(tmp_path / "out").values():
        assert [(a.rater, a.verdict) for a in row.annotators] == [("ann", 9), ("bob", 3)]


def test_a_row_that_cannot_be_read_is_dropped_without_its_candidate(tmp_path: Path) -> None:
    file = long_form(tmp_path, [("ann", "?"), ("bob", 3), ("cat", 5)])
    said = run(file, tmp_path / "out", *LONG, "--drop_bad")
    assert "read 36 rows: kept 24 as 12 examples, dropped 12" in said
    assert "12 dropped: label cannot be used (first: " in said
    assert set(verdicts(tmp_path / "out")) == {4}


@pytest.mark.parametrize("names", [(True, False), (["a"], {"b": 1}), (1.0, 2)])
def test_annotators_may_be_called_by_any_value(names: tuple[Any, Any], tmp_path: Path) -> None:
    file = long_form(tmp_path, [(names[0], 9), (names[1], 3)])
    run(file, tmp_path / "out", *LONG)
    for row in rows_of(tmp_path / "out").values():
        assert [a.rater for a in row.annotators] == [str(name) for name in names]


def test_annotators_without_a_name_are_different_ones(tmp_path: Path) -> None:
    run(long_form(tmp_path, [("", 9), ("", 9), ("bob", 3)]), tmp_path / "out", *LONG)
    assert set(verdicts(tmp_path / "out")) == {7}


def test_an_annotator_who_says_two_things_is_refused_or_left_out(tmp_path: Path) -> None:
    file = long_form(tmp_path, [("ann", 9), ("ann", 2), ("bob", 3)])
    with pytest.raises(
        UserError, match=r"line 2, field label: annotator ann says 9 \(.*:1\) and 2"
    ):
        run(file, tmp_path / "out", *LONG)
    said = run(file, tmp_path / "out", *LONG, "--drop_bad")
    assert set(verdicts(tmp_path / "out")) == {3}
    assert "12 answers left out: its annotator contradicts themself (first: " in said


# --- Label Studio ---


def star(rating: int, name: str = "") -> dict[str, Any]:
    named = {"from_name": name, "to_name": "mt"} if name else {}
    return {"type": "rating", "value": {"rating": rating}, **named}


def why(name: str = "") -> dict[str, Any]:
    named = {"from_name": name, "to_name": "mt"} if name else {}
    return {"type": "textarea", "value": {"text": ["because"]}, **named}


def studio(folder: Path, annotations: Callable[[int], list[dict[str, Any]]]) -> str:
    tasks = [
        {
            "id": i,
            "data": {"source": text(i, 1), "mt": text(i, 2)},
            "annotations": annotations(i),
            "predictions": [{"model_version": "m", "result": [star(1)]}],
            "drafts": [{"user": "eve", "result": [star(1)]}],
        }
        for i in range(12)
    ]
    path = folder / "studio.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return str(path)


def annotation(who: Any, *result: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"completed_by": who, "result": list(result), "was_cancelled": False} | more


STUDIO = "id=id,source=data.source,candidate=data.mt,label="


def import_studio(file: str, out: Path, path: str = RATINGS, *flags: str) -> str:
    return run(file, out, "--map", f"{STUDIO}{path}", "--scale", "1-5", *flags)


def test_cancelled_annotations_and_predictions_are_no_labels(tmp_path: Path) -> None:
    file = studio(
        tmp_path,
        lambda i: [annotation(1, star(5)), annotation(2, star(1), was_cancelled=True)],
    )
    said = import_studio(file, tmp_path / "out")
    assert set(verdicts(tmp_path / "out")) == {5}
    assert "kept 12, dropped 0 12 answers left out: cancelled" in said


def test_a_rating_is_found_wherever_it_stands_and_its_rater_by_id(tmp_path: Path) -> None:
    def annotations(i: int) -> list[dict[str, Any]]:
        both = [
            annotation({"id": 7, "email": "ann@x.org"}, star(5, "quality"), why("notes")),
            annotation(2, why("notes"), star(1, "quality")),
        ]
        return both[:: 1 if i % 2 else -1]

    import_studio(studio(tmp_path, annotations), tmp_path / "out")
    for row in rows_of(tmp_path / "out").values():
        assert {a.rater: a.verdict for a in row.annotators} == {"7": 5, "2": 1}
        assert row.label is not None
        assert row.label.verdict == 3


def test_of_two_ratings_the_one_that_is_named_counts(tmp_path: Path) -> None:
    def annotations(i: int) -> list[dict[str, Any]]:
        return [annotation(1, *[star(5, "fluency"), star(2, "adequacy")][:: 1 if i % 2 else -1])]

    file = studio(tmp_path, annotations)
    with pytest.raises(UserError, match=r"adequacy, fluency: name one .*result\.adequacy\.value"):
        import_studio(file, tmp_path / "a")
    import_studio(file, tmp_path / "b", "annotations.*.result.adequacy.value.rating")
    assert set(verdicts(tmp_path / "b")) == {2}


@pytest.mark.parametrize(
    ("kind", "value", "path", "labels"),
    [
        ("choices", {"choices": ["good"]}, "choices", "good=PASS,bad=FAIL"),
        ("choices", {"choices": ["good"]}, "choices.0", "good=PASS,bad=FAIL"),
        ("number", {"number": 1}, "number", "1=PASS,0=FAIL"),
    ],
)
def test_choices_and_numbers_are_read_as_ratings_are(
    kind: str, value: dict[str, Any], path: str, labels: str, tmp_path: Path
) -> None:
    one = {"type": kind, "from_name": "verdict", "value": value}
    file = studio(tmp_path, lambda i: [annotation("u1", why("notes"), one)])
    out = tmp_path / "out"
    mapped = f"{STUDIO}annotations.*.result.0.value.{path}"
    run(file, out, "--map", mapped, "--labels", labels)
    assert set(verdicts(out)) == {"PASS"}


def test_a_pairwise_result_is_a_preference(tmp_path: Path) -> None:
    one = {"type": "pairwise", "from_name": "better", "value": {"selected": "left"}}
    file = studio(tmp_path, lambda i: [annotation("u1", why("notes"), one)])
    mapped = "source=id,candidate_a=data.source,candidate_b=data.mt,label="
    mapped += "annotations.*.result.better.value.selected"
    run(file, tmp_path / "out", "--map", mapped, "--labels", "left=A,right=B")
    assert set(verdicts(tmp_path / "out")) == {"A"}


def test_a_label_studio_export_of_one_row_an_annotation_is_read(tmp_path: Path) -> None:
    rows = [
        {
            "id": i,
            "source": text(i, 1),
            "mt": text(i, 2),
            "annotator": who,
            "annotation_id": 100 * i + who,
            "quality": [{"rating": said}],
        }
        for i in range(12)
        for who, said in ((1, 5), (2, 2))
    ]
    mapped = ("--map", "id=id,rater=annotator,source=source,candidate=mt,label=quality")
    run(lines(tmp_path, rows), tmp_path / "json", *mapped, "--scale", "1-5")
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0])
    writer.writeheader()
    writer.writerows({**row, "quality": json.dumps(row["quality"])} for row in rows)
    (tmp_path / "min.csv").write_text(table.getvalue(), encoding="utf-8")
    run(str(tmp_path / "min.csv"), tmp_path / "csv", *mapped, "--scale", "1-5")
    assert set(verdicts(tmp_path / "json")) == set(verdicts(tmp_path / "csv")) == {4}


# --- Argilla ---


SAID = (("a", 5, "submitted"), ("b", 1, "discarded"), ("c", 1, "draft"), ("d", 1, "pending"))


def argilla_2(i: int) -> dict[str, Any]:
    said = [{"value": v, "user_id": u, "status": s} for u, v, s in SAID]
    return {
        "id": f"r{i}",
        "status": "pending",  # of the record: its submitted answers count
        "fields": {"source": text(i, 1), "mt": text(i, 2)},
        "responses": {"quality": said},
        "suggestions": {"quality": {"value": 1, "agent": "model"}},
    }


def argilla_2_flat(i: int) -> dict[str, Any]:
    return {
        "id": f"r{i}",
        "source": text(i, 1),
        "mt": text(i, 2),
        "quality.responses": [v for _, v, _ in SAID],
        "quality.responses.users": [u for u, _, _ in SAID],
        "quality.responses.status": [s for _, _, s in SAID],
        "quality.suggestion": 1,
    }


def argilla_1(i: int) -> dict[str, Any]:
    said = [{"user_id": u, "status": s, "values": {"quality": {"value": v}}} for u, v, s in SAID]
    return {"id": f"r{i}", "fields": {"source": text(i, 1), "mt": text(i, 2)}, "responses": said}


def argilla_1_hub(i: int) -> dict[str, Any]:
    said = [{"user_id": u, "value": v, "status": s} for u, v, s in SAID]
    return {"id": f"r{i}", "source": text(i, 1), "mt": text(i, 2), "quality": said}


@pytest.mark.parametrize(
    ("record", "fields", "label"),
    [
        (argilla_2, "fields.", "responses.quality.*.value"),
        (argilla_2, "fields.", "responses.quality"),
        (argilla_2_flat, "", "quality.responses"),
        (argilla_1, "fields.", "responses.*.values.quality.value"),
        (argilla_1_hub, "", "quality"),
        (argilla_1_hub, "", "quality.*.value"),
    ],
)
def test_only_submitted_responses_count_in_every_argilla_export(
    record: Callable[[int], dict[str, Any]], fields: str, label: str, tmp_path: Path
) -> None:
    file = lines(tmp_path, [record(i) for i in range(12)])
    mapped = f"id=id,source={fields}source,candidate={fields}mt,label={label}"
    said = run(file, tmp_path / "out", "--map", mapped, "--scale", "1-5")
    rows = rows_of(tmp_path / "out").values()
    assert [[(a.rater, a.verdict) for a in row.annotators] for row in rows] == [[("a", 5)]] * 12
    for status in ("discarded", "draft", "pending"):
        assert f"12 answers left out: {status}" in said


def test_responses_without_a_status_are_said_to_be_so(tmp_path: Path) -> None:
    rows = [argilla_2(i) for i in range(12)]
    for row in rows:
        row["responses"]["quality"] = [{"value": 4, "user_id": "a"}]
    mapped = "source=fields.source,candidate=fields.mt,label=responses.quality.*.value"
    said = run(lines(tmp_path, rows), tmp_path / "out", "--map", mapped, "--scale", "1-5")
    assert "responses carry no status, so drafts and discarded ones count too" in said


# --- what all labels say together ---


def pairs(winner: Callable[[int], str], texts: Callable[[int], tuple[str, str]]) -> list[Any]:
    rows = []
    for i in range(40):
        a, b = texts(i)
        rows.append({"q": text(i, 1), "a": a, "b": b, "label": winner(i)})
    return rows


PAIR = ("--map", "source=q,candidate_a=a,candidate_b=b,label=label")


def test_the_longer_candidate_is_the_one_of_more_characters(tmp_path: Path) -> None:
    def texts(i: int) -> tuple[str, str]:
        return f"I am on it at {i:02}", f"Incomprehensibilities abounding {i:02}"

    said = run(lines(tmp_path, pairs(lambda i: "A", texts)), tmp_path / "out", *PAIR)
    assert "the longer candidate (characters) wins 0.0" in said
    assert "warning: length alone predicts the label" in said


@pytest.mark.parametrize(("winner", "share"), [("tie", "0.50"), ("A", "0.75")])
def test_ties_of_label_or_length_count_as_halves(winner: str, share: str, tmp_path: Path) -> None:
    def texts(i: int) -> tuple[str, str]:
        return (f"uma casa {i:02}", f"uma mesa {i:02}" if i % 2 else f"sim {i:02}")

    said = run(lines(tmp_path, pairs(lambda i: winner, texts)), tmp_path / "out", *PAIR)
    assert f"the longer candidate (characters) wins {share}" in said


@pytest.mark.parametrize("label", ["A", "tie"])
def test_labels_that_are_all_alike_raise_a_warning_in_import_and_check(
    label: str, tmp_path: Path
) -> None:
    rows = pairs(lambda i: label, lambda i: (text(i, 2), text(i, 3)))
    said = run(lines(tmp_path, rows), tmp_path / "out", *PAIR)
    assert f"warning: every label is {label}: a judge can neither learn nor be tested" in said
    assert f"(one that always says {label} is right in 100 %)" in said
    checked = CliRunner().invoke(data, ["check", str(tmp_path / "out")])
    assert checked.exit_code == 0
    assert f"warning: every label is {label}" in " ".join(checked.output.split())


@pytest.mark.parametrize(("ratios", "warned"), [("0.9,0.1,0", True), ("0.8,0.1,0.1", False)])
def test_a_test_split_of_one_label_raises_a_warning(
    ratios: str, warned: bool, tmp_path: Path
) -> None:
    rows = pairs(lambda i: "AB"[i // 2 % 2], lambda i: (text(i, 2), text(i, 3)))
    run(lines(tmp_path, rows), tmp_path / "out", *PAIR, "--ratios", ratios)
    test = pairs(lambda i: "A", lambda i: (f"x{i} " * 6, f"y{i} " * 6))
    for i, row in enumerate(test):
        row["q"] = f"z{i} " * 6
    said = run(
        lines(tmp_path, test, "test.jsonl"),
        *(tmp_path / "out", *PAIR, "--append", "--into", "test", "--prefix", "official"),
    )
    assert ("warning: every test label is A: its accuracy says nothing" in said) is warned


def test_a_place_in_a_message_is_file_and_line() -> None:
    assert (
        f"{Place(Path('a/b.csv'), 3, lines=True)} | {Place(Path('b.parquet'), 4, lines=False)}"
        == ("a/b.csv, line 3 | b.parquet, row 4")
    )


def test_labels_with_a_mean_are_those_of_the_annotators(tmp_path: Path) -> None:
    run(lines(tmp_path, raters([4, 5, 9])), tmp_path / "out", *MAP)
    assert set(verdicts(tmp_path / "out")) == {round(fmean([4, 5, 9]))}
