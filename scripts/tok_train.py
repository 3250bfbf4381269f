"""Make tokenizer and tokens: python -m scripts.tok_train --text docstrings:numpy."""

from pt_app.core import console
from pt_app.core.errors import exit_with
from pt_app.pretrain.settings import TokenizerSettings, parsed


def main() -> None:
    """Parse the flags, and make tokenizer and tokens."""
    settings = parsed(TokenizerSettings, None, __doc__)
    from pt_app.pretrain.vocabulary import make_tokens  # takes seconds: --help does without

    console.start()
    make_tokens(settings)


if __name__ == "__main__":
    exit_with(main)
