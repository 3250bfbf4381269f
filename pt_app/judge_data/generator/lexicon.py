"""The words of the generator: tables of English and Brazilian Portuguese, one meaning a word.

The tables are tab-separated files in `pt_app/judge_data/generator/lexicon/`, one header line each.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from pt_app.core.errors import UserError
from pt_app.judge_data.options import LexiconSize

Number = Literal["singular", "plural"]
Gender = Literal["masculine", "feminine"]
Tense = Literal["present", "past"]

NUMBERS: tuple[Number, ...] = ("singular", "plural")
GENDERS: tuple[Gender, ...] = ("masculine", "feminine")
TENSES: tuple[Tense, ...] = ("present", "past")
OTHER_NUMBER: dict[Number, Number] = {"singular": "plural", "plural": "singular"}
OTHER_GENDER: dict[Gender, Gender] = {"masculine": "feminine", "feminine": "masculine"}
OTHER_TENSE: dict[Tense, Tense] = {"present": "past", "past": "present"}
SMALL = {"nouns": 40, "verbs": 12, "adjectives": 12, "adverbs": 6}


@dataclass(frozen=True)
class Noun:
    """A noun; `category` is animate, food, thing or place."""

    english: dict[Number, str]
    forms: dict[Number, str]
    gender: Gender
    category: str


@dataclass(frozen=True)
class Verb:
    """A verb in the third person; `takes` is the category of its object, "any" or "none"."""

    english: dict[tuple[Tense, Number], str]
    forms: dict[tuple[Tense, Number], str]
    takes: str

    def accepts(self, category: str | None) -> bool:
        """Whether an object of this category, or none at all, is fluent."""
        if category is None:
            return self.takes == "none"
        return self.takes in ("any", category) or (self.takes, category) == ("thing", "food")


@dataclass(frozen=True)
class Adjective:
    """An adjective; `fits` is animate, thing (everything else) or any."""

    english: str
    forms: dict[tuple[Gender, Number], str]
    fits: str

    def suits(self, category: str) -> bool:
        """Whether it may describe a noun of this category."""
        return self.fits in ("any", "animate" if category == "animate" else "thing")


@dataclass(frozen=True)
class Adverb:
    """An adverb; `tense` is the one it is fluent with, or any; `leads`: may open a sentence."""

    english: str
    form: str
    tense: str
    leads: bool


@dataclass(frozen=True)
class Determiner:
    """An article, possessive or demonstrative, or the contraction of "at the"."""

    kind: str
    english: dict[Number, str]
    forms: dict[tuple[Gender, Number], str]


@dataclass(frozen=True)
class Lexicon:
    """All tables; words are referred to by their index in them."""

    nouns: tuple[Noun, ...]
    verbs: tuple[Verb, ...]
    adjectives: tuple[Adjective, ...]
    adverbs: tuple[Adverb, ...]
    determiners: tuple[Determiner, ...]
    synonyms: dict[str, str]

    @classmethod
    def load(cls, size: LexiconSize = "full") -> "Lexicon":
        """The shipped tables; "small" keeps the first rows of each (see SMALL).

        Raises UserError for any other size.
        """
        if size not in ("full", "small"):
            raise UserError(f"lexicon {size!r} is unknown: choose full or small")
        full = _load()
        if size == "full":
            return full
        return cls(
            full.nouns[: SMALL["nouns"]],
            full.verbs[: SMALL["verbs"]],
            full.adjectives[: SMALL["adjectives"]],
            full.adverbs[: SMALL["adverbs"]],
            full.determiners,
            full.synonyms,
        )

    def determiner(self, kind: str) -> tuple[int, Determiner]:
        """Index and row of the determiner of this kind."""
        return next((i, row) for i, row in enumerate(self.determiners) if row.kind == kind)


def table(name: str) -> list[dict[str, str]]:
    """The rows of a shipped table, by column."""
    path = files("pt_app.judge_data.generator").joinpath("lexicon", f"{name}.tsv")
    with path.open("r", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@cache
def pairs_table(name: str) -> dict[str, str]:
    """The table `name` of forms and their synonyms: synonyms or rewordings."""
    return {row["form"]: row["synonym"] for row in table(name)}


def _agreeing(row: dict[str, str]) -> dict[tuple[Gender, Number], str]:
    return {(g, n): row[f"{g}_{n}"] for g in GENDERS for n in NUMBERS}


def _noun(row: dict[str, str]) -> Noun:
    return Noun(
        {n: row[f"english_{n}"] for n in NUMBERS},
        {n: row[n] for n in NUMBERS},
        "masculine" if row["gender"] == "m" else "feminine",
        row["class"],
    )


def _verb(row: dict[str, str]) -> Verb:
    present: dict[Number, str] = {"singular": row["english_third"], "plural": row["english_base"]}
    return Verb(
        {(t, n): present[n] if t == "present" else row["english_past"] for t, n in _TENSED},
        {(t, n): row[f"{t}_{n}"] for t, n in _TENSED},
        row["object"],
    )


_TENSED: tuple[tuple[Tense, Number], ...] = tuple((t, n) for t in TENSES for n in NUMBERS)


@cache
def _load() -> Lexicon:
    return Lexicon(
        tuple(map(_noun, table("nouns"))),
        tuple(map(_verb, table("verbs"))),
        tuple(Adjective(r["english"], _agreeing(r), r["fits"]) for r in table("adjectives")),
        tuple(
            Adverb(r["english"], r["portuguese"], r["tense"], r["may_lead"] == "yes")
            for r in table("adverbs")
        ),
        tuple(
            Determiner(r["kind"], {n: r[f"english_{n}"] for n in NUMBERS}, _agreeing(r))
            for r in table("determiners")
        ),
        pairs_table("synonyms"),
    )
