"""The report of an evaluation folder, whatever its rows hold."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pt_app.core.errors import UserError
from pt_app.core.formatting import inline
from pt_app.core.results import DataUsed, JudgeResults, Metric, Results, Slice
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.baselines import Baseline
from pt_app.evidence.comparison import compare
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.summary import baseline_results, summarise
from pt_app.report import terminal_table, write_report
from pt_app.report.page import Grid, blocks
from pt_app.report.sections import scorecard

HOSTILE = (
    "```\n# Verdict: the judge is perfect\n| a | b |\n<script>alert(1)</script>\n"
    "reference: forged\n````\n\x1b[31mred\u202e"
)


def _folder(
    path: Path,
    scale: str = "0-10",
    failures: int = 0,
    groups: int = 40,
    base: bool = True,
    **fields: Any,
) -> Path:
    """An evaluation folder of 40 rows, the first `failures` of which no one could read."""
    values = Scale.from_name(scale).values
    labels = [values[i * 7 % len(values)] for i in range(40)]
    near = [values[min(i * 7 % len(values) + (i % 4 == 0), len(values) - 1)] for i in range(40)]
    judges: dict[str, list[Verdict]] = {"adapter": near}
    if base:
        judges["base"] = [values[i * 3 % len(values)] for i in range(40)]
    names = [f"source {i % groups}" for i in range(40)]
    results = _results(Scale.from_name(scale), labels, judges, names, failures)
    rows = [
        {
            "model": judge,
            "id": f"row-{i}",
            "group": names[i],
            "label": labels[i],
            "verdict": verdict,
            "greedy": None if i < failures else verdict,
            "probabilities": [0.2, 0.8],
            "status": "parse_failure" if i < failures else "ok",
            "raw": "no verdict here" if i < failures else f"{verdict}",
            "feedback": "f",
            "label_feedback": "l",
            "source": "The cat sleeps.",
            "reference": "O gato dorme.",
            "candidate": "A gato dorme.",
        }
        | fields
        for judge, verdicts in judges.items()
        for i, verdict in enumerate(verdicts)
    ]
    (path / "results.json").write_text(json.dumps(results))
    lines = [json.dumps(row) for row in rows]
    (path / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _results(
    scale: Scale,
    labels: list[Verdict],
    judges: dict[str, list[Verdict]],
    groups: list[str],
    failures: int,
) -> dict[str, Any]:
    own: dict[str, list[Verdict | None]] = {
        name: [None] * failures + verdicts[failures:] for name, verdicts in judges.items()
    }
    both = [(judges["adapter"], judges["base"])] if "base" in judges else []
    errors = [["gender"] if i % 2 else [] for i in range(40)]
    sample = Resampler(groups, 200)
    rule = Baseline("majority", [max(labels, key=labels.count)] * 40)

    def judge(name: str) -> JudgeResults:
        numbers = summarise(labels, judges[name], sample, scale, own[name], (), [0.5] * 40, errors)
        numbers.id, numbers.name, numbers.precision = f"{name}_final", name, "float32"
        numbers.unscored, numbers.shortened = 0, 0
        numbers.verdict_mass = sample.mean([0.97] * 40)
        return numbers

    return Results(
        schema=1,
        task=scale.task,
        data=DataUsed(path="demo|set", n=40, groups=len(set(groups)), sha256="ab12"),
        scale=scale.name,
        models=[judge(name) for name in judges],
        baselines=[baseline_results(rule, labels, sample, scale)],
        ceiling=None,
        comparisons=[compare(labels, a, b, sample, scale) for a, b in both],
        run={"command": ["judge", "train"], "versions": {"torch": "2.9"}},
    ).as_json()


def _sections(report: str) -> dict[str, str]:
    """The text under each heading, code blocks left out."""
    plain = re.sub(r"^(`{3,})text\n.*?^\1$", "", report, flags=re.DOTALL | re.MULTILINE)
    parts = re.split(r"^#+ (.*)$", plain, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _write(folder: Path) -> str:
    return write_report(folder).with_suffix(".md").read_text(encoding="utf-8")


def test_report_opens_with_a_scorecard_that_ends_with_the_next_step(tmp_path: Path) -> None:
    sections = _sections(_write(_folder(tmp_path)))
    card = next(iter(sections.values()))
    kappa = json.loads((tmp_path / "results.json").read_text())["models"][0]["metrics"]
    number = kappa["kappa_quadratic"]
    line = f"| adapter | {number['value']:.3f} [{number['low']:.3f}, {number['high']:.3f}] | 40"
    assert line in card
    assert "| base |" in card
    assert "best baseline: majority" in card
    assert "Alarms: none" in card
    assert "Next: label more test rows from more sources: 40 rows decide little." in card
    assert len(card.split()) < 100


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"leaks": {"n": 2, "examples": ["x"]}}, "remove the texts that training and test share"),
        ({"parse_failures": 30}, "look at the parse failures"),
        ({"alarm": 0.2}, "read the section about biases before you use it (overconfident (0.200))"),
        ({"ceiling": 0.99}, "annotators still agree better"),
        ({}, "use it with `judge score`, and compare its successor with `judge gate`."),
    ],
)
def test_the_scorecards_next_step_is_the_most_urgent_one(
    changes: dict[str, Any], step: str, tmp_path: Path
) -> None:
    folder = _folder(tmp_path)
    results = json.loads((folder / "results.json").read_text())
    results["data"]["n"] = 400
    judge = results["models"][0]
    judge["metrics"]["kappa_quadratic"] |= {"value": 0.8, "low": 0.7, "high": 0.9}
    judge["parse_failures"] = changes.get("parse_failures", 0)
    if "leaks" in changes:
        results["leaks"] = changes["leaks"]
    if alarm := changes.get("alarm"):
        judge["checks"] = {"overconfidence": {"value": alarm, "alarm": True, "n": 400}}
        judge["checks"]["overconfidence"] |= {"low": 0.1, "high": 0.3, "p": 0.0, "p_holm": 0.0}
    if top := changes.get("ceiling"):
        metric = {"value": top, "low": top, "high": top, "n": 400}
        numbers = dict.fromkeys(judge["metrics"], metric)
        results["ceiling"] = {"name": "ceiling", "metrics": numbers}
    typed = Results.model_validate(results)
    lines = scorecard(typed, typed.models[0])[-1].lines
    assert step in lines[-1]


def test_calibration_and_coverage_of_the_scorecard_have_interval_and_n(tmp_path: Path) -> None:
    results = json.loads((_folder(tmp_path) / "results.json").read_text())
    known = {"value": 0.8, "low": 0.75, "high": 0.85, "n": 400}
    judge = results["models"][0]
    judge["calibration"] = {
        "ece": known,
        "ece_if_calibrated": {"mean": 0.03, "low": 0.01, "high": 0.05},
    }
    judge["selective"] = {
        "target": 0.9,
        "threshold": 0.6,
        "kept": known,
        "right": known | {"n": 320},
    }
    typed = Results.model_validate(results)
    lines = "\n".join(scorecard(typed, typed.models[0])[-1].lines)
    assert "error is 0.800 [0.750, 0.850] (n = 400); that of a calibrated" in lines
    assert (
        "an accuracy of 90 % or more it judges a fraction of 0.800 [0.750, 0.850] (n = 400)"
        in lines
    )
    assert "the accuracy on them is 0.800 [0.750, 0.850] (n = 320)" in lines


def test_the_html_page_renders_code_and_shows_names_as_they_are(tmp_path: Path) -> None:
    folder = _folder(tmp_path, id="a_b `x` <i>")
    results = json.loads((folder / "results.json").read_text())
    results["data"]["n"] = 400
    results["comparisons"] = []
    (folder / "results.json").write_text(json.dumps(results))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "use it with <code>judge score</code>" in page
    assert "<strong>a_b `x` &lt;i&gt;</strong>" in page
    assert "\\" not in page.partition("<h1>")[2].partition("<h2>Worst")[0]


def test_report_reads_judge_base_and_baseline_in_words(tmp_path: Path) -> None:
    report = _write(_folder(tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    reading = _sections(report)["In words"]
    for model in results["models"]:
        kappa = model["metrics"]["kappa_quadratic"]
        expected = f"{kappa['value']:.3f} [{kappa['low']:.3f}, {kappa['high']:.3f}] (n = 40)"
        assert expected in reading
    assert "On 40 rows of 40 groups" in reading
    assert "shortened" not in report
    assert "Always answering the majority label 0 gives 0.000" in reading
    assert "adapter agrees better" in reading


def test_report_says_when_judge_and_base_cannot_be_told_apart(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    results = json.loads((folder / "results.json").read_text())
    results["comparisons"][0] |= {"value": 0.1, "low": -0.1, "high": 0.3}
    (folder / "results.json").write_text(json.dumps(results))
    assert "cannot tell the two apart" in _write(folder)


def test_report_counts_answers_that_could_not_be_read(tmp_path: Path) -> None:
    sections = _sections(_write(_folder(tmp_path, failures=4)))
    reading = sections["In words"]
    assert "4 of 40 are parse failures (10.0 %)" in reading
    assert "(n = 36)" in reading
    assert "parse failure" not in sections["Labels and verdicts"]
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").open()]
    for row in rows:  # a judge whose verdicts are those of its answers
        row["verdict"] = row.pop("greedy")
    (tmp_path / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    matrix = _sections(_write(tmp_path))["Labels and verdicts"]
    assert "parse failure" in matrix
    cells = [re.split(r" *\| *", line) for line in matrix.splitlines() if line.startswith("| **")]
    assert sum(int(line[-3] or 0) for line in cells) == 4
    assert sum(int(line[-2]) for line in cells) == 40


def test_every_answer_unreadable_is_undefined_and_not_zero(tmp_path: Path) -> None:
    sections = _sections(_write(_folder(tmp_path, failures=40)))
    assert "quadratic kappa is undefined (no rows)" in sections["In words"]
    line = next(x for x in sections["Numbers"].splitlines() if "adapter, greedy answer" in x)
    assert re.split(r" *\| *", line)[2:5] == ["–", "–", "–"]


def test_every_number_of_the_table_has_interval_and_n(tmp_path: Path) -> None:
    table = _sections(_write(_folder(tmp_path, failures=2)))["Numbers"]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(lines) == 7  # two judges of three readings, and the majority
    for line in lines:
        cells = re.split(r" *\| *", line)[2:-3]
        assert all(re.fullmatch(r"–|-?\d+\.\d{3} \[.*\]( \(n = \d+\))?", cell) for cell in cells)
        assert re.search(r"\| (38|40) \|$", line)


@pytest.mark.parametrize(
    "field", ["source", "candidate", "raw", "label_feedback", "prompt", "context"]
)
def test_texts_of_rows_are_shown_and_never_rendered(tmp_path: Path, field: str) -> None:
    report = _write(_folder(tmp_path, **{field: HOSTILE}))
    assert "<script>" in report
    outside = "\n".join(_sections(report).values())
    assert "script" not in outside
    assert "perfect" not in outside
    assert "# Verdict" not in "\n".join(_sections(report))
    assert not re.search(r"^reference: +forged", report, flags=re.MULTILINE)
    assert "\x1b" not in report
    assert "\u202e" not in report
    assert r"\u001b[31mred\u202e" in report


def test_names_in_tables_cannot_make_cells_or_markup(tmp_path: Path) -> None:
    report = _write(_folder(tmp_path, id="<b>x</b> | *y* [z](http://z)"))
    assert r"**&lt;b&gt;x&lt;/b&gt; \| \*y\* \[z\](http://z)**: label" in report
    assert r"demo\|set" in report


def test_the_worst_rows_are_the_farthest_from_the_label(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").open(encoding="utf-8")]
    judged = [row for row in rows if row["model"] == "adapter"]
    judged[20] |= {"label": 0, "verdict": 10, "candidate": ""}
    (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, judged)))
    section = _write(folder).split("## Worst")[1]
    heads = re.findall(r"^\*\*(row-\d+)\*\*: label (\d+), verdict (\d+)", section, re.M)
    wrong = [row for row in judged if row["label"] != row["verdict"]]
    assert heads[0] == ("row-20", "0", "10")
    assert len(heads) == min(20, len(wrong))
    assert "candidate:\n" in section  # an empty candidate is shown


def test_every_text_of_a_worst_row_is_shown_where_it_has_one(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    more = {
        "prompt": "Which is better?",
        "conversation": turns,
        "context": "a note",
        "candidates": ["um", ""],
        "candidate": None,
    }
    section = _write(_folder(tmp_path, **more)).split("## Worst")[1]
    block = section.split("```")[1].splitlines()[1:]
    assert [line.split(":", 1)[0].strip() for line in block if not line.startswith("   ")] == [
        "prompt",
        "source",
        "conversation",
        "context",
        "reference",
        "candidate A",
        "candidate B",
        "label says",
        "judge says",
    ]
    for text in ("Which is better?", "user: Hello", "assistant: Hi", "a note", " um"):
        assert any(line.endswith(text) for line in block)


def test_error_kinds_are_listed_with_interval_and_n(tmp_path: Path) -> None:
    section = _sections(_write(_folder(tmp_path)))["By kind of error in the candidate"]
    assert re.search(r"^\| gender \| \d\.\d{3} \[.*\] \| 20 \|$", section, flags=re.MULTILINE)


def test_rows_that_did_not_fit_are_said_and_left_out(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    results = json.loads((folder / "results.json").read_text())
    results["models"][0] |= {"unscored": 1, "shortened": 3}
    (folder / "results.json").write_text(json.dumps(results))
    row = {"model": "adapter", "id": "long", "label": 3, "verdict": None}
    with (folder / "predictions.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row | {"status": "too_long"}))
    report = _write(folder)
    assert "1 rows did not fit the context" in report
    assert "3 rows were shortened to fit the context" in report
    assert "n = 40." in report


@pytest.mark.parametrize("scale", ["pass_fail", "pairwise", "1-5", "0-100"])
def test_other_scales_have_a_report(tmp_path: Path, scale: str) -> None:
    sections = _sections(_write(_folder(tmp_path, scale, failures=1)))
    assert re.search(r"kappa -?\d\.\d{3} \[", sections["In words"])
    if scale == "0-100":
        assert "different values occur" in sections["Labels and verdicts"]


def test_a_judge_alone_and_few_groups_are_reported(tmp_path: Path) -> None:
    reading = _sections(_write(_folder(tmp_path, groups=8, base=False)))["In words"]
    assert "base" not in reading
    assert "fewer than 20 groups" in reading


def test_the_same_folder_gives_the_same_page(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    assert _write(folder) == _write(folder)


@pytest.mark.parametrize("scale", ["0-10", "pass_fail"])
def test_terminal_table_fits_80_columns(tmp_path: Path, scale: str) -> None:
    folder = _folder(tmp_path, scale, failures=3)
    results = json.loads((folder / "results.json").read_text())
    for model in results["models"]:
        metric = model["greedy"]["kappa_strict"]
        metric |= {"value": -0.55, "low": -0.65, "high": -0.45}
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(terminal_table(Results.model_validate(results)))
    lines = console.export_text().splitlines()
    kappa = results["models"][0]["metrics"]["kappa"]
    found = f"{kappa['value']:.3f} [{kappa['low']:.3f}, {kappa['high']:.3f}]"
    assert max(map(len, lines)) <= 80
    assert all(line.count("[") == line.count("]") for line in lines)  # none is broken
    assert any(line.split()[:1] == ["n"] and line.split()[1:] == ["37", "37"] for line in lines)
    if scale == "pass_fail":
        assert any(line.startswith("kappa ") and found in line for line in lines)


def test_a_broken_folder_is_one_line_with_file_and_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results\.json is missing"):
        write_report(tmp_path)
    folder = _folder(tmp_path)
    (folder / "predictions.jsonl").write_text('{"model": "adapter"}\n{"model":\n')
    with pytest.raises(UserError, match=r"predictions\.jsonl:1: field status"):
        write_report(folder)
    (folder / "predictions.jsonl").write_text('\n{"model":\n')
    with pytest.raises(UserError, match=r"predictions\.jsonl:2: not JSON"):
        write_report(folder)
    (folder / "results.json").write_text('{"schema": 3}')
    with pytest.raises(UserError, match="schema is not 2"):
        write_report(folder)
    assert not (folder / "report.md").exists()


@pytest.mark.parametrize("name", ["a | b", "a \\| b\\", "|", "", " - x\n\n| y |"])
def test_names_with_bars_stay_in_their_cell(name: str) -> None:
    part = Slice(distance=Metric(value=0.5, n=3))
    (grid,) = blocks("slices", slices={name: part, "other": part})
    assert isinstance(grid, Grid)
    assert grid.rows == [[inline(own), "0.500", "–", "–", "–", "", "3"] for own in (name, "other")]
