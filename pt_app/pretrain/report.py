"""`report.md`: what was trained, on what, how long, and how good it is."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Template
from pydantic import BaseModel, Field

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.core.files import (
    json_lines,
    read_json,
    read_text,
    sha256_file,
    write_json_atomic,
    write_text_atomic,
)
from pt_app.core.formatting import fenced, inline, table
from pt_app.core.records import checked
from pt_app.models.bases import read_tokenizer
from pt_app.pretrain.baselines import LIMIT, baselines
from pt_app.pretrain.conversations import asking
from pt_app.pretrain.evaluate import COMPLETE, FOLDER, Outcome, mean_in_words, summary
from pt_app.pretrain.model import load
from pt_app.pretrain.overlap import WORDS, Overlap, texts_of
from pt_app.pretrain.scoring import generate
from pt_app.pretrain.settings import STAGES, ReportSettings
from pt_app.pretrain.shards import MANIFEST, open_shards
from pt_app.pretrain.stages import METRICS, STAGE
from pt_app.pretrain.tasks import TASKS, Bundle
from pt_app.report.charts import training

log = logging.getLogger(__name__)
TEMPLATE = Path(__file__).with_name("report.md.jinja")
BEGINNINGS = ("The", "In the beginning", "A function that")
QUESTIONS = ("Who are you?", "Spell the word river.", "What is the capital of France?")
SAMPLE_TOKENS = 48
PIECE, MAX_SCANNED = 1 << 20, 1 << 30  # tokens at a time, and bytes of text in all
Json = dict[str, Any]


def write_report(settings: ReportSettings) -> Path:
    """Write the report of a model's folder, with its pictures beside it; return its path.

    Raises UserError where the folder holds no finished stage, or where a file cannot be written.
    """
    console.start()
    run, output = Path(settings.model_dir), Path(settings.output)
    stages = {name: _about(run / name) for name in STAGES if (run / name / STAGE).is_file()}
    if not stages:
        raise UserError(f"{run} holds no finished stage: train one, or name another --model_dir")
    results = {
        (kind, stage): _outcomes(file)
        for kind in COMPLETE
        for stage in stages
        if (file := run / FOLDER / f"{stage}-{kind}.json").is_file()
    }
    text = _text_facts(run, stages, settings)
    content = {
        "title": f"A language model from scratch: {inline(run.name)}",
        "run": inline(run),
        "verdict": _verdict(stages, text),
        "stages": _stages(stages),
        "pictures": list(_pictures(run, stages, output)),
        "text": text,
        "validation": _validation(stages, text),
        "evaluation": list(_evaluation(results)),
        "samples": list(_samples(run, stages)),
        "words": WORDS,
        "overlap": _overlap(text),
        "settings": _settings(stages),
    }
    template = Template(TEMPLATE.read_text(encoding="utf-8"), trim_blocks=True)
    write_text_atomic(output, template.render(content) + "\n")
    log.info("report: %s", output)
    return output


class _Last(BaseModel):
    eval_loss: float
    eval_bpb: float


class _Stage(BaseModel):
    """What is shown of stage.json, and the lines of metrics.jsonl."""

    facts: Json
    settings: Json = {}
    parameters: int
    steps: int
    tokens: int
    seconds: float = Field(gt=0)
    hardware: str
    processes: int
    last: _Last
    history: list[dict[str, float]]


def _about(folder: Path) -> Json:
    path, remedy = folder / METRICS, f"train {folder.name} again, or remove {folder}"
    text = read_text(path, f"is not there: {remedy}", remedy)
    history = [entry for _, entry in json_lines(text, path, remedy=remedy)]
    about = read_json(folder / STAGE, remedy=remedy) | {"history": history}
    return checked(_Stage, about, folder / STAGE, remedy).model_dump()


def _outcomes(file: Path) -> dict[str, Outcome]:
    remedy = f"remove it, and evaluate {file.stem} again"
    tasks = read_json(file, remedy=remedy).get("tasks")
    return checked(dict[str, Outcome], tasks, f"{file}, field tasks", remedy)


def _text_facts(run: Path, stages: dict[str, Json], settings: ReportSettings) -> Json | None:
    """Return baselines and overlap of the base's text, kept for the next report; None without."""
    if "base" not in stages:
        return None
    folder = Path(settings.data_dir or stages["base"]["settings"].get("data_dir", ""))
    if not (folder / MANIFEST).is_file():
        return None
    file, key = run / FOLDER / "text.json", sha256_file(folder / MANIFEST)
    if file.is_file() and (kept := read_json(file, remedy="remove it")).get("key") == key:
        return kept
    shards = open_shards(folder, read_tokenizer(run / "base"))
    train = shards.text("train", max(0, len(shards.train) - LIMIT))[-LIMIT:]
    val = shards.text("val")
    facts: Json = {"key": key, "baselines": baselines(train, val)}
    facts |= {"train_bytes": len(train), "val_bytes": len(val)}
    facts |= {"bytes": shards.manifest.train.bytes, "overlap": {}, "scanned": 0}
    try:
        overlap = Overlap(texts_of(Bundle(settings.eval_data)))
    except UserError as error:
        log.warning("evaluation rows are not looked for in the text: %s", error)
        return facts
    for start in range(0, len(shards.train), PIECE):
        piece = shards.text("train", start, start + PIECE + 4 * WORDS)
        overlap.read(piece.decode("utf-8", "replace"))
        facts["scanned"] = min(facts["scanned"] + len(piece), facts["bytes"])
        if facts["scanned"] >= MAX_SCANNED:
            break
    facts["overlap"] = overlap.counts()
    write_json_atomic(file, facts)
    return facts


def _verdict(stages: dict[str, Json], text: Json | None) -> str:
    """Say first whether the base has learned more than an n-gram or a compressor knows."""
    if text is None:
        return "Whether the base is better than an n-gram is not known: its text is not here."
    bpb = float(stages["base"]["last"]["eval_bpb"])
    better = {name: value for name, value in text["baselines"].items() if value <= bpb}
    if better:
        names = ", ".join(f"{name} ({value:.3f})" for name, value in better.items())
        return (
            f"**The base is no better than {names}: it needs {bpb:.3f} bits per byte of held-out "
            "text. Train longer or on more text before anything is built on it.**"
        )
    best = min(text["baselines"].values())
    return f"The base needs {bpb:.3f} bits per byte of held-out text, the best baseline {best:.3f}."


def _stages(stages: dict[str, Json]) -> str:
    header = ["stage", "parameters", "steps", "tokens", "seconds", "tokens/s", "loss", "bits/byte"]
    header += ["hardware", "processes"]
    rows = []
    for name, about in stages.items():
        last = about["last"]
        numbers = [f"{about[key]:,}" for key in ("parameters", "steps", "tokens")]
        numbers += [f"{about['seconds']:,.0f}", f"{about['tokens'] / about['seconds']:,.0f}"]
        numbers += [f"{last['eval_loss']:.4f}", f"{last['eval_bpb']:.4f}"]
        rows.append([name, *numbers, inline(about["hardware"]), str(about["processes"])])
    return table(header, rows)


def _pictures(run: Path, stages: dict[str, Json], output: Path) -> Iterator[tuple[str, Json]]:
    folder = output.with_name(f"{output.stem}_files")
    for name, about in stages.items():
        for number, chart in enumerate(training(about["history"])):
            file = folder / f"{name}-{number}.svg"
            write_text_atomic(file, chart.draw())
            yield name, {"says": chart.says, "file": f"{folder.name}/{file.name}"}


def _validation(stages: dict[str, Json], text: Json | None) -> str:
    """Compare the base with the baselines: later stages are validated on conversations."""
    if text is None:
        return ""
    rows = {"base (this model)": stages["base"]["last"]["eval_bpb"]} | text["baselines"]
    ordered = sorted(rows.items(), key=lambda row: float(row[1]))
    return table(["", "bits per byte"], [[name, f"{value:.4f}"] for name, value in ordered])


def _evaluation(results: dict[tuple[str, str], dict[str, Outcome]]) -> Iterator[str]:
    """Yield a table for CORE, one for ChatCORE, and the letters that were chosen."""
    for kind, (title, _) in COMPLETE.items():
        own = {stage: content for (k, stage), content in results.items() if k == kind}
        if not own:
            continue
        names = list(dict.fromkeys(task for each in own.values() for task in each))
        header = [title, "n", "guess", *own]
        rows = []
        for task in names:
            outcomes = [each.get(task, _ABSENT) for each in own.values()]
            first = next((each for each in outcomes if not each.why_not), outcomes[0])
            cells = [_cell(outcome) for outcome in outcomes]
            rows.append([inline(task), f"{first.n:,}", f"{first.guess:.3f}", *cells])
        means = [summary(kind, outcomes) for outcomes in own.values()]
        covered = sorted({mean["name"] for mean in means})
        rows.append([f"**{' / '.join(covered)}**, centred", "", "0", *map(mean_in_words, means)])
        yield table(header, rows)
        if kind == "chat":
            yield from _letters(own)


_ABSENT = Outcome(why_not="not asked for")


def _cell(outcome: Outcome) -> str:
    if outcome.why_not:
        return f"not run: {inline(outcome.why_not)}"
    guessing = "" if outcome.above_guessing else " guessing"
    cut = f", {outcome.cut} cut" if outcome.cut else ""
    return f"{outcome.accuracy:.3f} [{outcome.low:.3f}, {outcome.high:.3f}]{guessing}{cut}"


def _letters(own: dict[str, dict[str, Outcome]]) -> Iterator[str]:
    rows = [
        [f"{stage}, {inline(task)}", *[f"{each.shares.get(x, 0):.0%}" for x in "ABCDE"]]
        for stage, outcomes in own.items()
        for task, each in outcomes.items()
        if each.shares
    ]
    if rows:
        yield table(["letters chosen", *"ABCDE"], rows)


def _samples(run: Path, stages: dict[str, Json]) -> Iterator[str]:
    """Yield what each model writes, greedily: beginnings it continues, questions it answers."""
    for name in stages:
        model, tokenizer = load(run / name)
        length = min(SAMPLE_TOKENS, model.config.max_position_embeddings // 2)
        if name == "base":
            written = generate(model, tokenizer, BEGINNINGS, length)
            yield fenced([(name, b + text) for b, text in zip(BEGINNINGS, written, strict=True)])
            continue
        prompts = [asking(tokenizer, question) for question in QUESTIONS]
        pairs = zip(QUESTIONS, generate(model, tokenizer, prompts, length), strict=True)
        yield fenced([(who, t) for q, a in pairs for who, t in (("user", q), (name, a))])


def _overlap(text: Json | None) -> str:
    licences = {task: where["licence"] for kind in TASKS.values() for task, where in kind.items()}
    rows = [
        [task, *[f"{each[key]:,}" for key in ("found", "checked", "rows")], licences[task]]
        for task, each in (text or {}).get("overlap", {}).items()
    ]
    return table(["task", "found", "checked", "rows", "licence"], rows)


def _settings(stages: dict[str, Json]) -> str:
    names = sorted({name for about in stages.values() for name in about["facts"]})
    facts = [[about["facts"].get(name) for about in stages.values()] for name in names]
    rows = [
        [inline(name), *["" if value is None else inline(_short(str(value))) for value in own]]
        for name, own in zip(names, facts, strict=True)
    ]
    return table(["", *stages], rows)


def _short(value: str) -> str:
    """Write a hash by its first digits: stage.json has all of it."""
    return f"{value[:12]}…" if re.fullmatch(r"[0-9a-f]{64}", value) else value
