"""What bad input gets: one line with file, row, field and remedy, and nothing written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from pt_app.judge_data.folder import split_folder
from pt_app.judge_data.options import SplitPlan
from pt_app.judge_data.preview import preview
from tests.conftest import run_offline
from tests.rows import write_rows
from tests.test_recipes import flags, main, recipe_path


def replace_line(path: Path, row: int, change: Callable[[dict[str, Any]], Any]) -> None:
    lines = path.read_text().splitlines()
    changed = change(json.loads(lines[row - 1]))
    lines[row - 1] = changed if isinstance(changed, str) else json.dumps(changed)
    path.write_text("\n".join(lines))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no data folder": (
        lambda d: d.rename(d.with_name("gone")),
        "is not there.*judge data generate",
    ),
    "not JSON": (
        lambda d: replace_line(d / "judge_train.json", 3, lambda row: '{"id": 1,, }'),
        r"judge_train\.json.*line 3.*column",
    ),
    "not UTF-8": (
        lambda d: (d / "judge_test.json").write_bytes(b'{"id": "caf\xe9"}'),
        r"judge_test\.json.*byte",
    ),
    "no assistant turn": (
        lambda d: replace_line(
            d / "judge_train.json", 2, lambda row: {"messages": [{"role": "user", "content": "x"}]}
        ),
        r"judge_train\.json.*2.*assistant",
    ),
    "no user turn": (
        lambda d: replace_line(
            d / "judge_train.json",
            2,
            lambda row: {"messages": [{"role": "assistant", "content": "Score: 1/10"}]},
        ),
        r"judge_train\.json.*2.*user",
    ),
    "unreadable verdict": (
        lambda d: replace_line(
            d / "judge_val.json", 1, lambda row: {"input": "x", "output": "quite good"}
        ),
        r"judge_val\.json.*1.*Score",
    ),
    "off the scale": (
        lambda d: replace_line(
            d / "judge_test.json", 4, lambda row: row | {"label": {"verdict": 11}}
        ),
        r"judge_test\.json.*4.*verdict.*0-10",
    ),
    "two rows, one id": (
        lambda d: replace_line(d / "judge_test.json", 4, lambda row: row | {"id": "train-1"}),
        "train-1",
    ),
    "one group, two splits": (
        lambda d: replace_line(d / "judge_test.json", 4, lambda row: row | {"group": "train 0"}),
        "train 0.*(train|test)",
    ),
    "candidate does not fit": (
        lambda d: replace_line(
            d / "judge_train.json", 5, lambda row: row | {"candidate": "casa velha " * 400}
        ),
        r"judge_train\.json.*5.*max_seq_length",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_bad_data_gets_one_line_and_nothing_is_written(
    base: Path, tmp_path: Path, fault: str
) -> None:
    rows = write_rows(tmp_path / "rows")
    spoil, message = BROKEN[fault]
    spoil(rows)
    with pytest.raises(UserError, match=message) as error:
        main("mps", flags(base, rows, tmp_path / "out"))
    assert "\n" not in str(error.value).strip()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_model_that_is_neither_folder_nor_reachable_names_the_way_out(
    rows: Path, tmp_path: Path
) -> None:
    done = run_offline([recipe_path("mps"), *flags(Path("no/such-model"), rows, tmp_path / "out")])
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "--model tiny" in line
    assert "hf download no/such-model" in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_output_folder_that_cannot_be_written_is_named(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"file.*cannot be written.*choose another folder"):
        main("mps", flags(base, rows, tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "not a folder"


def test_lora_targets_that_the_model_lacks_are_named_beside_those_it_has(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"query_key_value.*q_proj"):
        main("mps", flags(base, rows, tmp_path, "--lora_targets", "query_key_value"))


@pytest.mark.parametrize(
    "use",
    [preview, lambda folder: split_folder(folder, SplitPlan()), read_dataset],
    ids=["preview", "split", "training"],
)
def test_a_dataset_folder_that_is_not_there_is_named(
    use: Callable[[Path], object], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"folder .*nowhere is not there: .*judge data import"):
        use(tmp_path / "nowhere")
