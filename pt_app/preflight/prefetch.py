"""Download what a run reads, and prove that it is there by loading it with the hub off.

What to download is what the code of the run asks for with the settings of the run: a list written
by hand omits something, and the job then fails on a node without internet.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pt_app.core import console
from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError, exit_with
from pt_app.core.settings import Recipe, resolve
from pt_app.models import bases
from pt_app.models.known_bases import fetch, known_bases

log = logging.getLogger("pt_app.preflight.prefetch")  # also where this file is run with -m


def prefetch(recipe: Recipe, argv: Sequence[str]) -> None:
    """Download the base of a run, then load all that the run reads, in a process with the hub off.

    Ends this process if that one finds a fault.

    Raises:
        UserError: if data or base have a fault.
    """
    settings = resolve(recipe, argv, "judge train", "")
    # before a model of several GB is downloaded
    read_dataset(Path(settings.data_dir), settings.allow_leaks)
    _fetch(settings.model)
    # huggingface_hub reads the variable when it is imported: only a new process obeys it.
    command = [sys.executable, "-m", "pt_app.preflight.prefetch", recipe, *argv]
    verified = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if verified.returncode:
        sys.exit(verified.returncode)


def _fetch(name: str) -> None:
    """Update the cache, which may hold a part of an earlier, interrupted download."""
    if name in known_bases() and not Path(name).is_dir():
        fetch(name)
    if bases.is_local(name):
        return
    try:
        bases.fetch(name)
    except UserError:
        bases.resolve_model(name)
        log.warning("the hub does not give %s: what the cache holds is checked instead", name)


def verify(recipe: Recipe, argv: Sequence[str]) -> None:
    """Read data, tokenizer, templates and weights as the run does, and log their sizes.

    Raises:
        UserError: for anything that would stop the run before its first step.
    """
    import torch

    from pt_app.models import platforms
    from pt_app.tracking.access import check_tracking
    from pt_app.training.preparation import prepare

    console.start()
    settings = resolve(recipe, argv, "judge train", "")
    check_tracking(settings.tracking)
    prepared = prepare(settings)
    if platforms.decide(recipe, no_4bit=settings.no_4bit).weights == "nf4":
        try:
            import bitsandbytes  # noqa: F401  (installed and broken is as bad as not installed)
        except ImportError as error:
            raise UserError(
                f"a base in 4 bits needs bitsandbytes ({error}): pip install -r "
                "requirements-cuda.txt, or train with no_4bit: true"
            ) from error
    # In 16 bits, for which a login node has room; the job reads the same files.
    model = bases.load_model(prepared.source, dtype=torch.bfloat16)
    message = "%s: read with the hub off: %s parameters, %d rows to train on, %d to test on"
    rows = len(prepared.train), len(prepared.test)
    log.info(message, prepared.source.name, f"{model.num_parameters():,}", *rows)


if __name__ == "__main__":
    exit_with(lambda: verify(cast(Recipe, sys.argv[1]), sys.argv[2:]))
