"""The flags of the commands that read files of labels or verdicts, and of those that write data.

Nothing heavy is imported here: every `judge` command builds its help from these tables.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pt_app.core.errors import UserError
from pt_app.core.flags import flag
from pt_app.core.settings import By
from pt_app.core.verdicts import Task
from pt_app.models.endpoint.options import RequestOptions

LexiconSize = Literal["full", "small"]
Quoting = Literal["auto", "on", "off"]
Decimal = Literal["", "point", "comma"]
Split = Literal["train", "val", "test"]
NEAR = 0.9
MAX_FOLDS = 100


@dataclass(frozen=True)
class Reading:
    """How to read a file; what is left at its default is recognised.

    `stand_in` returns what replaces a row that cannot be read; without it such a row is an error.
    """

    encoding: str = flag("encoding of the file, if it is not UTF-8: cp1252, ...", "")
    delimiter: str = flag("delimiter of a CSV file, if it is not recognised", "")
    quoting: Quoting = flag("whether quote marks enclose fields", "auto")
    header: str = flag("column names, separated by commas, for a file without a header", "")
    decimal: Decimal = flag("decimal separator, for a column that can be read both ways", "")
    hub_split: str = flag("split of a Hub dataset", "train")
    stand_in: Callable[[UserError], dict[str, Any]] | None = None

    def given(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults."""
        return {name: value for name, value in vars(self).items() if value != vars(Reading())[name]}

    def flags(self) -> list[str]:
        """Return those settings as they are typed."""
        return [word for name, value in self.given().items() for word in (f"--{name}", value)]

    def refuse(self, error: UserError) -> dict[str, Any]:
        """Raise the error of a row that cannot be read, or return what replaces the row."""
        if self.stand_in is None:
            raise error
        return self.stand_in(error)


@dataclass(frozen=True)
class FormatOptions:
    """What a user may choose where a public format is read."""

    reduce: str = flag("how to combine several annotators' labels: majority, mean or median", "")
    mqm_weights: str = flag("google, core, or your own YAML file", "google")


@dataclass(frozen=True)
class ImportOptions(FormatOptions):
    """How rows of files become rows of a dataset."""

    format: str = flag("public format: mlqe-pe, wmt-mqm, pandalm, llmbar, demetr, ...", "")
    map: Sequence[str] = flag("field=column pairs: source=src,label=score", ())
    questions: Path | None = flag("YAML file that declares several questions, a column each", None)
    labels: str = flag("meaning of labels: good=PASS,bad=FAIL or 1=A,2=B; unsure= is no label", "")
    task: Task | None = flag("task, if the map and the labels do not tell it", None)
    scale: str = flag("scale of scores: 0-10, 1-5, 0-100, 0-10:0.5", "")
    template: str = flag("prompt template: a name or a folder", "")
    rubric: Path | None = flag("text file of the rubric", None)
    reading: Reading = Reading()
    only: Sequence[str] = flag("column=value: skip rows with another value", ())
    prefix: str = flag("prefix of generated ids; default: the file name", "")
    drop_bad: bool = flag("skip rows that cannot be used, and count them", False)
    origin: str = flag("where the labels come from, for the data card", "")
    licence: str = flag("licence of the rows, for the data card", "")


@dataclass(frozen=True)
class SplitPlan:
    """How to split; `into` puts all new rows into one split.

    Raises:
        UserError: for ratios or folds that make no split.
    """

    by: By = flag("what a split keeps together", "group")
    ratios: str = flag("fractions of the rows for train, val and test", "0.8,0.1,0.1")
    seed: int = flag("seed of the split", 0)
    near: float = flag("word similarity of near duplicates, at least; 1: off", NEAR)
    into: Split | None = None
    folds: int = 0
    anew: bool = False

    def __post_init__(self) -> None:
        self.fractions()
        if self.folds and not 2 <= self.folds <= MAX_FOLDS:
            raise UserError(f"--folds {self.folds}: choose 2 to {MAX_FOLDS}")
        if self.folds and self.by != "group":
            raise UserError(f"--folds are by group: leave out --by {self.by} or --folds")

    def fractions(self) -> tuple[float, float, float]:
        """Return the ratios of train, val and test, which need not sum to 1."""
        with suppress(ValueError):
            train, val, test = map(float, self.ratios.split(","))
            if math.isfinite(train + val + test) and train > 0 <= min(val, test):
                return train, val, test
        remedy = "write three numbers, as 0.8,0.1,0.1: the first above 0, the others 0 or more"
        raise UserError(f"--ratios {self.ratios}: {remedy}")

    @property
    def shares(self) -> dict[str, float]:
        """The share of each split that has one, train first; all of it for `into`."""
        if self.into:
            return {self.into: 1.0}
        shares = zip(("train", "val", "test"), self.fractions(), strict=True)
        return {split: share for split, share in shares if share}

    def about(self) -> dict[str, object]:
        """Say in dataset.json how the rows were split."""
        name = "folds" if self.folds else "into" if self.into else "ratios"
        how = self.folds or self.into or list(self.fractions())
        return {"by": self.by, name: how, "seed": self.seed, "near": self.near}


@dataclass(frozen=True, kw_only=True)
class DistilOptions(RequestOptions):
    """What a teacher model is asked, and how."""

    model: str = flag("name of the teacher model at the endpoint")
    map: Sequence[str] = flag("field=column pairs, as in import", ())
    write: int = flag("number of graded candidates to ask for per source; 0: only label", 0, low=0)
    task: Task = flag("task of the verdicts", "score")
    scale: str = flag("scale of scores", "0-10")
    template: str = flag("prompt template of the judge", "")
    rubric: Path | None = flag("text file of the rubric that the teacher follows", None)
    base_url: str = flag("OpenAI-compatible endpoint; default: OPENAI_BASE_URL", "")
    max_tokens: int = flag("maximum length of an answer", 1024, unit="tokens")
    temperature: float = flag("sampling temperature of the teacher", 0.0)
    timeout: float = flag("timeout of a request", 60.0, unit="seconds")
    retries: int = flag("retries per request", 6, low=0)
    licence: str = flag("licence of the rows, for the data card", "")


@dataclass(frozen=True)
class GenerateOptions:
    """What decides the bytes of a generated folder."""

    rows: int = flag("number of training rows", 12_000, low=1)
    val_rows: int = flag("number of validation rows", 300, low=0)
    test_rows: int = flag("number of test rows", 400, low=1)
    seed: int = flag("seed; the same one gives the same bytes", 0, low=0)
    lexicon: LexiconSize = flag("lexicon of the grammar", "full")
    corpus: Path | None = flag("parallel corpus (TMX, TSV) to corrupt instead of the grammar", None)
    max_words: int | None = flag("longest sentence of the corpus to use", None, low=3, unit="words")
    variants: int = flag("number of candidates per training source", 4, low=1, high=16)
    hard_negatives: float = flag(
        "fraction of training rows to add again, attacked", 0.0, low=0, high=1
    )
    questions: bool = flag("ask for each kind of error, the worst one, and the score", False)


@dataclass(frozen=True)
class Columns:
    """Which columns of a file of verdicts, or paths into them, hold what; "" or empty: none does.

    Spaces around a name are removed, as `open_table` does with the columns of a file.
    """

    label: str = flag("column of the labels; an empty cell is not labelled")
    verdict: str = flag("column of the verdicts; an empty cell is a parse failure")
    id: str = flag("column that identifies a row", "")
    group: str = flag("column of the source, whose rows depend on each other", "")
    judge: str = flag("column of the name of the judge, if there are several", "")
    probabilities: str = flag("column of the verdicts' probabilities, in the scale's order", "")
    annotators: str = flag("column of all annotators' labels, as a list", "")
    swapped: str = flag("column of the verdict on the swapped pair", "")
    candidate: str = flag("column of the judged text; two of a pair: A,B", "")
    reference: str = flag("column of the reference", "")
    source: str = flag("column of the source text", "")
    system: str = flag("column of the system that wrote the candidate", "")
    slices: Sequence[str] = flag("column to report separate numbers for", (), name="slice")
    candidates: Sequence[str] = ()  # the two of --candidate A,B, which is then ""

    def __post_init__(self) -> None:
        first, _, second = self.candidate.partition(",")
        pair = {"candidate": "", "candidates": (first, second)} if second else {"candidate": first}
        for name, value in (vars(self) | pair).items():
            clean = value.strip() if isinstance(value, str) else tuple(map(str.strip, value))
            object.__setattr__(self, name, clean)


@dataclass(frozen=True)
class FileOptions:
    """How a file of verdicts is read."""

    encoding: str = flag("encoding of the file, if it is not UTF-8", "")
    labels: str = flag("meaning of labels and verdicts: yes=PASS,no=FAIL,unsure= (no label)", "")
    only: Sequence[str] = flag("column=value of the rows to measure", ())
    decimal: Decimal = flag("decimal separator of the file", "")
