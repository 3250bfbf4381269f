"""Evaluate a base on CORE's tasks: python -m scripts.base_eval (docs/SCRATCH.md)."""

from pt_app.core.errors import exit_with
from pt_app.pretrain.settings import EvalSettings, parsed


def main() -> None:
    """Parse the flags and evaluate."""
    settings = parsed(EvalSettings, None, __doc__)
    from pt_app.pretrain.evaluate import evaluate  # torch takes seconds: --help does without

    evaluate("core", settings)


if __name__ == "__main__":
    exit_with(main)
