"""The `judge` command: one thin subcommand a capability; flags with underscores, as in recipes."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pt_app.cli_bench import bench
from pt_app.cli_data import (
    Decimals,
    Delimiter,
    Encoding,
    Header,
    HubSplit,
    Lexicons,
    Quotes,
    data,
)
from pt_app.cli_evidence import agree, attack, evaluate, gate, report
from pt_app.cli_machines import bundle, doctor, estimate, prefetch
from pt_app.errors import UserError, exit_with

# The recipe itself reads the flags that a command does not know.
RECIPE_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


class _Judge(TyperGroup):
    """Shows the help of any command before typer imports pydantic, which takes half of the time."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as typer does, but for a command line that asks for help, or names no command."""
        command: Any = self
        context, left = ctx, list(args)
        while left and left[0] in getattr(command, "commands", {}):
            name = left.pop(0)
            command = command.commands[name]
            context = typer.Context(command, info_name=name, parent=context)
        asked = "--help" in left and command.add_help_option
        unfinished = not left and hasattr(command, "commands")
        if asked or unfinished:
            print(command.get_help(context), file=sys.stderr if unfinished else sys.stdout)
            ctx.exit(2 if unfinished else 0)
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="judge",
    cls=_Judge,
    help="Fine-tune a small language model into a judge, and prove how good it is.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
base = typer.Typer(help="The tiny offline base (--model tiny).")
app.add_typer(data, name="data")
app.add_typer(bench, name="bench")
app.add_typer(base, name="base")
app.command()(agree)
app.command()(report)
app.command()(gate)
app.command()(attack)
app.command("eval")(evaluate)
app.command(context_settings=RECIPE_FLAGS)(doctor)
app.command(context_settings=RECIPE_FLAGS)(estimate)
app.command(context_settings=RECIPE_FLAGS)(prefetch)
app.command()(bundle)


@app.command(context_settings=RECIPE_FLAGS, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train a judge with the recipe for this machine; takes the recipe's flags (--help: which)."""
    from pt_app.train_command import train_here

    train_here(context.args)


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="of the data and of the training")] = 0,
) -> None:
    """Generate data, train a tiny judge on it, score it: no hub, no key, a few minutes."""
    from pt_app.demo import run_demo

    run_demo(seed)


@app.command()
def score(
    adapter: Annotated[Path, typer.Option(help="folder of a judge's adapter")],
    input: Annotated[str, typer.Option(help="rows: CSV, TSV, JSON, JSON Lines, Parquet")],
    output: Annotated[Path, typer.Option(help="judgements: .jsonl, .csv or .parquet")],
    map: Annotated[
        list[str] | None, typer.Option(help="field=column, by commas, where columns differ")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="the adapter's base, where it was a folder")
    ] = None,
    feedback: Annotated[bool, typer.Option("--feedback", help="the judge's words too")] = False,
    score_precision: Annotated[
        str, typer.Option("--score_precision", help="float32 (exact), bf16, int8")
    ] = "float32",
    shard: Annotated[str, typer.Option(help="a stretch of the rows: 1/8 is the first")] = "1/1",
    device: Annotated[str, typer.Option(help="cpu, cuda or mps")] = "cpu",
    encoding: Annotated[str, typer.Option(help="of the input, if not UTF-8")] = "",
) -> None:
    """Judge the rows of a file: verdict, probabilities, confidence; a killed run resumes."""
    from pt_app.eval_model import console
    from pt_app.score_command import ScoreOptions, Shard, score_file

    console.start()
    options = ScoreOptions(
        map=map or (),
        encoding=encoding,
        base=base,
        feedback=feedback,
        precision=_one_of(score_precision, ("float32", "bf16", "int8"), "--score_precision"),
        device=device,
        shard=Shard.parse(shard),
    )
    counts = score_file(adapter, input, output, options)
    said = ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items()))
    print(f"{output}: {sum(counts.values()):,} rows: {said or 'none'}")


def _one_of(value: str, allowed: tuple[str, ...], flag: str) -> str:
    if value not in allowed:
        raise UserError(f"{flag} {value}: must be one of {', '.join(allowed)}")
    return value


@app.command()
def sync(
    folder: Annotated[str, typer.Argument(help="a run's folder, or one above several")],
    deadline: Annotated[float, typer.Option(help="seconds that all of it may take")] = 600.0,
) -> None:
    """Send to W&B and Weave what runs without a network kept on disk."""
    from pt_app.eval_model.tracking_sync import sync as send

    if not folder:  # an unset variable; as a path it would be the current folder
        raise UserError("judge sync got an empty path: name the folder of a run")
    summary = send(Path(folder), deadline)
    print(str(summary))
    if summary.failed:
        raise UserError(f"{len(summary.failed)} not sent: run judge sync {folder} again later")


@app.command()
def init(
    file: Annotated[str, typer.Argument(help="labels: CSV, TSV, JSON, JSON Lines, Parquet")],
    model: Annotated[str, typer.Option(help="whose tokenizer counts lengths")] = "tiny",
    encoding: Encoding = "",
    delimiter: Delimiter = "",
    quoting: Quotes = "auto",
    header: Header = "",
    decimal: Decimals = "",
    hub_split: HubSplit = "train",
    out: Annotated[Path | None, typer.Option(help="write the rubric's stub into this file")] = None,
) -> None:
    """Look at a file of labels; propose task, map, scale, template and the next commands."""
    from pt_app.judge_data.proposing.inspecting import inspect
    from pt_app.judge_data.reading.tables import Reading, names_of

    reading = Reading(encoding, delimiter, quoting, names_of(header), decimal, hub_split)
    print("\n".join(inspect(file, model=model, reading=reading, rubric=out).lines()))


@app.command()
def join(
    adapters: Annotated[list[Path], typer.Argument(help="adapter folders of the folds")],
    out: Annotated[Path, typer.Option(help="folder for results.json and report")],
) -> None:
    """Join the evaluations of adapters trained on the folds of one dataset: every row once."""
    from pt_app.eval_model.folds import join_evaluations

    print(f"report: {join_evaluations(adapters, out)}")


@base.command("path")
def base_path() -> None:
    """Print where the shipped tiny base lies, for stock transformers and peft."""
    from pt_app.base_model import shipped

    print(shipped())


@base.command("train")
def base_train(
    output: Annotated[Path, typer.Option(help="folder to write the base into")],
    seed: Annotated[int, typer.Option(help="of corpus, weights and order")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="a weak base within 6 minutes")] = False,
    steps: Annotated[int | None, typer.Option(help="optimizer steps, if not the full ones")] = None,
    lexicon: Annotated[Lexicons, typer.Option(help="words of the grammar")] = "full",
    corpus: Annotated[
        Path | None, typer.Option(help="parallel corpus (TMX, TSV) instead of the grammar")
    ] = None,
    max_words: Annotated[
        int | None, typer.Option("--max_words", help="of a corpus sentence; longer ones are left")
    ] = None,
) -> None:
    """Train a tokenizer and a tiny base from nothing; at most 2 hours on 2 cores."""
    from pt_app.base_model.build import train_base

    made = train_base(
        output,
        seed=seed,
        quick=quick,
        steps=steps,
        lexicon=lexicon,
        corpus=corpus,
        max_words=max_words,
    )
    print(f"base: {made}")


def main() -> None:
    """Entry point of the `judge` command."""
    exit_with(_run)


def _run() -> None:
    try:
        code = app(prog_name="judge", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        # Typer's own usage errors carry their message; one line of it is enough.
        if type(error).__module__.split(".")[0] not in ("click", "typer"):
            raise
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        message = message.replace("Value error, ", "")  # pydantic's, by which typer checks a choice
        raise UserError(f"{message.rstrip('.')}; see judge --help") from None
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
