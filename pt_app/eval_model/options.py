"""The flags of the commands that judge rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pt_app.core.decision_wires import Wire
from pt_app.core.flags import flag
from pt_app.core.settings import (
    PROBE_HELP,
    PROBE_ROWS,
    READING_HELP,
    Order,
    Precision,
    ReadingMode,
)
from pt_app.models.endpoint.options import RequestOptions

ScoringEngine = Literal["judge", "vllm"]


@dataclass(frozen=True)
class EvalOptions:
    """Which judges are compared, and on which rows."""

    with_base: bool = flag("also judge with the first adapter's base", False, name="base")
    base: str | None = flag("path of the base, if it was a folder or file", None, name="base_path")
    rows: int = flag("number of test rows, drawn by the seed; 0: all", 0, low=0)
    feedback: bool = flag("also generate issues and feedback", False)
    precision: Precision = flag(
        "precision of the scoring; float32 is exact", "float32", name="score_precision"
    )
    reading: ReadingMode = flag(READING_HELP, "auto")
    probe_rows: int = flag(PROBE_HELP, PROBE_ROWS, low=0)
    order: Order = flag("judge pairs in both orders and take the mean, or once as_given", "both")
    target_accuracy: float = flag("accuracy to reach by abstaining", 0.9, low=0.01, high=0.999)
    curve: bool = flag("also train on a quarter and on half of the rows", False)
    seed: int = flag("seed that draws rows and shots", 0)


@dataclass(frozen=True, kw_only=True)
class Endpoint(RequestOptions):
    """A model at an endpoint, prompted or a decision model, how it is asked, and at what cost."""

    url: str = flag("URL of an OpenAI-compatible endpoint", "", name="endpoint")
    decisions: str = flag("URL of a decision model, in place of --endpoint", "")
    model: str = flag("name of the model at the endpoint", "", name="endpoint_model")
    shots: int = flag("number of training rows in its prompt", 0, low=0)
    max_tokens: int = flag("maximum length of an answer", 512, low=1, unit="tokens")
    wire: Wire = flag("how a decision model is asked: OpenAI's Decisions or System One", "openai")
    repeats: int = flag("number of times that a decision model is asked about each row", 3, low=1)


@dataclass(frozen=True)
class AgreeOptions:
    """How the verdicts of a file are measured."""

    scale: str = flag("scale of labels and verdicts: 0-10, 1-5, pass_fail, pairwise ...", "")
    train: str = flag("file of labelled rows to fit the baselines on", "")
    metric: bool = flag("the verdicts are a metric's scores, of any range", False)
    lower_is_better: bool = flag("lower scores of such a metric are better", False)
    validation: str = flag("file of rows to fit the map from such scores to verdicts", "")


@dataclass(frozen=True)
class ScoreOptions:
    """How the rows of a file are judged."""

    map: Sequence[str] = flag("field=column pairs, separated by commas", ())
    base: str | None = flag("the adapter's base, if it was a folder or file", None)
    feedback: bool = flag("also generate issues and feedback", False)
    precision: Precision = flag(
        "precision of the scoring; float32 is exact", "float32", name="score_precision"
    )
    order: Order = flag("judge pairs in both orders and take the mean, or once as_given", "both")
    reading: ReadingMode = flag(READING_HELP, "auto")
    shard: str = flag("score one shard of the rows: 1/8 is the first of eight", "1/1")
    device: str = flag("device to score on: cpu, cuda or mps", "cpu")
    engine: ScoringEngine = flag("what reads the verdicts: the judge itself, or vllm", "judge")
    python: str | None = flag("interpreter of vLLM's environment, for --engine vllm", None)
    encoding: str = flag("encoding of the input, if it is not UTF-8", "")
    ray: str = flag(
        "score with the workers of a Ray cluster at HOST:PORT; auto: that of this machine, or one "
        "of its own",
        "",
        unit="address",
    )
    workers: int | None = flag(
        "number of Ray workers, each a judge on one thread; default: one per CPU", None, low=1
    )
