"""`judge data import` through its command: what comes in, what is said, what is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pt_app.commands.data import data
from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from pt_app.core.records import JudgeExample
from pt_app.judge_data.importing import import_labels
from pt_app.judge_data.options import ImportOptions, SplitPlan
from tests.conftest import run_offline

MAP = ["--map", "source=src,candidate=mt,label=score"]


def run(tmp_path: Path, *argv: str) -> str:
    """Import by the command; give what it printed, or raise its UserError."""
    words = ["import", *argv, "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(data, words)
    if done.exception is not None:
        assert not (tmp_path / "out").exists(), "half a folder was written"
        raise done.exception
    return done.output


def rows_of(tmp_path: Path) -> dict[str, JudgeExample]:
    found = read_dataset(tmp_path / "out")
    return {row.id: row for row in [*found.train, *found.val, *found.test]}


def text_file(folder: Path, name: str, text: str, encoding: str = "utf-8") -> str:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return str(path)


def csv_file(folder: Path, count: int = 12, label: str = "{i}", delimiter: str = ",") -> str:
    lines = ["src,mt,score".replace(",", delimiter)]
    for i in range(count):
        cells = (f"the source {i}", f"o candidato {i}", label.replace("{i}", str(i % 11)))
        lines.append(delimiter.join(cells))
    return text_file(folder, "labels.csv", "\n".join(lines) + "\n")


def json_file(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    return text_file(folder, name, "\n".join(json.dumps(row) for row in rows))


# --- what comes in ---


def test_columns_become_fields_and_labels_are_carried_over_exactly(tmp_path: Path) -> None:
    output = run(tmp_path, csv_file(tmp_path), *MAP)
    assert "read 12 rows: kept 12, dropped 0" in output
    assert "check: no leak" in output
    rows = rows_of(tmp_path)
    assert {(r.source, r.candidate, r.label and r.label.verdict) for r in rows.values()} == {
        (f"the source {i}", f"o candidato {i}", i % 11) for i in range(12)
    }
    about = json.loads((tmp_path / "out" / "dataset.json").read_text("utf-8"))
    assert about["imports"][0] == {
        "files": ["labels.csv"],
        "format": "",
        "map": [MAP[1]],
        "labels": "",
        "read": 12,
        "kept": 12,
        "dropped": {},
    }


def test_names_of_labels_are_given_their_meaning(tmp_path: Path) -> None:
    rows = [{"src": f"s {i}", "mt": "c", "score": ["Good", "bad "][i % 2]} for i in range(12)]
    run(tmp_path, json_file(tmp_path, rows), *MAP, "--labels", "good=PASS,bad=FAIL")
    assert {row.label.verdict for row in rows_of(tmp_path).values() if row.label} == {
        "PASS",
        "FAIL",
    }


def test_pairs_conversations_context_and_what_else_is_known_are_mapped(tmp_path: Path) -> None:
    rows = [
        {
            "chat": json.dumps([{"from": "human", "value": f"Hi {i}"}]),
            "docs": "Some passage.",
            "a": "x",
            "b": "y",
            "best": i % 3,
            "note": "because",
            "model": "m1",
            "n": {"deep": [i]},
        }
        for i in range(12)
    ]
    map = "conversation=chat,context=docs,candidate_a=a,candidate_b=b,label=best,feedback=note"
    flags = ["--map", map, "--map", "system=model,meta.deep=n.deep.0", "--labels", "0=tie,1=A,2=B"]
    run(tmp_path, json_file(tmp_path, rows), *flags)
    row = next(row for row in rows_of(tmp_path).values() if row.meta["deep"] == 4)
    assert row.conversation is not None
    assert (row.conversation[0].role, row.conversation[0].content) == ("user", "Hi 4")
    assert (row.context, row.candidates) == ("Some passage.", ("x", "y"))
    assert row.label is not None
    assert (row.label.verdict, row.label.feedback) == ("A", "because")
    assert row.meta["system"] == "m1"


def test_several_raters_in_columns_a_list_or_a_row_each_are_the_same(tmp_path: Path) -> None:
    labels = [[i % 5, 4, 1 + i % 2] for i in range(12)]
    wide = [
        {"s": f"s {i}", "c": "c", **{f"r{k}": x for k, x in enumerate(row)}}
        for i, row in enumerate(labels)
    ]
    listed = [{"s": f"s {i}", "c": "c", "all": row} for i, row in enumerate(labels)]
    long = [
        {"item": str(i), "s": f"s {i}", "c": "c", "who": str(k + 1), "said": x}
        for i, row in enumerate(labels)
        for k, x in enumerate(row)
    ]
    given = {
        "wide": (wide, "source=s,candidate=c,label=r0+r1+r2"),
        "listed": (listed, "source=s,candidate=c,label=all"),
        "long": (long, "source=s,candidate=c,label=said,rater=who,id=item"),
    }
    found = []
    for name, (rows, map) in given.items():
        folder = tmp_path / name
        folder.mkdir()
        output = run(folder, json_file(folder, rows), "--map", map, "--scale", "0-4")
        assert "agreement: 3 raters, 36 labels" in output
        by_source = {row.source: row for row in rows_of(folder).values()}
        found.append(
            {
                source: (row.label and row.label.verdict, [a.verdict for a in row.annotators])
                for source, row in by_source.items()
            }
        )
    assert found[0] == found[1] == found[2]
    mean = {f"s {i}": (int(sum(row) / 3 + 0.5), row) for i, row in enumerate(labels)}
    assert found[0] == mean


def test_issues_and_feedback_of_every_rater_are_kept(tmp_path: Path) -> None:
    said = [("gender", "Wrong."), ("tense", ""), ("gender", "Stiff."), ("", "Wrong.")]
    rows = [
        {"item": str(i), "s": f"s {i}", "c": "c", "who": k, "said": 3, "is": issue, "why": why}
        for i in range(12)
        for k, (issue, why) in enumerate(said)
    ]
    map = "source=s,candidate=c,label=said,rater=who,id=item,issues=is,feedback=why"
    run(tmp_path, json_file(tmp_path, rows), "--map", map, "--scale", "0-4")
    for row in rows_of(tmp_path).values():
        assert row.label is not None
        assert (row.label.issues, row.label.feedback) == (["gender", "tense"], "Wrong. Stiff.")


def test_rows_in_the_projects_own_shapes_need_no_map(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"input": f"Rate this: o gato {i}", "output": f"Score: {i}/10\nFeedback: Ok."}
        for i in range(11)
    ]
    rows.append({"source": "s", "candidate": "c", "label": {"verdict": 3}})
    assert "kept 12" in run(tmp_path, json_file(tmp_path, rows))
    found = rows_of(tmp_path).values()
    assert {row.prompt for row in found} == {None, *(r["input"] for r in rows[:11])}
    assert sorted(row.label.verdict for row in found if row.label) == sorted([3, *range(11)])


def test_columns_called_as_the_fields_need_no_map(tmp_path: Path) -> None:
    lines = ["source,candidate,label"] + [f"s {i},c,{['ok', 'no'][i % 2]}" for i in range(12)]
    path = text_file(tmp_path, "labels.csv", "\n".join(lines))
    assert "task pass_fail" in run(tmp_path, path, "--labels", "ok=PASS,no=FAIL")
    assert {row.label.verdict for row in rows_of(tmp_path).values() if row.label} == {
        "PASS",
        "FAIL",
    }


def test_rows_are_added_without_moving_the_old_ones(tmp_path: Path) -> None:
    run(tmp_path, csv_file(tmp_path, 60), *MAP)
    before = json.loads((tmp_path / "out" / "splits.json").read_text("utf-8"))
    more = [{"src": f"another {i}", "mt": "c", "score": 5} for i in range(40)]
    words = ["import", json_file(tmp_path, more), *MAP, "--append", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(data, words)
    assert done.exit_code == 0, done.exception
    after = json.loads((tmp_path / "out" / "splits.json").read_text("utf-8"))
    assert len(after) == 100
    assert {group: after[group] for group in before} == before
    assert len(json.loads((tmp_path / "out" / "dataset.json").read_text("utf-8"))["imports"]) == 2


def test_an_official_test_set_goes_into_its_split_without_what_training_has(tmp_path: Path) -> None:
    run(tmp_path, csv_file(tmp_path, 20), *MAP, "--into", "train")
    test = [{"src": f"the source {i}", "mt": "c", "score": 1} for i in range(15, 25)]
    words = ["import", json_file(tmp_path, test), *MAP, "--append", "--into", "test"]
    done = CliRunner().invoke(data, [*words, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.exception
    assert "5 rows left out" in done.output
    assert len(read_dataset(tmp_path / "out").test) == 5


def test_a_template_of_ones_own_comes_along_with_the_dataset(tmp_path: Path) -> None:
    own = tmp_path / "mine"
    own.mkdir()
    (own / "user.txt").write_text("{source} => {candidate}\n", encoding="utf-8")
    run(tmp_path, csv_file(tmp_path), *MAP, "--template", str(own))
    found = read_dataset(tmp_path / "out")
    assert Path(found.card.template) == (tmp_path / "out" / "template").absolute()
    about = json.loads((tmp_path / "out" / "dataset.json").read_text("utf-8"))
    assert about["template"] == "template", "no path of this machine"


def test_a_rubric_and_the_origin_stand_in_the_card(tmp_path: Path) -> None:
    rubric = text_file(tmp_path, "rubric.txt", "Be strict: {high} is rare.\n")
    flags = ["--rubric", rubric, "--origin", "our reviewers", "--licence", "CC0-1.0"]
    run(tmp_path, csv_file(tmp_path), *MAP, *flags)
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    for text in ("Be strict: {high} is rare.", "our reviewers", "CC0-1.0", "read 12 rows, kept 12"):
        assert text in card


def test_a_spreadsheets_export_is_read_with_its_encoding(tmp_path: Path) -> None:
    lines = ["src;mt;score"] + [f"não {i};é {i};{i % 11}" for i in range(12)]
    path = text_file(tmp_path, "labels.csv", "\r\n".join(lines), "cp1252")
    with pytest.raises(UserError, match=r"not UTF-8 at byte 15 \(0xe3\).*--encoding"):
        run(tmp_path, path, *MAP)
    output = run(tmp_path, path, *MAP, "--encoding", "cp1252")
    assert "delimiter ;" in output
    assert "não 3" in {row.source for row in rows_of(tmp_path).values()}


def test_part_of_a_file_is_taken_and_the_rest_counted(tmp_path: Path) -> None:
    rows = [{"src": f"s {i}", "mt": "c", "score": 1, "turn": i % 2} for i in range(24)]
    output = run(tmp_path, json_file(tmp_path, rows), *MAP, "--only", "turn=1", "--prefix", "p")
    assert "kept 12, dropped 12" in output
    assert "12 dropped: turn is not 1" in output
    assert all(name.startswith("p-") for name in rows_of(tmp_path))


def test_parquet_streams_into_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    rows = [{"src": f"s {i}", "mt": "c\r\n\x00", "score": i % 3} for i in range(12)]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    run(tmp_path, str(tmp_path / "rows.parquet"), *MAP)
    assert {row.candidate for row in rows_of(tmp_path).values()} == {"c\r\n\x00"}


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(texts=st.lists(st.text(st.characters(codec=None), max_size=12), min_size=6, max_size=6))
def test_any_text_is_kept_to_the_letter_or_refused(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("any")
    rows = [{"src": f"source {i}", "mt": text, "score": 1} for i, text in enumerate(texts)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    options = ImportOptions(map=(MAP[1],))
    plan = SplitPlan(ratios="0.5,0,0.5")
    read = json.loads(json.dumps(texts))  # two halves side by side are one character
    half = any(0xD800 <= ord(c) <= 0xDFFF for text in read for c in text)
    if half:
        with pytest.raises(UserError, match="half a character"):
            import_labels([str(path)], tmp_path / "out", options, plan)
        assert not (tmp_path / "out").exists()
        return
    import_labels([str(path)], tmp_path / "out", options, plan)
    kept = {row.source: row.candidate for row in rows_of(tmp_path).values()}
    assert kept == {f"source {i}": text for i, text in enumerate(read)}


# --- what bad input gets ---


@pytest.mark.parametrize(
    ("label", "flags", "message"),
    [
        (
            "{i}",
            ["--map", "source=nowhere,candidate=mt,label=score"],
            "no column nowhere .*columns are",
        ),
        ("{i}", ["--map", "sorce=src"], "no field is called sorce, the nearest is source"),
        ("{i}", ["--map", "source=src,candidate=mt"], "names no label: add label=COLUMN, one of"),
        ("{i}", ["--map", "source"], "'source' is not a pair"),
        ("{i}", ["--map", "source=src,source=mt"], r"source is 'src' and 'mt': join columns with"),
        ("{i}", [*MAP, "--only", "mt=a,mt=b"], "--only says mt is 'a' and 'b': keep one"),
        ("{i}", [*MAP, "--labels", "1=PASS,1.0=FAIL"], "--labels says 1.0 is 'PASS' and 'FAIL'"),
        ("{i}", [*MAP, "--format", "llmbar"], "--map does not go with the format llmbar"),
        ("{i}", ["--labels", "1=A", "--format", "llmbar"], "--labels does not go with the format"),
        ("{i}", [*MAP, "--mqm_weights", "core"], "--mqm_weights goes with --format wmt-mqm alone"),
        ("x" * 9999, MAP, r"line 2, field label: 'x{90,500}\.\.\.: say"),
        ("{i}", [], "has the columns src, mt, score: say what they are with --map"),
        ("11", MAP, r"line 2, field label.verdict: 11 is off the scale 0-10.*--drop_bad"),
        ("great", MAP, "line 2, field label: 'great' is not a number"),
        (
            "great",
            [*MAP, "--labels", "good=PASS,bad=FAIL"],
            "'great' has no meaning: add it to --labels",
        ),
        ("1.5", [*MAP, "--scale", "1-5"], "off the scale 1-5"),
        ("{i}", [*MAP, "--scale", "5-1"], "whose steps lead"),
        ("{i}", [*MAP, "--task", "pairwise", "--scale", "0-10"], "does not fit"),
        ("{i}", [*MAP, "--template", "nobodys"], "template nobodys is neither"),
        ("{i}", [*MAP, "--ratios", "1,2"], "write three numbers"),
        ("{i}", [*MAP, "--only", "nowhere=1"], r"has no column nowhere \(--only nowhere=1\)"),
        (
            "{i}",
            ["--format", "pandalm"],
            "is not of the format pandalm: it has no column instruction",
        ),
        ("{i}", [*MAP, "--near", "0.1"], "--near is 0.1"),
    ],
)
def test_wrong_flags_and_labels_are_said_in_one_line(
    label: str, flags: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, csv_file(tmp_path, label=label), *flags)


def test_bad_rows_are_left_out_only_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = [{"src": f"s {i}", "mt": "c", "score": i} for i in range(12)] + [
        {"src": "e", "mt": "c", "score": ""},
        {"src": "t", "mt": True, "score": 1},
    ]
    output = run(tmp_path, json_file(tmp_path, rows), *MAP, "--drop_bad")
    assert "read 14 rows: kept 11, dropped 3" in output
    assert "1 dropped: label.verdict cannot be used (first: " in output
    assert "1 dropped: candidate cannot be used" in output
    assert "1 dropped: no label" in output


def test_mixed_tasks_in_one_file_are_refused(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"task": "score", "source": "s", "candidate": "c", "label": {"verdict": 1}},
        {"task": "pass_fail", "source": "t", "candidate": "c", "label": {"verdict": "PASS"}},
    ]
    with pytest.raises(
        UserError, match=r"line 2, field task: pass_fail, but the dataset's is score"
    ):
        run(tmp_path, json_file(tmp_path, rows))


@pytest.mark.parametrize(
    ("task", "verdict", "said"),
    [("score", 5, "five"), ("pairwise", "A", "C"), ("pass_fail", "PASS", 1)],
)
def test_what_no_rater_can_have_said_is_refused(
    task: str, verdict: Any, said: Any, tmp_path: Path
) -> None:
    texts = {"candidates": ["a", "b"]} if task == "pairwise" else {"candidate": "a"}
    row = {"source": "s", **texts, "label": {"verdict": verdict}, "annotators": [verdict, said]}
    with pytest.raises(UserError, match=r"line 1, field annotators\.1\.verdict: .* is no verdict"):
        run(tmp_path, json_file(tmp_path, [row]), "--task", task)


def test_two_rows_of_one_id_are_refused(tmp_path: Path) -> None:
    rows = [{"id": "x", "src": f"s {i}", "mt": "c", "score": 1} for i in range(3)]
    with pytest.raises(UserError, match=r'two rows have the id "x": rows.jsonl:1 and rows'):
        run(tmp_path, json_file(tmp_path, rows), *MAP, "--map", "id=id")


def test_one_id_with_two_texts_is_no_second_rater(tmp_path: Path) -> None:
    rows = [{"id": "x", "src": "s", "mt": f"c {i}", "score": 1, "who": i} for i in range(2)]
    with pytest.raises(UserError, match=r"field candidate: differs from that of rows.jsonl:1"):
        run(tmp_path, json_file(tmp_path, rows), *MAP, "--map", "id=id,rater=who")


def test_fewer_groups_than_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="groups cannot fill 3 splits"):
        run(tmp_path, csv_file(tmp_path, 2), *MAP)


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(Path(csv_file(tmp_path, 500)).read_bytes())
    path = tmp_path / "labels.csv.gz"
    path.write_bytes(whole[:-200])
    with pytest.raises(UserError, match=r"is not a whole archive .*: fetch it again"):
        run(tmp_path, str(path), *MAP)


def test_a_folder_of_another_command_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, csv_file(tmp_path, 12), *MAP)
    words = ["import", csv_file(tmp_path, 20), *MAP, "--out", str(tmp_path / "out")]
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    done = CliRunner().invoke(data, words)
    assert isinstance(done.exception, UserError)
    assert "--append" in str(done.exception)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_rows_of_another_scale_are_not_added(tmp_path: Path) -> None:
    run(tmp_path, csv_file(tmp_path, 12), *MAP)
    more = json_file(tmp_path, [{"src": "new", "mt": "c", "score": 1}])
    words = ["import", more, *MAP, "--append", "--scale", "1-5", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(data, words)
    assert isinstance(done.exception, UserError)
    assert "field scale" in str(done.exception)


def test_the_command_ends_with_2_and_one_line(tmp_path: Path) -> None:
    path = csv_file(tmp_path, label="99")
    command = ["-m", "pt_app.cli", "data", "import", path, *MAP, "--out", str(tmp_path / "out")]
    done = run_offline(command)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
