"""Answer a conversation piece by piece, reading only what the KV cache does not hold yet."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import DynamicCache
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from pt_app.core.chat_templates import control_tokens
from pt_app.core.errors import UserError
from pt_app.core.formatting import visible
from pt_app.models.bases import load_model, load_tokenizer, resolve_model
from pt_app.models.packing import common_prefix
from pt_app.models.platforms import get_device
from pt_app.pretrain.conversations import Conversation, Message, template_ids
from pt_app.pretrain.settings import STAGES, Device, Sampling, TalkSettings
from pt_app.training.checkpoints import MANIFEST

WINDOW = 16  # tokens that are decoded together


class TooLongError(UserError):
    """A conversation does not fit the context of the model."""


class Chat:
    """A model that answers conversations, one at a time.

    Attributes:
        name: of the model.
        context: tokens that it can read and write together.
        ends: the tokens that end an answer.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.context: int = model.config.get_text_config().max_position_embeddings
        control_tokens(tokenizer)
        # An answer has no special token in it: a base without chats would begin a user's turn.
        ends = model.generation_config.eos_token_id
        self.ends = {*tokenizer.all_special_ids, *(ends if isinstance(ends, list) else [ends])}
        self._seen: list[int] = []
        self._cache: Any = None
        self._forget()

    @staticmethod
    def load(name: str, device: Device = "auto") -> "Chat":
        """Load a model by its name, or the newest run's last stage for "".

        Raises:
            UserError: if there is none, or no such device.
        """
        platform, source = get_device(device), resolve_model(name or str(newest_stage()))
        tokenizer = load_tokenizer(source)
        model = load_model(source, platform.compute_dtype, platform.device)
        return Chat(model.eval(), tokenizer, source.name)

    def fitted(self, messages: Conversation, room: int = 1) -> tuple[list[int], int]:
        """Return the ids of a conversation without its oldest exchanges, and how many were cut.

        Args:
            messages: the conversation; the last turn is the user's.
            room: tokens to leave for the answer.

        Raises:
            TooLongError: if not even the last turn fits.
            UserError: if the chat template refuses the conversation.
        """
        if messages[-1]["role"] != "user":
            raise UserError("the last message is not the user's: there is nothing to answer")
        system = [message for message in messages[:1] if message["role"] == "system"]
        asked = [at for at, message in enumerate(messages) if message["role"] == "user"]

        def without(cut: int) -> list[int]:
            return self.prompt([*system, *messages[asked[cut] :]])

        def fits(cut: int) -> bool:
            return len(without(cut)) + room <= self.context

        ids, cut = without(0), 0
        if len(ids) + room > self.context:
            # Each try encodes all that is left, which may be thousands of exchanges.
            cut = bisect_left(range(len(asked)), True, lo=1, key=fits)
            ids = without(min(cut, len(asked) - 1))
        if cut < len(asked):
            return ids, cut
        problem = f"{len(ids)} tokens of a context of {self.context}, {room} of it for the answer"
        raise TooLongError(f"the last message alone takes {problem}: shorten it")

    def prompt(self, messages: Conversation) -> list[int]:
        """Return the ids of a conversation up to where the answer begins."""
        try:
            return template_ids(self.tokenizer, messages, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as error:
            problem = " ".join(str(error).split())[:120]
            raise UserError(f"the chat template refuses the conversation: {problem}") from error

    def scores(self, ids: Sequence[int]) -> Tensor:
        """Return the logits [v] of the token after `ids`; what was read before is not read again.

        A cache that cannot go back, such as that of a sliding window, is filled again.
        """
        known = min(common_prefix(self._seen, ids), len(ids) - 1)
        if known < len(self._seen):
            try:
                self._cache.crop(known - len(self._seen))
            except RuntimeError:
                self._forget()
                known = 0
        try:
            logits = self._forward(list(ids[known:]))
        except BaseException:
            self._forget()  # some layers may hold the new tokens
            raise
        self._seen = list(ids)
        return logits

    @torch.inference_mode()
    def _forward(self, ids: list[int]) -> Tensor:
        torch.set_flush_denormal(True)  # of this thread, and of no other
        inputs = torch.tensor([ids], device=self.model.device)
        out = self.model(inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = out.logits[0, -1].float().cpu()
        return logits

    def _forget(self) -> None:
        self._seen, self._cache = [], DynamicCache(config=self.model.config)


def newest_stage(runs: Path = Path("runs")) -> Path:
    """Return the last complete stage of the run that completed one last."""
    complete = [path for stage in reversed(STAGES) for path in runs.glob(f"*/{stage}/{MANIFEST}")]
    if not complete:
        raise UserError(f"{runs} holds no complete stage: train one, or name a model with --model")
    run = max(complete, key=lambda path: path.stat().st_mtime).parents[1]
    return next(path.parent for path in complete if path.parents[1] == run)


@dataclass
class Reply:
    """An answer in the making: iterating over it yields its text.

    Attributes:
        chat: the model.
        ids: the prompt.
        sampling: how tokens are drawn.
        stops: texts that end the answer, and are not part of it.
        tokens: tokens so far, the end token included.
        reason: why it ended: "length" at the maximum of tokens or the end of the context; "" while
            it has not.
    """

    chat: Chat
    ids: list[int]
    sampling: Sampling
    stops: Sequence[str] = ()
    tokens: int = 0
    reason: Literal["", "stop", "length"] = ""

    def __iter__(self) -> Iterator[str]:
        pieces = text_pieces(self.chat.tokenizer, self._drawn())
        held = ""
        for piece in pieces:
            held += piece
            # The first that is whole ends the answer, however the tokens divide the text.
            if found := [(held.index(s) + len(s), held.index(s)) for s in self.stops if s in held]:
                held, self.reason = held[: min(found)[1]], "stop"
                break
            # What may be the beginning of a stop waits for what follows.
            waiting = max((_overlap(held, stop) for stop in self.stops), default=0)
            if ready := held[: len(held) - waiting]:
                yield ready
            held = held[len(ready) :]
        if held:
            yield held

    def _drawn(self) -> Iterator[int]:
        """Yield the tokens of the answer without its end token."""
        ids, seed = list(self.ids), self.sampling.seed
        generator = torch.Generator()
        generator.seed() if seed is None else generator.manual_seed(seed)
        limit = self.chat.context - len(ids)
        while self.tokens < min(limit, self.sampling.max_tokens or limit):
            token = draw(self.chat.scores(ids), self.sampling, generator)
            self.tokens += 1
            if token in self.chat.ends:
                self.reason = "stop"
                return
            ids.append(token)
            yield token
        self.reason = "length"


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw a token from the logits [v], by the warpers of transformers in their usual order."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    before = torch.empty(1, 0, dtype=torch.long)  # which these warpers do not look at
    scores = logits[None] / sampling.temperature
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(before, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(float(sampling.top_p))(before, scores)
    return int(torch.multinomial(scores[0].softmax(-1), 1, generator=generator))


def text_pieces(tokenizer: Any, tokens: Iterable[int]) -> Iterator[str]:
    """Yield the text of tokens as they come, in whole characters.

    The newest tokens are decoded together, since a blank at the front depends on what stands before
    it. The bytes of a character that is not whole yet are decoded as one U+FFFD at the end.
    """
    ids: list[int] = []
    shown = 0  # characters of their text
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids)
        if piece := text.removesuffix("\ufffd")[shown:]:
            yield piece
            shown += len(piece)
        if len(ids) > WINDOW and shown == len(text):
            ids = ids[-WINDOW // 2 :]
            shown = len(tokenizer.decode(ids))
    if piece := tokenizer.decode(ids)[shown:]:
        yield piece


# --- in the terminal ---


def talk(settings: TalkSettings) -> None:
    """Answer one prompt, or what is typed until Ctrl-D; Ctrl-C stops an answer.

    Raises:
        UserError: as `Chat.load`, and for a prompt that does not fit.
    """
    chat = Chat.load(settings.model, settings.device)
    if settings.p:
        _answer(chat, [{"role": "user", "content": settings.p}], settings.sampling)
        return
    print(f"{chat.name}, a context of {chat.context} tokens; /new begins again, Ctrl-D ends")
    said: list[Message] = []
    while (text := _typed()) is not None:
        if text == "/new":
            said = []
        elif text:
            turn = {"role": "user", "content": text}
            try:
                answer = _answer(chat, [*said, turn], settings.sampling)
            except TooLongError as error:
                print(error)
                continue
            said += [turn, {"role": "assistant", "content": answer}]


def _typed() -> str | None:
    """Return the next line without blanks around it; None at the end of the input."""
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return None


def _answer(chat: Chat, messages: Conversation, sampling: Sampling) -> str:
    """Print an answer as it is made, and return it."""
    room = min(sampling.max_tokens or chat.context, chat.context // 4)
    ids, cut = chat.fitted(messages, room)
    if cut:
        print(f"({cut} exchanges are left out: they no longer fit the context)")
    reply, text = Reply(chat, ids, sampling), ""
    try:
        for piece in reply:
            print(visible(piece), end="", flush=True)
            text += piece
    except KeyboardInterrupt:
        print(" (stopped)", end="")
    print(" (cut)" if reply.reason == "length" else "", flush=True)
    return text
