"""`judge bundle`: one archive that installs and runs without a network."""

from collections.abc import Sequence
from pathlib import Path

from pt_app.commands.flags import RECIPE, command, flag
from pt_app.core.settings import Where


@command()
def bundle(
    *,
    config: Path = flag("settings file, YAML or JSON"),
    adapter: Sequence[Path] = flag("adapter folder to include; may be repeated", ()),
    out: Path = flag("archive to write", Path("judge-bundle.tar")),
    recipe: Where = RECIPE,
    platform: str = flag(
        "platform tag of the wheels, e.g. manylinux_2_28_x86_64; default: as here", ""
    ),
    python_version: str = flag("Python version of the target, e.g. 3.11; default: as here", ""),
    wheels: Path | None = flag("folder of wheels to use instead of a download", None),
) -> None:
    """Write one archive that installs and runs without network: wheels, base, data, adapters."""
    from pt_app.core.settings import recipe_of
    from pt_app.preflight.bundle import bundle as write
    from pt_app.preflight.wheels import Target

    target = Target(platform, python_version) if python_version else Target(platform)
    digest = write(recipe_of(recipe), config, adapter, out, target, wheels)
    print(f"{out}: {out.stat().st_size / 1e6:,.0f} MB, sha256 {digest}")
