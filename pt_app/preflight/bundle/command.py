"""Write a bundle: check everything first, then collect the wheels, then write one archive."""

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pt_app
from pt_app.core.errors import UserError
from pt_app.core.files import cannot_write, refuse_overwrite, sha256_file
from pt_app.core.settings import Recipe
from pt_app.preflight.bundle import wheels
from pt_app.preflight.bundle.contents import gather
from pt_app.preflight.bundle.wheels import Target

TOP = "judge-bundle"  # the folder in the archive
MANIFEST = "MANIFEST"


def bundle(
    recipe: Recipe,
    config: Path,
    adapter_folders: Sequence[Path],
    out: Path,
    target: Target,
    wheel_folder: Path | None = None,
) -> str:
    """Write all that a run needs on another machine into one tar.

    Args:
        recipe: the recipe of the run.
        config: its settings file.
        adapter_folders: adapters to include.
        out: the archive.
        target: the other machine.
        wheel_folder: wheels to use instead of a download.

    Returns:
        The sha256 of the archive.

    Raises:
        UserError: before anything is downloaded, if base, data or an adapter have a fault; if
            wheels are missing, or the archive cannot be written.
    """
    root = Path(pt_app.__file__).parents[1]
    listed = root / f"requirements-{recipe}.txt"
    if not listed.is_file():
        raise UserError(f"{listed.name} is not beside pt_app: run judge bundle in the checkout")
    files = gather(recipe, config, adapter_folders, root)
    packed = [source for source in files.values() if isinstance(source, Path)]
    refuse_overwrite([out], [config, *packed, *([wheel_folder] if wheel_folder else [])])
    requirements = wheels.read_requirements(listed)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside the archive: wheels with CUDA are several GB, and /tmp may be small.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".judge-bundle.") as folder:
            collected = Path(folder)
            wheels.build_own_wheel(root, collected)
            (own,) = collected.glob("pt_app-*.whl")
            if wheel_folder is None:
                wheels.fetch_wheels(requirements, collected, target)
            else:
                _copy_wheels(wheel_folder, collected, requirements, target)
            requirements.append(f"pt-app=={own.name.split('-')[1]}")
            files |= {f"wheels/{path.name}": path for path in collected.glob("*.whl")}
            files["requirements.txt"] = ("\n".join(requirements) + "\n").encode()
            files["PYTHON"] = f"{target.python}\n".encode()
            return write_archive(out, TOP, files)
    except OSError as error:
        raise UserError(cannot_write(out, error)) from error


def _copy_wheels(source: Path, folder: Path, requirements: Sequence[str], target: Target) -> None:
    for path in sorted(source.glob("*.whl")):
        shutil.copy(path, folder)
    if lacking := wheels.missing(requirements, folder, target):
        raise UserError(
            f"--wheels {source}: no wheel for {', '.join(lacking)}: "
            "fetch them with pip download into that folder"
        )


def write_archive(out: Path, top: str, files: Mapping[str, Path | bytes]) -> str:
    """Write a tar whose bytes depend on its files only.

    Args:
        out: the tar, which is complete or absent.
        top: the folder in it.
        files: names in `top`, with the file to read or its content.

    Returns:
        The sha256 of the tar; those of its files are in MANIFEST, for `sha256sum --check`.
    """
    manifest = "".join(f"{_sha256(files[name])}  {name}\n" for name in sorted(files))
    staged = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with open(staged, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
                for name, source in sorted({**files, MANIFEST: manifest.encode()}.items()):
                    _add(tar, f"{top}/{name}", source)
            file.flush()
            os.fsync(file.fileno())
        digest = sha256_file(staged)
        os.replace(staged, out)
    finally:
        staged.unlink(missing_ok=True)
    return digest


def _add(tar: tarfile.TarFile, name: str, source: Path | bytes) -> None:
    """Add a file without what differs between two machines: owner, time, links."""
    entry = tarfile.TarInfo(name)
    entry.mode = 0o755 if name.endswith(".sh") else 0o644
    entry.size = len(source) if isinstance(source, bytes) else source.stat().st_size
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as content:
        tar.addfile(entry, content)


def _sha256(source: Path | bytes) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    return sha256_file(source)
