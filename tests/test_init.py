"""What `judge init` proposes for a stranger's file: commands that work as they are typed."""

import json
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pt_app.cli import app
from pt_app.core.dataset import JudgeData, read_card, read_dataset, read_rows
from pt_app.core.errors import UserError
from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import PromptEncoder
from pt_app.core.settings import resolve
from pt_app.core.verdicts import Scale
from pt_app.judge_data.proposing.inspecting import inspect
from pt_app.models.bases import load_tokenizer, resolve_model
from tests.real_data import real
from tests.strangers import (
    COUNT,
    Row,
    answer,
    arena,
    argilla,
    argilla_1,
    by_column,
    chat,
    fields,
    graded,
    label_studio,
    long_form,
    mt_bench,
    source,
    translations,
    unnamed,
    words_for_grades,
    write,
)

FILES: dict[str, tuple[str, Callable[[int], Row], str, dict[Any, int]]] = {
    # ending, rows, what the proposal says, verdicts of the dataset
    "translations, scored": (
        ";csv",
        translations,
        "--map source=src,candidate=mt,label=score,feedback=comment --scale 0-10 "
        "--template translation_any",
        dict.fromkeys(range(11), 2) | {0: 3, 1: 3},
    ),
    "right or wrong": (
        "csv",
        graded,
        "--map source=question,candidate=answer,label=correct --labels No=FAIL,yes=PASS "
        "--task pass_fail --template response",
        {"PASS": 16, "FAIL": 8},
    ),
    "an arena": (
        "jsonl",
        arena,
        "--map source=prompt,candidate_a=response_a,candidate_b=response_b,label=winner "
        "--labels 'model_a=A,model_b=B,tie (both bad)=tie' --template response",
        {"A": 8, "B": 8, "tie": 8},
    ),
    "a column for each rater": (
        "tsv",
        by_column,
        "--map id=id,source=instruction+input,candidate=output,label=rater_1+rater_2+rater_3 "
        "--scale 1-5 --template response",
        {2: 4, 3: 15, 4: 5},
    ),
    "a row for each rater": (
        "csv",
        long_form,
        "--map id=item_id,source=source,candidate=target,label=rating,rater=rater "
        "--scale 0-5:0.5 --template translation_any",
        {1.0: 6, 2.0: 6},
    ),
    "an export of Label Studio": (
        "json",
        label_studio,
        "--map 'id=id,source=data.source,candidate=data.translation,"
        "label=annotations.*.result.0.value.rating' --scale 1-5 --template translation_any",
        {2: 5, 3: 9, 4: 5, 5: 5},
    ),
    "an export of Argilla": (
        "jsonl",
        argilla,
        "--map id=id,source=prompt,candidate=response,label=label.responses --scale 1-5 "
        "--template response",
        {2: 5, 3: 9, 4: 5, 5: 5},
    ),
    "an older export of Argilla": (
        "json",
        argilla_1,
        "--map 'source=prompt,candidate=reply,label=verdict.*.value' --labels bad=FAIL,good=PASS "
        "--task pass_fail --template response",
        {"PASS": 16, "FAIL": 8},
    ),
    "conversations of two models": (
        "jsonl",
        mt_bench,
        "--map group=question_id,source=conversation_a.0.content,"
        "candidate_a=conversation_a.1.content,candidate_b=conversation_b.1.content,label=winner "
        "--labels model_a=A,model_b=B,tie=tie --template response",
        {"A": 8, "B": 8, "tie": 8},
    ),
    "grades in words": (
        "csv",
        words_for_grades,
        "--map 'source=customer text,candidate=bot reply,label=quality' --labels 'very poor=1,"
        "poor=2,fair=3,good=4,very good=5,excellent=6' --scale 1-6 --template response",
        dict.fromkeys(range(1, 7), 4),
    ),
    "names that say nothing": (
        "csv",
        unnamed,
        "--map source=x1,candidate=x2,label=x3 --scale 1-5 --template response",
        {1: 5, 2: 5, 3: 5, 4: 5, 5: 4},
    ),
    "rows of chat": ("jsonl", chat, "--scale 1-5", {1: 5, 2: 5, 3: 5, 4: 5, 5: 4}),
    "rows of fields": ("json", fields, "--task pairwise", {"A": 12, "B": 12}),
}


def run(words: Sequence[str]) -> str:
    result = CliRunner().invoke(app, list(words))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def commands(said: str) -> list[list[str]]:
    """Read the proposed commands back as a shell would."""
    text = said.partition("next:\n")[2].replace("\\\n", " ")
    return [shlex.split(line) for line in text.strip().splitlines()]


@pytest.mark.parametrize(("ending", "row", "flags", "verdicts"), FILES.values(), ids=FILES.keys())
def test_the_proposed_commands_work_as_typed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
    row: Callable[[int], Row],
    flags: str,
    verdicts: Mapping[Any, int],
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(Path(), ending, [row(i) for i in range(COUNT)])
    said = run(["init", str(file)])
    importing, checking, previewing, training = commands(said)
    wanted = ["judge", "data", "import", str(file), "--out", "datasets/labels"]
    assert importing[:6] == wanted
    assert importing[6 : 6 + len(shlex.split(flags))] == shlex.split(flags)
    for command in (importing, checking, previewing):
        run(command[1:])
    assert resolve("mps", training[2:], "judge train", "").data_dir == "datasets/labels"

    folder = Path("datasets/labels")
    splits = ("train", "val", "test")
    card = read_card(folder)
    examples = [
        one
        for split in splits
        if (folder / f"judge_{split}.json").exists()
        for one in read_rows(folder / f"judge_{split}.json", card, split)
    ]
    assert Counter(one.label.verdict for one in examples if one.label) == verdicts


WELL_KNOWN = {
    "HelpSteer": (
        {"prompt": "x", "response": "y", "helpfulness": 3, "correctness": 4, "verbosity": 2},
        "source=prompt,candidate=response,label=helpfulness",
    ),
    "Feedback-Collection": (
        {
            **{"orig_criteria": "x", "orig_score": "5", "orig_feedback": "x", "output": "x y"},
            **{"orig_instruction": "x", "orig_response": "x", "orig_reference_answer": "x"},
            **{"instruction": "all of it", "input": ""},
        },
        "source=orig_instruction,reference=orig_reference_answer,candidate=orig_response,"
        "rubric=orig_criteria,label=orig_score,feedback=orig_feedback",
    ),
}


@pytest.mark.parametrize(("row", "map"), WELL_KNOWN.values(), ids=WELL_KNOWN.keys())
def test_columns_of_well_known_sets_are_told(tmp_path: Path, row: Row, map: str) -> None:
    rows = [
        row
        | {
            name: f"{text} {i}"
            for name, text in row.items()
            if text in ("x", "y", "x y", "all of it")
        }
        for i in range(3)
    ]
    proposal = inspect(str(write(tmp_path, "jsonl", rows)))
    assert proposal.flags[:2] == ["--map", map]


def test_max_seq_length_covers_the_longest_prompt_and_answer(tmp_path: Path) -> None:
    rows = [translations(i) for i in range(COUNT)]
    rows[7]["src"] = "a very long one " * 30
    proposal = inspect(str(write(tmp_path, "csv", rows)), model="tiny")
    assert proposal.lengths
    examples = [
        {
            "source": r["src"],
            "candidate": r["mt"],
            "label": {"verdict": r["score"], "feedback": r["comment"]},
        }
        for r in rows
    ]
    text = "\n".join(map(json.dumps, examples))
    (tmp_path / "judge_train.json").write_text(text)
    encoder = PromptEncoder(
        load_tokenizer(resolve_model("tiny")),
        Template.load("translation_any"),
        Scale.from_name("0-10"),
        4096,
    )
    read = read_rows(tmp_path / "judge_train.json", read_card(tmp_path), "train")
    lengths = sorted(len(one.input_ids) for one in encoder.encode(read)[0])
    assert proposal.lengths.longest == lengths[-1]
    assert proposal.lengths.median == lengths[COUNT // 2]
    assert proposal.lengths.max_seq_length % 64 == 0
    assert 0 <= proposal.lengths.max_seq_length - lengths[-1] < 64


def test_the_proposal_fits_80_columns_and_hides_what_a_terminal_would_obey(tmp_path: Path) -> None:
    rows = [translations(i) | {"note": f"\x1b[31m漢字漢字{i} " + "long " * 30} for i in range(9)]
    rows = [
        {f"{name} with\x1b[2J a long name of its own": v for name, v in r.items()} for r in rows
    ]
    proposal = inspect(str(write(tmp_path, "csv", rows)))
    lines = proposal.lines()
    table = lines[2 : 2 + 1 + len(proposal.columns)]
    from rich.cells import cell_len

    assert max(map(cell_len, table)) <= 80
    assert not any("\x1b" in line for line in lines)
    assert any("\\u001b[31m漢字" in line for line in table)


NAMED = st.sampled_from(["id", "source", "mt", "label", "rater", "answer_a", "answer_b"]) | st.text(
    max_size=6
)
CELLS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMED, inner, max_size=3),
    max_leaves=6,
)


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.dictionaries(NAMED, CELLS, min_size=1, max_size=5), min_size=1, max_size=4))
def test_any_json_gets_a_proposal(tmp_path: Path, rows: list[Row]) -> None:
    lines = inspect(str(write(tmp_path, "jsonl", rows))).lines()
    assert lines[0].endswith(f"{len(rows)} rows, JSON Lines")
    assert not any(unicodedata.category(c) in ("Cc", "Cf") for line in lines for c in line)


def test_a_file_without_labels_is_told_where_to_get_them(tmp_path: Path) -> None:
    rows = [{"source": source(i), "translation": answer(i)} for i in range(5)]
    said = "\n".join(inspect(str(write(tmp_path, "csv", rows))).lines())
    assert "judge data distil" in said
    assert "label=LABEL" in said


def test_rows_that_cannot_be_used_are_counted_and_dropped_by_the_command(tmp_path: Path) -> None:
    rows = [mt_bench(i) for i in range(9)]
    rows[4]["conversation_b"] = [{"role": "user", "content": "alone"}]
    proposal = inspect(str(write(tmp_path, "jsonl", rows)))
    (said,) = [line for line in proposal.lines() if line.startswith("unusable  ")]
    assert said.startswith("unusable  1, left out by --drop_bad; the first:")
    assert not any(line.startswith("import ") for line in proposal.lines())
    assert proposal.flags[-1] == "--drop_bad"


def test_a_long_command_has_as_many_flags_on_a_line_as_fit(tmp_path: Path) -> None:
    proposal = inspect(str(write(tmp_path, "csv", [translations(i) for i in range(30)])))
    proposal = replace(proposal, file="x.csv", out="datasets/x")
    at = proposal.lines().index("next:")
    assert proposal.lines()[at + 1 : at + 4] == [
        "  judge data import x.csv --out datasets/x \\",
        "      --map source=src,candidate=mt,label=score,feedback=comment --scale 0-10 \\",
        "      --template translation_any",
    ]


def test_names_and_labels_with_signs_of_the_flags_are_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"source, raw": source(i), "answer=b+c": answer(i), "label": ("ok, good", "a=b")[i % 2]}
        for i in range(COUNT)
    ]
    rows = [r | {"label": {"ok, good": "yes", "a=b": "no"}[r["label"]]} for r in rows]
    file = write(Path(), "csv", rows)
    run(commands(run(["init", str(file)]))[0][1:])
    assert (tmp_path / "datasets/labels/judge_train.json").exists()


def test_an_encoding_that_was_needed_is_in_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["fonte;tradução;nota", *(f"{source(i)} é;ação {i};{i % 5 + 1}" for i in range(COUNT))]
    Path("labels.csv").write_bytes("\r\n".join(lines).encode("cp1252"))
    with pytest.raises(UserError, match="--encoding cp1252"):
        inspect("labels.csv")
    said = run(["init", "labels.csv", "--encoding", "cp1252"])
    importing = commands(said)[0]
    assert importing[-2:] == ["--encoding", "cp1252"]
    run(importing[1:])


def test_a_rubrics_stub_is_written_where_asked_and_never_over_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(Path(), "csv", [translations(i) for i in range(COUNT)])
    said = run(["init", str(file), "--out", "rubric.txt"])
    stub = Path("rubric.txt").read_text()
    assert "{high} is a candidate without a fault" in stub
    importing = commands(said)[0]
    assert importing[-2:] == ["--rubric", "rubric.txt"]
    run(importing[1:])
    with pytest.raises(UserError, match=r"rubric\.txt is there already"):
        inspect(str(file), rubric=Path("rubric.txt"))
    assert Path("rubric.txt").read_text() == stub


def test_a_folder_that_is_there_is_not_proposed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(Path(), "csv", [translations(i) for i in range(9)])
    Path("datasets/labels").mkdir(parents=True)
    assert inspect(str(file)).out == "datasets/labels-2"


def rated(i: int) -> Row:
    """A row with labels of every kind, and columns that look like labels and are none."""
    return {
        "id": f"t-{i}",
        "ticket": source(i),
        "reply": answer(i),
        "polite": ("yes", "No")[i % 2],
        "offer": ("refund", "new cup, free", "'null'")[i % 3],
        "stars": i % 5 + 1,
        "flag": i % 2,
        "model": "ab"[i % 2],
    }


def nested(i: int) -> Row:
    row = rated(i)
    labels = {"is it polite?": bool(i % 2), "stars": row["stars"] / 2}
    return {"reply text": row["reply"], "said": labels, "offer": [row["offer"]][i % 4 :]}


ASKED: dict[str, tuple[str, Callable[[int], Row], dict[str, str], dict[str, int]]] = {
    # ending, rows, scale of each question, how many labels each has
    "a column a question": (
        "csv",
        rated,
        {"polite": "bool", "offer": "choice", "stars": "1-5", "flag": "0-1"},
        {"polite": COUNT, "offer": COUNT, "stars": COUNT, "flag": COUNT},
    ),
    "JSON with columns of other names": (
        "jsonl",
        nested,
        {"is_it_polite": "bool", "stars": "0-5:0.5"},
        {"is_it_polite": COUNT, "stars": COUNT},
    ),
    "raters of a question": (
        "tsv",
        lambda i: by_column(i) | {"offer": "ab"[i % 2]},
        {"label": "1-5", "offer": "choice"},
        {"label": COUNT, "offer": COUNT},
    ),
}


@pytest.mark.parametrize(("ending", "row", "scales", "labels"), ASKED.values(), ids=ASKED.keys())
def test_questions_for_several_columns_of_labels_can_be_imported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
    row: Callable[[int], Row],
    scales: Mapping[str, str],
    labels: Mapping[str, int],
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(Path(), ending, [row(i) for i in range(COUNT)])
    said = run(["init", str(file), "--questions", "q.yaml"])
    (importing,) = commands("next:\n" + said.partition("q.yaml is corrected:\n")[2])
    run(importing[1:])
    data = read_dataset(Path("datasets/labels-questions"))
    assert {q.name: q.scale.name.partition(":[")[0] for q in data.questions} == scales
    rows = [*data.train, *data.val, *data.test]
    assert Counter(one.asks for one in rows) == labels
    if ending == "csv":  # whose columns need no --map
        assert data.card.state == ["ticket", "reply"]
        run(["data", "import", str(file), "--out", "again", "--questions", "q.yaml"])
        assert read_dataset(Path("again")).questions == data.questions


def proposed(file: Path) -> tuple[str, JudgeData]:
    """Write the questions of a file, and import it as it is proposed then."""
    said = run(["init", str(file), "--questions", f"{file.stem}.yaml"])
    (importing,) = commands("next:\n" + said.partition(".yaml is corrected:\n")[2])
    run(importing[1:])
    return said, read_dataset(Path(importing[importing.index("--out") + 1]))


def test_questions_keep_what_says_which_row_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "segment_id": f"x{i}",
            "group_id": f"doc{i // 3}",
            "system_name": "ab"[i % 2],
            "doc": f"page {i // 6}",
            "created_at": f"2026-01-{i + 1:02}",
            "source": source(i),
            "translation": answer(i),
            "fluent": ("yes", "no")[i % 2],
            "grade": i % 5 + 1,
        }
        for i in range(COUNT)
    ]
    _, data = proposed(write(Path(), "csv", rows))
    assert [question.name for question in data.questions] == ["fluent", "grade"]
    read = {row.id: row for row in (*data.train, *data.val, *data.test)}
    assert read["x7"].group == "doc2"
    meta = {"system": "b", "document": "page 1", "time": "2026-01-08"}
    assert read["x7"].meta == meta


@pytest.mark.parametrize("rater", ["annotator", "rater"])
def test_questions_of_a_row_for_each_rater_are_proposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rater: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"id": i, "text": source(i), "reply": answer(i), rater: who}
        | {"tone": ("warm", "cold")[i % 2], "grade": (i + at) % 5 + 1}
        for i in range(COUNT)
        for at, who in enumerate(("ana", "rui"))
    ]
    _, data = proposed(write(Path(), "csv", rows))
    grades = [row for row in data.train if row.asks == "grade"]
    assert {one.rater for row in grades for one in row.annotators} == {"ana", "rui"}


def test_questions_with_a_decimal_comma_are_proposed_and_others_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"text": source(i), "nota": f"{i % 10},5", "tom": "ab"[i % 2], "votes": [i % 3]}
        | {"fine": f"{(i // 2) / 7:.6f}"}
        for i in range(COUNT)
    ]
    said, data = proposed(write(Path(), "jsonl", rows))
    assert data.questions[0].scale.name == "0-10:0.5"
    assert [question.name for question in data.questions] == ["nota", "tom"]
    said = " ".join(said.split())
    assert "left out of the questions: fine (the labels are finer than a judge's scale" in said
    assert "votes (labels.jsonl, line 1, field labels.votes: [0] is not allowed" in said


def test_an_annotator_who_says_two_things_is_left_out_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"id": i, "source": source(i), "reply": answer(i), "rater": who, "grade": (i + at) % 5 + 1}
        for i in range(COUNT)
        for at, who in enumerate(("ana", "rui"))
    ]
    file = write(Path(), "csv", [*rows, rows[0] | {"grade": 5}])
    importing = commands(run(["init", str(file)]))[0]
    assert "--drop_bad" in importing
    run(importing[1:])


def test_why_questions_cannot_be_imported_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(Path(), "csv", [rated(i) | {"id": f"t-{i // 2}"} for i in range(COUNT)])
    run(["init", str(file)])
    with pytest.raises(UserError, match=r'questions: two rows have the id "t-0": .*--questions'):
        inspect(str(file), questions=Path("q.yaml"))
    assert not Path("q.yaml").exists()


def test_a_column_called_labels_hides_no_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(Path(), "csv", [rated(i) | {"labels": "abc"[i % 3]} for i in range(COUNT)])
    _, data = proposed(file)
    assert {"polite", "stars", "labels_2"} <= {question.name for question in data.questions}


def test_questions_are_written_only_where_asked_and_where_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = write(Path(), "csv", [translations(i) for i in range(COUNT)])
    assert "questions" not in run(["init", str(one)])
    with pytest.raises(UserError, match="has no two columns of labels, beside a text"):
        inspect(str(one), questions=Path("q.yaml"))
    assert not Path("q.yaml").exists()
    several = write(Path(), "jsonl", [rated(i) for i in range(COUNT)])
    assert "--questions FILE writes" in run(["init", str(several)])
    with pytest.raises(UserError, match="--out and --questions are both"):
        inspect(str(several), rubric=Path("q.yaml"), questions=Path("q.yaml"))
    inspect(str(several), questions=Path("q.yaml"))
    with pytest.raises(UserError, match="is there already: choose another name with --questions"):
        inspect(str(several), questions=Path("q.yaml"))


REAL = {
    "mlqe-pe/en-de-dev.tar.gz": ("mlqe-pe", 1000),
    "pandalm/testset-v1.json": ("pandalm", 999),
    "llmbar/Natural.json": ("llmbar", 100),
    "wmt-mqm-ted/mqm_ted_zhen.tsv": ("wmt-mqm", 9915),
    "demetr/minor_id26_misspelled.json": ("demetr", 1000),
    "paracrawl-en-pt-human/paracrawl-v3-validation-data.sorted.en-pt.tsv": (
        "paracrawl-human",
        2000,
    ),
}


@pytest.mark.parametrize(("name", "known"), REAL.items(), ids=REAL.keys())
def test_public_formats_are_recognised_by_what_stands_in_them(
    name: str, known: tuple[str, int]
) -> None:
    proposal = inspect(str(real(name)))
    assert proposal.rows == known[1]
    assert list(proposal.flags) == ["--format", known[0]]
    assert proposal.lengths
    assert any(line.startswith(f"format    {known[0]}: ") for line in proposal.lines())
