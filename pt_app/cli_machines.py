"""Subcommands about the machines that judges are trained on."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pt_app.cli_json import Json

RecipeName = Annotated[
    Literal["cpu", "mps", "cuda"],
    typer.Option(help="whose settings and packages; cpu: those of mps, which trains there"),
]


def doctor(
    context: typer.Context,
    platform: Annotated[
        Literal["cpu", "mps", "cuda"] | None,
        typer.Option(help="whose recipe, if not this machine's own; cpu: a GPU is left alone"),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="would a run find all it needs without a network?")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check that this machine computes right and has what a run needs; takes judge train's flags.

    Each failure prints its fix. Exit code 2 where something failed.
    """
    from pt_app.eval_model.settings import check_flags, recipe_of

    check_flags(context.args, "judge doctor", recipe_of(platform) if platform else None)
    from pt_app.doctor.command import run_doctor

    raise typer.Exit(run_doctor(platform, context.args, offline, as_json))


def estimate(
    context: typer.Context,
    platform: Annotated[
        str, typer.Option(help="auto: this machine; cpu: its CPU; mps, cuda: a GPU, here or not")
    ] = "auto",
    recipe: Annotated[
        str, typer.Option(help="whose settings, if not the platform's: cpu, mps or cuda")
    ] = "",
    gpu_memory: Annotated[
        float | None, typer.Option("--gpu_memory", help="GiB of a GPU that is not here")
    ] = None,
    price: Annotated[float | None, typer.Option(help="dollars an hour")] = None,
    no_timing: Annotated[
        bool, typer.Option("--no_timing", help="load no model, time no steps")
    ] = False,
    json: Json = False,
) -> None:
    """Memory, time, disk and price of a run before it begins; takes judge train's flags too."""
    from pt_app.estimate.asked import Asked

    asked = Asked(platform, recipe, gpu_memory, price, not no_timing, json)
    asked.check(context.args)
    from pt_app.estimate.command import run_estimate

    run_estimate(asked, context.args)


def prefetch(
    context: typer.Context,
    recipe: RecipeName = "cuda",
) -> None:
    """Fetch what a run reads, then load it with the hub off; takes judge train's flags."""
    from pt_app.eval_model import console
    from pt_app.eval_model.settings import recipe_of
    from pt_app.prefetch import prefetch as fetch

    console.start()
    fetch(recipe_of(recipe), context.args)


def bundle(
    config: Annotated[Path, typer.Option(help="settings file, YAML or JSON")],
    adapter: Annotated[
        list[Path] | None, typer.Option(help="adapter folder, to score with")
    ] = None,
    out: Annotated[Path, typer.Option(help="archive to write")] = Path("judge-bundle.tar"),
    recipe: RecipeName = "cuda",
    platform: Annotated[
        str, typer.Option(help="wheels' tag, e.g. manylinux_2_28_x86_64; empty: as here")
    ] = "",
    python_version: Annotated[
        str, typer.Option("--python_version", help="of the target, like 3.11; empty: as here")
    ] = "",
    wheels: Annotated[
        Path | None, typer.Option(help="folder of wheels, in place of a download")
    ] = None,
) -> None:
    """Write one archive that installs and runs without network: wheels, base, data, adapters."""
    from pt_app.bundle.command import bundle as write
    from pt_app.bundle.target import Target
    from pt_app.eval_model.settings import recipe_of

    target = Target(platform, python_version) if python_version else Target(platform)
    made = write(recipe_of(recipe), config, adapter or [], out, target, wheels)
    print(f"{made.path}: {made.size / 1e6:,.0f} MB, sha256 {made.sha256}")
