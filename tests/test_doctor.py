"""`judge doctor` as a command: what it finds missing, what it says, what it never says."""

import json
import runpy
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pt_app.core import settings
from pt_app.core.errors import UserError
from pt_app.models import platforms
from pt_app.preflight.doctor import machine
from pt_app.preflight.doctor.command import examine, run_doctor, sections_of
from pt_app.preflight.doctor.finding import Finding
from pt_app.preflight.doctor.machine import check_machine
from pt_app.preflight.doctor.needs import Needs
from pt_app.tracking import access as tracking_access
from tests.conftest import ROOT, run_offline

DOCTOR = ["-m", "pt_app.cli", "doctor"]
KEY = "0123456789abcdef0123456789abcdef01234567"


def by_name(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def flags(base: Path, rows: Path, out: Path, *more: str) -> list[str]:
    return [f"--model={base}", f"--data_dir={rows}", f"--output_dir={out}", *more]


def needs(offline: bool, argv: list[str]) -> dict[str, Finding]:
    return by_name(Needs(settings.resolve("mps", argv, "test", ""), offline).check())


@pytest.mark.slow
def test_a_machine_that_has_all_a_run_needs_passes_in_80_columns(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    done = run_offline([*DOCTOR, *flags(base, rows, tmp_path, "--offline")])
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].endswith("0 failed")
    for words in ("step, pack", "linear, strided", "400 tokens", "24 rows", "python", "no W&B key"):
        assert words in done.stdout


def test_what_a_run_would_miss_offline_fails_with_the_commands_that_bring_it(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(tracking_access, "find_key", lambda: ("https://w.example", None, "no key"))
    argv = ["--model", "judges/nowhere", "--data_dir", str(rows / "none"), "--tracking", "online"]
    argv += ["--output_dir", "/proc/none"]
    assert run_doctor("mps", argv, offline=True, as_json=True) == 2
    report = json.loads(capsys.readouterr().out)
    failed = {f["name"]: f for f in report["findings"] if f["status"] == "fail"}
    assert set(failed) == {"base", "data", "output", "tracking"}
    assert failed["base"]["fix"].endswith("(the login node): hf download judges/nowhere")
    assert "judge data generate" in failed["data"]["fix"]
    assert "--output_dir" in failed["output"]["fix"]
    assert "WANDB_API_KEY" in failed["tracking"]["fix"]
    assert (report["schema"], report["passed"]) == (1, False)


@pytest.mark.parametrize(
    ("key", "where", "said"),
    [
        (KEY, "environment", "ok a key for api.example.invalid; kept for judge sync"),
        (KEY, "netrc", "ok a key for api.example.invalid; kept for judge sync"),
        ("short-and-wrong-but-secret", "environment", "warn the W&B key cannot be used"),
    ],
)
def test_a_tracking_key_is_found_and_never_shown(
    tmp_path: Path, key: str, where: str, said: str
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.example.invalid login user password {key}\n")
    netrc.chmod(0o600)
    env = {"WANDB_BASE_URL": "https://api.example.invalid", "NETRC": str(netrc)}
    if where == "environment":
        env |= {"WANDB_API_KEY": key, "NETRC": "/dev/null"}
    code = (
        "from pt_app.core.settings import resolve\n"
        "from pt_app.preflight.doctor.needs import Needs\n"
        "needs = Needs(resolve('mps', ['--model', 'tiny'], '', ''), offline=True)\n"
        "for found in needs.tracking(): print(found.status, found.said, found.fix)"
    )
    done = run_offline(["-c", code], **env)
    assert done.stdout.startswith(said), done.stderr
    for start in range(len(key) - 7):
        assert key[start : start + 8] not in done.stdout + done.stderr


@pytest.mark.parametrize("accelerator", ["none", "mps", "cuda"])
def test_the_cpu_is_a_platform_and_the_recipe_that_trains_there_is_named(
    base: Path,
    rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    accelerator: str,
) -> None:
    if accelerator != "none":
        there = torch.cuda if accelerator == "cuda" else torch.backends.mps
        monkeypatch.setattr(there, "is_available", lambda: True)
    assert run_doctor("cpu", flags(base, rows, tmp_path), offline=False, as_json=True) in (0, 2)
    report = json.loads(capsys.readouterr().out)
    found = {one["name"]: one for one in report["findings"] if one["section"] == "machine"}
    assert report["recipe"] == "mps"
    assert "judge_train_mps.py trains there" in found["device"]["said"]


def test_a_flag_that_the_recipe_refuses_is_one_line() -> None:
    said = "unrecognized arguments: --modell tiny; judge train --help lists the flags"
    with pytest.raises(UserError, match=said):
        run_doctor("mps", ["--modell", "tiny"], offline=False, as_json=False)


def test_settings_of_a_file_are_those_that_are_looked_at(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"model: tiny\ndata_dir: {rows}\noutput_dir: {tmp_path}\ntracking: 'off'\n")
    found = needs(False, ["--config", str(config)])
    assert found["base"].said.startswith("tiny: shipped")
    assert {finding.status for finding in found.values()} <= {"ok", "warn"}


def test_a_base_that_lacks_a_file_or_a_template_is_named(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in base.iterdir():
        if file.name != "chat_template.jinja":
            (bare / file.name).write_bytes(file.read_bytes())
    assert "no chat template" in needs(True, flags(bare, rows, tmp_path))["tokenizer"].said
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}}))
    assert needs(True, flags(bare, rows, tmp_path))["remote code"].status == "warn"
    (bare / "model.safetensors").unlink()
    found = needs(True, flags(bare, rows, tmp_path))
    assert found["base"].status == "fail"
    assert "no model.safetensors" in found["base"].said
    assert "tokenizer" not in found


def test_whether_the_hub_answers_is_asked_only_where_something_must_be_fetched(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert needs(False, flags(base, rows, tmp_path))["base"].status == "ok"
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
        found = needs(False, ["--model=judges/nowhere", *flags(base, rows, tmp_path)[1:]])
        assert found["base"].status == "warn"
        assert "127.0.0.1 answers: the run would fetch it" in found["base"].said
    found = needs(False, ["--model=judges/nowhere", *flags(base, rows, tmp_path)[1:]])
    assert found["base"].status == "fail"
    assert "does not answer" in found["base"].said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = needs(False, ["--model=judges/nowhere", *flags(base, rows, tmp_path)[1:]])
    assert found["base"].fix.startswith("HF_HUB_OFFLINE=0 hf download judges/nowhere")


def test_a_full_disk_fails_and_a_nearly_full_one_warns(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for free, status in ((2**20, "fail"), (2**29, "warn"), (2 * 2**30, "warn"), (50 * 2**30, "ok")):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr("pt_app.preflight.doctor.needs.shutil.disk_usage", lambda _, u=usage: u)
        assert needs(True, flags(base, rows, tmp_path / "new"))["output"].status == status


@pytest.mark.parametrize(
    ("cache", "free", "model", "offline", "said"),
    [
        ("hub", 50, "judges/nowhere", False, "ok"),
        ("hub", 19, "judges/nowhere", False, "warn 19.0 GiB free, and 20 are assumed for a base"),
        ("hub", 19, "judges/nowhere", True, "ok"),  # the run would not fetch it
        ("hub", 19, "tiny", False, "ok"),
        ("/proc/none/hub", 50, "judges/nowhere", False, "fail cannot be written"),
        ("/proc/none/hub", 50, "tiny", False, "ok"),
    ],
)
def test_a_cache_is_asked_for_room_where_a_base_is_yet_to_be_fetched(
    cache: str,
    free: int,
    model: str,
    offline: bool,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / cache))
    monkeypatch.setattr("pt_app.preflight.doctor.needs.tracking_access.reachable", lambda *_: True)
    usage = SimpleNamespace(free=free * 2**30)
    monkeypatch.setattr("pt_app.preflight.doctor.needs.shutil.disk_usage", lambda _: usage)
    found = needs(offline, ["--model", model, "--output_dir", str(tmp_path)])["cache"]
    status, _, words = said.partition(" ")
    assert found.status == status
    assert words in found.said


def test_a_gpu_that_torch_does_not_see_is_found_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.sys, "platform", "linux")
    for name in ("proc/driver/nvidia/version", "dev/kfd"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  595.71.05\n")
    platform = platforms.decide("cuda")
    if not platform.on_cpu:
        pytest.skip("this machine has a GPU")
    found = by_name(check_machine("cuda", platform, tmp_path))
    assert found["NVIDIA GPU"].status == found["AMD GPU"].status == "fail"
    assert "make install-rocm" in found["AMD GPU"].fix
    assert found["driver"].said == "NVIDIA 595.71.05"
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    found = by_name(check_machine("mps", platforms.decide("mps"), tmp_path))
    assert found["NVIDIA GPU"].status == "warn"
    assert found["AMD GPU"].fix.startswith("sudo usermod -aG render,video")


def a_gpu(monkeypatch: pytest.MonkeyPatch, built: list[str], **properties: Any) -> Any:
    """torch.cuda as on a machine with such a GPU; the platform that goes with it."""
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(cuda, "get_device_properties", lambda _: SimpleNamespace(**properties))
    monkeypatch.setattr(cuda, "mem_get_info", lambda _: (4 * 2**30, 16 * 2**30))
    real = properties.get("major", 9) >= 8
    monkeypatch.setattr(
        cuda,
        "is_bf16_supported",
        lambda including_emulation=True: True if including_emulation else real,
    )
    return replace(platforms.decide("cuda"), device="cuda", hardware="a GPU")


def test_a_t4_is_asked_for_real_bfloat16_and_who_holds_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    platform = a_gpu(monkeypatch, ["sm_75", "sm_80"], major=7, minor=5)
    found = by_name(check_machine("cuda", platform))
    assert torch.cuda.is_bf16_supported()
    assert found["bfloat16"].status == "warn"
    assert "float16" in found["bfloat16"].said
    assert found["GPU code"].status == "ok"
    assert (found["GPU memory"].status, found["GPU memory"].said) == (
        "warn",
        "4.0 of 16.0 GiB free",
    )


@pytest.mark.parametrize(
    ("built", "chip", "status"),
    [
        (["sm_75", "sm_80", "sm_90"], (6, 1), "fail"),
        (["sm_75", "sm_80", "sm_90"], (8, 9), "ok"),
        (["sm_90a"], (9, 0), "ok"),
        (["sm_100", "sm_120"], (9, 0), "fail"),
        (["sm_75", "compute_90"], (12, 0), "ok"),
    ],
)
def test_whether_torch_has_code_for_an_nvidia_gpu(
    built: list[str], chip: tuple[int, int], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = a_gpu(monkeypatch, built, major=chip[0], minor=chip[1])
    assert by_name(check_machine("cuda", platform))["GPU code"].status == status


def test_an_amd_chip_without_code_gets_the_usual_override(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.2")
    monkeypatch.delenv("HSA_OVERRIDE_GFX_VERSION", raising=False)
    built = ["gfx90a", "gfx942", "gfx1030", "gfx1100"]
    platform = a_gpu(monkeypatch, built, gcnArchName="gfx1031")
    found = by_name(check_machine("cuda", platform))["GPU code"]
    assert found.status == "fail"
    assert "HSA_OVERRIDE_GFX_VERSION=10.3.0" in found.fix
    platform = a_gpu(monkeypatch, built, gcnArchName="gfx942:sramecc+:xnack-")
    found = by_name(check_machine("cuda", platform))["GPU code"]
    assert (found.status, found.said) == ("ok", "gfx942")


def test_a_mac_is_asked_for_its_system_and_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 10 * 2**30)
    monkeypatch.setattr(machine.system, "mac_ver", lambda: ("13.6", ("", "", ""), "arm64"))
    monkeypatch.setenv("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "0.0")
    platform = replace(platforms.decide("mps"), device="mps")
    found = by_name(check_machine("mps", platform))
    assert found["macOS"].status == "fail"
    assert found["GPU memory"].status == "warn"
    monkeypatch.delenv("PYTORCH_MPS_HIGH_WATERMARK_RATIO")
    monkeypatch.setattr(machine.system, "mac_ver", lambda: ("26.1", ("", "", ""), "arm64"))
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    found = by_name(check_machine("mps", platform))
    assert {finding.status for finding in found.values()} == {"ok"}
    assert "17.0 GiB" in found["GPU memory"].said
    assert "computed on the CPU" in found["fallback"].said


def test_a_precision_that_the_device_has_not_is_a_finding(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pt_app.models import gemm

    monkeypatch.setattr(gemm, "has_bfloat16", lambda: False)
    argv = flags(base, rows, tmp_path, "--train_precision=bf16", "--tracking=off")
    if not platforms.decide("mps").on_cpu:
        pytest.skip("this machine has an accelerator")
    report = examine("mps", sections_of("mps", argv, True), quiet=True)
    (wrong,) = report.sections["machine"]
    assert wrong.status == "fail"
    assert "leave it out" in wrong.said
    assert report.sections["run"][0].status == "ok"


def test_a_driver_that_breaks_off_is_a_finding(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(platforms, "decide", broken)
    argv = flags(base, rows, tmp_path, "--tracking=off")
    report = examine("cuda", sections_of("cuda", argv, True), quiet=True)
    (wrong,) = report.sections["machine"]
    assert (wrong.status, wrong.said) == ("fail", "CUDA driver initialization failed")
    assert report.sections["run"][0].status == "ok"


def test_the_form_for_apple_says_where_there_is_no_apple_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if torch.backends.mps.is_available():
        pytest.skip("this machine has an Apple GPU")
    script = ROOT / "scripts" / "test_apple_silicon.py"
    for more, code in ([], 2), (["--cpu"], 0), (["--bogus"], 2):
        monkeypatch.setattr(sys, "argv", [str(script), *more])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
        assert ended.value.code == code
        said = capsys.readouterr()
        assert ("0 failed" in said.out) == (more == ["--cpu"])
        assert ("no Apple GPU here" in said.err) == (more == [])
        assert len(said.err.splitlines()) == (code != 0)
        assert ("--bogus" in said.err) == (more == ["--bogus"])
