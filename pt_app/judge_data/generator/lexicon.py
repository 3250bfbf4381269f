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

from pt_app.judge_data.options import LexiconSize

Number = Literal["singular", "plural"]
Tense = Literal["present", "past"]
Row = Mapping[str, str]
Lexicon = Mapping[str, Sequence[Row]]
"""The rows of each role but preposition."""

NUMBERS: tuple[Number, ...] = ("singular", "plural")
TENSES: tuple[Tense, ...] = ("present", "past")


def table(name: str) -> list[dict[str, str]]:
    """Read the rows of a shipped table."""
    path = files("pt_app.judge_data.generator").joinpath("lexicon", f"{name}.tsv")
    with path.open("r", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


ROLES = {row["role"]: row for row in table("roles")}
"""By role the columns of a word's forms, and how many rows the small lexicon has."""


@dataclass(frozen=True)
class Word:
    """A Portuguese word in a sentence, and what an error needs to know about it.

    Attributes:
        role: A key of `ROLES`.
        row: Its row in the lexicon.
        phrase: One of subject, verb, object, adverb, place and company.
        takes: Of a verb, the class of its object, or none.
    """

    role: str
    row: Row
    phrase: str
    number: Number = "singular"
    gender: str = "masculine"
    tense: Tense = "present"
    takes: str = ""

    def form(self, row: Row | None = None, /, **features: str) -> str:
        """Return the form of this word, or of another row, that differs in these features only."""
        column = ROLES[self.role]["portuguese"].format_map(vars(self) | features)
        return (row or self.row)[column]

    @property
    def text(self) -> str:
        """The word as it stands in the sentence."""
        return self.form()

    @property
    def english(self) -> str:
        """Its translation."""
        return self.row[ROLES[self.role]["english"].format_map(vars(self))]


@cache
def load_lexicon(size: LexiconSize) -> Lexicon:
    """Read the shipped tables; "small" keeps the first rows of those of many words."""
    small = {role: int(row["small"]) for role, row in ROLES.items() if row["small"]}
    limits = small if size == "small" else {}
    roles = (role for role in ROLES if role != "preposition")
    return {role: table(f"{role}s")[: limits.get(role)] for role in roles}


@cache
def synonyms(name: str) -> dict[str, str]:
    """Read the table `name` of forms and their synonyms: synonyms or rewordings."""
    return {row["form"]: row["synonym"] for row in table(name)}
