"""The recipes' common entry: the checks before a run, the run, and the report after it."""

import logging
from collections.abc import Iterable
from pathlib import Path

from pt_app.core import console
from pt_app.core.results import Results
from pt_app.core.settings import Recipe, Settings
from pt_app.eval_model import pipeline
from pt_app.models.platforms import Platform
from pt_app.preflight.doctor.arithmetic import check_first
from pt_app.preflight.estimate.estimate import Estimate, before_loading
from pt_app.preflight.estimate.timing import before_training
from pt_app.report import charts, terminal_table, write_report
from pt_app.training.loop import TrainingLoop
from pt_app.training.preparation import Prepared
from pt_app.training.run import LoadBase, MakeArguments

log = logging.getLogger(__name__)


class ChecksAndReport:
    """Checks the machine and forecasts the run before it starts; writes its report at the end."""

    def __init__(self, recipe: Recipe, settings: Settings) -> None:
        self.recipe, self.settings = recipe, settings
        self._needs: Estimate | None = None

    def before_loading(self, platform: Platform, prepared: Prepared, trained: bool) -> None:
        """Check that the device computes correctly, and that memory and disk suffice."""
        check_first(platform, prepared.source)
        self._needs = before_loading(self.settings, platform, prepared, trained=trained)

    def before_training(self, trainer: TrainingLoop, prepared: Prepared) -> None:
        """Log how long the training will take, measured on a few packs."""
        assert self._needs is not None, "before_loading was not called"
        before_training(self._needs, trainer)

    def after_evaluation(self, adapter: Path, results: Results) -> None:
        """Write the report and print its table."""
        report = write_report(adapter / "evaluation")
        console.show(terminal_table(results))
        log.info("report: %s", report)

    def charts(self, results: Results) -> Iterable[tuple[str, str]]:
        """Draw the charts of the results for a dashboard."""
        return charts.of_results(results)


def run(recipe: Recipe, settings: Settings, load_base: LoadBase, arguments: MakeArguments) -> Path:
    """Check the machine, train and evaluate a judge, write its report.

    Returns:
        The adapter's folder.

    Raises:
        UserError: for whatever the user can fix.
    """
    around = ChecksAndReport(recipe, settings)
    return pipeline.run(recipe, settings, load_base, arguments, around)
