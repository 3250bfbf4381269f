"""The `judge data` commands: from anybody's labels to a dataset folder that cannot leak."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pt_app.commands.flags import JSON, Commands, flag
from pt_app.judge_data.options import (
    NEAR,
    DistilOptions,
    GenerateOptions,
    ImportOptions,
    Split,
    SplitPlan,
)

data = Commands(help="Judge data: where labels come from.")

FOLDER = flag("dataset folder", positional=True)
MAX_SEQ_LENGTH = flag("maximum length of prompt and answer", 512, unit="tokens")
CHAT_TEMPLATE = flag(
    "chat template in place of the model's own: chatml, gemma, plain or a file", "", unit="name"
)


@data.command()
def generate(
    *,
    out: Path = flag("dataset folder to write", Path("datasets/demo")),
    options: GenerateOptions,
) -> None:
    """Generate sentence pairs with known errors; score, issues and feedback follow from them."""
    from pt_app.judge_data.generator.generate import generate as write

    print("\n".join(write(out, options).lines()))


@data.command("import")
def import_(
    *,
    files: Sequence[str] = flag(
        "CSV, TSV, JSON, JSON Lines, Parquet, or a Hub dataset id", positional=True
    ),
    out: Path = flag("dataset folder to write"),
    options: ImportOptions,
    append: bool = flag("add to the rows of the folder", False),
    into: Split | None = flag("put all rows into this split", None),
    plan: SplitPlan,
) -> None:
    """Turn a file of labels into a dataset folder: split without leaks, checked and documented."""
    from pt_app.judge_data.decision_rows import LABELS
    from pt_app.judge_data.importing import import_labels
    from pt_app.judge_data.question_import import import_questions

    asks = options.questions or options.format in LABELS
    run = import_questions if asks else import_labels
    print("\n".join(run(files, out, options, replace(plan, into=into), append=append)))


@data.command()
def split(
    *,
    folder: Path = FOLDER,
    plan: SplitPlan,
    folds: int = flag("write this many folds, folds/1 and up, in which each row is tested once", 0),
    anew: bool = flag("ignore where splits.json placed the groups", False),
) -> None:
    """Split the rows of a folder again by group; groups in splits.json stay where they are."""
    from pt_app.judge_data.folder import split_folder

    print("\n".join(split_folder(folder, replace(plan, folds=folds, anew=anew))))


@data.command()
def check(
    *,
    folder: Path = FOLDER,
    model: str = flag("also check whether the rows fit, with this model's tokenizer", ""),
    max_seq_length: int = MAX_SEQ_LENGTH,
    chat_template: str = CHAT_TEMPLATE,
    near: float = flag("word similarity of near duplicates, at least; 1: off", NEAR),
    as_json: bool = JSON,
) -> None:
    """Check for leaks between splits, contradictory labels and long rows; exit code 2 on a leak."""
    from pt_app.core.streams import print_json
    from pt_app.judge_data.checking import check_folder, refuse_leaks

    report = check_folder(
        folder,
        near=near,
        model=model,
        max_seq_length=max_seq_length,
        chat_template=chat_template,
    )
    if as_json:
        print_json(report.to_json())
    else:
        print("\n".join(report.lines()))
    refuse_leaks(report, folder)


@data.command()
def preview(
    *,
    folder: Path = FOLDER,
    model: str = flag("model whose tokenizer counts tokens, as --model of a training", "tiny"),
    n: int = flag("number of rows to show", 3),
    split: Split = flag("split to show rows of", "train"),
    ids: bool = flag("show the token ids", False),
    max_seq_length: int = MAX_SEQ_LENGTH,
    chat_template: str = CHAT_TEMPLATE,
    grid: str = flag("coarser scale, as judge train has it", "auto", unit="scale"),
) -> None:
    """Show the prompts as the model reads them, with the supervised tokens in colour."""
    from pt_app.judge_data.preview import preview as show

    show(
        folder,
        model=model,
        n=n,
        split=split,
        ids=ids,
        max_seq_length=max_seq_length,
        chat_template=chat_template,
        grid=grid,
    )


@data.command()
def relabel(
    *,
    folder: Path = FOLDER,
    n: int = flag("number of rows to label a second time", 100),
    out: Path = flag("CSV file to write", Path("relabel.csv")),
    read: Path | None = flag("the CSV file, filled in", None),
    encoding: str = flag("encoding of the filled-in file, if it is not UTF-8", ""),
    seed: int = flag("seed of the draw and the order", 0),
) -> None:
    """Label rows again, blind, to measure how far an annotator agrees with themselves."""
    from pt_app.judge_data.relabel import read_back, write_blind

    lines = read_back(folder, read, encoding) if read else write_blind(folder, n, out, seed)
    print("\n".join(lines))


@data.command()
def distil(
    *,
    file: Path = flag("file of sources, or of sources and candidates", positional=True),
    out: Path = flag("dataset folder to write; the journal is written next to it"),
    options: DistilOptions,
    ratios: str = flag("fractions of the rows for train, val and test", "0.8,0.1,0.1"),
    seed: int = flag("seed of the split", 0),
) -> None:
    """Ask a teacher model for labels or graded candidates; each answer is kept when it arrives."""
    from pt_app.judge_data.distil import distil as run

    print("\n".join(run(file, out, options, SplitPlan(ratios=ratios, seed=seed)).lines()))
