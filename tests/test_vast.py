"""Renting at Vast: what is asked, priced and refused, and what becomes of an instance."""

import builtins
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

pytest.importorskip("vastai", reason="pip install -r requirements-vast.txt")

from pt_app.core.errors import UserError
from scripts.rented import offers
from scripts.rented.flags import Search
from scripts.rented.offers import Offer, Work
from scripts.rented.sending import package_files
from scripts.vast import main
from tests.conftest import ROOT
from tests.tiny_gguf import write_gguf
from tests.vast_fixtures import ESTIMATE, FLOPS, SECRETS, attempt, launch_words
from tests.vast_server import VastServer, offer

CREATE = r"/asks/\d+/"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_total_counts_hours_disk_and_traffic_both_ways() -> None:
    row = offer(1, total_flops=82.0, inet_down=1000.0)
    work = Work(flops=FLOPS, memory=0, disk_gb=73, down_gb=10)
    priced = Offer(**row, work=work)
    # one hour of work, 80 s of downloads, a quarter of an hour of set-up
    assert priced.hours == pytest.approx(1 + 80 / 3600 + 0.25)
    by_hand = priced.hours * (0.4 + 0.15 * 73 / 730) + 10 * 0.01 + 2 * 0.02
    assert priced.total == pytest.approx(by_hand)


def test_offers_are_sorted_by_the_price_of_the_run_and_small_ones_counted(
    vast: VastServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = offer(21222333, gpu_name="H100 SXM 80GB HBM3", dph_total=1.2, total_flops=800.0)
    vast.offers += [fast, offer(22, gpu_ram=6000), offer(23, dph_total=9.0)]
    main(["offers"])
    output = capsys.readouterr().out
    ids = [line.split()[0] for line in output.splitlines()[1:5]]
    assert ids == ["21222333", "11", "12", "13"], "dearer an hour, cheaper for the run"
    assert "1 offers with less memory were left out" in output
    assert max(map(len, output.splitlines())) <= 80


def test_filters_reach_the_search_in_vasts_words(vast: VastServer) -> None:
    words = "--max_price 0.45 --reliability 0.9 --inet_down 500 --gpu RTX_4090 --min_cuda 12.4"
    main(["offers", *words.split(), "--disk", "77"])
    first, second = vast.sent("POST", "/bundles/")
    assert first["dph_total"] == {"lte": 0.45}
    assert first["reliability"] == {"gte": 0.9}
    assert first["inet_down"] == {"gte": 500.0}
    assert first["gpu_name"] == {"eq": "RTX 4090"}
    assert first["cuda_max_good"] == {"gte": 12.4}
    assert first["disk_space"] == {"gte": 77}
    assert first["allocated_storage"] == 77
    assert [first["order"], second["order"]] == [
        [["dph_total", "asc"]],
        [["flops_per_dphtotal", "desc"]],
    ]


def test_no_offer_says_what_to_widen(vast: VastServer) -> None:
    with pytest.raises(UserError, match="3 had less than the 200 GiB needed; widen --max_price"):
        main(["offers", "--hours", "1", "--gpu_ram", "200", "--disk", "60"])


def test_hours_and_memory_given_by_hand_need_no_estimate(
    vast: VastServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "raise SystemExit('no model')"
    monkeypatch.setattr(offers, "ESTIMATE", [sys.executable, "-c", code])
    with pytest.raises(UserError, match="judge estimate failed, see above; or give --hours"):
        main(["offers"])
    assert "no model" in capfd.readouterr().err, "what it says is shown meanwhile"
    given = ["offers", "--hours", "2.5", "--gpu_ram", "20"]
    with pytest.raises(UserError, match='size of model "org/none" is not known here: give --disk'):
        main([*given, "--", "--model=org/none"])
    main([*given, "--disk", "60", "--", "--model=org/none"])
    assert "2.50" in capfd.readouterr().out


def test_base_in_a_folder_counts_to_the_disk_where_nothing_is_estimated(
    base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    size = 3 * 10**9
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    weights = folder / "model.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(weights, 8 + len(header) + size)  # a hole, which takes no room
    needed = offers.estimated(Search(hours=1.0, gpu_ram=8.0, recipe=[f"--model={folder}"]))
    assert needed.disk_gb == offers.DISK_GB + 4
    assert needed.up_gb == pytest.approx(3.0, rel=0.01)


def test_base_from_a_gguf_file_is_copied_up(tmp_path: Path) -> None:
    write_gguf(tmp_path / "one.gguf")
    search = Search(hours=1.0, gpu_ram=8.0, recipe=[f"--model={tmp_path / 'one.gguf'}"])
    assert offers.estimated(search).up_gb > 0


def test_base_that_is_copied_up_takes_hours_and_is_in_the_plan(
    vast: VastServer, rows: Path, base: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = Work(flops=FLOPS, memory=0, disk_gb=73, down_gb=10, up_gb=4.5)
    row = offer(1, total_flops=82.0, inet_down=1000.0)
    hours = Offer(**row, work=sent).hours  # 4.5 GB at 10 Mb/s are an hour
    assert hours == pytest.approx(1 + 44 / 3600 + 1 + 0.25)
    words = launch_words(rows, out, "--", f"--model={base}")
    vast.faults.gone = {11, 12, 13}
    with pytest.raises(UserError):
        main(words)
    assert "h at an assumed 10 Mb/s; no key" in capsys.readouterr().out


def test_estimate_gets_the_recipes_flags(
    vast: VastServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    estimate = str(ESTIMATE).replace("None", "null").replace("'", '"')
    note = tmp_path / "words"
    code = (
        f"import sys; open({str(note)!r}, 'w').write(' '.join(sys.argv[1:])); print({estimate!r})"
    )
    monkeypatch.setattr(offers, "ESTIMATE", [sys.executable, "-c", code])
    main(["offers", "--", "--epochs", "2"])
    assert note.read_text() == "--platform cuda --no_timing --json --epochs 2"


@pytest.mark.parametrize("answer", ["n", "", None])
def test_nothing_is_rented_without_a_yes(
    vast: VastServer,
    rows: Path,
    out: Path,
    answer: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def asked(_: str) -> str:
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr(builtins, "input", asked)
    words = launch_words(rows, out)
    words.remove("--yes")
    main(words)
    output = capsys.readouterr().out
    assert "nothing was rented" in output
    assert "ends in any case at 2.75 h, $1.27" in output
    assert not vast.sent("PUT", CREATE)
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max_hours", "0.5"], "above the cap of 0.50 h"),
        (["--max_dollars", "0.1"], r"or \$0.10: raise"),
        (["--", "--resume"], "belongs before the --"),
        (["--", "--tracking=online"], "judge sync"),
        (["--", "--tracking=tensorboard"], "event files are not copied back from a host"),
        (["--", "--seeds=2"], "rent for one"),
        (["--", "--data_dir=nowhere"], "data folder nowhere is not there"),
        (["--", "--lerning_rate=1"], "unrecognized arguments: --lerning_rate=1"),
        (["--resume", "nowhere"], "no run with a complete checkpoint"),
        (["--offer", "99"], "offer 99 is not among those found"),
        (["--max_price", "-1"], "max_price is -1, must be a number above 0"),
        (["--max_price", "x"], "max_price is 'x', expected float"),
        (["--disk", "0"], "disk is 0, must be a number at least 1"),
        (["--disk", "1.5"], "disk is '1.5', expected int"),
        (["--reliability", "98"], "reliability is 98, must be a number above 0 and at most 1"),
        (["--inet_down", "nan"], "inet_down is nan, must be a number above 0"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_rented(
    vast: VastServer, rows: Path, out: Path, more: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        main(launch_words(rows, out, *more))
    assert not vast.sent("PUT", CREATE)


def test_template_outside_of_the_dataset_is_refused_before_anything_is_rented(
    vast: VastServer, rows: Path, out: Path, tmp_path: Path
) -> None:
    data, template = shutil.copytree(rows, tmp_path / "data"), tmp_path / "own"
    template.mkdir()
    (template / "user.txt").write_text("{source}\n{candidate}\n")
    for name in (str(template), "../own"):
        (data / "dataset.json").write_text(json.dumps({"template": name}))
        assert "own is outside of the folder, which alone is copied" in attempt(data, out)
    assert not vast.sent("PUT", CREATE)


def test_all_files_of_the_package_are_sent() -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "pt_app"], capture_output=True, text=True, check=True
    )
    assert {name: ROOT / name for name in listed.stdout.split()}.items() <= package_files().items()


def test_credit_below_the_cap_is_refused(vast: VastServer, rows: Path, out: Path) -> None:
    vast.faults.credits = [1.0]
    assert "$1.00 of credit, and the cap is $1.27: add credit" in attempt(rows, out)
    assert not vast.sent("PUT", CREATE)


def test_keys_that_the_account_gives_every_host_are_refused(
    vast: VastServer, rows: Path, out: Path
) -> None:
    vast.variables = {"TZ": "UTC", "HF_TOKEN": "hf_of_the_account"}
    message = attempt(rows, out)
    assert "variables HF_TOKEN: `vastai delete env-var NAME` first" in message
    assert "hf_of_the_account" not in message


def test_without_a_key_the_remedy_is_named(
    vast: VastServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VAST_API_KEY")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    with pytest.raises(UserError, match="no Vast key: make one at"):
        main(["list"])
    monkeypatch.setenv("VAST_API_KEY", "a-wrong-key-0123456789")
    with pytest.raises(UserError, match=r"Vast refuses the key \(401\)") as failed:
        main(["list"])
    assert "a-wrong-key" not in str(failed.value)


def test_a_key_within_the_data_stops_the_launch(vast: VastServer, rows: Path, out: Path) -> None:
    leaky = out.parent / "leaky"
    leaky.mkdir()
    for file in rows.iterdir():
        text = file.read_text(encoding="utf-8")
        (leaky / file.name).write_text(text.replace("Two errors.", SECRETS["WANDB_API_KEY"]))
    message = attempt(leaky, out)
    assert "holds the value of WANDB_API_KEY: take it out" in message
    assert SECRETS["WANDB_API_KEY"] not in message
    assert not vast.sent("PUT", CREATE)


def test_no_key_is_in_the_request_to_create(vast: VastServer, rows: Path, out: Path) -> None:
    vast.faults.states = {machine: ["exited"] for machine in (1011, 1012, 1013)}
    attempt(rows, out)
    bodies = vast.sent("PUT", CREATE)
    assert len(bodies) == 3
    for body in bodies:
        assert not [name for name, key in SECRETS.items() if key in str(body)]
        assert body["env"] == {}
        assert body["cancel_unavail"] is True
        assert body["runtype"] == "ssh_direc ssh_proxy"
        assert len(body["onstart"]) < 4000, "what is longer, Vast is said to cut"


def test_watchdog_starts_before_anything_else(vast: VastServer, rows: Path, out: Path) -> None:
    vast.faults.states = {1011: ["exited"]}
    attempt(rows, out, "--offer", "11", "--max_hours", "2")
    (body,) = vast.sent("PUT", CREATE)
    script = body["onstart"]
    assert "watchdog.sh 7200 " in script
    assert script.index("setsid nohup bash") < script.index("authorized_keys")


class Hub(BaseHTTPRequestHandler):
    """A hub with a gated model, two public ones and none else."""

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/")
        gated = {"org/open": "false", "org/gated": '"auto"', "Qwen/Qwen2.5-3B-Instruct": "false"}
        body = f'{{"id": "{name}", "sha": "0", "gated": {gated.get(name)}, "siblings": []}}'
        self.send_response(200 if name in gated else 401)
        if name not in gated:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Nothing is read of it."""


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("org/gated", "fetch it here with `hf download org/gated`"),
        ("org/none", "is gated or not public on the hub"),
        ("org/open", "nothing was rented"),
    ],
)
def test_model_that_needs_a_token_is_refused(
    vast: VastServer, rows: Path, out: Path, model: str, message: str
) -> None:
    hub = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
    hubs = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0"}
    words = launch_words(
        rows, out, "--hours=1", "--gpu_ram=8", "--disk=60", "--", f"--model={model}"
    )
    words.remove("--yes")
    done = subprocess.run(
        [sys.executable, "scripts/vast.py", *words],
        cwd=ROOT,
        env=os.environ | hubs,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )
    hub.shutdown()
    hub.server_close()
    assert message in done.stdout + done.stderr
    assert not vast.sent("PUT", CREATE)


def test_help_is_quick_and_a_wrong_flag_is_one_line(vast: VastServer) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/vast.py", "launch", "--prize", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--prize" in done.stderr
