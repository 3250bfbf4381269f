"""What a run reads and checks before it loads a model or writes a file."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pt_app.core.choosing import resolved_rule
from pt_app.core.dataset import JudgeData, JudgeExample, draw, read_dataset, to_dataset
from pt_app.core.formatting import number
from pt_app.core.grids import choose_grid
from pt_app.core.orders import both_orders, names_a_candidate
from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import PromptEncoder
from pt_app.core.settings import Settings
from pt_app.evidence.coding import headline
from pt_app.evidence.comparison import detectable_difference
from pt_app.models import bases

log = logging.getLogger(__name__)

MAX_CALIBRATION_ROWS = 1000  # validation rows that calibration is fitted on: more change it little


@dataclass(frozen=True)
class Prepared:
    """The data and the base of a run, read and checked.

    Attributes:
        source: the base.
        data: the dataset.
        encoder: encodes prompts and verdicts.
        train: a `datasets.Dataset` with input_ids and prompt_length.
        val: the same of the validation rows; None without a validation.
        test: the test rows.
    """

    source: bases.ModelSource
    data: JudgeData
    encoder: PromptEncoder
    train: Any
    val: Any
    test: Sequence[JudgeExample]


def prepare(settings: Settings) -> Prepared:
    """Resolve the base, read and check the data, and tokenize it.

    Raises:
        UserError: for whatever the user can fix in the data, the base or the settings.
    """
    # The data come first: a base of several GB may have to be downloaded.
    data = read_dataset(Path(settings.data_dir), settings.allow_leaks)
    rule = resolved_rule(settings.verdict_rule, data.scale)
    how = settings.max_samples, (*data.val, *data.test)
    scale, why = choose_grid(settings.grid, data.scale, data.train, *how)
    source = bases.resolve_model(settings.model)
    tokenizer = bases.load_tokenizer(source, settings.chat_template)
    bases.check_model(source, tokenizer)
    encoder = PromptEncoder(
        tokenizer,
        Template.load(data.card.template, data.card.rubric),
        scale,
        settings.max_seq_length,
        rule=rule,
    )
    if why:
        log.info("%s", why)
    for note in data.notes:
        log.warning("%s", note)
    if data.leaks:
        log.warning("LEAKS: %d texts are on both sides: %s", len(data.leaks), data.leaks[0])
    train = _encode(encoder, draw(data.train, settings.max_samples, settings.seed), "training")
    val = _encode(encoder, data.val, "validation") if data.val and settings.eval_steps else None
    if settings.patience and val is None:
        log.warning("--patience: the data have no validation rows, so training runs to its end")
    test = draw(data.test, settings.test_samples, settings.seed)
    if not settings.skip_eval:
        _say_what_test_rows_show(test, data)
    return Prepared(source, data, encoder, train, val, test)


def _say_what_test_rows_show(test: Sequence[JudgeExample], data: JudgeData) -> None:
    """Log, before hours of training, how small a difference the test rows can detect."""
    labels = [example.label.verdict for example in test if example.label is not None]
    groups = [example.group for example in test]
    smallest = detectable_difference(labels, groups, data.scale)
    power = "they cannot tell two judges apart"
    if smallest is not None:
        power = f"they tell two judges apart that differ by {number(smallest)} or more in "
        power += f"{headline(data.scale)} (80 of 100 times, near 0.7)"
    log.info("test: %d rows of %d groups; %s", len(test), len(set(groups)), power)


def _encode(encoder: PromptEncoder, rows: Sequence[JudgeExample], name: str) -> Any:
    """Tokenize rows for the trainer, pairs in both orders."""
    if encoder.scale.task == "pairwise":
        single, rows = rows, both_orders(rows)
        bare = sum(names_a_candidate(row.label) for row in single if row.label and row.candidates)
        log.info(
            f"{name}: {len(rows) - len(single)} pairs in both orders, "
            f"{2 * len(single) - len(rows)} rows of chat in one; {bare} comments that name a "
            "candidate are not supervised in the other order"
        )
    encoded, cuts = encoder.encode(rows)
    ids, starts = [row.input_ids for row in encoded], [row.prompt_length for row in encoded]
    supervised = sum(map(len, ids)) - sum(starts)
    log.info(
        f"{name}: {len(rows)} rows, {supervised:,} supervised tokens, "
        f"longest {cuts.longest} tokens, {cuts.rows_cut} rows shortened"
    )
    return to_dataset(rows, {"input_ids": ids, "prompt_length": starts})
