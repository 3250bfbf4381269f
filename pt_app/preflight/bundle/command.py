"""Puts a bundle together: checks first, then wheels, then one archive."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pt_app
from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite
from pt_app.core.settings import Recipe
from pt_app.preflight.bundle import wheels
from pt_app.preflight.bundle.archive import write_archive
from pt_app.preflight.bundle.contents import gather
from pt_app.preflight.bundle.target import Target

TOP = "judge-bundle"


@dataclass(frozen=True)
class Bundle:
    """A written archive: its size in bytes and the hash of its bytes."""

    path: Path
    size: int
    sha256: str


def bundle(
    recipe: Recipe,
    config: Path,
    adapter_folders: Sequence[Path],
    out: Path,
    target: Target,
    wheel_folder: Path | None = None,
) -> Bundle:
    """Write all that a run of `recipe` with `config` needs on `target` into the tar `out`.

    `wheel_folder` stands in for a download. Raises UserError before anything is fetched where base,
    data or an adapter has a fault, and where wheels cannot be had.
    """
    root = Path(pt_app.__file__).parents[1]
    listed = root / f"requirements-{recipe}.txt"
    if not listed.is_file():
        raise UserError(f"{listed.name} is not beside pt_app: run judge bundle in the checkout")
    files = gather(recipe, config, adapter_folders, root)
    packed = [one for one in files.values() if isinstance(one, Path)]
    refuse_overwrite([out], [config, *packed, *([wheel_folder] if wheel_folder else [])])
    requirements = wheels.read_requirements(listed)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # beside the archive: wheels with CUDA are several GB, and /tmp may be small
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
            digest = write_archive(out, TOP, files)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}: name another file with --out") from error
    return Bundle(out, out.stat().st_size, digest)


def _copy_wheels(source: Path, folder: Path, requirements: Sequence[str], target: Target) -> None:
    for path in sorted(source.glob("*.whl")):
        shutil.copy(path, folder)
    if lacking := wheels.missing(requirements, folder, target):
        raise UserError(
            f"--wheels {source}: no wheel for {', '.join(lacking)}: "
            "fetch them with pip download into that folder"
        )
