"""The text a base learns from: sentences, translations and the differences between two of them.

No document holds a score, a count of errors or a verdict that follows from a translation: a score
appears only where it was drawn at random. What judging a base learns, it learns from an adapter.
Sources that belong to judge data are left out.
"""

import difflib
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import yaml

from pt_app.core.files import sha256_file
from pt_app.core.verdicts import Scale, format_answer
from pt_app.judge_data.generator.corpus import CorpusMaterial, read_corpus
from pt_app.judge_data.generator.errors import (
    ERRORS,
    KINDS,
    PARAPHRASE,
    Candidate,
    reserved_for_judges,
)
from pt_app.judge_data.generator.generate import Material
from pt_app.judge_data.generator.grammar import Grammar
from pt_app.judge_data.options import LexiconSize
from pt_app.models.new_tokenizer import TURN_END, TURN_START

HELD_OUT_SHARE = 32  # one source of so many is kept for measuring
ERRORS_IN_CANDIDATE = (0, 1, 2, 3, 4)
ERRORS_WEIGHTS = (2, 4, 3, 2, 1)
TEXTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
NONE = "none"
UNRELATED = ("wrong_word", "omission", "addition")
SCALE = Scale.from_name("0-10")


@dataclass(frozen=True)
class Example:
    """A source, its reference and a candidate with known differences."""

    source: str
    reference: str
    candidate: Candidate

    def layout(self) -> str:
        """Write the lines of a judge's prompt."""
        return (
            f"Source: {self.source}\nReference: {self.reference}\nCandidate: {self.candidate.text}"
        )


def held_out(source: str) -> bool:
    """Return whether a source is kept for measuring: never trained on, nor in judge data."""
    digest = hashlib.sha256(("held out " + source.casefold()).encode()).digest()
    return digest[0] % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Document:
    """What a user asks and the reply to it; `kinds` are the differences in its candidate."""

    task: str
    user: str
    reply: str
    kinds: tuple[str, ...] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation, which its task's system turn opens."""
        turns = {"system": TEXTS["systems"][self.task], "user": self.user, "assistant": self.reply}
        return [{"role": role, "content": text} for role, text in turns.items()]

    @property
    def prompt(self) -> str:
        """What stands before the reply, as the chat template writes it."""
        turns = (f"{TURN_START}{m['role']}\n{m['content']}{TURN_END}\n" for m in self.messages[:2])
        return f"{''.join(turns)}{TURN_START}assistant\n"

    @property
    def answer(self) -> str:
        """The reply with its end, as the chat template writes it."""
        return f"{self.reply}{TURN_END}\n"


@dataclass(frozen=True)
class Corpus:
    """Draws documents; the same `rng` gives the same documents.

    Attributes:
        material: sentences, and the errors that can be put into them.
        description: what they are, in a line.
        measuring: whether the documents are of the sources that are kept for measuring.
    """

    material: Material
    description: str
    measuring: bool = False

    @staticmethod
    def of_grammar(size: LexiconSize) -> "Corpus":
        """Draw from all sentences that the grammar can make."""
        description = f"sentences of the generator's grammar, {size} lexicon"
        return Corpus(Grammar(size), description)

    @staticmethod
    def of_file(file: Path, max_words: int | None) -> "Corpus":
        """Draw from the pairs of a parallel corpus."""
        pairs, _ = read_corpus(file, max_words, base=True)
        description = f"{file.name}, sha256 {sha256_file(file)}, {len(pairs)} pairs"
        return Corpus(CorpusMaterial(pairs), description)

    def sample(self, rng: random.Random, first_phase: bool = False) -> Document:
        """Draw a document; in the first phase only words, to repeat, to compare or to relate."""
        shares = TEXTS["first_phase" if first_phase else "documents"]
        (task,) = rng.choices(list(shares), list(shares.values()))
        document: Document = getattr(self, task)(rng)
        return document

    def example(self, rng: random.Random, kinds: Sequence[str] | None = None) -> Example:
        """Draw a sentence of the base's half, with errors of these kinds or of random ones.

        A sentence that is reserved for judges is not used. Errors are put in as far as they fit.
        """
        drawn = draw_kinds(rng) if kinds is None else kinds
        while True:
            pair = self.material.pick(rng)
            if not reserved_for_judges(pair.source):
                candidate = self.material.corrupt(pair, drawn, rng)
                if held_out(pair.source) == self.measuring:
                    return Example(pair.source, pair.reference, candidate)

    def differences(self, rng: random.Random, kinds: Sequence[str] | None = None) -> Document:
        """Name the kinds of difference, in any order, then each difference.

        An answer that may start with any of them makes the first token's distribution a summary
        of all differences, which is what a judge needs in one place.
        """
        example = self.example(rng, kinds)
        issues = "; ".join(issue.text for issue in example.candidate.issues)
        answer = f"{kinds_line(example.candidate, rng)}\nIssues: {issues or NONE}"
        return document("differences", example.layout(), answer, example.candidate)

    def single(self, rng: random.Random, kind: str) -> Document:
        """Draw a document of differences whose candidate holds this kind alone (or none)."""
        wanted = () if kind == NONE else (kind,)
        while True:
            drawn = self.differences(rng, wanted)
            if drawn.kinds == wanted:
                return drawn

    def annotation(self, rng: random.Random) -> Document:
        """Write the candidate word by word, each followed by what is wrong with it."""
        example = self.example(rng)
        answer = "".join(f" {word} {mark}" if word else f" {mark}" for word, mark in marks(example))
        return document("annotation", example.layout(), answer, example.candidate)

    def reading(self, rng: random.Random) -> Document:
        """Write the candidate, with marks behind some words, then the kinds of difference.

        With few marks or none the words themselves must carry what the kinds are read from: the
        way from annotating to seeing a whole candidate.
        """
        example = self.example(rng)
        share = rng.choice((0.0, 0.3, 0.6, 1.0))
        text = ""
        for word, mark in marks(example):
            text += f" {word}" if word else ""
            text += f" {mark}" if rng.random() < share else ""
        answer = f"Candidate:{text}\n{kinds_line(example.candidate, rng)}"
        user = f"Source: {example.source}\nReference: {example.reference}"
        return document("reading", user, answer, example.candidate)

    def given_score(self, rng: random.Random) -> Document:
        """Write an evaluation for a score that was drawn before the candidate was."""
        score = rng.randint(0, 10)
        example = self.example(rng)
        user = f"{example.layout()}\nGiven score: {score}"
        issues = [issue.text for issue in example.candidate.issues]
        answer = format_answer(SCALE, score, issues, example.candidate.feedback)
        return document("given_score", user, answer, example.candidate)

    def translation(self, rng: random.Random) -> Document:
        """Write a sentence and its reference."""
        example = self.example(rng, ())
        return document("translation", f"Source: {example.source}", example.reference)

    def repetition(self, rng: random.Random) -> Document:
        """Write unrelated words of both languages, twice."""
        drawn = self._words(rng, rng.randint(3, 12))
        return document("repetition", drawn, drawn)

    def unrelated(self, rng: random.Random) -> Document:
        """Annotate one of two lists of unrelated words: only comparing tells them apart."""
        right = self._words(rng, rng.randint(3, 9)).split()
        spare = self._words(rng, len(right)).split()
        wrong, marked = [], []
        for old, new in zip(right, spare, strict=True):
            kind = rng.choices(("=", *UNRELATED), (6, 2, 1, 1))[0]
            shown = {"=": [old], "wrong_word": [new], "omission": [], "addition": [old, new]}[kind]
            wrong += shown
            marked += [f"{old} ="] if kind == "addition" else []
            marked.append(" ".join([*shown[-1:], kind]))
        user = f"Reference: {' '.join(right)}\nCandidate: {' '.join(wrong)}"
        return document("unrelated", user, f" {' '.join(marked)}")

    def changes(self, rng: random.Random) -> Document:
        """Write pairs of words with the kind of the change: how two forms relate."""
        lines: list[str] = []
        while len(lines) < 6:
            for issue in self.example(rng).candidate.issues:
                if issue.wrong and issue.right:
                    lines.append(f" {issue.wrong} {issue.right} {issue.kind}")
        return document("changes", "Pairs of words.", "".join(lines))

    def count(self, rng: random.Random) -> Document:
        """Count the words of an unrelated list."""
        number = rng.randint(1, 10)
        user = self._words(rng, number)
        return document("count", user, f"Words: {number}/10")

    def evaluation(self, rng: random.Random) -> Document:
        """Write the first lines of an evaluation for a random score, without any translation."""
        score, kind = rng.randint(0, 10), rng.choice([*ERRORS, NONE])
        remark = "No errors." if kind == NONE else KINDS[kind].remark.capitalize() + "."
        user = f"Given score: {score}\nKind: {kind}"
        return document("evaluation", user, format_answer(SCALE, score, (), remark))

    def _words(self, rng: random.Random, number: int) -> str:
        """Draw unrelated words, most of them Portuguese."""
        drawn: list[str] = []
        while len(drawn) < number:
            example = self.example(rng, ())
            drawn += (example.reference if rng.random() < 0.7 else example.source).split()
        rng.shuffle(drawn)
        return " ".join(word.strip(".").lower() for word in drawn[:number])


def document(task: str, user: str, reply: str, candidate: Candidate | None = None) -> Document:
    """Make a document with the kinds of difference of its candidate, if there is one."""
    kinds = tuple(issue.kind for issue in candidate.issues) if candidate else ()
    return Document(task, user, reply, kinds)


def draw_kinds(rng: random.Random) -> list[str]:
    """Draw kinds of error for a candidate, fluent ones more often."""
    number = rng.choices(ERRORS_IN_CANDIDATE, ERRORS_WEIGHTS)[0]
    if number == 0 and rng.random() < 0.5:
        return [PARAPHRASE]
    weights = TEXTS["kind_weights"]
    return rng.choices(ERRORS, [weights.get(kind, 1.0) for kind in ERRORS], k=number)


def kinds_line(candidate: Candidate, rng: random.Random) -> str:
    """List the kinds of all differences in random order."""
    names = [issue.kind for issue in candidate.issues]
    rng.shuffle(names)
    return f"Kinds: {', '.join(names) or NONE}"


def marks(example: Example) -> list[tuple[str, str]]:
    """Return the candidate's words, each with `=` where it agrees, else with the kind of its error.

    What is left out has its mark behind an empty word.
    """
    kind_of = {
        (issue.wrong.casefold(), issue.right.casefold()): issue.kind
        for issue in example.candidate.issues
    }
    shown = [piece for piece in example.candidate.text.split() if words(piece)]
    right, wrong = words(example.reference), words(example.candidate.text)
    marked: list[tuple[str, str]] = []
    matcher = difflib.SequenceMatcher(None, right, wrong, autojunk=False)
    for _, i1, i2, j1, j2 in matcher.get_opcodes():
        old, new = right[i1:i2], wrong[j1:j2]
        whole = kind_of.get((" ".join(new), " ".join(old)))
        if old == new:
            marked += [(word, "=") for word in shown[j1:j2]]
        elif whole:
            marked.append((" ".join(shown[j1:j2]), whole))
        else:
            for made, lost, word in zip_longest(new, old, shown[j1:j2], fillvalue=""):
                marked.append((word, kind_of.get((made, lost), "other")))
    return marked


def words(text: str) -> list[str]:
    """Split into lower-case words without the punctuation around them."""
    return [bare for word in text.split() if (bare := word.strip(".,;:!?\"'()").casefold())]
