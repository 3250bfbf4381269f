"""The evidence of a judge of several questions: results of each, overview, pages, gate."""

import json
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.core.files import write_json_atomic
from pt_app.core.formatting import estimate
from pt_app.core.questions import Question
from pt_app.core.records import Annotation
from pt_app.core.results import RESULTS, Cost, Prediction, Results, read_results
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.baselines import Baseline, Labelled
from pt_app.evidence.calibration import (
    Confidence,
    Fitted,
    confidence_of,
    guaranteed_threshold,
    usual_tolerance,
)
from pt_app.evidence.combining import Distributions, combine, lines
from pt_app.evidence.gate import decide, gate_folders
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.options import Limits
from pt_app.evidence.overview import MIN_LABELS, overview
from pt_app.evidence.probe import Regression
from pt_app.evidence.results import JudgeRows, results_of, write_evaluation
from pt_app.report import terminal_table, write_report
from pt_app.report.overview import overview_table
from pt_app.report.page import sentences
from tests.question_rows import questions

MANY = {
    "type": "choice",
    "instructions": "Which code?",
    "options": [f"code {i}" for i in range(255)],
}
ASKED = questions(code=MANY)


def judged(
    question: Question, name: str, count: int, right: float, prefix: str = "r"
) -> list[Prediction]:
    """Predictions of a judge that is right so often, and knows how often."""
    values, rows = question.scale.values, []
    for i in range(count):
        rng = random.Random(f"{question.name} {name} {i}")
        label = random.Random(f"{question.name} {i}").randrange(len(values))
        verdict = label if rng.random() < right else rng.randrange(len(values))
        rest = (1 - right) / (len(values) - 1)
        chances = [right if place == verdict else rest for place in range(len(values))]
        row = {"model": name, "id": f"{prefix}{i}", "group": f"{prefix}{i}", "label": values[label]}
        row |= {"question": question.name, "verdict": values[verdict], "status": "ok"}
        row |= {"greedy": values[verdict], "probabilities": chances, "verdict_mass": 0.9}
        if question.type == "score":
            row["expected"] = sum(float(v) * p for v, p in zip(values, chances, strict=True))
        rows.append(Prediction.model_validate(row))
    return rows


def evaluation(
    folder: Path, right: float = 0.8, count: int = 150, short: int = 12, prefix: str = "r"
) -> Results:
    """An evaluation folder as the pipeline writes it; `offer` has few rows, `overall` none."""
    of_each = {}
    for question in ASKED:
        n = {"offer": short, "overall": 0}.get(question.name, count)
        if not n:
            continue
        rule = "mean" if question.type == "score" else "mode"
        own = judged(question, "adapter", n, right, prefix)
        fitted = Fitted.on(own, question.scale, 0.9, rule)
        judges = [
            JudgeRows("adapter", "a", own, fitted=fitted, rule=rule),
            JudgeRows("base", "b", judged(question, "base", n, 0.2, prefix), rule=rule),
        ]
        always = [Baseline("majority", [question.scale.values[0]] * n)]
        results = results_of(judges, question.scale, {"path": "d"}, always, (), {})
        write_evaluation(folder / question.name, judges, results, always)
        of_each[question.name] = results
    asked = {question.name: (question.type, question.scale.name) for question in ASKED}
    whole = overview(asked, of_each, {"path": "d"}, (), {})
    write_json_atomic(folder / RESULTS, whole.as_json())
    return whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("evaluation") / "new"
    evaluation(made)
    return made


def test_the_overview_has_a_row_for_each_question_and_no_number_of_few_rows(folder: Path) -> None:
    rows = read_results(folder).questions
    assert list(rows) == [question.name for question in ASKED]
    assert (rows["quality"].metric, rows["apologises"].metric) == ("kappa_quadratic", "kappa")
    for name in ("apologises", "quality", "code"):
        own = read_results(folder / name)
        assert own.judge is not None
        assert rows[name].agreement == own.judge.metrics[rows[name].metric]
        assert rows[name].baseline == "majority"
        assert rows[name].ece == own.judge.calibration.ece  # type: ignore[union-attr]
    assert rows["offer"].few == f"not enough labels (12; {MIN_LABELS} are needed)"
    assert rows["overall"].few == f"not enough labels (0; {MIN_LABELS} are needed)"
    assert rows["offer"].agreement is None


def test_every_question_has_its_pages_and_the_overview_links_to_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = write_report(folder).read_text()
    for name in ("apologises", "offer", "quality", "code"):
        assert f'href="{name}/report.html"' in page
        assert (folder / name / "report.html").exists()
    assert "not enough labels (12; 30 are needed)" in page
    console.show(terminal_table(read_results(folder)))
    assert "apologises" in capsys.readouterr().out


def test_the_overview_names_its_judge_and_the_agreement_of_each_other_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = ASKED[0]
    judges = [
        JudgeRows(name, name, judged(question, name, 60, right))
        for name, right in (("joint_one", 0.9), ("alone*1", 0.6), ("base", 0.5))
    ]
    data = {"path": "d", "question": question.name, "asked": "Are <they> *sorry*?"}
    own = results_of(judges, question.scale, data, (), (), {})
    write_evaluation(tmp_path / question.name, judges, own)
    whole = overview({question.name: (question.type, "bool")}, {question.name: own}, {}, (), {})
    summary, other = whole.questions[question.name], own.models[1].metrics["kappa"]
    assert (summary.judge, summary.others) == ("joint_one", {"alone*1": other})
    write_json_atomic(tmp_path / RESULTS, whole.as_json())
    page = " ".join(re.sub(r"<[^>]+>", " ", write_report(tmp_path).read_text()).split())
    assert "those of joint_one, and" in page
    assert f" by alone*1 60 kappa {estimate(other)} " in page
    page = (tmp_path / question.name / "report.html").read_text()
    assert f"<h1>{question.name}: how far the judge agrees with the labels</h1>" in page
    assert "Are &lt;they&gt; *sorry*?" in page
    console.show(terminal_table(read_results(tmp_path)))
    shown = " ".join(capsys.readouterr().out.split())
    assert "by alone*1" in shown
    assert "those of joint_one, and" in shown


def summarised(rows: list[Prediction], fitted: Fitted | None = None) -> Results:
    """The overview of a judge of one question."""
    question = ASKED[0]
    judges = [JudgeRows("adapter", "a", rows, fitted=fitted, rule="mode")]
    results = results_of(judges, question.scale, {"path": "d"}, (), (), {})
    return overview({question.name: (question.type, "bool")}, {question.name: results}, {}, (), {})


def test_the_overview_says_on_which_rows_a_threshold_was_chosen(tmp_path: Path) -> None:
    own = judged(ASKED[0], "adapter", 150, 1.0)
    fitted = Fitted.on(own, ASKED[0].scale, 0.9)
    for name, given in (("fitted", fitted), ("bare", None)):
        whole = summarised(own, given)
        summary = whole.questions["apologises"]
        assert summary.threshold is not None
        assert summary.chosen_on == ("validation" if given else None)
        cells = overview_table(whole)[1][0]
        assert cells[7] == ("1.000, 1.000 right" if given else "1.000, 1.000 right *"), name
        # A file of an earlier version does not say it.
        del summary.chosen_on
        before = Results.parse(json.dumps(whole.as_json()), "results.json")
        assert overview_table(before)[1][0][7] == "1.000, 1.000 right"
    assert "was chosen on validation rows (*: on these rows, so" in sentences("overview", judge="")


def test_a_number_of_the_overview_has_its_n_or_enough_rows() -> None:
    own = judged(ASKED[0], "adapter", 60, 0.8)
    raters = [{"rater": "ana", "verdict": "yes"}, {"rater": "rui", "verdict": "no"}]

    def shown(count: int) -> list[str]:
        both = [row.model_copy(update={"reordered": row.verdict}) for row in own[:40]]
        rows = [*both, *own[40:]]
        for i in range(count):
            named = [Annotation.model_validate(rater) for rater in raters]
            rows[i] = rows[i].model_copy(update={"annotators": named})
        return overview_table(summarised(rows))[1][0]

    assert shown(29)[5] == "–"
    assert shown(30)[5] == "-1.000"  # of as many verdicts as the question has rows
    assert shown(35)[5].endswith("(n = 70)")
    assert shown(0)[8] == "0.000 (n = 40)"


def test_options_have_no_check_of_leniency(folder: Path) -> None:
    judge = read_results(folder / "code").judge
    assert judge is not None
    assert set(judge.checks) == {"overconfidence"}


def test_a_gate_decides_for_each_question_with_its_own_margin(folder: Path, tmp_path: Path) -> None:
    evaluation(tmp_path / "worse", right=0.5)
    limits = Limits(rows=50)
    checks = {check.name: check.decision for check in gate_folders([folder, folder], limits)}
    assert checks["apologises: kappa not worse by 0.02"] == "pass"
    assert checks["offer: rows"] == "undecided"
    assert checks["overall: rows"] == "undecided"
    worse = gate_folders([folder, tmp_path / "worse"], limits)
    assert decide(worse) == "fail"
    named = {check.name: check.decision for check in worse}
    assert named["quality: kappa_quadratic not worse by 0.02"] == "fail"
    lenient = Limits(rows=50, question_margins="quality=2")
    named = {c.name: c.decision for c in gate_folders([folder, tmp_path / "worse"], lenient)}
    assert named["quality: kappa_quadratic not worse by 2"] == "pass"


def test_a_gate_finds_questions_by_name_and_only_those_of_the_overview(
    folder: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    shutil.copytree(other / "quality", other / "overall")  # what an earlier evaluation left
    overview = json.loads((other / RESULTS).read_text())
    overview["questions"] = dict(reversed(overview["questions"].items()))
    (other / RESULTS).write_text(json.dumps(overview))
    checks = {check.name: check for check in gate_folders([folder, other], Limits(rows=50))}
    assert checks["apologises: kappa not worse by 0.02"].decision == "pass"
    assert checks["overall: rows"].why == "; ".join(
        f"{each}: not enough labels (0; 30 are needed)" for each in (folder, other)
    )
    # An evaluation of several judges leaves out what one of them was not trained on.
    overview["questions"]["quality"] = {"n": 0, "few": "left out: another question"}
    (other / RESULTS).write_text(json.dumps(overview))
    checks = {check.name: check for check in gate_folders([folder, other], Limits(rows=50))}
    assert checks["quality: rows"].why == f"{other}: left out: another question"


def test_gates_of_other_questions_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="compare evaluations of the same questions"):
        gate_folders([folder, folder / "quality"], Limits())
    with pytest.raises(UserError, match='there is no question "tone": use apologises'):
        gate_folders([folder, folder], Limits(question_margins="tone=1"))


def simulated(question: Question, judge: str, groups: int = 2000) -> Confidence:
    """Confidence and correctness of three dependent rows of each group, one after the other.

    A "calibrated" judge is right as often as it says, one that is "too sure" less often, and a
    "blind" one in 89 of 100 rows, however sure it is.
    """
    rng, values = np.random.default_rng(0), np.arange(len(question.scale.values))
    centre, sharp = rng.uniform(0, values[-1], groups), rng.lognormal(3.0, 1.0, groups)
    logits = -sharp[:, None] * (values - centre[:, None]) ** 2
    logits -= logits.max(axis=1, keepdims=True)
    said = np.exp(logits)
    verdicts, truth = said.argmax(axis=1), np.exp(logits / (2.0 if judge == "too sure" else 1.0))
    if judge == "blind":
        far = np.where(verdicts > values[-1] / 2, 0, values[-1])
        truth = 0.89 * np.eye(len(values))[verdicts] + 0.11 * np.eye(len(values))[far]
    said, truth = (p / p.sum(axis=1, keepdims=True) for p in (said, truth))
    labels = (truth.cumsum(axis=1) < rng.random((groups, 1))).sum(axis=1).clip(max=values[-1])
    rows = np.repeat(np.arange(groups), 3)
    scale, tolerance = question.scale, usual_tolerance(question.scale)
    return confidence_of(said[rows], verdicts[rows], labels[rows], scale, tolerance)


@pytest.mark.parametrize("judge", ["calibrated", "too sure", "blind"])
@pytest.mark.parametrize("question", ASKED[:4], ids=lambda question: str(question.name))
def test_the_accuracy_promised_of_a_question_holds_in_95_of_100_splits(
    question: Question, judge: str
) -> None:
    """A threshold is chosen on the rows of 150 groups, and kept to on those of the other groups."""
    whole, held, promised = simulated(question, judge), 0, 0
    group = np.arange(len(whole.sure)) // 3
    for seed in range(200):
        chosen = np.random.default_rng(seed).permutation(group[-1] + 1)[:150]
        own = np.isin(group, chosen)
        seen = Confidence(whole.sure[own], whole.right[own])
        threshold = guaranteed_threshold(seen, Resampler(group[own]), 0.9).threshold
        kept = ~own & (whole.sure >= (np.inf if threshold is None else threshold))
        promised += threshold is not None
        held += threshold is None or whole.right[kept].mean() >= 0.9
    print(question.name, judge, held, promised)
    assert held >= 0.95 * 200
    assert judge == "blind" or promised >= 50, "a judge that promises nothing breaks no promise"


def test_questions_that_make_up_another_are_combined_into_it() -> None:
    """The label is the sum of what two questions say; asked directly the judge guesses."""
    asked, rng = questions()[2], random.Random(0)
    rows, distributions, labels = [], [], []
    for i in range(160):
        polite, helpful = rng.random() < 0.5, rng.random() < 0.5
        distributions.append(
            {
                "polite": {"true": 0.9 if polite else 0.1, "false": 0.1 if polite else 0.9},
                "offer": {"refund": 0.8 if helpful else 0.2, "no": 0.2 if helpful else 0.8},
            }
        )
        labels.append(int(polite) + int(helpful))
        rows.append(Prediction(group=f"g{i}"))
    groups = [row.group for row in rows]

    def part(start: int, stop: int) -> tuple[Labelled, list[Distributions]]:
        own = slice(start, stop)
        return Labelled.of(rows[own], labels[own], groups[own], asked.scale), distributions[own]

    guessed = [rng.randrange(3) for _ in range(80)]
    found = combine(asked, part(0, 80), part(80, 160), guessed)
    assert found.combined.value == pytest.approx(1.0)
    assert (found.difference.low or 0) > 0.3
    assert found.weights["polite"]["true"][0] > 0 > found.weights["polite"]["false"][0]
    assert "combined - direct" in "\n".join(lines(found))
    with pytest.raises(UserError, match="20 validation rows have a label for quality: 30 are"):
        combine(asked, part(0, 20), part(80, 160), guessed)
    groups = ["one source"] * 160
    with pytest.raises(UserError, match="label for quality are of one group"):
        combine(asked, part(0, 80), part(80, 160), guessed)


def applied(found: dict[str, Any], of_row: Mapping[str, Mapping[str, float]]) -> Verdict:
    """What combined.json predicts of a row, by the formula of docs/QUESTIONS.md."""
    scores = list(found["intercept"])
    for name, of_answers in found["weights"].items():
        for answer, weights in of_answers.items():
            scores = [s + w * of_row[name][answer] for s, w in zip(scores, weights, strict=True)]
    options: list[str] = found["options"]
    if not options:
        values = Scale.from_name(found["scale"]).values
        return min(values, key=lambda value: abs(float(value) - scores[0]))
    if len(options) < 3:
        return options[1] if scores and scores[0] > 0 else options[0]
    return options[scores.index(max(scores))]


@pytest.mark.parametrize(("name", "used"), [(q.name, None) for q in questions()] + [("offer", 2)])
def test_combined_weights_give_the_predictions(name: str, used: int | None) -> None:
    asked = next(question for question in questions() if question.name == name)
    rng, values = np.random.default_rng(0), asked.scale.values[:used]
    labels = [values[place] for place in rng.integers(0, len(values), 120)]
    rows = [Prediction(group=f"g{i}") for i in range(120)]
    groups = [row.group for row in rows]
    whole = Labelled.of(rows, labels, groups, asked.scale)
    tone = {"a": 0.3, "b": 0.2}
    chances = rng.dirichlet(np.ones(3), 120)
    chances[:, 0] += [values.index(label) / len(values) for label in labels]  # says something
    distributions = [
        {"tone": dict(zip([*tone, "c"], map(float, own), strict=True)), "flat": tone}
        for own in chances
    ]
    found = combine(asked, (whole, distributions), (whole, distributions), labels)
    stored = json.loads(json.dumps(found.as_json()))
    features = np.array([[p for of in row.values() for p in of.values()] for row in distributions])
    fitted = Regression.fit(whole, features, asked.scale).predict(features)
    predicted = Baseline.of("", fitted, asked.scale, None).verdicts
    assert len({*predicted}) > 1
    shown = [applied(stored, row) for row in distributions]
    if asked.type == "bool":
        assert stored["options"] == ["true", "false"]
        predicted = [str(verdict == "yes").lower() for verdict in predicted]
    assert shown == list(predicted)


def test_evaluations_of_folds_are_joined_question_by_question(tmp_path: Path) -> None:
    from pt_app.eval_model.folds import join_evaluations

    for fold in ("1", "2"):
        evaluation(tmp_path / fold / "evaluation", count=40, prefix=f"{fold}-")
    join_evaluations([tmp_path / "1", tmp_path / "2"], tmp_path / "all")
    joined = read_results(tmp_path / "all").questions
    assert {name: own.n for name, own in joined.items()} == {
        "apologises": 80,
        "offer": 24,
        "quality": 80,
        "overall": 0,
        "code": 80,
    }
    assert read_results(tmp_path / "all" / "quality").data.n == 80


def test_a_question_that_a_fold_has_no_rows_of_is_joined_from_the_others(tmp_path: Path) -> None:
    from pt_app.eval_model.folds import join_evaluations

    for fold in ("1", "2"):
        evaluation(tmp_path / fold / "evaluation", count=40, prefix=f"{fold}-")
    shutil.rmtree(tmp_path / "2" / "evaluation" / "code")
    path = tmp_path / "1" / "evaluation" / "results.json"
    leaks = {"n": 1, "examples": ["a source on both sides"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"leaks": leaks}))
    join_evaluations([tmp_path / "1", tmp_path / "2"], tmp_path / "all")
    joined = read_results(tmp_path / "all")
    assert joined.questions["code"].n == 40
    assert joined.questions["quality"].n == 80
    assert joined.leaks.n == 1


def test_joined_folds_keep_what_is_known_beside_the_verdicts(tmp_path: Path) -> None:
    from pt_app.eval_model.folds import join_evaluations

    offer = ASKED[1]
    other = {name: "nothing" if name != "nothing" else "refund" for name in offer.scale.values}
    for fold in ("1", "2"):
        own, paid = (judged(offer, name, 40, 0.8, f"{fold}-") for name in ("adapter", "m"))
        for i, row in enumerate(own[:5]):  # in another order of options fold 2 changes one verdict
            changed = fold == "2" and i == 0
            own[i] = row.model_copy(
                update={"reordered": other[row.verdict] if changed else row.verdict}
            )
        for i, row in enumerate(paid):  # asked twice; the first row of each fold flips
            again = {"repeated": [other[row.verdict] if i == 0 else row.verdict], "moved": 0.1}
            paid[i] = row.model_copy(update=again)
        cost = Cost(dollars=0.8 * int(fold), per_verdict=0.01 * int(fold), n=80)
        judges = [JudgeRows("adapter", "a", own), JudgeRows("m", "m", paid, cost=cost)]
        rules = [
            Baseline("majority", [offer.scale.values[0]] * 40),
            Baseline("frozen probe", missing="--probe_rows is 0"),
        ]
        folder = tmp_path / fold / "evaluation"
        results = results_of(judges, offer.scale, {"path": "d"}, rules, (), {})
        write_evaluation(folder, judges, results, rules)
    join_evaluations([tmp_path / "1", tmp_path / "2"], tmp_path / "all")
    joined = read_results(tmp_path / "all")
    adapter, model = joined.models
    assert adapter.option_order is not None
    assert (adapter.option_order.value, adapter.option_order.n) == (pytest.approx(0.1), 10)
    assert model.repeats is not None
    assert (model.repeats.times, model.repeats.probability) == (2, 0.1)
    assert (model.repeats.flips.value, model.repeats.flips.n) == (pytest.approx(2 / 80), 80)
    assert model.cost is not None
    expected = {"dollars": 2.4, "per_verdict": 0.015, "n": 160}
    assert model.cost.model_dump() == pytest.approx(expected)
    assert joined.escalation is not None
    assert joined.missing_baselines == {"frozen probe": "--probe_rows is 0"}
    assert [own.name for own in joined.baselines] == ["majority"]
