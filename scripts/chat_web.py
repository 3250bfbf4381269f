"""Serve a model: a page to chat and an OpenAI-compatible interface: python -m scripts.chat_web."""

from pt_app.pretrain.settings import ServeSettings, launch

if __name__ == "__main__":
    launch(ServeSettings, "server.serve", __doc__)
