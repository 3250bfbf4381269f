"""`judge prefetch`: fetches what a run reads, and proves that it is there by reading it.

What to fetch is what the run's own code asks for, given the run's own settings: a list written by
hand forgets something, and the job then dies on a node without internet.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError, exit_with
from pt_app.core.settings import RECIPES, Recipe, Settings, resolve
from pt_app.models import bases

log = logging.getLogger("pt_app.preflight.prefetch")  # also where this file is run with -m


def prefetch(recipe: Recipe, argv: Sequence[str]) -> None:
    """Fetch the base of a run of `recipe` with `argv`, then load all it reads with the hub off.

    Raises UserError where data or base have a fault; ends the process where the second one finds
    one.
    """
    settings = resolve(recipe, argv, "judge prefetch", __doc__ or "")
    # before a model of several GB is fetched
    read_dataset(Path(settings.data_dir), settings.allow_leaks)
    _fetch(settings.model)
    # huggingface_hub reads the variable when it is imported: only a new process obeys it.
    verified = subprocess.run(
        [sys.executable, "-m", "pt_app.preflight.prefetch", recipe, *argv],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    if verified.returncode:
        sys.exit(verified.returncode)


def _fetch(name: str) -> None:
    """Bring the cache up to date; a part of an earlier, broken fetch may lie there."""
    if bases.is_local(name):
        return
    try:
        bases.fetch(name)
    except UserError:
        bases.resolve_model(name)
        log.warning("the hub does not give %s: what the cache holds is checked instead", name)


def verify(recipe: Recipe, settings: Settings) -> None:
    """Read data, tokenizer, templates and weights as the run does, and say what there is.

    Raises UserError for whatever the run would stop on before its first step.
    """
    import torch

    from pt_app.models import platforms
    from pt_app.training.preparation import prepare

    prepared = prepare(settings)
    platform = platforms.decide(recipe, no_4bit=settings.no_4bit)
    if platform.weights == "nf4":
        _need_bitsandbytes()
    # In 16 bits, which a login node has room for; the job reads the same files.
    model = bases.load_model(prepared.source, dtype=torch.bfloat16)
    log.info(
        "%s: read with the hub off: %s parameters, %d rows to train on, %d to test on",
        prepared.source.name,
        f"{model.num_parameters():,}",
        len(prepared.train),
        len(prepared.test),
    )


def _need_bitsandbytes() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"a 4-bit base needs bitsandbytes ({error}): pip install -r requirements-cuda.txt, "
            "or train with no_4bit: true"
        ) from error


def _verify_here() -> None:
    from pt_app.core import console

    console.start()
    name, *argv = sys.argv[1:]
    recipe = next(known for known in RECIPES if known == name)
    verify(recipe, resolve(recipe, argv, "judge prefetch", __doc__ or ""))


if __name__ == "__main__":
    exit_with(_verify_here)
