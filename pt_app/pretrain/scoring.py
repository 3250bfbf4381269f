"""Read a model's answers: log-likelihoods of continuations, and texts that it generates.

Tokens and sums are those of lm-evaluation-harness (`loglikelihood` of its `HFLM`), with which they
are compared row by row in tests/test_pretrain_scoring.py.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import DynamicCache, PreTrainedTokenizerBase

from pt_app.pretrain.tasks import Ids, Pair, Row, Text
from pt_app.training.loop import Model

BATCH_TOKENS = 8192  # of a forward pass, padding included
SHARED = 32  # tokens from which a common prefix is worth a pass of its own


@dataclass(frozen=True)
class Score:
    """How a model sees a continuation.

    Attributes:
        total: its log-likelihood in nats.
        tokens: its number of tokens.
        greedy: whether each of its tokens is the most probable one.
        cut: whether the context was longer than the model's and lost its beginning.
    """

    total: float
    tokens: int
    greedy: bool
    cut: bool

    @property
    def mean(self) -> float:
        """The log-likelihood per token, by which CORE compares choices."""
        return self.total / max(1, self.tokens)


@dataclass(frozen=True)
class _Request:
    ids: Ids  # what the model reads
    targets: Ids  # the continuation, of which it reads all but the last token
    cut: bool


def log_likelihoods(
    model: Model, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]
) -> list[Score]:
    """Return the score of each continuation after its context.

    What pairs have in common is computed once: the worked examples before all rows of a task, and
    the context of several choices of one token each.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        pairs: contexts that are not empty, as text or as tokens, and their continuations.
    """
    requests = _requests(tokenizer, pairs, model.config.max_position_embeddings)
    scores = dict[_Request, Score]()
    with torch.inference_mode():
        for cut in (False, True):
            wanted = {request for request in requests if request.cut == cut}
            scores.update(_scored(model, wanted))
    return [scores[request] for request in requests]


def choose(scores: Sequence[Score], by_token: bool) -> int:
    """Return the position of the most probable choice, by the mean per token or by the sum."""
    values = [score.mean if by_token else score.total for score in scores]
    return values.index(max(values))


def answers(
    model: Model, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], by_token: bool = True
) -> tuple[list[int], int]:
    """Return the position of the choice that the model takes for each row, and how many were cut.

    A row of one pair is answered with 0, its gold, where the model produces the continuation
    greedily, and with 1 where it does not.
    """
    pairs = [pair for row in rows for pair in row.pairs]
    scores = iter(log_likelihoods(model, tokenizer, pairs))
    taken, cut = [], 0
    for row in rows:
        own = [next(scores) for _ in row.pairs]
        cut += any(score.cut for score in own)
        taken.append(choose(own, by_token) if len(own) > 1 else int(not own[0].greedy))
    return taken, cut


def generate(
    model: Model, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Text], max_new_tokens: int
) -> list[str]:
    """Return what the model writes after each prompt, greedily, up to the end of its turn.

    A prompt that leaves no room for `max_new_tokens` loses its beginning; they are fewer than the
    context of the model.
    """
    room = model.config.max_position_embeddings - max_new_tokens
    encoded = [ids[-room:] for ids in _encode(tokenizer, prompts)]
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    texts = [""] * len(prompts)
    for batch in _batches(order, [len(ids) + max_new_tokens for ids in encoded]):
        longest = max(len(encoded[index]) for index in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(batch):
            start = longest - len(encoded[index])  # generation begins where all prompts end
            ids[row, start:], mask[row, start:] = torch.tensor(encoded[index]), 1
        with torch.inference_mode():
            written = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
            )
        decoded = tokenizer.batch_decode(written[:, longest:], skip_special_tokens=True)
        for index, text in zip(batch, decoded, strict=True):
            texts[index] = text
    return texts


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> list[Ids]:
    """Return the tokens of texts; what is tokens already stays."""
    strings = [text for text in texts if isinstance(text, str)]
    encoded = tokenizer(strings, add_special_tokens=False, verbose=False) if strings else None
    ids = iter(encoded.input_ids if encoded else ())
    return [tuple(next(ids)) if isinstance(text, str) else text for text in texts]


def _requests(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], max_length: int
) -> list[_Request]:
    """Encode pairs: the continuation's tokens are those of the whole text past the context's.

    White space at the end of a context belongs to the continuation, since a tokenizer joins it to
    the word that follows.
    """
    contexts = [c.rstrip() if isinstance(c, str) else c for c, _ in pairs]
    unique = list(dict.fromkeys(contexts))
    starts = dict(zip(unique, map(len, _encode(tokenizer, unique)), strict=True))
    # Behind tokens a continuation is encoded alone.
    heads = [context if isinstance(context, tuple) else () for context, _ in pairs]
    rest = [c + continuation if isinstance(c, str) else continuation for c, continuation in pairs]
    requests = []
    for context, head, ids in zip(contexts, heads, _encode(tokenizer, rest), strict=True):
        whole = (*head, *ids)
        kept = whole[-(max_length + 1) :]
        requests.append(_Request(kept[:-1], whole[starts[context] :], len(kept) < len(whole)))
    return requests


def _scored(model: Model, requests: set[_Request]) -> dict[_Request, Score]:
    """Return the score of each request; requests that read the same tokens share a row."""
    by_ids = dict[Ids, list[_Request]]()
    for request in requests:
        by_ids.setdefault(request.ids, []).append(request)
    order = sorted(by_ids, key=lambda ids: (len(ids), ids))
    # At least one token is left for each row, and all its targets.
    reach = min((len(r.ids) - max(1, len(r.targets)) for r in requests), default=0)
    shared = tuple(commonprefix(order))[: max(0, reach)]  # noqa: RUF071  (of tokens)
    prefix = shared if len(shared) >= SHARED and len(order) > 1 else ()
    lengths = [len(ids) - len(prefix) for ids in order]
    cache = None
    if prefix:
        first = torch.tensor([prefix], device=model.device)
        cache = model.base_model(first, use_cache=True).past_key_values
    scores = dict[_Request, Score]()
    for batch in _batches(range(len(order)), lengths):
        rows = [by_ids[order[index]] for index in batch]
        scores.update(_scores_of(model, rows, len(prefix), cache))
    return scores


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield items in their order, as many as fit with the longest one's padding."""
    batch, longest = list[int](), 0
    for index in order:
        longest = max(longest, lengths[index])
        if batch and longest * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch, longest = [], lengths[index]
        batch.append(index)
    if batch:
        yield batch


def _scores_of(
    model: Model, rows: Sequence[Sequence[_Request]], skipped: int, cache: DynamicCache | None
) -> Iterator[tuple[_Request, Score]]:
    """Yield the score of each request of a batch, whose first `skipped` tokens are in the cache."""
    parts = [row[0].ids[skipped:] for row in rows]
    ids = torch.zeros(len(rows), max(map(len, parts)), dtype=torch.long)
    for number, part in enumerate(parts):
        # Padding on the right: under the causal mask no real token sees it.
        ids[number, : len(part)] = torch.tensor(part)
    past = copy.deepcopy(cache)
    if past is not None:
        past.batch_repeat_interleave(len(rows))
    ids = ids.to(model.device)
    states = model.base_model(ids, past_key_values=past, use_cache=past is not None)
    for hidden, part, row in zip(states.last_hidden_state, parts, rows, strict=True):
        longest = max(len(request.targets) for request in row)
        logits: Tensor = model.get_output_embeddings()(hidden[len(part) - longest : len(part)])
        losses = F.log_softmax(logits.float(), dim=-1)
        for request in row:
            own = losses[longest - len(request.targets) :]
            targets = torch.tensor(request.targets, device=own.device)
            total = own.gather(1, targets[:, None]).cpu().double().sum().item()
            greedy = bool((own.argmax(-1) == targets).all())
            yield request, Score(total, len(request.targets), greedy, request.cut)
