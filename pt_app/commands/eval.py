"""`judge eval`: several judges on the same test rows."""

from collections.abc import Sequence
from pathlib import Path

from pt_app.commands.flags import command, flag
from pt_app.core.errors import UserError
from pt_app.eval_model.options import Endpoint, EvalOptions


@command()
def evaluate(
    *,
    data: Path = flag("dataset folder; its test rows are judged"),
    adapter: Sequence[Path] = flag("adapter folder; may be repeated", ()),
    options: EvalOptions,
    endpoint: Endpoint,
    out: Path = flag("output folder", Path("evaluation")),
) -> None:
    """Judge a test set with several judges, prompted models among them."""
    if bool(endpoint.url) != bool(endpoint.model):
        raise UserError("--endpoint and --endpoint_model belong together: give both")
    if not adapter and not endpoint.url:
        raise UserError("name a judge: --adapter DIR, or --endpoint URL with --endpoint_model M")
    from pt_app.core.dataset import find_folder

    find_folder(data)
    from pt_app.core import console
    from pt_app.eval_model.compare import evaluate_judges
    from pt_app.report import terminal_table

    console.start()
    prompted = endpoint if endpoint.url else None
    console.show(terminal_table(evaluate_judges(data, out, adapter, options, prompted)))
    print(f"report: {out / 'report.html'}")
