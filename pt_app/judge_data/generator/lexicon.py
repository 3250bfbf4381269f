"""The words of the generator: tables of English and Brazilian Portuguese, one meaning per word.

The tables are tab-separated files in `pt_app/judge_data/generator/lexicon/`, one header line each.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from pt_app.core.errors import UserError

Number = Literal["singular", "plural"]
Gender = Literal["masculine", "feminine"]
Tense = Literal["present", "past"]
Size = Literal["full", "small"]

NUMBERS: tuple[Number, ...] = ("singular", "plural")
GENDERS: tuple[Gender, ...] = ("masculine", "feminine")
TENSES: tuple[Tense, ...] = ("present", "past")
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


Inflected = Noun | Verb | Adjective | Determiner


@dataclass(frozen=True)
class Lexicon:
    """All tables; words are referred to by their index in them."""

    nouns: tuple[Noun, ...]
    verbs: tuple[Verb, ...]
    adjectives: tuple[Adjective, ...]
    adverbs: tuple[Adverb, ...]
    determiners: tuple[Determiner, ...]
    synonyms: dict[str, str]

    @staticmethod
    @cache
    def load(size: Size = "full") -> "Lexicon":
        """Read the shipped tables; "small" keeps the first rows of each (see SMALL).

        Raises UserError for any other size.
        """
        if size not in ("full", "small"):
            raise UserError(f"lexicon {size!r} is unknown: choose full or small")

        def rows(name: str) -> list[dict[str, str]]:
            return table(name)[: SMALL.get(name) if size == "small" else None]

        return Lexicon(
            tuple(map(_noun, rows("nouns"))),
            tuple(map(_verb, rows("verbs"))),
            tuple(Adjective(r["english"], _agreeing(r), r["fits"]) for r in rows("adjectives")),
            tuple(
                Adverb(r["english"], r["portuguese"], r["tense"], r["may_lead"] == "yes")
                for r in rows("adverbs")
            ),
            tuple(
                Determiner(r["kind"], {n: r[f"english_{n}"] for n in NUMBERS}, _agreeing(r))
                for r in rows("determiners")
            ),
            pairs_table("synonyms"),
        )

    def inflected(self, role: str) -> Sequence[Inflected]:
        """Give the table of a role whose words have several forms."""
        tables: dict[str, Sequence[Inflected]] = {
            "noun": self.nouns,
            "verb": self.verbs,
            "adj": self.adjectives,
            "det": self.determiners,
        }
        return tables[role]

    def determiner(self, kind: str) -> tuple[int, Determiner]:
        """Find index and row of the determiner of this kind."""
        return next((i, row) for i, row in enumerate(self.determiners) if row.kind == kind)


def table(name: str) -> list[dict[str, str]]:
    """Read the rows of a shipped table, by column."""
    path = files("pt_app.judge_data.generator").joinpath("lexicon", f"{name}.tsv")
    with path.open("r", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@cache
def pairs_table(name: str) -> dict[str, str]:
    """Read the table `name` of forms and their synonyms: synonyms or rewordings."""
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
    english: dict[tuple[Tense, Number], str] = {
        ("present", "singular"): row["english_third"],
        ("present", "plural"): row["english_base"],
        ("past", "singular"): row["english_past"],
        ("past", "plural"): row["english_past"],
    }
    return Verb(english, {(t, n): row[f"{t}_{n}"] for t, n in english}, row["object"])
