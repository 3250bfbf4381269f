"""Read only the tokens of the verdicts' lines that tell something about a row.

On 0-100 the 101 lines have 508 tokens behind the prompt. 104 of them tell where a number ends; what
follows ("100" and the line end) has nearly the same probability on every row. A sample of rows
decides where each line may be cut, and other rows say what that changes.
"""

import logging
from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from pt_app.core.prompts import PromptEncoder
from pt_app.core.questions import Asked
from pt_app.core.records import JudgeExample
from pt_app.core.results import PrecisionChange
from pt_app.core.settings import SAMPLE, ReadingMode
from pt_app.core.verdicts import Scale
from pt_app.models.tree_attention import why_no_tree
from pt_app.scoring.precision import change_between
from pt_app.scoring.scorer import JudgeScorer, Scored
from pt_app.scoring.verdict_trie import Reading, VerdictTrie

log = logging.getLogger(__name__)

MANY = 25  # lines of verdicts from which "auto" cuts lines
TOLERANCE = 1e-3  # maximum change of a probability
MARGIN = TOLERANCE / 20  # the same on the rows that decide where lines are cut


def may_cut(mode: ReadingMode, asked: Asked) -> bool:
    """Return whether lines of verdicts are cut where a sample shows that they can be.

    Those of questions are read whole.
    """
    if not isinstance(asked, Scale):
        return False
    return mode == "branches" or (mode == "auto" and len(asked.lines()) >= MANY)


def chosen_lines(
    model: PreTrainedModel,
    mode: ReadingMode,
    sample: Sequence[JudgeExample],
    encoder: PromptEncoder,
) -> tuple[dict[Scale, VerdictTrie], PrecisionChange | None]:
    """Decide how the lines of verdicts are read; measure and log what that changes.

    Every other row of the sample decides where lines are cut, the rows between are compared with
    the exact reading. Without 100 rows there is nothing to gain, and whole lines are read.

    Args:
        model: the model, as it will score.
        mode: exact, branches, or auto: branches from 25 verdicts on.
        sample: rows of the kind that will be scored; up to 100 are read.
        encoder: encodes prompts and verdicts.

    Returns:
        The cut lines for `JudgeScorer`, and the change; {} and None: whole lines are read.
    """
    if not may_cut(mode, encoder.asked):
        if mode == "branches":
            log.info("reading: whole lines: those of questions are not cut")
        return {}, None
    why = why_no_tree(model, encoder.max_seq_length)
    if len(sample) < SAMPLE:
        why = f"{len(sample)} rows are too few to compare on; {SAMPLE} are needed"
    if why is not None:
        log.info("reading: whole lines: %s", why)
        return {}, None
    compared = sample[1:SAMPLE:2]
    whole = _Steps(model, encoder, progress=False, order="as_given")
    whole.score(sample[:SAMPLE:2])
    cut = shortened(whole.trie, torch.cat(whole.read))
    tries = {encoder.scale: cut}
    exact = JudgeScorer(model, encoder, progress=False).score(compared)
    fast = JudgeScorer(model, encoder, progress=False, tries=tries).score(compared)
    change = change_between(exact, fast)
    what = f"{len(cut.tokens)} of the {len(whole.trie.tokens)} tokens of all verdicts' lines"
    changed = f"{change.verdicts} of {change.n} verdicts, a probability by up to"
    if not change.n or change.probability > TOLERANCE:
        message = "reading: whole lines: reading %s would change %s %.2g, more than %g"
        log.warning(message, what, changed, change.probability, TOLERANCE)
        return {}, None
    log.warning("reading: %s; that changes %s %.2g", what, changed, change.probability)
    return tries, change


def shortened(trie: VerdictTrie, steps: torch.Tensor) -> VerdictTrie:
    """Cut each line where what follows has nearly the same probability on all rows.

    What is cut counts with its mean probability, weighted by that of what is kept:
    log sum(whole line) - log sum(kept tokens) over the rows. A line is cut at the first token at
    which this moves its share of all verdicts by at most `MARGIN` on every row, but at least one
    token behind the one that tells it from all others: whether "20" ends there depends on a row,
    such as one that holds years, and a sample may have no such row.

    Args:
        trie: the whole lines.
        steps: [rows, steps], the log-probability of each step of `trie`.
    """
    lines = [steps[:, columns].cumsum(dim=1) for columns in trie.columns]
    shares = torch.stack([kept[:, -1] for kept in lines], dim=1).softmax(dim=1)
    counts, tails = [], []
    for fork, kept, share in zip(trie.forks, lines, shares.T, strict=True):
        means = kept[:, -1].logsumexp(dim=0) - kept.logsumexp(dim=0)
        moved = (share[:, None] * (kept + means - kept[:, -1:]).expm1().abs()).amax(dim=0)
        least = min(fork + 1, len(moved))
        # The whole line moves nothing, so that there is always such a place.
        count = least + int((moved[least - 1 :] <= MARGIN).int().argmax())
        counts.append(count)
        tails.append(float(means[count - 1]))
    return trie.cut(counts, tails)


class _Steps(JudgeScorer):
    """A scorer that keeps the log-probability of each step of the trie, [rows, steps] a part."""

    def score(self, examples: Sequence[JudgeExample]) -> list[Scored]:
        self.read: list[torch.Tensor] = []
        return super().score(examples)

    def _scored(self, reading: Reading, scale: Scale) -> Iterator[Scored]:
        self.read.append(reading.steps)
        return super()._scored(reading, scale)
