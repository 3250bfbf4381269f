"""Evaluate a chat model on ARC, MMLU, GSM8K and HumanEval: python -m scripts.chat_eval."""

from pt_app.core.errors import exit_with
from pt_app.pretrain.settings import EvalSettings, parsed


def main() -> None:
    """Parse the flags and evaluate."""
    settings = parsed(EvalSettings, None, __doc__)
    from pt_app.pretrain.evaluate import evaluate  # torch takes seconds: --help does without

    evaluate("chat", settings)


if __name__ == "__main__":
    exit_with(main)
