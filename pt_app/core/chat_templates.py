"""Seals a base's chat template for a judge: no clock, no thinking, no control token in data.

The sealed template is kept with the adapter, so that stock `apply_chat_template` makes the same
prompt on any day. An ordinary template, one without clock or thinking, stays as it is.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pt_app.core.errors import UserError
from pt_app.core.files import expanded, read_text

log = logging.getLogger(__name__)

# The day that prompts name: Llama 3's own for programs without a clock. Any fixed one would do.
DAY = date(2024, 7, 26)
# What switches a template's thinking off: Qwen3, SmolLM3, GLM and EXAONE; DeepSeek and Granite;
# Seed-OSS. In Jinja's own words.
THINKING_OFF = {"enable_thinking": "false", "thinking": "false", "thinking_budget": "0"}
ANSWER = "Xq7answerXq7"  # a text that stands for an answer, or for any other content
_SEALED = "{#- Sealed for a judge: "
_CLOCK = "strftime_now"
_DIRECTIVE = re.compile(r"%[-_0^#]?[A-Za-z]")
_GENERATION = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
# A template of one turn alone: what it encodes is the text itself.
_TEXT_ALONE = "{{ messages[0]['content'] }}"
FOLDER = Path(__file__).with_name("chat")
NAMED = ("chatml", "gemma", "plain")  # the templates in FOLDER
_MARKER = re.compile(r"<\|?[a-z_]+\|?>")


def give(tokenizer: Any, name: str) -> None:
    """Give the tokenizer a chat template by its name (one of NAMED), or from a file.

    Where its vocabulary lacks the markers of ChatML, it gets `plain`, the same layout without them.

    Raises:
        UserError: if there is no such template, or the vocabulary lacks the tokens it writes.
    """
    if name not in NAMED:
        remedy = f"is not there: name a file, or one of {', '.join(NAMED)}"
        tokenizer.chat_template = read_text(expanded(name), remedy)
        return
    text = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    lacking = sorted({*_MARKER.findall(text)} - tokenizer.get_vocab().keys())
    if lacking and name != "chatml":
        raise UserError(
            f"--chat_template {name}: the vocabulary has no {', '.join(lacking)}: take plain"
        )
    if lacking:
        log.info("chat template: plain, since the vocabulary has no %s", ", ".join(lacking))
        give(tokenizer, "plain")
        return
    if tokenizer.eos_token is None and name == "plain":
        raise UserError("--chat_template: the tokenizer has no end token: write a template FILE")
    tokenizer.chat_template = text


def seal(tokenizer: Any, day: date = DAY) -> None:
    """Change the tokenizer's chat template, in place, into one that a judge can rely on.

    A clock always says `day`, thinking is off, and a prompt ends where the template would start
    an answer, behind whatever channel or empty thought it opens one with. Every added token,
    special or not, becomes one that `sanitize_control_tokens` encodes as text. A sealed template
    is left as it is. Raises UserError if the template cannot be read or fails.
    """
    control_tokens(tokenizer)
    if not (template := _unsealed(tokenizer)):
        return
    loaded, constants = _names_and_texts(template)
    prologue, changes = "", list[str]()
    if _CLOCK in loaded:
        prologue += _clock(constants, day)
        changes.append(f"the date is always {day}")
    for name in sorted(loaded & THINKING_OFF.keys()):
        prologue += f"{{%- set {name} = {THINKING_OFF[name]} %}}"
        changes.append(f"{name} is {THINKING_OFF[name]}")
    sealed = f"{prologue}\n{template}" if prologue else template
    if opening := _opening(partial(_rendered, tokenizer, sealed)):
        sealed = _opened(sealed, opening)
        changes.append(f"an answer opens with {json.dumps(opening, ensure_ascii=False)}")
    if changes:
        log.info("chat template: %s", "; ".join(changes))
        tokenizer.chat_template = f"{_SEALED}{'; '.join(changes).replace('#}', '# }')} #}}{sealed}"


def asks_for_the_date(tokenizer: Any) -> bool:
    """Return whether the chat template reads the clock; a sealed one does not."""
    return _CLOCK in _names_and_texts(_unsealed(tokenizer))[0]


def _unsealed(tokenizer: Any) -> str:
    """Return the chat template; "" for one that is sealed or no text."""
    template = tokenizer.chat_template
    return template if isinstance(template, str) and not template.startswith(_SEALED) else ""


def control_tokens(tokenizer: Any) -> set[str]:
    """Return the added tokens that are text within data, and let the tokenizer know of them.

    transformers takes the special ones, and of the others those that the template spells out; the
    list is saved with the tokenizer. Left out are blanks (Gemma's blank lines are added tokens,
    and templates write them as text) and tokens that the model's own vocabulary makes of plain
    text: nobody can tell them from that text.
    """
    added = tokenizer.added_tokens_decoder.values()
    plain = [t.content for t in added if not t.special and t.content.strip()]
    if plain and tokenizer.chat_control_tokens is None:
        tokenizer.chat_control_tokens = plain
        if not _can_be_text(tokenizer, plain):
            tokenizer.chat_control_tokens = [t for t in plain if _can_be_text(tokenizer, [t])]
    marked = set(tokenizer.chat_control_tokens or ())
    special = {token.content for token in added if token.special}
    return special | marked.intersection(plain)


def as_text(tokenizer: Any, text: str) -> list[int]:
    """Encode a text in which no added token counts, as `sanitize_control_tokens` does."""
    ids: list[int] = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        chat_template=_TEXT_ALONE,
        sanitize_control_tokens=True,
        return_dict=False,
    )
    return ids


def _can_be_text(tokenizer: Any, tokens: Iterable[str]) -> bool:
    try:
        as_text(tokenizer, "\n".join(tokens))
    except ValueError:  # "Can't sanitize": the vocabulary makes this token of plain text
        return False
    return True


def _names_and_texts(template: str) -> tuple[set[str], list[str]]:
    """Return the names that a template reads, and the texts it writes out."""
    from jinja2 import TemplateSyntaxError, nodes
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(extensions=[loopcontrols])
    try:  # transformers' own {% generation %} changes nothing that is looked for
        parsed = environment.parse(_GENERATION.sub("", template))
    except TemplateSyntaxError as error:
        problem = f"line {error.lineno}: {error.message}: choose another model"
        raise UserError(f"the chat template cannot be read, {problem}") from error
    names = {node.name for node in parsed.find_all(nodes.Name) if node.ctx == "load"}
    constants = [n.value for n in parsed.find_all(nodes.Const) if isinstance(n.value, str)]
    return names, constants


def _clock(constants: Iterable[str], day: date) -> str:
    """Write a macro in place of transformers' clock, whose names no locale changes.

    It replaces the directives that the template holds; any other text stays.
    """
    moment = datetime(day.year, day.month, day.day, tzinfo=UTC)
    used = {name for text in constants for name in _DIRECTIVE.findall(text)} - {"%s"}
    replaced = "".join(f" | replace('{name}', '{moment.strftime(name)}')" for name in sorted(used))
    return f"{{%- macro {_CLOCK}(format) -%}}{{{{- format{replaced} -}}}}{{%- endmacro %}}"


def _rendered(tokenizer: Any, template: str, *turns: str, **options: Any) -> str:
    """Render turns of user and assistant by `template`; raises UserError if it fails."""
    from jinja2 import TemplateError

    roles = ("user", "assistant")
    messages = [{"role": r, "content": text} for r, text in zip(roles, turns, strict=False)]
    try:
        text: str = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, **options
        )
    except (TemplateError, TypeError, ValueError) as error:
        problem = f"fails on a user's turn ({' '.join(str(error).split())[:120]})"
        raise UserError(f"the chat template {problem}: choose another model") from error
    return text


def _opening(render: Callable[..., str]) -> str:
    """Return what the template writes before an answer, where that is not how its prompts end.

    "" for an ordinary template. A prompt for generation may end earlier (gpt-oss leaves the
    channel to the model) or with an open thought (DeepSeek-R1); in a finished conversation the
    answer follows a closed one, or none.
    """
    asked, bare = render("x", add_generation_prompt=True), render("x")
    before, answer, _ = render("x", ANSWER).partition(ANSWER)
    if not answer or (before.startswith(asked) and not before[len(asked) :].strip()):
        return ""  # the encoder reports a template that cannot continue
    return before[len(bare) :] if before.startswith(bare) else ""


def _opened(template: str, opening: str) -> str:
    """Let a template end its prompts with `opening` instead of what it wrote there."""
    asked = "judge_is_asked"
    return (
        f"{{%- set {asked} = add_generation_prompt is defined and add_generation_prompt %}}"
        "{%- set add_generation_prompt = false %}\n"
        # Jinja drops a template's last line end.
        f"{template.removesuffix(chr(10))}"
        f"{{% if {asked} %}}{{{{ {json.dumps(opening)} }}}}{{% endif %}}"
    )
