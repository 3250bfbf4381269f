"""The `judge data` commands: from anybody's labels to a dataset folder that cannot leak."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from pt_app.commands.flags import (
    Decimals,
    Delimiter,
    Encoding,
    Folder,
    Header,
    HubSplit,
    Json,
    Lexicons,
    Model,
    Near,
    Quotes,
    Ratios,
    SplitBy,
    Splits,
    Tasks,
)

data = typer.Typer(help="Judge data: where labels come from.")

Options = TypeVar("Options")


def _of_flags(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """Make a command's options of its flags, by their names; a list that is not given is empty."""
    flags = {field.name: given[field.name] for field in fields(kind)}  # type: ignore[arg-type]
    lists = ("map", "only")
    return kind(**{k: tuple(v or ()) if k in lists else v for k, v in flags.items()})


@data.command()
def generate(
    out: Annotated[Path, typer.Option(help="dataset folder to write")] = Path("datasets/demo"),
    rows: Annotated[int, typer.Option(help="number of training rows")] = 12_000,
    val_rows: Annotated[int, typer.Option("--val_rows", help="number of validation rows")] = 300,
    test_rows: Annotated[int, typer.Option("--test_rows", help="number of test rows")] = 400,
    seed: Annotated[int, typer.Option(help="the same seed gives the same bytes")] = 0,
    lexicon: Annotated[Lexicons, typer.Option(help="lexicon of the grammar")] = "full",
    corpus: Annotated[
        Path | None,
        typer.Option(help="parallel corpus (TMX, TSV) to corrupt instead of the grammar"),
    ] = None,
    max_words: Annotated[
        int | None,
        typer.Option(
            "--max_words", help="maximum words per corpus sentence; longer ones are skipped"
        ),
    ] = None,
    variants: Annotated[int, typer.Option(help="number of candidates per training source")] = 4,
    hard_negatives: Annotated[
        float,
        typer.Option("--hard_negatives", help="fraction of the training rows to attack and add"),
    ] = 0.0,
) -> None:
    """Generate sentence pairs with known errors; score, issues and feedback follow from them."""
    given = locals()
    from pt_app.judge_data.generator.generate import GenerateOptions
    from pt_app.judge_data.generator.generate import generate as run

    print("\n".join(run(out, _of_flags(GenerateOptions, given)).lines()))


@data.command("import")
def import_(
    files: Annotated[
        list[str], typer.Argument(help="CSV, TSV, JSON, JSON Lines, Parquet, or a Hub dataset id")
    ],
    out: Annotated[Path, typer.Option(help="dataset folder to write")],
    format: Annotated[
        str, typer.Option(help="public format: mlqe-pe, wmt-mqm, pandalm, llmbar, demetr, ...")
    ] = "",
    map: Annotated[
        list[str] | None, typer.Option(help="field=column pairs: source=src,label=score")
    ] = None,
    labels: Annotated[
        str,
        typer.Option(
            help="meaning of labels: good=PASS,bad=FAIL or 1=A,2=B,0=tie; unsure= is no label"
        ),
    ] = "",
    task: Annotated[
        Tasks | None, typer.Option(help="task, if the map and the labels do not tell it")
    ] = None,
    scale: Annotated[str, typer.Option(help="scale of scores: 0-10, 1-5, 0-100, 0-10:0.5")] = "",
    template: Annotated[str, typer.Option(help="prompt template: a name or a folder")] = "",
    rubric: Annotated[Path | None, typer.Option(help="text file of the rubric")] = (None),
    reduce: Annotated[
        str,
        typer.Option(help="how to combine several annotators' labels: majority, mean or median"),
    ] = "",
    mqm_weights: Annotated[
        str, typer.Option("--mqm_weights", help="google, core, or your own YAML file")
    ] = "google",
    encoding: Encoding = "",
    delimiter: Delimiter = "",
    quoting: Quotes = "auto",
    header: Header = "",
    decimal: Decimals = "",
    hub_split: HubSplit = "train",
    only: Annotated[
        list[str] | None, typer.Option(help="column=value: skip rows with another value")
    ] = None,
    prefix: Annotated[
        str, typer.Option(help="prefix of generated ids; default: the file name")
    ] = "",
    drop_bad: Annotated[
        bool, typer.Option("--drop_bad", help="skip rows that cannot be used, and count them")
    ] = False,
    append: Annotated[bool, typer.Option("--append", help="add to the rows of the folder")] = False,
    into: Annotated[Splits | None, typer.Option(help="put all rows into this split")] = None,
    by: Annotated[SplitBy, typer.Option(help="what a split keeps together")] = "group",
    ratios: Ratios = "0.8,0.1,0.1",
    seed: Annotated[int, typer.Option(help="seed of the split")] = 0,
    near: Near = 0.9,
    origin: Annotated[str, typer.Option(help="where the labels come from, for the data card")] = "",
    licence: Annotated[str, typer.Option(help="licence of the rows, for the data card")] = "",
) -> None:
    """Turn a file of labels into a dataset folder: split without leaks, checked and documented."""
    given = locals()
    from pt_app.judge_data.importing import ImportOptions, import_labels
    from pt_app.judge_data.reading.tables import Reading, names_of
    from pt_app.judge_data.splitting import SplitPlan

    plan = SplitPlan(by=by, ratios=ratios, seed=seed, near=near, into=into)
    reading = Reading(encoding, delimiter, quoting, names_of(header), decimal, hub_split)
    options = _of_flags(ImportOptions, {**given, "reading": reading})
    print("\n".join(import_labels(files, out, options, plan, append=append)))


@data.command()
def split(
    folder: Folder,
    by: Annotated[SplitBy, typer.Option(help="what a split keeps together")] = "group",
    ratios: Ratios = "0.8,0.1,0.1",
    seed: Annotated[int, typer.Option(help="seed of the split")] = 0,
    near: Near = 0.9,
    folds: Annotated[
        int,
        typer.Option(
            help="write this many folds, folds/1 and up, in which each row is tested once"
        ),
    ] = 0,
    anew: Annotated[
        bool, typer.Option("--anew", help="ignore where splits.json placed the groups")
    ] = False,
) -> None:
    """Split the rows of a folder again by group; groups in splits.json stay where they are."""
    from pt_app.judge_data.folder import split_folder
    from pt_app.judge_data.splitting import SplitPlan

    plan = SplitPlan(by=by, ratios=ratios, seed=seed, near=near, folds=folds, anew=anew)
    print("\n".join(split_folder(folder, plan).lines()))


@data.command()
def check(
    folder: Folder,
    model: Annotated[
        str, typer.Option(help="also check whether the rows fit, with this model's tokenizer")
    ] = "",
    max_seq_length: Annotated[
        int, typer.Option("--max_seq_length", help="maximum tokens of prompt and answer")
    ] = 512,
    near: Near = 0.9,
    as_json: Json = False,
) -> None:
    """Check for leaks between splits, contradictory labels and long rows; exit code 2 on a leak."""
    from pt_app.core.streams import print_json
    from pt_app.judge_data.checking import check_folder, refuse_leaks

    report = check_folder(folder, near=near, model=model, max_seq_length=max_seq_length)
    if as_json:
        print_json(report.to_json())
    else:
        print("\n".join(report.lines()))
    refuse_leaks(report, folder)


@data.command()
def preview(
    folder: Folder,
    model: Model = "tiny",
    n: Annotated[int, typer.Option("-n", help="number of rows to show")] = 3,
    split: Annotated[Splits, typer.Option(help="split to show rows of")] = "train",
    ids: Annotated[bool, typer.Option("--ids", help="show the token ids")] = False,
    max_seq_length: Annotated[
        int, typer.Option("--max_seq_length", help="maximum tokens of prompt and answer")
    ] = 512,
) -> None:
    """Show the prompts as the model reads them, with the supervised tokens in colour."""
    from pt_app.judge_data.preview import preview as show

    show(folder, model=model, n=n, split=split, ids=ids, max_seq_length=max_seq_length)


@data.command()
def relabel(
    folder: Folder,
    n: Annotated[int, typer.Option("-n", help="number of rows to label a second time")] = 100,
    out: Annotated[Path, typer.Option(help="CSV file to write")] = Path("relabel.csv"),
    read: Annotated[Path | None, typer.Option(help="the CSV file, filled in")] = None,
    encoding: Annotated[
        str, typer.Option(help="encoding of the filled-in file, if it is not UTF-8")
    ] = "",
    seed: Annotated[int, typer.Option(help="seed of the draw and the order")] = 0,
) -> None:
    """Label rows again, blind, to measure how far an annotator agrees with themselves."""
    from pt_app.judge_data.relabel import read_back, write_blind

    lines = read_back(folder, read, encoding) if read else write_blind(folder, n, out, seed)
    print("\n".join(lines))


@data.command()
def distil(
    file: Annotated[Path, typer.Argument(help="file of sources, or of sources and candidates")],
    out: Annotated[
        Path, typer.Option(help="dataset folder to write; the journal is written next to it")
    ],
    model: Annotated[str, typer.Option(help="name of the teacher model at the endpoint")],
    map: Annotated[list[str] | None, typer.Option(help="field=column pairs, as in import")] = None,
    write: Annotated[
        int, typer.Option(help="number of graded candidates to ask for per source; 0: only label")
    ] = 0,
    task: Annotated[Tasks, typer.Option(help="task of the verdicts")] = "score",
    scale: Annotated[str, typer.Option(help="scale of scores")] = "0-10",
    template: Annotated[str, typer.Option(help="prompt template of the judge")] = "",
    rubric: Annotated[
        Path | None, typer.Option(help="text file of the rubric that the teacher follows")
    ] = None,
    base_url: Annotated[
        str, typer.Option("--base_url", help="OpenAI-compatible endpoint; default: OPENAI_BASE_URL")
    ] = "",
    key_env: Annotated[
        str, typer.Option("--key_env", help="environment variable that holds the key")
    ] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(help="number of concurrent requests")] = 8,
    rpm: Annotated[int, typer.Option(help="requests per minute; 0: no limit")] = 0,
    tpm: Annotated[int, typer.Option(help="tokens per minute; 0: no limit")] = 0,
    price_in: Annotated[
        float, typer.Option("--price_in", help="dollars per million prompt tokens")
    ] = 0.0,
    price_out: Annotated[
        float, typer.Option("--price_out", help="dollars per million answer tokens")
    ] = 0.0,
    max_cost: Annotated[
        float, typer.Option("--max_cost", help="maximum cost in dollars; 0: no limit")
    ] = 0.0,
    max_tokens: Annotated[
        int, typer.Option("--max_tokens", help="maximum tokens per answer")
    ] = 1024,
    temperature: Annotated[float, typer.Option(help="sampling temperature of the teacher")] = 0.0,
    timeout: Annotated[float, typer.Option(help="timeout of a request in seconds")] = 60.0,
    retries: Annotated[int, typer.Option(help="retries per request")] = 6,
    ratios: Ratios = "0.8,0.1,0.1",
    seed: Annotated[int, typer.Option(help="seed of the split")] = 0,
    licence: Annotated[str, typer.Option(help="licence of the rows, for the data card")] = "",
) -> None:
    """Ask a teacher model for labels or graded candidates; each answer is kept when it arrives."""
    given = locals()
    from pt_app.judge_data.distil import DistilOptions
    from pt_app.judge_data.distil import distil as run
    from pt_app.judge_data.splitting import SplitPlan

    options = _of_flags(DistilOptions, given)
    summary = run(file, out, options, SplitPlan(ratios=ratios, seed=seed))
    print("\n".join(summary.lines()))
