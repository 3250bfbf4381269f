"""The watchdog of a rented instance: at the cap it ends it, with the instance's own key."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.rented.provision import WATCHDOG
from tests.vast_fixtures import until
from tests.vast_server import ACCOUNT_KEY, VastServer, offer

TOOLS = ("bash", "cat", "date", "mkdir", "sed", "sleep", "tr", "kill")


@pytest.fixture
def server() -> Iterator[VastServer]:
    """Vast with one instance that runs, whose own key is the only one the watchdog has."""
    with VastServer() as made:
        row = {"label": "judge-1", "states": ["running"], "hidden": 0, "own_key": "own-key"}
        made.instances[77] = offer(1) | row | {"id": 77}
        yield made


def watch(server: VastServer, folder: Path, seconds: int, path: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["bash", str(WATCHDOG), str(seconds), server.url, str(folder), "0.2"],
        env={"PATH": path, "CONTAINER_ID": "77", "CONTAINER_API_KEY": "own-key"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def methods(server: VastServer) -> list[str]:
    return [method for method, *_ in server.requests]


def wait_for_the_end(server: VastServer) -> None:
    """Until the instance is gone: a request is kept before it is carried out."""
    until(lambda: server.destroyed)


def path_without(tool: str, folder: Path) -> str:
    """A PATH with what the script needs, but for one tool."""
    folder.mkdir()
    for name in (*TOOLS, "curl", "python3"):
        found = os.path.realpath(sys.executable) if name == "python3" else shutil.which(name)
        if name != tool and found:
            (folder / name).symlink_to(found)
    return str(folder)


class Clock:
    """The watchdog's `date` and `sleep`: its time passes when a test says so."""

    def __init__(self, folder: Path) -> None:
        self.path = path_without("date", folder / "bin")
        self._now, self._reads = folder / "now", folder / "reads"
        self._reads.touch()
        (folder / "bin" / "sleep").unlink()
        sleep = shutil.which("sleep")
        for name, text in (
            ("date", f"echo >>{self._reads}\nexec cat {self._now}"),
            ("sleep", f"exec {sleep} 0.05"),
        ):
            (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / "bin" / name).chmod(0o755)
        self.show(1000)

    def show(self, seconds: int) -> None:
        """Set the seconds that the clock shows from now on."""
        later = self._now.with_name("later")
        later.write_text(f"{seconds}\n")
        later.replace(self._now)

    def until_read(self) -> None:
        """Wait until the watchdog has acted upon what the clock shows."""
        before = self._reads.stat().st_size
        until(lambda: self._reads.stat().st_size > before + 2)


@pytest.mark.parametrize("missing", ["python3", "curl"])
def test_instance_destroys_itself_at_the_cap_with_its_own_key(
    server: VastServer, tmp_path: Path, missing: str
) -> None:
    if missing == "python3" and not shutil.which("curl"):
        pytest.skip("no curl on this machine")
    dog = watch(server, tmp_path / "work", 1, path_without(missing, tmp_path / "bin"))
    wait_for_the_end(server)
    dog.kill()
    method, path, _, key = server.requests[0]
    assert (method, path, key) == ("DELETE", "/api/v0/instances/77/", "own-key")
    assert server.destroyed == [77]
    assert ACCOUNT_KEY not in str(server.requests)
    output, _ = dog.communicate()
    assert b"own-key" not in output


def test_instance_that_may_not_destroy_itself_is_stopped_and_tries_on(
    server: VastServer, tmp_path: Path
) -> None:
    server.faults.destroys = 2
    dog = watch(server, tmp_path / "work", 1, os.environ["PATH"])
    wait_for_the_end(server)
    dog.kill()
    dog.communicate()
    assert methods(server)[:5] == ["DELETE", "PUT", "DELETE", "PUT", "DELETE"]
    assert server.requests[1][2] == {"state": "stopped"}
    assert server.destroyed == [77]


def test_a_restart_of_the_container_buys_no_time(server: VastServer, tmp_path: Path) -> None:
    clock, end = Clock(tmp_path), tmp_path / "work" / "end"
    first = watch(server, tmp_path / "work", 100, clock.path)
    until(lambda: end.exists() and end.read_text() == "1100\n")
    first.kill()
    first.communicate()
    clock.show(1099)
    second = watch(server, tmp_path / "work", 1000, clock.path)
    clock.until_read()
    assert server.requests == []
    clock.show(1100)
    wait_for_the_end(server)
    second.kill()
    second.communicate()
    assert server.destroyed == [77]


def test_recipe_is_asked_for_a_last_checkpoint_before_the_cap(
    server: VastServer, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    recipe = subprocess.Popen(["sleep", "600"])
    (work / "train.pid").write_text(str(recipe.pid))
    clock = Clock(tmp_path)
    dog = watch(server, work, 600, clock.path)
    until((work / "end").exists)
    clock.show(1499)
    clock.until_read()
    assert recipe.poll() is None
    clock.show(1500)
    assert recipe.wait(240) == -15
    assert server.requests == []
    dog.kill()
    dog.communicate()


def test_install_that_finds_the_lock_held_is_tried_again(
    server: VastServer, tmp_path: Path
) -> None:
    path = Path(path_without("curl", tmp_path / "bin"))
    python = (path / "python3").readlink()
    (path / "python3").unlink()
    (path / "ln").symlink_to(str(shutil.which("ln")))
    apt = path / "apt-get"
    apt.write_text(
        f"#!/bin/bash\n[ -e {tmp_path}/held ] || {{ : >{tmp_path}/held; exit 100; }}\n"
        f"ln -sf {python} {path}/python3\n"
    )
    apt.chmod(0o755)
    (path / "sleep").unlink()
    (path / "sleep").write_text("#!/bin/bash\nread -t 0.1 <> <(:)\n")
    (path / "sleep").chmod(0o755)
    dog = watch(server, tmp_path / "work", 1, str(path))
    wait_for_the_end(server)
    dog.kill()
    assert server.destroyed == [77]
