"""Evaluate a chat model: python -m scripts.chat_eval (docs/SCRATCH.md)."""

from pt_app.pretrain.settings import EvalSettings, launch

if __name__ == "__main__":
    launch(EvalSettings, "evaluate.chat_eval", __doc__)
