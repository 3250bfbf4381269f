"""Serve a model: a page to chat and an OpenAI-compatible interface: python -m scripts.chat_web."""

from pt_app.core.errors import exit_with
from pt_app.pretrain.options import ServeOptions, parsed


def main() -> None:
    """Parse the flags, load the model and serve it."""
    options = parsed(ServeOptions, __doc__)
    from pt_app.pretrain.server import serve

    serve(options)


if __name__ == "__main__":
    exit_with(main)
