"""The rules a judge must beat: on rows where the answer is known, and on people's labels."""

import json
from typing import Any

import numpy as np
import pytest

from pt_app.core.results import Prediction
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.baselines import Baseline, Labelled, fit_baselines
from tests.real_data import real

FIVE = Scale.from_name("1-5")
PAIR = Scale.from_name("pairwise")
PASS_FAIL = Scale.from_name("pass_fail")


def predictions(rows: list[dict[str, Any]]) -> list[Prediction]:
    return [Prediction.model_validate(row) for row in rows]


def labelled(rows: list[dict[str, Any]], labels: list[Verdict], scale: Scale) -> Labelled:
    return Labelled.of(predictions(rows), labels, range(len(rows)), scale)


def by_name(found: list[Baseline]) -> dict[str, Baseline]:
    return {one.name: one for one in found}


def right(found: Baseline, labels: list[Verdict]) -> float:
    return float(np.mean([a == b for a, b in zip(found.verdicts, labels, strict=True)]))


def test_each_rule_finds_what_it_looks_for_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    labels: list[Verdict] = rng.integers(1, 6, 400).tolist()
    words = ["bad", "poor", "fair", "good", "great"]
    by_word = [{"candidate": f"it is {words[int(v) - 1]} indeed"} for v in labels]
    by_length = [{"candidate": "word " * int(2 ** float(v))} for v in labels]
    reference = "the cat sat on the mat and looked at me"
    by_reference = [
        {"candidate": reference[: 5 + 7 * int(v)], "reference": reference} for v in labels
    ]
    for rows, name in ((by_word, "TF-IDF"), (by_length, "length"), (by_reference, "chrF")):
        found = by_name(
            fit_baselines(
                labelled(rows[200:], labels[200:], FIVE),
                FIVE,
                labelled(rows[:200], labels[:200], FIVE),
            )
        )
        assert right(found[name], labels[200:]) > 0.95
        assert right(found["majority"], labels[200:]) < 0.3
        assert len(set(found["mean"].verdicts)) == 1
    assert (
        right(by_name(fit_baselines(labelled(by_word, labels, FIVE), FIVE))["length"], labels) < 0.5
    )


def test_the_majority_is_the_commonest_training_label_of_equals_the_scales_first() -> None:
    test = labelled([{"candidate": "a"}] * 3, [1, 2, 3], FIVE)
    for given, majority, mean in (([3, 4, 4, 1], 4, 3), ([5, 2, 2, 5], 2, 3)):
        train = labelled([{"candidate": "a"}] * 4, given, FIVE)
        found = by_name(fit_baselines(test, FIVE, train))
        assert found["majority"].verdicts == [majority] * 3
        assert found["mean"].verdicts == [mean] * 3


def test_of_many_training_rows_some_are_drawn_and_counted() -> None:
    test = labelled([{"candidate": "a b"}] * 3, [1, 2, 3], FIVE)
    for rows, said in ((5000, "the training rows"), (5001, "5,000 of the 5,001 training rows")):
        train = labelled([{"candidate": "a b"}] * rows, [1, 2, 3, *[4] * (rows - 3)], FIVE)
        assert by_name(fit_baselines(test, FIVE, train))["length"].fitted == said


def test_pass_or_fail_is_learnt_from_words_length_and_reference() -> None:
    labels: list[Verdict] = ["PASS", "FAIL"] * 50
    rows = [
        {"candidate": "yes of course" if v == "PASS" else "no", "reference": "yes of course"}
        for v in labels
    ]
    found = by_name(fit_baselines(labelled(rows, labels, PASS_FAIL), PASS_FAIL))
    for name in ("length", "chrF", "TF-IDF"):
        assert right(found[name], labels) == 1
        assert found[name].fitted == "the other rows of the file"


def test_without_training_rows_no_row_is_told_by_its_own_group() -> None:
    rng = np.random.default_rng(1)
    words = [f"word{i}" for i in range(100)]  # each group's own, so that only a leak would help
    rows = [{"candidate": words[i // 4]} for i in range(400)]
    labels: list[Verdict] = np.repeat(rng.integers(1, 6, 100), 4).tolist()
    test = Labelled.of(predictions(rows), labels, [i // 4 for i in range(400)], FIVE)
    assert right(by_name(fit_baselines(test, FIVE))["TF-IDF"], labels) < 0.35


def test_a_rule_without_its_texts_says_so() -> None:
    rows = [{"candidate": "a", "reference": "b"}, {"candidate": "c"}, {"prompt": "d"}]
    found = by_name(fit_baselines(labelled(rows, [1, 2, 3], FIVE), FIVE))
    assert found["chrF"].missing == "1 of 3 rows have no candidate of their own"
    assert found["TF-IDF"].missing
    assert not found["majority"].missing
    two = by_name(fit_baselines(labelled(rows[:2], [1, 2], FIVE), FIVE))
    assert two["chrF"].missing == "1 of 2 rows have no reference"
    pairs = by_name(fit_baselines(labelled([{"candidates": ["a", "b"]}], ["A"], PAIR), PAIR))
    assert pairs["mean"].missing == "verdicts are not numbers"


def test_the_longer_response_wins_as_often_on_pandalm_as_published() -> None:
    # field note: right in 601 of 894 non-ties if equal lengths go to the second, 67.4 % if half
    rows, labels = [], list[Verdict]()
    for row in json.loads(real("pandalm/testset-v1.json").read_text()):
        votes = [str(row[f"annotator{i}"]) for i in (1, 2, 3)]
        majority = max(set(votes), key=votes.count)
        if votes.count(majority) > 1 and majority != "0":
            rows.append({"candidates": [str(row["response1"]), str(row["response2"])]})
            labels.append({"1": "A", "2": "B"}[majority])
    found = by_name(fit_baselines(labelled(rows, labels, PAIR), PAIR))["length"].verdicts
    pairs = list(zip(found, labels, strict=True))
    assert len(pairs) == 894
    to_the_second = sum((one if one != "tie" else "B") == label for one, label in pairs)
    half = sum(0.5 if one == "tie" else one == label for one, label in pairs)
    assert to_the_second == 601
    assert half / 894 == pytest.approx(0.674, abs=5e-4)


def test_the_longer_output_wins_rarely_on_llmbars_neighbor_part() -> None:
    rows = json.loads(real("llmbar/Adversarial_Neighbor.json").read_text())
    labels: list[Verdict] = ["A" if int(row["label"]) == 1 else "B" for row in rows]
    pairs = [{"candidates": [row["output_1"], row["output_2"]]} for row in rows]
    found = by_name(fit_baselines(labelled(pairs, labels, PAIR), PAIR))["length"]
    assert right(found, labels) == pytest.approx(0.12, abs=0.005)
