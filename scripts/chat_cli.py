"""Talk with a model in the terminal: python -m scripts.chat_cli [-p "Why is the sky blue?"]."""

from pt_app.core.errors import exit_with
from pt_app.pretrain.options import TalkOptions, parsed


def main() -> None:
    """Parse the flags, load the model and answer."""
    options = parsed(TalkOptions, __doc__)
    from pt_app.pretrain.chat import talk

    talk(options)


if __name__ == "__main__":
    exit_with(main)
