"""The rented host, over SSH: commands, copies up, copies back. It is a stranger's machine.

Copies are tar streams through ssh, which any image has, and count only once the hashes that were
taken at the other end hold. Archives from the host are unpacked with Python's "data" filter
and without links, so that no name in them leads out of the folder.
"""

import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pt_app.core.errors import UserError
from pt_app.core.files import sha256_file, write_text_atomic
from scripts.rented import limits

CONFIG = Path(__file__).with_name("ssh_config")


class CutOffError(Exception):
    """SSH does not reach the host, or a copy was cut."""


class GoneError(CutOffError):
    """What was to be copied is no longer on the host."""


def make_key(folder: Path) -> str:
    """Make a key pair for one launch alone, and return its public half.

    The user's own keys and agent stay out of it.
    """
    path = folder / "id_ed25519"
    if not path.exists():
        if not (shutil.which("ssh") and shutil.which("ssh-keygen")):
            raise UserError("ssh or ssh-keygen is missing: install OpenSSH's client")
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", folder.name, "-f", str(path)]
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
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
            except (CutOffError, UserError) as error:
                problem = f"{host}:{port}: {error}"
        return problem

    def _words(self, command: str) -> list[str]:
        return ["ssh", "-F", str(self.folder / "ssh_config"), "rented", command]

    def run(self, command: str, timeout: float | None = None, data: bytes = b"") -> bytes:
        """Run a shell command on the host with `data` as its input; return its output.

        Raises:
            CutOffError: where SSH fails or `timeout` (seconds) runs out.
            UserError: where the command fails.
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
        errors = plain(done.stderr.decode(errors="replace")).strip().splitlines()
        if done.returncode == 255:  # ssh's own failures
            raise CutOffError(errors[-1] if errors else "ssh does not reach the host")
        if done.returncode:
            raise UserError(f"on the host, `{command[:80]}` failed: {' '.join(errors[-3:])}")
        return done.stdout

    @contextmanager
    def _started(
        self, command: str, seconds: float, stdin: int | None = None, stdout: int | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start a shell command on the host; kill its ssh after `seconds`.

        A host that sends or takes a byte now and then would otherwise hold a copy open for ever.
        """
        with subprocess.Popen(
            self._words(command), stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL
        ) as ssh:
            timer = threading.Timer(seconds, ssh.kill)
            timer.start()
            try:
                yield ssh
            finally:
                timer.cancel()

    def send(self, files: Mapping[str, Path]) -> None:
        """Copy files up, name in the work's folder -> file here, in three attempts.

        What is there already with the same hash is not sent again. An attempt ends after
        LIMITS.copy and twice the time that the files need at UPLINK. Raises CutOffError.
        """
        folder = shlex.quote(self.remote)
        hashing = f"mkdir -p {folder} && cd {folder} && xargs -0 sha256sum -- 2>/dev/null || true"
        names = "".join(f"{name}\0" for name in files).encode()
        wanted = {name: sha256_file(path) for name, path in files.items()}
        for attempt in range(3):
            try:
                there = read_hashes(self.run(hashing, limits.LIMITS.copy, names))
                missing = {n: p for n, p in files.items() if there.get(n) != wanted[n]}
                if not missing:
                    return
                self._send(missing)
            except CutOffError:
                if attempt == 2:
                    raise
                time.sleep(limits.LIMITS.poll)
        raise CutOffError("files arrive on the host other than they left")

    def _send(self, files: Mapping[str, Path]) -> None:
        command = f"cd {shlex.quote(self.remote)} && tar -x --no-same-owner -f -"
        size = sum(path.stat().st_size for path in files.values())
        seconds = limits.LIMITS.copy + 2 * 3600 * limits.upload_hours(size)
        try:
            with self._started(command, seconds, stdin=subprocess.PIPE) as ssh:
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
        file is replaced whole. What the host did not hash is left out.

        Raises:
            CutOffError: where the copy was cut, took longer than LIMITS.copy or is larger than
                LIMITS.home_bytes, or what arrived is not what the host hashed.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        entries = shlex.join(f"./{name}" for name in names)
        folder = shlex.quote(f"{self.remote}/{source}")
        try:
            command = f"cd {folder} && find {entries} -type f -exec sha256sum {{}} +"
            try:
                hashes = read_hashes(self.run(command, timeout=limits.LIMITS.copy))
            except UserError as error:
                raise GoneError(str(error)) from None
            self._unpack(f"tar -c -C {folder} -f - {entries}", staged, hashes)
            for name, digest in hashes.items():
                path = staged / name
                if not path.is_file() or sha256_file(path) != digest:
                    raise CutOffError(f"the copy of {source}/{name} was cut")
            if target.exists():
                _merge(staged, target)
            else:
                staged.rename(target)
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _unpack(self, command: str, target: Path, names: Collection[str]) -> None:
        with self._started(command, limits.LIMITS.copy, stdout=subprocess.PIPE) as ssh:
            assert ssh.stdout is not None
            try:
                with tarfile.open(fileobj=ssh.stdout, mode="r|") as archive:
                    archive.extractall(target, filter=_only(names))
            except (tarfile.TarError, OSError, EOFError) as error:
                why = f"a copy from the host was cut ({type(error).__name__})"
                raise CutOffError(why) from None
            finally:
                ssh.kill()


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Take the names of the user's account out."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _only(names: Collection[str]) -> Callable[[tarfile.TarInfo, str], tarfile.TarInfo | None]:
    """Make Python's "data" filter for the files `names`, with a limit on their sizes together.

    Links are left out, of which W&B makes some to absolute paths. Raises CutOffError above
    LIMITS.home_bytes: the sizes are a stranger's word, the disk is the user's.
    """
    wanted = {PurePosixPath(name) for name in names}
    size = 0

    def accept(entry: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        nonlocal size
        if not (entry.isdir() or (entry.isfile() and PurePosixPath(entry.name) in wanted)):
            return None
        size += entry.size
        if size > limits.LIMITS.home_bytes:
            limit = f"{limits.LIMITS.home_bytes / 1e9:.0f} GB"
            raise CutOffError(f"a copy from the host is larger than {limit}")
        return tarfile.data_filter(entry, folder)

    return accept


def _merge(source: Path, target: Path) -> None:
    """Put each file of `source` in its place below `target`, whole."""
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)


def read_hashes(output: bytes) -> dict[str, str]:
    """Read what sha256sum prints: name -> hex digest."""
    text = output.decode(errors="replace")
    lines = re.findall(r"^([0-9a-f]{64})  (?:\./)?(.+)$", text, re.MULTILINE)
    return {name: digest for digest, name in lines}


def plain(text: str) -> str:
    """Replace control characters: what a stranger's machine says goes to a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)
