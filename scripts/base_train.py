"""Train a base from scratch: python -m scripts.base_train --depth=4 (docs/SCRATCH.md)."""

from pt_app.core.errors import exit_with
from pt_app.pretrain.settings import BaseSettings, parsed


def main() -> None:
    """Parse the flags and train."""
    settings = parsed(BaseSettings, None, __doc__)
    from pt_app.pretrain.plans import base_train  # torch takes seconds: --help does without

    base_train(settings)


if __name__ == "__main__":
    exit_with(main)
