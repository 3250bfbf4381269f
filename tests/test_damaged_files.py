"""A file that was edited or damaged gets one line with the file, the field and the remedy."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from pt_app.core.flags import read_config
from pt_app.evidence.calibration import Fitted
from pt_app.evidence.gate import gate_folders
from pt_app.evidence.options import Limits
from pt_app.judge_data.folder import build_folder, split_folder
from pt_app.judge_data.formats import Weights
from pt_app.judge_data.options import SplitPlan
from pt_app.judge_data.question_import import declared
from pt_app.tracking.sync import sync
from pt_app.training.checkpoints import MANIFEST, fault
from pt_app.training.runs import checkpoint_to_resume
from tests.test_folder import CARD, build, examples

NOT_READ: dict[str, bytes | None] = {
    "empty": b"",
    "cut": b'{"split": {"by": "gr',
    "binary": b"\x89PNG\r\n\x1a\n\xff",
    "a list": b"[]",
    "nested": b"[" * 100_000,
    "not a number": b'{"rows": NaN}',
    "a folder": None,
}
IMPORTS = [{"files": ["a.csv"], "read": 60, "kept": 60, "dropped": {}}]
RUN: Any = {
    "settings": {"lr": 1e-3},
    "base": {"name": "tiny"},
    "data_sha256": {},
    "prompts_sha256": "",
    "examples_a_step": 4,
    "platform": {},
}
FITTED = {
    "schema": 1,
    "rows": 40,
    "tolerance": 1,
    "temperature": 1.0,
    "isotonic": {"x": [0.1, 0.9], "y": [0.2, 1.0]},
    "threshold": {"target": 0.9, "threshold": 0.5},
}
RESULTS = {
    "schema": 2,
    "task": "score",
    "data": {"n": 2},
    "scale": "0-10",
    "models": [{"name": "a"}],
}


def dataset(folder: Path) -> None:
    build(folder, card={"imports": IMPORTS, "label_rule": "mean"})


def written(name: str, value: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / name).write_text(json.dumps(value))

    return make


def append(folder: Path) -> None:
    build_folder(folder, examples(5, "new"), CARD, SplitPlan(), append=True)


@dataclass(frozen=True)
class Family:
    """A file, the call that reads it, and values of its fields that are wrong."""

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    wrong: dict[str, object]


CARD_FIELDS = {"task": "x", "scale": 3, "rubric": 1, "origin": None, "label_rule": [], "sha256": []}
CARD_FIELDS |= {"split": [], "split.by": "source", "split.left_out": "one", "split.near": None}
CARD_FIELDS |= {"split.ratios": ["x"], "imports": "a.csv", "imports.0.read": "many"}
CARD_FIELDS |= {"imports.0.dropped": None, "self_agreement": {"kappa": "x"}}
FAMILIES = {
    "split": Family(
        "dataset.json", dataset, lambda folder: split_folder(folder, SplitPlan()), CARD_FIELDS
    ),
    "append": Family("dataset.json", dataset, append, CARD_FIELDS),
    "splits": Family("splits.json", dataset, read_dataset, {"row source 0": 3}),
    "resume": Family(
        "settings.json",
        written("settings.json", RUN),
        lambda folder: checkpoint_to_resume(folder, RUN),
        {"settings": [], "base": 3, "data_sha256": {"judge_train.json": 3}, "examples_a_step": "x"}
        | {"prompts_sha256": 3},
    ),
    "sync": Family(
        "tracking.json",
        written("tracking.json", {"wandb": {}, "weave": {"rows.jsonl": False}}),
        sync,
        {"wandb": ["x"], "weave": {"rows.jsonl": 3}},
    ),
    "gate": Family(
        "results.json",
        written("results.json", RESULTS),
        lambda folder: gate_folders([folder], Limits(floor=0)),
        {"schema": 9, "task": "x", "scale": "stars", "models": [], "models.0.metrics": {"mae": 1}},
    ),
    "calibration": Family(
        "calibration.json",
        written("calibration.json", FITTED),
        lambda folder: Fitted.read(folder, "mode"),
        {"rows": None, "temperature": 0, "isotonic": {"x": [1], "y": []}, "isotonic.y": "x"},
    ),
}


def refused(family: Family, folder: Path, says: str) -> None:
    with pytest.raises(UserError) as caught:
        family.read(folder)
    message = str(caught.value)
    assert family.name in message
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize("damage", NOT_READ)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_damaged_file_is_one_line(name: str, damage: str, tmp_path: Path) -> None:
    family, folder = FAMILIES[name], tmp_path / "folder"
    family.make(folder)
    (folder / family.name).unlink()
    if (damaged := NOT_READ[damage]) is None:
        (folder / family.name).mkdir()
    else:
        (folder / family.name).write_bytes(damaged)
    refused(family, folder, ": ")


@pytest.mark.parametrize("name", ["dataset.json", "splits.json"])
def test_a_link_to_nothing_is_no_missing_file(name: str, tmp_path: Path) -> None:
    dataset(tmp_path / "folder")
    path = tmp_path / "folder" / name
    path.unlink()
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=rf"{name} is not there: "):
        read_dataset(path.parent)


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, each in FAMILIES.items() for field in each.wrong]
)
def test_a_wrong_field_is_named(name: str, field: str, tmp_path: Path) -> None:
    family, folder = FAMILIES[name], tmp_path / "folder"
    family.make(folder)
    path = folder / family.name
    whole = inner = json.loads(path.read_text("utf-8"))
    *above, last = [int(part) if part.isdigit() else part for part in field.split(".")]
    for part in above:
        inner = inner[part]
    inner[last] = family.wrong[field]
    path.write_text(json.dumps(whole))
    refused(family, folder, field)


def test_fewer_predictions_than_were_measured_decide_nothing(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    row = {"model": "a", "id": "1", "group": "1", "label": 3, "verdict": 3, "status": "ok"}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"predictions\.jsonl holds 1 rows of a, of 2 in results"):
        gate_folders([tmp_path], Limits(floor=0))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weights": 3}', '{"a": {"bytes": 1'])
def test_a_checkpoint_with_a_damaged_manifest_counts_as_incomplete(
    content: str, tmp_path: Path
) -> None:
    (tmp_path / "weights").write_bytes(b"abc")
    (tmp_path / MANIFEST).write_text(content)
    assert fault(tmp_path)


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_config(path, []),
        lambda path: Weights.load(str(path)),
        lambda path: declared(path.read_text("latin-1"), path),
    ],
    ids=["config", "weights", "questions"],
)
@pytest.mark.parametrize("content", [b"a: [", b"\x89PNG\xff\x00", b"[1, 2]", b"a: 2024-13-45"])
def test_yaml_that_cannot_be_used_is_one_line(
    read: Callable[[Path], object], content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.yaml") as caught:
        read(path)
    assert "\n" not in str(caught.value)
