"""`judge bundle`: one archive that installs and runs without a network."""

from pathlib import Path
from typing import Annotated

import typer

from pt_app.commands.flags import RecipeName


def bundle(
    config: Annotated[Path, typer.Option(help="settings file, YAML or JSON")],
    adapter: Annotated[
        list[Path] | None, typer.Option(help="adapter folder to include; may be repeated")
    ] = None,
    out: Annotated[Path, typer.Option(help="archive to write")] = Path("judge-bundle.tar"),
    recipe: RecipeName = "cuda",
    platform: Annotated[
        str,
        typer.Option(
            help="platform tag of the wheels, e.g. manylinux_2_28_x86_64; default: as here"
        ),
    ] = "",
    python_version: Annotated[
        str,
        typer.Option(
            "--python_version", help="Python version of the target, e.g. 3.11; default: as here"
        ),
    ] = "",
    wheels: Annotated[
        Path | None, typer.Option(help="folder of wheels to use instead of a download")
    ] = None,
) -> None:
    """Write one archive that installs and runs without network: wheels, base, data, adapters."""
    from pt_app.core.settings import recipe_of
    from pt_app.preflight.bundle.command import bundle as write
    from pt_app.preflight.bundle.wheels import Target

    target = Target(platform, python_version) if python_version else Target(platform)
    digest = write(recipe_of(recipe), config, adapter or [], out, target, wheels)
    print(f"{out}: {out.stat().st_size / 1e6:,.0f} MB, sha256 {digest}")
