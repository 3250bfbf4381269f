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
    """Judge a test set with several judges, prompted and decision models among them."""
    url = endpoint.url or endpoint.decisions
    if endpoint.url and endpoint.decisions:
        raise UserError("--endpoint and --decisions are two ways of asking: give one")
    if bool(url) != bool(endpoint.model):
        given = "--decisions" if endpoint.decisions else "--endpoint"
        raise UserError(f"{given} and --endpoint_model belong together: give both")
    if endpoint.decisions and endpoint.shots:
        raise UserError("--shots are for --endpoint: a decision model takes no examples")
    if not adapter and not url:
        raise UserError("name a judge: --adapter DIR, or --endpoint URL with --endpoint_model M")
    from pt_app.core.dataset import find_folder

    find_folder(data)
    from pt_app.core import console
    from pt_app.eval_model.compare import evaluate_judges
    from pt_app.report import terminal_table

    console.start()
    asked = endpoint if url else None
    console.show(terminal_table(evaluate_judges(data, out, adapter, options, asked)))
    print(f"report: {out / 'report.html'}")
