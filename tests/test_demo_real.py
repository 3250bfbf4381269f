"""The demo on labels of people: where its data come from, and what is said where they are not."""

from pathlib import Path

import pytest

from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from pt_app.eval_model import demo
from tests.real_data import real


@pytest.mark.slow  # it imports four files
def test_the_official_dev_rows_train_and_the_official_test_rows_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = real("mlqe-pe/ro-en-dev.tar.gz").parents[1]
    monkeypatch.setenv("JUDGE_REAL_DATA", str(folder))
    monkeypatch.setattr(demo, "fetch", lambda name: None)  # 93 MB
    out = tmp_path / "demo-real"
    demo._real_data(out, "smollm2-135m")
    data = read_dataset(out)
    assert {row.id.rsplit("-", 1)[0] for row in data.test} == {"ro-en-test", "et-en-test"}
    assert {row.id.rsplit("-", 1)[0] for row in data.train} == {"ro-en-dev", "et-en-dev"}
    assert not data.leaks
    assert demo._real_data(out, "smollm2-135m") == [f"{out}: imported before"]


def test_labels_that_are_nowhere_are_one_line_that_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_REAL_DATA", str(tmp_path / "absent"))
    monkeypatch.setattr(demo, "fetch", lambda name: None)
    with pytest.raises(UserError, match="set JUDGE_REAL_DATA to a folder") as refused:
        demo._real_data(tmp_path / "demo-real", "smollm2-135m")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "demo-real").exists()


def test_folder_of_other_files_is_refused_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "fetch", lambda name: pytest.fail("fetched"))
    out = tmp_path / "demo-real"
    out.mkdir()
    (out / "judge_train.json").write_text("[]")
    with pytest.raises(UserError, match=r"demo-real holds other files.*: move it away") as refused:
        demo._real_data(out, "smollm2-135m")
    assert "\n" not in str(refused.value)
    assert (out / "judge_train.json").exists()
