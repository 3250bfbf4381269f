"""`judge bench objectives`: which cells run, what they keep, and the tables made of that."""

import json
import os
import random
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.objectives import run
from benchmarks.objectives.cells import CELLS, Cell, Experiment, Import, Set, read_experiment
from benchmarks.objectives.measures import MEASURES, Judged, threshold_of_f1
from benchmarks.objectives.sets import dataset_of, make_folder
from benchmarks.objectives.table import OfSet, as_rule, tables
from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from pt_app.core.results import PREDICTIONS, PROBE, RESULTS, Prediction
from pt_app.core.settings import resolve
from pt_app.core.verdicts import Scale
from pt_app.evidence.results import JudgeRows, results_of, write_evaluation
from pt_app.training.loop import TrainingLoop
from pt_app.training.preparation import prepare
from tests import question_rows, test_question_evidence
from tests.real_data import real
from tests.rows import write_rows

ROOT = Path(__file__).parents[1]
QUESTIONS = CELLS.with_name("questions.yaml")
SET = {"primary": "spearman", "also": ["mae"], "imports": []}


def experiment(cells: list[dict[str, Any]], **sets: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "settings": {"model": "tiny"},
            "test_rows": 8,
            "validation_rows": 4,
            "sets": sets or {"one": SET, "two": SET},
            "cells": cells,
        }
    )


TWO = [{"name": "ce", "sets": ["one", "two"], "seeds": [0]}]


def finish(cell: Cell, out: Path, **told: Any) -> None:
    about = {"scale": "0-10", "rows": 9, "test_rows": 40, "cpu_seconds": 120.0} | told
    (out / cell.name).mkdir(parents=True, exist_ok=True)
    (out / cell.name / run.CELL).write_text(json.dumps(about))
    settings = cell.settings | {"seed": cell.seed}
    (out / cell.name / run.SETTINGS).write_text(yaml.safe_dump(settings))


def test_cells_run_seed_by_seed_and_an_entry_overrules_its_set() -> None:
    sets = {"a": SET | {"settings": {"epochs": 1, "lr": 2.0}}, "b": SET}
    entry = {"name": "ce", "sets": ["a", "b"], "seeds": [0, 1], "settings": {"lr": 3.0}}
    cells = experiment([entry], **sets).all()
    assert [cell.name for cell in cells] == ["a.ce.0", "b.ce.0", "a.ce.1", "b.ce.1"]
    assert cells[0].settings == {"model": "tiny", "epochs": 1, "lr": 3.0}


def test_finished_cells_are_skipped_and_a_failed_one_costs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"name": "ce", "sets": ["one"], "seeds": [0, 1, 2, 3]}
    whole, ran = experiment([entry]), []

    def run_cell(_: Experiment, cell: Cell, out: Path) -> None:
        ran.append(cell.seed)
        if cell.seed == 1:
            raise UserError("no room")
        finish(cell, out)

    monkeypatch.setattr(run, "run_cell", run_cell)
    finish(whole.all()[0], tmp_path)
    assert run.run_cells(whole, whole.all(), tmp_path) == ["one.ce.1: no room"]
    assert ran == [1, 2, 3]
    run.run_cells(whole, whole.all(), tmp_path)
    assert ran == [1, 2, 3, 1]
    assert "other settings" not in capsys.readouterr().out
    changed = experiment([entry | {"settings": {"lr": 2.0}}])
    run.run_cells(changed, changed.all()[:1], tmp_path)
    assert ran == [1, 2, 3, 1]
    assert "one.ce.0: finished with other settings: remove its" in capsys.readouterr().out


def test_a_cell_that_another_process_runs_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = experiment(TWO)
    monkeypatch.setattr(run, "run_cell", lambda _, cell, out: finish(cell, out))
    code = "import sys; from pathlib import Path; from pt_app.core.files import held\n"
    code += "with held(Path(sys.argv[1]), 'busy'): print(flush=True); input()"
    lock = str(tmp_path / "one.ce.0" / ".lock")
    command = [sys.executable, "-c", code, lock]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert run.run_cells(whole, whole.all(), tmp_path) == []
        assert [run.is_finished(cell, tmp_path) for cell in whole.all()] == [False, True]
        other.communicate(b"\n")
    run.run_cells(whole, whole.all(), tmp_path)
    assert run.is_finished(whole.all()[0], tmp_path)


def keep(cell: Cell, out: Path, noise: float, base: bool = False) -> None:
    """Write what a cell keeps: the expected scores are the labels with noise."""
    rng, rows = random.Random(cell.seed), []
    for name, spread in (("adapter", noise), *([("base", 9.0)] if base else [])):
        for i in range(40):
            expected = i % 11 + rng.uniform(-spread, spread)
            rules = {"majority": 5, "length": 10 - i % 11, PROBE: min(10, i % 11 + i // 11)}
            about = {"model": name, "id": str(i), "group": i // 2, "label": i % 11, "status": "ok"}
            row = Prediction(**about, verdict=5, expected=expected)
            rows.append(row.model_copy(update={"rules": rules} if name == "adapter" else {}))
    finish(cell, out)
    text = "".join(json.dumps(row.as_json()) + "\n" for row in rows)
    (out / cell.name / PREDICTIONS).write_text(text)


def test_tables_have_intervals_and_every_comparison(tmp_path: Path) -> None:
    entries = [
        {"name": "ce", "sets": ["one"], "seeds": [0, 1, 2]},
        {"name": "trl", "sets": ["one"], "seeds": [0], "way": "trl"},
        {"name": "raft", "sets": ["one"], "seeds": [0, 1], "objective": {"raft": 1}},
        {"name": "soft", "sets": ["one"], "seeds": [0], "objective": {"soft": 1}},
    ]
    whole = experiment(entries)
    assert tables(whole, whole.all(), tmp_path) == "No cell is finished yet."
    for cell in whole.all()[:-1]:
        noise = {"ce": 1.0, "trl": 5.0, "raft": 3.0}[cell.entry.name]
        keep(cell, tmp_path, noise, base=cell.name == "one.ce.0")
    text = tables(whole, whole.all(), tmp_path)
    assert text.startswith("6 of 7 cells, 0.2 hours of CPU.")
    ce = next(line for line in text.splitlines() if line.startswith("| one | ce |"))
    cells = [cell.strip() for cell in ce.split("|")[1:-1]]
    assert cells[:5] == ["one", "ce", "3", "9 / 40", "spearman"]
    for shown in cells[5:10]:  # the number, and what it is above base, baseline, probe and TRL
        value, low, high = (float(part.strip("[],")) for part in shown.split()[:3])
        assert low < value < high
    assert cells[7].endswith("(length)")
    (raft,) = [line for line in text.splitlines() if "| one | raft | 2 | spearman | -" in line]
    assert "0.00" in raft.split("|")[6] or "<" in raft.split("|")[6]
    # What is not shown is compared with all the same.
    some = tables(whole, whole.named(["*.raft.*"]), tmp_path).splitlines()
    assert some[0].startswith("2 of 2 cells")
    assert raft in some
    assert not any(line.startswith("| one | ce |") for line in some)


def test_questions_are_gated_for_each_seed_and_for_all(tmp_path: Path) -> None:
    quality = question_rows.questions()[2]
    entries: list[dict[str, Any]] = [{"name": "joint", "sets": ["one"], "seeds": [0, 1]}]
    entries += [entries[0] | {"name": "quality", "settings": {"questions": "quality"}}]
    whole = experiment(entries, one={"generate": {"questions": True}})
    for cell in whole.all():
        right = 0.5 if cell.name == "one.joint.1" else 0.8
        rows = test_question_evidence.judged(quality, "adapter", 150, right)
        own = [JudgeRows("adapter", "a", rows, rule="mean")]
        results = results_of(own, quality.scale, {"path": "d"}, (), (), {})
        write_evaluation(tmp_path / cell.name / "quality", own, results)
        finish(cell, tmp_path)
    lines = tables(whole, whole.all(), tmp_path).splitlines()
    shown = [line.split(" | ") for line in lines if line.startswith("| one | quality |")]
    assert [line[2] for line in shown] == ["0", "1", "all"]
    assert [line[-1] for line in shown] == ["pass |", "fail |", "fail |"]
    assert shown[0][3] == shown[0][4] == shown[1][3] != shown[1][4]
    assert "kappa_quadratic not worse by 0.02: 0.00" in shown[0][5]
    assert shown[2][5].endswith("n = 300")


def test_a_baseline_is_read_by_its_score_before_that_was_rounded() -> None:
    row = Prediction(label=6, verdict=5, expected=1.0, rules={"mean": 7})
    for scores, number in (({"mean": 6.6}, 6.6), (None, 7)):
        read = as_rule(row.model_copy(update={"rules_expected": scores}), "mean")
        assert Judged([read], Scale.from_name("0-10")).numbers().tolist() == [number]
        assert read.verdict == 7


def test_the_experiment_of_the_clone_can_be_read() -> None:
    whole = read_experiment(CELLS)
    for name in ("ro-en", "et-en", "en-de", "pandalm", "demetr", "paracrawl", "mqm"):
        for entry in ("ce", "trl"):
            cells = whole.named([f"{name}.{entry}.*"])
            assert [cell.seed for cell in cells][:3] == [0, 1, 2]
            assert {cell.entry.way for cell in cells} == {"trl" if entry == "trl" else "judge"}
    quick = read_experiment(CELLS, quick=True)
    assert len(quick.all()) == 3
    assert quick.all()[0].settings["max_samples"] == 640


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"settings": 3}, "settings: input should be a valid dictionary"),
        ({"sets": {"one": SET | {"primary": "bleu"}}}, "set one: no measure bleu: choose of"),
        ({"cells": [{"name": "ce", "sets": ["x"], "seeds": [0]}]}, "cells ce: no set x"),
        ({"cell": []}, "cell: extra inputs are not permitted"),
    ],
)
def test_wrong_file_of_cells_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    file = tmp_path / "cells.yaml"
    file.write_text(yaml.safe_dump(experiment(TWO).model_dump() | change))
    with pytest.raises(UserError, match=says):
        read_experiment(file)
    with pytest.raises(UserError, match=r"no cell, near are .*one\.ce\.0.*: name SET\.ENTRY"):
        experiment(TWO).named(["three.*"])


def judged(scale: str, *rows: dict[str, Any], **more: Any) -> Judged:
    made = [Prediction(id=str(i), group=i, **row) for i, row in enumerate(rows)]
    return Judged(made, Scale.from_name(scale), **more)


def measured(name: str, of: Judged) -> float:
    return MEASURES[name](of)(np.arange(len(of.rows)))


def test_pairs_are_measured_on_the_mean_of_both_orders() -> None:
    first = {"label": "B", "probabilities": [0.35, 0.5, 0.15], "verdict": "B"}
    first |= {"as_given": "A", "swapped": "A"}
    votes = [{"rater": "x", "verdict": "B"}, {"rater": "y", "verdict": "tie"}]
    pair = judged("pairwise", first | {"annotators": votes, "errors": ["tense"]})
    assert measured("accuracy", pair) == 1
    assert measured("flips", pair) == 1
    assert measured("log_score", pair) == pytest.approx((-0.693147 - 1.897120) / 2, abs=1e-5)
    assert measured("accuracy_held_out", pair) != measured("accuracy_held_out", pair)  # NaN


def test_verdict_alone_has_the_best_log_score_that_it_allows() -> None:
    votes = [[{"verdict": v} for v in own] for own in ("AB", "AA", "BB")]
    said = ["A", "A", "B"]
    pairs = zip(said, votes, strict=True)
    rows = [{"label": "A", "verdict": own, "annotators": cast} for own, cast in pairs]
    assert measured("log_score", judged("pairwise", *rows)) == pytest.approx(
        (3 * -0.287682 + -1.386294) / 6, abs=1e-5
    )


def test_log_score_of_a_fold_is_read_at_the_temperature_of_the_others(tmp_path: Path) -> None:
    about = SET | {"primary": "log_score", "folds": 2}
    whole = experiment([{"name": "ce", "sets": ["one"], "seeds": [0, 1]}], one=about)
    for cell, right in zip(whole.all(), (6, 9), strict=True):  # of 10 pairs of 3 votes each
        finish(cell, tmp_path, scale="pairwise")
        rows = []
        for i in range(10):
            label = "A" if i < right else "B"
            votes = [{"rater": str(rater), "verdict": label} for rater in range(3)]
            row = {"model": "adapter", "id": str(i), "group": i, "status": "ok", "verdict": "A"}
            row |= {"label": label, "annotators": votes, "probabilities": [0.9, 0.1, 0.0]}
            rows.append(json.dumps(row) + "\n")
        (tmp_path / cell.name / PREDICTIONS).write_text("".join(rows))
    drawn = OfSet("one", whole.sets["one"], whole.all(), whole.all(), tmp_path).drawn(
        "ce", "log_score"
    )
    assert drawn is not None
    # At the temperature that suits the other fold A has a probability of 0.9, here of 0.6.
    assert drawn.values[0] == pytest.approx(0.6 * np.log(0.9) + 0.4 * np.log(0.1), abs=1e-3)
    assert drawn.values[1] == pytest.approx(0.9 * np.log(0.6) + 0.1 * np.log(0.4), abs=1e-3)


def test_f1_is_that_of_fail_and_rps_of_the_distribution() -> None:
    pairs = [("FAIL", "FAIL"), ("FAIL", "PASS"), ("PASS", "FAIL"), ("PASS", "PASS")]
    rows = [{"label": label, "verdict": said} for label, said in pairs]
    assert measured("f1_fail", judged("pass_fail", *rows)) == 0.5
    row = {"label": 2, "probabilities": [0.5, 0.0, 0.5], "expected": 1.0}
    assert measured("rps", judged("0-2", row)) == pytest.approx(0.25)


def test_f1_fails_rows_from_the_threshold_that_a_cell_chose() -> None:
    fails = [("FAIL", 0.4), ("FAIL", 0.3), ("PASS", 0.2), ("PASS", 0.1)]
    rows = [
        {"label": label, "verdict": "PASS", "probabilities": [1 - fail, fail]}
        for label, fail in fails
    ]
    of = judged("pass_fail", *rows)
    assert measured("f1_fail", of) == 0
    assert measured("f1_fail", replace(of, fail_from=0.3)) == 1
    assert measured("f1_fail", replace(of, fail_from=0.0)) == pytest.approx(2 / 3)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=20))
def test_threshold_of_f1_is_the_best_of_all_thresholds(rows: list[tuple[int, bool]]) -> None:
    fail = np.array([tenths / 10 for tenths, _ in rows])
    is_fail = np.array([float(failed) for _, failed in rows])

    def f1(threshold: float) -> float:
        said = fail >= threshold
        return float(2 * (is_fail * said).sum() / (said.sum() + is_fail.sum()))

    chosen = threshold_of_f1(fail, is_fail)
    assert f1(chosen) == max(map(f1, fail))


def cut(name: str, rows: int, folder: Path) -> None:
    """Copy the first rows of a file of the real data."""
    source, copy = real(name), folder / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".json"):
        copy.write_text(json.dumps(json.loads(source.read_text())[:rows]))
    elif name.endswith(".tsv"):
        lines = source.read_text().splitlines(keepends=True)
        copy.write_text("".join(lines[:: max(1, len(lines) // rows)]))
    else:
        with tarfile.open(source) as read, tarfile.open(copy, "w:gz") as written:
            member = next(m for m in read.getmembers() if m.name.endswith(".df.short.tsv"))
            stream = read.extractfile(member)
            assert stream is not None
            file = folder / "member.tsv"
            file.write_bytes(b"".join(stream.readlines()[: rows + 1]))
            written.add(file, member.name)


@pytest.mark.parametrize("name", sorted(read_experiment(CELLS).sets))
def test_sets_are_imported_with_their_official_tests(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = read_experiment(CELLS).sets[name]
    for each in about.imports:
        for file in each.files:
            cut(file, 20, tmp_path / "real")
    monkeypatch.setenv("JUDGE_REAL_DATA", str(tmp_path / "real"))
    make_folder(about, tmp_path / "set")
    folder = tmp_path / "set" / "folds" / "2" if about.folds else tmp_path / "set"
    data = read_dataset(folder)
    assert data.train
    assert data.test
    if name.endswith(("-en", "-de")):
        parts = {str((row.meta or {})["part"]) for row in data.test}
        pairs = ["ro-en", "et-en"] if name == "ro-et-en" else [name]
        assert parts == {f"{pair}-test" for pair in pairs}
    if about.held_out:
        kinds = {kind for row in data.train for kind in row.errors or ()}
        assert not kinds & set(about.held_out)
        assert set(about.held_out) <= {k for row in data.test for k in row.errors or ()}


def test_every_question_of_a_set_has_cells_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_experiment(QUESTIONS)
    generated = whole.sets["generated"].generate | {"rows": 8, "val_rows": 2, "test_rows": 4}
    cut("wmt-mqm-ted/mqm_ted_zhen.tsv", 200, tmp_path / "real")
    monkeypatch.setenv("JUDGE_REAL_DATA", str(tmp_path / "real"))
    for name, about in whole.sets.items():
        smaller = {"generate": generated} if about.generate else {}
        make_folder(about.model_copy(update=smaller), tmp_path / name)
        asked = [question.name for question in read_dataset(tmp_path / name).questions]
        cells = [cell for cell in whole.all() if cell.set == name]
        alone = [cell.settings.get("questions", "") for cell in cells]
        assert sorted(alone) == sorted(3 * ["", *asked])


@pytest.mark.slow
def test_a_joint_adapter_is_compared_with_that_of_one_question(tmp_path: Path) -> None:
    flags = {"rows": 24, "val_rows": 4, "test_rows": 12, "lexicon": "small", "questions": True}
    short = {"epochs": 1, "eval_steps": 0, "save_steps": 0, "tracking": "off"}
    entry = {"name": "joint", "sets": ["one"], "seeds": [0], "settings": short}
    alone = entry | {"name": "overall", "settings": short | {"questions": "overall"}}
    whole = experiment([entry, alone], one={"generate": flags})
    assert run.run_cells(whole, whole.all(), tmp_path) == []
    (line,) = (
        line
        for line in tables(whole, whole.all(), tmp_path).splitlines()
        if line.startswith("| one | overall | 0 |")
    )
    assert "kappa_quadratic not worse by 0.02" in line
    assert "n = 8" in line  # of 12: the experiment draws as many


@pytest.mark.slow
def test_a_stopped_cell_continues_from_its_checkpoint_with_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"rows": 96, "val_rows": 4, "test_rows": 12, "lexicon": "small"}
    short = {"epochs": 1, "batch_size": 4, "gradient_accumulation": 1, "tracking": "off"}
    entry = {"name": "joint", "sets": ["one"], "seeds": [0], "settings": short | {"eval_steps": 0}}
    whole = experiment([entry], one=SET | {"generate": flags})
    (cell,), take, taken, last = whole.all(), TrainingLoop._take, list[int](), 14

    def counted(loop: TrainingLoop, step: Any) -> None:
        if loop.state.global_step == last:
            raise UserError("stopped")
        taken.append(loop.state.global_step)
        take(loop, step)

    assert run.run_cells(whole, [cell], tmp_path / "whole") == []
    monkeypatch.setattr(run, "SAVED_EVERY", 4)
    monkeypatch.setattr(TrainingLoop, "_take", counted)
    assert run.run_cells(whole, [cell], tmp_path / "stopped") == ["one.joint.0: stopped"]
    last = 24
    with monkeypatch.context() as evaluation:
        evaluation.setattr(run, "_evaluate_alone", lambda *_: (tmp_path / "no").read_text())
        (failed,) = run.run_cells(whole, [cell], tmp_path / "stopped")
        assert "FileNotFoundError" in failed
    assert run.run_cells(whole, [cell], tmp_path / "stopped") == []
    assert taken == [*range(14), *range(12, 24)], "an evaluation that stopped trains nothing again"
    losses = [
        json.loads((tmp_path / each / cell.name / run.CELL).read_text())["losses"]
        for each in ("whole", "stopped")
    ]
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]


def test_validation_rows_of_a_fold_are_taken_from_its_training_rows(tmp_path: Path) -> None:
    (write_rows(tmp_path / "rows", train=24) / "judge_val.json").unlink()
    told = ["--data_dir", str(tmp_path / "rows"), "--model", "tiny", "--eval_steps", "0"]
    prepared = prepare(resolve("mps", told, "judge train", ""))
    parted = run._validated(prepared, 5)
    train, val = ([row.id for row in part] for part in (parted.data.train, parted.data.val))
    assert len(val) == 5
    groups = {row.group for row in parted.data.val}
    assert train == [row.id for row in prepared.data.train if row.group not in groups]
    assert parted.train["id"] == train


def test_missing_real_data_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_REAL_DATA", str(tmp_path))
    about = Set(primary="mae", imports=[Import(files=["mlqe/x.tsv"])])
    with pytest.raises(UserError, match=r"x.tsv is not there: name the folder .* JUDGE_REAL_DATA"):
        make_folder(about, tmp_path / "set")


def test_folder_of_sets_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / ".one.lock").mkdir()
    with pytest.raises(UserError, match=r"cannot be written .*: choose another folder"):
        dataset_of("one", Set(), 0, tmp_path)


@pytest.mark.slow
def test_two_processes_share_the_cells_and_a_third_prints_the_tables(tmp_path: Path) -> None:
    rng, lines = random.Random(0), ["source,candidate,label,second"]
    for i in range(80):
        score = rng.randrange(101)
        lines.append(f"the house {i} is {score},a casa {i} {'x' * (score // 10)},{score},{score}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    options = {"map": ["source=source,candidate=candidate,label=label+second"], "scale": "0-100"}
    about = SET | {"imports": [{"files": ["labels.csv"], "options": options}]}
    entries = [
        {"name": "ce", "sets": ["one"], "seeds": [0, 1]},
        {"name": "trl", "sets": ["one"], "seeds": [0], "way": "trl", "settings": {"grid": "off"}},
        {"name": "mixed", "sets": ["one"], "seeds": [0], "objective": {"ce": 1, "soft": 1}},
    ]
    whole = experiment(entries, one=about).model_dump()
    whole["settings"] |= {"epochs": 1, "eval_steps": 0, "save_steps": 0, "tracking": "off"}
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump(whole))
    command = [sys.executable, "-m", "pt_app.cli", "bench", "objectives"]
    command += [f"--cells={tmp_path / 'cells.yaml'}", f"--out={tmp_path / 'out'}"]
    env = os.environ | {"JUDGE_REAL_DATA": str(tmp_path), "JUDGE_CACHE": str(tmp_path / "cache")}
    both = [
        subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=800)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    for name in ("one.ce.0", "one.ce.1", "one.trl.0", "one.mixed.0"):
        assert sum(text.splitlines().count(f"cell {name}") for text in said) == 1
        kept = {path.name for path in (tmp_path / "out" / name).iterdir()}
        assert kept == {".lock", run.CELL, run.SETTINGS, PREDICTIONS, RESULTS}
    shown = subprocess.run([*command, "--table"], env=env, cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout.startswith("4 of 4 cells")
    assert "| one | mixed | 1 | spearman |" in shown.stdout
