"""The rented host, over SSH: commands, copies up, copies back. It is a stranger's machine.

Copies are tar streams through ssh, which any image has, and count only once the hashes that were
taken at the other end hold. Archives from the host are unpacked with Python's "data" filter
and without links, so that no name in them leads out of the folder.
"""

import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from subprocess import DEVNULL, PIPE

from pt_app.core.errors import UserError
from pt_app.core.files import sha256_file, write_text_atomic
from scripts.rented import limits

CONFIG = Path(__file__).with_name("ssh_config")


class CutOffError(Exception):
    """SSH does not reach the host, a command failed there, or a copy was cut."""


def make_key(folder: Path) -> str:
    """Make a key pair for one launch alone, and return its public half.

    The user's own keys and agent stay out of it.
    """
    path = folder / "id_ed25519"
    if not path.exists():
        for program in ("ssh", "ssh-keygen"):
            if not shutil.which(program):
                raise UserError(f"{program} is missing: install OpenSSH's client")
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", folder.name, "-f", str(path)]
        subprocess.run(words, check=True, stdin=DEVNULL)
    return path.with_suffix(".pub").read_text(encoding="utf-8").strip()


@dataclass(frozen=True)
class Host:
    """A way to the host: the launch's folder here with key and config, the work's folder there."""

    folder: Path
    remote: str

    def connect(self, addresses: Iterable[tuple[str, int]]) -> str | None:
        """Use the first address at which SSH answers.

        The SSH configuration is the launch's own; the user's and the system's are not read.

        Returns:
            None, or why the last address does not answer.
        """
        problem = "it has no address yet"
        folder = str(self.folder.resolve()).replace("%", "%%")
        for host, port in addresses:
            config = CONFIG.read_text(encoding="utf-8")
            config = config.format(host=host, port=port, folder=folder)
            write_text_atomic(self.folder / "ssh_config", config)
            try:
                self.run("true", timeout=30)
                return None
            except CutOffError as error:
                problem = f"{host}:{port}: {error}"
        return problem

    def _ssh(self, command: str) -> list[str]:
        return ["ssh", "-F", str(self.folder / "ssh_config"), "rented", command]

    def run(self, command: str, timeout: float | None = None, data: bytes = b"") -> bytes:
        """Run a shell command on the host with `data` as its input; return its output.

        Raises CutOffError where SSH or the command fails, or `timeout` (seconds) runs out.
        """
        words, timeout = self._ssh(command), timeout or limits.LIMITS.command
        try:
            done = subprocess.run(words, input=data, capture_output=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise CutOffError("the host took too long over a command") from None
        if done.returncode:  # 255 is ssh's own failure
            errors = plain(done.stderr).split("\n")[-4:]
            where = "ssh" if done.returncode == 255 else f"on the host, `{command[:80]}`"
            raise CutOffError(f"{where} failed: {' '.join(errors).strip() or 'no reason given'}")
        return done.stdout

    @contextmanager
    def _copying(self, command: str, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
        """Start a shell command on the host, which reads or writes an archive.

        Its ssh is killed after `seconds`: a host that sends or takes a byte now and then would
        otherwise hold a copy open for ever. Raises CutOffError for what fails within.
        """
        words = self._ssh(command)
        try:
            with subprocess.Popen(words, stdin=PIPE, stdout=PIPE, stderr=DEVNULL) as ssh:
                timer = threading.Timer(seconds, ssh.kill)
                timer.start()
                try:
                    yield ssh
                finally:
                    timer.cancel()
                    ssh.kill()
        except (tarfile.TarError, OSError, EOFError) as error:
            raise CutOffError(f"a copy was cut ({type(error).__name__})") from None

    def send(self, files: Mapping[str, Path]) -> None:
        """Copy files up, name in the work's folder -> file here, in three attempts.

        What is there already with the same hash is not sent again. An attempt ends after
        LIMITS.copy and twice the time that the files need at UPLINK. Raises CutOffError.
        """
        folder = shlex.quote(self.remote)
        hashing = f"mkdir -p {folder} && cd {folder} && xargs -0 sha256sum -- 2>/dev/null || true"
        names = "".join(f"{name}\0" for name in files).encode()
        hashes = {name: sha256_file(path) for name, path in files.items()}
        problem = CutOffError("the files on the host differ from those that were sent")
        for _ in range(3):
            try:
                there = read_hashes(self.run(hashing, limits.LIMITS.copy, names))
                missing = {name: files[name] for name in files if there.get(name) != hashes[name]}
                if not missing:
                    return
                self._send(missing)
            except CutOffError as error:
                problem = error
                time.sleep(limits.LIMITS.poll)
        raise problem

    def _send(self, files: Mapping[str, Path]) -> None:
        command = f"cd {shlex.quote(self.remote)} && tar -x --no-same-owner -f -"
        size = sum(path.stat().st_size for path in files.values())
        seconds = limits.LIMITS.copy + 2 * 3600 * limits.upload_hours(size)
        with self._copying(command, seconds) as ssh:
            with tarfile.open(fileobj=ssh.stdin, mode="w|", dereference=True) as archive:
                for name, path in files.items():
                    archive.add(path, name, recursive=False, filter=_anonymous)
            ssh.communicate()  # ssh itself gives up on a host that is silent for a minute
            if ssh.returncode:
                raise CutOffError("a copy to the host was cut")

    def fetch(self, source: str, target: Path, names: Sequence[str] = (".",)) -> None:
        """Copy entries `names` of the folder `source` back into `target`.

        A `target` that is not there yet appears whole or not at all; in one that is there each
        file is replaced whole. What the host did not hash is left out.

        Raises:
            CutOffError: where the copy was cut, took longer than LIMITS.copy or is larger than
                LIMITS.home_bytes, or what arrived is not what the host hashed.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        entries = shlex.join(f"./{name}" for name in names)
        folder = shlex.quote(f"{self.remote}/{source}")
        command = f"cd {folder} && find {entries} -type f -exec sha256sum {{}} +"
        hashes = read_hashes(self.run(command, limits.LIMITS.copy))
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as staging:
            staged = Path(staging) / target.name
            staged.mkdir()
            self._unpack(f"tar -c -C {folder} -f - {entries}", staged, hashes)
            for name, digest in hashes.items():
                path = staged / name
                if not path.is_file() or sha256_file(path) != digest:
                    raise CutOffError(f"the copy of {source}/{name} was cut")
            if target.exists():
                shutil.copytree(staged, target, dirs_exist_ok=True, copy_function=os.replace)
            else:
                staged.rename(target)

    def _unpack(self, command: str, target: Path, names: Iterable[str]) -> None:
        """Unpack the files `names` of the archive that a command on the host writes.

        Links are left out, of which W&B makes some to absolute paths. Raises CutOffError above
        LIMITS.home_bytes: the sizes are a stranger's word, the disk is the user's.
        """
        wanted = {PurePosixPath(name) for name in names}
        left = limits.LIMITS.home_bytes
        with (
            self._copying(command, limits.LIMITS.copy) as ssh,
            tarfile.open(fileobj=ssh.stdout, mode="r|") as archive,
        ):
            for entry in archive:
                if entry.isfile() and PurePosixPath(entry.name) in wanted:
                    left -= entry.size
                    if left < 0:
                        raise CutOffError("a copy from the host is larger than the limit")
                    archive.extract(entry, target, filter="data")


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Take the names of the user's account out."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def read_hashes(output: bytes) -> dict[str, str]:
    """Read what sha256sum prints: name -> hex digest."""
    text = output.decode(errors="replace")
    lines = re.findall(r"^([0-9a-f]{64})  (?:\./)?(.+)$", text, re.MULTILINE)
    return {name: digest for digest, name in lines}


def plain(output: bytes) -> str:
    """Replace control characters: what a stranger's machine says goes to a terminal."""
    text = output.decode(errors="replace").replace("\r", "\n")
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)
