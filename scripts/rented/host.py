"""The rented host, over SSH: commands, copies up, copies back. It is a stranger's machine.

Copies are tar streams through ssh, which any image has, and count only once the hashes that were
taken at the other end hold. Archives from the host are unpacked with Python's "data" filter
and without links, so that no name in them leads out of the folder.
"""

import shlex
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pt_app.core.errors import UserError
from pt_app.core.files import sha256_file, write_text_atomic
from scripts.rented import limits

CONFIG = """Host rented
  HostName {host}
  Port {port}
  User root
  IdentityFile "{folder}/id_ed25519"
  IdentitiesOnly yes
  IdentityAgent none
  ForwardAgent no
  UserKnownHostsFile "{folder}/known_hosts"
  GlobalKnownHostsFile none
  StrictHostKeyChecking accept-new
  BatchMode yes
  ConnectTimeout 15
  ServerAliveInterval 15
  ServerAliveCountMax 4
  LogLevel ERROR
"""


class CutOffError(Exception):
    """SSH does not reach the host, or a copy was cut."""


class GoneError(CutOffError):
    """What was to be copied is no longer on the host."""


def make_key(folder: Path) -> str:
    """A key pair for one launch alone; gives the public half.

    The person's own keys and agent stay out of it.
    """
    path = folder / "id_ed25519"
    if not path.exists():
        for tool in ("ssh", "ssh-keygen"):
            if not shutil.which(tool):
                raise UserError(f"{tool} is missing: install OpenSSH's client")
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", folder.name, "-f", str(path)]
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    return (folder / "id_ed25519.pub").read_text(encoding="utf-8").strip()


@dataclass(frozen=True)
class Host:
    """A way to the host: the launch's folder here with key and config, the work's folder there."""

    folder: Path
    remote: str

    def point_at(self, host: str, port: int) -> None:
        """Write the SSH configuration; the user's own and the system's are not read."""
        folder = str(self.folder.resolve()).replace("%", "%%")
        write_text_atomic(
            self.folder / "ssh_config", CONFIG.format(host=host, port=port, folder=folder)
        )

    def forget(self) -> None:
        """Drop the host's key: the next instance may get the same address."""
        (self.folder / "known_hosts").unlink(missing_ok=True)

    def _words(self, command: str) -> list[str]:
        return ["ssh", "-F", str(self.folder / "ssh_config"), "rented", command]

    def run(self, command: str, timeout: float | None = None, data: bytes = b"") -> bytes:
        """Run a shell command on the host with `data` as its input; gives its output.

        Raises CutOffError where SSH fails or time runs out, UserError where the command fails.
        """
        try:
            done = subprocess.run(
                self._words(command),
                input=data,
                capture_output=True,
                timeout=timeout or limits.LIMITS.command,
            )
        except subprocess.TimeoutExpired:
            raise CutOffError("the host took too long over a command") from None
        said = done.stderr.decode(errors="replace").strip().splitlines()
        if done.returncode == 255:  # ssh's own failures
            raise CutOffError(plain(said[-1]) if said else "ssh does not reach the host")
        if done.returncode:
            raise UserError(f"on the host, `{command[:80]}` failed: {plain(' '.join(said[-3:]))}")
        return done.stdout

    def send(self, files: Mapping[str, Path]) -> None:
        """Copy files up, name in the work's folder -> file here; three attempts, then CutOffError.

        What is there already with the same hash is not sent again. An attempt ends after
        LIMITS.copy and twice the time that the files need at UPLINK.
        """
        wanted = {name: sha256_file(path) for name, path in files.items()}
        for attempt in range(3):
            try:
                there = self._hashes_of(wanted)
                missing = {n: p for n, p in files.items() if there.get(n) != wanted[n]}
                if not missing:
                    return
                self._send(missing)
            except CutOffError:
                if attempt == 2:
                    raise
                time.sleep(limits.LIMITS.poll)
        raise CutOffError("files arrive on the host other than they left")

    def _hashes_of(self, names: Mapping[str, str]) -> dict[str, str]:
        quoted = "".join(f"{name}\0" for name in names).encode()
        output = self.run(
            f"mkdir -p {shlex.quote(self.remote)} && cd {shlex.quote(self.remote)} && "
            "xargs -0 sha256sum -- 2>/dev/null || true",
            timeout=limits.LIMITS.copy,
            data=quoted,
        )
        return read_hashes(output)

    def _send(self, files: Mapping[str, Path]) -> None:
        command = f"cd {shlex.quote(self.remote)} && tar -x --no-same-owner -f -"
        size = sum(path.stat().st_size for path in files.values())
        seconds = limits.LIMITS.copy + 2 * 3600 * limits.upload_hours(size)
        try:
            with (
                subprocess.Popen(
                    self._words(command), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
                ) as ssh,
                _killed_after(ssh, seconds),
            ):
                assert ssh.stdin is not None
                with tarfile.open(fileobj=ssh.stdin, mode="w|", dereference=True) as archive:
                    for name, path in files.items():
                        archive.add(path, name, recursive=False, filter=_anonymous)
                ssh.stdin.close()
                code = ssh.wait()  # ssh itself gives up on a host that is silent for a minute
        except BrokenPipeError:
            code = 255
        if code:
            raise CutOffError("a copy to the host was cut")

    def fetch(self, source: str, target: Path, names: Sequence[str] = (".",)) -> None:
        """Copy entries `names` of the folder `source` back into `target`.

        A `target` that is not there yet appears whole or not at all; in one that is there each
        file is replaced whole. Raises CutOffError where the copy was cut, took longer than
        LIMITS.copy or is larger than LIMITS.home_bytes, or what arrived is not what the host
        hashed. What it did not hash is left out.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        entries = shlex.join(f"./{name}" for name in names)
        folder = shlex.quote(f"{self.remote}/{source}")
        try:
            command = f"cd {folder} && find {entries} -type f -exec sha256sum {{}} +"
            hashes = self._hashes(command)
            self._unpack(f"tar -c -C {folder} -f - {entries}", aside, hashes)
            for name, digest in hashes.items():
                path = aside / name
                if not path.is_file() or sha256_file(path) != digest:
                    raise CutOffError(f"the copy of {source}/{name} was cut")
            if target.exists():
                _merge(aside, target)
            else:
                aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _hashes(self, command: str) -> dict[str, str]:
        try:
            return read_hashes(self.run(command, timeout=limits.LIMITS.copy))
        except UserError as error:
            raise GoneError(str(error)) from None

    def _unpack(self, command: str, aside: Path, names: Collection[str]) -> None:
        with (
            subprocess.Popen(
                self._words(command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            ) as ssh,
            _killed_after(ssh, limits.LIMITS.copy),
        ):
            assert ssh.stdout is not None
            try:
                with tarfile.open(fileobj=ssh.stdout, mode="r|") as archive:
                    archive.extractall(aside, filter=_only(names))
            except (tarfile.TarError, OSError, EOFError) as error:
                raise CutOffError(f"a copy from the host was cut ({type(error).__name__})") from (
                    None
                )
            finally:
                ssh.kill()


@contextmanager
def _killed_after(process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
    """A host that sends or takes a byte now and then would else hold a copy open for ever."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the names of the person's account."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _only(names: Collection[str]) -> Callable[[tarfile.TarInfo, str], tarfile.TarInfo | None]:
    """Python's "data" filter for the files `names`, and for their sizes together.

    Links are left out, of which W&B makes some to absolute paths. Raises CutOffError above
    LIMITS.home_bytes: the sizes are a stranger's word, the disk is the person's.
    """
    known = {PurePosixPath(name) for name in names}
    size = 0

    def accept(entry: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        nonlocal size
        if not (entry.isdir() or (entry.isfile() and PurePosixPath(entry.name) in known)):
            return None
        size += entry.size
        if size > limits.LIMITS.home_bytes:
            raise CutOffError(
                f"a copy from the host is larger than {limits.LIMITS.home_bytes / 1e9:.0f} GB"
            )
        return tarfile.data_filter(entry, folder)

    return accept


def _merge(source: Path, target: Path) -> None:
    """Put each file of `source` in its place below `target`, whole."""
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)


def read_hashes(output: bytes) -> dict[str, str]:
    """Name -> hex digest out of what sha256sum prints."""
    found = {}
    for line in output.decode(errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        if len(digest) == 64 and name:
            found[name.removeprefix("./")] = digest
    return found


def plain(text: str) -> str:
    """Without control characters: what a stranger's machine says goes to a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)
