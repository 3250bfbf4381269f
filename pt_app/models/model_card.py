"""The card of an adapter: what it is, how to load it, what it was trained on, how good it is."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pt_app.core.formatting import estimate
from pt_app.core.prompt_templates import Template
from pt_app.core.results import Metric, Results
from pt_app.core.verdicts import Scale

# The numbers of a card, in this order, where an evaluation has them.
SHOWN = {
    "kappa_quadratic": "quadratic kappa",
    "kappa": "kappa",
    "mae": "MAE",
    "exact": "exact",
    "within_1": "within 1",
    "accuracy": "accuracy",
    "f1_macro": "macro F1",
    "order_consistency": "same in both orders",
}
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
LOADING = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base}, dtype="float32")
judge = PeftModel.from_pretrained(base, {adapter}, torch_device="cpu")
tokenizer = AutoTokenizer.from_pretrained({adapter})
```"""


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

    Each number of the `results` is shown with its interval and n.
    """
    title = name or info.folder.name
    parts = [
        _front_matter(info),
        *_leaks(info),
        f"# {title}\n\nA LoRA adapter that makes `{info.base_name}` a judge of the task "
        f"`{info.scale.task}` on the scale `{info.scale.name}`. Its answer starts with the "
        f"verdict: `{info.scale.lines()[0].strip()}`, for example.",
        _how_to_load(info, title),
        _training(info),
        _numbers(results),
        _limits(),
    ]
    return "\n\n".join(parts) + "\n"


def _leaks(info: AdapterInfo) -> list[str]:
    count = info.training.get("data", {}).get("leaks")
    told = f"**LEAKS: {count} texts are in training and test: the numbers below are too high.**"
    return [told] if count else []


def _front_matter(info: AdapterInfo) -> str:
    # The hub takes base_model as the id of a repository; a local base has none.
    base = [f"base_model: {json.dumps(info.base_name)}"] if info.identity.get("revision") else []
    lines = [
        "---",
        *base,
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags:\n- judge\n- lora\n- evaluation",
        "---",
    ]
    return "\n".join(lines)


def _how_to_load(info: AdapterInfo, title: str) -> str:
    known = info.identity
    base = f"Base: `{info.base_name}`"
    if known.get("revision"):
        base += f", revision `{known['revision']}`"
    elif info.base_name == "tiny":
        base += ", which ships with pt-app (`judge base path` prints its folder)"
    base += f". SHA-256 of its weights: `{known['weights_sha256']}`."
    base += " On another base, or on other weights of that name, the verdicts are not the judge's."
    where = info.base_name if known.get("revision") else f"path/to/{info.base_name}"
    code = LOADING.format(base=json.dumps(where), adapter=json.dumps(title))
    return f"## Loading\n\n{base}\n\n{code}\n\nPrompt template and scale are in `judge.json`."


def _training(info: AdapterInfo) -> str:
    settings = info.training.get("settings", {})
    data = info.training.get("data", {})
    rows = [(key, settings[key]) for key in SETTINGS if key in settings]
    rows.append(("parameters of the adapter", f"{info.parameters:,}"))
    described = [f"- {key}: `{json.dumps(value)}`" for key, value in data.items()]
    return "\n\n".join(
        [
            "## Training",
            "\n".join(["Data:", "", *described]) if described else "Data: not recorded.",
            _table(("setting", "value"), rows),
            "All settings, versions and hashes are in `training_config.json`.",
        ]
    )


def _numbers(results: Results | None) -> str:
    if not results:
        return "## Results\n\nNot evaluated."
    data, judges = results.data, [*results.models, *results.baselines]
    names = [key for key in SHOWN if any(key in judge.best for judge in judges)]
    header = ("judge", *(SHOWN[key] for key in names), "parse failures")
    rows = [
        (
            judge.name,
            *(_estimate(judge.best.get(key)) for key in names),
            # A baseline writes no answer of its own.
            "-" if judge.constrained is None else judge.parse_failures,
        )
        for judge in judges
    ]
    return (
        f"## Results\n\n{data.n} held-out rows from {data.groups} sources, with 95 % "
        "intervals by bootstrap over sources. The numbers are of the most likely of the allowed "
        "verdicts, on every row; parse failures are the judge's own answers whose verdict could "
        "not be read.\n\n" + _table(header, rows)
    )


def _estimate(metric: Metric | None) -> str:
    if metric is None or metric.value is None:
        return "-"
    return f"{estimate(metric)}, n = {metric.n}"


def _limits() -> str:
    return (
        "## Limits\n\nThe numbers hold for data like the data they were measured on. A judge also "
        "learns the habits of those who gave the labels. It reads no tools and no documents "
        "beyond its prompt, and its feedback is not checked against its verdict. Measure it on "
        "labels of your own before a decision rests on it."
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
