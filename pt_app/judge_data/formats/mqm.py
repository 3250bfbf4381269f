"""The MQM files of WMT: one row per error span, made into one judged translation with a score."""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from pt_app.core.errors import UserError
from pt_app.core.records import Place, one_line
from pt_app.core.verdicts import Scale, Verdict
from pt_app.judge_data.labels import nearest, reduce
from pt_app.judge_data.options import FormatOptions
from pt_app.judge_data.reading.tables import Rows
from pt_app.judge_data.rows import Converted, Row

FOLDER = Path(__file__).parents[1] / "mqm_weights"
_SPAN = re.compile(r"<v>(.*?)</v>", re.DOTALL)
Rating = list[tuple[Place, Row]]
"""The rows of one rater for one translation."""


class SpecialWeight(BaseModel):
    """The penalty of errors whose category starts so; the severity `*` is any."""

    category: str
    severity: str
    weight: Decimal


class Weights(BaseModel):
    """Penalties of MQM errors. A score is the scale's top less their sum, at least its low end."""

    name: str = ""
    scale: str
    severities: dict[str, Decimal]
    exceptions: list[SpecialWeight] | None = None

    @staticmethod
    def load(name: str) -> "Weights":
        """Read weights by name, or from a YAML file of the same form.

        Raises UserError for a name or file that does not exist, and for a file of another form.
        """
        shipped = {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}
        path = shipped.get(name, Path(name))
        try:
            weights = Weights.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except OSError as error:
            problem = f"is none of {', '.join(shipped)} and no YAML file: name one that exists"
            raise UserError(f"--mqm_weights {name} {problem}") from error
        except (yaml.YAMLError, ValidationError) as error:
            remedy = f"write scale, severities and exceptions as in {FOLDER.name}/google.yaml"
            problem = one_line(str(error))[:200]
            raise UserError(f"{path} holds no weights ({problem}): {remedy}") from error
        Scale.from_name(weights.scale)  # refuses what is not a scale
        return weights.model_copy(update={"name": path.stem})

    def penalty(self, category: str, severity: str, place: Place) -> Decimal:
        """Return the penalty of one error; raise RowError for a severity without a weight."""
        for special in self.exceptions or ():
            if category.startswith(special.category) and special.severity in ("*", severity):
                return special.weight
        if severity not in self.severities:
            problem = f"{severity!r} has no weight in {self.name}"
            raise place.error("severity", problem, "add it to the weights")
        return self.severities[severity]

    def score(self, rating: Rating, scale: Scale) -> Verdict:
        """Return the score of one rater for one translation."""
        penalties = (self.penalty(v["category"], v["severity"], place) for place, v in rating)
        return nearest(float(Decimal(str(scale.values[-1])) - sum(penalties)), scale)


def wmt_mqm(rows: Rows, scale: Scale, options: FormatOptions) -> Iterator[Converted]:
    """Group the error spans by translation and rater; convert each translation."""
    weights = Weights.load(options.mqm_weights)
    translations: dict[tuple[str, ...], dict[str, Rating]] = {}
    for place, value in rows:
        key = (value["system"], value["doc"], value["seg_id"])
        translations.setdefault(key, {}).setdefault(value["rater"], []).append((place, value))
    for ratings in translations.values():
        scores = {rater: weights.score(rating, scale) for rater, rating in ratings.items()}
        errors = [row for rating in ratings.values() for row in rating]
        yield _translation(errors, scores, reduce([*scores.values()], scale, options.reduce))


def _translation(errors: Rating, scores: Mapping[str, Verdict], verdict: Verdict) -> Converted:
    """Make the row of one translation from the rows of its error spans."""
    place, first = errors[0]
    source, candidate = _texts(first)
    for where, value in errors:
        if _texts(value) != (source, candidate):
            problem = f"is not that of {place.where}, the same segment"
            raise where.error("target", problem, "correct one of them")
    row = {
        "id": f"{place.stem}-{first['system']}-{first['doc']}-{first['seg_id']}",
        "source": source,
        "candidate": candidate,
        "label": {
            "verdict": verdict,
            "issues": list(_issues(errors)),
            "feedback": " ".join(v["comment"] for _, v in errors if v.get("comment")),
        },
        "annotators": [{"rater": rater, "verdict": score} for rater, score in scores.items()],
        "meta": {"system": first["system"], "document": first["doc"], "segment": first["seg_id"]},
    }
    return Converted(place, row, rows_read=len(errors))


def _texts(value: Mapping[str, str]) -> tuple[str, str]:
    return re.sub(r"</?v>", "", value["source"]), re.sub(r"</?v>", "", value["target"])


def _issues(errors: Rating) -> Iterator[str]:
    for _, value in errors:
        if value["category"].casefold() in ("no-error", "no error"):
            continue
        spans = _SPAN.findall(value["target"]) or _SPAN.findall(value["source"])
        issue = f"{value['category']} {value['severity'].lower()}"
        yield issue + "".join(f' "{span.strip()}"' for span in spans)
