"""Fine-tune a model on conversations: python -m scripts.chat_sft (docs/SCRATCH.md)."""

from pt_app.pretrain.settings import SftSettings, launch

if __name__ == "__main__":
    launch(SftSettings, "plans.chat_train", __doc__)
