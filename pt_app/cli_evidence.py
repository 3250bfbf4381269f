"""`judge eval`, `agree`, `report`, `gate` and `attack`: evidence about judges."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pt_app.errors import UserError

FileArgument = Annotated[str, typer.Argument(help="CSV, TSV, JSON, JSON Lines, Parquet")]
Label = Annotated[str, typer.Option(help="column: what people say; empty: not labelled")]
Verdict = Annotated[str, typer.Option(help="column: what the judge says; empty: unreadable")]
Out = Annotated[Path | None, typer.Option(help="folder to write; FILE's name + -evidence")]
Scale = Annotated[str, typer.Option(help="0-10, 1-5, pass_fail, pairwise ...")]
Id = Annotated[str, typer.Option(help="column that tells rows apart")]
Group = Annotated[str, typer.Option(help="column: source; its rows depend on each other")]
Judge = Annotated[str, typer.Option(help="column: which judge, where several judged")]
Probabilities = Annotated[
    str, typer.Option(help="column: probability of each verdict, in the scale's order")
]
Annotators = Annotated[str, typer.Option(help="column: all people's verdicts, a list")]
Swapped = Annotated[str, typer.Option(help="column: verdict on the pair the other way")]
Candidate = Annotated[str, typer.Option(help="column: text judged; A,B of a pair")]
Reference = Annotated[str, typer.Option(help="column: a right text")]
Source = Annotated[str, typer.Option(help="column: the source's text")]
System = Annotated[str, typer.Option(help="column: system that wrote the candidate")]
Slice = Annotated[list[str] | None, typer.Option(help="column to tell numbers by")]
Train = Annotated[str, typer.Option(help="file of labelled rows for the simple rules")]
TargetAccuracy = Annotated[
    float, typer.Option("--target_accuracy", min=0.01, max=0.999, help="share right to reach")
]
Tolerance = Annotated[
    float | None, typer.Option(help="distance that counts as right (1; short scales 0)")
]
MissedFail = Annotated[float, typer.Option("--missed_fail", min=0, help="cost of passing a FAIL")]
FalseAlarm = Annotated[float, typer.Option("--false_alarm", min=0, help="cost of failing a PASS")]
Metric = Annotated[
    bool, typer.Option("--metric", help="verdicts are a metric's scores, of any range")
]
LowerIsBetter = Annotated[bool, typer.Option("--lower_is_better", help="of such scores")]
Validation = Annotated[str, typer.Option(help="rows that map such scores to verdicts")]
Encoding = Annotated[str, typer.Option(help="of the file, if not UTF-8")]
Labels = Annotated[
    str, typer.Option(help="what labels and verdicts mean: yes=PASS,no=FAIL,unsure= (none)")
]
Only = Annotated[list[str] | None, typer.Option(help="column=value: rows to measure")]
Decimal = Annotated[str, typer.Option(help="decimal sign of the file: point or comma")]


def agree(
    file: FileArgument,
    label: Label,
    verdict: Verdict,
    out: Out = None,
    scale: Scale = "",
    id: Id = "",
    group: Group = "",
    judge: Judge = "",
    probabilities: Probabilities = "",
    annotators: Annotators = "",
    swapped: Swapped = "",
    candidate: Candidate = "",
    reference: Reference = "",
    source: Source = "",
    system: System = "",
    slice: Slice = None,
    train: Train = "",
    target_accuracy: TargetAccuracy = 0.9,
    tolerance: Tolerance = None,
    missed_fail: MissedFail = 1.0,
    false_alarm: FalseAlarm = 1.0,
    metric: Metric = False,
    lower_is_better: LowerIsBetter = False,
    validation: Validation = "",
    encoding: Encoding = "",
    labels: Labels = "",
    only: Only = None,
    decimal: Decimal = "",
) -> None:
    """Measure anybody's verdicts against labels: agreement, rules, people, biases; a report."""
    from pt_app.agree import command, table
    from pt_app.eval_model import console
    from pt_app.evidence.judge_numbers import Asked
    from pt_app.report import terminal_table

    console.start()
    one, _, two = candidate.partition(",")
    columns = table.Columns(
        label=label,
        verdict=verdict,
        id=id,
        group=group,
        judge=judge,
        system=system,
        probabilities=probabilities,
        annotators=annotators,
        swapped=swapped,
        candidate="" if two else one,
        candidates=(one, two) if two else (),
        reference=reference,
        source=source,
        slices=tuple(slice or ()),
    )
    folder = out or Path(f"{Path(file).stem}-evidence")
    asked = Asked(target_accuracy, tolerance, missed_fail, false_alarm)
    typed, scores = ("judge", *sys.argv[1:]), (metric, lower_is_better, validation)
    reading = table.FileOptions(encoding, labels, tuple(only or ()), decimal)
    options = command.AgreeOptions(columns, scale, train, reading, asked, typed, *scores)
    results, notes = command.agree(file, folder, options)
    for note in notes:
        print(f"note: {note}")
    console.show(terminal_table(results))
    print(f"report: {folder / 'report.html'}")


def report(
    folder: Annotated[Path, typer.Argument(help="of results.json and predictions.jsonl")],
) -> None:
    """Write the pages of an evaluation anew, from its results.json and predictions.jsonl."""
    from pt_app.report import write_report

    print(f"report: {write_report(folder)}")


def gate(
    folders: Annotated[
        list[Path], typer.Argument(help="evaluation of the judge in use, then of the new one")
    ],
    margin: Annotated[float, typer.Option(min=0, help="loss of agreement that is allowed")] = 0.02,
    floor: Annotated[
        float | None, typer.Option(help="agreement to hold; with one folder it is needed")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="fewest rows for a decision")] = 100,
    parse_failures: Annotated[
        float, typer.Option("--parse_failures", min=0, max=1, help="largest share")
    ] = 0.02,
    unscored: Annotated[float, typer.Option(min=0, max=1, help="largest share")] = 0.02,
    abstentions: Annotated[
        float, typer.Option(min=0, max=1, help="largest share below the accuracy's threshold")
    ] = 1.0,
    junit: Annotated[Path | None, typer.Option(help="write JUnit XML into this file")] = None,
    markdown: Annotated[Path | None, typer.Option(help="write a table into this file")] = None,
) -> None:
    """Decide whether a new judge is worse: exit code 0 no, 3 yes, 4 cannot be told."""
    from pt_app.evidence.gate import EXIT_CODES, Limits, decide, to_junit, to_markdown
    from pt_app.evidence.gate import gate as checked
    from pt_app.evidence.results import PREDICTIONS, RESULTS
    from pt_app.files import refuse_overwrite, write_text_atomic
    from pt_app.report.source import read_judged

    if len(folders) > 2 or (len(folders) == 1 and floor is None):
        raise UserError("name two evaluation folders, or one and --floor")
    read = [folder / name for folder in folders for name in (RESULTS, PREDICTIONS)]
    for flag, written in (("--junit", junit), ("--markdown", markdown)):
        refuse_overwrite([written] if written else [], read, flag)
    new, before = read_judged(folders[-1]), read_judged(folders[0]) if len(folders) == 2 else None
    limits = Limits(margin, floor, rows, parse_failures, unscored, abstentions)
    checks = checked(new, before, limits)
    decision = decide(checks)
    for check in checks:
        print(f"{check.decision:10} {check.name}: {check.why}")
    print(f"gate: {decision}")
    for file, text in ((junit, to_junit), (markdown, to_markdown)):
        if file:
            write_text_atomic(file, text(checks, f"judge gate {new.name}"))
    raise typer.Exit(EXIT_CODES[decision])


def attack(
    adapter: Annotated[Path, typer.Option(help="folder of a judge's adapter")],
    data: Annotated[Path, typer.Option(help="dataset folder; its test rows are attacked")],
    rows: Annotated[int, typer.Option(min=0, help="test rows to attack; 0: all")] = 50,
    families: Annotated[str, typer.Option(help="of attacks, by commas; all if not given")] = "",
    base: Annotated[
        str | None, typer.Option(help="the adapter's base, where it was a folder")
    ] = None,
    held_out: Annotated[
        bool, typer.Option("--held_out", help="only texts that --hard_negatives does not use")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="folder; the adapter's evaluation")] = None,
    seed: Annotated[int, typer.Option(help="draws the rows")] = 0,
) -> None:
    """Attack a judge: injected verdicts, control tokens, copies, empty and broken candidates."""
    from pt_app.eval_model.data import find_folder

    find_folder(data)
    from pt_app.attack.command import AttackOptions
    from pt_app.attack.command import attack as attacked
    from pt_app.eval_model import console
    from pt_app.report import attack_table, write_report

    console.start()
    names = [name.strip() for name in families.split(",") if name.strip()]
    results = attacked(adapter, data, out, AttackOptions(rows, names, base, seed, held_out))
    console.show(attack_table(results))
    if out is None and (adapter / "evaluation" / "results.json").exists():
        print(f"report: {write_report(adapter / 'evaluation')}")


DataFolder = Annotated[Path, typer.Option(help="dataset folder; its test rows are judged")]
Adapter = Annotated[list[Path] | None, typer.Option(help="folder; may be given again")]
WithBase = Annotated[bool, typer.Option("--base", help="the first adapter's base too")]
BasePath = Annotated[
    str | None, typer.Option("--base_path", help="the base, where it was a folder")
]
Endpoint = Annotated[str, typer.Option(help="URL of an OpenAI-compatible endpoint")]
EndpointModel = Annotated[str, typer.Option("--endpoint_model", help="the model to ask there")]
Shots = Annotated[int, typer.Option(min=0, help="training rows shown to it first")]
KeyEnv = Annotated[str, typer.Option("--key_env", help="variable that holds its key")]
Rpm = Annotated[int, typer.Option(min=0, help="requests a minute; 0: no limit")]
Tpm = Annotated[int, typer.Option(min=0, help="tokens a minute")]
PriceIn = Annotated[float, typer.Option("--price_in", min=0, help="$ per million")]
PriceOut = Annotated[float, typer.Option("--price_out", min=0, help="$ per million")]
MaxCost = Annotated[float, typer.Option("--max_cost", min=0, help="$ in all")]
Concurrency = Annotated[int, typer.Option(min=1, help="requests under way at once")]
MaxTokens = Annotated[int, typer.Option("--max_tokens", min=1, help="of an answer of its")]
Rows = Annotated[int, typer.Option(min=0, help="test rows, drawn by the seed; 0: all")]
Feedback = Annotated[bool, typer.Option("--feedback", help="the judges' words too")]
ScorePrecision = Annotated[
    str, typer.Option("--score_precision", help="float32 (exact), bf16, int8")
]
Curve = Annotated[bool, typer.Option("--curve", help="train on a quarter and half of the rows too")]
EvaluateOut = Annotated[Path, typer.Option(help="folder to write")]
Seed = Annotated[int, typer.Option(help="draws rows and shots")]


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
    """Judge a test set with several judges, prompted models among them: was tuning worth it?"""
    if score_precision not in ("float32", "bf16", "int8"):
        raise UserError(f"--score_precision {score_precision}: must be float32, bf16 or int8")
    if bool(endpoint) != bool(endpoint_model):
        raise UserError("--endpoint and --endpoint_model belong together: give both")
    if not adapter and not endpoint:
        raise UserError("name a judge: --adapter DIR, or --endpoint URL with --endpoint_model M")
    from pt_app.eval_model.data import find_folder

    find_folder(data)
    from pt_app.eval_model import console
    from pt_app.evaluate.command import EvalOptions, evaluate_judges
    from pt_app.evaluate.prompted import Endpoint
    from pt_app.report import terminal_table

    console.start()
    asked = Endpoint(
        model=endpoint_model,
        url=endpoint,
        key_env=key_env,
        shots=shots,
        concurrency=concurrency,
        rpm=rpm,
        tpm=tpm,
        price_in=price_in,
        price_out=price_out,
        max_cost=max_cost,
        max_tokens=max_tokens,
    )
    options = EvalOptions(
        adapters=adapter or (),
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
    console.show(terminal_table(evaluate_judges(data, out, options)))
    print(f"report: {out / 'report.html'}")
