"""What transformers reports of loaded weights, as errors of one line."""

import logging
import textwrap
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pt_app.core.errors import UserError


def check_names(name: str, architecture: str, report: Mapping[str, Collection[Any]]) -> None:
    """Raise UserError where a weight of model `name` is random, or one of the files is not used.

    transformers leaves out what it knows to be harmless: tied heads, buffers, and what the
    architecture's own lists of keys to ignore name.
    """
    faults = [
        f"{len(keys)} {what} (such as {min(keys)})"
        for what, keys in (
            ("missing", report["missing_keys"]),
            ("that it has no place for", report["unexpected_keys"]),
            ("of another shape", {key for key, *_ in report["mismatched_keys"]}),
        )
        if keys
    ]
    faults += map(short, report["error_msgs"])
    if faults:
        raise UserError(
            f'model "{name}": its weights are not those of {architecture}: '
            f"{', '.join(faults)}: save the unwrapped model with save_pretrained, or fetch it again"
        )


@contextmanager
def without_report() -> Iterator[None]:
    """Keep transformers from logging its table of keys, which `check_names` says in one line."""
    logger = logging.getLogger("transformers.modeling_utils")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def short(message: object) -> str:
    """Return the text of an error in one line of at most 200 characters."""
    return textwrap.shorten(str(message), 200, placeholder="...")
