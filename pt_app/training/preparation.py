"""What a run reads and checks before it loads a model or writes a file."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pt_app.core.choosing import resolved_rule
from pt_app.core.dataset import (
    JudgeData,
    JudgeExample,
    check_labelled,
    draw,
    members_of,
    read_dataset,
    to_dataset,
)
from pt_app.core.errors import UserError
from pt_app.core.formatting import number
from pt_app.core.grids import choose_grid
from pt_app.core.orders import answers_of, both_orders, names_a_candidate
from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import PromptEncoder
from pt_app.core.questions import Question, chosen, per_question
from pt_app.core.settings import Settings
from pt_app.core.verdicts import Scale
from pt_app.evidence.coding import headline
from pt_app.evidence.comparison import detectable_difference
from pt_app.models import bases
from pt_app.training.answers import balanced, counts_of_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """The data and the base of a run, read and checked.

    Attributes:
        source: the base.
        data: the dataset.
        encoder: encodes prompts and verdicts.
        train: a `datasets.Dataset` with input_ids and prompt_length; of data that declare
            questions also with weight.
        val: the same of the validation rows; None without a validation.
        test: the test rows.
        members: the examples in `train` of each row; None: one each.
    """

    source: bases.ModelSource
    data: JudgeData
    encoder: PromptEncoder
    train: Any
    val: Any
    test: Sequence[JudgeExample]
    members: Sequence[Sequence[int]] | None = None

    @property
    def prompts_sha256(self) -> str:
        """The SHA-256 of the tokens of all training rows."""
        digest = sha256()
        for chunk in self.train.data.column("input_ids").chunks:
            digest.update(chunk.flatten().to_numpy())
        return digest.hexdigest()


def prepare(settings: Settings) -> Prepared:
    """Resolve the base, read and check the data, and tokenize it.

    Raises:
        UserError: for whatever the user can fix in the data, the base or the settings.
    """
    # The data come first: a base of several GB may have to be downloaded.
    data = asked_for(settings, read_dataset(Path(settings.data_dir), settings.allow_leaks))
    if isinstance(data.asked, Scale):  # refused before anything is fetched
        resolved_rule(settings.verdict_rule, data.asked)
    how = settings.max_samples, (*data.val, *data.test)
    asked, why = choose_grid(settings.grid, data.asked, data.train, *how)
    source = bases.resolve_model(settings.model)
    tokenizer = bases.load_tokenizer(source, settings.chat_template)
    bases.check_model(source, tokenizer)
    encoder = PromptEncoder(
        tokenizer,
        Template.load(data.card.template, data.card.rubric),
        asked,
        settings.max_seq_length,
        rule=settings.verdict_rule,
    )
    if why:
        log.info("%s", why)
    for note in data.notes:
        log.warning("%s", note)
    if data.leaks:
        log.warning("LEAKS: %d texts are on both sides: %s", len(data.leaks), data.leaks[0])
    rows = draw(data.train, settings.max_samples, settings.seed)
    remedy = "draw more, or name the questions that have labels with --questions"
    drawn = f"--max_samples {settings.max_samples}: no row drawn"
    check_labelled(data.questions, rows, drawn, remedy)
    train, members = _encode(encoder, rows, "training", settings)
    val = None
    if data.val and settings.eval_steps:
        val, _ = _encode(encoder, data.val, "validation", settings)
    if settings.patience and val is None:
        log.warning("--patience: the data have no validation rows, so training runs to its end")
    test = draw(data.test, settings.test_samples, settings.seed)
    if not settings.skip_eval:
        for name, view in data.views():
            own = [row for row in test if row.asks == name]
            _say_what_test_rows_show(own, view.scale, f"test, {name}" if name else "test")
    return Prepared(source, data, encoder, train, val, test, members)


def asked_for(settings: Settings, data: JudgeData) -> JudgeData:
    """Return the data of the questions that the settings name.

    Raises:
        UserError: for a question that the data do not declare.
    """
    names = [name.strip() for name in settings.questions.split(",") if name.strip()]
    if isinstance(data.asked, Scale):
        if names:
            problem = f"{data.path} has one scale and declares no questions"
            raise UserError(f"--questions {settings.questions}: {problem}: leave it out")
    else:
        data = data.about(chosen(data.asked, names, f"--questions {settings.questions}"))
    _weights(settings, data.questions)
    return data


def _weights(settings: Settings, questions: Sequence[Question]) -> dict[str, float]:
    names = [question.name for question in questions]
    return per_question(settings.question_weights, names, "--question_weights")


def _say_what_test_rows_show(test: Sequence[JudgeExample], scale: Scale, name: str) -> None:
    """Log, before hours of training, how small a difference the test rows can detect."""
    labels = [example.label.verdict for example in test if example.label is not None]
    groups = [example.group for example in test]
    smallest = detectable_difference(labels, groups, scale)
    power = "they cannot tell two judges apart"
    if smallest is not None:
        power = f"they tell two judges apart that differ by {number(smallest)} or more in "
        power += f"{headline(scale)} (in 80 % of test sets, for agreement near 0.7)"
    log.info("%s: %d rows of %d groups; %s", name, len(test), len(set(groups)), power)


def _encode(
    encoder: PromptEncoder, rows: Sequence[JudgeExample], name: str, settings: Settings
) -> tuple[Any, list[list[int]] | None]:
    """Tokenize rows for the trainer, pairs in both orders, and of questions each answer.

    Returns:
        The examples as a `datasets.Dataset`, and of questions the indices of those of each row.
    """
    columns: dict[str, Sequence[Any]] = {}
    members = None
    if encoder.questions:
        # Options are validated as they are read: in the declared order.
        rows, shares = answers_of(rows, settings.seed if name == "training" else None)
        weights = _weights(settings, encoder.questions)
        columns["weight"] = balanced(rows, shares, weights)
        members = members_of(rows)
        log.info("%s: %d answers of %d rows", name, len(rows), len(members))
    elif encoder.scale.task == "pairwise":
        single, rows = rows, both_orders(rows)
        bare = sum(names_a_candidate(row.label) for row in single if row.label and row.candidates)
        log.info(
            f"{name}: {len(rows) - len(single)} pairs in both orders, "
            f"{2 * len(single) - len(rows)} rows of chat in one; {bare} comments that name a "
            "candidate are not supervised in the other order"
        )
    encoded, cuts = encoder.encode(rows)
    ids, starts = [row.input_ids for row in encoded], [row.prompt_length for row in encoded]
    tokens = [len(own) - start for own, start in zip(ids, starts, strict=True)]
    if members is not None:
        columns["count"] = counts_of_rows(members, columns["weight"], tokens)
    log.info(
        f"{name}: {len(rows)} rows, {sum(tokens):,} supervised tokens, "
        f"longest {cuts.longest} tokens, {cuts.rows_cut} rows shortened"
    )
    return to_dataset(rows, {"input_ids": ids, "prompt_length": starts, **columns}), members
