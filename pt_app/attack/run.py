"""`judge attack`: score attacked test rows, and measure what changed."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pt_app.attack.twin import twin_of
from pt_app.core.attack_families import Attacked, Family, attacked, families, loser
from pt_app.core.dataset import JudgeExample, draw, read_dataset
from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite, write_json_atomic
from pt_app.core.prompts import PromptEncoder
from pt_app.evidence.attacks import attack_numbers, favour
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.summary import summarise
from pt_app.judge import Judge
from pt_app.scoring.scorer import JudgeScorer, Scored

log = logging.getLogger(__name__)
ATTACKS = "attacks.json"


@dataclass(frozen=True)
class AttackOptions:
    """The flags of `judge attack`: see its help."""

    rows: int = 50
    families: Sequence[str] = ()
    base: str | None = None
    seed: int = 0
    held_out: bool = False


def attack(adapter: Path, data: Path, out: Path | None, options: AttackOptions) -> dict[str, Any]:
    """Attack test rows of `data`, write attacks.json into `out` (the adapter's evaluation).

    Raises UserError for unknown families, and where the data's scale is not the judge's.
    """
    written = (out or adapter / "evaluation") / ATTACKS
    refuse_overwrite([written] if out else [], [adapter / "judge.json", data])
    chosen = _chosen(options.families)
    if options.held_out:
        chosen = [family for one in chosen if (family := one.part(1)).append or family.replace]
    dataset = read_dataset(data)
    judge = Judge.load(adapter, base=options.base)
    scale = judge.info.scale
    if dataset.scale != scale:
        raise UserError(
            f"{data} has the scale {dataset.scale.name}, the judge {scale.name}: "
            "name data of the judge's scale"
        )
    usable = [row for row in dataset.test if row.prompt is None]
    if not usable:
        raise UserError(f"{data}: no test row has a candidate apart from its prompt")
    rows = draw(usable, options.rows, options.seed)
    attacks = list(attacked(rows, scale, chosen))
    log.info("attacks: %d on %d rows, %d families", len(attacks), len(rows), len(chosen))
    scorer = JudgeScorer(judge.model, judge.encoder, name="clean rows")
    clean = scorer.score(rows)
    scorer.name = "attacks"
    found = scorer.score([one.example for one in attacks])
    results = {
        "schema": 1,
        "judge": judge.name,
        "data": {"path": data.name, "rows": len(rows), "sha256": dataset.sha256},
        "scale": scale.name,
        "step": _step(judge),
        "held_out": options.held_out,
        "clean": _clean(rows, clean, judge),
        "families": _numbers(rows, clean, attacks, found, judge),
        "unscored": sum(one.status == "too_long" for one in found),
        "control_tokens": _control(judge, rows, attacks, chosen),
    }
    write_json_atomic(written, results)
    return results


def _chosen(names: Sequence[str]) -> list[Family]:
    known = {family.name: family for family in families()}
    for name in names:
        if name not in known:
            raise UserError(f'--families "{name}": must be of: {", ".join(known)}')
    return [known[name] for name in names or known]


def _step(judge: Judge) -> float:
    """What a verdict must rise by: one step of the scale; else half the probability."""
    scale = judge.info.scale
    values = scale.values
    return float(values[1]) - float(values[0]) if scale.task == "score" else 0.5


def _clean(rows: Sequence[JudgeExample], clean: Sequence[Scored], judge: Judge) -> dict[str, Any]:
    """How far the judge agrees with the labels of the rows before any attack."""
    kept = [i for i, one in enumerate(clean) if one.status != "too_long"]
    labels = [row.label.verdict for row in rows if row.label is not None]
    found = summarise(
        [labels[i] for i in kept],
        [clean[i].verdict for i in kept],
        [clean[i].constrained for i in kept],  # type: ignore[misc]
        Resampler([rows[i].group for i in kept]),
        judge.info.scale,
    )
    numbers: dict[str, Any] = found["constrained"]
    return numbers


def _numbers(
    rows: Sequence[JudgeExample],
    clean: Sequence[Scored],
    attacks: Sequence[Attacked],
    found: Sequence[Scored],
    judge: Judge,
) -> dict[str, Any]:
    scale = judge.info.scale
    losers = np.array([loser(row) for row in rows])
    fits = [
        i
        for i, one in enumerate(attacks)
        if found[i].probabilities and clean[one.row].probabilities
    ]
    places = np.array([attacks[i].row for i in fits], dtype=np.int64)
    zero = (0.0,) * len(scale.values)
    before = np.array([one.probabilities or zero for one in clean])
    after = np.array([found[i].probabilities for i in fits]).reshape(len(fits), len(scale.values))
    return attack_numbers(
        [attacks[i].family for i in fits],
        places,
        [row.group for row in rows],
        favour(before, scale, losers),
        favour(after, scale, losers[places]),
        _step(judge),
        [found[i].status == "parse_failure" for i in fits],
    )


def _control(
    judge: Judge,
    rows: Sequence[JudgeExample],
    attacks: Sequence[Attacked],
    chosen: Sequence[Family],
) -> dict[str, Any] | None:
    """Whether control tokens in candidates do more than the same characters as text do."""
    names = {family.name for family in chosen if family.control}
    own = [i for i, one in enumerate(attacks) if one.family in names]
    if not own:
        return None
    examples = [attacks[i].example for i in own]
    twin = twin_of(judge.encoder, list(rows))
    if twin is None:
        return {"attacks": len(own), "twins": 0, "reason": "this tokenizer has no text twin"}
    # Both alone: among other rows they would be read in other parts, and round differently.
    scored = [
        JudgeScorer(judge.model, encoder, name=name).score(examples)
        for encoder, name in ((judge.encoder, "control tokens"), (twin, "text twins"))
    ]
    apart = [
        max(abs(a - b) for a, b in zip(one.probabilities, other.probabilities, strict=True))
        for one, other in zip(*scored, strict=True)
        if one.probabilities and other.probabilities
    ]
    return {
        "attacks": len(own),
        "twins": len(apart),
        "other_ids": sum(twin.prompt_ids(e) != judge.encoder.prompt_ids(e) for e in examples),
        "control_ids": sum(_more_control_ids(judge.encoder, attacks[i], rows) for i in own),
        "largest_difference": max(apart, default=0.0),
    }


def _more_control_ids(encoder: PromptEncoder, one: Attacked, rows: Sequence[JudgeExample]) -> bool:
    """Whether the attacked prompt holds another number of control ids than the clean one."""
    added = encoder.tokenizer.added_tokens_decoder
    counts = [
        sum(id_ in added for id_ in encoder.prompt_ids(example))
        for example in (one.example, rows[one.row])
    ]
    return counts[0] != counts[1]
