"""Write one archive that installs and runs without any network (`judge bundle`).

Everything is checked first, then the wheels are collected, and then one tar is written.
"""

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import yaml

from pt_app.core.dataset import SPLITS, JudgeData, read_dataset
from pt_app.core.errors import UserError
from pt_app.core.files import cannot_write, expanded, refuse_overwrite, sha256_file
from pt_app.core.flags import read_config
from pt_app.core.prompt_templates import FIELDS, FOLDER, Template
from pt_app.core.settings import Recipe, read_tracking, resolve, table
from pt_app.models import adapters, bases
from pt_app.models.bases import read_json, wanted_files
from pt_app.preflight import wheels
from pt_app.preflight.wheels import CHECKOUT, Target

TOP = "judge-bundle"  # the folder in the archive
MANIFEST = "MANIFEST"
SCRIPTS = {  # name in the bundle -> in the checkout
    "install.sh": "scripts/bundle/install.sh",
    "run.sh": "scripts/bundle/run.sh",
    "scripts/slurm/environment.sh": "scripts/slurm/environment.sh",
    "scripts/slurm/job.sh": "scripts/slurm/job.sh",
    "scripts/slurm/judge_train.slurm": "scripts/slurm/judge_train.slurm",
    "scripts/slurm/sync.sh": "scripts/slurm/sync.sh",
}
# Name in the archive -> file, or its content.
Gathered = dict[str, Path | bytes]


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
    requirements = requirements_of(recipe, config, CHECKOUT)
    files = gather(recipe, config, adapter_folders, CHECKOUT)
    packed = [source for source in files.values() if isinstance(source, Path)]
    refuse_overwrite([out], [config, *packed, *([wheel_folder] if wheel_folder else [])])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside the archive: wheels with CUDA are several GB, and /tmp may be small.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".judge-bundle.") as folder:
            fetched = Path(folder)
            wheels.build_own_wheel(CHECKOUT, fetched)
            (own,) = fetched.glob("pt_app-*.whl")
            if wheel_folder is None:
                wheels.fetch_wheels(requirements, fetched, target)
            elif lacking := wheels.missing(requirements, wheel_folder, target):
                raise UserError(
                    f"--wheels {wheel_folder}: no wheel for {', '.join(lacking)}: "
                    "fetch them with pip download into that folder"
                )
            requirements.append(f"pt-app=={own.name.split('-')[1]}")
            for source in (wheel_folder or fetched, fetched):  # the project's own wheel last
                files |= {f"wheels/{path.name}": path for path in source.glob("*.whl")}
            files["requirements.txt"] = ("\n".join(requirements) + "\n").encode()
            files["PYTHON"] = f"{target.python}\n".encode()
            return write_archive(out, TOP, files)
    except OSError as error:
        raise UserError(cannot_write(out, error)) from error


def requirements_of(recipe: Recipe, config: Path, root: Path) -> list[str]:
    """Return the requirements of a recipe, and TensorBoard's if the settings track a run there.

    Raises:
        UserError: outside of a checkout, and for faulty settings.
    """
    listed = root / f"requirements-{recipe}.txt"
    if not listed.is_file():
        raise UserError(f"{listed.name} is not beside pt_app: run judge bundle in the checkout")
    lines = wheels.read_requirements(listed)
    tracking = resolve(recipe, ["--config", str(config)], "judge bundle", "").tracking
    if "tensorboard" in read_tracking(tracking)[1]:
        lines += wheels.read_requirements(root / "requirements-tensorboard.txt")
    return list(dict.fromkeys(lines))


def gather(recipe: Recipe, config: Path, adapter_folders: Sequence[Path], root: Path) -> Gathered:
    """Gather all that a run of `config` reads, and the scripts that start it.

    Args:
        recipe: the recipe of the run.
        config: its settings file.
        adapter_folders: adapters to include.
        root: the checkout.

    Raises:
        UserError: for a missing base, data with a fault, and an adapter that is damaged or belongs
            to another base.
    """
    settings = resolve(recipe, ["--config", str(config)], "judge bundle", "")
    data = read_dataset(Path(settings.data_dir), settings.allow_leaks)
    Template.load(data.card.template, data.card.rubric)
    source = bases.resolve_model(settings.model)
    base = f"base/{PurePosixPath(source.name).name}"
    files: Gathered = {name: root / path for name, path in SCRIPTS.items()}
    files |= {f"{base}/{path.name}": path for path in wanted_files(source.path)}
    files |= _data(data)
    for folder in adapter_folders:
        files |= _adapter(folder, source, taken=files)
    output = Path(settings.output_dir)
    made = output.name if output.is_absolute() else output.as_posix()
    places = {"model": base, "data_dir": f"data/{data.path.resolve().name}", "output_dir": made}
    if (chat := expanded(settings.chat_template)).is_file():
        files["chat_template.jinja"], places["chat_template"] = chat, "chat_template.jinja"
    values = read_config(config, table(recipe).values()) | places
    values.pop("resume", None)
    files["settings.yaml"] = yaml.safe_dump(values, allow_unicode=True).encode()
    files["RECIPE"] = f"{recipe}\n".encode()
    guide = (root / "scripts/bundle/README.md").read_text(encoding="utf-8")
    judges = [name for name in files if name.endswith(f"/{adapters.WEIGHTS}")]
    adapter = str(PurePosixPath(judges[0]).parent) if judges else f"{output.name}/<name>_final"
    files["README.md"] = guide.format(base=base, adapter=adapter).encode()
    return files


def _data(data: JudgeData) -> Gathered:
    """Gather the splits as they are, and a template that is a folder, under its own name."""
    to = f"data/{data.path.resolve().name}"
    names = [f"judge_{split}.json" for split in SPLITS] + ["splits.json", "dataset.json"]
    paths = [data.path / name for name in names]
    files: Gathered = {f"{to}/{path.name}": path for path in paths if path.is_file()}
    template = Path(data.card.template)
    if (FOLDER / template).is_dir() and len(template.parts) == 1:
        return files
    parts = [template / name for name in FIELDS]
    files |= {f"templates/{template.name}/{path.name}": path for path in parts if path.is_file()}
    card = read_json(data.path / "dataset.json") | {"template": f"templates/{template.name}"}
    files[f"{to}/dataset.json"] = (json.dumps(card, ensure_ascii=False, indent=2) + "\n").encode()
    return files


def _adapter(folder: Path, source: bases.ModelSource, taken: Gathered) -> Gathered:
    """Gather the files of an adapter but hidden ones."""
    adapters.check_base(adapters.verify_adapter(folder), bases.model_identity(source))
    name = f"adapters/{folder.resolve().name}"
    if f"{name}/{adapters.WEIGHTS}" in taken:
        raise UserError(f"two adapters are named {folder.name}: rename the folder of one")
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    shown = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    return {f"{name}/{path.as_posix()}": folder / path for path in shown}


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
