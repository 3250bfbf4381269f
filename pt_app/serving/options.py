"""The flags of `judge serve`, `judge parity` and `judge export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pt_app.core.flags import flag
from pt_app.core.settings import Precision as ScorePrecision

Precision = Literal["float32", "float16", "bfloat16", "8bit", "other"]
EngineName = Literal["judge", "llama.cpp", "vllm"]
Target = Literal["merged", "gguf-lora", "gguf", "mlx", "transformers"]
Dtype = Literal["float32", "float16", "bfloat16", "q8_0"]


@dataclass(frozen=True)
class ServeOptions:
    """Where judges are served, to whom, and how."""

    host: str = flag(
        "address to listen at; any but this machine's own needs --key_file", "127.0.0.1"
    )
    port: int = flag("port; 0: a free one", 8000, low=0, high=65535)
    key_file: Path | None = flag("file with the key that clients send as Bearer token", None)
    strict: bool = flag("refuse questions that a judge was not trained on", False)
    base: str | None = flag("the adapters' base, if it was a folder or file", None)
    precision: ScorePrecision = flag(
        "precision of the scoring; float32 is exact", "float32", name="score_precision"
    )


@dataclass(frozen=True)
class Rows:
    """Which rows are compared, and the base of the reference."""

    rows: int = flag("number of test rows, drawn by the seed; 0: all", 200, low=0)
    base: str | None = flag("the adapter's base, if it was a folder or file", None)
    seed: int = flag("seed that draws the rows", 0)


@dataclass(frozen=True)
class ParityOptions(Rows):
    """What is compared, and what is known of a server."""

    engine: EngineName = flag("engine behind a URL", "judge")
    served_model: str = flag("name of the model at a URL", "")
    engine_precision: Precision = flag("precision of the weights at a URL", "float32")
    key_env: str = flag("environment variable that holds the key for a URL; default: no key", "")
    out: Path = flag("file to write", Path("parity.json"))


@dataclass(frozen=True)
class ExportOptions(Rows):
    """In which precision a judge is written."""

    dtype: Dtype = flag("precision of the weights", "float32")
    questions: str = flag(
        "questions to export to transformers, separated by commas; default: all", ""
    )
