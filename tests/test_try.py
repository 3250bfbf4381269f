"""`judge try` and scripts/test_model.py: what is asked, what is accepted, what is shown."""

import json
import sys
from io import StringIO
from pathlib import Path

import pytest

from pt_app.core.errors import UserError
from pt_app.core.formatting import visible
from pt_app.core.prompt_templates import Template, asked_fields
from pt_app.core.verdicts import Scale
from pt_app.eval_model.trying import folded, try_examples, try_rows, typed_row
from pt_app.judge import Judge
from tests.conftest import run_offline

ROW = {"source": "the house", "reference": "a casa", "candidate": "o casa"}
PAIRWISE = Scale.from_name("pairwise")


@pytest.fixture(scope="module")
def judge(adapter: Path, base: Path) -> Judge:
    return Judge.load(adapter, base=str(base))


def typed(*answers: str) -> dict[str, object]:
    given = iter(answers)
    return typed_row(list(ROW), lambda _: next(given))


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_the_fields_of_the_template_are_asked_for_in_its_order() -> None:
    template = Template.load("translation")
    single = asked_fields(template, Scale.from_name("0-10"))
    assert single == ["source", "conversation", "context", "reference", "candidate"]
    assert asked_fields(template, PAIRWISE)[-2:] == ["candidate_a", "candidate_b"]
    assert "reference" not in asked_fields(Template.load("response_no_reference"), PAIRWISE)


def test_a_row_is_typed_field_by_field_or_pasted_as_json() -> None:
    assert typed("the house", "", "") == {"source": "the house", "candidate": ""}
    assert typed(json.dumps(ROW)) == ROW
    assert typed("the house", "{", "{}") == {
        "source": "the house",
        "reference": "{",
        "candidate": "{}",
    }
    with pytest.raises(UserError, match="not JSON at line 1"):
        typed('{"source": ')
    said = typed_row(["conversation", "candidate"], lambda _: "Hello")
    assert said["conversation"] == [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize("name", ["pass_fail", "pairwise", "0-10", "0-10:0.5", "0-100", "0-1000"])
def test_a_distribution_has_eleven_bars_at_most_which_sum_to_one(name: str) -> None:
    scale = Scale.from_name(name)
    bars = folded({str(value): 1 / len(scale.values) for value in scale.values}, scale)
    assert len(bars) == min(len(scale.values), len(bars), 11)
    assert sum(bars.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "grid", "titles"),
    [
        ("0-100", "", ["0 to 9", "10 to 19", "90 to 100"]),
        ("1-100", "", ["1 to 10", "11 to 20", "91 to 100"]),
        ("0-100", "0-9", ["0 to 9", "10 to 19", "90 to 100"]),
        ("0-100", "1-5", ["0 to 19", "20 to 39", "80 to 100"]),
        ("0-10", "0-4", ["0 to 1", "2 to 3", "8 to 10"]),
        ("0-1000", "0-100", ["0 to 99", "100 to 199", "900 to 1000"]),  # too many for a screen
    ],
)
def test_the_bars_are_the_bins_that_the_judge_speaks_or_tens(
    name: str, grid: str, titles: list[str]
) -> None:
    scale = Scale.from_name(name)
    scale = scale.with_grid(grid) if grid else scale
    bars = folded({str(value): float(value) for value in scale.values}, scale)
    assert [*list(bars)[:2], list(bars)[-1]] == titles
    low, _, high = titles[-1].partition(" to ")
    assert bars[titles[-1]] == sum(range(int(low), int(high) + 1))


def test_a_terminal_is_asked_until_its_end_and_a_bad_row_is_only_said(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ["the house", "", "", "a casa", "o casa", "{oops", '{"candidate": "x"}']
    monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{line}\n" for line in answers)))
    try_rows(judge)
    out = capsys.readouterr().out
    (expected,) = judge.score([ROW])
    assert f"verdict:      {expected.verdict if expected.verdict is not None else '–'}" in out
    assert f"confidence:   {expected.confidence:.3f}" in out
    assert "abstain:" in out
    assert out.count("confidence:") == 1
    assert "not JSON" in out
    assert "field source" in out
    shown = out.splitlines()
    assert max(map(len, shown[1 : shown.index("")])) <= 80


def test_the_bars_are_the_distribution(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO(f"{json.dumps(ROW)}\n\n{json.dumps(ROW)}\n"))
    try_rows(judge, feedback=True)
    out = capsys.readouterr().out
    (expected,) = judge.score([ROW], feedback=True)
    assert expected.probabilities
    for value, chance in expected.probabilities.items():
        line = f"{value:>2} {chance:.3f} " + "█" * round(40 * chance)
        assert [shown.rstrip() for shown in out.splitlines()].count(line.rstrip()) == 2
    assert out.count(visible((expected.answer or "none").strip())) == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1]", "stdin, line 1: not a JSON object"),
        ("{", "stdin is not JSON at line 1"),
        ('{"candidate": "a"}', "field source"),
        ('{"source": "a", "candidate": "%s"}' % ("casa " * 3000), "do not fit"),
    ],
)
def test_a_piped_row_that_cannot_be_judged_ends_it_in_one_line(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, line: str, says: str
) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO(line))
    with pytest.raises(UserError, match=says):
        try_rows(judge)


def test_test_rows_are_shown_with_their_labels(
    adapter: Path, base: Path, rows: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    try_examples(adapter, rows, str(base))
    out = capsys.readouterr().out
    test = [json.loads(line) for line in (rows / "judge_test.json").read_text().splitlines()]
    assert out.count("label:") == out.count("verdict:") == 3
    shown = [row for row in test if f"candidate:    {row['candidate']}\n" in out]
    assert len(shown) == 3
    for row in shown:
        assert f"label:        {row['label']['verdict']}\n" in out
    (tmp_path / "dataset.json").write_text('{"task": "pass_fail"}')
    for split in ("train", "test"):
        row = ROW | {"source": split, "label": {"verdict": "PASS"}}
        (tmp_path / f"judge_{split}.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match="has the scale pass_fail, the judge 0-10"):
        try_examples(adapter, tmp_path, str(base))


@pytest.mark.slow
def test_both_doors_as_processes(adapter: Path, base: Path, rows: Path) -> None:
    words = [str(adapter), f"--base={base}"]
    done = run_offline(["-m", "pt_app.cli", "try", *words])
    assert (done.returncode, done.stdout.strip()) == (0, "")
    done = run_offline(["scripts/test_model.py", *words, f"--data={rows}"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("confidence:") == 3
    done = run_offline(["scripts/test_model.py", "nowhere", f"--data={rows}"])
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
