"""Public formats: every real file whole, its labels to the letter, every row accounted for."""

import json
import re
import shlex
import tarfile
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pt_app.commands.data import data
from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from pt_app.judge_data.formats import FORMATS, Weights, get
from pt_app.judge_data.importing import import_labels
from pt_app.judge_data.options import ImportOptions, SplitPlan
from tests.conftest import slow_case
from tests.real_data import real

DOCS = Path(__file__).parents[1] / "docs" / "DATA.md"


def imported(out: Path, files: list[Path], *flags: str) -> tuple[list[Any], str]:
    """Import files by the command; give the rows of the folder and what was printed."""
    done = CliRunner().invoke(data, ["import", *map(str, files), "--out", str(out), *flags])
    assert done.exit_code == 0, done.exception
    found = read_dataset(out)
    return [*found.train, *found.val, *found.test], done.output


def counts(output: str) -> tuple[int, int, int]:
    said = r"read ([\d,]+) rows: kept ([\d,]+)(?: as [\d,]+ examples)?, dropped ([\d,]+)"
    match = re.search(said, output)
    assert match, output
    read, kept, dropped = (int(text.replace(",", "")) for text in match.groups())
    assert read == kept + dropped
    return read, kept, dropped


def lines_of(path: Path) -> list[list[str]]:
    """Read a TSV file without quoting, by hand."""
    text = path.read_bytes().decode("utf-8")
    return [line.rstrip("\r").split("\t") for line in text.split("\n") if line]


PARTS = [f"{pair}-{part}" for pair in ("en-de", "et-en", "ro-en") for part in ("dev", "test")]


@pytest.mark.parametrize("part", [PARTS[0], *map(slow_case, PARTS[1:])])
def test_mlqe_pe_keeps_six_labels_and_their_mean(part: str, tmp_path: Path) -> None:
    path = real(f"mlqe-pe/{part}.tar.gz")
    rows, output = imported(tmp_path / "d", [path], "--format", "mlqe-pe")
    assert counts(output) == (1000, 1000, 0)
    with tarfile.open(path) as archive:
        name = next(n for n in archive.getnames() if n.endswith("short.tsv"))
        member = archive.extractfile(name)
        assert member
        text = member.read().decode("utf-8")
    by_id = {row.id: row for row in rows}
    for line in text.splitlines()[1:]:
        index, source, candidate, scores, mean = line.split("\t")[:5]
        row = by_id[f"{part}-{index}"]
        assert (row.source, row.candidate) == (source, candidate)
        assert [one.verdict for one in row.annotators] == [float(x) for x in json.loads(scores)]
        assert abs(row.label.verdict - float(mean)) <= 0.5 + 1e-9


def test_pandalm_keeps_three_labels_and_drops_what_is_no_text(tmp_path: Path) -> None:
    path = real("pandalm/testset-v1.json")
    rows, output = imported(tmp_path / "d", [path], "--format", "pandalm")
    assert counts(output) == (999, 993, 6)
    assert "6 dropped: a response is not text" in output
    names = {0: "tie", 1: "A", 2: "B"}
    by_id = {row.id: row for row in rows}
    for value in json.loads(path.read_text("utf-8")):
        row = by_id.get(f"pandalm-{value['idx']}")
        if row is None:
            continue
        labels = [names[value[f"annotator{i}"]] for i in (1, 2, 3)]
        assert [one.verdict for one in row.annotators] == labels
        (commonest, most), *_ = Counter(labels).most_common()
        assert row.label.verdict == (commonest if most > 1 else "tie")
        assert row.candidates == (value["response1"], value["response2"])
        assert row.source.startswith(value["instruction"])
    assert len({row.source for row in rows}) == 170


def test_llmbar_is_read_from_all_its_files(tmp_path: Path) -> None:
    files = sorted(real("llmbar").glob("*.json"))
    rows, output = imported(tmp_path / "d", files, "--format", "llmbar")
    assert counts(output) == (885, 885, 0)
    by_id = {row.id: row for row in rows}
    for path in files:
        for number, value in enumerate(json.loads(path.read_text("utf-8")), start=1):
            row = by_id[f"llmbar-{path.stem}-{number}"]
            assert row.label.verdict == {1: "A", 2: "B"}[value["label"]]
            assert row.candidates == (value["output_1"], value["output_2"])


def test_llmbar_rows_with_a_column_of_that_name_keep_ids_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "Natural.json"
    texts = [{"input": f"do {i} {i * i}", "output_1": f"a {i}", "output_2": "b"} for i in range(9)]
    values = [row | {"label": 1, "row": 7, "stem": "x", "id": "y"} for row in texts]
    path.write_text(json.dumps(values), encoding="utf-8")
    rows, _ = imported(tmp_path / "d", [path], "--format", "llmbar", "--near", "1")
    assert sorted(row.id for row in rows) == [f"llmbar-Natural-{i}" for i in range(1, 10)]
    assert {row.meta["part"] for row in rows} == {"Natural"}


@pytest.mark.parametrize("drop_bad", [False, True])
@pytest.mark.parametrize(
    ("name", "label", "problem"),
    [
        ("llmbar", "A", "row 3, field label: 'A' is none of 1, 2: correct it"),
        ("llmbar", "", "row 3, field label: '' is none of 1, 2: correct it"),
        ("mlqe-pe", "[50, null]", "row 3, field scores: it is not a list of numbers: correct it"),
        ("mlqe-pe", "50", "row 3, field scores: it is not a list of numbers: correct it"),
    ],
)
def test_a_label_that_a_format_does_not_have_is_refused(
    name: str, label: str, problem: str, drop_bad: bool, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    label_column = {"llmbar": "label", "mlqe-pe": "scores"}[name]
    known = {"llmbar": 1, "mlqe-pe": "[50, 60]"}[name]
    texts = dict.fromkeys(get(name).columns, "text")
    values = [texts | {label_column: known if i != 2 else label} for i in range(5)]
    path.write_text(json.dumps(values), encoding="utf-8")
    options = ImportOptions(format=name, drop_bad=drop_bad)
    with pytest.raises(UserError, match=re.escape(problem) + "$"):
        import_labels([str(path)], tmp_path / "d", options, SplitPlan())


@pytest.mark.parametrize("column", ["input", "output_1", "output_2"])
def test_a_text_of_a_format_that_is_a_number_is_refused_or_dropped(
    column: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    texts = [{"input": f"do {i} {i * i}", "output_1": f"a {i}", "output_2": "b"} for i in range(9)]
    values: list[dict[str, Any]] = [row | {"label": 1} for row in texts]
    values[2][column] = 1.5
    path.write_text(json.dumps(values), encoding="utf-8")
    options = ImportOptions(format="llmbar")
    with pytest.raises(UserError, match=r"row 3, field .*: input should be a valid string"):
        import_labels([str(path)], tmp_path / "d", options, SplitPlan(near=1))
    _, output = imported(tmp_path / "d", [path], "--format", "llmbar", "--near", "1", "--drop_bad")
    assert counts(output) == (9, 8, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demetr", "pandalm"])
def test_a_row_that_lacks_a_column_of_a_format_is_refused(name: str, tmp_path: Path) -> None:
    columns = get(name).columns
    path = tmp_path / "x.json"
    path.write_text(json.dumps([dict.fromkeys(columns), dict.fromkeys(columns[:-1])]))
    problem = f"row 2, field {columns[-1]}: the row has none: correct it, or leave such rows out"
    with pytest.raises(UserError, match=problem):
        import_labels([str(path)], tmp_path / "d", ImportOptions(format=name), SplitPlan())


def test_demetr_becomes_pairs_of_a_translation_and_its_perturbation(tmp_path: Path) -> None:
    files = sorted(real("demetr").glob("*.json"))
    rows, output = imported(tmp_path / "d", files, "--format", "demetr")
    read, kept, _ = counts(output)
    values = [value for path in files for value in json.loads(path.read_text("utf-8"))]
    usable = [
        value
        for value in values
        if value["pert_check"]
        and value["severity"] != "base"
        and value["pert_sent"] != value["mt_sent"]
    ]
    assert (read, kept) == (8000, len(usable))
    by_id = {row.id: row for row in rows}
    for value in usable:
        row = by_id[f"demetr-{value['pert_name']}-{value['id']}"]
        better = row.candidates[0 if row.label.verdict == "A" else 1]
        assert better == value["mt_sent"]
        assert set(row.candidates) == {value["mt_sent"], value["pert_sent"]}
        assert row.reference == value["eng_sent"]
    first = Counter(row.label.verdict for row in rows)
    assert abs(first["A"] / len(rows) - 0.5) < 0.03


def test_paracrawls_letters_become_pass_and_fail(tmp_path: Path) -> None:
    path = real("paracrawl-en-pt-human/paracrawl-v3-validation-data.sorted.en-pt.tsv")
    rows, output = imported(tmp_path / "d", [path], "--format", "paracrawl-human")
    assert counts(output) == (2000, 2000, 0)
    by_id = {row.id: row for row in rows}
    for number, line in enumerate(lines_of(path), start=1):
        row = by_id[f"paracrawl-{number}"]
        assert (row.source, row.candidate, row.meta["label"]) == (line[2], line[3], line[7])
        assert row.label.verdict == ("PASS" if line[7] in ("V", "F") else "FAIL")


def test_paracrawls_letters_name_their_issue_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    letters = ("E", "e", "V", "f")
    start = "http://a\thttp://b\t"
    rows = [
        f"{start}source {i} {i * i}\ttarget {i}\t1\t1\t1\t{letters[i % 4]}\t" for i in range(12)
    ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    flags = ("--format", "paracrawl-human", "--near", "1")
    found, _ = imported(tmp_path / "d", [path], *flags)
    of_letter = {row.meta["label"]: (row.label.verdict, row.label.issues) for row in found}
    error, free = ("FAIL", ["translation error"]), ("PASS", ["free translation"])
    assert {name: (verdict, [*issues]) for name, (verdict, issues) in of_letter.items()} == {
        "E": error,
        "e": error,
        "V": ("PASS", []),
        "f": free,
    }


@pytest.mark.parametrize(
    ("part", "translations"), [("mqm_ted_ende", 7406), slow_case("mqm_ted_zhen", 7935)]
)
def test_wmt_mqm_errors_become_scores_and_issues(
    part: str, translations: int, tmp_path: Path
) -> None:
    path = real(f"wmt-mqm-ted/{part}.tsv")
    rows, output = imported(tmp_path / "d", [path], "--format", "wmt-mqm")
    head, *lines = lines_of(path)
    assert counts(output) == (len(lines), len(lines), 0)
    assert len(rows) == translations
    penalties: dict[str, Decimal] = {}
    issues: Counter[str] = Counter()
    texts: dict[str, str] = {}
    for line in lines:
        value = dict(zip(head, line, strict=True))
        key = f"{part}-{value['system']}-{value['doc']}-{value['seg_id']}"
        weight = Decimal({"Major": "5", "Minor": "1", "No-error": "0"}[value["severity"]])
        if (value["category"], value["severity"]) == ("Fluency/Punctuation", "Minor"):
            weight = Decimal("0.1")
        penalties[key] = penalties.get(key, Decimal(0)) + weight
        issues[key] += value["severity"] != "No-error"
        texts[key] = value["target"].replace("<v>", "").replace("</v>", "")
    for row in rows:
        assert Decimal(str(row.label.verdict)) == max(Decimal(0), 25 - penalties[row.id])
        assert len(row.label.issues) == issues[row.id]
        assert row.candidate == texts[row.id]
        assert {"system", "document", "segment"} <= set(row.meta)
        assert row.annotators[0].rater.startswith("rater")


def test_mqm_weights_are_by_name_or_from_a_file_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "strict.yaml"
    own.write_text(
        'scale: "0-10"\nseverities: {Major: 10, Minor: 2, No-error: 0}\nexceptions:\n'
        '  - {category: Style, severity: "*", weight: 0}\n',
        encoding="utf-8",
    )
    head = "system\tdoc\tdoc_id\tseg_id\trater\tsource\ttarget\tcategory\tseverity"
    lines = [head]
    for i in range(12):
        start = f"s\td\t1\t{i}\tr1\tThe source {i}.\t"
        lines += [f"{start}Ein <v>Fehler</v> {i}.\tAccuracy/Omission\tMinor"]
        lines += [f"{start}Ein Fehler <v>{i}</v>.\tStyle/Awkward\tMajor"]
    path = tmp_path / "mqm.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for weights, verdict in ((str(own), 8), ("google", 19), ("core", 19)):
        out = tmp_path / Path(weights).stem
        rows, _ = imported(out, [path], "--format", "wmt-mqm", "--mqm_weights", weights)
        assert {row.label.verdict for row in rows} == {verdict}
        assert rows[0].label.issues[0] == 'Accuracy/Omission minor "Fehler"'
    with pytest.raises(UserError, match="none of core, google and no YAML file"):
        Weights.load("nobodys")
    own.write_text("scale: 0-10\n", encoding="utf-8")
    with pytest.raises(UserError, match="field severities: field required: write scale"):
        Weights.load(str(own))


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(UserError, match="--format pandaml is unknown, the nearest is pandalm"):
        get("pandaml")
    assert "chat" in FORMATS


# --- other well-known sets: the lines of docs/DATA.md on samples of their layout ---

_TURNS = [
    {"role": "user", "content": "Write a poem {i}"},
    {"role": "assistant", "content": "Roses {i} {x}"},
    {"role": "user", "content": "Shorter"},
    {"role": "assistant", "content": "R"},
]


def mt_bench(i: int) -> dict[str, Any]:
    def turns(x: str) -> list[dict[str, str]]:
        return [
            t | {"content": t["content"].replace("{i}", str(i)).replace("{x}", x)} for t in _TURNS
        ]

    return {
        "question_id": i,
        "model_a": "m1",
        "model_b": "m2",
        "winner": ["model_a", "model_b", "tie"][i % 3],
        "judge": "author_1",
        "conversation_a": turns("a"),
        "conversation_b": turns("b"),
        "turn": 1 + (i % 4 == 3),
    }


def feedback_collection(i: int) -> dict[str, Any]:
    described = {f"orig_score{n}_description": f"level {n}" for n in range(1, 6)}
    return described | {
        "orig_instruction": f"Explain {i}",
        "orig_response": f"Because {i}",
        "orig_reference_answer": f"Since {i}",
        "orig_criteria": "Is it clear?",
        "orig_score": str(1 + i % 5),
        "orig_feedback": "Fine.",
        "instruction": "...",
        "output": "...",
    }


def ultrafeedback(i: int) -> dict[str, Any]:
    completions = [
        {
            "model": f"m{k}",
            "response": f"answer {i} {k}",
            "overall_score": 2.5 * k,
            "critique": "ok",
        }
        for k in range(4)
    ]
    return {"source": "sharegpt", "instruction": f"Do {i}", "completions": completions}


def helpsteer(i: int) -> dict[str, Any]:
    return {"prompt": f"Ask {i}", "response": f"Say {i}", "helpfulness": i % 5, "verbosity": 2}


def judgelm(i: int) -> dict[str, Any]:
    return {
        "question_id": i,
        "question_body": f"Q {i}",
        "answer1_body": f"A1 {i}",
        "answer2_body": f"A2 {i}",
        "score": [1.0 + i % 10, 5.0],
        "text": "6 5\nBecause.",
    }


SAMPLES = {
    "mt_bench_human.jsonl": (mt_bench, 30),
    "feedback_collection.jsonl": (feedback_collection, 40),
    "ultrafeedback.jsonl": (ultrafeedback, 80),
    "helpsteer.jsonl": (helpsteer, 40),
    "judgelm.jsonl": (judgelm, 80),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_lines_of_the_docs_read_other_well_known_sets(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, expected = SAMPLES[name]
    text = DOCS.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [
        shlex.split(line)[2:]
        for line in text.splitlines()
        if line.strip().startswith("judge data import") and name in line
    ]
    assert commands, f"docs/DATA.md has no line for {name}"
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps(make(i)) for i in range(40)]
    Path(name).write_text("\n".join(lines), encoding="utf-8")
    for command in commands:
        done = CliRunner().invoke(data, command)
        assert done.exit_code == 0, done.exception
    found = read_dataset(Path(commands[0][commands[0].index("--out") + 1]))
    assert len(found.train + found.val + found.test) == expected
    row = found.train[0]
    assert row.label is not None
    assert row.source
    assert row.candidate or row.candidates
    if make is feedback_collection:
        assert row.rubric is not None
        assert row.rubric.startswith("Is it clear?")
        assert row.rubric.endswith("level 5")
