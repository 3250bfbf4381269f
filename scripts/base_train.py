"""Train a base from scratch: python -m scripts.base_train --depth=4 (docs/SCRATCH.md)."""

from pt_app.pretrain.settings import BaseSettings, launch

if __name__ == "__main__":
    launch(BaseSettings, "plans.base_train", __doc__)
