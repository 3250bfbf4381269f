"""Prompt templates: folders of small text files with named fields, and how they are filled in."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pt_app.core.errors import UserError
from pt_app.core.files import write_text_atomic
from pt_app.core.questions import Question
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale

FOLDER = Path(__file__).with_name("templates")
_FIELD = re.compile(r"\{([a-z_]+)\}")
_SCALE_FIELDS = ("low", "high", "verdict_form")
_TEXTS = ("rubric", "source", "conversation", "context", "reference")
_CANDIDATES = ("candidate", "candidate_a", "candidate_b")
# It ends with a sentence on the form of its answer, or with a line.
_QUESTIONS = ("question", "brief_question")
ALL_FIELDS = (*_SCALE_FIELDS, *_TEXTS, *_CANDIDATES, "state", *_QUESTIONS)
FIELDS = {"rubric.txt": _SCALE_FIELDS, "system.txt": ALL_FIELDS, "user.txt": ALL_FIELDS}


@dataclass(frozen=True)
class Template:
    """The texts of a template; `rubric` is for rows without their own rubric.

    A line whose every field is absent from a row is left out.
    """

    name: str
    user: str
    system: str = ""
    rubric: str = ""

    @staticmethod
    def load(name: str, rubric: str | None = None) -> "Template":
        """Read a template by its name, or from a folder with user.txt, system.txt, rubric.txt.

        Only user.txt is required; `rubric`, a dataset's own, replaces the template's. Raises
        UserError for an unknown name or field, and a user.txt without a candidate, or without the
        state and the question of a dataset that declares questions.
        """
        folder = FOLDER / name if "/" not in name and (FOLDER / name).is_dir() else Path(name)
        if not (folder / "user.txt").is_file():
            known = ", ".join(sorted(path.name for path in FOLDER.iterdir() if path.is_dir()))
            problem = f"is neither one of {known} nor a folder with a user.txt"
            raise UserError(f"template {name} {problem}: correct its name")
        texts = {path: _read(folder / path, FIELDS[path]) for path in FIELDS}
        shown = set(_FIELD.findall(texts["user.txt"]))
        if not {"candidate", "candidate_a"} & shown and not _asks(shown):
            pairs = "{candidate_a} and {candidate_b}"
            remedy = f"put {{candidate}} into it, {pairs}, or {{state}} and {{brief_question}}"
            raise UserError(f"{folder / 'user.txt'} shows nothing to judge: {remedy}")
        if rubric:
            _check_fields(rubric, FIELDS["rubric.txt"], "dataset.json, field rubric")
            texts["rubric.txt"] = rubric
        return Template(folder.name, texts["user.txt"], texts["system.txt"], texts["rubric.txt"])

    def row_fields(self) -> list[str]:
        """Return the fields of a row that the template shows, in its order, but for the rubric."""
        names = dict.fromkeys(_FIELD.findall(f"{self.system}\n{self.user}"))
        return [name for name in names if name not in (*_SCALE_FIELDS, "rubric")]

    def save(self, folder: Path) -> None:
        """Write the template's files into `folder`, from which `load` reads the same again."""
        for name in ("user", "system", "rubric"):
            if text := getattr(self, name):
                write_text_atomic(folder / f"{name}.txt", text + "\n")

    def check_asks(self) -> None:
        """Raise UserError if it does not show a declared question and what is asked about."""
        if not _asks(set(_FIELD.findall(self.user))):
            problem = f"template {self.name} shows no {{state}} and {{question}}"
            raise UserError(f"{problem}: use questions, or put both into its user.txt")

    def words(self, scale: Scale) -> str:
        """Return what is asked in words: the system's text with the rubric.

        Lines about one row, or about how an answer is written, are left out.
        """
        of_scale = scale_fields(scale)
        rubric = fill(self.rubric, of_scale)
        system = fill(self.system, of_scale | {"verdict_form": None, "rubric": rubric or None})
        return system if rubric in system else f"{system}\n{rubric}".strip()

    def render(self, example: JudgeExample, scale: Scale) -> tuple[str, str]:
        """Fill in the system's and the user's text for one row of fields."""
        of_scale = scale_fields(scale)
        values = {**of_scale, **row_fields(example)}
        values["rubric"] = example.rubric or fill(self.rubric, of_scale) or None
        return fill(self.system, values), fill(self.user, values)


def _asks(shown: set[str]) -> bool:
    return "state" in shown and bool(shown.intersection(_QUESTIONS))


def fill(text: str, values: dict[str, str | None]) -> str:
    """Put values into named fields, each once: a value that holds "{source}" stays as it is."""
    lines = []
    for line in text.split("\n"):
        names = _FIELD.findall(line)
        if not names or any(values.get(name) is not None for name in names):
            lines.append(_FIELD.sub(lambda match: values.get(match.group(1)) or "", line))
    return "\n".join(lines)


def as_jinja(text: str, known: Mapping[str, str | None], others: str) -> str:
    """Write what `fill` makes of a text as a Jinja expression.

    Args:
        text: the text with named fields.
        known: the fields whose values are known now.
        others: the name of the mapping that has the other fields, none for what a row lacks.
    """
    lines = []
    for line in text.split("\n"):
        names = _FIELD.findall(line)
        open_fields = [f"{others}.{name}" for name in names if name not in known]
        shown = not names or any(known.get(name) is not None for name in names)
        if not shown and not open_fields:
            continue
        # Jinja reads JSON's escapes, but not those of surrogate pairs: no escapes but the needed.
        pieces = [
            f'({others}.{part} or "")'
            if number % 2 and part not in known
            else json.dumps((known[part] or "") if number % 2 else part, ensure_ascii=False)
            for number, part in enumerate(_FIELD.split(line))
        ]
        written = " ~ ".join(pieces)
        if not shown:
            found = " or ".join(f"{name} is not none" for name in open_fields)
            written = f"({written} if {found} else none)"
        lines.append(written)
    return f'[{", ".join(lines)}]|reject("none")|join("\\n")'


def scale_fields(scale: Scale) -> dict[str, str | None]:
    """Return a scale in the words of the templates; with a grid, the grid."""
    scale = scale.grid or scale
    ends = (str(scale.values[0]), str(scale.values[-1])) if scale.task == "score" else (None, None)
    return dict(zip(_SCALE_FIELDS, (*ends, scale.form()), strict=True))


def asked_fields(template: Template, scale: Scale) -> list[str]:
    """Return the fields of a row that a template shows, in its order."""
    other = {"candidate"} if scale.task == "pairwise" else {"candidate_a", "candidate_b"}
    return [name for name in template.row_fields() if name not in other]


def row_fields(example: JudgeExample) -> dict[str, str | None]:
    """Name the texts of a row as templates do; None for what the row does not have.

    An empty source, context or reference is none; an empty candidate is one, and a bad one.
    """
    first, second = example.candidates or (None, None)
    texts = {name: getattr(example, name) or None for name in ("source", "context", "reference")}
    turns = "\n".join(f"{turn.role}: {turn.content}" for turn in example.conversation or ())
    candidates = {"candidate": example.candidate, "candidate_a": first, "candidate_b": second}
    asked = {"state": example.state, **question_fields(example.question)}
    return {**texts, "conversation": turns or None, **candidates, **asked}


def question_fields(question: Question | None) -> dict[str, str | None]:
    """Return a question in the words of the templates; without one its fields are None."""
    texts = (question.text, question.brief) if question else (None, None)
    return dict(zip(_QUESTIONS, texts, strict=True))


def _read(path: Path, fields: tuple[str, ...]) -> str:
    if not path.exists():
        return ""
    try:
        text = path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): save it as UTF-8 text") from error
    _check_fields(text, fields, str(path))
    return text


def _check_fields(text: str, fields: tuple[str, ...], where: str) -> None:
    for number, line in enumerate(text.split("\n"), start=1):
        for name in set(_FIELD.findall(line)).difference(fields):
            problem = f"line {number}, field {{{name}}}: unknown"
            raise UserError(f"{where}, {problem}: use {', '.join(fields)}")
