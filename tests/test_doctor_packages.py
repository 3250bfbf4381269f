"""`judge doctor` on packages: what is missing, what is not as named, what fetches by itself."""

from pathlib import Path

import pytest
import torch

from pt_app.preflight.doctor import machine
from pt_app.preflight.doctor.command import sections_of
from pt_app.preflight.doctor.machine import check_packages, pins_of
from pt_app.preflight.wheels import read_requirements
from tests.test_doctor import by_name


def test_a_package_that_the_settings_do_not_use_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = machine.importlib.metadata.version

    def version(name: str) -> str:
        if name == "bitsandbytes":
            raise machine.importlib.metadata.PackageNotFoundError(name)
        return own(name)

    monkeypatch.setattr(machine.importlib.metadata, "version", version)
    (tmp_path / "requirements-cuda.txt").write_text("bitsandbytes==0.50.2\nPyYAML==6.0.3\n")
    monkeypatch.setattr(machine, "CHECKOUT", tmp_path)
    for more, status in ([], "fail"), (["--no_4bit"], "ok"):
        sections = dict(sections_of("cuda", ["--model", "tiny", *more], offline=True))
        assert by_name(sections["packages"]())["packages"].status == status


def test_versions_are_compared_with_the_requirements_and_those_that_they_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "requirements.txt").write_text("# both\nPyYAML==6.0.3\npydantic==0.0.1\n-e .\n")
    file = tmp_path / "requirements-mps.txt"
    file.write_text("-r requirements.txt\n")
    assert pins_of(read_requirements(file)) == {"PyYAML": "6.0.3", "pydantic": "0.0.1"}
    found = by_name(check_packages("mps", tmp_path))["packages"]
    assert found.status == "warn"
    assert "pydantic 2." in found.said
    assert "(pinned: 0.0.1)" in found.said
    file.write_text("a-package-that-is-nowhere==1.0\n")
    found = by_name(check_packages("mps", tmp_path))["packages"]
    assert (found.status, found.said) == ("fail", "missing: a-package-that-is-nowhere")
    assert found.fix.startswith("pip install -r requirements-mps.txt")


def test_the_builds_of_a_version_are_that_version(tmp_path: Path) -> None:
    version = torch.__version__.split("+")[0]
    (tmp_path / "requirements-mps.txt").write_text(f"torch=={version}\n")
    assert by_name(check_packages("mps", tmp_path))["packages"].status == "ok"


def test_a_package_that_fetches_kernels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: name == "kernels")
    found = by_name(check_packages("mps"))["hidden downloads"]
    assert (found.status, found.fix) == ("warn", "pip uninstall kernels")


def test_an_old_bitsandbytes_on_amd_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    own = machine.importlib.metadata.version
    monkeypatch.setattr(torch.version, "hip", "7.2")
    monkeypatch.setattr(
        machine.importlib.metadata,
        "version",
        lambda name: "0.49.1" if name == "bitsandbytes" else own(name),
    )
    found = by_name(check_packages("cuda"))
    assert found["bitsandbytes"].status == "fail"
    assert "bitsandbytes" not in by_name(check_packages("cuda", no_4bit=True))
    assert found["torch"].said.endswith("built for ROCm 7.2")
