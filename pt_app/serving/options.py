"""The flags of `judge serve`, `judge parity` and `judge export`."""

from dataclasses import dataclass
from pathlib import Path

from pt_app.core.flags import flag
from pt_app.core.settings import Precision


@dataclass(frozen=True)
class ServeOptions:
    """Where judges are served, to whom, and how."""

    host: str = flag(
        "address to listen at; any but this machine's own needs --key_file", "127.0.0.1"
    )
    port: int = flag("port; 0: a free one", 8000, low=0, high=65535)
    key_file: Path | None = flag("file with the key that clients give as Bearer", None)
    strict: bool = flag("refuse questions that a judge was not trained on", False)
    base: str | None = flag("the adapters' base, if it was a folder or file", None)
    precision: Precision = flag(
        "precision of the scoring; float32 is exact", "float32", name="score_precision"
    )
