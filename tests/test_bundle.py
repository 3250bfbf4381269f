"""`judge bundle`: what is in the archive, what it refuses, and a whole one without a network."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from pt_app.core.errors import UserError
from pt_app.preflight import wheels
from pt_app.preflight.bundle import SCRIPTS, gather, requirements_of, write_archive
from pt_app.preflight.wheels import Target
from tests.conftest import ROOT, without_network
from tests.tiny_models import make_model_folder


@pytest.fixture
def config(base: Path, rows: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "mine.yaml", model=str(base), data_dir=str(rows))


def write_config(file: Path, **values: str) -> Path:
    file.write_text(json.dumps({"output_dir": str(file.parent / "out"), "epochs": 2} | values))
    return file


def make_wheel(folder: Path, name: str, version: str = "1.0", needs: tuple[str, ...] = ()) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        wheel.writestr(f"{name}/_vendor/other-2.0.dist-info/METADATA", "Name: other\n")
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tag)
        wheel.writestr(f"{info}/RECORD", "")


def test_bundle_holds_base_data_adapter_and_relative_settings(
    config: Path, base: Path, rows: Path, adapter: Path
) -> None:
    files = gather("mps", config, [adapter], ROOT)
    assert files["base/small-base/model.safetensors"] == base / "model.safetensors"
    assert files["data/rows/judge_train.json"] == rows / "judge_train.json"
    assert f"adapters/{adapter.name}/adapter_model.safetensors" in files
    assert files["RECIPE"] == b"mps\n"
    settings = files["settings.yaml"]
    assert isinstance(settings, bytes)
    assert settings.decode() == (
        "data_dir: data/rows\nepochs: 2\nmodel: base/small-base\noutput_dir: out\n"
    )
    guide = files["README.md"]
    assert isinstance(guide, bytes)
    assert f"--adapter adapters/{adapter.name} --base base/small-base" in guide.decode()


def test_bundle_trains_with_its_own_recipe_whatever_the_machine_has(tmp_path: Path) -> None:
    for name, source in SCRIPTS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, tmp_path / name)
    (tmp_path / "RECIPE").write_text("mps\n")
    (tmp_path / "settings.yaml").write_text("model: tiny\n")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    stand_in = f'#!/bin/sh\n[ "$1" != -c ] || exec {sys.executable} "$@"\necho "$@"\n'
    for file in (python, python.with_name("judge")):
        file.write_text(stand_in)
        file.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if not k.startswith("JUDGE_")}
    env |= {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "1", "PYTHONPATH": str(ROOT)}
    for words in (
        [str(tmp_path / "run.sh"), "train", "--config", "settings.yaml"],
        ["bash", "scripts/slurm/judge_train.slurm", "settings.yaml"],
    ):
        said = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        assert "-m pt_app.eval_model.judge_train_mps --config settings.yaml" in said.stdout
    words = [str(tmp_path / "run.sh"), "score", "--adapter", "a"]
    said = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert said.stdout == "score --adapter a\n"


def test_nothing_but_safetensors_and_no_path_of_this_machine_is_bundled(
    base: Path, rows: Path, adapter: Path, tmp_path: Path
) -> None:
    littered = shutil.copytree(base, tmp_path / "littered")
    for name in ("pytorch_model.bin", "adapter_model.safetensors", "optimizer.pt", "code.py"):
        (littered / name).write_bytes(b"x")
    config = write_config(tmp_path / "mine.yaml", model=str(littered), data_dir=str(rows))
    files = gather("mps", config, [adapter], ROOT)
    names = {Path(name).name for name in files if name.startswith("base/")}
    assert names == {path.name for path in base.iterdir()}
    for name, source in files.items():
        content = source if isinstance(source, bytes) else source.read_bytes()
        assert str(tmp_path.parent).encode() not in content, name


def test_template_in_a_folder_comes_along(base: Path, tmp_path: Path, rows: Path) -> None:
    template = tmp_path / "own-template"
    template.mkdir()
    (template / "user.txt").write_text("{source}\n{candidate}\n")
    data = shutil.copytree(rows, tmp_path / "data")
    (data / "dataset.json").write_text(json.dumps({"template": str(template), "origin": "é"}))
    config = write_config(tmp_path / "mine.yaml", model=str(base), data_dir=str(data))
    files = gather("mps", config, [], ROOT)
    assert files["templates/own-template/user.txt"] == template / "user.txt"
    card = files["data/data/dataset.json"]
    assert isinstance(card, bytes)
    assert json.loads(card) == {"template": "templates/own-template", "origin": "é"}


def test_adapter_of_another_base_is_refused_in_one_line(
    rows: Path, adapter: Path, tmp_path: Path
) -> None:
    other = make_model_folder(tmp_path / "other-base", seed=1)
    config = write_config(tmp_path / "mine.yaml", model=str(other), data_dir=str(rows))
    with pytest.raises(UserError, match=r"was trained on .*small-base.* not on .*other-base"):
        gather("mps", config, [adapter], ROOT)


def test_missing_base_and_faulty_data_are_refused(
    config: Path, base: Path, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--data_dir"):
        gather("mps", write_config(config, model=str(base), data_dir="none"), [], ROOT)
    (tmp_path / "empty").mkdir()
    faulty = write_config(config, model=str(tmp_path / "empty"), data_dir=str(rows))
    with pytest.raises(UserError, match=r"config\.json"):
        gather("mps", faulty, [], ROOT)


def test_archive_is_the_same_whenever_it_is_written_and_names_each_hash(tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(b"weights")
    files = {"b/weights": source, "a.txt": b"text", "install.sh": b"#!/bin/sh\n"}
    first = write_archive(tmp_path / "one.tar", "top", files)
    os.utime(source, (1, 1))
    source.chmod(0o600)
    second = write_archive(tmp_path / "two.tar", "top", dict(reversed(files.items())))
    assert first == second == hashlib.sha256((tmp_path / "two.tar").read_bytes()).hexdigest()
    with tarfile.open(tmp_path / "one.tar") as tar:
        assert {m.name: oct(m.mode) for m in tar.getmembers()} == {
            "top/MANIFEST": "0o644",
            "top/a.txt": "0o644",
            "top/b/weights": "0o644",
            "top/install.sh": "0o755",
        }
        tar.extractall(tmp_path, filter="data")
    check = ["sha256sum", "--check", "MANIFEST"]
    assert subprocess.run(check, cwd=tmp_path / "top", capture_output=True).returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.tar", "top", "two.tar", "weights"]


@pytest.mark.parametrize("tracking", ["offline", "wandb,tensorboard"])
def test_bundle_has_the_package_of_tensorboard_where_a_run_writes_for_it(
    base: Path, rows: Path, tmp_path: Path, tracking: str
) -> None:
    config = write_config(
        tmp_path / "mine.yaml", model=str(base), data_dir=str(rows), tracking=tracking
    )
    lines = requirements_of("mps", config, ROOT)
    assert len(lines) == len(set(lines))
    assert any(line.startswith("tensorboardX==") for line in lines) is ("board" in tracking)


def test_requirements_are_those_of_the_recipe_without_the_project_itself() -> None:
    lines = wheels.read_requirements(ROOT / "requirements-cuda.txt")
    assert {line.partition("==")[0] for line in lines} >= {"torch", "bitsandbytes", "typer"}
    assert not [line for line in lines if line.startswith(("-", "#"))]


def test_what_wheels_need_on_another_system_is_missed(tmp_path: Path) -> None:
    needs = ('gpu[fast]==1.0; platform_system == "Linux"', 'notes; extra == "docs"')
    make_wheel(tmp_path, "engine", needs=needs)
    linux, mac = Target("manylinux_2_28_x86_64", "3.11"), Target("macosx_14_0_arm64", "3.11")
    assert wheels.missing(["engine"], tmp_path, mac) == []
    assert wheels.missing(["engine"], tmp_path, linux) == ["gpu[fast]==1.0"]
    make_wheel(tmp_path, "gpu", needs=('blas; extra == "fast"',))
    assert wheels.missing(["engine"], tmp_path, linux) == ["blas"]
    make_wheel(tmp_path, "blas")
    assert wheels.missing(["engine"], tmp_path, linux) == []
    assert wheels.missing(["engine==2.0"], tmp_path, mac) == ["engine==2.0"]


def test_wheels_that_pip_leaves_out_for_another_system_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    here = "Darwin" if sys.platform == "darwin" else "Linux"
    there = "Linux" if here == "Darwin" else "Darwin"
    make_wheel(index, "engine", needs=(f'gpu; platform_system == "{there}"',))
    make_wheel(index, "gpu", needs=(f'blas; platform_system == "{there}"',))
    make_wheel(index, "blas")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    tag = "macosx_14_0_arm64" if there == "Darwin" else "manylinux_2_28_x86_64"
    wheels.fetch_wheels(["engine"], tmp_path / "out", Target(tag, "3.12"))
    assert {p.name.partition("-")[0] for p in (tmp_path / "out").iterdir()} == {
        "engine",
        "gpu",
        "blas",
    }


def test_wheel_that_cannot_be_had_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match=r"No matching distribution found for engine==1\.0") as said:
        wheels.fetch_wheels(["engine==1.0"], tmp_path / "out", Target())
    assert "--wheels" in str(said.value)


@pytest.mark.parametrize("tag", ["linux_x86_64", "win_amd64", "manylinux_2_28", "x"])
def test_platform_that_no_wheel_has_is_refused(tag: str) -> None:
    with pytest.raises(UserError, match="give a wheel's tag"):
        Target(tag)


def test_older_tags_of_a_platform_are_asked_for_too() -> None:
    flags = Target("manylinux_2_28_aarch64", "3.12").pip_flags()
    for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "linux"):
        assert f"--platform={tag}_aarch64" in flags
    assert "--platform=manylinux_2_29_aarch64" not in flags
    assert "--python-version=3.12" in flags


def offline(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run with nothing of this machine but its Python: no network, settings of pip, or caches."""
    env = {"PATH": os.environ["PATH"], "HOME": str(cwd), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    env |= {"PIP_CONFIG_FILE": os.devnull, "PYTHON": str(Path(sys.base_prefix) / "bin" / "python3")}
    words = [*without_network(), *command]
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_bundle_installs_trains_and_scores_where_there_is_no_network(
    config: Path, adapter: Path, tmp_path: Path
) -> None:
    if not without_network():
        pytest.skip("network namespaces are barred on this machine: the bundle had its network")
    flags = ["--config", str(config), "--adapter", str(adapter), "--recipe", "mps"]
    out = ["--out", str(tmp_path / "judge-bundle.tar")]
    made = subprocess.run(
        [sys.executable, "-m", "pt_app.cli", "bundle", *flags, *out],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if "pip download" in made.stderr:
        pytest.skip(f"wheels cannot be downloaded here: {made.stderr.strip()}")
    assert made.returncode == 0, made.stderr
    fresh = tmp_path / "elsewhere"
    fresh.mkdir()
    with tarfile.open(tmp_path / "judge-bundle.tar") as tar:
        tar.extractall(fresh, filter="data")
    (tmp_path / "judge-bundle.tar").unlink()
    home = fresh / "judge-bundle"
    rows = home / "data" / "rows" / "judge_val.json"

    spoilt = rows.read_bytes()
    rows.write_bytes(spoilt.replace(b"a", b"b", 1))
    refused = offline(["./install.sh"], home)
    assert refused.returncode == 2
    assert "judge_val.json" in refused.stdout
    assert "copy the bundle again" in refused.stderr
    rows.write_bytes(spoilt)

    installed = offline(["./install.sh"], home)
    assert installed.returncode == 0, installed.stderr
    trained = offline(["./run.sh", "train", "--config", "settings.yaml"], home)
    assert trained.returncode == 0, trained.stderr
    assert list(home.glob("out/small-base-judge-2ep-*_final/evaluation/results.json"))
    files = ["--input", "data/rows/judge_test.json", "--output", "judged.jsonl"]
    judge = ["--adapter", f"adapters/{adapter.name}", "--base", "base/small-base"]
    scored = offline(["./run.sh", "score", *judge, *files], home)
    assert scored.returncode == 0, scored.stderr
    assert len((home / "judged.jsonl").read_text().splitlines()) == 12
