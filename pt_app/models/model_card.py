"""The card of an adapter: what it is, how to load it, what it was trained on, how good it is."""

import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pt_app.core.formatting import NAMES, estimate, table
from pt_app.core.prompt_templates import Template
from pt_app.core.results import Metric, Results
from pt_app.core.verdicts import Scale

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
# The numbers of a card, in this order, where an evaluation has them.
METRICS = (
    "kappa_quadratic",
    "kappa",
    "mae",
    "exact",
    "within_1",
    "accuracy",
    "f1_macro",
    "order_consistency",
)
SETTINGS = (
    "epochs",
    "batch_size",
    "gradient_accumulation",
    "lr",
    "max_seq_length",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_targets",
    "seed",
)


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter folder says about itself."""

    folder: Path
    identity: dict[str, str | None]
    scale: Scale
    template: Template
    max_seq_length: int
    training: dict[str, Any]
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    parameters: int
    weights_sha256: str
    day: date
    """The date that its chat template prints."""
    sha256: str
    """Over all that a verdict depends on; the names of judges end with its start."""

    @property
    def base_name(self) -> str:
        """The base's hub id, or the bare name of its folder."""
        return str(self.identity["name"])


def model_card(info: AdapterInfo, results: Results | None, *, name: str | None = None) -> str:
    """Write the card of an adapter as Markdown with YAML front matter.

    Args:
        info: the adapter.
        results: those of its evaluation; each number is shown with its interval and n.
        name: the adapter's name; default: that of its folder.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    environment.filters["json"] = json.dumps
    settings = info.training.get("settings", {})
    rows = [[key, str(settings[key])] for key in SETTINGS if key in settings]
    rows.append(["parameters of the adapter", f"{info.parameters:,}"])
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        info=info,
        title=name or info.folder.name,
        # The hub takes base_model as the id of a repository; a local base has none.
        revision=info.identity.get("revision"),
        data=info.training.get("data", {}),
        settings=table(("setting", "value"), rows),
        results=results,
        numbers=_numbers(results) if results else "",
    )


def _numbers(results: Results) -> str:
    judges = [*results.models, *results.baselines]
    names = [name for name in METRICS if any(name in judge.best for judge in judges)]
    rows = [
        [
            judge.name,
            *(_with_n(judge.best.get(name)) for name in names),
            # A baseline such as the majority label writes no answer of its own.
            "-" if judge.constrained is None else str(judge.parse_failures),
        ]
        for judge in judges
    ]
    return table(["judge", *(NAMES[name] for name in names), "parse failures"], rows)


def _with_n(metric: Metric | None) -> str:
    if metric is None or metric.value is None:
        return "-"
    return f"{estimate(metric)}, n = {metric.n}"
