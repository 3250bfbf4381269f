"""`judge eval`: several judges on the same test rows."""

from pathlib import Path
from typing import Annotated

import typer

from pt_app.commands.flags import ScorePrecision, TargetAccuracy, check_precision
from pt_app.core.errors import UserError

DataFolder = Annotated[Path, typer.Option(help="dataset folder; its test rows are judged")]
Adapter = Annotated[list[Path] | None, typer.Option(help="adapter folder; may be repeated")]
WithBase = Annotated[bool, typer.Option("--base", help="also judge with the first adapter's base")]
BasePath = Annotated[
    str | None, typer.Option("--base_path", help="path of the base, if it was a folder")
]
Endpoint = Annotated[str, typer.Option(help="URL of an OpenAI-compatible endpoint")]
EndpointModel = Annotated[
    str, typer.Option("--endpoint_model", help="name of the model at the endpoint")
]
Shots = Annotated[int, typer.Option(min=0, help="number of training rows in its prompt")]
KeyEnv = Annotated[str, typer.Option("--key_env", help="environment variable that holds its key")]
Rpm = Annotated[int, typer.Option(min=0, help="requests per minute; 0: no limit")]
Tpm = Annotated[int, typer.Option(min=0, help="tokens per minute; 0: no limit")]
PriceIn = Annotated[float, typer.Option("--price_in", min=0, help="$ per million prompt tokens")]
PriceOut = Annotated[float, typer.Option("--price_out", min=0, help="$ per million answer tokens")]
MaxCost = Annotated[float, typer.Option("--max_cost", min=0, help="maximum cost in $; 0: no limit")]
Concurrency = Annotated[int, typer.Option(min=1, help="number of concurrent requests")]
MaxTokens = Annotated[
    int, typer.Option("--max_tokens", min=1, help="maximum number of tokens per answer")
]
Rows = Annotated[int, typer.Option(min=0, help="number of test rows, drawn by the seed; 0: all")]
Feedback = Annotated[bool, typer.Option("--feedback", help="also generate issues and feedback")]
Curve = Annotated[
    bool, typer.Option("--curve", help="also train on a quarter and on half of the rows")
]
EvaluateOut = Annotated[Path, typer.Option(help="output folder")]
Seed = Annotated[int, typer.Option(help="seed that draws rows and shots")]


def evaluate(
    data: DataFolder,
    adapter: Adapter = None,
    with_base: WithBase = False,
    base_path: BasePath = None,
    endpoint: Endpoint = "",
    endpoint_model: EndpointModel = "",
    shots: Shots = 0,
    key_env: KeyEnv = "OPENAI_API_KEY",
    rpm: Rpm = 0,
    tpm: Tpm = 0,
    price_in: PriceIn = 0.0,
    price_out: PriceOut = 0.0,
    max_cost: MaxCost = 0.0,
    concurrency: Concurrency = 8,
    max_tokens: MaxTokens = 512,
    rows: Rows = 0,
    feedback: Feedback = False,
    score_precision: ScorePrecision = "float32",
    target_accuracy: TargetAccuracy = 0.9,
    curve: Curve = False,
    out: EvaluateOut = Path("evaluation"),
    seed: Seed = 0,
) -> None:
    """Judge a test set with several judges, prompted models among them."""
    check_precision(score_precision)
    if bool(endpoint) != bool(endpoint_model):
        raise UserError("--endpoint and --endpoint_model belong together: give both")
    if not adapter and not endpoint:
        raise UserError("name a judge: --adapter DIR, or --endpoint URL with --endpoint_model M")
    from pt_app.core.dataset import find_folder

    find_folder(data)
    from pt_app.core import console
    from pt_app.eval_model.compare import EvalOptions, evaluate_judges
    from pt_app.eval_model.prompted import Endpoint
    from pt_app.models.endpoint.budget import Budget
    from pt_app.report import terminal_table

    console.start()
    asked = Endpoint(
        model=endpoint_model,
        url=endpoint,
        key_env=key_env,
        shots=shots,
        concurrency=concurrency,
        max_tokens=max_tokens,
        budget=Budget(rpm=rpm, tpm=tpm, price_in=price_in, price_out=price_out, max_cost=max_cost),
    )
    options = EvalOptions(
        with_base=with_base,
        base=base_path,
        endpoint=asked if endpoint else None,
        rows=rows,
        feedback=feedback,
        precision=score_precision,
        target_accuracy=target_accuracy,
        seed=seed,
        curve=curve,
    )
    results = evaluate_judges(data, out, adapter or (), options)
    console.show(terminal_table(results))
    print(f"report: {out / 'report.html'}")
