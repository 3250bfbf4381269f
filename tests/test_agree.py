"""`judge agree`: the evidence about anybody's verdicts, through the command."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from sklearn import metrics as sk
from typer.testing import CliRunner, Result

from pt_app.cli import app
from pt_app.core.errors import UserError

Row = dict[str, Any]


def run_judge(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def rows_of(count: int = 120, seed: int = 0) -> list[Row]:
    """Scores 1 to 5 of a judge that is right in six of ten rows, three rows a source."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        label = draw.randint(1, 5)
        verdict = min(5, max(1, label + draw.choice([0, 0, 0, 1, -1])))
        chances = [0.08] * 5
        chances[verdict - 1] = 0.68
        rows.append(
            {
                "id": f"r{i}",
                "source": f"s{i // 3}",
                "human": label,
                "said": verdict,
                "chances": json.dumps(chances),
                "people": json.dumps([label, max(1, label - draw.choice([0, 1]))]),
                "text": " ".join(draw.choices(["a", "fine", "day", "it", "is"], k=label + 2)),
                "system": f"mt{i % 3}",
                "domain": "legal" if i % 4 == 0 else "web",
            }
        )
    return rows


def written(path: Path, rows: list[Row]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        parquet.write_table(arrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def measured(file: Path, *flags: str) -> dict[str, Any]:
    """Run the command; give results.json."""
    out = file.parent / "out"
    done = run_judge("agree", str(file), "--label=human", "--verdict=said", f"--out={out}", *flags)
    assert done.exit_code == 0, done.exception
    assert "report:" in done.output
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results


def refused(file: Path, *flags: str) -> str:
    """Run the command on what is wrong; give its one line."""
    words = ["agree", str(file), "--label=human", "--verdict=said", *flags]
    done = run_judge(*words, f"--out={file.parent / 'out'}")
    assert isinstance(done.exception, UserError), done.output
    assert "\n" not in str(done.exception)
    assert not (file.parent / "out").exists()
    return str(done.exception)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_any_file_of_verdicts_gets_the_whole_evidence(tmp_path: Path, ending: str) -> None:
    rows = rows_of()
    results = measured(
        written(tmp_path / f"v.{ending}", rows),
        "--group=source",
        "--probabilities=chances",
        "--annotators=people",
        "--candidate=text",
        "--system=system",
        "--slice=domain",
    )
    (judge,) = results["models"]
    labels, verdicts = [row["human"] for row in rows], [row["said"] for row in rows]
    kappa = judge["metrics"]["kappa_quadratic"]
    assert kappa["value"] == pytest.approx(
        sk.cohen_kappa_score(labels, verdicts, weights="quadratic")
    )
    assert kappa["low"] < kappa["value"] < kappa["high"]
    assert (results["scale"], results["data"]["n"], results["data"]["groups"]) == ("1-5", 120, 40)
    right = sum(a == b for a, b in zip(labels, verdicts, strict=True)) / 120
    assert judge["calibration"]["overconfidence"]["value"] == pytest.approx(0.68 - right)
    assert judge["selective"]["target"] == 0.9
    assert set(judge["slices"]["domain"]) == {"legal", "web"}
    assert judge["within_source_pairs"]["pairs"] == 120
    assert set(judge["systems"]) == {"within_source", "within_system", "between_systems"}
    assert results["ceiling"]["n"] == 240
    names = [one["name"] for one in results["baselines"]]
    assert names == ["majority", "mean", "length", "TF-IDF"]
    assert "no reference" in results["missing_baselines"]["chrF"]
    report = (tmp_path / "out" / "report.md").read_text()
    for heading in ("Confidence", "What moves the judge", "By domain", "Systems"):
        assert f"## {heading}" in report
    assert "One annotator agrees with the others" in report


def test_an_empty_verdict_is_a_parse_failure_and_counts_as_wrong_beside(tmp_path: Path) -> None:
    rows = rows_of()
    for row in rows[:6]:
        row["said"] = ""
    (judge,) = measured(written(tmp_path / "v.csv", rows), "--group=source")["models"]
    assert judge["parse_failures"] == 6
    assert judge["metrics"]["exact"]["n"] == 114
    assert judge["metrics"]["exact_strict"]["n"] == 120
    assert judge["metrics"]["exact_strict"]["value"] < judge["metrics"]["exact"]["value"]
    assert "greedy" not in judge


def test_several_judges_are_compared_on_the_same_rows_whatever_their_order(tmp_path: Path) -> None:
    rows = [row | {"who": "good"} for row in rows_of()]
    bad = [row | {"who": "bad", "said": 1 + i % 5} for i, row in enumerate(rows)]
    file = written(tmp_path / "v.jsonl", [*rows, *reversed(bad)])
    results = measured(file, "--group=source", "--judge=who", "--id=id")
    assert [model["name"] for model in results["models"]] == ["good", "bad"]
    first = results["comparisons"][0]
    assert (first["a"], first["b"]) == ("good", "bad")
    assert first["low"] > 0
    assert first["p_holm"] < 0.01


def test_pairs_in_both_orders_tell_a_liking_for_a_place(tmp_path: Path) -> None:
    draw = random.Random(1)
    rows = []
    for i in range(150):
        label = draw.choice("AB")
        said = "A" if draw.random() < 0.4 else label
        swapped = "A" if draw.random() < 0.4 else {"A": "B", "B": "A"}[label]
        rows.append({"human": label, "said": said, "other": swapped, "a": "x" * i, "b": "y" * 75})
    flags = ["--swapped=other", "--candidate=a,b"]
    results = measured(written(tmp_path / "v.csv", rows), *flags)
    (judge,) = results["models"]
    assert results["task"] == "pairwise"
    assert judge["checks"]["order"]["alarm"]
    assert judge["checks"]["order"]["value"] == pytest.approx(0.2, abs=0.08)
    assert judge["metrics"]["order_consistency"]["value"] < 0.8
    flips = {(one["first"], one["swapped"]): one["n"] for one in judge["orders"]["flips"]}
    assert sum(flips.values()) == 150
    other = {"A": "B", "B": "A"}
    kept = sum(row["said"] == other[row["other"]] for row in rows)
    assert sum(n for (first, second), n in flips.items() if first == second) == kept
    by_place = judge["orders"]["right_if_better_is"]
    assert by_place["A"]["value"] > by_place["B"]["value"] + 0.2
    assert "## Both orders" in (tmp_path / "out" / "report.md").read_text()
    assert "length" in [one["name"] for one in results["baselines"]]


def test_rows_without_a_label_are_the_population_whose_pass_rate_is_corrected(
    tmp_path: Path,
) -> None:
    draw = random.Random(2)
    rows = []
    for i in range(900):
        truth = "PASS" if draw.random() < 0.7 else "FAIL"
        said = truth if draw.random() < 0.75 else {"PASS": "FAIL", "FAIL": "PASS"}[truth]
        fail = 0.8 if said == "FAIL" else 0.2
        human = truth if i < 300 else ""
        rows.append({"human": human, "said": said, "p": f"[{1 - fail}, {fail}]"})
    results = measured(written(tmp_path / "v.csv", rows), "--probabilities=p", "--missed_fail=5")
    (judge,) = results["models"]
    assert results["data"]["n"] == 300
    assert judge["population"]["n"] == 600
    assert judge["population"]["low"] < 0.7 < judge["population"]["high"]
    assert abs(judge["population"]["value"] - 0.7) < abs(judge["population"]["raw"] - 0.7)
    assert judge["metrics"]["recall_fail"]["value"] == pytest.approx(0.75, abs=0.08)
    assert judge["operating"]["missed_fail_costs"] == 5
    report = (tmp_path / "out" / "report.md").read_text()
    assert "Pass rate of the 600 rows without a label" in report


def scored(path: Path, seed: int = 0, systems: bool = False) -> Path:
    """A metric that is lower for better translations, from 25 to below 0, and labels of 0 to 10."""
    draw = random.Random(seed)
    rows = []
    for i in range(200):
        label = draw.randint(0, 10)
        score = 25 - 2.6 * label + draw.gauss(0, 2)
        system = {"system": f"mt{i % 4}"} if systems else {}
        rows.append({"human": label, "said": f"{score:.3f}", "source": f"s{i // 4}"} | system)
    return written(path, rows)


def test_a_metrics_scores_are_measured_by_rank_as_they_are(tmp_path: Path) -> None:
    file = scored(tmp_path / "v.csv", systems=True)
    results = measured(file, "--group=source", "--lower_is_better", "--system=system")
    (metric,) = results["models"]
    rows = list(csv.DictReader(file.open()))
    labels, scores = ([float(row[name]) for row in rows] for name in ("human", "said"))
    expected = -stats.kendalltau(labels, scores)[0]
    assert metric["metrics"]["kendall"]["value"] == pytest.approx(expected)
    assert metric["metrics"]["spearman"]["low"] > 0.8
    assert set(metric["metrics"]) == {"pearson", "spearman", "kendall"}  # no kappa of no verdicts
    assert metric["within_source_pairs"]["pairs"] == 300
    report = (tmp_path / "out" / "report.md").read_text()
    assert "agrees with the labels at Spearman" in report
    assert "## Systems" in report


def test_with_validation_rows_a_metrics_scores_become_verdicts(tmp_path: Path) -> None:
    validation = scored(tmp_path / "val.csv", seed=1)
    file = scored(tmp_path / "v.csv")
    flags = ["--group=source", "--lower_is_better", f"--validation={validation}"]
    results = measured(file, *flags)
    (metric,) = results["models"]
    assert results["scale"] == "0-10"
    assert metric["metrics"]["kappa_quadratic"]["value"] > 0.85
    assert abs(metric["metrics"]["bias"]["value"]) < 0.3
    alone = stats.spearmanr(
        *[[float(r[n]) for r in csv.DictReader(file.open())] for n in ("human", "said")]
    )
    assert metric["metrics"]["spearman"]["value"] == pytest.approx(-alone[0])


def test_a_member_of_an_archive_is_measured(tmp_path: Path) -> None:
    import zipfile

    file = written(tmp_path / "v.csv", rows_of())
    with zipfile.ZipFile(tmp_path / "v.zip", "w") as archive:
        archive.write(file, "v.csv")
    words = ["--label=human", "--verdict=said", "--group=source", f"--out={tmp_path / 'out'}"]
    done = run_judge("agree", f"{tmp_path / 'v.zip'}::v.csv", *words)
    assert done.exit_code == 0, done.exception
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["data"]["n"] == 120
    assert len(results["data"]["sha256"]) == 64


def test_a_score_that_is_no_number_is_refused(tmp_path: Path) -> None:
    assert "is not a number" in refused(
        written(tmp_path / "v.csv", changed(said="high")), "--metric"
    )
    few = written(tmp_path / "few.csv", rows_of(3))
    assert "are of one group" in refused(few, "--metric", "--group=source")


def changed(**cells: Any) -> list[Row]:
    rows = rows_of()
    rows[7] |= cells
    return rows


@pytest.mark.parametrize(
    ("rows", "flags", "words"),
    [
        (changed(said=6), ["--scale=1-5"], "line 9, field said: '6' is off the scale 1-5"),
        (
            changed(said="GRADE: C"),
            ["--scale=1-5"],
            "line 9, field said: 'GRADE: C' is not a number",
        ),
        (changed(human=2.5), [], "no scale is known"),
        (
            changed(chances="[0.5, 0.6, 0, 0, 0]"),
            ["--probabilities=chances"],
            "they sum to 1.1, not 1",
        ),
        (changed(chances="often"), ["--probabilities=chances"], "is not a list of numbers"),
        (
            rows_of(),
            ["--group=sauce"],
            "no column sauce (--group sauce): its columns are source, ",
        ),
        (rows_of(), ["--group=domain", "--id=domain"], "judged web twice"),
        (
            rows_of(2),
            ["--group=source"],
            "are of one group, so nothing can be said about others: name the column that ",
        ),
        ([row | {"human": ""} for row in rows_of()], ["--scale=1-5"], "no row has a label"),
        (
            [*(r | {"w": "a"} for r in rows_of()), *(r | {"w": "b"} for r in rows_of()[1:])],
            ["--judge=w", "--id=id"],
            'judge "a" judged r0, "b" did not',
        ),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(
    tmp_path: Path, rows: list[Row], flags: list[str], words: str
) -> None:
    assert words in refused(written(tmp_path / "v.csv", rows), *flags)


def test_labels_that_a_sure_judge_disputes_are_listed(tmp_path: Path) -> None:
    rows = rows_of()
    for i, row in enumerate(rows):
        row["said"] = row["human"] if i != 5 else 1 + row["human"] % 5
        sure = [0.002] * 5
        sure[row["said"] - 1] = 0.992
        row["chances"] = json.dumps(sure if i < 60 else [0.2] * 5)
    measured(written(tmp_path / "v.csv", rows), "--id=id", "--probabilities=chances")
    report = (tmp_path / "out" / "report.md").read_text()
    section = report.split("## Labels that the judge disputes")[1]
    assert "1 rows in which" in section
    assert "- r5: label" in section


def test_labels_of_a_wide_scale_are_disputed_though_no_one_value_is_likely(tmp_path: Path) -> None:
    rows = rows_of()
    for i, row in enumerate(rows):
        row["human"] = 90 if i == 5 else 10 * row["human"]
        row["said"] = 15 if i == 5 else row["human"]
        around = [1.0 if abs(value - row["said"]) <= 5 else 0.0 for value in range(101)]
        row["chances"] = json.dumps([chance / sum(around) for chance in around])
    file = written(tmp_path / "v.csv", rows)
    measured(file, "--id=id", "--probabilities=chances", "--scale=0-100")
    report = (tmp_path / "out" / "report.md").read_text()
    section = report.split("## Labels that the judge disputes")[1]
    assert "1 rows in which" in section
    assert "- r5: label 90 (0), judge 15 (1.00)" in section


def test_equal_labels_leave_kappa_null_with_its_reason(tmp_path: Path) -> None:
    rows = [row | {"human": 3} for row in rows_of()]
    (judge,) = measured(written(tmp_path / "v.csv", rows), "--group=source")["models"]
    kappa = judge["metrics"]["kappa_quadratic"]
    assert kappa["value"] is None
    assert "equal" in kappa["reason"]


def test_the_pages_are_made_anew_from_the_two_files(tmp_path: Path) -> None:
    measured(written(tmp_path / "v.csv", rows_of()), "--group=source")
    pages = [tmp_path / "out" / name for name in ("report.md", "report.html")]
    before = [page.read_text() for page in pages]
    for page in pages:
        page.unlink()
    assert run_judge("report", str(tmp_path / "out")).exit_code == 0
    assert [page.read_text() for page in pages] == before
    (tmp_path / "out" / "results.json").write_text('{"schema": 7}')
    done = run_judge("report", str(tmp_path / "out"))
    assert isinstance(done.exception, UserError)
    assert "schema is not 2" in str(done.exception)


def test_a_negative_tolerance_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "v.csv", rows_of())
    done = run_judge("agree", str(file), "--label=human", "--verdict=said", "--tolerance=-1")
    assert done.exit_code == 2
    assert "--tolerance" in done.output


def test_an_unlabelled_file_is_refused_where_it_is_read(tmp_path: Path) -> None:
    from pt_app.judge_data.verdict_files import Columns, read_verdicts

    with pytest.raises(UserError, match="no column human"):
        read_verdicts(str(written(tmp_path / "v.csv", [{"said": 1}])), Columns("human", "said"))


def test_pairs_have_their_accuracy_in_each_order_and_in_both(tmp_path: Path) -> None:
    draw, other = random.Random(4), {"A": "B", "B": "A", "tie": "tie"}
    rows = []
    for i in range(120):
        label = draw.choice(["A", "B", "A", "B", "tie"])
        said = label if draw.random() < 0.8 else draw.choice(["A", "B", "tie"])
        again = other[label] if draw.random() < 0.7 else draw.choice(["A", "B", "tie"])
        rows.append({"human": label, "said": said, "other": "" if i < 6 else again})
    results = measured(written(tmp_path / "v.jsonl", rows), "--swapped=other")
    (judge,) = results["models"]
    found = judge["metrics"]
    labels = [row["human"] for row in rows]
    swapped = [other[row["other"]] if row["other"] else None for row in rows]
    assert found["accuracy_swapped"]["value"] == pytest.approx(
        sk.accuracy_score(labels[6:], swapped[6:])
    )
    both = [a == row["said"] == b for a, row, b in zip(labels, rows, swapped, strict=True)]
    assert found["accuracy_both_orders"]["value"] == pytest.approx(sum(both) / 114)
    assert found["accuracy_both_orders"]["n"] == 114
    assert found["accuracy_both_orders_strict"]["value"] == pytest.approx(sum(both) / 120)
    assert found["accuracy_swapped_strict"]["n"] == 120
    for name in ("accuracy", "accuracy_swapped", "accuracy_both_orders", "mcc"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    assert found["mcc"]["value"] == pytest.approx(
        sk.matthews_corrcoef(labels, [row["said"] for row in rows])
    )
    report = (tmp_path / "out" / "report.md").read_text()
    assert "right in both orders" in report
    assert "MCC" in report


def test_probabilities_of_a_file_say_nothing_about_its_verdicts(tmp_path: Path) -> None:
    rows = [
        {"human": "AB"[i % 2], "said": "AB"[i % 3 == 0], "other": "AB"[i % 5 == 0], "p": p}
        for i, p in enumerate([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]] * 20)
    ]
    file, out = written(tmp_path / "v.jsonl", rows), tmp_path / "out"
    words = ["agree", str(file), "--label=human", "--verdict=said", f"--out={out}"]
    done = run_judge(*words, "--swapped=other", "--probabilities=p")
    (judge,) = json.loads((out / "results.json").read_text())["models"]
    assert judge["metrics"]["accuracy_both_orders"]["n"] == 40
    right = [row["human"] == row["said"] for row in rows]
    assert judge["metrics"]["accuracy"]["value"] == pytest.approx(sum(right) / 40)
    assert judge["selective"]["kept"]["n"] == 40
    assert "acc. both" in done.output


def test_pass_fail_has_auc_mcc_and_accuracy_at_coverages(tmp_path: Path) -> None:
    draw = random.Random(5)
    rows = []
    for i in range(200):
        fail = round(draw.random(), 3)
        human = "FAIL" if draw.random() < fail else "PASS"
        said = "FAIL" if fail > 0.5 else "PASS"
        rows.append({"human": human, "said": said, "p": f"{1 - fail:.3f} {fail}", "s": i // 2})
    results = measured(written(tmp_path / "v.csv", rows), "--probabilities=p", "--group=s")
    (judge,) = results["models"]
    labels, fails = [r["human"] == "FAIL" for r in rows], [float(r["p"].split()[1]) for r in rows]
    assert judge["roc_auc"]["value"] == pytest.approx(sk.roc_auc_score(labels, fails))
    assert judge["roc_auc"]["low"] < judge["roc_auc"]["value"] < judge["roc_auc"]["high"]
    said = [row["said"] == "FAIL" for row in rows]
    assert judge["metrics"]["mcc"]["value"] == pytest.approx(sk.matthews_corrcoef(labels, said))
    quarter, half, most = judge["selective"]["at_coverage"]
    assert [one["accuracy"]["n"] for one in (quarter, half, most)] == [50, 100, 150]
    assert quarter["accuracy"]["value"] > most["accuracy"]["value"]
    assert half["kappa"]["low"] < half["kappa"]["value"] < half["kappa"]["high"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| surest 50% of the rows: kappa |" in report
    assert "Brier score (sum over classes)" in report
    assert f"(AUC) of {judge['roc_auc']['value']:.3f} [" in report


def test_rows_without_verdict_or_probabilities_leave_the_others_their_numbers(
    tmp_path: Path,
) -> None:
    draw = random.Random(6)
    rows = []
    for i in range(100):
        fail = round(draw.random(), 3)
        human, said = ("FAIL" if draw.random() < fail else "PASS" for _ in range(2))
        rows.append({"human": human, "said": said, "p": f"{1 - fail:.3f} {fail}", "s": i // 2})
    flags = "--probabilities=p", "--group=s", "--scale=pass_fail"
    for folder in ("others", "all"):
        (tmp_path / folder).mkdir()
    others = measured(written(tmp_path / "others" / "v.csv", rows[3:]), *flags)["models"][0]
    for row in rows[:2]:
        row["said"] = "I cannot say" if row is rows[0] else ""
    rows[2]["p"] = ""
    file = written(tmp_path / "all" / "v.csv", rows)
    found = measured(file, *flags, "--labels=I cannot say=")["models"][0]
    assert (found["n"], found["parse_failures"]) == (100, 2)
    assert found["selective"].pop("left_out") == 3
    assert others["selective"].pop("left_out") == 0
    assert found["selective"] == others["selective"]
    assert found["selective"]["kept"]["n"] == 97
    # The probability of FAIL is known where the verdict is not.
    assert found["roc_auc"]["n"] == found["operating"]["n"] == 99
    report = (tmp_path / "all" / "out" / "report.md").read_text()
    assert "3 rows without a readable verdict or without probabilities are left out." in report
    assert "left out." not in (tmp_path / "others" / "out" / "report.md").read_text()


def test_each_two_annotators_have_their_kappa_in_results_and_report(tmp_path: Path) -> None:
    results = measured(written(tmp_path / "v.csv", rows_of()), "--annotators=people")
    (pair,) = results["people"]["pairs"]
    said = [json.loads(row["people"]) for row in rows_of()]
    kappa = sk.cohen_kappa_score(*zip(*said, strict=True), weights="quadratic")
    assert pair["kappa_quadratic"]["value"] == pytest.approx(kappa)
    report = (tmp_path / "out" / "report.md").read_text()
    assert f"| raters 1 and 2: quadratic kappa | {kappa:.3f} |" in report


def test_a_difference_in_the_third_digit_is_shown(tmp_path: Path) -> None:
    rows = [{"human": 1 + i % 2, "said": 1 + i % 2} for i in range(200)]
    for row in rows[:9]:
        row["said"] = 3 - row["human"]
    measured(written(tmp_path / "v.csv", rows), "--scale=1-5")
    assert "0.955 [" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("worse", [True, False])
def test_the_reading_compares_the_judge_with_people_in_one_plain_sentence(
    tmp_path: Path, worse: bool
) -> None:
    rows = rows_of()
    for row in rows:
        row["said"] = 1 + (row["human"] + 2) % 5 if worse else row["human"]
    results = measured(written(tmp_path / "v.csv", rows), "--annotators=people", "--group=source")
    apart = (
        results["models"][0]["metrics"]["kappa_quadratic"]["value"]
        - results["ceiling"]["metrics"]["kappa_quadratic"]["value"]
    )
    report = (tmp_path / "out" / "report.md").read_text()
    side = "below" if worse else "above"
    assert f"; the judge is {abs(apart):.3f} {side} that." in report
    assert "% of the way" not in report


def test_options_without_a_scale_are_told_the_flag_that_names_them(tmp_path: Path) -> None:
    answers = ["new item", "money", "none"] * 40
    rows = [row | {"human": own, "said": own} for row, own in zip(rows_of(), answers, strict=True)]
    file = written(tmp_path / "options.csv", rows)
    scale = 'choice:["money", "new item", "none"]'
    assert (
        f"no scale is known for labels such as money, new item, none: name it, --scale '{scale}'"
        in refused(file)
    )
    assert measured(file, f"--scale={scale}")["models"][0]["metrics"]["kappa"]["value"] == 1
