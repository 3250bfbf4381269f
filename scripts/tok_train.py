"""Train a tokenizer and turn text into tokens: the first stage of a model from scratch."""

from pt_app.core import console
from pt_app.core.errors import exit_with


def main() -> None:
    """Parse the flags, and make the tokens."""
    from pt_app.pretrain.settings import parsed
    from pt_app.pretrain.vocabulary import TextSettings, make_tokens

    settings = parsed(TextSettings, None, __doc__)
    console.start()
    make_tokens(settings)


if __name__ == "__main__":
    exit_with(main)
