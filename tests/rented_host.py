"""A stand-in for a rented host: an OpenSSH server of the test's own, behind a line that can break.

`recipe.py` there takes the recipe's place: a step is a tenth of a second, ten of
them and the last leave a checkpoint, and six of these are kept. With `hold` it
takes no step after a given one, so that a test can look at it in peace.
"""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/home/.ssh/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv TMUX_TMPDIR={folder}
"""
RECIPE = """
import json, pathlib, shutil, signal, sys, time
sys.path.insert(0, ".")
from pt_app.training.checkpoints import staging_folder, newest_complete, publish
flags = dict(word[2:].partition("=")[::2] for word in sys.argv[2:] if word.startswith("--"))
resume = flags.get("resume")
run = pathlib.Path(resume or "adapters_eval/stand-in-20261121_120000")
run.mkdir(parents=True, exist_ok=True)
step = int(newest_complete(run)[0].name.split("-")[1]) if resume else 0
(run / "settings.json").write_text(json.dumps(flags))
(run / "wandb" / "offline-run-1").mkdir(parents=True, exist_ok=True)
(run / "wandb" / "offline-run-1" / "run.wandb").write_text("curves")
(run / "wandb" / "latest-run").unlink(missing_ok=True)
(run / "wandb" / "latest-run").symlink_to((run / "wandb" / "offline-run-1").absolute())
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
hold = pathlib.Path(__file__).with_name("hold")
print(f"training from step {step} to {flags['epochs']}", flush=True)
while step < float(flags["epochs"]) and not asked:
    time.sleep(0.1)
    if hold.exists() and step >= int(hold.read_text()):
        continue
    step += 1
    print(f"step {step}", flush=True)
    if step % 10 and step < float(flags["epochs"]) and not asked and flags["seed"] != "13":
        continue
    folder = staging_folder(run) / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(bytes(step) * 20000)
    publish(folder, run)
    shutil.rmtree(run / f"checkpoint-{step - 60}", ignore_errors=True)
    if flags["seed"] == "13" and step == 3:
        sys.exit("RuntimeError: the loss is no number")
if asked:
    sys.exit(130)
final = pathlib.Path(f"{run}_final")
final.mkdir()
(final / "adapter_model.safetensors").write_bytes(b"trained" * 100000)
(run / "train.log").write_text("done")
"""


def why_not() -> str:
    """Say why no such host is available here; empty where one is."""
    if SSHD is None:
        return "no sshd: Debian's openssh-server has it"
    if not shutil.which("tmux") or not shutil.which("ssh"):
        return "tmux or ssh is missing"
    if os.geteuid() != 0:
        return "rented hosts are logged in to as root, and these tests are not run as root"
    return ""


def free_port() -> int:
    """A port for a program that takes a number.

    Below those that the system hands out (32768 and more), of which a server or a client of the
    tests beside could get it first.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class RentedHost:
    """sshd on `address`; its root's home is `home`, and `remote` the folder for the work."""

    def __init__(self) -> None:
        # Short: tmux's socket lies in it.
        self.folder = Path(tempfile.mkdtemp(prefix="rented"))
        self.home = self.folder / "home"
        self.remote = self.folder / "work"
        self.home.mkdir()
        self.line = Line()
        self.address = ("127.0.0.1", self.line.port)

    def __enter__(self) -> "RentedHost":
        Path("/run/sshd").mkdir(exist_ok=True)
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "host_key")]
        subprocess.run(key, check=True)
        port = free_port()
        config = self.folder / "sshd_config"
        config.write_text(CONFIG.format(port=port, folder=self.folder))
        assert SSHD
        self._sshd = subprocess.Popen([SSHD, "-D", "-f", str(config)], stderr=subprocess.DEVNULL)
        self.line.start(port)
        return self

    def hold(self, step: int) -> None:
        """Let the stand-in take no step after this one; before the launch."""
        (self.folder / "hold").write_text(str(step))

    def release(self) -> None:
        """Let the stand-in go on."""
        (self.folder / "hold").unlink()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._sshd.terminate()
        self._sshd.wait()
        self.line.stop()
        self.wipe()
        shutil.rmtree(self.folder)

    def wipe(self) -> None:
        """Become another machine: nothing runs, no files of an earlier rental."""
        environment = os.environ | {"TMUX_TMPDIR": str(self.folder)}
        subprocess.run(["tmux", "kill-server"], env=environment, capture_output=True)
        for process in (left := self.processes()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)
        for folder in (self.remote, self.home):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(exist_ok=True)

    def processes(self) -> list[psutil.Process]:
        """List what runs from this host's folder: watchdogs and recipes."""
        ours = []
        for process in psutil.process_iter(["cmdline", "cwd"]):
            words = " ".join(process.info["cmdline"] or [])
            there = str(process.info["cwd"]).startswith(str(self.folder))
            # A launcher names the folder too: it is no process of the host.
            if there or ("watchdog.sh" in words and f" {self.remote}" in words[-200:]):
                ours.append(process)
        return [process for process in ours if process.pid != os.getpid()]

    def setup(self) -> str:
        """Give the set-up that puts the stand-in in the recipe's place."""
        (self.folder / "recipe.py").write_text(RECIPE)
        words = f'#!/bin/bash\\nexec {sys.executable} {self.folder}/recipe.py "$@"\\n'
        return f"mkdir -p .venv/bin && printf '{words}' >.venv/bin/python && chmod +x .venv/bin/*"


class Line:
    """The connection to sshd: it may be dead at first, and break after a number of bytes."""

    def __init__(self) -> None:
        self.dead = 0
        """Connections that are closed at once: SSH comes late."""
        self.breaks: list[int] = []
        """Bytes from the host after which a connection is cut; each cuts one connection."""
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._to = 0

    def start(self, to: int) -> None:
        """Pass connections on to the port `to`."""
        self._to = to
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """Take no more connections."""
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self.dead:
            self.dead -= 1
            client.close()
            return
        try:
            host = self._connect()
        except OSError:
            client.close()
            return
        threading.Thread(target=self._pass, args=(client, host, False), daemon=True).start()
        self._pass(host, client, True)

    def _connect(self) -> socket.socket:
        for _ in range(1000):
            try:
                return socket.create_connection(("127.0.0.1", self._to))
            except OSError:  # sshd is starting
                time.sleep(0.05)
        raise OSError("no sshd")

    def _pass(self, source: socket.socket, target: socket.socket, from_host: bool) -> None:
        count = 0
        try:
            while piece := source.recv(65536):
                count += len(piece)
                if from_host and self.breaks and count > self.breaks[0]:
                    self.breaks.pop(0)
                    break
                target.sendall(piece)
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
