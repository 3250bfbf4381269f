"""`judge attack`: score attacked test rows, and measure what changed."""

import logging
import re
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from pt_app.core import results
from pt_app.core.attack_families import Attacked, Family, aim, attacked, families
from pt_app.core.chat_templates import as_text
from pt_app.core.dataset import JudgeData, JudgeExample, draw, read_dataset
from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite, write_json_atomic
from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.prompts import PromptEncoder
from pt_app.core.questions import scales_of
from pt_app.core.verdicts import Scale
from pt_app.evidence.coding import coded, worth_of
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.summary import agreement_metrics
from pt_app.judge import Judge
from pt_app.models.adapters import AdapterInfo, verify_adapter
from pt_app.scoring.scorer import JudgeScorer, Scored

log = logging.getLogger(__name__)
_MARK = "Xq7turn{}Xq7"
Rows = Sequence[JudgeExample]
Scores = Sequence[Scored]


def attack(
    adapter: Path,
    data: Path,
    out: Path | None = None,
    *,
    rows: int = 50,
    names: Sequence[str] = (),
    base: str | None = None,
    seed: int = 0,
    held_out: bool = False,
) -> dict[str, results.AttackResults]:
    """Attack test rows of `data` and write attacks.json, for each question in a folder of its name.

    Args:
        adapter: the judge's folder.
        data: a dataset folder.
        out: where to write; None: the adapter's evaluation.
        rows: how many test rows to attack; 0: all.
        names: the families of attacks; none: all.
        base: the adapter's base, if it was a folder or file.
        seed: draws the rows.
        held_out: use only the texts that `--hard_negatives` does not train on.

    Returns:
        The results by question; "": of a judge without questions.

    Raises:
        UserError: for unknown families, for families without held-out texts, and for data of
            another scale or of other questions than the judge's.
    """
    folder = out or adapter / "evaluation"
    refuse_overwrite([folder / results.ATTACKS] if out else [], [adapter / "judge.json", data])
    info = verify_adapter(adapter)
    chosen = _chosen(names, info)
    if held_out:
        chosen = [part for each in chosen if (part := each.part(1)).append or part.replace]
        if not chosen:
            problem = f"--held_out leaves no text of {', '.join(names)}"
            raise UserError(f"{problem}: name families with several texts")
    dataset = _attackable(read_dataset(data), info, data)
    examples = draw(dataset.test, rows, seed)
    judge = Judge.load(adapter, base=base)
    encoder = judge.encoder.about(*dataset.questions) if dataset.questions else judge.encoder
    clean = JudgeScorer(judge.model, encoder, name="clean rows").score(examples)
    used = results.DataUsed(path=data.name, sha256=dataset.sha256)
    found: dict[str, results.AttackResults] = {}
    for name, _ in scales_of(dataset.asked):
        own = [i for i, example in enumerate(examples) if example.asks == name]
        if not own:
            log.warning("%s: none of the drawn rows has a label for it: not attacked", name)
            continue
        both = [examples[i] for i in own], [clean[i] for i in own]
        found[name] = _attacked(judge, *both, chosen, used)
        found[name].held_out = held_out
        write_json_atomic(folder / name / results.ATTACKS, found[name].as_json())
    return found


def _attackable(dataset: JudgeData, info: AdapterInfo, data: Path) -> JudgeData:
    """Return what of a dataset can be attacked: test rows with a candidate, known questions.

    Raises:
        UserError: if there is none, and for data of another scale or state than the judge's.
    """
    if info.questions:
        shared = info.shared_with(dataset)
        if not shared:
            problem = f"asks none of the questions of {info.folder} about {', '.join(info.state)}"
            raise UserError(f"{data} {problem}: name data of the judge's questions and state")
        for question in dataset.questions:
            if question not in shared:
                problem = "the judge was not trained on it by this name, in these words, and with "
                problem += "these options in this order"
                log.warning("%s: %s: not attacked", question.name, problem)
        dataset = dataset.about(shared)
    elif dataset.questions or dataset.scale != info.scale:
        own = "questions" if dataset.questions else f"the scale {dataset.scale.name}"
        remedy = "name data of the judge's scale"
        raise UserError(f"{data} has {own}, the judge {info.scale.name}: {remedy}")
    rows = [row for row in dataset.test if row.prompt is None]
    if not rows:
        problem = "no test row has a label and a candidate apart from its prompt"
        raise UserError(f"{data}: {problem}: add such rows")
    return replace(dataset, test=rows)


def _attacked(
    judge: Judge, rows: Rows, clean: Scores, chosen: Sequence[Family], used: results.DataUsed
) -> results.AttackResults:
    """Attack rows of the one scale, or of one question, and measure what changes.

    Args:
        judge: the judge.
        rows: the clean rows.
        clean: what the judge says of them.
        chosen: the families.
        used: the data that they are of.
    """
    question = rows[0].question
    encoder = judge.encoder.about(question) if question else judge.encoder
    scale, name = encoder.scale, f"{question.name}: attacks" if question else "attacks"
    attacks = list(attacked(rows, scale, chosen, judge.info.state))
    of_control = {family.name for family in chosen if family.control}
    control = [attack for attack in attacks if attack.family in of_control]
    made = len({attack.family for attack in attacks})
    log.info("%s: %d on %d rows, %d families", name, len(attacks), len(rows), made)
    scorer = JudgeScorer(judge.model, encoder, name=name)
    after = scorer.score([attack.example for attack in attacks])
    numbers = results.AttackResults(
        schema=results.SCHEMA,
        judge=judge.name,
        data=used.model_copy(update={"rows": len(rows)}),
        scale=scale.name,
        step=_step(scale),
        clean=_clean(rows, clean, scale),
        families=_numbers(rows, clean, attacks, after, scale),
        unscored=sum(scored.status == "too_long" for scored in after),
        control_tokens=_control(judge.model, encoder, rows, control) if control else None,
    )
    return numbers.model_copy(update={"question": question.name}) if question else numbers


def _chosen(names: Sequence[str], info: AdapterInfo) -> list[Family]:
    by_name = {family.name: family for family in families(questions=bool(info.questions))}
    for name in names:
        if name not in by_name:
            raise UserError(f'--families "{name}": must be of: {", ".join(by_name)}')
    return [by_name[name] for name in names or by_name]


def _step(scale: Scale) -> float:
    """Return what a verdict must rise by to count: one step of the scale, else half of 1."""
    return float(scale.values[1]) - float(scale.values[0]) if scale.task == "score" else 0.5


def _clean(rows: Rows, clean: Scores, scale: Scale) -> results.Metrics:
    """Measure the agreement with the labels before any attack."""
    kept = [
        (row.group, row.label.verdict, scored.verdict)
        for row, scored in zip(rows, clean, strict=True)
        if row.label is not None and scored.verdict is not None
    ]
    labels, verdicts = [label for _, label, _ in kept], [verdict for *_, verdict in kept]
    sample = Resampler([group for group, *_ in kept])
    return agreement_metrics(sample, *coded(labels, verdicts, scale), scale)


def _numbers(
    rows: Rows, clean: Scores, attacks: Sequence[Attacked], after: Scores, scale: Scale
) -> dict[str, results.AttackFamily]:
    aims = np.array([aim(row, scale) for row in rows], dtype=np.int64)
    places = np.array([attack.row for attack in attacks], dtype=np.int64)
    before = favour(_chances(clean, scale), scale, aims)
    given = favour(_chances(after, scale), scale, aims[places])
    kept = [
        i for i, row in enumerate(places) if after[i].probabilities and clean[row].probabilities
    ]
    asked = rows[0].question is not None
    return attack_numbers(
        [attacks[i].family for i in kept],
        places[kept],
        [row.group for row in rows],
        before,
        given[kept],
        _step(scale),
        [after[i].status == "parse_failure" for i in kept],
        [after[i].verdict != clean[places[i]].verdict for i in kept] if asked else None,
    )


def _chances(scored: Scores, scale: Scale) -> FloatArray:
    absent = [np.nan] * len(scale.values)
    return np.array([row.probabilities or absent for row in scored]).reshape(-1, len(absent))


def favour(probabilities: FloatArray, scale: Scale, aims: IntArray) -> FloatArray:
    """Return what a judge gives the attacked candidate [n].

    It is the expected score, or the probability of PASS, of winning (a tie is half a win), or of
    the option that the attack wants.

    Args:
        probabilities: of each verdict [n, K].
        scale: the scale.
        aims: which candidate of each pair (0 or 1) is attacked, or which option is wanted [n].
    """
    if scale.task == "choice":
        return probabilities[np.arange(len(aims)), aims]
    if scale.task == "pairwise":
        in_place = aims[:, None] == 0
        probabilities = np.where(in_place, probabilities, probabilities[:, [1, 0, 2]])
    return np.asarray(probabilities @ worth_of(scale), np.float64)


def attack_numbers(
    names: Sequence[str],
    rows: IntArray,
    groups: Sequence[Hashable],
    clean: FloatArray,
    after: FloatArray,
    step: float,
    failures: Sequence[bool],
    changed: Sequence[bool] | None = None,
) -> dict[str, results.AttackFamily]:
    """Return the mean shift of each family and the share raised, both with intervals.

    Shifts are in units of the scale; of pass/fail and pairs in probability.

    Args:
        names: the family of each attack [m].
        rows: the clean row that it was made of [m].
        groups: of the clean rows, drawn by the bootstrap [n].
        clean: what the judge gives the clean rows [n].
        after: what it gives the attacked ones [m].
        step: an attack counts as raised above that.
        failures: whether the answer could not be parsed [m].
        changed: whether the verdict is another one [m]; None: not measured.
    """
    sample, family_of, shift = Resampler(groups), np.array(names), after - clean[rows]
    measured = {"shift": shift, "raised": shift > step + 1e-9, "verdict": after}
    measured["parse_failures"] = np.array(failures)
    if changed is not None:
        measured["changed"] = np.array(changed)
    columns = np.stack([*measured.values(), np.ones_like(after)], axis=1)
    numbers = {}
    for name in dict.fromkeys(names):
        own = family_of == name
        sums = np.zeros((len(clean), columns.shape[1]))
        np.add.at(sums, rows[own], columns[own])  # attacks are drawn with the groups of their rows
        count = int(own.sum())
        metrics = sample.estimate_sums(sums, partial(_means, list(measured)), count)
        numbers[name] = results.AttackFamily.model_validate({**metrics, "attacks": count})
    return numbers


def _means(names: Sequence[str], sums: FloatArray) -> dict[str, FloatArray]:
    return {name: sums[:, i] / sums[:, -1] for i, name in enumerate(names)}


def _control(
    model: PreTrainedModel, encoder: PromptEncoder, rows: Rows, own: Sequence[Attacked]
) -> results.ControlTokens:
    """Return whether control tokens in candidates do more than the same characters as text."""
    examples = [attack.example for attack in own]
    twin = twin_of(encoder, list(rows))
    if twin is None:
        reason = "this tokenizer has no text twin"
        return results.ControlTokens(attacks=len(own), twins=0, reason=reason)
    # Both alone: among other rows they would be read in other packs, and round differently.
    scored = [
        JudgeScorer(model, each, name=name).score(examples)
        for each, name in ((encoder, "control tokens"), (twin, "text twins"))
    ]
    apart = [
        max(abs(p - q) for p, q in zip(a.probabilities, b.probabilities, strict=True))
        for a, b in zip(*scored, strict=True)
        if a.probabilities and b.probabilities
    ]
    added = encoder.tokenizer.added_tokens_decoder

    def control_ids(example: JudgeExample) -> int:
        return sum(id_ in added for id_ in encoder.prompt_ids(example))

    return results.ControlTokens(
        attacks=len(own),
        twins=len(apart),
        other_ids=sum(twin.prompt_ids(e) != encoder.prompt_ids(e) for e in examples),
        control_ids=sum(control_ids(a.example) != control_ids(rows[a.row]) for a in own),
        largest_difference=max(apart, default=0.0),
    )


class TextTwin(PromptEncoder):
    """Encode as PromptEncoder does, but so that no text can become a control id.

    The template is rendered around marks and cut at its control tokens. What lies between them,
    the texts included, is encoded as plain text: in pieces that end where a text spells a control
    token, as transformers' sanitising does (its tokens never join their neighbours).
    """

    def _template_ids(self, messages: list[dict[str, str]], **options: Any) -> list[int]:
        marks = [_MARK.format(i) for i in range(len(messages))]
        marked = [turn | {"content": mark} for turn, mark in zip(messages, marks, strict=True)]
        text = self._template_text(marked, **options)
        trims = self._template_text([{"role": "user", "content": f" {_MARK} "}]).count(f" {_MARK} ")
        texts = [turn["content"] if trims else turn["content"].strip() for turn in messages]
        control = {str(token): id_ for id_, token in self.tokenizer.added_tokens_decoder.items()}
        cut = re.compile(f"({'|'.join(map(re.escape, control))})")
        ids: list[int] = []
        for piece in cut.split(text):
            if piece in control:
                ids.append(control[piece])
                continue
            for mark, content in zip(marks, texts, strict=True):
                piece = piece.replace(mark, content)
            for part in cut.split(piece):
                ids += self._plain(part)
        return ids

    def _plain(self, text: str) -> list[int]:
        if text in self._control:
            return as_text(self.tokenizer, text)
        ids: list[int] = self.tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=True
        )
        return ids


def twin_of(encoder: PromptEncoder, clean: list[JudgeExample]) -> TextTwin | None:
    """Return the twin of an encoder; None if it does not encode clean rows alike.

    SentencePiece tokenizers put a space before each piece, which the twin does not know about.
    """
    same = encoder.asked, encoder.max_seq_length, encoder.day, encoder.asked_rule
    twin = TextTwin(encoder.tokenizer, encoder.template, *same)
    alike = all(twin.prompt_ids(row) == encoder.prompt_ids(row) for row in clean)
    return twin if alike else None
