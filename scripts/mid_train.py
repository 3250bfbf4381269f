"""Midtrain a base on conversations: python -m scripts.mid_train (docs/SCRATCH.md)."""

from pt_app.pretrain.settings import MidSettings, launch

if __name__ == "__main__":
    launch(MidSettings, "plans.chat_train", __doc__)
