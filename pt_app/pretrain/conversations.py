"""Conversations as rows of token ids, in which only what the assistant wrote is a target.

Short conversations share a row. Their positions each start at 0, from which transformers makes a
mask that keeps them apart, so that the loss is that of conversations on their own.
"""

import logging
import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pt_app.core import console
from pt_app.core.chat_templates import control_tokens
from pt_app.core.errors import UserError
from pt_app.models.packing import IGNORED, Batch, Step
from pt_app.training.ordering import shares

log = logging.getLogger(__name__)

Message = Mapping[str, str]
Conversation = Sequence[Message]


class Turns(NamedTuple):
    """A conversation as token ids.

    Attributes:
        ids: the ids, up to the end of the last answer.
        supervised: for each id, whether the assistant has written it; its end token is among them.
        ends: the number of ids up to the end of each answer.
    """

    ids: list[int]
    supervised: list[bool]
    ends: list[int]


def template_ids(tokenizer: Any, messages: Conversation, **options: bool) -> list[int]:
    """Return what the chat template makes of messages; control tokens in their texts are text."""
    options |= {"sanitize_control_tokens": True, "return_dict": False}
    ids: list[int] = tokenizer.apply_chat_template(messages, **options)
    return ids


def asking(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Return the ids of a user's question up to where its answer begins."""
    asked = [{"role": "user", "content": text}]
    return tuple(template_ids(tokenizer, asked, add_generation_prompt=True))


def encode(tokenizer: Any, conversation: Conversation) -> Turns:
    """Encode a conversation by the chat template, and mark what the assistant has written.

    Raises:
        UserError: if the template does not continue a prompt with the answer, or changes earlier
            turns for later ones.
    """
    ids = template_ids(tokenizer, conversation)
    supervised, ends = [False] * len(ids), []
    for turn, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        prompt = template_ids(tokenizer, conversation[:turn], add_generation_prompt=True)
        whole = template_ids(tokenizer, conversation[: turn + 1])
        start = len(prompt)
        if ids[: len(whole)] != whole or whole[:start] != prompt:
            problem = "the chat template does not continue a prompt with its answer alone"
            raise UserError(f"{problem}: train on the base of another model")
        answer = whole[start:]
        # What the template writes behind the end token, such as a line end, is nobody's answer.
        end_id = tokenizer.eos_token_id
        end = start + (answer.index(end_id) + 1 if end_id in answer else len(answer))
        supervised[start:end] = [True] * (end - start)
        ends.append(end)
    last = ends[-1] if ends else 0
    return Turns(ids[:last], supervised[:last], ends)


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Pack lengths of at most `room` into rows of at most `room`, and return their indices by row.

    The longest come first, each into the fullest row that has room for it (best-fit decreasing).
    """
    rows: list[list[int]] = []
    left: list[tuple[int, int]] = []  # room left and row, in order
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(left, (lengths[index], -1))
        free, row = left.pop(at) if at < len(left) else (room, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        insort(left, (free - lengths[index], row))
    return rows


class Piece(NamedTuple):
    """The inputs of a conversation and their targets, [n] each; IGNORED where there is none."""

    ids: Tensor
    labels: Tensor


def pieces_of(
    tokenizer: Any, conversations: Sequence[Conversation], sequence: int
) -> Iterator[Piece]:
    """Encode conversations to at most `sequence` inputs each, and log what did not fit.

    A longer one is cut after the last answer that fits whole. It is dropped where none does, so
    that every piece has a target.
    """
    cut, dropped, longest = 0, 0, 0
    control_tokens(tokenizer)
    for conversation in conversations:
        turns = encode(tokenizer, conversation)
        longest = max(longest, len(turns.ids))
        # The last id is only a target.
        end = max((end for end in turns.ends if end - 1 <= sequence), default=0)
        ids = torch.tensor(turns.ids[:end], dtype=torch.int32)
        targets = torch.tensor(turns.supervised[1:end])
        dropped += not targets.any()
        if targets.any():
            cut += end < len(turns.ids)
            yield Piece(ids[:-1], ids[1:].masked_fill(~targets, IGNORED))
    if cut or dropped:
        log.warning(
            "of %d conversations %d were cut after an answer, and %d left out, whose first answer "
            "ends beyond %d tokens; the longest has %d",
            *(len(conversations), cut, dropped, sequence + 1, longest),
        )


@dataclass(frozen=True)
class ConversationSteps:
    """The steps of an epoch over rows of conversations; every row has a target.

    A step is a function of seed, epoch and step: any number of processes share the same rows.

    Attributes:
        pieces: the conversations.
        rows: which of them share each row.
        batch: rows per step, over all processes.
        micro_batch: rows per batch.
        seed: of the order of the rows.
    """

    pieces: Sequence[Piece]
    rows: Sequence[Sequence[int]]
    batch: int
    micro_batch: int
    seed: int

    @staticmethod
    def of(
        tokenizer: Any,
        conversations: Sequence[Conversation],
        batch_tokens: int,
        sequence: int,
        micro_batch: int,
        seed: int,
    ) -> "ConversationSteps":
        """Encode and pack conversations.

        Args:
            tokenizer: its chat template lays them out.
            conversations: as `mixtures.read` returns them.
            batch_tokens: tokens per step, over all processes.
            sequence: maximum tokens per row.
            micro_batch: rows per batch.
            seed: of the order of the rows.

        Raises:
            UserError: if no conversation fits.
        """
        pieces = list(pieces_of(tokenizer, conversations, sequence))
        if not pieces:
            problem = f"none of {len(conversations)} conversations fits --max_seq_len {sequence}"
            raise UserError(f"{problem}: raise it")
        rows = best_fit([len(piece.ids) for piece in pieces], sequence)
        batch = max(1, batch_tokens // sequence)
        steps = ConversationSteps(pieces, rows, batch, micro_batch, seed)
        targets = sum(int(piece.labels.ne(IGNORED).sum()) for piece in pieces)
        counts = len(pieces), sum(len(piece.ids) for piece in pieces), targets, len(rows)
        log.info("%d conversations: %d tokens, %d of them targets, in %d rows", *counts)
        return steps

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch)

    @property
    def width(self) -> int:
        """The tokens of the fullest row, to which all are padded: one shape for the whole run."""
        return max(sum(len(self.pieces[i].ids) for i in row) for row in self.rows)

    def epoch(self, number: int, done: int) -> Iterator[Step]:
        """Yield this process's share of the steps of epoch `number` without the first `done`."""
        count, width = len(self.rows), self.width
        order = random.Random(f"{self.seed}/{number}").sample(range(count), count)
        for own in shares(order, self.batch, console.rank(), console.ranks())[done:]:
            starts = range(0, len(own), self.micro_batch)
            packs = [self._batch(own[i : i + self.micro_batch], width) for i in starts]
            targets = sum(int(pack["labels"].ne(IGNORED).sum()) for pack in packs)
            yield {"packs": packs, "count": torch.tensor(targets)}

    def in_order(self) -> Iterator[Batch]:
        """Yield all rows once, for a validation."""
        for start in range(0, len(self.rows), self.micro_batch):
            end = min(start + self.micro_batch, len(self.rows))
            yield self._batch(range(start, end), self.width)

    def _batch(self, chosen: Sequence[int], width: int) -> Batch:
        """Return `input_ids`, `labels` (already shifted) and `position_ids`, [b, width] each."""
        shape = (len(chosen), width)
        ids, positions = torch.zeros(2, *shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED)
        for at, row in enumerate(chosen):
            start = 0
            for piece in (self.pieces[i] for i in self.rows[row]):
                end = start + len(piece.ids)
                ids[at, start:end], labels[at, start:end] = piece
                positions[at, start:end] = torch.arange(len(piece.ids))
                start = end
        # A padding token has position 0, as one that begins: it attends to itself alone.
        return {"input_ids": ids, "labels": labels, "position_ids": positions}
