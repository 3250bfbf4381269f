"""The words of the generator: tables of English and Brazilian Portuguese, one meaning per word.

The tables are tab-separated files in `pt_app/judge_data/generator/lexicon/`, one header line each.
A row maps the columns to its cells; its forms are in columns such as `feminine_plural`. Of a noun
`class` is animate, food, thing or place; of a verb `object` is the class of its object, any or
none; an adjective `fits` animate, thing (everything else) or any; an adverb is fluent with a
`tense` or any, and may open a sentence where `may_lead` is yes.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from pt_app.core.errors import UserError
from pt_app.judge_data.options import LexiconSize

Number = Literal["singular", "plural"]
Tense = Literal["present", "past"]
Row = Mapping[str, str]

NUMBERS: tuple[Number, ...] = ("singular", "plural")
TENSES: tuple[Tense, ...] = ("present", "past")
GENDERS = {"m": "masculine", "f": "feminine"}  # of nouns, by their cells
TABLES = ("nouns", "verbs", "adjectives", "adverbs", "determiners")
SMALL = {"nouns": 40, "verbs": 12, "adjectives": 12, "adverbs": 6}


@dataclass(frozen=True)
class Lexicon:
    """All tables; words are referred to by their index in them."""

    nouns: Sequence[Row]
    verbs: Sequence[Row]
    adjectives: Sequence[Row]
    adverbs: Sequence[Row]
    determiners: Sequence[Row]
    synonyms: Row

    @staticmethod
    @cache
    def load(size: LexiconSize = "full") -> "Lexicon":
        """Read the shipped tables; "small" keeps the first rows of each (see SMALL).

        Raises UserError for any other size.
        """
        if size not in ("full", "small"):
            raise UserError(f"lexicon {size!r} is unknown: choose full or small")
        sizes = SMALL if size == "small" else {}
        tables = {name: table(name)[: sizes.get(name)] for name in TABLES}
        return Lexicon(synonyms=pairs_table("synonyms"), **tables)

    def rows(self, role: str) -> Sequence[Row]:
        """Return the table of the words of a role."""
        tables = {"noun": self.nouns, "verb": self.verbs, "adj": self.adjectives}
        return (tables | {"adv": self.adverbs, "det": self.determiners})[role]

    def determiner(self, kind: str) -> tuple[int, Row]:
        """Find index and row of the determiner of this kind."""
        return next((i, row) for i, row in enumerate(self.determiners) if row["kind"] == kind)


def english_verb(verb: Row, tense: Tense, number: Number) -> str:
    """Return the English form of a verb in the third person."""
    present = "english_third" if number == "singular" else "english_base"
    return verb["english_past" if tense == "past" else present]


def accepts(verb: Row, category: str | None) -> bool:
    """Return whether an object of this class, or none at all, is fluent with a verb."""
    if category is None:
        return verb["object"] == "none"
    return verb["object"] in ("any", category) or (verb["object"], category) == ("thing", "food")


def suits(adjective: Row, category: str) -> bool:
    """Return whether an adjective may describe a noun of this class."""
    return adjective["fits"] in ("any", "animate" if category == "animate" else "thing")


def table(name: str) -> list[dict[str, str]]:
    """Read the rows of a shipped table."""
    path = files("pt_app.judge_data.generator").joinpath("lexicon", f"{name}.tsv")
    with path.open("r", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@cache
def pairs_table(name: str) -> dict[str, str]:
    """Read the table `name` of forms and their synonyms: synonyms or rewordings."""
    return {row["form"]: row["synonym"] for row in table(name)}
