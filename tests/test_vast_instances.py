"""What becomes of an instance at Vast: created once, destroyed, seen to be gone, or named."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vastai", reason="pip install -r requirements-vast.txt")

from pt_app.core.errors import UserError
from scripts.rented import limits
from scripts.rented.provision import StillAliveError
from scripts.rented.record import all_launches
from scripts.vast import main
from tests.conftest import ROOT
from tests.vast_fixtures import a_launch, attempt, launch_words, until
from tests.vast_server import VastServer, offer

CREATE = r"/asks/\d+/"
LIST = "/api/v1/instances"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def impatient(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test waits out."""
    monkeypatch.setattr(limits.LIMITS, "listed", 0.6)
    for state in limits.LIMITS.states:
        monkeypatch.setitem(limits.LIMITS.states, state, 1.0)


def signal_once_listed(vast: VastServer, number: signal.Signals) -> None:
    """Send this process a signal once it has the answer to its create, and asks for the states."""
    before = len(vast.requests)

    def send() -> None:
        until(lambda: any(path.startswith(LIST) for _, path, *_ in vast.requests[before:]))
        os.kill(os.getpid(), number)

    vast.on_create = lambda: threading.Thread(target=send, daemon=True).start()


def test_offer_that_is_gone_makes_way_for_the_next(
    vast: VastServer, rows: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vast.faults.gone = {11, 12, 13}
    message = attempt(rows, out)
    assert [p for m, p, *_ in vast.requests if m == "PUT"] == [
        f"/api/v0/asks/{id}/" for id in (11, 12, 13)
    ]
    assert "nothing is rented" in message
    assert "no_such_ask" in message


def test_refusal_that_no_offer_mends_ends_at_once(vast: VastServer, rows: Path, out: Path) -> None:
    vast.faults.refuse = (400, "insufficient_credit")
    assert "insufficient_credit" in attempt(rows, out)
    assert len(vast.sent("PUT", CREATE)) == 1


@pytest.mark.parametrize(
    "states",
    [
        [""],
        ["created", "loading"],
        ["loading", "exited"],
        ["unknown"],
        ["offline"],
        ["running", "frozen"],
    ],
)
def test_state_that_never_runs_is_destroyed_before_another_offer_is_taken(
    impatient: None, vast: VastServer, rows: Path, out: Path, states: list[str]
) -> None:
    vast.faults.states = {1011: states, 1012: ["exited"], 1013: ["exited"]}
    attempt(rows, out)
    assert vast.destroyed == [7000, 7001, 7002]
    order = [m for m, p, *_ in vast.requests if m == "DELETE" or "/asks/" in p]
    assert order == ["PUT", "DELETE"] * 3
    assert vast.instances == {}


def test_destroy_that_fails_once_is_asked_again(vast: VastServer, rows: Path, out: Path) -> None:
    vast.faults.states = {1011: ["exited"]}
    vast.faults.destroys = vast.faults.ignored = 1
    message = attempt(rows, out, "--offer", "11")
    assert "nothing is rented" in message
    assert len(vast.sent("DELETE", "/instances/")) == 3
    assert vast.instances == {}


def test_instance_that_cannot_be_destroyed_is_named_and_nothing_more_is_rented(
    vast: VastServer,
    rows: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vast.faults.states = {1011: ["exited"]}
    vast.faults.ignored = 1000
    with monkeypatch.context() as patch:
        patch.setattr(limits.LIMITS, "listed", 0.6)
        message = attempt(rows, out)
    (launch,) = all_launches(out)
    command = f"`python scripts/vast.py destroy {launch.label} --output_dir {out}`"
    assert f"instance 7000 may be alive and billed ($0.409/h): {command}, or https://" in message
    assert len(vast.sent("PUT", CREATE)) == 1
    vast.faults.ignored = 0
    main(["list", "--output_dir", str(out)])
    assert f"{launch.label}: instance 7000, exited" in capsys.readouterr().out
    main(["destroy", launch.label, "--output_dir", str(out)])
    assert vast.instances == {}
    main(["list", "--output_dir", str(out)])
    assert capsys.readouterr().out.splitlines()[-1] == "0 alive"


def test_create_without_an_answer_is_found_by_its_label_and_never_sent_again(
    vast: VastServer, rows: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vast.faults.no_answer, vast.faults.hidden = "created", 2
    vast.faults.states = {1011: ["exited"]}
    attempt(rows, out, "--offer", "11")
    assert "instance 7000 is ours by its label" in capsys.readouterr().out
    assert len(vast.sent("PUT", CREATE)) == 1
    assert vast.destroyed == [7000]


def test_create_that_is_never_listed_is_said_and_never_sent_again(
    impatient: None, vast: VastServer, rows: Path, out: Path
) -> None:
    vast.faults.no_answer = "not"
    with pytest.raises(StillAliveError, match="whether a create succeeded is not known"):
        main(launch_words(rows, out))
    assert len(vast.sent("PUT", CREATE)) == 1


def test_server_error_after_a_create_counts_as_no_answer(
    impatient: None, vast: VastServer, rows: Path, out: Path
) -> None:
    vast.faults.refuse = (502, "bad gateway")
    with pytest.raises(StillAliveError, match="not known"):
        main(launch_words(rows, out))
    assert len(vast.sent("PUT", CREATE)) == 1


def test_lists_that_fail_are_asked_again(vast: VastServer, rows: Path, out: Path) -> None:
    vast.faults.states = {1011: ["loading", "exited"]}
    vast.on_create = lambda: setattr(vast.faults, "lists", 2)
    attempt(rows, out, "--offer", "11")
    assert vast.destroyed == [7000]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_before_the_training_destroys(
    vast: VastServer, rows: Path, out: Path, number: signal.Signals
) -> None:
    vast.faults.states = {1011: ["loading"]}
    signal_once_listed(vast, number)
    with pytest.raises(KeyboardInterrupt):
        main(launch_words(rows, out))
    assert vast.destroyed == [7000]
    assert vast.instances == {}


def test_kill_between_a_create_and_its_answer_leaves_what_list_and_destroy_need(
    vast: VastServer, rows: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    children: list[subprocess.Popen[bytes]] = []
    vast.on_create = lambda: children[0].kill()
    words = launch_words(rows, out, "--hours=1", "--gpu_ram=8")
    children.append(subprocess.Popen([sys.executable, "scripts/vast.py", *words], cwd=ROOT))
    assert children[0].wait(240) == -signal.SIGKILL
    (launch,) = all_launches(out)
    assert (launch.stage, launch.instance) == ("creating", None)
    main(["list", "--output_dir", str(out)])
    assert f"{launch.label}: instance 7000" in capsys.readouterr().out
    main(["destroy", launch.label, "--output_dir", str(out)])
    assert vast.destroyed == [7000]
    with pytest.raises(UserError, match=f"{launch.label} is over"):
        main(["attach", "--output_dir", str(out)])


def test_instances_of_others_are_listed_and_left_alone(
    vast: VastServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine: dict[str, Any] = {"label": "a colleague's", "states": ["running"], "hidden": 0}
    vast.instances[42] = offer(1) | mine | {"id": 42}
    main(["list", "--output_dir", str(tmp_path)])
    output = capsys.readouterr().out
    assert "a colleague's: instance 42, running, RTX 4090, $0.400/h, not started from" in output
    vast.instances[43] = offer(1) | mine | {"id": 43, "label": ""}
    with pytest.raises(UserError, match="neither Vast nor"):
        main(["destroy", "judge-other", "--output_dir", str(tmp_path)])
    with pytest.raises(UserError, match="must be a text that is not empty"):
        main(["destroy", "", "--output_dir", str(tmp_path)])  # of a variable that is not set
    assert vast.destroyed == []
    main(["destroy", "42", "--output_dir", str(tmp_path)])
    assert vast.destroyed == [42]


def test_instance_that_the_list_does_not_show_is_destroyed_by_its_id(
    impatient: None, vast: VastServer, rows: Path, out: Path
) -> None:
    vast.faults.hidden = 1000
    message = attempt(rows, out, "--offer", "11")
    assert "nothing is rented" in message
    assert vast.destroyed == [7000]
    assert vast.instances == {}


def test_interrupt_right_after_a_create_destroys_what_is_not_listed_yet(
    vast: VastServer, rows: Path, out: Path
) -> None:
    vast.faults.hidden = 1000
    signal_once_listed(vast, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        main(launch_words(rows, out))
    assert vast.destroyed == [7000]


def unanswered(out: Path, **fields: Any) -> None:
    """The record of a launch whose create was sent."""
    a_launch(out).save(started=time.time(), **fields)


def test_destroy_waits_for_an_instance_of_which_only_the_label_is_known(
    vast: VastServer, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unanswered(out)
    mine: dict[str, Any] = {"label": "judge-1", "states": ["running"], "hidden": 3}
    vast.instances[42] = offer(1) | mine | {"id": 42}
    main(["destroy", "judge-1", "--output_dir", str(out)])
    assert vast.destroyed == [42]


def test_destroy_of_what_vast_does_not_know_is_done(vast: VastServer, out: Path) -> None:
    unanswered(out, instance=42, stage="training")
    main(["destroy", "judge-1", "--output_dir", str(out)])
    assert len(vast.sent("DELETE", "/instances/42/")) == 1
    assert all_launches(out)[0].stage == "destroyed"


def test_list_that_leaves_an_instance_out_once_does_not_end_its_launch(
    vast: VastServer, out: Path
) -> None:
    unanswered(out, instance=42, stage="training")
    mine: dict[str, Any] = {"label": "judge-1", "states": ["running"], "hidden": 1}
    vast.instances[42] = offer(1) | mine | {"id": 42}
    with pytest.raises(StillAliveError, match="instance 42 may be alive"):
        main(["fetch", "--output_dir", str(out)])
    assert all_launches(out)[0].instance == 42


def test_offer_that_would_need_more_hours_than_the_cap_is_not_taken(
    vast: VastServer, rows: Path, out: Path
) -> None:
    vast.offers = [offer(11), offer(12, dph_total=0.15, total_flops=20.0)]  # 4.4 h, $0.86
    vast.faults.gone = {11}
    assert "offer 12" not in attempt(rows, out)
    assert len(vast.sent("PUT", CREATE)) == 1


def test_caps_of_later_hosts_are_less_what_the_failed_ones_cost(
    vast: VastServer, rows: Path, out: Path
) -> None:
    vast.offers = [offer(11), offer(12), offer(13)]
    vast.faults.states = {machine: ["exited"] for machine in (1011, 1012, 1013)}
    message = attempt(rows, out, "--max_dollars", "0.9")  # of which traffic is 0.14 on each
    assert "offer 12: it is exited" in message
    assert "offer 13 cannot end within the $0.6" in message
    assert vast.destroyed == [7000, 7001]
    seconds = [
        int(re.search(r"watchdog.sh (\d+) ", body["onstart"])[1])  # type: ignore[index]
        for body in vast.sent("PUT", CREATE)
    ]
    assert seconds[0] > seconds[1]
    (launch,) = all_launches(out)
    assert 0.28 < launch.spent(time.time()) < 0.3
