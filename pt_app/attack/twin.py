"""The same characters as text: how a row must encode whatever control tokens its texts spell."""

import re
from typing import Any

from pt_app.core.chat_templates import as_text
from pt_app.core.dataset import JudgeExample
from pt_app.core.prompts import PromptEncoder

_MARK = "Xq7turn{}Xq7"


class TextTwin(PromptEncoder):
    """Encodes as PromptEncoder does, by another way: control tokens are the template's own alone.

    The template is rendered around marks, cut at its control tokens, and what lies between them,
    the texts among it, is encoded as plain text: in pieces that end where a text spells a control
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
    """The twin of an encoder; None where it does not encode clean rows alike.

    SentencePiece tokenizers put a space before each piece, which this way does not know of.
    """
    twin = TextTwin(encoder.tokenizer, encoder.template, encoder.scale, encoder.max_seq_length)
    alike = all(twin.prompt_ids(one) == encoder.prompt_ids(one) for one in clean)
    return twin if alike else None
