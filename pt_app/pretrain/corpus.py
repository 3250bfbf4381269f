"""The text a base learns from: sentences, translations and the differences between two of them.

No document holds a score, a count of errors or a verdict that follows from a translation: a
score is there only where it was drawn by lot. What judging a base learns, it learns from an
adapter. Sources that belong to judge data are left out.
"""

import difflib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pt_app.core.verdicts import Scale, format_answer
from pt_app.judge_data.generator.errors import ERRORS, KINDS, PARAPHRASE, Candidate
from pt_app.pretrain.sentences import Example, Sentences, held_out
from pt_app.pretrain.tokenizer import TURN_END, TURN_START

# Wrong words and tenses are fluent: only a comparison shows them, so they are the hard kinds.
WEIGHTS = {"wrong_word": 3.0, "tense": 2.5, "number": 1.5, "addition": 1.5, "omission": 1.5}
ERRORS_IN_CANDIDATE = (0, 1, 2, 3, 4)
ERRORS_WEIGHTS = (2, 4, 3, 2, 1)
JUDGE = (
    "You judge translations from English to Portuguese.\n10 is perfect, 0 is useless.\n"
    "Answer with Score: N/10, then Issues and Feedback."
)
TASK = "Translations from English to Portuguese.\n"
NONE = "none"
UNRELATED = ("wrong_word", "omission", "addition")
SCALE = Scale.from_name("0-10")


@dataclass(frozen=True)
class Document:
    """A prompt with its answer, in ChatML; `source` is the English sentence ("" for none).

    `number` is the score or count that the text holds, `kinds` the differences in its candidate.
    """

    prompt: str
    answer: str
    source: str = ""
    task: str = ""
    kinds: tuple[str, ...] = ()
    number: int | None = None


def chat(system: str, user: str) -> str:
    """A conversation up to the start of the answer, as the chat template writes it."""
    turns = f"{TURN_START}system\n{system}{TURN_END}\n{TURN_START}user\n{user}{TURN_END}\n"
    return f"{turns}{TURN_START}assistant\n"


def layout(example: Example) -> str:
    """The lines of a judge's prompt."""
    return (
        f"Source: {example.source}\nReference: {example.reference}\n"
        f"Candidate: {example.candidate.text}"
    )


Writers = tuple[tuple[Callable[[random.Random], Document], float], ...]


class Corpus:
    """Draws documents; the same `rng` gives the same documents."""

    def __init__(self, sentences: Sentences, measuring: bool = False) -> None:
        self.sentences = sentences
        self.measuring = measuring
        self._first_phase: Writers = (
            (self.unrelated, 0.5),
            (self.repetition, 0.35),
            (self.changes, 0.15),
        )
        self._writers: Writers = (
            (self.differences, 0.3),
            (self.reading, 0.18),
            (self.annotation, 0.15),
            (self.given_score, 0.11),
            (self.changes, 0.08),
            (self.unrelated, 0.08),
            (self.translation, 0.04),
            (self.repetition, 0.02),
            (self.evaluation, 0.02),
            (self.count, 0.02),
        )

    def sample(self, rng: random.Random, first_phase: bool = False) -> Document:
        """One document; in the first phase only words, to repeat, to compare or to relate."""
        writers, shares = zip(*(self._first_phase if first_phase else self._writers), strict=True)
        write: Callable[[random.Random], Document] = rng.choices(writers, shares)[0]
        return write(rng)

    def example(self, rng: random.Random, kinds: Sequence[str] | None = None) -> Example:
        """A sentence of the base's half, with errors of these kinds or of some drawn by lot."""
        drawn = draw_kinds(rng) if kinds is None else kinds
        while True:
            example = self.sentences.sample(rng, drawn)
            if held_out(example.source) == self.measuring:
                return example

    def differences(self, rng: random.Random, kinds: Sequence[str] | None = None) -> Document:
        """The kinds of difference, in any order, then each difference.

        An answer that may start with any of them makes the first token's distribution a summary
        of all differences, which is what a judge needs in one place.
        """
        example = self.example(rng, kinds)
        answer = f"{kinds_line(example.candidate, rng)}\n{issues_line(example.candidate)}"
        prompt = chat(TASK + "Name the kinds of difference, then each difference.", layout(example))
        return self._document("differences", prompt, answer, example)

    def single(self, rng: random.Random, kind: str) -> Document:
        """A document of differences whose candidate holds this kind alone (or none)."""
        wanted = () if kind == NONE else (kind,)
        while True:
            document = self.differences(rng, wanted)
            if document.kinds == wanted:
                return document

    def annotation(self, rng: random.Random) -> Document:
        """The candidate word by word, each followed by what is wrong with it."""
        example = self.example(rng)
        prompt = chat(TASK + "Annotate each word of the candidate.", layout(example))
        answer = "".join(f" {word} {mark}" if word else f" {mark}" for word, mark in marks(example))
        return self._document("annotation", prompt, answer, example)

    def reading(self, rng: random.Random) -> Document:
        """The candidate, with marks behind some of its words, then the kinds of difference.

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
        prompt = chat(
            TASK + "Read a candidate, then name the kinds of difference.",
            f"Source: {example.source}\nReference: {example.reference}",
        )
        return self._document("reading", prompt, answer, example)

    def given_score(self, rng: random.Random) -> Document:
        """An evaluation under a score that was drawn before the candidate was."""
        score = rng.randint(0, 10)
        example = self.example(rng)
        prompt = chat(JUDGE, f"{layout(example)}\nGiven score: {score}")
        issues = [issue.text for issue in example.candidate.issues]
        answer = format_answer(SCALE, score, issues, example.candidate.feedback)
        return self._document("given_score", prompt, answer, example, score)

    def translation(self, rng: random.Random) -> Document:
        """A sentence and its reference."""
        example = self.example(rng, ())
        prompt = chat(TASK + "Translate the source.", f"Source: {example.source}")
        return self._document("translation", prompt, example.reference, example, with_kinds=False)

    def repetition(self, rng: random.Random) -> Document:
        """Unrelated words of both languages, twice."""
        words = self._words(rng, rng.randint(3, 12))
        return Document(
            chat("Repeat the words.", words), words + TURN_END + "\n", task="repetition"
        )

    def unrelated(self, rng: random.Random) -> Document:
        """Two lists of unrelated words, the second annotated: only comparing tells them apart."""
        right = self._words(rng, rng.randint(3, 9)).split()
        spare = self._words(rng, len(right)).split()
        wrong, marked = [], []
        for old, new in zip(right, spare, strict=True):
            kind = rng.choices(("=", *UNRELATED), (6, 2, 1, 1))[0]
            shown = {"=": [old], "wrong_word": [new], "omission": [], "addition": [old, new]}[kind]
            wrong += shown
            marked += [f"{old} ="] if kind == "addition" else []
            marked.append(" ".join([*shown[-1:], kind]))
        prompt = chat(
            "Annotate each word of the candidate.",
            f"Reference: {' '.join(right)}\nCandidate: {' '.join(wrong)}",
        )
        return Document(prompt, f" {' '.join(marked)}{TURN_END}\n", task="unrelated")

    def changes(self, rng: random.Random) -> Document:
        """Pairs of words with the kind of the change: what two forms are to each other."""
        lines: list[str] = []
        while len(lines) < 6:
            for issue in self.example(rng).candidate.issues:
                if issue.wrong and issue.right:
                    lines.append(f" {issue.wrong} {issue.right} {issue.kind}")
        return Document(
            chat("Write pairs of words and the kind of change.", "Pairs of words."),
            f"{''.join(lines)}{TURN_END}\n",
            task="changes",
        )

    def count(self, rng: random.Random) -> Document:
        """How many words there are in an unrelated list."""
        number = rng.randint(1, 10)
        prompt = chat("Count the words.", self._words(rng, number))
        return Document(prompt, f"Words: {number}/10{TURN_END}\n", task="count", number=number)

    def evaluation(self, rng: random.Random) -> Document:
        """The first lines of an evaluation for a score drawn by lot, without any translation."""
        score, kind = rng.randint(0, 10), rng.choice([*ERRORS, NONE])
        remark = "No errors." if kind == NONE else KINDS[kind].remark.capitalize() + "."
        prompt = chat(
            "Write an evaluation with this score and this kind of difference.",
            f"Given score: {score}\nKind: {kind}",
        )
        answer = format_answer(SCALE, score, (), remark)
        return Document(prompt, f"{answer}{TURN_END}\n", task="evaluation", number=score)

    def _words(self, rng: random.Random, number: int) -> str:
        words: list[str] = []
        while len(words) < number:
            example = self.example(rng, ())
            words += (example.reference if rng.random() < 0.7 else example.source).split()
        rng.shuffle(words)
        return " ".join(word.strip(".").lower() for word in words[:number])

    @staticmethod
    def _document(
        task: str,
        prompt: str,
        answer: str,
        example: Example,
        number: int | None = None,
        with_kinds: bool = True,
    ) -> Document:
        kinds = tuple(i.kind for i in example.candidate.issues) if with_kinds else ()
        return Document(prompt, f"{answer}{TURN_END}\n", example.source, task, kinds, number)


def draw_kinds(rng: random.Random) -> list[str]:
    """Kinds of error for a candidate, fluent ones more often."""
    number = rng.choices(ERRORS_IN_CANDIDATE, ERRORS_WEIGHTS)[0]
    if number == 0 and rng.random() < 0.5:
        return [PARAPHRASE]
    return rng.choices(ERRORS, [WEIGHTS.get(kind, 1.0) for kind in ERRORS], k=number)


def kinds_line(candidate: Candidate, rng: random.Random) -> str:
    """The kinds of all differences in random order."""
    names = [issue.kind for issue in candidate.issues]
    rng.shuffle(names)
    return f"Kinds: {', '.join(names) or NONE}"


def issues_line(candidate: Candidate) -> str:
    """The line of an answer that lists the differences."""
    return f"Issues: {'; '.join(issue.text for issue in candidate.issues) or NONE}"


def marks(example: Example) -> list[tuple[str, str]]:
    """The candidate's words, each with `=` where it agrees, else with the kind of its error.

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
            for k in range(max(len(old), len(new))):
                sides = "".join(new[k : k + 1]), "".join(old[k : k + 1])
                word = "".join(shown[j1 + k : j2][:1])
                marked.append((word, kind_of.get(sides, "other")))
    return marked


def words(text: str) -> list[str]:
    """Lower-case words without the punctuation around them."""
    return [bare for word in text.split() if (bare := word.strip(".,;:!?\"'()").casefold())]
