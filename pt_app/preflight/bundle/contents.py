"""Gather what a bundle holds beside the wheels: base, adapters, data, templates, settings."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from pt_app.core.dataset import SPLITS, JudgeData, read_dataset
from pt_app.core.errors import UserError
from pt_app.core.flags import read_config
from pt_app.core.prompt_templates import FIELDS, FOLDER, Template
from pt_app.core.settings import Recipe, resolve, table
from pt_app.models import adapters, bases
from pt_app.models.base_files import wanted_files

SCRIPTS = {  # name in the bundle -> in the checkout
    "install.sh": "scripts/bundle/install.sh",
    "run.sh": "scripts/bundle/run.sh",
    "scripts/slurm/environment.sh": "scripts/slurm/environment.sh",
    "scripts/slurm/judge_train.slurm": "scripts/slurm/judge_train.slurm",
    "scripts/slurm/sync.sh": "scripts/slurm/sync.sh",
}
Gathered = dict[str, Path | bytes]
"""Name in the archive -> file, or its content."""


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
    values = read_config(config, table(recipe).values()) | {
        "model": base,
        "data_dir": f"data/{data.path.resolve().name}",
        "output_dir": output.name if output.is_absolute() else output.as_posix(),
    }
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
    files: Gathered = {
        f"{to}/{name}": data.path / name for name in names if (data.path / name).is_file()
    }
    template = Path(data.card.template)
    if (FOLDER / template).is_dir() and len(template.parts) == 1:
        return files
    files |= {
        f"templates/{template.name}/{name}": template / name
        for name in FIELDS
        if (template / name).is_file()
    }
    card: dict[str, Any] = json.loads((data.path / "dataset.json").read_text(encoding="utf-8"))
    card["template"] = f"templates/{template.name}"
    files[f"{to}/dataset.json"] = (json.dumps(card, ensure_ascii=False, indent=2) + "\n").encode()
    return files


def _adapter(folder: Path, source: bases.ModelSource, taken: Mapping[str, Any]) -> Gathered:
    """Gather the files of an adapter but hidden ones."""
    adapters.check_base(adapters.verify_adapter(folder), bases.model_identity(source))
    name = f"adapters/{folder.resolve().name}"
    if f"{name}/{adapters.WEIGHTS}" in taken:
        raise UserError(f"two adapters are named {folder.name}: rename the folder of one")
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {
        f"{name}/{path.as_posix()}": folder / path
        for path in paths
        if not any(part.startswith(".") for part in path.parts)
    }
