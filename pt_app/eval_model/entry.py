"""The recipes' common entry: the checks before a run, the run, and the report after it."""

import logging
from pathlib import Path

from pt_app.core import console
from pt_app.core.results import Results
from pt_app.core.settings import Recipe, Settings
from pt_app.eval_model.pipeline import Run
from pt_app.models import memory
from pt_app.preflight.doctor.arithmetic import check_first
from pt_app.preflight.estimate.estimate import Estimate, before_loading
from pt_app.preflight.estimate.timing import before_training
from pt_app.report import charts, terminal_table, write_report
from pt_app.training.run import LoadBase, MakeArguments

log = logging.getLogger(__name__)


def run(recipe: Recipe, settings: Settings, load_base: LoadBase, arguments: MakeArguments) -> Path:
    """Check the machine, train and evaluate a judge, write its report.

    Returns:
        The adapter's folder.

    Raises:
        UserError: for whatever the user can fix.
    """
    this = Run(recipe, settings)
    check_first(this.platform, this.prepared.source)
    needs = before_loading(settings, this.platform, this.prepared, trained=this.trained)
    with this.opened():
        if not this.adapter.exists():
            _train(this, needs, load_base, arguments)
            memory.free_memory()
        if console.is_main_process():
            this.finish(None if settings.skip_eval else _evaluate(this), charts.of_results)
    return this.adapter


def _train(this: Run, needs: Estimate, load_base: LoadBase, arguments: MakeArguments) -> None:
    """Load the model, log how long its training will take, train it and save the adapter."""
    with memory.shortage_explained("training"):
        trainer = this.build_trainer(load_base, arguments)
        before_training(needs, trainer)
        this.train(trainer)
    if console.is_main_process():
        this.save(trainer)


def _evaluate(this: Run) -> Results:
    """Evaluate the adapter, write the report and print its table."""
    with this.evaluated() as results:
        report = write_report(this.adapter / "evaluation")
        console.show(terminal_table(results))
        log.info("report: %s", report)
    return results
