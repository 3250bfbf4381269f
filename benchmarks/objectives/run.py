"""Run the cells: each trains, is evaluated, and keeps predictions.jsonl, results.json, cell.json.

A finished cell is not run again, and a stopped one continues from its last checkpoint, so that the
same command resumes a stopped experiment. Processes with one output folder share the cells.
"""

import os
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.objectives.cells import USUAL, Cell, Experiment
from benchmarks.objectives.losses import VerdictLoss, in_both_orders, raters_shares
from benchmarks.objectives.measures import threshold_of_f1
from benchmarks.objectives.sets import dataset_of
from benchmarks.objectives.trl import trained_by_trl
from pt_app.core.dataset import draw
from pt_app.core.errors import UserError
from pt_app.core.files import cannot_write, held, write_json_atomic, write_text_atomic
from pt_app.core.questions import scales_of
from pt_app.core.records import checked
from pt_app.core.results import JsonObject
from pt_app.core.settings import Settings, resolve
from pt_app.core.yaml_files import read_yaml
from pt_app.eval_model import evaluation
from pt_app.eval_model.judge_train_mps import load_base, training_arguments
from pt_app.eval_model.pipeline import Run
from pt_app.evidence.results import write_evaluation
from pt_app.evidence.summary import FAIL
from pt_app.models import adapters, bases
from pt_app.models.gemm import pack_weights
from pt_app.models.memory import free_memory
from pt_app.models.provenance import about_this_run
from pt_app.models.tree_attention import BLOCKS, use_attention
from pt_app.scoring.branches import chosen_lines
from pt_app.scoring.scorer import JudgeScorer, verdict_trie
from pt_app.training.loss import SummedLoss, summed_loss
from pt_app.training.preparation import Prepared

CELL = "cell.json"  # written last: a cell that has it is finished
SETTINGS = "settings.yaml"
# Of the settings file, beside the settings of a cell.
OWN = ("seed", "data_dir", "output_dir", "save_steps", "resume")
SAVED_EVERY = 50  # steps: minutes, of the hour that a cell may take


def is_finished(cell: Cell, out: Path) -> bool:
    """Return whether a cell was run to its end."""
    return (out / cell.name / CELL).exists()


def run_cells(experiment: Experiment, cells: Sequence[Cell], out: Path) -> list[str]:
    """Run all cells that are neither finished nor run by another process.

    A cell that fails is named with its reason, and the next one runs.

    Returns:
        A line for each cell that failed.

    Raises:
        UserError: for an output folder that cannot be written.
    """
    failed = []
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {cannot_write(out, error)}") from error
    for cell in cells:
        with ExitStack() as stack:
            try:
                stack.enter_context(held(out / cell.name / ".lock", "busy"))
            except UserError:
                print(f"cell {cell.name}: another process runs it", flush=True)
                continue
            if is_finished(cell, out):
                if not _is_as_run(cell, out / cell.name / SETTINGS):
                    remedy = "remove its folder to run it again"
                    print(f"cell {cell.name}: finished with other settings: {remedy}", flush=True)
                continue
            print(f"cell {cell.name}", flush=True)
            try:
                run_cell(experiment, cell, out)
            except UserError as error:
                failed.append(f"{cell.name}: {error}")
            except Exception as error:
                traceback.print_exc()
                failed.append(f"{cell.name}: {type(error).__name__}: {error}")
    return failed


def run_cell(experiment: Experiment, cell: Cell, out: Path) -> None:
    """Train and evaluate one cell; keep its files in a folder of its name."""
    folder, began, computed = out / cell.name, time.time(), time.process_time()
    work = folder / "run"
    resume = _can_resume(cell, work, folder / SETTINGS)
    about = experiment.sets[cell.set]
    data = dataset_of(cell.set, about, cell.seed, out / "data")
    this = Run("mps", _settings(cell, data, work, folder / SETTINGS, resume))
    this.prepared = _cut(this.prepared, experiment, about.test_rows, this.settings)
    if about.folds and about.primary == "f1_fail":
        this.prepared = _validated(this.prepared, experiment.validation_rows)
    if cell.entry.orders == "given":
        this.prepared = _as_given(this.prepared)
    with this.opened():
        # The base and the baselines are those of every cell with the same test rows.
        compared = cell.entry.name == USUAL and (cell.seed == 0 or about.folds > 0)
        way: Callable[..., dict[str, Any]] = {"judge": _judge, "trl": _trl}[cell.entry.way]
        told = way(this, cell, compared)
    for made in (this.adapter / "evaluation").iterdir():  # of questions a folder each
        shutil.rmtree(folder / made.name, ignore_errors=True)  # what a stopped run left
        os.replace(made, folder / made.name)
    shutil.rmtree(work)
    seconds = {"seconds": time.time() - began, "cpu_seconds": time.process_time() - computed}
    counts = {"rows": len(this.prepared.data.train), "test_rows": len(this.prepared.test)}
    scales = ", ".join(scale.name for _, scale in scales_of(this.prepared.data.asked))
    told |= {"scale": scales, "objective": cell.entry.objective}
    write_json_atomic(folder / CELL, {**counts, **seconds, **told})


def _can_resume(cell: Cell, work: Path, file: Path) -> bool:
    """Return whether a stopped training of the cell has a checkpoint; else remove what it left.

    An adapter whose evaluation was stopped is made again from its last checkpoint.
    """
    for adapter in work.glob("*_final"):
        shutil.rmtree(adapter)
    if any(work.glob("*/checkpoint-*")) and file.exists() and _is_as_run(cell, file):
        return True
    shutil.rmtree(work, ignore_errors=True)
    return False


def _settings(cell: Cell, data: Path, output: Path, file: Path, resume: bool) -> Settings:
    """Write the settings file of a cell, and resolve it as a recipe does its --config."""
    resumed = "newest" if resume else "off"
    own = dict(
        zip(OWN, (cell.seed, str(data), str(output), SAVED_EVERY, resumed), strict=True),
    )
    values = {**cell.settings, **own}
    write_text_atomic(file, yaml.safe_dump(values, sort_keys=False))
    return resolve("mps", ["--config", str(file)], "judge bench objectives", "")


def _is_as_run(cell: Cell, file: Path) -> bool:
    """Return whether the settings file of a cell holds its present settings."""
    kept = checked(dict[str, object], read_yaml(file), file)
    both = ({n: v for n, v in each.items() if n not in OWN} for each in (cell.settings, kept))
    return next(both) == next(both)


def _cut(
    prepared: Prepared, experiment: Experiment, test_rows: int | None, settings: Settings
) -> Prepared:
    """Give baselines and probe the cell's training rows, and every seed the same test rows."""
    data = prepared.data
    train = draw(data.train, settings.max_samples, settings.seed)
    val = draw(data.val, experiment.validation_rows, 0)
    test = draw(prepared.test, experiment.test_rows if test_rows is None else test_rows, 0)
    return replace(prepared, data=replace(data, train=list(train), val=list(val)), test=test)


def _validated(prepared: Prepared, count: int) -> Prepared:
    """Take validation rows from the training rows: a fold has none, and a threshold needs them."""
    data = prepared.data
    val = list(draw(data.train, count, 0))
    groups = {row.group for row in val}
    train = [row for row in data.train if row.group not in groups]
    kept = {row.id for row in train}
    places = [place for place, name in enumerate(prepared.train["id"]) if name in kept]
    data = replace(data, train=train, val=val)
    return replace(prepared, data=data, train=prepared.train.select(places))


def _as_given(prepared: Prepared) -> Prepared:
    """Train pairs in the given order alone."""
    given = {row.id for row in prepared.data.train}
    places = [place for place, name in enumerate(prepared.train["id"]) if name in given]
    return replace(prepared, train=prepared.train.select(places))


def _judge(this: Run, cell: Cell, compared: bool) -> dict[str, Any]:
    """Train and read as the product does, with the objective of the cell."""
    trainer = this.build_trainer(load_base, training_arguments)
    trainer.objective.summed = objective_of(cell, this.prepared)  # type: ignore[attr-defined]
    this.train(trainer)
    this.save(trainer)
    losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    del trainer
    free_memory()
    told = {"losses": losses, "fail_from": _thresholds_of_f1(this.prepared, this.adapter, compared)}
    if not compared:
        _evaluate_alone(this.prepared, this.adapter)
        return told
    with this.evaluated():
        pass
    return told | {"branches": _change_by_branches(this.prepared, this.adapter)}


def objective_of(cell: Cell, prepared: Prepared) -> SummedLoss:
    """Return the loss of a cell.

    Raises:
        UserError: for an objective that the task or the rows do not allow.
    """
    weights, encoder = cell.entry.objective, prepared.encoder
    if weights == {"ce": 1}:
        return summed_loss
    scale, shares = encoder.scale, None
    if weights.get("soft"):
        rows = prepared.data.train
        own: Sequence[Sequence[float]] = raters_shares(rows, scale)
        if len(prepared.train) > len(rows):
            own = in_both_orders(rows, own, scale)
        shares = dict(zip(map(tuple, prepared.train["input_ids"]), own, strict=True))
    return VerdictLoss(verdict_trie(encoder), scale, weights, encoder.end_token_id, shares)


def _thresholds_of_f1(prepared: Prepared, adapter: Path, compared: bool) -> dict[str, float] | None:
    """Return the threshold of F1 on the validation rows, by judge; None: not a pass/fail set."""
    source, rows = prepared.source, prepared.data.val
    if prepared.data.questions or prepared.data.scale.task != "pass_fail" or not rows:
        return None
    models = {"adapter": adapters.load_merged(adapter, source)}
    if compared:
        models["base"] = bases.load_model(source)
    is_fail = np.array([float(row.label.verdict == "FAIL") for row in rows if row.label])
    found = {}
    for name, model in models.items():
        use_attention(model, BLOCKS)
        scored = JudgeScorer(pack_weights(model), prepared.encoder, name=name).score(rows)
        fail = np.array([one.probabilities[FAIL] for one in scored])
        found[name] = threshold_of_f1(fail, is_fail)
    return found


def _change_by_branches(prepared: Prepared, adapter: Path) -> JsonObject | None:
    """Return what `--reading branches` changes on 50 test rows; None: it reads whole lines."""
    model = adapters.load_merged(adapter, prepared.source)
    use_attention(model, BLOCKS)
    _, change = chosen_lines(model, "branches", prepared.test, prepared.encoder)
    return None if change is None else change.model_dump()


def _evaluate_alone(prepared: Prepared, adapter: Path) -> None:
    """Evaluate an adapter as `evaluation.evaluate` does, without base and baselines."""
    source, data = prepared.source, prepared.data
    scoring = evaluation.Scoring(prepared.encoder, prepared.test, False, "float32")
    model = adapters.load_merged(adapter, source)
    own = scoring.each("adapter", adapter.name, model, data.val)
    about = about_this_run()
    evaluation.written(adapter / "evaluation", [own], data, prepared.test, about, {})


def _trl(this: Run, cell: Cell, compared: bool) -> dict[str, Any]:
    """Train by TRL's SFTTrainer, and read the verdict of the greedy answer."""
    judged, losses = trained_by_trl(this.prepared, this.settings, this.folder)
    data, test = this.prepared.data, this.prepared.test
    results, baselines = evaluation.measured([judged], data, test, about_this_run())
    write_evaluation(this.adapter / "evaluation", [judged], results, baselines)
    return {"losses": losses}
